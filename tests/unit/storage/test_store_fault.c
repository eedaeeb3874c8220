/* One fault at a time, at every io of a short life of a store, on a simulated disk. Whatever the
 * device does: no wrong byte, nothing deleted or replaced comes back unless the device lied about
 * a write, no wait past its deadline, and what a flush acknowledged is there once the device is
 * sound. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "storage/ioq_fault.h"
#include "tests/helpers/rig.h"
#include "tests/helpers/stall.h"

#define KEYS 12u
#define VALUE_LARGEST (300u * 1024u)
#define PATIENCE_NS (3 * RIG_SECOND)
#ifdef __SANITIZE_THREAD__
#define STEP 16u
#else
#define STEP 3u
#endif
#define CLOSE_NS (15 * RIG_SECOND + STALL_NS)

struct key_state {
    uint64_t gen, last;
    uint64_t stored;   /* bit g: generation g was once stored */
    bool durable, maybe;
};

struct box {
    struct cairn_vault_opts o;
    struct cairn_vault *v;
    struct cairn_sim *sim;
    struct cairn_fault_plan plan;
    struct key_state keys[KEYS];
    char path[64];
    bool lies;           /* this fault lets a write look done that is not */
    bool sound;          /* the device is sound from here on              */
    const char *what;
    uint64_t nth, arg;
    uint64_t hits;
    uint8_t *bytes;
};

#define BLAME(b) "%s at io %llu, argument %llu", (b)->what, \
    (unsigned long long)(b)->nth, (unsigned long long)(b)->arg

static struct cairn_key key_of(uint64_t id)
{
    struct cairn_key k;

    value_key(id, k.bytes);
    return k;
}

static size_t len_of(uint64_t id)
{
    static const size_t lens[] = {100, 4096, 30000, VALUE_LARGEST};

    return lens[id % 4];
}

static void box_init(struct box *b)
{
    static const char shape[] = "fault-XXXXXX";
    int fd;

    *b = (struct box){.what = "no fault"};
    memcpy(b->path, shape, sizeof(shape));
    fd = mkstemp(b->path);
    cr_assert_geq(fd, 0);
    close(fd);
    unlink(b->path);
    b->sim = cairn_sim_create(&(struct cairn_sim_opts){.seed = 1});
    b->bytes = malloc(VALUE_LARGEST);
    cr_assert(b->sim && b->bytes);
    b->plan = (struct cairn_fault_plan){.next = &cairn_ioq_sim, .next_arg = b->sim, .seed = 1};
    b->o = (struct cairn_vault_opts){.ram_bytes = 4u << 20,
                                     .disk_bytes = 32u << 20,
                                     .path = b->path,
                                     .policy = "s3fifo",
                                     .engine = "sim",
                                     .verify = CAIRN_VERIFY_FIRST,
                                     .ioq = &cairn_ioq_fault,
                                     .ioq_arg = &b->plan,
                                     .lock_wait_ns = RIG_SECOND,
                                     .io_deadline_ns = RIG_SECOND / 4,
                                     .errors_max = 1000,
                                     .reinsert_percent = 10};
}

static void box_fini(struct box *b)
{
    cairn_sim_destroy(b->sim);
    unlink(b->path);
    free(b->bytes);
}

static bool box_open(struct box *b)
{
    uint64_t start = cairn_now_ns();
    char err[512] = "";
    cairn_status s = cairn_vault_open(&b->o, &b->v, err, sizeof(err));

    cr_assert(cairn_now_ns() - start < CLOSE_NS, BLAME(b));
    if (s != CAIRN_OK) {
        cr_assert(*err, BLAME(b));
        b->v = NULL;
    }
    /* A flush from now on makes nothing durable that the restart has lost. */
    for (uint64_t id = 0; id < KEYS; id++)
        b->keys[id].maybe |= !b->keys[id].durable;
    return s == CAIRN_OK;
}

