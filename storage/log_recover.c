/* Recovery: what is in the log, from heads and footers, and for the few segments without a footer
 * from their record headers. Runs before the loop; a clean stop and a crash take the same path. */
#include "storage/nvme.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"

/* Segments whose heads and trailers are read at once, and headers guessed ahead on a walk. */
#define BATCH 32u
#define GUESS 16u
/* Versions stepped over when a segment is lost: one of its records may have the highest, and may be
 * readable again another day. */
#define VERSIONS_UNSEEN (1ull << 32)

struct recovery {
    uint32_t flying;
    uint32_t unread;   /* segments that were damaged or are of another format */
    bool io_error;     /* something that matters could not be read            */
    uint32_t floor, generation_max;
    struct cairn_head_disk *heads;       /* of one batch */
    struct cairn_trailer_disk *trailers;
    int *errors;                         /* of both      */
};

static void batch_done(struct cairn_nvme *t, struct nvme_io *x)
{
    struct recovery *r = x->arg;
    (void)t;
    r->flying--;
    r->errors[x->aux] = x->res;
}

static void batch_read(struct cairn_nvme *t, struct recovery *r, uint64_t off, void *buf,
                       uint32_t len, uint32_t index)
{
    struct nvme_io *x = nvme_io_take(t);
    r->errors[index] = -EAGAIN;
    if (!x)
        return;
    x->arg = r;
    x->aux = index;
    x->done = batch_done;
    r->flying++;
    nvme_io_start(t, x, CAIRN_IO_READ, off, buf, len);
}

/* --- heads: which segments live --- */

/* A head that is damaged or cannot be read: the first record knows the generation too, and so does
 * the trailer, if the damage reaches so far. Neither outlives its segment's life: reclaim makes
 * both void (log_reclaim.c), so a life that ended cannot come back (but see drop_past_lives). */
static enum cairn_verdict second_opinion(struct cairn_nvme *t, struct recovery *r, uint32_t seg,
                                         uint32_t i, uint32_t *ret_generation)
{
    struct cairn_record_disk *h = t->stages_memory;
    const struct cairn_trailer_disk *tr = &r->trailers[i];
    uint32_t block = nvme_seg_first(t, seg) + 1;
    int err = nvme_io_now(t, CAIRN_IO_READ, (uint64_t)block * CAIRN_BLOCK, h, CAIRN_BLOCK);
    uint32_t generation = err ? 0 : h->loc.generation;
    if (generation != 0 && cairn_record_check(h, &t->shape, block, generation)) {
        *ret_generation = generation;
        return CAIRN_VERDICT_OK;
    }
    generation = r->errors[BATCH + i] ? 0 : tr->generation;
    if (generation != 0 &&
        cairn_trailer_check(tr, &t->shape, seg, generation) == CAIRN_VERDICT_OK) {
        *ret_generation = generation;
        return CAIRN_VERDICT_OK;
    }
    r->io_error = r->io_error || err || r->errors[i] || r->errors[BATCH + i];
    return CAIRN_VERDICT_BAD;
}

static void judge(struct cairn_nvme *t, struct recovery *r, uint32_t seg, uint32_t i)
{
    struct nvme_seg *s = &t->segs[seg];
    const struct cairn_head_disk *h = &r->heads[i];
    const struct cairn_trailer_disk *tr = &r->trailers[i];
    s->next = s->done = s->synced = s->mark = nvme_seg_first(t, seg) + 1;
    s->generation = h->generation;
    enum cairn_verdict v = CAIRN_VERDICT_BAD;
    if (r->errors[i] == 0)
        v = cairn_head_check(h, &t->shape, seg);
    if (v == CAIRN_VERDICT_OK && h->floor > r->floor)
        r->floor = h->floor;
    if (v == CAIRN_VERDICT_BAD) {
        v = second_opinion(t, r, seg, i, &s->generation);
        s->guessed = true;
        cairn_log(CAIRN_LOG_WARN, "%s: the head of segment %u is damaged%s", t->path, seg,
                  v == CAIRN_VERDICT_OK ? "; its records are used" : "");
    }
    s->blank = v == CAIRN_VERDICT_BLANK;
    s->state = v == CAIRN_VERDICT_OK ? SEG_SEALED
               : v == CAIRN_VERDICT_FORMAT ? SEG_SKIPPED
                                           : SEG_FREE;
    if (v != CAIRN_VERDICT_OK) {
        s->generation = 0;
        r->unread += v != CAIRN_VERDICT_BLANK;
        return;
    }
    if (s->generation > r->generation_max)
        r->generation_max = s->generation;
    s->no_footer = r->errors[BATCH + i] != 0 ||
                   cairn_trailer_check(tr, &t->shape, seg, s->generation) != CAIRN_VERDICT_OK;
    if (!s->no_footer)
        s->count = tr->count;
}

