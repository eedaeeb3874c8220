/* What copy.c shares with the copies compiled per instruction set. */
#ifndef CAIRN_BASE_COPY_ISA_H
#define CAIRN_BASE_COPY_ISA_H

#include <stdbool.h>
#include <string.h>

#include "base/copy.h"
#include "base/hash.h"

/* A list against flat memory, cut into runs that are contiguous on both sides. */
struct cairn_walk {
    const struct cairn_iov *iov, *end;
    size_t skip;         /* bytes of *iov that are behind us       */
    unsigned char *flat; /* the flat side's next byte              */
    size_t left;         /* bytes still to walk                    */
    size_t part;         /* longest run                            */
    bool gather;         /* list to flat, else flat to list        */
};

struct cairn_run {
    unsigned char *dst;
    const unsigned char *src;
    size_t len;
};

static inline void cairn_walk_skip(struct cairn_walk *w, size_t len)
{
    w->skip += len;
    while (w->iov < w->end && w->skip >= w->iov->len) {
        w->skip -= w->iov->len;
        w->iov++;
    }
}

static inline struct cairn_walk cairn_walk_at(const struct cairn_sgl *list, size_t off, size_t len,
                                              const void *flat, bool gather)
{
    struct cairn_walk w = {.iov = list->iov,
                           .end = list->iov + list->count,
                           .flat = (unsigned char *)(uintptr_t)flat,
                           .left = len,
                           .part = SIZE_MAX,
                           .gather = gather};
    cairn_walk_skip(&w, off);
    return w;
}

/* What lies at the walk's place without moving it; len 0 at the end. */
static inline struct cairn_run cairn_walk_peek(const struct cairn_walk *w)
{
    struct cairn_run r = {.len = 0};
    if (w->left == 0 || w->iov == w->end)
        return r;
    unsigned char *listed = (unsigned char *)w->iov->base + w->skip;
    size_t n = w->iov->len - w->skip;
    n = n < w->left ? n : w->left;
    r.len = n < w->part ? n : w->part;
    r.dst = w->gather ? w->flat : listed;
    r.src = w->gather ? listed : w->flat;
    return r;
}

/* Moves on by len, at most what peek said. */
static inline void cairn_walk_pass(struct cairn_walk *w, size_t len)
{
    w->left -= len;
    w->flat += len;
    cairn_walk_skip(w, len);
}

/* Copies the next len bytes the plain way. */
static inline void cairn_walk_copy(struct cairn_walk *w, size_t len)
{
    while (len) {
        struct cairn_run r = cairn_walk_peek(w);
        if (r.len == 0)
            return;
        size_t n = r.len < len ? r.len : len;
        memcpy(r.dst, r.src, n);
        cairn_walk_pass(w, n);
        len -= n;
    }
}

/* A copy that knows the pieces of the value. */
struct cairn_checked {
    const struct cairn_sgl *list;
    unsigned char *flat;   /* the whole value, contiguous                    */
    size_t value_len;
    size_t off, len;       /* the part of it that is copied                  */
    size_t list_off;       /* where in the list that part begins             */
    uint64_t *checks;
    const unsigned char *secret; /* of XXH3 with seed 0, 192 bytes           */
    bool gather;           /* list to flat and write checks, else compare    */
};

struct cairn_copy_ops {
    const char *name;
    cairn_copy_fn flat;
    void (*walk)(struct cairn_walk *w);
    /* Index of the first bad piece, or -1. */
    int (*checked)(const struct cairn_checked *job);
};

extern const struct cairn_copy_ops cairn_copy_ops_plain, cairn_copy_ops_sse2, cairn_copy_ops_avx2,
    cairn_copy_ops_avx512;

/* What this machine can run, memcpy last. Returns how many. */
#define CAIRN_COPY_OPS_MAX 4u
uint32_t cairn_copy_candidates(const struct cairn_copy_ops **ret_ops);

/* The fastest of them on cold memory, measured. */
const struct cairn_copy_ops *cairn_copy_measure(void);

#endif
