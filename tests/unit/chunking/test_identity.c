#include "chunking/identity.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tests/helpers/value.h"

#define COUNT(a) (sizeof(a) / sizeof(a)[0])

static const struct cairn_field base[] = {
    {"model", "org/model"}, {"chunk_tokens", "256"}, {"kv_dtype", "bfloat16"},
    {"tp_rank", "1"},       {"tp_size", "4"},        {"note", "free"},
};

static cairn_identity *make(const struct cairn_field *fields, size_t count)
{
    char err[256] = "";
    cairn_identity *id = NULL;
    cairn_status s = cairn_identity_create(fields, count, &id, err, sizeof err);
    cr_assert_eq(s, CAIRN_OK, "%s", err);
    cr_assert_str_empty(err);
    return id;
}

/* The sentence of a refusal; `id` must stay untouched. */
static const char *refusal(const struct cairn_field *fields, size_t count)
{
    static char err[512];
    err[0] = 0;
    cairn_identity *id = NULL;
    cr_assert_eq(cairn_identity_create(fields, count, &id, err, sizeof err), CAIRN_INVAL);
    cr_assert_null(id);
    cr_assert_str_not_empty(err);
    cr_assert_eq(cairn_identity_create(fields, count, &id, NULL, 0), CAIRN_INVAL);
    char small[8];
    cr_assert_eq(cairn_identity_create(fields, count, &id, small, sizeof small), CAIRN_INVAL);
    cr_assert_lt(strlen(small), sizeof small);
    return err;
}

static const char *refusal_with(const char *name, const char *value)
{
    struct cairn_field f[] = {{"model", "m"}, {"chunk_tokens", "4"}, {name, value}};
    return refusal(f, COUNT(f));
}

#define assert_says(text, part) \
    cr_assert(strstr((text), (part)), "'%s' does not say '%s'", (text), (part))

static bool same(const cairn_identity *a, const cairn_identity *b)
{
    uint8_t fa[32], fb[32];
    cairn_identity_fingerprint(a, fa);
    cairn_identity_fingerprint(b, fb);
    return memcmp(fa, fb, 32) == 0;
}

Test(identity, order_of_fields_does_not_matter)
{
    struct cairn_field f[COUNT(base)];
    cairn_identity *first = make(base, COUNT(base));
    struct rng r = {.state = 11};
    memcpy(f, base, sizeof f);
    for (int round = 0; round < 50; round++) {
        for (size_t i = COUNT(f) - 1; i > 0; i--) {
            size_t j = rng_below(&r, i + 1);
            struct cairn_field swap = f[i];
            f[i] = f[j];
            f[j] = swap;
        }
        cairn_identity *id = make(f, COUNT(f));
        cr_assert(same(id, first));
        cairn_identity_destroy(id);
    }
    cr_assert_eq(cairn_identity_chunk_tokens(first), 256u);
    cairn_identity_destroy(first);
}

Test(identity, no_memory_is_a_status)
{
    cairn_identity *id = NULL;
    char err[256] = "";
    cairn_mem_fail_nth(1);
    cr_assert_eq(cairn_identity_create(base, COUNT(base), &id, err, sizeof err), CAIRN_NOMEM);
    cairn_mem_fail_nth(0);
    cr_assert_null(id);
    cairn_identity_destroy(make(base, COUNT(base)));
}

Test(identity, any_changed_field_is_another_identity)
{
    static const struct cairn_field others[] = {
        {"model", "org/model2"}, {"chunk_tokens", "257"}, {"kv_dtype", "bfloat161"},
        {"tp_rank", "2"},        {"tp_size", "5"},        {"note", "free "},
    };
    cairn_identity *first = make(base, COUNT(base));
    for (size_t i = 0; i < COUNT(base); i++) {
        struct cairn_field f[COUNT(base)];
        memcpy(f, base, sizeof f);
        f[i] = others[i];
        cairn_identity *id = make(f, COUNT(f));
        cr_assert_not(same(id, first), "%s", others[i].name);
        cairn_identity_destroy(id);
    }
    cairn_identity *less = make(base, COUNT(base) - 1);
    cr_assert_not(same(less, first));
    cairn_identity_destroy(less);
    cairn_identity_destroy(first);
}

Test(identity, names_and_values_do_not_run_together)
{
    struct cairn_field a[] = {{"model", "m"}, {"chunk_tokens", "4"}, {"ab", "c"}};
    struct cairn_field b[] = {{"model", "m"}, {"chunk_tokens", "4"}, {"a", "bc"}};
    struct cairn_field c[] = {{"model", "m"}, {"chunk_tokens", "4"}, {"abc", ""}};
    cairn_identity *ids[] = {make(a, 3), make(b, 3), make(c, 3), make(a, 2)};
    for (size_t i = 0; i < COUNT(ids); i++)
        for (size_t j = 0; j < i; j++)
            cr_assert_not(same(ids[i], ids[j]));
    for (size_t i = 0; i < COUNT(ids); i++)
        cairn_identity_destroy(ids[i]);
}

