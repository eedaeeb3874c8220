#include "storage/extent.h"

#include <stdlib.h>

#include "base/mem.h"

/* Size classes: exact below 32 blocks, then 32 steps to a power of two (at most 3 % apart). */
#define STEP_BITS 5u
#define STEPS (1u << STEP_BITS)
#define ROWS (32u - STEP_BITS)
#define BLOCKS_MAX 0x7fffffffu

/* A class's list is searched this far for a run that fits: its runs may be up to 3 % too short, and
 * without the search a free run of exactly the wanted size would be passed over. */
#define CLASS_TRIES 64u

#define RUN_USED 0x80000000u

/* Valid at the first block of a run; `state` is 0 everywhere else. */
struct tag {
    uint32_t state;  /* blocks | RUN_USED                    */
    uint32_t before; /* first block of the run before, or NONE */
    uint32_t next;   /* free: next in its class; used: owner */
    uint32_t prev;   /* free: previous in its class          */
};
_Static_assert(sizeof(struct tag) == 16, "16 bytes a block");

struct cairn_extents {
    struct tag *tags;
    size_t tags_len;
    uint32_t blocks;
    uint32_t rows; /* bit r: steps[r] != 0 */
    uint64_t free_blocks;
    uint32_t steps[ROWS]; /* bit s: heads[r][s] != NONE */
    uint32_t heads[ROWS][STEPS];
};

static uint32_t run_len(const struct cairn_extents *e, uint32_t first)
{
    return e->tags[first].state & ~RUN_USED;
}

static bool run_used(const struct cairn_extents *e, uint32_t first)
{
    return e->tags[first].state & RUN_USED;
}

static void class_of(uint32_t blocks, uint32_t *ret_row, uint32_t *ret_step)
{
    if (blocks < STEPS) {
        *ret_row = 0;
        *ret_step = blocks;
        return;
    }
    uint32_t top = 31u - (uint32_t)__builtin_clz(blocks);
    *ret_row = top - STEP_BITS + 1;
    *ret_step = (blocks >> (top - STEP_BITS)) & (STEPS - 1);
}

static void list_push(struct cairn_extents *e, uint32_t first)
{
    uint32_t row, step;
    class_of(run_len(e, first), &row, &step);
    uint32_t head = e->heads[row][step];
    e->tags[first].next = head;
    e->tags[first].prev = CAIRN_EXTENT_NONE;
    if (head != CAIRN_EXTENT_NONE)
        e->tags[head].prev = first;
    e->heads[row][step] = first;
    e->steps[row] |= 1u << step;
    e->rows |= 1u << row;
}

static void list_drop(struct cairn_extents *e, uint32_t first)
{
    const struct tag *t = &e->tags[first];
    if (t->next != CAIRN_EXTENT_NONE)
        e->tags[t->next].prev = t->prev;
    if (t->prev != CAIRN_EXTENT_NONE) {
        e->tags[t->prev].next = t->next;
        return;
    }
    uint32_t row, step;
    class_of(run_len(e, first), &row, &step);
    e->heads[row][step] = t->next;
    if (t->next == CAIRN_EXTENT_NONE) {
        e->steps[row] &= ~(1u << step);
        if (!e->steps[row])
            e->rows &= ~(1u << row);
    }
}

/* Writes a run's tag and tells the run after it where it starts. */
static void run_put(struct cairn_extents *e, uint32_t first, uint32_t blocks, uint32_t used)
{
    e->tags[first].state = blocks | used;
    if (first + blocks < e->blocks)
        e->tags[first + blocks].before = first;
}

/* Makes [first, first + blocks) a free run, joined with free neighbours. */
static void run_release(struct cairn_extents *e, uint32_t first, uint32_t blocks)
{
    uint32_t after = first + blocks, before = e->tags[first].before;
    e->free_blocks += blocks;
    if (after < e->blocks && !run_used(e, after)) {
        list_drop(e, after);
        blocks += run_len(e, after);
        e->tags[after].state = 0;
    }
    if (before != CAIRN_EXTENT_NONE && !run_used(e, before)) {
        list_drop(e, before);
        blocks += run_len(e, before);
        e->tags[first].state = 0;
        first = before;
    }
    run_put(e, first, blocks, 0);
    list_push(e, first);
}

cairn_status cairn_extents_create(uint32_t blocks, struct cairn_extents **ret)
{
    if (!blocks || blocks > BLOCKS_MAX)
        return CAIRN_INVAL;
    struct cairn_extents *e = cairn_calloc(1, sizeof *e);
    if (!e)
        return CAIRN_NOMEM;
    e->blocks = blocks;
    e->tags_len = (size_t)blocks * sizeof *e->tags;
    e->tags = cairn_table_alloc(e->tags_len);
    if (!e->tags) {
        free(e);
        return CAIRN_NOMEM;
    }
    for (uint32_t r = 0; r < ROWS; r++)
        for (uint32_t s = 0; s < STEPS; s++)
            e->heads[r][s] = CAIRN_EXTENT_NONE;
    e->tags[0].before = CAIRN_EXTENT_NONE;
    run_release(e, 0, blocks);
    *ret = e;
    return CAIRN_OK;
}

