/* A small host for a tier: remembers where each key lies and what its bytes are, calls blocking. */
#ifndef CAIRN_TESTS_LOG_HOST_H
#define CAIRN_TESTS_LOG_HOST_H

#include <pthread.h>
#include <stdatomic.h>

#include "storage/tier.h"
#include "tests/helpers/value.h"

#define HOST_KEYS 4096u
#define HOST_NAMES 8192u
#define HOST_SPACES 2u

struct host_entry {
    uint64_t version; /* what the host would serve, 0 = nothing */
    uint32_t block;   /* 0: not on disk                         */
    uint32_t blocks;
    uint32_t len;
    uint16_t space;
    bool tomb;
    bool doubted;     /* it is not known to be on disk any more */
};

struct log_host {
    struct cairn_tier_opts o;
    struct cairn_tier_host host;
    struct cairn_tier *tier;
    char err[512];
    uint8_t *arena;
    size_t arena_len;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct host_entry keys[HOST_KEYS];
    uint8_t key16[HOST_KEYS][16];
    uint16_t names[HOST_NAMES]; /* by key16: number + 1, open addressing */
    uint64_t version;          /* last one given out               */
    uint32_t wanted_every;     /* reclaim keeps keys id % n == 0   */
    uint64_t recovered, recovered_tombs, moved, reclaimed;
    _Atomic uint64_t images_back, turned_on;
    uint64_t held;             /* slots that the device never gave back, bit set */
    uint64_t side_len;         /* of every value put               */
    uint16_t space;            /* the same                         */
    uint64_t cleared[HOST_SPACES]; /* values of a lower version are dead */
    bool refuse;               /* still_wanted says no             */
    char off[256];
};

/* Options for a log of `disk` bytes at `path`, with the named engine. */
void host_init(struct log_host *h, const char *path, uint64_t disk, const char *engine);
void host_fini(struct log_host *h);
cairn_status host_open(struct log_host *h);
bool host_close(struct log_host *h);

struct host_op {
    struct cairn_tier_op op;
    struct log_host *h;
    uint64_t id;
    bool done;
};
/* An op with its image in the arena's slot `slot` (of slots of 1 MiB + 128 KiB each). */
void host_prepare_store(struct log_host *h, struct host_op *op, uint32_t slot, uint64_t id,
                        uint64_t version, uint32_t len);
void host_prepare_load(struct log_host *h, struct host_op *op, uint32_t slot, uint64_t id);
void host_prepare_mark(struct log_host *h, struct host_op *op, enum cairn_tier_kind kind,
                       uint64_t id, uint64_t version);
cairn_status host_submit(struct log_host *h, struct host_op *op);
cairn_status host_wait(struct log_host *h, struct host_op *op);

/* Blocking, on slots from 32 on. put notes the new place. */
cairn_status host_put(struct log_host *h, uint64_t id, uint32_t len);
cairn_status host_delete(struct log_host *h, uint64_t id);
/* Every value put into the space so far is dead. */
cairn_status host_clear(struct log_host *h, uint16_t space);
cairn_status host_sync(struct log_host *h);
/* Loads what the host knows of id and compares every byte: CAIRN_OK means right. Wrong bytes abort.
 * MISS also when the host knows no place. */
cairn_status host_get(struct log_host *h, uint64_t id);
cairn_status host_get_part(struct log_host *h, uint64_t id, uint32_t piece, uint32_t count);
/* Where the host knows the value to be, 0: nowhere. The log's thread may be taking it away. */
uint32_t host_block(struct log_host *h, uint64_t id);
/* Forgets everything, as a restarted process does; the next open recovers. */
void host_forget(struct log_host *h);

#endif
