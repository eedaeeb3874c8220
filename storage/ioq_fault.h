/* Faults as a decorator over any I/O engine: the same vtable, params.arg = the plan.
 *
 * Rules say which ios are hit, by count ("the 3rd write") or by chance (drawn from the seed).
 * Compiled into tests only.
 */
#ifndef CAIRN_STORAGE_IOQ_FAULT_H
#define CAIRN_STORAGE_IOQ_FAULT_H

#include <pthread.h>
#include <stdatomic.h>

#include "storage/ioq.h"

enum cairn_fault {
    CAIRN_FAULT_EIO,      /* not done, -EIO                                                     */
    CAIRN_FAULT_ENOSPC,   /* not done, -ENOSPC                                                  */
    CAIRN_FAULT_SHORT,    /* only the first arg bytes (down to 4 KiB) are moved and reported    */
    CAIRN_FAULT_ZERO,     /* nothing is moved, res 0 (a sync too: a disk that lies)             */
    CAIRN_FAULT_DELAY,    /* starts arg ns late: reads land in a buffer, writes on disk, late   */
    CAIRN_FAULT_LOST,     /* done, and the completion never comes                               */
    CAIRN_FAULT_GONE,     /* not done, and the completion never comes                           */
    CAIRN_FAULT_REORDER,  /* done; reported after arg others, or 20 ms                          */
    CAIRN_FAULT_BITFLIP,  /* bit arg of what is read or written is flipped                      */
    CAIRN_FAULT_MISDIRECT,/* done arg bytes further on, reported as done                        */
    CAIRN_FAULT_TORN,     /* only the first arg blocks of 4 KiB are written; reported as done   */
    CAIRN_FAULT_TORN_EIO, /* the same, reported as -EIO                                         */
    CAIRN_FAULT_COUNT
};

#define CAIRN_FAULT_READS (1u << CAIRN_IO_READ)
#define CAIRN_FAULT_WRITES (1u << CAIRN_IO_WRITE)
#define CAIRN_FAULT_SYNCS (1u << CAIRN_IO_SYNC)
#define CAIRN_FAULT_RULES 16u
#define CAIRN_FAULT_RANDOM UINT64_MAX

struct cairn_fault_rule {
    enum cairn_fault fault;
    uint32_t kinds;    /* CAIRN_FAULT_READS | ...; 0 = all                                */
    uint64_t from, to; /* only ios that touch these bytes of the file; to 0 = everywhere  */
    uint64_t nth;      /* the nth match is hit, 1 = the first; 0 = by chance              */
    uint64_t times;    /* this many matches from the nth on; 0 = one, UINT64_MAX = all    */
    uint32_t ppm;      /* by chance: of a million matches                                 */
    uint64_t arg;      /* CAIRN_FAULT_RANDOM: drawn (a delay up to 20 ms)                 */
};

/* Outlives its queues; one queue at a time. */
struct cairn_fault_plan {
    const struct cairn_ioq_ops *next;
    void *next_arg;
    uint64_t seed;
    struct cairn_fault_rule rules[CAIRN_FAULT_RULES]; /* the first one that hits counts */
    uint32_t rule_count;
    pthread_mutex_t lock;                             /* of both, once a queue is open  */
    _Atomic bool off;                                 /* ios pass untouched             */

    _Atomic uint64_t seen[3];                         /* ios by kind                    */
    _Atomic uint64_t hit[CAIRN_FAULT_COUNT];
    _Atomic uint64_t matched[CAIRN_FAULT_RULES];      /* set to 0 to count from here    */
};

extern const struct cairn_ioq_ops cairn_ioq_fault;

/* One rule in the place of all others, NULL = none, while ios run; its matches count from 0. */
void cairn_fault_arm(struct cairn_fault_plan *plan, const struct cairn_fault_rule *rule);

#endif
