#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "tools/cairnd/node.h"

#define SLOTS 1024u /* several times the number of commands, a power of two */
#define NAME_BYTES_MAX 32u
#define SHOWN_BYTES 128

static const struct command *const families[] = {
    commands_connection,
    commands_server,
    commands_string,
    commands_keyspace,
    commands_kv,
};

#define FAMILIES (sizeof families / sizeof *families)

static const struct command *table[SLOTS];
static uint32_t family_end[FAMILIES]; /* number of its last command and one */
static pthread_once_t table_once = PTHREAD_ONCE_INIT;

/* Of the name in upper case. */
static uint32_t name_hash(const char *name, size_t len)
{
    uint32_t h = 2166136261u;
    for (size_t i = 0; i < len; i++)
        h = (h ^ (uint32_t)(unsigned char)(name[i] & ~0x20)) * 16777619u;
    return h ^ h >> 15;
}

static void table_enter(void *arg, const struct command *c)
{
    (void)arg;
    uint32_t at = name_hash(c->name, strlen(c->name)) % SLOTS;
    while (table[at])
        at = (at + 1) % SLOTS;
    table[at] = c;
}

static void table_fill(void)
{
    command_each(table_enter, NULL);
    uint32_t number = 1;
    for (size_t i = 0; i < FAMILIES; i++) {
        for (const struct command *c = families[i]; c->name; c++)
            number++;
        family_end[i] = number;
    }
}

uint32_t command_number(const struct command *c)
{
    uint32_t first = 1;
    pthread_once(&table_once, table_fill);
    for (size_t i = 0; c && i < FAMILIES; first = family_end[i++]) {
        uintptr_t at = (uintptr_t)c, from = (uintptr_t)families[i];
        uintptr_t number = first + (at - from) / sizeof *c;
        if (at >= from && number < family_end[i])
            return number < NODE_COMMANDS_MAX ? (uint32_t)number : 0;
    }
    return 0;
}

void command_each(void (*fn)(void *arg, const struct command *c), void *arg)
{
    for (size_t i = 0; i < FAMILIES; i++)
        for (const struct command *c = families[i]; c->name; c++)
            fn(arg, c);
}

const struct command *command_find(const char *name, size_t len)
{
    if (len == 0 || len > NAME_BYTES_MAX)
        return NULL;
    pthread_once(&table_once, table_fill);
    for (uint32_t at = name_hash(name, len) % SLOTS; table[at]; at = (at + 1) % SLOTS)
        if (strlen(table[at]->name) == len && strncasecmp(table[at]->name, name, len) == 0)
            return table[at];
    return NULL;
}

/* --- reading arguments --- */

bool call_is(const struct call *c, uint32_t i, const char *word)
{
    const struct cairn_resp_arg *a = &c->args[i];
    return a->len == strlen(word) && strncasecmp(a->data, word, a->len) == 0;
}

bool call_int(const struct call *c, uint32_t i, int64_t *ret)
{
    const struct cairn_resp_arg *a = &c->args[i];
    bool negative = a->len && a->data[0] == '-';
    size_t at = negative, len = a->len;
    uint64_t n = 0, max = negative ? (uint64_t)INT64_MAX + 1 : INT64_MAX;
    /* As Redis: no plus sign, no leading zeros, no "-0". */
    if (at == len || (a->data[at] == '0' && len > 1))
        return false;
    for (; at < len; at++) {
        unsigned char d = (unsigned char)(a->data[at] - '0');
        if (d > 9 || n > (max - d) / 10)
            return false;
        n = n * 10 + d;
    }
    *ret = (int64_t)(negative ? 0 - n : n);
    return true;
}

bool call_take_room(struct call *c, struct cairn_room *ret)
{
    struct cairn_room *room = &c->client->room;
    if (!room->value || !(c->command->flags & COMMAND_PAYLOAD) ||
        c->args[c->command->payload].data != room->value)
        return false;
    *ret = *room;
    room->value = NULL;
    return true;
}

void call_return_room(struct call *c, const struct cairn_room *room)
{
    c->client->room = *room;
}

/* --- errors --- */

enum call_flow call_error(struct call *c, const char *text)
{
    cairn_out_error(c->out, "%s", text);
    return CALL_DONE;
}

