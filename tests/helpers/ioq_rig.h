/* One queue on a temporary file: what the tests of the I/O seam share. */
#ifndef CAIRN_TESTS_IOQ_RIG_H
#define CAIRN_TESTS_IOQ_RIG_H

#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "storage/ioq.h"

#define BLOCK 4096u
#define MIB (1024u * 1024u)
#define MS CAIRN_NS_PER_MS

/* One test body, one test per engine. */
#define BOTH(name) \
    static void name(const struct cairn_ioq_ops *ops); \
    Test(ioq, name##_uring, .timeout = 60) \
    { \
        name(need("uring")); \
    } \
    Test(ioq, name##_pool, .timeout = 60) \
    { \
        name(need("pool")); \
    } \
    static void name(const struct cairn_ioq_ops *ops)

static inline const struct cairn_ioq_ops *need(const char *name)
{
    char why[160] = "";
    const struct cairn_ioq_ops *ops = cairn_ioq_find(name);
    cr_assert_not_null(ops);
    if (!ops->probe(why, sizeof(why)))
        cr_skip_test("%s: %s", name, why);
    return ops;
}

/* Unlinked, in the working directory: the build's is on a real disk more often than /tmp. */
static inline int temp_file(bool direct)
{
    char path[] = "./cairn-ioq-XXXXXX";
    int fd = mkostemp(path, O_CLOEXEC | (direct ? O_DIRECT : 0));
    if (fd < 0 && direct && errno == EINVAL)
        cr_skip_test("no O_DIRECT in %s", path);
    cr_assert_geq(fd, 0, "%s: %s", path, strerror(errno));
    unlink(path);
    return fd;
}

static inline void *memory(size_t len)
{
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(p, MAP_FAILED);
    return p;
}

static inline struct cairn_ioq *open_queue(const struct cairn_ioq_ops *ops, int fd, uint32_t depth,
                                    void *region, size_t region_len, void *arg)
{
    struct cairn_ioq_params p = {.fd = fd, .depth = depth, .region = region,
                                 .region_len = region_len, .arg = arg};
    struct cairn_ioq *q = NULL;
    cr_assert_eq(ops->open(&p, &q), CAIRN_OK);
    cr_assert_not_null(q);
    return q;
}

static inline struct cairn_io io_of(enum cairn_io_kind kind, void *buf, uint32_t len, uint64_t off)
{
    return (struct cairn_io){.kind = kind, .buf = buf, .len = len, .off = off, .res = INT32_MIN};
}

/* Polls until n are back; fails after 20 s. */
static inline void collect(struct cairn_ioq *q, struct cairn_io **done, uint32_t n)
{
    uint64_t end = cairn_deadline_ns(20 * CAIRN_NS_PER_S);
    for (uint32_t got = 0; got < n;) {
        got += q->ops->poll(q, done + got, n - got);
        if (got == n)
            break;
        cr_assert_lt(cairn_now_ns(), end, "%u of %u came back", got, n);
        q->ops->wait(q, end);
    }
}

static inline int32_t run_one(struct cairn_ioq *q, struct cairn_io io)
{
    struct cairn_io *done;
    cr_assert(q->ops->submit(q, &io));
    collect(q, &done, 1);
    cr_assert_eq(done, &io);
    cr_assert_gt(io.submitted_ns, 0);
    return io.res;
}

#endif
