/* The NVMe tier: its thread, its queue and its vtable. The log itself is in log_*.c. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/options.h"
#include "storage/nvme.h"

/* Close gives the device so long to take what is queued. */
#define CLOSE_NS (8 * CAIRN_NS_PER_S)
/* Records up to this size are carried over by reclaim. */
#define CARRY_BLOCKS ((16u << 20) / CAIRN_BLOCK + 1u)

/* --- small things shared by the log's files --- */

void nvme_list_push(struct nvme_ops_list *l, struct cairn_tier_op *op)
{
    op->next = NULL;
    if (l->tail)
        l->tail->next = op;
    else
        l->head = op;
    l->tail = op;
}

void nvme_list_push_front(struct nvme_ops_list *l, struct cairn_tier_op *op)
{
    op->next = l->head;
    l->head = op;
    if (!l->tail)
        l->tail = op;
}

struct cairn_tier_op *nvme_list_pop(struct nvme_ops_list *l)
{
    struct cairn_tier_op *op = l->head;
    if (!op)
        return NULL;
    l->head = op->next;
    if (!l->head)
        l->tail = NULL;
    op->next = NULL;
    return op;
}

void nvme_watch(struct cairn_nvme *t, uint64_t deadline_ns)
{
    if (deadline_ns < t->deadline_next)
        t->deadline_next = deadline_ns;
}

cairn_status nvme_fail(struct cairn_nvme *t, cairn_status st, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(t->err, sizeof t->err, fmt, ap);
    va_end(ap);
    return st;
}

static uint32_t queue_of(const struct cairn_tier_op *op)
{
    return op->kind == CAIRN_TIER_LOAD ? 0 : op->kind == CAIRN_TIER_STORE ? 1 : 2;
}

static void op_measure(struct cairn_nvme *t, const struct cairn_tier_op *op)
{
    uint64_t now = cairn_now_ns(), ns = now - (uint64_t)(uintptr_t)op->tier_private;
    switch (op->kind) {
    case CAIRN_TIER_LOAD:
        nvme_count(&t->stats.loads, 1);
        nvme_count(&t->stats.read_bytes,
                   op->header_only ? CAIRN_BLOCK : (uint64_t)op->blocks * CAIRN_BLOCK);
        cairn_hist_add(&t->stats.load_ns, ns);
        break;
    case CAIRN_TIER_STORE:
        nvme_count(&t->stats.stores, 1);
        cairn_hist_add(&t->stats.store_ns, ns);
        atomic_store_explicit(&t->stats.last_store_ns, now, memory_order_relaxed);
        break;
    case CAIRN_TIER_TOMBSTONE:
    case CAIRN_TIER_CLEAR:
        nvme_count(&t->stats.tombstones, 1);
        break;
    case CAIRN_TIER_SYNC:
        nvme_count(&t->stats.syncs, 1);
        cairn_hist_add(&t->stats.sync_ns, ns);
        break;
    }
}

void nvme_op_done(struct cairn_nvme *t, struct cairn_tier_op *op, cairn_status st,
                  enum cairn_cause cause)
{
    op->status = st;
    op->cause = cause;
    if (!nvme_carrying(t, op)) {
        atomic_fetch_sub_explicit(&t->queued[queue_of(op)], 1, memory_order_relaxed);
        if (st == CAIRN_OK)
            op_measure(t, op);
    }
    op->done(op);
}

void nvme_image_back(struct cairn_nvme *t, struct cairn_record_disk *image, uint32_t blocks)
{
    if (image == t->reclaim.image)
        t->reclaim.image_busy = false;
    else
        t->host.image_back(t->host.arg, image, blocks);
}

void nvme_turn_off(struct cairn_nvme *t, const char *why)
{
    if (t->off)
        return;
    nvme_count(&t->stats.turned_off, 1);
    nvme_probe_plan(t, cairn_now_ns());
    pthread_mutex_lock(&t->lock);
    t->off = true;
    bool ready = t->ready;
    pthread_mutex_unlock(&t->lock);
    if (ready)
        t->host.turned_off(t->host.arg, why);
    else
        nvme_fail(t, CAIRN_IO, "%s", why);
}

