/* Both real engines on a real file, and behind the fault decorator. */
#include <criterion/criterion.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "storage/ioq.h"
#include "storage/ioq_fault.h"
#include "tests/helpers/value.h"

#define BLOCK 4096u
#define MIB (1024u * 1024u)
#define MS CAIRN_NS_PER_MS

/* One test body, one test per engine. */
#define BOTH(name) \
    static void name(const struct cairn_ioq_ops *ops); \
    Test(ioq, name##_uring, .timeout = 60) { name(need("uring")); } \
    Test(ioq, name##_pool, .timeout = 60) { name(need("pool")); } \
    static void name(const struct cairn_ioq_ops *ops)

static const struct cairn_ioq_ops *need(const char *name)
{
    char why[160] = "";
    const struct cairn_ioq_ops *ops = cairn_ioq_find(name);
    cr_assert_not_null(ops);
    if (!ops->probe(why, sizeof(why)))
        cr_skip_test("%s: %s", name, why);
    return ops;
}

/* An unlinked file in the working directory: the build's, so on a real disk more often than /tmp. */
static int temp_file(bool direct)
{
    char path[] = "./cairn-ioq-XXXXXX";
    int fd = mkostemp(path, O_CLOEXEC | (direct ? O_DIRECT : 0));
    if (fd < 0 && direct && errno == EINVAL)
        cr_skip_test("no O_DIRECT in %s", path);
    cr_assert_geq(fd, 0, "%s: %s", path, strerror(errno));
    unlink(path);
    return fd;
}

static void *memory(size_t len)
{
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(p, MAP_FAILED);
    return p;
}

static struct cairn_ioq *open_queue(const struct cairn_ioq_ops *ops, int fd, uint32_t depth,
                                    void *region, size_t region_len, void *arg)
{
    struct cairn_ioq_params p = {.fd = fd, .depth = depth, .region = region,
                                 .region_len = region_len, .arg = arg};
    struct cairn_ioq *q = NULL;
    cr_assert_eq(ops->open(&p, &q), CAIRN_OK);
    cr_assert_not_null(q);
    return q;
}

static struct cairn_io io_of(enum cairn_io_kind kind, void *buf, uint32_t len, uint64_t off)
{
    return (struct cairn_io){.kind = kind, .buf = buf, .len = len, .off = off, .res = INT32_MIN};
}

/* Polls until n are back; fails after 20 s. */
static void collect(struct cairn_ioq *q, struct cairn_io **done, uint32_t n)
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

static int32_t run_one(struct cairn_ioq *q, struct cairn_io io)
{
    struct cairn_io *done;
    cr_assert(q->ops->submit(q, &io));
    collect(q, &done, 1);
    cr_assert_eq(done, &io);
    cr_assert_gt(io.submitted_ns, 0);
    return io.res;
}

Test(ioq, find)
{
    uint32_t n = 0;
    const struct cairn_ioq_ops *const *all = cairn_ioq_all(&n);
    cr_assert_eq(n, 2);
    cr_assert_str_eq(all[0]->name, "uring");
    cr_assert_str_eq(all[1]->name, "pool");
    cr_assert_eq(cairn_ioq_find("pool"), &cairn_ioq_pool);
    cr_assert_eq(cairn_ioq_find("uring"), &cairn_ioq_uring);
    cr_assert_null(cairn_ioq_find("libaio"));
    cr_assert_null(cairn_ioq_find(""));
    char why[160];
    bool uring = cairn_ioq_uring.probe(why, sizeof(why));
    cr_assert_eq(cairn_ioq_find("auto"), uring ? &cairn_ioq_uring : &cairn_ioq_pool);
}

/* Writes and reads back, in and out of the registered region, across sizes. */
static void contents(const struct cairn_ioq_ops *ops, bool direct, void *region, size_t region_len)
{
    int fd = temp_file(direct);
    struct cairn_ioq *q = open_queue(ops, fd, 4, region, region_len, NULL);
    uint8_t *in = memory(4 * MIB), *own = memory(4 * MIB);
    uint8_t *out = region_len >= 4 * MIB ? region : own;
    static const uint32_t sizes[] = {BLOCK, 2 * BLOCK, 256 * 1024 + BLOCK, MIB, 4 * MIB};
    uint64_t off = 0;
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        value_fill(in, i, 1, 0, sizes[i]);
        cr_assert_eq(run_one(q, io_of(CAIRN_IO_WRITE, in, sizes[i], off)), (int32_t)sizes[i]);
        memcpy(out, in, sizes[i]);
        cr_assert_eq(run_one(q, io_of(CAIRN_IO_WRITE, out, sizes[i], off)), (int32_t)sizes[i]);
        cr_assert_eq(run_one(q, io_of(CAIRN_IO_SYNC, NULL, 0, 0)), 0);
        memset(out, 0xee, sizes[i]);
        memset(in, 0xee, sizes[i]);
        cr_assert_eq(run_one(q, io_of(CAIRN_IO_READ, out, sizes[i], off)), (int32_t)sizes[i]);
        cr_assert_eq(run_one(q, io_of(CAIRN_IO_READ, in, sizes[i], off)), (int32_t)sizes[i]);
        cr_assert_eq(value_check(out, i, 1, 0, sizes[i]), sizes[i]);
        cr_assert_eq(value_check(in, i, 1, 0, sizes[i]), sizes[i]);
        off += sizes[i];
    }
    cr_assert(ops->close(q));
    close(fd);
}

BOTH(contents_buffered)
{
    contents(ops, false, NULL, 0);
}

BOTH(contents_direct_registered)
{
    contents(ops, true, memory(8 * MIB), 8 * MIB);
}

BOTH(contents_direct_unaligned_region)
{
    /* Ends inside the memory used: what does not fit in is done unregistered. */
    uint8_t *m = memory(8 * MIB);
    contents(ops, true, m + BLOCK, 4 * MIB + BLOCK);
}

/* More than one registered buffer, and an io over the seam between two: the same 2 MiB of memory
 * mapped again and again, so that the region costs no memory. */
Test(ioq, region_in_pieces, .timeout = 60)
{
    const struct cairn_ioq_ops *ops = need("uring");
    size_t gib = (size_t)1 << 30, len = gib + 2 * MIB;
    int mem = memfd_create("cairn-test", MFD_CLOEXEC), fd = temp_file(true);
    cr_assert_eq(ftruncate(mem, 2 * MIB), 0);
    uint8_t *region = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    cr_assert_neq(region, MAP_FAILED);
    for (size_t at = 0; at < len; at += 2 * MIB)
        cr_assert_neq(mmap(region + at, 2 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                           mem, 0), MAP_FAILED);
    struct cairn_ioq *q = open_queue(ops, fd, 4, region, len, NULL);
    static const size_t places[] = {0, ((size_t)1 << 30) - BLOCK, (size_t)1 << 30};
    for (uint32_t i = 0; i < 3; i++) {
        uint8_t *buf = region + places[i];
        value_fill(buf, i, 1, 0, 2 * BLOCK);
        cr_assert_eq(run_one(q, io_of(CAIRN_IO_WRITE, buf, 2 * BLOCK, 0)), 2 * (int32_t)BLOCK);
        memset(buf, 0, 2 * BLOCK);
        cr_assert_eq(run_one(q, io_of(CAIRN_IO_READ, buf, 2 * BLOCK, 0)), 2 * (int32_t)BLOCK);
        cr_assert_eq(value_check(buf, i, 1, 0, 2 * BLOCK), 2 * BLOCK);
    }
    cr_assert(ops->close(q));
    munmap(region, len);
    close(mem);
    close(fd);
}

static void become_nobody(rlim_t memlock)
{
    struct rlimit limit = {memlock, memlock};
    cr_assert_eq(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
    if (geteuid() != 0)
        return;
    char dir[] = "/tmp/cairn-nobody-XXXXXX";
    cr_assert_not_null(mkdtemp(dir));
    cr_assert_eq(chown(dir, 65534, 65534), 0);
    cr_assert_eq(chdir(dir), 0);
    cr_assert_eq(setresuid(65534, 65534, 65534), 0);
}

/* The ring is permitted, registering 8 MiB is not: everything works unregistered. */
BOTH(contents_with_little_memlock)
{
    become_nobody(512 * 1024);
    contents(ops, false, memory(8 * MIB), 8 * MIB);
}

/* Newer kernels count the ring itself: then "auto" must be the pool, and the reason is given. */
BOTH(contents_without_memlock)
{
    char why[160] = "";
    become_nobody(0);
    if (ops->probe(why, sizeof(why))) {
        contents(ops, false, memory(8 * MIB), 8 * MIB);
    } else {
        cr_assert_not_null(strstr(why, "RLIMIT_MEMLOCK"), "%s", why);
        cr_assert_eq(cairn_ioq_find("auto"), &cairn_ioq_pool);
    }
}

BOTH(end_of_file)
{
    int fd = temp_file(true);
    cr_assert_eq(ftruncate(fd, 10 * BLOCK), 0);
    struct cairn_ioq *q = open_queue(ops, fd, 2, NULL, 0, NULL);
    uint8_t *buf = memory(16 * BLOCK);
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_READ, buf, 16 * BLOCK, 4 * BLOCK)), 6 * (int)BLOCK);
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_READ, buf, BLOCK, 10 * BLOCK)), 0);
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_READ, buf, BLOCK, 100 * BLOCK)), 0);
    cr_assert(ops->close(q));
    close(fd);
}

