/* The fault decorator over both real engines. */
#include "tests/helpers/ioq_rig.h"

#include "storage/ioq_fault.h"
#include "tests/helpers/stall.h"
#include "tests/helpers/value.h"

static struct cairn_fault_plan plan_of(const struct cairn_ioq_ops *next, enum cairn_fault fault,
                                       uint32_t kinds, uint64_t nth, uint64_t arg)
{
    struct cairn_fault_plan p = {.next = next, .seed = 1, .rule_count = 1};
    p.rules[0] = (struct cairn_fault_rule){.fault = fault, .kinds = kinds, .nth = nth, .arg = arg};
    return p;
}

BOTH(fault_errors_by_count)
{
    int fd = temp_file(true);
    uint8_t *buf = memory(4 * BLOCK);
    struct cairn_fault_plan plan =
        plan_of(ops, CAIRN_FAULT_EIO, CAIRN_FAULT_WRITES, 2, 0);
    plan.rules[1] = (struct cairn_fault_rule){
        .fault = CAIRN_FAULT_ENOSPC, .kinds = CAIRN_FAULT_WRITES, .nth = 4, .times = 2};
    plan.rules[2] = (struct cairn_fault_rule){.fault = CAIRN_FAULT_EIO,
                                              .kinds = CAIRN_FAULT_READS, .from = BLOCK,
                                              .to = 2 * BLOCK, .nth = 1, .times = UINT64_MAX};
    plan.rule_count = 3;
    struct cairn_ioq *q = open_queue(&cairn_ioq_fault, fd, 4, NULL, 0, &plan);
    static const int32_t want[] = {BLOCK, -EIO, BLOCK, -ENOSPC, -ENOSPC, BLOCK};
    for (size_t i = 0; i < sizeof(want) / sizeof(want[0]); i++)
        cr_assert_eq(run_one(q, io_of(CAIRN_IO_WRITE, buf, BLOCK, i * BLOCK)), want[i]);
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_READ, buf, BLOCK, 0)), (int32_t)BLOCK);
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_READ, buf, 2 * BLOCK, 0)), -EIO);
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_READ, buf, BLOCK, 2 * BLOCK)), (int32_t)BLOCK);
    atomic_store(&plan.off, true);
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_READ, buf, 2 * BLOCK, 0)), 2 * (int32_t)BLOCK);
    cr_assert_eq(atomic_load(&plan.seen[CAIRN_IO_WRITE]), 6);
    cr_assert_eq(atomic_load(&plan.hit[CAIRN_FAULT_EIO]), 2);
    cr_assert_eq(atomic_load(&plan.hit[CAIRN_FAULT_ENOSPC]), 2);
    cr_assert(q->ops->close(q));
    close(fd);
}