static void box_close(struct box *b)
{
    uint64_t start = cairn_now_ns();

    cairn_vault_close(b->v);
    b->v = NULL;
    cr_assert(cairn_now_ns() - start < CLOSE_NS, BLAME(b));
}

static uint64_t deadline(void)
{
    return cairn_now_ns() + PATIENCE_NS;
}

static void check_time(struct box *b, uint64_t start, const char *call)
{
    uint64_t took = cairn_now_ns() - start;

    cr_assert(took < PATIENCE_NS + RIG_SECOND, "%s took %llu ms; " "%s at io %llu", call,
              (unsigned long long)(took / 1000000), b->what, (unsigned long long)b->nth);
}

static void put(struct box *b, uint64_t id)
{
    struct key_state *k = &b->keys[id];
    uint64_t start = cairn_now_ns(), gen = ++k->last;
    struct cairn_iov iov;
    struct cairn_put p = {.key = key_of(id), .flags = CAIRN_PUT_REPLACE};

    value_fill(b->bytes, id, gen, 0, len_of(id));
    p.value = rig_sgl(&iov, b->bytes, len_of(id));
    cairn_vault_put(b->v, &p, 1, deadline(), NULL);
    check_time(b, start, "put");
    if (p.status == CAIRN_OK) {
        k->gen = gen;
        k->stored |= 1ull << gen;
        k->durable = k->maybe = false;
    } else {
        k->maybe = true;
    }
}

static void get(struct box *b, uint64_t id)
{
    struct key_state *k = &b->keys[id];
    size_t len = len_of(id);
    uint64_t start = cairn_now_ns(), gen;
    struct cairn_iov iov;
    struct cairn_get g = {.key = key_of(id), .out = rig_sgl(&iov, b->bytes, len)};

    memset(b->bytes, 0xdb, len);
    cairn_vault_get(b->v, &g, 1, deadline(), NULL);
    check_time(b, start, "get");
    if (g.status != CAIRN_OK) {
        cr_assert(!b->sound || b->lies || !k->durable || k->maybe,
                  "durable key %llu generation %llu is missed (%s); %s at io %llu",
                  (unsigned long long)id, (unsigned long long)k->gen,
                  cairn_cause_name((enum cairn_cause)g.cause), b->what,
                  (unsigned long long)b->nth);
        return;
    }
    b->hits++;
    gen = value_generation(b->bytes, len, id);
    cr_assert(gen && value_check(b->bytes, id, gen, 0, len) == len,
              "wrong bytes of key %llu; " "%s at io %llu", (unsigned long long)id, b->what,
              (unsigned long long)b->nth);
    cr_assert(b->lies ? (k->stored >> gen & 1) != 0 : gen == k->gen,
              "key %llu shows generation %llu of %llu; %s at io %llu", (unsigned long long)id,
              (unsigned long long)gen, (unsigned long long)k->gen, b->what,
              (unsigned long long)b->nth);
}

static void get_all(struct box *b)
{
    for (uint64_t id = 0; id < KEYS; id++)
        get(b, id);
}

static cairn_status flush(struct box *b)
{
    uint64_t start = cairn_now_ns();
    cairn_status s = cairn_vault_flush(b->v, deadline());

    check_time(b, start, "flush");
    for (uint64_t id = 0; id < KEYS && s == CAIRN_OK; id++)
        b->keys[id].durable = b->keys[id].gen != 0;
    return s;
}

static void delete(struct box *b, uint64_t id)
{
    struct key_state *k = &b->keys[id];
    uint64_t start = cairn_now_ns();
    struct cairn_key key = key_of(id);
    cairn_status s = CAIRN_OK;

    cairn_vault_delete(b->v, &key, 1, deadline(), &s);
    check_time(b, start, "delete");
    if (s == CAIRN_OK || s == CAIRN_MISS)
        k->gen = 0;
    else
        k->maybe = true;
}