BOTH(errors)
{
    uint8_t *buf = memory(BLOCK);
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    struct cairn_ioq *q = open_queue(ops, fd, 2, NULL, 0, NULL);
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_WRITE, buf, BLOCK, 0)), -EBADF, "not open for writing");
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_SYNC, NULL, 0, 0)), -EINVAL, "no file to sync");
    cr_assert(ops->close(q));
    close(fd);
    fd = open("/dev/full", O_RDWR | O_CLOEXEC);
    q = open_queue(ops, fd, 2, NULL, 0, NULL);
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_WRITE, buf, BLOCK, 0)), -ENOSPC);
    cr_assert(ops->close(q));
    close(fd);
    fd = open(".", O_RDONLY | O_CLOEXEC);
    q = open_queue(ops, fd, 2, NULL, 0, NULL);
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_READ, buf, BLOCK, 0)), -EISDIR);
    cr_assert(ops->close(q));
    close(fd);
}

BOTH(bad_params)
{
    struct cairn_ioq *q = NULL;
    struct cairn_ioq_params p = {.fd = 0, .depth = 0};
    cr_assert_eq(ops->open(&p, &q), CAIRN_INVAL);
    p.depth = UINT32_MAX;
    cr_assert_eq(ops->open(&p, &q), CAIRN_INVAL);
    p.depth = 2;
    p.fd = -1;
    cr_assert(ops == &cairn_ioq_uring || ops->open(&p, &q) != CAIRN_OK);
    cr_assert_null(q);
    cr_assert(ops->close(NULL));
}

