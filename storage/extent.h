/* Room inside the arena: runs of 4 KiB blocks, good fit in O(1) (two-level segregated fit, Masmano
 * et al. 2004), boundary tags in a table of its own so that nothing but values is in the arena.
 * Not thread-safe: the store's lock covers it. */
#ifndef CAIRN_STORAGE_EXTENT_H
#define CAIRN_STORAGE_EXTENT_H

#include <stdbool.h>

#include "base/types.h"

struct cairn_extents;

#define CAIRN_EXTENT_NONE UINT32_MAX

/* At most 2^31 - 1 blocks (8 TiB). 16 bytes a block, all of them now: nothing allocates later. */
cairn_status cairn_extents_create(uint32_t blocks, struct cairn_extents **ret);
void cairn_extents_destroy(struct cairn_extents *e);

/* First block of a free run of `blocks`, marked as used by `owner`. CAIRN_EXTENT_NONE if there is
 * none; a run that is longer by less than 3 % may be overlooked behind 64 others of its size class,
 * but never the run that was freed last. */
uint32_t cairn_extent_alloc(struct cairn_extents *e, uint32_t blocks, uint32_t owner);
void cairn_extent_free(struct cairn_extents *e, uint32_t first);
/* Keeps the first `blocks` of a used run and frees the rest. */
void cairn_extent_trim(struct cairn_extents *e, uint32_t first, uint32_t blocks);

uint64_t cairn_extents_free_blocks(const struct cairn_extents *e);
/* A length that an alloc finds now (the largest, or within 3 % of it); 0 if nothing is free. */
uint32_t cairn_extents_largest_free(const struct cairn_extents *e);

/* The arena is a row of runs, used and free in turn as they lie (free neighbours are always one
 * run). `at` gives the run that starts at a block and is false anywhere inside one; `next` and
 * `prev` give its neighbours and are false at the arena's ends. `owner` counts for used runs. */
struct cairn_extent_run {
    uint32_t first, blocks, owner;
    bool used;
};
bool cairn_extent_at(const struct cairn_extents *e, uint32_t first, struct cairn_extent_run *ret);
bool cairn_extent_next(const struct cairn_extents *e, const struct cairn_extent_run *run,
                       struct cairn_extent_run *ret);
bool cairn_extent_prev(const struct cairn_extents *e, const struct cairn_extent_run *run,
                       struct cairn_extent_run *ret);

/* What must go so that a run of `blocks` becomes free around the used run `victim`: grows a window
 * from the victim to its neighbours (the side that `cost` says is cheaper), never over a run whose
 * cost is UINT64_MAX (pinned). Owners to evict go to owners[0..*ret_count), in address order, the
 * victim's among them; false if impossible or more than cap. Once they are freed, an alloc of
 * `blocks` succeeds. This bounds what one allocation evicts to `blocks` plus two neighbours, where
 * evicting by age alone could drop the whole arena before two victims happen to touch. */
bool cairn_extent_window(const struct cairn_extents *e, uint32_t victim, uint32_t blocks,
                         uint64_t (*cost)(void *arg, uint32_t owner), void *arg,
                         uint32_t *owners, uint32_t cap, uint32_t *ret_count);

/* Debug: checks every invariant, aborts on a broken one. Returns free blocks. */
uint64_t cairn_extents_check(const struct cairn_extents *e);

#endif
