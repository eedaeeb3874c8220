/* Times: how long a key has to live. */
#include "tools/cairnd/cmd_string.h"

#define MS_PER_S 1000

/* --- options of SET and GETEX --- */

static enum expiry_kind expiry_kind(const struct call *c, uint32_t i)
{
    static const struct {
        const char *word;
        enum expiry_kind kind;
    } words[] = {
        {"EX", EXPIRY_EX},     {"PX", EXPIRY_PX},           {"EXAT", EXPIRY_EXAT},
        {"PXAT", EXPIRY_PXAT}, {"KEEPTTL", EXPIRY_KEEPTTL}, {"PERSIST", EXPIRY_PERSIST},
    };
    for (size_t w = 0; w < sizeof words / sizeof *words; w++)
        if (call_is(c, i, words[w].word))
            return words[w].kind;
    return EXPIRY_NONE;
}

bool expiry_option(const struct call *c, uint32_t *i, uint32_t words, struct expiry_option *o)
{
    enum expiry_kind kind = expiry_kind(c, *i);
    if (kind == EXPIRY_NONE || (o->kind != EXPIRY_NONE && o->kind != kind))
        return false;
    if (kind == EXPIRY_KEEPTTL || kind == EXPIRY_PERSIST) {
        o->kind = kind;
        return words >> kind & 1;
    }
    if (*i + 1 == c->argc)
        return false;
    *o = (struct expiry_option){kind, ++*i};
    return true;
}

bool expiry_time(struct call *c, const struct expiry_option *o, int64_t *ret_ms)
{
    int64_t t;
    bool seconds = o->kind == EXPIRY_EX || o->kind == EXPIRY_EXAT;
    bool relative = o->kind == EXPIRY_EX || o->kind == EXPIRY_PX;
    if (!call_int(c, o->at, &t)) {
        string_not_integer(c);
        return false;
    }
    if (t <= 0 || (seconds && __builtin_mul_overflow(t, MS_PER_S, &t)) ||
        (relative && __builtin_add_overflow(t, string_now_ms(), &t))) {
        string_bad_expiry(c);
        return false;
    }
    *ret_ms = t;
    return true;
}

/* --- EXPIRE and its kin --- */

struct expire {
    struct string_key key;
    int64_t at_ms;
    bool nx, xx, gt, lt;
};

/* False: the error is written. */
static bool expire_options(struct call *c, struct expire *e)
{
    for (uint32_t i = 3; i < c->argc; i++) {
        if (call_is(c, i, "NX")) {
            e->nx = true;
        } else if (call_is(c, i, "XX")) {
            e->xx = true;
        } else if (call_is(c, i, "GT")) {
            e->gt = true;
        } else if (call_is(c, i, "LT")) {
            e->lt = true;
        } else {
            string_error_about(c, "ERR Unsupported option ", i, "");
            return false;
        }
    }
    if (e->nx && (e->xx || e->gt || e->lt)) {
        call_error(c, "ERR NX and XX, GT or LT options at the same time are not compatible");
        return false;
    }
    if (e->gt && e->lt) {
        call_error(c, "ERR GT and LT options at the same time are not compatible");
        return false;
    }
    return true;
}

static bool expire_applies(const struct expire *e, const struct string *s)
{
    uint64_t now = s->expires_ns, then = e->at_ms > 0 ? string_expires_ns(e->at_ms) : 0;
    return !(e->nx && now) && !(e->xx && !now) && !(e->gt && (!now || then <= now)) &&
           !(e->lt && now && then >= now);
}

