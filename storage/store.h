/* The store: index, RAM arena and one tier below it, as one thing with one contract.
 *
 * Threads: callers' threads do lookups and copies; the tier's thread does device I/O and calls
 * back. One mutex covers index, extents, policy and slots; bytes move outside it. A slot's life:
 *
 *   FREE -> FILLING (a put copies in) -> RESIDENT
 *   FREE -> LOADING (the tier reads)  -> RESIDENT          (single flight: others wait on the slot)
 *   RESIDENT -> FREE when evicted, deleted or replaced, once nobody pins it
 *   any -> QUARANTINED while a device that never answered may still write into it
 */
#ifndef CAIRN_STORAGE_STORE_H
#define CAIRN_STORAGE_STORE_H

#include "base/mem.h"
#include "storage/tier.h"

struct cairn_vault;

enum cairn_write_policy { CAIRN_WRITE_THROUGH, CAIRN_WRITE_ON_EVICT, CAIRN_WRITE_NONE };
enum cairn_verify { CAIRN_VERIFY_ALWAYS, CAIRN_VERIFY_FIRST, CAIRN_VERIFY_NEVER };

struct cairn_vault_opts {
    uint64_t ram_bytes;
    uint64_t disk_bytes;          /* 0 = RAM only                              */
    const char *path;             /* log file, NULL = RAM only                 */
    uint32_t entries;             /* index capacity, 0 = from the budgets      */
    enum cairn_write_policy write;
    enum cairn_verify verify;     /* of reads from RAM; disk is always verified */
    const char *policy;           /* "s3fifo", "lru"                           */
    const char *engine;           /* "auto", "uring", "pool"                   */
    const struct cairn_ioq_ops *ioq; /* overrides engine (tests)               */
    void *ioq_arg;
    uint64_t lock_wait_ns;
    uint64_t io_deadline_ns;
    uint32_t errors_max;
    uint32_t reinsert_percent;
    bool prewrite;
};

/* Opens the arena, the index, the tier, and recovers. */
cairn_status cairn_vault_open(const struct cairn_vault_opts *o, struct cairn_vault **ret,
                              char *err, size_t err_cap);
void cairn_vault_close(struct cairn_vault *v);

uint64_t cairn_vault_value_max(const struct cairn_vault *v);

cairn_status cairn_vault_put(struct cairn_vault *v, struct cairn_put *puts, size_t count,
                             uint64_t deadline_ns, size_t *ret_stored);
cairn_status cairn_vault_get(struct cairn_vault *v, struct cairn_get *gets, size_t count,
                             uint64_t deadline_ns, size_t *ret_hits);
size_t cairn_vault_lookup(struct cairn_vault *v, const struct cairn_key *keys, size_t count);
uint64_t cairn_vault_value_len(struct cairn_vault *v, const struct cairn_key *key);
cairn_status cairn_vault_delete(struct cairn_vault *v, const struct cairn_key *keys, size_t count,
                                uint64_t deadline_ns, cairn_status *results);
cairn_status cairn_vault_flush(struct cairn_vault *v, uint64_t deadline_ns);
cairn_status cairn_vault_side(struct cairn_vault *v, const struct cairn_key *key, void *out,
                              uint32_t *len, uint64_t deadline_ns);

/* A pinned, verified value. block: where it lies in the arena. */
struct cairn_pin {
    uint32_t slot;
    uint32_t value_len;
    const void *value;
};
/* Pins the held keys from the start; loads what is on disk. Counts against the lease budget of half
 * the RAM. Returns how many pins were written. */
size_t cairn_vault_pin(struct cairn_vault *v, const struct cairn_key *keys, size_t count,
                       uint64_t deadline_ns, struct cairn_pin *pins);
void cairn_vault_unpin(struct cairn_vault *v, const struct cairn_pin *pins, size_t count);

cairn_status cairn_vault_note_identity(struct cairn_vault *v, const void *canon, uint32_t len);
void cairn_vault_each_identity(struct cairn_vault *v,
                               void (*fn)(void *arg, const void *canon, uint32_t len), void *arg);

/* Statistics as a JSON object. oldest_lease_ns: age of the oldest lease, known to the caller. */
size_t cairn_vault_stats(struct cairn_vault *v, uint64_t oldest_lease_ns, char *out, size_t cap);

/* Tests: drops every RAM copy that is on disk, so that the next get reads the disk. Returns how
 * many bytes were dropped. `cairn bench` uses it to measure the disk path. */
uint64_t cairn_vault_drop_ram(struct cairn_vault *v);

#endif
