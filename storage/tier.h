/* A tier below RAM: takes record images out of the arena, keeps them, gives them back verified.
 *
 * One implementation today (tier_nvme.c, the log of format.h). The store (store.h) owns the index
 * and the arena; a tier owns its medium and one thread. Contract:
 *  1. Every op accepted by submit is completed exactly once by op->done, on the tier's thread,
 *     with no lock held. done may submit further ops. It is called at the latest at the op's
 *     deadline; if the device still holds the image then, op->image_lost is true and the image's
 *     memory belongs to the tier until host->image_back (never, if the device never answers).
 *  2. submit is callable from any thread, does not block on the device, and keeps ops in order:
 *     a SYNC covers everything accepted before it.
 *  3. LOAD answers OK only for a record whose location, key, version, value_len and every piece
 *     checksum were compared (with host_verifies all but the pieces); a bad read was tried twice.
 *     Anything else: status MISS, CORRUPT, IO or TIMEOUT and a cause.
 *  4. STORE answers OK when this record and every earlier record of its segment are completely
 *     written (readable, in order); SYNC when all those are on stable storage, and CAIRN_IO if one
 *     of them failed since the SYNC before. TOMBSTONE and CLEAR answer OK when durable.
 *  5. Space is reclaimed oldest segment first. Before a segment's records are gone the host is told
 *     (host->reclaim), and asked which to keep (host->wanted); kept records are appended again with
 *     their version unchanged, within the budget.
 */
#ifndef CAIRN_STORAGE_TIER_H
#define CAIRN_STORAGE_TIER_H

#include <stdatomic.h>
#include <stdbool.h>

#include "base/hist.h"
#include "storage/cause.h"
#include "storage/format.h"
#include "storage/ioq.h"

struct cairn_tier;

enum cairn_tier_kind {
    CAIRN_TIER_LOAD,
    CAIRN_TIER_STORE,
    CAIRN_TIER_TOMBSTONE, /* a record that makes older versions of a key dead   */
    CAIRN_TIER_CLEAR,     /* the same for every key of a space                  */
    CAIRN_TIER_SYNC,
};

struct cairn_tier_op {
    enum cairn_tier_kind kind;
    /* LOAD: block of the header (in). STORE: where it went (out). */
    uint32_t block;
    uint32_t blocks;    /* blocks of the record, header included (LOAD, STORE)             */
    /* Arena memory of `blocks` blocks, 4 KiB aligned. STORE: a complete image but for the location
     * part, which the tier fills in. LOAD: receives the record. Belongs to the tier until done. */
    struct cairn_record_disk *image;
    /* LOAD of a part: only pieces [piece_first, piece_first + piece_count) are read and verified
     * (image still has room for all); piece_count 0 = all. The header is always read. */
    uint32_t piece_first, piece_count;
    uint64_t deadline_ns;
    /* LOAD of the header alone, into an image of one block: of the key only the first 16 bytes are
     * given, as key16.h makes them. */
    bool header_only;
    /* Expected by LOAD; TOMBSTONE writes key and version, CLEAR space and version. */
    struct cairn_key key;
    uint64_t version;
    uint32_t value_len;
    uint16_t space;

    cairn_status status;
    enum cairn_cause cause;
    bool image_lost;
    void (*done)(struct cairn_tier_op *op);
    /* LOAD of all: the host compares the pieces with the header's checks while it copies them out,
     * so that the bytes cross the memory link once less. */
    bool host_verifies;
    /* NULL or: the first `bytes` of the value that a LOAD reads are verified (with host_verifies:
     * are there, and the header is verified) and stay as they are until done, which may still say
     * that the rest is not. On the tier's thread, no lock held. */
    void (*part)(struct cairn_tier_op *op, uint64_t bytes);
    void *owner;

    /* The tier's, from submit to done. */
    struct cairn_tier_op *next;
    void *tier_private;
};

/* What the tier asks and tells its host. Called on the tier's thread (recovered: during open). */
struct cairn_tier_host {
    void *arg;
    /* Asked when a STORE gets its place in the log: false = the value was deleted or replaced
     * meanwhile; the op then completes with CAIRN_CANCELED and nothing is written. */
    bool (*still_wanted)(void *arg, const struct cairn_tier_op *op);
    /* A record found at open, in no particular order, each key possibly several times, tombstones
     * and clears included (kind). The host keeps the highest version of a key, and of two copies of
     * one version (a power cut between carrying it over and letting its segment go leaves both) the
     * one that will be reclaimed last (t->ops->outlives): when that one is forgotten, no other is
     * left to come back. Returning false stops recovery with CAIRN_NOMEM. */
    bool (*recovered)(void *arg, const struct cairn_tier *t, const struct cairn_summary_disk *s);
    /* Is the index's current copy of this key at s->block, is it not expired, and is it worth
     * carrying over (hit since written, or head of a living chain)? Called just before the record
     * is appended again, and again when it is placed. */
    bool (*wanted)(void *arg, const struct cairn_summary_disk *s);
    /* The record now lives, durably, at new_block (compare and set on old block); of s only key and
     * block count. */
    void (*moved)(void *arg, const struct cairn_summary_disk *s, uint32_t new_block);
    /* These records are about to be gone: forget those that the index still places there. */
    void (*reclaim)(void *arg, const struct cairn_summary_disk *s, uint32_t count);
    /* And every other record from block `from` on, up to `end`: not all of them could be listed. */
    void (*reclaim_all)(void *arg, uint32_t from, uint32_t end);
    /* A copy that was to be carried over failed and may be on disk all the same, unknown to all. */
    void (*strayed)(void *arg, const struct cairn_summary_disk *s);
    /* A lost image's memory is free again. */
    void (*image_back)(void *arg, struct cairn_record_disk *image, uint32_t blocks);
    /* The tier turned itself off after repeated errors. All queued ops fail with TIER_OFF. */
    void (*turned_off)(void *arg, const char *why);
    /* It is on again: ops are taken. Only with probe_ns. */
    void (*turned_on)(void *arg);
    /* A value that was written and never synced: after a sync that failed nobody knows whether it
     * is on disk. The tier is off then, and tells it before it is on again. */
    void (*doubted)(void *arg, const struct cairn_summary_disk *s);
};

