#include "tools/cairnd/strings.h"

#define OPENSSL_SUPPRESS_DEPRECATED
#include <openssl/sha.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"

#define MARK_EMPTY 1u
/* Longer strings are hashed and copied where nobody else waits for that. */
#define HERE_MAX (4u << 20)
#define LOCK_STEP_NS (CAIRN_NS_PER_MS / 8)
#define PIN_TRIES 16
#define PIN_STEP_NS (4 * CAIRN_NS_PER_MS)
#define ROOM_STEP_NS (CAIRN_NS_PER_MS / 4)
#define ROOM_STEP_MAX_NS (8 * CAIRN_NS_PER_MS)

/* --- keys and stripes --- */

/* Tag and tenant have a fixed size, so no two (tenant, key) are hashed as the same bytes. */
static void name_of(struct string_key *k)
{
    static const char tag[16] = "cairn string 1";
    SHA256_CTX sha;
    SHA256_Init(&sha);
    SHA256_Update(&sha, tag, sizeof tag);
    SHA256_Update(&sha, &k->tenant, sizeof k->tenant);
    SHA256_Update(&sha, k->data, k->len);
    SHA256_Final(k->name.bytes, &sha);
}

static bool key_fits(struct call *c, uint32_t i)
{
    if (c->args[i].len <= CAIRN_NAME_MAX && c->args[i].data)
        return true;
    call_error(c, "ERR key is too long: keys have at most 1024 bytes here");
    return false;
}

bool string_keys_fit(struct call *c, uint32_t step)
{
    for (uint32_t i = 1; i < c->argc; i += step)
        if (!key_fits(c, i))
            return false;
    return true;
}

bool string_key(struct call *c, uint32_t i, struct string_key *ret)
{
    const struct cairn_resp_arg *a = &c->args[i];
    if (!key_fits(c, i))
        return false;
    *ret = (struct string_key){.data = a->data, .len = (uint32_t)a->len,
                               .tenant = c->client->tenant};
    name_of(ret);
    return true;
}

static uint32_t stripe_of(const struct string_key *k)
{
    uint32_t h;
    memcpy(&h, k->name.bytes + 16, sizeof h);
    return h % NODE_STRIPES;
}

static void nap(uint64_t ns)
{
    struct timespec t = cairn_timespec(ns);
    nanosleep(&t, NULL);
}

static cairn_status stripe_lock(struct call *c, uint32_t stripe)
{
    while (pthread_mutex_trylock(&c->node->stripe[stripe])) {
        if (!c->may_wait)
            return CAIRN_INPROGRESS;
        if (cairn_now_ns() >= c->deadline_ns)
            return CAIRN_TIMEOUT;
        nap(LOCK_STEP_NS);
    }
    return CAIRN_OK;
}

cairn_status string_lock(struct call *c, const struct string_key *k)
{
    return stripe_lock(c, stripe_of(k));
}

void string_unlock(struct call *c, const struct string_key *k)
{
    pthread_mutex_unlock(&c->node->stripe[stripe_of(k)]);
}

void string_stripes_add(struct string_stripes *s, const struct string_key *k)
{
    uint32_t stripe = stripe_of(k);
    s->bits[stripe / 64] |= 1ull << stripe % 64;
}

static void stripes_unlock_below(struct call *c, const struct string_stripes *s, uint32_t end)
{
    for (uint32_t i = 0; i < end; i++)
        if (s->bits[i / 64] >> i % 64 & 1)
            pthread_mutex_unlock(&c->node->stripe[i]);
}

cairn_status string_stripes_lock(struct call *c, const struct string_stripes *s)
{
    for (uint32_t i = 0; i < NODE_STRIPES; i++) {
        if (!(s->bits[i / 64] >> i % 64 & 1))
            continue;
        cairn_status st = stripe_lock(c, i);
        if (st) {
            stripes_unlock_below(c, s, i);
            return st;
        }
    }
    return CAIRN_OK;
}