/* --- the loop --- */

static bool inbox_take(struct cairn_nvme *t)
{
    pthread_mutex_lock(&t->lock);
    struct nvme_ops_list in = t->inbox;
    t->inbox = (struct nvme_ops_list){0};
    if (t->close_asked)
        t->closing = true;
    pthread_mutex_unlock(&t->lock);
    struct cairn_tier_op *op;
    bool any = in.head != NULL;
    while ((op = nvme_list_pop(&in)) != NULL) {
        nvme_watch(t, op->deadline_ns);
        nvme_list_push(op->kind == CAIRN_TIER_LOAD ? &t->rq : &t->wq, op);
    }
    return any;
}

static void start(struct cairn_nvme *t, uint64_t now)
{
    if (t->off)
        return;
    nvme_reads_start(t);
    nvme_writes_start(t, now);
}

static void expire(struct cairn_nvme *t, uint64_t now)
{
    t->deadline_next = UINT64_MAX;
    nvme_reads_expire(t, now);
    nvme_writes_expire(t, now);
}

/* Nothing accepted is unanswered and the device has answered all it ever will in time. Once the
 * tier is off, what it still wanted to do for itself is never done. */
static bool drained(const struct cairn_nvme *t)
{
    bool own_work = t->waiters || t->ident_pending || t->ident_writing;
    return !t->rq.head && !t->wq.head && !t->fifo_head && !t->loads_active && !t->sync_wait.head &&
           !t->sync_fly.head && !t->sync_out && t->out == t->lost_out && (t->off || !own_work);
}

static bool lap(struct cairn_nvme *t)
{
    struct nvme_io *done[32];
    bool busy = inbox_take(t);
    uint32_t n = nvme_io_poll(t, done, 32);
    uint64_t now = cairn_now_ns();
    start(t, now);
    /* The device gets its next ios before the bytes of the last ones are hashed. */
    if (n > 0)
        t->q->ops->poll(t->q, NULL, 0);
    for (uint32_t i = 0; i < n; i++)
        nvme_io_finish(t, done[i]);
    nvme_writes_pop(t);
    nvme_segs_pump(t);
    nvme_reclaim_pump(t);
    nvme_sync_pump(t);
    nvme_ident_pump(t);
    nvme_super_pump(t);
    nvme_prewrite_pump(t, now);
    if (now >= t->deadline_next || t->off) {
        busy = busy || now >= t->deadline_next;
        expire(t, now);
    }
    nvme_probe_pump(t, now);
    if (now >= t->io_look_ns) {
        uint32_t lost = t->lost_out;
        nvme_io_expire(t, now);
        t->io_look_ns = now + t->o.io_deadline_ns / 4;
        /* What was given up is answered on the next lap, not when something else happens. */
        busy = busy || t->lost_out != lost;
    }
    return busy || n > 0;
}

static void rest(struct cairn_nvme *t)
{
    uint64_t until = t->deadline_next;
    if (t->out > t->lost_out && t->io_look_ns < until)
        until = t->io_look_ns;
    if (t->closing && t->close_by_ns < until)
        until = t->close_by_ns;
    t->q->ops->wait(t->q, until);
}

/* The device does not take the rest in time. */
static void give_up(struct cairn_nvme *t)
{
    char why[256];
    snprintf(why, sizeof why, "%s: closed while the device still had work", t->path);
    t->probe.never = true;
    nvme_turn_off(t, why);
    t->o.io_deadline_ns = 0;
    nvme_io_expire(t, UINT64_MAX);
    nvme_writes_pop(t);
    expire(t, UINT64_MAX);
    nvme_writes_pop(t);
    expire(t, UINT64_MAX);
}

