#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "storage/cause.h"
#include "storage/policy.h"
#include "tests/helpers/seed.h"

#define NONE UINT32_MAX

static struct cairn_policy *policy(const char *name, uint32_t capacity)
{
    struct cairn_policy *p = NULL;
    const struct cairn_policy_ops *ops = cairn_policy_find(name);
    cr_assert_not_null(ops);
    cr_assert_eq(ops->create(capacity, &p), CAIRN_OK);
    cr_assert_eq(p->ops, ops);
    return p;
}

static void insert(struct cairn_policy *p, uint32_t slot)
{
    p->ops->insert(p, slot, slot + 1000, 1);
}

static bool usable_all(void *arg, uint32_t slot)
{
    (void)arg;
    (void)slot;
    return true;
}

/* Which slots may leave, and how often that was asked. */
struct usable {
    bool no[256];
    uint32_t asked;
};

static bool usable_some(void *arg, uint32_t slot)
{
    struct usable *u = arg;
    u->asked++;
    return !u->no[slot];
}

static uint32_t evict(struct cairn_policy *p)
{
    uint32_t slot = p->ops->victim(p, usable_all, NULL, 1000);
    if (slot != NONE)
        p->ops->remove(p, slot, true);
    return slot;
}

Test(cause, every_cause_has_a_name_and_a_text_of_its_own)
{
    for (int c = 0; c < CAIRN_CAUSE_COUNT; c++) {
        cr_assert_gt(strlen(cairn_cause_name((enum cairn_cause)c)), 0);
        cr_assert_gt(strlen(cairn_cause_text((enum cairn_cause)c)), 0);
        for (int d = 0; d < c; d++)
            cr_assert(strcmp(cairn_cause_name((enum cairn_cause)c),
                             cairn_cause_name((enum cairn_cause)d)) != 0);
    }
    cr_assert_str_eq(cairn_cause_name(CAIRN_CAUSE_CHECKSUM), "checksum");
    cr_assert_str_eq(cairn_cause_name(CAIRN_CAUSE_COUNT), "unknown");
    cr_assert_str_eq(cairn_cause_text((enum cairn_cause)-1), "unknown cause");
}

Test(policy, is_found_by_name)
{
    uint32_t n = 0;
    const struct cairn_policy_ops *const *all = cairn_policy_all(&n);
    cr_assert_eq(n, 2);
    for (uint32_t i = 0; i < n; i++)
        cr_assert_eq(cairn_policy_find(all[i]->name), all[i]);
    cr_assert_null(cairn_policy_find("fifo"));
    cr_assert_null(cairn_policy_find(""));
    cr_assert_null(cairn_policy_find(NULL));
}

static void each_policy(void (*fn)(const struct cairn_policy_ops *ops))
{
    uint32_t n;
    const struct cairn_policy_ops *const *all = cairn_policy_all(&n);
    for (uint32_t i = 0; i < n; i++)
        fn(all[i]);
}

static void refuses(const struct cairn_policy_ops *ops)
{
    struct cairn_policy *p = NULL;
    cr_assert_eq(ops->create(0, &p), CAIRN_INVAL);
    cr_assert_eq(ops->create(UINT32_MAX, &p), CAIRN_INVAL);
    uint64_t n = 1;
    while (cairn_mem_fail_nth(n), ops->create(100, &p) == CAIRN_NOMEM) {
        cr_assert_null(p);
        n++;
    }
    cairn_mem_fail_nth(0);
    cr_assert_geq(n, 3, "%s: only %d allocations can fail", ops->name, (int)n - 1);
    cr_assert_not_null(p);
    ops->destroy(p);
    ops->destroy(NULL);
}

Test(policy, refuses_impossible_capacities_and_survives_failed_allocations)
{
    each_policy(refuses);
}

static void ignores_unknown_slots(const struct cairn_policy_ops *ops)
{
    struct cairn_policy *p = policy(ops->name, 4);
    cr_assert_eq(ops->victim(p, usable_all, NULL, 10), NONE);
    insert(p, 4);
    insert(p, NONE);
    ops->touch(p, 0);
    ops->touch(p, NONE);
    ops->remove(p, 0, true);
    ops->remove(p, NONE, true);
    cr_assert_eq(ops->rank(p, 0), 0);
    cr_assert_eq(ops->rank(p, NONE), 0);
    cr_assert_eq(ops->victim(p, usable_all, NULL, 10), NONE);
    insert(p, 2);
    insert(p, 2);
    cr_assert_eq(evict(p), 2);
    cr_assert_eq(evict(p), NONE);
    ops->destroy(p);
}

