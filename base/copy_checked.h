/* Copy and XXH3-64 in one pass: every line is loaded once, added to its piece's hash and stored
 * past the caches, several pieces in turn. The long form of XXH3 is small and frozen, so it is
 * written out here; the tests compare it with the xxHash library. Included by copy_<isa>.c. */
#ifndef CAIRN_BASE_COPY_CHECKED_H
#define CAIRN_BASE_COPY_CHECKED_H

#include "base/copy_lanes.h"

/* Four pieces in turn saturate a core, and their sums fit into the registers of AVX2. */
#define PIECE_LANES 4
/* A piece alone, read from front to back, keeps too little in flight by itself. */
#define PIECE_AHEAD_BYTES 4096u
#define BLOCK_BYTES 1024u
#define BLOCK_LINES (BLOCK_BYTES / LINE_BYTES)
#define SECRET_BYTES 192u
/* Shorter pieces take another form of XXH3, or are not worth a lane. */
#define FUSED_MIN_BYTES (4u * BLOCK_BYTES)

/* One piece on its way. */
struct piece_lane {
    _Alignas(64) uint64_t acc[8];
    struct cairn_walk walk;     /* what is copied of the piece, at its next byte            */
    const unsigned char *flat;  /* the piece's next byte in flat memory                     */
    const unsigned char *read;  /* of the blocks to come, what is hashed                    */
    struct cairn_run run;       /* and what is copied, shifted to a line boundary of dst    */
    size_t blocks;
    size_t before;              /* bytes ahead that are hashed only (scatter of a range)    */
    size_t left;                /* bytes of the piece not hashed yet                        */
    size_t len;
    uint32_t index;
};

struct piece_queue {
    const struct cairn_checked *job;
    struct cairn_walk walk; /* from the next piece on */
    uint32_t next, end;     /* pieces */
    int bad;
};

CAIRN_INLINE void acc_line(cairn_vec *acc, cairn_vec data, const unsigned char *secret)
{
    cairn_vec keyed = cairn_vec_xor(data, cairn_vec_load(secret));
    cairn_vec product = cairn_vec_mul32(keyed, CAIRN_VEC_SHIFT_RIGHT(keyed, 32));
    *acc = cairn_vec_add(product, cairn_vec_add(*acc, CAIRN_VEC_SWAP64(data)));
}

CAIRN_INLINE void acc_scramble(cairn_vec *acc, const unsigned char *secret)
{
    const cairn_vec prime = cairn_vec_set(0x9E3779B1u);
    cairn_vec v = cairn_vec_xor(*acc, CAIRN_VEC_SHIFT_RIGHT(*acc, 47));
    v = cairn_vec_xor(v, cairn_vec_load(secret));
    cairn_vec high = cairn_vec_mul32(CAIRN_VEC_SHIFT_RIGHT(v, 32), prime);
    *acc = cairn_vec_add(cairn_vec_mul32(v, prime), CAIRN_VEC_SHIFT_LEFT(high, 32));
}

/* Whole blocks of one piece, hashed only. */
static void acc_blocks(uint64_t *words, const unsigned char *read, size_t blocks,
                       const unsigned char *secret)
{
    for (size_t v = 0; v < CAIRN_LINE_VECS; v++) {
        cairn_vec acc = cairn_vec_load(words + v * CAIRN_VEC_BYTES / 8);
        const unsigned char *p = read + v * CAIRN_VEC_BYTES;
        for (size_t b = 0; b < blocks; b++) {
            for (size_t i = 0; i < BLOCK_LINES; i++, p += LINE_BYTES)
                acc_line(&acc, cairn_vec_load(p), secret + v * CAIRN_VEC_BYTES + i * 8);
            acc_scramble(&acc, secret + v * CAIRN_VEC_BYTES + SECRET_BYTES - LINE_BYTES);
        }
        cairn_vec_store(words + v * CAIRN_VEC_BYTES / 8, acc);
    }
}

CAIRN_INLINE void piece_turn(cairn_vec *acc, const struct piece_lane *p, size_t at,
                             const unsigned char *secret, const bool ahead)
{
    const unsigned char *read = p->read + at, *src = p->run.src + at;
    unsigned char *dst = p->run.dst + at;
    if (ahead)
        prefetch_bytes(read + PIECE_AHEAD_BYTES, TURN_BYTES);
#pragma GCC unroll 4
    for (uint32_t i = 0; i < TURN_LINES; i++) {
#pragma GCC unroll 4
        for (uint32_t v = 0; v < CAIRN_LINE_VECS; v++) {
            size_t o = i * LINE_BYTES + v * CAIRN_VEC_BYTES;
            acc_line(&acc[v], cairn_vec_load(read + o), secret + i * 8 + v * CAIRN_VEC_BYTES);
            cairn_vec_stream(dst + o, cairn_vec_load(src + o));
        }
    }
}

