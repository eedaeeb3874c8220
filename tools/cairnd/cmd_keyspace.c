/* Keys: what exists, deleting, and looking at one. */
#include <stdio.h>

#include "storage/format.h"
#include "tools/cairnd/cmd_string.h"
#include "transport/decimal.h"

/* More keys are looked for where nobody else waits for that. */
#define KEYS_HERE 1024u

/* --- counting and deleting keys --- */

/* Is it there? */
static cairn_status peek(struct call *c, uint32_t i, bool *ret)
{
    struct string_key k;
    struct string s;
    if (!string_key(c, i, &k))
        return CAIRN_INVAL;
    cairn_status st = string_find(c, &k, 0, &s);
    if (st == CAIRN_INPROGRESS)
        return st;
    *ret = st == CAIRN_OK;
    if (*ret)
        string_drop(c, &s);
    return CAIRN_OK;
}

static enum call_flow exists(struct call *c)
{
    int64_t held = 0;
    if (c->argc > KEYS_HERE && !c->may_wait)
        return CALL_WAITS;
    for (uint32_t i = 1; i < c->argc; i++) {
        bool there;
        cairn_status st = peek(c, i, &there);
        if (st)
            return st == CAIRN_INPROGRESS ? CALL_WAITS : CALL_DONE;
        held += there;
    }
    string_count(c, (uint64_t)held, c->argc - 1 - (uint64_t)held);
    cairn_out_int(c->out, held);
    return CALL_DONE;
}

/* What there is to delete counts only if it can be read; what cannot be goes all the same, as do
 * copies that only a restart would find. */
static cairn_status delete_locked(struct call *c, const struct string_key *k, int64_t *deleted)
{
    struct string s;
    cairn_status found = string_find(c, k, 0, &s);
    if (found == CAIRN_INPROGRESS)
        return found;
    if (!found)
        string_drop(c, &s);
    cairn_status st = string_delete(c, k);
    if (st == CAIRN_OK && !found)
        ++*deleted;
    return st == CAIRN_MISS ? CAIRN_OK : st;
}

static enum call_flow del(struct call *c)
{
    int64_t deleted = 0;
    /* Run again after the first of several were deleted, it would count too few. */
    if (c->argc > 2 && !c->may_wait)
        return CALL_WAITS;
    if (!string_keys_fit(c, 1))
        return CALL_DONE;
    for (uint32_t i = 1; i < c->argc; i++) {
        struct string_key k;
        string_key(c, i, &k);
        cairn_status st = string_lock(c, &k);
        if (!st) {
            st = delete_locked(c, &k, &deleted);
            string_unlock(c, &k);
        }
        if (st)
            return string_end(c, st);
    }
    cairn_out_int(c->out, deleted);
    return CALL_DONE;
}

static enum call_flow type(struct call *c)
{
    bool there;
    cairn_status st = peek(c, 1, &there);
    if (st)
        return st == CAIRN_INPROGRESS ? CALL_WAITS : CALL_DONE;
    string_count(c, there, !there);
    cairn_out_simple(c->out, there ? "string" : "none");
    return CALL_DONE;
}

/* --- all of them --- */

static enum call_flow dbsize(struct call *c)
{
    cairn_out_int(c->out, (int64_t)cairn_vault_space_count(c->node->vault, CAIRN_SPACE_STRINGS));
    return CALL_DONE;
}

static enum call_flow flush(struct call *c)
{
    if (c->argc > 2 || (c->argc == 2 && !call_is(c, 1, "ASYNC") && !call_is(c, 1, "SYNC")))
        return call_error(c, "ERR syntax error");
    if (!c->may_wait)
        return CALL_WAITS;
    cairn_status st = cairn_vault_clear_space(c->node->vault, CAIRN_SPACE_STRINGS, c->deadline_ns);
    if (!st)
        cairn_out_simple(c->out, "OK");
    return string_end(c, st);
}

/* --- looking at one --- */

static enum call_flow memory_usage(struct call *c)
{
    struct string_key k;
    struct string s;
    int64_t samples;
    for (uint32_t i = 3; i < c->argc; i += 2) {
        if (!call_is(c, i, "SAMPLES") || i + 1 == c->argc)
            return call_error(c, "ERR syntax error");
        if (!call_int(c, i + 1, &samples))
            return string_not_integer(c);
        if (samples < 0)
            return call_error(c, "ERR syntax error");
    }
    if (!string_key(c, 2, &k))
        return CALL_DONE;
    cairn_status st = string_find(c, &k, 0, &s);
    if (st == CAIRN_INPROGRESS)
        return CALL_WAITS;
    if (st) {
        cairn_out_null(c->out);
        return CALL_DONE;
    }
    cairn_out_int(c->out, (int64_t)cairn_record_blocks(s.pin.value_len, 0) * CAIRN_BLOCK);
    string_drop(c, &s);
    return CALL_DONE;
}

static enum call_flow memory(struct call *c)
{
    static const char *const help[] = {
        "USAGE <key> [SAMPLES <count>]",
        "    Bytes of memory that the key takes: a block of 4 KiB for what is known of it, and",
        "    blocks for its value.",
    };
    if (call_is(c, 1, "USAGE"))
        return c->argc < 3 ? call_sub_arity(c, "memory|usage") : memory_usage(c);
    if (!call_is(c, 1, "HELP"))
        return call_sub_unknown(c);
    if (c->argc != 2)
        return call_sub_arity(c, "memory|help");
    return call_help(c, help, sizeof help / sizeof *help);
}

