/* Life of a segment: prepared (head durable before any record of the new life), opened, sealed
 * (records durable before the footer that vouches for them). */
#include "storage/nvme.h"

#include <string.h>

#include "base/clock.h"
#include "base/log.h"

enum seal_step { SEAL_WAIT, SEAL_SYNC, SEAL_WRITE, SEAL_SYNC2 };

void nvme_seg_set(struct cairn_nvme *t, uint32_t seg, enum nvme_seg_state state)
{
    struct nvme_seg *s = &t->segs[seg];
    t->free_count += (state == SEG_FREE) - (s->state == SEG_FREE);
    s->state = (uint8_t)state;
    atomic_store_explicit(&t->stats.segments_free, t->free_count, memory_order_relaxed);
}

void nvme_seg_landed(struct cairn_nvme *t, uint32_t seg)
{
    if (--t->segs[seg].lost == 0 && t->segs[seg].state == SEG_SKIPPED)
        nvme_seg_set(t, seg, SEG_FREE);
}

void nvme_head_fill(struct cairn_nvme *t, struct cairn_head_disk *h, uint32_t seg)
{
    memset(h, 0, sizeof *h);
    memcpy(h->uuid, t->shape.uuid, sizeof h->uuid);
    h->segment = seg;
    h->generation = t->segs[seg].generation;
    h->floor = t->floor;
    h->session = t->session;
    h->opened_ns = cairn_wall_ns();
    cairn_head_seal(h);
}

/* --- preparing --- */

static void prepare_failed(struct cairn_nvme *t, bool lost)
{
    /* While a head may still land the segment is out of use; otherwise a later one replaces it. */
    t->segs[t->seg_preparing].lost += lost;
    nvme_seg_set(t, t->seg_preparing, lost ? SEG_SKIPPED : SEG_FREE);
    t->seg_preparing = NVME_SEG_NONE;
}

static void prepare_synced(struct cairn_nvme *t, struct nvme_waiter *w, bool ok)
{
    (void)w;
    if (!ok) {
        prepare_failed(t, false);
        return;
    }
    nvme_seg_set(t, t->seg_preparing, SEG_READY);
    t->seg_ready = t->seg_preparing;
    t->seg_preparing = NVME_SEG_NONE;
}

static void head_late(struct cairn_nvme *t, struct nvme_io *x)
{
    nvme_seg_landed(t, x->aux);
}

static void head_done(struct cairn_nvme *t, struct nvme_io *x)
{
    if (x->res) {
        prepare_failed(t, x->lost);
        return;
    }
    t->prepare_waiter.fn = prepare_synced;
    nvme_sync_want(t, &t->prepare_waiter);
}

static bool usable(const struct cairn_nvme *t, uint32_t seg)
{
    const struct nvme_seg *s = &t->segs[seg];
    return s->state == SEG_FREE && s->lost == 0 && s->pins == 0 &&
           !(t->prewrite.flying && t->prewrite.seg == seg);
}

/* Written ones first: they are faster, and the prewriter stays ahead of the appender. */
static uint32_t free_segment(const struct cairn_nvme *t)
{
    uint32_t best = NVME_SEG_NONE;
    for (uint32_t i = 0; i < t->shape.segments; i++) {
        if (!usable(t, i))
            continue;
        if (!t->segs[i].blank || i < t->prewritten)
            return i;
        if (best == NVME_SEG_NONE)
            best = i;
    }
    return best;
}

static void prepare(struct cairn_nvme *t)
{
    uint32_t seg = free_segment(t);
    struct nvme_io *x = seg == NVME_SEG_NONE ? NULL : nvme_io_take(t);
    if (!x)
        return;
    uint32_t first = nvme_seg_first(t, seg) + 1;
    nvme_seg_set(t, seg, SEG_PREPARING);
    t->segs[seg] = (struct nvme_seg){
        .generation = t->generation_next++,
        .state = SEG_PREPARING,
        .next = first,
        .done = first,
        .synced = first,
        .mark = first,
    };
    t->seg_preparing = seg;
    nvme_head_fill(t, x->block, seg);
    x->aux = seg;
    x->done = head_done;
    x->late = head_late;
    nvme_io_start(t, x, CAIRN_IO_WRITE, (uint64_t)nvme_seg_first(t, seg) * CAIRN_BLOCK, x->block,
                  CAIRN_BLOCK);
}

/* --- opening and breaking --- */

static void seal_begin(struct cairn_nvme *t)
{
    nvme_seg_set(t, t->seg_open, SEG_SEALING);
    nvme_footer_of(t, t->seg_open)->step = SEAL_WAIT;
    t->seg_open = NVME_SEG_NONE;
}

uint32_t nvme_seg_room(struct cairn_nvme *t, uint32_t blocks)
{
    if (t->seg_open != NVME_SEG_NONE) {
        const struct nvme_seg *s = &t->segs[t->seg_open];
        uint32_t end = nvme_seg_first(t, t->seg_open) + t->seg_blocks;
        if (blocks + cairn_footer_blocks(s->count + 1) <= end - s->next)
            return t->seg_open;
        seal_begin(t);
    }
    struct nvme_footer *f = nvme_footer_of(t, NVME_SEG_NONE);
    if (t->seg_ready == NVME_SEG_NONE || !f)
        return NVME_SEG_NONE;
    f->seg = t->seg_open = t->seg_ready;
    f->failed = false;
    t->seg_ready = NVME_SEG_NONE;
    nvme_seg_set(t, t->seg_open, SEG_OPEN);
    return t->seg_open;
}

