/* Reclaim: the oldest segment goes, whole, and what is worth it is appended again first. Strictly
 * in the order of generations: an older copy is gone before the tombstone that forbids it.
 * Prewriting: zeros over segments that were never used, when the device has nothing else to do. */
#include "storage/nvme.h"

#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"

/* Prewriting waits for so much silence. */
#define PREWRITE_QUIET_NS (5 * CAIRN_NS_PER_MS)
#define TELL_AT_ONCE 1024u

/* In pad0 of the summaries. A carried one has its new block in the place of its length, which
 * nobody asks for any more. */
enum { CARRY_NOT, CARRY_CHOSEN, CARRY_DONE };

bool nvme_carrying(const struct cairn_nvme *t, const struct cairn_tier_op *op)
{
    return op == &t->reclaim.op;
}

bool nvme_carry_wanted(struct cairn_nvme *t)
{
    const struct nvme_reclaim *r = &t->reclaim;
    return t->host.wanted(t->host.arg, &r->sums[r->at]);
}

static struct cairn_trailer_disk *trailer_of(struct nvme_reclaim *r)
{
    size_t len = (size_t)(cairn_footer_blocks(r->count) - 1) * CAIRN_BLOCK;
    return (struct cairn_trailer_disk *)(void *)((uint8_t *)r->sums + len);
}

/* --- the list of what is in the segment: its footer, else its headers one by one --- */

static void walk_next(struct cairn_nvme *t);

static void list_complete(struct cairn_nvme *t)
{
    struct nvme_reclaim *r = &t->reclaim;
    r->listed = r->count == t->segs[r->seg].count;
    r->at = 0;
    r->step = RECLAIM_CHOOSE;
}

static void walk_done(struct cairn_nvme *t, struct nvme_io *x)
{
    struct nvme_reclaim *r = &t->reclaim;
    const struct cairn_record_disk *h = x->block;
    const struct nvme_seg *s = &t->segs[r->seg];
    uint32_t block = x->aux;
    if (x->res || !cairn_record_check(h, &t->shape, block, s->generation)) {
        list_complete(t);
        return;
    }
    if (!r->count || !cairn_record_repeats(h, &r->sums[r->count - 1]))
        cairn_summary_of(h, &r->sums[r->count++]);
    r->at = block + h->loc.blocks;
    r->step = RECLAIM_WALK;
}

static void walk_next(struct cairn_nvme *t)
{
    struct nvme_reclaim *r = &t->reclaim;
    if (r->at >= nvme_seg_first(t, r->seg) + t->seg_blocks - 1) {
        list_complete(t);
        return;
    }
    struct nvme_io *x = nvme_io_take(t);
    if (!x)
        return;
    x->aux = r->at;
    x->done = walk_done;
    r->step = RECLAIM_BUSY;
    nvme_io_start(t, x, CAIRN_IO_READ, (uint64_t)r->at * CAIRN_BLOCK, x->block, CAIRN_BLOCK);
}

static void walk_begin(struct cairn_nvme *t)
{
    t->reclaim.count = 0;
    t->reclaim.at = nvme_seg_first(t, t->reclaim.seg) + 1;
    t->reclaim.step = RECLAIM_WALK;
}

static void footer_part_late(struct cairn_nvme *t, struct nvme_io *x)
{
    struct nvme_reclaim *r = &t->reclaim;
    if (x->arg != r->sums)
        return; /* nobody waits for it any more */
    r->flying--;
    r->lost--;
}

static void footer_part_done(struct cairn_nvme *t, struct nvme_io *x)
{
    struct nvme_reclaim *r = &t->reclaim;
    r->failed = r->failed || x->res != 0;
    if (x->lost)
        r->lost++;
    else
        r->flying--;
}

/* The device may write to the buffer for ever: what is to be trusted needs another one. */
static bool sums_anew(struct cairn_nvme *t)
{
    struct nvme_reclaim *r = &t->reclaim;
    void *sums = r->left_count < NVME_SUMS_LEFT ? cairn_table_alloc(t->footer_room) : NULL;
    if (!sums)
        return false;
    r->left[r->left_count++] = r->sums;
    r->sums = sums;
    r->flying = r->lost = 0;
    return true;
}

