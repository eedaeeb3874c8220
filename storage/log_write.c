/* Appending: ops get their place, are written as units, and are answered in the order of their
 * places, so that whatever was answered OK lies before the first gap a recovery could meet. */
#include "storage/nvme.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/copy.h"

/* Records up to this many blocks are gathered: the device takes one MiB in a fifth of the time of
 * sixteen 64 KiB writes, a copy costs a tenth of that. */
#define SMALL_BLOCKS 33u
#define STAGE_NONE UINT32_MAX
#define MARK_COPIES 2u
/* Bytes written and not synced before the log does it by itself: what recovery has to verify, about
 * 40 ms of reading. A sync stalls the device for 0.3 ms. */
#define UNSYNCED_MAX (128ull << 20)
/* With nobody reading. */
#define WRITE_IOS 16u
#define WRITE_BYTES (16ull << 20)
#define WRITE_PIECE (4u << 20)
/* With readers, and for this long after the last of them: a read that comes now waits for what is
 * out, so that may be three times what readers have out, within bounds. */
#define PACED_MIN (512u << 10)
#define PACED_MAX (6u << 20)
#define PACED_NS (2 * CAIRN_NS_PER_MS)

void nvme_loc_fill(const struct cairn_nvme *t, struct cairn_record_loc_disk *l, uint32_t seg,
                   uint32_t block, uint32_t blocks, enum cairn_record_kind kind)
{
    memset(l, 0, sizeof *l);
    l->kind = (uint8_t)kind;
    memcpy(l->uuid, t->shape.uuid, sizeof l->uuid);
    l->segment = seg;
    l->generation = t->segs[seg].generation;
    l->block = block;
    l->blocks = blocks;
    l->synced_block = t->segs[seg].synced;
    l->session = t->session;
    cairn_loc_seal(l);
}

void nvme_hole_fill(const struct cairn_nvme *t, struct cairn_record_disk *r, uint32_t seg,
                    uint32_t block, uint32_t blocks)
{
    memset(r, 0, sizeof *r);
    nvme_loc_fill(t, &r->loc, seg, block, blocks, CAIRN_RECORD_HOLE);
    cairn_body_seal(&r->body);
}

struct nvme_footer *nvme_footer_of(struct cairn_nvme *t, uint32_t seg)
{
    for (uint32_t i = 0; i < NVME_FOOTERS; i++) {
        if (t->footers[i].seg == seg)
            return &t->footers[i];
    }
    return NULL;
}

/* --- placing --- */

/* A record that makes others dead: made here, twice (format.h), answered when it is durable. */
static bool op_marks(const struct cairn_tier_op *op)
{
    return op->kind == CAIRN_TIER_TOMBSTONE || op->kind == CAIRN_TIER_CLEAR;
}

static uint32_t op_blocks(const struct cairn_tier_op *op)
{
    return op_marks(op) ? MARK_COPIES : op->blocks;
}

static void mark_fill(struct cairn_record_disk *r, const struct cairn_tier_op *op)
{
    memset(r, 0, sizeof *r);
    r->body.version = op->version;
    r->body.created_ns = cairn_wall_ns();
    r->body.space = op->space;
    memcpy(r->body.key, op->key.bytes, sizeof r->body.key);
    cairn_body_seal(&r->body);
}

/* Gives the mark at r its place and puts its second copy behind it. */
static void mark_copy(const struct cairn_nvme *t, struct cairn_record_disk *r, uint32_t seg,
                      uint32_t block, enum cairn_record_kind kind)
{
    for (uint32_t i = 0; i < MARK_COPIES; i++) {
        r[i].body = r[0].body;
        nvme_loc_fill(t, &r[i].loc, seg, block + i, 1, kind);
    }
}

static struct nvme_unit *unit_take(struct cairn_nvme *t)
{
    struct nvme_unit *u = t->units_free;
    if (!u)
        return NULL;
    t->units_free = u->next;
    *u = (struct nvme_unit){.seg = NVME_SEG_NONE, .stage = STAGE_NONE};
    return u;
}

