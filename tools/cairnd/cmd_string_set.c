/* Strings: setting one. */
#include "tools/cairnd/cmd_string.h"

enum set_reply { REPLY_STATUS, REPLY_NUMBER };

struct set {
    struct string_key key;
    uint32_t value;        /* its argument */
    bool nx, xx, get;
    enum set_reply reply;
    struct expiry_option expiry;
    uint64_t expires_ns;
};

static void reply_kept(struct call *c, const struct set *s)
{
    if (s->reply == REPLY_NUMBER)
        cairn_out_int(c->out, 0);
    else
        cairn_out_null(c->out);
}

static void reply_set(struct call *c, const struct set *s)
{
    if (s->reply == REPLY_NUMBER)
        cairn_out_int(c->out, 1);
    else
        cairn_out_simple(c->out, "OK");
}

/* Replies the old value for GET, otherwise whether the key was set. Gives the pin back. */
static void reply(struct call *c, const struct set *s, struct string *old, bool set)
{
    if (s->get)
        string_count(c, old != NULL, old == NULL);
    if (s->get && old) {
        string_reply_drop(c, old);
        return;
    }
    if (s->get)
        cairn_out_null(c->out);
    else if (set)
        reply_set(c, s);
    else
        reply_kept(c, s);
    if (old)
        string_drop(c, old);
}

/* Sets it by what is there. *v is used up but for INPROGRESS. */
static cairn_status set_by_old(struct call *c, struct set *s, struct string_value *v)
{
    struct string old;
    uint32_t flags = STRING_SURE | (s->get ? STRING_BYTES : 0);
    cairn_status found = string_find(c, &s->key, flags, &old);
    if (found && found != CAIRN_MISS) {
        if (found != CAIRN_INPROGRESS)
            cairn_vault_room_drop(c->node->vault, &v->room);
        return found;
    }
    struct string *there = found == CAIRN_OK ? &old : NULL;
    if (s->nx ? there != NULL : s->xx && !there) {
        reply(c, s, there, false);
        cairn_vault_room_drop(c->node->vault, &v->room);
        return CAIRN_OK;
    }
    if (s->expiry.kind == EXPIRY_KEEPTTL && there)
        s->expires_ns = old.expires_ns;
    cairn_status st = string_commit(c, &s->key, v, s->expires_ns);
    if (st == CAIRN_OK)
        reply(c, s, there, true);
    else if (there)
        string_drop(c, there);
    return st;
}

static cairn_status set_locked(struct call *c, struct set *s, struct string_value *v)
{
    if (s->nx || s->xx || s->get || s->expiry.kind == EXPIRY_KEEPTTL)
        return set_by_old(c, s, v);
    cairn_status st = string_commit(c, &s->key, v, s->expires_ns);
    if (st == CAIRN_OK)
        reply_set(c, s);
    return st;
}

static enum call_flow set(struct call *c, struct set *s)
{
    struct string_value v;
    if (!string_key(c, 1, &s->key))
        return CALL_DONE;
    cairn_status st = string_value_take(c, s->value, &v);
    if (st)
        return string_end(c, st);
    st = string_lock(c, &s->key);
    if (!st) {
        st = set_locked(c, s, &v);
        string_unlock(c, &s->key);
    } else if (st != CAIRN_INPROGRESS) {
        cairn_vault_room_drop(c->node->vault, &v.room);
    }
    if (st == CAIRN_INPROGRESS)
        string_value_drop(c, &v);
    return string_end(c, st);
}

static bool timed(struct call *c, struct set *s)
{
    int64_t at_ms;
    if (!expiry_time(c, &s->expiry, &at_ms))
        return false;
    s->expires_ns = string_expires_ns(at_ms);
    return true;
}

enum call_flow cmd_set(struct call *c)
{
    struct set s = {.value = 2};
    for (uint32_t i = 3; i < c->argc; i++) {
        if (call_is(c, i, "NX") && !s.xx)
            s.nx = true;
        else if (call_is(c, i, "XX") && !s.nx)
            s.xx = true;
        else if (call_is(c, i, "GET"))
            s.get = true;
        else if (!expiry_option(c, &i, EXPIRY_OF_SET, &s.expiry))
            return call_error(c, "ERR syntax error");
    }
    bool time = s.expiry.kind != EXPIRY_NONE && s.expiry.kind != EXPIRY_KEEPTTL;
    return time && !timed(c, &s) ? CALL_DONE : set(c, &s);
}

enum call_flow cmd_setnx(struct call *c)
{
    struct set s = {.value = 2, .nx = true, .reply = REPLY_NUMBER};
    return set(c, &s);
}

enum call_flow cmd_getset(struct call *c)
{
    struct set s = {.value = 2, .get = true};
    return set(c, &s);
}

enum call_flow cmd_setex(struct call *c)
{
    struct set s = {.value = 3, .expiry = {EXPIRY_EX, 2}};
    return timed(c, &s) ? set(c, &s) : CALL_DONE;
}

enum call_flow cmd_psetex(struct call *c)
{
    struct set s = {.value = 3, .expiry = {EXPIRY_PX, 2}};
    return timed(c, &s) ? set(c, &s) : CALL_DONE;
}