void cairn_extents_destroy(struct cairn_extents *e)
{
    if (!e)
        return;
    cairn_table_free(e->tags, e->tags_len);
    free(e);
}

/* Shortest of the first runs of the class that `blocks` itself belongs to. */
static uint32_t find_in_class(const struct cairn_extents *e, uint32_t head, uint32_t blocks)
{
    uint32_t best = CAIRN_EXTENT_NONE, best_len = UINT32_MAX, tries = CLASS_TRIES;
    for (uint32_t f = head; f != CAIRN_EXTENT_NONE && tries--; f = e->tags[f].next) {
        uint32_t len = run_len(e, f);
        if (len == blocks)
            return f;
        if (len > blocks && len < best_len) {
            best = f;
            best_len = len;
        }
    }
    return best;
}

static uint32_t find_fit(const struct cairn_extents *e, uint32_t blocks)
{
    uint32_t row, step;
    class_of(blocks, &row, &step);
    uint32_t first = find_in_class(e, e->heads[row][step], blocks);
    if (first != CAIRN_EXTENT_NONE)
        return first;
    uint32_t steps = step + 1 < STEPS ? e->steps[row] & (UINT32_MAX << (step + 1)) : 0;
    if (!steps) {
        uint32_t rows = e->rows & (UINT32_MAX << (row + 1));
        if (!rows)
            return CAIRN_EXTENT_NONE;
        row = (uint32_t)__builtin_ctz(rows);
        steps = e->steps[row];
    }
    return e->heads[row][__builtin_ctz(steps)];
}

uint32_t cairn_extent_alloc(struct cairn_extents *e, uint32_t blocks, uint32_t owner)
{
    if (!blocks || blocks > e->blocks)
        return CAIRN_EXTENT_NONE;
    uint32_t first = find_fit(e, blocks);
    if (first == CAIRN_EXTENT_NONE)
        return first;
    list_drop(e, first);
    uint32_t rest = run_len(e, first) - blocks;
    run_put(e, first, blocks, RUN_USED);
    e->tags[first].next = owner;
    e->free_blocks -= blocks;
    if (rest) {
        run_put(e, first + blocks, rest, 0);
        list_push(e, first + blocks);
    }
    return first;
}

void cairn_extent_free(struct cairn_extents *e, uint32_t first)
{
    if (first < e->blocks && run_used(e, first))
        run_release(e, first, run_len(e, first));
}

void cairn_extent_trim(struct cairn_extents *e, uint32_t first, uint32_t blocks)
{
    if (first >= e->blocks || !run_used(e, first) || !blocks || blocks >= run_len(e, first))
        return;
    uint32_t rest = run_len(e, first) - blocks;
    run_put(e, first, blocks, RUN_USED);
    run_release(e, first + blocks, rest);
}

uint64_t cairn_extents_free_blocks(const struct cairn_extents *e)
{
    return e->free_blocks;
}

uint32_t cairn_extents_largest_free(const struct cairn_extents *e)
{
    if (!e->rows)
        return 0;
    uint32_t row = 31u - (uint32_t)__builtin_clz(e->rows);
    uint32_t step = 31u - (uint32_t)__builtin_clz(e->steps[row]);
    uint32_t most = 0, tries = CLASS_TRIES;
    for (uint32_t f = e->heads[row][step]; f != CAIRN_EXTENT_NONE && tries--; f = e->tags[f].next)
        if (run_len(e, f) > most)
            most = run_len(e, f);
    return most;
}

bool cairn_extent_at(const struct cairn_extents *e, uint32_t first, struct cairn_extent_run *ret)
{
    if (first >= e->blocks || !e->tags[first].state)
        return false;
    bool used = run_used(e, first);
    *ret = (struct cairn_extent_run){.first = first,
                                     .blocks = run_len(e, first),
                                     .owner = used ? e->tags[first].next : 0,
                                     .used = used};
    return true;
}

bool cairn_extent_next(const struct cairn_extents *e, const struct cairn_extent_run *run,
                       struct cairn_extent_run *ret)
{
    return cairn_extent_at(e, run->first + run->blocks, ret);
}

bool cairn_extent_prev(const struct cairn_extents *e, const struct cairn_extent_run *run,
                       struct cairn_extent_run *ret)
{
    return cairn_extent_at(e, e->tags[run->first].before, ret);
}

