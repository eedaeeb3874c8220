/* Asynchronous calls: jobs for a few worker threads of the store, completions with an eventfd.
 *
 * A large job is run in parts: those of a get by all threads at once, those of a put one after
 * another, a chain's head first. Somebody waits for a get and nobody for a put, so gets go first,
 * and puts, which may wait for room, leave one thread to them. */
#include <sched.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/move.h"
#include "base/types.h"
#include "connector/handle.h"

#define QUEUE_JOBS 256u
/* Gets go before puts, but not for ever. */
#define GETS_BEFORE_PUT 16u
#define PART_BYTES (8ull << 20) /* less is not worth another thread */
/* Where nobody says how many threads: see README.md. */
#define WORKERS_MIN 2u
#define WORKERS_MAX 4u

enum job_kind { JOB_GET, JOB_PUT };

struct job {
    struct cairn_queue *queue;
    struct job *next;
    enum job_kind kind;
    struct cairn_get *gets;
    struct cairn_put *puts;
    size_t count;
    size_t taken;          /* keys that a thread has or had    */
    uint64_t part_bytes;   /* of a part, its last key included */
    uint32_t running;      /* parts that a thread has          */
    uint64_t deadline_ns;
    struct cairn_order order; /* of the caller's streams when it was submitted */
    struct cairn_completion result;
};

struct part {
    struct job *job;
    size_t first, count;
};

struct job_list {
    struct job *head, *tail;
};

struct cairn_pool {
    struct cairn_store *store;
    pthread_mutex_t lock;
    pthread_cond_t work;
    struct job_list gets, puts; /* of which keys are not taken   */
    uint32_t putting;           /* threads that have part of one */
    uint32_t before_put;        /* parts of gets that go first   */
    bool closing;
    uint32_t thread_count;
    pthread_t threads[];
};

struct cairn_queue {
    struct cairn_store *store;
    pthread_mutex_t lock;
    pthread_cond_t done_changed;
    int event_fd;
    uint32_t running;         /* submitted and not completed  */
    struct job *free;
    struct job_list done;
    struct job jobs[QUEUE_JOBS];
};

static void push(struct job_list *l, struct job *j)
{
    j->next = NULL;
    if (l->tail)
        l->tail->next = j;
    else
        l->head = j;
    l->tail = j;
}

static void push_first(struct job_list *l, struct job *j)
{
    j->next = l->head;
    l->head = j;
    if (!l->tail)
        l->tail = j;
}

static struct job *pop(struct job_list *l)
{
    struct job *j = l->head;
    if (j && !(l->head = j->next))
        l->tail = NULL;
    return j;
}

static size_t stored(const struct cairn_put *puts, size_t count)
{
    size_t n = 0;
    for (size_t i = 0; i < count; i++)
        n += puts[i].status == CAIRN_OK || puts[i].status == CAIRN_EXISTS;
    return n;
}

static uint64_t key_bytes(const struct job *j, size_t i)
{
    return cairn_sgl_bytes(j->kind == JOB_GET ? &j->gets[i].out : &j->puts[i].value);
}

/* The next part that a thread may run; false if there is none. Lock held. */
static bool take(struct cairn_pool *p, struct part *ret)
{
    struct job *j = p->gets.head;
    bool may_put = p->puts.head && (p->putting == 0 || p->putting + 1 < p->thread_count);
    if (may_put && (!j || p->before_put == 0))
        j = p->puts.head;
    if (!j)
        return false;
    p->before_put = j->kind == JOB_PUT ? GETS_BEFORE_PUT : p->before_put - (p->before_put > 0);
    *ret = (struct part){.job = j, .first = j->taken};
    for (uint64_t bytes = 0; j->taken < j->count && bytes < j->part_bytes; ret->count++)
        bytes += key_bytes(j, j->taken++);
    j->running++;
    if (j->kind == JOB_PUT) {
        pop(&p->puts);
        p->putting++;
    } else {
        /* In turns: a small one does not wait for all of a large one. */
        pop(&p->gets);
        if (j->taken < j->count)
            push(&p->gets, j);
    }
    return true;
}

static struct cairn_completion run(struct cairn_backend *b, const struct part *t)
{
    const struct job *j = t->job;
    struct cairn_completion done = {.hits = 0};
    cairn_order_enter(&j->order);
    if (j->kind == JOB_GET) {
        done.status = b->ops->get(b, j->gets + t->first, t->count, j->deadline_ns, &done.hits);
    } else {
        done.status = b->ops->put(b, j->puts + t->first, t->count, j->deadline_ns);
        done.hits = stored(j->puts + t->first, t->count);
    }
    cairn_order_enter(NULL);
    return done;
}

