/* A disk tier that went off and comes back: it is tried until it works, what it missed is written,
 * and nothing that was not durable is taken for it. */
#include <criterion/criterion.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "storage/figures.h"
#include "storage/store_internal.h"
#include "tests/helpers/box.h"

#define KEYS 24u
#define MS 1000000ull

static void box_init(struct box *b, enum cairn_write_policy write)
{
    *b = (struct box){.path = "back-XXXXXX"};
    int fd = mkstemp(b->path);
    cr_assert_geq(fd, 0);
    close(fd);
    unlink(b->path);
    b->sim = cairn_sim_create(&(struct cairn_sim_opts){.seed = 1});
    b->plan = (struct cairn_fault_plan){.next = &cairn_ioq_sim, .next_arg = b->sim, .seed = 1};
    b->o = (struct cairn_vault_opts){.ram_bytes = 16u << 20,
                                     .disk_bytes = 128u << 20, /* nothing is reclaimed */
                                     .path = b->path,
                                     .policy = "lru",
                                     .engine = "sim",
                                     .write = write,
                                     .ioq = &cairn_ioq_fault,
                                     .ioq_arg = &b->plan,
                                     .lock_wait_ns = RIG_SECOND,
                                     .io_deadline_ns = RIG_PATIENCE,
                                     .errors_max = 4,
                                     .probe_ns = MS,
                                     .reinsert_percent = 10};
    box_open(b);
}

static void power_cut(struct box *b)
{
    struct cairn_sim *after = cairn_sim_power_cut(b->sim, 1);
    cairn_vault_close(b->v);
    cairn_sim_destroy(b->sim);
    b->plan.next_arg = b->sim = after;
    box_open(b);
}

static bool is_off(struct box *b)
{
    struct cairn_vault_figures f;
    cairn_vault_figures(b->v, &f);
    return f.disk_off;
}

static uint64_t counted(struct box *b, size_t offset)
{
    struct cairn_vault_figures f;
    cairn_vault_figures(b->v, &f);
    return atomic_load((const _Atomic uint64_t *)((const char *)f.disk_stats + offset));
}
#define COUNTED(b, name) counted(b, offsetof(struct cairn_tier_stats, name))

static void nap(void)
{
    struct timespec t = cairn_timespec(MS);
    nanosleep(&t, NULL);
}

static void fail(struct box *b, uint32_t kinds)
{
    cairn_fault_arm(&b->plan, &(struct cairn_fault_rule){.fault = CAIRN_FAULT_EIO,
                                                         .kinds = kinds,
                                                         .nth = 1,
                                                         .times = UINT64_MAX});
}

static void put_all(struct box *b, uint64_t first, uint64_t gen)
{
    for (uint64_t id = first; id < first + KEYS; id++)
        cr_assert_eq(put(b, id, gen, CAIRN_PUT_REPLACE), CAIRN_OK, "key %d", (int)id);
}

static void show_all(struct box *b, uint64_t first, uint64_t gen, const char *why)
{
    for (uint64_t id = first; id < first + KEYS; id++)
        cr_assert_eq(shown(b, id), gen, "key %d: %s", (int)id, why);
}

/* Fails everything of these kinds until the tier is off. */
static void turn_off(struct box *b, uint32_t kinds)
{
    fail(b, kinds);
    for (uint64_t id = 0; !is_off(b); id = (id + 1) % KEYS) {
        put(b, 100 + id, 1, 0);
        (void)shown(b, id);
        (void)flush(b);
    }
}

/* It is tried, in vain, and is off still. */
static void stays_off(struct box *b)
{
    uint64_t before = COUNTED(b, probes);
    while (COUNTED(b, probes) < before + 2)
        nap();
    cr_assert(is_off(b), "it fails still");
}

static void comes_back(struct box *b)
{
    cairn_fault_arm(&b->plan, NULL);
    uint64_t until = deadline();
    while (is_off(b)) {
        cr_assert_lt(cairn_now_ns(), until, "it did not come back");
        nap();
    }
}

/* A flush tells once of what was lost meanwhile. */
static void flush_all(struct box *b)
{
    for (int tries = 0; flush(b) != CAIRN_OK; tries++)
        cr_assert_lt(tries, 3);
}

TestSuite(store_back, .timeout = 240);

