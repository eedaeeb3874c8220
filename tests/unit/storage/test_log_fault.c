#include "tests/helpers/stall.h"
#include "tests/unit/storage/log_bench.h"

TestSuite(log_fault, .init = path_make, .fini = path_remove, .timeout = 300);

/* --- faults --- */

Test(log_fault, a_failed_write_leaves_a_hole_that_recovery_steps_over)
{
    struct bench b;
    bench_init(&b);
    open_ok(&b.h);
    put_or_die(&b, 1, 50000);
    settle(&b);
    rule(&b, CAIRN_FAULT_EIO, CAIRN_FAULT_WRITES, 1, 2, 0); /* the write and its repetition */
    cr_assert_eq(host_put(&b.h, 2, 50000), CAIRN_IO);
    no_rule(&b);
    put_or_die(&b, 3, 50000);
    cr_assert_eq(host_sync(&b.h), CAIRN_IO, "a store failed since the sync before");
    cr_assert_eq(host_sync(&b.h), CAIRN_OK);
    cr_assert_eq(b.h.tier->ops->stats(b.h.tier)->holes, 1);
    reopen(&b.h);
    cr_assert_eq(host_get(&b.h, 1), CAIRN_OK);
    cr_assert_eq(host_block(&b.h, 2), 0);
    cr_assert_eq(host_get(&b.h, 3), CAIRN_OK);
    bench_fini(&b);
}

Test(log_fault, when_even_the_hole_fails_the_segment_is_left_early)
{
    struct bench b;
    bench_init(&b);
    open_ok(&b.h);
    put_or_die(&b, 1, 50000);
    settle(&b);
    rule(&b, CAIRN_FAULT_EIO, CAIRN_FAULT_WRITES, 1, 4, 0);
    cr_assert_eq(host_put(&b.h, 2, 50000), CAIRN_IO);
    no_rule(&b);
    put_or_die(&b, 3, 50000);
    host_sync(&b.h);
    cr_assert_neq((host_block(&b.h, 3) - 512) / 256, (host_block(&b.h, 1) - 512) / 256);
    reopen(&b.h);
    cr_assert_eq(host_get(&b.h, 1), CAIRN_OK);
    cr_assert_eq(host_block(&b.h, 2), 0);
    cr_assert_eq(host_get(&b.h, 3), CAIRN_OK);
    bench_fini(&b);
}

Test(log_fault, short_ios_are_continued)
{
    struct bench b;
    bench_init(&b);
    open_ok(&b.h);
    rule(&b, CAIRN_FAULT_SHORT, CAIRN_FAULT_READS | CAIRN_FAULT_WRITES, 1, UINT64_MAX, 8192);
    put_or_die(&b, 1, 300000);
    cr_assert_eq(host_get(&b.h, 1), CAIRN_OK);
    no_rule(&b);
    bench_fini(&b);
}

Test(log_fault, a_bad_read_is_tried_again_and_then_a_miss)
{
    struct bench b;
    bench_init(&b);
    open_ok(&b.h);
    put_or_die(&b, 1, 600000);
    rule(&b, CAIRN_FAULT_BITFLIP, CAIRN_FAULT_READS, 1, 1, CAIRN_FAULT_RANDOM);
    cr_assert_eq(host_get(&b.h, 1), CAIRN_OK);
    rule(&b, CAIRN_FAULT_MISDIRECT, CAIRN_FAULT_READS, 1, 1, 8192);
    cr_assert_eq(host_get(&b.h, 1), CAIRN_OK);
    rule(&b, CAIRN_FAULT_EIO, CAIRN_FAULT_READS, 1, 1, 0);
    cr_assert_eq(host_get(&b.h, 1), CAIRN_OK);
    cr_assert_eq(b.h.tier->ops->stats(b.h.tier)->retries, 3);
    rule(&b, CAIRN_FAULT_EIO, CAIRN_FAULT_READS, 1, 2, 0);
    cr_assert_eq(host_get(&b.h, 1), CAIRN_IO);
    rule(&b, CAIRN_FAULT_MISDIRECT, CAIRN_FAULT_READS, 1, 4, 8192);
    cr_assert_eq(host_get(&b.h, 1), CAIRN_CORRUPT);
    no_rule(&b);
    cr_assert_eq(host_get(&b.h, 1), CAIRN_OK);
    bench_fini(&b);
}

