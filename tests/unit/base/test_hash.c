#include <criterion/criterion.h>
#include <string.h>

#include "base/hash.h"
#include "base/hash_isa.h"
#include "tests/helpers/seed.h"

/* Published by the xxHash project: the stream of its own sanity check, seed 0. */
static void sanity_stream(unsigned char *out, size_t len)
{
    uint64_t g = 2654435761u;
    for (size_t i = 0; i < len; i++) {
        out[i] = (unsigned char)(g >> 56);
        g *= 11400714785074694797ull;
    }
}

Test(hash, published_values)
{
    static const struct {
        size_t len;
        uint64_t want;
    } known[] = {{0, 0x2D06800538D394C2u},    {1, 0xC44BDFF4074EECDBu},
                 {6, 0x27B56A84CD2D7325u},    {12, 0xA713DAF0DFBB77E7u},
                 {24, 0xA3FE70BF9D3510EBu},   {48, 0x397DA259ECBA1F11u},
                 {80, 0xBCDEFBBB2C47C90Au},   {195, 0xCD94217EE362EC3Au},
                 {403, 0xCDEB804D65C6DEA4u},  {512, 0x617E49599013CB6Bu},
                 {2048, 0xDD59E2C3A5F038E0u}, {2240, 0x6E73A90539CF2948u},
                 {2367, 0xCB37AEB9E5D361EDu}};
    unsigned char data[2400];
    sanity_stream(data, sizeof(data));
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        cr_assert_eq(cairn_hash64(data, known[i].len), known[i].want, "length %zu", known[i].len);
    cr_assert_eq(cairn_hash64(NULL, 0), known[0].want);
    cr_assert_eq(cairn_hash64("abc", 3), 0x78AF5F94892F3950u);
}

#if defined(__x86_64__)
Test(hash, instruction_sets_agree)
{
    struct rng r = test_rng("hash isa");
    static unsigned char data[70000];
    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (unsigned char)rng_next(&r);
    for (int i = 0; i < 3000; i++) {
        size_t from = rng_below(&r, 64);
        size_t len = rng_below(&r, i < 1000 ? 1100 : sizeof(data) - 64);
        uint64_t want = cairn_hash64(data + from, len);
        if (cairn_cpu_avx2())
            cr_assert_eq(cairn_hash64_avx2(data + from, len), want, "avx2 %zu", len);
        if (cairn_cpu_avx512())
            cr_assert_eq(cairn_hash64_avx512(data + from, len), want, "avx512 %zu", len);
    }
}
#endif

Test(hash, pieces_are_hashed_alone)
{
    struct rng r = test_rng("hash pieces");
    size_t cap = 3u * CAIRN_PIECE_BYTES + 17u;
    unsigned char *data = malloc(cap);
    for (size_t i = 0; i < cap; i++)
        data[i] = (unsigned char)rng_next(&r);
    static const size_t lens[] = {1, CAIRN_PIECE_BYTES - 1, CAIRN_PIECE_BYTES,
                                  CAIRN_PIECE_BYTES + 1, 3u * CAIRN_PIECE_BYTES + 17u};
    for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
        uint64_t checks[5] = {0, 0, 0, 0, 0};
        uint32_t pieces = cairn_piece_count(lens[i]);
        cairn_hash_pieces(data, lens[i], checks);
        for (uint32_t p = 0; p < pieces; p++) {
            size_t at = (size_t)p * CAIRN_PIECE_BYTES;
            size_t n = lens[i] - at < CAIRN_PIECE_BYTES ? lens[i] - at : CAIRN_PIECE_BYTES;
            cr_assert_eq(checks[p], cairn_hash64(data + at, n));
        }
        cr_assert_eq(checks[pieces], 0);
    }
    cr_assert_eq(cairn_piece_count(0), 0);
    cr_assert_eq(cairn_piece_count((size_t)64 << 20), CAIRN_PIECES_MAX);
    free(data);
}

Test(hash, variant_is_named)
{
    static const char *const names[] = {"avx512", "avx2", "sse2", "scalar", "vector"};
    bool known = false;
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        known |= strcmp(names[i], cairn_hash_variant()) == 0;
    cr_assert(known, "%s", cairn_hash_variant());
}