/* The life in which the fault happens; the device is sound for what comes after. */
static void life(struct box *b)
{
    if (box_open(b)) {
        for (uint64_t id = 0; id < KEYS - 2; id++)
            put(b, id);
        flush(b);
        put(b, 0);
        put(b, 3);
        delete(b, 1);
        flush(b);
        cairn_vault_drop_ram(b->v);
        get_all(b);
        put(b, KEYS - 2);
        box_close(b);
    }
    if (box_open(b)) {
        get_all(b);
        put(b, KEYS - 1);
        put(b, 2);
        flush(b);
        get_all(b);
        box_close(b);
    }
}

static void afterlife(struct box *b)
{
    b->plan.off = true;
    b->sound = true;
    /* A sound device is only slow when the machine is busy. */
    b->o.io_deadline_ns = PATIENCE_NS;
    for (int i = 0; i < 2; i++) {
        cr_assert(box_open(b), BLAME(b));
        get_all(b);
        put(b, 5);
        get(b, 5);
        cr_assert_eq(flush(b), CAIRN_OK, BLAME(b));
        box_close(b);
    }
    cr_assert_gt(b->hits, 0, BLAME(b));
}

/* The fault at io number nth of the kinds; false when there is no such io. */
static bool life_with(enum cairn_fault fault, const char *what, uint32_t kinds, uint64_t nth,
                      uint64_t arg, bool lies)
{
    struct box b;
    bool happened;

    box_init(&b);
    b.what = what;
    b.nth = nth;
    b.arg = arg;
    b.lies = lies;
    b.plan.rules[0] = (struct cairn_fault_rule){.fault = fault, .kinds = kinds, .nth = nth,
                                                .arg = arg};
    /* A lie about both superblocks would make it another log; those have tests of their own. */
    if (lies && kinds != CAIRN_FAULT_SYNCS) {
        b.plan.rules[0].from = CAIRN_DATA_OFFSET;
        b.plan.rules[0].to = UINT64_MAX;
    }
    b.plan.rule_count = 1;
    life(&b);
    happened = b.plan.hit[fault] > 0;
    afterlife(&b);
    box_fini(&b);
    return happened;
}

/* Every write and sync, and with tests/run --full every read; else each STEP-th from anywhere. */
static void sweep(enum cairn_fault fault, const char *what, uint32_t kinds, uint64_t step,
                  uint64_t arg, bool lies)
{
    const char *full = getenv("CAIRN_TEST_FULL");
    uint64_t first = 1, nth;

    if (step > 1 && !(full && *full))
        first += cairn_now_ns() / 1000 % step;
    else
        step = 1;
    for (nth = first; life_with(fault, what, kinds, nth, arg, lies); nth += step)
        ;
    printf("%s: from io %llu on each %llu-th, to %llu\n", what, (unsigned long long)first,
           (unsigned long long)step, (unsigned long long)nth);
    cr_assert_gt(nth, 16, "%s hit almost nothing", what);
}

#define ALL (CAIRN_FAULT_READS | CAIRN_FAULT_WRITES | CAIRN_FAULT_SYNCS)
#define DATA (CAIRN_FAULT_READS | CAIRN_FAULT_WRITES)

TestSuite(store_fault, .timeout = 600);

Test(store_fault, none)
{
    cr_assert_not(life_with(CAIRN_FAULT_EIO, "no fault", ALL, UINT64_MAX, 0, false));
}

Test(store_fault, eio)
{
    sweep(CAIRN_FAULT_EIO, "-EIO", ALL, STEP, 0, false);
}

Test(store_fault, no_space)
{
    sweep(CAIRN_FAULT_ENOSPC, "-ENOSPC", CAIRN_FAULT_WRITES, 1, 0, false);
}

Test(store_fault, short_io)
{
    sweep(CAIRN_FAULT_SHORT, "short by all but 4 KiB", DATA, STEP, 4096, false);
}