void string_stripes_unlock(struct call *c, const struct string_stripes *s)
{
    stripes_unlock_below(c, s, NODE_STRIPES);
}

/* --- reading --- */

static bool ours(const struct string_key *k, const struct cairn_record_body_disk *b)
{
    return b->space == CAIRN_SPACE_STRINGS && b->tenant == k->tenant && b->name_len == k->len &&
           memcmp(b->name, k->data, k->len) == 0;
}

/* What is on disk is read; memory that replies hold comes back as they are sent. */
static cairn_status pin_waiting(struct call *c, const struct string_key *k,
                                enum cairn_cause *cause, struct cairn_pin *ret)
{
    struct cairn_vault *v = c->node->vault;
    for (int tries = 0; tries < PIN_TRIES; tries++) {
        if (cairn_vault_space_pin(v, CAIRN_SPACE_STRINGS, &k->name, 1, c->deadline_ns, ret) == 1)
            return CAIRN_OK;
        if (cairn_now_ns() >= c->deadline_ns)
            return CAIRN_TIMEOUT;
        cairn_status st = cairn_vault_space_pin_now(v, CAIRN_SPACE_STRINGS, &k->name, true, ret,
                                                    cause);
        if (st != CAIRN_INPROGRESS && *cause != CAIRN_CAUSE_NO_ROOM)
            return st;
        nap(PIN_STEP_NS);
    }
    /* It is there, but no room or no answer for it. */
    return CAIRN_TIMEOUT;
}

/* Of a pinned one. */
static cairn_status take_pinned(struct call *c, const struct string_key *k, struct string *s)
{
    const struct cairn_record_body_disk *b = cairn_pin_body(&s->pin);
    if (!ours(k, b)) {
        cairn_vault_unpin(c->node->vault, &s->pin, 1);
        return CAIRN_MISS;
    }
    s->data = s->pin.value;
    s->len = b->flags & MARK_EMPTY ? 0 : s->pin.value_len;
    s->expires_ns = b->expires_ns;
    return CAIRN_OK;
}

/* What the header on disk says: all that is needed of a value whose bytes are not. */
static cairn_status look_waiting(struct call *c, const struct string_key *k,
                                 enum cairn_cause *cause, struct string *ret)
{
    struct cairn_scan_item i;
    cairn_status st = cairn_vault_header(c->node->vault, CAIRN_SPACE_STRINGS, &k->name,
                                         c->deadline_ns, &i, cause);
    if (st)
        return st;
    if (i.tenant != k->tenant || i.name_len != k->len || memcmp(i.name, k->data, k->len) != 0)
        return CAIRN_MISS;
    *ret = (struct string){.pin.value_len = i.value_len, .expires_ns = i.expires_ns,
                           .len = i.mark & MARK_EMPTY ? 0 : i.value_len};
    return CAIRN_OK;
}

static cairn_status find(struct call *c, const struct string_key *k, uint32_t flags,
                         struct string *ret)
{
    enum cairn_cause cause = CAIRN_CAUSE_NONE;
    bool header = !(flags & STRING_BYTES), pinned = true;
    cairn_status st = cairn_vault_space_pin_now(c->node->vault, CAIRN_SPACE_STRINGS, &k->name,
                                                flags & STRING_BYTES, &ret->pin, &cause);
    if (st == CAIRN_MISS && cause == CAIRN_CAUSE_NO_ROOM)
        st = CAIRN_INPROGRESS;
    if (st == CAIRN_INPROGRESS && c->may_wait) {
        pinned = !header;
        st = header ? look_waiting(c, k, &cause, ret) : pin_waiting(c, k, &cause, &ret->pin);
    }
    if (st == CAIRN_OK && pinned)
        st = take_pinned(c, k, ret);
    if (st == CAIRN_MISS && cause == CAIRN_CAUSE_EXPIRED)
        atomic_fetch_add_explicit(&c->node->stats.string_expired, 1, memory_order_relaxed);
    return st;
}