static void footer_read(struct cairn_nvme *t)
{
    struct nvme_reclaim *r = &t->reclaim;
    uint64_t end = ((uint64_t)nvme_seg_first(t, r->seg) + t->seg_blocks) * CAIRN_BLOCK;
    while (r->issued < r->bytes && !r->failed) {
        struct nvme_io *x = r->flying < 4 ? nvme_io_take(t) : NULL;
        if (!x)
            return;
        uint64_t len = r->bytes - r->issued;
        if (len > NVME_PIECE)
            len = NVME_PIECE;
        x->arg = r->sums;
        x->done = footer_part_done;
        x->late = footer_part_late;
        r->flying++;
        nvme_io_start(t, x, CAIRN_IO_READ, end - r->bytes + r->issued,
                      (uint8_t *)r->sums + r->issued, (uint32_t)len);
        r->issued += len;
    }
    if (r->flying > r->lost || (r->lost > 0 && !sums_anew(t)))
        return;
    const struct cairn_trailer_disk *tr = trailer_of(r);
    const struct nvme_seg *s = &t->segs[r->seg];
    if (r->failed ||
        cairn_trailer_check(tr, &t->shape, r->seg, s->generation) != CAIRN_VERDICT_OK ||
        tr->count != r->count || !cairn_summaries_check(tr, r->sums, &t->shape))
        walk_begin(t);
    else
        list_complete(t);
}

static void begin(struct cairn_nvme *t, uint32_t seg)
{
    struct nvme_reclaim *r = &t->reclaim;
    const struct nvme_seg *s = &t->segs[seg];
    r->seg = seg;
    r->gone = r->carried = r->failed = r->listed = false;
    r->count = s->count;
    r->issued = 0;
    r->bytes = (uint64_t)cairn_footer_blocks(s->count) * CAIRN_BLOCK;
    r->step = RECLAIM_LIST;
    nvme_seg_set(t, seg, SEG_RECLAIMING);
    if (s->no_footer)
        walk_begin(t);
}

/* --- carrying over --- */

/* Marks what is carried, from the end: a batch is appended tail first, so the heads of chains,
 * worth most to a prefix cache, come last and get the budget first. */
static void choose(struct cairn_nvme *t)
{
    struct nvme_reclaim *r = &t->reclaim;
    uint64_t budget = t->shape.segment_bytes / 100 * t->o.reinsert_percent;
    for (uint32_t i = r->count; i-- > 0;) {
        struct cairn_summary_disk *s = &r->sums[i];
        uint64_t len = (uint64_t)s->blocks * CAIRN_BLOCK;
        bool carry = s->kind == CAIRN_RECORD_VALUE && len <= budget &&
                     s->blocks <= r->image_blocks && !r->image_busy &&
                     t->host.wanted(t->host.arg, s);
        s->pad0 = carry ? CARRY_CHOSEN : CARRY_NOT;
        if (carry)
            budget -= len;
    }
    r->step = RECLAIM_PICK;
}

/* Until then the copies in the old segment are the ones that count. */
static void carried_synced(struct cairn_nvme *t, struct nvme_waiter *w, bool ok)
{
    struct nvme_reclaim *r = &t->reclaim;
    (void)w;
    for (uint32_t i = 0; i < r->count; i++) {
        const struct cairn_summary_disk *s = &r->sums[i];
        if (s->pad0 == CARRY_DONE && ok)
            t->host.moved(t->host.arg, s, s->value_len);
        else if (s->pad0 == CARRY_DONE)
            t->host.strayed(t->host.arg, s);
    }
    r->step = ok ? RECLAIM_PINS : RECLAIM_IDLE;
    if (ok)
        return;
    /* Its turn comes again when the tier is back. */
    nvme_seg_set(t, r->seg, SEG_SEALED);
    r->seg = NVME_SEG_NONE;
}

static void carry_stored(struct cairn_tier_op *op)
{
    struct cairn_nvme *t = op->owner;
    struct nvme_reclaim *r = &t->reclaim;
    struct cairn_summary_disk *s = &r->sums[r->at];
    r->image_busy = op->image_lost;
    if (op->status == CAIRN_OK) {
        r->carried = true;
        s->pad0 = CARRY_DONE;
        s->value_len = op->block;
        nvme_count(&t->stats.reinserted_bytes, (uint64_t)s->blocks * CAIRN_BLOCK);
    } else if (op->status != CAIRN_CANCELED) {
        t->host.strayed(t->host.arg, s);
    }
    r->at++;
    r->step = RECLAIM_PICK;
}

static void carry_loaded(struct cairn_tier_op *op)
{
    struct cairn_nvme *t = op->owner;
    struct nvme_reclaim *r = &t->reclaim;
    r->image_busy = op->image_lost;
    if (op->status != CAIRN_OK || t->off || t->closing) {
        r->at++;
        r->step = RECLAIM_PICK;
        return;
    }
    op->kind = CAIRN_TIER_STORE;
    op->done = carry_stored;
    op->deadline_ns = UINT64_MAX;
    nvme_list_push_front(&t->wq, op);
}

