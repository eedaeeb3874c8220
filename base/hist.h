/* Latency histogram: log-linear buckets (16 per doubling, error <= 6.25 %), relaxed atomics, so
 * that any thread adds and any thread reads without a lock. */
#ifndef CAIRN_BASE_HIST_H
#define CAIRN_BASE_HIST_H

#include <stdatomic.h>
#include <stdint.h>

#define CAIRN_HIST_BUCKETS 1024u

struct cairn_hist {
    _Atomic uint64_t count;
    _Atomic uint64_t sum_ns;
    _Atomic uint64_t max_ns;
    _Atomic uint64_t bucket[CAIRN_HIST_BUCKETS];
};

void cairn_hist_add(struct cairn_hist *h, uint64_t ns);
/* Value below which a share q (0..1) of the samples lie, upper bound of its bucket; 0 if empty. */
uint64_t cairn_hist_quantile(const struct cairn_hist *h, double q);
/* Counts the samples at or below each of the rising bounds, by whole buckets: exact for a bound
 * just below a power of two. Returns how many samples there are in all. */
uint64_t cairn_hist_cumulate(const struct cairn_hist *h, const uint64_t *bounds_ns, uint32_t count,
                             uint64_t *ret_below);
void cairn_hist_reset(struct cairn_hist *h);

#endif
