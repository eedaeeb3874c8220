/* Thread-pool engine: up to `depth` threads that block in preadv2, pwritev2 and fdatasync.
 *
 * For machines where io_uring is not permitted. Threads are started when there is more work than
 * idle ones, so that a deep queue costs no more of them than are used. They are detached and the
 * last one to leave frees the queue if close gave up on it, so that a thread stuck in the kernel
 * holds up nobody.
 */
#include "storage/ioq.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fork.h"
#include "base/mem.h"

#define DEPTH_MAX 4096u
#define THREADS_MAX 64u
#define CLOSE_NS CAIRN_NS_PER_S

struct list {
    struct cairn_io *head, *tail;
};

struct pool {
    struct cairn_ioq base;
    pthread_mutex_t lock;
    pthread_cond_t work;  /* todo grew, or closing                    */
    pthread_cond_t event; /* done grew, woken, or a thread left       */
    struct list todo, done;
    int fd;               /* a duplicate: outlives the caller's       */
    uint32_t depth;
    uint32_t out;         /* accepted and not returned                */
    uint32_t waiting;     /* of them in todo                          */
    uint32_t busy;        /* threads inside a system call             */
    uint32_t idle;        /* threads asleep                           */
    uint32_t threads, threads_max;
    bool woken;
    bool closing;
    bool orphan;          /* close gave up: the last thread frees all */
};

static void push(struct list *l, struct cairn_io *io)
{
    io->next = NULL;
    if (l->tail)
        l->tail->next = io;
    else
        l->head = io;
    l->tail = io;
}

static struct cairn_io *pop(struct list *l)
{
    struct cairn_io *io = l->head;
    if (io) {
        l->head = io->next;
        if (!l->head)
            l->tail = NULL;
    }
    return io;
}

static void destroy(struct pool *p)
{
    cairn_fork_forget(p->fd);
    close(p->fd);
    pthread_cond_destroy(&p->event);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

static int32_t run_io(int fd, const struct cairn_io *io)
{
    struct iovec iov = {.iov_base = io->buf, .iov_len = io->len};
    ssize_t n;
    do {
        if (io->kind == CAIRN_IO_READ)
            n = preadv2(fd, &iov, 1, (off_t)io->off, 0);
        else if (io->kind == CAIRN_IO_WRITE)
            n = pwritev2(fd, &iov, 1, (off_t)io->off, 0);
        else
            n = fdatasync(fd);
    } while (n < 0 && errno == EINTR);
    return n < 0 ? -errno : (int32_t)n;
}

static void *worker(void *arg)
{
    struct pool *p = arg;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        struct cairn_io *io = pop(&p->todo);
        if (io) {
            struct cairn_io job = *io;
            p->waiting--;
            p->busy++;
            pthread_mutex_unlock(&p->lock);
            int32_t res = run_io(p->fd, &job);
            pthread_mutex_lock(&p->lock);
            p->busy--;
            if (p->orphan)
                continue; /* close returned: io is the caller's again */
            io->res = res;
            push(&p->done, io);
            pthread_cond_signal(&p->event);
        } else if (p->closing) {
            break;
        } else {
            p->idle++;
            pthread_cond_wait(&p->work, &p->lock);
            p->idle--;
        }
    }
    bool last = --p->threads == 0 && p->orphan;
    pthread_cond_signal(&p->event);
    pthread_mutex_unlock(&p->lock);
    if (last)
        destroy(p);
    return NULL;
}