void string_count(struct call *c, uint64_t hits, uint64_t misses)
{
    struct node_stats *s = &c->node->stats;
    if (hits)
        atomic_fetch_add_explicit(&s->string_hits, hits, memory_order_relaxed);
    if (misses)
        atomic_fetch_add_explicit(&s->string_misses, misses, memory_order_relaxed);
}

cairn_status string_find(struct call *c, const struct string_key *k, uint32_t flags,
                         struct string *ret)
{
    cairn_status st = find(c, k, flags, ret);
    if (st == CAIRN_INPROGRESS)
        return st;
    if (flags & STRING_COUNT)
        string_count(c, st == CAIRN_OK, st != CAIRN_OK);
    return st == CAIRN_TIMEOUT && !(flags & STRING_SURE) ? CAIRN_MISS : st;
}

void string_drop(struct call *c, struct string *s)
{
    if (s->data)
        cairn_vault_unpin(c->node->vault, &s->pin, 1);
}

static void sent(void *arg, uint64_t slot)
{
    struct cairn_vault *v = arg;
    struct cairn_pin pin = {.slot = (uint32_t)slot};
    cairn_vault_unpin(v, &pin, 1);
}

bool string_reply(struct call *c, const struct string *s, size_t off, size_t len)
{
    if (len <= STRING_COPY_MAX) {
        cairn_out_bulk(c->out, s->data + off, len);
        return true;
    }
    cairn_out_bulk_head(c->out, len);
    cairn_out_ref(c->out, s->data + off, len, sent, c->node->vault, s->pin.slot);
    cairn_out_raw(c->out, "\r\n", 2);
    return false;
}

void string_reply_drop(struct call *c, struct string *s)
{
    if (string_reply(c, s, 0, s->len))
        string_drop(c, s);
}

/* --- writing --- */

/* Room is short only while everything is being read, filled or written: all of that ends. */
static cairn_status room_take(struct call *c, size_t len, struct cairn_room *ret)
{
    uint64_t step = ROOM_STEP_NS;
    for (;;) {
        cairn_status st = cairn_vault_room(c->node->vault, len, 0, ret);
        if (st != CAIRN_NOSPACE)
            return st;
        if (!c->may_wait)
            return CAIRN_INPROGRESS;
        if (cairn_now_ns() + step >= c->deadline_ns) {
            atomic_fetch_add_explicit(&c->node->stats.no_room, 1, memory_order_relaxed);
            return st;
        }
        nap(step);
        step = step < ROOM_STEP_MAX_NS ? step * 2 : step;
    }
}

static cairn_status value_of(struct call *c, const void *data, size_t len,
                             struct string_value *ret)
{
    ret->received = false;
    ret->mark = len ? 0 : MARK_EMPTY;
    cairn_status st = room_take(c, len ? len : 1, &ret->room);
    if (st)
        return st;
    if (len)
        memcpy(ret->room.value, data, len);
    else
        *(char *)ret->room.value = 0;
    return CAIRN_OK;
}

cairn_status string_value_take(struct call *c, uint32_t i, struct string_value *ret)
{
    const struct cairn_resp_arg *a = &c->args[i];
    if (i == c->command->payload && call_take_room(c, &ret->room)) {
        ret->received = true;
        ret->mark = 0;
        return CAIRN_OK;
    }
    if (!a->data)
        return a->len > cairn_vault_value_max(c->node->vault) ? CAIRN_TOOBIG : CAIRN_NOSPACE;
    return value_of(c, a->data, a->len, ret);
}

void string_value_drop(struct call *c, struct string_value *v)
{
    if (v->received)
        call_return_room(c, &v->room);
    else
        cairn_vault_room_drop(c->node->vault, &v->room);
}

