/* Inside of the NVMe tier: shared by log_*.c and tier_nvme.c, nobody else.
 *
 * Everything here belongs to the tier's thread, but for the inbox (its mutex) and the identity
 * slots (their mutex). Open and close touch the rest only while that thread does not run.
 *
 *   submit -> inbox -> rq -> load   -> ios -> done        log_read.c
 *                   -> wq -> unit   -> ios -> fifo -> done  log_write.c
 *   segments: FREE -> PREPARING -> READY -> OPEN -> SEALING -> SEALED -> RECLAIMING -> FREE
 *                                                          log_segment.c, log_reclaim.c
 */
#ifndef CAIRN_STORAGE_NVME_H
#define CAIRN_STORAGE_NVME_H

#include <pthread.h>
#include <sys/types.h>

#include "storage/tier.h"

#define NVME_IOS 128u        /* ios that the device may hold, lost ones included              */
#define NVME_IOS_LOST 32u    /* so many lost ones and the device counts as dead                */
#define NVME_LOADS 64u
#define NVME_UNITS 256u
#define NVME_STAGES 6u       /* buffers that small records are gathered in                     */
#define NVME_FOOTERS 3u      /* segments that are open or being sealed                         */
#define NVME_PIECE (1u << 20) /* bytes of one io of a large record                             */
#define NVME_DEPTH 4u        /* pieces being read at once when nothing was measured           */
#define NVME_DEPTH_MAX 8u
#define NVME_SCRATCH (512u << 10)
#define NVME_SEG_NONE UINT32_MAX
#define NVME_SEG_GONE (UINT32_MAX - 1) /* of a footer whose memory the device never gave back */
#define NVME_SUMS_LEFT 8u    /* lost reads of footers; after more, reclaim stands still          */
#define NVME_FREE_MIN 2u     /* segments kept free so that appending never waits               */

struct cairn_nvme;
struct nvme_io;

typedef void (*nvme_io_fn)(struct cairn_nvme *t, struct nvme_io *x);

/* What an io counts as while the device holds it. */
enum nvme_io_load { NVME_LOAD_NONE, NVME_LOAD_READ, NVME_LOAD_WRITE };

/* One io. done is called once: with the result (res 0 or -errno, short ios continued and errors
 * tried twice), or with lost set when the device did not answer in time. In that case late is
 * called (if it is set) when it does. The io is free again after whichever comes last. */
struct nvme_io {
    struct cairn_io io;
    nvme_io_fn done, late;
    void *arg;
    uint32_t aux;
    uint32_t len;
    uint8_t load;      /* enum nvme_io_load              */
    int32_t res;
    uint8_t tries;
    bool active, lost;
    struct nvme_io *next;
    void *block;       /* 4 KiB of its own, for headers  */
};

struct nvme_ops_list {
    struct cairn_tier_op *head, *tail;
};

struct nvme_waiter {
    struct nvme_waiter *next;
    void (*fn)(struct cairn_nvme *t, struct nvme_waiter *w, bool ok);
};

enum nvme_seg_state {
    SEG_FREE,
    SEG_PREPARING, /* its head is being written                          */
    SEG_READY,     /* head durable, nothing in it                        */
    SEG_OPEN,
    SEG_SEALING,
    SEG_SEALED,
    SEG_RECLAIMING,
    SEG_SKIPPED,   /* cannot be read, or a lost write may still hit it    */
};

struct nvme_seg {
    uint32_t generation;
    uint8_t state;
    bool blank;       /* never opened                                     */
    bool broken;      /* a place in it cannot be stepped over: no appends  */
    bool no_footer;   /* sealed in memory only: found by its headers       */
    bool guessed;     /* recovery knows its life from elsewhere than its head */
    uint32_t next;    /* first block without a record                      */
    uint32_t count;   /* records, holes included, second copies not                           */
    uint32_t done;    /* records below it are completely written           */
    uint32_t mark;    /* done when the sync in flight was started          */
    uint32_t synced;  /* records below it are durable                      */
    uint32_t units;   /* not yet out of the fifo                           */
    uint32_t pins;    /* loads reading it                                  */
    uint32_t lost;    /* writes to it that the device never answered       */
};

/* Summaries of a segment that is open or being sealed, and the steps of sealing. */
struct nvme_footer {
    uint32_t seg;     /* NVME_SEG_NONE: free                               */
    uint8_t step;
    bool failed;
    uint32_t flying, gone; /* ios; of them lost                            */
    uint64_t issued, bytes;
    struct nvme_waiter waiter;
    struct cairn_summary_disk *sums; /* and behind them room for the trailer */
};

