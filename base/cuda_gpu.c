/* GPUs as they are found: contexts, lanes, events, and what an error means. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/cuda.h"
#include "base/cuda_config.h"
#include "base/log.h"
#include "base/mem.h"

#define SPIN_NS 20000u
#define REFUSALS 8u
#define PLACES 128u
#define HANG_NS (10 * CAIRN_NS_PER_S) /* a copy takes microseconds */
/* Between two questions: a copy ends soon, a caller's stream may be busy for many ms. */
#define COPY_PAUSE_NS 25000u
#define STREAM_PAUSE_NS 200000u

static struct {
    pthread_mutex_t lock;
    char path[CAIRN_CUDA_PATH_MAX];
    bool tried;
    char why[256];
    struct cuda_driver driver;
    _Atomic(const struct cuda_driver *) loaded; /* it, once it is */
    struct cuda_gpu *gpus[CUDA_GPUS];
    struct cuda_gpu *gone; /* whose contexts are no more: somebody may be about to ask them */
    uint32_t gpu_count;
} the = {.lock = PTHREAD_MUTEX_INITIALIZER, .path = "libcuda.so.1"};

static void load_locked(void)
{
    the.tried = true;
    the.why[0] = '\0';
    if (the.path[0] == '\0')
        snprintf(the.why, sizeof the.why, "turned off by cuda=no");
    else if (cuda_driver_load(the.path, &the.driver, the.why, sizeof the.why) == CAIRN_OK)
        atomic_store_explicit(&the.loaded, &the.driver, memory_order_release);
}

/* Locks may have been held by threads that a child does not have. */
static void in_child(void)
{
    bool loaded = atomic_load_explicit(&the.loaded, memory_order_relaxed) != NULL;
    pthread_mutex_init(&the.lock, NULL);
    if (loaded) {
        atomic_store_explicit(&the.loaded, NULL, memory_order_relaxed);
        snprintf(the.why, sizeof the.why, "a forked child has no CUDA driver: use spawn, not fork");
        the.gpu_count = 0;
        the.gone = NULL;
    }
    cuda_pin_in_child();
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, in_child);
}

void cuda_watch_forks(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
}

const struct cuda_driver *cuda_driver(const char **ret_why)
{
    const struct cuda_driver *d = atomic_load_explicit(&the.loaded, memory_order_acquire);
    *ret_why = the.why;
    if (d)
        return d;
    cuda_watch_forks();
    pthread_mutex_lock(&the.lock);
    if (!the.tried)
        load_locked();
    pthread_mutex_unlock(&the.lock);
    return atomic_load_explicit(&the.loaded, memory_order_acquire);
}

cairn_status cairn_cuda_use(const char *path)
{
    cairn_status st = CAIRN_OK;
    cuda_watch_forks();
    pthread_mutex_lock(&the.lock);
    if (strlen(path) >= sizeof the.path)
        st = CAIRN_INVAL;
    else if (!the.tried)
        snprintf(the.path, sizeof the.path, "%s", path);
    else if (strcmp(path, the.path) != 0)
        st = CAIRN_STATE;
    pthread_mutex_unlock(&the.lock);
    return st;
}

cairn_status cairn_cuda_option(const char *value, char *err, size_t err_cap)
{
    if (strcmp(value, "auto") == 0)
        return CAIRN_OK;
    cairn_status st = cairn_cuda_use(strcmp(value, "no") == 0 ? "" : value);
    if (st == CAIRN_STATE)
        snprintf(err, err_cap, "cuda=%s: this process has looked for '%s' already; a process has "
                               "one driver", value, the.path);
    else if (st)
        snprintf(err, err_cap, "cuda=%s: the path is too long", value);
    return st;
}

bool cuda_gone(const struct cuda_gpu *g)
{
    uint64_t id = 0;
    cu_result r = the.driver.context_id(g->context, &id);
    return r == CU_INVALID_CONTEXT || r == CU_CONTEXT_IS_DESTROYED ||
           (r == CU_OK && id != g->context_id);
}

