/* Writes and tombstones whose end nobody knows. In doubt a key is a miss, never in the way of a new
 * value, and no flush vouches for it; memory that a device may still read is left alone. */
#include <criterion/criterion.h>
#include <stdatomic.h>
#include <unistd.h>

#define LEN 200000u
#include "tests/helpers/box.h"

#define KEYS 6u
#define OUT_MAX 256u

/* What the device may be reading, as a queue sees it: an io is out until it is polled. */
static struct {
    const char *buf[OUT_MAX];
    uint32_t len[OUT_MAX], count;
    atomic_uint doubled; /* writes of memory that an earlier write may still read */
} out;

static struct cairn_ioq_ops watching;

static bool watch_submit(struct cairn_ioq *q, struct cairn_io *io)
{
    const char *buf = io->buf;
    if (io->kind == CAIRN_IO_WRITE && !cairn_ioq_fault.submit(q, io))
        return false;
    if (io->kind != CAIRN_IO_WRITE)
        return cairn_ioq_fault.submit(q, io);
    for (uint32_t i = 0; i < out.count; i++)
        if (buf < out.buf[i] + out.len[i] && out.buf[i] < buf + io->len)
            atomic_fetch_add(&out.doubled, 1);
    cr_assert_lt(out.count, OUT_MAX);
    out.buf[out.count] = buf;
    out.len[out.count++] = io->len;
    return true;
}

static uint32_t watch_poll(struct cairn_ioq *q, struct cairn_io **done, uint32_t cap)
{
    uint32_t n = cairn_ioq_fault.poll(q, done, cap);
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t at = 0; done[i]->kind == CAIRN_IO_WRITE && at < out.count; at++) {
            if (out.buf[at] != done[i]->buf)
                continue;
            out.buf[at] = out.buf[--out.count];
            out.len[at] = out.len[out.count];
            break;
        }
    }
    return n;
}

static cairn_status watch_open(const struct cairn_ioq_params *p, struct cairn_ioq **ret)
{
    cairn_status st = cairn_ioq_fault.open(p, ret);
    out.count = 0;
    if (!st)
        (*ret)->ops = &watching;
    return st;
}

static void box_init(struct box *b)
{
    *b = (struct box){.path = "doubt-XXXXXX"};
    int fd = mkstemp(b->path);
    cr_assert_geq(fd, 0);
    close(fd);
    unlink(b->path);
    watching = cairn_ioq_fault;
    watching.open = watch_open;
    watching.submit = watch_submit;
    watching.poll = watch_poll;
    b->sim = cairn_sim_create(&(struct cairn_sim_opts){.seed = 1});
    b->plan = (struct cairn_fault_plan){.next = &cairn_ioq_sim, .next_arg = b->sim, .seed = 1};
    b->o = (struct cairn_vault_opts){.ram_bytes = 16u << 20,
                                     .disk_bytes = 32u << 20,
                                     .path = b->path,
                                     .policy = "lru",
                                     .engine = "sim",
                                     .ioq = &watching,
                                     .ioq_arg = &b->plan,
                                     .lock_wait_ns = RIG_SECOND,
                                     .io_deadline_ns = RIG_PATIENCE,
                                     .errors_max = 1000,
                                     .reinsert_percent = 10};
    box_open(b);
}

static void writes(struct box *b, enum cairn_fault fault, uint64_t arg)
{
    cairn_fault_arm(&b->plan, &(struct cairn_fault_rule){.fault = fault,
                                                         .kinds = CAIRN_FAULT_WRITES,
                                                         .nth = 1,
                                                         .times = UINT64_MAX,
                                                         .arg = arg});
}

static void sound(struct box *b)
{
    cairn_fault_arm(&b->plan, NULL);
}

static void put_all(struct box *b, uint64_t gen)
{
    for (uint64_t id = 0; id < KEYS; id++)
        cr_assert_eq(put(b, id, gen, 0), CAIRN_OK, "key %d", (int)id);
}

/* What the log had begun before the device was sound, a next segment say, may still fail once. */
static cairn_status put_soon(struct box *b, uint64_t id, uint64_t gen)
{
    cairn_status st = put(b, id, gen, 0);
    return st == CAIRN_IO ? put(b, id, gen, 0) : st;
}