/* Many blocks in flight, each comes back once, in whatever order. */
BOTH(many_in_flight)
{
    enum { DEPTH = 32, BLOCKS = 2000 };
    int fd = temp_file(true);
    uint8_t *region = memory(DEPTH * BLOCK);
    struct cairn_ioq *q = open_queue(ops, fd, DEPTH, region, DEPTH * BLOCK, NULL);
    static struct cairn_io io[DEPTH];
    for (int pass = 0; pass < 2; pass++) {
        enum cairn_io_kind kind = pass ? CAIRN_IO_READ : CAIRN_IO_WRITE;
        uint32_t sent = 0, back = 0, free_slots = DEPTH;
        uint32_t stack[DEPTH];
        for (uint32_t i = 0; i < DEPTH; i++)
            stack[i] = i;
        while (back < BLOCKS) {
            while (sent < BLOCKS && free_slots > 0) {
                uint32_t i = stack[--free_slots];
                uint8_t *buf = region + (size_t)i * BLOCK;
                io[i] = io_of(kind, buf, BLOCK, (uint64_t)sent * BLOCK);
                io[i].owner = &io[i];
                if (kind == CAIRN_IO_WRITE)
                    value_fill(buf, sent, 7, 0, BLOCK);
                cr_assert(q->ops->submit(q, &io[i]));
                sent++;
            }
            struct cairn_io *done[5];
            uint32_t n = q->ops->poll(q, done, 5);
            if (n == 0)
                q->ops->wait(q, cairn_deadline_ns(5 * CAIRN_NS_PER_S));
            for (uint32_t i = 0; i < n; i++) {
                cr_assert_eq(done[i]->res, (int32_t)BLOCK);
                cr_assert_eq(done[i]->owner, done[i]);
                if (kind == CAIRN_IO_READ)
                    cr_assert_eq(value_check(done[i]->buf, done[i]->off / BLOCK, 7, 0, BLOCK),
                                 BLOCK);
                done[i]->owner = NULL;
                stack[free_slots++] = (uint32_t)(done[i] - io);
            }
            back += n;
        }
        cr_assert_eq(back, BLOCKS);
        cr_assert_eq(free_slots, DEPTH);
    }
    cr_assert(ops->close(q));
    close(fd);
}

