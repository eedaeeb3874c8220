/* Strings: several at once. */
#include "tools/cairnd/cmd_string.h"

#include <stdlib.h>

#include "base/mem.h"

#define MANY_ON_STACK 64u
/* More keys, or a longer reply, are a worker's: others wait for what is done here. */
#define KEYS_HERE 1024u
#define COPIED_HERE_MAX (4u << 20)
/* Bytes of the arena that one reply holds, and that are read for it at once. */
#define HELD_MAX(c) ((c)->node->o.ram / 8)

/* --- MGET --- */

struct many_get {
    struct string *found; /* in the order of the keys; no data = missing */
    struct cairn_pin *back;
    uint32_t count;
};

/* Pins all that are held, so that nothing is written before it is known that nothing waits. */
static cairn_status many_find(struct call *c, struct many_get *m)
{
    uint64_t copied = 0;
    for (uint32_t i = 0; i < m->count; i++) {
        struct string_key k;
        string_key(c, 1 + i, &k);
        m->found[i].data = NULL;
        cairn_status st = string_find(c, &k, STRING_BYTES, &m->found[i]);
        if (st == CAIRN_OK && m->found[i].len <= STRING_COPY_MAX)
            copied += m->found[i].len;
        if (st != CAIRN_INPROGRESS && copied <= COPIED_HERE_MAX)
            continue;
        for (uint32_t j = 0; j < i + (st == CAIRN_OK); j++)
            if (m->found[j].data)
                string_drop(c, &m->found[j]);
        return CAIRN_INPROGRESS;
    }
    return CAIRN_OK;
}

static enum call_flow many_now(struct call *c, struct many_get *m)
{
    uint32_t back = 0, hits = 0;
    if (many_find(c, m))
        return CALL_WAITS;
    cairn_out_array(c->out, m->count);
    for (uint32_t i = 0; i < m->count; i++) {
        struct string *s = &m->found[i];
        hits += s->data != NULL;
        if (!s->data)
            cairn_out_null(c->out);
        else if (string_reply(c, s, 0, s->len))
            m->back[back++] = s->pin;
    }
    cairn_vault_unpin(c->node->vault, m->back, back);
    string_count(c, hits, m->count - hits);
    return CALL_DONE;
}

static enum call_flow many_get_now(struct call *c)
{
    struct string found[MANY_ON_STACK];
    struct cairn_pin back[MANY_ON_STACK];
    struct many_get m = {.found = found, .back = back, .count = c->argc - 1};
    if (m.count <= MANY_ON_STACK)
        return many_now(c, &m);
    void *memory = cairn_calloc(m.count, sizeof *found + sizeof *back);
    if (!memory)
        return call_error(c, "ERR no memory for that many keys");
    m.found = memory;
    m.back = (struct cairn_pin *)(m.found + m.count);
    enum call_flow flow = many_now(c, &m);
    free(memory);
    return flow;
}

/* Values that are read from the disk side by side. */
struct many_window {
    struct cairn_key names[MANY_ON_STACK];
    struct cairn_pin pins[MANY_ON_STACK];
    uint32_t count, held;
};

/* Names arguments from `first` on, as many as take part of the RAM. Returns where it ends. */
static uint32_t window_open(struct call *c, struct many_window *w, uint32_t first)
{
    uint64_t len = 0;
    uint32_t i = first;
    w->count = w->held = 0;
    for (; i < c->argc && w->count < MANY_ON_STACK && len <= HELD_MAX(c); i++) {
        struct string_key k;
        string_key(c, i, &k);
        w->names[w->count++] = k.name;
        len += cairn_vault_space_value_len(c->node->vault, CAIRN_SPACE_STRINGS, &k.name);
    }
    return i;
}

/* A call of the vault ends at the first that is missing: go on behind it. */
static void window_load(struct call *c, struct many_window *w)
{
    for (uint32_t i = 0; i < w->count;) {
        size_t got = cairn_vault_space_pin(c->node->vault, CAIRN_SPACE_STRINGS, w->names + i,
                                           w->count - i, c->deadline_ns, w->pins + w->held);
        w->held += (uint32_t)got;
        i += (uint32_t)got + 1;
    }
}

/* Where it may wait each value is replied as it is found. What the reply holds of the arena is
 * bounded: a reply may be larger than the RAM. */
static void many_reply_one(struct call *c, uint32_t i, uint64_t *held)
{
    struct string_key k;
    struct string s;
    string_key(c, i, &k);
    if (string_find(c, &k, STRING_BYTES | STRING_COUNT, &s)) {
        cairn_out_null(c->out);
    } else if (s.len > STRING_COPY_MAX && *held + s.len <= HELD_MAX(c)) {
        *held += s.len;
        string_reply(c, &s, 0, s.len);
    } else {
        if (c->out->memory + s.len <= node_live(&c->node->o.client_memory) / 2)
            cairn_out_bulk(c->out, s.data, s.len);
        else
            cairn_out_null(c->out);
        string_drop(c, &s);
    }
}