cairn_status string_commit(struct call *c, const struct string_key *k, struct string_value *v,
                           uint64_t expires_ns)
{
    struct cairn_commit commit = {
        .key = k->name,
        .name = k->data,
        .name_len = k->len,
        .tenant = k->tenant,
        .space = CAIRN_SPACE_STRINGS,
        .mark = v->mark,
        .flags = CAIRN_PUT_REPLACE | CAIRN_COMMIT_ON_EVICT |
                 (c->may_wait ? 0 : CAIRN_COMMIT_NOWAIT),
        .expires_ns = expires_ns,
    };
    enum cairn_cause cause;
    if (v->room.len > HERE_MAX && !c->may_wait)
        return CAIRN_INPROGRESS;
    return cairn_vault_commit(c->node->vault, &v->room, &commit, c->deadline_ns, &cause);
}

cairn_status string_rewrite(struct call *c, const struct string_key *k, const struct string *s,
                            uint64_t expires_ns)
{
    struct string_value v;
    if (s->len > HERE_MAX && !c->may_wait)
        return CAIRN_INPROGRESS;
    cairn_status st = value_of(c, s->data, s->len, &v);
    if (st)
        return st;
    st = string_commit(c, k, &v, expires_ns);
    if (st == CAIRN_INPROGRESS)
        string_value_drop(c, &v);
    return st;
}

cairn_status string_delete(struct call *c, const struct string_key *k)
{
    cairn_status st;
    if (!c->may_wait)
        return cairn_vault_space_delete_now(c->node->vault, CAIRN_SPACE_STRINGS, &k->name);
    cairn_vault_space_delete(c->node->vault, CAIRN_SPACE_STRINGS, &k->name, 1, c->deadline_ns,
                             &st);
    return st;
}

/* --- ends --- */

enum call_flow string_end(struct call *c, cairn_status st)
{
    switch (st) {
    case CAIRN_OK:
        return CALL_DONE;
    case CAIRN_INPROGRESS:
        return CALL_WAITS;
    case CAIRN_NOSPACE:
        return call_error(c, "OOM command not allowed when used memory > 'maxmemory'.");
    case CAIRN_TOOBIG:
        return call_error(c, "ERR string exceeds maximum allowed size (proto-max-bulk-len)");
    case CAIRN_INVAL:
        return call_error(c, "ERR a KV chunk has the name under which this key would be stored: "
                             "delete that chunk first");
    case CAIRN_TIMEOUT:
        return call_error(c, "ERR the disk or memory for it was not free in time: try again");
    case CAIRN_IO:
        return call_error(c, "ERR the disk could not record that the old value is gone, so it "
                             "stays: see INFO for the state of the disk");
    default:
        return call_error(c, "ERR the store is closing");
    }
}

enum call_flow string_not_integer(struct call *c)
{
    return call_error(c, "ERR value is not an integer or out of range");
}

enum call_flow string_error_about(struct call *c, const char *before, uint32_t i,
                                  const char *after)
{
    const struct cairn_resp_arg *a = &c->args[i];
    char text[256];
    int len = a->len < 128 ? (int)a->len : 128;
    snprintf(text, sizeof text, "%s%.*s%s", before, len, a->data ? a->data : "", after);
    return call_error(c, text);
}

enum call_flow string_bad_expiry(struct call *c)
{
    char name[32], text[96];
    size_t n = 0;
    for (const char *p = c->command->name; *p && n < sizeof name - 1; p++)
        name[n++] = *p >= 'A' && *p <= 'Z' ? (char)(*p | 0x20) : *p;
    name[n] = '\0';
    snprintf(text, sizeof text, "ERR invalid expire time in '%s' command", name);
    return call_error(c, text);
}

uint64_t string_expires_ns(int64_t at_ms)
{
    uint64_t ms = (uint64_t)at_ms, most = UINT64_MAX / CAIRN_NS_PER_MS;
    return (ms < most ? ms : most) * CAIRN_NS_PER_MS;
}