struct nvme_load {
    struct nvme_load *next;
    struct cairn_tier_op *op;   /* NULL: answered, the device still owes ios */
    struct cairn_record_disk *image;
    uint32_t blocks;
    uint32_t seg, generation;
    uint64_t from, end;         /* image bytes that are read behind the header block          */
    uint64_t issued;            /* next byte to ask for; 0: nothing yet                       */
    uint32_t piece;             /* bytes of an io                                             */
    uint32_t flying;
    uint8_t tries;
    bool header_ok, bad;
    enum cairn_cause cause;
    uint64_t waiting[2];        /* ios that came before the header, by their number           */
    uint64_t ahead[2];          /* ios that are verified while one before them is not         */
    uint64_t good;              /* image bytes from `from` up to here are verified            */
    uint64_t kept;              /* of them, what a second try does not read again             */
};

enum nvme_unit_state { UNIT_WRITING, UNIT_HOLING, UNIT_WRITTEN, UNIT_FAILED };

/* What is written as one run: a record from the arena, or small ones gathered in a stage.
 * Units are completed in the order in which they got their place. seg NONE: a SYNC. */
struct nvme_unit {
    struct nvme_unit *next;       /* in the fifo                       */
    struct nvme_unit *next_issue; /* not all of it is issued yet       */
    struct nvme_ops_list ops;
    uint32_t seg, block, blocks;
    uint32_t first, count;        /* its summaries                     */
    uint8_t state;
    bool bad;        /* a write failed: becomes a hole                 */
    bool stuck;      /* nor could the hole be written, or a write lost */
    bool popped;
    uint8_t *buf;
    uint32_t stage;  /* UINT32_MAX: buf is an image of the arena       */
    uint64_t issued;
    uint32_t flying, lost;
    struct cairn_record_disk *orphan; /* its op was answered: goes back by image_back */
};

enum nvme_reclaim_step {
    RECLAIM_IDLE,
    RECLAIM_LIST,  /* its footer is read                       */
    RECLAIM_WALK,  /* or else its headers                      */
    RECLAIM_BUSY,  /* an io or an op is under way              */
    RECLAIM_CHOOSE,
    RECLAIM_PICK,  /* the next record to carry over            */
    RECLAIM_PINS,  /* readers finish                           */
    RECLAIM_KILL,  /* it is made void, durably                 */
    RECLAIM_TELL,  /* the host forgets what is left            */
};

struct nvme_reclaim {
    uint8_t step;
    bool gone;          /* no new readers                      */
    bool listed;        /* sums names every record             */
    bool carried;
    uint32_t seg;
    uint32_t count, at;
    uint64_t issued, bytes;
    uint32_t flying, lost;
    bool failed;
    struct cairn_summary_disk *sums; /* and behind them room for the trailer */
    struct cairn_summary_disk *left[NVME_SUMS_LEFT]; /* earlier ones, that the device has */
    uint32_t left_count;
    struct cairn_record_disk *image; /* of the record being carried          */
    uint32_t image_blocks;
    bool image_busy;                 /* lost to the device                   */
    struct cairn_tier_op op;
    struct nvme_waiter waiter;
};

/* Of a tier that is off. */
struct nvme_probe {
    uint64_t at_ns, pause_ns;  /* when the device is tried, and how long after the last time     */
    uint64_t back_ns;          /* when it came back, or last did not                             */
    uint64_t sequence;         /* of the superblock that is tried                                */
    uint64_t failed_off;       /* of the last write that failed                                  */
    bool flying;
    _Atomic bool never;        /* the file is another, or the tier ends                          */
};

struct cairn_nvme {
    struct cairn_tier tier;
    struct cairn_tier_opts o;
    struct cairn_tier_host host;
    struct cairn_tier_stats stats;
    struct cairn_tier_info info;
    char *path;
    int fd;
    dev_t dev;
    ino_t ino;
    bool created;      /* the file is ours and holds nothing yet */

    struct cairn_log_shape shape;
    uint32_t seg_blocks;
    uint32_t session;
    uint32_t generation_next, generation_reserved;
    uint64_t super_sequence, created_ns;
    /* Sequence of the newest superblock that was written, was when the sync in flight was started,
     * is durable. */
    uint64_t super_landed, super_mark, super_durable;
    uint32_t closed_generation, closed_block; /* for the last superblock */
    uint32_t whole_generation, whole_block;   /* the same, as the last close left it */
    void *scratch;     /* 512 KiB while the loop does not run, then the zeros to prewrite with */
    uint32_t prewritten;
    bool super_writing, super_dirty;
    uint64_t version_max;

