/* Stores whose callers have a GPU, on the emulated driver: random puts and gets of device and host
 * lists, submitted and blocking, while the engine goes on using its pages. */
#include "base/cuda.h"
#include "tests/helpers/gpu.h"
#include "tests/unit/connector/open_store.h"

#define KEYS 24u
#define VALUE_BYTES (3u << 20)

static struct gpu gpu;

/* What is under way is the stores' own: nothing is measured beside. */
static void engine_begin(struct rng *r, enum emu_time mode)
{
    cuda_measure_set(32u << 10, 0);
    gpu_begin(EMULATED_CUDA, rng_next(r), mode);
    gpu = gpu_open_on(0, 4 * VALUE_BYTES);
}

static void setup(const char *name, struct rng *r, enum emu_time mode)
{
    *r = test_rng(name);
    engine_begin(r, mode);
    store_open("ram=96MiB");
}

static void teardown(void)
{
    store_end();
    gpu_end();
}

static size_t len_of(uint64_t id)
{
    return 1 + (id * 2654435761u) % VALUE_BYTES;
}

/* A list of the kind that holds the value, or takes it. */
static struct cairn_sgl list_of(struct rng *r, bool device, char *host, size_t len,
                                struct cairn_iov *iov)
{
    if (device)
        return gpu_list(&gpu, r, len, len / 64 + 4096, iov);
    iov[0] = (struct cairn_iov){host, len};
    return (struct cairn_sgl){.iov = iov, .count = 1};
}

static void put_some(struct rng *r, uint64_t id, char *host, struct cairn_iov *iov)
{
    bool device = !rng_one_in(r, 4);
    size_t len = len_of(id);
    struct cairn_sgl list = list_of(r, device, host, len, iov);
    struct cairn_put put = {.key = key_of(id), .value = list};
    value_fill(host, id, 1, 0, len);
    if (device)
        gpu_write(&list, host);
    cr_assert_eq(cairn_put(store, &put, 1, PATIENCE), CAIRN_OK);
    cr_assert_eq(emu_pending(), 0);
    if (device) {
        /* The engine has its pages back. */
        memset(host, 0xee, len);
        gpu_write(&list, host);
    }
}

static void get_some(struct rng *r, uint64_t id, char *host, struct cairn_iov *iov)
{
    bool device = !rng_one_in(r, 4), range = rng_one_in(r, 3);
    size_t off = range ? rng_below(r, len_of(id)) : 0;
    size_t len = range ? 1 + rng_below(r, len_of(id) - off) : len_of(id);
    struct cairn_get get = {.key = key_of(id),
                            .out = list_of(r, device, host, len, iov),
                            .offset = off,
                            .flags = range ? CAIRN_GET_RANGE : 0};
    memset(host, 0, len);
    cr_assert_eq(cairn_get(store, &get, 1, PATIENCE, NULL), CAIRN_OK);
    cr_assert_eq(emu_pending(), 0);
    if (device)
        gpu_read(&get.out, host);
    cr_assert_eq(value_check(host, id, 1, off, len), len, "key %" PRIu64, id);
}

Test(gpu, what_is_put_comes_back)
{
    for (int mode = EMU_EARLIEST; mode <= EMU_RANDOM; mode++) {
        struct rng r;
        setup("put_get", &r, (enum emu_time)mode);
        char *host = malloc(VALUE_BYTES);
        struct cairn_iov *iov = calloc(GPU_RUNS_MAX, sizeof *iov);
        for (uint64_t id = 1; id <= KEYS; id++)
            put_some(&r, id, host, iov);
        for (int i = 0; i < 40; i++)
            get_some(&r, 1 + rng_below(&r, KEYS), host, iov);
        free(host);
        free(iov);
        teardown();
    }
}

/* Submitted behind work of the engine's that has not run: what is saved is what that work wrote,
 * and what it still reads is not overwritten by a load before it did. */