/* Builds that voided no more than the head of what they reclaimed left first records and trailers
 * that tell, once the head is damaged, of a life that ended. Such a life is older than all that go
 * on; and the oldest may go at any time, as reclaim takes it next: its tombstones have nothing left
 * to bury. */
static void drop_past_lives(struct cairn_nvme *t, struct recovery *r)
{
    uint32_t oldest = UINT32_MAX, blank = 0;
    for (uint32_t i = 0; i < t->shape.segments; i++) {
        const struct nvme_seg *s = &t->segs[i];
        blank += s->blank;
        if (s->state == SEG_SEALED && !s->guessed && s->generation < oldest)
            oldest = s->generation;
    }
    /* With so many to spare nothing was ever reclaimed. */
    if (oldest == UINT32_MAX || blank > NVME_FREE_MIN + 1)
        return;
    for (uint32_t i = 0; i < t->shape.segments; i++) {
        struct nvme_seg *s = &t->segs[i];
        if (s->state != SEG_SEALED || !s->guessed || s->generation > oldest)
            continue;
        s->state = SEG_FREE;
        r->unread++;
    }
}

static void read_heads(struct cairn_nvme *t, struct recovery *r)
{
    for (uint32_t from = 0; from < t->shape.segments; from += BATCH) {
        uint32_t n = t->shape.segments - from < BATCH ? t->shape.segments - from : BATCH;
        for (uint32_t i = 0; i < n; i++) {
            uint64_t at = (uint64_t)nvme_seg_first(t, from + i) * CAIRN_BLOCK;
            batch_read(t, r, at, &r->heads[i], CAIRN_BLOCK, i);
            batch_read(t, r, at + t->shape.segment_bytes - CAIRN_BLOCK, &r->trailers[i],
                       CAIRN_BLOCK, BATCH + i);
        }
        nvme_io_drain(t, &r->flying);
        for (uint32_t i = 0; i < n; i++)
            judge(t, r, from + i, i);
    }
    drop_past_lives(t, r);
}

/* --- what is in them --- */

static cairn_status report(struct cairn_nvme *t, const struct cairn_summary_disk *s, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        if (s[i].kind == CAIRN_RECORD_HOLE)
            continue;
        if (s[i].version > t->version_max)
            t->version_max = s[i].version;
        nvme_count(&t->stats.recovered_records, 1);
        if (!t->host.recovered(t->host.arg, &t->tier, &s[i]))
            return nvme_fail(t, CAIRN_NOMEM, "%s: no memory for its index; give it more", t->path);
    }
    return CAIRN_OK;
}

struct footer_read {
    uint32_t seg;
    struct recovery r;
    int errors[32];
};

/* Asks for a sealed segment's summaries and trailer, into the buffer of f. */
static void footer_start(struct cairn_nvme *t, struct footer_read *fr, struct nvme_footer *f)
{
    uint64_t bytes = (uint64_t)cairn_footer_blocks(t->segs[fr->seg].count) * CAIRN_BLOCK;
    uint64_t end = ((uint64_t)nvme_seg_first(t, fr->seg) + t->seg_blocks) * CAIRN_BLOCK;
    memset(fr->errors, 0, sizeof fr->errors);
    fr->r.errors = fr->errors;
    uint32_t i = 0;
    for (uint64_t at = 0; at < bytes; at += NVME_PIECE, i++) {
        uint32_t len = bytes - at < NVME_PIECE ? (uint32_t)(bytes - at) : NVME_PIECE;
        batch_read(t, &fr->r, end - bytes + at, (uint8_t *)f->sums + at, len, i);
    }
}

