/* Interleavings that a model meets once in a long while, at a moment that is chosen: the log's
 * thread is held just before an io of a test's choice, or a tombstone's sync stays in the device
 * for as long as the test wants. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "storage/format.h"
#include "tests/helpers/rig.h"

#define SUBJECT 1u
/* One a segment, with room left for a tombstone. */
#define BIG 600000u
#define SMALL 4096u
#define GETTERS 8u
#define KEYS_EACH 64u

struct box {
    struct cairn_vault_opts o;
    struct cairn_vault *v;
    char path[64];
};

enum gate { GATE_OPEN, GATE_ARMED, GATE_HELD };

static struct cairn_sim *device;
static atomic_int gate;
static bool (*chosen)(const struct cairn_io *io);
static struct cairn_ioq_ops held_ops;

/* Syncs stay in the device while it is parking, once a tombstone was written. */
static atomic_bool parking;
static atomic_uint tombstones_written, parked;
static struct cairn_io *parked_io;

static bool is_tombstone(const struct cairn_io *io)
{
    const struct cairn_record_disk *r = io->buf;
    return io->kind == CAIRN_IO_WRITE && r->loc.magic == CAIRN_MAGIC_RECORD &&
           r->loc.kind == CAIRN_RECORD_TOMBSTONE;
}

static bool held_submit(struct cairn_ioq *q, struct cairn_io *io)
{
    if (io->kind == CAIRN_IO_SYNC && atomic_load(&parking) &&
        atomic_load(&tombstones_written) > 0) {
        cr_assert_null(parked_io, "two syncs at once");
        parked_io = io;
        atomic_fetch_add(&parked, 1);
        return true;
    }
    if (atomic_load(&gate) == GATE_ARMED && chosen(io)) {
        atomic_store(&gate, GATE_HELD);
        while (atomic_load(&gate) == GATE_HELD)
            usleep(1000);
    }
    return cairn_ioq_sim.submit(q, io);
}

/* How many syncs were to be let go so far. */
static atomic_uint let_go, went;

static uint32_t held_poll(struct cairn_ioq *q, struct cairn_io **done, uint32_t cap)
{
    if (parked_io && atomic_load(&went) < atomic_load(&let_go)) {
        struct cairn_io *io = parked_io;
        parked_io = NULL;
        atomic_fetch_add(&went, 1);
        cr_assert(cairn_ioq_sim.submit(q, io));
    }
    uint32_t n = cairn_ioq_sim.poll(q, done, cap);
    for (uint32_t i = 0; i < n; i++)
        atomic_fetch_add(&tombstones_written, is_tombstone(done[i]));
    return n;
}

static void held_wait(struct cairn_ioq *q, uint64_t deadline_ns)
{
    uint64_t soon = cairn_deadline_ns(RIG_SECOND / 1000);
    cairn_ioq_sim.wait(q, parked_io && soon < deadline_ns ? soon : deadline_ns);
}

/* From here on syncs of tombstones stay in the device: nothing before it is under way. */
static void park(void)
{
    atomic_store(&tombstones_written, 0);
    atomic_store(&parked, 0);
    atomic_store(&let_go, 0);
    atomic_store(&went, 0);
    atomic_store(&parking, true);
}

static void await(const atomic_uint *count, unsigned n)
{
    while (atomic_load(count) < n)
        usleep(1000);
}

static void unpark(void)
{
    atomic_store(&parking, false);
    atomic_store(&let_go, UINT32_MAX);
}

static cairn_status held_open(const struct cairn_ioq_params *p, struct cairn_ioq **ret)
{
    cairn_status st = cairn_ioq_sim.open(p, ret);
    if (!st)
        (*ret)->ops = &held_ops;
    return st;
}

static void gate_await(void)
{
    while (atomic_load(&gate) != GATE_HELD)
        usleep(1000);
}

static uint64_t deadline(void)
{
    return cairn_deadline_ns(RIG_PATIENCE);
}

static void box_open(struct box *b)
{
    char err[512] = "";
    cr_assert_eq(cairn_vault_open(&b->o, &b->v, err, sizeof err), CAIRN_OK, "%s", err);
}

