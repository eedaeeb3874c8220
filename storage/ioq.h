/* Seam between the log and the device: a queue of reads, writes and syncs on one file.
 *
 * Engines ("uring", "pool"; tests add "sim") and decorators (fault) are vtables in ioq_registry.c.
 * One owner thread calls everything but `wake`: open may run on another thread, the first one to
 * call after it becomes the owner, and it must be the one that calls close. Contract:
 *  1. Every accepted io is returned by poll exactly once, or never (a dead device): its buffer
 *     belongs to the queue until then, however long that is.
 *  2. submit never blocks on the device; false = full, nothing was kept.
 *  3. res = bytes moved (may be short) or -errno; a sync's res is 0 or -errno. A sync covers the
 *     writes returned by poll before it was submitted.
 *  4. wait sleeps until a completion, a wake() from any thread, or the deadline. A wake is kept
 *     until a wait returns for it, whatever poll does in between; wait may also return for nothing.
 *  5. Accepted ios start at the latest in the next poll or wait, so that several start as one; a
 *     poll with cap 0 does just that.
 */
#ifndef CAIRN_STORAGE_IOQ_H
#define CAIRN_STORAGE_IOQ_H

#include <stdbool.h>

#include "base/types.h"

enum cairn_io_kind { CAIRN_IO_READ, CAIRN_IO_WRITE, CAIRN_IO_SYNC };

struct cairn_io {
    enum cairn_io_kind kind;
    uint32_t len;       /* bytes, a multiple of 4 KiB            */
    uint64_t off;       /* bytes in the file, a multiple of 4 KiB */
    void *buf;          /* 4 KiB aligned                         */
    int32_t res;
    uint64_t submitted_ns; /* set by submit                      */
    void *owner;        /* the submitter's                       */
    struct cairn_io *next; /* the queue's while it holds the io  */
};

struct cairn_ioq;

struct cairn_ioq_params {
    int fd;             /* O_DIRECT where the file allows it; borrowed until close */
    uint32_t depth;     /* most ios in flight                                      */
    void *region;       /* memory that all large buffers lie in: registered if the */
    size_t region_len;  /* engine can, never required                              */
    void *arg;          /* the engine's own (sim: its device; fault: its plan)     */
};

struct cairn_ioq_ops {
    const char *name;
    /* Can it run here? Writes the reason why not. */
    bool (*probe)(char *why, size_t why_cap);
    cairn_status (*open)(const struct cairn_ioq_params *p, struct cairn_ioq **ret);
    bool (*submit)(struct cairn_ioq *q, struct cairn_io *io);
    uint32_t (*poll)(struct cairn_ioq *q, struct cairn_io **done, uint32_t cap);
    void (*wait)(struct cairn_ioq *q, uint64_t deadline_ns);
    void (*wake)(struct cairn_ioq *q); /* any thread, never blocks */
    /* Ends within about 1 s even when ios never complete. Returns false if some are still out: then
     * the memory that they point to must never be reused or unmapped in this process, the file's
     * lock must be left to the kernel to drop (the engine keeps the file description alive until
     * the device answers; no LOCK_UN), and the calling thread must not be joined: the kernel holds
     * its exit back for as long. The struct cairn_io themselves are the caller's again either way.
     * NULL is ok. */
    bool (*close)(struct cairn_ioq *q);
};

/* First member of every implementation. */
struct cairn_ioq {
    const struct cairn_ioq_ops *ops;
};

extern const struct cairn_ioq_ops cairn_ioq_uring, cairn_ioq_pool;

/* By name; NULL if there is none. "auto" = the best one whose probe succeeds. */
const struct cairn_ioq_ops *cairn_ioq_find(const char *name);
/* All engines compiled in, best first; count in *n. */
const struct cairn_ioq_ops *const *cairn_ioq_all(uint32_t *n);

/* Smallest depth (2, 4 or 8) that reads `len`-byte blocks of the file at >= 95 % of the best
 * rate seen, measured in about 60 ms into the first 8 * len bytes of region; 4 if the file or the
 * region is too small to tell, or reads fail. Only extents that were written once tell anything.
 * 0: reads never came back; they are still out, so region must not be used (see close). */
uint32_t cairn_ioq_measure_depth(const struct cairn_ioq_ops *ops, int fd, void *region,
                                 size_t region_len, uint64_t file_len, uint32_t len);

#endif
