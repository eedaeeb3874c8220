/* Strings: reading one. */
#include "tools/cairnd/cmd_string.h"

static enum call_flow get(struct call *c)
{
    struct string_key k;
    struct string s;
    if (!string_key(c, 1, &k))
        return CALL_DONE;
    cairn_status st = string_find(c, &k, STRING_BYTES | STRING_COUNT, &s);
    if (st == CAIRN_INPROGRESS)
        return CALL_WAITS;
    if (st)
        cairn_out_null(c->out);
    else
        string_reply_drop(c, &s);
    return CALL_DONE;
}

static enum call_flow string_length(struct call *c)
{
    struct string_key k;
    struct string s;
    if (!string_key(c, 1, &k))
        return CALL_DONE;
    cairn_status st = string_find(c, &k, STRING_COUNT, &s);
    if (st == CAIRN_INPROGRESS)
        return CALL_WAITS;
    cairn_out_int(c->out, st ? 0 : (int64_t)s.len);
    if (!st)
        string_drop(c, &s);
    return CALL_DONE;
}

/* Bytes start..end of a string of `len`, both counted from its end if negative. */
static size_t range_of(int64_t start, int64_t end, size_t len, size_t *ret_off)
{
    int64_t n = (int64_t)len;
    if (n == 0 || (start < 0 && end < 0 && start > end))
        return 0;
    start = start >= 0 ? start : start + n < 0 ? 0 : start + n;
    end = end >= 0 ? end : end + n < 0 ? 0 : end + n;
    if (end >= n)
        end = n - 1;
    if (start > end)
        return 0;
    *ret_off = (size_t)start;
    return (size_t)(end - start + 1);
}

static enum call_flow get_range(struct call *c)
{
    struct string_key k;
    struct string s;
    int64_t start, end;
    if (!call_int(c, 2, &start) || !call_int(c, 3, &end))
        return string_not_integer(c);
    if (!string_key(c, 1, &k))
        return CALL_DONE;
    cairn_status st = string_find(c, &k, STRING_BYTES | STRING_COUNT, &s);
    if (st == CAIRN_INPROGRESS)
        return CALL_WAITS;
    if (st) {
        cairn_out_bulk(c->out, "", 0);
        return CALL_DONE;
    }
    size_t off = 0, len = range_of(start, end, s.len, &off);
    if (string_reply(c, &s, off, len))
        string_drop(c, &s);
    return CALL_DONE;
}

static cairn_status get_and_delete(struct call *c, const struct string_key *k)
{
    struct string s;
    cairn_status found = string_find(c, k, STRING_BYTES | STRING_SURE, &s);
    if (found && found != CAIRN_MISS)
        return found;
    /* Also when there is nothing: the disk may hold a copy that only a restart would find. */
    cairn_status st = string_delete(c, k);
    if (st == CAIRN_OK || st == CAIRN_MISS) {
        string_count(c, !found, found != CAIRN_OK);
        if (!found)
            string_reply_drop(c, &s);
        else
            cairn_out_null(c->out);
        return CAIRN_OK;
    }
    if (!found)
        string_drop(c, &s);
    return st;
}

static enum call_flow getdel(struct call *c)
{
    struct string_key k;
    if (!string_key(c, 1, &k))
        return CALL_DONE;
    cairn_status st = string_lock(c, &k);
    if (st)
        return string_end(c, st);
    st = get_and_delete(c, &k);
    string_unlock(c, &k);
    return string_end(c, st);
}

/* --- GETEX --- */

struct getex {
    struct string_key key;
    struct expiry_option expiry;
};

/* Replies the string and gives it its new time. */
static cairn_status getex_change(struct call *c, struct getex *g, struct string *s, int64_t at_ms)
{
    bool absolute = g->expiry.kind == EXPIRY_EXAT || g->expiry.kind == EXPIRY_PXAT;
    cairn_status st = absolute && at_ms <= string_now_ms()
                          ? string_delete(c, &g->key)
                          : string_rewrite(c, &g->key, s,
                                           at_ms ? string_expires_ns(at_ms) : 0);
    if (st == CAIRN_OK || st == CAIRN_MISS) {
        string_count(c, 1, 0);
        string_reply_drop(c, s);
        return CAIRN_OK;
    }
    string_drop(c, s);
    return st;
}