static void box_init(struct box *b, enum cairn_write_policy write)
{
    *b = (struct box){.path = "moments-XXXXXX"};
    int fd = mkstemp(b->path);
    cr_assert_geq(fd, 0);
    close(fd);
    unlink(b->path);
    held_ops = cairn_ioq_sim;
    held_ops.open = held_open;
    held_ops.submit = held_submit;
    held_ops.poll = held_poll;
    held_ops.wait = held_wait;
    device = cairn_sim_create(&(struct cairn_sim_opts){.seed = 1});
    b->o = (struct cairn_vault_opts){.ram_bytes = 16u << 20,
                                     .disk_bytes = 32u << 20,
                                     .path = b->path,
                                     .write = write,
                                     .policy = "lru",
                                     .engine = "sim",
                                     .ioq = &held_ops,
                                     .ioq_arg = device,
                                     .lock_wait_ns = RIG_SECOND,
                                     .io_deadline_ns = RIG_PATIENCE,
                                     .errors_max = 4};
    box_open(b);
}

static void box_fini(struct box *b)
{
    cairn_vault_close(b->v);
    cairn_sim_destroy(device);
    unlink(b->path);
}

static struct cairn_key key_of(uint64_t id)
{
    struct cairn_key k;
    value_key(id, k.bytes);
    return k;
}

static void put(struct box *b, uint64_t id, size_t len)
{
    static uint8_t bytes[BIG];
    struct cairn_iov iov;
    struct cairn_put p = {.key = key_of(id), .value = rig_sgl(&iov, bytes, len)};
    value_fill(bytes, id, 1, 0, len);
    cr_assert_eq(cairn_vault_put(b->v, &p, 1, deadline(), NULL), CAIRN_OK, "%d: %d", (int)id,
                 p.cause);
}

static cairn_status get(struct box *b, uint64_t id, size_t len)
{
    static uint8_t bytes[BIG];
    struct cairn_iov iov;
    struct cairn_get g = {.key = key_of(id), .out = rig_sgl(&iov, bytes, len)};
    cairn_vault_get(b->v, &g, 1, deadline(), NULL);
    return g.status;
}

static bool holds(struct box *b, uint64_t id)
{
    struct cairn_key k = key_of(id);
    return cairn_vault_lookup(b->v, &k, 1) == 1;
}

/* --- a write that overtakes a delete --- */

static bool after_tombstone;

static bool sync_of_tombstone(const struct cairn_io *io)
{
    if (is_tombstone(io))
        after_tombstone = true;
    return after_tombstone && io->kind == CAIRN_IO_SYNC;
}

static void *deletes(void *arg)
{
    struct box *b = arg;
    struct cairn_key k = key_of(SUBJECT);
    cairn_status st;
    cairn_vault_delete(b->v, &k, 1, deadline(), &st);
    cr_assert_eq(st, CAIRN_OK);
    return NULL;
}

/* A value whose disk copy was forgotten is put again and deleted; while the tombstone is under way
 * a flush wants to write the new copy. It must not come to lie behind the tombstone: with the
 * tombstone's segment the delete would be forgotten. */
Test(store_moments, a_flush_does_not_write_behind_a_tombstone, .timeout = 240)
{
    struct box b;
    pthread_t deleter;
    box_init(&b, CAIRN_WRITE_ON_EVICT);
    put(&b, SUBJECT, BIG);
    cr_assert_eq(cairn_vault_flush(b.v, deadline()), CAIRN_OK);
    cairn_sim_flip(device, CAIRN_DATA_OFFSET + 3u * CAIRN_BLOCK, 5);
    cr_assert_gt(cairn_vault_drop_ram(b.v), 0);
    cr_assert_eq(get(&b, SUBJECT, BIG), CAIRN_MISS);
    put(&b, SUBJECT, BIG);

    chosen = sync_of_tombstone;
    atomic_store(&gate, GATE_ARMED);
    cr_assert_eq(pthread_create(&deleter, NULL, deletes, &b), 0);
    gate_await();
    (void)cairn_vault_flush(b.v, cairn_deadline_ns(RIG_SECOND / 10));
    atomic_store(&gate, GATE_OPEN);
    pthread_join(deleter, NULL);
    cr_assert(!holds(&b, SUBJECT));

    for (uint64_t id = SUBJECT + 1; id < 40; id++) {
        put(&b, id, BIG);
        cairn_vault_close(b.v);
        box_open(&b);
        cr_assert(!holds(&b, SUBJECT), "back after %d more", (int)id);
    }
    box_fini(&b);
}

