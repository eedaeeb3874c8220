/* Loads: a record is read in pieces straight into its image and each 256 KiB is verified as soon as
 * it is there, while the next ones are read. Nothing is answered OK that was not compared, but for
 * the pieces that the host asked to compare itself. */
#include "storage/nvme.h"

#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "storage/key16.h"

/* A small record is one io; so many of them make up for the device's time per request. */
#define SMALL_IOS 16u
/* One value alone is verified while its next piece is read; of many the next value is, and the
 * device reads 4 MiB at once 5 % faster than in pieces of one. */
#define BATCH_PIECE (4u << 20)

static struct nvme_load *load_take(struct cairn_nvme *t, struct cairn_tier_op *op)
{
    struct nvme_load *l = t->loads_free;
    if (!l)
        return NULL;
    t->loads_free = l->next;
    *l = (struct nvme_load){.op = op, .image = op->image, .blocks = op->blocks};
    struct nvme_load **end = &t->loads_active;
    while (*end)
        end = &(*end)->next;
    *end = l;
    return l;
}

static void load_free(struct cairn_nvme *t, struct nvme_load *l)
{
    struct nvme_load **at = &t->loads_active;
    while (*at != l)
        at = &(*at)->next;
    *at = l->next;
    l->next = t->loads_free;
    t->loads_free = l;
}

/* Answers; the load itself stays until the device has given its ios back. */
static void load_answer(struct cairn_nvme *t, struct nvme_load *l, cairn_status st,
                        enum cairn_cause cause)
{
    struct cairn_tier_op *op = l->op;
    l->op = NULL;
    t->segs[l->seg].pins--;
    op->image_lost = l->flying > 0;
    if (l->flying == 0)
        load_free(t, l);
    nvme_op_done(t, op, st, cause);
}

/* The place of a record is judged before anything is read: the index may be a step behind. */
static bool load_place(struct cairn_nvme *t, struct cairn_tier_op *op, uint32_t *ret_seg)
{
    uint32_t seg = cairn_segment_of(&t->shape, op->block);
    if (seg == NVME_SEG_NONE || op->blocks < 2)
        return false;
    const struct nvme_seg *s = &t->segs[seg];
    bool held = s->state == SEG_OPEN || s->state == SEG_SEALING || s->state == SEG_SEALED ||
                (s->state == SEG_RECLAIMING && !t->reclaim.gone);
    if (!held || op->block <= nvme_seg_first(t, seg))
        return false;
    *ret_seg = seg;
    return op->blocks <= nvme_seg_first(t, seg) + t->seg_blocks - op->block;
}

static void load_span(struct nvme_load *l)
{
    const struct cairn_tier_op *op = l->op;
    uint64_t all = (uint64_t)l->blocks * CAIRN_BLOCK;
    l->from = CAIRN_BLOCK;
    l->end = all;
    l->kept = 0;
    if (op->piece_count) {
        uint64_t first = CAIRN_BLOCK + (uint64_t)op->piece_first * CAIRN_PIECE_BYTES;
        uint64_t end = first + (uint64_t)op->piece_count * CAIRN_PIECE_BYTES;
        l->from = first < all ? first : all;
        /* Not into the side records behind the value. */
        uint64_t value = ((uint64_t)cairn_blocks(op->value_len) + 1) * CAIRN_BLOCK;
        l->end = end < value ? end : value;
        if (l->end > all)
            l->end = all;
        if (l->end < l->from)
            l->end = l->from;
    }
    if (op->header_only)
        l->end = l->from;
    l->good = l->from;
}

static enum cairn_cause header_cause(const struct cairn_nvme *t, const struct nvme_load *l)
{
    const struct cairn_record_disk *r = l->image;
    const struct cairn_tier_op *op = l->op;
    if (!cairn_record_check(r, &t->shape, op->block, l->generation) ||
        r->loc.kind != CAIRN_RECORD_VALUE)
        return CAIRN_CAUSE_HEADER;
    uint8_t key16[16];
    cairn_key16(r->body.key, key16);
    /* Reclaim knows of a record only what the footer says, a scan what the index does. */
    bool short_key = nvme_carrying(t, op) || op->header_only;
    bool same = short_key ? memcmp(key16, op->key.bytes, sizeof key16) == 0
                          : memcmp(r->body.key, op->key.bytes, sizeof r->body.key) == 0;
    if (!same)
        return CAIRN_CAUSE_KEY;
    if (r->body.version != op->version)
        return CAIRN_CAUSE_VERSION;
    if (r->body.value_len != op->value_len || r->loc.blocks != op->blocks)
        return CAIRN_CAUSE_LENGTH;
    return CAIRN_CAUSE_NONE;
}

static void span_of(const struct nvme_load *l, uint32_t index, uint64_t *ret_from,
                    uint64_t *ret_end)
{
    uint64_t from = l->from + (uint64_t)index * l->piece;
    *ret_end = from + l->piece < l->end ? from + l->piece : l->end;
    *ret_from = from > l->kept ? from : l->kept;
}