static struct {
    uint64_t told, wrong;
} parts;

static void on_part(struct cairn_tier_op *op, uint64_t bytes)
{
    const struct host_op *o = op->owner;
    const uint8_t *value = (const uint8_t *)op->image + CAIRN_BLOCK;
    parts.wrong += bytes <= parts.told || bytes > op->value_len ||
                   value_check(value, o->id, op->version, 0, bytes) != bytes;
    parts.told = bytes;
}

/* Whoever was told of a part may be copying it, so that a second try must leave it alone. */
Test(log_fault, a_part_that_was_told_is_right_and_is_not_read_again)
{
    struct bench b;
    bench_init(&b);
    b.h.o.disk_bytes = 128 * MIB;
    open_ok(&b.h);
    put_or_die(&b, 1, (1u << 20) + 100000);
    for (uint64_t nth = 1; nth <= 2; nth++) {
        struct host_op op;
        host_prepare_load(&b.h, &op, 40, 1);
        memset(op.op.image, 0xa5, (size_t)op.op.blocks * CAIRN_BLOCK);
        op.op.part = on_part;
        parts.told = parts.wrong = 0;
        uint64_t before = b.plan.seen[CAIRN_IO_READ];
        rule(&b, CAIRN_FAULT_BITFLIP, CAIRN_FAULT_READS, nth, 1, 500000);
        cr_assert_eq(host_submit(&b.h, &op), CAIRN_OK);
        cr_assert_eq(host_wait(&b.h, &op), CAIRN_OK);
        no_rule(&b);
        cr_assert_eq(parts.wrong, 0);
        cr_assert_eq(parts.told, 1u << 20);
        /* The first io holds the header and what was told, if it was good. */
        cr_assert_eq(b.plan.seen[CAIRN_IO_READ] - before, nth == 1 ? 4 : 3);
        cr_assert_eq(value_check((uint8_t *)op.op.image + CAIRN_BLOCK, 1, op.op.version, 0,
                                 op.op.value_len), op.op.value_len);
    }
    bench_fini(&b);
}

Test(log_fault, torn_and_misdirected_writes_are_never_read_as_values)
{
    for (uint64_t blocks = 0; blocks < 40; blocks++) {
        struct bench b;
        bench_init(&b);
        open_ok(&b.h);
        put_or_die(&b, 1, 150000);
        settle(&b);
        rule(&b, CAIRN_FAULT_TORN, CAIRN_FAULT_WRITES, 1, 1, blocks);
        cr_assert_eq(host_put(&b.h, 2, 150000), CAIRN_OK, "the disk lies");
        rule(&b, CAIRN_FAULT_MISDIRECT, CAIRN_FAULT_WRITES, 1, 1, (blocks + 1) * CAIRN_BLOCK);
        cr_assert_eq(host_put(&b.h, 3, 70000), CAIRN_OK);
        no_rule(&b);
        put_or_die(&b, 4, 4096);
        cairn_status torn = host_get(&b.h, 2), stray = host_get(&b.h, 3);
        cr_assert(torn == (blocks >= 38 ? CAIRN_OK : CAIRN_CORRUPT), "%d at %d", torn, (int)blocks);
        cr_assert_eq(stray, CAIRN_CORRUPT);
        reopen(&b.h);
        for (uint64_t id = 1; id <= 4; id++)
            host_get(&b.h, id); /* aborts on a wrong byte */
        cr_assert_eq(host_get(&b.h, 1), CAIRN_OK);
        bench_fini(&b);
    }
}

