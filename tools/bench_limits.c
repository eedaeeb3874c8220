/* The disk's own limit: a bare io_uring loop on a file of written extents. */
#include "tools/bench_limits.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "tools/bench_samples.h"

#define BLOCK 4096u
#define DEPTH_MAX 64u
#define FILL_BYTES (4u << 20)
/* A single io slower than this ends the measurement: the device hangs. */
#define STUCK_S 30

struct loop {
    const struct cairn_limit_disk *o;
    struct io_uring ring;
    uint64_t started_ns[DEPTH_MAX];
    uint64_t next_buf; /* buffers go round the whole region */
    bool registered;
    uint64_t places;
    uint64_t random;
    struct bench_samples samples;
    uint64_t bytes;
};

static cairn_status failed(char *why, size_t cap, int err, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
static cairn_status failed(char *why, size_t cap, int err, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(why, cap, fmt, ap);
    va_end(ap);
    if (err && n >= 0 && (size_t)n < cap)
        snprintf(why + n, cap - (size_t)n, ": %s", strerror(err < 0 ? -err : err));
    return CAIRN_IO;
}

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static int ring_open(struct loop *l)
{
    struct io_uring_params p = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
    int err = io_uring_queue_init_params(DEPTH_MAX, &l->ring, &p);
    if (err == -EINVAL)
        err = io_uring_queue_init(DEPTH_MAX, &l->ring, 0);
    if (err < 0)
        return err;
    struct iovec region = {.iov_base = l->o->region, .iov_len = l->o->region_len};
    err = io_uring_register_files(&l->ring, &l->o->fd, 1);
    l->registered = io_uring_register_buffers(&l->ring, &region, 1) == 0;
    if (err < 0)
        io_uring_queue_exit(&l->ring);
    return err;
}

static void start(struct loop *l, uint32_t i)
{
    const struct cairn_limit_disk *o = l->o;
    uint64_t off = o->from + bench_random(&l->random) % l->places * o->len;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&l->ring);
    void *buf = (char *)o->region + l->next_buf++ % (o->region_len / o->len) * o->len;
    if (o->write && l->registered)
        io_uring_prep_write_fixed(sqe, 0, buf, o->len, off, 0);
    else if (o->write)
        io_uring_prep_write(sqe, 0, buf, o->len, off);
    else if (l->registered)
        io_uring_prep_read_fixed(sqe, 0, buf, o->len, off, 0);
    else
        io_uring_prep_read(sqe, 0, buf, o->len, off);
    sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data64(sqe, i);
    l->started_ns[i] = cairn_now_ns();
}

/* Sleeps for one completion and takes all that are there. -errno or how many are done; *again is
 * set for those that may be started anew. */
static int reap(struct loop *l, uint32_t *again, uint32_t *ret_again)
{
    struct __kernel_timespec t = {.tv_sec = STUCK_S};
    struct io_uring_cqe *cqe;
    int err = io_uring_submit_and_wait_timeout(&l->ring, &cqe, 1, &t, NULL);
    if (err < 0 && err != -EINTR)
        return err;
    uint64_t now = cairn_now_ns();
    int n = 0;
    *ret_again = 0;
    while (io_uring_peek_cqe(&l->ring, &cqe) == 0) {
        uint32_t i = (uint32_t)io_uring_cqe_get_data64(cqe);
        int res = cqe->res;
        io_uring_cqe_seen(&l->ring, cqe);
        if (res != (int)l->o->len)
            return res < 0 ? res : -EIO;
        bench_samples_add(&l->samples, now - l->started_ns[i]);
        l->bytes += l->o->len;
        again[(*ret_again)++] = i;
        n++;
    }
    return n;
}

static int run(struct loop *l)
{
    uint32_t again[DEPTH_MAX], n, out = l->o->depth;
    uint64_t end = cairn_deadline_ns(l->o->duration_ns);
    for (uint32_t i = 0; i < l->o->depth; i++)
        start(l, i);
    while (out > 0) {
        int done = reap(l, again, &n);
        if (done < 0)
            return done;
        bool more = cairn_now_ns() < end;
        for (uint32_t i = 0; i < n && more; i++)
            start(l, again[i]);
        out -= more ? 0 : n;
    }
    return 0;
}