#define EMBEDDED_MAX 44u

/* What Redis would call it: of a long one that does not hang on its bytes. */
static const char *encoding(const struct string *s)
{
    int64_t value;
    if (s->len > EMBEDDED_MAX)
        return "raw";
    return cairn_decimal_read(s->data, s->len, &value) ? "int" : "embstr";
}

static enum call_flow object_look(struct call *c, bool wants_encoding)
{
    struct string_key k;
    struct string s;
    if (!string_key(c, 2, &k))
        return CALL_DONE;
    cairn_status st = string_find(c, &k, 0, &s);
    if (!st && wants_encoding && s.len <= EMBEDDED_MAX) {
        string_drop(c, &s);
        st = string_find(c, &k, STRING_BYTES, &s);
    }
    if (st == CAIRN_INPROGRESS)
        return CALL_WAITS;
    if (st) {
        cairn_out_null(c->out);
        return CALL_DONE;
    }
    if (wants_encoding)
        cairn_out_text(c->out, encoding(&s));
    else
        cairn_out_int(c->out, 1);
    string_drop(c, &s);
    return CALL_DONE;
}

static enum call_flow object(struct call *c)
{
    static const char *const help[] = {
        "ENCODING <key>",
        "    What Redis would call the encoding of the value.",
        "REFCOUNT <key>",
        "    1.",
    };
    bool wants_encoding = call_is(c, 1, "ENCODING");
    if (wants_encoding || call_is(c, 1, "REFCOUNT")) {
        if (c->argc != 3)
            return call_sub_arity(c, wants_encoding ? "object|encoding" : "object|refcount");
        return object_look(c, wants_encoding);
    }
    if (!call_is(c, 1, "HELP"))
        return call_sub_unknown(c);
    if (c->argc != 2)
        return call_sub_arity(c, "object|help");
    return call_help(c, help, sizeof help / sizeof *help);
}

#define CHANGE COMMAND_WRITE
#define CHANGE_FAST (COMMAND_WRITE | COMMAND_FAST)

/* A row of a command without a payload. */
#define ROW(text, args, flag, fn, about, first, last, step) \
    {.name = text, .arity = args, .flags = flag, .run = fn, .help = about, .key_first = first, \
     .key_last = last, .key_step = step}

const struct command commands_keyspace[] = {
    ROW("DEL", -2, CHANGE, del, "Deletes keys; replies how many there were.", 1, -1, 1),
    ROW("UNLINK", -2, CHANGE_FAST, del, "As DEL.", 1, -1, 1),
    ROW("EXISTS", -2, COMMAND_FAST, exists, "How many of the keys exist.", 1, -1, 1),
    ROW("TOUCH", -2, COMMAND_FAST, exists, "As EXISTS, and they count as used.", 1, -1, 1),
    ROW("TYPE", 2, COMMAND_FAST, type, "\"string\", or \"none\".", 1, 1, 1),
    ROW("TTL", 2, COMMAND_FAST, cmd_ttl, "Seconds that a key has left, -1 = no end, -2 = no key.",
        1, 1, 1),
    ROW("PTTL", 2, COMMAND_FAST, cmd_pttl, "As TTL, in milliseconds.", 1, 1, 1),
    ROW("EXPIRETIME", 2, COMMAND_FAST, cmd_expiretime, "When a key ends, in seconds since 1970.",
        1, 1, 1),
    ROW("PEXPIRETIME", 2, COMMAND_FAST, cmd_pexpiretime, "As EXPIRETIME, in milliseconds.",
        1, 1, 1),
    ROW("EXPIRE", -3, CHANGE_FAST, cmd_expire, "Ends a key after some seconds: NX XX GT LT.",
        1, 1, 1),
    ROW("PEXPIRE", -3, CHANGE_FAST, cmd_pexpire, "As EXPIRE, in milliseconds.", 1, 1, 1),
    ROW("EXPIREAT", -3, CHANGE_FAST, cmd_expireat, "Ends a key at a time, in seconds since 1970.",
        1, 1, 1),
    ROW("PEXPIREAT", -3, CHANGE_FAST, cmd_pexpireat, "As EXPIREAT, in milliseconds.", 1, 1, 1),
    ROW("PERSIST", 2, CHANGE_FAST, cmd_persist, "Takes a key's end away.", 1, 1, 1),
    ROW("DBSIZE", 1, COMMAND_FAST, dbsize, "How many keys there are.", 0, 0, 0),
    ROW("SCAN", -2, 0, cmd_scan, "Some keys and where to go on: MATCH COUNT TYPE.", 0, 0, 0),
    ROW("KEYS", 2, 0, cmd_keys, "All keys that match a pattern.", 0, 0, 0),
    ROW("RANDOMKEY", 1, 0, cmd_randomkey, "Some key, or null.", 0, 0, 0),
    ROW("FLUSHDB", -1, CHANGE | COMMAND_LONG, flush, "Deletes all keys; chunks stay.", 0, 0, 0),
    ROW("FLUSHALL", -1, CHANGE | COMMAND_LONG, flush, "As FLUSHDB: there is one database.", 0, 0,
        0),
    ROW("MEMORY", -2, 0, memory, "MEMORY USAGE: bytes of memory that a key takes.", 0, 0, 0),
    ROW("OBJECT", -2, 0, object, "OBJECT ENCODING: what Redis would call it.", 2, 2, 1),
    {.name = NULL},
};