Test(identity, numbers_lose_leading_zeros)
{
    struct cairn_field a[] = {{"model", "m"}, {"chunk_tokens", "00256"}, {"x", "007"},
                              {"tp_rank", "000"}, {"tp_size", "01"}};
    struct cairn_field b[] = {{"model", "m"}, {"chunk_tokens", "256"}, {"x", "007"},
                              {"tp_rank", "0"}, {"tp_size", "1"}};
    struct cairn_field c[] = {{"model", "m"}, {"chunk_tokens", "256"}, {"x", "7"},
                              {"tp_rank", "0"}, {"tp_size", "1"}};
    cairn_identity *ia = make(a, 5), *ib = make(b, 5), *ic = make(c, 5);
    cr_assert(same(ia, ib));
    cr_assert_not(same(ia, ic), "a free field is kept as it is");
    cairn_identity_destroy(ia);
    cairn_identity_destroy(ib);
    cairn_identity_destroy(ic);
}

Test(identity, refuses_with_a_sentence_that_names_the_field)
{
    struct cairn_field no_chunk[] = {{"model", "m"}};
    struct cairn_field no_model[] = {{"chunk_tokens", "4"}};
    struct cairn_field twice[] = {{"model", "m"}, {"chunk_tokens", "4"}, {"a", "1"}, {"a", "1"}};
    struct cairn_field rank[] = {
        {"model", "m"}, {"chunk_tokens", "4"}, {"pp_rank", "2"}, {"pp_size", "2"}};
    assert_says(refusal(no_chunk, 1), "'chunk_tokens'");
    assert_says(refusal(no_model, 1), "'model'");
    assert_says(refusal(NULL, 0), "'model'");
    assert_says(refusal(twice, 4), "'a' is given twice");
    assert_says(refusal(rank, 4), "'pp_rank' is 2");
    assert_says(refusal_with("tp_rank", "0"), "'tp_rank' is given without 'tp_size'");
    assert_says(refusal_with("cp_size", "1"), "'cp_size' is given without 'cp_rank'");
    assert_says(refusal_with("lora", ""), "'lora' is empty");
    assert_says(refusal_with("isa", "avx 512"), "'isa'");
    assert_says(refusal_with("kv_dtype", "bf\xc3\xa9"), "'kv_dtype'");
    assert_says(refusal_with("note", "\xff"), "not UTF-8");
    assert_says(refusal_with("a=b", "1"), "name");
    assert_says(refusal_with("", "1"), "name");
    assert_says(refusal_with("a\nb", "1"), "name");
    assert_says(refusal_with("a\xff", "1"), "name");
    assert_says(refusal_with(NULL, "1"), "no name");
    assert_says(refusal_with("a", NULL), "no value");
}

Test(identity, numbers_are_bounded)
{
    static const struct cairn_field bad[] = {
        {"block_tokens", "0"},     {"block_tokens", "1048577"}, {"heads", "-1"},
        {"heads", "65537"},        {"head_size", "64.0"},       {"head_size", "0x40"},
        {"layers", " 3"},          {"layers", "3 "},            {"layers", "٣"},
        {"head_size", "99999999999999999999999999999999999999"},
        {"head_size", "18446744073709551680"}, /* 64 modulo 2^64 */
    };
    for (size_t i = 0; i < COUNT(bad); i++)
        assert_says(refusal_with(bad[i].name, bad[i].value), bad[i].name);
}

Test(identity, sizes_are_bounded)
{
    char name[70], value[2100];
    memset(name, 'n', sizeof name);
    memset(value, 'v', sizeof value);
    value[2048] = 0;
    name[64] = 0;
    struct cairn_field one[] = {{"model", "m"}, {"chunk_tokens", "4"}, {name, value}};
    cairn_identity_destroy(make(one, 3));
    name[64] = 'n';
    name[65] = 0;
    assert_says(refusal_with(name, "v"), "64");
    value[2048] = 'v';
    value[2049] = 0;
    assert_says(refusal_with("note", value), "2048");
    value[2048] = 0;
    struct cairn_field two[] = {{"model", value}, {"chunk_tokens", "4"}, {"b", value}};
    assert_says(refusal(two, 3), "3840");

    struct cairn_field many[66] = {{"model", "m"}, {"chunk_tokens", "4"}};
    char names[64][8];
    for (size_t i = 0; i < 64; i++) {
        snprintf(names[i], sizeof names[i], "f%zu", i);
        many[i + 2] = (struct cairn_field){names[i], "v"};
    }
    cairn_identity_destroy(make(many, 64));
    assert_says(refusal(many, 65), "64");
    cairn_identity *id;
    cr_assert_eq(cairn_identity_create(base, COUNT(base), NULL, NULL, 0), CAIRN_INVAL);
    cr_assert_eq(cairn_identity_create(NULL, 2, &id, NULL, 0), CAIRN_INVAL);
    cairn_identity_destroy(NULL);
}

