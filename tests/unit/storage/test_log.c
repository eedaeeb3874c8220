#include <criterion/criterion.h>

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "storage/ioq_fault.h"
#include "tests/helpers/log_host.h"
#include "tests/helpers/seed.h"
#include "tests/sim/ioq_sim.h"

#define MIB (1ull << 20)
#define DISK (32 * MIB) /* 32 segments of 1 MiB */

static char path[128];

static void path_make(void)
{
    snprintf(path, sizeof path, "/var/tmp/cairn-test-log-%d", (int)getpid());
    unlink(path);
}

static void path_remove(void)
{
    unlink(path);
}

TestSuite(log, .init = path_make, .fini = path_remove, .timeout = 300);

static const char *const engines[] = {"uring", "pool"};

static bool runs_here(const char *engine)
{
    char why[256];
    const struct cairn_ioq_ops *q = cairn_ioq_find(engine);
    return q && q->probe(why, sizeof why);
}

static void open_ok(struct log_host *h)
{
    cr_assert_eq(host_open(h), CAIRN_OK, "%s", h->err);
}

static void reopen(struct log_host *h)
{
    cr_assert(host_close(h));
    host_forget(h);
    open_ok(h);
}

static void fsck_ok(void)
{
    struct cairn_fsck_report r;
    char err[512] = "";
    cr_assert_eq(cairn_fsck(path, &r, NULL, NULL, NULL, NULL, err, sizeof err), CAIRN_OK, "%s",
                 err);
}

/* A log on a simulated disk with a plan of faults in front of it. */
struct bench {
    struct log_host h;
    struct cairn_sim *sim;
    struct cairn_fault_plan plan;
};

static void bench_init(struct bench *b)
{
    unlink(path);
    host_init(&b->h, path, DISK, "pool");
    b->sim = cairn_sim_create(&(struct cairn_sim_opts){.seed = 7});
    b->plan = (struct cairn_fault_plan){.next = &cairn_ioq_sim, .next_arg = b->sim, .seed = 7};
    b->h.o.ioq = &cairn_ioq_fault;
    b->h.o.ioq_arg = &b->plan;
}

static void bench_fini(struct bench *b)
{
    cr_assert(host_close(&b->h));
    cairn_sim_destroy(b->sim);
    host_fini(&b->h);
}

/* Off, then an op through the log's thread: it looks at no rule until they are changed. */
static void rule(struct bench *b, enum cairn_fault fault, uint32_t kinds, uint64_t nth,
                 uint64_t times, uint64_t arg)
{
    atomic_store(&b->plan.off, true);
    host_sync(&b->h);
    b->plan.rules[0] = (struct cairn_fault_rule){
        .fault = fault, .kinds = kinds, .nth = nth, .times = times, .arg = arg};
    b->plan.rule_count = 1;
    atomic_store(&b->plan.matched[0], 0);
    atomic_store(&b->plan.off, false);
}

/* The log's own writes in the background (the next segment's head) are over. */
static void settle(struct bench *b)
{
    host_sync(&b->h);
    usleep(30000);
}

static void no_rule(struct bench *b)
{
    atomic_store(&b->plan.off, true);
}

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
    uint64_t side = ((uint64_t)b.h.keys[1].block + 1 + cairn_blocks(300000)) * CAIRN_BLOCK;
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
        uint64_t held = 0;
        for (uint32_t i = 0; i < 24 * 32; i++)
            held += h.keys[i].block != 0;
        reopen(&h);
        for (uint32_t i = 0; i < 24 * 32; i++) {
            if (h.keys[i].block)
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

static void put_or_die(struct bench *b, uint64_t id, uint32_t len)
{
    cr_assert_eq(host_put(&b->h, id, len), CAIRN_OK);
}

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
    for (uint64_t id = 1; id < 100; id++) {
        if (before[id].block)
            cr_assert_eq(b.h.keys[id].version, before[id].version);
        if (b.h.keys[id].block)
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
            cr_assert(!dead[i] || b.h.keys[i].block == 0, "key %u came back", i);
            cr_assert(b.h.keys[i].block == 0 || b.h.keys[i].version == version[i],
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
    cr_assert_eq(b.h.keys[1].block, 0, "it should be reclaimed by now");
    b.h.keys[1] = old;
    cairn_status st = host_get(&b.h, 1);
    cr_assert(st == CAIRN_MISS || st == CAIRN_CORRUPT);
    bench_fini(&b);
}

/* --- faults --- */

Test(log, a_failed_write_leaves_a_hole_that_recovery_steps_over)
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
    cr_assert_eq(b.h.keys[2].block, 0);
    cr_assert_eq(host_get(&b.h, 3), CAIRN_OK);
    bench_fini(&b);
}

Test(log, when_even_the_hole_fails_the_segment_is_left_early)
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
    cr_assert_neq((b.h.keys[3].block - 512) / 256, (b.h.keys[1].block - 512) / 256);
    reopen(&b.h);
    cr_assert_eq(host_get(&b.h, 1), CAIRN_OK);
    cr_assert_eq(b.h.keys[2].block, 0);
    cr_assert_eq(host_get(&b.h, 3), CAIRN_OK);
    bench_fini(&b);
}

