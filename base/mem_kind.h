/* What a scatter/gather list may point into: one small table of calls for each kind of memory. Host
 * memory needs no more than the copies of copy.h; a device's is reached through its driver, in
 * order with what its owner has queued on it. */
#ifndef CAIRN_BASE_MEM_KIND_H
#define CAIRN_BASE_MEM_KIND_H

#include <stdbool.h>

#include "base/types.h"

/* A moment on one of the caller's streams; copies of a call wait until it has passed. */
struct cairn_order_point {
    const struct cairn_mem_kind *kind;
    void *stream;
    void *owner, *event; /* the kind's own */
};

/* One copy between host memory and a list. Host bytes [off, off + len) of a value that lies in
 * `value_len` bytes at `value` are the bytes [list_off, list_off + len) of the list. */
struct cairn_move {
    const struct cairn_sgl *list;
    size_t list_off;
    char *value;
    size_t value_len, off, len;
    uint64_t *checks; /* of the value's pieces: compared (out) or made (in); NULL: neither */
    uint64_t deadline_ns;
};

struct cairn_mem_kind {
    const char *name;
    uint32_t mem; /* enum cairn_mem */
    /* Remembers what is queued on the list's stream now; NULL: nothing ever is. */
    cairn_status (*order)(const struct cairn_sgl *list, struct cairn_order_point *ret);
    /* Is the point one of the list's stream too? */
    bool (*ordered)(const struct cairn_order_point *p, const struct cairn_sgl *list);
    cairn_status (*order_wait)(const struct cairn_order_point *p, uint64_t deadline_ns);
    void (*order_end)(const struct cairn_order_point *p);
    /* Done on return: neither side is in use any more, unless move.h says so. */
    cairn_status (*out)(const struct cairn_move *m);
    cairn_status (*in)(const struct cairn_move *m);
    /* Memory that copies will often begin or end in, until it is withdrawn; NULL: no matter. */
    void (*offer)(void *base, size_t len, bool writable);
    void (*withdraw)(void *base);
};

/* NULL: there is no such kind. */
const struct cairn_mem_kind *cairn_mem_kind(uint32_t mem);

extern const struct cairn_mem_kind cairn_mem_kind_host, cairn_mem_kind_cuda;

#endif