static cairn_status footer_finish(struct cairn_nvme *t, struct footer_read *fr,
                                  struct nvme_footer *f)
{
    struct nvme_seg *s = &t->segs[fr->seg];
    nvme_io_drain(t, &fr->r.flying);
    bool ok = true;
    for (uint32_t i = 0; i < 32; i++)
        ok = ok && fr->errors[i] == 0;
    size_t len = (size_t)(cairn_footer_blocks(s->count) - 1) * CAIRN_BLOCK;
    const struct cairn_trailer_disk *tr =
        (const struct cairn_trailer_disk *)(void *)((uint8_t *)f->sums + len);
    ok = ok && cairn_trailer_check(tr, &t->shape, fr->seg, s->generation) == CAIRN_VERDICT_OK &&
         tr->count == s->count && cairn_summaries_check(tr, f->sums, &t->shape);
    if (!ok) {
        s->no_footer = true;
        return CAIRN_OK;
    }
    return report(t, f->sums, s->count);
}

static uint32_t next_sealed(const struct cairn_nvme *t, uint32_t seg)
{
    while (seg < t->shape.segments && (t->segs[seg].state != SEG_SEALED || t->segs[seg].no_footer))
        seg++;
    return seg;
}

/* While one segment's summaries go into the index the next ones are read. */
static cairn_status read_footers(struct cairn_nvme *t)
{
    static const uint32_t ahead = NVME_FOOTERS;
    struct footer_read fr[NVME_FOOTERS];
    uint32_t n = 0, started = 0, seg = 0;
    memset(fr, 0, sizeof fr);
    cairn_status st = CAIRN_OK;
    while (!st) {
        while (started < n + ahead && (seg = next_sealed(t, seg)) < t->shape.segments) {
            fr[started % ahead].seg = seg++;
            footer_start(t, &fr[started % ahead], &t->footers[started % ahead]);
            started++;
        }
        if (n == started)
            break;
        st = footer_finish(t, &fr[n % ahead], &t->footers[n % ahead]);
        n++;
    }
    for (; n < started; n++)
        nvme_io_drain(t, &fr[n % ahead].r.flying);
    return st;
}

/* --- segments without a footer --- */

struct walk {
    uint32_t seg, block, session, synced;
    struct nvme_footer *f;
};

static void walk_keep(struct nvme_seg *s, const struct walk *w, const struct cairn_record_disk *h)
{
    if (!s->count || !cairn_record_repeats(h, &w->f->sums[s->count - 1]))
        cairn_summary_of(h, &w->f->sums[s->count++]);
}

/* Takes the header at w->block if it is the next of the chain. */
static bool walk_take(struct cairn_nvme *t, struct walk *w, const struct cairn_record_disk *h)
{
    struct nvme_seg *s = &t->segs[w->seg];
    if (!cairn_record_check(h, &t->shape, w->block, s->generation) ||
        h->loc.session < w->session)
        return false;
    uint32_t end = nvme_seg_first(t, w->seg) + t->seg_blocks;
    if (h->loc.blocks + cairn_footer_blocks(s->count + 1) > end - w->block)
        return false;
    w->session = h->loc.session;
    if (h->loc.synced_block > w->synced)
        w->synced = h->loc.synced_block;
    walk_keep(s, w, h);
    w->block += h->loc.blocks;
    return true;
}

/* Headers along the chain. Records of a log are mostly of one size: the next GUESS headers are
 * read where they would be then, so that a full segment takes one round trip for many. */
static void walk_headers(struct cairn_nvme *t, struct recovery *r, struct walk *w)
{
    struct cairn_record_disk *h = (struct cairn_record_disk *)(void *)r->heads;
    uint32_t end = nvme_seg_first(t, w->seg) + t->seg_blocks - 1;
    uint32_t stride = 0;
    bool more = true;
    while (more && w->block < end) {
        uint32_t n = stride ? GUESS : 1, from = w->block;
        for (uint32_t i = 0; i < n; i++) {
            uint64_t at = from + (uint64_t)i * stride;
            n = at < end ? n : i;
            if (i < n)
                batch_read(t, r, at * CAIRN_BLOCK, &h[i], CAIRN_BLOCK, i);
        }
        nvme_io_drain(t, &r->flying);
        uint32_t guessed = stride;
        for (uint32_t i = 0; i < n && more && w->block == from + i * guessed; i++) {
            r->io_error = r->io_error || r->errors[i];
            more = r->errors[i] == 0 && walk_take(t, w, &h[i]);
            stride = more ? h[i].loc.blocks : 0;
        }
    }
}