static cairn_status getex_locked(struct call *c, struct getex *g)
{
    struct string s;
    int64_t at_ms = 0;
    cairn_status st = string_find(c, &g->key, STRING_BYTES | STRING_SURE, &s);
    if (st == CAIRN_MISS) {
        string_count(c, 0, 1);
        cairn_out_null(c->out);
        return CAIRN_OK;
    }
    if (st)
        return st;
    bool timed = g->expiry.kind != EXPIRY_NONE && g->expiry.kind != EXPIRY_PERSIST;
    if (timed && !expiry_time(c, &g->expiry, &at_ms)) {
        string_drop(c, &s);
        return CAIRN_OK;
    }
    bool changes = timed || (g->expiry.kind == EXPIRY_PERSIST && s.expires_ns);
    if (changes)
        return getex_change(c, g, &s, at_ms);
    string_count(c, 1, 0);
    string_reply_drop(c, &s);
    return CAIRN_OK;
}

static enum call_flow getex(struct call *c)
{
    struct getex g = {.expiry.kind = EXPIRY_NONE};
    for (uint32_t i = 2; i < c->argc; i++)
        if (!expiry_option(c, &i, EXPIRY_OF_GETEX, &g.expiry))
            return call_error(c, "ERR syntax error");
    if (g.expiry.kind == EXPIRY_NONE)
        return get(c);
    if (!string_key(c, 1, &g.key))
        return CALL_DONE;
    cairn_status st = string_lock(c, &g.key);
    if (st)
        return string_end(c, st);
    st = getex_locked(c, &g);
    string_unlock(c, &g.key);
    return string_end(c, st);
}

#define SET COMMAND_WRITE
#define SET_FAST (COMMAND_WRITE | COMMAND_FAST)

/* Rows of commands of one key; `at` is the argument that is a value. */
#define ROW(text, args, flag, fn, about) \
    {.name = text, .arity = args, .flags = flag, .run = fn, .help = about, .key_first = 1, \
     .key_last = 1, .key_step = 1}
#define ROW_VALUE(text, args, flag, at, fn, about) \
    {.name = text, .arity = args, .flags = (flag) | COMMAND_PAYLOAD, .payload = at, .run = fn, \
     .help = about, .key_first = 1, .key_last = 1, .key_step = 1}
/* Of several keys. Their values are received into ordinary memory: such a command may be run again
 * after some of them were taken over. */
#define ROW_MANY(text, args, flag, fn, about, step) \
    {.name = text, .arity = args, .flags = flag, .run = fn, .help = about, .key_first = 1, \
     .key_last = -1, .key_step = step}

const struct command commands_string[] = {
    ROW("GET", 2, COMMAND_FAST, get, "The value of a key, or null."),
    ROW_VALUE("SET", -3, SET, 2, cmd_set,
              "Sets a key: NX XX GET KEEPTTL, EX PX EXAT PXAT with a time."),
    ROW_VALUE("SETNX", 3, SET_FAST, 2, cmd_setnx, "Sets a key that does not exist."),
    ROW_VALUE("SETEX", 4, SET, 3, cmd_setex, "Sets a key for some seconds."),
    ROW_VALUE("PSETEX", 4, SET, 3, cmd_psetex, "Sets a key for some milliseconds."),
    ROW_VALUE("GETSET", 3, SET_FAST, 2, cmd_getset, "Sets a key; replies its old value."),
    ROW("GETDEL", 2, SET_FAST, getdel, "Deletes a key; replies its old value."),
    ROW("GETEX", -2, SET_FAST, getex,
        "The value of a key, and a new time for it: EX PX EXAT PXAT PERSIST."),
    ROW("GETRANGE", 4, 0, get_range, "Bytes of a value, from start to end."),
    ROW("SUBSTR", 4, 0, get_range, "As GETRANGE."),
    ROW("STRLEN", 2, COMMAND_FAST, string_length, "Bytes of a value."),
    ROW_MANY("MGET", -2, COMMAND_FAST, cmd_mget, "The values of keys.", 1),
    ROW_MANY("MSET", -3, SET, cmd_mset, "Sets keys, one after another.", 2),
    ROW_MANY("MSETNX", -3, SET, cmd_msetnx, "Sets keys, if none of them exists.", 2),
    {.name = NULL},
};
