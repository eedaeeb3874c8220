/* Inside of the store: shared by the store_*.c files and nobody else. */
#ifndef CAIRN_STORAGE_STORE_INTERNAL_H
#define CAIRN_STORAGE_STORE_INTERNAL_H

#include <pthread.h>

#include "base/clock.h"
#include "base/hist.h"
#include "storage/extent.h"
#include "storage/index.h"
#include "storage/policy.h"
#include "storage/store.h"

#define VAULT_OPS 512u        /* tier ops in flight; half of them at most are writes */
#define VAULT_WINDOW 64u      /* keys of one get in flight                           */
#define VAULT_EVICT_MAX 4096u /* owners one allocation may evict                     */
#define VAULT_IDENTITIES 128u /* number 0 is for those not known                     */
#define VAULT_SPACES 2u       /* namespaces: KV chunks, strings                      */

enum slot_state { SLOT_FREE, SLOT_FILLING, SLOT_LOADING, SLOT_RESIDENT, SLOT_FAILED };
enum slot_write {
    WRITE_CLEAN,   /* on disk, or no wish to have it there */
    WRITE_QUEUED,  /* in the dirty list                    */
    WRITE_FLYING,  /* the tier has it                      */
    WRITE_FAILED,  /* the tier could not; flush tries again */
};

/* A value in RAM. Owned by the vault's lock, its bytes by who pinned it. */
struct slot {
    uint32_t first, blocks;   /* extent                                                     */
    uint32_t entry;           /* CAIRN_ENTRY_NONE: detached, freed with its last pin        */
    uint32_t parent, parent_gen;
    uint32_t gen;             /* grows when the slot is freed                               */
    uint32_t children;        /* resident slots that name this one as parent                */
    uint32_t pins;            /* readers, leases, a device that still holds the memory      */
    uint32_t leases;          /* of the pins                                                */
    uint32_t value_len;
    uint32_t side_len;        /* FILLING                                                    */
    uint32_t loaded;          /* first bytes of the value that are verified while it loads  */
    uint32_t prev, next;      /* free, dirty, flying or ready list                          */
    uint64_t version;
    uint64_t ticket;          /* order in which writes were queued                          */
    uint8_t state, write;
    uint8_t cause;            /* of SLOT_FAILED                                             */
    bool checked;             /* verified since it came into RAM                            */
    bool unverified;          /* from disk, and nobody has verified all of it yet           */
    bool in_policy;
    bool written;             /* was on disk once                                           */
    bool lost;                /* a write of it was given up, and the device may still read  */
    bool tried;               /* a write of it began: the disk may hold it, even if it failed */
    bool orphan;              /* its parent was held nowhere when it came                   */
    bool waited;              /* somebody sleeps until loading ends                         */
    bool sealed;              /* FILLING: its header is complete but for the version        */
    bool on_evict;            /* written when it is about to leave RAM                      */
    bool yields;              /* leaves unwritten rather than let a put fail                */
    bool leaving;             /* chosen to leave RAM, once it is written                    */
    bool ready;               /* of those: in the list of what may go at once               */
};

struct slot_list {
    uint32_t head, tail;
};

struct vault_op {
    struct cairn_tier_op op;
    struct cairn_vault *vault;
    struct vault_op *next;
    uint32_t slot;
    bool done, abandoned;
};

/* Identities seen, newest last; a copy of what the tier keeps. */
struct seen_identity {
    void *canon;
    uint32_t len;
};

struct identity_row {
    uint64_t name; /* first bytes of the fingerprint */
    uint64_t used; /* identity_tick then             */
    struct cairn_identity_figures f;
};

struct vault_counters {
    _Atomic uint64_t get_ram, get_disk, put_stored, put_existing, put_replaced, deleted;
    _Atomic uint64_t get_bytes, put_bytes, lookups, lookup_keys, lookup_held;
    _Atomic uint64_t evicted, evicted_bytes, forgotten, lost_writes;
    _Atomic uint64_t miss[CAIRN_CAUSE_COUNT], refused[CAIRN_CAUSE_COUNT];
    _Atomic uint64_t dropped[CAIRN_CAUSE_COUNT]; /* entries that went */
    _Atomic uint64_t bad_ram, bad_disk;          /* copies that differ from their checks */
    _Atomic uint64_t last_get_ram_ns, last_get_disk_ns, last_put_ns; /* that went well; 0: none */
    struct cairn_hist get_ram_ns, get_disk_ns, put_ns, lookup_ns;
};