Test(gpu, submitted_calls_come_after_what_was_queued)
{
    struct rng r;
    enum { LEN = 1 << 20 };
    setup("submitted", &r, EMU_LATEST);
    cairn_queue *q;
    struct cairn_completion done[2];
    char *seen = malloc(LEN), *host = malloc(LEN);
    struct cairn_iov page;
    struct cairn_sgl list = gpu_page(&gpu, &page, LEN);
    struct cairn_put put = {.key = key_of(1), .value = list};
    struct cairn_get get = {.key = key_of(2), .out = list};
    cr_assert_eq(put_id(2, LEN), CAIRN_OK);
    cr_assert_eq(cairn_queue_open(store, &q), CAIRN_OK);

    cr_assert_eq(emu_stream_block(gpu.stream), CU_OK);
    cr_assert_eq(emu_stream_fill(gpu.stream, gpu.memory, LEN, 42), CU_OK);
    /* Not even the first call of all asks the driver, which an engine has loaded long ago, for
     * what may take long. */
    cr_assert_gt(cairn_cuda_describe(NULL, 0), 0);
    emu_engine_thread(1);
    cr_assert_eq(cairn_submit_put(q, &put, 1, PATIENCE, &put), CAIRN_OK);
    emu_engine_thread(0);
    cr_assert_eq(cairn_poll(q, done, 1, 20000000), 0, "it did not wait for the stream");
    cr_assert_eq(emu_stream_unblock(gpu.stream), CU_OK);
    cr_assert_eq(cairn_poll(q, done, 1, PATIENCE), 1);
    cr_assert_eq(done[0].hits, 1);

    cr_assert_eq(emu_stream_block(gpu.stream), CU_OK);
    cr_assert_eq(emu_stream_read(gpu.stream, seen, gpu.memory, LEN), CU_OK);
    emu_engine_thread(1);
    cr_assert_eq(cairn_submit_get(q, &get, 1, PATIENCE, &get), CAIRN_OK);
    emu_engine_thread(0);
    cr_assert_eq(cairn_poll(q, done, 1, 20000000), 0, "it did not wait for the stream");
    cr_assert_eq(emu_stream_unblock(gpu.stream), CU_OK);
    cr_assert_eq(cairn_poll(q, done, 1, PATIENCE), 1);
    cr_assert_eq(done[0].hits, 1);
    gpu_read(&list, host);
    cr_assert_eq(value_check(host, 2, 1, 0, LEN), LEN);
    for (size_t i = 0; i < LEN; i++)
        cr_assert_eq(seen[i], 42, "the load overwrote what was still to be read");

    page = (struct cairn_iov){host, LEN};
    struct cairn_get back = {.key = key_of(1), .out = {.iov = &page, .count = 1}};
    cr_assert_eq(cairn_get(store, &back, 1, PATIENCE, NULL), CAIRN_OK);
    for (size_t i = 0; i < LEN; i++)
        cr_assert_eq(host[i], 42, "saved before it was written");
    cairn_queue_close(q);
    free(seen);
    free(host);
    teardown();
}

/* A stream that stands still costs a call its timeout, and nothing is read or written. */
Test(gpu, a_stream_that_stands_still_is_a_miss_at_the_deadline)
{
    struct rng r;
    setup("still", &r, EMU_EARLIEST);
    struct cairn_iov page;
    struct cairn_sgl list = gpu_page(&gpu, &page, 65536);
    struct cairn_get get = {.key = key_of(1), .out = list};
    struct cairn_put put = {.key = key_of(3), .value = list};
    cr_assert_eq(put_id(1, 65536), CAIRN_OK);
    cr_assert_eq(emu_stream_block(gpu.stream), CU_OK);
    uint64_t copies = emu_calls("cuMemcpyAsync");
    cairn_get(store, &get, 1, 30000000, NULL);
    cr_assert_eq(get.status, CAIRN_TIMEOUT);
    cairn_put(store, &put, 1, 30000000);
    cr_assert_eq(put.status, CAIRN_TIMEOUT);
    cr_assert_eq(emu_calls("cuMemcpyAsync"), copies);
    cr_assert_eq(emu_stream_unblock(gpu.stream), CU_OK);
    cairn_get(store, &get, 1, PATIENCE, NULL);
    cr_assert_eq(get.status, CAIRN_OK);
    cr_assert_eq(cairn_put(store, &put, 1, PATIENCE), CAIRN_OK);
    teardown();
}

/* Nor does a put that waits in vain, in a store that is full, push anything out. What is held needs
 * no waiting for. */
Test(gpu, a_stream_that_stands_still_evicts_nothing)
{
    struct rng r;
    enum { LEN = 1 << 20, FULL = 20 };
    embedded_only();
    r = test_rng("evicts");
    engine_begin(&r, EMU_EARLIEST);
    store_open("ram=16MiB");
    struct cairn_iov page;
    struct cairn_sgl list = gpu_page(&gpu, &page, LEN);
    struct cairn_put put = {.key = key_of(FULL + 1), .value = list};
    for (uint64_t id = 1; id <= FULL; id++)
        cr_assert_eq(put_id(id, LEN), CAIRN_OK);
    long evicted = stat_number("\"evicted\":");
    cr_assert_gt(evicted, 0, "the store is full");
    cr_assert_eq(emu_stream_block(gpu.stream), CU_OK);
    for (int i = 0; i < 3; i++) {
        cairn_put(store, &put, 1, 30000000);
        cr_assert_eq(put.status, CAIRN_TIMEOUT);
        cr_assert_eq(stat_number("\"evicted\":"), evicted);
    }
    put.key = key_of(FULL);
    cr_assert_eq(cairn_put(store, &put, 1, 30000000), CAIRN_OK);
    cr_assert_eq(put.status, CAIRN_EXISTS);
    cr_assert_eq(emu_stream_unblock(gpu.stream), CU_OK);
    put.key = key_of(FULL + 1);
    cr_assert_eq(cairn_put(store, &put, 1, PATIENCE), CAIRN_OK);
    cr_assert_gt(stat_number("\"evicted\":"), evicted);
    teardown();
}