/* A lost driver may do it and say that it did not: then the mode it returned tells. */
static bool exchange_mode(struct cuda_gpu *g, int *mode)
{
    int asked = *mode;
    if (cuda_ok(g, "cuThreadExchangeStreamCaptureMode", the.driver.capture_mode(mode)))
        return true;
    if (*mode != asked)
        the.driver.capture_mode(mode);
    return false;
}

bool cuda_enter(struct cuda_gpu *g, struct cuda_entry *e)
{
    /* So that nothing here counts as a part of a graph that another thread captures. */
    e->capture_mode = CU_CAPTURE_MODE_RELAXED;
    e->pushed = false;
    if (atomic_load_explicit(&g->off, memory_order_relaxed) || cuda_gone(g) ||
        !exchange_mode(g, &e->capture_mode))
        return false;
    e->pushed = cuda_ok(g, "cuCtxPushCurrent", the.driver.context_push(g->context));
    if (!e->pushed)
        the.driver.capture_mode(&e->capture_mode);
    return e->pushed;
}

void cuda_leave(struct cuda_entry *e)
{
    cu_context popped = NULL;
    /* A call that was refused is made once more: the thread is its caller's. */
    if (e->pushed && the.driver.context_pop(&popped) != CU_OK && !popped)
        the.driver.context_pop(&popped);
    int mode = e->capture_mode;
    if (the.driver.capture_mode(&mode) != CU_OK && mode == e->capture_mode)
        the.driver.capture_mode(&mode);
    e->pushed = false;
}

/* These say that one call was not possible, not that the context is lost. */
static bool passes(cu_result r)
{
    return r == CU_INVALID_VALUE || r == CU_OUT_OF_MEMORY || r == CU_NOT_SUPPORTED ||
           r == CU_NOT_PERMITTED || r == CU_HOST_MEMORY_ALREADY_REGISTERED ||
           r == CU_HOST_MEMORY_NOT_REGISTERED || r == CU_NO_BINARY_FOR_GPU ||
           (r >= CU_STREAM_CAPTURE_UNSUPPORTED && r <= CU_STREAM_CAPTURE_WRONG_THREAD);
}

bool cuda_ok(struct cuda_gpu *g, const char *call, cu_result r)
{
    const char *text = "unknown error";
    if (r == CU_OK)
        return true;
    if (passes(r))
        return false;
    the.driver.error_string(r, &text);
    if (!atomic_exchange_explicit(&g->off, true, memory_order_relaxed))
        cairn_log(CAIRN_LOG_ERROR, "GPU %s is not used any more: %s: %s; every get and put of its "
                                   "memory is a miss until the process is started again",
                  g->name, call, text);
    pthread_mutex_lock(&g->lock);
    pthread_cond_broadcast(&g->lane_free);
    pthread_mutex_unlock(&g->lock);
    return false;
}

/* --- finding --- */

struct place {
    cu_context context;
    unsigned int type;
    int ordinal;
    cu_ptr start;
    size_t len;
};

static bool place_of(cu_ptr p, struct place *ret)
{
    int attributes[] = {CU_POINTER_CONTEXT, CU_POINTER_MEMORY_TYPE, CU_POINTER_ORDINAL,
                        CU_POINTER_RANGE_START, CU_POINTER_RANGE_SIZE};
    *ret = (struct place){.ordinal = -1};
    void *values[] = {&ret->context, &ret->type, &ret->ordinal, &ret->start, &ret->len};
    return the.driver.pointer_attributes(5, attributes, values, p) == CU_OK &&
           ret->type == CU_MEMORY_DEVICE && ret->ordinal >= 0;
}

static bool within(const struct place *at, cu_ptr p, size_t len)
{
    return p >= at->start && p - at->start <= at->len && len <= at->len - (p - at->start);
}

/* Memory that the virtual memory calls made (torch's expandable segments) has no context of its
 * own: it is used in the device's primary one, which must be there already. */
static bool primary(struct place *at)
{
    cu_device device;
    unsigned int flags;
    int active = 0;
    if (at->context)
        return true;
    return the.driver.device_get(&device, at->ordinal) == CU_OK &&
           the.driver.primary_state(device, &flags, &active) == CU_OK && active &&
           the.driver.primary_retain(&at->context, device) == CU_OK &&
           the.driver.primary_release(device) == CU_OK;
}