static void finish(struct cairn_nvme *t)
{
    if (!t->off && t->lost_out == 0 && nvme_io_now(t, CAIRN_IO_SYNC, 0, NULL, 0) == 0) {
        struct cairn_super_disk *s = t->stages_memory;
        t->super_durable = t->super_landed;
        if (t->seg_open != NVME_SEG_NONE && !t->segs[t->seg_open].broken) {
            t->closed_generation = t->segs[t->seg_open].generation;
            t->closed_block = t->segs[t->seg_open].next;
        }
        nvme_super_image(t, s);
        if (nvme_io_now(t, CAIRN_IO_WRITE, nvme_super_off(s->sequence), s, CAIRN_BLOCK) == 0)
            nvme_io_now(t, CAIRN_IO_SYNC, 0, NULL, 0);
    }
}

static void loop(struct cairn_nvme *t)
{
    for (;;) {
        bool busy = lap(t);
        if (t->closing) {
            if (t->close_by_ns == UINT64_MAX)
                t->close_by_ns = cairn_deadline_ns(CLOSE_NS);
            if (!busy && drained(t))
                break;
            if (cairn_now_ns() >= t->close_by_ns) {
                give_up(t);
                break;
            }
        }
        if (!busy)
            rest(t);
    }
    finish(t);
}

/* 0: the device does not answer. Into memory of its own, which then stays: a read that comes back
 * after all must not land in the arena. */
static uint32_t depth_measure(struct cairn_nvme *t)
{
    uint32_t used = 0;
    while (used < t->shape.segments && !t->segs[used].blank && t->segs[used].state != SEG_SKIPPED)
        used++;
    if (used < t->prewritten)
        used = t->prewritten;
    /* Never written extents are not read from the device; a device of the caller's own is not
     * behind the file descriptor. */
    if (used == 0 || t->o.ioq_arg)
        return NVME_DEPTH;
    size_t len = NVME_DEPTH_MAX * (size_t)NVME_PIECE;
    void *memory = cairn_table_alloc(len);
    if (!memory)
        return NVME_DEPTH;
    uint32_t depth = cairn_ioq_measure_depth(t->o.ioq, t->fd, memory, len,
                                             CAIRN_DATA_OFFSET + used * t->shape.segment_bytes,
                                             NVME_PIECE);
    if (depth)
        cairn_table_free(memory, len);
    return depth;
}

static cairn_status begin(struct cairn_nvme *t)
{
    cairn_status st = nvme_io_open(t);
    if (st)
        return nvme_fail(t, st, "%s: the %s engine cannot start: %s; try another engine=", t->path,
                         t->o.ioq->name, cairn_status_name(st));
    st = nvme_super_open(t);
    if (!st)
        st = nvme_ident_load(t);
    if (!st)
        st = nvme_recover(t);
    if (!st && t->off)
        st = CAIRN_IO;
    if (!st) {
        t->info.depth = depth_measure(t);
        memset(t->scratch, 0, NVME_SCRATCH);
    }
    if (!st && t->info.depth == 0)
        st = nvme_fail(t, CAIRN_IO, "%s: the device does not answer reads; check its health",
                       t->path);
    return st;
}

static void *run(void *arg)
{
    struct cairn_nvme *t = arg;
    pthread_setname_np(pthread_self(), "cairn-nvme");
    cairn_status st = begin(t);
    pthread_mutex_lock(&t->lock);
    t->open_status = st;
    t->ready = true;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
    if (!st)
        loop(t);
    bool all = t->q ? t->q->ops->close(t->q) : true;
    pthread_mutex_lock(&t->lock);
    t->finished = true;
    t->held = !all || t->info.depth == 0;
    pthread_cond_broadcast(&t->changed);
    pthread_mutex_unlock(&t->lock);
    return NULL;
}

/* --- opening and closing --- */

