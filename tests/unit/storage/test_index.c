#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "storage/index.h"
#include "tests/helpers/seed.h"

static struct cairn_index *index_of(uint32_t capacity)
{
    struct cairn_index *x = NULL;
    cr_assert_eq(cairn_index_create(capacity, &x), CAIRN_OK);
    return x;
}

static struct cairn_key key_of(uint64_t id)
{
    struct cairn_key k;
    value_key(id, k.bytes);
    return k;
}

Test(index, holds_48_bytes_an_entry_at_most)
{
    static const uint32_t capacities[] = {1, 2, 7, 1000, 1024, 1025, 4097, 1000000, 10000000};
    for (size_t i = 0; i < sizeof capacities / sizeof capacities[0]; i++) {
        struct cairn_index *x = index_of(capacities[i]);
        uint32_t capacity = cairn_index_capacity(x);
        cr_assert_geq(capacity, capacities[i]);
        cr_assert(capacities[i] < 1024 || capacity == capacities[i]);
        cr_assert_leq(cairn_index_bytes(x), 48ull * capacity, "capacity %u", capacities[i]);
        cr_assert_geq(cairn_index_bytes(x), 40ull * capacity);
        cairn_index_destroy(x);
    }
}

Test(index, refuses_impossible_capacities_and_survives_failed_allocations)
{
    struct cairn_index *x = NULL;
    cr_assert_eq(cairn_index_create(0, &x), CAIRN_INVAL);
    cr_assert_eq(cairn_index_create(UINT32_MAX, &x), CAIRN_INVAL);
    for (uint64_t n = 1; n <= 3; n++) {
        cairn_mem_fail_nth(n);
        cr_assert_eq(cairn_index_create(1000, &x), CAIRN_NOMEM);
        cr_assert_null(x);
    }
    cairn_mem_fail_nth(0);
    cairn_index_destroy(NULL);
}

Test(index, a_new_entry_is_empty_and_found_by_16_bytes)
{
    struct cairn_index *x = index_of(1000);
    struct cairn_key k = key_of(1), same_half = k, other = k;
    same_half.bytes[16] ^= 1;
    other.bytes[15] ^= 1;
    cr_assert_eq(cairn_index_find(x, &k), CAIRN_ENTRY_NONE);
    cr_assert_eq(cairn_index_next(x, 0), CAIRN_ENTRY_NONE);

    uint32_t id = cairn_index_insert(x, &k);
    struct cairn_entry *e = cairn_index_entry(x, id);
    uint8_t key16[16];
    cairn_key16(k.bytes, key16);
    cr_assert_arr_eq(e->key, key16, 16);
    cr_assert(e->block == CAIRN_BLOCK_NONE && e->slot == CAIRN_SLOT_NONE && e->version == 0 &&
              e->value_len == 0 && e->flags == 0 && e->space == 0);
    cr_assert_eq(cairn_index_find(x, &k), id);
    cr_assert_eq(cairn_index_find16(x, key16), id);
    cr_assert_eq(cairn_index_find(x, &same_half), CAIRN_ENTRY_NONE);
    cr_assert_eq(cairn_index_find(x, &other), CAIRN_ENTRY_NONE);
    cr_assert_eq(cairn_index_next(x, 0), id);
    cr_assert_eq(cairn_index_next(x, id + 1), CAIRN_ENTRY_NONE);

    cairn_index_remove(x, id);
    cairn_index_remove(x, id);
    cairn_index_remove(x, CAIRN_ENTRY_NONE);
    cr_assert_eq(cairn_index_find(x, &k), CAIRN_ENTRY_NONE);
    cr_assert_eq(cairn_index_next(x, 0), CAIRN_ENTRY_NONE);
    cr_assert_eq(cairn_index_check(x), 0);
    cairn_index_destroy(x);
}

Test(index, is_full_at_its_capacity_and_not_before)
{
    struct cairn_index *x = index_of(50000);
    for (uint32_t i = 0; i < 50000; i++) {
        struct cairn_key k = key_of(i);
        cr_assert_neq(cairn_index_insert(x, &k), CAIRN_ENTRY_NONE, "full after %u", i);
    }
    struct cairn_key one_more = key_of(50000), first = key_of(0);
    cr_assert_eq(cairn_index_insert(x, &one_more), CAIRN_ENTRY_NONE);
    cr_assert_eq(cairn_index_count(x), 50000);
    cr_assert_eq(cairn_index_find(x, &one_more), CAIRN_ENTRY_NONE);
    cr_assert_eq(cairn_index_check(x), 50000);
    cairn_index_remove(x, cairn_index_find(x, &first));
    cr_assert_neq(cairn_index_insert(x, &one_more), CAIRN_ENTRY_NONE);
    cr_assert_eq(cairn_index_check(x), 50000);
    cairn_index_destroy(x);
}

/* Few distinct first bytes and long equal runs: what an attacker or a bad key maker would send. */
Test(index, keys_that_are_nearly_equal_spread_all_the_same)
{
    struct cairn_index *x = index_of(4096);
    uint8_t key[16] = {0};
    for (uint32_t i = 0; i < 4096; i++) {
        memcpy(key + 4 * (i % 4), &i, 4);
        cr_assert_neq(cairn_index_insert16(x, key), CAIRN_ENTRY_NONE);
        memset(key, 0, sizeof key);
    }
    cr_assert_eq(cairn_index_check(x), 4096);
    cairn_index_destroy(x);
}