Test(policy, ignores_slots_it_does_not_hold)
{
    each_policy(ignores_unknown_slots);
}

static void victim_is_bounded(const struct cairn_policy_ops *ops)
{
    struct cairn_policy *p = policy(ops->name, 100);
    struct usable u = {.asked = 0};
    for (uint32_t i = 0; i < 100; i++) {
        insert(p, i);
        u.no[i] = i != 50;
    }
    cr_assert_eq(ops->victim(p, usable_some, &u, 0), NONE);
    cr_assert_eq(u.asked, 0);
    cr_assert_eq(ops->victim(p, usable_some, &u, 20), NONE);
    cr_assert_eq(u.asked, 20);
    /* The unusable ones went to the back, so that the next calls come to the usable one. */
    cr_assert_eq(ops->victim(p, usable_some, &u, 20), NONE);
    cr_assert_eq(ops->victim(p, usable_some, &u, 20), 50);
    cr_assert_eq(u.asked, 51);
    cr_assert_eq(ops->victim(p, usable_some, &u, 20), 50, "a victim stays until it is removed");
    ops->remove(p, 50, false);
    cr_assert_eq(ops->victim(p, usable_some, &u, 1000), NONE);
    cr_assert_eq(u.asked, 1052);
    ops->destroy(p);
}

Test(policy, a_search_is_bounded_and_passes_what_is_pinned)
{
    each_policy(victim_is_bounded);
}

static void peek_changes_nothing(const struct cairn_policy_ops *ops)
{
    struct cairn_policy *p = policy(ops->name, 100);
    struct usable u = {.asked = 0};
    cr_assert_eq(ops->peek(p, usable_some, &u, 100), NONE);
    for (uint32_t i = 0; i < 100; i++) {
        insert(p, i);
        u.no[i] = i != 50;
    }
    for (int round = 0; round < 3; round++) {
        u.asked = 0;
        cr_assert_eq(ops->peek(p, usable_some, &u, 0), NONE);
        cr_assert_eq(ops->peek(p, usable_some, &u, 50), NONE);
        cr_assert_eq(u.asked, 50);
        cr_assert_eq(ops->peek(p, usable_some, &u, 51), 50);
    }
    memset(u.no, 0, sizeof u.no);
    for (uint32_t i = 0; i < 100; i++) {
        cr_assert_eq(ops->peek(p, usable_some, &u, 1), i);
        cr_assert_eq(evict(p), i);
    }
    ops->destroy(p);
}

Test(policy, looking_ahead_changes_no_order)
{
    each_policy(peek_changes_nothing);
}

static void tail_leaves_first(const struct cairn_policy_ops *ops)
{
    struct cairn_policy *p = policy(ops->name, 20);
    for (int pass = 0; pass < 3; pass++) {
        for (uint32_t i = 20; i--;) {
            if (pass == 0)
                insert(p, i);
            else
                ops->touch(p, i);
        }
        for (uint32_t i = 0; i + 1 < 20; i++)
            cr_assert_gt(ops->rank(p, i), ops->rank(p, i + 1));
    }
    for (uint32_t i = 20; i--;)
        cr_assert_eq(evict(p), i, "%s", ops->name);
    ops->destroy(p);
}

Test(policy, a_chain_inserted_tail_first_leaves_tail_first)
{
    each_policy(tail_leaves_first);
}

/* Every slot that is in leaves exactly once, whatever happened before. */
static void loses_nothing(const struct cairn_policy_ops *ops)
{
    enum { SLOTS = 200 };
    struct rng rng = test_rng(ops->name);
    struct cairn_policy *p = policy(ops->name, SLOTS);
    static bool in[SLOTS];
    struct usable u = {.asked = 0};
    memset(in, 0, sizeof in);
    for (int op = 0; op < 100000; op++) {
        uint32_t slot = (uint32_t)rng_below(&rng, SLOTS);
        if (rng_one_in(&rng, 3)) {
            uint32_t out = ops->victim(p, usable_some, &u, 1 + (uint32_t)rng_below(&rng, 50));
            if (out == NONE)
                continue;
            cr_assert(in[out] && !u.no[out]);
            ops->remove(p, out, true);
            in[out] = false;
        } else if (!in[slot]) {
            ops->insert(p, slot, rng_below(&rng, 1000), 1 + (uint32_t)rng_below(&rng, 8192));
            in[slot] = true;
            u.no[slot] = rng_one_in(&rng, 5);
        } else if (rng_one_in(&rng, 4)) {
            ops->remove(p, slot, rng_one_in(&rng, 2));
            in[slot] = false;
        } else {
            ops->touch(p, slot);
        }
    }
    uint32_t left = 0, out;
    for (uint32_t i = 0; i < SLOTS; i++)
        left += in[i];
    while ((out = evict(p)) != NONE) {
        cr_assert(in[out]);
        in[out] = false;
        left--;
    }
    cr_assert_eq(left, 0);
    ops->destroy(p);
}