/* With the lock held. Threads take no signals: those belong to the program. */
static void start_thread(struct pool *p)
{
    sigset_t all, old;
    pthread_attr_t attr;
    pthread_t t;
    if (pthread_attr_init(&attr) != 0)
        return;
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    if (pthread_create(&t, &attr, worker, p) == 0) {
        p->threads++;
        pthread_setname_np(t, "cairn-io");
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
}

static bool pool_probe(char *why, size_t why_cap)
{
    (void)why;
    (void)why_cap;
    return true;
}

static cairn_status pool_open(const struct cairn_ioq_params *params, struct cairn_ioq **ret)
{
    if (params->depth == 0 || params->depth > DEPTH_MAX)
        return CAIRN_INVAL;
    struct pool *p = cairn_calloc(1, sizeof(*p));
    if (!p)
        return CAIRN_NOMEM;
    p->base.ops = &cairn_ioq_pool;
    p->depth = params->depth;
    p->threads_max = p->depth < THREADS_MAX ? p->depth : THREADS_MAX;
    /* Same file description, so the same lock; but a number that a stuck thread may keep. */
    p->fd = fcntl(params->fd, F_DUPFD_CLOEXEC, 0);
    if (p->fd < 0) {
        cairn_status s = cairn_status_from_errno(errno);
        free(p);
        return s;
    }
    cairn_fork_drop(p->fd);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    pthread_cond_init(&p->event, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_lock(&p->lock);
    start_thread(p);
    bool started = p->threads > 0;
    pthread_mutex_unlock(&p->lock);
    if (!started) {
        destroy(p);
        return CAIRN_NOMEM;
    }
    *ret = &p->base;
    return CAIRN_OK;
}

static bool pool_submit(struct cairn_ioq *q, struct cairn_io *io)
{
    struct pool *p = (struct pool *)q;
    pthread_mutex_lock(&p->lock);
    bool room = p->out < p->depth;
    if (room) {
        io->submitted_ns = cairn_now_ns();
        p->out++;
        push(&p->todo, io);
        if (++p->waiting > p->idle && p->threads < p->threads_max)
            start_thread(p);
        pthread_cond_signal(&p->work);
    }
    pthread_mutex_unlock(&p->lock);
    return room;
}

static uint32_t pool_poll(struct cairn_ioq *q, struct cairn_io **done, uint32_t cap)
{
    struct pool *p = (struct pool *)q;
    uint32_t n = 0;
    pthread_mutex_lock(&p->lock);
    while (n < cap && p->done.head)
        done[n++] = pop(&p->done);
    p->out -= n;
    pthread_mutex_unlock(&p->lock);
    return n;
}

static void pool_wait(struct cairn_ioq *q, uint64_t deadline_ns)
{
    struct pool *p = (struct pool *)q;
    struct timespec t = cairn_timespec(deadline_ns);
    int err = 0;
    pthread_mutex_lock(&p->lock);
    while (!p->woken && !p->done.head && err != ETIMEDOUT) {
        if (deadline_ns == UINT64_MAX)
            err = pthread_cond_wait(&p->event, &p->lock);
        else
            err = pthread_cond_timedwait(&p->event, &p->lock, &t);
    }
    p->woken = false;
    pthread_mutex_unlock(&p->lock);
}

static void pool_wake(struct cairn_ioq *q)
{
    struct pool *p = (struct pool *)q;
    pthread_mutex_lock(&p->lock);
    p->woken = true;
    pthread_cond_signal(&p->event);
    pthread_mutex_unlock(&p->lock);
}

static bool pool_close(struct cairn_ioq *q)
{
    if (!q)
        return true;
    struct pool *p = (struct pool *)q;
    struct timespec t = cairn_timespec(cairn_deadline_ns(CLOSE_NS));
    int err = 0;
    pthread_mutex_lock(&p->lock);
    p->closing = true;
    while (pop(&p->todo)) /* not started: never will be */
        ;
    pthread_cond_broadcast(&p->work);
    while (p->threads > 0 && err != ETIMEDOUT)
        err = pthread_cond_timedwait(&p->event, &p->lock, &t);
    bool left = p->threads == 0;
    bool back = p->busy == 0;
    p->orphan = !left;
    pthread_mutex_unlock(&p->lock);
    if (left)
        destroy(p);
    return back;
}

const struct cairn_ioq_ops cairn_ioq_pool = {
    .name = "pool",
    .probe = pool_probe,
    .open = pool_open,
    .submit = pool_submit,
    .poll = pool_poll,
    .wait = pool_wait,
    .wake = pool_wake,
    .close = pool_close,
};
