/* Room inside the arena: runs of 4 KiB blocks, good fit in O(1) (two-level segregated fit, Masmano
 * et al. 2004), boundary tags in a table of its own so that nothing but values is in the arena.
 * Not thread-safe: the store's lock covers it. */
#ifndef CAIRN_STORAGE_EXTENT_H
#define CAIRN_STORAGE_EXTENT_H

#include <stdbool.h>

#include "base/types.h"

struct cairn_extents;

#define CAIRN_EXTENT_NONE UINT32_MAX

cairn_status cairn_extents_create(uint32_t blocks, struct cairn_extents **ret);
void cairn_extents_destroy(struct cairn_extents *e);

/* First block of a free run of `blocks`, marked as used by `owner`; CAIRN_EXTENT_NONE if no run is
 * long enough. */
uint32_t cairn_extent_alloc(struct cairn_extents *e, uint32_t blocks, uint32_t owner);
void cairn_extent_free(struct cairn_extents *e, uint32_t first);
/* Gives the end of a run back. */
void cairn_extent_trim(struct cairn_extents *e, uint32_t first, uint32_t blocks);

uint64_t cairn_extents_free_blocks(const struct cairn_extents *e);
uint32_t cairn_extents_largest_free(const struct cairn_extents *e);

/* The run that starts at or covers... walking in address order from the start of a run: the next
 * and previous runs. `used` tells which; owner is valid for used runs. */
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
 * cost is UINT64_MAX (pinned). Owners to evict go to owners[0..*ret_count); false if impossible or
 * more than cap. This bounds what one allocation evicts to `blocks` plus two neighbours, where
 * evicting by age alone could drop the whole arena before two victims happen to touch. */
bool cairn_extent_window(const struct cairn_extents *e, uint32_t victim, uint32_t blocks,
                         uint64_t (*cost)(void *arg, uint32_t owner), void *arg,
                         uint32_t *owners, uint32_t cap, uint32_t *ret_count);

/* Debug: checks every invariant, aborts on a broken one. Returns free blocks. */
uint64_t cairn_extents_check(const struct cairn_extents *e);

#endif