struct cairn_tier_opts {
    const char *path;               /* file; created 0600 if it is missing                  */
    uint64_t disk_bytes;            /* data bytes wanted: segments x segment size           */
    const struct cairn_ioq_ops *ioq;
    void *ioq_arg;
    void *region;                   /* the arena, for buffer registration                   */
    size_t region_len;
    /* Small ios of the tier itself (heads, footers, tombstones, zeroing) use its own memory. */
    uint64_t lock_wait_ns;          /* how long open waits for another process's lock       */
    uint64_t io_deadline_ns;        /* an io older than this is lost                        */
    uint32_t errors_max;            /* failed reads or writes in a row that turn it off     */
    uint64_t probe_ns;              /* pause before it is first tried again, 0 = never      */
    uint32_t reinsert_percent;      /* of a segment's bytes, at most                        */
    uint32_t queue_max;             /* ops waiting, STOREs and LOADs each                   */
    bool prewrite;                  /* write a new log end to end in the background         */
};

struct cairn_tier_stats {
    _Atomic uint64_t loads, stores, tombstones, syncs;
    _Atomic uint64_t read_bytes, written_bytes, reinserted_bytes;
    _Atomic uint64_t retries, io_errors, lost_ios, holes;
    _Atomic uint64_t turned_off, probes; /* by itself; tries to come back */
    _Atomic uint64_t segments_reclaimed;
    _Atomic uint64_t recovered_records, recovery_ns;
    _Atomic uint64_t segments_free, prewritten_bytes;
    _Atomic uint64_t in_flight, quarantined; /* ios now; those of them that were given up */
    _Atomic uint64_t last_store_ns;          /* that went well, 0: none */
    struct cairn_hist load_ns, store_ns, sync_ns;
};

struct cairn_tier_info {
    uint64_t capacity_bytes;
    uint64_t segment_bytes;
    uint32_t segments;
    uint32_t value_max;             /* largest value a segment takes                        */
    uint64_t version_max;           /* highest version seen at recovery                     */
    uint32_t depth;
    const char *engine;
    bool direct;                    /* O_DIRECT granted                                     */
    bool off, stays_off;            /* stays_off: only another open brings it back          */
};

struct cairn_tier_ops {
    const char *name;
    /* Recovers and starts. On failure one sentence in err that names the path and the fix. */
    cairn_status (*open)(const struct cairn_tier_opts *o, const struct cairn_tier_host *host,
                         struct cairn_tier **ret, char *err, size_t err_cap);
    /* CAIRN_BUSY: queue full, nothing kept. CAIRN_STATE: off or closing. */
    cairn_status (*submit)(struct cairn_tier *t, struct cairn_tier_op *op);
    void (*info)(const struct cairn_tier *t, struct cairn_tier_info *ret);
    /* Will the record at `block` be reclaimed after the one at `than`? For host->recovered. */
    bool (*outlives)(const struct cairn_tier *t, uint32_t block, uint32_t than);
    const struct cairn_tier_stats *(*stats)(const struct cairn_tier *t);
    /* Identities seen, kept beside the records (format.h, identity slots): canonical bytes. */
    cairn_status (*ident_put)(struct cairn_tier *t, const void *canon, uint32_t len);
    void (*ident_each)(struct cairn_tier *t, void (*fn)(void *arg, const void *canon, uint32_t len),
                       void *arg);
    /* Completes or fails everything queued, syncs, stops the thread. Within about 10 s. Returns
     * false if the device still holds arena memory (which then must stay mapped). NULL is ok. */
    bool (*close)(struct cairn_tier *t);
};

struct cairn_tier {
    const struct cairn_tier_ops *ops;
};

const struct cairn_tier_ops *cairn_tier_find(const char *name);

/* --- reading a log without opening it for writing (fsck, tests) --- */
struct cairn_fsck_report {
    uint64_t segments, sealed, open, records, tombstones, clears, holes;
    uint64_t bad_headers, bad_payloads, bad_footers, bad_supers;
    uint64_t payload_bytes;
};
/* Reads the whole log read-only and verifies every header, footer and payload. `dump` (may be NULL)
 * gets one JSON object a line: superblocks, heads, footers, records. `progress` (may be NULL) is
 * called with bytes done and total. err as in open. CAIRN_CORRUPT if anything was bad. */
cairn_status cairn_fsck(const char *path, struct cairn_fsck_report *ret,
                        void (*dump)(void *arg, const char *json), void *dump_arg,
                        void (*progress)(void *arg, uint64_t done, uint64_t total),
                        void *progress_arg, char *err, size_t err_cap);

#endif