/* OK and what to reply, or what became of it. */
static cairn_status expire_locked(struct call *c, struct expire *e, int *ret_changed)
{
    struct string s;
    bool past = e->at_ms <= string_now_ms();
    *ret_changed = 0;
    cairn_status st = string_find(c, &e->key, STRING_SURE | (past ? 0 : STRING_BYTES), &s);
    if (st)
        return st == CAIRN_MISS ? CAIRN_OK : st;
    if (expire_applies(e, &s)) {
        st = past ? string_delete(c, &e->key)
                  : string_rewrite(c, &e->key, &s, string_expires_ns(e->at_ms));
        *ret_changed = 1;
    }
    string_drop(c, &s);
    return st == CAIRN_MISS ? CAIRN_OK : st;
}

static enum call_flow change(struct call *c, struct expire *e,
                             cairn_status (*run)(struct call *, struct expire *, int *))
{
    int changed;
    if (!string_key(c, 1, &e->key))
        return CALL_DONE;
    cairn_status st = string_lock(c, &e->key);
    if (st)
        return string_end(c, st);
    st = run(c, e, &changed);
    string_unlock(c, &e->key);
    if (st == CAIRN_OK)
        cairn_out_int(c->out, changed);
    return string_end(c, st);
}

/* The time is `unit_ms` times the argument after base_ms. */
static enum call_flow expire(struct call *c, int64_t base_ms, int64_t unit_ms)
{
    struct expire e = {.nx = false};
    if (!expire_options(c, &e))
        return CALL_DONE;
    if (!call_int(c, 2, &e.at_ms))
        return string_not_integer(c);
    if (__builtin_mul_overflow(e.at_ms, unit_ms, &e.at_ms) ||
        __builtin_add_overflow(e.at_ms, base_ms, &e.at_ms))
        return string_bad_expiry(c);
    return change(c, &e, expire_locked);
}

enum call_flow cmd_expire(struct call *c)
{
    return expire(c, string_now_ms(), MS_PER_S);
}

enum call_flow cmd_pexpire(struct call *c)
{
    return expire(c, string_now_ms(), 1);
}

enum call_flow cmd_expireat(struct call *c)
{
    return expire(c, 0, MS_PER_S);
}

enum call_flow cmd_pexpireat(struct call *c)
{
    return expire(c, 0, 1);
}

static cairn_status persist_locked(struct call *c, struct expire *e, int *ret_changed)
{
    struct string s;
    *ret_changed = 0;
    cairn_status st = string_find(c, &e->key, STRING_BYTES | STRING_SURE, &s);
    if (st)
        return st == CAIRN_MISS ? CAIRN_OK : st;
    if (s.expires_ns) {
        st = string_rewrite(c, &e->key, &s, 0);
        *ret_changed = 1;
    }
    string_drop(c, &s);
    return st;
}

enum call_flow cmd_persist(struct call *c)
{
    struct expire e = {.nx = false};
    return change(c, &e, persist_locked);
}

/* --- TTL and its kin --- */

static enum call_flow time_of(struct call *c, bool left, int64_t unit_ms)
{
    struct string_key k;
    struct string s;
    if (!string_key(c, 1, &k))
        return CALL_DONE;
    cairn_status st = string_find(c, &k, STRING_COUNT, &s);
    if (st == CAIRN_INPROGRESS)
        return CALL_WAITS;
    if (st) {
        cairn_out_int(c->out, -2);
        return CALL_DONE;
    }
    int64_t t = (int64_t)(s.expires_ns / CAIRN_NS_PER_MS) - (left ? string_now_ms() : 0);
    if (!s.expires_ns)
        cairn_out_int(c->out, -1);
    else
        cairn_out_int(c->out, t < 0 ? 0 : (t + unit_ms / 2) / unit_ms);
    string_drop(c, &s);
    return CALL_DONE;
}

enum call_flow cmd_ttl(struct call *c)
{
    return time_of(c, true, MS_PER_S);
}

enum call_flow cmd_pttl(struct call *c)
{
    return time_of(c, true, 1);
}

enum call_flow cmd_expiretime(struct call *c)
{
    return time_of(c, false, MS_PER_S);
}

enum call_flow cmd_pexpiretime(struct call *c)
{
    return time_of(c, false, 1);
}