BOTH(fault_changes_what_is_moved)
{
    int fd = temp_file(true);
    uint8_t *a = memory(4 * BLOCK), *b = memory(4 * BLOCK);
    struct cairn_fault_plan plan = plan_of(ops, CAIRN_FAULT_TORN, 0, 1, 1);
    struct cairn_ioq *q = open_queue(&cairn_ioq_fault, fd, 4, NULL, 0, &plan);
    cr_assert_eq(ftruncate(fd, MIB), 0);
    value_fill(a, 1, 1, 0, 4 * BLOCK);

    cr_assert_eq(run_one(q, io_of(CAIRN_IO_WRITE, a, 4 * BLOCK, 0)), 4 * (int32_t)BLOCK, "torn");
    cr_assert_eq(pread(fd, b, 4 * BLOCK, 0), 4 * (ssize_t)BLOCK);
    cr_assert_arr_eq(b, a, BLOCK);
    cr_assert_eq(b[BLOCK] | b[3 * BLOCK], 0, "only the first block arrived");

    plan.rules[0].fault = CAIRN_FAULT_TORN_EIO;
    plan.rules[0].arg = 2;
    plan.rules[0].nth = 2;
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_WRITE, a, 4 * BLOCK, 0)), -EIO);
    cr_assert_eq(pread(fd, b, 4 * BLOCK, 0), 4 * (ssize_t)BLOCK);
    cr_assert_arr_eq(b, a, 2 * BLOCK);
    cr_assert_eq(b[3 * BLOCK], 0);

    plan.rules[0] = (struct cairn_fault_rule){
        .fault = CAIRN_FAULT_MISDIRECT, .nth = 3, .arg = 16 * BLOCK};
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_WRITE, a, BLOCK, 8 * BLOCK)), (int32_t)BLOCK);
    cr_assert_eq(pread(fd, b, BLOCK, 8 * BLOCK), (ssize_t)BLOCK);
    cr_assert_eq(b[0] | b[1] | b[2], 0);
    cr_assert_eq(pread(fd, b, BLOCK, 24 * BLOCK), (ssize_t)BLOCK);
    cr_assert_arr_eq(b, a, BLOCK);

    plan.rules[0] = (struct cairn_fault_rule){
        .fault = CAIRN_FAULT_BITFLIP, .nth = 4, .times = 2, .arg = 8 * 100 + 3};
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_WRITE, a, BLOCK, 0)), (int32_t)BLOCK);
    cr_assert_eq(value_check(a, 1, 1, 0, 4 * BLOCK), 4 * BLOCK, "the caller's bytes are its own");
    cr_assert_eq(pread(fd, b, BLOCK, 0), (ssize_t)BLOCK);
    cr_assert_eq(value_check(b, 1, 1, 0, BLOCK), 100);
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_READ, b, BLOCK, 0)), (int32_t)BLOCK);
    cr_assert_eq(value_check(b, 1, 1, 0, BLOCK), BLOCK, "flipped back");

    plan.rules[0] = (struct cairn_fault_rule){
        .fault = CAIRN_FAULT_SHORT, .nth = 6, .times = 2, .arg = 2 * BLOCK + 5};
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_READ, b, 4 * BLOCK, 0)), 2 * (int32_t)BLOCK);
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_WRITE, a, 4 * BLOCK, 0)), 2 * (int32_t)BLOCK);
    plan.rules[0] = (struct cairn_fault_rule){.fault = CAIRN_FAULT_ZERO, .nth = 8, .times = 3};
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_READ, b, 4 * BLOCK, 0)), 0);
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_WRITE, a, 4 * BLOCK, 0)), 0);
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_SYNC, NULL, 0, 0)), 0);
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_SYNC, NULL, 0, 0)), 0);
    cr_assert(q->ops->close(q));
    close(fd);
}

/* A delayed write reaches the disk late, not only its completion. */
BOTH(fault_delays)
{
    int fd = temp_file(true);
    cr_assert_eq(ftruncate(fd, MIB), 0);
    uint8_t *a = memory(BLOCK), *b = memory(BLOCK);
    value_fill(a, 1, 1, 0, BLOCK);
    struct cairn_fault_plan plan = plan_of(ops, CAIRN_FAULT_DELAY, 0, 1, 2000 * MS);
    struct cairn_ioq *q = open_queue(&cairn_ioq_fault, fd, 2, NULL, 0, &plan);
    struct cairn_io late = io_of(CAIRN_IO_WRITE, a, BLOCK, 0), *done;
    uint64_t begin = cairn_now_ns();
    cr_assert(q->ops->submit(q, &late));
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_READ, b, BLOCK, 0)), (int32_t)BLOCK, "others pass");
    cr_assert_eq(b[0] | b[1] | b[2], 0);
    collect(q, &done, 1);
    cr_assert_eq(done, &late);
    cr_assert_geq(cairn_now_ns() - begin, 2000 * MS);
    cr_assert_eq(late.res, (int32_t)BLOCK);
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_READ, b, BLOCK, 0)), (int32_t)BLOCK);
    cr_assert_eq(value_check(b, 1, 1, 0, BLOCK), BLOCK);
    cr_assert(q->ops->close(q));
    close(fd);
}

BOTH(fault_reorders)
{
    int fd = temp_file(true);
    cr_assert_eq(ftruncate(fd, MIB), 0);
    uint8_t *buf = memory(3 * BLOCK);
    struct cairn_fault_plan plan = plan_of(ops, CAIRN_FAULT_REORDER, 0, 1, 2);
    struct cairn_ioq *q = open_queue(&cairn_ioq_fault, fd, 4, NULL, 0, &plan);
    struct cairn_io io[3], *done[3];
    /* It is held for 20 ms at most, which a busy machine may take for the others. */
    bool last = false;
    for (int round = 0; round < 200 && !last; round++) {
        atomic_store(&plan.matched[0], 0);
        for (uint32_t i = 0; i < 3; i++) {
            io[i] = io_of(CAIRN_IO_READ, buf + i * BLOCK, BLOCK, i * BLOCK);
            cr_assert(q->ops->submit(q, &io[i]));
        }
        collect(q, done, 3);
        last = done[2] == &io[0];
    }
    cr_assert(last, "the first one never came back last");
    io[0].res = 0;
    atomic_store(&plan.matched[0], 0);
    cr_assert_eq(run_one(q, io[0]), (int32_t)BLOCK, "alone it is let go after a while");
    cr_assert(q->ops->close(q));
    close(fd);
}

