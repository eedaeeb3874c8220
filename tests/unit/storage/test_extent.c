#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "storage/extent.h"
#include "storage/format.h"
#include "storage/policy.h"
#include "tests/helpers/seed.h"

static struct cairn_extents *extents(uint32_t blocks)
{
    struct cairn_extents *e = NULL;
    cr_assert_eq(cairn_extents_create(blocks, &e), CAIRN_OK);
    return e;
}

Test(extent, refuses_impossible_sizes)
{
    struct cairn_extents *e = NULL;
    cr_assert_eq(cairn_extents_create(0, &e), CAIRN_INVAL);
    cr_assert_eq(cairn_extents_create(0x80000000u, &e), CAIRN_INVAL);
    cr_assert_null(e);
    cairn_extents_destroy(NULL);

    e = extents(1);
    cr_assert_eq(cairn_extent_alloc(e, 0, 1), CAIRN_EXTENT_NONE);
    cr_assert_eq(cairn_extent_alloc(e, 2, 1), CAIRN_EXTENT_NONE);
    cr_assert_eq(cairn_extent_alloc(e, UINT32_MAX, 1), CAIRN_EXTENT_NONE);
    cr_assert_eq(cairn_extents_largest_free(e), 1);
    cr_assert_eq(cairn_extent_alloc(e, 1, 1), 0);
    cr_assert_eq(cairn_extents_largest_free(e), 0);
    cr_assert_eq(cairn_extents_check(e), 0);
    cairn_extents_destroy(e);
}

Test(extent, every_allocation_at_create_may_fail)
{
    for (uint64_t n = 1; n <= 2; n++) {
        struct cairn_extents *e = NULL;
        cairn_mem_fail_nth(n);
        cr_assert_eq(cairn_extents_create(64, &e), CAIRN_NOMEM);
        cr_assert_null(e);
    }
    cairn_mem_fail_nth(0);
}

Test(extent, freeing_what_is_not_a_run_changes_nothing)
{
    struct cairn_extents *e = extents(100);
    cr_assert_eq(cairn_extent_alloc(e, 10, 1), 0);
    cr_assert_eq(cairn_extent_alloc(e, 10, 2), 10);
    cairn_extent_free(e, 5);
    cairn_extent_free(e, 20);
    cairn_extent_free(e, 100);
    cairn_extent_trim(e, 0, 0);
    cairn_extent_trim(e, 0, 10);
    cairn_extent_trim(e, 5, 1);
    cr_assert_eq(cairn_extents_check(e), 80);
    cairn_extent_free(e, 0);
    cairn_extent_free(e, 0);
    cr_assert_eq(cairn_extents_check(e), 90);
    struct cairn_extent_run run;
    cr_assert(cairn_extent_at(e, 10, &run));
    cr_assert(run.used && run.owner == 2 && run.blocks == 10);
    cairn_extents_destroy(e);
}

/* Equal values leave no gap, whatever the order they come and go in. */
static void pack(uint32_t blocks, uint32_t count, struct rng *rng)
{
    struct cairn_extents *e = extents(blocks * count + blocks / 2);
    uint32_t *first = calloc(count, sizeof *first);
    cr_assert_not_null(first);
    for (uint32_t i = 0; i < count; i++) {
        first[i] = cairn_extent_alloc(e, blocks, i);
        cr_assert_neq(first[i], CAIRN_EXTENT_NONE, "%u blocks: %u of %u fit", blocks, i, count);
    }
    cr_assert_eq(cairn_extent_alloc(e, blocks, 0), CAIRN_EXTENT_NONE);
    for (int round = 0; round < 20; round++) {
        for (uint32_t i = 0; i < count; i++) {
            if (rng_one_in(rng, 3)) {
                cairn_extent_free(e, first[i]);
                first[i] = CAIRN_EXTENT_NONE;
            }
        }
        for (uint32_t i = 0; i < count; i++) {
            if (first[i] == CAIRN_EXTENT_NONE)
                first[i] = cairn_extent_alloc(e, blocks, i);
            cr_assert_neq(first[i], CAIRN_EXTENT_NONE, "%u blocks: no room in round %d", blocks,
                          round);
        }
        cr_assert_eq(cairn_extents_check(e), blocks / 2);
    }
    free(first);
    cairn_extents_destroy(e);
}

Test(extent, equal_values_pack_without_a_gap)
{
    struct rng rng = test_rng("equal_values_pack_without_a_gap");
    static const uint32_t sizes[] = {1, 2, 17, 31, 32, 33, 65, 257, 721, 1025, 8193};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        pack(sizes[i], sizes[i] > 1000 ? 100 : 500, &rng);
}

/* --- random operations against a plain array of owners --- */

#define MODEL_BLOCKS 2000u /* so few that an alloc never overlooks a run (extent.h) */
#define MODEL_FREE UINT32_MAX

