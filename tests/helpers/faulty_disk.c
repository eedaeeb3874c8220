/* Faults below a whole library: linked with --wrap=cairn_ioq_find, so that every store of
 * the process has the fault decorator over its I/O engine. CAIRN_TEST_FAULTS=SEED:PPM says of how
 * many of a million ios of the log's data each kind of fault takes; without it there are none.
 * Errors, delays and lies; no io is lost, which would turn the disk off. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "storage/format.h"
#include "storage/ioq_fault.h"

#define TAKEN (sizeof(taken) / sizeof(taken[0]))

static struct cairn_fault_plan plan = {.lock = PTHREAD_MUTEX_INITIALIZER, .off = true};
static struct cairn_ioq_ops faulty;

static const struct {
    enum cairn_fault fault;
    const char *name;
    uint32_t kinds, share; /* of PPM, in percent */
} taken[] = {
    {CAIRN_FAULT_BITFLIP, "flipped", CAIRN_FAULT_READS, 100},
    {CAIRN_FAULT_BITFLIP, NULL, CAIRN_FAULT_WRITES, 25},
    {CAIRN_FAULT_TORN, "torn", CAIRN_FAULT_WRITES, 25},
    {CAIRN_FAULT_MISDIRECT, "misdirected", CAIRN_FAULT_READS, 25},
    /* What fails is tried once more: of these few are errors in the end. */
    {CAIRN_FAULT_EIO, "failed", CAIRN_FAULT_READS | CAIRN_FAULT_WRITES, 200},
    {CAIRN_FAULT_SHORT, "short", CAIRN_FAULT_READS | CAIRN_FAULT_WRITES, 100},
    {CAIRN_FAULT_DELAY, "late", 0, 200},
    {CAIRN_FAULT_REORDER, "out of order", 0, 200},
};

const struct cairn_ioq_ops *__real_cairn_ioq_find(const char *name);
const struct cairn_ioq_ops *__wrap_cairn_ioq_find(const char *name);

static cairn_status open_faulty(const struct cairn_ioq_params *p, struct cairn_ioq **ret)
{
    struct cairn_ioq_params over = *p;
    plan.next_arg = p->arg;
    over.arg = &plan;
    cairn_status s = cairn_ioq_fault.open(&over, ret);
    if (s == CAIRN_OK)
        (*ret)->ops = &faulty;
    return s;
}

/* A store that cannot read its log does not open, and tests nothing: all is well until then. */
static bool submit_faulty(struct cairn_ioq *q, struct cairn_io *io)
{
    if (io->kind == CAIRN_IO_WRITE && io->off >= CAIRN_DATA_OFFSET)
        atomic_store(&plan.off, false);
    return cairn_ioq_fault.submit(q, io);
}

/* At the end of a process that ends as it should. */
static void tell(void)
{
    char text[256];
    size_t at = 0;
    for (size_t i = 0; i < TAKEN; i++)
        if (taken[i].name)
            at += (size_t)snprintf(text + at, sizeof(text) - at, ", %" PRIu64 " %s",
                                   atomic_load(&plan.hit[taken[i].fault]), taken[i].name);
    fprintf(stderr, "faults: %" PRIu64 " ios%s\n",
            atomic_load(&plan.seen[0]) + atomic_load(&plan.seen[1]) + atomic_load(&plan.seen[2]),
            text);
}

static void plan_read(const char *given)
{
    uint64_t ppm;
    if (sscanf(given, "%" SCNu64 ":%" SCNu64, &plan.seed, &ppm) != 2 || ppm > 250000) {
        fprintf(stderr, "CAIRN_TEST_FAULTS is '%s'; give SEED:PPM, at most 250000\n", given);
        abort();
    }
    for (size_t i = 0; i < TAKEN; i++)
        plan.rules[plan.rule_count++] = (struct cairn_fault_rule){
            .fault = taken[i].fault,
            .kinds = taken[i].kinds,
            .from = CAIRN_DATA_OFFSET,
            .to = UINT64_MAX,
            .ppm = (uint32_t)(ppm * taken[i].share / 100),
            .arg = CAIRN_FAULT_RANDOM,
        };
}

const struct cairn_ioq_ops *__wrap_cairn_ioq_find(const char *name)
{
    const char *given = getenv("CAIRN_TEST_FAULTS");
    plan.next = __real_cairn_ioq_find(name);
    if (!given || !plan.next)
        return plan.next;
    if (!faulty.open) {
        plan_read(given);
        faulty = cairn_ioq_fault;
        faulty.open = open_faulty;
        faulty.submit = submit_faulty;
        (void)atexit(tell);
    }
    return &faulty;
}