/* Whoever waits for the value copies its first bytes while the last ones are still read. */
static void good_upto(struct nvme_load *l, uint64_t at)
{
    l->good = at;
    if (l->op->part && at < l->end)
        l->op->part(l->op, at - CAIRN_BLOCK);
}

static void bit_set(uint64_t bits[2], uint32_t n)
{
    bits[n / 64] |= 1ull << (n % 64);
}

/* An io is verified: what is good may now reach over those that came before their turn. */
static void good_span(struct nvme_load *l, uint32_t span)
{
    uint64_t from, end, good = l->good;
    bit_set(l->ahead, span);
    while (good < l->end) {
        uint32_t next = (uint32_t)((good - l->from) / l->piece);
        if (!(l->ahead[next / 64] >> (next % 64) & 1))
            break;
        span_of(l, next, &from, &end);
        good = end;
    }
    if (good > l->good)
        good_upto(l, good);
}

/* The bytes of an io are there: verifies the pieces that start in them. */
static void verify_span(struct nvme_load *l, uint32_t span)
{
    const struct cairn_record_disk *r = l->image;
    uint64_t value_end = CAIRN_BLOCK + r->body.value_len, from, end;
    span_of(l, span, &from, &end);
    if (l->op->host_verifies)
        value_end = 0;
    for (uint64_t at = from; at < end && at < value_end; at += CAIRN_PIECE_BYTES) {
        uint64_t piece = (at - CAIRN_BLOCK) / CAIRN_PIECE_BYTES;
        if (!cairn_piece_check(r, (uint32_t)piece, (const uint8_t *)r + at)) {
            l->bad = true;
            l->cause = CAIRN_CAUSE_CHECKSUM;
            return;
        }
        uint64_t next = at + CAIRN_PIECE_BYTES;
        if (l->good >= from && next < end && (next - l->from) % NVME_PIECE == 0)
            good_upto(l, next);
    }
    good_span(l, span);
}

static void header_arrived(struct cairn_nvme *t, struct nvme_load *l)
{
    l->cause = header_cause(t, l);
    if (l->cause != CAIRN_CAUSE_NONE) {
        l->bad = true;
        return;
    }
    l->header_ok = true;
    for (uint32_t w = 0; w < 2; w++) {
        for (; l->waiting[w] && !l->bad; l->waiting[w] &= l->waiting[w] - 1)
            verify_span(l, w * 64 + (uint32_t)__builtin_ctzll(l->waiting[w]));
    }
}

static bool side_ok(const struct nvme_load *l)
{
    const struct cairn_record_disk *r = l->image;
    if (l->op->piece_count || l->op->header_only)
        return true;
    size_t at = ((size_t)cairn_blocks(r->body.value_len) + 1) * CAIRN_BLOCK;
    return cairn_side_check(r, (const uint8_t *)r + at);
}

/* Reads again what was not verified: whoever waits may be copying the rest. */
static bool load_again(struct nvme_load *l)
{
    uint64_t from = 0;
    if (l->header_ok && l->good > l->from) {
        uint64_t side = ((uint64_t)cairn_blocks(l->image->body.value_len) + 1) * CAIRN_BLOCK;
        from = l->good < side ? l->good : side;
        if (from >= l->end)
            return false;
    }
    l->issued = l->kept = from;
    l->good = from ? from : l->from;
    l->header_ok = from > 0;
    l->bad = false;
    l->waiting[0] = l->waiting[1] = l->ahead[0] = l->ahead[1] = 0;
    return true;
}

/* Everything asked for came back, or the rest is not worth asking for. */
static void load_end(struct cairn_nvme *t, struct nvme_load *l)
{
    if (!l->bad && !side_ok(l)) {
        l->bad = true;
        l->cause = CAIRN_CAUSE_CHECKSUM;
    }
    if (!l->bad) {
        load_answer(t, l, CAIRN_OK, CAIRN_CAUSE_NONE);
        return;
    }
    if (l->cause == CAIRN_CAUSE_IO_ERROR) {
        /* Its io was tried twice already. */
        load_answer(t, l, t->off ? CAIRN_MISS : CAIRN_IO,
                    t->off ? CAIRN_CAUSE_TIER_OFF : CAIRN_CAUSE_IO_ERROR);
    } else if (l->tries++ == 0 && !t->off && load_again(l)) {
        nvme_count(&t->stats.retries, 1);
    } else {
        load_answer(t, l, CAIRN_CORRUPT, l->cause);
    }
}

static bool load_ended(const struct nvme_load *l)
{
    return l->flying == 0 && l->issued > 0 && (l->bad || l->issued >= l->end);
}

static void piece_late(struct cairn_nvme *t, struct nvme_io *x)
{
    struct nvme_load *l = x->arg;
    if (--l->flying > 0)
        return;
    struct cairn_record_disk *image = l->image;
    uint32_t blocks = l->blocks;
    load_free(t, l);
    nvme_image_back(t, image, blocks);
}