/* Was it the last part of its job? Lock held. */
static bool settle(struct cairn_pool *p, const struct part *t, const struct cairn_completion *done)
{
    struct job *j = t->job;
    j->running--;
    j->result.hits += done->hits;
    if (!j->result.status)
        j->result.status = done->status;
    if (j->kind == JOB_PUT) {
        p->putting--;
        if (j->taken < j->count)
            push_first(&p->puts, j);
    }
    return j->taken == j->count && j->running == 0;
}

static void complete(struct job *j)
{
    struct cairn_queue *q = j->queue;
    cairn_order_end(&j->order);
    pthread_mutex_lock(&q->lock);
    push(&q->done, j);
    q->running--;
    uint64_t one = 1;
    if (write(q->event_fd, &one, sizeof one) < 0) {
        /* Only a full counter refuses, and that is readable already. */
    }
    pthread_cond_broadcast(&q->done_changed);
    pthread_mutex_unlock(&q->lock);
}

static void *worker(void *arg)
{
    struct cairn_pool *p = arg;
    struct part t;
    pthread_mutex_lock(&p->lock);
    for (;;) {
        if (take(p, &t)) {
            /* What is left is for another thread: each wakes the next. */
            if (p->gets.head || p->puts.head)
                pthread_cond_signal(&p->work);
            pthread_mutex_unlock(&p->lock);
            struct cairn_completion done = run(p->store->backend, &t);
            pthread_mutex_lock(&p->lock);
            if (settle(p, &t, &done)) {
                pthread_mutex_unlock(&p->lock);
                complete(t.job);
                pthread_mutex_lock(&p->lock);
            }
        } else if (p->closing) {
            break;
        } else {
            pthread_cond_wait(&p->work, &p->lock);
        }
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

void cairn_pool_close(struct cairn_pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->closing = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (uint32_t i = 0; i < p->thread_count; i++)
        pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

static uint32_t worker_count(uint64_t asked)
{
    cpu_set_t cores;
    if (asked)
        return (uint32_t)asked;
    if (sched_getaffinity(0, sizeof cores, &cores) != 0)
        return WORKERS_MAX; /* there are more than the set has places for */
    uint32_t half = (uint32_t)CPU_COUNT(&cores) / 2;
    return half < WORKERS_MIN ? WORKERS_MIN : half > WORKERS_MAX ? WORKERS_MAX : half;
}

static struct cairn_pool *pool_open(struct cairn_store *s)
{
    uint32_t n = worker_count(s->backend->workers);
    struct cairn_pool *p = calloc(1, sizeof *p + n * sizeof p->threads[0]);
    if (!p)
        return NULL;
    p->store = s;
    p->before_put = GETS_BEFORE_PUT;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    while (p->thread_count < n &&
           pthread_create(&p->threads[p->thread_count], NULL, worker, p) == 0)
        p->thread_count++;
    if (p->thread_count == 0) {
        cairn_pool_close(p);
        return NULL;
    }
    return p;
}

static cairn_status want_pool(struct cairn_store *s)
{
    pthread_mutex_lock(&s->pool_lock);
    if (!s->pool)
        s->pool = pool_open(s);
    cairn_status st = s->pool ? CAIRN_OK : CAIRN_NOMEM;
    pthread_mutex_unlock(&s->pool_lock);
    return st;
}

cairn_status cairn_queue_open(cairn_store *s, cairn_queue **ret)
{
    if (!cairn_handle_ours(s))
        return CAIRN_STATE;
    cairn_status st = want_pool(s);
    if (st)
        return st;
    struct cairn_queue *q = calloc(1, sizeof *q);
    if (!q)
        return CAIRN_NOMEM;
    q->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (q->event_fd < 0) {
        free(q);
        return CAIRN_NOMEM;
    }
    q->store = s;
    pthread_mutex_init(&q->lock, NULL);
    pthread_condattr_t ca;
    pthread_condattr_init(&ca);
    pthread_condattr_setclock(&ca, CLOCK_MONOTONIC);
    pthread_cond_init(&q->done_changed, &ca);
    pthread_condattr_destroy(&ca);
    for (uint32_t i = 0; i < QUEUE_JOBS; i++) {
        q->jobs[i].next = q->free;
        q->free = &q->jobs[i];
    }
    *ret = q;
    return CAIRN_OK;
}

void cairn_queue_close(cairn_queue *q)
{
    if (!q || !cairn_handle_ours(q->store))
        return;
    /* Every job has a deadline of its own, so this ends. */
    pthread_mutex_lock(&q->lock);
    while (q->running)
        pthread_cond_wait(&q->done_changed, &q->lock);
    pthread_mutex_unlock(&q->lock);
    close(q->event_fd);
    pthread_cond_destroy(&q->done_changed);
    pthread_mutex_destroy(&q->lock);
    free(q);
}

int cairn_queue_fd(const cairn_queue *q)
{
    return q->event_fd;
}

/* A part of a get is large enough to keep a disk busy, small enough to share the work evenly. */
static uint64_t part_bytes(const struct cairn_pool *p, const struct job *j)
{
    uint64_t all = 0;
    if (j->kind == JOB_PUT)
        return PART_BYTES;
    for (size_t i = 0; i < j->count; i++)
        all += key_bytes(j, i);
    uint64_t part = all / (2 * p->thread_count) + 1;
    return part < PART_BYTES ? PART_BYTES : part;
}

/* Makes a job ready for begin(); false: the queue is full. */
static bool prepare(cairn_queue *q, struct job job, void *tag, struct job_list *ready)
{
    pthread_mutex_lock(&q->lock);
    struct job *j = q->free;
    if (j) {
        q->free = j->next;
        q->running++;
    }
    pthread_mutex_unlock(&q->lock);
    if (!j)
        return false;
    *j = job;
    j->queue = q;
    j->result.tag = tag;
    j->part_bytes = part_bytes(q->store->pool, j);
    if (j->kind == JOB_GET)
        cairn_order_add_gets(&j->order, j->gets, j->count);
    else
        cairn_order_add_puts(&j->order, j->puts, j->count);
    push(ready, j);
    return true;
}

static void begin(struct cairn_pool *p, struct job_list *ready)
{
    pthread_mutex_lock(&p->lock);
    for (struct job *j; (j = pop(ready));)
        push(j->kind == JOB_GET ? &p->gets : &p->puts, j);
    pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->lock);
}

static cairn_status submit(cairn_queue *q, struct job job, void *tag)
{
    struct job_list ready = {NULL, NULL};
    if (!q || !cairn_handle_ours(q->store))
        return CAIRN_STATE;
    if (!prepare(q, job, tag, &ready))
        return CAIRN_BUSY;
    begin(q->store->pool, &ready);
    return CAIRN_OK;
}

cairn_status cairn_submit_get(cairn_queue *q, struct cairn_get *gets, size_t count,
                              uint64_t timeout_ns, void *tag)
{
    return submit(q, (struct job){.kind = JOB_GET, .gets = gets, .count = count,
                                  .deadline_ns = cairn_deadline_ns(timeout_ns)}, tag);
}

size_t cairn_submit_gets(cairn_queue *q, struct cairn_get *gets, const struct cairn_call *calls,
                         size_t count, uint64_t timeout_ns)
{
    struct job_list ready = {NULL, NULL};
    size_t taken = 0;
    if (!q || !cairn_handle_ours(q->store))
        return 0;
    struct job job = {.kind = JOB_GET, .deadline_ns = cairn_deadline_ns(timeout_ns)};
    for (; taken < count; taken++) {
        job.gets = gets;
        job.count = calls[taken].count;
        if (!prepare(q, job, calls[taken].tag, &ready))
            break;
        gets += job.count;
    }
    begin(q->store->pool, &ready);
    return taken;
}

cairn_status cairn_submit_put(cairn_queue *q, struct cairn_put *puts, size_t count,
                              uint64_t timeout_ns, void *tag)
{
    return submit(q, (struct job){.kind = JOB_PUT, .puts = puts, .count = count,
                                  .deadline_ns = cairn_deadline_ns(timeout_ns)}, tag);
}

size_t cairn_poll(cairn_queue *q, struct cairn_completion *out, size_t cap, uint64_t timeout_ns)
{
    if (!q || !cairn_handle_ours(q->store))
        return 0;
    uint64_t deadline = cairn_deadline_ns(timeout_ns), counted;
    struct timespec t = cairn_timespec(deadline);
    size_t n = 0;
    pthread_mutex_lock(&q->lock);
    while (!q->done.head && q->running && cairn_now_ns() < deadline)
        pthread_cond_timedwait(&q->done_changed, &q->lock, &t);
    for (struct job *j; n < cap && (j = pop(&q->done));) {
        out[n++] = j->result;
        j->next = q->free;
        q->free = j;
    }
    /* Readable exactly while completions wait. */
    if (!q->done.head && read(q->event_fd, &counted, sizeof counted) < 0) {
        /* Nothing was signalled. */
    }
    pthread_mutex_unlock(&q->lock);
    return n;
}