    struct cairn_ioq *q;
    struct nvme_io *ios;
    void *io_blocks;
    struct nvme_io *ios_free, *stalled;
    uint32_t out, lost_out;         /* ios with the device; of them lost        */
    uint32_t reads_out, writes_out; /* of loads and units                       */
    uint64_t read_bytes_out, write_bytes_out;
    uint32_t streak[3];             /* failures in a row, by kind               */
    struct nvme_probe probe;
    uint64_t read_seen_bytes;      /* out when readers were last seen */
    uint64_t read_seen_ns;

    struct nvme_seg *segs;
    uint32_t seg_open, seg_ready, seg_preparing;
    uint32_t free_count;
    uint32_t floor;    /* generations below it were reclaimed       */
    struct nvme_footer footers[NVME_FOOTERS];
    size_t footer_room;
    struct nvme_waiter prepare_waiter;

    struct nvme_ops_list rq, wq;
    struct nvme_load *loads, *loads_free, *loads_active;
    struct nvme_unit *units, *units_free;
    struct nvme_unit *fifo_head, *fifo_tail, *issue_head, *issue_tail;
    void *stages_memory;
    uint8_t *stages;
    uint32_t stages_free;           /* bit set                                  */
    bool failed;                    /* a store failed since the last SYNC       */

    bool sync_out;
    uint64_t unsynced;              /* bytes                                    */
    struct nvme_ops_list sync_wait, sync_fly;
    struct nvme_waiter *waiters, *waiters_fly;

    struct nvme_reclaim reclaim;
    struct {
        uint32_t seg;
        uint64_t at;
        bool flying;
    } prewrite;

    bool closing;
    uint64_t close_by_ns, io_look_ns;
    uint64_t busy_ns;               /* last seen with something to do           */
    uint64_t deadline_next;         /* of all ops held                          */

    struct cairn_nvme *held_next;
    pthread_t thread;
    pthread_mutex_t lock;           /* inbox and the words below it             */
    pthread_cond_t changed;
    struct nvme_ops_list inbox;
    bool off, close_asked, ready, finished, held;
    cairn_status open_status;
    char err[512];
    _Atomic uint32_t queued[3];     /* LOADs, STOREs, the rest                  */

    pthread_mutex_t ident_lock;
    struct cairn_ident_disk *idents;
    uint64_t ident_dirty;           /* bit set of slots to be written           */
    uint64_t ident_sequence;
    bool ident_writing, ident_pending; /* the thread's                    */
};

/* --- tier_nvme.c --- */
void nvme_op_done(struct cairn_nvme *t, struct cairn_tier_op *op, cairn_status st,
                  enum cairn_cause cause);