Test(log_fault, an_io_that_never_comes_back_is_a_miss_at_its_deadline)
{
    struct bench b;
    bench_init(&b);
    b.h.o.io_deadline_ns = CAIRN_NS_PER_S;
    open_ok(&b.h);
    put_or_die(&b, 1, 50000);
    settle(&b);
    rule(&b, CAIRN_FAULT_DELAY, CAIRN_FAULT_READS, 1, 1, 3 * CAIRN_NS_PER_S);
    struct host_op op;
    host_prepare_load(&b.h, &op, 3, 1);
    cr_assert_eq(host_submit(&b.h, &op), CAIRN_OK);
    cr_assert_eq(host_wait(&b.h, &op), CAIRN_TIMEOUT);
    cr_assert(op.op.image_lost);
    cr_assert_eq(op.op.cause, CAIRN_CAUSE_DEADLINE);
    cr_assert_eq(b.h.images_back, 0);
    /* A deadline of the op's own, before the io's. */
    rule(&b, CAIRN_FAULT_DELAY, CAIRN_FAULT_READS, 1, 1, 3 * CAIRN_NS_PER_S);
    host_prepare_load(&b.h, &op, 4, 1);
    op.op.deadline_ns = cairn_deadline_ns(20 * CAIRN_NS_PER_MS);
    cr_assert_eq(host_submit(&b.h, &op), CAIRN_OK);
    cr_assert_eq(host_wait(&b.h, &op), CAIRN_TIMEOUT);
    cr_assert_lt(b.h.images_back, 2, "nobody waited for the device");
    no_rule(&b);
    cr_assert_eq(host_get(&b.h, 1), CAIRN_OK);
    for (int i = 0; i < 3000 && b.h.images_back < 2; i++)
        usleep(20000);
    cr_assert_eq(b.h.images_back, 2);
    cr_assert_eq(b.h.tier->ops->stats(b.h.tier)->lost_ios, 2);
    bench_fini(&b);
}

Test(log_fault, a_lost_write_seals_its_segment_and_lands_harmlessly)
{
    struct bench b;
    bench_init(&b);
    b.h.o.io_deadline_ns = CAIRN_NS_PER_S;
    open_ok(&b.h);
    put_or_die(&b, 1, 50000);
    settle(&b);
    rule(&b, CAIRN_FAULT_DELAY, CAIRN_FAULT_WRITES, 1, 1, 3 * CAIRN_NS_PER_S);
    struct host_op op;
    host_prepare_store(&b.h, &op, 5, 2, ++b.h.version, 50000);
    cr_assert_eq(host_submit(&b.h, &op), CAIRN_OK);
    cr_assert_eq(host_wait(&b.h, &op), CAIRN_TIMEOUT);
    cr_assert(op.op.image_lost);
    no_rule(&b);
    put_or_die(&b, 3, 50000);
    host_sync(&b.h);
    for (int i = 0; i < 3000 && b.h.images_back == 0; i++)
        usleep(20000);
    cr_assert_eq(b.h.images_back, 1);
    /* All around the log, over the place of the lost one too. */
    for (uint64_t id = 10; id < 500; id++)
        put_or_die(&b, id, 100000);
    cr_assert_eq(host_get(&b.h, 499), CAIRN_OK);
    b.h.o.io_deadline_ns = 10 * CAIRN_NS_PER_S;
    reopen(&b.h);
    cr_assert_eq(host_block(&b.h, 2), 0);
    cr_assert_eq(host_get(&b.h, 499), CAIRN_OK);
    bench_fini(&b);
}