BOTH(full_queue)
{
    enum { DEPTH = 3 };
    int fd = temp_file(false);
    cr_assert_eq(ftruncate(fd, MIB), 0);
    struct cairn_ioq *q = open_queue(ops, fd, DEPTH, NULL, 0, NULL);
    uint8_t *buf = memory(8 * BLOCK);
    struct cairn_io io[DEPTH + 1], *done[DEPTH + 1];
    for (uint32_t round = 0; round < 50; round++) {
        for (uint32_t i = 0; i <= DEPTH; i++) {
            io[i] = io_of(CAIRN_IO_READ, buf + i * BLOCK, BLOCK, i * BLOCK);
            cr_assert_eq(q->ops->submit(q, &io[i]), i < DEPTH);
        }
        collect(q, done, DEPTH);
        cr_assert_eq(q->ops->poll(q, done, DEPTH), 0, "the refused one was not kept");
    }
    cr_assert(ops->close(q));
    close(fd);
}

BOTH(wait_deadline)
{
    int fd = temp_file(false);
    struct cairn_ioq *q = open_queue(ops, fd, 2, NULL, 0, NULL);
    uint64_t begin = cairn_now_ns();
    q->ops->wait(q, begin + 30 * MS);
    cr_assert_geq(cairn_now_ns() - begin, 30 * MS);
    begin = cairn_now_ns();
    q->ops->wait(q, 0);
    q->ops->wait(q, begin - 1);
    cr_assert_lt(cairn_now_ns() - begin, CAIRN_NS_PER_S);
    cr_assert(ops->close(q));
    close(fd);
}

/* A wake is not lost, whether it comes before the wait, before a poll, or during the sleep. */
BOTH(wake_is_sticky)
{
    int fd = temp_file(false);
    struct cairn_ioq *q = open_queue(ops, fd, 2, NULL, 0, NULL);
    struct cairn_io *done[2];
    for (int i = 0; i < 100; i++) {
        uint64_t end = cairn_deadline_ns(20 * CAIRN_NS_PER_S);
        q->ops->wake(q);
        q->ops->wake(q);
        cr_assert_eq(q->ops->poll(q, done, 2), 0);
        q->ops->wait(q, end);
        cr_assert_lt(cairn_now_ns(), end);
    }
    cr_assert(ops->close(q));
    close(fd);
}

struct ping {
    struct cairn_ioq *q;
    _Atomic uint32_t asked, answered;
};