/* Lock held. */
static struct cuda_gpu *gpu_make(const struct place *at, uint64_t context_id)
{
    struct cuda_gpu *g = the.gpu_count < CUDA_GPUS ? cairn_calloc(1, sizeof *g) : NULL;
    int read_only = 0;
    if (!g)
        return NULL;
    g->context = at->context;
    g->context_id = context_id;
    pthread_mutex_init(&g->lock, NULL);
    pthread_condattr_t ca;
    pthread_condattr_init(&ca);
    pthread_condattr_setclock(&ca, CLOCK_MONOTONIC);
    pthread_cond_init(&g->lane_free, &ca);
    pthread_condattr_destroy(&ca);
    for (uint32_t i = 0; i < CUDA_LANES; i++)
        g->lanes[i].gpu = g;
    if (the.driver.device_get(&g->device, at->ordinal) != CU_OK)
        g->device = at->ordinal;
    if (the.driver.device_name(g->name, sizeof g->name, g->device) != CU_OK)
        snprintf(g->name, sizeof g->name, "%d", at->ordinal);
    the.driver.device_attribute(&read_only, CU_DEVICE_READ_ONLY_REGISTER, g->device);
    g->read_only_register = read_only != 0;
    return the.gpus[the.gpu_count++] = g;
}

static struct cuda_gpu *gpu_known(const struct place *at)
{
    for (uint32_t i = 0; i < the.gpu_count; i++)
        if (the.gpus[i]->context == at->context)
            return the.gpus[i];
    return NULL;
}

struct cuda_gpu *cuda_gpu_on(cu_device device)
{
    struct cuda_gpu *g = NULL;
    pthread_mutex_lock(&the.lock);
    for (uint32_t i = 0; i < the.gpu_count && !g; i++)
        if (the.gpus[i]->device == device)
            g = the.gpus[i];
    pthread_mutex_unlock(&the.lock);
    return g;
}

/* Memory that a context, which is no more, had registered. */
static void stage_drop(struct cuda_lane *l)
{
    if (l->stage)
        cairn_table_free(l->stage, (size_t)CUDA_FLIGHTS * CUDA_STEP_BYTES);
    l->stage = NULL;
}

/* Whoever has it still finds it off. Its handles are of nothing any more, so none is given back.
 * Lock held. */
static void gpu_bury(struct cuda_gpu *g)
{
    uint32_t i = 0;
    while (the.gpus[i] != g)
        i++;
    the.gpus[i] = the.gpus[--the.gpu_count];
    g->next_gone = the.gone;
    the.gone = g;
    atomic_store_explicit(&g->off, true, memory_order_relaxed);
    pthread_mutex_lock(&g->lock);
    g->gone = true;
    for (i = 0; i < CUDA_LANES; i++)
        if (!g->lanes[i].busy)
            stage_drop(&g->lanes[i]);
    pthread_cond_broadcast(&g->lane_free);
    pthread_mutex_unlock(&g->lock);
}

/* A context that is made again may lie where the last one did: its id tells. NULL: it cannot be
 * used. Lock held. */
static struct cuda_gpu *gpu_in(const struct place *at, uint64_t id, bool *ret_fresh)
{
    struct cuda_gpu *known = gpu_known(at), *g;
    if (known && known->context_id == id)
        return known;
    g = gpu_make(at, id);
    if (g && known)
        gpu_bury(known);
    *ret_fresh = g != NULL;
    return g;
}

static struct cuda_gpu *gpu_get(const struct place *at)
{
    bool fresh = false;
    uint64_t id = 0;
    pthread_mutex_lock(&the.lock);
    /* An id from before could be a dead one's, where another thread knows the next one already. */
    cu_result r = the.driver.context_id(at->context, &id);
    struct cuda_gpu *g = r ? gpu_known(at) : gpu_in(at, id, &fresh);
    pthread_mutex_unlock(&the.lock);
    if (fresh)
        cuda_pin_begin(g);
    if (r && g)
        cuda_ok(g, "cuCtxGetId", r);
    return passes(r) ? NULL : g;
}

/* The allocations that a list lies in: asking for each run would cost as much as its copy. Engines
 * have one a layer, and a list comes by them in the same order again and again. */