static void unit_free(struct cairn_nvme *t, struct nvme_unit *u)
{
    if (u->stage != STAGE_NONE)
        t->stages_free |= 1u << u->stage;
    struct cairn_record_disk *orphan = u->orphan;
    uint32_t blocks = u->blocks;
    u->next = t->units_free;
    t->units_free = u;
    if (orphan)
        nvme_image_back(t, orphan, blocks);
}

static void fifo_push(struct cairn_nvme *t, struct nvme_unit *u)
{
    if (t->fifo_tail)
        t->fifo_tail->next = u;
    else
        t->fifo_head = u;
    t->fifo_tail = u;
}

/* Is the op of any use still? Otherwise it is answered here. Asked when the record gets its place:
 * a value that was made dead since must not come to lie behind the record that says so. */
static bool op_current(struct cairn_nvme *t, struct cairn_tier_op *op)
{
    if (op->kind != CAIRN_TIER_STORE)
        return true;
    if (nvme_carrying(t, op) ? nvme_carry_wanted(t) : t->host.still_wanted(t->host.arg, op))
        return true;
    nvme_op_done(t, op, CAIRN_CANCELED, CAIRN_CAUSE_NONE);
    return false;
}

/* Gives op the next place of the unit's segment and notes its summary. */
static void unit_add(struct cairn_nvme *t, struct nvme_unit *u, struct cairn_tier_op *op)
{
    struct nvme_seg *s = &t->segs[u->seg];
    struct cairn_record_disk *r = op->image;
    uint32_t blocks = op_blocks(op);
    enum cairn_record_kind kind = op->kind == CAIRN_TIER_TOMBSTONE ? CAIRN_RECORD_TOMBSTONE
                                  : op->kind == CAIRN_TIER_CLEAR   ? CAIRN_RECORD_CLEAR
                                                                   : CAIRN_RECORD_VALUE;
    if (u->stage != STAGE_NONE) {
        r = (struct cairn_record_disk *)(u->buf + (size_t)u->blocks * CAIRN_BLOCK);
        if (op_marks(op))
            mark_fill(r, op);
        else
            cairn_copy(r, op->image, (size_t)blocks * CAIRN_BLOCK);
    }
    if (op_marks(op))
        mark_copy(t, r, u->seg, s->next, kind);
    else
        nvme_loc_fill(t, &r->loc, u->seg, s->next, blocks, kind);
    struct nvme_footer *f = nvme_footer_of(t, u->seg);
    cairn_summary_of(r, &f->sums[s->count]);
    if (r->body.version > t->version_max)
        t->version_max = r->body.version;
    op->block = s->next;
    s->next += blocks;
    s->count++;
    u->blocks += blocks;
    u->count++;
    nvme_list_push(&u->ops, op);
}

static bool small(const struct cairn_tier_op *op)
{
    return op && (op_marks(op) ||
                  (op->kind == CAIRN_TIER_STORE && op->blocks <= SMALL_BLOCKS));
}

/* Takes as many small records along as fit the stage and the segment. */
static void unit_gather(struct cairn_nvme *t, struct nvme_unit *u)
{
    while (small(t->wq.head)) {
        struct cairn_tier_op *op = t->wq.head;
        uint32_t blocks = op_blocks(op);
        if ((size_t)(u->blocks + blocks) * CAIRN_BLOCK > NVME_PIECE ||
            nvme_seg_room(t, blocks) != u->seg)
            return;
        nvme_list_pop(&t->wq);
        if (op_current(t, op))
            unit_add(t, u, op);
    }
}

static struct nvme_unit *place_sync(struct cairn_nvme *t)
{
    struct nvme_unit *u = unit_take(t);
    if (!u)
        return NULL;
    nvme_list_push(&u->ops, nvme_list_pop(&t->wq));
    u->state = UNIT_WRITTEN;
    fifo_push(t, u);
    return u;
}