Test(policy, random_operations_lose_no_slot)
{
    each_policy(loses_nothing);
}

Test(lru, random_operations_match_a_plain_list)
{
    enum { SLOTS = 64 };
    struct rng rng = test_rng("lru");
    struct cairn_policy *p = policy("lru", SLOTS);
    uint64_t used_at[SLOTS] = {0}; /* 0: not in */
    for (uint64_t now = 1; now < 50000; now++) {
        uint32_t slot = (uint32_t)rng_below(&rng, SLOTS), oldest = NONE;
        if (used_at[slot] && rng_one_in(&rng, 4)) {
            p->ops->remove(p, slot, false);
            used_at[slot] = 0;
        } else {
            if (used_at[slot])
                p->ops->touch(p, slot);
            else
                insert(p, slot);
            used_at[slot] = now;
        }
        for (uint32_t i = 0; i < SLOTS; i++)
            if (used_at[i] && (oldest == NONE || used_at[i] < used_at[oldest]))
                oldest = i;
        cr_assert_eq(p->ops->victim(p, usable_all, NULL, 1), oldest);
    }
    p->ops->destroy(p);
}

/* --- S3-FIFO's own promises --- */

Test(s3fifo, a_scan_does_not_drive_out_what_is_asked_for_again)
{
    struct cairn_policy *p = policy("s3fifo", 100);
    for (uint32_t i = 0; i < 50; i++) {
        insert(p, i);
        p->ops->touch(p, i);
    }
    /* 10,000 values that come once pass through the 50 other slots. */
    for (uint32_t i = 50; i < 100; i++)
        insert(p, i);
    for (uint32_t i = 0; i < 10000; i++) {
        uint32_t slot = evict(p);
        cr_assert_geq(slot, 50);
        p->ops->insert(p, slot, 1000000 + i, 1);
    }
    p->ops->destroy(p);
}

Test(s3fifo, what_left_the_small_queue_and_returns_goes_to_the_main_one)
{
    struct cairn_policy *p = policy("s3fifo", 40);
    for (uint32_t i = 0; i < 20; i++)
        insert(p, i);
    cr_assert_eq(evict(p), 0);
    insert(p, 0);
    /* In the main queue it outlives all that came after it into the small one. */
    for (uint32_t i = 20; i < 40; i++)
        insert(p, i);
    for (uint32_t i = 1; i < 38; i++)
        cr_assert_eq(evict(p), i);
    p->ops->destroy(p);

    /* The same with a delete instead of an eviction: nothing is remembered. */
    p = policy("s3fifo", 40);
    for (uint32_t i = 0; i < 20; i++)
        insert(p, i);
    p->ops->remove(p, 0, false);
    insert(p, 0);
    insert(p, 20);
    for (uint32_t i = 1; i < 20; i++)
        cr_assert_eq(evict(p), i);
    cr_assert_eq(evict(p), 0);
    cr_assert_eq(evict(p), 20);
    p->ops->destroy(p);
}

Test(s3fifo, ghosts_are_forgotten_after_as_many_as_are_held)
{
    struct cairn_policy *p = policy("s3fifo", 10);
    for (uint32_t i = 0; i < 10; i++)
        p->ops->insert(p, i, i, 1);
    uint64_t key = 10;
    for (int i = 0; i < 12; i++) {
        uint32_t slot = evict(p);
        p->ops->insert(p, slot, key++, 1);
    }
    /* Key 0 left 12 evictions ago, key 9 three: only the latter is still known. */
    uint32_t known = evict(p);
    p->ops->insert(p, known, 9, 1);
    uint32_t unknown = evict(p);
    p->ops->insert(p, unknown, 0, 1);
    cr_assert_gt(p->ops->rank(p, known), p->ops->rank(p, unknown));
    for (int i = 0; i < 8; i++) {
        uint32_t slot = evict(p);
        cr_assert(slot != known && slot != unknown);
    }
    cr_assert_eq(evict(p), unknown);
    cr_assert_eq(evict(p), known);
    p->ops->destroy(p);
}

