/* What the tests of the log share: a file, a host, a simulated disk with faults before it. */
#ifndef CAIRN_TESTS_LOG_BENCH_H
#define CAIRN_TESTS_LOG_BENCH_H

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
#include "tests/helpers/leftovers.h"
#include "tests/helpers/log_host.h"
#include "tests/helpers/seed.h"
#include "tests/sim/ioq_sim.h"

#define MIB (1ull << 20)
#define DISK (32 * MIB) /* 32 segments of 1 MiB */

static char path[128];
static struct leftovers path_left;

static inline void path_make(void)
{
    snprintf(path, sizeof path, "log-%d", (int)getpid());
    unlink(path);
    leftovers_begin(&path_left, path, NULL);
}

static inline void path_remove(void)
{
    leftovers_end(&path_left);
}

static const char *const engines[] __attribute__((unused)) = {"uring", "pool"};

static inline bool runs_here(const char *engine)
{
    char why[256];
    const struct cairn_ioq_ops *q = cairn_ioq_find(engine);
    return q && q->probe(why, sizeof why);
}

static inline void open_ok(struct log_host *h)
{
    cr_assert_eq(host_open(h), CAIRN_OK, "%s", h->err);
}

static inline void reopen(struct log_host *h)
{
    cr_assert(host_close(h));
    host_forget(h);
    open_ok(h);
}

/* Until no segment is being reclaimed: what lies in one is a miss before the host is told. */
static inline void reclaim_rests(struct log_host *h)
{
    usleep(50000); /* the next segment is being prepared: then it may begin */
    for (int i = 0; i < 5000 && h->tier->ops->stats(h->tier)->segments_free < 2; i++)
        usleep(1000);
    cr_assert_geq(h->tier->ops->stats(h->tier)->segments_free, 2);
}

static inline void fsck_ok(void)
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

static inline void bench_init(struct bench *b)
{
    unlink(path);
    host_init(&b->h, path, DISK, "pool");
    b->sim = cairn_sim_create(&(struct cairn_sim_opts){.seed = 7});
    b->plan = (struct cairn_fault_plan){.next = &cairn_ioq_sim, .next_arg = b->sim, .seed = 7};
    b->h.o.ioq = &cairn_ioq_fault;
    b->h.o.ioq_arg = &b->plan;
}

static inline void bench_fini(struct bench *b)
{
    cr_assert(host_close(&b->h));
    cairn_sim_destroy(b->sim);
    host_fini(&b->h);
}

static inline void rule(struct bench *b, enum cairn_fault fault, uint32_t kinds, uint64_t nth,
                 uint64_t times, uint64_t arg)
{
    cairn_fault_arm(&b->plan, &(struct cairn_fault_rule){
        .fault = fault, .kinds = kinds, .nth = nth, .times = times, .arg = arg});
    atomic_store(&b->plan.off, false);
}

/* The log's own writes in the background (the next segment's head) are over. */
static inline void settle(struct bench *b)
{
    host_sync(&b->h);
    usleep(30000);
}

static inline void no_rule(struct bench *b)
{
    atomic_store(&b->plan.off, true);
}

static inline void put_or_die(struct bench *b, uint64_t id, uint32_t len)
{
    cr_assert_eq(host_put(&b->h, id, len), CAIRN_OK);
}

#endif
