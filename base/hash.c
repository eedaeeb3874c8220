#include "base/hash.h"

#include <assert.h>
#include <stdatomic.h>

#include "base/hash_isa.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

static uint64_t hash_base(const void *data, size_t len)
{
    return XXH3_64bits(data, len);
}

void cairn_hash_secret(unsigned char secret[CAIRN_HASH_SECRET_BYTES])
{
    static_assert(CAIRN_HASH_SECRET_BYTES == XXH_SECRET_DEFAULT_SIZE, "another XXH3");
    XXH3_generateSecret_fromSeed(secret, 0);
}

struct hash_impl {
    const char *name;
    uint64_t (*hash)(const void *data, size_t len);
};

#if XXH_VECTOR == XXH_SSE2
static const struct hash_impl impl_base = {"sse2", hash_base};
#elif XXH_VECTOR == XXH_SCALAR
static const struct hash_impl impl_base = {"scalar", hash_base};
#else
static const struct hash_impl impl_base = {"vector", hash_base};
#endif

#if defined(__x86_64__)
static const struct hash_impl impl_avx512 = {"avx512", cairn_hash64_avx512};
static const struct hash_impl impl_avx2 = {"avx2", cairn_hash64_avx2};
#endif

static const struct hash_impl *impl_choose(void)
{
#if defined(__x86_64__)
    if (cairn_cpu_avx512())
        return &impl_avx512;
    if (cairn_cpu_avx2())
        return &impl_avx2;
#endif
    return &impl_base;
}

/* Every thread that races here stores the same pointer to constant data, so relaxed is enough. */
static const struct hash_impl *impl_get(void)
{
    static _Atomic(const struct hash_impl *) chosen;
    const struct hash_impl *h = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (!h) {
        h = impl_choose();
        atomic_store_explicit(&chosen, h, memory_order_relaxed);
    }
    return h;
}

uint64_t cairn_hash64(const void *data, size_t len)
{
    /* xxHash adds the length to the pointer, which is undefined for NULL. */
    return impl_get()->hash(len ? data : "", len);
}

void cairn_hash_pieces(const void *data, size_t len, uint64_t *checks)
{
    const struct hash_impl *h = impl_get();
    const unsigned char *p = data;
    for (size_t at = 0; at < len; at += CAIRN_PIECE_BYTES) {
        size_t n = len - at < CAIRN_PIECE_BYTES ? len - at : CAIRN_PIECE_BYTES;
        *checks++ = h->hash(p + at, n);
    }
}

const char *cairn_hash_variant(void)
{
    return impl_get()->name;
}
