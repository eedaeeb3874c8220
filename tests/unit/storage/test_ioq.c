/* Both real engines on a real file. */
#include "tests/helpers/ioq_rig.h"

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "tests/helpers/stall.h"
#include "tests/helpers/value.h"

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
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    uint8_t *region = mmap(NULL, len, PROT_NONE, flags, -1, 0);
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

static char nobody_dir[] = "/tmp/cairn-nobody-XXXXXX";

static void nobody_leaves(void)
{
    rmdir(nobody_dir);
}

static void become_nobody(rlim_t memlock)
{
    struct rlimit limit = {memlock, memlock};
    cr_assert_eq(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
    if (geteuid() != 0)
        return;
    cr_assert_not_null(mkdtemp(nobody_dir));
    cr_assert_eq(chown(nobody_dir, 65534, 65534), 0);
    cr_assert_eq(chdir(nobody_dir), 0);
    cr_assert_eq(setresuid(65534, 65534, 65534), 0);
    atexit(nobody_leaves);
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
    cr_assert_lt(cairn_now_ns() - begin, CAIRN_NS_PER_S + STALL_NS);
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
    uint64_t end = cairn_deadline_ns(STALL_NS);
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
    cr_assert_lt(cairn_now_ns() - begin, 5 * CAIRN_NS_PER_S + STALL_NS);
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
    cr_assert_lt(cairn_now_ns() - begin, CAIRN_NS_PER_S + STALL_NS);
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
    cr_assert_lt(cairn_now_ns() - begin, 10 * CAIRN_NS_PER_S + STALL_NS);
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