enum call_flow call_arity(struct call *c)
{
    char name[NAME_BYTES_MAX + 1], text[128];
    size_t i = 0;
    for (; i < NAME_BYTES_MAX && c->command->name[i]; i++)
        name[i] = (char)tolower((unsigned char)c->command->name[i]);
    name[i] = '\0';
    snprintf(text, sizeof text, "ERR wrong number of arguments for '%s' command", name);
    return call_error(c, text);
}

enum call_flow call_sub_arity(struct call *c, const char *full_name)
{
    char text[128];
    snprintf(text, sizeof text, "ERR wrong number of arguments for '%s' command", full_name);
    return call_error(c, text);
}

enum call_flow call_sub_unknown(struct call *c)
{
    const struct cairn_resp_arg *sub = &c->args[1];
    char text[256];
    snprintf(text, sizeof text, "ERR unknown subcommand '%.*s'. Try %s HELP.",
             sub->len < SHOWN_BYTES ? (int)sub->len : SHOWN_BYTES, sub->data, c->command->name);
    return call_error(c, text);
}

enum call_flow call_help(struct call *c, const char *const *lines, size_t count)
{
    char text[128];
    size_t i = 0;
    cairn_out_array(c->out, count + 3);
    snprintf(text, sizeof text, "%s <subcommand> [<arg> [value] [opt] ...]. Subcommands are:",
             c->command->name);
    cairn_out_simple(c->out, text);
    for (; i < count; i++)
        cairn_out_simple(c->out, lines[i]);
    cairn_out_simple(c->out, "HELP");
    cairn_out_simple(c->out, "    Print this help.");
    return CALL_DONE;
}

/* What people ask a Redis server for and a cache of this kind does not have. */
static const struct {
    const char *why;
    const char *const *names;
} absent[] = {
    {"transactions are not supported; what one SET does is seen whole or not at all",
     (const char *const[]){"MULTI", "EXEC", "DISCARD", "WATCH", "UNWATCH", NULL}},
    {"publish and subscribe are not supported; this is a cache",
     (const char *const[]){"SUBSCRIBE", "UNSUBSCRIBE", "PSUBSCRIBE", "PUNSUBSCRIBE", "PUBLISH",
                           "PUBSUB", "SSUBSCRIBE", "SUNSUBSCRIBE", "SPUBLISH", "MONITOR", NULL}},
    {"scripts are not supported; use the commands one by one, pipelined",
     (const char *const[]){"EVAL", "EVAL_RO", "EVALSHA", "EVALSHA_RO", "SCRIPT", "FUNCTION",
                           "FCALL", "FCALL_RO", NULL}},
    {"replication, clusters and persistence commands are not supported; the disk tier needs none",
     (const char *const[]){"REPLICAOF", "SLAVEOF", "SYNC", "PSYNC", "WAIT", "CLUSTER", "READONLY",
                           "READWRITE", "ASKING", "FAILOVER", "ROLE", "SAVE", "BGSAVE",
                           "BGREWRITEAOF", "LASTSAVE", "MIGRATE", "RESTORE", "DUMP", NULL}},
    {"there is one database, 0; keys do not move",
     (const char *const[]){"MOVE", "SWAPDB", "COPY", "RENAME", "RENAMENX", NULL}},
    {"users are not supported; who may connect is the option allow-uids",
     (const char *const[]){"ACL", NULL}},
    {"a string is replaced as a whole here; GET it, change it, SET it",
     (const char *const[]){"APPEND", "SETRANGE", "INCR", "INCRBY", "INCRBYFLOAT", "DECR",
                           "DECRBY", "SETBIT", "GETBIT", "BITCOUNT", "BITOP", "BITPOS",
                           "BITFIELD", "LCS", NULL}},
    {"values are strings; lists are not supported",
     (const char *const[]){"LPUSH", "RPUSH", "LPUSHX", "RPUSHX", "LPOP", "RPOP", "LLEN", "LRANGE",
                           "LINDEX", "LSET", "LREM", "LTRIM", "LINSERT", "LPOS", "LMOVE", "LMPOP",
                           "RPOPLPUSH", "BLPOP", "BRPOP", "BLMOVE", "BLMPOP", "BRPOPLPUSH",
                           "SORT", "SORT_RO", NULL}},
    {"values are strings; hashes are not supported",
     (const char *const[]){"HSET", "HGET", "HMSET", "HMGET", "HGETALL", "HDEL", "HLEN", "HKEYS",
                           "HVALS", "HEXISTS", "HINCRBY", "HINCRBYFLOAT", "HSETNX", "HSCAN",
                           "HSTRLEN", "HRANDFIELD", NULL}},
    {"values are strings; sets are not supported",
     (const char *const[]){"SADD", "SREM", "SMEMBERS", "SISMEMBER", "SMISMEMBER", "SCARD", "SPOP",
                           "SRANDMEMBER", "SMOVE", "SINTER", "SINTERSTORE", "SINTERCARD",
                           "SUNION", "SUNIONSTORE", "SDIFF", "SDIFFSTORE", "SSCAN", "PFADD",
                           "PFCOUNT", "PFMERGE", NULL}},
    {"values are strings; sorted sets are not supported",
     (const char *const[]){"ZADD", "ZREM", "ZSCORE", "ZMSCORE", "ZRANK", "ZREVRANK", "ZRANGE",
                           "ZREVRANGE", "ZRANGEBYSCORE", "ZREVRANGEBYSCORE", "ZRANGEBYLEX",
                           "ZREVRANGEBYLEX", "ZRANGESTORE", "ZCARD", "ZCOUNT", "ZLEXCOUNT",
                           "ZINCRBY", "ZPOPMIN", "ZPOPMAX", "BZPOPMIN", "BZPOPMAX",
                           "ZREMRANGEBYRANK", "ZREMRANGEBYSCORE", "ZREMRANGEBYLEX", "ZUNION",
                           "ZUNIONSTORE", "ZINTER", "ZINTERSTORE", "ZINTERCARD", "ZDIFF",
                           "ZDIFFSTORE", "ZSCAN", "ZRANDMEMBER", "ZMPOP", "BZMPOP", "GEOADD",
                           "GEOPOS", "GEODIST", "GEOHASH", "GEOSEARCH", "GEOSEARCHSTORE",
                           "GEORADIUS", "GEORADIUSBYMEMBER", NULL}},
    {"values are strings; streams are not supported",
     (const char *const[]){"XADD", "XLEN", "XRANGE", "XREVRANGE", "XREAD", "XREADGROUP", "XGROUP",
                           "XACK", "XDEL", "XTRIM", "XINFO", "XPENDING", "XCLAIM", "XAUTOCLAIM",
                           "XSETID", NULL}},
    {"modules are not supported", (const char *const[]){"MODULE", NULL}},
    {"there is no such log here; see the log file, INFO and /metrics",
     (const char *const[]){"SLOWLOG", "LATENCY", NULL}},
};

