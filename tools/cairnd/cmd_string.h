/* What the files of the string commands share. */
#ifndef CAIRN_TOOLS_CAIRND_CMD_STRING_H
#define CAIRN_TOOLS_CAIRND_CMD_STRING_H

#include "tools/cairnd/strings.h"

/* cmd_string_set.c */
enum call_flow cmd_set(struct call *c);
enum call_flow cmd_setnx(struct call *c);
enum call_flow cmd_setex(struct call *c);
enum call_flow cmd_psetex(struct call *c);
enum call_flow cmd_getset(struct call *c);

/* cmd_string_many.c */
enum call_flow cmd_mget(struct call *c);
enum call_flow cmd_mset(struct call *c);
enum call_flow cmd_msetnx(struct call *c);

/* cmd_expire.c */
enum call_flow cmd_expire(struct call *c);
enum call_flow cmd_pexpire(struct call *c);
enum call_flow cmd_expireat(struct call *c);
enum call_flow cmd_pexpireat(struct call *c);
enum call_flow cmd_ttl(struct call *c);
enum call_flow cmd_pttl(struct call *c);
enum call_flow cmd_expiretime(struct call *c);
enum call_flow cmd_pexpiretime(struct call *c);
enum call_flow cmd_persist(struct call *c);

/* cmd_scan.c */
enum call_flow cmd_scan(struct call *c);
enum call_flow cmd_keys(struct call *c);
enum call_flow cmd_randomkey(struct call *c);

/* --- the time options of SET and GETEX (cmd_expire.c) --- */

enum expiry_kind {
    EXPIRY_NONE,
    EXPIRY_EX,
    EXPIRY_PX,
    EXPIRY_EXAT,
    EXPIRY_PXAT,
    EXPIRY_KEEPTTL,
    EXPIRY_PERSIST,
};
#define EXPIRY_OF_SET (1u << EXPIRY_KEEPTTL)
#define EXPIRY_OF_GETEX (1u << EXPIRY_PERSIST)

struct expiry_option {
    enum expiry_kind kind;
    uint32_t at; /* argument that says the time */
};

/* Reads the option at *i, moving *i to its last argument. `words`: which option without a time is
 * known beside those with one. False: it is none, or it contradicts the one before. */
bool expiry_option(const struct call *c, uint32_t *i, uint32_t words, struct expiry_option *o);
/* When that is, in milliseconds of the wall clock. False: the error is written. */
bool expiry_time(struct call *c, const struct expiry_option *o, int64_t *ret_ms);

#endif
