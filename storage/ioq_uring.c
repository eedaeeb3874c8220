/* io_uring engine: one ring, registered file, registered buffers where the kernel permits them.
 *
 * The ring starts disabled and is enabled by the first call after open, because SINGLE_ISSUER binds
 * it to the task that enables it: a store is opened on one thread and driven by another. wake()
 * reaches a sleeping owner through an eventfd read that is kept armed in the ring.
 */
#include "storage/ioq.h"

#include <errno.h>
#include <liburing.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fork.h"
#include "base/mem.h"

/* user_data of what is not a caller's io; ios are pointers, so never this small */
#define TAG_WAKE 1u
#define TAG_CANCEL 2u

/* Entries beside the caller's ios: the eventfd read and one cancel. */
#define SPARE_ENTRIES 2u
#define DEPTH_MAX 4096u
/* A ring for the depths in use, because its memory counts against RLIMIT_MEMLOCK (Linux 6.14). */
#define PROBE_ENTRIES 256u
/* The kernel takes no larger registered buffer. */
#define PIECE_BYTES ((size_t)1 << 30)
#define CLOSE_NS CAIRN_NS_PER_S
/* -EINTR and -EAGAIN are started again for this long, then reported. */
#define AGAIN_NS CAIRN_NS_PER_S

struct uring {
    struct cairn_ioq base;
    struct io_uring ring;
    int fd;
    int event_fd;
    uint64_t event_value; /* target of the armed eventfd read */
    bool enabled;
    bool listening;       /* the eventfd read is in the ring  */
    bool closing;
    bool fixed_file;
    uint32_t depth;
    uint32_t out;         /* accepted and not returned        */
    uintptr_t region;     /* registered memory, 0 = none      */
    size_t region_len;
    _Atomic bool woken;
    _Atomic bool sleeping;
};

/* Best first; each step down is for older kernels. */
static const unsigned setup_flags[] = {
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
        IORING_SETUP_R_DISABLED | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CLAMP,
    IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL |
        IORING_SETUP_CLAMP,
    IORING_SETUP_CLAMP,
};

static int ring_init(struct io_uring *ring, unsigned entries)
{
    int ret = -EINVAL;
    for (size_t i = 0; i < sizeof(setup_flags) / sizeof(setup_flags[0]) && ret == -EINVAL; i++) {
        struct io_uring_params p = {.flags = setup_flags[i]};
        ret = io_uring_queue_init_params(entries, ring, &p);
    }
    if (ret == 0 && !(ring->features & IORING_FEAT_EXT_ARG)) {
        io_uring_queue_exit(ring);
        ret = -ENOSYS;
    }
    return ret;
}

static bool uring_probe(char *why, size_t why_cap)
{
    struct io_uring ring;
    int ret = ring_init(&ring, PROBE_ENTRIES);
    if (ret == 0) {
        io_uring_queue_exit(&ring);
        return true;
    }
    const char *hint = "";
    if (ret == -EPERM || ret == -EACCES)
        hint = ": refused by seccomp or by kernel.io_uring_disabled";
    else if (ret == -ENOSYS)
        hint = ": needs Linux 5.11 or later, and no seccomp filter in the way";
    else if (ret == -ENOMEM)
        hint = ": raise RLIMIT_MEMLOCK";
    snprintf(why, why_cap, "io_uring_setup: %s%s", strerror(-ret), hint);
    return false;
}

/* All of the region or none of it; without registration every io still works. */
static void register_region(struct uring *u, void *region, size_t len)
{
    size_t count = (len + PIECE_BYTES - 1) / PIECE_BYTES;
    if (!region || count == 0 || count > UINT16_MAX)
        return;
    struct iovec *iov = cairn_calloc(count, sizeof(*iov));
    if (!iov)
        return;
    for (size_t i = 0; i < count; i++) {
        size_t from = i * PIECE_BYTES;
        iov[i].iov_base = (char *)region + from;
        iov[i].iov_len = len - from < PIECE_BYTES ? len - from : PIECE_BYTES;
    }
    if (io_uring_register_buffers(&u->ring, iov, (unsigned)count) == 0) {
        u->region = (uintptr_t)region;
        u->region_len = len;
    }
    free(iov);
}

