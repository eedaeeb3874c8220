/* What the simulated disk promises, for every test that stands on it. */
#include <criterion/criterion.h>

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "storage/ioq_fault.h"
#include "tests/helpers/value.h"
#include "tests/sim/ioq_sim.h"

#define BLOCK 4096u
#define MS CAIRN_NS_PER_MS

static uint8_t *blocks(uint32_t n)
{
    uint8_t *p = aligned_alloc(BLOCK, (size_t)n * BLOCK);
    cr_assert_not_null(p);
    memset(p, 0, (size_t)n * BLOCK);
    return p;
}

static struct cairn_sim *device(uint64_t seed)
{
    return cairn_sim_create(&(struct cairn_sim_opts){.seed = seed});
}

static struct cairn_ioq *queue_on(struct cairn_sim *s, uint32_t depth)
{
    struct cairn_ioq_params p = {.fd = -1, .depth = depth, .arg = s};
    struct cairn_ioq *q = NULL;
    cr_assert_eq(cairn_ioq_sim.open(&p, &q), CAIRN_OK);
    return q;
}

static struct cairn_io io_of(enum cairn_io_kind kind, void *buf, uint32_t len, uint64_t off)
{
    return (struct cairn_io){.kind = kind, .buf = buf, .len = len, .off = off, .res = INT32_MIN};
}

static void collect(struct cairn_ioq *q, struct cairn_io **done, uint32_t n)
{
    for (uint32_t got = 0; got < n;) {
        uint32_t more = q->ops->poll(q, done + got, n - got);
        got += more;
        if (more == 0)
            q->ops->wait(q, cairn_deadline_ns(CAIRN_NS_PER_S));
    }
}

static int32_t run_one(struct cairn_ioq *q, enum cairn_io_kind kind, void *buf, uint32_t len,
                       uint64_t off)
{
    struct cairn_io io = io_of(kind, buf, len, off), *done;
    cr_assert(q->ops->submit(q, &io));
    collect(q, &done, 1);
    cr_assert_eq(done, &io);
    return io.res;
}

/* Writes generation gen to every block of [first, first + count). */
static void write_run(struct cairn_ioq *q, uint64_t first, uint32_t count, uint64_t gen)
{
    uint8_t *b = blocks(count);
    for (uint32_t i = 0; i < count; i++)
        value_fill(b + (size_t)i * BLOCK, first + i, gen, 0, BLOCK);
    cr_assert_eq(run_one(q, CAIRN_IO_WRITE, b, count * BLOCK, first * BLOCK),
                 (int32_t)(count * BLOCK));
    free(b);
}

static void sync_now(struct cairn_ioq *q)
{
    cr_assert_eq(run_one(q, CAIRN_IO_SYNC, NULL, 0, 0), 0);
}

/* Generation that block n holds: 0 = zeros; fails on anything that was never written there. */
static uint64_t generation_of(struct cairn_sim *s, uint64_t n)
{
    static const uint8_t zeros[BLOCK];
    _Alignas(BLOCK) uint8_t b[BLOCK];
    cairn_sim_peek(s, n * BLOCK, b, BLOCK);
    if (memcmp(b, zeros, BLOCK) == 0)
        return 0;
    uint64_t gen = value_generation(b, BLOCK, n);
    cr_assert_gt(gen, 0, "block %lu holds bytes never written to it", (unsigned long)n);
    return gen;
}

Test(ioq_sim, reads_what_was_written, .timeout = 60)
{
    struct cairn_sim *s = device(1);
    struct cairn_ioq *q = queue_on(s, 4);
    uint8_t *b = blocks(8);
    cr_assert_eq(run_one(q, CAIRN_IO_READ, b, 8 * BLOCK, 1ull << 40), 8 * (int)BLOCK);
    cr_assert_eq(b[0] | b[8 * BLOCK - 1], 0);
    write_run(q, 1000, 4, 1);
    write_run(q, 1002, 4, 2);
    cr_assert_eq(run_one(q, CAIRN_IO_READ, b, 8 * BLOCK, 999 * BLOCK), 8 * (int)BLOCK);
    static const uint64_t want[] = {0, 1, 1, 2, 2, 2, 2, 0};
    for (uint32_t i = 0; i < 8; i++) {
        cr_assert_eq(generation_of(s, 999 + i), want[i]);
        if (want[i])
            cr_assert_eq(value_check(b + (size_t)i * BLOCK, 999 + i, want[i], 0, BLOCK), BLOCK);
    }
    cr_assert_eq(run_one(q, CAIRN_IO_READ, b, BLOCK, 5), -EINVAL);
    cr_assert_eq(run_one(q, CAIRN_IO_WRITE, b, 100, 0), -EINVAL);
    cr_assert_eq(run_one(q, CAIRN_IO_WRITE, b + 8, BLOCK, 0), -EINVAL);
    cr_assert(q->ops->close(q));
    cairn_sim_destroy(s);
    free(b);
}