static void *pinger(void *arg)
{
    struct ping *p = arg;
    for (uint32_t i = 1; i <= 2000; i++) {
        atomic_store(&p->asked, i);
        p->q->ops->wake(p->q);
        uint64_t end = cairn_deadline_ns(30 * CAIRN_NS_PER_S);
        while (atomic_load(&p->answered) != i && cairn_now_ns() < end)
            sched_yield();
    }
    return NULL;
}

/* Two threads hand a counter back and forth; one lost wake would stall it. */
BOTH(wake_from_other_thread)
{
    int fd = temp_file(false);
    cr_assert_eq(ftruncate(fd, MIB), 0);
    struct ping p = {.q = open_queue(ops, fd, 2, NULL, 0, NULL)};
    uint8_t *buf = memory(BLOCK);
    struct cairn_io io, *done;
    bool out = false;
    pthread_t t;
    cr_assert_eq(pthread_create(&t, NULL, pinger, &p), 0);
    uint64_t end = cairn_deadline_ns(50 * CAIRN_NS_PER_S);
    while (atomic_load(&p.answered) < 2000) {
        uint32_t asked = atomic_load(&p.asked);
        atomic_store(&p.answered, asked);
        if (!out && asked % 3 == 0) {
            io = io_of(CAIRN_IO_READ, buf, BLOCK, 0);
            out = p.q->ops->submit(p.q, &io);
        }
        out = p.q->ops->poll(p.q, &done, 1) ? false : out;
        if (atomic_load(&p.answered) < 2000)
            p.q->ops->wait(p.q, end);
        cr_assert_lt(cairn_now_ns(), end, "a wake was lost");
    }
    pthread_join(t, NULL);
    cr_assert(ops->close(p.q));
    close(fd);
}

static void *owner(void *arg)
{
    struct cairn_ioq *q = arg;
    uint8_t *buf = memory(BLOCK);
    value_fill(buf, 3, 3, 0, BLOCK);
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_WRITE, buf, BLOCK, 0)), (int32_t)BLOCK);
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_SYNC, NULL, 0, 0)), 0);
    cr_assert(q->ops->close(q));
    return NULL;
}

/* As the tier does it: opened here, driven and closed there. */
BOTH(opened_on_another_thread)
{
    int fd = temp_file(true);
    struct cairn_ioq *q = open_queue(ops, fd, 2, NULL, 0, NULL);
    pthread_t t;
    cr_assert_eq(pthread_create(&t, NULL, owner, q), 0);
    cr_assert_eq(pthread_join(t, NULL), 0);
    uint8_t *buf = memory(BLOCK);
    cr_assert_eq(pread(fd, buf, BLOCK, 0), (ssize_t)BLOCK);
    cr_assert_eq(value_check(buf, 3, 3, 0, BLOCK), BLOCK);
    close(fd);
}

/* The lock is on the description that the queue writes through, and goes with it. */
BOTH(lock_goes_with_the_queue)
{
    char path[] = "./cairn-ioq-lock-XXXXXX";
    int fd = mkostemp(path, O_CLOEXEC);
    int other = open(path, O_RDWR | O_CLOEXEC);
    unlink(path);
    cr_assert_eq(flock(fd, LOCK_EX | LOCK_NB), 0);
    struct cairn_ioq *q = open_queue(ops, fd, 2, NULL, 0, NULL);
    close(fd);
    cr_assert_eq(flock(other, LOCK_EX | LOCK_NB), -1, "the queue still holds the description");
    cr_assert(ops->close(q));
    uint64_t end = cairn_deadline_ns(5 * CAIRN_NS_PER_S);
    while (flock(other, LOCK_EX | LOCK_NB) != 0)
        cr_assert_lt(cairn_now_ns(), end);
    close(other);
}

