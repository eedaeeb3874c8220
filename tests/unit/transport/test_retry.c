#include <criterion/criterion.h>
#include <pthread.h>

#include "base/clock.h"
#include "transport/retry.h"

#define MS CAIRN_NS_PER_MS

static const struct cairn_breaker_limits limits = {
    .failures = 3, .pause_min_ns = 100 * MS, .pause_max_ns = 1000 * MS, .trial_ns = 50 * MS};
static struct cairn_breaker b;

static void fail(int times, uint64_t now_ns)
{
    for (int i = 0; i < times; i++)
        cairn_breaker_went(&b, false, now_ns);
}

Test(retry, closed_until_it_failed_often_enough_in_a_row)
{
    cairn_breaker_open(&b, &limits, 1);
    fail(2, 0);
    cairn_breaker_went(&b, true, 0);
    fail(2, 0);
    cr_assert(cairn_breaker_may(&b, 0));
    cr_assert_eq(cairn_breaker_wait(&b, 0), 0);
    fail(1, 0);
    cr_assert(!cairn_breaker_may(&b, 0));
    uint64_t wait = cairn_breaker_wait(&b, 0);
    cr_assert(wait >= 50 * MS && wait <= 100 * MS);
    cr_assert(!cairn_breaker_may(&b, wait - 1));
    cr_assert(cairn_breaker_may(&b, wait));
    cairn_breaker_close(&b);
}

Test(retry, one_silence_is_enough)
{
    cairn_breaker_open(&b, &limits, 1);
    cairn_breaker_silent(&b, 0);
    cr_assert(!cairn_breaker_may(&b, 0));
    cr_assert_leq(cairn_breaker_wait(&b, 0), 100 * MS);
    cr_assert(cairn_breaker_may(&b, 100 * MS));
    cairn_breaker_silent(&b, 110 * MS);
    cr_assert(cairn_breaker_wait(&b, 110 * MS) >= 100 * MS, "the trial's silence is a failure");
    cairn_breaker_close(&b);
}

Test(retry, one_trial_at_a_time)
{
    cairn_breaker_open(&b, &limits, 1);
    fail(3, 0);
    cr_assert(cairn_breaker_may(&b, 100 * MS));
    cr_assert(!cairn_breaker_may(&b, 100 * MS), "the trial is under way");
    cr_assert(cairn_breaker_may(&b, 150 * MS), "nothing was heard of it");
    cairn_breaker_went(&b, true, 160 * MS);
    cr_assert(cairn_breaker_may(&b, 160 * MS) && cairn_breaker_may(&b, 160 * MS));
    fail(3, 160 * MS);
    cr_assert_leq(cairn_breaker_wait(&b, 160 * MS), 100 * MS, "pauses begin anew");
    cr_assert_eq(b.opens, 2);
    cairn_breaker_close(&b);
}

Test(retry, pauses_double_up_to_the_longest)
{
    uint64_t now = 0, longest = 100 * MS;
    cairn_breaker_open(&b, &limits, 12345);
    fail(3, now);
    for (int i = 0; i < 10; i++) {
        uint64_t wait = cairn_breaker_wait(&b, now);
        cr_assert(wait >= longest / 2 && wait <= longest);
        longest = longest * 2 < 1000 * MS ? longest * 2 : 1000 * MS;
        now += wait;
        cr_assert(cairn_breaker_may(&b, now));
        cairn_breaker_went(&b, false, now);
        cr_assert(!cairn_breaker_may(&b, now));
    }
    cairn_breaker_close(&b);
}

Test(retry, late_failures_of_before_change_nothing)
{
    cairn_breaker_open(&b, &limits, 7);
    fail(3, 0);
    uint64_t wait = cairn_breaker_wait(&b, 0);
    fail(20, 10);
    cr_assert_eq(cairn_breaker_wait(&b, 0), wait);
    cairn_breaker_close(&b);
}

Test(retry, clients_do_not_come_back_together)
{
    uint64_t least = UINT64_MAX, most = 0;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        cairn_breaker_open(&b, &limits, seed * 0x9E3779B97F4A7C15u);
        fail(3, 0);
        uint64_t wait = cairn_breaker_wait(&b, 0);
        least = wait < least ? wait : least;
        most = wait > most ? wait : most;
        cairn_breaker_close(&b);
    }
    cr_assert(least < 60 * MS && most > 90 * MS);
}

static _Atomic uint64_t now_ns, trials;

static void *caller(void *arg)
{
    (void)arg;
    for (int i = 0; i < 20000; i++) {
        uint64_t now = atomic_fetch_add(&now_ns, 1000);
        if (cairn_breaker_may(&b, now)) {
            atomic_fetch_add(&trials, 1);
            cairn_breaker_went(&b, false, now);
        }
    }
    return NULL;
}

Test(retry, many_threads_make_few_trials)
{
    pthread_t t[4];
    cairn_breaker_open(&b, &limits, 3);
    for (int i = 0; i < 4; i++)
        pthread_create(&t[i], NULL, caller, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    cr_assert_leq(trials, 8, "in 80 ms of that clock nothing but the first may: %lu",
                  (unsigned long)trials);
    cairn_breaker_close(&b);
}