Test(ioq_sim, has_an_end, .timeout = 60)
{
    struct cairn_sim *s = cairn_sim_create(&(struct cairn_sim_opts){.seed = 1, .size = 4 * BLOCK});
    struct cairn_ioq *q = queue_on(s, 2);
    uint8_t *b = blocks(4);
    cr_assert_eq(run_one(q, CAIRN_IO_READ, b, 4 * BLOCK, 2 * BLOCK), 2 * (int)BLOCK);
    cr_assert_eq(run_one(q, CAIRN_IO_READ, b, BLOCK, 4 * BLOCK), 0);
    cr_assert_eq(run_one(q, CAIRN_IO_WRITE, b, 2 * BLOCK, 3 * BLOCK), -ENOSPC);
    cr_assert_eq(run_one(q, CAIRN_IO_WRITE, b, BLOCK, 3 * BLOCK), (int)BLOCK);
    cr_assert(q->ops->close(q));
    cairn_sim_destroy(s);
    free(b);
}

Test(ioq_sim, full_queue_and_wake, .timeout = 60)
{
    struct cairn_sim *s = device(1);
    struct cairn_ioq *q = queue_on(s, 2);
    uint8_t *b = blocks(1);
    struct cairn_io io[3], *done[3];
    for (int i = 0; i < 3; i++) {
        io[i] = io_of(CAIRN_IO_READ, b, BLOCK, 0);
        cr_assert_eq(q->ops->submit(q, &io[i]), i < 2);
    }
    collect(q, done, 2);
    q->ops->wake(q);
    cr_assert_eq(q->ops->poll(q, done, 2), 0);
    q->ops->wait(q, UINT64_MAX);
    uint64_t begin = cairn_now_ns();
    q->ops->wait(q, begin + 20 * MS);
    cr_assert_geq(cairn_now_ns(), begin + 20 * MS);
    cr_assert(q->ops->close(q));
    cr_assert(cairn_ioq_sim.close(NULL));
    cairn_sim_destroy(s);
    cairn_sim_destroy(NULL);
    free(b);
}

/* Completions do come out of order, and a seed fixes the order. */
Test(ioq_sim, order_follows_the_seed, .timeout = 60)
{
    enum { N = 32 };
    uint8_t *b = blocks(1);
    uint32_t order[3][N];
    for (int run = 0; run < 3; run++) {
        struct cairn_sim *s = device(run == 2 ? 8 : 7);
        struct cairn_ioq *q = queue_on(s, N);
        struct cairn_io io[N], *done[N];
        for (uint32_t i = 0; i < N; i++) {
            io[i] = io_of(CAIRN_IO_READ, b, BLOCK, i * BLOCK);
            cr_assert(q->ops->submit(q, &io[i]));
        }
        collect(q, done, N);
        for (uint32_t i = 0; i < N; i++)
            order[run][i] = (uint32_t)(done[i] - io);
        cr_assert(q->ops->close(q));
        cairn_sim_destroy(s);
    }
    uint32_t in_order[N];
    for (uint32_t i = 0; i < N; i++)
        in_order[i] = i;
    cr_assert_arr_eq(order[0], order[1], sizeof(order[0]));
    cr_assert_arr_neq(order[0], order[2], sizeof(order[0]));
    cr_assert_arr_neq(order[0], in_order, sizeof(order[0]));
    free(b);
}

Test(ioq_sim, delays_are_real, .timeout = 60)
{
    struct cairn_sim *s = cairn_sim_create(&(struct cairn_sim_opts){
        .seed = 1, .delay_min_ns = 20 * MS, .delay_max_ns = 30 * MS});
    struct cairn_ioq *q = queue_on(s, 2);
    uint8_t *b = blocks(1);
    uint64_t begin = cairn_now_ns();
    cr_assert_eq(run_one(q, CAIRN_IO_READ, b, BLOCK, 0), (int)BLOCK);
    cr_assert_geq(cairn_now_ns() - begin, 20 * MS);
    cr_assert(q->ops->close(q));
    cairn_sim_destroy(s);
    free(b);
}