Test(log, short_ios_are_continued)
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

Test(log, a_bad_read_is_tried_again_and_then_a_miss)
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

Test(log, torn_and_misdirected_writes_are_never_read_as_values)
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

Test(log, an_io_that_never_comes_back_is_a_miss_at_its_deadline)
{
    struct bench b;
    bench_init(&b);
    b.h.o.io_deadline_ns = 100 * CAIRN_NS_PER_MS;
    open_ok(&b.h);
    put_or_die(&b, 1, 50000);
    settle(&b);
    rule(&b, CAIRN_FAULT_DELAY, CAIRN_FAULT_READS, 1, 1, 400 * CAIRN_NS_PER_MS);
    struct host_op op;
    host_prepare_load(&b.h, &op, 3, 1);
    cr_assert_eq(host_submit(&b.h, &op), CAIRN_OK);
    cr_assert_eq(host_wait(&b.h, &op), CAIRN_TIMEOUT);
    cr_assert(op.op.image_lost);
    cr_assert_eq(op.op.cause, CAIRN_CAUSE_DEADLINE);
    cr_assert_eq(b.h.images_back, 0);
    /* A deadline of the op's own, before the io's. */
    rule(&b, CAIRN_FAULT_DELAY, CAIRN_FAULT_READS, 1, 1, 300 * CAIRN_NS_PER_MS);
    host_prepare_load(&b.h, &op, 4, 1);
    op.op.deadline_ns = cairn_deadline_ns(20 * CAIRN_NS_PER_MS);
    uint64_t begin = cairn_now_ns();
    cr_assert_eq(host_submit(&b.h, &op), CAIRN_OK);
    cr_assert_eq(host_wait(&b.h, &op), CAIRN_TIMEOUT);
    cr_assert_lt(cairn_now_ns() - begin, 90 * CAIRN_NS_PER_MS);
    no_rule(&b);
    cr_assert_eq(host_get(&b.h, 1), CAIRN_OK);
    for (int i = 0; i < 100 && b.h.images_back < 2; i++)
        usleep(20000);
    cr_assert_eq(b.h.images_back, 2);
    cr_assert_eq(b.h.tier->ops->stats(b.h.tier)->lost_ios, 2);
    bench_fini(&b);
}

Test(log, a_lost_write_seals_its_segment_and_lands_harmlessly)
{
    struct bench b;
    bench_init(&b);
    b.h.o.io_deadline_ns = 50 * CAIRN_NS_PER_MS;
    open_ok(&b.h);
    put_or_die(&b, 1, 50000);
    settle(&b);
    rule(&b, CAIRN_FAULT_DELAY, CAIRN_FAULT_WRITES, 1, 1, 300 * CAIRN_NS_PER_MS);
    struct host_op op;
    host_prepare_store(&b.h, &op, 5, 2, ++b.h.version, 50000);
    cr_assert_eq(host_submit(&b.h, &op), CAIRN_OK);
    cr_assert_eq(host_wait(&b.h, &op), CAIRN_TIMEOUT);
    cr_assert(op.op.image_lost);
    no_rule(&b);
    put_or_die(&b, 3, 50000);
    host_sync(&b.h);
    for (int i = 0; i < 100 && b.h.images_back == 0; i++)
        usleep(20000);
    cr_assert_eq(b.h.images_back, 1);
    /* All around the log, over the place of the lost one too. */
    for (uint64_t id = 10; id < 500; id++)
        put_or_die(&b, id, 100000);
    cr_assert_eq(host_get(&b.h, 499), CAIRN_OK);
    reopen(&b.h);
    cr_assert_eq(b.h.keys[2].block, 0);
    cr_assert_eq(host_get(&b.h, 499), CAIRN_OK);
    bench_fini(&b);
}