Test(store_fault, zero_io)
{
    sweep(CAIRN_FAULT_ZERO, "nothing moved", DATA, STEP, 0, false);
}

Test(store_fault, delayed)
{
    sweep(CAIRN_FAULT_DELAY, "20 ms late", ALL, STEP, 20000000, false);
}

/* Later than the io's deadline: it is given up, and then it lands all the same. */
Test(store_fault, much_too_late)
{
    sweep(CAIRN_FAULT_DELAY, "400 ms late", ALL, 4 * STEP, 400000000, false);
}

Test(store_fault, reordered)
{
    sweep(CAIRN_FAULT_REORDER, "reported after three others", ALL, STEP, 3, false);
}

Test(store_fault, completion_lost)
{
    sweep(CAIRN_FAULT_LOST, "done and never reported", ALL, 4 * STEP, 0, false);
}

Test(store_fault, never_done)
{
    sweep(CAIRN_FAULT_GONE, "never done", ALL, 4 * STEP, 0, false);
}

Test(store_fault, torn_and_failed)
{
    for (uint64_t blocks = 0; blocks < 4; blocks++)
        sweep(CAIRN_FAULT_TORN_EIO, "torn write, reported", CAIRN_FAULT_WRITES, 1, blocks, false);
}

Test(store_fault, torn_in_silence)
{
    for (uint64_t blocks = 0; blocks < 4; blocks++)
        sweep(CAIRN_FAULT_TORN, "torn write", CAIRN_FAULT_WRITES, 1, blocks, true);
}

/* The record of the largest value, torn at every 4 KiB. */
Test(store_fault, torn_everywhere)
{
    for (uint64_t blocks = 0; blocks < cairn_record_blocks(VALUE_LARGEST, 0); blocks++)
        life_with(CAIRN_FAULT_TORN, "torn record", CAIRN_FAULT_WRITES, 5, blocks, true);
}

Test(store_fault, misdirected)
{
    sweep(CAIRN_FAULT_MISDIRECT, "4 KiB too far", DATA, STEP, 4096, true);
    sweep(CAIRN_FAULT_MISDIRECT, "1 MiB too far", DATA, STEP, 1u << 20, true);
}

Test(store_fault, bit_flipped_on_the_way)
{
    sweep(CAIRN_FAULT_BITFLIP, "first bit flipped", DATA, STEP, 0, true);
    sweep(CAIRN_FAULT_BITFLIP, "any bit flipped", DATA, STEP, CAIRN_FAULT_RANDOM, true);
}

Test(store_fault, sync_that_lies)
{
    sweep(CAIRN_FAULT_ZERO, "sync that does nothing", CAIRN_FAULT_SYNCS, 1, 0, true);
}

/* ---- bits that rot while the store is closed ---- */

static void fill_and_close(struct box *b)
{
    cr_assert(box_open(b));
    for (uint64_t id = 0; id < KEYS; id++)
        put(b, id);
    delete(b, 1);
    put(b, 2);
    cr_assert_eq(flush(b), CAIRN_OK);
    box_close(b);
}

/* Flips one bit and reads everything; says how many values were lost. */
static uint64_t rot(struct box *b, uint64_t off, uint32_t bit)
{
    uint64_t before;

    b->what = "a bit flipped at rest";
    b->nth = off;
    b->arg = bit;
    b->lies = true;
    cairn_sim_flip(b->sim, off, bit);
    before = b->hits;
    cr_assert(box_open(b), BLAME(b));
    get_all(b);
    box_close(b);
    cairn_sim_flip(b->sim, off, bit);
    return KEYS - 1 - (b->hits - before);
}

/* First block of the segments that holds a record, by its magic. */
static uint64_t find_block(struct box *b, uint32_t magic, uint64_t from)
{
    uint32_t block[CAIRN_BLOCK / 4];

    for (uint64_t off = from; off < CAIRN_DATA_OFFSET + b->o.disk_bytes; off += CAIRN_BLOCK) {
        cairn_sim_peek(b->sim, off, block, sizeof(block));
        if (block[0] == magic)
            return off;
    }
    cr_assert_fail("no block with magic %x", magic);
    return 0;
}

