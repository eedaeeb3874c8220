#include "storage/format.h"

#include "storage/key16.h"

#include <string.h>

_Static_assert(offsetof(struct cairn_head_disk, check) == CAIRN_BLOCK - 8, "head layout");
_Static_assert(offsetof(struct cairn_trailer_disk, check) == CAIRN_BLOCK - 8, "trailer layout");
_Static_assert(offsetof(struct cairn_ident_disk, check) == CAIRN_BLOCK - 8, "slot layout");

/* Every whole-block structure starts with magic and format and ends with its check. */
struct block_frame {
    uint32_t magic;
    uint16_t format;
    uint8_t rest[CAIRN_BLOCK - 14];
    uint64_t check;
} __attribute__((packed, aligned(8)));
_Static_assert(sizeof(struct block_frame) == CAIRN_BLOCK, "frame is one block");

static void block_seal(void *block, uint32_t magic)
{
    uint16_t format = CAIRN_FORMAT_VERSION;
    memcpy(block, &magic, sizeof magic);
    memcpy((uint8_t *)block + 4, &format, sizeof format);
    uint64_t check = cairn_hash64(block, CAIRN_BLOCK - 8);
    memcpy((uint8_t *)block + CAIRN_BLOCK - 8, &check, sizeof check);
}

static bool block_blank(const void *block)
{
    const uint8_t *p = block;
    return p[0] == 0 && memcmp(p, p + 1, CAIRN_BLOCK - 1) == 0;
}

static enum cairn_verdict block_check(const void *block, uint32_t magic)
{
    const struct block_frame *f = block;
    if (f->magic != magic)
        return block_blank(block) ? CAIRN_VERDICT_BLANK : CAIRN_VERDICT_BAD;
    if (f->check != cairn_hash64(block, CAIRN_BLOCK - 8))
        return CAIRN_VERDICT_BAD;
    return f->format == CAIRN_FORMAT_VERSION ? CAIRN_VERDICT_OK : CAIRN_VERDICT_FORMAT;
}

void cairn_super_seal(struct cairn_super_disk *s)
{
    block_seal(s, CAIRN_MAGIC_SUPER);
}

void cairn_head_seal(struct cairn_head_disk *h)
{
    block_seal(h, CAIRN_MAGIC_SEGMENT);
}

void cairn_trailer_seal(struct cairn_trailer_disk *t, const struct cairn_summary_disk *sums)
{
    t->summary_check = cairn_hash64(sums, (size_t)t->count * sizeof *sums);
    block_seal(t, CAIRN_MAGIC_TRAILER);
}

void cairn_ident_seal(struct cairn_ident_disk *i)
{
    block_seal(i, CAIRN_MAGIC_IDENT);
}

void cairn_loc_seal(struct cairn_record_loc_disk *l)
{
    l->magic = CAIRN_MAGIC_RECORD;
    l->format = CAIRN_FORMAT_VERSION;
    l->check = cairn_hash64(l, offsetof(struct cairn_record_loc_disk, check));
}

void cairn_body_seal(struct cairn_record_body_disk *b)
{
    b->check = cairn_hash64(b, offsetof(struct cairn_record_body_disk, check));
}

uint64_t cairn_segment_bytes_for(uint64_t disk_bytes)
{
    for (uint64_t s = CAIRN_SEGMENT_MAX; s >= CAIRN_SEGMENT_MIN; s /= 2) {
        if (disk_bytes / s >= 32)
            return s;
    }
    return 0;
}

uint32_t cairn_segment_of(const struct cairn_log_shape *s, uint32_t block)
{
    uint32_t first = CAIRN_DATA_OFFSET / CAIRN_BLOCK;
    if (block < first)
        return UINT32_MAX;
    uint32_t segment = (block - first) / cairn_segment_blocks(s);
    return segment < s->segments ? segment : UINT32_MAX;
}