/* One end of a growing window: the run beyond it and what it would cost to take it. */
struct side {
    struct cairn_extent_run run;
    uint64_t cost; /* UINT64_MAX: cannot be taken */
};

struct window {
    const struct cairn_extents *e;
    uint64_t (*cost)(void *arg, uint32_t owner);
    void *arg;
    struct cairn_extent_run left, right; /* its first and last run */
    uint64_t blocks;
    uint32_t used;
};

static struct side side_look(const struct window *w, bool left)
{
    struct side s = {.cost = UINT64_MAX};
    bool there = left ? cairn_extent_prev(w->e, &w->left, &s.run)
                      : cairn_extent_next(w->e, &w->right, &s.run);
    if (there)
        s.cost = s.run.used ? w->cost(w->arg, s.run.owner) : 0;
    return s;
}

/* Growing by the cheaper side may have made runs at the other end needless. */
static void window_shrink(struct window *w, uint32_t victim, uint32_t blocks)
{
    while (w->left.first != victim && w->blocks - w->left.blocks >= blocks) {
        w->blocks -= w->left.blocks;
        w->used -= w->left.used;
        (void)cairn_extent_next(w->e, &w->left, &w->left);
    }
    while (w->right.first != victim && w->blocks - w->right.blocks >= blocks) {
        w->blocks -= w->right.blocks;
        w->used -= w->right.used;
        (void)cairn_extent_prev(w->e, &w->right, &w->right);
    }
}

static bool window_grow(struct window *w, uint32_t blocks, uint32_t cap)
{
    struct side left = side_look(w, true), right = side_look(w, false);
    while (w->blocks < blocks) {
        bool to_left = left.cost < right.cost;
        const struct side *s = to_left ? &left : &right;
        if (s->cost == UINT64_MAX)
            return false;
        w->blocks += s->run.blocks;
        w->used += s->run.used;
        if (w->used > cap)
            return false;
        if (to_left) {
            w->left = left.run;
            left = side_look(w, true);
        } else {
            w->right = right.run;
            right = side_look(w, false);
        }
    }
    return true;
}

bool cairn_extent_window(const struct cairn_extents *e, uint32_t victim, uint32_t blocks,
                         uint64_t (*cost)(void *arg, uint32_t owner), void *arg,
                         uint32_t *owners, uint32_t cap, uint32_t *ret_count)
{
    struct window w = {.e = e, .cost = cost, .arg = arg, .used = 1};
    if (!cairn_extent_at(e, victim, &w.left) || !w.left.used || !cap)
        return false;
    if (cost(arg, w.left.owner) == UINT64_MAX)
        return false;
    w.right = w.left;
    w.blocks = w.left.blocks;
    if (!window_grow(&w, blocks, cap))
        return false;
    window_shrink(&w, victim, blocks);
    uint32_t n = 0;
    struct cairn_extent_run run = w.left;
    for (uint32_t end = w.right.first;; (void)cairn_extent_next(e, &run, &run)) {
        if (run.used)
            owners[n++] = run.owner;
        if (run.first == end)
            break;
    }
    *ret_count = n;
    return true;
}

static void check(bool ok)
{
    if (!ok)
        abort();
}

static uint64_t check_lists(const struct cairn_extents *e)
{
    uint64_t blocks = 0;
    for (uint32_t r = 0; r < ROWS; r++) {
        check(!(e->rows & (1u << r)) == !e->steps[r]);
        for (uint32_t s = 0; s < STEPS; s++) {
            uint32_t prev = CAIRN_EXTENT_NONE;
            check(!(e->steps[r] & (1u << s)) == (e->heads[r][s] == CAIRN_EXTENT_NONE));
            for (uint32_t f = e->heads[r][s]; f != CAIRN_EXTENT_NONE; f = e->tags[f].next) {
                uint32_t row, step;
                check(f < e->blocks && e->tags[f].state && !run_used(e, f));
                class_of(run_len(e, f), &row, &step);
                check(row == r && step == s && e->tags[f].prev == prev);
                blocks += run_len(e, f);
                prev = f;
            }
        }
    }
    return blocks;
}

uint64_t cairn_extents_check(const struct cairn_extents *e)
{
    uint64_t free_blocks = 0;
    uint32_t before = CAIRN_EXTENT_NONE;
    bool before_free = false;
    for (uint32_t f = 0; f < e->blocks;) {
        uint32_t len = run_len(e, f);
        check(len && len <= e->blocks - f && e->tags[f].before == before);
        check(!(before_free && !run_used(e, f)));
        for (uint32_t i = 1; i < len; i++)
            check(!e->tags[f + i].state);
        before_free = !run_used(e, f);
        free_blocks += before_free ? len : 0;
        before = f;
        f += len;
    }
    check(free_blocks == e->free_blocks && check_lists(e) == free_blocks);
    return free_blocks;
}
