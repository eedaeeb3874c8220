/* XXH3-64 per instruction set, and the one place that asks the CPU what it can do. */
#ifndef CAIRN_BASE_HASH_ISA_H
#define CAIRN_BASE_HASH_ISA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The secret of XXH3 with seed 0, for loops that hash while they copy. */
#define CAIRN_HASH_SECRET_BYTES 192u
void cairn_hash_secret(unsigned char secret[CAIRN_HASH_SECRET_BYTES]);

#if defined(__x86_64__)

uint64_t cairn_hash64_avx512(const void *data, size_t len);
uint64_t cairn_hash64_avx2(const void *data, size_t len);

/* The sets that the *_avx512.c and *_avx2.c files are compiled for. */
static inline bool cairn_cpu_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
}

static inline bool cairn_cpu_avx512(void)
{
    return cairn_cpu_avx2() && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq");
}

#endif

#endif
