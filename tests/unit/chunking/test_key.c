#include "chunking/key.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "tests/helpers/allocations.h"
#include "tests/helpers/value.h"

static const struct cairn_domain public_domain = {.name = "public"};

static cairn_identity *identity_of(const char *model, const char *chunk_tokens)
{
    struct cairn_field f[] = {{"model", model}, {"chunk_tokens", chunk_tokens}};
    cairn_identity *id = NULL;
    cr_assert_eq(cairn_identity_create(f, 2, &id, NULL, 0), CAIRN_OK);
    return id;
}

static bool equal(const struct cairn_key *a, const struct cairn_key *b)
{
    return memcmp(a, b, sizeof *a) == 0;
}

/* The last key of a prompt. */
static struct cairn_key last_key(const cairn_identity *id, const struct cairn_domain *domain,
                                 const struct cairn_key *parent, const uint32_t *tokens,
                                 size_t count, const struct cairn_extra *extras,
                                 size_t extra_count)
{
    struct cairn_key keys[64];
    size_t n;
    cr_assert_eq(cairn_keys(id, domain, parent, tokens, count, extras, extra_count, keys, 64, &n),
                 CAIRN_OK);
    cr_assert_gt(n, 0u);
    return keys[n - 1];
}

Test(key, a_prompt_gives_a_key_a_chunk_and_one_for_the_tail)
{
    cairn_identity *id = identity_of("m", "4");
    uint32_t tokens[13] = {0};
    struct cairn_key keys[8];
    size_t n;
    for (size_t count = 0; count <= 13; count++) {
        n = 99;
        cr_assert_eq(cairn_keys(id, &public_domain, NULL, tokens, count, NULL, 0, keys, 8, &n),
                     CAIRN_OK);
        cr_assert_eq(n, (count + 3) / 4);
    }
    cr_assert_eq(cairn_keys(id, &public_domain, NULL, NULL, 0, NULL, 0, NULL, 0, &n), CAIRN_OK);
    cr_assert_eq(n, 0u);
    cairn_identity_destroy(id);
}

Test(key, writes_no_more_than_cap)
{
    cairn_identity *id = identity_of("m", "4");
    uint32_t tokens[18] = {1, 2, 3};
    struct cairn_key all[5], some[5], untouched;
    struct cairn_extra late = {.chunk = 4, .data = "x", .len = 1};
    size_t n;
    memset(&untouched, 0xee, sizeof untouched);
    cr_assert_eq(cairn_keys(id, &public_domain, NULL, tokens, 18, &late, 1, all, 5, &n), CAIRN_OK);
    cr_assert_eq(n, 5u);
    for (size_t cap = 0; cap < 5; cap++) {
        memset(some, 0xee, sizeof some);
        cr_assert_eq(cairn_keys(id, &public_domain, NULL, tokens, 18, &late, 1, some, cap, &n),
                     CAIRN_OK);
        cr_assert_eq(n, cap);
        cr_assert_arr_eq(some, all, cap * sizeof all[0]);
        cr_assert(equal(&some[cap], &untouched));
    }
    cairn_identity_destroy(id);
}

Test(key, a_chain_can_be_continued_from_its_parent)
{
    cairn_identity *id = identity_of("m", "4");
    uint32_t tokens[14];
    struct cairn_key all[4], rest[4], zero = {{0}};
    struct cairn_extra extras[] = {{0, "a", 1}, {2, "b", 1}, {2, "c", 1}, {3, "", 0}};
    struct cairn_extra shifted[] = {{0, "b", 1}, {0, "c", 1}, {1, NULL, 0}};
    size_t n;
    for (uint32_t i = 0; i < 14; i++)
        tokens[i] = i * 7;
    cr_assert_eq(cairn_keys(id, &public_domain, NULL, tokens, 14, extras, 4, all, 4, &n), CAIRN_OK);
    cr_assert_eq(n, 4u);
    cr_assert_eq(cairn_keys(id, &public_domain, &all[1], tokens + 8, 6, shifted, 3, rest, 4, &n),
                 CAIRN_OK);
    cr_assert_eq(n, 2u);
    cr_assert_arr_eq(rest, all + 2, 2 * sizeof all[0]);
    cr_assert_eq(cairn_keys(id, &public_domain, &zero, tokens, 14, extras, 4, rest, 4, &n),
                 CAIRN_OK);
    cr_assert_arr_eq(rest, all, sizeof all);
    cairn_identity_destroy(id);
}

