/* Walking through the keys. */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/hash.h"
#include "tools/cairnd/cmd_string.h"
#include "tools/cairnd/glob.h"

#define SCAN_COUNT_DEFAULT 10
#define SCAN_COUNT_MAX 4096u  /* keys looked at by one SCAN, whatever its COUNT          */
#define KEYS_AT_ONCE 1024u    /* stored keys up to which KEYS runs on the network thread */
#define RANDOM_LOOKS 8u
#define PATTERN_MAX 1024u     /* bytes: each may be compared with each of a key          */
#define PATTERN_HERE 64u      /* longer ones are compared where nobody else waits        */
#define PATTERN_TOO_LONG "ERR pattern is too long: patterns have at most 1024 bytes here"

/* What one walk is for, and what it found. */
struct walk {
    struct call *call;
    const struct cairn_resp_arg *pattern; /* NULL: all */
    bool none;                            /* a type that there is not */
    uint64_t now_ns;                      /* wall clock */
    uint64_t memory_max;
    struct cairn_out names;               /* a bulk each */
    uint64_t count;
    bool full, late;
};

static void walk_open(struct walk *w, struct call *c)
{
    *w = (struct walk){.call = c, .now_ns = cairn_wall_ns(),
                       .memory_max = node_live(&c->node->o.output_max)};
    cairn_out_open(&w->names);
}

static bool wanted(const struct walk *w, const struct cairn_scan_item *item)
{
    const struct cairn_resp_arg *p = w->pattern;
    if (w->none || item->tenant != w->call->client->tenant ||
        (item->expires_ns && item->expires_ns <= w->now_ns))
        return false;
    return !p || glob_match(p->data, p->len, item->name, item->name_len);
}

static bool take(void *arg, const struct cairn_scan_item *item)
{
    struct walk *w = arg;
    if (wanted(w, item)) {
        cairn_out_bulk(&w->names, item->name, item->name_len);
        w->count++;
        w->full = w->names.memory > w->memory_max;
    }
    w->late = w->call->may_wait && cairn_now_ns() >= w->call->deadline_ns;
    return !w->full && !w->late;
}

static bool waits_for_pattern(const struct walk *w)
{
    return w->pattern && w->pattern->len > PATTERN_HERE && !w->call->may_wait;
}

/* Where it may not wait a walk that would have to ends at once, with TIMEOUT; elsewhere in time. */
static cairn_status walk(struct walk *w, uint32_t *cursor, size_t max)
{
    struct call *c = w->call;
    struct cairn_vault *v = c->node->vault;
    /* Without any there may still be many chunks to walk past. */
    if (cairn_vault_space_count(v, CAIRN_SPACE_STRINGS) == 0) {
        *cursor = 0;
        return CAIRN_OK;
    }
    cairn_status st = cairn_vault_scan(v, CAIRN_SPACE_STRINGS, cursor, max,
                                       c->may_wait ? c->deadline_ns : 0, take, w);
    return w->late ? CAIRN_TIMEOUT : st;
}

/* --- SCAN --- */

/* As Redis reads it. What cannot be a place to go on from is the end. */
static bool cursor_of(const struct cairn_resp_arg *a, uint32_t *ret, bool *ret_end)
{
    char text[32], *end;
    if (a->len >= sizeof text || !a->data)
        return false;
    memcpy(text, a->data, a->len);
    text[a->len] = '\0';
    errno = 0;
    unsigned long value = strtoul(text, &end, 10);
    if (isspace((unsigned char)text[0]) || *end || end != text + a->len || errno == ERANGE)
        return false;
    *ret_end = value > UINT32_MAX;
    *ret = *ret_end ? 0 : (uint32_t)value;
    return true;
}

