/* Ios of the log: short ones are continued, failed ones tried twice, old ones given up. */
#include "storage/nvme.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"

cairn_status nvme_io_open(struct cairn_nvme *t)
{
    t->ios = cairn_calloc(NVME_IOS, sizeof *t->ios);
    t->io_blocks = cairn_table_alloc((size_t)NVME_IOS * CAIRN_BLOCK);
    if (!t->ios || !t->io_blocks)
        return CAIRN_NOMEM;
    for (uint32_t i = 0; i < NVME_IOS; i++) {
        t->ios[i].block = (uint8_t *)t->io_blocks + (size_t)i * CAIRN_BLOCK;
        t->ios[i].next = t->ios_free;
        t->ios_free = &t->ios[i];
    }
    struct cairn_ioq_params p = {
        .fd = t->fd,
        .depth = NVME_IOS,
        .region = t->o.region,
        .region_len = t->o.region_len,
        .arg = t->o.ioq_arg,
    };
    return t->o.ioq->open(&p, &t->q);
}

struct nvme_io *nvme_io_take(struct cairn_nvme *t)
{
    struct nvme_io *x = t->ios_free;
    if (!x)
        return NULL;
    t->ios_free = x->next;
    x->done = x->late = NULL;
    x->arg = NULL;
    x->aux = 0;
    x->load = NVME_LOAD_NONE;
    x->res = 0;
    x->tries = 0;
    x->lost = false;
    x->next = NULL;
    return x;
}

void nvme_io_give(struct cairn_nvme *t, struct nvme_io *x)
{
    x->active = false;
    x->next = t->ios_free;
    t->ios_free = x;
}

static void io_submit(struct cairn_nvme *t, struct nvme_io *x)
{
    x->next = NULL;
    if (!t->q->ops->submit(t->q, &x->io)) {
        x->io.submitted_ns = cairn_now_ns();
        x->next = t->stalled;
        t->stalled = x;
    }
}

/* Told apart from finishing, so that new ios start before the old ones' bytes are hashed. */
static void io_account(struct cairn_nvme *t, const struct nvme_io *x, bool start)
{
    uint32_t one = start ? 1 : UINT32_MAX;
    uint64_t len = start ? x->len : -(uint64_t)x->len;
    if (x->load == NVME_LOAD_READ) {
        t->reads_out += one;
        t->read_bytes_out += len;
    } else if (x->load == NVME_LOAD_WRITE) {
        t->writes_out += one;
        t->write_bytes_out += len;
    }
}

void nvme_io_start(struct cairn_nvme *t, struct nvme_io *x, enum cairn_io_kind kind, uint64_t off,
                   void *buf, uint32_t len)
{
    x->io = (struct cairn_io){.kind = kind, .len = len, .off = off, .buf = buf, .owner = x};
    x->len = len;
    x->active = true;
    t->out++;
    nvme_count(&t->stats.in_flight, 1);
    io_account(t, x, true);
    io_submit(t, x);
}

/* Failures in a row that turn the tier off. One sync is enough: what it was for may be lost, and
 * the next one succeeds all the same. */
static uint32_t errors_max(const struct cairn_nvme *t, enum cairn_io_kind kind)
{
    return kind == CAIRN_IO_SYNC ? 1 : t->o.errors_max;
}

void nvme_io_last_chance(struct cairn_nvme *t)
{
    for (uint32_t kind = 0; kind < 3; kind++)
        t->streak[kind] = errors_max(t, kind) - 1;
}

static void explain(const struct cairn_nvme *t, const struct nvme_io *x, char *why, size_t cap)
{
    if (x->io.kind == CAIRN_IO_SYNC)
        snprintf(why, cap, "%s: a sync failed with: %s", t->path, strerror(-x->res));
    else
        snprintf(why, cap, "%s: %u %s in a row failed, the last one with: %s", t->path,
                 t->streak[x->io.kind], x->io.kind == CAIRN_IO_READ ? "reads" : "writes",
                 strerror(-x->res));
}

static void note_result(struct cairn_nvme *t, const struct nvme_io *x)
{
    uint32_t *streak = &t->streak[x->io.kind];
    if (x->res == 0) {
        *streak = 0;
        return;
    }
    if (x->io.kind == CAIRN_IO_WRITE && !t->probe.flying)
        t->probe.failed_off = x->io.off;
    if (++*streak >= errors_max(t, x->io.kind) || t->lost_out >= NVME_IOS_LOST) {
        char why[256];
        explain(t, x, why, sizeof why);
        nvme_turn_off(t, why);
    }
}

