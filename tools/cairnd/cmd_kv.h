/* What the CAIRN.* commands share: their arguments, judged, and the handlers that one table
 * names. */
#ifndef CAIRN_TOOLS_CAIRND_CMD_KV_H
#define CAIRN_TOOLS_CAIRND_CMD_KV_H

#include "base/clock.h"
#include "tools/cairnd/kv_share.h"
#include "transport/wire.h"

/* "ERR CAIRN.X: sentence"; CALL_DONE always. */
enum call_flow kv_error(struct call *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Each writes an error and returns false if the argument may not be. Keys are lent with the
 * arguments. */

/* One or more keys. */
bool kv_keys(struct call *c, uint32_t i, const struct cairn_key **ret, uint32_t *ret_count);
/* One key or fingerprint: 32 bytes, or 64 hexadecimal digits. */
bool kv_key(struct call *c, uint32_t i, struct cairn_key *ret);
/* Milliseconds, whole and not negative. */
bool kv_millis(struct call *c, uint32_t i, uint64_t *ret_ns);
/* A timeout, as the moment when it is over; never later than the node's own. */
bool kv_deadline(struct call *c, uint32_t i, uint64_t *ret_ns);

enum call_flow kv_attach_run(struct call *c);  /* cmd_kv_lease.c */
enum call_flow kv_window_run(struct call *c);
enum call_flow kv_lease_run(struct call *c);
enum call_flow kv_renew_run(struct call *c);
enum call_flow kv_release_run(struct call *c);
enum call_flow kv_pin_run(struct call *c);
enum call_flow kv_unpin_run(struct call *c);
enum call_flow kv_get_run(struct call *c);     /* cmd_kv_get.c */
enum call_flow kv_put_run(struct call *c);     /* cmd_kv_put.c */
enum call_flow kv_clear_run(struct call *c);   /* cmd_kv_clear.c */
enum call_flow kv_why_run(struct call *c);     /* cmd_kv_why.c */
enum call_flow kv_whymiss_run(struct call *c);
enum call_flow kv_verify_run(struct call *c);
enum call_flow kv_identity_run(struct call *c);
enum call_flow kv_stats_run(struct call *c);

#endif