struct cairn_vault {
    pthread_mutex_t lock;
    pthread_cond_t changed;      /* a load ended, a write ended, an op came back */
    struct cairn_vault_opts o;
    struct cairn_mapping arena;
    uint32_t arena_blocks;
    struct cairn_extents *extents;
    struct cairn_index *index;
    struct cairn_policy *policy;
    struct slot *slots;
    uint32_t slot_count;
    size_t slot_bytes;
    struct slot_list free, dirty, flying, ready;
    uint32_t *evict_list;        /* scratch of one allocation, under the lock */

    struct cairn_tier *tier;     /* NULL: RAM only */
    struct cairn_tier_host host;
    struct vault_op *ops, *ops_free;
    uint32_t ops_writing;
    bool tier_off, closing, recovering, recover_overflow;
    bool was_off;                /* and no flush has looked at all values since            */
    uint64_t turn_offs;
    bool rewriting;              /* from slot rewrite_at on: what it missed is written     */
    uint32_t rewrite_at;
    char off_why[160];

    uint64_t version;            /* last one given out */
    uint64_t ticket;             /* last one given out */
    uint64_t value_max;
    uint32_t segments;           /* of the log */
    uint64_t dirty_blocks, filling_blocks, lease_blocks;
    uint64_t leaving_blocks;
    bool some_on_evict;          /* values are written as they leave, whatever o.write is  */
    uint64_t held[VAULT_SPACES]; /* entries of each space                                  */
    uint64_t cleared[VAULT_SPACES]; /* values of a lower version are dead, or about to be   */
    struct drops *drops;
    struct forgotten *forgotten, *doubted; /* NULL: RAM only */
    struct burying *burying;               /* keys whose tombstones are under way */
    struct identity_row identities[VAULT_IDENTITIES];
    uint64_t identity_tick;
    uint32_t identity_last;
    uint64_t lost_writes_flushed; /* lost_writes at the last flush that reported them */
    uint32_t clock_hand;         /* of index eviction */
    uint32_t failed_slots;
    uint32_t orphans;         /* slots in the policy that are orphans */
    struct seen_identity seen[CAIRN_IDENT_SLOTS];
    uint32_t seen_count;
    uint64_t resident_bytes, resident_count;
    struct vault_counters c;
};

static inline struct cairn_record_disk *slot_image(const struct cairn_vault *v,
                                                   const struct slot *s)
{
    return (struct cairn_record_disk *)((char *)v->arena.base + (size_t)s->first * CAIRN_BLOCK);
}

static inline void *slot_value(const struct cairn_vault *v, const struct slot *s)
{
    return (char *)slot_image(v, s) + CAIRN_BLOCK;
}

static inline uint64_t key_hash(const uint8_t *key16)
{
    uint64_t h;
    __builtin_memcpy(&h, key16, sizeof h);
    return h;
}

/* store_room.c: all under the lock */
uint32_t slot_number(const struct cairn_vault *v, const struct slot *s);
void slot_list_push(struct cairn_vault *v, struct slot_list *l, uint32_t n);
void slot_list_remove(struct cairn_vault *v, struct slot_list *l, uint32_t n);
/* A slot with room for `blocks`, pinned once, in no list; evicts what must go. NULL = no room. */
struct slot *room_take(struct cairn_vault *v, uint32_t blocks, bool for_put);
void slot_pin(struct slot *s);
void slot_unpin(struct cairn_vault *v, struct slot *s);
/* Frees the slot if nobody needs it. */
void slot_release(struct cairn_vault *v, struct slot *s);
/* Cuts the slot from its entry; the memory goes with the last pin. */
void slot_detach(struct cairn_vault *v, struct slot *s);
void slot_leave_orphans(struct cairn_vault *v, struct slot *s);
/* It was asked for. */
void slot_touch(struct cairn_vault *v, struct slot *s);
/* Its turn to leave RAM has come. */
void slot_leave(struct cairn_vault *v, struct slot *s);
/* It may go at once: it is written. */
void slot_ready(struct cairn_vault *v, struct slot *s);
/* It does not leave yet after all. */
void slot_stay(struct cairn_vault *v, struct slot *s);
/* What is to leave RAM next and must be written first, or is written; NONE. */
uint32_t slot_leaves_next(struct cairn_vault *v);
void slot_enter_policy(struct cairn_vault *v, struct slot *s, uint32_t weight);
void slot_adopt(struct cairn_vault *v, struct slot *s, const uint8_t parent_key[32]);
void slot_evict(struct cairn_vault *v, struct slot *s);
bool slot_evictable(const struct cairn_vault *v, const struct slot *s);
/* The disk may hold what a slot that leaves its entry was written to, and nobody will know. */
void slot_forget(struct cairn_vault *v, const struct slot *s);
/* Counts an accepted value that leaves RAM before it was written. */
void slot_count_lost(struct cairn_vault *v, const struct slot *s);
/* `cause` is remembered for whoever asks why the key is not held; NONE: no reason to. */
void entry_remove(struct cairn_vault *v, uint32_t id, enum cairn_cause cause);
/* Counts an entry in or out of its space. */
void entry_count(struct cairn_vault *v, const struct cairn_entry *e, int by);
/* Of a value of the space; NULL: `id` is NONE, or the key is held by another space. */
static inline struct cairn_entry *entry_of(const struct cairn_vault *v, uint32_t id,
                                           uint16_t space)
{
    struct cairn_entry *e = id == CAIRN_ENTRY_NONE ? NULL : cairn_index_entry(v->index, id);
    return e && e->space == space ? e : NULL;
}
/* Its space was not cleared since. */
bool entry_living(const struct cairn_vault *v, const struct cairn_entry *e);
/* May its value be written to the disk still? */
bool entry_writable(const struct cairn_vault *v, const struct cairn_entry *e);
/* Removes an entry that has neither RAM nor disk copy. */
void entry_drop_if_empty(struct cairn_vault *v, uint32_t id, enum cairn_cause cause);
/* A new entry for the key, dropping an old disk-only one if the index is full. */
uint32_t entry_insert(struct cairn_vault *v, const struct cairn_key *key);
/* Forgets the disk copy: the record stays there but is not found again before a restart. */
void entry_forget_disk(struct cairn_vault *v, uint32_t id, enum cairn_cause cause);