/* --- two puts of a key in doubt --- */

struct putter {
    struct box *b;
    pthread_t thread;
    uint64_t gen;
    cairn_status status;
};

static void *puts_one(void *arg)
{
    struct putter *p = arg;
    uint8_t bytes[SMALL];
    struct cairn_iov iov;
    struct cairn_put put = {.key = key_of(SUBJECT), .value = rig_sgl(&iov, bytes, SMALL)};
    value_fill(bytes, SUBJECT, p->gen, 0, SMALL);
    cairn_vault_put(p->b->v, &put, 1, deadline(), NULL);
    p->status = put.status;
    return NULL;
}

/* A delete is given up while its tombstone is under way: the key is in doubt. */
static void make_doubt(struct box *b)
{
    struct cairn_key k = key_of(SUBJECT);
    cairn_status st;
    put(b, SUBJECT, SMALL);
    cr_assert_eq(cairn_vault_flush(b->v, deadline()), CAIRN_OK);
    park();
    cairn_vault_delete(b->v, &k, 1, cairn_deadline_ns(RIG_SECOND / 20), &st);
    cr_assert_eq(st, CAIRN_TIMEOUT);
    unpark();
    (void)cairn_vault_flush(b->v, deadline()); /* says once that a tombstone failed */
    cr_assert_eq(cairn_vault_flush(b->v, deadline()), CAIRN_OK);
}

/* Each buries what was before it. The first one's value is being written when the second one's
 * tombstone is durable: that put keeps it, as a put of a held key does, and must not bury it. */
Test(store_moments, puts_of_a_key_in_doubt_do_not_bury_each_other, .timeout = 240)
{
    struct box b;
    static uint8_t bytes[SMALL];
    box_init(&b, CAIRN_WRITE_THROUGH);
    make_doubt(&b);
    struct putter first = {.b = &b, .gen = 2}, second = {.b = &b, .gen = 3};
    park();
    cr_assert_eq(pthread_create(&first.thread, NULL, puts_one, &first), 0);
    await(&parked, 1);
    cr_assert_eq(pthread_create(&second.thread, NULL, puts_one, &second), 0);
    await(&tombstones_written, 2);
    atomic_store(&let_go, 1);
    pthread_join(first.thread, NULL);
    cr_assert_eq(first.status, CAIRN_OK);
    unpark();
    pthread_join(second.thread, NULL);
    cr_assert_eq(second.status, CAIRN_EXISTS);
    cr_assert_eq(cairn_vault_flush(b.v, deadline()), CAIRN_OK);
    for (int again = 0; again < 2; again++) {
        struct cairn_iov iov;
        struct cairn_get g = {.key = key_of(SUBJECT), .out = rig_sgl(&iov, bytes, SMALL)};
        cairn_vault_get(b.v, &g, 1, deadline(), NULL);
        cr_assert_eq(g.status, CAIRN_OK, "flushed, and gone after %d restarts", again);
        cr_assert_eq(value_check(bytes, SUBJECT, 2, 0, SMALL), SMALL);
        cairn_vault_close(b.v);
        box_open(&b);
    }
    box_fini(&b);
}

/* --- a replacement whose tombstone something overtakes --- */

static void *replaces_one(void *arg)
{
    struct putter *p = arg;
    uint8_t bytes[SMALL];
    struct cairn_iov iov;
    struct cairn_put put = {.key = key_of(SUBJECT), .value = rig_sgl(&iov, bytes, SMALL),
                            .flags = CAIRN_PUT_REPLACE};
    value_fill(bytes, SUBJECT, p->gen, 0, SMALL);
    cairn_vault_put(p->b->v, &put, 1, deadline(), NULL);
    p->status = put.status;
    return NULL;
}