BOTH(close_with_ios_in_flight)
{
    enum { DEPTH = 16 };
    int fd = temp_file(true);
    cr_assert_eq(ftruncate(fd, 64 * MIB), 0);
    uint8_t *buf = memory(DEPTH * MIB);
    static struct cairn_io io[DEPTH];
    for (int round = 0; round < 5; round++) {
        struct cairn_ioq *q = open_queue(ops, fd, DEPTH, buf, DEPTH * MIB, NULL);
        struct cairn_io *done[2];
        for (uint32_t i = 0; i < DEPTH; i++) {
            io[i] = io_of(CAIRN_IO_WRITE, buf + i * MIB, MIB, i * MIB);
            cr_assert(q->ops->submit(q, &io[i]));
        }
        q->ops->poll(q, done, 2);
        cr_assert(ops->close(q));
    }
    close(fd);
}

/* --- an io that is stuck in the kernel for real: its buffer's page fault is never answered --- */

static void *unanswered_memory(size_t len, int *ret_uffd)
{
    int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    struct uffdio_api api = {.api = UFFD_API};
    if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) != 0)
        cr_skip_test("userfaultfd: %s", strerror(errno));
    void *p = memory(len);
    struct uffdio_register r = {.range = {.start = (uintptr_t)p, .len = len},
                                .mode = UFFDIO_REGISTER_MODE_MISSING};
    cr_assert_eq(ioctl(uffd, UFFDIO_REGISTER, &r), 0, "%s", strerror(errno));
    *ret_uffd = uffd;
    return p;
}

BOTH(close_with_an_io_stuck_in_the_kernel)
{
    int uffd = -1, fd = temp_file(false);
    void *buf = unanswered_memory(BLOCK, &uffd);
    struct cairn_ioq *q = open_queue(ops, fd, 2, NULL, 0, NULL);
    static struct cairn_io io;
    struct cairn_io *done;
    io = io_of(CAIRN_IO_WRITE, buf, BLOCK, 0);
    cr_assert(q->ops->submit(q, &io));
    cr_assert_eq(q->ops->poll(q, &done, 1), 0);
    uint64_t begin = cairn_now_ns();
    q->ops->wait(q, begin + 50 * MS);
    cr_assert_eq(q->ops->poll(q, &done, 1), 0);
    begin = cairn_now_ns();
    cr_assert_not(ops->close(q), "it is still out");
    cr_assert_lt(cairn_now_ns() - begin, 5 * CAIRN_NS_PER_S);
    close(uffd); /* answers the fault: what was left behind ends by itself */
    struct timespec pause = {.tv_nsec = 200 * 1000 * 1000};
    nanosleep(&pause, NULL);
    cr_assert_eq(io.res, INT32_MIN, "after close the io is the caller's");
    close(fd);
}

/* A pipe never answers, but lets go when it is cancelled. */
Test(ioq, close_cancels_what_can_be_cancelled, .timeout = 60)
{
    const struct cairn_ioq_ops *ops = need("uring");
    int fds[2];
    cr_assert_eq(pipe2(fds, O_CLOEXEC), 0);
    struct cairn_ioq *q = open_queue(ops, fds[0], 2, NULL, 0, NULL);
    uint8_t *buf = memory(BLOCK);
    struct cairn_io io = io_of(CAIRN_IO_READ, buf, BLOCK, 0), *done;
    cr_assert(q->ops->submit(q, &io));
    cr_assert_eq(q->ops->poll(q, &done, 1), 0);
    uint64_t begin = cairn_now_ns();
    q->ops->wait(q, begin + 20 * MS);
    cr_assert(ops->close(q));
    cr_assert_lt(cairn_now_ns() - begin, CAIRN_NS_PER_S);
    close(fds[0]);
    close(fds[1]);
}

/* --- choosing a depth --- */