static struct nvme_unit *place_records(struct cairn_nvme *t)
{
    struct cairn_tier_op *op = t->wq.head;
    bool staged = small(op) && (op_marks(op) || small(op->next));
    uint32_t seg = nvme_seg_room(t, op_blocks(op));
    if (seg == NVME_SEG_NONE && nvme_carrying(t, op) && nvme_segs_out(t)) {
        /* The next segment comes from this very reclaim, which is not to wait for itself. */
        nvme_list_pop(&t->wq);
        nvme_op_done(t, op, CAIRN_CANCELED, CAIRN_CAUSE_NONE);
        return NULL;
    }
    if (seg == NVME_SEG_NONE || (staged && !t->stages_free) || !t->units_free)
        return NULL;
    nvme_list_pop(&t->wq);
    if (!op_current(t, op))
        return NULL;
    struct nvme_unit *u = unit_take(t);
    struct nvme_seg *s = &t->segs[seg];
    u->seg = seg;
    u->block = s->next;
    u->first = s->count;
    u->buf = (uint8_t *)op->image;
    if (staged) {
        u->stage = (uint32_t)__builtin_ctz(t->stages_free);
        t->stages_free &= t->stages_free - 1;
        u->buf = t->stages + (size_t)u->stage * NVME_PIECE;
    }
    s->units++;
    unit_add(t, u, op);
    if (staged)
        unit_gather(t, u);
    fifo_push(t, u);
    if (t->issue_tail)
        t->issue_tail->next_issue = u;
    else
        t->issue_head = u;
    t->issue_tail = u;
    return u;
}

/* --- writing --- */

static void unit_hole(struct cairn_nvme *t, struct nvme_unit *u);

static void unit_settle(struct cairn_nvme *t, struct nvme_unit *u)
{
    if (u->flying > 0 || u->issued < (uint64_t)u->blocks * CAIRN_BLOCK)
        return;
    if (u->popped)
        unit_free(t, u);
    else if (u->state == UNIT_WRITING && u->bad && !u->stuck)
        unit_hole(t, u);
    else if (u->state != UNIT_FAILED)
        u->state = u->stuck ? UNIT_FAILED : UNIT_WRITTEN;
}

static void write_late(struct cairn_nvme *t, struct nvme_io *x)
{
    struct nvme_unit *u = x->arg;
    u->flying--;
    u->lost--;
    nvme_seg_landed(t, u->seg);
    unit_settle(t, u);
}

static void unit_unissue(struct cairn_nvme *t, struct nvme_unit *u)
{
    u->issued = (uint64_t)u->blocks * CAIRN_BLOCK;
    struct nvme_unit *prev = NULL;
    for (struct nvme_unit *i = t->issue_head; i; prev = i, i = i->next_issue) {
        if (i != u)
            continue;
        if (prev)
            prev->next_issue = u->next_issue;
        else
            t->issue_head = u->next_issue;
        if (t->issue_tail == u)
            t->issue_tail = prev;
        return;
    }
}

static void write_done(struct cairn_nvme *t, struct nvme_io *x)
{
    struct nvme_unit *u = x->arg;
    if (x->res) {
        u->bad = true;
        unit_unissue(t, u);
    }
    if (x->lost) {
        /* It may land at any time: nothing may be written there, not even a hole. */
        u->stuck = true;
        u->lost++;
        t->segs[u->seg].lost++;
        if (!u->popped)
            u->state = UNIT_FAILED;
        return;
    }
    u->flying--;
    unit_settle(t, u);
}

static void hole_done(struct cairn_nvme *t, struct nvme_io *x)
{
    struct nvme_unit *u = x->arg;
    if (x->lost) {
        u->stuck = true;
        u->lost++;
        t->segs[u->seg].lost++;
        u->state = UNIT_FAILED;
        return;
    }
    u->flying--;
    u->stuck = x->res != 0;
    u->state = x->res ? UNIT_FAILED : UNIT_WRITTEN;
}