/* Reading it fails, so the index forgets it; on the disk it is whole again afterwards. */
static void forget(struct box *b, uint32_t block)
{
    uint64_t at = CAIRN_DATA_OFFSET + (block + 1u) * (uint64_t)CAIRN_BLOCK;
    cr_assert_gt(cairn_vault_drop_ram(b->v), 0);
    cairn_sim_flip(device, at, 5);
    cr_assert_eq(get(b, SUBJECT, SMALL), CAIRN_MISS);
    cairn_sim_flip(device, at, 5);
    cr_assert(!holds(b, SUBJECT));
}

static bool record_of_a_value(const struct cairn_io *io)
{
    const struct cairn_record_disk *r = io->buf;
    return io->kind == CAIRN_IO_WRITE && r->loc.magic == CAIRN_MAGIC_RECORD &&
           r->loc.kind == CAIRN_RECORD_VALUE;
}

/* While the tombstone of a replacement is under way the value drops out of the index, is put again,
 * written, and drops out again. The replacement shows, and the power goes before it is written:
 * what it replaced must not be there. */
Test(store_moments, what_was_put_and_forgotten_under_a_replacement_is_dead, .timeout = 240)
{
    struct box b;
    static uint8_t bytes[SMALL];
    box_init(&b, CAIRN_WRITE_THROUGH);
    put(&b, SUBJECT, SMALL); /* generation 1, in blocks 1 and 2 */
    cr_assert_eq(cairn_vault_flush(b.v, deadline()), CAIRN_OK);
    struct putter replacer = {.b = &b, .gen = 2};
    park();
    cr_assert_eq(pthread_create(&replacer.thread, NULL, replaces_one, &replacer), 0);
    await(&parked, 1);
    forget(&b, 1);
    put(&b, SUBJECT, SMALL); /* behind both copies of the tombstone: blocks 5 and 6 */
    struct cairn_key k = key_of(SUBJECT);
    while (!(cairn_vault_where(b.v, &k) & CAIRN_ON_DISK))
        usleep(1000);
    forget(&b, 5);
    chosen = record_of_a_value;
    atomic_store(&gate, GATE_ARMED);
    unpark();
    pthread_join(replacer.thread, NULL);
    cr_assert_eq(replacer.status, CAIRN_OK);
    gate_await();
    struct cairn_sim *after = cairn_sim_power_cut(device, 1);
    atomic_store(&gate, GATE_OPEN);
    cairn_vault_close(b.v);
    cairn_sim_destroy(device);
    b.o.ioq_arg = device = after;
    box_open(&b);
    struct cairn_iov iov;
    struct cairn_get g = {.key = key_of(SUBJECT), .out = rig_sgl(&iov, bytes, SMALL)};
    cairn_vault_get(b.v, &g, 1, deadline(), NULL);
    cr_assert_eq(g.status, CAIRN_MISS);
    box_fini(&b);
}

/* --- a delete that something overtakes --- */

/* While its tombstone is under way the value drops out of the index: what was held is deleted all
 * the same, and that is why it is not held. */
Test(store_moments, a_delete_overtaken_by_a_loss_is_told_as_a_delete, .timeout = 240)
{
    struct box b;
    pthread_t deleter;
    uint64_t age;
    struct cairn_key k = key_of(SUBJECT);
    box_init(&b, CAIRN_WRITE_THROUGH);
    put(&b, SUBJECT, BIG);
    cr_assert_eq(cairn_vault_flush(b.v, deadline()), CAIRN_OK);
    cr_assert_gt(cairn_vault_drop_ram(b.v), 0);
    cairn_sim_flip(device, CAIRN_DATA_OFFSET + 3u * CAIRN_BLOCK, 5);
    park();
    cr_assert_eq(pthread_create(&deleter, NULL, deletes, &b), 0);
    await(&parked, 1);
    cr_assert_eq(get(&b, SUBJECT, BIG), CAIRN_MISS, "damaged");
    cr_assert(!holds(&b, SUBJECT));
    cr_assert_eq(cairn_vault_drop_cause(b.v, &k, &age), CAIRN_CAUSE_CHECKSUM);
    unpark();
    pthread_join(deleter, NULL);
    cr_assert_eq(cairn_vault_drop_cause(b.v, &k, &age), CAIRN_CAUSE_DELETED);
    box_fini(&b);
}