Test(s3fifo, the_main_queue_passes_a_value_once_for_each_time_it_was_asked_for)
{
    struct cairn_policy *p = policy("s3fifo", 8);
    for (uint32_t i = 0; i < 4; i++) {
        insert(p, i);
        p->ops->touch(p, i);
    }
    for (int i = 0; i < 2; i++)
        p->ops->touch(p, 0);
    for (uint32_t i = 1; i < 4; i++)
        cr_assert_eq(evict(p), i);
    cr_assert_eq(evict(p), 0);

    /* Ten times count as three: seen once in the small queue, passed three times, then taken. */
    struct usable u = {.asked = 0};
    insert(p, 5);
    for (int i = 0; i < 10; i++)
        p->ops->touch(p, 5);
    cr_assert_eq(p->ops->victim(p, usable_some, &u, 100), 5);
    cr_assert_eq(u.asked, 5);
    p->ops->destroy(p);
}

Test(s3fifo, a_slot_used_again_starts_without_the_hits_of_its_last_value)
{
    struct cairn_policy *p = policy("s3fifo", 8);
    insert(p, 0);
    p->ops->touch(p, 0);
    p->ops->remove(p, 0, false);
    insert(p, 0);
    insert(p, 1);
    cr_assert_eq(evict(p), 0);
    cr_assert_eq(evict(p), 1);
    p->ops->destroy(p);
}

/* A search that ends in the middle of values that all have passes left still gives a victim. */
Test(s3fifo, a_short_search_falls_back_to_the_first_candidate)
{
    struct cairn_policy *p = policy("s3fifo", 100);
    for (uint32_t i = 0; i < 100; i++) {
        insert(p, i);
        p->ops->touch(p, i);
    }
    struct usable u = {.no = {[0] = true}};
    cr_assert_eq(p->ops->victim(p, usable_some, &u, 5), 1);
    cr_assert_eq(u.asked, 5);
    p->ops->destroy(p);
}

/* As when a burst of new values waits for the disk. */
Test(s3fifo, a_queue_full_of_pinned_values_does_not_hide_the_other)
{
    struct cairn_policy *p = policy("s3fifo", 200);
    struct usable u = {.asked = 0};
    insert(p, 0);
    p->ops->touch(p, 0);
    cr_assert_eq(p->ops->victim(p, usable_all, NULL, 1), 0); /* into the main queue */
    for (uint32_t i = 1; i < 200; i++) {
        insert(p, i);
        u.no[i] = true;
    }
    cr_assert_eq(p->ops->victim(p, usable_some, &u, 10), 0);
    u.no[0] = true;
    u.no[100] = false;
    cr_assert_eq(p->ops->victim(p, usable_some, &u, 400), 100);
    p->ops->destroy(p);
}

/* What would be passed over is looked at after what would leave, in both queues. */
Test(s3fifo, looking_ahead_prefers_what_would_leave)
{
    struct cairn_policy *p = policy("s3fifo", 8);
    insert(p, 0);
    p->ops->touch(p, 0);
    cr_assert_eq(p->ops->victim(p, usable_all, NULL, 1), 0); /* into the main queue */
    for (uint32_t i = 1; i < 4; i++) {
        insert(p, i);
        p->ops->touch(p, i);
    }
    struct usable u = {.asked = 0};
    cr_assert_eq(p->ops->peek(p, usable_some, &u, 100), 1);
    cr_assert_eq(u.asked, 4);
    /* The small queue follows into the main one, and slot 0 is passed once. */
    cr_assert_eq(p->ops->victim(p, usable_all, NULL, 4), 1);
    cr_assert_eq(p->ops->peek(p, usable_all, NULL, 100), 0);
    p->ops->destroy(p);
}

Test(s3fifo, queues_are_sized_by_weight)
{
    struct cairn_policy *p = policy("s3fifo", 100);
    /* One heavy value in the main queue, light ones below a tenth of all in the small one. */
    p->ops->insert(p, 0, 0, 1000);
    p->ops->touch(p, 0);
    cr_assert_eq(p->ops->victim(p, usable_all, NULL, 1), 0);
    for (uint32_t i = 1; i < 60; i++)
        p->ops->insert(p, i, i, 1);
    cr_assert_eq(p->ops->victim(p, usable_all, NULL, 10), 0);
    p->ops->insert(p, 60, 60, 200);
    cr_assert_eq(p->ops->victim(p, usable_all, NULL, 10), 1);
    p->ops->destroy(p);
}