static void rot_everywhere(uint64_t (*place)(struct box *b), uint64_t span, uint64_t step,
                           uint64_t lost_max)
{
    struct box b;
    uint64_t at, lost = 0;

    box_init(&b);
    fill_and_close(&b);
    at = place(&b);
    for (uint64_t off = 0; off < span; off += step) {
        uint64_t one = rot(&b, at + off / CAIRN_BLOCK * CAIRN_BLOCK,
                           (uint32_t)(off % CAIRN_BLOCK * 8 + off / step % 8));

        cr_assert_leq(one, lost_max, "%llu values lost; " "byte %llu of the place",
                      (unsigned long long)one, (unsigned long long)off);
        lost += one;
    }
    printf("%llu values lost in all\n", (unsigned long long)lost);
    box_fini(&b);
}

static uint64_t at_super_a(struct box *b)
{
    (void)b;
    return CAIRN_SUPER_OFFSET_A;
}

static uint64_t at_super_b(struct box *b)
{
    (void)b;
    return CAIRN_SUPER_OFFSET_B;
}

static uint64_t at_head(struct box *b)
{
    return find_block(b, CAIRN_MAGIC_SEGMENT, CAIRN_DATA_OFFSET);
}

static uint64_t at_trailer(struct box *b)
{
    return find_block(b, CAIRN_MAGIC_TRAILER, CAIRN_DATA_OFFSET);
}

static uint64_t at_record(struct box *b)
{
    return find_block(b, CAIRN_MAGIC_RECORD, CAIRN_DATA_OFFSET);
}

static uint64_t at_second_record(struct box *b)
{
    return find_block(b, CAIRN_MAGIC_RECORD, at_record(b) + CAIRN_BLOCK);
}

Test(store_fault, superblock_a_rots)
{
    rot_everywhere(at_super_a, CAIRN_BLOCK, 97, 0);
}

Test(store_fault, superblock_b_rots)
{
    rot_everywhere(at_super_b, CAIRN_BLOCK, 97, 0);
}

Test(store_fault, segment_head_rots)
{
    rot_everywhere(at_head, CAIRN_BLOCK, 97, KEYS);
}

Test(store_fault, footer_rots)
{
    rot_everywhere(at_trailer, CAIRN_BLOCK, 97, KEYS);
}

Test(store_fault, header_rots)
{
    rot_everywhere(at_record, CAIRN_BLOCK, 61, KEYS);
}

Test(store_fault, second_header_rots)
{
    rot_everywhere(at_second_record, CAIRN_BLOCK, 61, KEYS);
}

Test(store_fault, payload_rots)
{
    rot_everywhere(at_record, 80 * CAIRN_BLOCK, 1999, KEYS);
}

/* ---- devices that stay broken ---- */

static void fail_from_now(struct box *b, enum cairn_fault fault)
{
    cairn_fault_arm(&b->plan, &(struct cairn_fault_rule){
        .fault = fault, .nth = 1, .times = UINT64_MAX});
}

/* Errors in a row turn the tier off: RAM goes on, flush says so, nothing hangs. */
Test(store_fault, turns_off_and_goes_on)
{
    struct box b;

    box_init(&b);
    b.what = "every io fails";
    b.o.errors_max = 8;
    cr_assert(box_open(&b));
    for (uint64_t id = 0; id < KEYS - 2; id++)
        put(&b, id);
    cr_assert_eq(flush(&b), CAIRN_OK);
    cairn_vault_drop_ram(b.v);
    fail_from_now(&b, CAIRN_FAULT_EIO);
    for (int i = 0; i < 5; i++)
        get_all(&b);
    put(&b, 4);
    cr_assert_neq(flush(&b), CAIRN_OK);
    b.hits = 0;
    for (uint64_t id = KEYS - 2; id < KEYS; id++) {
        put(&b, id);
        get(&b, id);
    }
    cr_assert_eq(b.hits, 2, "RAM does not go on without the disk");
    box_close(&b);
    afterlife(&b);
    box_fini(&b);
}