/* Reads up to all stages full of the record's blocks from its byte `at` on. How much of it is
 * there, up to the first piece that could not be read: then io_error is set. */
static uint64_t stages_fill(struct cairn_nvme *t, struct recovery *r, uint32_t block, uint64_t at,
                            uint64_t end)
{
    uint64_t have = end - at < NVME_STAGES * NVME_PIECE ? end - at : NVME_STAGES * NVME_PIECE;
    uint32_t n = 0;
    for (uint64_t got = 0; got < have; got += NVME_PIECE, n++) {
        uint64_t len = have - got < NVME_PIECE ? have - got : NVME_PIECE;
        batch_read(t, r, (uint64_t)block * CAIRN_BLOCK + at + got, t->stages + got, (uint32_t)len,
                   n);
    }
    nvme_io_drain(t, &r->flying);
    for (uint32_t i = 0; i < n; i++) {
        if (!r->errors[i])
            continue;
        r->io_error = true;
        return (uint64_t)i * NVME_PIECE;
    }
    return have;
}

/* Is what lies at w->block the chain's end, for all that is known? After a clean close it is. */
static bool walk_whole(const struct cairn_nvme *t, const struct walk *w)
{
    return t->segs[w->seg].generation == t->whole_generation && w->block >= t->whole_block;
}

/* The next header of the chain, as far as is known. */
struct look {
    uint32_t block, session; /* block 0: none yet */
};

/* Takes note of the header h behind w->block. True: it is proof that the chain went on there,
 * written when what lies at w->block was durable; after a clean close any one is. */
static bool look_at(const struct walk *w, const struct cairn_record_disk *h, bool closed,
                    struct look *l)
{
    /* A session begins where the log was durable: an older header above that was left by a process
     * that died, and the chain runs over it. */
    bool leftover = l->block && h->loc.session > l->session && l->block >= h->loc.synced_block;
    if (!l->block || leftover)
        *l = (struct look){.block = h->loc.block, .session = h->loc.session};
    return closed || h->loc.synced_block > w->block;
}

/* Was nothing written to w->block in this life? It is blank, or an older record that is intact. */
static bool walk_unborn(struct cairn_nvme *t, const struct walk *w)
{
    static const struct cairn_record_disk none;
    struct cairn_record_disk *h = (struct cairn_record_disk *)(void *)t->stages;
    int err = nvme_io_now(t, CAIRN_IO_READ, (uint64_t)w->block * CAIRN_BLOCK, h, CAIRN_BLOCK);
    return !err && (memcmp(h, &none, sizeof none) == 0 ||
                    cairn_record_check(h, &t->shape, w->block, h->loc.generation));
}

/* Adds the mark h behind a chain of which nobody knows whether it went on. If it did the mark was
 * answered; if not it may have been, and all that it can do is make a miss. */
static void look_mark(struct cairn_nvme *t, const struct walk *w, const struct cairn_record_disk *h,
                      uint32_t *session)
{
    struct nvme_seg *s = &t->segs[w->seg];
    uint32_t end = nvme_seg_first(t, w->seg) + t->seg_blocks;
    if (h->loc.session < *session)
        return; /* an earlier process left it */
    *session = h->loc.session;
    if (cairn_record_marks(h) && cairn_footer_blocks(s->count + 1) < end - h->loc.block)
        walk_keep(s, w, h);
}

/* Looks for a header of the chain behind w->block, and for proof that the chain went on there. 0:
 * none, but the marks there are counted into the segment. What cannot be read may be both: then
 * io_error is set, unless there is nothing at w->block that could have been damaged. */