Test(key, anything_that_differs_changes_the_key)
{
    cairn_identity *id = identity_of("m", "4"), *model = identity_of("n", "4"),
                   *chunk = identity_of("m", "5");
    uint32_t t[4] = {1, 2, 3, 4}, u[4] = {1, 2, 3, 0x80000004};
    struct cairn_key parent = {{1}}, k[32];
    struct cairn_domain one = {.key = "a", .key_len = 1}, padded = {.key = "a\0", .key_len = 2};
    struct cairn_extra e[] = {{0, "ab", 2}, {0, "c", 1}, {0, "a", 1}, {0, "bc", 2}, {0, "", 0}};
    const struct cairn_domain *d = &public_domain;
    size_t n = 0;
    k[n++] = last_key(id, d, NULL, t, 4, NULL, 0);
    k[n++] = last_key(model, d, NULL, t, 4, NULL, 0);
    k[n++] = last_key(chunk, d, NULL, t, 4, NULL, 0);
    k[n++] = last_key(id, &one, NULL, t, 4, NULL, 0);
    k[n++] = last_key(id, &padded, NULL, t, 4, NULL, 0);
    k[n++] = last_key(id, d, &parent, t, 4, NULL, 0);
    k[n++] = last_key(id, d, NULL, u, 4, NULL, 0);
    k[n++] = last_key(id, d, NULL, t, 3, NULL, 0);
    k[n++] = last_key(id, d, NULL, t, 4, &e[4], 1);
    k[n++] = last_key(id, d, NULL, t, 4, e, 1);
    k[n++] = last_key(id, d, NULL, t, 4, e, 2);
    k[n++] = last_key(id, d, NULL, t, 4, e + 2, 2);
    k[n++] = last_key(id, d, NULL, t, 4, e + 2, 3);
    k[n++] = last_key(id, d, NULL, t, 3, &e[4], 1);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++)
            cr_assert_not(equal(&k[i], &k[j]), "%zu and %zu", i, j);
    cairn_identity_destroy(id);
    cairn_identity_destroy(model);
    cairn_identity_destroy(chunk);
}

/* Bytes can move between a chunk's tokens, an extra's length and its data only by changing the
 * key: every way to write the same bytes is a different name. */
Test(key, the_same_bytes_framed_otherwise_are_another_key)
{
    cairn_identity *id = identity_of("m", "8");
    uint8_t bytes[32];
    uint32_t tokens[8];
    struct cairn_key k[128];
    size_t n = 0, got;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)(i % 8 == 0); /* reads as the lengths 1 and 0 too */
    memcpy(tokens, bytes, sizeof tokens);
    for (size_t count = 1; count <= 8; count++) {
        size_t left = sizeof bytes - count * 4;
        struct cairn_extra one = {0, bytes + count * 4, left};
        k[n++] = last_key(id, &public_domain, NULL, tokens, count, &one, 1);
        for (size_t cut = 0; cut <= left; cut += 4) {
            struct cairn_extra two[] = {{0, bytes + count * 4, cut},
                                        {0, bytes + count * 4 + cut, left - cut}};
            k[n++] = last_key(id, &public_domain, NULL, tokens, count, two, 2);
        }
        if (count < 2)
            continue;
        cr_assert_eq(cairn_keys_from_hashes(id, &public_domain, NULL, bytes, count * 4, 1, NULL, 0,
                                            &k[n++], 1, &got), CAIRN_OK);
    }
    cr_assert_leq(n, sizeof k / sizeof k[0]);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++)
            cr_assert_not(equal(&k[i], &k[j]), "%zu and %zu", i, j);
    cairn_identity_destroy(id);
}

