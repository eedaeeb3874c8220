#include <criterion/criterion.h>

#include <string.h>

#include "storage/format.h"
#include "tests/helpers/seed.h"

static const struct cairn_log_shape shape = {
    .uuid = "0123456789abcde", .segment_bytes = 1u << 20, .segments = 40};

static uint32_t first_of(uint32_t segment)
{
    return cairn_segment_first(&shape, segment);
}

Test(format, segment_sizes)
{
    const uint64_t mib = 1u << 20, gib = 1u << 30;
    cr_assert_eq(cairn_segment_bytes_for(32 * mib - 1), 0);
    cr_assert_eq(cairn_segment_bytes_for(32 * mib), mib);
    cr_assert_eq(cairn_segment_bytes_for(64 * mib - 1), mib);
    cr_assert_eq(cairn_segment_bytes_for(64 * mib), 2 * mib);
    cr_assert_eq(cairn_segment_bytes_for(8 * gib), 256 * mib);
    cr_assert_eq(cairn_segment_bytes_for(32 * gib), gib);
    cr_assert_eq(cairn_segment_bytes_for(4000 * gib), gib);
}

Test(format, blocks_know_their_segment)
{
    cr_assert_eq(cairn_segment_of(&shape, 0), UINT32_MAX);
    cr_assert_eq(cairn_segment_of(&shape, 511), UINT32_MAX);
    cr_assert_eq(cairn_segment_of(&shape, 512), 0);
    cr_assert_eq(cairn_segment_of(&shape, 512 + 255), 0);
    cr_assert_eq(cairn_segment_of(&shape, 512 + 256), 1);
    cr_assert_eq(cairn_segment_of(&shape, 512 + 40 * 256 - 1), 39);
    cr_assert_eq(cairn_segment_of(&shape, 512 + 40 * 256), UINT32_MAX);
    cr_assert_eq(cairn_segment_of(&shape, UINT32_MAX), UINT32_MAX);
}

static void record_make(struct cairn_record_disk *r, uint32_t block, uint64_t len, uint32_t side)
{
    memset(r, 0, sizeof *r);
    r->loc.kind = CAIRN_RECORD_VALUE;
    memcpy(r->loc.uuid, shape.uuid, 16);
    r->loc.segment = cairn_segment_of(&shape, block);
    r->loc.generation = 5;
    r->loc.block = block;
    r->loc.blocks = cairn_record_blocks(len, side);
    r->body.value_len = len;
    r->body.side_len = side;
    r->body.version = 11;
    memset(r->body.key, 3, 32);
    cairn_body_seal(&r->body);
    cairn_loc_seal(&r->loc);
}

/* Every single flipped bit of a header is found. */
Test(format, no_flipped_bit_passes)
{
    struct cairn_record_disk r;
    uint8_t *bytes = (uint8_t *)&r;
    uint32_t block = first_of(2) + 1;
    record_make(&r, block, 10000, 100);
    cr_assert(cairn_record_check(&r, &shape, block, 5));
    for (size_t bit = 0; bit < 8 * sizeof r; bit += 3) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        cr_assert_not(cairn_record_check(&r, &shape, block, 5), "bit %zu", bit);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    cr_assert(cairn_record_check(&r, &shape, block, 5));
}

Test(format, a_record_belongs_to_its_place_and_life)
{
    struct cairn_record_disk r;
    uint32_t block = first_of(2) + 1;
    record_make(&r, block, 10000, 0);
    cr_assert_not(cairn_record_check(&r, &shape, block + 1, 5), "misdirected");
    cr_assert_not(cairn_record_check(&r, &shape, block, 6), "an earlier life");
    cr_assert_not(cairn_record_check(&r, &shape, 3, 5));
    struct cairn_log_shape other = shape;
    other.uuid[0] ^= 1;
    cr_assert_not(cairn_record_check(&r, &other, block, 5), "another log");
}