static cairn_status uring_open(const struct cairn_ioq_params *p, struct cairn_ioq **ret)
{
    if (p->depth == 0 || p->depth > DEPTH_MAX)
        return CAIRN_INVAL;
    struct uring *u = cairn_calloc(1, sizeof(*u));
    if (!u)
        return CAIRN_NOMEM;
    u->base.ops = &cairn_ioq_uring;
    u->fd = p->fd;
    u->depth = p->depth;
    /* Blocking on purpose: a non-blocking one would make the armed read end at once. */
    u->event_fd = eventfd(0, EFD_CLOEXEC);
    if (u->event_fd < 0) {
        cairn_status s = cairn_status_from_errno(errno);
        free(u);
        return s;
    }
    int err = ring_init(&u->ring, p->depth + SPARE_ENTRIES);
    if (err < 0) {
        close(u->event_fd);
        free(u);
        return cairn_status_from_errno(err);
    }
    /* A child's copy of the ring, or of its memory, would keep the file and its lock. */
    io_uring_ring_dontfork(&u->ring);
    cairn_fork_drop(u->ring.ring_fd);
    cairn_fork_drop(u->event_fd);
    u->enabled = !(u->ring.flags & IORING_SETUP_R_DISABLED);
    u->fixed_file = io_uring_register_files(&u->ring, &u->fd, 1) == 0;
    register_region(u, p->region, p->region_len);
    *ret = &u->base;
    return CAIRN_OK;
}

static void become_owner(struct uring *u)
{
    /* By number: the shared liburing 2.3 declares io_uring_enable_rings but does not export it. */
    if (!u->enabled)
        u->enabled = io_uring_register((unsigned)u->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS,
                                       NULL, 0) == 0;
}

/* Index of the registered piece that holds all of the io's memory, or -1. */
static int piece_of(const struct uring *u, const struct cairn_io *io)
{
    uintptr_t at = (uintptr_t)io->buf;
    if (u->region_len == 0 || at < u->region || at - u->region >= u->region_len ||
        io->len > u->region_len - (at - u->region) || io->len == 0)
        return -1;
    size_t first = (at - u->region) / PIECE_BYTES;
    size_t last = (at - u->region + io->len - 1) / PIECE_BYTES;
    return first == last ? (int)first : -1;
}

static bool start(struct uring *u, struct cairn_io *io)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    if (!sqe)
        return false;
    int fd = u->fixed_file ? 0 : u->fd;
    int piece = piece_of(u, io);
    if (io->kind == CAIRN_IO_SYNC)
        io_uring_prep_fsync(sqe, fd, IORING_FSYNC_DATASYNC);
    else if (io->kind == CAIRN_IO_READ && piece >= 0)
        io_uring_prep_read_fixed(sqe, fd, io->buf, io->len, io->off, piece);
    else if (io->kind == CAIRN_IO_READ)
        io_uring_prep_read(sqe, fd, io->buf, io->len, io->off);
    else if (piece >= 0)
        io_uring_prep_write_fixed(sqe, fd, io->buf, io->len, io->off, piece);
    else
        io_uring_prep_write(sqe, fd, io->buf, io->len, io->off);
    if (u->fixed_file)
        sqe->flags |= IOSQE_FIXED_FILE;
    io_uring_sqe_set_data64(sqe, (uintptr_t)io);
    u->out++;
    return true;
}

static bool uring_submit(struct cairn_ioq *q, struct cairn_io *io)
{
    struct uring *u = (struct uring *)q;
    become_owner(u);
    if (u->out >= u->depth || !start(u, io))
        return false;
    io->submitted_ns = cairn_now_ns();
    return true;
}

static void listen_for_wake(struct uring *u)
{
    if (u->listening || u->closing)
        return;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    if (!sqe)
        return;
    io_uring_prep_read(sqe, u->event_fd, &u->event_value, sizeof(u->event_value), 0);
    io_uring_sqe_set_data64(sqe, TAG_WAKE);
    u->listening = true;
}

/* The io behind a completion, or NULL if it is none of the caller's or was started again. */
static struct cairn_io *take(struct uring *u, struct io_uring_cqe *cqe)
{
    uint64_t tag = io_uring_cqe_get_data64(cqe);
    int32_t res = cqe->res;
    io_uring_cqe_seen(&u->ring, cqe);
    if (tag == TAG_WAKE)
        u->listening = false;
    if (tag == TAG_WAKE || tag == TAG_CANCEL)
        return NULL;
    struct cairn_io *io = (struct cairn_io *)(uintptr_t)tag;
    u->out--;
    if ((res == -EINTR || res == -EAGAIN) && !u->closing &&
        cairn_now_ns() - io->submitted_ns < AGAIN_NS && start(u, io))
        return NULL;
    io->res = res;
    return io;
}