/* Synced always survives; of what came later each block is any of its versions. */
Test(ioq_sim, power_cut_keeps_what_was_synced, .timeout = 60)
{
    enum { N = 16, SEEDS = 400 };
    struct cairn_sim *s = device(3);
    struct cairn_ioq *q = queue_on(s, 4);
    write_run(q, 0, N, 1);
    sync_now(q);
    write_run(q, 0, N / 2, 2);
    write_run(q, 0, N / 4, 3);
    uint32_t seen[N][4] = {{0}};
    uint32_t all = 0, none = 0, torn = 0;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        struct cairn_sim *after = cairn_sim_power_cut(s, seed);
        uint32_t lost = 0;
        for (uint64_t i = 0; i < N; i++) {
            uint64_t gen = generation_of(after, i), newest = i < N / 4 ? 3 : i < N / 2 ? 2 : 1;
            cr_assert(gen >= 1 && gen <= newest, "seed %lu block %lu: generation %lu",
                      (unsigned long)seed, (unsigned long)i, (unsigned long)gen);
            seen[i][gen]++;
            lost += gen != newest;
        }
        all += lost == 0;
        none += lost == N / 2;
        torn += lost > 0 && lost < N / 2;
        cairn_sim_destroy(after);
    }
    cr_assert(all > 0 && none > 0 && torn > 0, "%u %u %u", all, none, torn);
    for (uint32_t i = 0; i < N; i++)
        for (uint32_t gen = 1; gen <= (i < N / 4 ? 3 : i < N / 2 ? 2 : 1); gen++)
            cr_assert_gt(seen[i][gen], 0, "block %u was never cut at generation %u", i, gen);
    cr_assert(q->ops->close(q));
    cairn_sim_destroy(s);
}

/* Without a sync nothing is safe, whatever time has passed. */
Test(ioq_sim, power_cut_can_lose_all_that_was_not_synced, .timeout = 60)
{
    struct cairn_sim *s = device(5);
    struct cairn_ioq *q = queue_on(s, 4);
    for (uint64_t i = 0; i < 8; i++)
        write_run(q, i, 1, 1);
    bool lost[8] = {false};
    for (uint64_t seed = 0; seed < 200; seed++) {
        struct cairn_sim *after = cairn_sim_power_cut(s, seed);
        for (uint64_t i = 0; i < 8; i++)
            lost[i] |= generation_of(after, i) == 0;
        cairn_sim_destroy(after);
    }
    for (uint32_t i = 0; i < 8; i++)
        cr_assert(lost[i], "block %u", i);
    cr_assert(q->ops->close(q));
    cairn_sim_destroy(s);
}

/* A sync covers what was returned before it was submitted, no more. */
Test(ioq_sim, sync_covers_only_what_came_back_before_it, .timeout = 60)
{
    uint8_t *b = blocks(1);
    value_fill(b, 9, 1, 0, BLOCK);
    bool lost = false;
    for (uint64_t seed = 0; seed < 100; seed++) {
        struct cairn_sim *s = device(seed);
        struct cairn_ioq *q = queue_on(s, 4);
        struct cairn_io write = io_of(CAIRN_IO_WRITE, b, BLOCK, 9 * BLOCK);
        struct cairn_io sync = io_of(CAIRN_IO_SYNC, NULL, 0, 0), *done[2];
        write_run(q, 8, 1, 1);
        cr_assert(q->ops->submit(q, &write));
        cr_assert(q->ops->submit(q, &sync));
        collect(q, done, 2);
        struct cairn_sim *after = cairn_sim_power_cut(s, seed);
        cr_assert_eq(generation_of(after, 8), 1);
        lost |= generation_of(after, 9) == 0;
        cr_assert(q->ops->close(q));
        cairn_sim_destroy(s);
        cairn_sim_destroy(after);
    }
    cr_assert(lost);
    free(b);
}