static void pick(struct cairn_nvme *t)
{
    struct nvme_reclaim *r = &t->reclaim;
    /* With no segment left in reserve nothing is carried: room comes first. */
    bool room = t->seg_ready != NVME_SEG_NONE || t->free_count > 0;
    room = room && !r->image_busy && !t->off;
    while (r->at < r->count && !(r->sums[r->at].pad0 == CARRY_CHOSEN && room))
        r->at++;
    if (r->at == r->count) {
        r->step = r->carried ? RECLAIM_BUSY : RECLAIM_PINS;
        r->waiter.fn = carried_synced;
        if (r->carried)
            nvme_sync_want(t, &r->waiter);
        return;
    }
    const struct cairn_summary_disk *s = &r->sums[r->at];
    r->op = (struct cairn_tier_op){
        .kind = CAIRN_TIER_LOAD,
        .block = s->block,
        .blocks = s->blocks,
        .image = r->image,
        .deadline_ns = cairn_deadline_ns(2 * t->o.io_deadline_ns),
        .version = s->version,
        .value_len = s->value_len,
        .done = carry_loaded,
        .owner = t,
    };
    memcpy(r->op.key.bytes, s->key, sizeof s->key);
    r->step = RECLAIM_BUSY;
    nvme_watch(t, r->op.deadline_ns);
    nvme_list_push(&t->rq, &r->op);
}

/* --- letting go --- */

/* Nobody reads the segment from here on: every load ends at its deadline. */
static void wait_for_readers(struct cairn_nvme *t)
{
    struct nvme_reclaim *r = &t->reclaim;
    r->gone = true;
    if (t->segs[r->seg].pins > 0)
        return;
    r->at = 0;
    r->step = RECLAIM_KILL;
}

static void kill_synced(struct cairn_nvme *t, struct nvme_waiter *w, bool ok)
{
    (void)w;
    t->reclaim.at = 0;
    t->reclaim.step = ok ? RECLAIM_TELL : RECLAIM_KILL;
}

static void kill_late(struct cairn_nvme *t, struct nvme_io *x)
{
    nvme_seg_landed(t, x->aux);
}

static void kill_done(struct cairn_nvme *t, struct nvme_io *x)
{
    struct nvme_reclaim *r = &t->reclaim;
    t->segs[x->aux].lost += x->lost;
    r->step = RECLAIM_KILL;
    if (x->res)
        return; /* again; too many failures turn the tier off */
    if (++r->at < 2)
        return;
    r->step = RECLAIM_BUSY;
    r->waiter.fn = kill_synced;
    nvme_sync_want(t, &r->waiter);
}

/* Makes the segment void on disk before the host forgets its records: once forgotten, a value needs
 * no tombstone to be deleted, so nothing may be left that a power cut could bring back. Nor may
 * what recovery asks when a head is damaged, this one or that of the next life: the first record
 * and the trailer go too. */
static void make_void(struct cairn_nvme *t)
{
    struct nvme_reclaim *r = &t->reclaim;
    struct nvme_io *x = t->off ? NULL : nvme_io_take(t);
    if (!x)
        return;
    uint32_t blocks = r->at == 0 ? 2 : 1;
    uint32_t block = nvme_seg_first(t, r->seg) + (r->at == 0 ? 0 : t->seg_blocks - 1);
    x->aux = r->seg;
    x->done = kill_done;
    x->late = kill_late;
    r->step = RECLAIM_BUSY;
    nvme_io_start(t, x, CAIRN_IO_WRITE, (uint64_t)block * CAIRN_BLOCK, t->scratch,
                  blocks * CAIRN_BLOCK);
}

static void release(struct cairn_nvme *t)
{
    struct nvme_reclaim *r = &t->reclaim;
    nvme_count(&t->stats.segments_reclaimed, 1);
    t->floor = t->segs[r->seg].generation + 1;
    nvme_seg_set(t, r->seg, t->segs[r->seg].lost ? SEG_SKIPPED : SEG_FREE);
    r->seg = NVME_SEG_NONE;
    r->step = RECLAIM_IDLE;
}