enum cairn_verdict cairn_super_check(const struct cairn_super_disk *s)
{
    enum cairn_verdict v = block_check(s, CAIRN_MAGIC_SUPER);
    if (v != CAIRN_VERDICT_OK)
        return v;
    uint64_t size = s->segment_bytes;
    if (size < CAIRN_SEGMENT_MIN || size > CAIRN_SEGMENT_MAX || (size & (size - 1)) != 0)
        return CAIRN_VERDICT_BAD;
    /* Blocks are counted in 32 bits. */
    uint64_t blocks =
        CAIRN_DATA_OFFSET / CAIRN_BLOCK + (uint64_t)s->segments * (size / CAIRN_BLOCK);
    if (s->segments < 32 || blocks > UINT32_MAX || s->prewritten > s->segments)
        return CAIRN_VERDICT_BAD;
    if (s->state != CAIRN_SUPER_WHOLE && s->state != CAIRN_SUPER_CREATING)
        return CAIRN_VERDICT_BAD;
    return CAIRN_VERDICT_OK;
}

enum cairn_verdict cairn_head_check(const struct cairn_head_disk *h,
                                    const struct cairn_log_shape *shape, uint32_t segment)
{
    enum cairn_verdict v = block_check(h, CAIRN_MAGIC_SEGMENT);
    if (v != CAIRN_VERDICT_OK)
        return v;
    if (memcmp(h->uuid, shape->uuid, 16) != 0 || h->segment != segment || h->generation == 0 ||
        h->floor > h->generation)
        return CAIRN_VERDICT_BAD;
    return CAIRN_VERDICT_OK;
}

enum cairn_verdict cairn_trailer_check(const struct cairn_trailer_disk *t,
                                       const struct cairn_log_shape *shape, uint32_t segment,
                                       uint32_t generation)
{
    enum cairn_verdict v = block_check(t, CAIRN_MAGIC_TRAILER);
    if (v != CAIRN_VERDICT_OK)
        return v;
    if (memcmp(t->uuid, shape->uuid, 16) != 0 || t->segment != segment ||
        t->generation != generation)
        return CAIRN_VERDICT_BAD;
    uint32_t first = cairn_segment_first(shape, segment);
    uint32_t last = first + cairn_segment_blocks(shape) - 1;
    /* A record takes a block at least. */
    if (t->count >= cairn_segment_blocks(shape))
        return CAIRN_VERDICT_BAD;
    if (t->first_block <= first || t->first_block > last ||
        t->first_block + cairn_footer_blocks(t->count) - 1 != last)
        return CAIRN_VERDICT_BAD;
    return CAIRN_VERDICT_OK;
}

/* Do the blocks of a record agree with the lengths it names? The header alone says side_len, a
 * summary only bounds it. */
static bool extent_ok(uint8_t kind, uint64_t value_len, uint32_t blocks, uint32_t side_max)
{
    switch (kind) {
    case CAIRN_RECORD_VALUE:
        return value_len >= 1 && value_len <= CAIRN_VALUE_MAX &&
               blocks >= cairn_record_blocks(value_len, 0) &&
               blocks <= cairn_record_blocks(value_len, side_max);
    case CAIRN_RECORD_TOMBSTONE:
    case CAIRN_RECORD_CLEAR:
        return value_len == 0 && blocks == 1;
    case CAIRN_RECORD_HOLE:
        return value_len == 0 && blocks >= 1;
    default:
        return false;
    }
}

bool cairn_summaries_check(const struct cairn_trailer_disk *t,
                           const struct cairn_summary_disk *sums,
                           const struct cairn_log_shape *shape)
{
    if (t->summary_check != cairn_hash64(sums, (size_t)t->count * sizeof *sums))
        return false;
    uint32_t at = cairn_segment_first(shape, t->segment) + 1;
    for (uint32_t i = 0; i < t->count; i++) {
        const struct cairn_summary_disk *s = &sums[i];
        if (s->block < at || s->block >= t->first_block ||
            s->blocks > t->first_block - s->block ||
            !extent_ok(s->kind, s->value_len, s->blocks, CAIRN_SIDE_MAX))
            return false;
        at = s->block + s->blocks;
    }
    return true;
}