void nvme_seg_break(struct cairn_nvme *t, uint32_t seg)
{
    t->segs[seg].broken = true;
    if (t->seg_open == seg)
        seal_begin(t);
}

/* --- sealing --- */

void nvme_footer_build(struct cairn_nvme *t, struct nvme_footer *f, uint32_t *ret_block)
{
    struct nvme_seg *s = &t->segs[f->seg];
    uint32_t blocks = cairn_footer_blocks(s->count);
    size_t len = (size_t)s->count * sizeof *f->sums;
    struct cairn_trailer_disk *tr =
        (struct cairn_trailer_disk *)((uint8_t *)f->sums + (size_t)(blocks - 1) * CAIRN_BLOCK);
    memset((uint8_t *)f->sums + len, 0, (size_t)blocks * CAIRN_BLOCK - len);
    *ret_block = nvme_seg_first(t, f->seg) + t->seg_blocks - blocks;
    memcpy(tr->uuid, t->shape.uuid, sizeof tr->uuid);
    tr->segment = f->seg;
    tr->generation = s->generation;
    tr->count = s->count;
    tr->first_block = *ret_block;
    tr->sealed_ns = cairn_wall_ns();
    cairn_trailer_seal(tr, f->sums);
    f->bytes = (uint64_t)blocks * CAIRN_BLOCK;
    f->issued = 0;
}

static void seal_end(struct cairn_nvme *t, struct nvme_footer *f)
{
    if (f->failed)
        cairn_log(CAIRN_LOG_WARN, "%s: segment %u could not be sealed", t->path, f->seg);
    t->segs[f->seg].no_footer = f->failed;
    nvme_seg_set(t, f->seg, SEG_SEALED);
    f->seg = f->gone > 0 ? NVME_SEG_GONE : NVME_SEG_NONE;
    f->step = SEAL_WAIT;
}

static struct nvme_footer *footer_of_waiter(struct nvme_waiter *w)
{
    return (struct nvme_footer *)(void *)((uint8_t *)w - offsetof(struct nvme_footer, waiter));
}

static void records_synced(struct cairn_nvme *t, struct nvme_waiter *w, bool ok)
{
    struct nvme_footer *f = footer_of_waiter(w);
    uint32_t block;
    f->failed = !ok;
    if (!ok) {
        /* Nobody looks at it again once its footer is given up. */
        nvme_distrust(t, f);
        seal_end(t, f);
        return;
    }
    nvme_footer_build(t, f, &block);
    f->step = SEAL_WRITE;
}

static void footer_synced(struct cairn_nvme *t, struct nvme_waiter *w, bool ok)
{
    struct nvme_footer *f = footer_of_waiter(w);
    f->failed = f->failed || !ok;
    seal_end(t, f);
}

static void footer_late(struct cairn_nvme *t, struct nvme_io *x)
{
    struct nvme_footer *f = x->arg;
    f->flying--;
    if (--f->gone == 0 && f->seg == NVME_SEG_GONE)
        f->seg = NVME_SEG_NONE;
    nvme_seg_landed(t, x->aux);
}

static void footer_done(struct cairn_nvme *t, struct nvme_io *x)
{
    struct nvme_footer *f = x->arg;
    f->failed = f->failed || x->res != 0;
    if (x->lost) {
        t->segs[x->aux].lost++;
        f->gone++;
    } else {
        f->flying--;
    }
}

static void footer_write(struct cairn_nvme *t, struct nvme_footer *f)
{
    uint64_t end = ((uint64_t)nvme_seg_first(t, f->seg) + t->seg_blocks) * CAIRN_BLOCK;
    while (f->issued < f->bytes && !f->failed) {
        struct nvme_io *x = f->flying < 4 ? nvme_io_take(t) : NULL;
        if (!x)
            return;
        uint64_t len = f->bytes - f->issued;
        if (len > NVME_PIECE)
            len = NVME_PIECE;
        x->arg = f;
        x->aux = f->seg;
        x->done = footer_done;
        x->late = footer_late;
        f->flying++;
        nvme_io_start(t, x, CAIRN_IO_WRITE, end - f->bytes + f->issued,
                      (uint8_t *)f->sums + f->issued, (uint32_t)len);
        f->issued += len;
    }
    if (f->flying > f->gone)
        return;
    if (f->failed) {
        seal_end(t, f);
        return;
    }
    f->step = SEAL_SYNC2;
    f->waiter.fn = footer_synced;
    nvme_sync_want(t, &f->waiter);
}

static void seal_pump(struct cairn_nvme *t, struct nvme_footer *f)
{
    if (!nvme_footer_live(f) || t->segs[f->seg].state != SEG_SEALING)
        return;
    if (f->step == SEAL_WAIT && t->segs[f->seg].units == 0) {
        f->step = SEAL_SYNC;
        f->waiter.fn = records_synced;
        nvme_sync_want(t, &f->waiter);
    }
    if (f->step == SEAL_WRITE)
        footer_write(t, f);
}

void nvme_segs_pump(struct cairn_nvme *t)
{
    for (uint32_t i = 0; i < NVME_FOOTERS; i++)
        seal_pump(t, &t->footers[i]);
    if (t->seg_ready == NVME_SEG_NONE && t->seg_preparing == NVME_SEG_NONE && !t->off &&
        (!t->closing || t->wq.head))
        prepare(t);
}
