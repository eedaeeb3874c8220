#include "tests/unit/storage/log_bench.h"

TestSuite(log, .init = path_make, .fini = path_remove, .timeout = 300);

/* --- what is written is read --- */

Test(log, values_come_back_also_after_a_restart)
{
    for (int e = 0; e < 2; e++) {
        if (!runs_here(engines[e]))
            continue;
        static const uint32_t lens[] = {1, 4095, 4096, 65536, 262144, 262145, 1000000};
        struct log_host h;
        host_init(&h, path, 64 * MIB, engines[e]);
        open_ok(&h);
        for (uint32_t i = 0; i < 7; i++)
            cr_assert_eq(host_put(&h, i, lens[i]), CAIRN_OK);
        for (uint32_t i = 0; i < 7; i++)
            cr_assert_eq(host_get(&h, i), CAIRN_OK);
        cr_assert_eq(host_sync(&h), CAIRN_OK);
        reopen(&h);
        cr_assert_eq(h.recovered, 7);
        for (uint32_t i = 0; i < 7; i++)
            cr_assert_eq(host_get(&h, i), CAIRN_OK);
        cr_assert_eq(host_get_part(&h, 6, 1, 2), CAIRN_OK);
        cr_assert_eq(host_get_part(&h, 6, 3, 1), CAIRN_OK);
        cr_assert_eq(host_get_part(&h, 6, 0, 1), CAIRN_OK);
        cr_assert(host_close(&h));
        fsck_ok();
        host_fini(&h);
        unlink(path);
    }
}

Test(log, side_records_are_kept_and_verified)
{
    struct bench b;
    bench_init(&b);
    b.h.side_len = 5000;
    open_ok(&b.h);
    cr_assert_eq(host_put(&b.h, 1, 300000), CAIRN_OK);
    cr_assert_eq(host_get(&b.h, 1), CAIRN_OK);
    uint64_t side = ((uint64_t)host_block(&b.h, 1) + 1 + cairn_blocks(300000)) * CAIRN_BLOCK;
    cairn_sim_flip(b.sim, side + 4999, 3);
    cr_assert_eq(host_get(&b.h, 1), CAIRN_CORRUPT);
    cr_assert_eq(host_get_part(&b.h, 1, 0, 2), CAIRN_OK, "a part is read without them");
    bench_fini(&b);
}

/* Many ops at once: order, batching, segments filling up under them. */
Test(log, batches_of_all_sizes)
{
    for (int e = 0; e < 2; e++) {
        if (!runs_here(engines[e]))
            continue;
        struct rng rng = test_rng("batches_of_all_sizes");
        struct log_host h;
        struct host_op ops[32];
        host_init(&h, path, 64 * MIB, engines[e]);
        open_ok(&h);
        for (uint32_t round = 0; round < 24; round++) {
            for (uint32_t i = 0; i < 32; i++) {
                uint32_t len = 1 + (uint32_t)rng_below(&rng, rng_one_in(&rng, 4) ? 900000 : 70000);
                host_prepare_store(&h, &ops[i], i, round * 32 + i, ++h.version, len);
                cr_assert_eq(host_submit(&h, &ops[i]), CAIRN_OK);
            }
            for (uint32_t i = 0; i < 32; i++)
                cr_assert_eq(host_wait(&h, &ops[i]), CAIRN_OK);
            for (uint32_t i = 0; i < 32; i += 5)
                cr_assert_eq(host_get(&h, round * 32 + i), CAIRN_OK);
        }
        cr_assert_eq(host_sync(&h), CAIRN_OK);
        reclaim_rests(&h);
        uint64_t held = 0;
        for (uint32_t i = 0; i < 24 * 32; i++)
            held += host_block(&h, i) != 0;
        reopen(&h);
        reclaim_rests(&h);
        for (uint32_t i = 0; i < 24 * 32; i++) {
            if (host_block(&h, i))
                cr_assert_eq(host_get(&h, i), CAIRN_OK);
        }
        cr_assert_geq(h.recovered, held);
        cr_assert(host_close(&h));
        fsck_ok();
        host_fini(&h);
        unlink(path);
    }
}

/* --- reclaim --- */

Test(log, wraps_around_many_times_and_keeps_what_is_wanted)
{
    struct bench b;
    bench_init(&b);
    b.h.wanted_every = 50;
    open_ok(&b.h);
    for (uint32_t round = 0; round < 30; round++) {
        for (uint64_t id = 1; id < 100; id++)
            put_or_die(&b, id == 50 && round ? 99 : id, id == 50 ? 40000 : 100000);
    }
    /* Key 50 was put once, 250 segments ago. */
    cr_assert_eq(host_get(&b.h, 50), CAIRN_OK);
    cr_assert_gt(b.h.moved, 5);
    cr_assert_gt(b.h.tier->ops->stats(b.h.tier)->segments_reclaimed, 200);
    cr_assert_eq(host_sync(&b.h), CAIRN_OK);
    struct host_entry before[100];
    memcpy(before, b.h.keys, sizeof before);
    reopen(&b.h);
    reclaim_rests(&b.h);
    for (uint64_t id = 1; id < 100; id++) {
        if (before[id].block)
            cr_assert_eq(b.h.keys[id].version, before[id].version);
        if (host_block(&b.h, id))
            cr_assert_eq(host_get(&b.h, id), CAIRN_OK);
    }
    cr_assert_eq(host_get(&b.h, 50), CAIRN_OK);
    bench_fini(&b);
}

