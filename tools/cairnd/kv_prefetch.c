#include "tools/cairnd/kv_prefetch.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"

#define KEYS_MAX 65536u /* waiting */
#define SLICE 16u       /* keys read before others may have the worker */
#define SLICE_NS CAIRN_NS_PER_S

struct job {
    struct job *next;
    uint32_t count, done;
    struct cairn_key keys[];
};

struct kv_prefetch {
    struct node *node;
    pthread_mutex_t lock;
    struct job *head, *tail;
    uint32_t waiting; /* keys */
    bool running;     /* a worker has it, or will */
};

struct kv_prefetch *kv_prefetch_open(struct node *n)
{
    struct kv_prefetch *p = cairn_calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->node = n;
    pthread_mutex_init(&p->lock, NULL);
    return p;
}

/* Lock held. */
static void drop_head(struct kv_prefetch *p)
{
    struct job *j = p->head;
    p->waiting -= j->count - j->done;
    p->head = j->next;
    if (!p->head)
        p->tail = NULL;
    free(j);
}

void kv_prefetch_close(struct kv_prefetch *p)
{
    if (!p)
        return;
    while (p->head)
        drop_head(p);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

/* Only this function takes keys off, and it runs once at a time, so the head stays while it
 * reads. A chain that breaks off is of no use behind the break. */
static void run_slice(void *arg)
{
    struct kv_prefetch *p = arg;
    struct cairn_pin pins[SLICE];
    pthread_mutex_lock(&p->lock);
    struct job *j = p->head;
    pthread_mutex_unlock(&p->lock);
    uint32_t want = 0;
    size_t got = 0;
    if (j) {
        want = j->count - j->done < SLICE ? j->count - j->done : SLICE;
        got = cairn_vault_pin(p->node->vault, j->keys + j->done, want,
                              cairn_deadline_ns(SLICE_NS), pins);
        cairn_vault_unpin(p->node->vault, pins, got);
    }
    pthread_mutex_lock(&p->lock);
    if (j) {
        j->done += (uint32_t)got;
        p->waiting -= (uint32_t)got;
        if (got < want || j->done == j->count)
            drop_head(p);
    }
    bool more = p->head != NULL;
    if (!more)
        p->running = false;
    pthread_mutex_unlock(&p->lock);
    if (!more || work_submit(p->node, false, run_slice, p))
        return;
    pthread_mutex_lock(&p->lock);
    while (p->head)
        drop_head(p);
    p->running = false;
    pthread_mutex_unlock(&p->lock);
}

bool kv_prefetch_add(struct kv_prefetch *p, const struct cairn_key *keys, uint32_t count)
{
    struct job *j = cairn_malloc(sizeof *j + count * sizeof j->keys[0]);
    if (!j)
        return false;
    *j = (struct job){.count = count};
    memcpy(j->keys, keys, count * sizeof *keys);
    pthread_mutex_lock(&p->lock);
    bool ok = p->waiting + count <= KEYS_MAX &&
              (p->running || work_submit(p->node, false, run_slice, p));
    if (ok) {
        p->running = true;
        p->waiting += count;
        if (p->tail)
            p->tail->next = j;
        else
            p->head = j;
        p->tail = j;
    }
    pthread_mutex_unlock(&p->lock);
    if (!ok)
        free(j);
    return ok;
}

uint32_t kv_prefetch_waiting(struct kv_prefetch *p)
{
    pthread_mutex_lock(&p->lock);
    uint32_t waiting = p->waiting;
    pthread_mutex_unlock(&p->lock);
    return waiting;
}