/* A write in flight may have reached the disk in part; its io fails. */
Test(ioq_sim, power_cut_tears_writes_in_flight, .timeout = 60)
{
    enum { N = 8 };
    uint8_t *b = blocks(N);
    bool seen[N + 1] = {false};
    for (uint32_t i = 0; i < N; i++)
        value_fill(b + (size_t)i * BLOCK, i, 2, 0, BLOCK);
    struct cairn_sim *s = device(1);
    struct cairn_ioq *q = queue_on(s, 4);
    write_run(q, 0, N, 1);
    sync_now(q);
    struct cairn_io write = io_of(CAIRN_IO_WRITE, b, N * BLOCK, 0), *done;
    cr_assert(q->ops->submit(q, &write));
    for (uint64_t seed = 0; seed < 2000; seed++) {
        struct cairn_sim *after = cairn_sim_power_cut(s, seed);
        uint32_t prefix = 0;
        while (prefix < N && generation_of(after, prefix) == 2)
            prefix++;
        uint32_t rest = prefix;
        while (rest < N && generation_of(after, rest) == 1)
            rest++;
        if (rest == N)
            seen[prefix] = true;
        cairn_sim_destroy(after);
    }
    for (uint32_t i = 0; i <= N; i++)
        cr_assert(seen[i], "never torn after %u blocks", i);
    collect(q, &done, 1);
    cr_assert_eq(write.res, -EIO);
    cr_assert(q->ops->close(q));
    cairn_sim_destroy(s);
    free(b);
}

Test(ioq_sim, nothing_works_after_the_cut, .timeout = 60)
{
    struct cairn_sim *s = device(1);
    struct cairn_ioq *q = queue_on(s, 4);
    uint8_t *b = blocks(1);
    write_run(q, 0, 1, 1);
    sync_now(q);
    struct cairn_sim *after = cairn_sim_power_cut(s, 1);
    cr_assert(cairn_sim_dead(s));
    cr_assert_not(cairn_sim_dead(after));
    cr_assert_eq(run_one(q, CAIRN_IO_READ, b, BLOCK, 0), -EIO);
    cr_assert_eq(run_one(q, CAIRN_IO_WRITE, b, BLOCK, 0), -EIO);
    cr_assert_eq(run_one(q, CAIRN_IO_SYNC, NULL, 0, 0), -EIO);
    struct cairn_ioq *q2 = queue_on(after, 4);
    write_run(q2, 0, 1, 5);
    cr_assert_eq(generation_of(after, 0), 5);
    cr_assert_eq(generation_of(s, 0), 1, "the old device does not see it");
    cairn_sim_destroy(s);
    cr_assert_eq(run_one(q, CAIRN_IO_READ, b, BLOCK, 0), -EIO, "its queue keeps it");
    cr_assert(q->ops->close(q));
    cr_assert(q2->ops->close(q2));
    cairn_sim_destroy(after);
    free(b);
}

/* The power goes at every io of a run in turn: a sync that came back before always holds. */
Test(ioq_sim, power_cut_at_every_io, .timeout = 60)
{
    enum { STEPS = 20 };
    uint8_t *b = blocks(1);
    for (uint64_t cut = 1; cut <= 2 * STEPS; cut++) {
        struct cairn_sim *s = device(cut);
        struct cairn_ioq *q = queue_on(s, 2);
        uint64_t durable = 0, written = 0;
        cairn_sim_die_after(s, cut);
        for (uint64_t gen = 1; gen <= STEPS; gen++) {
            value_fill(b, 4, gen, 0, BLOCK);
            written = gen;
            if (run_one(q, CAIRN_IO_WRITE, b, BLOCK, 4 * BLOCK) != (int32_t)BLOCK ||
                run_one(q, CAIRN_IO_SYNC, NULL, 0, 0) != 0)
                break;
            durable = gen;
        }
        cr_assert(cairn_sim_dead(s));
        cr_assert_eq(durable, (cut - 1) / 2);
        for (uint64_t seed = 0; seed < 20; seed++) {
            struct cairn_sim *after = cairn_sim_power_cut(s, seed);
            uint64_t gen = generation_of(after, 4);
            cr_assert(gen >= durable && gen <= written);
            cairn_sim_destroy(after);
        }
        cr_assert(q->ops->close(q));
        cairn_sim_destroy(s);
    }
    free(b);
}