/* aux: 0 = header alone, else 1 + index of the span; HEAD_TOO: both. */
#define HEAD_TOO 0x80000000u

static void piece_done(struct cairn_nvme *t, struct nvme_io *x)
{
    struct nvme_load *l = x->arg;
    if (x->lost) {
        if (l->op)
            load_answer(t, l, CAIRN_TIMEOUT, CAIRN_CAUSE_DEADLINE);
        return; /* still flying: piece_late */
    }
    if (!l->op) {
        piece_late(t, x);
        return;
    }
    l->flying--;
    if (x->res) {
        l->bad = true;
        l->cause = CAIRN_CAUSE_IO_ERROR;
    }
    if (!l->bad && (x->aux == 0 || x->aux & HEAD_TOO))
        header_arrived(t, l);
    uint32_t span = x->aux & ~HEAD_TOO;
    if (!l->bad && span > 0) {
        if (l->header_ok)
            verify_span(l, span - 1);
        else
            bit_set(l->waiting, span - 1);
    }
    if (load_ended(l))
        load_end(t, l);
}

static void load_issue(struct cairn_nvme *t, struct nvme_load *l, struct nvme_io *x)
{
    uint64_t from, end;
    x->arg = l;
    x->done = piece_done;
    x->late = piece_late;
    x->load = NVME_LOAD_READ;
    uint32_t span = 0;
    if (l->issued == 0 && l->from != CAIRN_BLOCK) {
        from = 0;
        end = CAIRN_BLOCK;
        l->issued = l->from;
        x->aux = 0;
    } else {
        span = l->issued == 0 ? 0 : (uint32_t)((l->issued - l->from) / l->piece);
        span_of(l, span, &from, &end);
        x->aux = 1 + span;
        if (l->issued == 0) {
            from = 0;
            x->aux |= HEAD_TOO;
        }
        l->issued = end;
    }
    l->flying++;
    nvme_io_start(t, x, CAIRN_IO_READ, (uint64_t)l->op->block * CAIRN_BLOCK + from,
                  (uint8_t *)l->image + from, (uint32_t)(end - from));
}

/* The next load with something to ask for; takes one from the queue if there is none. */
static struct nvme_load *load_next(struct cairn_nvme *t)
{
    for (struct nvme_load *l = t->loads_active; l; l = l->next) {
        if (l->op && !l->bad && l->issued < l->end)
            return l;
    }
    while (t->rq.head && t->loads_free) {
        struct cairn_tier_op *op = nvme_list_pop(&t->rq);
        uint32_t seg;
        if (!load_place(t, op, &seg)) {
            nvme_op_done(t, op, CAIRN_MISS, CAIRN_CAUSE_RECLAIMED);
            continue;
        }
        struct nvme_load *l = load_take(t, op);
        l->piece = t->rq.head || l != t->loads_active ? BATCH_PIECE : NVME_PIECE;
        l->seg = seg;
        l->generation = t->segs[seg].generation;
        t->segs[seg].pins++;
        load_span(l);
        return l;
    }
    return NULL;
}

void nvme_reads_start(struct cairn_nvme *t)
{
    /* Twice the depth that keeps an idle machine's device busy, as it has work while this thread
     * hashes; twice that while nothing is written, as each io takes longer beside the copies to
     * callers. */
    uint32_t deep = t->writes_out || t->wq.head ? 2 : 4;
    uint64_t bytes_max = (uint64_t)deep * t->info.depth * (NVME_PIECE + CAIRN_BLOCK);
    while (t->reads_out < SMALL_IOS && t->read_bytes_out < bytes_max) {
        struct nvme_load *l = load_next(t);
        struct nvme_io *x = l ? nvme_io_take(t) : NULL;
        if (!x)
            return;
        load_issue(t, l, x);
    }
}

void nvme_reads_expire(struct cairn_nvme *t, uint64_t now)
{
    struct nvme_ops_list rest = {0};
    struct cairn_tier_op *op;
    while ((op = nvme_list_pop(&t->rq)) != NULL) {
        if (op->deadline_ns <= now || t->off) {
            nvme_op_done(t, op, t->off ? CAIRN_MISS : CAIRN_TIMEOUT,
                         t->off ? CAIRN_CAUSE_TIER_OFF : CAIRN_CAUSE_DEADLINE);
            continue;
        }
        nvme_watch(t, op->deadline_ns);
        nvme_list_push(&rest, op);
    }
    t->rq = rest;
    for (struct nvme_load *l = t->loads_active, *next; l; l = next) {
        next = l->next;
        if (l->op && t->off)
            load_answer(t, l, CAIRN_MISS, CAIRN_CAUSE_TIER_OFF);
        else if (l->op && l->op->deadline_ns <= now)
            load_answer(t, l, CAIRN_TIMEOUT, CAIRN_CAUSE_DEADLINE);
        else if (l->op)
            nvme_watch(t, l->op->deadline_ns);
    }
}