Test(log_fault, ops_end_at_their_own_deadline)
{
    struct bench b;
    struct host_op op[3];
    bench_init(&b);
    open_ok(&b.h);
    put_or_die(&b, 1, 50000);
    settle(&b);
    /* A record of its own: its image is with the device, so its write becomes a hole. */
    rule(&b, CAIRN_FAULT_DELAY, CAIRN_FAULT_WRITES, 1, 1, 2 * CAIRN_NS_PER_S);
    host_prepare_store(&b.h, &op[0], 3, 2, ++b.h.version, 500000);
    op[0].op.deadline_ns = cairn_deadline_ns(50 * CAIRN_NS_PER_MS);
    cr_assert_eq(host_submit(&b.h, &op[0]), CAIRN_OK);
    cr_assert_eq(host_wait(&b.h, &op[0]), CAIRN_TIMEOUT);
    cr_assert(op[0].op.image_lost);
    for (int i = 0; i < 3000 && b.h.images_back == 0; i++)
        usleep(20000);
    cr_assert_eq(b.h.images_back, 1);
    cr_assert_eq(host_sync(&b.h), CAIRN_IO);
    cr_assert_eq(b.h.tier->ops->stats(b.h.tier)->holes, 1);
    /* Gathered ones: the images were copied. The first write holds the others back. */
    rule(&b, CAIRN_FAULT_DELAY, CAIRN_FAULT_WRITES, 1, UINT64_MAX, 2 * CAIRN_NS_PER_S);
    for (uint32_t i = 0; i < 3; i++) {
        host_prepare_store(&b.h, &op[i], 4 + i, 3 + i, ++b.h.version, 5000);
        op[i].op.deadline_ns = cairn_deadline_ns(50 * CAIRN_NS_PER_MS);
        cr_assert_eq(host_submit(&b.h, &op[i]), CAIRN_OK);
    }
    for (uint32_t i = 0; i < 3; i++)
        cr_assert_eq(host_wait(&b.h, &op[i]), CAIRN_TIMEOUT);
    no_rule(&b);
    usleep(2200000);
    host_sync(&b.h);
    rule(&b, CAIRN_FAULT_DELAY, CAIRN_FAULT_SYNCS, 1, 1, 2 * CAIRN_NS_PER_S);
    for (uint32_t i = 0; i < 2; i++) {
        host_prepare_mark(&b.h, &op[i], i ? CAIRN_TIER_SYNC : CAIRN_TIER_TOMBSTONE, 1,
                          ++b.h.version);
        op[i].op.deadline_ns = cairn_deadline_ns(50 * CAIRN_NS_PER_MS);
        cr_assert_eq(host_submit(&b.h, &op[i]), CAIRN_OK);
    }
    cr_assert_eq(host_wait(&b.h, &op[0]), CAIRN_TIMEOUT);
    cr_assert_eq(host_wait(&b.h, &op[1]), CAIRN_TIMEOUT);
    no_rule(&b);
    put_or_die(&b, 9, 5000);
    reopen(&b.h);
    cr_assert_eq(host_block(&b.h, 2), 0, "its write became a hole");
    cr_assert_eq(host_get(&b.h, 9), CAIRN_OK);
    bench_fini(&b);
}

Test(log_fault, a_lost_hole_or_footer_takes_its_segment_out_of_use)
{
    for (uint64_t nth = 1; nth < 24; nth += 3) {
        struct bench b;
        bench_init(&b);
        b.h.o.io_deadline_ns = 400 * CAIRN_NS_PER_MS;
        b.h.o.errors_max = 1000;
        open_ok(&b.h);
        put_or_die(&b, 1, 50000);
        settle(&b);
        rule(&b, CAIRN_FAULT_EIO, CAIRN_FAULT_WRITES, 1, 2, 0);
        atomic_store(&b.plan.off, true);
        host_sync(&b.h);
        b.plan.rules[1] = (struct cairn_fault_rule){.fault = CAIRN_FAULT_DELAY,
                                                    .kinds = CAIRN_FAULT_WRITES,
                                                    .nth = nth,
                                                    .arg = 1200 * CAIRN_NS_PER_MS};
        b.plan.rule_count = 2;
        atomic_store(&b.plan.off, false);
        for (uint64_t id = 2; id < 20; id++)
            host_put(&b.h, id, 100000);
        no_rule(&b);
        usleep(1300000);
        for (uint64_t id = 20; id < 400; id++)
            put_or_die(&b, id, 100000);
        host_sync(&b.h);
        cr_assert_eq(host_sync(&b.h), CAIRN_OK);
        cr_assert_eq(host_get(&b.h, 399), CAIRN_OK);
        b.h.o.io_deadline_ns = 10 * CAIRN_NS_PER_S;
        reopen(&b.h);
        for (uint64_t id = 360; id < 400; id++)
            cr_assert_eq(host_get(&b.h, id), CAIRN_OK, "key %d, write %d", (int)id, (int)nth);
        bench_fini(&b);
    }
}

static void await_on(struct bench *b)
{
    struct cairn_tier_info info = {.off = true};
    for (int i = 0; i < 60000 && info.off; i++) {
        usleep(1000);
        b->h.tier->ops->info(b->h.tier, &info);
    }
    cr_assert_not(info.off, "it did not come back");
}