Test(ioq_sim, counts_and_catches_changed_buffers, .timeout = 60)
{
    struct cairn_sim *s = device(1);
    struct cairn_ioq *q = queue_on(s, 4);
    struct cairn_sim_stats st;
    uint8_t *b = blocks(2);
    write_run(q, 0, 2, 1);
    cr_assert_eq(run_one(q, CAIRN_IO_READ, b, BLOCK, 0), (int)BLOCK);
    cairn_sim_stats(s, &st);
    cr_assert_eq(st.volatile_blocks, 2);
    sync_now(q);
    cairn_sim_stats(s, &st);
    cr_assert_eq(st.reads, 1);
    cr_assert_eq(st.writes, 1);
    cr_assert_eq(st.write_bytes, 2 * BLOCK);
    cr_assert_eq(st.syncs, 1);
    cr_assert_eq(st.accepted, 3);
    cr_assert_eq(st.volatile_blocks, 0);
    cr_assert_eq(st.changed_in_flight, 0);
    struct cairn_io io = io_of(CAIRN_IO_WRITE, b, BLOCK, 0), *done;
    cr_assert(q->ops->submit(q, &io));
    b[17] ^= 1;
    collect(q, &done, 1);
    cairn_sim_stats(s, &st);
    cr_assert_eq(st.changed_in_flight, 1);
    cr_assert(q->ops->close(q));
    cairn_sim_destroy(s);
    free(b);
}

Test(ioq_sim, damage_and_export, .timeout = 60)
{
    struct cairn_sim *s = device(1);
    struct cairn_ioq *q = queue_on(s, 4);
    uint8_t *b = blocks(3);
    write_run(q, 1, 1, 1);
    cairn_sim_flip(s, BLOCK + 10, 8 * 5 + 2);
    cr_assert_eq(run_one(q, CAIRN_IO_READ, b, BLOCK, BLOCK), (int)BLOCK);
    cr_assert_eq(value_check(b, 1, 1, 0, BLOCK), 15);
    value_fill(b, 2, 9, 0, BLOCK);
    cairn_sim_poke(s, 2 * BLOCK, b, BLOCK);
    struct cairn_sim *after = cairn_sim_power_cut(s, 3);
    cr_assert_eq(generation_of(after, 2), 9);
    FILE *f = tmpfile();
    cr_assert_not_null(f);
    cr_assert(cairn_sim_export(after, fileno(f)));
    cr_assert_eq(fread(b, 1, 3 * BLOCK, f), 3 * BLOCK);
    cr_assert_eq(value_check(b + 2 * BLOCK, 2, 9, 0, BLOCK), BLOCK);
    fclose(f);
    cr_assert(q->ops->close(q));
    cairn_sim_destroy(s);
    cairn_sim_destroy(after);
    free(b);
}

struct load {
    struct cairn_ioq *q;
    _Atomic uint64_t synced;
};

/* As a tier's thread does: until the device dies. */
static void *writer(void *arg)
{
    struct load *l = arg;
    uint8_t *b = blocks(4);
    for (uint64_t gen = 1;; gen++) {
        for (uint32_t i = 0; i < 4; i++)
            value_fill(b + (size_t)i * BLOCK, i, gen, 0, BLOCK);
        if (run_one(l->q, CAIRN_IO_WRITE, b, 4 * BLOCK, 0) < 0 ||
            run_one(l->q, CAIRN_IO_SYNC, NULL, 0, 0) < 0)
            break;
        atomic_store(&l->synced, gen);
    }
    free(b);
    return NULL;
}

Test(ioq_sim, power_cut_from_another_thread, .timeout = 60)
{
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct cairn_sim *s = cairn_sim_create(&(struct cairn_sim_opts){
            .seed = seed, .delay_max_ns = seed % 2 ? 100000 : 0});
        struct load l = {.q = queue_on(s, 4)};
        pthread_t t;
        cr_assert_eq(pthread_create(&t, NULL, writer, &l), 0);
        while (atomic_load(&l.synced) < 5)
            l.q->ops->wake(l.q);
        uint64_t synced = atomic_load(&l.synced);
        struct cairn_sim *after = cairn_sim_power_cut(s, seed);
        pthread_join(t, NULL);
        for (uint64_t i = 0; i < 4; i++)
            cr_assert_geq(generation_of(after, i), synced);
        cr_assert(l.q->ops->close(l.q));
        cairn_sim_destroy(s);
        cairn_sim_destroy(after);
    }
}

