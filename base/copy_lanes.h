/* Copies of several runs at once ("lanes"), line by line in turn, with non-temporal stores. One
 * core keeps more memory requests in flight that way than with one run after the other. Included
 * once by each copy_<isa>.c and compiled for its instruction set. */
#ifndef CAIRN_BASE_COPY_LANES_H
#define CAIRN_BASE_COPY_LANES_H

#include "base/copy_isa.h"
#include "base/copy_vec.h"

#define LANES 8
#define LINE_BYTES 64u
/* Lines a lane gets before it is the next one's turn. */
#define TURN_LINES 2u
#define TURN_BYTES (TURN_LINES * LINE_BYTES)
/* Hardware prefetchers stop at page boundaries and start anew with every run. */
#define AHEAD_BYTES 1024u

CAIRN_INLINE void prefetch_bytes(const unsigned char *p, uint32_t len)
{
    for (uint32_t i = 0; i < len; i += LINE_BYTES)
        _mm_prefetch((const char *)p + i, _MM_HINT_NTA);
}

/* The first `lanes` runs, `turns` times TURN_BYTES of each; dst on a line boundary. */
CAIRN_INLINE void lanes_turns(struct cairn_run *run, const uint32_t lanes, size_t turns,
                              const bool ahead)
{
    for (size_t at = 0; at < turns * TURN_BYTES; at += TURN_BYTES) {
#pragma GCC unroll 8
        for (uint32_t k = 0; k < lanes; k++) {
            const unsigned char *src = run[k].src + at;
            unsigned char *dst = run[k].dst + at;
            cairn_vec v[TURN_BYTES / CAIRN_VEC_BYTES];
            if (ahead)
                prefetch_bytes(src + AHEAD_BYTES, TURN_BYTES);
#pragma GCC unroll 16
            for (uint32_t i = 0; i < TURN_BYTES / CAIRN_VEC_BYTES; i++)
                v[i] = cairn_vec_load(src + i * CAIRN_VEC_BYTES);
#pragma GCC unroll 16
            for (uint32_t i = 0; i < TURN_BYTES / CAIRN_VEC_BYTES; i++)
                cairn_vec_stream(dst + i * CAIRN_VEC_BYTES, v[i]);
        }
    }
    for (uint32_t k = 0; k < lanes; k++) {
        run[k].src += turns * TURN_BYTES;
        run[k].dst += turns * TURN_BYTES;
        run[k].len -= turns * TURN_BYTES;
    }
}

/* Takes the next run that has a whole turn in it; what comes before the first line boundary of its
 * destination, and shorter runs, are copied on the way. */
static bool lane_fill(struct cairn_walk *w, struct cairn_run *ret)
{
    for (;;) {
        struct cairn_run r = cairn_walk_peek(w);
        if (r.len == 0)
            return false;
        cairn_walk_pass(w, r.len);
        size_t head = (size_t)(-(uintptr_t)r.dst & (LINE_BYTES - 1));
        if (r.len >= head + TURN_BYTES) {
            memcpy(r.dst, r.src, head);
            prefetch_bytes(r.src, r.len < AHEAD_BYTES ? (uint32_t)r.len : AHEAD_BYTES);
            *ret = (struct cairn_run){r.dst + head, r.src + head, r.len - head};
            return true;
        }
        memcpy(r.dst, r.src, r.len);
    }
}

/* Goes on in all lanes until the shortest has no whole turn left. */
CAIRN_INLINE void lanes_step(struct cairn_run *run, const uint32_t lanes)
{
    size_t shortest = run[0].len;
    for (uint32_t k = 1; k < lanes; k++)
        shortest = run[k].len < shortest ? run[k].len : shortest;
    size_t far = shortest > AHEAD_BYTES ? (shortest - AHEAD_BYTES) / TURN_BYTES : 0;
    lanes_turns(run, lanes, far, true);
    lanes_turns(run, lanes, shortest / TURN_BYTES - far, false);
}

/* Ends lanes that have no whole turn left and fills them anew. Returns how many are left. */
static uint32_t lanes_refill(struct cairn_run *run, uint32_t lanes, struct cairn_walk *w)
{
    for (uint32_t k = 0; k < lanes;) {
        if (run[k].len >= TURN_BYTES) {
            k++;
            continue;
        }
        memcpy(run[k].dst, run[k].src, run[k].len);
        if (lane_fill(w, &run[k]))
            k++;
        else
            run[k] = run[--lanes];
    }
    return lanes;
}

static void lanes_walk(struct cairn_walk *w)
{
    struct cairn_run run[LANES];
    uint32_t lanes = 0;
    /* Long runs are cut so that there is one for every lane; the farther apart they lie, the
     * better. */
    w->part = w->left / LANES + TURN_BYTES;
    w->part -= w->part % LINE_BYTES;
    while (lanes < LANES && lane_fill(w, &run[lanes]))
        lanes++;
    while (lanes) {
        if (lanes >= 8)
            lanes_step(run, 8);
        else if (lanes >= 4)
            lanes_step(run, 4);
        else if (lanes >= 2)
            lanes_step(run, 2);
        else
            lanes_step(run, 1);
        lanes = lanes_refill(run, lanes, w);
    }
    _mm_sfence();
}

static void lanes_flat(void *dst, const void *src, size_t len)
{
    struct cairn_iov whole = {.base = dst, .len = len};
    struct cairn_sgl list = {.iov = &whole, .count = 1};
    struct cairn_walk w = cairn_walk_at(&list, 0, len, src, false);
    lanes_walk(&w);
}

#endif