/* Syncs fail now and then, so segments are left without footers: reclaim then reads the headers. */
Test(log_fault, segments_without_a_footer_are_reclaimed_too)
{
    struct bench b;
    bench_init(&b);
    b.h.o.probe_ns = CAIRN_NS_PER_MS;
    b.h.wanted_every = 7;
    open_ok(&b.h);
    put_or_die(&b, 7, 20000);
    cr_assert_eq(host_sync(&b.h), CAIRN_OK);
    for (uint64_t id = 8; id < 60; id++) {
        if (id % 13 == 0)
            rule(&b, CAIRN_FAULT_EIO, CAIRN_FAULT_SYNCS, 1 + id / 13 % 3, 1, 0);
        host_put(&b.h, id, 100000);
        await_on(&b);
    }
    no_rule(&b);
    while (host_sync(&b.h) != CAIRN_OK)
        await_on(&b);
    for (uint64_t id = 100; id < 600; id++)
        put_or_die(&b, id, 100000);
    cr_assert_eq(host_get(&b.h, 7), CAIRN_OK, "carried over");
    for (uint64_t id = 8; id < 60; id++)
        cr_assert(id % 7 == 0 || host_block(&b.h, id) == 0, "the host was not told of %d", (int)id);
    reopen(&b.h);
    cr_assert_eq(host_get(&b.h, 7), CAIRN_OK);
    cr_assert_eq(host_get(&b.h, 599), CAIRN_OK);
    bench_fini(&b);
}

/* The copies that reclaim makes count once they are durable, the old ones until then. */
Test(log_fault, what_is_carried_over_survives_a_sync_that_fails)
{
    for (uint64_t nth = 1; nth <= 12; nth++) {
        struct bench b;
        bench_init(&b);
        b.h.o.probe_ns = CAIRN_NS_PER_MS;
        b.h.wanted_every = 1000;
        open_ok(&b.h);
        put_or_die(&b, 1000, 20000);
        for (uint64_t id = 1; id < 245; id++)
            put_or_die(&b, id, 100000);
        cr_assert_eq(host_sync(&b.h), CAIRN_OK);
        cairn_sim_lose_cache(b.sim, nth);
        for (uint64_t id = 300; id < 400; id++) {
            host_put(&b.h, id, 100000);
            await_on(&b);
        }
        cr_assert_eq(b.h.tier->ops->stats(b.h.tier)->turned_off, 1);
        cr_assert_not(b.h.keys[1000].doubted, "sync %d", (int)nth);
        bench_fini(&b);
    }
}

Test(log_fault, a_segment_that_is_all_durable_goes_on_after_a_return)
{
    struct bench b;
    bench_init(&b);
    b.h.o.probe_ns = CAIRN_NS_PER_MS;
    open_ok(&b.h);
    put_or_die(&b, 1, 5000);
    cr_assert_eq(host_sync(&b.h), CAIRN_OK);
    rule(&b, CAIRN_FAULT_EIO, CAIRN_FAULT_READS, 1, UINT64_MAX, 0);
    while (b.h.tier->ops->stats(b.h.tier)->turned_off == 0)
        (void)host_get(&b.h, 1);
    no_rule(&b);
    await_on(&b);
    put_or_die(&b, 2, 5000);
    cr_assert_eq(host_block(&b.h, 2), host_block(&b.h, 1) + b.h.keys[1].blocks);
    bench_fini(&b);
}

Test(log_fault, one_sync_that_fails_turns_off)
{
    struct bench b;
    bench_init(&b);
    open_ok(&b.h);
    put_or_die(&b, 1, 5000);
    settle(&b);
    rule(&b, CAIRN_FAULT_EIO, CAIRN_FAULT_SYNCS, 1, 1, 0);
    cr_assert_neq(host_sync(&b.h), CAIRN_OK);
    no_rule(&b);
    cr_assert_eq(host_sync(&b.h), CAIRN_STATE, "it would vouch for what the last one lost");
    cr_assert(strstr(b.h.off, "a sync failed"), "%s", b.h.off);
    bench_fini(&b);
}