/* `blocks` blocks of each of the first `lanes` lanes. */
CAIRN_INLINE void pieces_blocks(struct piece_lane *p, const uint32_t lanes, size_t blocks,
                                const unsigned char *secret)
{
    cairn_vec acc[PIECE_LANES][CAIRN_LINE_VECS];
#pragma GCC unroll 4
    for (uint32_t k = 0; k < lanes; k++)
#pragma GCC unroll 4
        for (uint32_t v = 0; v < CAIRN_LINE_VECS; v++)
            acc[k][v] = cairn_vec_load(p[k].acc + v * CAIRN_VEC_BYTES / 8);
    for (size_t at = 0; at < blocks * BLOCK_BYTES; at += BLOCK_BYTES) {
        for (size_t line = 0; line < BLOCK_LINES; line += TURN_LINES)
#pragma GCC unroll 4
            for (uint32_t k = 0; k < lanes; k++)
                piece_turn(acc[k], &p[k], at + line * LINE_BYTES, secret + line * 8,
                           lanes == 1);
#pragma GCC unroll 4
        for (uint32_t k = 0; k < lanes; k++)
#pragma GCC unroll 4
            for (uint32_t v = 0; v < CAIRN_LINE_VECS; v++)
                acc_scramble(&acc[k][v],
                             secret + SECRET_BYTES - LINE_BYTES + v * CAIRN_VEC_BYTES);
    }
#pragma GCC unroll 4
    for (uint32_t k = 0; k < lanes; k++)
#pragma GCC unroll 4
        for (uint32_t v = 0; v < CAIRN_LINE_VECS; v++)
            cairn_vec_store(p[k].acc + v * CAIRN_VEC_BYTES / 8, acc[k][v]);
}

static uint64_t word_at(const unsigned char *p)
{
    uint64_t w;
    memcpy(&w, p, sizeof(w));
    return w;
}