static void unit_hole(struct cairn_nvme *t, struct nvme_unit *u)
{
    struct nvme_io *x = nvme_io_take(t);
    if (!x) {
        u->stuck = true;
        u->state = UNIT_FAILED;
        return;
    }
    nvme_count(&t->stats.holes, 1);
    u->state = UNIT_HOLING;
    nvme_hole_fill(t, x->block, u->seg, u->block, u->blocks);
    x->arg = u;
    x->done = hole_done;
    x->late = write_late;
    x->load = NVME_LOAD_WRITE;
    u->flying++;
    nvme_io_start(t, x, CAIRN_IO_WRITE, (uint64_t)u->block * CAIRN_BLOCK, x->block, CAIRN_BLOCK);
}

static void unit_issue(struct cairn_nvme *t, struct nvme_unit *u, struct nvme_io *x, uint32_t piece)
{
    uint64_t total = (uint64_t)u->blocks * CAIRN_BLOCK;
    uint64_t len = total - u->issued;
    /* A rest of a quarter is not worth a request. */
    if (len > piece + piece / 4)
        len = piece;
    uint64_t at = u->issued;
    x->arg = u;
    x->done = write_done;
    x->late = write_late;
    x->load = NVME_LOAD_WRITE;
    u->flying++;
    u->issued += len;
    if (u->issued == total) {
        t->issue_head = u->next_issue;
        if (!t->issue_head)
            t->issue_tail = NULL;
    }
    nvme_count(&t->stats.written_bytes, len);
    nvme_io_start(t, x, CAIRN_IO_WRITE, (uint64_t)u->block * CAIRN_BLOCK + at, u->buf + at,
                  (uint32_t)len);
}

/* Bytes of writes that may be out now. */
static uint64_t write_window(struct cairn_nvme *t, uint64_t now, bool *ret_paced)
{
    if (nvme_reading(t)) {
        t->read_seen_ns = now;
        t->read_seen_bytes = t->read_bytes_out;
    }
    *ret_paced = t->read_seen_ns && now - t->read_seen_ns < PACED_NS;
    uint64_t bytes = 3 * t->read_seen_bytes;
    if (!*ret_paced)
        return WRITE_BYTES;
    return bytes < PACED_MIN ? PACED_MIN : bytes > PACED_MAX ? PACED_MAX : bytes;
}

void nvme_writes_start(struct cairn_nvme *t, uint64_t now)
{
    bool paced;
    uint64_t bytes = write_window(t, now, &paced);
    uint32_t piece = !paced ? WRITE_PIECE : bytes < NVME_PIECE ? PACED_MIN : NVME_PIECE;
    uint32_t ios = paced ? (uint32_t)(bytes / piece) : WRITE_IOS;
    if (paced && (t->issue_head || t->wq.head))
        nvme_watch(t, now + PACED_NS);
    for (;;) {
        /* A sync needs no device to get its place. */
        while (!t->issue_head && t->wq.head && t->wq.head->kind == CAIRN_TIER_SYNC) {
            if (!place_sync(t))
                return;
        }
        if (t->writes_out >= ios || t->write_bytes_out >= bytes || t->off)
            return;
        if (!t->issue_head) {
            if (!t->wq.head)
                return;
            struct cairn_tier_op *first = t->wq.head;
            if (!place_records(t) && t->wq.head == first)
                return;
            continue;
        }
        struct nvme_io *x = nvme_io_take(t);
        if (!x)
            return;
        unit_issue(t, t->issue_head, x, piece);
    }
}

/* --- answering in order --- */

static void unit_fail(struct cairn_nvme *t, struct nvme_unit *u)
{
    struct nvme_footer *f = nvme_footer_of(t, u->seg);
    for (uint32_t i = 0; i < u->count; i++) {
        struct cairn_summary_disk *s = &f->sums[u->first + i];
        s->kind = CAIRN_RECORD_HOLE;
        s->value_len = 0;
    }
    t->failed = true;
}