struct places {
    struct place at[PLACES];
    uint32_t count, next;
};

static bool places_know(struct places *s, cu_ptr p, size_t len)
{
    for (uint32_t k = 0; k < s->count; k++) {
        uint32_t i = (s->next + k) % s->count;
        if (within(&s->at[i], p, len)) {
            s->next = i + 1;
            return true;
        }
    }
    return false;
}

/* False: it is not device memory, or of another context than those before. */
static bool places_add(struct places *s, cu_ptr p, size_t len)
{
    struct place at;
    if (!place_of(p, &at) || !primary(&at) || !within(&at, p, len) ||
        (s->count && at.context != s->at[0].context))
        return false;
    uint32_t i = s->count < PLACES ? s->count++ : PLACES - 1; /* the others stay known */
    s->at[i] = at;
    s->next = i + 1;
    return true;
}

cairn_status cuda_gpu_of(const struct cairn_sgl *list, struct cuda_gpu **ret)
{
    const char *why;
    struct places seen;
    seen.count = seen.next = 0;
    if (!cuda_driver(&why))
        return CAIRN_UNSUPPORTED;
    for (uint32_t i = 0; i < list->count; i++) {
        cu_ptr p = (cu_ptr)(uintptr_t)list->iov[i].base;
        size_t len = list->iov[i].len;
        if (len && !places_know(&seen, p, len) && !places_add(&seen, p, len))
            return CAIRN_INVAL;
    }
    struct cuda_gpu *g = seen.count ? gpu_get(&seen.at[0]) : NULL;
    if (!g)
        return CAIRN_INVAL;
    *ret = g;
    return atomic_load_explicit(&g->off, memory_order_relaxed) ? CAIRN_IO : CAIRN_OK;
}

/* --- lanes and events --- */

static bool lane_make(struct cuda_lane *l)
{
    if (!cuda_ok(l->gpu, "cuStreamCreate",
                 the.driver.stream_create(&l->stream, CU_STREAM_NON_BLOCKING)))
        return false;
    for (uint32_t i = 0; i < CUDA_FLIGHTS; i++)
        if (!cuda_ok(l->gpu, "cuEventCreate",
                     the.driver.event_create(&l->done[i], CU_EVENT_DISABLE_TIMING))) {
            while (i--)
                the.driver.event_destroy(l->done[i]);
            the.driver.stream_destroy(l->stream);
            return false;
        }
    return true;
}

struct cuda_lane *cuda_lane_take(struct cuda_gpu *g, uint64_t deadline_ns)
{
    struct timespec t = cairn_timespec(deadline_ns);
    struct cuda_lane *l = NULL;
    pthread_mutex_lock(&g->lock);
    while (!l && !atomic_load_explicit(&g->off, memory_order_relaxed)) {
        for (uint32_t i = 0; i < CUDA_LANES && !l; i++)
            if (!g->lanes[i].busy)
                l = &g->lanes[i];
        if (!l && (cairn_now_ns() >= deadline_ns ||
                   pthread_cond_timedwait(&g->lane_free, &g->lock, &t)))
            break;
    }
    if (l)
        l->busy = true;
    pthread_mutex_unlock(&g->lock);
    if (l && !l->made && !(l->made = lane_make(l))) {
        cuda_lane_give(l);
        l = NULL;
    }
    return l;
}

void cuda_lane_give(struct cuda_lane *l)
{
    pthread_mutex_lock(&l->gpu->lock);
    l->busy = false;
    pthread_cond_signal(&l->gpu->lane_free);
    pthread_mutex_unlock(&l->gpu->lock);
}

cu_event cuda_event_take(struct cuda_gpu *g)
{
    cu_event e = NULL;
    pthread_mutex_lock(&g->lock);
    if (g->event_count)
        e = g->events[--g->event_count];
    pthread_mutex_unlock(&g->lock);
    if (!e && !cuda_ok(g, "cuEventCreate", the.driver.event_create(&e, CU_EVENT_DISABLE_TIMING)))
        return NULL;
    return e;
}

