#include <criterion/criterion.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/hist.h"
#include "tests/helpers/seed.h"

static struct cairn_hist hist;

static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

Test(hist, empty_and_reset)
{
    cr_assert_eq(cairn_hist_quantile(&hist, 0.5), 0);
    cairn_hist_add(&hist, 1000);
    cr_assert_eq(cairn_hist_quantile(&hist, 0.5), 1000, "no more than the largest");
    cairn_hist_reset(&hist);
    cr_assert_eq(cairn_hist_quantile(&hist, 0.5), 0);
    cr_assert_eq(hist.count, 0);
    cr_assert_eq(hist.sum_ns, 0);
    cr_assert_eq(hist.max_ns, 0);
}

Test(hist, extremes)
{
    cairn_hist_add(&hist, 0);
    cr_assert_eq(cairn_hist_quantile(&hist, 1.0), 0);
    cairn_hist_add(&hist, UINT64_MAX);
    cr_assert_eq(cairn_hist_quantile(&hist, 1.0), UINT64_MAX);
    cr_assert_eq(cairn_hist_quantile(&hist, 0.0), 0);
    cr_assert_eq(cairn_hist_quantile(&hist, -1.0), 0);
    cr_assert_eq(cairn_hist_quantile(&hist, 2.0), UINT64_MAX);
    cr_assert_eq(cairn_hist_quantile(&hist, 0.0 / 0.0), 0);
    cr_assert_eq(hist.max_ns, UINT64_MAX);
}

Test(hist, quantiles_within_a_sixteenth)
{
    enum { COUNT = 20000 };
    static uint64_t sample[COUNT];
    struct rng r = test_rng("hist");
    uint64_t sum = 0;
    for (int i = 0; i < COUNT; i++) {
        sample[i] = rng_next(&r) >> (20 + rng_below(&r, 44));
        sum += sample[i];
        cairn_hist_add(&hist, sample[i]);
    }
    qsort(sample, COUNT, sizeof(sample[0]), by_value);
    cr_assert_eq(hist.count, COUNT);
    cr_assert_eq(hist.sum_ns, sum);
    cr_assert_eq(hist.max_ns, sample[COUNT - 1]);
    static const double qs[] = {0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0};
    for (size_t i = 0; i < sizeof(qs) / sizeof(qs[0]); i++) {
        size_t rank = (size_t)(qs[i] * COUNT);
        uint64_t exact = sample[rank ? rank - 1 : 0], got = cairn_hist_quantile(&hist, qs[i]);
        cr_assert_geq(got, exact, "q %g", qs[i]);
        cr_assert_leq(got, exact + exact / 16 + 1, "q %g: %lu for %lu", qs[i], got, exact);
    }
}

static void *add_many(void *arg)
{
    for (uint64_t i = 0; i < 20000; i++)
        cairn_hist_add(arg, i);
    return NULL;
}

Test(hist, threads_lose_nothing)
{
    pthread_t t[4];
    for (int i = 0; i < 4; i++)
        cr_assert_eq(pthread_create(&t[i], NULL, add_many, &hist), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    uint64_t in_buckets = 0;
    for (uint32_t i = 0; i < CAIRN_HIST_BUCKETS; i++)
        in_buckets += hist.bucket[i];
    cr_assert_eq(hist.count, 80000);
    cr_assert_eq(in_buckets, 80000);
    cr_assert_eq(hist.max_ns, 19999);
    cr_assert_eq(hist.sum_ns, 4ull * 19999 * 20000 / 2);
}

Test(hist, cumulates_exactly_below_powers_of_two)
{
    static uint64_t bounds[30], below[30], sample[20000];
    struct rng r = test_rng("hist cumulated");
    for (uint32_t i = 0; i < 30; i++)
        bounds[i] = (2ull << i) - 1;
    for (int i = 0; i < 20000; i++) {
        sample[i] = rng_next(&r) >> (30 + rng_below(&r, 34));
        cairn_hist_add(&hist, sample[i]);
    }
    cr_assert_eq(cairn_hist_cumulate(&hist, bounds, 30, below), 20000);
    for (uint32_t i = 0; i < 30; i++) {
        uint64_t want = 0;
        for (int k = 0; k < 20000; k++)
            want += sample[k] <= bounds[i];
        cr_assert_eq(below[i], want, "below %lu", bounds[i]);
    }
}