static void pop_records(struct cairn_nvme *t, struct nvme_unit *u)
{
    struct nvme_seg *s = &t->segs[u->seg];
    bool ok = u->state == UNIT_WRITTEN && !u->bad && !s->broken;
    if (u->stuck && !s->broken)
        nvme_seg_break(t, u->seg);
    if (!ok)
        unit_fail(t, u);
    if (!s->broken) {
        s->done = u->block + u->blocks;
        t->unsynced += (uint64_t)u->blocks * CAIRN_BLOCK;
    }
    s->units--;
    struct nvme_ops_list ops = u->ops;
    u->ops = (struct nvme_ops_list){0};
    u->popped = true;
    /* The device may have an image still: it goes back when the last io does. */
    bool held = u->flying > 0;
    if (held && u->stage == STAGE_NONE && ops.head)
        u->orphan = ops.head->image;
    bool lost = held && u->stage == STAGE_NONE;
    if (!held)
        unit_free(t, u);
    struct cairn_tier_op *op;
    while ((op = nvme_list_pop(&ops)) != NULL) {
        op->image_lost = lost;
        if (ok && op_marks(op)) {
            nvme_list_push(&t->sync_wait, op);
            nvme_watch(t, op->deadline_ns);
        } else if (ok) {
            nvme_op_done(t, op, CAIRN_OK, CAIRN_CAUSE_NONE);
        } else {
            bool dead = t->off;
            nvme_op_done(t, op, lost ? CAIRN_TIMEOUT : CAIRN_IO,
                         dead   ? CAIRN_CAUSE_TIER_OFF
                         : lost ? CAIRN_CAUSE_DEADLINE
                                : CAIRN_CAUSE_IO_ERROR);
        }
    }
}

void nvme_writes_pop(struct cairn_nvme *t)
{
    for (;;) {
        struct nvme_unit *u = t->fifo_head;
        if (!u || (u->state != UNIT_WRITTEN && u->state != UNIT_FAILED))
            return;
        /* What is behind a break in its segment fails as soon as it is written, not before. */
        t->fifo_head = u->next;
        if (!t->fifo_head)
            t->fifo_tail = NULL;
        u->next = NULL;
        if (u->seg != NVME_SEG_NONE) {
            pop_records(t, u);
            continue;
        }
        struct cairn_tier_op *op = nvme_list_pop(&u->ops);
        unit_free(t, u);
        if (!op)
            continue;
        op->status = t->failed ? CAIRN_IO : CAIRN_OK;
        t->failed = false;
        nvme_list_push(&t->sync_wait, op);
        nvme_watch(t, op->deadline_ns);
    }
}

/* --- syncs: one at a time, each for everybody who waits when it starts --- */

void nvme_sync_want(struct cairn_nvme *t, struct nvme_waiter *w)
{
    w->next = t->waiters;
    t->waiters = w;
}

static void sync_done(struct cairn_nvme *t, struct nvme_io *x)
{
    t->sync_out = false;
    bool ok = x->res == 0;
    if (ok)
        t->super_durable = t->super_mark;
    for (uint32_t i = 0; i < NVME_FOOTERS; i++) {
        if (ok && nvme_footer_live(&t->footers[i])) {
            struct nvme_seg *s = &t->segs[t->footers[i].seg];
            s->synced = s->mark;
        }
    }
    struct nvme_waiter *w = t->waiters_fly;
    t->waiters_fly = NULL;
    while (w) {
        struct nvme_waiter *next = w->next;
        w->fn(t, w, ok);
        w = next;
    }
    struct nvme_ops_list ops = t->sync_fly;
    struct cairn_tier_op *op;
    t->sync_fly = (struct nvme_ops_list){0};
    while ((op = nvme_list_pop(&ops)) != NULL) {
        bool good = ok && (op_marks(op) || op->status == CAIRN_OK);
        nvme_op_done(t, op, good ? CAIRN_OK : CAIRN_IO,
                     good ? CAIRN_CAUSE_NONE : CAIRN_CAUSE_IO_ERROR);
    }
}