static void goes_and_comes(uint32_t kinds, enum cairn_write_policy write)
{
    struct box b;
    box_init(&b, write);
    put_all(&b, 0, 1);
    cr_assert_eq(flush(&b), CAIRN_OK);
    if (kinds == CAIRN_FAULT_READS)
        cairn_vault_drop_ram(b.v);
    turn_off(&b, kinds);
    cr_assert_eq(flush(&b), CAIRN_IO);
    stays_off(&b);
    put_all(&b, 200, 2);
    show_all(&b, 200, 2, "put in RAM while the disk is off");
    comes_back(&b);
    cr_assert_eq(COUNTED(&b, turned_off), 1);
    put_all(&b, 300, 3);
    flush_all(&b);
    cairn_vault_drop_ram(b.v);
    show_all(&b, 0, 1, "flushed before");
    show_all(&b, 200, 2, "put while it was off, and flushed since");
    show_all(&b, 300, 3, "flushed since");
    box_reopen(&b);
    show_all(&b, 0, 1, "flushed before, after another start");
    show_all(&b, 200, 2, "put while it was off, after another start");
    show_all(&b, 300, 3, "flushed since, after another start");
    box_fini(&b);
}

Test(store_back, after_writes_that_failed)
{
    goes_and_comes(CAIRN_FAULT_WRITES, CAIRN_WRITE_THROUGH);
}

Test(store_back, after_syncs_that_failed)
{
    goes_and_comes(CAIRN_FAULT_SYNCS, CAIRN_WRITE_THROUGH);
}

Test(store_back, after_reads_that_failed)
{
    goes_and_comes(CAIRN_FAULT_READS, CAIRN_WRITE_THROUGH);
}

Test(store_back, after_everything_failed)
{
    goes_and_comes(0, CAIRN_WRITE_ON_EVICT);
}

/* What was put meanwhile goes to disk without anybody asking for it. */
Test(store_back, writes_what_it_missed)
{
    struct box b;
    box_init(&b, CAIRN_WRITE_THROUGH);
    turn_off(&b, CAIRN_FAULT_WRITES);
    put_all(&b, 200, 2);
    comes_back(&b);
    for (uint64_t id = 200; id < 200 + KEYS; id++) {
        struct cairn_key k = key_of(id);
        while (!(cairn_vault_where(b.v, &k) & CAIRN_ON_DISK))
            nap();
    }
    box_fini(&b);
}

/* Also those behind many that it did not miss. */
Test(store_back, writes_the_last_of_what_it_missed)
{
    enum { MANY = 3000, SMALL = 100, SOME = 5 };
    static uint8_t bytes[SMALL];
    struct cairn_iov iov;
    struct box b;
    box_init(&b, CAIRN_WRITE_THROUGH);
    cairn_vault_close(b.v);
    b.o.ram_bytes = 64u << 20;
    box_open(&b);
    for (uint64_t id = 1000; id < 1000 + MANY; id++) {
        struct cairn_put p = {.key = key_of(id), .value = rig_sgl(&iov, bytes, SMALL)};
        cairn_vault_put(b.v, &p, 1, deadline(), NULL);
        cr_assert_eq(p.status, CAIRN_OK);
        if (id == 1000 + MANY - SOME - 1) {
            cr_assert_eq(flush(&b), CAIRN_OK);
            fail(&b, CAIRN_FAULT_SYNCS);
            cr_assert_eq(flush(&b), CAIRN_IO);
        }
    }
    comes_back(&b);
    for (uint64_t id = 1000 + MANY - SOME; id < 1000 + MANY; id++) {
        struct cairn_key k = key_of(id);
        while (!(cairn_vault_where(b.v, &k) & CAIRN_ON_DISK))
            nap();
    }
    box_fini(&b);
}

/* The device garbles what it is tried with: one superblock stays as it was. */
Test(store_back, trying_it_costs_one_superblock_at_most)
{
    struct box b;
    struct cairn_super_disk s[2];
    box_init(&b, CAIRN_WRITE_THROUGH);
    turn_off(&b, CAIRN_FAULT_WRITES);
    cairn_fault_arm(&b.plan, &(struct cairn_fault_rule){.fault = CAIRN_FAULT_BITFLIP,
                                                         .kinds = CAIRN_FAULT_WRITES,
                                                         .to = sizeof s,
                                                         .nth = 1,
                                                         .times = UINT64_MAX,
                                                         .arg = 999});
    uint64_t before = COUNTED(&b, probes);
    while (COUNTED(&b, probes) < before + 5)
        nap();
    cairn_sim_peek(b.sim, 0, s, sizeof s);
    cr_assert_neq(cairn_super_check(&s[0]) == CAIRN_VERDICT_OK,
                  cairn_super_check(&s[1]) == CAIRN_VERDICT_OK, "one of them was tried");
    comes_back(&b);
    put_all(&b, 0, 2);
    flush_all(&b);
    box_reopen(&b);
    show_all(&b, 0, 2, "flushed");
    box_fini(&b);
}