Test(key, hashes_and_tokens_of_the_same_bytes_are_different_chunks)
{
    cairn_identity *id = identity_of("m", "4");
    uint32_t tokens[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    struct cairn_key from_tokens[2], from_hashes[2];
    size_t n;
    cr_assert_eq(cairn_keys(id, &public_domain, NULL, tokens, 8, NULL, 0, from_tokens, 2, &n),
                 CAIRN_OK);
    cr_assert_eq(cairn_keys_from_hashes(id, &public_domain, NULL, tokens, 16, 2, NULL, 0,
                                        from_hashes, 2, &n), CAIRN_OK);
    cr_assert_eq(n, 2u);
    cr_assert_not(equal(&from_tokens[0], &from_hashes[0]));
    cr_assert_not(equal(&from_tokens[1], &from_hashes[1]));
    cairn_identity_destroy(id);
}

/* After equal heads both messages would be the same bytes; only the kind tells them apart. */
Test(key, a_hash_and_its_extra_do_not_read_as_tokens)
{
    cairn_identity *id = identity_of("m", "8");
    uint32_t words[10] = {11, 12, 28, 13, 14, 15, 16, 17, 4, 18};
    struct cairn_extra of_hash = {0, &words[3], 28}, of_tokens = {0, &words[9], 4};
    struct cairn_key from_hash, from_tokens;
    size_t n;
    cr_assert_eq(cairn_keys_from_hashes(id, &public_domain, NULL, words, 8, 1, &of_hash, 1,
                                        &from_hash, 1, &n), CAIRN_OK);
    cr_assert_eq(cairn_keys(id, &public_domain, NULL, words, 8, &of_tokens, 1, &from_tokens, 1,
                            &n), CAIRN_OK);
    cr_assert_not(equal(&from_hash, &from_tokens));
    cairn_identity_destroy(id);
}

struct prompt {
    uint32_t tokens[24];
    size_t count;
    uint8_t extra[24];
    struct cairn_extra extras[3];
    size_t extra_count;
};

static void random_prompt(struct rng *r, struct prompt *p)
{
    uint32_t chunk = 0;
    memset(p, 0, sizeof *p);
    p->count = 1 + rng_below(r, 24);
    for (size_t i = 0; i < p->count; i++)
        p->tokens[i] = (uint32_t)rng_below(r, 2);
    p->extra_count = rng_below(r, 4);
    for (size_t i = 0; i < sizeof p->extra; i++)
        p->extra[i] = (uint8_t)rng_below(r, 2);
    for (size_t i = 0; i < p->extra_count; i++) {
        chunk += (uint32_t)rng_below(r, (p->count + 3) / 4 - chunk);
        p->extras[i] = (struct cairn_extra){chunk, p->extra + 8 * i, rng_below(r, 3)};
    }
}

static bool prompt_equal(const struct prompt *a, const struct prompt *b)
{
    if (a->count != b->count || a->extra_count != b->extra_count
        || memcmp(a->tokens, b->tokens, a->count * 4) != 0)
        return false;
    for (size_t i = 0; i < a->extra_count; i++)
        if (a->extras[i].chunk != b->extras[i].chunk || a->extras[i].len != b->extras[i].len
            || memcmp(a->extras[i].data, b->extras[i].data, a->extras[i].len) != 0)
            return false;
    return true;
}

/* Small values, so that near-equal pairs are common. */
Test(key, keys_are_equal_exactly_when_the_prompts_are)
{
    cairn_identity *id = identity_of("m", "4");
    struct rng r = {.state = 13};
    size_t equal_pairs = 0;
    for (int round = 0; round < 20000; round++) {
        struct prompt a, b;
        random_prompt(&r, &a);
        if (rng_one_in(&r, 2)) {
            b = a;
            for (size_t i = 0; i < b.extra_count; i++)
                b.extras[i].data = b.extra + 8 * i;
            if (rng_one_in(&r, 2))
                b.tokens[rng_below(&r, b.count)] ^= 1;
            if (rng_one_in(&r, 4) && b.extra_count)
                b.extra[8 * rng_below(&r, b.extra_count) + rng_below(&r, 3)] ^= 1;
        } else {
            random_prompt(&r, &b);
        }
        struct cairn_key ka = last_key(id, &public_domain, NULL, a.tokens, a.count, a.extras,
                                       a.extra_count);
        struct cairn_key kb = last_key(id, &public_domain, NULL, b.tokens, b.count, b.extras,
                                       b.extra_count);
        cr_assert_eq(equal(&ka, &kb), prompt_equal(&a, &b), "seed 13, round %d", round);
        equal_pairs += equal(&ka, &kb);
    }
    cr_assert_gt(equal_pairs, 1000u);
    cairn_identity_destroy(id);
}

static cairn_status keys_status(const cairn_identity *id, const struct cairn_domain *d,
                                const struct cairn_extra *e, size_t extra_count)
{
    static const uint32_t tokens[9] = {0};
    struct cairn_key keys[3];
    size_t n = 77;
    cairn_status s = cairn_keys(id, d, NULL, tokens, 9, e, extra_count, keys, 3, &n);
    cr_assert_eq(n, s == CAIRN_OK ? 3u : 77u);
    return s;
}

Test(key, refuses_bad_domains)
{
    cairn_identity *id = identity_of("m", "4");
    char key[65] = "k";
    struct cairn_domain longest = {.key = key, .key_len = 64};
    struct cairn_domain bad[] = {
        {NULL, 0, NULL},  {key, 0, NULL},       {NULL, 1, NULL},     {key, 65, NULL},
        {NULL, 0, "pub"}, {NULL, 0, "Public"},  {key, 1, "public"},  {NULL, 1, "public"},
        {key, 1, "mine"}, {key, SIZE_MAX, NULL}, {NULL, 0, ""},
    };
    cr_assert_eq(keys_status(id, &longest, NULL, 0), CAIRN_OK);
    cr_assert_eq(keys_status(id, NULL, NULL, 0), CAIRN_INVAL);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cr_assert_eq(keys_status(id, &bad[i], NULL, 0), CAIRN_INVAL, "%zu", i);
    cairn_identity_destroy(id);
}

Test(key, refuses_bad_extras)
{
    cairn_identity *id = identity_of("m", "4");
    static uint8_t big[65537];
    struct cairn_extra past = {3, "x", 1}, unsorted[] = {{1, "x", 1}, {0, "x", 1}},
                       large = {0, big, 65537}, largest = {2, big, 65536}, none = {0, NULL, 1};
    cr_assert_eq(keys_status(id, &public_domain, &largest, 1), CAIRN_OK);
    cr_assert_eq(keys_status(id, &public_domain, &past, 1), CAIRN_INVAL);
    cr_assert_eq(keys_status(id, &public_domain, unsorted, 2), CAIRN_INVAL);
    cr_assert_eq(keys_status(id, &public_domain, &large, 1), CAIRN_INVAL);
    cr_assert_eq(keys_status(id, &public_domain, &none, 1), CAIRN_INVAL);
    cr_assert_eq(keys_status(id, &public_domain, NULL, 1), CAIRN_INVAL);
    struct cairn_key key;
    size_t n;
    cr_assert_eq(cairn_keys(id, &public_domain, NULL, NULL, 0, &largest, 1, &key, 1, &n),
                 CAIRN_INVAL, "an extra of a prompt without chunks");
    cairn_identity_destroy(id);
}

Test(key, refuses_bad_arguments)
{
    cairn_identity *id = identity_of("m", "4");
    const struct cairn_domain *d = &public_domain;
    uint32_t t = 0;
    uint8_t hash[80] = {0};
    struct cairn_key key;
    size_t n;
    cr_assert_eq(cairn_keys(NULL, d, NULL, &t, 1, NULL, 0, &key, 1, &n), CAIRN_INVAL);
    cr_assert_eq(cairn_keys(id, d, NULL, NULL, 1, NULL, 0, &key, 1, &n), CAIRN_INVAL);
    cr_assert_eq(cairn_keys(id, d, NULL, &t, 1, NULL, 0, NULL, 1, &n), CAIRN_INVAL);
    cr_assert_eq(cairn_keys(id, d, NULL, &t, 1, NULL, 0, &key, 1, NULL), CAIRN_INVAL);
    cr_assert_eq(cairn_keys(id, d, NULL, &t, SIZE_MAX / 4 + 1, NULL, 0, &key, 1, &n), CAIRN_INVAL);
#define HASHES(id_, p, len, count) \
    cairn_keys_from_hashes(id_, d, NULL, p, len, count, NULL, 0, &key, 1, &n)
    cr_assert_eq(HASHES(id, hash, 8, 1), CAIRN_OK);
    cr_assert_eq(HASHES(id, hash, 64, 1), CAIRN_OK);
    cr_assert_eq(HASHES(id, hash, 7, 1), CAIRN_INVAL);
    cr_assert_eq(HASHES(id, hash, 65, 1), CAIRN_INVAL);
    cr_assert_eq(HASHES(id, hash, 0, 1), CAIRN_INVAL);
    cr_assert_eq(HASHES(id, hash, 16, SIZE_MAX / 16 + 1), CAIRN_INVAL);
    cr_assert_eq(HASHES(id, NULL, 16, 1), CAIRN_INVAL);
    cr_assert_eq(HASHES(NULL, hash, 16, 1), CAIRN_INVAL);
    cr_assert_eq(HASHES(id, NULL, 16, 0), CAIRN_OK);
    cr_assert_eq(n, 0u);
    cairn_identity_destroy(id);
}

Test(key, no_allocation_is_made)
{
    if (SANITIZED)
        cr_skip_test("the sanitizer has its own malloc");
    cairn_identity *id = identity_of("m", "256");
    uint32_t *tokens = calloc(131072, sizeof *tokens);
    struct cairn_key *keys = calloc(512, sizeof *keys);
    struct cairn_extra e = {7, "extra", 5};
    size_t n;
    unsigned long before = atomic_load(&allocations), freed = atomic_load(&frees);
    cr_assert_gt(before, 0ul, "malloc is counted");
    cairn_status s = cairn_keys(id, &public_domain, NULL, tokens, 131072, &e, 1, keys, 512, &n);
    cairn_status h = cairn_keys_from_hashes(id, &public_domain, NULL, tokens, 32, 512, NULL, 0,
                                            keys, 512, &n);
    unsigned long after = atomic_load(&allocations);
    freed = atomic_load(&frees) - freed;
    cr_assert_eq(after, before);
    cr_assert_eq(freed, 0ul);
    cr_assert_eq(s, CAIRN_OK);
    cr_assert_eq(h, CAIRN_OK);
    cr_assert_eq(n, 512u);
    free(tokens);
    free(keys);
    cairn_identity_destroy(id);
}
