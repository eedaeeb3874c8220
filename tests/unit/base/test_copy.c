#include <criterion/criterion.h>
#include <string.h>

#include "base/copy_isa.h"
#include "base/hash_isa.h"
#include "tests/helpers/seed.h"

#define VALUE_MAX_BYTES (3u * 1024u * 1024u)
#define IOV_MAX_COUNT 4096u
#define CANARY 0xC5
#define MARGIN 256u
/* ThreadSanitizer makes a byte loop thirty times slower and has no threads to look at here. */
#if defined(__SANITIZE_THREAD__)
#define ROUNDS 4u
#else
#define ROUNDS 50u
#endif

/* One random case: a list in `listed`, whose parts lie in random order with gaps between them, and
 * flat memory of the same bytes. Everything that no copy may touch holds the canary. */
struct rig {
    struct rng rng;
    unsigned char *value, *flat, *listed, *listed_want;
    size_t listed_len;
    struct cairn_iov iov[IOV_MAX_COUNT];
    struct cairn_sgl list;
    size_t len;
    uint64_t checks[CAIRN_PIECES_MAX], want[CAIRN_PIECES_MAX];
    unsigned char secret[CAIRN_HASH_SECRET_BYTES];
};

static struct rig rig;

static void rig_open(const char *name)
{
    rig.rng = test_rng(name);
    rig.listed_len = 2u * VALUE_MAX_BYTES + IOV_MAX_COUNT * MARGIN;
    rig.value = malloc(VALUE_MAX_BYTES);
    rig.flat = aligned_alloc(4096, VALUE_MAX_BYTES + 2u * 4096u);
    rig.listed = aligned_alloc(4096, rig.listed_len & ~(size_t)4095);
    rig.listed_want = malloc(rig.listed_len);
    rig.listed_len &= ~(size_t)4095;
    cairn_hash_secret(rig.secret);
    for (size_t i = 0; i < VALUE_MAX_BYTES; i++)
        rig.value[i] = (unsigned char)rng_next(&rig.rng);
}

static void rig_close(void)
{
    free(rig.value);
    free(rig.flat);
    free(rig.listed);
    free(rig.listed_want);
}

static size_t random_len(struct rng *r)
{
    static const size_t special[] = {1,    63,    64,     65,     240,    241,    1023,   1024,
                                     1025, 4095,  4096,   4097,   16384,  32768,  65536,  262143,
                                     262144, 262145, 524288, 524289, 1048576, 2949120,
                                     VALUE_MAX_BYTES};
    if (rng_one_in(r, 3))
        return special[rng_below(r, sizeof(special) / sizeof(special[0]))];
    return 1 + rng_below(r, 1 + rng_below(r, VALUE_MAX_BYTES));
}

static size_t random_part(struct rng *r, uint32_t style)
{
    switch (style) {
    case 0: return 32768;
    case 1: return 1 + rng_below(r, 5000);
    case 2: return rng_one_in(r, 2) ? 0 : 4096;
    case 3: return 98304 + rng_below(r, 64);
    case 4: return SIZE_MAX;
    default: return (1 + rng_below(r, 64)) * 1024;
    }
}

/* Cuts `len` bytes into a list over rig.listed. */
static void rig_cut(size_t len)
{
    uint32_t style = (uint32_t)rng_below(&rig.rng, 6), n = 0;
    bool aligned = rng_one_in(&rig.rng, 2);
    unsigned char *at = rig.listed + MARGIN;
    rig.len = 0;
    while (rig.len < len) {
        size_t part = n + 1 == IOV_MAX_COUNT ? SIZE_MAX : random_part(&rig.rng, style);
        part = part < len - rig.len ? part : len - rig.len;
        at += aligned ? (size_t)(-(uintptr_t)at & 63) : rng_below(&rig.rng, MARGIN);
        rig.iov[n++] = (struct cairn_iov){part ? at : NULL, part};
        at += part;
        rig.len += part;
    }
    /* Neighbours in the list are strangers in memory. */
    for (uint32_t i = n - 1; i > 0; i--) {
        uint32_t j = (uint32_t)rng_below(&rig.rng, i + 1);
        struct cairn_iov swapped = rig.iov[i];
        rig.iov[i] = rig.iov[j];
        rig.iov[j] = swapped;
    }
    rig.list = (struct cairn_sgl){.iov = rig.iov, .count = n};
    for (size_t i = 0; i < cairn_piece_count(len); i++) {
        size_t rest = len - i * CAIRN_PIECE_BYTES;
        rig.want[i] = cairn_hash64(rig.value + i * CAIRN_PIECE_BYTES,
                                   rest < CAIRN_PIECE_BYTES ? rest : CAIRN_PIECE_BYTES);
    }
}