Test(log, ops_end_at_their_own_deadline)
{
    struct bench b;
    struct host_op op[3];
    bench_init(&b);
    open_ok(&b.h);
    put_or_die(&b, 1, 50000);
    settle(&b);
    /* A record of its own: its image is with the device, so its write becomes a hole. */
    rule(&b, CAIRN_FAULT_DELAY, CAIRN_FAULT_WRITES, 1, 1, 200 * CAIRN_NS_PER_MS);
    host_prepare_store(&b.h, &op[0], 3, 2, ++b.h.version, 500000);
    op[0].op.deadline_ns = cairn_deadline_ns(50 * CAIRN_NS_PER_MS);
    cr_assert_eq(host_submit(&b.h, &op[0]), CAIRN_OK);
    cr_assert_eq(host_wait(&b.h, &op[0]), CAIRN_TIMEOUT);
    cr_assert(op[0].op.image_lost);
    for (int i = 0; i < 100 && b.h.images_back == 0; i++)
        usleep(20000);
    cr_assert_eq(b.h.images_back, 1);
    cr_assert_eq(host_sync(&b.h), CAIRN_IO);
    cr_assert_eq(b.h.tier->ops->stats(b.h.tier)->holes, 1);
    /* Gathered ones: the images were copied. The first write holds the others back. */
    rule(&b, CAIRN_FAULT_DELAY, CAIRN_FAULT_WRITES, 1, UINT64_MAX, 200 * CAIRN_NS_PER_MS);
    for (uint32_t i = 0; i < 3; i++) {
        host_prepare_store(&b.h, &op[i], 4 + i, 3 + i, ++b.h.version, 5000);
        op[i].op.deadline_ns = cairn_deadline_ns(50 * CAIRN_NS_PER_MS);
        cr_assert_eq(host_submit(&b.h, &op[i]), CAIRN_OK);
    }
    for (uint32_t i = 0; i < 3; i++)
        cr_assert_eq(host_wait(&b.h, &op[i]), CAIRN_TIMEOUT);
    no_rule(&b);
    usleep(250000);
    host_sync(&b.h);
    rule(&b, CAIRN_FAULT_DELAY, CAIRN_FAULT_SYNCS, 1, 1, 200 * CAIRN_NS_PER_MS);
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
    cr_assert_eq(b.h.keys[2].block, 0, "its write became a hole");
    cr_assert_eq(host_get(&b.h, 9), CAIRN_OK);
    bench_fini(&b);
}

Test(log, a_lost_hole_or_footer_takes_its_segment_out_of_use)
{
    for (uint64_t nth = 1; nth < 24; nth += 3) {
        struct bench b;
        bench_init(&b);
        b.h.o.io_deadline_ns = 40 * CAIRN_NS_PER_MS;
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
                                                    .arg = 120 * CAIRN_NS_PER_MS};
        b.plan.rule_count = 2;
        atomic_store(&b.plan.off, false);
        for (uint64_t id = 2; id < 20; id++)
            host_put(&b.h, id, 100000);
        no_rule(&b);
        usleep(130000);
        for (uint64_t id = 20; id < 400; id++)
            put_or_die(&b, id, 100000);
        host_sync(&b.h);
        cr_assert_eq(host_sync(&b.h), CAIRN_OK);
        cr_assert_eq(host_get(&b.h, 399), CAIRN_OK);
        reopen(&b.h);
        for (uint64_t id = 360; id < 400; id++)
            cr_assert_eq(host_get(&b.h, id), CAIRN_OK, "key %d, write %d", (int)id, (int)nth);
        bench_fini(&b);
    }
}

/* Syncs fail for a while, so segments are left without footers: reclaim then reads the headers. */
Test(log, segments_without_a_footer_are_reclaimed_too)
{
    struct bench b;
    bench_init(&b);
    b.h.o.errors_max = 1000;
    b.h.wanted_every = 7;
    open_ok(&b.h);
    put_or_die(&b, 7, 20000);
    rule(&b, CAIRN_FAULT_EIO, CAIRN_FAULT_SYNCS, 2, 40, 0);
    for (uint64_t id = 8; id < 60; id++) {
        host_put(&b.h, id, 100000);
        host_sync(&b.h);
    }
    no_rule(&b);
    for (uint64_t id = 100; id < 600; id++)
        put_or_die(&b, id, 100000);
    cr_assert_eq(host_get(&b.h, 7), CAIRN_OK, "carried over");
    for (uint64_t id = 8; id < 60; id++)
        cr_assert(id % 7 == 0 || b.h.keys[id].block == 0, "the host was not told of %d", (int)id);
    reopen(&b.h);
    cr_assert_eq(host_get(&b.h, 7), CAIRN_OK);
    cr_assert_eq(host_get(&b.h, 599), CAIRN_OK);
    bench_fini(&b);
}