/* store_identity.c: lock held */
uint8_t identity_number(struct cairn_vault *v, const uint8_t *fingerprint);
void identity_put(struct cairn_vault *v, uint8_t number, uint64_t bytes);
void identity_hit(struct cairn_vault *v, uint8_t number, uint64_t bytes);

/* A key whose tombstone is under way. */
struct burying {
    struct burying *next;
    uint8_t key16[16];
    bool forgot; /* a record of it since: perhaps one that the tombstone does not cover */
};

/* store_forgotten.c: lock held */
struct forgotten *forgotten_open(uint64_t disk_bytes);
void forgotten_close(struct forgotten *f);
void forgotten_note(struct cairn_vault *v, const uint8_t key16[16]);
/* May the disk hold a record of the key that the index knows nothing of? */
bool forgotten_may(struct cairn_vault *v, const struct cairn_key *key);
/* The same of a key whose tombstone failed: what is found again is no longer what was put last. */
void doubt_note(struct cairn_vault *v, const uint8_t key16[16]);
bool doubt_may(struct cairn_vault *v, const struct cairn_key *key);

/* store_drops.c: lock held */
struct drops *drops_open(void);
void drops_close(struct drops *d);
void drops_note(struct drops *d, const uint8_t key16[16], enum cairn_cause cause);

/* store_write.c */
void write_queue(struct cairn_vault *v, struct slot *s);
void write_pump(struct cairn_vault *v);
/* Chooses what leaves RAM next, as far ahead as its write takes. */
void write_ahead(struct cairn_vault *v);
/* Is the value in RAM alone, and may it be queued? */
bool slot_unwritten(const struct cairn_vault *v, const struct slot *s);
/* After puts: starts the writes they ask for. */
void write_settle(struct cairn_vault *v);
struct vault_op *op_take(struct cairn_vault *v);
void op_give(struct cairn_vault *v, struct vault_op *op);
/* Writes what is in RAM alone, all of it or only what is to be written when it leaves. */
cairn_status vault_flush(struct cairn_vault *v, bool all, uint64_t deadline_ns);
/* Submits a TOMBSTONE, CLEAR or SYNC; NULL and a status if it cannot. `wait`: for a free op. Who
 * holds one already must not, lest all wait for each other. */
struct vault_op *op_begin(struct cairn_vault *v, struct cairn_tier_op what, bool wait,
                          cairn_status *ret);
/* Waits for it until its deadline and gives it back. */
cairn_status op_end(struct cairn_vault *v, struct vault_op *op);
/* Both. The lock is held on entry and return of all three, but not while they wait. */
cairn_status op_run(struct cairn_vault *v, struct cairn_tier_op what);
void vault_host(struct cairn_vault *v);
/* Waits for `changed` until the deadline; false when it has passed. */
bool vault_wait(struct cairn_vault *v, uint64_t deadline_ns);

/* store_back.c */
/* Queues some of what a tier that is back has missed. Lock held. */
void write_again(struct cairn_vault *v);
/* The same until there is something whose end goes on with it. Lets go of the lock at times. */
void write_again_on(struct cairn_vault *v);
void host_turned_on(void *arg);
void host_doubted(void *arg, const struct cairn_summary_disk *r);