/* A bad sector: a block of the log can no longer be read, each in turn. Open refuses, or gives
 * what is right: what lay there may be lost, nothing that was deleted or replaced comes back. */
Test(store_fault, bad_sector)
{
    struct box b;
    uint64_t end, opened = 0, blocks = 0;

    box_init(&b);
    fill_and_close(&b);
    b.what = "bad sector";
    end = find_block(&b, CAIRN_MAGIC_SEGMENT, CAIRN_DATA_OFFSET) + (3u << 20);
    for (uint64_t off = CAIRN_DATA_OFFSET; off < end; off += CAIRN_BLOCK) {
        uint8_t block[CAIRN_BLOCK], zero[CAIRN_BLOCK] = {0};

        cairn_sim_peek(b.sim, off, block, sizeof(block));
        if (!memcmp(block, zero, sizeof(block)))
            continue;
        b.nth = off;
        b.plan.rules[0] = (struct cairn_fault_rule){.fault = CAIRN_FAULT_EIO,
                                                    .kinds = CAIRN_FAULT_READS,
                                                    .from = off,
                                                    .to = off + CAIRN_BLOCK,
                                                    .nth = 1,
                                                    .times = UINT64_MAX};
        b.plan.rule_count = 1;
        b.plan.matched[0] = 0;
        blocks++;
        if (box_open(&b)) {
            opened++;
            get_all(&b);
            if (off / CAIRN_BLOCK % 16 == 0) {
                put(&b, 7);
                flush(&b);
            }
            box_close(&b);
        }
    }
    printf("opened with %llu of %llu bad sectors\n", (unsigned long long)opened,
           (unsigned long long)blocks);
    for (uint64_t id = 0; id < KEYS; id++)
        b.keys[id].maybe = true;
    afterlife(&b);
    box_fini(&b);
}

/* A device that stops answering: reads are misses at their deadline, open memory stays away. */
Test(store_fault, dies_in_silence)
{
    struct box b;
    cairn_status s;

    box_init(&b);
    b.what = "no io ever completes";
    cr_assert(box_open(&b));
    for (uint64_t id = 0; id < KEYS; id++)
        put(&b, id);
    cr_assert_eq(flush(&b), CAIRN_OK);
    cairn_vault_drop_ram(b.v);
    fail_from_now(&b, CAIRN_FAULT_GONE);
    get_all(&b);
    put(&b, 4);
    s = flush(&b);
    cr_assert_neq(s, CAIRN_OK);
    box_close(&b);
    afterlife(&b);
    box_fini(&b);
}

/* ---- memory ---- */

Test(store_fault, every_allocation_of_open_fails)
{
    struct box b;
    uint64_t nth;

    box_init(&b);
    fill_and_close(&b);
    b.what = "allocation failed";
    for (nth = 1;; nth++) {
        char err[512] = "";
        cairn_status s;

        b.nth = nth;
        cairn_mem_fail_nth(nth);
        s = cairn_vault_open(&b.o, &b.v, err, sizeof(err));
        cairn_mem_fail_nth(0);
        if (s == CAIRN_OK) {
            get_all(&b);
            box_close(&b);
            if (nth > 40)
                break;
            continue;
        }
        cr_assert_eq(s, CAIRN_NOMEM, "allocation %llu: status %d", (unsigned long long)nth, s);
        cr_assert(*err, "allocation %llu: no sentence", (unsigned long long)nth);
    }
    b.sound = true;
    cr_assert(box_open(&b));
    get_all(&b);
    cr_assert_eq(b.hits % (KEYS - 1), 0);
    box_close(&b);
    box_fini(&b);
}
