/* Power cuts and a lost read in the middle of reclaim, at a moment that is chosen and not drawn. */
#include <criterion/criterion.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "storage/format.h"
#include "tests/helpers/rig.h"

#define VALUE_LEN 60000u
#define SUBJECT 1u

static struct cairn_sim *device;
static bool armed;

/* The write that makes a segment void: zeros where its head was. */
static bool voids_a_head(const struct cairn_io *io)
{
    static const uint8_t zeros[2 * CAIRN_BLOCK];

    return io->kind == CAIRN_IO_WRITE && io->len == 2 * CAIRN_BLOCK &&
           io->off >= CAIRN_DATA_OFFSET &&
           (io->off - CAIRN_DATA_OFFSET) % CAIRN_SEGMENT_MIN == 0 &&
           memcmp(io->buf, zeros, sizeof(zeros)) == 0;
}

/* While armed the power goes just before that write. */
static bool guillotine_submit(struct cairn_ioq *q, struct cairn_io *io)
{
    if (armed && voids_a_head(io))
        cairn_sim_die_after(device, 1);
    return cairn_ioq_sim.submit(q, io);
}

static struct cairn_ioq_ops under_test;

static cairn_status under_test_open(const struct cairn_ioq_params *p, struct cairn_ioq **ret)
{
    cairn_status s = cairn_ioq_sim.open(p, ret);

    if (!s)
        (*ret)->ops = &under_test;
    return s;
}

/* The device keeps the first reads, and answers them when it is asked to. Without the time at which
 * they were submitted they are late at once. */
static struct cairn_io *kept;
static atomic_uint to_keep;
static atomic_bool give_back;

static bool keeper_submit(struct cairn_ioq *q, struct cairn_io *io)
{
    if (io->kind == CAIRN_IO_READ && atomic_load(&to_keep) > 0) {
        atomic_fetch_sub(&to_keep, 1);
        kept = io;
        return true;
    }
    if (atomic_exchange(&give_back, false))
        cr_assert(cairn_ioq_sim.submit(q, kept));
    return cairn_ioq_sim.submit(q, io);
}

static uint64_t deadline(void)
{
    return cairn_deadline_ns(RIG_PATIENCE);
}

static struct cairn_vault *open_store(const char *path)
{
    struct cairn_vault_opts o = {.ram_bytes = 4u << 20,
                                 .disk_bytes = 32u << 20,
                                 .path = path,
                                 .policy = "lru",
                                 .engine = "sim",
                                 .ioq = &under_test,
                                 .ioq_arg = device,
                                 .lock_wait_ns = RIG_SECOND,
                                 .io_deadline_ns = RIG_SECOND,
                                 .errors_max = 1000,
                                 .reinsert_percent = 10};
    struct cairn_vault *v = NULL;
    char err[512] = "";

    cr_assert_eq(cairn_vault_open(&o, &v, err, sizeof(err)), CAIRN_OK, "%s", err);
    return v;
}

static cairn_status put(struct cairn_vault *v, uint64_t id)
{
    static uint8_t bytes[VALUE_LEN];
    struct cairn_iov iov;
    struct cairn_put p = {.value = rig_sgl(&iov, bytes, VALUE_LEN)};

    value_fill(bytes, id, 1, 0, VALUE_LEN);
    value_key(id, p.key.bytes);
    return cairn_vault_put(v, &p, 1, deadline(), NULL);
}

static cairn_status get(struct cairn_vault *v, uint64_t id)
{
    static uint8_t bytes[VALUE_LEN];
    struct cairn_iov iov;
    struct cairn_get g = {.out = rig_sgl(&iov, bytes, VALUE_LEN)};

    value_key(id, g.key.bytes);
    cairn_vault_get(v, &g, 1, deadline(), NULL);
    if (g.status == CAIRN_OK)
        cr_assert_eq(value_check(bytes, id, 1, 0, VALUE_LEN), VALUE_LEN);
    return g.status;
}

static double stat_number(struct cairn_vault *v, const char *name)
{
    static char text[1u << 16];
    char quoted[64];

    cairn_vault_stats(v, 0, text, sizeof(text));
    snprintf(quoted, sizeof(quoted), "\"%s\":", name);
    const char *at = strstr(text, quoted);
    cr_assert(at, "no %s in the statistics", name);
    return strtod(at + strlen(quoted), NULL);
}