Test(format, lengths_and_blocks_agree)
{
    struct cairn_record_disk r;
    uint32_t block = first_of(2) + 1;
    record_make(&r, block, 10000, 0);
    r.loc.blocks++;
    cairn_loc_seal(&r.loc);
    cr_assert_not(cairn_record_check(&r, &shape, block, 5));
    record_make(&r, block, 10000, CAIRN_SIDE_MAX + 1);
    cr_assert_not(cairn_record_check(&r, &shape, block, 5));
    record_make(&r, block, 0, 0);
    cr_assert_not(cairn_record_check(&r, &shape, block, 5));
    record_make(&r, block, CAIRN_VALUE_MAX, 0);
    cr_assert_not(cairn_record_check(&r, &shape, block, 5), "beyond its segment");
    uint32_t end = first_of(3);
    record_make(&r, end - 4, 3 * 4096, 0);
    cr_assert_not(cairn_record_check(&r, &shape, end - 4, 5), "over the trailer");
    record_make(&r, end - 4, 2 * 4096, 0);
    cr_assert(cairn_record_check(&r, &shape, end - 4, 5));
    r.loc.kind = CAIRN_RECORD_CLEAR;
    cairn_loc_seal(&r.loc);
    cr_assert_not(cairn_record_check(&r, &shape, end - 4, 5), "a clear with a value");
    r.loc.blocks = 1;
    r.body.value_len = 0;
    cairn_body_seal(&r.body);
    cairn_loc_seal(&r.loc);
    cr_assert(cairn_record_check(&r, &shape, end - 4, 5));
    r.loc.kind = CAIRN_RECORD_CLEAR + 1;
    cairn_loc_seal(&r.loc);
    cr_assert_not(cairn_record_check(&r, &shape, end - 4, 5), "a kind of another day");
}

Test(format, pieces_and_side_records)
{
    static uint8_t value[CAIRN_PIECE_BYTES + 4096];
    struct cairn_record_disk r;
    record_make(&r, first_of(1) + 1, CAIRN_PIECE_BYTES + 1000, 50);
    for (size_t i = 0; i < sizeof value; i++)
        value[i] = (uint8_t)(i * 13 ^ i >> 12);
    cairn_hash_pieces(value, CAIRN_PIECE_BYTES + 1000, r.body.piece_check);
    cr_assert(cairn_piece_check(&r, 0, value));
    cr_assert(cairn_piece_check(&r, 1, value + CAIRN_PIECE_BYTES));
    cr_assert_not(cairn_piece_check(&r, 1, value));
    cr_assert_not(cairn_piece_check(&r, 2, value));
    cr_assert_not(cairn_piece_check(&r, UINT32_MAX, value));
    value[CAIRN_PIECE_BYTES + 999] ^= 4;
    cr_assert_not(cairn_piece_check(&r, 1, value + CAIRN_PIECE_BYTES));
    r.body.side_check = cairn_hash64(value, 50);
    cr_assert(cairn_side_check(&r, value));
    value[49] ^= 4;
    cr_assert_not(cairn_side_check(&r, value));
}