void cuda_event_give(struct cuda_gpu *g, cu_event e)
{
    pthread_mutex_lock(&g->lock);
    bool gone = g->gone, kept = !gone && g->event_count < CUDA_EVENTS;
    if (kept)
        g->events[g->event_count++] = e;
    pthread_mutex_unlock(&g->lock);
    if (!kept && !gone)
        the.driver.event_destroy(e);
}

/* CAIRN_TIMEOUT at the deadline; CAIRN_IO: the context is lost, and with it all that was queued;
 * CAIRN_STATE: the driver does not say, time after time. */
static cairn_status event_wait(struct cuda_gpu *g, cu_event e, uint64_t deadline_ns,
                               uint64_t pause_max_ns)
{
    uint64_t begin = cairn_now_ns(), pause = 5000;
    uint32_t refused = 0;
    for (;;) {
        cu_result r = the.driver.event_query(e);
        if (r == CU_OK)
            return CAIRN_OK;
        if (r != CU_NOT_READY && !passes(r)) {
            cuda_ok(g, "cuEventQuery", r);
            return CAIRN_IO;
        }
        if (r != CU_NOT_READY && ++refused == REFUSALS)
            return CAIRN_STATE;
        uint64_t now = cairn_now_ns();
        if (now >= deadline_ns)
            return CAIRN_TIMEOUT;
        if (now - begin > SPIN_NS) {
            pause = pause < deadline_ns - now ? pause : deadline_ns - now;
            nanosleep(&(struct timespec){.tv_nsec = (long)pause}, NULL);
            pause = pause * 2 < pause_max_ns ? pause * 2 : pause_max_ns;
        }
    }
}

/* Copies are under way whose end nobody will see: the GPU is not used any more, nor is what they
 * may still write to. */
static cairn_status lost(struct cuda_lane *l, const char *what)
{
    l->lost = true;
    cuda_ok(l->gpu, what, CU_UNKNOWN);
    return CAIRN_STATE;
}

bool cuda_lane_stage(struct cuda_lane *l)
{
    if (!l->stage)
        l->stage = cuda_pin_alloc(l->gpu, (size_t)CUDA_FLIGHTS * CUDA_STEP_BYTES,
                                  &l->stage_device);
    return l->stage != NULL;
}

bool cuda_lane_mark(struct cuda_lane *l, uint32_t place)
{
    for (uint32_t tries = 0; tries < 4; tries++)
        if (cuda_ok(l->gpu, "cuEventRecord",
                    the.driver.event_record(l->done[place], l->stream)))
            return true;
    lost(l, "the end of a copy cannot be asked for");
    return false;
}

cairn_status cuda_lane_wait(struct cuda_lane *l, uint32_t place)
{
    /* Also on a GPU that another's error turned off: its copies may go on and end. */
    uint64_t deadline = l->lost ? 0 : cairn_deadline_ns(HANG_NS);
    cairn_status st = event_wait(l->gpu, l->done[place], deadline, COPY_PAUSE_NS);
    return st == CAIRN_TIMEOUT || st == CAIRN_STATE
               ? lost(l, "a copy was not done after 10 s, or its end could not be asked for")
               : st;
}

/* --- order --- */

/* The handles that name another stream in each context: the default ones. */
static bool default_stream(const void *stream)
{
    return (uintptr_t)stream <= CU_STREAM_PER_THREAD;
}

/* One that is not is the caller's mistake, and no reason to turn the GPU off. */
static bool stream_fits(struct cuda_gpu *g, cu_stream stream)
{
    cu_context context;
    if (default_stream(stream))
        return true;
    cu_result r = the.driver.stream_context(stream, &context);
    return r != CU_INVALID_HANDLE && cuda_ok(g, "cuStreamGetCtx", r) && context == g->context;
}

bool cuda_ordered(const struct cairn_order_point *p, const struct cairn_sgl *list)
{
    const struct cuda_gpu *g = p->owner;
    if (p->stream != list->stream || !default_stream(p->stream))
        return p->stream == list->stream;
    struct place at;
    for (uint32_t i = 0; i < list->count; i++)
        if (list->iov[i].len)
            return place_of((cu_ptr)(uintptr_t)list->iov[i].base, &at) && primary(&at) &&
                   at.context == g->context;
    return true;
}