/* True when nothing more is to come from this io. */
static bool io_settle(struct cairn_nvme *t, struct nvme_io *x)
{
    struct cairn_io *io = &x->io;
    int32_t res = io->res;
    if (x->lost)
        return true;
    if (io->kind == CAIRN_IO_SYNC) {
        /* Never tried again: the kernel reports a lost write to one sync only. */
        x->res = res < 0 ? res : 0;
    } else if (res >= 0 && (uint32_t)res == io->len) {
        x->res = 0;
    } else if (res >= (int32_t)CAIRN_BLOCK && (uint32_t)res < io->len) {
        uint32_t step = (uint32_t)res & ~(CAIRN_BLOCK - 1);
        io->buf = (uint8_t *)io->buf + step;
        io->off += step;
        io->len -= step;
        io_submit(t, x);
        return false;
    } else {
        /* A read of nothing: the file ends before it, which no intact log does, also if later
         * writes make it as long as it was. */
        x->res = res < 0 ? res : -EIO;
        if (res == 0 && io->kind == CAIRN_IO_READ)
            t->probe.never = true;
        if (x->tries++ == 0) {
            nvme_count(&t->stats.io_errors, 1);
            nvme_count(&t->stats.retries, 1);
            io_submit(t, x);
            return false;
        }
    }
    if (x->res)
        nvme_count(&t->stats.io_errors, 1);
    return true;
}

static void retry_stalled(struct cairn_nvme *t)
{
    struct nvme_io *x = t->stalled;
    t->stalled = NULL;
    while (x) {
        struct nvme_io *next = x->next;
        io_submit(t, x);
        x = next;
    }
}

uint32_t nvme_io_poll(struct cairn_nvme *t, struct nvme_io **out, uint32_t cap)
{
    struct cairn_io *done[32];
    uint32_t n = 0;
    if (t->stalled)
        retry_stalled(t);
    uint32_t got = t->q->ops->poll(t->q, done, cap < 32 ? cap : 32);
    for (uint32_t i = 0; i < got; i++) {
        struct nvme_io *x = done[i]->owner;
        if (!io_settle(t, x))
            continue;
        if (!x->lost)
            io_account(t, x, false);
        out[n++] = x;
    }
    return n;
}

void nvme_io_finish(struct cairn_nvme *t, struct nvme_io *x)
{
    t->out--;
    nvme_count(&t->stats.in_flight, -1ull);
    if (x->lost) {
        t->lost_out--;
        nvme_count(&t->stats.quarantined, -1ull);
        if (x->late)
            x->late(t, x);
    } else {
        note_result(t, x);
        x->done(t, x);
    }
    nvme_io_give(t, x);
}

uint64_t nvme_io_expire(struct cairn_nvme *t, uint64_t now)
{
    uint64_t next = UINT64_MAX;
    for (uint32_t i = 0; i < NVME_IOS; i++) {
        struct nvme_io *x = &t->ios[i];
        if (!x->active || x->lost)
            continue;
        uint64_t end = x->io.submitted_ns + t->o.io_deadline_ns;
        if (end > now) {
            next = end < next ? end : next;
            continue;
        }
        io_account(t, x, false);
        x->lost = true;
        x->res = -ETIMEDOUT;
        t->lost_out++;
        nvme_count(&t->stats.lost_ios, 1);
        nvme_count(&t->stats.quarantined, 1);
        note_result(t, x);
        x->done(t, x);
    }
    return next;
}

void nvme_io_drain(struct cairn_nvme *t, const uint32_t *flying)
{
    struct nvme_io *done[32];
    while (*flying > 0) {
        uint32_t n = nvme_io_poll(t, done, 32);
        for (uint32_t i = 0; i < n; i++)
            nvme_io_finish(t, done[i]);
        uint64_t next = nvme_io_expire(t, cairn_now_ns());
        if (n == 0 && *flying > 0)
            t->q->ops->wait(t->q, next);
    }
}

struct now {
    uint32_t flying;
    int res;
};

static void now_done(struct cairn_nvme *t, struct nvme_io *x)
{
    (void)t;
    struct now *w = x->arg;
    w->flying = 0;
    w->res = x->res;
}

int nvme_io_now(struct cairn_nvme *t, enum cairn_io_kind kind, uint64_t off, void *buf,
                uint32_t len)
{
    struct now w = {.flying = 1};
    struct nvme_io *x = nvme_io_take(t);
    if (!x)
        return -EAGAIN;
    x->done = now_done;
    x->arg = &w;
    nvme_io_start(t, x, kind, off, buf, len);
    nvme_io_drain(t, &w.flying);
    return w.res;
}