/* --- a put while its key's old value is being cleared --- */

static bool record_of_a_clear(const struct cairn_io *io)
{
    const struct cairn_record_disk *r = io->buf;
    return io->kind == CAIRN_IO_WRITE && r->loc.magic == CAIRN_MAGIC_RECORD &&
           r->loc.kind == CAIRN_RECORD_CLEAR;
}

struct clearer {
    struct box *b;
    pthread_t thread;
    uint16_t space;
};

static void *clears(void *arg)
{
    const struct clearer *c = arg;
    cr_assert_eq(cairn_vault_clear_space(c->b->v, c->space, deadline()), CAIRN_OK);
    return NULL;
}

/* The old value is as good as gone, so the new one is stored, and stays when the clear is over. */
static void put_under_clear(uint16_t space)
{
    struct box b;
    struct cairn_room room;
    enum cairn_cause cause;
    struct cairn_commit old = {.key = key_of(SUBJECT), .space = space};
    struct putter put = {.b = &b, .gen = 2};
    struct clearer clearer = {.b = &b, .space = space};
    box_init(&b, CAIRN_WRITE_ON_EVICT);
    cr_assert_eq(cairn_vault_room(b.v, SMALL, 0, &room), CAIRN_OK);
    value_fill(room.value, SUBJECT, 1, 0, SMALL);
    cr_assert_eq(cairn_vault_commit(b.v, &room, &old, deadline(), &cause), CAIRN_OK);
    chosen = record_of_a_clear;
    atomic_store(&gate, GATE_ARMED);
    cr_assert_eq(pthread_create(&clearer.thread, NULL, clears, &clearer), 0);
    gate_await();
    puts_one(&put);
    atomic_store(&gate, GATE_OPEN);
    pthread_join(clearer.thread, NULL);
    cr_assert_eq(put.status, CAIRN_OK, "%d, and not held", put.status);
    cr_assert(holds(&b, SUBJECT));
    box_fini(&b);
}

Test(store_moments, a_put_under_a_clear_is_no_put_of_what_is_cleared, .timeout = 240)
{
    put_under_clear(0);
    put_under_clear(1);
}

/* --- as many loads as there are ops --- */

static bool any_read(const struct cairn_io *io)
{
    return io->kind == CAIRN_IO_READ;
}

struct getter {
    struct box *b;
    pthread_t thread;
    uint64_t first;
    size_t hits;
};

static void *gets_many(void *arg)
{
    struct getter *g = arg;
    struct cairn_get gets[KEYS_EACH];
    struct cairn_iov iovs[KEYS_EACH];
    uint8_t *bytes = malloc(KEYS_EACH * (size_t)SMALL);
    for (uint32_t i = 0; i < KEYS_EACH; i++)
        gets[i] = (struct cairn_get){.key = key_of(g->first + i),
                                     .out = rig_sgl(&iovs[i], bytes + (size_t)i * SMALL, SMALL)};
    cairn_vault_get(g->b->v, gets, KEYS_EACH, deadline(), &g->hits);
    free(bytes);
    return NULL;
}