/* Entered. Remembers what is queued on the stream. */
static cairn_status stream_mark(struct cuda_gpu *g, cu_stream stream, void **ret_event)
{
    int capturing = CU_CAPTURE_NONE;
    if (!stream_fits(g, stream))
        return CAIRN_INVAL;
    if (!cuda_ok(g, "cuStreamIsCapturing", the.driver.stream_capturing(stream, &capturing)) ||
        capturing != CU_CAPTURE_NONE)
        return CAIRN_UNSUPPORTED;
    cu_event event = cuda_event_take(g);
    if (!event)
        return CAIRN_IO;
    if (!cuda_ok(g, "cuEventRecord", the.driver.event_record(event, stream))) {
        cuda_event_give(g, event);
        return CAIRN_IO;
    }
    *ret_event = event;
    return CAIRN_OK;
}

cairn_status cuda_order(const struct cairn_sgl *list, struct cairn_order_point *ret)
{
    struct cuda_gpu *g;
    struct cuda_entry e;
    cairn_status st = cuda_gpu_of(list, &g);
    if (st)
        return st;
    if (!cuda_enter(g, &e))
        return CAIRN_IO;
    ret->owner = g;
    st = stream_mark(g, ret->stream, &ret->event);
    cuda_leave(&e);
    return st;
}

cairn_status cuda_order_wait(const struct cairn_order_point *p, uint64_t deadline_ns)
{
    struct cuda_entry e;
    if (!cuda_enter(p->owner, &e))
        return CAIRN_IO;
    cairn_status st = event_wait(p->owner, p->event, deadline_ns, STREAM_PAUSE_NS);
    cuda_leave(&e);
    return st == CAIRN_STATE ? CAIRN_IO : st;
}

void cuda_order_end(const struct cairn_order_point *p)
{
    cuda_event_give(p->owner, p->event);
}

/* --- the end, for tests --- */

static void gpu_drop(struct cuda_gpu *g)
{
    pthread_cond_destroy(&g->lane_free);
    pthread_mutex_destroy(&g->lock);
    free(g);
}

static void gone_free(struct cuda_gpu *g)
{
    for (uint32_t i = 0; i < CUDA_LANES; i++)
        stage_drop(&g->lanes[i]);
    gpu_drop(g);
}

static void gpu_free(struct cuda_gpu *g)
{
    struct cuda_entry e;
    if (cuda_gone(g)) {
        gone_free(g);
        return;
    }
    bool in = cuda_enter(g, &e);
    for (uint32_t i = 0; i < CUDA_LANES; i++) {
        struct cuda_lane *l = &g->lanes[i];
        for (uint32_t k = 0; l->made && k < CUDA_FLIGHTS; k++)
            the.driver.event_destroy(l->done[k]);
        if (l->made)
            the.driver.stream_destroy(l->stream);
        if (l->stage)
            cuda_pin_free(l->stage, (size_t)CUDA_FLIGHTS * CUDA_STEP_BYTES);
    }
    while (g->event_count)
        the.driver.event_destroy(g->events[--g->event_count]);
    if (g->measure_memory)
        the.driver.free(g->measure_memory);
    if (g->module)
        the.driver.module_unload(g->module);
    if (in)
        cuda_leave(&e);
    gpu_drop(g);
}

void cairn_cuda_close(void)
{
    cuda_pin_end();
    while (the.gpu_count)
        gpu_free(the.gpus[--the.gpu_count]);
    for (struct cuda_gpu *g; (g = the.gone);) {
        the.gone = g->next_gone;
        gone_free(g);
    }
    pthread_mutex_lock(&the.lock);
    atomic_store_explicit(&the.loaded, NULL, memory_order_release);
    the.tried = false;
    pthread_mutex_unlock(&the.lock);
}

const struct cairn_mem_kind cairn_mem_kind_cuda = {.name = "cuda",
                                                   .mem = CAIRN_MEM_CUDA,
                                                   .order = cuda_order,
                                                   .ordered = cuda_ordered,
                                                   .order_wait = cuda_order_wait,
                                                   .order_end = cuda_order_end,
                                                   .out = cuda_out,
                                                   .in = cuda_in,
                                                   .offer = cuda_offer,
                                                   .withdraw = cuda_withdraw};