static void memory_free(struct cairn_nvme *t)
{
    cairn_table_free(t->io_blocks, (size_t)NVME_IOS * CAIRN_BLOCK);
    cairn_table_free(t->stages_memory, NVME_STAGES * (size_t)NVME_PIECE);
    cairn_table_free(t->scratch, NVME_SCRATCH);
    cairn_table_free(t->idents, CAIRN_IDENT_SLOTS * (size_t)CAIRN_BLOCK);
    cairn_table_free(t->reclaim.sums, t->footer_room);
    for (uint32_t i = 0; i < t->reclaim.left_count; i++)
        cairn_table_free(t->reclaim.left[i], t->footer_room);
    if (t->reclaim.image)
        cairn_table_free(t->reclaim.image, (size_t)t->reclaim.image_blocks * CAIRN_BLOCK);
    for (uint32_t i = 0; i < NVME_FOOTERS; i++)
        cairn_table_free(t->footers[i].sums, t->footer_room);
    free(t->ios);
    free(t->segs);
    free(t->loads);
    free(t->units);
    free(t->path);
    pthread_mutex_destroy(&t->lock);
    pthread_mutex_destroy(&t->ident_lock);
    pthread_cond_destroy(&t->changed);
    free(t);
}

static bool memory_open(struct cairn_nvme *t)
{
    t->footer_room = (size_t)cairn_footer_blocks(t->seg_blocks) * CAIRN_BLOCK;
    t->segs = cairn_calloc(t->shape.segments, sizeof *t->segs);
    t->loads = cairn_calloc(NVME_LOADS, sizeof *t->loads);
    t->units = cairn_calloc(NVME_UNITS, sizeof *t->units);
    t->stages_memory = cairn_table_alloc(NVME_STAGES * (size_t)NVME_PIECE);
    t->stages = t->stages_memory;
    t->scratch = cairn_table_alloc(NVME_SCRATCH);
    t->idents = cairn_table_alloc(CAIRN_IDENT_SLOTS * (size_t)CAIRN_BLOCK);
    t->reclaim.sums = cairn_table_alloc(t->footer_room);
    uint32_t carry = (uint32_t)((uint64_t)t->seg_blocks * t->o.reinsert_percent / 100);
    t->reclaim.image_blocks = carry < CARRY_BLOCKS ? carry : CARRY_BLOCKS;
    if (t->reclaim.image_blocks)
        t->reclaim.image = cairn_table_alloc((size_t)t->reclaim.image_blocks * CAIRN_BLOCK);
    bool ok = t->segs && t->loads && t->units && t->stages && t->scratch && t->idents &&
              t->reclaim.sums && (t->reclaim.image || !t->reclaim.image_blocks);
    for (uint32_t i = 0; i < NVME_FOOTERS; i++) {
        t->footers[i].seg = NVME_SEG_NONE;
        t->footers[i].sums = cairn_table_alloc(t->footer_room);
        ok = ok && t->footers[i].sums;
    }
    for (uint32_t i = 0; ok && i < NVME_LOADS; i++) {
        t->loads[i].next = t->loads_free;
        t->loads_free = &t->loads[i];
    }
    for (uint32_t i = 0; ok && i < NVME_UNITS; i++) {
        t->units[i].next = t->units_free;
        t->units_free = &t->units[i];
    }
    return ok;
}

static cairn_status shape_of(struct cairn_nvme *t)
{
    uint64_t seg = cairn_segment_bytes_for(t->o.disk_bytes);
    char size[32];
    cairn_format_size(t->o.disk_bytes, size, sizeof size);
    if (!seg)
        return nvme_fail(t, CAIRN_INVAL, "disk=%s is too small for a log; give it 32 MiB or more",
                         size);
    uint64_t segments = t->o.disk_bytes / seg;
    if (CAIRN_DATA_OFFSET / CAIRN_BLOCK + segments * (seg / CAIRN_BLOCK) > UINT32_MAX)
        return nvme_fail(t, CAIRN_INVAL,
                         "disk=%s is too large for one log; give it less than 16 TiB", size);
    t->shape.segment_bytes = seg;
    t->shape.segments = (uint32_t)segments;
    t->seg_blocks = (uint32_t)(seg / CAIRN_BLOCK);
    /* Beside the head, a footer of one record, and the record's header. */
    uint64_t value_max = (uint64_t)(t->seg_blocks - 1 - cairn_footer_blocks(1) - 1) * CAIRN_BLOCK;
    t->info = (struct cairn_tier_info){
        .capacity_bytes = segments * seg,
        .segment_bytes = seg,
        .segments = t->shape.segments,
        .value_max = (uint32_t)(value_max < CAIRN_VALUE_MAX ? value_max : CAIRN_VALUE_MAX),
        .engine = t->o.ioq->name,
        .depth = NVME_DEPTH,
    };
    return CAIRN_OK;
}