Test(log, what_was_deleted_stays_dead_while_the_log_wraps)
{
    struct rng rng = test_rng("what_was_deleted_stays_dead");
    struct bench b;
    bool dead[64] = {false};
    bench_init(&b);
    b.h.wanted_every = 3;
    open_ok(&b.h);
    for (uint32_t step = 0; step < 3000; step++) {
        uint64_t id = rng_below(&rng, 64);
        if (rng_one_in(&rng, 4)) {
            cr_assert_eq(host_delete(&b.h, id), CAIRN_OK);
            dead[id] = true;
        } else {
            put_or_die(&b, id, 1 + (uint32_t)rng_below(&rng, 120000));
            dead[id] = false;
        }
        if (!rng_one_in(&rng, 60))
            continue;
        uint64_t version[64];
        for (uint32_t i = 0; i < 64; i++)
            version[i] = b.h.keys[i].version;
        reopen(&b.h);
        for (uint32_t i = 0; i < 64; i++) {
            cr_assert(!dead[i] || host_block(&b.h, i) == 0, "key %u came back", i);
            cr_assert(host_block(&b.h, i) == 0 || b.h.keys[i].version == version[i],
                      "key %u shows an older version", i);
        }
    }
    bench_fini(&b);
}

Test(log, a_read_of_a_reclaimed_place_is_a_miss)
{
    struct bench b;
    bench_init(&b);
    open_ok(&b.h);
    put_or_die(&b, 1, 5000);
    struct host_entry old = b.h.keys[1];
    for (uint64_t id = 2; id < 500; id++)
        put_or_die(&b, id, 100000);
    cr_assert_eq(host_block(&b.h, 1), 0, "it should be reclaimed by now");
    b.h.keys[1] = old;
    cairn_status st = host_get(&b.h, 1);
    cr_assert(st == CAIRN_MISS || st == CAIRN_CORRUPT);
    bench_fini(&b);
}

/* --- small print --- */

Test(log, bounded_and_refusing)
{
    struct bench b;
    struct host_op op, second;
    bench_init(&b);
    b.h.o.queue_max = 1;
    open_ok(&b.h);
    struct cairn_tier_info info;
    b.h.tier->ops->info(b.h.tier, &info);
    cr_assert_eq(info.segments, 32);
    cr_assert_eq(info.value_max, (256 - 1 - 2 - 1) * 4096);
    cr_assert_eq(host_put(&b.h, 1, info.value_max), CAIRN_OK, "the largest value fits");
    cr_assert_eq(host_get(&b.h, 1), CAIRN_OK);
    cr_assert_eq(host_put(&b.h, 2, info.value_max + 1), CAIRN_TOOBIG);
    rule(&b, CAIRN_FAULT_DELAY, CAIRN_FAULT_READS, 1, UINT64_MAX, 100 * CAIRN_NS_PER_MS);
    host_prepare_load(&b.h, &op, 2, 1);
    host_prepare_load(&b.h, &second, 3, 1);
    cr_assert_eq(host_submit(&b.h, &op), CAIRN_OK);
    cr_assert_eq(host_submit(&b.h, &second), CAIRN_BUSY);
    cr_assert_eq(host_wait(&b.h, &op), CAIRN_OK);
    no_rule(&b);
    b.h.refuse = true;
    cr_assert_eq(host_put(&b.h, 3, 5000), CAIRN_CANCELED);
    b.h.refuse = false;
    host_prepare_load(&b.h, &op, 2, 1);
    op.op.block = 7;
    cr_assert_eq(host_submit(&b.h, &op), CAIRN_OK);
    cr_assert_eq(host_wait(&b.h, &op), CAIRN_MISS);
    host_prepare_load(&b.h, &op, 2, 1);
    op.op.version++;
    cr_assert_eq(host_submit(&b.h, &op), CAIRN_OK);
    cr_assert_eq(host_wait(&b.h, &op), CAIRN_CORRUPT);
    cr_assert_eq(op.op.cause, CAIRN_CAUSE_VERSION);
    bench_fini(&b);
}

static void collect(void *arg, const void *canon, uint32_t len)
{
    uint64_t *sum = arg;
    sum[0]++;
    sum[1] += *(const uint8_t *)canon + len;
}

Test(log, identities_are_remembered)
{
    struct bench b;
    uint8_t canon[CAIRN_IDENT_MAX + 1] = {0};
    bench_init(&b);
    open_ok(&b.h);
    const struct cairn_tier_ops *ops = b.h.tier->ops;
    for (int twice = 0; twice < 2; twice++) {
        for (uint32_t i = 1; i <= 100; i++) {
            canon[0] = (uint8_t)i;
            cr_assert_eq(ops->ident_put(b.h.tier, canon, 10 + i), CAIRN_OK);
        }
    }
    cr_assert_eq(ops->ident_put(b.h.tier, canon, sizeof canon), CAIRN_TOOBIG);
    cr_assert_eq(ops->ident_put(b.h.tier, canon, 0), CAIRN_INVAL);
    reopen(&b.h);
    uint64_t sum[2] = {0, 0};
    b.h.tier->ops->ident_each(b.h.tier, collect, sum);
    cr_assert_eq(sum[0], 64);
    bench_fini(&b);
}