static uint64_t acc_merge(const uint64_t *acc, size_t len, const unsigned char *secret)
{
    uint64_t h = (uint64_t)len * 0x9E3779B185EBCA87u;
    for (uint32_t i = 0; i < 8; i += 2) {
        uint64_t a = acc[i] ^ word_at(secret + 11 + i * 8);
        uint64_t b = acc[i + 1] ^ word_at(secret + 11 + i * 8 + 8);
        unsigned __int128 product = (unsigned __int128)a * b;
        h += (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    h ^= h >> 37;
    h *= 0x165667919E3779F9u;
    return h ^ (h >> 32);
}

/* Copies what the list holds of the next n bytes; afterwards all of them are in flat memory. */
static void piece_copy(struct piece_lane *p, size_t n)
{
    size_t skip = p->before < n ? p->before : n;
    size_t copied = p->walk.left < n - skip ? p->walk.left : n - skip;
    p->before -= skip;
    cairn_walk_copy(&p->walk, copied);
}

static void piece_pass(struct piece_lane *p, size_t n)
{
    p->flat += n;
    p->left -= n;
}

/* Hash of the piece: what is left of it is at most a block. */
static uint64_t piece_finish(struct piece_lane *p, const unsigned char *secret)
{
    static const size_t last_secret = SECRET_BYTES - LINE_BYTES - 7;
    piece_copy(p, p->left);
    size_t lines = (p->left - 1) / LINE_BYTES;
    for (uint32_t v = 0; v < CAIRN_LINE_VECS; v++) {
        size_t o = v * CAIRN_VEC_BYTES;
        cairn_vec acc = cairn_vec_load(p->acc + o / 8);
        for (size_t i = 0; i < lines; i++)
            acc_line(&acc, cairn_vec_load(p->flat + i * LINE_BYTES + o), secret + i * 8 + o);
        acc_line(&acc, cairn_vec_load(p->flat + p->left - LINE_BYTES + o),
                 secret + last_secret + o);
        cairn_vec_store(p->acc + o / 8, acc);
    }
    return acc_merge(p->acc, p->len, secret);
}

/* Goes on to where whole blocks of one run follow; false if the piece ends before. */
static bool piece_advance(struct piece_lane *p, const unsigned char *secret)
{
    for (;;) {
        size_t blocks = (p->left - 1) / BLOCK_BYTES;
        if (blocks == 0)
            return false;
        size_t plain = p->walk.left == 0 ? blocks : p->before / BLOCK_BYTES;
        struct cairn_run r = cairn_walk_peek(&p->walk);
        size_t head = (size_t)(-(uintptr_t)r.dst & (LINE_BYTES - 1));
        if (p->before == 0 && r.len >= head + BLOCK_BYTES) {
            size_t fit = (r.len - head) / BLOCK_BYTES;
            memcpy(r.dst, r.src, head);
            if (p->walk.gather && p->walk.iov + 1 < p->walk.end
                && p->walk.iov[1].len >= BLOCK_BYTES)
                prefetch_bytes(p->walk.iov[1].base, BLOCK_BYTES);
            p->read = r.src;
            p->run = (struct cairn_run){r.dst + head, r.src + head, 0};
            p->blocks = fit < blocks ? fit : blocks;
            return true;
        }
        plain = plain == 0 ? 1 : plain < blocks ? plain : blocks;
        piece_copy(p, plain * BLOCK_BYTES);
        acc_blocks(p->acc, p->flat, plain, secret);
        piece_pass(p, plain * BLOCK_BYTES);
    }
}

static void piece_check(struct piece_queue *q, uint32_t index, uint64_t check)
{
    if (q->job->gather)
        q->job->checks[index] = check;
    else if (q->job->checks[index] != check && (q->bad < 0 || index < (uint32_t)q->bad))
        q->bad = (int)index;
}

/* Starts the next piece; false if there is none. */
static bool piece_start(struct piece_queue *q, struct piece_lane *p)
{
    static const uint64_t start[8] = {0xC2B2AE3Du,          0x9E3779B185EBCA87u,
                                      0xC2B2AE3D27D4EB4Fu,  0x165667B19E3779F9u,
                                      0x85EBCA77C2B2AE63u,  0x85EBCA77u,
                                      0x27D4EB2F165667C5u,  0x9E3779B1u};
    const struct cairn_checked *job = q->job;
    if (q->next == q->end)
        return false;
    p->index = q->next++;
    size_t at = (size_t)p->index * CAIRN_PIECE_BYTES;
    size_t end = job->value_len - at < CAIRN_PIECE_BYTES ? job->value_len : at + CAIRN_PIECE_BYTES;
    p->len = p->left = end - at;
    p->flat = job->flat + at;
    p->before = job->off > at ? job->off - at : 0;
    p->walk = q->walk;
    size_t here = end - at - p->before;
    p->walk.left = here < q->walk.left ? here : q->walk.left;
    cairn_walk_pass(&q->walk, p->walk.left);
    memcpy(p->acc, start, sizeof(start));
    return true;
}

/* Brings the lane to whole blocks, of this piece or a later one; false if none are left. */
static bool piece_refill(struct piece_queue *q, struct piece_lane *p, bool running)
{
    for (;;) {
        if (!running && !piece_start(q, p))
            return false;
        if (p->len < FUSED_MIN_BYTES) {
            const unsigned char *whole = p->flat;
            piece_copy(p, p->len);
            piece_check(q, p->index, cairn_hash64(whole, p->len));
        } else if (piece_advance(p, q->job->secret)) {
            return true;
        } else {
            piece_check(q, p->index, piece_finish(p, q->job->secret));
        }
        running = false;
    }
}

static void pieces_step(struct piece_lane *p, uint32_t lanes, const unsigned char *secret)
{
    uint32_t width = lanes >= 4 ? 4 : lanes >= 2 ? 2 : 1;
    size_t blocks = p[0].blocks;
    for (uint32_t k = 1; k < width; k++)
        blocks = p[k].blocks < blocks ? p[k].blocks : blocks;
    switch (width) {
    case 4: pieces_blocks(p, 4, blocks, secret); break;
    case 2: pieces_blocks(p, 2, blocks, secret); break;
    default: pieces_blocks(p, 1, blocks, secret); break;
    }
    for (uint32_t k = 0; k < width; k++) {
        size_t n = blocks * BLOCK_BYTES;
        p[k].blocks -= blocks;
        p[k].read += n;
        p[k].run.src += n;
        p[k].run.dst += n;
        cairn_walk_pass(&p[k].walk, n);
        piece_pass(&p[k], n);
    }
}

static int pieces_checked(const struct cairn_checked *job)
{
    struct piece_queue q = {.job = job, .bad = -1};
    q.next = (uint32_t)(job->off / CAIRN_PIECE_BYTES);
    q.end = cairn_piece_count(job->off + job->len);
    q.walk = cairn_walk_at(job->list, job->list_off, job->len, job->flat + job->off, job->gather);
    struct piece_lane lane[PIECE_LANES];
    uint32_t lanes = 0;
    while (lanes < PIECE_LANES && piece_refill(&q, &lane[lanes], false))
        lanes++;
    while (lanes) {
        pieces_step(lane, lanes, job->secret);
        for (uint32_t k = 0; k < lanes;) {
            if (lane[k].blocks || piece_refill(&q, &lane[k], true))
                k++;
            else
                lane[k] = lane[--lanes];
        }
    }
    _mm_sfence();
    return q.bad;
}

#endif