/* Options from argument 2 on. False: the error is written. */
static bool scan_options(struct call *c, struct walk *w, size_t *ret_max)
{
    int64_t count = SCAN_COUNT_DEFAULT;
    for (uint32_t i = 2; i < c->argc; i += 2) {
        bool known = call_is(c, i, "COUNT") || call_is(c, i, "MATCH") || call_is(c, i, "TYPE");
        if (!known || i + 1 == c->argc) {
            call_error(c, "ERR syntax error");
            return false;
        }
        if (call_is(c, i, "MATCH") && c->args[i + 1].len > PATTERN_MAX) {
            call_error(c, PATTERN_TOO_LONG);
            return false;
        } else if (call_is(c, i, "MATCH")) {
            w->pattern = &c->args[i + 1];
        } else if (call_is(c, i, "TYPE")) {
            w->none = !call_is(c, i + 1, "string");
        } else if (!call_int(c, i + 1, &count)) {
            string_not_integer(c);
            return false;
        } else if (count < 1) {
            call_error(c, "ERR syntax error");
            return false;
        }
    }
    *ret_max = (uint64_t)count < SCAN_COUNT_MAX ? (size_t)count : SCAN_COUNT_MAX;
    return true;
}

static void scan_reply(struct call *c, uint32_t cursor, struct walk *w)
{
    char text[16];
    snprintf(text, sizeof text, "%u", cursor);
    cairn_out_array(c->out, 2);
    cairn_out_text(c->out, text);
    cairn_out_array(c->out, w->count);
    cairn_out_append(c->out, &w->names);
}

enum call_flow cmd_scan(struct call *c)
{
    struct walk w;
    uint32_t cursor;
    size_t max;
    bool end;
    if (!cursor_of(&c->args[1], &cursor, &end))
        return call_error(c, "ERR invalid cursor");
    walk_open(&w, c);
    if (!scan_options(c, &w, &max))
        return CALL_DONE;
    if (waits_for_pattern(&w))
        return CALL_WAITS;
    cairn_status st = end ? CAIRN_OK : walk(&w, &cursor, max);
    if (st && !c->may_wait) {
        cairn_out_close(&w.names);
        return CALL_WAITS;
    }
    /* Out of time it goes on from here with the next call. */
    scan_reply(c, cursor, &w);
    return CALL_DONE;
}

/* --- KEYS --- */

static enum call_flow keys_end(struct call *c, struct walk *w, cairn_status st)
{
    enum call_flow flow = CALL_DONE;
    if (w->full) {
        call_error(c, "ERR more keys than the output of one client may hold (--output-max): use "
                      "SCAN");
    } else if (st && !c->may_wait) {
        flow = CALL_WAITS;
    } else if (st) {
        call_error(c, "ERR the keys could not be read in time (--io-timeout): use SCAN");
    } else {
        cairn_out_array(c->out, w->count);
        cairn_out_append(c->out, &w->names);
    }
    cairn_out_close(&w->names);
    return flow;
}

enum call_flow cmd_keys(struct call *c)
{
    struct walk w;
    uint32_t cursor = 0;
    cairn_status st = CAIRN_OK;
    if (c->args[1].len > PATTERN_MAX)
        return call_error(c, PATTERN_TOO_LONG);
    if (!c->may_wait &&
        cairn_vault_space_count(c->node->vault, CAIRN_SPACE_STRINGS) > KEYS_AT_ONCE)
        return CALL_WAITS;
    walk_open(&w, c);
    w.pattern = c->args[1].len == 1 && c->args[1].data[0] == '*' ? NULL : &c->args[1];
    if (waits_for_pattern(&w))
        return CALL_WAITS;
    do
        st = walk(&w, &cursor, KEYS_AT_ONCE);
    while (!st && cursor && !w.full);
    return keys_end(c, &w, st);
}

/* --- RANDOMKEY --- */

/* Cursors lie below a bound that is not known here: those above it find nothing, so half of the
 * numbers are left out until one does. */
enum call_flow cmd_randomkey(struct call *c)
{
    uint64_t now = cairn_now_ns();
    uint32_t random = (uint32_t)cairn_hash64(&now, sizeof now);
    struct walk w;
    cairn_status st = CAIRN_OK;
    walk_open(&w, c);
    w.memory_max = 0;
    for (uint32_t shift = 0; shift <= 32 && !st && !w.count; shift++) {
        uint32_t cursor = shift < 32 ? random >> shift : 0;
        do
            st = walk(&w, &cursor, RANDOM_LOOKS);
        while (!st && cursor && !w.count);
    }
    if (st && !c->may_wait && !w.count) {
        cairn_out_close(&w.names);
        return CALL_WAITS;
    }
    if (w.count)
        cairn_out_append(c->out, &w.names);
    else
        cairn_out_null(c->out);
    cairn_out_close(&w.names);
    return CALL_DONE;
}