Test(log_fault, turns_off_after_repeated_errors)
{
    struct bench b;
    bench_init(&b);
    b.h.o.errors_max = 3;
    open_ok(&b.h);
    put_or_die(&b, 1, 5000);
    rule(&b, CAIRN_FAULT_EIO, CAIRN_FAULT_READS, 1, UINT64_MAX, 0);
    for (int i = 0; i < 3; i++)
        cr_assert_neq(host_get(&b.h, 1), CAIRN_OK);
    no_rule(&b);
    cr_assert_eq(host_get(&b.h, 1), CAIRN_STATE);
    cr_assert_eq(host_put(&b.h, 2, 5000), CAIRN_STATE);
    cr_assert(strstr(b.h.off, "reads in a row failed"), "%s", b.h.off);
    struct cairn_tier_info info;
    b.h.tier->ops->info(b.h.tier, &info);
    cr_assert(info.off);
    bench_fini(&b);
}

Test(log_fault, a_dead_device_hangs_nobody)
{
    static struct bench b;
    struct host_op ops[24];
    bench_init(&b);
    b.h.o.io_deadline_ns = 100 * CAIRN_NS_PER_MS;
    b.h.o.errors_max = 4;
    open_ok(&b.h);
    put_or_die(&b, 1, 50000);
    settle(&b);
    rule(&b, CAIRN_FAULT_GONE, 0, 1, UINT64_MAX, 0);
    uint64_t begin = cairn_now_ns();
    for (uint32_t i = 0; i < 24; i++) {
        if (i % 3 == 0)
            host_prepare_load(&b.h, &ops[i], 2 + i, 1);
        else if (i % 3 == 1)
            host_prepare_store(&b.h, &ops[i], 2 + i, 10 + i, ++b.h.version, 500000);
        else
            host_prepare_mark(&b.h, &ops[i],
                              i % 2 ? CAIRN_TIER_SYNC : CAIRN_TIER_TOMBSTONE, 1, ++b.h.version);
        cr_assert_eq(host_submit(&b.h, &ops[i]), CAIRN_OK);
    }
    for (uint32_t i = 0; i < 24; i++)
        cr_assert_neq(host_wait(&b.h, &ops[i]), CAIRN_OK);
    cr_assert_not(host_close(&b.h), "the device still holds memory");
    cr_assert_lt(cairn_now_ns() - begin, 12 * CAIRN_NS_PER_S + STALL_NS);
    /* Images are in the arena: it stays mapped, as close said. */
}

/* --- bits flip --- */

static void flips(uint64_t from, uint64_t to, bool all_come_back)
{
    struct rng rng = test_rng("flips");
    for (int round = 0; round < 20; round++) {
        struct bench b;
        bench_init(&b);
        open_ok(&b.h);
        for (uint64_t id = 0; id < 20; id++)
            put_or_die(&b, id, 100000);
        cr_assert_eq(host_sync(&b.h), CAIRN_OK);
        cr_assert(host_close(&b.h));
        cairn_sim_flip(b.sim, from + rng_below(&rng, to - from), (uint32_t)rng_below(&rng, 8));
        host_forget(&b.h);
        open_ok(&b.h);
        uint32_t hits = 0;
        for (uint64_t id = 0; id < 20; id++)
            hits += host_get(&b.h, id) == CAIRN_OK;
        cr_assert(hits == 20 || !all_come_back, "%u of 20", hits);
        cr_assert_geq(hits, 10);
        bench_fini(&b);
        unlink(path);
    }
}

Test(log_fault, flipped_bits_in_one_superblock)
{
    flips(0, 4096, true);
    flips(4096, 8192, true);
}

Test(log_fault, flipped_bits_in_a_head)
{
    flips(CAIRN_DATA_OFFSET, CAIRN_DATA_OFFSET + 4096, true);
}

Test(log_fault, flipped_bits_in_a_footer)
{
    flips(CAIRN_DATA_OFFSET + MIB - 8192, CAIRN_DATA_OFFSET + MIB, true);
}

Test(log_fault, flipped_bits_in_records)
{
    flips(CAIRN_DATA_OFFSET + 4096, CAIRN_DATA_OFFSET + 9 * 106496, false);
    flips(CAIRN_DATA_OFFSET + MIB + 4096, CAIRN_DATA_OFFSET + MIB + 9 * 106496, false);
}