Test(log, turns_off_after_repeated_errors)
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

Test(log, a_dead_device_hangs_nobody)
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
    cr_assert_lt(cairn_now_ns() - begin, 12 * CAIRN_NS_PER_S);
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

Test(log, flipped_bits_in_one_superblock)
{
    flips(0, 4096, true);
    flips(4096, 8192, true);
}

Test(log, flipped_bits_in_a_head)
{
    flips(CAIRN_DATA_OFFSET, CAIRN_DATA_OFFSET + 4096, true);
}

Test(log, flipped_bits_in_a_footer)
{
    flips(CAIRN_DATA_OFFSET + MIB - 8192, CAIRN_DATA_OFFSET + MIB, true);
}

Test(log, flipped_bits_in_records)
{
    flips(CAIRN_DATA_OFFSET + 4096, CAIRN_DATA_OFFSET + 9 * 106496, false);
    flips(CAIRN_DATA_OFFSET + MIB + 4096, CAIRN_DATA_OFFSET + MIB + 9 * 106496, false);
}

Test(log, both_superblocks_damaged_is_refused_and_left_alone)
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
Test(log, a_power_cut_loses_nothing_acknowledged)
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

/* --- the file --- */

Test(log, refuses_what_it_does_not_understand)
{
    struct log_host h;
    char bytes[65536];
    host_init(&h, path, DISK, "pool");
    open_ok(&h);
    cr_assert(host_close(&h));
    struct stat st;
    cr_assert_eq(stat(path, &st), 0);
    cr_assert_eq(st.st_mode & 0777, 0600);
    cr_assert_eq(st.st_size, (off_t)(CAIRN_DATA_OFFSET + DISK));

    h.o.disk_bytes = 2 * DISK;
    cr_assert_eq(host_open(&h), CAIRN_INVAL);
    cr_assert(strstr(h.err, "holds a log of") && strstr(h.err, path), "%s", h.err);
    h.o.disk_bytes = MIB;
    cr_assert_eq(host_open(&h), CAIRN_INVAL);
    cr_assert(strstr(h.err, "32 MiB"), "%s", h.err);
    h.o.disk_bytes = DISK;

    cr_assert_eq(truncate(path, (off_t)DISK), 0);
    cr_assert_eq(host_open(&h), CAIRN_INVAL);
    cr_assert(strstr(h.err, "truncated"), "%s", h.err);

    int fd = open(path, O_RDWR | O_TRUNC);
    memset(bytes, 'x', sizeof bytes);
    cr_assert_eq(write(fd, bytes, sizeof bytes), (ssize_t)sizeof bytes);
    cr_assert_eq(host_open(&h), CAIRN_INVAL);
    cr_assert(strstr(h.err, "not a cairn log"), "%s", h.err);
    cr_assert_eq(lseek(fd, 0, SEEK_END), (off_t)sizeof bytes);
    cr_assert_eq(pread(fd, bytes, 1, 5000), 1);
    cr_assert_eq(bytes[0], 'x');
    close(fd);

    h.o.path = "/var/tmp";
    cr_assert_eq(host_open(&h), CAIRN_INVAL);
    cr_assert(strstr(h.err, "not a regular file"), "%s", h.err);
    h.o.path = "/nowhere/at/all";
    cr_assert_eq(host_open(&h), CAIRN_NOTFOUND);
    host_fini(&h);
}

static void super_edit(struct bench *b, void (*edit)(struct cairn_super_disk *s))
{
    for (uint64_t off = 0; off < 8192; off += 4096) {
        struct cairn_super_disk s;
        cairn_sim_peek(b->sim, off, &s, sizeof s);
        edit(&s);
        s.check = cairn_hash64(&s, sizeof s - 8);
        cairn_sim_poke(b->sim, off, &s, sizeof s);
    }
}

static void other_format(struct cairn_super_disk *s)
{
    s->format = 9;
}