/* It says nothing of a node: calls for host memory go on, however often it does. */
Test(gpu, a_stream_that_stands_still_is_no_fault_of_the_store)
{
    struct rng r;
    setup("no_fault", &r, EMU_EARLIEST);
    struct cairn_iov page;
    struct cairn_sgl list = gpu_page(&gpu, &page, 65536);
    cr_assert_eq(put_id(1, 65536), CAIRN_OK);
    cr_assert_eq(emu_stream_block(gpu.stream), CU_OK);
    for (int i = 0; i < 4; i++) {
        struct cairn_get gets[] = {{.key = key_of(1), .out = list},
                                   {.key = key_of(2), .out = list}};
        struct cairn_put put = {.key = key_of(3), .value = list};
        cairn_get(store, gets, 2, 30000000, NULL);
        cr_assert_eq(gets[0].status, CAIRN_TIMEOUT);
        cairn_put(store, &put, 1, 30000000);
        cr_assert_eq(put.status, CAIRN_TIMEOUT);
    }
    cr_assert_eq(get_id(1, 1, 65536), CAIRN_OK);
    cr_assert_eq(put_id(4, 65536), CAIRN_OK);
    cr_assert_eq(emu_stream_unblock(gpu.stream), CU_OK);
    teardown();
}

/* What fails on the way to or from the GPU is a miss or not stored, counted as "device"; all else
 * of the store goes on. */
Test(gpu, a_failing_driver_is_misses)
{
    struct rng r;
    setup("failing", &r, EMU_RANDOM);
    struct cairn_iov page;
    struct cairn_sgl list = gpu_page(&gpu, &page, 1 << 20);
    struct cairn_get get = {.key = key_of(1), .out = list};
    struct cairn_put put = {.key = key_of(2), .value = list};
    cr_assert_eq(put_id(1, 1 << 20), CAIRN_OK);
    cr_assert_eq(cairn_get(store, &get, 1, PATIENCE, NULL), CAIRN_OK);
    emu_fail("cuMemcpyAsync", 1, CU_INVALID_VALUE);
    cairn_get(store, &get, 1, PATIENCE, NULL);
    cr_assert_eq(get.status, CAIRN_MISS);
    cr_assert_eq(cairn_get(store, &get, 1, PATIENCE, NULL), CAIRN_OK);
    emu_fail_always("cuMemcpyAsync", 1, CU_ILLEGAL_ADDRESS);
    cairn_put(store, &put, 1, PATIENCE);
    cr_assert_eq(put.status, CAIRN_IO);
    for (int i = 0; i < 3; i++) {
        cairn_get(store, &get, 1, PATIENCE, NULL);
        cr_assert_eq(get.status, CAIRN_MISS);
    }
    cr_assert_geq(stat_number("\"device\":"), 3);
    cr_assert_eq(get_id(1, 1, 1 << 20), CAIRN_OK);
    cr_assert_eq(get_id(2, 1, 1 << 20), CAIRN_MISS);
    cr_assert_eq(put_id(2, 1 << 20), CAIRN_OK);
    teardown();
}

/* From the disk to the GPU, verified on the way; a flipped byte is no hit. */
Test(gpu, values_on_disk)
{
    struct rng r = test_rng("disk");
    engine_begin(&r, EMU_LATEST);
    store_open("ram=16MiB&disk=128MiB&prewrite=no");
    char *host = malloc(VALUE_BYTES);
    struct cairn_iov *iov = calloc(GPU_RUNS_MAX, sizeof *iov);
    for (uint64_t id = 1; id <= KEYS; id++) {
        put_some(&r, id, host, iov);
        cr_assert_eq(cairn_flush(store, PATIENCE), CAIRN_OK);
    }
    for (uint64_t id = 1; id <= KEYS; id++)
        get_some(&r, id, host, iov);
    free(host);
    free(iov);
    teardown();
}