cairn_status cairn_limit_disk_run(const struct cairn_limit_disk *o, struct cairn_limit *ret,
                                  char *why, size_t why_cap)
{
    struct loop l = {.o = o, .random = (o->seed + 1) * 0x9e3779b97f4a7c15ull | 1};
    *ret = (struct cairn_limit){.variant = "io_uring"};
    if (o->len == 0 || o->len % BLOCK || o->depth == 0 || o->depth > DEPTH_MAX ||
        o->to < o->from || o->region_len / o->len < o->depth)
        return CAIRN_INVAL;
    l.places = (o->to - o->from) / o->len;
    if (l.places == 0)
        return CAIRN_INVAL;
    l.samples.ns = malloc(BENCH_SAMPLES * sizeof(uint32_t));
    if (!l.samples.ns)
        return CAIRN_NOMEM;
    /* Faults in here would be timed. */
    memset(l.samples.ns, 0, BENCH_SAMPLES * sizeof(uint32_t));
    int err = ring_open(&l);
    if (err < 0) {
        free(l.samples.ns);
        return failed(why, why_cap, err, "io_uring");
    }
    double cpu = cpu_seconds();
    uint64_t begin = cairn_now_ns();
    err = run(&l);
    double seconds = (double)(cairn_now_ns() - begin) / 1e9, gb = (double)l.bytes / 1e9;
    cpu = cpu_seconds() - cpu;
    io_uring_queue_exit(&l.ring);
    if (err == 0) {
        ret->gb_per_s = gb / seconds;
        ret->cpu_s_per_gb = cpu / gb;
        ret->count = l.samples.count;
        ret->bytes = l.bytes;
        bench_samples_read(&l.samples, ret);
    }
    free(l.samples.ns);
    if (err == 0)
        return CAIRN_OK;
    return failed(why, why_cap, err, "%s of %u bytes", o->write ? "write" : "read", o->len);
}

/* Content that a disk cannot compress or deduplicate. */
static void fill(void *region, size_t len)
{
    uint64_t *p = region, x = 0x2545f4914f6cdd1dull;
    for (size_t i = 0; i < len / sizeof(*p); i++)
        p[i] = bench_random(&x);
}

static int write_all(int fd, uint64_t bytes, void *region, size_t step)
{
    for (uint64_t off = 0; off < bytes;) {
        size_t n = bytes - off < step ? (size_t)(bytes - off) : step;
        *(uint64_t *)region = off;
        ssize_t done = pwrite(fd, region, n, (off_t)off);
        if (done <= 0)
            return done < 0 ? errno : EIO;
        off += (uint64_t)done;
    }
    return fsync(fd) == 0 ? 0 : errno;
}

int cairn_limit_file(const char *path, uint64_t bytes, void *region, size_t region_len,
                     char *why, size_t why_cap)
{
    size_t step = region_len < FILL_BYTES ? region_len / BLOCK * BLOCK : FILL_BYTES;
    struct stat st;
    bytes = bytes / BLOCK * BLOCK;
    int fd = open(path, O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
    if (fd < 0 || fstat(fd, &st) != 0 || step == 0) {
        failed(why, why_cap, step ? errno : EINVAL, "%s with O_DIRECT", path);
        if (fd >= 0)
            close(fd);
        return -1;
    }
    /* Blocks too: a sparse or merely allocated file reads faster than any disk. */
    if (st.st_size == (off_t)bytes && (uint64_t)st.st_blocks * 512 >= bytes)
        return fd;
    int err = ftruncate(fd, 0) == 0 ? posix_fallocate(fd, 0, (off_t)bytes) : errno;
    if (err == 0) {
        fill(region, step);
        err = write_all(fd, bytes, region, step);
    }
    if (err == 0)
        return fd;
    failed(why, why_cap, err, "%s: writing %llu MiB", path, (unsigned long long)(bytes >> 20));
    close(fd);
    unlink(path);
    return -1;
}