enum cairn_verdict cairn_ident_check(const struct cairn_ident_disk *i,
                                     const struct cairn_log_shape *shape)
{
    enum cairn_verdict v = block_check(i, CAIRN_MAGIC_IDENT);
    if (v != CAIRN_VERDICT_OK)
        return v;
    if (memcmp(i->uuid, shape->uuid, 16) != 0 || i->len == 0 || i->len > CAIRN_IDENT_MAX)
        return CAIRN_VERDICT_BAD;
    return CAIRN_VERDICT_OK;
}

static bool loc_check(const struct cairn_record_loc_disk *l, const struct cairn_log_shape *shape,
                      uint32_t block, uint32_t generation)
{
    if (l->magic != CAIRN_MAGIC_RECORD || l->format != CAIRN_FORMAT_VERSION ||
        l->check != cairn_hash64(l, offsetof(struct cairn_record_loc_disk, check)))
        return false;
    uint32_t segment = cairn_segment_of(shape, block);
    if (segment == UINT32_MAX || l->segment != segment || l->generation != generation ||
        l->block != block || memcmp(l->uuid, shape->uuid, 16) != 0)
        return false;
    uint32_t end = cairn_segment_first(shape, segment) + cairn_segment_blocks(shape);
    return l->blocks >= 1 && l->blocks < end - block;
}

bool cairn_record_check(const struct cairn_record_disk *r, const struct cairn_log_shape *shape,
                        uint32_t block, uint32_t generation)
{
    const struct cairn_record_body_disk *b = &r->body;
    if (!loc_check(&r->loc, shape, block, generation) ||
        b->check != cairn_hash64(b, offsetof(struct cairn_record_body_disk, check)))
        return false;
    if (b->name_len > CAIRN_NAME_MAX || b->side_len > CAIRN_SIDE_MAX ||
        !extent_ok(r->loc.kind, b->value_len, r->loc.blocks, b->side_len))
        return false;
    return r->loc.kind != CAIRN_RECORD_VALUE ||
           r->loc.blocks == cairn_record_blocks(b->value_len, b->side_len);
}

bool cairn_piece_check(const struct cairn_record_disk *r, uint32_t piece, const void *bytes)
{
    uint64_t at = (uint64_t)piece * CAIRN_PIECE_BYTES;
    if (at >= r->body.value_len || piece >= CAIRN_PIECES_MAX)
        return false;
    uint64_t left = r->body.value_len - at;
    size_t len = left < CAIRN_PIECE_BYTES ? (size_t)left : CAIRN_PIECE_BYTES;
    return r->body.piece_check[piece] == cairn_hash64(bytes, len);
}

bool cairn_side_check(const struct cairn_record_disk *r, const void *bytes)
{
    return r->body.side_len == 0 || r->body.side_check == cairn_hash64(bytes, r->body.side_len);
}

void cairn_summary_of(const struct cairn_record_disk *r, struct cairn_summary_disk *ret)
{
    memset(ret, 0, sizeof *ret);
    cairn_key16(r->body.key, ret->key);
    ret->version = r->body.version;
    ret->expires_ns = r->body.expires_ns;
    ret->block = r->loc.block;
    ret->value_len = (uint32_t)r->body.value_len;
    memcpy(ret->parent, r->body.parent, sizeof ret->parent);
    ret->kind = r->loc.kind;
    ret->space = r->body.space;
    ret->blocks = r->loc.blocks;
    memcpy(ret->identity, r->body.identity, sizeof ret->identity);
}

bool cairn_record_marks(const struct cairn_record_disk *r)
{
    return r->loc.kind == CAIRN_RECORD_TOMBSTONE || r->loc.kind == CAIRN_RECORD_CLEAR;
}

bool cairn_record_repeats(const struct cairn_record_disk *r,
                          const struct cairn_summary_disk *before)
{
    uint8_t key16[16];
    cairn_key16(r->body.key, key16);
    return cairn_record_marks(r) && r->loc.kind == before->kind &&
           r->loc.block == before->block + before->blocks && r->body.version == before->version &&
           r->body.space == before->space && memcmp(key16, before->key, sizeof key16) == 0;
}
