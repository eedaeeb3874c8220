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
#include "chunking/identity.h"
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
    uint64_t probe_ns;            /* pause before a tier that is off is tried, 0 = never */
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
/* And how many of those, from the start, are in RAM or on their way there (may be NULL). */
size_t cairn_vault_lookup_where(struct cairn_vault *v, const struct cairn_key *keys, size_t count,
                                size_t *ret_resident);
uint64_t cairn_vault_value_len(struct cairn_vault *v, const struct cairn_key *key);
/* Where a chunk is held; 0 = nowhere. A hint. */
#define CAIRN_IN_RAM 1u
#define CAIRN_ON_DISK 2u
uint32_t cairn_vault_where(struct cairn_vault *v, const struct cairn_key *key);
/* A delete (or a put that replaces) whose tombstone could not be made durable says so. Its key
 * shows nothing from then on and takes puts as before; whether a restart would find the old value
 * again is not known until the delete is asked again or a put of the key is flushed. */
cairn_status cairn_vault_delete(struct cairn_vault *v, const struct cairn_key *keys, size_t count,
                                uint64_t deadline_ns, cairn_status *results);
cairn_status cairn_vault_flush(struct cairn_vault *v, uint64_t deadline_ns);
cairn_status cairn_vault_side(struct cairn_vault *v, const struct cairn_key *key, void *out,
                              uint32_t *len, uint64_t deadline_ns);

/* A pinned value. Its record (format.h) lies one block before `value` in the arena, its side
 * records behind the value's last block. */
struct cairn_pin {
    uint32_t slot;
    uint32_t value_len;
    const void *value;
};
static inline const struct cairn_record_body_disk *cairn_pin_body(const struct cairn_pin *p)
{
    return &((const struct cairn_record_disk *)((const char *)p->value - CAIRN_BLOCK))->body;
}
/* Pins the held keys from the start; loads what is on disk. Counts against the lease budget of half
 * the RAM. Returns how many pins were written. */
size_t cairn_vault_pin(struct cairn_vault *v, const struct cairn_key *keys, size_t count,
                       uint64_t deadline_ns, struct cairn_pin *pins);
void cairn_vault_unpin(struct cairn_vault *v, const struct cairn_pin *pins, size_t count);

/* Pins one value without waiting and without touching a device. CAIRN_OK; CAIRN_INPROGRESS = it is
 * on disk or being read, ask cairn_vault_pin from a thread that may wait; CAIRN_MISS and why. With
 * check the bytes are verified as the vault's verify option says; without it only the header is,
 * and whoever reads the bytes verifies them (leases over shared memory do). Counts as a get. */
cairn_status cairn_vault_pin_now(struct cairn_vault *v, const struct cairn_key *key, bool check,
                                 struct cairn_pin *ret, enum cairn_cause *cause);

/* Unpins a value that is not what its reader asked for (LENGTH, IDENTITY), or whose bytes it found
 * damaged (CHECKSUM, HEADER: the RAM copy is dropped). Counts as a miss, beside the hit that the
 * pin was. */
void cairn_vault_pin_reject(struct cairn_vault *v, const struct cairn_pin *pin,
                            enum cairn_cause cause);

/* --- values that are filled in place: what a node receives from a socket --- */

/* Room for one value in the arena that nobody else sees. Its owner writes `len` bytes at `value`,
 * then commits it or gives it back. */
struct cairn_room {
    uint32_t slot;
    void *value;
    size_t len;      /* bytes of the value */
    size_t side_len; /* bytes of side records */
};
/* Never waits; evicts what must go. CAIRN_NOSPACE: everything is pinned, unwritten or being filled;
 * CAIRN_TOOBIG; CAIRN_INVAL for a length of 0. */
cairn_status cairn_vault_room(struct cairn_vault *v, size_t len, size_t side_len,
                              struct cairn_room *ret);
void cairn_vault_room_drop(struct cairn_vault *v, struct cairn_room *room); /* NULL value is fine */

struct cairn_commit {
    struct cairn_key key, parent;
    const uint8_t *fingerprint; /* 32 bytes, or NULL                                              */
    const uint64_t *checks;     /* piece checks the bytes must have, or NULL                      */
    const void *side;           /* room->side_len bytes, copied                                   */
    const void *name;           /* at most CAIRN_NAME_MAX bytes, kept in the header               */
    uint32_t name_len;
    uint32_t tenant;
    uint16_t space;             /* 0 = KV chunks, CAIRN_SPACE_STRINGS                             */
    uint16_t mark;              /* the caller's own bits, kept in the header (body.flags)         */
    uint32_t flags;             /* CAIRN_PUT_REPLACE, CAIRN_COMMIT_*                              */
    uint64_t expires_ns;        /* wall clock, 0 = never                                          */
};
#define CAIRN_SPACE_STRINGS 1u
/* Written to disk when it leaves RAM, whatever the vault's write policy is. */
#define CAIRN_COMMIT_ON_EVICT (1u << 16)
/* Answer CAIRN_INPROGRESS, nothing done and the room still the caller's, instead of waiting for a
 * tombstone. The same commit without this flag may follow: bytes, name and side records
 * stay as they were then, expires_ns and mark may change. */
#define CAIRN_COMMIT_NOWAIT (1u << 17)
/* Makes the value visible in one step, as a put does: OK or EXISTS. On every answer but INPROGRESS
 * the room is gone. CAIRN_CORRUPT: the bytes do not have the checks. */