void nvme_sync_pump(struct cairn_nvme *t)
{
    bool wanted = t->sync_wait.head || t->waiters || t->unsynced >= UNSYNCED_MAX;
    if (!wanted || t->sync_out || t->off)
        return;
    char why[512];
    if (t->sync_wait.head && !nvme_file_intact(t, why, sizeof why)) {
        t->probe.never = true;
        nvme_turn_off(t, why);
        return;
    }
    struct nvme_io *x = nvme_io_take(t);
    if (!x)
        return;
    for (uint32_t i = 0; i < NVME_FOOTERS; i++) {
        if (nvme_footer_live(&t->footers[i]))
            t->segs[t->footers[i].seg].mark = t->segs[t->footers[i].seg].done;
    }
    t->super_mark = t->super_landed;
    t->sync_fly = t->sync_wait;
    t->sync_wait = (struct nvme_ops_list){0};
    t->waiters_fly = t->waiters;
    t->waiters = NULL;
    t->unsynced = 0;
    t->sync_out = true;
    x->done = sync_done;
    nvme_io_start(t, x, CAIRN_IO_SYNC, 0, NULL, 0);
}

/* --- deadlines --- */

static void expire_list(struct cairn_nvme *t, struct nvme_ops_list *l, uint64_t now)
{
    struct nvme_ops_list all = *l, rest = {0};
    struct cairn_tier_op *op;
    *l = rest;
    while ((op = nvme_list_pop(&all)) != NULL) {
        if (t->off) {
            nvme_op_done(t, op, CAIRN_IO, CAIRN_CAUSE_TIER_OFF);
        } else if (op->deadline_ns <= now) {
            t->failed = t->failed || op->kind != CAIRN_TIER_SYNC;
            nvme_op_done(t, op, CAIRN_TIMEOUT, CAIRN_CAUSE_DEADLINE);
        } else {
            nvme_watch(t, op->deadline_ns);
            nvme_list_push(&rest, op);
        }
    }
    /* done may have queued more by now: only into the inbox, so the list is still ours. */
    *l = rest;
}

/* The answer was "not stored", so the record must not stay either. A gathered one is only left out
 * of the footer: a crash before the segment is sealed still finds it. */
static void unit_forget(struct cairn_nvme *t, struct nvme_unit *u, struct cairn_tier_op *op)
{
    struct nvme_footer *f = nvme_footer_of(t, u->seg);
    for (uint32_t i = u->first; i < u->first + u->count; i++) {
        if (f->sums[i].block == op->block) {
            f->sums[i].kind = CAIRN_RECORD_HOLE;
            f->sums[i].value_len = 0;
        }
    }
    t->failed = true;
    if (u->stage != STAGE_NONE || u->state == UNIT_HOLING || u->state == UNIT_FAILED) {
        op->image_lost = u->stage == STAGE_NONE && u->flying > 0;
    } else {
        op->image_lost = u->flying > 0;
        u->bad = true;
        u->state = UNIT_WRITING;
        unit_unissue(t, u);
    }
    if (op->image_lost)
        u->orphan = op->image;
    unit_settle(t, u);
}

static void expire_unit(struct cairn_nvme *t, struct nvme_unit *u, uint64_t now)
{
    struct nvme_ops_list all = u->ops;
    struct cairn_tier_op *op;
    u->ops = (struct nvme_ops_list){0};
    while ((op = nvme_list_pop(&all)) != NULL) {
        if (op->deadline_ns > now) {
            nvme_watch(t, op->deadline_ns);
            nvme_list_push(&u->ops, op);
            continue;
        }
        if (u->seg != NVME_SEG_NONE)
            unit_forget(t, u, op);
        nvme_op_done(t, op, CAIRN_TIMEOUT, CAIRN_CAUSE_DEADLINE);
    }
}

void nvme_writes_expire(struct cairn_nvme *t, uint64_t now)
{
    expire_list(t, &t->wq, now);
    expire_list(t, &t->sync_wait, now);
    expire_list(t, &t->sync_fly, now);
    for (struct nvme_unit *u = t->fifo_head; u; u = u->next) {
        expire_unit(t, u, now);
        if (t->off && u->seg != NVME_SEG_NONE && u->issued < (uint64_t)u->blocks * CAIRN_BLOCK) {
            u->bad = u->stuck = true;
            unit_unissue(t, u);
            unit_settle(t, u);
        }
    }
}
