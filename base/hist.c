#include "base/hist.h"

/* 16 buckets a doubling from 16 ns on; below, one bucket a nanosecond. */
#define SUB_BITS 4u
#define SUB (1u << SUB_BITS)

static uint32_t bucket_of(uint64_t ns)
{
    if (ns < SUB)
        return (uint32_t)ns;
    uint32_t top = 63u - (uint32_t)__builtin_clzll(ns);
    return (top - SUB_BITS + 1) * SUB + (uint32_t)((ns >> (top - SUB_BITS)) & (SUB - 1));
}

static uint64_t bucket_upper(uint32_t index)
{
    if (index < SUB)
        return index;
    uint32_t shift = index / SUB - 1;
    /* Unsigned wrap makes the last bucket end at UINT64_MAX. */
    return ((uint64_t)(SUB + index % SUB + 1) << shift) - 1;
}

void cairn_hist_add(struct cairn_hist *h, uint64_t ns)
{
    atomic_fetch_add_explicit(&h->bucket[bucket_of(ns)], 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->sum_ns, ns, memory_order_relaxed);
    atomic_fetch_add_explicit(&h->count, 1, memory_order_relaxed);
    uint64_t max = atomic_load_explicit(&h->max_ns, memory_order_relaxed);
    while (ns > max && !atomic_compare_exchange_weak_explicit(
                           &h->max_ns, &max, ns, memory_order_relaxed, memory_order_relaxed))
        ;
}

uint64_t cairn_hist_quantile(const struct cairn_hist *h, double q)
{
    /* The buckets' own sum, not `count`: an add in flight may have reached only one of them. */
    uint64_t total = 0;
    for (uint32_t i = 0; i < CAIRN_HIST_BUCKETS; i++)
        total += atomic_load_explicit(&h->bucket[i], memory_order_relaxed);
    if (total == 0)
        return 0;
    if (!(q > 0.0))
        q = 0.0;
    if (q > 1.0)
        q = 1.0;
    double want = q * (double)total;
    uint64_t max = atomic_load_explicit(&h->max_ns, memory_order_relaxed);
    uint64_t seen = 0;
    for (uint32_t i = 0; i < CAIRN_HIST_BUCKETS; i++) {
        seen += atomic_load_explicit(&h->bucket[i], memory_order_relaxed);
        if (seen > 0 && (double)seen >= want) {
            uint64_t upper = bucket_upper(i);
            return upper < max ? upper : max;
        }
    }
    return max;
}

uint64_t cairn_hist_cumulate(const struct cairn_hist *h, const uint64_t *bounds_ns, uint32_t count,
                             uint64_t *ret_below)
{
    uint64_t seen = 0;
    uint32_t bucket = 0;
    for (uint32_t i = 0; i < count; i++) {
        for (; bucket < CAIRN_HIST_BUCKETS && bucket_upper(bucket) <= bounds_ns[i]; bucket++)
            seen += atomic_load_explicit(&h->bucket[bucket], memory_order_relaxed);
        ret_below[i] = seen;
    }
    for (; bucket < CAIRN_HIST_BUCKETS; bucket++)
        seen += atomic_load_explicit(&h->bucket[bucket], memory_order_relaxed);
    return seen;
}

void cairn_hist_reset(struct cairn_hist *h)
{
    for (uint32_t i = 0; i < CAIRN_HIST_BUCKETS; i++)
        atomic_store_explicit(&h->bucket[i], 0, memory_order_relaxed);
    atomic_store_explicit(&h->count, 0, memory_order_relaxed);
    atomic_store_explicit(&h->sum_ns, 0, memory_order_relaxed);
    atomic_store_explicit(&h->max_ns, 0, memory_order_relaxed);
}