/* The op that the first load gives back goes to the write that waits for one. */
Test(store_moments, a_put_finds_all_ops_reading, .timeout = 240)
{
    struct box b;
    struct getter getters[GETTERS];
    const uint64_t count = GETTERS * KEYS_EACH;
    box_init(&b, CAIRN_WRITE_THROUGH);
    for (uint64_t id = 1; id <= count; id++)
        put(&b, id, SMALL);
    cr_assert_eq(cairn_vault_flush(b.v, deadline()), CAIRN_OK);
    cr_assert_eq(cairn_vault_drop_ram(b.v), count * SMALL);
    chosen = any_read;
    atomic_store(&gate, GATE_ARMED);
    for (uint32_t i = 0; i < GETTERS; i++) {
        getters[i] = (struct getter){.b = &b, .first = 1 + i * KEYS_EACH};
        cr_assert_eq(pthread_create(&getters[i].thread, NULL, gets_many, &getters[i]), 0);
    }
    for (uint64_t id = 1; id <= count; id++) {
        struct cairn_key k = key_of(id);
        while (!(cairn_vault_where(b.v, &k) & CAIRN_IN_RAM))
            usleep(1000);
    }
    put(&b, count + 1, SMALL);
    atomic_store(&gate, GATE_OPEN);
    for (uint32_t i = 0; i < GETTERS; i++) {
        pthread_join(getters[i].thread, NULL);
        cr_assert_eq(getters[i].hits, KEYS_EACH);
    }
    cr_assert_eq(cairn_vault_flush(b.v, deadline()), CAIRN_OK);
    box_fini(&b);
}

/* --- a tier that goes off while values wait to leave --- */

static bool any_record(const struct cairn_io *io)
{
    const struct cairn_record_disk *r = io->buf;
    return io->kind == CAIRN_IO_WRITE && r->loc.magic == CAIRN_MAGIC_RECORD;
}

/* Half of what is to leave is with the tier and half is queued, and a flush waits to queue the
 * rest: nothing of it may keep its room once nobody writes any more. */
Test(store_moments, what_was_to_leave_leaves_without_a_disk_too, .timeout = 240)
{
    struct box b;
    uint64_t id = 1, before = 2000;
    box_init(&b, CAIRN_WRITE_ON_EVICT);
    chosen = any_record;
    atomic_store(&gate, GATE_ARMED);
    for (; id <= before; id++)
        put(&b, id, SMALL);
    gate_await();
    cairn_sim_die_after(device, 1);
    atomic_store(&gate, GATE_OPEN);
    cr_assert_eq(cairn_vault_flush(b.v, deadline()), CAIRN_IO);
    for (; id <= 3 * before; id++)
        put(&b, id, SMALL);
    for (uint64_t old = 1; old <= before; old++)
        cr_assert(!holds(&b, old), "%d stays for ever", (int)old);
    box_fini(&b);
}

/* --- a log that has no segment left for what reclaim carries over --- */

/* Of a record: footers are at the end of a segment, the head at its start. */
static bool record_read(const struct cairn_io *io)
{
    uint64_t at = (io->off - CAIRN_DATA_OFFSET) % CAIRN_SEGMENT_MIN;
    return io->kind == CAIRN_IO_READ && at > 0 && at < CAIRN_SEGMENT_MIN / 8 * 7;
}

/* While reclaim reads what it carries over, the queue takes the last segments. What is carried must
 * not wait for one that only reclaim can free. */
Test(store_moments, reclaim_does_not_wait_for_itself, .timeout = 240)
{
    struct box b;
    static uint8_t bytes[50000];
    box_init(&b, CAIRN_WRITE_THROUGH);
    cairn_vault_close(b.v);
    b.o.ram_bytes = 64u << 20;
    b.o.reinsert_percent = 50;
    box_open(&b);
    chosen = record_read;
    atomic_store(&gate, GATE_ARMED);
    uint64_t id = 1;
    for (uint32_t more = 0; more < 500 && id < 20000; id++) {
        struct cairn_iov iov;
        struct cairn_put p = {.key = key_of(id), .value = rig_sgl(&iov, bytes, sizeof bytes)};
        if (cairn_vault_put(b.v, &p, 1, deadline(), NULL))
            usleep(1000);
        more += atomic_load(&gate) == GATE_HELD;
    }
    atomic_store(&gate, GATE_OPEN);
    cr_assert_eq(cairn_vault_flush(b.v, cairn_deadline_ns(20 * RIG_SECOND)), CAIRN_OK);
    box_fini(&b);
}
