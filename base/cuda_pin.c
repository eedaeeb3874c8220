/* Pinned memory: what was offered is registered with the driver in the background, since pinning an
 * arena takes seconds; until then, and where it cannot be, copies go through memory of a lane. A
 * GPU is measured before that: it takes milliseconds. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/cuda.h"
#include "base/log.h"
#include "base/mem.h"

#define OFFERS 256u
#define PIECE_BYTES (16ull << 30) /* large ones take the driver long, and withdraw waits for one */

struct offer {
    char *base; /* NULL: free */
    size_t len, done; /* bytes that are pinned or cannot be */
    bool writable, busy, failed, leaving;
    cu_ptr *device; /* of each pinned piece */
};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct offer offers[OFFERS];
    struct cuda_gpu *gpu;
    struct cuda_gpu *fresh[CUDA_GPUS]; /* to be measured, the one that is being so among them */
    uint32_t fresh_count;
    pthread_t thread;
    bool running, ending;
} the = {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER};

static size_t piece_len(const struct offer *o, size_t at)
{
    return o->len - at < PIECE_BYTES ? o->len - at : PIECE_BYTES;
}

static bool piece_pin(struct cuda_gpu *g, const struct cuda_driver *d, char *at, size_t len,
                      bool writable, cu_ptr *ret_device)
{
    struct cuda_entry e;
    unsigned int flags = CU_REGISTER_PORTABLE | CU_REGISTER_DEVICEMAP;
    if (!writable && !g->read_only_register)
        return false;
    if (!cuda_enter(g, &e))
        return false;
    flags |= writable ? 0 : CU_REGISTER_READ_ONLY;
    bool pinned = cuda_ok(g, "cuMemHostRegister", d->host_register(at, len, flags));
    if (pinned && !cuda_ok(g, "cuMemHostGetDevicePointer", d->host_pointer(ret_device, at, 0))) {
        cuda_ok(g, "cuMemHostUnregister", d->host_unregister(at));
        pinned = false;
    }
    cuda_leave(&e);
    return pinned;
}

static struct offer *next_offer(void)
{
    for (uint32_t i = 0; i < OFFERS; i++)
        if (the.offers[i].base && !the.offers[i].leaving &&
            the.offers[i].done < the.offers[i].len)
            return &the.offers[i];
    return NULL;
}

/* Lock held, let go while the driver is at work. */
static void pin_next(struct offer *o, const struct cuda_driver *d)
{
    size_t at = o->done, len = piece_len(o, at);
    struct cuda_gpu *g = the.gpu;
    cu_ptr device = 0;
    o->busy = true;
    pthread_mutex_unlock(&the.lock);
    bool pinned = piece_pin(g, d, o->base + at, len, o->writable, &device);
    pthread_mutex_lock(&the.lock);
    bool forgotten = the.gpu != g; /* meanwhile: all of it is begun again */
    if (!forgotten) {
        o->device[at / PIECE_BYTES] = pinned ? device : 0;
        o->done = at + len;
    }
    o->busy = false;
    if (!pinned && !forgotten && !o->failed && !cuda_gone(g)) {
        o->failed = true;
        cairn_log(CAIRN_LOG_WARN, "%zu bytes of memory could not be pinned for GPU %s: their "
                                  "copies go through %u MiB of memory of their own",
                  len, g->name, CUDA_LANES * CUDA_FLIGHTS * (CUDA_STEP_BYTES >> 20));
    }
    pthread_cond_broadcast(&the.changed);
}

/* Lock held, let go meanwhile. */
static void measure_next(void)
{
    struct cuda_gpu *g = the.fresh[the.fresh_count - 1];
    pthread_mutex_unlock(&the.lock);
    cuda_kernels_begin(g);
    pthread_mutex_lock(&the.lock);
    for (uint32_t i = 0; i < the.fresh_count; i++)
        if (the.fresh[i] == g)
            the.fresh[i] = the.fresh[--the.fresh_count];
}

static void *pinner(void *arg)
{
    const struct cuda_driver *d = arg;
    pthread_mutex_lock(&the.lock);
    while (!the.ending) {
        struct offer *o = next_offer();
        if (the.fresh_count)
            measure_next();
        else if (o)
            pin_next(o, d);
        else
            pthread_cond_wait(&the.changed, &the.lock);
    }
    pthread_mutex_unlock(&the.lock);
    return NULL;
}

/* No handler of the engine's runs in it. */
static bool thread_start(const struct cuda_driver *d)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    /* It only reads the driver's table. */
    int err = pthread_create(&the.thread, NULL, pinner, (void *)(uintptr_t)d);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return err == 0;
}

void cuda_pin_begin(struct cuda_gpu *g)
{
    const char *why;
    const struct cuda_driver *d = cuda_driver(&why);
    pthread_mutex_lock(&the.lock);
    if (!the.running && d) {
        the.gpu = g;
        the.ending = false;
        the.running = thread_start(d);
    }
    if (the.running && the.fresh_count < CUDA_GPUS) {
        the.fresh[the.fresh_count++] = g;
        pthread_cond_broadcast(&the.changed);
    }
    pthread_mutex_unlock(&the.lock);
}

/* Not busy. Where nothing was done the driver is not asked for: a process that has no GPU memory
 * loads none. */
