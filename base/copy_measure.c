/* Which copy is the fastest here. Caches are flushed instead of outgrown: two buffers larger than
 * any last-level cache would take longer to fault in than everything else at open. */
#include <sys/mman.h>

#include "base/clock.h"
#include "base/copy_isa.h"
#include "base/hash_isa.h"

#define PROBE_BYTES (2u << 20)
#define ROUNDS 4
/* One part in so many is noise. */
#define MARGIN 8

uint32_t cairn_copy_candidates(const struct cairn_copy_ops **ret_ops)
{
    uint32_t n = 0;
#if defined(__x86_64__)
    if (cairn_cpu_avx512())
        ret_ops[n++] = &cairn_copy_ops_avx512;
    if (cairn_cpu_avx2())
        ret_ops[n++] = &cairn_copy_ops_avx2;
    ret_ops[n++] = &cairn_copy_ops_sse2;
#endif
    ret_ops[n++] = &cairn_copy_ops_plain;
    return n;
}

static void cool(const unsigned char *p)
{
#if defined(__x86_64__)
    for (size_t i = 0; i < PROBE_BYTES; i += 64)
        __builtin_ia32_clflush(p + i);
    __builtin_ia32_mfence();
#else
    (void)p;
#endif
}

const struct cairn_copy_ops *cairn_copy_measure(void)
{
    const struct cairn_copy_ops *ops[CAIRN_COPY_OPS_MAX];
    uint32_t count = cairn_copy_candidates(ops);
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE;
    unsigned char *src = mmap(NULL, 2u * PROBE_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (count == 1 || src == MAP_FAILED)
        return ops[0];
    uint64_t best[CAIRN_COPY_OPS_MAX];
    for (int round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < count; i++) {
            cool(src);
            cool(src + PROBE_BYTES);
            uint64_t start = cairn_now_ns();
            ops[i]->flat(src + PROBE_BYTES, src, PROBE_BYTES);
            uint64_t took = cairn_now_ns() - start;
            if (round == 0 || took < best[i])
                best[i] = took;
        }
    }
    munmap(src, 2u * PROBE_BYTES);
    /* Widest first: it hashes faster, so a narrower one must be better by more than noise. */
    uint32_t winner = 0;
    for (uint32_t i = 1; i < count; i++)
        if (best[i] < best[winner] - best[winner] / MARGIN)
            winner = i;
    return ops[winner];
}
