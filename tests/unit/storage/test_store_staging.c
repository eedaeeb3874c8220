/* A device that is slow to write: puts are refused at once when what waits for it fills the RAM,
 * and gets from disk go on in what is kept for them. */
#include <stdatomic.h>
#include <stdlib.h>

#include "tests/helpers/box.h"

#define OLD 10u        /* keys 1 to 10 are only on disk           */
#define NEW 100u       /* the first key that cannot be written    */
#define PARKED_MAX 256u

/* While held, writes stay in the device. */
static atomic_bool held;
static struct cairn_io *parked[PARKED_MAX];
static uint32_t parked_count;
static struct cairn_ioq_ops slow;

static bool slow_submit(struct cairn_ioq *q, struct cairn_io *io)
{
    if (!atomic_load(&held) || io->kind != CAIRN_IO_WRITE)
        return cairn_ioq_sim.submit(q, io);
    cr_assert_lt(parked_count, PARKED_MAX);
    parked[parked_count++] = io;
    return true;
}

static uint32_t slow_poll(struct cairn_ioq *q, struct cairn_io **done, uint32_t cap)
{
    while (parked_count > 0 && !atomic_load(&held) &&
           cairn_ioq_sim.submit(q, parked[parked_count - 1]))
        parked_count--;
    return cairn_ioq_sim.poll(q, done, cap);
}

static void slow_wait(struct cairn_ioq *q, uint64_t deadline_ns)
{
    uint64_t soon = cairn_deadline_ns(RIG_SECOND / 1000);
    cairn_ioq_sim.wait(q, parked_count && soon < deadline_ns ? soon : deadline_ns);
}

static cairn_status slow_open(const struct cairn_ioq_params *p, struct cairn_ioq **ret)
{
    cairn_status st = cairn_ioq_sim.open(p, ret);
    if (!st)
        (*ret)->ops = &slow;
    return st;
}

static void setup(struct box *b)
{
    *b = (struct box){.path = "staging-XXXXXX"};
    int fd = mkstemp(b->path);
    cr_assert_geq(fd, 0);
    close(fd);
    unlink(b->path);
    slow = cairn_ioq_sim;
    slow.open = slow_open;
    slow.submit = slow_submit;
    slow.poll = slow_poll;
    slow.wait = slow_wait;
    b->sim = cairn_sim_create(&(struct cairn_sim_opts){.seed = 1});
    b->o = (struct cairn_vault_opts){.ram_bytes = 4u << 20,
                                     .disk_bytes = 32u << 20,
                                     .path = b->path,
                                     .policy = "s3fifo",
                                     .engine = "sim",
                                     .ioq = &slow,
                                     .ioq_arg = b->sim,
                                     .lock_wait_ns = RIG_SECOND,
                                     .io_deadline_ns = RIG_PATIENCE,
                                     .errors_max = 1000,
                                     .reinsert_percent = 10};
    box_open(b);
}

/* The timeout of the test is shorter than any deadline here: what waits, fails. */
Test(store_staging, puts_leave_room_for_gets_from_disk, .timeout = 100)
{
    struct box b;
    uint64_t end = NEW;
    setup(&b);
    for (uint64_t id = 1; id <= OLD; id++)
        cr_assert_eq(put(&b, id, 1, 0), CAIRN_OK);
    cr_assert_eq(flush(&b), CAIRN_OK);
    cairn_vault_drop_ram(b.v);
    atomic_store(&held, true);
    cairn_status st;
    while ((st = put(&b, end, 1, 0)) == CAIRN_OK)
        cr_assert_lt(++end, NEW + 40);
    cr_assert_eq(st, CAIRN_NOSPACE, "status %d", st);
    cr_assert_geq(end, NEW + 20, "%d values of 4 MiB RAM were taken", (int)(end - NEW));
    for (int twice = 0; twice < 2; twice++) {
        for (uint64_t id = 1; id <= OLD; id++)
            cr_assert_eq(shown(&b, id), 1, "key %d", (int)id);
        for (uint64_t id = NEW; id < end; id++)
            cr_assert_eq(shown(&b, id), 1, "what cannot be written was dropped");
        cr_assert_eq(put(&b, end, 1, 0), CAIRN_NOSPACE);
    }
    atomic_store(&held, false);
    cr_assert_eq(flush(&b), CAIRN_OK);
    cr_assert_eq(put(&b, end, 1, 0), CAIRN_OK);
    cairn_vault_drop_ram(b.v);
    for (uint64_t id = NEW; id < end; id++)
        cr_assert_eq(shown(&b, id), 1);
    box_fini(&b);
}
