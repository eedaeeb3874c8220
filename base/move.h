/* Moves bytes between host memory and lists of any kind of memory. A move is done on return. */
#ifndef CAIRN_BASE_MOVE_H
#define CAIRN_BASE_MOVE_H

#include "base/mem_kind.h"

/* Does the list name a kind of memory that there is? Whether it can be reached, a move tells. */
bool cairn_sgl_known(const struct cairn_sgl *list);

/* Bytes [off, off + len) of the value at `value` (its first byte, not that of the range) into the
 * list from its byte list_off on, which is 0 or off where checks are given. With checks, every
 * piece touched is read whole and compared: CAIRN_CORRUPT if one is bad, and the list's bytes are
 * unspecified, as after every failure. CAIRN_TIMEOUT: what the caller had queued before was not
 * done by the deadline, nothing was written. CAIRN_IO: the device cannot be used. */
cairn_status cairn_move_out(const struct cairn_sgl *list, size_t list_off, const void *value,
                            size_t value_len, size_t off, size_t len, const uint64_t *checks,
                            uint64_t deadline_ns);
/* The list's bytes [list_off, list_off + len) to dst, and the checks of the pieces from dst on
 * (NULL: none; list_off is 0 otherwise). CAIRN_STATE: a device that hangs may still write to dst,
 * which must not be used again. */
cairn_status cairn_move_in(void *dst, const struct cairn_sgl *list, size_t list_off, size_t len,
                           uint64_t *checks, uint64_t deadline_ns);

/* The caller's streams at the begin of a call. Begun in the caller's own thread; the moves of any
 * thread that has entered it wait for it. A list whose stream cannot be waited for (it is being
 * captured, there is no driver) makes all moves of the order fail. */
struct cairn_order {
    struct cairn_order_point points[4];
    uint32_t count;
    cairn_status failed;
};
void cairn_order_add(struct cairn_order *o, const struct cairn_sgl *list);
void cairn_order_add_gets(struct cairn_order *o, const struct cairn_get *gets, size_t count);
void cairn_order_add_puts(struct cairn_order *o, const struct cairn_put *puts, size_t count);
void cairn_order_end(struct cairn_order *o);
/* For this thread; returns what was entered before, NULL for none. */
const struct cairn_order *cairn_order_enter(const struct cairn_order *o);
/* Waits for what this thread has entered: the kinds do before they move, and whoever would keep a
 * connection or a lease meanwhile does first. */
cairn_status cairn_order_wait(uint64_t deadline_ns);

/* Long-lived memory of this process, told to every kind: an arena, a window. Withdrawn before it is
 * unmapped and when no move touches it. */
void cairn_memory_offer(void *base, size_t len, bool writable);
void cairn_memory_withdraw(void *base);

#endif