void nvme_image_back(struct cairn_nvme *t, struct cairn_record_disk *image, uint32_t blocks);
void nvme_turn_off(struct cairn_nvme *t, const char *why);
void nvme_list_push(struct nvme_ops_list *l, struct cairn_tier_op *op);
void nvme_list_push_front(struct nvme_ops_list *l, struct cairn_tier_op *op);
struct cairn_tier_op *nvme_list_pop(struct nvme_ops_list *l);
void nvme_watch(struct cairn_nvme *t, uint64_t deadline_ns);
cairn_status nvme_fail(struct cairn_nvme *t, cairn_status st, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static inline void nvme_count(_Atomic uint64_t *c, uint64_t n)
{
    atomic_fetch_add_explicit(c, n, memory_order_relaxed);
}

/* --- log_io.c --- */
cairn_status nvme_io_open(struct cairn_nvme *t);
struct nvme_io *nvme_io_take(struct cairn_nvme *t);
/* Gives back an io that was not started. */
void nvme_io_give(struct cairn_nvme *t, struct nvme_io *x);
void nvme_io_start(struct cairn_nvme *t, struct nvme_io *x, enum cairn_io_kind kind, uint64_t off,
                   void *buf, uint32_t len);
/* Settles what the queue returns: finished ios (for nvme_io_finish) into out. */
uint32_t nvme_io_poll(struct cairn_nvme *t, struct nvme_io **out, uint32_t cap);
void nvme_io_finish(struct cairn_nvme *t, struct nvme_io *x);
/* Declares lost what is too old. Returns when to look again. */
uint64_t nvme_io_expire(struct cairn_nvme *t, uint64_t now);
/* The next failure of any kind turns the tier off. */
void nvme_io_last_chance(struct cairn_nvme *t);
/* Runs the queue until *flying is 0: only while the loop does not run (open, close). */
void nvme_io_drain(struct cairn_nvme *t, const uint32_t *flying);
/* One io, waited for; only while the loop does not run. */
int nvme_io_now(struct cairn_nvme *t, enum cairn_io_kind kind, uint64_t off, void *buf,
                uint32_t len);

/* --- log_health.c --- */
/* Says when the device is tried next. */
void nvme_probe_plan(struct cairn_nvme *t, uint64_t now);
void nvme_probe_pump(struct cairn_nvme *t, uint64_t now);
/* A sync that failed may have lost what it was for, and later ones do not say so: of what was not
 * synced by then nothing in the segment of f counts as being on disk. */
void nvme_distrust(struct cairn_nvme *t, struct nvme_footer *f);
/* The device has nothing of ours and works: the tier is on again. */
void nvme_come_back(struct cairn_nvme *t);

/* --- log_file.c --- */
cairn_status nvme_file_open(struct cairn_nvme *t);
void nvme_file_close(struct cairn_nvme *t);
/* False, and a reason, if the path is another file now or the file is too short. */
bool nvme_file_intact(const struct cairn_nvme *t, char *why, size_t why_cap);
/* Reads the superblocks, or formats a new file; reserves generations and a session. */
cairn_status nvme_super_open(struct cairn_nvme *t);
void nvme_super_image(struct cairn_nvme *t, struct cairn_super_disk *ret);
uint64_t nvme_super_off(uint64_t sequence);
void nvme_super_pump(struct cairn_nvme *t);
cairn_status nvme_ident_load(struct cairn_nvme *t);
void nvme_ident_pump(struct cairn_nvme *t);
cairn_status nvme_ident_put(struct cairn_tier *tier, const void *canon, uint32_t len);
void nvme_ident_each(struct cairn_tier *tier,
                     void (*fn)(void *arg, const void *canon, uint32_t len), void *arg);

/* --- log_recover.c --- */
cairn_status nvme_recover(struct cairn_nvme *t);

/* --- log_read.c --- */
void nvme_reads_start(struct cairn_nvme *t);
void nvme_reads_expire(struct cairn_nvme *t, uint64_t now);
static inline bool nvme_reading(const struct cairn_nvme *t)
{
    return t->loads_active || t->rq.head;
}

/* --- log_write.c --- */
void nvme_writes_start(struct cairn_nvme *t, uint64_t now);
void nvme_writes_pop(struct cairn_nvme *t);
void nvme_writes_expire(struct cairn_nvme *t, uint64_t now);
void nvme_sync_want(struct cairn_nvme *t, struct nvme_waiter *w);
void nvme_sync_pump(struct cairn_nvme *t);
void nvme_loc_fill(const struct cairn_nvme *t, struct cairn_record_loc_disk *l, uint32_t seg,
                   uint32_t block, uint32_t blocks, enum cairn_record_kind kind);
void nvme_hole_fill(const struct cairn_nvme *t, struct cairn_record_disk *r, uint32_t seg,
                    uint32_t block, uint32_t blocks);
struct nvme_footer *nvme_footer_of(struct cairn_nvme *t, uint32_t seg);
/* Is it that of a segment? */
static inline bool nvme_footer_live(const struct nvme_footer *f)
{
    return f->seg != NVME_SEG_NONE && f->seg != NVME_SEG_GONE;
}

/* --- log_segment.c --- */
static inline uint32_t nvme_seg_first(const struct cairn_nvme *t, uint32_t seg)
{
    return cairn_segment_first(&t->shape, seg);
}
/* The open segment if `blocks` more fit, else the next one; NONE: none is ready yet. */
uint32_t nvme_seg_room(struct cairn_nvme *t, uint32_t blocks);
/* Is none ready, nor any that could be made so, before reclaim lets one go? */
static inline bool nvme_segs_out(const struct cairn_nvme *t)
{
    return t->seg_ready == NVME_SEG_NONE && t->seg_preparing == NVME_SEG_NONE &&
           t->free_count == 0;
}
void nvme_seg_break(struct cairn_nvme *t, uint32_t seg);
void nvme_segs_pump(struct cairn_nvme *t);
void nvme_seg_set(struct cairn_nvme *t, uint32_t seg, enum nvme_seg_state state);
/* A lost write to it came back. */
void nvme_seg_landed(struct cairn_nvme *t, uint32_t seg);
void nvme_head_fill(struct cairn_nvme *t, struct cairn_head_disk *h, uint32_t seg);
/* Lays the trailer behind the summaries of f: f->bytes from f->sums on go to *ret_block. */
void nvme_footer_build(struct cairn_nvme *t, struct nvme_footer *f, uint32_t *ret_block);

/* --- log_reclaim.c --- */
void nvme_reclaim_pump(struct cairn_nvme *t);
void nvme_prewrite_pump(struct cairn_nvme *t, uint64_t now);
bool nvme_carrying(const struct cairn_nvme *t, const struct cairn_tier_op *op);
/* Is what is being carried over wanted still? */
bool nvme_carry_wanted(struct cairn_nvme *t);

#endif