/* The list's memory with bytes [off, off + len) of the list taken from src, the slow way. */
static void listed_fill(unsigned char *listed, size_t off, size_t len, const unsigned char *src)
{
    memset(listed, CANARY, rig.listed_len);
    size_t at = 0;
    for (uint32_t i = 0; i < rig.list.count; i++) {
        for (size_t b = 0; b < rig.iov[i].len; b++, at++) {
            if (at >= off && at < off + len)
                listed[(unsigned char *)rig.iov[i].base - rig.listed + b] = src[at - off];
        }
    }
}

static bool canaries_alive(const unsigned char *flat, size_t len)
{
    for (const unsigned char *p = rig.flat; p < rig.flat + VALUE_MAX_BYTES + 2u * 4096u; p++)
        if ((p < flat || p >= flat + len) && *p != CANARY)
            return false;
    return true;
}

static unsigned char *flat_place(void)
{
    memset(rig.flat, CANARY, VALUE_MAX_BYTES + 2u * 4096u);
    return rig.flat + 4096 - (rng_one_in(&rig.rng, 2) ? 0 : rng_below(&rig.rng, 64));
}

static void check_gather(const struct cairn_copy_ops *ops)
{
    size_t off = rng_below(&rig.rng, rig.len), len = rng_below(&rig.rng, rig.len - off + 1);
    listed_fill(rig.listed, 0, rig.len, rig.value);
    unsigned char *flat = flat_place();
    struct cairn_walk w = cairn_walk_at(&rig.list, off, len, flat, true);
    ops->walk(&w);
    cr_assert_eq(memcmp(flat, rig.value + off, len), 0, "%s gather %zu+%zu", ops->name, off, len);
    cr_assert(canaries_alive(flat, len), "%s gather wrote elsewhere", ops->name);
}

static void check_scatter(const struct cairn_copy_ops *ops)
{
    size_t off = rng_below(&rig.rng, rig.len), len = rng_below(&rig.rng, rig.len - off + 1);
    listed_fill(rig.listed_want, off, len, rig.value);
    memset(rig.listed, CANARY, rig.listed_len);
    struct cairn_walk w = cairn_walk_at(&rig.list, off, len, rig.value, false);
    ops->walk(&w);
    cr_assert_eq(memcmp(rig.listed, rig.listed_want, rig.listed_len), 0, "%s scatter %zu+%zu",
                 ops->name, off, len);
}

static void check_gather_hash(const struct cairn_copy_ops *ops)
{
    listed_fill(rig.listed, 0, rig.len, rig.value);
    unsigned char *flat = flat_place();
    uint32_t pieces = cairn_piece_count(rig.len);
    memset(rig.checks, 0, sizeof(rig.checks));
    struct cairn_checked job = {.list = &rig.list, .flat = flat, .value_len = rig.len,
                                .len = rig.len, .checks = rig.checks, .secret = rig.secret,
                                .gather = true};
    cr_assert_eq(ops->checked(&job), -1);
    cr_assert_eq(memcmp(flat, rig.value, rig.len), 0, "%s gather_hash %zu", ops->name, rig.len);
    cr_assert_eq(memcmp(rig.checks, rig.want, pieces * sizeof(uint64_t)), 0, "%s checks of %zu",
                 ops->name, rig.len);
    cr_assert(pieces == CAIRN_PIECES_MAX || rig.checks[pieces] == 0, "a check too many");
    cr_assert(canaries_alive(flat, rig.len), "%s gather_hash wrote elsewhere", ops->name);
}

