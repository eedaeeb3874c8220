#include "base/copy.h"

#include <pthread.h>
#include <stdatomic.h>

#include "base/copy_isa.h"
#include "base/hash_isa.h"

/* Below this a copy is likely to be in a cache already or to be used from it soon. */
#define SMALL_BYTES (16u * 1024u)

static void plain_flat(void *dst, const void *src, size_t len)
{
    memcpy(dst, src, len);
}

static void plain_walk(struct cairn_walk *w)
{
    cairn_walk_copy(w, w->left);
}

/* Piece by piece, so that the second pass over a piece finds it in a cache. */
static int plain_checked(const struct cairn_checked *job)
{
    struct cairn_walk w =
        cairn_walk_at(job->list, job->list_off, job->len, job->flat + job->off, job->gather);
    size_t end = job->off + job->len;
    for (uint32_t i = (uint32_t)(job->off / CAIRN_PIECE_BYTES); i < cairn_piece_count(end); i++) {
        size_t at = (size_t)i * CAIRN_PIECE_BYTES;
        size_t rest = job->value_len - at;
        size_t len = rest < CAIRN_PIECE_BYTES ? rest : CAIRN_PIECE_BYTES;
        size_t from = at > job->off ? at : job->off;
        size_t to = at + len < end ? at + len : end;
        if (job->gather) {
            cairn_walk_copy(&w, to - from);
            job->checks[i] = cairn_hash64(job->flat + at, len);
            continue;
        }
        if (cairn_hash64(job->flat + at, len) != job->checks[i])
            return (int)i;
        cairn_walk_copy(&w, to - from);
    }
    return -1;
}

const struct cairn_copy_ops cairn_copy_ops_plain = {
    .name = "memcpy",
    .flat = plain_flat,
    .walk = plain_walk,
    .checked = plain_checked,
};

static unsigned char secret[CAIRN_HASH_SECRET_BYTES];
static _Atomic(const struct cairn_copy_ops *) chosen = &cairn_copy_ops_plain;

static void choose(void)
{
    cairn_hash_secret(secret);
    /* Release: who sees the choice sees the secret. */
    atomic_store_explicit(&chosen, cairn_copy_measure(), memory_order_release);
}

void cairn_copy_init(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, choose);
}

static const struct cairn_copy_ops *ops_for(size_t len)
{
    if (len < SMALL_BYTES)
        return &cairn_copy_ops_plain;
    return atomic_load_explicit(&chosen, memory_order_acquire);
}

const char *cairn_copy_variant(void)
{
    return ops_for(SIZE_MAX)->name;
}

void cairn_copy(void *dst, const void *src, size_t len)
{
    if (len)
        ops_for(len)->flat(dst, src, len);
}

void cairn_copy_gather(void *dst, const struct cairn_sgl *list, size_t off, size_t len)
{
    struct cairn_walk w = cairn_walk_at(list, off, len, dst, true);
    ops_for(len)->walk(&w);
}

void cairn_copy_scatter(const struct cairn_sgl *list, size_t off, const void *src, size_t len)
{
    struct cairn_walk w = cairn_walk_at(list, off, len, src, false);
    ops_for(len)->walk(&w);
}

void cairn_copy_gather_hash(void *dst, const struct cairn_sgl *list, size_t len, uint64_t *checks)
{
    struct cairn_checked job = {.list = list,
                                .flat = dst,
                                .value_len = len,
                                .len = len,
                                .checks = checks,
                                .secret = secret,
                                .gather = true};
    if (len)
        ops_for(len)->checked(&job);
}

static int scatter_verify(struct cairn_checked job, const void *value, const uint64_t *checks)
{
    /* Scattering writes neither to the value nor to the checks. */
    job.flat = (unsigned char *)(uintptr_t)value;
    job.checks = (uint64_t *)(uintptr_t)checks;
    job.secret = secret;
    return job.len ? ops_for(job.len)->checked(&job) : -1;
}

int cairn_copy_scatter_verify(const struct cairn_sgl *list, const void *value, size_t value_len,
                              size_t off, size_t len, const uint64_t *checks)
{
    struct cairn_checked job = {.list = list, .value_len = value_len, .off = off, .len = len};
    return scatter_verify(job, value, checks);
}

int cairn_copy_scatter_verify_part(const struct cairn_sgl *list, const void *value,
                                   size_t value_len, size_t off, size_t len,
                                   const uint64_t *checks)
{
    struct cairn_checked job = {
        .list = list, .list_off = off, .value_len = value_len, .off = off, .len = len};
    return scatter_verify(job, value, checks);
}

uint32_t cairn_copy_variants(const char **names, cairn_copy_fn *fns, uint32_t cap)
{
    const struct cairn_copy_ops *ops[CAIRN_COPY_OPS_MAX];
    uint32_t count = cairn_copy_candidates(ops);
    uint32_t n = 0;
    for (; n < count && n < cap; n++) {
        names[n] = ops[n]->name;
        fns[n] = ops[n]->flat;
    }
    return n;
}