/* A completion that never comes: wait keeps its deadline, close is quick and says so. */
static void never_completes(const struct cairn_ioq_ops *ops, enum cairn_fault fault)
{
    int fd = temp_file(true);
    cr_assert_eq(ftruncate(fd, MIB), 0);
    uint8_t *buf = memory(2 * BLOCK);
    struct cairn_fault_plan plan = plan_of(ops, fault, 0, 1, 0);
    struct cairn_ioq *q = open_queue(&cairn_ioq_fault, fd, 2, NULL, 0, &plan);
    struct cairn_io io = io_of(CAIRN_IO_READ, buf, BLOCK, 0), *done;
    cr_assert(q->ops->submit(q, &io));
    uint64_t end = cairn_deadline_ns(100 * MS);
    while (cairn_now_ns() < end) {
        cr_assert_eq(q->ops->poll(q, &done, 1), 0);
        q->ops->wait(q, end);
    }
    struct cairn_io others[2];
    for (int i = 0; i < 2; i++)
        others[i] = io_of(CAIRN_IO_READ, buf + BLOCK, BLOCK, 0);
    cr_assert(q->ops->submit(q, &others[0]));
    cr_assert_not(q->ops->submit(q, &others[1]), "the lost one keeps its place");
    collect(q, &done, 1);
    uint64_t begin = cairn_now_ns();
    cr_assert_not(q->ops->close(q));
    cr_assert_lt(cairn_now_ns() - begin, 3 * CAIRN_NS_PER_S + STALL_NS);
    close(fd);
}

BOTH(fault_loses_completions)
{
    never_completes(ops, CAIRN_FAULT_LOST);
    never_completes(ops, CAIRN_FAULT_GONE);
}

/* By chance, drawn from a seed: the same seed hits the same ios. */
BOTH(fault_by_chance)
{
    int fd = temp_file(true);
    cr_assert_eq(ftruncate(fd, MIB), 0);
    uint8_t *buf = memory(BLOCK);
    uint64_t pattern[2] = {0, 0};
    for (int pass = 0; pass < 2; pass++) {
        struct cairn_fault_plan plan = {.next = ops, .seed = 42, .rule_count = 1};
        plan.rules[0] = (struct cairn_fault_rule){.fault = CAIRN_FAULT_EIO, .ppm = 250000};
        struct cairn_ioq *q = open_queue(&cairn_ioq_fault, fd, 2, NULL, 0, &plan);
        for (int i = 0; i < 64; i++)
            if (run_one(q, io_of(CAIRN_IO_READ, buf, BLOCK, 0)) == -EIO)
                pattern[pass] |= 1ull << i;
        cr_assert(q->ops->close(q));
    }
    cr_assert_eq(pattern[0], pattern[1]);
    int hits = __builtin_popcountll(pattern[0]);
    cr_assert(hits > 4 && hits < 32, "%d of 64", hits);
    close(fd);
}

BOTH(fault_bad_plans)
{
    struct cairn_ioq *q = NULL;
    struct cairn_ioq_params p = {.fd = -1, .depth = 2};
    cr_assert_eq(cairn_ioq_fault.open(&p, &q), CAIRN_INVAL, "no plan");
    struct cairn_fault_plan plan = {.next = NULL};
    p.arg = &plan;
    cr_assert_eq(cairn_ioq_fault.open(&p, &q), CAIRN_INVAL, "nothing below");
    plan.next = ops;
    p.fd = -1;
    p.depth = 100000;
    cr_assert_eq(cairn_ioq_fault.open(&p, &q), CAIRN_INVAL, "refused below");
    p.depth = 2;
    plan.rule_count = CAIRN_FAULT_RULES + 1;
    cr_assert_eq(cairn_ioq_fault.open(&p, &q), CAIRN_INVAL);
    cr_assert_null(q);
}