/* The list holds the whole value, and what lies beside the part is not touched. */
static void check_scatter_verify_part(const struct cairn_copy_ops *ops, size_t value_len)
{
    size_t off = rng_below(&rig.rng, value_len), len = 1 + rng_below(&rig.rng, value_len - off);
    memcpy(rig.checks, rig.want, sizeof(rig.want));
    listed_fill(rig.listed_want, off, len, rig.value + off);
    memset(rig.listed, CANARY, rig.listed_len);
    struct cairn_checked job = {.list = &rig.list, .list_off = off, .flat = rig.value,
                                .value_len = value_len, .off = off, .len = len,
                                .checks = rig.checks, .secret = rig.secret};
    cr_assert_eq(ops->checked(&job), -1, "%s part %zu+%zu of %zu", ops->name, off, len, value_len);
    cr_assert_eq(memcmp(rig.listed, rig.listed_want, rig.listed_len), 0,
                 "%s part %zu+%zu of %zu", ops->name, off, len, value_len);
    size_t bad = (off + rng_below(&rig.rng, len)) / CAIRN_PIECE_BYTES;
    rig.checks[bad] ^= 1;
    cr_assert_eq(ops->checked(&job), (int)bad, "%s takes piece %zu of %zu", ops->name, bad,
                 value_len);
}

/* The list holds the range only, so it is cut anew for it. */
static void check_scatter_verify(const struct cairn_copy_ops *ops, size_t value_len)
{
    size_t off = rng_one_in(&rig.rng, 2) ? 0 : rng_below(&rig.rng, value_len);
    size_t len = rng_one_in(&rig.rng, 2) ? value_len - off
                                         : 1 + rng_below(&rig.rng, value_len - off);
    rig_cut(value_len);
    memcpy(rig.checks, rig.want, sizeof(rig.want));
    rig_cut(len);
    listed_fill(rig.listed_want, 0, len, rig.value + off);
    memset(rig.listed, CANARY, rig.listed_len);
    struct cairn_checked job = {.list = &rig.list, .flat = rig.value, .value_len = value_len,
                                .off = off, .len = len, .checks = rig.checks,
                                .secret = rig.secret};
    cr_assert_eq(ops->checked(&job), -1, "%s verify %zu+%zu of %zu", ops->name, off, len,
                 value_len);
    cr_assert_eq(memcmp(rig.listed, rig.listed_want, rig.listed_len), 0,
                 "%s verify %zu+%zu of %zu", ops->name, off, len, value_len);

    uint32_t first = (uint32_t)(off / CAIRN_PIECE_BYTES);
    uint32_t touched = cairn_piece_count(off + len) - first;
    uint32_t bad = first + (uint32_t)rng_below(&rig.rng, touched);
    size_t piece_at = (size_t)bad * CAIRN_PIECE_BYTES;
    size_t piece_len = value_len - piece_at < CAIRN_PIECE_BYTES ? value_len - piece_at
                                                                : CAIRN_PIECE_BYTES;
    unsigned char *victim = rig.value + piece_at + rng_below(&rig.rng, piece_len);
    unsigned char flip = (unsigned char)(1u << rng_below(&rig.rng, 8));
    *victim ^= flip;
    cr_assert_eq(ops->checked(&job), (int)bad, "%s misses a flip in piece %u of %zu", ops->name,
                 bad, value_len);
    /* Of several bad pieces the first one. */
    rig.checks[first + touched - 1] ^= 1;
    if (bad < first + touched - 1)
        cr_assert_eq(ops->checked(&job), (int)bad);
    rig.checks[first] ^= 2;
    cr_assert_eq(ops->checked(&job), (int)first, "%s: first of several", ops->name);
    *victim ^= flip;
}

static void every_variant(void (*check)(const struct cairn_copy_ops *))
{
    const struct cairn_copy_ops *ops[CAIRN_COPY_OPS_MAX];
    uint32_t count = cairn_copy_candidates(ops);
    for (uint32_t round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < count; i++) {
            rig_cut(random_len(&rig.rng));
            check(ops[i]);
        }
    }
    rig_close();
}

Test(copy, gathers_any_range_of_any_list)
{
    rig_open("copy gather");
    every_variant(check_gather);
}

Test(copy, scatters_any_range_into_any_list)
{
    rig_open("copy scatter");
    every_variant(check_scatter);
}

Test(copy, hashes_pieces_while_gathering)
{
    rig_open("copy gather_hash");
    every_variant(check_gather_hash);
}

static void verify_any(const struct cairn_copy_ops *ops)
{
    check_scatter_verify(ops, rig.len);
}

Test(copy, verifies_pieces_while_scattering_a_range)
{
    rig_open("copy scatter_verify");
    every_variant(verify_any);
}

static void verify_any_part(const struct cairn_copy_ops *ops)
{
    check_scatter_verify_part(ops, rig.len);
}

