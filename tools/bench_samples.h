/* Latencies of one measurement, exact: the last 256 Ki of them. */
#ifndef CAIRN_TOOLS_BENCH_SAMPLES_H
#define CAIRN_TOOLS_BENCH_SAMPLES_H

#include <stdlib.h>
#include <string.h>

#include "tools/bench_limits.h"

#define BENCH_SAMPLES (1u << 18)

struct bench_samples {
    uint32_t *ns; /* BENCH_SAMPLES of them; longer ones are 4.29 s */
    uint64_t count;
};

static inline void bench_samples_add(struct bench_samples *s, uint64_t ns)
{
    s->ns[s->count++ % BENCH_SAMPLES] = ns < UINT32_MAX ? (uint32_t)ns : UINT32_MAX;
}

static inline int bench_samples_order(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

static inline double bench_samples_at(const uint32_t *sorted, uint64_t n, double q)
{
    uint64_t i = (uint64_t)(q * (double)n);
    return (double)sorted[i < n ? i : n - 1] / 1e3;
}

/* Sorts them and fills in the three latencies. */
static inline void bench_samples_read(struct bench_samples *s, struct cairn_limit *ret)
{
    uint64_t n = s->count < BENCH_SAMPLES ? s->count : BENCH_SAMPLES;
    if (n == 0)
        return;
    qsort(s->ns, n, sizeof(*s->ns), bench_samples_order);
    ret->p50_us = bench_samples_at(s->ns, n, 0.5);
    ret->p99_us = bench_samples_at(s->ns, n, 0.99);
    ret->p999_us = bench_samples_at(s->ns, n, 0.999);
}

static inline uint64_t bench_random(uint64_t *x)
{
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    return *x;
}

#endif
