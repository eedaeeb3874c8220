/* On the data path nothing is allocated and given back, and no page is touched for the first time:
 * all of it was taken when the store was opened. */
#include <sys/resource.h>

#include "tests/helpers/allocations.h"
#include "tests/unit/connector/open_store.h"

#define LEN (256u * 1024u)
#define RUNS 8u
#define BATCH 4u
#define ROUNDS 100u /* of a batch: more than the store's RAM, several times */
/* Pages of the program itself that are met for the first time; a value's are 65 each. */
#define FAULTS_MAX 100

static uint8_t in[BATCH][LEN], out[BATCH][LEN];

TestSuite(data_path, .fini = store_end, .timeout = 120);

static void runs_of(struct cairn_iov *iov, uint8_t *value)
{
    for (uint32_t i = 0; i < RUNS; i++)
        iov[i] = (struct cairn_iov){.base = value + i * (LEN / RUNS), .len = LEN / RUNS};
}

static size_t put_batch(uint64_t first)
{
    struct cairn_iov iov[BATCH][RUNS];
    struct cairn_put puts[BATCH];
    size_t stored = 0;
    for (uint32_t i = 0; i < BATCH; i++) {
        runs_of(iov[i], in[i]);
        puts[i] = (struct cairn_put){.key = key_of(first + i), .value = {iov[i], RUNS, 0}};
        value_fill(in[i], first + i, 1, 0, LEN);
    }
    cairn_put(store, puts, BATCH, PATIENCE);
    for (uint32_t i = 0; i < BATCH; i++)
        stored += puts[i].status == CAIRN_OK || puts[i].status == CAIRN_EXISTS;
    return stored;
}

static size_t get_batch(uint64_t first)
{
    struct cairn_iov iov[BATCH][RUNS];
    struct cairn_get gets[BATCH];
    size_t right = 0;
    for (uint32_t i = 0; i < BATCH; i++) {
        runs_of(iov[i], out[i]);
        gets[i] = (struct cairn_get){.key = key_of(first + i), .out = {iov[i], RUNS, 0}};
    }
    cairn_get(store, gets, BATCH, PATIENCE, NULL);
    for (uint32_t i = 0; i < BATCH; i++)
        right += gets[i].status == CAIRN_OK &&
                 value_check(out[i], first + i, 1, 0, LEN) == LEN;
    return right;
}

struct work {
    size_t stored, right, held;
    bool durable;
};

/* Puts, gets of what was just put and of what was put long before, looks, deletes. */
static struct work work(uint64_t first, bool disk)
{
    struct work w = {.durable = true};
    for (uint32_t round = 0; round < ROUNDS; round++, first += BATCH) {
        struct cairn_key keys[BATCH];
        cairn_status deleted[BATCH];
        w.stored += put_batch(first);
        w.right += get_batch(first);
        w.durable &= !disk || cairn_flush(store, PATIENCE) == CAIRN_OK;
        if (round >= ROUNDS / 2)
            w.right += get_batch(first - BATCH * (ROUNDS / 2));
        for (uint32_t i = 0; i < BATCH; i++)
            keys[i] = key_of(first + i);
        w.held += cairn_lookup(store, keys, BATCH);
        if (round % 8 == 7)
            cairn_delete(store, keys, 1, PATIENCE, deleted);
    }
    return w;
}

static long faults(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_minflt + u.ru_majflt;
}

static void check_path(bool disk)
{
    if (SANITIZED)
        cr_skip_test("the sanitizer has its own malloc");
    work(1000, disk);
    unsigned long allocated = atomic_load(&allocations), freed = atomic_load(&frees);
    long touched = faults();
    struct work w = work(100000, disk);
    touched = faults() - touched;
    allocated = atomic_load(&allocations) - allocated;
    freed = atomic_load(&frees) - freed;
    printf("%ld page faults\n", touched);
    cr_assert_eq(w.stored, BATCH * ROUNDS);
    cr_assert_eq(w.held, BATCH * ROUNDS);
    cr_assert(w.durable);
    cr_assert_geq(w.right, BATCH * ROUNDS);
    /* All but the deleted ones come back from the disk. */
    if (disk)
        cr_assert_geq(w.right, BATCH * ROUNDS + (BATCH - 1) * ROUNDS / 2);
    cr_assert_eq(allocated, 0ul, "%lu allocations", allocated);
    cr_assert_eq(freed, 0ul, "%lu frees", freed);
    cr_assert_lt(touched, FAULTS_MAX, "%ld page faults", touched);
}

Test(data_path, from_memory)
{
    store_open("");
    check_path(false);
    cr_assert_gt(stat_number("\"evicted\":"), 100);
}

Test(data_path, from_a_disk)
{
    store_open("disk=256MiB&prewrite=no&engine=uring");
    check_path(true);
    cr_assert_gt(stat_number("\"hits_disk\":"), 50);
}

Test(data_path, from_a_disk_by_threads)
{
    store_open("disk=256MiB&prewrite=no&engine=pool");
    check_path(true);
    cr_assert_gt(stat_number("\"hits_disk\":"), 50);
}
