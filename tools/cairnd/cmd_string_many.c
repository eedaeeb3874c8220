/* Strings: several at once. */
#include "tools/cairnd/cmd_string.h"

#include <stdlib.h>

#include "base/mem.h"

#define MANY_ON_STACK 64u

/* --- MGET --- */

struct many_get {
    struct string *found; /* in the order of the keys; no data = missing */
    struct cairn_pin *back;
    uint32_t count;
};

static void many_drop(struct call *c, struct many_get *m, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (m->found[i].data)
            string_drop(c, &m->found[i]);
}

/* Pins all that are held, so that nothing is written before it is known that nothing waits. */
static enum call_flow many_find(struct call *c, struct many_get *m)
{
    for (uint32_t i = 0; i < m->count; i++) {
        struct string_key k;
        if (!string_key(c, 1 + i, &k)) {
            many_drop(c, m, i);
            return CALL_DONE;
        }
        cairn_status st = string_find(c, &k, STRING_BYTES | STRING_COUNT, &m->found[i]);
        if (st == CAIRN_INPROGRESS) {
            many_drop(c, m, i);
            return CALL_WAITS;
        }
        if (st)
            m->found[i].data = NULL;
    }
    uint32_t back = 0;
    cairn_out_array(c->out, m->count);
    for (uint32_t i = 0; i < m->count; i++) {
        struct string *s = &m->found[i];
        if (!s->data)
            cairn_out_null(c->out);
        else if (string_reply(c, s, 0, s->len))
            m->back[back++] = s->pin;
    }
    cairn_vault_unpin(c->node->vault, m->back, back);
    return CALL_DONE;
}

enum call_flow cmd_mget(struct call *c)
{
    struct string found[MANY_ON_STACK];
    struct cairn_pin back[MANY_ON_STACK];
    struct many_get m = {.found = found, .back = back, .count = c->argc - 1};
    if (m.count <= MANY_ON_STACK)
        return many_find(c, &m);
    void *memory = cairn_calloc(m.count, sizeof *found + sizeof *back);
    if (!memory)
        return call_error(c, "ERR no memory for that many keys");
    m.found = memory;
    m.back = (struct cairn_pin *)(m.found + m.count);
    enum call_flow flow = many_find(c, &m);
    free(memory);
    return flow;
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

/* When this is run again after some of its keys were set, they are set to the same bytes again. */
static cairn_status many_set(struct call *c, struct many_set *m)
{
    for (uint32_t i = 0; i < m->count; i++) {
        cairn_status st = many_set_one(c, m, i);
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
        if (!string_key(c, 1 + 2 * i, &m->keys[i]))
            return CALL_DONE;
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
    return many(c, many_set);
}

enum call_flow cmd_msetnx(struct call *c)
{
    /* Once one of its keys is visible it cannot be run again: it starts where it may wait. */
    return c->may_wait || c->argc % 2 == 0 ? many(c, many_setnx) : CALL_WAITS;
}