struct model {
    struct cairn_extents *e;
    uint32_t owner[MODEL_BLOCKS];
    uint32_t first[MODEL_BLOCKS]; /* by owner, CAIRN_EXTENT_NONE: not held */
    uint32_t blocks[MODEL_BLOCKS];
    bool pinned[MODEL_BLOCKS];
    uint64_t cost[MODEL_BLOCKS];
};

static void model_open(struct model *m)
{
    memset(m, 0xff, sizeof *m);
    m->e = extents(MODEL_BLOCKS);
}

static uint32_t model_longest_free(const struct model *m)
{
    uint32_t longest = 0, run = 0;
    for (uint32_t i = 0; i < MODEL_BLOCKS; i++) {
        run = m->owner[i] == MODEL_FREE ? run + 1 : 0;
        longest = run > longest ? run : longest;
    }
    return longest;
}

static bool model_alloc(struct model *m, uint32_t owner, uint32_t blocks)
{
    uint32_t longest = model_longest_free(m);
    uint32_t first = cairn_extent_alloc(m->e, blocks, owner);
    cr_assert_eq(first != CAIRN_EXTENT_NONE, longest >= blocks, "%u blocks, longest free %u",
                 blocks, longest);
    if (first == CAIRN_EXTENT_NONE)
        return false;
    cr_assert_leq(first, MODEL_BLOCKS - blocks);
    for (uint32_t i = first; i < first + blocks; i++) {
        cr_assert_eq(m->owner[i], MODEL_FREE);
        m->owner[i] = owner;
    }
    m->first[owner] = first;
    m->blocks[owner] = blocks;
    m->pinned[owner] = false;
    return true;
}

static void model_trim(struct model *m, uint32_t owner, uint32_t blocks)
{
    for (uint32_t i = blocks; i < m->blocks[owner]; i++)
        m->owner[m->first[owner] + i] = MODEL_FREE;
    m->blocks[owner] = blocks;
}

static void model_free(struct model *m, uint32_t owner)
{
    cairn_extent_free(m->e, m->first[owner]);
    model_trim(m, owner, 0);
    m->first[owner] = CAIRN_EXTENT_NONE;
}

/* Walks all runs forwards and backwards and compares them with the array. */
static void model_check(const struct model *m)
{
    struct cairn_extent_run run, back, next;
    uint32_t free_blocks = 0;
    cr_assert(cairn_extent_at(m->e, 0, &run));
    cr_assert_not(cairn_extent_prev(m->e, &run, &back));
    for (;;) {
        for (uint32_t i = run.first; i < run.first + run.blocks; i++)
            cr_assert_eq(m->owner[i], run.used ? run.owner : MODEL_FREE);
        if (run.used)
            cr_assert(m->first[run.owner] == run.first && m->blocks[run.owner] == run.blocks);
        else
            free_blocks += run.blocks;
        for (uint32_t i = run.first + 1; i < run.first + run.blocks; i++)
            cr_assert_not(cairn_extent_at(m->e, i, &next));
        if (!cairn_extent_next(m->e, &run, &next))
            break;
        cr_assert(cairn_extent_prev(m->e, &next, &back));
        cr_assert(back.first == run.first && back.blocks == run.blocks);
        run = next;
    }
    cr_assert_eq(run.first + run.blocks, MODEL_BLOCKS);
    cr_assert_eq(cairn_extents_free_blocks(m->e), free_blocks);
    cr_assert_eq(cairn_extents_check(m->e), free_blocks);
    uint32_t largest = cairn_extents_largest_free(m->e);
    cr_assert_eq(largest, model_longest_free(m));
}

static uint32_t random_size(struct rng *rng)
{
    uint32_t max = 1u << rng_below(rng, 9);
    return 1 + (uint32_t)rng_below(rng, max);
}

Test(extent, random_operations_match_a_plain_array)
{
    struct rng rng = test_rng("random_operations_match_a_plain_array");
    static struct model m;
    model_open(&m);
    for (int op = 0; op < 20000; op++) {
        uint32_t owner = (uint32_t)rng_below(&rng, 200);
        if (m.first[owner] == CAIRN_EXTENT_NONE) {
            model_alloc(&m, owner, random_size(&rng));
        } else if (rng_one_in(&rng, 4)) {
            uint32_t keep = 1 + (uint32_t)rng_below(&rng, m.blocks[owner]);
            cairn_extent_trim(m.e, m.first[owner], keep);
            model_trim(&m, owner, keep);
        } else {
            model_free(&m, owner);
        }
        if (op % 10 == 0)
            model_check(&m);
    }
    cairn_extents_destroy(m.e);
}

/* --- windows --- */

static uint64_t model_cost(void *arg, uint32_t owner)
{
    const struct model *m = arg;
    return m->pinned[owner] ? UINT64_MAX : m->cost[owner];
}