Test(format, footers)
{
    struct cairn_summary_disk s[3];
    struct cairn_trailer_disk t;
    memset(s, 0, sizeof s);
    memset(&t, 0, sizeof t);
    for (uint32_t i = 0; i < 3; i++) {
        s[i].kind = CAIRN_RECORD_VALUE;
        s[i].block = first_of(7) + 1 + 3 * i;
        s[i].blocks = 3;
        s[i].value_len = 8000;
    }
    memcpy(t.uuid, shape.uuid, 16);
    t.segment = 7;
    t.generation = 5;
    t.count = 3;
    t.first_block = first_of(8) - 2;
    cairn_trailer_seal(&t, s);
    cr_assert_eq(cairn_trailer_check(&t, &shape, 7, 5), CAIRN_VERDICT_OK);
    cr_assert(cairn_summaries_check(&t, s, &shape));
    cr_assert_eq(cairn_trailer_check(&t, &shape, 7, 4), CAIRN_VERDICT_BAD, "an earlier life");
    cr_assert_eq(cairn_trailer_check(&t, &shape, 6, 5), CAIRN_VERDICT_BAD);
    s[1].version ^= 1;
    cr_assert_not(cairn_summaries_check(&t, s, &shape));
    s[1].version ^= 1;
    s[2].block--;
    cairn_trailer_seal(&t, s);
    cr_assert_not(cairn_summaries_check(&t, s, &shape), "overlap");
    s[2].block = t.first_block - 2;
    cairn_trailer_seal(&t, s);
    cr_assert_not(cairn_summaries_check(&t, s, &shape), "into the footer");
    t.count = 300;
    t.check = cairn_hash64(&t, sizeof t - 8);
    cr_assert_eq(cairn_trailer_check(&t, &shape, 7, 5), CAIRN_VERDICT_BAD, "more than fits");
}

static void super_make(struct cairn_super_disk *s)
{
    memset(s, 0, sizeof *s);
    s->segment_bytes = 1u << 20;
    s->segments = 40;
    s->block_size = 4096;
    cairn_super_seal(s);
}

Test(format, superblocks)
{
    struct cairn_super_disk s;
    memset(&s, 0, sizeof s);
    cr_assert_eq(cairn_super_check(&s), CAIRN_VERDICT_BLANK);
    super_make(&s);
    cr_assert_eq(cairn_super_check(&s), CAIRN_VERDICT_OK);
    s.segment_bytes = 3u << 20;
    cairn_super_seal(&s);
    cr_assert_eq(cairn_super_check(&s), CAIRN_VERDICT_BAD, "no power of two");
    super_make(&s);
    s.segment_bytes = 1u << 30;
    s.segments = 1u << 14;
    cairn_super_seal(&s);
    cr_assert_eq(cairn_super_check(&s), CAIRN_VERDICT_BAD, "more than 32-bit blocks");
    super_make(&s);
    s.prewritten = 41;
    cairn_super_seal(&s);
    cr_assert_eq(cairn_super_check(&s), CAIRN_VERDICT_BAD);
    super_make(&s);
    s.format = 2;
    s.check = cairn_hash64(&s, sizeof s - 8);
    cr_assert_eq(cairn_super_check(&s), CAIRN_VERDICT_FORMAT);
    s.pad1[5] = 1;
    cr_assert_eq(cairn_super_check(&s), CAIRN_VERDICT_BAD);
}

Test(format, heads_and_identities)
{
    struct cairn_head_disk h;
    struct cairn_ident_disk d;
    memset(&h, 0, sizeof h);
    memset(&d, 0, sizeof d);
    cr_assert_eq(cairn_head_check(&h, &shape, 0), CAIRN_VERDICT_BLANK);
    cr_assert_eq(cairn_ident_check(&d, &shape), CAIRN_VERDICT_BLANK);
    memcpy(h.uuid, shape.uuid, 16);
    h.segment = 4;
    h.generation = 9;
    h.floor = 9;
    cairn_head_seal(&h);
    cr_assert_eq(cairn_head_check(&h, &shape, 4), CAIRN_VERDICT_OK);
    cr_assert_eq(cairn_head_check(&h, &shape, 5), CAIRN_VERDICT_BAD);
    h.floor = 10;
    cairn_head_seal(&h);
    cr_assert_eq(cairn_head_check(&h, &shape, 4), CAIRN_VERDICT_BAD, "would be dead itself");
    memcpy(d.uuid, shape.uuid, 16);
    d.len = CAIRN_IDENT_MAX;
    cairn_ident_seal(&d);
    cr_assert_eq(cairn_ident_check(&d, &shape), CAIRN_VERDICT_OK);
    d.len++;
    cairn_ident_seal(&d);
    cr_assert_eq(cairn_ident_check(&d, &shape), CAIRN_VERDICT_BAD);
}