/* Written, but no sync vouched for it: it is written once more. */
Test(store_back, does_not_trust_what_was_never_synced)
{
    struct box b;
    box_init(&b, CAIRN_WRITE_THROUGH);
    fail(&b, CAIRN_FAULT_SYNCS);
    put_all(&b, 0, 1);
    turn_off(&b, CAIRN_FAULT_SYNCS);
    uint64_t before = COUNTED(&b, stores);
    comes_back(&b);
    flush_all(&b);
    cr_assert_geq(COUNTED(&b, stores), before + KEYS);
    cairn_vault_drop_ram(b.v);
    show_all(&b, 0, 1, "flushed");
    box_fini(&b);
}

/* The device loses its cache, says so to one sync, and works. */
Test(store_back, a_sync_does_not_vouch_for_what_one_before_it_lost)
{
    struct box b;
    box_init(&b, CAIRN_WRITE_THROUGH);
    put_all(&b, 0, 1);
    cr_assert_eq(flush(&b), CAIRN_OK);
    cairn_sim_lose_cache(b.sim, 1);
    cr_assert_eq(put(&b, 50, 1, 0), CAIRN_OK);
    (void)flush(&b);
    cr_assert_eq(COUNTED(&b, turned_off), 1);
    comes_back(&b);
    flush_all(&b);
    cairn_status st = delete(&b, 7);
    cr_assert(st == CAIRN_OK || st == CAIRN_MISS);
    power_cut(&b);
    cr_assert_eq(shown(&b, 50), 1, "flushed");
    cr_assert_eq(shown(&b, 7), 0, "deleted");
    cr_assert_eq(shown(&b, 8), 1, "flushed before");
    box_fini(&b);
}

/* The one before the footer of a segment among them. */
Test(store_back, whichever_sync_of_a_full_segment_loses_it)
{
    for (uint64_t nth = 1; nth <= 8; nth++) {
        struct box b;
        box_init(&b, CAIRN_WRITE_THROUGH);
        cr_assert_eq(flush(&b), CAIRN_OK);
        cairn_sim_lose_cache(b.sim, nth);
        put_all(&b, 0, 1);
        put_all(&b, KEYS, 1);
        put_all(&b, 2 * KEYS, 1);
        for (uint64_t n = 0; n < nth; n++)
            (void)flush(&b);
        comes_back(&b);
        cr_assert_eq(COUNTED(&b, turned_off), 1);
        flush_all(&b);
        power_cut(&b);
        for (uint64_t first = 0; first < 3 * KEYS; first += KEYS)
            show_all(&b, first, 1, "flushed");
        box_fini(&b);
    }
}

static void *flush_thread(void *arg)
{
    return (void *)(uintptr_t)flush(arg);
}

/* It goes and comes while a flush sleeps, which then looked too early. */
Test(store_back, a_flush_notices_that_it_was_off)
{
    struct box b;
    pthread_t flusher;
    void *st;
    box_init(&b, CAIRN_WRITE_NONE);
    cr_assert_eq(flush(&b), CAIRN_OK);
    cr_assert_eq(put(&b, 1, 1, 0), CAIRN_OK);
    uint64_t ticket = b.v->ticket;
    /* The log's thread stops at its next io. */
    pthread_mutex_lock(&b.plan.lock);
    pthread_create(&flusher, NULL, flush_thread, &b);
    for (bool queued = false; !queued; nap()) {
        pthread_mutex_lock(&b.v->lock);
        queued = b.v->ticket != ticket;
        pthread_mutex_unlock(&b.v->lock);
    }
    b.v->host.turned_off(b.v, "for a moment");
    b.v->host.turned_on(b.v);
    pthread_mutex_unlock(&b.plan.lock);
    pthread_join(flusher, &st);
    cr_assert_eq((uintptr_t)st, CAIRN_IO);
    cr_assert_eq(flush(&b), CAIRN_OK);
    box_fini(&b);
}

Test(store_back, what_was_deleted_meanwhile_stays_away)
{
    struct box b;
    box_init(&b, CAIRN_WRITE_THROUGH);
    put_all(&b, 0, 1);
    cr_assert_eq(flush(&b), CAIRN_OK);
    turn_off(&b, CAIRN_FAULT_WRITES);
    for (uint64_t id = 1; id < 6; id++)
        cr_assert_eq(delete(&b, id), CAIRN_IO, "nobody can vouch for it");
    comes_back(&b);
    for (uint64_t id = 1; id < 6; id++)
        cr_assert_eq(shown(&b, id), 0);
    cr_assert_geq(delete(&b, 1), CAIRN_MISS);
    cr_assert_geq(delete(&b, 2), CAIRN_MISS);
    cr_assert_eq(put(&b, 3, 2, 0), CAIRN_OK, "a new value, not what it holds");
    cr_assert_eq(put(&b, 4, 2, CAIRN_PUT_REPLACE), CAIRN_OK);
    cr_assert_eq(put(&b, 10, 2, CAIRN_PUT_REPLACE), CAIRN_OK);
    flush_all(&b);
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(shown(&b, 1), 0, "deleted");
        cr_assert_eq(shown(&b, 2), 0, "deleted");
        cr_assert_eq(shown(&b, 3), 2);
        cr_assert_eq(shown(&b, 4), 2);
        cr_assert_eq(shown(&b, 10), 2);
        cr_assert_eq(shown(&b, 11), 1);
        box_reopen(&b);
    }
    box_fini(&b);
}

