#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "tools/cairnd/node.h"

/* A connection has at most one call here, so this many clients may wait for the disk at once. */
#define QUEUE_MAX 4096u
/* A walk over all chunks takes one thread for up to a minute; what clears a space at once has the
 * other. */
#define LONG_THREADS 2u
#define LONG_QUEUE_MAX 64u

struct job {
    void (*fn)(void *arg);
    void *arg;
};

/* A queue and its threads. */
struct lane {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint32_t head, count, capacity;
    uint32_t busy;
    bool ending;
    uint32_t thread_count;
    pthread_t *threads;
    struct job *queue;
};

struct work {
    struct lane usual, lengthy;
};

static void *worker(void *arg)
{
    struct lane *l = arg;
    pthread_mutex_lock(&l->lock);
    while (!l->ending || l->count) {
        if (!l->count) {
            pthread_cond_wait(&l->changed, &l->lock);
            continue;
        }
        struct job job = l->queue[l->head];
        l->head = (l->head + 1) % l->capacity;
        l->count--;
        l->busy++;
        pthread_mutex_unlock(&l->lock);
        job.fn(job.arg);
        pthread_mutex_lock(&l->lock);
        l->busy--;
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

static bool lane_start(struct lane *l, const char *name, uint32_t threads, uint32_t capacity)
{
    pthread_mutex_init(&l->lock, NULL);
    pthread_cond_init(&l->changed, NULL);
    l->capacity = capacity;
    l->queue = calloc(capacity, sizeof *l->queue);
    l->threads = calloc(threads, sizeof *l->threads);
    for (; l->queue && l->threads && l->thread_count < threads; l->thread_count++) {
        char text[16];
        snprintf(text, sizeof text, "%s-%u", name, l->thread_count);
        if (pthread_create(&l->threads[l->thread_count], NULL, worker, l))
            break;
        pthread_setname_np(l->threads[l->thread_count], text);
    }
    return l->thread_count == threads;
}

static void lane_end(struct lane *l)
{
    pthread_mutex_lock(&l->lock);
    l->ending = true;
    pthread_cond_broadcast(&l->changed);
    pthread_mutex_unlock(&l->lock);
    for (uint32_t i = 0; i < l->thread_count; i++)
        pthread_join(l->threads[i], NULL);
    pthread_cond_destroy(&l->changed);
    pthread_mutex_destroy(&l->lock);
    free(l->threads);
    free(l->queue);
}

static void work_free(struct work *w)
{
    lane_end(&w->usual);
    lane_end(&w->lengthy);
    free(w);
}

cairn_status work_start(struct node *n)
{
    struct work *w = calloc(1, sizeof *w);
    if (!w)
        return CAIRN_NOMEM;
    bool usual = lane_start(&w->usual, "work", (uint32_t)n->o.workers, QUEUE_MAX);
    bool lengthy = lane_start(&w->lengthy, "long", LONG_THREADS, LONG_QUEUE_MAX);
    if (!usual || !lengthy) {
        work_free(w);
        return CAIRN_NOMEM;
    }
    n->work = w;
    return CAIRN_OK;
}

bool work_submit(struct node *n, bool takes_long, void (*fn)(void *arg), void *arg)
{
    struct lane *l = takes_long ? &n->work->lengthy : &n->work->usual;
    pthread_mutex_lock(&l->lock);
    bool taken = !l->ending && l->count < l->capacity;
    if (taken) {
        l->queue[(l->head + l->count++) % l->capacity] = (struct job){fn, arg};
        pthread_cond_signal(&l->changed);
    }
    pthread_mutex_unlock(&l->lock);
    return taken;
}

/* Every call has a deadline of its own, and the vault cannot be closed under one, so this waits for
 * them; the deadline decides only whether that is worth a message. */
void work_stop(struct node *n, uint64_t deadline_ns)
{
    if (!n->work)
        return;
    work_free(n->work);
    n->work = NULL;
    if (cairn_now_ns() > deadline_ns)
        cairn_log(CAIRN_LOG_WARN, "a command waited for the disk beyond the time given to stop");
}

void work_state(struct node *n, uint32_t *ret_queued, uint32_t *ret_running, uint32_t *ret_capacity)
{
    struct lane *lanes[] = {&n->work->usual, &n->work->lengthy};
    *ret_queued = *ret_running = *ret_capacity = 0;
    for (int i = 0; i < 2; i++) {
        pthread_mutex_lock(&lanes[i]->lock);
        *ret_queued += lanes[i]->count;
        *ret_running += lanes[i]->busy;
        *ret_capacity += lanes[i]->capacity;
        pthread_mutex_unlock(&lanes[i]->lock);
    }
}