/* store_bury.c: lock held on entry and return */
/* Must a tombstone be written before the key shows something else? Versions up to `covered` have
 * theirs. `id`: its entry or NONE. */
bool bury_needed(struct cairn_vault *v, const struct cairn_key *key, uint32_t id,
                 uint64_t covered);
/* Makes every version of the key up to now, *covered, dead on disk; the lock is not held while it
 * waits, and what came meanwhile may need a tombstone of its own. *covered is 0 if some of that has
 * been forgotten already: which versions, nobody knows. */
cairn_status bury_once(struct cairn_vault *v, const struct cairn_key *key, uint64_t deadline_ns,
                       uint64_t *covered);

/* store_commit.c */
/* Writes the header of a slot that is being filled, all but checks and version, its side records
 * and the zeros behind the value. No lock needed. */
void slot_fill(struct cairn_vault *v, struct slot *s, const struct cairn_commit *c);
/* Has it expired, or may it have? Its time is only in the header. Lock held. */
bool entry_expired(const struct cairn_vault *v, const struct cairn_entry *e);
/* May a put of the space have the key? INVAL: another space holds it; INPROGRESS, with NOWAIT: only
 * the disk knows whether the other's value has ended. Lock held, but not while it waits. */
cairn_status space_check(struct cairn_vault *v, const struct cairn_key *key, uint16_t space,
                         uint32_t flags, uint64_t deadline_ns);
/* Is a put answered by what is held? `id`: entry of its key or NONE. Lock held. */
bool entry_keeps(struct cairn_vault *v, uint32_t id, uint32_t flags);
/* Makes a filled slot visible, or says why not. Lock held, but not while it waits. */
cairn_status slot_enter(struct cairn_vault *v, struct slot *s, uint32_t flags,
                        uint64_t deadline_ns, enum cairn_cause *ret_cause);
/* Ends the filling of a slot, entered or not: into the policy and the queue of writes, and the
 * filler's pin goes. */
void slot_filled(struct cairn_vault *v, struct slot *s);

/* store_get.c */
/* Begins to read the entry's record into RAM; NULL and a cause if it cannot. */
struct slot *load_begin(struct cairn_vault *v, uint32_t entry, const struct cairn_key *key,
                        enum cairn_cause *cause);

/* Sleeps until the slot is loaded: its cause, DEADLINE if that took too long. Without the lock. */
enum cairn_cause load_wait(struct cairn_vault *v, struct slot *s, uint64_t deadline_ns);
uint32_t entry_blocks(const struct cairn_entry *e);
/* Must a read from RAM compare the checks? Lock held. */
bool slot_needs_verify(const struct cairn_vault *v, const struct slot *s);
/* All of it was found good. Lock held. */
void slot_verified(struct slot *s);
/* Is this header of a pinned slot the one it must be, and not expired? */
enum cairn_cause slot_check(const struct cairn_record_body_disk *b, const struct slot *s,
                            const struct cairn_key *key, const uint8_t *fingerprint, bool verify);
bool slot_damaged_length(const struct cairn_vault *v, const struct slot *s);
bool cause_is_damage(enum cairn_cause c);
/* Takes a damaged RAM copy out; the disk copy, if any, stays. Lock held. */
void slot_drop_damaged(struct cairn_vault *v, struct slot *s, enum cairn_cause cause);
/* The record stays on disk, where its own expiry time keeps it from coming back. Lock held. */
void slot_drop_expired(struct cairn_vault *v, struct slot *s);

static inline void count_miss(struct cairn_vault *v, enum cairn_cause c)
{
    atomic_fetch_add_explicit(&v->c.miss[c], 1, memory_order_relaxed);
}

static inline void count_refused(struct cairn_vault *v, enum cairn_cause c)
{
    atomic_fetch_add_explicit(&v->c.refused[c], 1, memory_order_relaxed);
}

static inline void count(_Atomic uint64_t *c, uint64_t n)
{
    atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}

/* Counts an operation that has just gone well. */
static inline void count_took(struct cairn_hist *h, _Atomic uint64_t *last_ns, uint64_t since_ns)
{
    uint64_t now = cairn_now_ns();
    cairn_hist_add(h, now - since_ns);
    atomic_store_explicit(last_ns, now, memory_order_relaxed);
}

static inline void count_got(struct cairn_vault *v, bool disk, uint64_t since_ns)
{
    struct vault_counters *c = &v->c;
    count(disk ? &c->get_disk : &c->get_ram, 1);
    count_took(disk ? &c->get_disk_ns : &c->get_ram_ns,
               disk ? &c->last_get_disk_ns : &c->last_get_ram_ns, since_ns);
}

#endif