/* One failure is enough after it came back, and the pauses grow. */
Test(store_back, goes_again_at_once_if_it_still_fails)
{
    struct box b;
    box_init(&b, CAIRN_WRITE_THROUGH);
    for (uint64_t round = 1; round <= 4; round++) {
        turn_off(&b, CAIRN_FAULT_WRITES);
        cr_assert_eq(COUNTED(&b, turned_off), round);
        comes_back(&b);
        cr_assert_eq(put(&b, 500 + round, round, 0), CAIRN_OK);
        flush_all(&b);
        cr_assert_eq(shown(&b, 500 + round), round);
    }
    box_reopen(&b);
    for (uint64_t round = 1; round <= 4; round++)
        cr_assert_eq(shown(&b, 500 + round), round);
    box_fini(&b);
}

/* What was behind the end is zeros now, tombstones among it, whatever the length says. */
Test(store_back, never_after_its_file_was_cut_off)
{
    struct box b;
    struct cairn_vault_figures f;
    struct stat whole;
    box_init(&b, CAIRN_WRITE_THROUGH);
    cairn_vault_close(b.v);
    unlink(b.path);
    b.o.engine = "pool";
    b.o.ioq = NULL;
    b.o.ioq_arg = NULL;
    box_open(&b);
    put_all(&b, 0, 1);
    cr_assert_eq(flush(&b), CAIRN_OK);
    cairn_vault_drop_ram(b.v);
    cr_assert_eq(stat(b.path, &whole), 0);
    cr_assert_eq(truncate(b.path, 1 << 20), 0);
    for (uint64_t id = 0; !is_off(&b); id = (id + 1) % KEYS)
        cr_assert_eq(shown(&b, id), 0);
    cr_assert_eq(truncate(b.path, whole.st_size), 0);
    for (int i = 0; i < 100; i++)
        nap();
    cairn_vault_figures(b.v, &f);
    cr_assert(f.disk_off && f.disk.stays_off);
    box_fini(&b);
}

/* Random operations while it comes and goes, against what must hold: a byte is right or missing,
 * what a flush vouched for is there, what a delete vouched for is not. */
Test(store_back, whatever_is_done_meanwhile)
{
    enum { OPS = 1600, IDS = 40 };
    uint64_t generation[IDS] = {0}, vouched[IDS];
    bool gone[IDS] = {false};
    struct rng rng = {.state = 12345};
    struct box b;
    box_init(&b, CAIRN_WRITE_THROUGH);
    for (uint64_t op = 1; op <= OPS; op++) {
        uint64_t id = rng_next(&rng) % IDS;
        if (op % 400 == 200)
            fail(&b, 1u << rng_next(&rng) % 3);
        if (op % 400 == 0)
            comes_back(&b);
        switch (rng_next(&rng) % 8) {
        case 0: {
            cairn_status st = delete(&b, id);
            gone[id] = st == CAIRN_OK || st == CAIRN_MISS;
            break;
        }
        case 1: (void)flush(&b); break;
        case 2: cairn_vault_drop_ram(b.v); break;
        case 3:
        case 4: {
            uint64_t got = shown(&b, id);
            cr_assert(got == 0 || (got == generation[id] && !gone[id]), "key %d shows %d of %d",
                      (int)id, (int)got, (int)generation[id]);
            break;
        }
        default:
            if (put(&b, id, op, CAIRN_PUT_REPLACE) != CAIRN_OK)
                break;
            generation[id] = op;
            gone[id] = false;
        }
    }
    comes_back(&b);
    flush_all(&b);
    for (uint64_t i = 0; i < IDS; i++)
        vouched[i] = gone[i] ? 0 : shown(&b, i);
    box_reopen(&b);
    for (uint64_t i = 0; i < IDS; i++) {
        uint64_t got = shown(&b, i);
        cr_assert(!gone[i] || got == 0, "key %d was deleted and is back", (int)i);
        cr_assert(!vouched[i] || got == vouched[i], "key %d was flushed", (int)i);
    }
    box_fini(&b);
}
