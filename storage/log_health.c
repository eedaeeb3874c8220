/* A tier that turned itself off, and its way back. After a pause the device is tried: a superblock
 * is written, and zeros where the last write failed, both are synced and the superblock is read
 * again. If that goes well the tier is on again, and the next failure of a kind turns it off for a
 * longer pause. What was written and never synced is not trusted: the host is told to forget it. */
#include "storage/nvme.h"

#include <inttypes.h>

#include "base/clock.h"
#include "base/log.h"

#define PAUSE_MAX_NS (60 * CAIRN_NS_PER_S)

void nvme_probe_plan(struct cairn_nvme *t, uint64_t now)
{
    struct nvme_probe *p = &t->probe;
    bool soon = p->back_ns && now - p->back_ns < PAUSE_MAX_NS;
    p->pause_ns = soon ? 2 * p->pause_ns : t->o.probe_ns;
    if (p->pause_ns > PAUSE_MAX_NS)
        p->pause_ns = PAUSE_MAX_NS;
    p->at_ns = now + p->pause_ns;
}

/* --- trying the device --- */

static void probe_failed(struct cairn_nvme *t, const char *what)
{
    uint64_t now = cairn_now_ns();
    t->probe.flying = false;
    t->probe.back_ns = now; /* the next pause is twice as long */
    nvme_probe_plan(t, now);
    cairn_log(CAIRN_LOG_INFO, "%s: still off, %s; tried again in %" PRIu64 " ms", t->path, what,
              (uint64_t)(t->probe.pause_ns / CAIRN_NS_PER_MS));
}

/* Nothing waits for an io that the device has not answered, so nothing written before can land
 * behind what is written now. */
static bool quiet(const struct cairn_nvme *t)
{
    return t->out == 0 && !t->rq.head && !t->wq.head && !t->fifo_head && !t->loads_active &&
           !t->sync_wait.head && !t->sync_fly.head;
}

static void probe_step(struct cairn_nvme *t, nvme_io_fn done, enum cairn_io_kind kind, uint64_t off,
                       bool zeros)
{
    struct nvme_io *x = nvme_io_take(t);
    if (!x) {
        probe_failed(t, "there is no io left");
        return;
    }
    x->done = done;
    nvme_io_start(t, x, kind, off, zeros ? t->scratch : x->block,
                  kind == CAIRN_IO_SYNC ? 0 : CAIRN_BLOCK);
}

static void probe_read(struct cairn_nvme *t, struct nvme_io *x)
{
    const struct cairn_super_disk *s = x->block;
    if (x->res || cairn_super_check(s) != CAIRN_VERDICT_OK || s->sequence != t->probe.sequence) {
        probe_failed(t, x->res ? "a read failed" : "it does not read what it wrote");
        return;
    }
    t->super_landed = t->super_durable = t->probe.sequence;
    nvme_come_back(t);
}

static void probe_synced(struct cairn_nvme *t, struct nvme_io *x)
{
    if (x->res)
        probe_failed(t, "a sync failed");
    else
        probe_step(t, probe_read, CAIRN_IO_READ, nvme_super_off(t->probe.sequence), false);
}

static void probe_zeroed(struct cairn_nvme *t, struct nvme_io *x)
{
    if (x->res)
        probe_failed(t, "a write failed where one had failed before");
    else
        probe_step(t, probe_synced, CAIRN_IO_SYNC, 0, false);
}

/* The block of the last write that failed, if nothing depends on what is there: in a segment that
 * is free, or the place of a record that failed behind all that can be found in its segment. */
static bool failed_place(const struct cairn_nvme *t, uint64_t off)
{
    uint32_t block = (uint32_t)(off / CAIRN_BLOCK);
    uint32_t seg = off < CAIRN_DATA_OFFSET ? NVME_SEG_NONE : cairn_segment_of(&t->shape, block);
    if (seg == NVME_SEG_NONE)
        return false;
    const struct nvme_seg *s = &t->segs[seg];
    if (s->state == SEG_FREE)
        return true;
    for (uint32_t i = 0; i < NVME_FOOTERS; i++) {
        const struct nvme_footer *f = &t->footers[i];
        for (uint32_t n = 0; f->seg == seg && s->broken && n < s->count; n++)
            if (f->sums[n].block == block)
                return f->sums[n].kind == CAIRN_RECORD_HOLE && block >= s->done;
    }
    return false;
}

static void probe_written(struct cairn_nvme *t, struct nvme_io *x)
{
    if (x->res)
        probe_failed(t, "a write failed");
    else if (failed_place(t, t->probe.failed_off))
        probe_step(t, probe_zeroed, CAIRN_IO_WRITE, t->probe.failed_off, true);
    else
        probe_step(t, probe_synced, CAIRN_IO_SYNC, 0, false);
}

void nvme_probe_pump(struct cairn_nvme *t, uint64_t now)
{
    struct nvme_probe *p = &t->probe;
    char why[512];
    if (!t->off || !t->o.probe_ns || p->never || p->flying || t->closing)
        return;
    if (now < p->at_ns || !quiet(t)) {
        nvme_watch(t, now < p->at_ns ? p->at_ns : now + t->o.probe_ns);
        return;
    }
    if (!nvme_file_intact(t, why, sizeof why)) {
        p->never = true;
        cairn_log(CAIRN_LOG_ERROR, "%s; the disk tier stays off until a restart", why);
        return;
    }
    struct nvme_io *x = nvme_io_take(t);
    if (!x)
        return;
    nvme_count(&t->stats.probes, 1);
    p->flying = true;
    nvme_super_image(t, x->block);
    p->sequence = t->super_sequence;
    x->done = probe_written;
    nvme_io_start(t, x, CAIRN_IO_WRITE, nvme_super_off(p->sequence), x->block, CAIRN_BLOCK);
}

/* --- coming back --- */

void nvme_distrust(struct cairn_nvme *t, struct nvme_footer *f)
{
    const struct nvme_seg *s = &t->segs[f->seg];
    for (uint32_t i = 0; i < s->count; i++) {
        struct cairn_summary_disk *sum = &f->sums[i];
        if (sum->block < s->synced || sum->kind == CAIRN_RECORD_HOLE)
            continue;
        if (sum->kind == CAIRN_RECORD_VALUE)
            t->host.doubted(t->host.arg, sum);
        sum->kind = CAIRN_RECORD_HOLE;
        sum->value_len = 0;
    }
    if (s->next != s->synced)
        nvme_seg_break(t, f->seg);
}

void nvme_come_back(struct cairn_nvme *t)
{
    for (uint32_t i = 0; i < NVME_FOOTERS; i++)
        if (nvme_footer_live(&t->footers[i]))
            nvme_distrust(t, &t->footers[i]);
    struct nvme_waiter *w = t->waiters;
    t->waiters = NULL;
    while (w) {
        struct nvme_waiter *next = w->next;
        w->fn(t, w, false);
        w = next;
    }
    t->failed = false;
    nvme_io_last_chance(t);
    t->probe.flying = false;
    t->probe.back_ns = cairn_now_ns();
    pthread_mutex_lock(&t->lock);
    t->off = false;
    pthread_mutex_unlock(&t->lock);
    t->host.turned_on(t->host.arg);
}