static uint32_t uring_poll(struct cairn_ioq *q, struct cairn_io **done, uint32_t cap)
{
    struct uring *u = (struct uring *)q;
    struct io_uring_cqe *cqe;
    uint32_t n = 0;
    become_owner(u);
    /* What the kernel does not take now (-EAGAIN, -EBUSY) stays in the ring for the next call. */
    if (io_uring_sq_ready(&u->ring) > 0)
        io_uring_submit(&u->ring);
    while (n < cap && io_uring_peek_cqe(&u->ring, &cqe) == 0) {
        done[n] = take(u, cqe);
        n += done[n] != NULL;
    }
    return n;
}

/* Sleeps in the kernel once. True when a caller's io is ready, or waiting is broken. */
static bool sleep_once(struct uring *u, uint64_t ns)
{
    struct io_uring_cqe *cqe = NULL;
    uint64_t bounded = ns < 3600 * CAIRN_NS_PER_S ? ns : 3600 * CAIRN_NS_PER_S;
    struct __kernel_timespec t = {.tv_sec = (long long)(bounded / CAIRN_NS_PER_S),
                                  .tv_nsec = (long long)(bounded % CAIRN_NS_PER_S)};
    listen_for_wake(u);
    int ret = io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &t, NULL);
    if (cqe) {
        uint64_t tag = io_uring_cqe_get_data64(cqe);
        if (tag != TAG_WAKE && tag != TAG_CANCEL)
            return true;
        take(u, cqe);
        return false;
    }
    if (ret < 0 && ret != -ETIME && ret != -EINTR) {
        /* Short of kernel memory: the caller's loop must not spin on it. */
        struct timespec pause = cairn_timespec(CAIRN_NS_PER_MS);
        nanosleep(&pause, NULL);
        return true;
    }
    return false;
}

static void uring_wait(struct cairn_ioq *q, uint64_t deadline_ns)
{
    struct uring *u = (struct uring *)q;
    become_owner(u);
    /* Set before woken is read, as wake sets woken before it reads sleeping: one sees the other. */
    atomic_store(&u->sleeping, true);
    while (!atomic_exchange(&u->woken, false)) {
        uint64_t now = cairn_now_ns();
        bool late = now >= deadline_ns;
        if (sleep_once(u, late ? 0 : deadline_ns - now) || late)
            break;
    }
    atomic_store(&u->sleeping, false);
    if (io_uring_sq_ready(&u->ring) > 0)
        io_uring_submit(&u->ring);
}

static void uring_wake(struct cairn_ioq *q)
{
    struct uring *u = (struct uring *)q;
    uint64_t one = 1;
    atomic_store(&u->woken, true);
    if (atomic_load(&u->sleeping)) {
        ssize_t n = write(u->event_fd, &one, sizeof(one));
        (void)n; /* an eventfd far from its maximum takes it */
    }
}

static void cancel_all(struct uring *u)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);
    if (!sqe)
        return;
    io_uring_prep_cancel64(sqe, 0, IORING_ASYNC_CANCEL_ANY | IORING_ASYNC_CANCEL_ALL);
    io_uring_sqe_set_data64(sqe, TAG_CANCEL);
}

static bool uring_close(struct cairn_ioq *q)
{
    if (!q)
        return true;
    struct uring *u = (struct uring *)q;
    struct cairn_io *done[16];
    uint64_t deadline = cairn_deadline_ns(CLOSE_NS);
    become_owner(u);
    u->closing = true;
    if (u->out > 0 || u->listening)
        cancel_all(u);
    while ((u->out > 0 || u->listening) && cairn_now_ns() < deadline) {
        uint64_t one = 1;
        if (u->listening && write(u->event_fd, &one, sizeof(one)) < 0)
            break;
        uring_poll(q, done, 16);
        if (u->out > 0 || u->listening)
            uring_wait(q, cairn_deadline_ns(50 * CAIRN_NS_PER_MS));
    }
    bool back = u->out == 0;
    /* Drops the ring's hold on the file now, not when a kernel worker gets to it: the lock on it
     * goes with the caller's close. With ios out the hold must stay. */
    if (back && u->fixed_file)
        io_uring_unregister_files(&u->ring);
    cairn_fork_forget(u->ring.ring_fd);
    cairn_fork_forget(u->event_fd);
    io_uring_queue_exit(&u->ring);
    close(u->event_fd);
    if (!u->listening)
        free(u); /* else the kernel may still write event_value */
    return back;
}

const struct cairn_ioq_ops cairn_ioq_uring = {
    .name = "uring",
    .probe = uring_probe,
    .open = uring_open,
    .submit = uring_submit,
    .poll = uring_poll,
    .wait = uring_wait,
    .wake = uring_wake,
    .close = uring_close,
};
