/* Values of several ios: a get copies what is verified while the rest is being read. Whatever
 * happens to one of the ios, a hit has the right bytes, and what the disk still holds is a hit. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/helpers/rig.h"

#define KEYS 3u
#define LEN ((9u << 20) + 12345u)
#define GETTERS 3u

struct box {
    struct cairn_vault_opts o;
    struct cairn_vault *v;
    struct cairn_sim *sim;
    struct cairn_fault_plan plan;
    char path[64];
};

static uint64_t deadline(void)
{
    return cairn_deadline_ns(RIG_PATIENCE);
}

static void put_all(struct box *b)
{
    uint8_t *bytes = malloc(LEN);
    cr_assert(bytes);
    for (uint64_t id = 0; id < KEYS; id++) {
        struct cairn_iov iov;
        struct cairn_put p = {.value = rig_sgl(&iov, bytes, LEN)};
        value_key(id, p.key.bytes);
        value_fill(bytes, id, 1, 0, LEN);
        cr_assert_eq(cairn_vault_put(b->v, &p, 1, deadline(), NULL), CAIRN_OK);
    }
    cr_assert_eq(cairn_vault_flush(b->v, deadline()), CAIRN_OK);
    free(bytes);
}

static void box_init(struct box *b, enum cairn_verify verify)
{
    *b = (struct box){.path = "parts-XXXXXX"};
    int fd = mkstemp(b->path);
    cr_assert_geq(fd, 0);
    close(fd);
    unlink(b->path);
    b->sim = cairn_sim_create(&(struct cairn_sim_opts){.seed = 1});
    cr_assert(b->sim);
    b->plan = (struct cairn_fault_plan){.next = &cairn_ioq_sim, .next_arg = b->sim, .seed = 1};
    b->o = (struct cairn_vault_opts){.ram_bytes = 64u << 20,
                                     .disk_bytes = 512u << 20,
                                     .path = b->path,
                                     .policy = "s3fifo",
                                     .engine = "sim",
                                     .verify = verify,
                                     .ioq = &cairn_ioq_fault,
                                     .ioq_arg = &b->plan,
                                     .lock_wait_ns = RIG_SECOND,
                                     .io_deadline_ns = RIG_SECOND / 2,
                                     .errors_max = 1000,
                                     .reinsert_percent = 10};
    char err[512] = "";
    cr_assert_eq(cairn_vault_open(&b->o, &b->v, err, sizeof err), CAIRN_OK, "%s", err);
    put_all(b);
}

static void box_fini(struct box *b)
{
    cairn_vault_close(b->v);
    cairn_sim_destroy(b->sim);
    unlink(b->path);
}

/* Gets keys 0 .. count - 1 in one batch, each into two pieces. Returns how many are hits. */
static uint64_t get_batch(struct box *b, uint64_t count)
{
    struct cairn_get g[KEYS] = {0};
    struct cairn_iov iov[KEYS][2];
    uint8_t *bytes = malloc(KEYS * (size_t)LEN);
    uint64_t hits = 0;
    cr_assert(bytes);
    memset(bytes, 0xdb, KEYS * (size_t)LEN);
    for (uint64_t id = 0; id < count; id++) {
        uint8_t *at = bytes + id * LEN;
        iov[id][0] = (struct cairn_iov){.base = at, .len = 777777};
        iov[id][1] = (struct cairn_iov){.base = at + 777777, .len = LEN - 777777};
        g[id].out = (struct cairn_sgl){.iov = iov[id], .count = 2, .mem = CAIRN_MEM_HOST};
        value_key(id, g[id].key.bytes);
    }
    cairn_vault_get(b->v, g, count, deadline(), NULL);
    for (uint64_t id = 0; id < count; id++) {
        if (g[id].status != CAIRN_OK)
            continue;
        hits++;
        cr_assert_eq(value_check(bytes + id * LEN, id, 1, 0, LEN), LEN, "wrong bytes");
    }
    free(bytes);
    return hits;
}

/* One io of a get goes wrong, each in turn; what a second try heals must be a hit. */
static void sweep(enum cairn_fault fault, uint64_t arg, uint64_t count, bool heals)
{
    struct box b;
    box_init(&b, CAIRN_VERIFY_FIRST);
    for (uint64_t nth = 1; nth <= 10 * count; nth++) {
        cairn_vault_drop_ram(b.v);
        cairn_fault_arm(&b.plan, &(struct cairn_fault_rule){.fault = fault,
                                                            .kinds = CAIRN_FAULT_READS,
                                                            .nth = nth,
                                                            .arg = arg});
        uint64_t hits = get_batch(&b, count);
        cairn_fault_arm(&b.plan, NULL);
        cr_assert(hits == count || (!heals && hits + 1 >= count), "%d hits at io %d", (int)hits,
                  (int)nth);
    }
    box_fini(&b);
}

TestSuite(store_parts, .timeout = 300);

Test(store_parts, a_flipped_bit_is_read_again)
{
    sweep(CAIRN_FAULT_BITFLIP, CAIRN_FAULT_RANDOM, 1, true);
    sweep(CAIRN_FAULT_BITFLIP, CAIRN_FAULT_RANDOM, KEYS, true);
}

Test(store_parts, a_misdirected_read_is_read_again)
{
    sweep(CAIRN_FAULT_MISDIRECT, 1u << 20, 1, true);
    sweep(CAIRN_FAULT_MISDIRECT, 4096, KEYS, true);
}

Test(store_parts, ios_come_short_late_or_in_another_order)
{
    sweep(CAIRN_FAULT_SHORT, 4096, 1, true);
    sweep(CAIRN_FAULT_SHORT, 4096, KEYS, true);
    sweep(CAIRN_FAULT_REORDER, 3, 1, true);
    sweep(CAIRN_FAULT_DELAY, 20000000, KEYS, true);
}

Test(store_parts, an_io_that_never_comes_back_is_one_miss)
{
    struct box b;
    box_init(&b, CAIRN_VERIFY_FIRST);
    for (uint32_t round = 0; round < 3; round++) {
        cairn_vault_drop_ram(b.v);
        cairn_fault_arm(&b.plan, &(struct cairn_fault_rule){
            .fault = CAIRN_FAULT_LOST, .kinds = CAIRN_FAULT_READS, .nth = 2});
        cr_assert_eq(get_batch(&b, 1), 0);
        cairn_fault_arm(&b.plan, NULL);
        cr_assert_eq(get_batch(&b, 1), 1);
    }
    box_fini(&b);
}

static void *getter(void *arg)
{
    for (int i = 0; i < 4; i++)
        cr_assert_eq(get_batch(arg, KEYS), KEYS);
    return NULL;
}

/* Several wait for one load, whichever of them began it. */
Test(store_parts, several_getters_copy_from_one_load)
{
    static const enum cairn_verify verifies[] = {CAIRN_VERIFY_ALWAYS, CAIRN_VERIFY_FIRST,
                                                 CAIRN_VERIFY_NEVER};
    for (size_t v = 0; v < sizeof verifies / sizeof *verifies; v++) {
        struct box b;
        box_init(&b, verifies[v]);
        for (int round = 0; round < 3; round++) {
            pthread_t threads[GETTERS];
            cairn_vault_drop_ram(b.v);
            for (uint32_t i = 0; i < GETTERS; i++)
                cr_assert_eq(pthread_create(&threads[i], NULL, getter, &b), 0);
            for (uint32_t i = 0; i < GETTERS; i++)
                pthread_join(threads[i], NULL);
        }
        box_fini(&b);
    }
}
