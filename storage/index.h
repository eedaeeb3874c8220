/* Key -> where it is. Fixed at open, <= 48 bytes an entry at capacity, empty slots included:
 * entries of 40 bytes in a pool, found through buckets of one cache line (12 one-byte tags and
 * 12 entry numbers, an overflow count; F14, Bronson & Shi 2019). What is kept of a
 * key is its key16.h; the full key in the record's header is compared before anything is a hit.
 * Not thread-safe: the store's lock covers it. */
#ifndef CAIRN_STORAGE_INDEX_H
#define CAIRN_STORAGE_INDEX_H

#include "base/types.h"
#include "storage/key16.h"

#define CAIRN_ENTRY_NONE UINT32_MAX
#define CAIRN_SLOT_NONE UINT32_MAX
#define CAIRN_BLOCK_NONE 0u /* block 0 is the superblock: never a record */

/* flags */
#define CAIRN_ENTRY_TOMB 1u    /* a tombstone seen in recovery, dropped when it ends          */
#define CAIRN_ENTRY_HIT 2u     /* hit since it was written to disk                            */
#define CAIRN_ENTRY_EXPIRES 4u /* its header has an expiry time                               */
#define CAIRN_ENTRY_DYING 8u   /* a tombstone for it is under way: never written again        */
#define CAIRN_ENTRY_SIDE_SHIFT 8 /* above: blocks of side records, 0 to 16                    */

struct cairn_entry {
    uint8_t key[16];
    uint64_t version;
    uint32_t block;     /* of the record on disk, CAIRN_BLOCK_NONE                           */
    uint32_t slot;      /* of the RAM copy, CAIRN_SLOT_NONE                                  */
    uint32_t value_len; /* <= 64 MiB                                                         */
    uint16_t flags;
    uint8_t space;      /* namespace; 255: one that this code knows not                      */
    uint8_t identity;   /* the store's number of it, 0 = not known                           */
};
_Static_assert(sizeof(struct cairn_entry) == 40, "entry is 40 bytes");

struct cairn_index;

/* Room for at least `capacity` entries; a small table gets more (cairn_index_capacity says). */
cairn_status cairn_index_create(uint32_t capacity, struct cairn_index **ret);
void cairn_index_destroy(struct cairn_index *x);

/* Entry number, or CAIRN_ENTRY_NONE. */
uint32_t cairn_index_find(const struct cairn_index *x, const struct cairn_key *key);
/* Many at once with prefetch: ids[i] for each key; stops after the first absent one if
 * stop_at_absent. Returns how many ids were written, the CAIRN_ENTRY_NONE of that one included. */
uint32_t cairn_index_find_many(const struct cairn_index *x, const struct cairn_key *keys,
                               uint32_t count, int stop_at_absent, uint32_t *ids);
/* By the 16 bytes a footer has. */
uint32_t cairn_index_find16(const struct cairn_index *x, const uint8_t key16[16]);
/* A new entry with the key set and everything else empty (block NONE, slot NONE); the key must not
 * be present. CAIRN_ENTRY_NONE when full. */
uint32_t cairn_index_insert(struct cairn_index *x, const struct cairn_key *key);
uint32_t cairn_index_insert16(struct cairn_index *x, const uint8_t key16[16]);
void cairn_index_remove(struct cairn_index *x, uint32_t id);
/* Lent until the entry is removed. Its key stays as it is; value_len never becomes UINT32_MAX. */
struct cairn_entry *cairn_index_entry(struct cairn_index *x, uint32_t id);

uint32_t cairn_index_count(const struct cairn_index *x);
uint32_t cairn_index_capacity(const struct cairn_index *x);
uint64_t cairn_index_bytes(const struct cairn_index *x); /* all memory it holds */
/* Next live entry at or after `id`, CAIRN_ENTRY_NONE at the end: for (id = next(x, 0); ...). */
uint32_t cairn_index_next(const struct cairn_index *x, uint32_t id);

/* Debug: checks every invariant, aborts on a broken one. Returns the entries found. */
uint32_t cairn_index_check(const struct cairn_index *x);

#endif
