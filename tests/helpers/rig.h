/* What the store's plain test programs share: options, a directory, one way to fail. */
#ifndef CAIRN_TESTS_RIG_H
#define CAIRN_TESTS_RIG_H

#include <stdio.h>

#include "storage/ioq_fault.h"
#include "storage/store.h"
#include "tests/helpers/value.h"
#include "tests/sim/ioq_sim.h"

#define RIG_SECOND 1000000000ull
/* Longer than any wait on a loaded machine: running into it is a failure. */
#define RIG_PATIENCE (120 * RIG_SECOND)

struct rig {
    const char *program;
    uint64_t seed, ops;
    const char *engine;      /* uring, pool, sim */
    struct cairn_vault_opts o;
    struct cairn_vault *vault;
    struct cairn_sim *sim;   /* engine sim */
    bool cuts;               /* --cuts: the power may go (engine sim)  */
    uint32_t faults;         /* --faults=PPM: so many of a million ios fail, of each kind */
    struct cairn_fault_plan plan;
    char dir[256], path[300];
    struct rng rng;
};

/* Parses --seed --ops --engine --write --verify --policy --ram --disk (MiB) --cuts --faults,
 * makes the directory, prints the seed. Exits with 77 when the engine cannot run here. */
void rig_init(struct rig *r, int argc, char **argv);
void rig_open(struct rig *r);
void rig_close(struct rig *r);
/* Cuts the power (again, if it is gone already), closes, and goes on with what the disk kept. */
void rig_power_cycle(struct rig *r);
/* Removes the directory. */
void rig_fini(struct rig *r);

/* Prints the seed with the message and ends the program. */
_Noreturn void rig_fail(const struct rig *r, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

static inline struct cairn_sgl rig_sgl(struct cairn_iov *iov, void *base, size_t len)
{
    *iov = (struct cairn_iov){.base = base, .len = len};
    return (struct cairn_sgl){.iov = iov, .count = 1, .mem = CAIRN_MEM_HOST};
}

#endif