/* The disk after the cut, of all possible ones, on which the segment's head is still there. */
static struct cairn_sim *with_head(struct cairn_sim *dead)
{
    for (uint64_t seed = 1;; seed++) {
        struct cairn_head_disk head;
        struct cairn_sim *after = cairn_sim_power_cut(dead, seed);

        cairn_sim_peek(after, CAIRN_DATA_OFFSET, &head, sizeof(head));
        if (head.magic == CAIRN_MAGIC_SEGMENT)
            return after;
        cairn_sim_destroy(after);
        cr_assert_lt(seed, 1000);
    }
}

/* A name for a log that is not there yet. */
static void new_path(char *path)
{
    int fd = mkstemp(path);

    cr_assert_geq(fd, 0);
    close(fd);
    unlink(path);
}

/* A new device, whose ios go through this. */
static void new_device(bool (*submit)(struct cairn_ioq *q, struct cairn_io *io))
{
    under_test = cairn_ioq_sim;
    under_test.open = under_test_open;
    under_test.submit = submit;
    device = cairn_sim_create(&(struct cairn_sim_opts){.seed = 1});
}

/* A value was carried over and the power went before its old segment did: both copies are found.
 * When the old segment goes the value must stay known, or its delete buries no other copy. */
Test(store_reclaim, a_value_carried_twice_stays_deleted, .timeout = 120)
{
    char path[] = "reclaim-XXXXXX";
    struct cairn_key subject;
    cairn_status status;
    uint64_t id = SUBJECT;

    new_path(path);
    new_device(guillotine_submit);
    value_key(SUBJECT, subject.bytes);
    armed = true;

    struct cairn_vault *v = open_store(path);
    cr_assert_eq(put(v, id++), CAIRN_OK);
    cr_assert_eq(cairn_vault_flush(v, deadline()), CAIRN_OK);
    cr_assert_eq(get(v, SUBJECT), CAIRN_OK);
    while (!cairn_sim_dead(device)) {
        put(v, id++);
        if (id % 16 == 0)
            (void)cairn_vault_flush(v, deadline());
        cr_assert_lt(id, 2000);
    }
    cr_assert_gt(stat_number(v, "reinserted_bytes"), 0);
    struct cairn_sim *after = with_head(device);
    cairn_vault_close(v);
    cairn_sim_destroy(device);
    device = after;
    armed = false;

    v = open_store(path);
    while (stat_number(v, "segments_reclaimed") < 2) {
        cr_assert_eq(put(v, id++), CAIRN_OK);
        if (id % 16 == 0)
            cr_assert_eq(cairn_vault_flush(v, deadline()), CAIRN_OK);
        cr_assert_lt(id, 4000);
    }
    cairn_vault_delete(v, &subject, 1, deadline(), &status);
    cr_assert_eq(status, CAIRN_OK, "the copy that was carried over is known: %d", status);
    cairn_vault_close(v);

    v = open_store(path);
    cr_assert_eq(cairn_vault_lookup(v, &subject, 1), 0);
    cr_assert_eq(get(v, SUBJECT), CAIRN_MISS);
    cairn_vault_close(v);
    cairn_sim_destroy(device);
    unlink(path);
}

static void go_round(struct cairn_vault *v, uint64_t *id, double segments)
{
    double until = stat_number(v, "segments_reclaimed") + segments;
    while (stat_number(v, "segments_reclaimed") < until) {
        cr_assert_eq(put(v, (*id)++), CAIRN_OK);
        if (*id % 16 == 0)
            cr_assert_eq(cairn_vault_flush(v, deadline()), CAIRN_OK);
    }
}

Test(store_reclaim, a_list_that_the_device_keeps_holds_up_nobody, .timeout = 120)
{
    char path[] = "reclaim-XXXXXX";
    uint64_t id = SUBJECT;

    new_path(path);
    new_device(keeper_submit);
    struct cairn_vault *v = open_store(path);
    atomic_store(&to_keep, 1);
    go_round(v, &id, 3);
    cr_assert_eq(atomic_load(&to_keep), 0);
    cr_assert_eq(stat_number(v, "lost_ios"), 1);
    atomic_store(&give_back, true);
    go_round(v, &id, 3);
    cr_assert_not(atomic_load(&give_back));
    cr_assert_eq(get(v, id - 1), CAIRN_OK);
    cairn_vault_close(v);
    cairn_sim_destroy(device);
    unlink(path);
}