Test(index, many_are_found_in_order_and_stop_at_the_first_absent)
{
    enum { COUNT = 1000 };
    struct cairn_index *x = index_of(COUNT);
    static struct cairn_key keys[COUNT];
    static uint32_t ids[COUNT], inserted[COUNT];
    for (uint32_t i = 0; i < COUNT; i++) {
        keys[i] = key_of(i);
        inserted[i] = cairn_index_insert(x, &keys[i]);
    }
    cr_assert_eq(cairn_index_find_many(x, keys, 0, 0, ids), 0);
    cr_assert_eq(cairn_index_find_many(x, keys, COUNT, 1, ids), COUNT);
    cr_assert_arr_eq(ids, inserted, sizeof ids);
    static const uint32_t absent[] = {0, 1, 15, 16, 17, 31, 32, 500, COUNT - 1};
    for (size_t i = 0; i < sizeof absent / sizeof absent[0]; i++) {
        uint32_t a = absent[i];
        cairn_index_remove(x, inserted[a]);
        memset(ids, 0xaa, sizeof ids);
        cr_assert_eq(cairn_index_find_many(x, keys, COUNT, 1, ids), a + 1);
        cr_assert_eq(ids[a], CAIRN_ENTRY_NONE);
        cr_assert_arr_eq(ids, inserted, a * sizeof *ids);
        cr_assert(a + 1 == COUNT || ids[a + 1] == 0xaaaaaaaa);
        cr_assert_eq(cairn_index_find_many(x, keys, COUNT, 0, ids), COUNT);
        cr_assert_eq(ids[a], CAIRN_ENTRY_NONE);
        cr_assert(a + 1 == COUNT || ids[COUNT - 1] == inserted[COUNT - 1]);
        inserted[a] = cairn_index_insert(x, &keys[a]);
    }
    cairn_index_destroy(x);
}

/* --- random operations against a plain array --- */

#define MODEL_KEYS 1500u /* more than fit */

struct model {
    struct cairn_index *x;
    struct cairn_key keys[MODEL_KEYS];
    uint32_t ids[MODEL_KEYS];
    uint64_t versions[MODEL_KEYS];
    uint32_t count;
};

static void model_insert(struct model *m, uint32_t k, uint64_t version)
{
    uint32_t id = cairn_index_insert(m->x, &m->keys[k]);
    cr_assert_eq(id == CAIRN_ENTRY_NONE, m->count == cairn_index_capacity(m->x));
    if (id == CAIRN_ENTRY_NONE)
        return;
    struct cairn_entry *e = cairn_index_entry(m->x, id);
    cr_assert_eq(e->version, 0);
    e->version = version;
    e->block = e->slot = k + 1;
    e->value_len = k;
    m->ids[k] = id;
    m->versions[k] = version;
    m->count++;
}

static void model_check_key(const struct model *m, uint32_t k)
{
    uint32_t id = cairn_index_find(m->x, &m->keys[k]);
    cr_assert_eq(id, m->ids[k]);
    if (id == CAIRN_ENTRY_NONE)
        return;
    const struct cairn_entry *e = cairn_index_entry(m->x, id);
    uint8_t key16[16];
    cairn_key16(m->keys[k].bytes, key16);
    cr_assert(e->version == m->versions[k] && e->block == k + 1 && e->slot == k + 1 &&
              e->value_len == k && memcmp(e->key, key16, 16) == 0);
}

static void model_check(struct model *m, struct rng *rng)
{
    uint32_t seen = 0, ids[100];
    for (uint32_t k = 0; k < MODEL_KEYS; k++)
        model_check_key(m, k);
    for (uint32_t id = cairn_index_next(m->x, 0); id != CAIRN_ENTRY_NONE;
         id = cairn_index_next(m->x, id + 1)) {
        cr_assert_eq(m->ids[cairn_index_entry(m->x, id)->value_len], id);
        seen++;
    }
    cr_assert(seen == m->count && cairn_index_count(m->x) == m->count);
    cr_assert_eq(cairn_index_check(m->x), m->count);
    uint32_t from = (uint32_t)rng_below(rng, MODEL_KEYS - 100), n = (uint32_t)rng_below(rng, 101);
    cr_assert_eq(cairn_index_find_many(m->x, &m->keys[from], n, 0, ids), n);
    cr_assert_arr_eq(ids, &m->ids[from], n * sizeof *ids);
}

Test(index, random_operations_match_a_plain_array)
{
    struct rng rng = test_rng("random_operations_match_a_plain_array");
    static struct model m;
    m.x = index_of(1);
    for (uint32_t k = 0; k < MODEL_KEYS; k++) {
        m.keys[k] = key_of(k);
        m.ids[k] = CAIRN_ENTRY_NONE;
    }
    /* Fills and empties in turn, so that both the full and the nearly empty table are seen. */
    for (uint32_t op = 0; op < 100000; op++) {
        bool filling = (op / 10000) % 2 == 0;
        uint32_t k = (uint32_t)rng_below(&rng, MODEL_KEYS);
        if (m.ids[k] == CAIRN_ENTRY_NONE) {
            if (filling || rng_one_in(&rng, 4))
                model_insert(&m, k, op + 1);
        } else if (!filling || rng_one_in(&rng, 4)) {
            cairn_index_remove(m.x, m.ids[k]);
            m.ids[k] = CAIRN_ENTRY_NONE;
            m.count--;
        }
        model_check_key(&m, k);
        if (op % 500 == 0)
            model_check(&m, &rng);
    }
    cairn_index_destroy(m.x);
}