static void unpin(struct offer *o, struct cuda_gpu *g)
{
    const char *why;
    const struct cuda_driver *d = o->done && g ? cuda_driver(&why) : NULL;
    struct cuda_entry e;
    bool in = d && cuda_enter(g, &e);
    for (size_t at = 0; at < o->done; at += PIECE_BYTES) {
        if (in && o->device[at / PIECE_BYTES])
            cuda_ok(g, "cuMemHostUnregister", d->host_unregister(o->base + at));
        o->device[at / PIECE_BYTES] = 0;
    }
    if (in)
        cuda_leave(&e);
    o->done = 0;
}

/* Nothing of it is registered. Lock held. */
static void forget(struct offer *o)
{
    for (size_t at = 0; at < o->len; at += PIECE_BYTES)
        o->device[at / PIECE_BYTES] = 0;
    o->done = 0;
    o->failed = false;
}

void cuda_pin_follow(struct cuda_gpu *g)
{
    pthread_mutex_lock(&the.lock);
    if (the.gpu && the.gpu != g && cuda_gone(the.gpu)) {
        for (uint32_t i = 0; i < OFFERS; i++)
            if (the.offers[i].base && !the.offers[i].leaving)
                forget(&the.offers[i]);
        the.gpu = g;
        pthread_cond_broadcast(&the.changed);
    }
    pthread_mutex_unlock(&the.lock);
}

void cuda_pin_end(void)
{
    pthread_mutex_lock(&the.lock);
    bool running = the.running;
    the.ending = true;
    pthread_cond_broadcast(&the.changed);
    pthread_mutex_unlock(&the.lock);
    if (running)
        pthread_join(the.thread, NULL);
    pthread_mutex_lock(&the.lock);
    for (uint32_t i = 0; i < OFFERS; i++)
        if (the.offers[i].base)
            unpin(&the.offers[i], the.gpu);
    the.running = false;
    the.gpu = NULL;
    the.fresh_count = 0;
    pthread_mutex_unlock(&the.lock);
}

/* The thread and what was offered are the parent's. */
void cuda_pin_in_child(void)
{
    pthread_mutex_init(&the.lock, NULL);
    pthread_cond_init(&the.changed, NULL);
    memset(the.offers, 0, sizeof the.offers);
    the.fresh_count = 0;
    the.gpu = NULL;
    the.running = false;
}

bool cuda_pin_settled(void)
{
    pthread_mutex_lock(&the.lock);
    bool settled = next_offer() == NULL && the.fresh_count == 0;
    pthread_mutex_unlock(&the.lock);
    return settled;
}

void cuda_offer(void *base, size_t len, bool writable)
{
    size_t pieces = (len + PIECE_BYTES - 1) / PIECE_BYTES;
    cu_ptr *device = cairn_calloc(pieces, sizeof *device);
    if (!device)
        return; /* staged, then */
    cuda_watch_forks();
    pthread_mutex_lock(&the.lock);
    struct offer *o = the.offers;
    while (o < the.offers + OFFERS && o->base)
        o++;
    if (o < the.offers + OFFERS) {
        *o = (struct offer){.base = base, .len = len, .writable = writable, .device = device};
        device = NULL;
        pthread_cond_broadcast(&the.changed);
    }
    pthread_mutex_unlock(&the.lock);
    free(device);
}

void cuda_withdraw(void *base)
{
    pthread_mutex_lock(&the.lock);
    for (uint32_t i = 0; i < OFFERS; i++) {
        struct offer *o = &the.offers[i];
        if (o->base != base || o->leaving)
            continue;
        o->leaving = true; /* no further piece of it is begun */
        while (o->busy)
            pthread_cond_wait(&the.changed, &the.lock);
        struct cuda_gpu *g = the.gpu;
        /* The driver takes its time, and moves of other memory ask here. */
        pthread_mutex_unlock(&the.lock);
        unpin(o, g);
        pthread_mutex_lock(&the.lock);
        free(o->device);
        *o = (struct offer){.base = NULL};
    }
    pthread_mutex_unlock(&the.lock);
}

bool cuda_pinned(const void *at, size_t len, bool device_writes, cu_ptr *ret_device)
{
    const char *p = at;
    bool pinned = false;
    pthread_mutex_lock(&the.lock);
    for (uint32_t i = 0; i < OFFERS && !pinned; i++) {
        const struct offer *o = &the.offers[i];
        if (!o->base || o->leaving || p < o->base || (size_t)(p - o->base) >= o->done)
            continue;
        size_t off = (size_t)(p - o->base), first = off / PIECE_BYTES;
        if (o->device[first] == 0 || (device_writes && !o->writable) ||
            len > o->done - off || (off + len - 1) / PIECE_BYTES != first)
            break;
        *ret_device = o->device[first] + (off - first * PIECE_BYTES);
        pinned = true;
    }
    pthread_mutex_unlock(&the.lock);
    return pinned;
}

void *cuda_pin_alloc(struct cuda_gpu *g, size_t len, cu_ptr *ret_device)
{
    const char *why;
    const struct cuda_driver *d = cuda_driver(&why);
    void *p = d ? cairn_table_alloc(len) : NULL;
    /* After a fork a page that is written to would be another one than the device has. */
    if (p)
        madvise(p, len, MADV_DONTFORK);
    if (p && !piece_pin(g, d, p, len, true, ret_device)) {
        cairn_table_free(p, len);
        return NULL;
    }
    return p;
}

void cuda_pin_free(void *p, size_t len)
{
    const char *why;
    const struct cuda_driver *d = cuda_driver(&why);
    if (d)
        d->host_unregister(p);
    cairn_table_free(p, len);
}