static uint32_t walk_look(struct cairn_nvme *t, struct recovery *r, const struct walk *w)
{
    struct nvme_seg *s = &t->segs[w->seg];
    uint32_t count = s->count, session = w->session;
    bool closed = s->generation == t->whole_generation;
    uint64_t end = nvme_seg_first(t, w->seg) + t->seg_blocks - 1;
    uint64_t longest = w->block + (uint64_t)cairn_record_blocks(CAIRN_VALUE_MAX, CAIRN_SIDE_MAX);
    struct look l = {0};
    if (closed && t->whole_block < end)
        end = t->whole_block; /* behind it is what crashes before that left */
    end = longest < end ? longest + 1 : end;
    for (uint64_t at = w->block + 1, have; at < end && !r->io_error; at += have / CAIRN_BLOCK) {
        have = stages_fill(t, r, (uint32_t)at, 0, (end - at) * CAIRN_BLOCK);
        for (uint64_t i = 0; i < have / CAIRN_BLOCK; i++) {
            const struct cairn_record_disk *h =
                (const struct cairn_record_disk *)(const void *)(t->stages + i * CAIRN_BLOCK);
            if (h->loc.magic != CAIRN_MAGIC_RECORD || h->loc.session < w->session ||
                !cairn_record_check(h, &t->shape, (uint32_t)(at + i), s->generation))
                continue;
            if (look_at(w, h, closed, &l)) {
                r->io_error = false; /* that was further on: the chain may not lead there */
                s->count = count;
                return l.block;
            }
            look_mark(t, w, h, &session);
        }
    }
    r->io_error = r->io_error && !walk_unborn(t, w);
    return 0;
}

/* A header in the middle of the chain was damaged after it was durable: what it named is lost, but
 * not the marks behind it. Nothing is appended to such a segment. */
static bool walk_over(struct cairn_nvme *t, struct recovery *r, struct walk *w)
{
    struct nvme_seg *s = &t->segs[w->seg];
    if (r->io_error || walk_whole(t, w))
        return false;
    uint32_t count = s->count;
    uint32_t next = walk_look(t, r, w);
    if (s->count > count) {
        w->block = w->f->sums[s->count - 1].block + 1;
        s->broken = true;
        return false;
    }
    if (next || (s->generation == t->whole_generation && !r->io_error))
        cairn_log(CAIRN_LOG_WARN, "%s: a record in segment %u is damaged and lost", t->path,
                  w->seg);
    if (!next)
        return false;
    /* No hole: what was damaged may be a second copy, for whose summary there is no room. */
    w->block = next;
    s->broken = true;
    return true;
}

/* Are the bytes behind the header h what it says? */
static bool payload_ok(struct cairn_nvme *t, struct recovery *r, const struct cairn_record_disk *h)
{
    uint64_t value_len = h->body.value_len;
    uint64_t side = CAIRN_BLOCK + (uint64_t)cairn_blocks(value_len) * CAIRN_BLOCK;
    for (uint64_t at = CAIRN_BLOCK, have; at < side; at += have) {
        have = stages_fill(t, r, h->loc.block, at, side);
        if (!have)
            return false;
        for (uint64_t p = 0; p < have; p += CAIRN_PIECE_BYTES) {
            uint32_t piece = (uint32_t)((at - CAIRN_BLOCK + p) / CAIRN_PIECE_BYTES);
            if (!cairn_piece_check(h, piece, t->stages + p))
                return false;
        }
    }
    if (h->body.side_len == 0)
        return true;
    uint64_t end = side + (uint64_t)cairn_blocks(h->body.side_len) * CAIRN_BLOCK;
    return stages_fill(t, r, h->loc.block, side, end) > 0 && cairn_side_check(h, t->stages);
}

/* A record whose bytes did not all arrive becomes a hole, on the disk too: it must not pass for
 * durable once records behind it say so. The hole is of the record's session: with a later one the
 * chain would end at it. */
static void verify_tail(struct cairn_nvme *t, struct recovery *r, const struct walk *w)
{
    struct nvme_seg *seg = &t->segs[w->seg];
    struct cairn_record_disk *h = (struct cairn_record_disk *)(void *)r->heads;
    for (uint32_t i = 0; i < seg->count; i++) {
        struct cairn_summary_disk *s = &w->f->sums[i];
        if (s->kind != CAIRN_RECORD_VALUE || s->block < w->synced)
            continue;
        uint64_t off = (uint64_t)s->block * CAIRN_BLOCK;
        r->io_error = r->io_error || nvme_io_now(t, CAIRN_IO_READ, off, h, CAIRN_BLOCK);
        if (r->io_error)
            return;
        bool same = cairn_record_check(h, &t->shape, s->block, seg->generation) &&
                    h->loc.kind == CAIRN_RECORD_VALUE && h->loc.blocks == s->blocks;
        if (same && payload_ok(t, r, h))
            continue;
        if (r->io_error)
            return;
        uint32_t session = h->loc.session;
        s->kind = CAIRN_RECORD_HOLE;
        s->value_len = 0;
        nvme_count(&t->stats.holes, 1);
        nvme_hole_fill(t, h, w->seg, s->block, s->blocks);
        h->loc.session = session;
        cairn_loc_seal(&h->loc);
        if (!same || nvme_io_now(t, CAIRN_IO_WRITE, off, h, CAIRN_BLOCK) != 0)
            seg->broken = true;
    }
}