TestSuite(store_doubt, .timeout = 240);

Test(store_doubt, a_delete_that_failed_leaves_nothing_in_the_way)
{
    struct box b;
    uint64_t age;
    struct cairn_key k = key_of(1);
    box_init(&b);
    put_all(&b, 1);
    cr_assert_eq(flush(&b), CAIRN_OK);
    writes(&b, CAIRN_FAULT_EIO, 0);
    cr_assert_eq(delete(&b, 1), CAIRN_IO);
    sound(&b);
    cr_assert_eq(shown(&b, 1), 0);
    cr_assert_eq(cairn_vault_lookup(b.v, &k, 1), 0);
    cr_assert_eq(cairn_vault_drop_cause(b.v, &k, &age), CAIRN_CAUSE_TOMBSTONE);
    cr_assert_eq(put_soon(&b, 1, 2), CAIRN_OK, "not what it holds: the new value");
    cr_assert_eq(shown(&b, 1), 2);
    (void)flush(&b); /* says once that a tombstone failed */
    cr_assert_eq(flush(&b), CAIRN_OK);
    for (int i = 0; i < 2; i++) {
        box_reopen(&b);
        cr_assert_eq(shown(&b, 1), 2, "it was flushed");
        cr_assert_eq(shown(&b, 2), 1);
    }
    box_fini(&b);
}

Test(store_doubt, a_delete_that_failed_can_be_asked_again)
{
    struct box b;
    box_init(&b);
    put_all(&b, 1);
    cr_assert_eq(flush(&b), CAIRN_OK);
    writes(&b, CAIRN_FAULT_EIO, 0);
    cr_assert_eq(delete(&b, 1), CAIRN_IO);
    sound(&b);
    cr_assert_eq(delete(&b, 1), CAIRN_MISS, "and now it is durably gone");
    box_reopen(&b);
    cr_assert_eq(shown(&b, 1), 0);
    cr_assert_eq(shown(&b, 2), 1);
    box_fini(&b);
}

/* What was to be removed and is on the disk still must not follow a new value that a restart
 * loses. */
static void removed_then_put(bool clear)
{
    struct box b;
    box_init(&b);
    put_all(&b, 1);
    cr_assert_eq(flush(&b), CAIRN_OK);
    cairn_vault_close(b.v);
    b.o.write = CAIRN_WRITE_NONE;
    box_open(&b);
    writes(&b, CAIRN_FAULT_EIO, 0);
    cr_assert_eq(clear ? cairn_vault_clear_space(b.v, 0, deadline()) : delete(&b, 1), CAIRN_IO);
    sound(&b);
    for (uint64_t id = clear ? 0 : 1; id < (clear ? KEYS : 2); id++) {
        cr_assert_eq(put_soon(&b, id, 2), CAIRN_OK);
        cr_assert_eq(shown(&b, id), 2);
    }
    box_reopen(&b);
    for (uint64_t id = 0; id < KEYS; id++)
        cr_assert_eq(shown(&b, id), !clear && id != 1, "key %d", (int)id);
    box_fini(&b);
}

Test(store_doubt, what_a_delete_was_to_remove_does_not_follow_a_new_value)
{
    removed_then_put(false);
}

Test(store_doubt, what_a_clear_was_to_remove_does_not_follow_a_new_value)
{
    removed_then_put(true);
}

Test(store_doubt, a_replacement_that_failed_leaves_a_miss)
{
    struct box b;
    box_init(&b);
    put_all(&b, 1);
    cr_assert_eq(flush(&b), CAIRN_OK);
    writes(&b, CAIRN_FAULT_EIO, 0);
    cr_assert_neq(put(&b, 1, 2, CAIRN_PUT_REPLACE), CAIRN_OK);
    sound(&b);
    cr_assert_eq(shown(&b, 1), 0, "nobody can say whether a restart would find it");
    cr_assert_eq(put(&b, 1, 3, CAIRN_PUT_REPLACE), CAIRN_OK);
    (void)flush(&b);
    cr_assert_eq(flush(&b), CAIRN_OK);
    box_reopen(&b);
    cr_assert_eq(shown(&b, 1), 3);
    box_fini(&b);
}