static void other_page(struct cairn_super_disk *s)
{
    s->format = CAIRN_FORMAT_VERSION;
    s->page_size = 65536;
}

Test(log, refuses_other_versions_and_other_pages)
{
    struct bench b;
    bench_init(&b);
    open_ok(&b.h);
    cr_assert(host_close(&b.h));
    super_edit(&b, other_format);
    cr_assert_eq(host_open(&b.h), CAIRN_VERSION);
    cr_assert(strstr(b.h.err, "another format version"), "%s", b.h.err);
    super_edit(&b, other_page);
    cr_assert_eq(host_open(&b.h), CAIRN_VERSION);
    cr_assert(strstr(b.h.err, "pages of 65536"), "%s", b.h.err);
    bench_fini(&b);
}

Test(log, a_second_opening_is_refused_in_a_sentence)
{
    struct log_host a, b;
    host_init(&a, path, DISK, "pool");
    host_init(&b, path, DISK, "pool");
    b.o.lock_wait_ns = 50 * CAIRN_NS_PER_MS;
    open_ok(&a);
    cr_assert_eq(host_open(&b), CAIRN_LOCKED);
    cr_assert(strstr(b.err, "another process (pid"), "%s", b.err);
    pid_t child = fork();
    if (child == 0)
        _exit(host_open(&b) == CAIRN_LOCKED ? 0 : 1);
    int status;
    waitpid(child, &status, 0);
    cr_assert_eq(status, 0);
    cr_assert(host_close(&a));
    open_ok(&b);
    cr_assert(host_close(&b));
    host_fini(&a);
    host_fini(&b);
}

/* A worker that an engine has forked lives on when the engine is killed. */
Test(log, a_child_of_a_killed_process_does_not_keep_the_lock)
{
    for (int e = 0; e < 2; e++) {
        if (!runs_here(engines[e]))
            continue;
        int ready[2], grandchild;
        cr_assert_eq(pipe(ready), 0);
        pid_t owner = fork();
        if (owner == 0) {
            struct log_host h;
            host_init(&h, path, DISK, engines[e]);
            if (host_open(&h) != CAIRN_OK || host_put(&h, 1, 5000) != CAIRN_OK ||
                host_sync(&h) != CAIRN_OK)
                _exit(1);
            pid_t worker = fork();
            if (worker == 0) {
                pause();
                _exit(0);
            }
            if (write(ready[1], &worker, sizeof worker) < 0)
                _exit(1);
            raise(SIGKILL);
        }
        cr_assert_eq(read(ready[0], &grandchild, sizeof grandchild), (ssize_t)sizeof grandchild);
        waitpid(owner, NULL, 0);
        struct log_host h;
        host_init(&h, path, DISK, engines[e]);
        cairn_status st = host_open(&h);
        kill(grandchild, SIGKILL);
        cr_assert_eq(st, CAIRN_OK, "%s: %s", engines[e], h.err);
        cr_assert_eq(host_get(&h, 1), CAIRN_OK);
        cr_assert(host_close(&h));
        host_fini(&h);
        close(ready[0]);
        close(ready[1]);
        unlink(path);
    }
}

Test(log, a_file_truncated_or_replaced_under_it_is_noticed)
{
    for (int replaced = 0; replaced < 2; replaced++) {
        struct log_host h;
        host_init(&h, path, DISK, "pool");
        h.o.errors_max = 1000;
        open_ok(&h);
        cr_assert_eq(host_put(&h, 1, 50000), CAIRN_OK);
        if (replaced) {
            char aside[160];
            snprintf(aside, sizeof aside, "%s.aside", path);
            cr_assert_eq(rename(path, aside), 0);
            close(open(path, O_CREAT | O_RDWR, 0600));
            unlink(aside);
            cr_assert_eq(host_get(&h, 1), CAIRN_OK, "the bytes are still there");
        } else {
            cr_assert_eq(truncate(path, 4096), 0);
            cr_assert_neq(host_get(&h, 1), CAIRN_OK);
        }
        cr_assert_eq(host_sync(&h), CAIRN_IO);
        cr_assert(strstr(h.off, replaced ? "replaced" : "truncated"), "%s", h.off);
        cr_assert_eq(host_sync(&h), CAIRN_STATE);
        cr_assert(host_close(&h));
        host_fini(&h);
        unlink(path);
    }
}

/* --- fsck --- */