static struct cairn_nvme *create(const struct cairn_tier_opts *o,
                                 const struct cairn_tier_host *host)
{
    struct cairn_nvme *t = cairn_calloc(1, sizeof *t);
    char *path = t ? cairn_malloc(strlen(o->path) + 1) : NULL;
    if (!path) {
        free(t);
        return NULL;
    }
    strcpy(path, o->path);
    t->tier.ops = cairn_tier_find("nvme");
    t->o = *o;
    t->o.path = t->path = path;
    t->host = *host;
    t->fd = -1;
    t->seg_open = t->seg_ready = t->seg_preparing = NVME_SEG_NONE;
    t->prewrite.seg = t->reclaim.seg = NVME_SEG_NONE;
    t->stages_free = (1u << NVME_STAGES) - 1;
    t->deadline_next = t->close_by_ns = UINT64_MAX;
    pthread_mutex_init(&t->lock, NULL);
    pthread_mutex_init(&t->ident_lock, NULL);
    pthread_cond_init(&t->changed, NULL);
    return t;
}

static struct cairn_nvme *_Atomic held_logs;

/* Waits for the thread's end. False: the device still has memory, and the thread with it. */
static bool reap(struct cairn_nvme *t)
{
    pthread_mutex_lock(&t->lock);
    while (!t->finished)
        pthread_cond_wait(&t->changed, &t->lock);
    bool held = t->held;
    pthread_mutex_unlock(&t->lock);
    nvme_file_close(t);
    if (held) {
        /* What the device may still write into, and the thread that the kernel holds back, stay; on
         * a list, so that no leak checker takes them for forgotten. */
        pthread_detach(t->thread);
        t->held_next = atomic_load(&held_logs);
        while (!atomic_compare_exchange_weak(&held_logs, &t->held_next, t)) {
        }
        return false;
    }
    pthread_join(t->thread, NULL);
    memory_free(t);
    return true;
}

static bool thread_start(struct cairn_nvme *t)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int err = pthread_create(&t->thread, NULL, run, t);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return err == 0;
}

static cairn_status tier_open(const struct cairn_tier_opts *o, const struct cairn_tier_host *host,
                              struct cairn_tier **ret, char *err, size_t err_cap)
{
    struct cairn_nvme *t = create(o, host);
    if (!t) {
        snprintf(err, err_cap, "%s: no memory for the log", o->path);
        return CAIRN_NOMEM;
    }
    cairn_status st = shape_of(t);
    if (!st && !memory_open(t))
        st = nvme_fail(t, CAIRN_NOMEM, "%s: no memory for the tables of the log", t->path);
    if (!st)
        st = nvme_file_open(t);
    if (!st && !thread_start(t))
        st = nvme_fail(t, CAIRN_NOMEM, "%s: no thread for the log; raise the limit", t->path);
    if (st) {
        snprintf(err, err_cap, "%s", t->err);
        nvme_file_close(t);
        memory_free(t);
        return st;
    }
    pthread_mutex_lock(&t->lock);
    while (!t->ready)
        pthread_cond_wait(&t->changed, &t->lock);
    st = t->open_status;
    pthread_mutex_unlock(&t->lock);
    if (st) {
        snprintf(err, err_cap, "%s", t->err);
        reap(t);
        return st;
    }
    t->info.version_max = t->version_max;
    *ret = &t->tier;
    return CAIRN_OK;
}

