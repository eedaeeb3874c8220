/* The heap of deadlines against a plain list. */
#include <criterion/criterion.h>
#include <stdlib.h>

#include "tests/helpers/seed.h"
#include "tools/cairnd/timer.h"

#define TIMERS 300u

static struct timer *slow_first(struct timer *all, const bool *armed)
{
    struct timer *first = NULL;
    for (uint32_t i = 0; i < TIMERS; i++)
        if (armed[i] && (!first || all[i].at_ns < first->at_ns))
            first = &all[i];
    return first;
}

Test(node_timer, as_a_plain_list)
{
    static struct timer all[TIMERS];
    static bool armed[TIMERS];
    struct timers t = {0};
    struct rng r = test_rng("node_timer");
    cr_assert_eq(timers_reserve(&t, TIMERS), CAIRN_OK);
    cr_assert_null(timers_first(&t));
    for (int step = 0; step < 100000; step++) {
        uint32_t i = (uint32_t)rng_below(&r, TIMERS);
        if (rng_below(&r, 3)) {
            timer_set(&t, &all[i], rng_below(&r, 1000));
            armed[i] = true;
        } else {
            timer_cancel(&t, &all[i]);
            armed[i] = false;
        }
        const struct timer *want = slow_first(all, armed), *got = timers_first(&t);
        cr_assert_eq(want == NULL, got == NULL);
        cr_assert(!want || want->at_ns == got->at_ns);
        cr_assert_eq(all[i].place != 0, armed[i]);
    }
    uint64_t last = 0;
    for (struct timer *first; (first = timers_first(&t)); last = first->at_ns) {
        cr_assert(first->at_ns >= last);
        timer_cancel(&t, first);
    }
    timers_close(&t);
}

Test(node_timer, grows)
{
    struct timers t = {0};
    struct timer one = {0}, two = {0};
    cr_assert_eq(timers_reserve(&t, 1), CAIRN_OK);
    timer_set(&t, &one, 5);
    cr_assert_eq(timers_reserve(&t, 1000), CAIRN_OK);
    timer_set(&t, &two, 4);
    cr_assert_eq(timers_first(&t), &two);
    timer_set(&t, &two, 6);
    cr_assert_eq(timers_first(&t), &one);
    timers_close(&t);
}
