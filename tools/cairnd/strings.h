/* Strings: what their keys are called in the vault, and reading and writing one of them.
 *
 * The vault's name of a string is SHA-256 over a fixed tag, the tenant and the bytes of its key.
 * These are kept in the record's header and compared whenever a string is found, so that nothing
 * depends on the hash alone. The vault has no value of 0 bytes: an empty string is one byte with a
 * mark in the header.
 *
 * Functions answer a status: CAIRN_INPROGRESS means that the call must go on where it may wait, and
 * nothing was changed; handlers end with string_end, which makes that and every failure a reply. */
#ifndef CAIRN_TOOLS_CAIRND_STRINGS_H
#define CAIRN_TOOLS_CAIRND_STRINGS_H

#include "base/clock.h"
#include "tools/cairnd/node.h"

/* --- keys and stripes --- */

struct string_key {
    const char *data; /* lent by the call */
    uint32_t len;
    uint32_t tenant;
    struct cairn_key name;
};

/* Names argument i. False: a key that cannot be, and the error is written. */
bool string_key(struct call *c, uint32_t i, struct string_key *ret);

/* Can arguments 1, 1 + step, ... all be keys? Then string_key does not fail for them. */
bool string_keys_fit(struct call *c, uint32_t step);

/* Held while a string is changed: OK, INPROGRESS, or TIMEOUT for a call that may wait. */
cairn_status string_lock(struct call *c, const struct string_key *k);
void string_unlock(struct call *c, const struct string_key *k);

/* Several stripes, taken in order, each once. Zeroed to start. */
struct string_stripes {
    uint64_t bits[NODE_STRIPES / 64];
};
void string_stripes_add(struct string_stripes *s, const struct string_key *k);
cairn_status string_stripes_lock(struct call *c, const struct string_stripes *s);
void string_stripes_unlock(struct call *c, const struct string_stripes *s);

/* --- reading --- */

#define STRING_COPY_MAX 16384u /* longer ones are sent from where they lie */

/* A pinned string, or what is known of one. */
struct string {
    struct cairn_pin pin;
    const char *data;    /* NULL: neither pinned nor read, see string_find */
    size_t len;
    uint64_t expires_ns; /* wall clock, 0 = never */
};

#define STRING_BYTES 1u /* the bytes will be used: verify them as well      */
#define STRING_COUNT 2u /* counted as a hit or a miss                       */
#define STRING_SURE 4u  /* a change hangs on it: TIMEOUT is no MISS         */

/* OK and pinned, MISS, or INPROGRESS; TIMEOUT with STRING_SURE. What is damaged or cannot be read
 * is a MISS. Without STRING_BYTES no more than the header of what is only on disk is read: then it
 * is not pinned, and there is no data. */
cairn_status string_find(struct call *c, const struct string_key *k, uint32_t flags,
                         struct string *ret);
void string_drop(struct call *c, struct string *s);
/* For calls that may have to be run again after they found it. */
void string_count(struct call *c, uint64_t hits, uint64_t misses);
/* Replies `len` bytes from `off` on. True: copied, the pin is the caller's still; false: the reply
 * holds the pin now and gives it back when it is sent. */
bool string_reply(struct call *c, const struct string *s, size_t off, size_t len);
/* The whole string, then drops it. */
void string_reply_drop(struct call *c, struct string *s);

/* --- writing, under the key's stripe --- */

/* The bytes of a string to be, where the vault can take them over. */
struct string_value {
    struct cairn_room room;
    uint16_t mark;
    bool received; /* its room is the call's own, which a call that is run again finds again */
};

/* From argument i. OK, INPROGRESS, NOSPACE, TOOBIG. */
cairn_status string_value_take(struct call *c, uint32_t i, struct string_value *ret);
void string_value_drop(struct call *c, struct string_value *v);
/* Makes it visible in one step, replacing what is there. The value is gone after every answer but
 * INPROGRESS, after which it is to be dropped. */
cairn_status string_commit(struct call *c, const struct string_key *k, struct string_value *v,
                           uint64_t expires_ns);
/* Commits the same bytes with another time. Keeps the pin. */
cairn_status string_rewrite(struct call *c, const struct string_key *k, const struct string *s,
                            uint64_t expires_ns);
/* OK, MISS, INPROGRESS, or a failure that left it in place. */
cairn_status string_delete(struct call *c, const struct string_key *k);

/* --- ends --- */

/* CALL_WAITS for INPROGRESS, an error reply for a failure, nothing for OK. */
enum call_flow string_end(struct call *c, cairn_status st);
enum call_flow string_not_integer(struct call *c);
/* An error that quotes argument i. */
enum call_flow string_error_about(struct call *c, const char *before, uint32_t i,
                                  const char *after);
/* "ERR invalid expire time in 'x' command" */
enum call_flow string_bad_expiry(struct call *c);

static inline int64_t string_now_ms(void)
{
    return (int64_t)(cairn_wall_ns() / CAIRN_NS_PER_MS);
}
/* Of a time in milliseconds; what is beyond the year 2554 is that year. */
uint64_t string_expires_ns(int64_t at_ms);

#endif