static bool model_takes(const struct model *m, uint32_t block)
{
    return m->owner[block] == MODEL_FREE || !m->pinned[m->owner[block]];
}

/* Blocks that could be had around a victim by dropping all that is not pinned. */
static uint32_t model_reach(const struct model *m, uint32_t victim)
{
    uint32_t from = m->first[victim], to = from;
    while (from > 0 && model_takes(m, from - 1))
        from--;
    while (to < MODEL_BLOCKS && model_takes(m, to))
        to++;
    return to - from;
}

static void window_try(struct model *m, uint32_t victim, uint32_t blocks)
{
    uint32_t owners[MODEL_BLOCKS], count = 0, evicted = 0, largest = 0;
    bool could = !m->pinned[victim] && model_reach(m, victim) >= blocks;
    bool did = cairn_extent_window(m->e, m->first[victim], blocks, model_cost, m, owners,
                                   MODEL_BLOCKS, &count);
    cr_assert_eq(did, could, "%u blocks around %u", blocks, m->first[victim]);
    if (!did)
        return;
    bool has_victim = false;
    uint32_t before = 0;
    for (uint32_t i = 0; i < count; i++) {
        cr_assert_not(m->pinned[owners[i]]);
        cr_assert_geq(m->first[owners[i]], before);
        before = m->first[owners[i]];
        has_victim |= owners[i] == victim;
        evicted += m->blocks[owners[i]];
        if (m->blocks[owners[i]] > largest)
            largest = m->blocks[owners[i]];
    }
    cr_assert(has_victim);
    cr_assert_lt(evicted, blocks + 2 * largest);
    for (uint32_t i = 0; i < count; i++)
        model_free(m, owners[i]);
    cr_assert(model_alloc(m, victim, blocks), "%u blocks after dropping %u", blocks, evicted);
}

Test(extent, a_window_frees_enough_and_touches_nothing_pinned)
{
    struct rng rng = test_rng("a_window_frees_enough_and_touches_nothing_pinned");
    static struct model m;
    model_open(&m);
    for (int op = 0; op < 20000; op++) {
        uint32_t owner = (uint32_t)rng_below(&rng, 200);
        uint32_t blocks = rng_one_in(&rng, 4) ? 1 + (uint32_t)rng_below(&rng, MODEL_BLOCKS)
                                              : random_size(&rng);
        if (m.first[owner] != CAIRN_EXTENT_NONE)
            window_try(&m, owner, blocks);
        else
            model_alloc(&m, owner, random_size(&rng));
        if (m.first[owner] != CAIRN_EXTENT_NONE) {
            m.pinned[owner] = rng_one_in(&rng, 5);
            m.cost[owner] = rng_below(&rng, 1000);
        }
        if (op % 10 == 0)
            model_check(&m);
    }
    cairn_extents_destroy(m.e);
}

static uint64_t cost_is_owner(void *arg, uint32_t owner)
{
    (void)arg;
    return owner;
}

Test(extent, a_window_grows_to_the_cheaper_side)
{
    struct cairn_extents *e = extents(50);
    static const uint32_t costs[] = {9, 3, 1, 4, 2};
    for (uint32_t i = 0; i < 5; i++)
        cr_assert_eq(cairn_extent_alloc(e, 10, costs[i]), i * 10);
    uint32_t owners[8], count = 0;

    cr_assert(cairn_extent_window(e, 20, 20, cost_is_owner, NULL, owners, 8, &count));
    cr_assert(count == 2 && owners[0] == 3 && owners[1] == 1);
    /* 3 is taken first, then 4 and 2 rather than 9. */
    cr_assert(cairn_extent_window(e, 20, 40, cost_is_owner, NULL, owners, 8, &count));
    cr_assert(count == 4 && owners[0] == 3 && owners[1] == 1 && owners[2] == 4 && owners[3] == 2);
    cr_assert_not(cairn_extent_window(e, 20, 40, cost_is_owner, NULL, owners, 3, &count));
    cr_assert_not(cairn_extent_window(e, 20, 51, cost_is_owner, NULL, owners, 8, &count));
    cr_assert_not(cairn_extent_window(e, 21, 10, cost_is_owner, NULL, owners, 8, &count));
    cr_assert_not(cairn_extent_window(e, 20, 10, cost_is_owner, NULL, owners, 0, &count));

    /* A free neighbour costs nothing, and makes the dearer side needless. */
    cairn_extent_free(e, 0);
    cairn_extent_free(e, 10);
    cr_assert(cairn_extent_window(e, 20, 30, cost_is_owner, NULL, owners, 8, &count));
    cr_assert(count == 1 && owners[0] == 1);
    cairn_extent_free(e, 20);
    cr_assert_not(cairn_extent_window(e, 0, 10, cost_is_owner, NULL, owners, 8, &count));
    cairn_extents_destroy(e);
}