/* The decorator over the simulated disk: a sync that lies is found out by a cut. */
Test(ioq_sim, faults_on_top, .timeout = 60)
{
    struct cairn_sim *s = device(1);
    struct cairn_fault_plan plan = {.next = &cairn_ioq_sim, .next_arg = s, .rule_count = 2};
    plan.rules[0] = (struct cairn_fault_rule){
        .fault = CAIRN_FAULT_ZERO, .kinds = CAIRN_FAULT_SYNCS, .nth = 1, .times = UINT64_MAX};
    plan.rules[1] = (struct cairn_fault_rule){
        .fault = CAIRN_FAULT_TORN, .kinds = CAIRN_FAULT_WRITES, .nth = 2, .arg = 1};
    struct cairn_ioq_params p = {.fd = -1, .depth = 4, .arg = &plan};
    struct cairn_ioq *q;
    cr_assert_eq(cairn_ioq_fault.open(&p, &q), CAIRN_OK);
    write_run(q, 0, 2, 1);
    sync_now(q);
    write_run(q, 4, 2, 1);
    cr_assert_eq(generation_of(s, 4), 1);
    cr_assert_eq(generation_of(s, 5), 0, "torn");
    bool lost = false;
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct cairn_sim *after = cairn_sim_power_cut(s, seed);
        lost |= generation_of(after, 0) == 0;
        cairn_sim_destroy(after);
    }
    cr_assert(lost);
    cr_assert(q->ops->close(q));
    cairn_sim_destroy(s);
}

/* Every fault at once, arguments drawn: each io comes back once, or counts as lost. */
Test(ioq_sim, all_faults_at_once, .timeout = 120)
{
    enum { DEPTH = 64, IOS = 4000 };
    for (uint64_t seed = 1; seed <= 4; seed++) {
        struct cairn_sim *s = device(seed);
        struct cairn_fault_plan plan = {.next = &cairn_ioq_sim, .next_arg = s, .seed = seed};
        for (int f = 0; f < CAIRN_FAULT_COUNT; f++)
            plan.rules[plan.rule_count++] = (struct cairn_fault_rule){
                .fault = (enum cairn_fault)f, .arg = CAIRN_FAULT_RANDOM,
                .ppm = f == CAIRN_FAULT_LOST || f == CAIRN_FAULT_GONE ? 1000 : 20000};
        struct cairn_ioq_params p = {.fd = -1, .depth = DEPTH, .arg = &plan};
        struct cairn_ioq *q;
        struct rng rng = {seed};
        cr_assert_eq(cairn_ioq_fault.open(&p, &q), CAIRN_OK);
        static struct cairn_io io[IOS];
        uint8_t *b = blocks(8);
        struct cairn_io *done[DEPTH];
        uint64_t sent = 0, back = 0, end = cairn_deadline_ns(60 * CAIRN_NS_PER_S);
        for (;;) {
            uint64_t lost = atomic_load(&plan.hit[CAIRN_FAULT_LOST]) +
                            atomic_load(&plan.hit[CAIRN_FAULT_GONE]);
            if (sent == IOS && back + lost == IOS)
                break;
            cr_assert_lt(cairn_now_ns(), end, "seed %lu", (unsigned long)seed);
            while (sent < IOS) {
                uint32_t n = 1 + (uint32_t)rng_below(&rng, 8);
                io[sent] = io_of((enum cairn_io_kind)rng_below(&rng, 3), b, n * BLOCK,
                                 rng_below(&rng, 100) * BLOCK);
                if (!q->ops->submit(q, &io[sent]))
                    break;
                sent++;
            }
            uint32_t n = q->ops->poll(q, done, DEPTH);
            if (n == 0)
                q->ops->wait(q, cairn_deadline_ns(5 * MS));
            for (uint32_t i = 0; i < n; i++) {
                cr_assert_eq(done[i]->next, NULL, "came back twice");
                done[i]->next = done[i];
                cr_assert(done[i]->res == -EIO || done[i]->res == -ENOSPC ||
                          (done[i]->res >= 0 && done[i]->res <= (int32_t)done[i]->len &&
                           done[i]->res % (int32_t)BLOCK == 0), "res %d", done[i]->res);
            }
            back += n;
        }
        for (int f = 0; f < CAIRN_FAULT_COUNT; f++)
            cr_assert(f == CAIRN_FAULT_LOST || f == CAIRN_FAULT_GONE ||
                      atomic_load(&plan.hit[f]) > 0, "fault %d never hit", f);
        cr_assert_eq(q->ops->close(q), back == IOS);
        cairn_sim_destroy(s);
        free(b);
    }
}