static bool tier_close(struct cairn_tier *tier)
{
    struct cairn_nvme *t = (struct cairn_nvme *)tier;
    if (!t)
        return true;
    pthread_mutex_lock(&t->lock);
    t->close_asked = true;
    /* Under the lock: once the thread has seen it, the queue may be gone any time. */
    t->q->ops->wake(t->q);
    pthread_mutex_unlock(&t->lock);
    return reap(t);
}

/* --- the rest of the vtable --- */

static bool op_sound(const struct cairn_nvme *t, const struct cairn_tier_op *op)
{
    if (op->kind != CAIRN_TIER_LOAD && op->kind != CAIRN_TIER_STORE)
        return true;
    if (!op->image || ((uintptr_t)op->image & (CAIRN_BLOCK - 1)) != 0 || op->blocks < 2)
        return false;
    uint32_t pieces = cairn_piece_count(op->value_len);
    return op->kind == CAIRN_TIER_STORE || op->piece_count == 0 ||
           (op->piece_first < pieces && op->piece_count <= pieces - op->piece_first &&
            op->value_len <= CAIRN_VALUE_MAX && op->blocks <= t->seg_blocks);
}

static cairn_status tier_submit(struct cairn_tier *tier, struct cairn_tier_op *op)
{
    struct cairn_nvme *t = (struct cairn_nvme *)tier;
    if (!op_sound(t, op))
        return CAIRN_INVAL;
    if (op->kind == CAIRN_TIER_STORE &&
        (uint64_t)op->blocks + 1 + cairn_footer_blocks(1) > t->seg_blocks)
        return CAIRN_TOOBIG;
    op->image_lost = false;
    op->status = CAIRN_INPROGRESS;
    op->cause = CAIRN_CAUSE_NONE;
    op->tier_private = (void *)(uintptr_t)cairn_now_ns();
    _Atomic uint32_t *queued = &t->queued[queue_of(op)];
    pthread_mutex_lock(&t->lock);
    cairn_status st = t->off || t->close_asked ? CAIRN_STATE : CAIRN_OK;
    if (!st && atomic_load_explicit(queued, memory_order_relaxed) >= t->o.queue_max)
        st = CAIRN_BUSY;
    bool first = !t->inbox.head;
    if (!st) {
        atomic_fetch_add_explicit(queued, 1, memory_order_relaxed);
        nvme_list_push(&t->inbox, op);
    }
    pthread_mutex_unlock(&t->lock);
    if (!st && first)
        t->q->ops->wake(t->q);
    return st;
}

static void tier_info(const struct cairn_tier *tier, struct cairn_tier_info *ret)
{
    /* off changes under the lock, which a reader takes too. */
    struct cairn_nvme *t = (struct cairn_nvme *)(uintptr_t)tier;
    *ret = t->info;
    pthread_mutex_lock(&t->lock);
    ret->off = t->off;
    ret->stays_off = !t->o.probe_ns || t->probe.never;
    pthread_mutex_unlock(&t->lock);
}

static const struct cairn_tier_stats *tier_stats(const struct cairn_tier *tier)
{
    return &((const struct cairn_nvme *)tier)->stats;
}

/* Segments are reclaimed in the order of their generations. */
static bool tier_outlives(const struct cairn_tier *tier, uint32_t block, uint32_t than)
{
    const struct cairn_nvme *t = (const struct cairn_nvme *)tier;
    uint32_t mine = t->segs[cairn_segment_of(&t->shape, block)].generation;
    uint32_t other = t->segs[cairn_segment_of(&t->shape, than)].generation;
    return mine != other ? mine > other : block > than;
}

static const struct cairn_tier_ops nvme_ops = {
    .name = "nvme",
    .open = tier_open,
    .submit = tier_submit,
    .info = tier_info,
    .outlives = tier_outlives,
    .stats = tier_stats,
    .ident_put = nvme_ident_put,
    .ident_each = nvme_ident_each,
    .close = tier_close,
};

const struct cairn_tier_ops *cairn_tier_find(const char *name)
{
    return strcmp(name, nvme_ops.name) == 0 ? &nvme_ops : NULL;
}