Test(copy, verifies_pieces_of_a_part_of_a_list)
{
    rig_open("copy scatter_verify_part");
    every_variant(verify_any_part);
}

Test(copy, flat_copies_of_every_alignment)
{
    rig_open("copy flat");
    const char *names[CAIRN_COPY_OPS_MAX];
    cairn_copy_fn fns[CAIRN_COPY_OPS_MAX];
    uint32_t count = cairn_copy_variants(names, fns, CAIRN_COPY_OPS_MAX);
    cr_assert_geq(count, 1);
    cr_assert_str_eq(names[count - 1], "memcpy");
    for (uint32_t i = 0; i < count; i++) {
        for (uint32_t round = 0; round < 2 * ROUNDS; round++) {
            size_t from = rng_below(&rig.rng, 64);
            size_t len = random_len(&rig.rng);
            len = len < VALUE_MAX_BYTES - from ? len : VALUE_MAX_BYTES - from;
            unsigned char *flat = flat_place();
            fns[i](flat, rig.value + from, len);
            cr_assert_eq(memcmp(flat, rig.value + from, len), 0, "%s %zu", names[i], len);
            cr_assert(canaries_alive(flat, len), "%s wrote elsewhere", names[i]);
        }
    }
    rig_close();
}

/* The public calls, before and after the choice of a variant. */
static void check_public(void)
{
    size_t value_len = 1 + rng_below(&rig.rng, VALUE_MAX_BYTES);
    rig_cut(value_len);
    listed_fill(rig.listed, 0, rig.len, rig.value);
    unsigned char *flat = flat_place();
    cairn_copy_gather_hash(flat, &rig.list, rig.len, rig.checks);
    cr_assert_eq(memcmp(flat, rig.value, rig.len), 0);
    cr_assert_eq(memcmp(rig.checks, rig.want, cairn_piece_count(rig.len) * 8u), 0);
    memset(rig.listed, 0, rig.listed_len);
    cr_assert_eq(cairn_copy_scatter_verify(&rig.list, flat, rig.len, 0, rig.len, rig.checks), -1);
    size_t half = rig.len / 2;
    memset(rig.listed, 0, rig.listed_len);
    cr_assert_eq(cairn_copy_scatter_verify_part(&rig.list, flat, rig.len, 0, half, rig.checks), -1);
    cr_assert_eq(cairn_copy_scatter_verify_part(&rig.list, flat, rig.len, half, rig.len - half,
                                                rig.checks), -1);
    memset(flat, 0, rig.len);
    cairn_copy_gather(flat, &rig.list, 0, rig.len);
    cr_assert_eq(memcmp(flat, rig.value, rig.len), 0);
    cairn_copy_scatter(&rig.list, 0, flat, rig.len);
    cairn_copy(rig.listed, flat, rig.len);
    cr_assert_eq(memcmp(rig.listed, rig.value, rig.len), 0);
}

Test(copy, public_calls_before_and_after_the_choice)
{
    rig_open("copy public");
    cr_assert_str_eq(cairn_copy_variant(), "memcpy");
    check_public();
    cairn_copy_init();
    cairn_copy_init();
    const char *names[CAIRN_COPY_OPS_MAX];
    cairn_copy_fn fns[CAIRN_COPY_OPS_MAX];
    uint32_t count = cairn_copy_variants(names, fns, CAIRN_COPY_OPS_MAX), known = 0;
    for (uint32_t i = 0; i < count; i++)
        known += strcmp(names[i], cairn_copy_variant()) == 0;
    cr_assert_eq(known, 1, "%s is no variant", cairn_copy_variant());
    for (int i = 0; i < 5; i++)
        check_public();
    rig_close();
}

Test(copy, nothing_is_copied_for_zero_bytes)
{
    cairn_copy_init();
    struct cairn_iov none = {.base = NULL, .len = 0};
    struct cairn_sgl empty = {.iov = NULL, .count = 0}, zeros = {.iov = &none, .count = 1};
    cairn_copy(NULL, NULL, 0);
    cairn_copy_gather(NULL, &empty, 0, 0);
    cairn_copy_scatter(&zeros, 0, NULL, 0);
    uint64_t check = 7;
    cairn_copy_gather_hash(NULL, &zeros, 0, &check);
    cr_assert_eq(check, 7);
    cr_assert_eq(cairn_copy_scatter_verify(&empty, "x", 1, 0, 0, &check), -1);
}
