/* Whose long reply is sent: turns begin, are passed on and end. */
#include <criterion/criterion.h>

#include "tools/cairnd/bulk.h"

#define MS CAIRN_NS_PER_MS

Test(node_bulk, one_at_a_time_in_their_order)
{
    struct bulk b = {0};
    struct bulk_place p[3] = {0};
    cr_assert(bulk_enter(&b, &p[0], 1));
    cr_assert_not(bulk_enter(&b, &p[1], 1));
    cr_assert_not(bulk_enter(&b, &p[2], 1));
    cr_assert_not(bulk_enter(&b, &p[1], 1), "it waits already");
    cr_assert(bulk_enter(&b, &p[0], 1));
    cr_assert_null(bulk_next(&b, 1));
    bulk_leave(&b, &p[0]);
    cr_assert_not(bulk_enter(&b, &p[0], 2), "others wait");
    cr_assert_eq(bulk_next(&b, 2), &p[1]);
    cr_assert(bulk_enter(&b, &p[1], 2));
    bulk_leave(&b, &p[1]);
    cr_assert_eq(bulk_next(&b, 3), &p[2]);
    bulk_leave(&b, &p[2]);
    cr_assert_eq(bulk_next(&b, 4), &p[0]);
    bulk_leave(&b, &p[0]);
    cr_assert_null(bulk_next(&b, 5));
}

Test(node_bulk, a_turn_ends_if_others_wait)
{
    struct bulk b = {0};
    struct bulk_place p[2] = {0};
    uint64_t now = MS;
    cr_assert(bulk_enter(&b, &p[0], now));
    now += 10 * BULK_TURN_NS;
    cr_assert_null(bulk_next(&b, now), "nobody waits");
    bulk_moved(&b, &p[0], now);
    cr_assert_not(bulk_enter(&b, &p[1], now));
    cr_assert_eq(bulk_next(&b, now), &p[1]);
    cr_assert_not(bulk_enter(&b, &p[0], now), "it moved: it waits for its next turn");
    for (uint64_t end = now + BULK_TURN_NS; now < end; now += MS) {
        bulk_moved(&b, &p[1], now);
        cr_assert_null(bulk_next(&b, now));
    }
    bulk_moved(&b, &p[1], now);
    cr_assert_eq(bulk_next(&b, now + MS), &p[0]);
}

Test(node_bulk, who_takes_nothing_holds_up_others_ever_more_rarely)
{
    struct bulk b = {0};
    struct bulk_place slow = {0}, fast = {0};
    uint64_t now = MS, lost = 0, end = now + 60 * CAIRN_NS_PER_S;
    while (now < end) {
        bool held = bulk_enter(&b, &slow, now) && b.holder == &slow;
        if (held)
            cr_assert_not(bulk_enter(&b, &fast, now));
        else
            cr_assert(bulk_enter(&b, &fast, now));
        if (held && now + MS > b.moved_ns)
            lost += MS;
        now += MS;
        struct bulk_place *next = bulk_next(&b, now);
        cr_assert(!next || next == &fast || next == &slow);
        if (b.holder == &fast)
            bulk_leave(&b, &fast);
    }
    cr_assert_lt(lost, 12 * (BULK_STALL_NS + 2 * MS), "%llu ms", (unsigned long long)(lost / MS));
    cr_assert_gt(slow.pause_ns, 100 * BULK_PAUSE_MIN_NS);
}

Test(node_bulk, who_ends_is_forgotten_wherever_it_waits)
{
    for (int gone = 0; gone < 4; gone++) {
        struct bulk b = {0};
        struct bulk_place p[4] = {0};
        cr_assert(bulk_enter(&b, &p[0], 1));
        for (int i = 1; i < 4; i++)
            cr_assert_not(bulk_enter(&b, &p[i], 1));
        bulk_leave(&b, &p[gone]);
        for (int i = 0; i < 4; i++) {
            if (i == gone)
                continue;
            cr_assert(i == 0 || bulk_next(&b, 1) == &p[i]);
            bulk_leave(&b, &p[i]);
        }
        cr_assert_null(b.holder);
        cr_assert_null(bulk_next(&b, 1));
    }
}