Test(store_doubt, a_clear_that_failed_leaves_nothing_in_the_way)
{
    struct box b;
    box_init(&b);
    put_all(&b, 1);
    cr_assert_eq(flush(&b), CAIRN_OK);
    writes(&b, CAIRN_FAULT_EIO, 0);
    cr_assert_eq(cairn_vault_clear_space(b.v, 0, deadline()), CAIRN_IO);
    sound(&b);
    cr_assert_eq(cairn_vault_space_count(b.v, 0), 0);
    for (uint64_t id = 0; id < KEYS; id++)
        cr_assert_eq(shown(&b, id), 0);
    put_all(&b, 2);
    (void)flush(&b);
    cr_assert_eq(flush(&b), CAIRN_OK);
    box_reopen(&b);
    for (uint64_t id = 0; id < KEYS; id++)
        cr_assert_eq(shown(&b, id), 2);
    box_fini(&b);
}

/* Bits of the newest record rot, in its header or its payload: a miss, never the value before. */
static void newest_rots(uint64_t at)
{
    struct box b;
    struct cairn_record_disk r;
    struct cairn_key k = key_of(1);
    uint64_t newest = 0;
    box_init(&b);
    put_all(&b, 1);
    cr_assert_eq(flush(&b), CAIRN_OK);
    cr_assert_eq(put(&b, 1, 2, CAIRN_PUT_REPLACE), CAIRN_OK);
    cr_assert_eq(put(&b, KEYS, 1, 0), CAIRN_OK);
    cr_assert_eq(flush(&b), CAIRN_OK);
    cairn_vault_close(b.v);
    for (uint64_t off = CAIRN_DATA_OFFSET; off < CAIRN_DATA_OFFSET + (4u << 20);
         off += CAIRN_BLOCK) {
        cairn_sim_peek(b.sim, off, &r, sizeof r);
        if (r.loc.magic == CAIRN_MAGIC_RECORD && r.loc.kind == CAIRN_RECORD_VALUE &&
            memcmp(r.body.key, k.bytes, sizeof k.bytes) == 0)
            newest = off;
    }
    cairn_sim_flip(b.sim, newest + at, 3);
    box_open(&b);
    for (uint64_t id = 0; id <= KEYS; id++)
        cr_assert_eq(shown(&b, id), id != 1, "key %d, byte %d", (int)id, (int)at);
    box_fini(&b);
}

Test(store_doubt, behind_a_damaged_value_no_older_one_shows)
{
    newest_rots(8);
    newest_rots(100);
    newest_rots(CAIRN_BLOCK + 5);
    newest_rots(LEN);
}

/* The write is given up, and the device reads the value all the while: a flush must leave it alone,
 * and say that it is not durable; when the device has answered the next one writes it. */
Test(store_doubt, a_flush_does_not_place_again_what_the_device_may_read)
{
    struct box b;
    box_init(&b);
    put_all(&b, 1);
    cr_assert_eq(flush(&b), CAIRN_OK);
    usleep(50000);
    cairn_vault_close(b.v);
    b.o.io_deadline_ns = RIG_SECOND / 10;
    box_open(&b);
    writes(&b, CAIRN_FAULT_DELAY, 6 * RIG_SECOND);
    cr_assert_eq(put(&b, KEYS, 1, 0), CAIRN_OK);
    cr_assert_eq(flush(&b), CAIRN_IO);
    sound(&b);
    cr_assert_eq(flush(&b), CAIRN_IO, "it is not durable");
    cr_assert_eq(flush(&b), CAIRN_IO);
    cr_assert_eq(atomic_load(&out.doubled), 0, "the device was reading it");
    cr_assert_eq(shown(&b, KEYS), 1);
    cairn_status st = CAIRN_IO;
    for (int i = 0; i < 3000 && st != CAIRN_OK; i++) {
        usleep(20000);
        st = flush(&b);
    }
    cr_assert_eq(st, CAIRN_OK);
    cr_assert_eq(atomic_load(&out.doubled), 0);
    b.o.io_deadline_ns = RIG_PATIENCE;
    box_reopen(&b);
    cr_assert_eq(shown(&b, KEYS), 1);
    box_fini(&b);
}