cairn_status cairn_vault_commit(struct cairn_vault *v, struct cairn_room *room,
                                const struct cairn_commit *c, uint64_t deadline_ns,
                                enum cairn_cause *cause);
/* Deletes without waiting: OK, MISS, or INPROGRESS (nothing done) if a tombstone must be written
 * first. */
cairn_status cairn_vault_delete_now(struct cairn_vault *v, const struct cairn_key *key);

/* --- namespaces: what the calls above do to chunks, of any space --- */

/* To each space the values of the others are not there, and it replaces none of them: while one
 * holds a key, a put of it to another is refused (CAIRN_INVAL, cause SPACE). Of a holder that is on
 * disk alone and may have expired the header is read first; one that cannot be read holds it. A
 * delete of a key that another holds is a MISS, or CAIRN_IO if the disk may hold a forgotten value
 * of its own, which cannot be buried alone. */
uint64_t cairn_vault_space_value_len(struct cairn_vault *v, uint16_t space,
                                     const struct cairn_key *key);
cairn_status cairn_vault_space_delete(struct cairn_vault *v, uint16_t space,
                                      const struct cairn_key *keys, size_t count,
                                      uint64_t deadline_ns, cairn_status *results);
cairn_status cairn_vault_space_delete_now(struct cairn_vault *v, uint16_t space,
                                          const struct cairn_key *key);

size_t cairn_vault_space_pin(struct cairn_vault *v, uint16_t space, const struct cairn_key *keys,
                             size_t count, uint64_t deadline_ns, struct cairn_pin *pins);
cairn_status cairn_vault_space_pin_now(struct cairn_vault *v, uint16_t space,
                                       const struct cairn_key *key, bool check,
                                       struct cairn_pin *ret, enum cairn_cause *cause);

struct cairn_scan_item {
    struct cairn_key key;
    struct cairn_key parent;
    uint8_t identity[32];
    uint64_t expires_ns;
    uint32_t value_len;
    uint32_t tenant;
    uint16_t mark;
    uint16_t name_len;
    bool ram, disk;
    char name[CAIRN_NAME_MAX];
};
/* Walks the values of a space from *cursor (0 = start) and calls fn, with no lock held, for at most
 * `max` of them; *cursor is where to go on, 0 at the end. A value that is there during the whole
 * walk is seen at least once. Headers of values that are only on disk are read, so it may wait.
 * fn returns false to stop. */
cairn_status cairn_vault_scan(struct cairn_vault *v, uint16_t space, uint32_t *cursor, size_t max,
                              uint64_t deadline_ns,
                              bool (*fn)(void *arg, const struct cairn_scan_item *item), void *arg);
/* The same of one key, for who needs its bytes no more than a walk does: OK, MISS and why, or
 * TIMEOUT. */
cairn_status cairn_vault_header(struct cairn_vault *v, uint16_t space, const struct cairn_key *key,
                                uint64_t deadline_ns, struct cairn_scan_item *ret,
                                enum cairn_cause *cause);
/* Values held of a space, expired ones that nobody has met yet included. */
uint64_t cairn_vault_space_count(struct cairn_vault *v, uint16_t space);
/* Every value of the space that was put before this call is gone, for good, on return: one record
 * on disk says so, however many there are. On an error they are gone too, but a restart may find
 * those that were on disk again: ask again. */
cairn_status cairn_vault_clear_space(struct cairn_vault *v, uint16_t space, uint64_t deadline_ns);

/* --- what others may see --- */

/* The arena as other processes may map it: read-only for good (F_SEAL_FUTURE_WRITE). Lent until
 * close. CAIRN_UNSUPPORTED if the kernel has no such seal. */
cairn_status cairn_vault_share(struct cairn_vault *v, int *ret_fd, const void **ret_base,
                               size_t *ret_len);
/* Why a key is not held: the cause that last dropped it and how long ago, if the vault remembers (a
 * bounded table of the latest drops; CAIRN_CAUSE_ABSENT = it does not). */
enum cairn_cause cairn_vault_drop_cause(struct cairn_vault *v, const struct cairn_key *key,
                                        uint64_t *ret_age_ns);

cairn_status cairn_vault_note_identity(struct cairn_vault *v, const void *canon, uint32_t len);
void cairn_vault_each_identity(struct cairn_vault *v,
                               void (*fn)(void *arg, const void *canon, uint32_t len), void *arg);
/* The nearest of the remembered identities and what differs (chunking/why.h); returns the length
 * needed. */
size_t cairn_vault_why(struct cairn_vault *v, const cairn_identity *id, char *out, size_t cap);

/* What was done under an identity since open, and how many values of it are held. The latest 127
 * identities are remembered, and those with held values before others; CAIRN_MISS: not this one. */
struct cairn_identity_figures {
    uint64_t puts, put_bytes, hits, hit_bytes, held;
};
cairn_status cairn_vault_identity_figures(struct cairn_vault *v, const uint8_t fingerprint[32],
                                          struct cairn_identity_figures *ret);

/* Statistics as a JSON object. oldest_lease_ns: age of the oldest lease, known to the caller. */
size_t cairn_vault_stats(struct cairn_vault *v, uint64_t oldest_lease_ns, char *out, size_t cap);

/* Tests: drops every RAM copy that is on disk, so that the next get reads the disk. Returns how
 * many bytes were dropped. `cairn bench` uses it to measure the disk path. */
uint64_t cairn_vault_drop_ram(struct cairn_vault *v);

#endif