Test(identity, decode_gives_back_what_create_made)
{
    cairn_identity *id = make(base, COUNT(base)), *back;
    size_t len, back_len;
    const void *canon = cairn_identity_canonical(id, &len);
    cr_assert_eq(cairn_identity_decode(canon, len, &back), CAIRN_OK);
    const void *again = cairn_identity_canonical(back, &back_len);
    cr_assert_eq(back_len, len);
    cr_assert_arr_eq(again, canon, len);
    cr_assert(same(id, back));
    cr_assert_eq(cairn_identity_chunk_tokens(back), 256u);

    static const char *const names[] = {"chunk_tokens", "kv_dtype", "model",
                                        "note",         "tp_rank",  "tp_size"};
    struct cairn_identity_iter it = {0};
    struct cairn_id_field f;
    size_t n = 0;
    while (cairn_identity_next(back, &it, &f)) {
        cr_assert_lt(n, COUNT(names));
        cr_assert_eq(f.name_len, strlen(names[n]));
        cr_assert_arr_eq(f.name, names[n], f.name_len);
        n++;
    }
    cr_assert_eq(n, COUNT(names));
    cairn_identity_destroy(id);
    cairn_identity_destroy(back);
}

/* Whatever decode takes is canonical: the bytes come back equal. */
static void check_hostile(const uint8_t *bytes, size_t len)
{
    uint8_t *exact = malloc(len ? len : 1); /* so that ASan sees a read past the end */
    cairn_identity *id = NULL;
    size_t back_len;
    memcpy(exact, bytes, len);
    if (cairn_identity_decode(exact, len, &id) == CAIRN_OK) {
        const void *back = cairn_identity_canonical(id, &back_len);
        cr_assert_eq(back_len, len);
        cr_assert_arr_eq(back, bytes, len);
        cairn_identity_destroy(id);
    } else {
        cr_assert_null(id);
    }
    free(exact);
}

Test(identity, decode_survives_every_cut_and_flipped_bit)
{
    cairn_identity *id = make(base, COUNT(base)), *got;
    size_t len;
    const void *canon = cairn_identity_canonical(id, &len);
    uint8_t bytes[CAIRN_IDENTITY_MAX + 1] = {0};
    memcpy(bytes, canon, len);
    for (size_t cut = 0; cut < len; cut++)
        cr_assert_eq(cairn_identity_decode(bytes, cut, &got), CAIRN_CORRUPT);
    cr_assert_eq(cairn_identity_decode(bytes, len + 1, &got), CAIRN_CORRUPT);
    cr_assert_eq(cairn_identity_decode(bytes, sizeof bytes, &got), CAIRN_CORRUPT);
    cr_assert_eq(cairn_identity_decode(NULL, 0, &got), CAIRN_CORRUPT);
    bytes[7] = 2;
    cr_assert_eq(cairn_identity_decode(bytes, len, &got), CAIRN_VERSION);
    bytes[7] = 1;
    for (size_t bit = 0; bit < len * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        check_hostile(bytes, len);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
    struct rng r = {.state = 12};
    for (int round = 0; round < 20000; round++) {
        memcpy(bytes, canon, len);
        for (uint64_t i = 1 + rng_below(&r, 4); i > 0; i--)
            bytes[rng_below(&r, len)] = (uint8_t)rng_next(&r);
        check_hostile(bytes, rng_one_in(&r, 4) ? rng_below(&r, len) : len);
    }
    cairn_identity_destroy(id);
}

Test(identity, utf8_is_checked_byte_by_byte)
{
    static const char *const good[] = {
        "", "a", "\x7f", "\xc2\x80", "\xdf\xbf", "\xe0\xa0\x80", "\xed\x9f\xbf", "\xee\x80\x80",
        "\xef\xbf\xbf", "\xf0\x90\x80\x80", "\xf4\x8f\xbf\xbf", "a\xc3\xa9z"};
    static const char *const bad[] = {
        "\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc2", "\xc2\x41", "\xe0\x9f\xbf", "\xe0\xa0",
        "\xe1\x80\x41", "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf0\x90\x80", "\xf4\x90\x80\x80",
        "\xf5\x80\x80\x80", "\xff", "ab\xc3"};
    for (size_t i = 0; i < COUNT(good); i++)
        cr_assert(cairn_utf8_valid(good[i], strlen(good[i])), "good %zu", i);
    for (size_t i = 0; i < COUNT(bad); i++)
        cr_assert_not(cairn_utf8_valid(bad[i], strlen(bad[i])), "bad %zu", i);
    cr_assert_not(cairn_utf8_valid("a\0b", 3));
}