static const char *absent_why(const struct call *c)
{
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++)
        for (const char *const *name = absent[i].names; *name; name++)
            if (call_is(c, 0, *name))
                return absent[i].why;
    return NULL;
}

/* Any page makes a browser post what it likes to a port of this machine: commands, for a body. */
static bool is_http(const struct call *c)
{
    return call_is(c, 0, "POST") || call_is(c, 0, "Host:");
}

enum call_flow command_unknown(struct call *c)
{
    /* The quotes and the blank of the last one shown come on top. */
    char text[512], args[SHOWN_BYTES + 4] = "";
    const char *why = absent_why(c);
    int name_len = c->args[0].len < SHOWN_BYTES ? (int)c->args[0].len : SHOWN_BYTES;
    if (is_http(c)) {
        c->client->closing = true;
        return call_error(c, "ERR this port does not speak HTTP; see the option http-port");
    }
    if (why) {
        snprintf(text, sizeof text, "ERR '%.*s': %s", name_len, c->args[0].data, why);
        return call_error(c, text);
    }
    for (uint32_t i = 1, at = 0; i < c->argc && at < SHOWN_BYTES; i++) {
        int room = (int)(SHOWN_BYTES - at);
        int len = c->args[i].len < (size_t)room ? (int)c->args[i].len : room;
        int n = snprintf(args + at, sizeof args - at, "'%.*s' ", len, c->args[i].data);
        at += n > 0 ? (uint32_t)n : 0;
    }
    snprintf(text, sizeof text, "ERR unknown command '%.*s', with args beginning with: %s",
             name_len, c->args[0].data, args);
    return call_error(c, text);
}