static void tell(struct cairn_nvme *t)
{
    struct nvme_reclaim *r = &t->reclaim;
    uint32_t first = nvme_seg_first(t, r->seg);
    for (uint32_t n; r->at < r->count; r->at += n) {
        n = r->count - r->at < TELL_AT_ONCE ? r->count - r->at : TELL_AT_ONCE;
        t->host.reclaim(t->host.arg, r->sums + r->at, n);
    }
    /* The footer and a header could not be read: what lay behind is in the host's index still. */
    if (!r->listed)
        t->host.reclaim_all(t->host.arg, first, first + t->seg_blocks);
    release(t);
}

/* The oldest living segment if it can go; NONE while it is still being written. */
static uint32_t oldest(const struct cairn_nvme *t)
{
    uint32_t best = NVME_SEG_NONE;
    for (uint32_t i = 0; i < t->shape.segments; i++) {
        const struct nvme_seg *s = &t->segs[i];
        if (s->state != SEG_FREE && s->state != SEG_SKIPPED &&
            (best == NVME_SEG_NONE || s->generation < t->segs[best].generation))
            best = i;
    }
    return best != NVME_SEG_NONE && t->segs[best].state == SEG_SEALED ? best : NVME_SEG_NONE;
}

void nvme_reclaim_pump(struct cairn_nvme *t)
{
    struct nvme_reclaim *r = &t->reclaim;
    if (r->step == RECLAIM_IDLE) {
        if (t->free_count >= NVME_FREE_MIN || t->off || (t->closing && !t->wq.head) ||
            r->flying > 0)
            return;
        uint32_t seg = oldest(t);
        if (seg == NVME_SEG_NONE)
            return;
        begin(t, seg);
    }
    if (r->step == RECLAIM_LIST)
        footer_read(t);
    if (r->step == RECLAIM_WALK)
        walk_next(t);
    if (r->step == RECLAIM_CHOOSE)
        choose(t);
    if (r->step == RECLAIM_PICK)
        pick(t);
    if (r->step == RECLAIM_PINS)
        wait_for_readers(t);
    if (r->step == RECLAIM_KILL)
        make_void(t);
    if (r->step == RECLAIM_TELL)
        tell(t);
}

/* --- prewriting --- */

static void prewrite_late(struct cairn_nvme *t, struct nvme_io *x)
{
    (void)x;
    nvme_seg_landed(t, t->prewrite.seg);
}

static void prewrite_done(struct cairn_nvme *t, struct nvme_io *x)
{
    t->prewrite.flying = false;
    if (x->lost) {
        /* The zeros may land later: nothing else goes there meanwhile. */
        t->segs[t->prewrite.seg].lost++;
        nvme_seg_set(t, t->prewrite.seg, SEG_SKIPPED);
    }
    if (x->res) {
        t->o.prewrite = false;
        return;
    }
    nvme_count(&t->stats.prewritten_bytes, x->len);
    t->prewrite.at += x->len;
    if (t->prewrite.at < t->shape.segment_bytes)
        return;
    t->prewritten = t->prewrite.seg + 1;
    t->super_dirty = true;
    t->prewrite.seg = NVME_SEG_NONE;
}

static bool quiet(struct cairn_nvme *t, uint64_t now)
{
    if (t->out > 0 || t->rq.head || t->wq.head || t->fifo_head) {
        t->busy_ns = now;
        return false;
    }
    if (now - t->busy_ns >= PREWRITE_QUIET_NS)
        return true;
    nvme_watch(t, t->busy_ns + PREWRITE_QUIET_NS);
    return false;
}

void nvme_prewrite_pump(struct cairn_nvme *t, uint64_t now)
{
    if (!t->o.prewrite || t->prewrite.flying || t->off || t->closing)
        return;
    uint32_t seg = t->prewrite.seg;
    if (seg == NVME_SEG_NONE || t->segs[seg].state != SEG_FREE) {
        t->prewrite.at = 0;
        for (seg = t->prewritten; seg < t->shape.segments; seg++) {
            if (t->segs[seg].state == SEG_FREE && t->segs[seg].blank)
                break;
        }
        if (seg == t->shape.segments) {
            t->o.prewrite = false;
            return;
        }
        t->prewrite.seg = seg;
    }
    if (!quiet(t, now))
        return;
    struct nvme_io *x = nvme_io_take(t);
    if (!x)
        return;
    x->done = prewrite_done;
    x->late = prewrite_late;
    t->prewrite.flying = true;
    nvme_io_start(t, x, CAIRN_IO_WRITE,
                  (uint64_t)nvme_seg_first(t, seg) * CAIRN_BLOCK + t->prewrite.at,
                  t->scratch, NVME_SCRATCH);
}