static bool seal_now(struct cairn_nvme *t, struct nvme_footer *f)
{
    uint32_t block;
    int err = nvme_io_now(t, CAIRN_IO_SYNC, 0, NULL, 0);
    nvme_footer_build(t, f, &block);
    for (uint64_t at = 0; at < f->bytes && !err; at += NVME_PIECE) {
        uint64_t len = f->bytes - at < NVME_PIECE ? f->bytes - at : NVME_PIECE;
        err = nvme_io_now(t, CAIRN_IO_WRITE, (uint64_t)block * CAIRN_BLOCK + at,
                          (uint8_t *)f->sums + at, (uint32_t)len);
    }
    return !err && nvme_io_now(t, CAIRN_IO_SYNC, 0, NULL, 0) == 0;
}

/* The oldest segment without a footer that has not been walked yet. */
static uint32_t next_open(const struct cairn_nvme *t, uint32_t generation_above)
{
    uint32_t best = NVME_SEG_NONE;
    for (uint32_t i = 0; i < t->shape.segments; i++) {
        const struct nvme_seg *s = &t->segs[i];
        if (s->state == SEG_SEALED && s->no_footer && s->generation > generation_above &&
            (best == NVME_SEG_NONE || s->generation < t->segs[best].generation))
            best = i;
    }
    return best;
}

/* Is this the segment that appending was going on in? Then it goes on there. */
static bool resumable(const struct cairn_nvme *t, uint32_t seg)
{
    const struct nvme_seg *s = &t->segs[seg];
    uint32_t end = nvme_seg_first(t, seg) + t->seg_blocks;
    if (s->broken || end - s->next < cairn_footer_blocks(s->count + 1) + 1)
        return false;
    for (uint32_t i = 0; i < t->shape.segments; i++) {
        const struct nvme_seg *o = &t->segs[i];
        if (o->generation > s->generation && o->state == SEG_SEALED &&
            !(o->no_footer && o->count == 0))
            return false;
    }
    return true;
}

/* Half a recovery could show a value whose replacement or tombstone is in the other half. */
static cairn_status unreadable(struct cairn_nvme *t)
{
    return nvme_fail(t, CAIRN_IO,
                     "%s cannot be read completely, so what is newest in it is not known: the "
                     "device fails; try again, or remove the file to start a new log",
                     t->path);
}

/* Does the chain end between the two copies of a mark? Then a footer is to be the second one. */
static bool walk_lone(const struct nvme_seg *s, const struct walk *w)
{
    const struct cairn_summary_disk *last = &w->f->sums[s->count - 1];
    bool marks = last->kind == CAIRN_RECORD_TOMBSTONE || last->kind == CAIRN_RECORD_CLEAR;
    return marks && w->block == last->block + last->blocks;
}

static cairn_status walk_segment(struct cairn_nvme *t, struct recovery *r, uint32_t seg)
{
    struct nvme_seg *s = &t->segs[seg];
    struct walk w = {.seg = seg, .block = nvme_seg_first(t, seg) + 1, .f = &t->footers[0]};
    s->count = 0;
    do {
        walk_headers(t, r, &w);
    } while (walk_over(t, r, &w));
    s->next = s->done = w.block;
    if (s->count == 0)
        return r->io_error ? unreadable(t) : CAIRN_OK;
    s->broken = s->broken || walk_lone(s, &w);
    verify_tail(t, r, &w);
    if (r->io_error)
        return unreadable(t);
    return report(t, w.f->sums, s->count);
}