Test(log_fault, both_superblocks_damaged_is_refused_and_left_alone)
{
    struct bench b;
    bench_init(&b);
    open_ok(&b.h);
    put_or_die(&b, 1, 5000);
    cr_assert(host_close(&b.h));
    uint8_t before[8192], after[8192];
    cairn_sim_flip(b.sim, 30, 1);
    cairn_sim_flip(b.sim, 4096 + 30, 1);
    cairn_sim_peek(b.sim, 0, before, sizeof before);
    cr_assert_eq(host_open(&b.h), CAIRN_CORRUPT);
    cr_assert(strstr(b.h.err, "both superblocks are damaged"), "%s", b.h.err);
    cairn_sim_peek(b.sim, 0, after, sizeof after);
    cr_assert_arr_eq(before, after, sizeof before);
    bench_fini(&b);
}

/* --- power cuts --- */

struct promise {
    uint64_t version; /* acknowledged by a sync */
    bool dead;        /* and that was a delete  */
};

static void cut_check(struct bench *b, const struct promise *p, uint32_t keys)
{
    for (uint32_t id = 0; id < keys; id++) {
        const struct host_entry *e = &b->h.keys[id];
        if (e->block)
            cr_assert_eq(host_get(&b->h, id), CAIRN_OK, "key %u was found and is not whole", id);
        cr_assert_geq(e->version, p[id].dead && !e->block ? 0 : p[id].version,
                      "key %u version %u of %u", id, (unsigned)e->version,
                      (unsigned)p[id].version);
        if (!p[id].dead && p[id].version)
            cr_assert_neq(e->block == 0 && !e->tomb, true, "durable key %u is gone", id);
    }
}

/* Few keys in a log that never wraps within a round, so that nothing is reclaimed. */
Test(log_fault, a_power_cut_loses_nothing_acknowledged)
{
    struct rng rng = test_rng("a_power_cut_loses_nothing_acknowledged");
    struct cairn_sim *junk = NULL;
    for (uint32_t cut = 0; cut < 400; cut++) {
        struct bench b;
        struct promise safe[12] = {{0}}, said[12] = {{0}};
        struct host_op ops[8];
        bench_init(&b);
        open_ok(&b.h);
        cairn_sim_die_after(b.sim, 1 + rng_below(&rng, 120));
        for (uint32_t step = 0; step < 30 && !cairn_sim_dead(b.sim); step++) {
            uint32_t n = 1 + (uint32_t)rng_below(&rng, 8);
            for (uint32_t i = 0; i < n; i++) {
                uint64_t id = rng_below(&rng, 12);
                if (rng_one_in(&rng, 6)) {
                    host_prepare_mark(&b.h, &ops[i], CAIRN_TIER_TOMBSTONE, id, ++b.h.version);
                } else {
                    host_prepare_store(&b.h, &ops[i], i, id, ++b.h.version,
                                       1 + (uint32_t)rng_below(&rng, 60000));
                }
                if (host_submit(&b.h, &ops[i]) != CAIRN_OK) {
                    n = i;
                    break;
                }
            }
            for (uint32_t i = 0; i < n; i++) {
                if (host_wait(&b.h, &ops[i]) != CAIRN_OK)
                    continue;
                struct promise now = {ops[i].op.version, ops[i].op.kind == CAIRN_TIER_TOMBSTONE};
                said[ops[i].id] = now;
                if (now.dead && now.version > safe[ops[i].id].version)
                    safe[ops[i].id] = now;
            }
            if (rng_one_in(&rng, 3) && host_sync(&b.h) == CAIRN_OK) {
                for (uint32_t id = 0; id < 12; id++) {
                    if (said[id].version > safe[id].version)
                        safe[id] = said[id];
                }
            }
        }
        junk = cairn_sim_power_cut(b.sim, rng_next(&rng));
        cr_assert(host_close(&b.h));
        cairn_sim_destroy(b.sim);
        b.sim = junk;
        b.plan.next_arg = b.sim;
        host_forget(&b.h);
        open_ok(&b.h);
        cut_check(&b, safe, 12);
        reopen(&b.h);
        cut_check(&b, safe, 12);
        bench_fini(&b);
        unlink(path);
    }
}
