/* Damage at rest and in silence: a block of the log is not what was written. What it hides may be
 * lost; what was dead before stays dead. */
#include "tests/unit/storage/log_bench.h"

#define LEN 100000u /* nine records a segment */

static uint64_t seg_off(uint32_t seg)
{
    return CAIRN_DATA_OFFSET + seg * MIB;
}

/* Bit 0 of some bytes of the block's first half. */
static void spoil(struct bench *b, uint64_t off)
{
    for (uint64_t at = 0; at < CAIRN_BLOCK / 2; at += 64)
        cairn_sim_flip(b->sim, off + at, 0);
}

static uint32_t held_in(const struct log_host *h, uint32_t seg)
{
    uint32_t n = 0;
    for (uint32_t id = 0; id < HOST_KEYS; id++)
        n += h->keys[id].block && (h->keys[id].block - 512) / 256 == seg;
    return n;
}

TestSuite(log_damage, .init = path_make, .fini = path_remove, .timeout = 300);

/* The list of a segment ends at a header that cannot be read. */
Test(log_damage, reclaim_tells_of_records_that_it_could_not_list)
{
    struct bench b;
    uint64_t id = 0;
    bench_init(&b);
    open_ok(&b.h);
    while (held_in(&b.h, 2) == 0)
        put_or_die(&b, id++, LEN);
    settle(&b);
    uint32_t before = held_in(&b.h, 0);
    cr_assert_geq(before, 8);
    spoil(&b, seg_off(0) + MIB - CAIRN_BLOCK);
    for (uint64_t lost = 0; lost < id; lost++) {
        if (b.h.keys[lost].block == 512 + 1 + 3 * (1 + cairn_blocks(LEN)))
            spoil(&b, (uint64_t)b.h.keys[lost].block * CAIRN_BLOCK);
    }
    while (b.h.tier->ops->stats(b.h.tier)->segments_reclaimed == 0)
        put_or_die(&b, id++, LEN);
    for (uint64_t old = 0; old < before; old++)
        cr_assert(b.h.keys[old].block == 0 || b.h.keys[old].version > before,
                  "key %d lies in a void segment", (int)old);
    bench_fini(&b);
}

/* A segment was reclaimed: its records may have been deleted since, without a tombstone. Its head,
 * void or of its next life, is damaged; neither first record nor footer may speak for it. */
Test(log_damage, a_reclaimed_segment_stays_dead_when_its_head_is_damaged)
{
    for (uint32_t more = 0; more < 20; more++) {
        struct bench b;
        struct cairn_head_disk head;
        struct cairn_record_disk first;
        uint64_t id = 0;
        bench_init(&b);
        open_ok(&b.h);
        while (b.h.tier->ops->stats(b.h.tier)->segments_reclaimed == 0)
            put_or_die(&b, id++, LEN);
        for (uint32_t i = 0; i < more; i++)
            put_or_die(&b, id++, LEN);
        settle(&b);
        cr_assert(host_close(&b.h));
        for (uint32_t seg = 0; seg < 32; seg++) {
            if (held_in(&b.h, seg) > 0)
                continue;
            cairn_sim_peek(b.sim, seg_off(seg), &head, sizeof head);
            cairn_sim_peek(b.sim, seg_off(seg) + CAIRN_BLOCK, &first, sizeof first);
            spoil(&b, seg_off(seg));
            host_forget(&b.h);
            open_ok(&b.h);
            cr_assert_eq(held_in(&b.h, seg), 0, "segment %d is back, %d values later", (int)seg,
                         (int)more);
            cr_assert(host_close(&b.h));
            cairn_sim_poke(b.sim, seg_off(seg), &head, sizeof head);
            cairn_sim_poke(b.sim, seg_off(seg) + CAIRN_BLOCK, &first, sizeof first);
        }
        bench_fini(&b);
    }
}

/* A header of the open segment is damaged: what lies behind it was durable, and of a tombstone that
 * must be so still. `crash`: no clean close says how far the records go. */
static void header_damaged(uint64_t victim, bool crash)
{
    struct bench b;
    bench_init(&b);
    open_ok(&b.h);
    for (uint64_t id = 0; id < 8; id++)
        put_or_die(&b, id, 20000);
    cr_assert_eq(host_sync(&b.h), CAIRN_OK);
    cr_assert_eq(host_delete(&b.h, 1), CAIRN_OK);
    put_or_die(&b, 8, 20000);
    cr_assert_eq(host_sync(&b.h), CAIRN_OK);
    put_or_die(&b, 9, 20000);
    cr_assert_eq(host_sync(&b.h), CAIRN_OK);
    uint32_t block = b.h.keys[victim].block;
    settle(&b);
    struct cairn_sim *after = crash ? cairn_sim_power_cut(b.sim, 3) : NULL;
    cr_assert(host_close(&b.h));
    if (after) {
        cairn_sim_destroy(b.sim);
        b.sim = after;
        b.plan.next_arg = after;
    }
    spoil(&b, (uint64_t)block * CAIRN_BLOCK);
    for (int again = 0; again < 2; again++) {
        host_forget(&b.h);
        open_ok(&b.h);
        for (uint64_t id = 0; id < 10; id++)
            cr_assert_eq(host_get(&b.h, id), id == victim || id == 1 ? CAIRN_MISS : CAIRN_OK,
                         "key %d, damaged %d, crash %d", (int)id, (int)victim, crash);
        put_or_die(&b, 20, 20000);
        cr_assert(host_close(&b.h));
    }
    bench_fini(&b);
}

Test(log_damage, a_damaged_header_hides_nothing_behind_it)
{
    for (uint64_t victim = 2; victim < 9; victim++) {
        header_damaged(victim, false);
        header_damaged(victim, true);
    }
}

/* A write that went astray covers the start of a sealed segment: its footer knows the rest. */
Test(log_damage, a_footer_speaks_for_a_segment_whose_start_is_damaged)
{
    struct bench b;
    uint64_t id = 0;
    bench_init(&b);
    open_ok(&b.h);
    while (held_in(&b.h, 2) == 0) {
        put_or_die(&b, id, LEN);
        if (id == 5)
            cr_assert_eq(host_delete(&b.h, 3), CAIRN_OK);
        id++;
    }
    settle(&b);
    uint32_t before = held_in(&b.h, 0);
    cr_assert(host_close(&b.h));
    spoil(&b, seg_off(0));
    spoil(&b, seg_off(0) + CAIRN_BLOCK);
    host_forget(&b.h);
    open_ok(&b.h);
    cr_assert_eq(held_in(&b.h, 0), before);
    cr_assert_eq(host_get(&b.h, 0), CAIRN_CORRUPT, "its header is gone");
    for (uint64_t i = 1; i < before; i++)
        cr_assert_eq(host_get(&b.h, i), i == 3 ? CAIRN_MISS : CAIRN_OK, "key %d", (int)i);
    bench_fini(&b);
}