static enum call_flow many_get_waiting(struct call *c)
{
    struct many_window w;
    uint64_t held = 0;
    cairn_out_array(c->out, c->argc - 1);
    for (uint32_t first = 1, end; first < c->argc; first = end) {
        end = window_open(c, &w, first);
        window_load(c, &w);
        for (uint32_t i = first; i < end; i++)
            many_reply_one(c, i, &held);
        cairn_vault_unpin(c->node->vault, w.pins, w.held);
    }
    return CALL_DONE;
}

enum call_flow cmd_mget(struct call *c)
{
    if (!string_keys_fit(c, 1))
        return CALL_DONE;
    if (c->may_wait)
        return many_get_waiting(c);
    return c->argc > KEYS_HERE ? CALL_WAITS : many_get_now(c);
}

/* --- MSET, MSETNX --- */

struct many_set {
    struct string_key *keys;
    struct string_value *values; /* MSETNX */
    uint32_t count;
    struct string_stripes stripes;
};

/* Memory for all pairs, on the stack if they are few. */
struct many_stack {
    struct string_key keys[MANY_ON_STACK];
    struct string_value values[MANY_ON_STACK];
};

static cairn_status many_set_one(struct call *c, struct many_set *m, uint32_t i)
{
    struct string_value v;
    cairn_status st = string_value_take(c, 2 + 2 * i, &v);
    if (st)
        return st;
    st = string_commit(c, &m->keys[i], &v, 0);
    if (st == CAIRN_INPROGRESS)
        string_value_drop(c, &v);
    return st;
}

/* Run again it goes on behind the keys that were set: others may have set them anew. */
static cairn_status many_set(struct call *c, struct many_set *m)
{
    for (; c->done < m->count; c->done++) {
        cairn_status st = many_set_one(c, m, c->done);
        if (st)
            return st;
    }
    cairn_out_simple(c->out, "OK");
    return CAIRN_OK;
}

/* OK: one of them exists. */
static cairn_status many_any(struct call *c, const struct many_set *m)
{
    for (uint32_t i = 0; i < m->count; i++) {
        struct string s;
        cairn_status st = string_find(c, &m->keys[i], STRING_SURE, &s);
        if (st == CAIRN_OK)
            string_drop(c, &s);
        if (st != CAIRN_MISS)
            return st;
    }
    return CAIRN_MISS;
}

/* What was set before one of them failed is taken back. */
static cairn_status many_set_all(struct call *c, struct many_set *m)
{
    for (uint32_t i = 0; i < m->count; i++) {
        cairn_status st = string_commit(c, &m->keys[i], &m->values[i], 0);
        if (!st)
            continue;
        for (uint32_t j = 0; j < i; j++)
            (void)string_delete(c, &m->keys[j]);
        for (uint32_t j = i + 1; j < m->count; j++)
            string_value_drop(c, &m->values[j]);
        return st;
    }
    cairn_out_int(c->out, 1);
    return CAIRN_OK;
}

static void many_values_drop(struct call *c, struct many_set *m, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        string_value_drop(c, &m->values[i]);
}

/* Every value has its room before the first is visible: all or nothing. */
static cairn_status many_setnx(struct call *c, struct many_set *m)
{
    cairn_status any = many_any(c, m);
    if (any == CAIRN_OK)
        cairn_out_int(c->out, 0);
    if (any != CAIRN_MISS)
        return any;
    for (uint32_t i = 0; i < m->count; i++) {
        cairn_status st = string_value_take(c, 2 + 2 * i, &m->values[i]);
        if (st) {
            many_values_drop(c, m, i);
            return st;
        }
    }
    return many_set_all(c, m);
}

static enum call_flow many_locked(struct call *c, struct many_set *m,
                                  cairn_status (*run)(struct call *, struct many_set *))
{
    for (uint32_t i = 0; i < m->count; i++) {
        string_key(c, 1 + 2 * i, &m->keys[i]);
        string_stripes_add(&m->stripes, &m->keys[i]);
    }
    cairn_status st = string_stripes_lock(c, &m->stripes);
    if (st)
        return string_end(c, st);
    st = run(c, m);
    string_stripes_unlock(c, &m->stripes);
    return string_end(c, st);
}

static enum call_flow many(struct call *c,
                           cairn_status (*run)(struct call *, struct many_set *))
{
    struct many_stack stack;
    struct many_set m = {.keys = stack.keys, .values = stack.values, .count = (c->argc - 1) / 2};
    if (c->argc % 2 == 0)
        return call_arity(c);
    if (!string_keys_fit(c, 2))
        return CALL_DONE;
    if (m.count <= MANY_ON_STACK)
        return many_locked(c, &m, run);
    void *memory = cairn_calloc(m.count, sizeof *m.keys + sizeof *m.values);
    if (!memory)
        return call_error(c, "ERR no memory for that many keys");
    m.keys = memory;
    m.values = (struct string_value *)(m.keys + m.count);
    enum call_flow flow = many_locked(c, &m, run);
    free(memory);
    return flow;
}

enum call_flow cmd_mset(struct call *c)
{
    return c->argc > KEYS_HERE && !c->may_wait ? CALL_WAITS : many(c, many_set);
}

enum call_flow cmd_msetnx(struct call *c)
{
    /* Once one of its keys is visible it cannot be run again: it starts where it may wait. */
    return c->may_wait || c->argc % 2 == 0 ? many(c, many_setnx) : CALL_WAITS;
}