static cairn_status walk_segments(struct cairn_nvme *t, struct recovery *r)
{
    uint32_t generation = 0, seg;
    while ((seg = next_open(t, generation)) != NVME_SEG_NONE) {
        struct nvme_seg *s = &t->segs[seg];
        generation = s->generation;
        cairn_status st = walk_segment(t, r, seg);
        if (st)
            return st;
        if (s->count == 0)
            continue; /* opened and not used: free, once the others are judged */
        /* Later ones may have a footer or records: then this one is finished. */
        bool last = true;
        for (uint32_t i = next_open(t, generation); i != NVME_SEG_NONE && last;
             i = next_open(t, t->segs[i].generation)) {
            struct walk ahead = {.seg = i, .block = nvme_seg_first(t, i) + 1, .f = &t->footers[1]};
            /* A damaged header there hides records no less than here. */
            do
                walk_headers(t, r, &ahead);
            while (walk_over(t, r, &ahead));
            last = t->segs[i].count == 0;
            t->segs[i].count = 0;
        }
        if (r->io_error)
            return unreadable(t);
        t->footers[0].seg = seg;
        if (last && resumable(t, seg)) {
            t->seg_open = seg;
            break;
        }
        s->no_footer = !seal_now(t, &t->footers[0]);
        t->footers[0].seg = NVME_SEG_NONE;
    }
    return CAIRN_OK;
}

/* States as the loop wants them; the resumed segment's records are durable from here on. */
static cairn_status settle(struct cairn_nvme *t, const struct recovery *r)
{
    t->free_count = 0;
    for (uint32_t i = 0; i < t->shape.segments; i++) {
        struct nvme_seg *s = &t->segs[i];
        if (s->state == SEG_SEALED && s->no_footer && s->count == 0)
            s->state = SEG_FREE;
        t->free_count += s->state == SEG_FREE;
    }
    atomic_store(&t->stats.segments_free, t->free_count);
    if (r->unread) {
        t->version_max += VERSIONS_UNSEEN;
        cairn_log(CAIRN_LOG_WARN, "%s: %u segments are damaged and their values lost", t->path,
                  r->unread);
    }
    if (t->seg_open == NVME_SEG_NONE)
        return CAIRN_OK;
    struct nvme_seg *s = &t->segs[t->seg_open];
    s->state = SEG_OPEN;
    s->no_footer = false;
    /* A footer that could just not be read would hide what is appended now. */
    memset(t->stages, 0, CAIRN_BLOCK);
    uint64_t end = ((uint64_t)nvme_seg_first(t, t->seg_open) + t->seg_blocks) * CAIRN_BLOCK;
    int err = nvme_io_now(t, CAIRN_IO_WRITE, end - CAIRN_BLOCK, t->stages, CAIRN_BLOCK);
    if (!err)
        err = nvme_io_now(t, CAIRN_IO_SYNC, 0, NULL, 0);
    if (err)
        return nvme_fail(t, CAIRN_IO, "%s cannot be written: %s", t->path, strerror(-err));
    s->synced = s->mark = s->next;
    return CAIRN_OK;
}

cairn_status nvme_recover(struct cairn_nvme *t)
{
    uint64_t begin = cairn_now_ns();
    int errors[2 * BATCH];
    struct recovery r = {.errors = errors};
    uint8_t *batch = t->scratch;
    r.heads = (struct cairn_head_disk *)(void *)batch;
    r.trailers = (struct cairn_trailer_disk *)(void *)(batch + (size_t)BATCH * CAIRN_BLOCK);
    read_heads(t, &r);
    if (r.io_error)
        return unreadable(t);
    t->floor = r.floor;
    for (uint32_t i = 0; i < t->shape.segments; i++) {
        if (t->segs[i].state == SEG_SEALED && t->segs[i].generation < r.floor)
            t->segs[i].state = SEG_FREE;
    }
    if (r.generation_max >= t->generation_next) {
        /* The superblock that reserved them is lost. */
        t->generation_next = r.generation_max + 1;
        t->generation_reserved = t->generation_next;
        t->super_dirty = true;
    }
    cairn_status st = read_footers(t);
    if (!st)
        st = walk_segments(t, &r);
    if (!st)
        st = settle(t, &r);
    atomic_store(&t->stats.recovery_ns, cairn_now_ns() - begin);
    return st;
}