static void count_line(void *arg, const char *json)
{
    ++*(uint32_t *)arg;
    cr_assert(json[0] == '{' && json[strlen(json) - 1] == '}' && strstr(json, "\"what\""));
}

static void file_flip(uint64_t off)
{
    uint8_t byte;
    int fd = open(path, O_RDWR);
    cr_assert_eq(pread(fd, &byte, 1, (off_t)off), 1);
    byte ^= 8;
    cr_assert_eq(pwrite(fd, &byte, 1, (off_t)off), 1);
    close(fd);
}

static cairn_status fsck_now(struct cairn_fsck_report *r, char *err, size_t cap)
{
    uint32_t lines = 0;
    cairn_status st = cairn_fsck(path, r, count_line, &lines, NULL, NULL, err, cap);
    cr_assert(lines > 0 || st == CAIRN_NOTFOUND || st == CAIRN_INVAL);
    return st;
}

Test(log, fsck_finds_each_kind_of_damage_and_changes_nothing)
{
    struct log_host h;
    struct cairn_fsck_report r;
    char err[512];
    host_init(&h, path, DISK, "pool");
    h.side_len = 100;
    open_ok(&h);
    for (uint64_t id = 0; id < 20; id++)
        cr_assert_eq(host_put(&h, id, 100000), CAIRN_OK);
    cr_assert_eq(host_delete(&h, 3), CAIRN_OK);
    cr_assert_eq(h.tier->ops->ident_put(h.tier, "who", 3), CAIRN_OK);
    cr_assert_eq(host_sync(&h), CAIRN_OK);
    usleep(50000);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_OK, "%s", err);
    cr_assert_eq(r.records, 20);
    cr_assert_eq(r.tombstones, 1);
    cr_assert_eq(r.payload_bytes, 2000000);
    cr_assert_geq(r.sealed, 2);
    uint64_t record = (uint64_t)h.keys[0].block * CAIRN_BLOCK;
    cr_assert(host_close(&h));

    file_flip(record + 5000);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_CORRUPT);
    cr_assert_eq(r.bad_payloads, 1);
    file_flip(record + 5000);
    file_flip(record + 200);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_CORRUPT);
    cr_assert_eq(r.bad_headers, 1);
    file_flip(record + 200);
    file_flip(CAIRN_DATA_OFFSET + MIB - 4096 + 60);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_CORRUPT);
    cr_assert_eq(r.bad_footers, 1);
    file_flip(CAIRN_DATA_OFFSET + MIB - 4096 + 60);
    file_flip(CAIRN_DATA_OFFSET + 100);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_CORRUPT);
    cr_assert_eq(r.bad_headers, 1);
    file_flip(CAIRN_DATA_OFFSET + 100);
    file_flip(50);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_CORRUPT);
    cr_assert_eq(r.bad_supers, 1);
    file_flip(4096 + 50);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_CORRUPT);
    cr_assert(strstr(err, "both superblocks"), "%s", err);
    file_flip(50);
    file_flip(4096 + 50);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_OK, "%s", err);

    cr_assert_eq(truncate(path, (off_t)DISK), 0);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_CORRUPT);
    cr_assert(strstr(err, "truncated"), "%s", err);
    cr_assert_eq(truncate(path, 100), 0);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_INVAL);
    unlink(path);
    cr_assert_eq(fsck_now(&r, err, sizeof err), CAIRN_NOTFOUND);
    host_fini(&h);
}

Test(log, is_written_once_end_to_end_in_the_background)
{
    struct log_host h;
    host_init(&h, path, DISK, "pool");
    h.o.prewrite = true;
    open_ok(&h);
    cr_assert_eq(host_put(&h, 1, 50000), CAIRN_OK);
    const struct cairn_tier_stats *s = h.tier->ops->stats(h.tier);
    uint64_t last = 0;
    for (int still = 0; still < 20; still++) {
        usleep(10000);
        if (s->prewritten_bytes != last)
            still = 0;
        last = s->prewritten_bytes;
    }
    cr_assert_geq(s->prewritten_bytes, 28 * MIB);
    cr_assert_eq(host_get(&h, 1), CAIRN_OK);
    reopen(&h);
    usleep(100000);
    cr_assert_eq(h.tier->ops->stats(h.tier)->prewritten_bytes, 0, "once");
    cr_assert_eq(host_get(&h, 1), CAIRN_OK);
    cr_assert(host_close(&h));
    fsck_ok();
    host_fini(&h);
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
