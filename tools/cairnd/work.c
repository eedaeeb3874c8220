#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "tools/cairnd/node.h"

/* A connection has at most one call here, so this many clients may wait for the disk at once. */
#define WORK_QUEUE 4096u

struct job {
    void (*fn)(void *arg);
    void *arg;
};

struct work {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct job queue[WORK_QUEUE];
    uint32_t head, count;
    uint32_t busy;
    bool ending;
    uint32_t thread_count;
    pthread_t threads[];
};

static void *worker(void *arg)
{
    struct work *w = arg;
    pthread_mutex_lock(&w->lock);
    while (!w->ending || w->count) {
        if (!w->count) {
            pthread_cond_wait(&w->changed, &w->lock);
            continue;
        }
        struct job job = w->queue[w->head];
        w->head = (w->head + 1) % WORK_QUEUE;
        w->count--;
        w->busy++;
        pthread_mutex_unlock(&w->lock);
        job.fn(job.arg);
        pthread_mutex_lock(&w->lock);
        w->busy--;
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

static void threads_join(struct work *w)
{
    pthread_mutex_lock(&w->lock);
    w->ending = true;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->lock);
    for (uint32_t i = 0; i < w->thread_count; i++)
        pthread_join(w->threads[i], NULL);
}

static void work_free(struct work *w)
{
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

cairn_status work_start(struct node *n)
{
    uint32_t count = (uint32_t)n->o.workers;
    struct work *w = calloc(1, sizeof *w + count * sizeof(pthread_t));
    if (!w)
        return CAIRN_NOMEM;
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    for (; w->thread_count < count; w->thread_count++) {
        char name[16];
        snprintf(name, sizeof name, "work-%u", w->thread_count);
        if (pthread_create(&w->threads[w->thread_count], NULL, worker, w)) {
            threads_join(w);
            work_free(w);
            return CAIRN_NOMEM;
        }
        pthread_setname_np(w->threads[w->thread_count], name);
    }
    n->work = w;
    return CAIRN_OK;
}

bool work_submit(struct node *n, void (*fn)(void *arg), void *arg)
{
    struct work *w = n->work;
    pthread_mutex_lock(&w->lock);
    bool taken = !w->ending && w->count < WORK_QUEUE;
    if (taken) {
        w->queue[(w->head + w->count++) % WORK_QUEUE] = (struct job){fn, arg};
        pthread_cond_signal(&w->changed);
    }
    pthread_mutex_unlock(&w->lock);
    return taken;
}

/* Every call has a deadline of its own, and the vault cannot be closed under one, so this waits for
 * them; the deadline decides only whether that is worth a message. */
void work_stop(struct node *n, uint64_t deadline_ns)
{
    struct work *w = n->work;
    if (!w)
        return;
    threads_join(w);
    if (cairn_now_ns() > deadline_ns)
        cairn_log(CAIRN_LOG_WARN, "a command waited for the disk beyond the time given to stop");
    work_free(w);
    n->work = NULL;
}

void work_state(struct node *n, uint32_t *ret_queued, uint32_t *ret_running, uint32_t *ret_capacity)
{
    struct work *w = n->work;
    pthread_mutex_lock(&w->lock);
    *ret_queued = w->count;
    *ret_running = w->busy;
    pthread_mutex_unlock(&w->lock);
    *ret_capacity = WORK_QUEUE;
}