Test(extent, a_window_gives_back_what_a_large_neighbour_made_needless)
{
    struct cairn_extents *e = extents(110);
    cr_assert_eq(cairn_extent_alloc(e, 5, 1), 0);
    cr_assert_eq(cairn_extent_alloc(e, 5, 2), 5);
    cr_assert_eq(cairn_extent_alloc(e, 100, 3), 10);
    uint32_t owners[8], count = 0;
    cr_assert(cairn_extent_window(e, 5, 100, cost_is_owner, NULL, owners, 8, &count));
    cr_assert(count == 2 && owners[0] == 2 && owners[1] == 3);
    cairn_extents_destroy(e);

    e = extents(110);
    cr_assert_eq(cairn_extent_alloc(e, 100, 3), 0);
    cr_assert_eq(cairn_extent_alloc(e, 5, 2), 100);
    cr_assert_eq(cairn_extent_alloc(e, 5, 1), 105);
    cr_assert(cairn_extent_window(e, 100, 100, cost_is_owner, NULL, owners, 8, &count));
    cr_assert(count == 2 && owners[0] == 3 && owners[1] == 2);
    cairn_extents_destroy(e);
}

/* --- a full arena with values of mixed sizes --- */

#define ARENA_BLOCKS (1u << 19) /* 2 GiB */
#define ARENA_SLOTS 65536u

struct arena {
    struct cairn_extents *e;
    struct cairn_policy *lru;
    uint32_t first[ARENA_SLOTS];
    uint32_t bytes[ARENA_SLOTS];
    uint32_t unused[ARENA_SLOTS];
    uint32_t unused_count;
    uint64_t value_bytes;
};

static bool any_slot(void *arg, uint32_t slot)
{
    (void)arg;
    (void)slot;
    return true;
}

static uint64_t lru_cost(void *arg, uint32_t slot)
{
    const struct arena *a = arg;
    return a->lru->ops->rank(a->lru, slot);
}

static void arena_evict(struct arena *a, uint32_t blocks)
{
    uint32_t owners[4096], count;
    uint32_t victim = a->lru->ops->victim(a->lru, any_slot, NULL, 1);
    cr_assert(cairn_extent_window(a->e, a->first[victim], blocks, lru_cost, a, owners, 4096,
                                  &count));
    for (uint32_t i = 0; i < count; i++) {
        cairn_extent_free(a->e, a->first[owners[i]]);
        a->lru->ops->remove(a->lru, owners[i], true);
        a->value_bytes -= a->bytes[owners[i]];
        a->unused[a->unused_count++] = owners[i];
    }
}

/* True if something had to leave for it. */
static bool arena_put(struct arena *a, uint32_t bytes)
{
    uint32_t slot = a->unused[--a->unused_count], blocks = cairn_record_blocks(bytes, 0);
    uint32_t first = cairn_extent_alloc(a->e, blocks, slot);
    bool full = first == CAIRN_EXTENT_NONE;
    if (full) {
        arena_evict(a, blocks);
        first = cairn_extent_alloc(a->e, blocks, slot);
        cr_assert_neq(first, CAIRN_EXTENT_NONE);
    }
    a->first[slot] = first;
    a->bytes[slot] = bytes;
    a->value_bytes += bytes;
    a->lru->ops->insert(a->lru, slot, slot, blocks);
    return full;
}

Test(extent, mixed_sizes_waste_at_most_an_eighth)
{
    struct rng rng = test_rng("mixed_sizes_waste_at_most_an_eighth");
    static struct arena a;
    a.e = extents(ARENA_BLOCKS);
    cr_assert_eq(cairn_policy_find("lru")->create(ARENA_SLOTS, &a.lru), CAIRN_OK);
    while (a.unused_count < ARENA_SLOTS) {
        a.unused[a.unused_count] = a.unused_count;
        a.unused_count++;
    }
    double waste = 0, most = 0;
    int samples = 0, evictions = 0;
    for (int i = 0; i < 60000; i++) {
        double exponent = 16 + 9.0 * (double)(rng_next(&rng) >> 11) * 0x1p-53;
        evictions += arena_put(&a, (uint32_t)exp2(exponent));
        if (i < 10000)
            continue;
        double share = 1 - (double)a.value_bytes / ((double)ARENA_BLOCKS * CAIRN_BLOCK);
        waste += share;
        most = share > most ? share : most;
        samples++;
    }
    cairn_extents_check(a.e);
    cr_assert_gt(evictions, 10000);
    fprintf(stderr, "waste in a full arena, 64 KiB to 32 MiB: mean %.4f, most %.4f\n",
            waste / samples, most);
    cr_assert_leq(waste / samples, 0.125);
    a.lru->ops->destroy(a.lru);
    cairn_extents_destroy(a.e);
}