BOTH(measure_depth)
{
    int fd = temp_file(true);
    uint8_t *region = memory(8 * 256 * 1024);
    uint32_t len = 256 * 1024;
    cr_assert_eq(cairn_ioq_measure_depth(ops, fd, region, 8 * len, 0, len), 4, "empty file");
    for (uint64_t off = 0; off < 16 * MIB; off += MIB)
        cr_assert_eq(pwrite(fd, region, MIB, (off_t)off), (ssize_t)MIB);
    uint32_t d = cairn_ioq_measure_depth(ops, fd, region, 8 * len, 16 * MIB, len);
    cr_assert(d == 2 || d == 4 || d == 8, "%u", d);
    cr_assert_eq(cairn_ioq_measure_depth(ops, fd, region, 7 * len, 16 * MIB, len), 4);
    cr_assert_eq(cairn_ioq_measure_depth(ops, fd, region, 8 * len, 16 * MIB, 0), 4);
    cr_assert_eq(cairn_ioq_measure_depth(ops, fd, region, 8 * len, 160 * MIB, len), 4,
                 "reads past the end fail");
    close(fd);
}

/* Reads that never come back must not hold up an open, and say that region is lost. */
Test(ioq, measure_depth_of_a_device_that_hangs, .timeout = 60)
{
    int uffd = -1, fd = temp_file(false);
    cr_assert_eq(ftruncate(fd, MIB), 0);
    void *region = unanswered_memory(8 * BLOCK, &uffd);
    uint64_t begin = cairn_now_ns();
    uint32_t d = cairn_ioq_measure_depth(&cairn_ioq_pool, fd, region, 8 * BLOCK, MIB, BLOCK);
    cr_assert_eq(d, 0);
    cr_assert_lt(cairn_now_ns() - begin, 10 * CAIRN_NS_PER_S);
    close(uffd);
    close(fd);
}

/* --- io_uring refused --- */

static void refuse_io_uring(uint32_t err)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | err),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog prog = {.len = sizeof(code) / sizeof(code[0]), .filter = code};
    cr_assert_eq(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &prog) != 0)
        cr_skip_test("seccomp: %s", strerror(errno));
}

static void refused_with(uint32_t err, cairn_status want)
{
    char why[160] = "";
    refuse_io_uring(err);
    cr_assert_not(cairn_ioq_uring.probe(why, sizeof(why)));
    cr_assert_not_null(strstr(why, "seccomp"), "%s", why);
    cr_assert_eq(cairn_ioq_find("auto"), &cairn_ioq_pool);
    struct cairn_ioq *q = NULL;
    struct cairn_ioq_params p = {.fd = 0, .depth = 2};
    cr_assert_eq(cairn_ioq_uring.open(&p, &q), want);
    cr_assert_null(q);
    contents(cairn_ioq_find("auto"), false, NULL, 0);
}

Test(ioq, refused_by_seccomp, .timeout = 60)
{
    refused_with(EPERM, CAIRN_PERM);
}

Test(ioq, unknown_to_the_kernel, .timeout = 60)
{
    refused_with(ENOSYS, CAIRN_UNSUPPORTED);
}

/* --- the fault decorator over a real engine --- */

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
    struct cairn_fault_plan plan = plan_of(ops, CAIRN_FAULT_DELAY, 0, 1, 60 * MS);
    struct cairn_ioq *q = open_queue(&cairn_ioq_fault, fd, 2, NULL, 0, &plan);
    struct cairn_io late = io_of(CAIRN_IO_WRITE, a, BLOCK, 0), *done;
    uint64_t begin = cairn_now_ns();
    cr_assert(q->ops->submit(q, &late));
    cr_assert_eq(run_one(q, io_of(CAIRN_IO_READ, b, BLOCK, 0)), (int32_t)BLOCK, "others pass");
    cr_assert_eq(b[0] | b[1] | b[2], 0);
    collect(q, &done, 1);
    cr_assert_eq(done, &late);
    cr_assert_geq(cairn_now_ns() - begin, 60 * MS);
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
    for (uint32_t i = 0; i < 3; i++) {
        io[i] = io_of(CAIRN_IO_READ, buf + i * BLOCK, BLOCK, i * BLOCK);
        cr_assert(q->ops->submit(q, &io[i]));
    }
    collect(q, done, 3);
    cr_assert_eq(done[2], &io[0], "the first one came back last");
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
    cr_assert_lt(cairn_now_ns() - begin, 3 * CAIRN_NS_PER_S);
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
