/* Moves between host memory and a GPU's, on the emulated driver: every copy may run at once or only
 * when its end is asked for, so that a wait that is missing shows as wrong bytes. */
#include "base/cuda.h"

#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/move.h"
#include "tests/helpers/gpu.h"

#define MIB (1024u * 1024u)
#define VALUE_MAX (5u * MIB / 2)
#define LONG_VALUE (12u * MIB) /* more steps than can be under way */
#define PATIENCE (cairn_deadline_ns(20 * CAIRN_NS_PER_S))

struct host {
    char *value, *other;
    size_t len;
    bool offered;
    uint64_t checks[CAIRN_PIECES_MAX], made[CAIRN_PIECES_MAX];
};

static struct cairn_iov runs[GPU_RUNS_MAX];

/* Both ways are taken, whichever is faster here; test_cuda_measure.c has the measuring. */
static void ways_fixed(void)
{
    cuda_measure_set(32u << 10, 0);
}

TestSuite(cuda, .init = ways_fixed);

static void settle(void)
{
    while (!cuda_pin_settled())
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

static struct host host_open_of(size_t len, bool offered)
{
    struct host h = {.len = len, .offered = offered};
    h.value = cairn_table_alloc(len);
    h.other = cairn_table_alloc(len);
    cr_assert(h.value && h.other);
    if (offered)
        cairn_memory_offer(h.value, len, true);
    return h;
}

static struct host host_open(bool offered)
{
    return host_open_of(VALUE_MAX, offered);
}

static void host_close(struct host *h)
{
    if (h->offered)
        cairn_memory_withdraw(h->value);
    cairn_table_free(h->value, h->len);
    cairn_table_free(h->other, h->len);
}

/* A first move makes the GPU known, after which what was offered is pinned. */
static void make_known(struct gpu *g, struct host *h)
{
    struct cairn_iov one;
    struct cairn_sgl list = gpu_page(g, &one, 16);
    cr_assert_eq(cairn_move_out(&list, 0, h->value, 16, 0, 16, NULL, PATIENCE), CAIRN_OK);
    settle();
}

static cairn_status ordered_out(const struct cairn_sgl *list, size_t list_off, const struct host *h,
                                size_t value_len, size_t off, size_t len, bool verify,
                                uint64_t deadline)
{
    struct cairn_order order = {.count = 0};
    cairn_order_add(&order, list);
    cairn_order_enter(&order);
    cairn_status st = cairn_move_out(list, list_off, h->value, value_len, off, len,
                                     verify ? h->checks : NULL, deadline);
    cairn_order_enter(NULL);
    cairn_order_end(&order);
    return st;
}

static cairn_status ordered_in(void *dst, const struct cairn_sgl *list, size_t len,
                               uint64_t *checks, uint64_t deadline)
{
    struct cairn_order order = {.count = 0};
    cairn_order_add(&order, list);
    cairn_order_enter(&order);
    cairn_status st = cairn_move_in(dst, list, 0, len, checks, deadline);
    cairn_order_enter(NULL);
    cairn_order_end(&order);
    return st;
}

static size_t some_len(struct rng *r)
{
    switch (rng_below(r, 4)) {
    case 0:
        return 1 + rng_below(r, 300);
    case 1:
        return 1 + rng_below(r, MIB);
    case 2:
        return CUDA_STEP_BYTES * (1 + rng_below(r, 2));
    default:
        return 1 + rng_below(r, VALUE_MAX);
    }
}

static size_t run_max(struct rng *r, size_t len)
{
    static const size_t most[] = {2048, 18432, 65536, MIB, VALUE_MAX};
    size_t n = most[rng_below(r, 5)];
    return len / n > GPU_RUNS_MAX / 8 ? len : n;
}

static void one_out_of(struct gpu *g, struct host *h, struct rng *r, size_t value_len)
{
    size_t off = rng_one_in(r, 2) ? 0 : rng_below(r, value_len);
    size_t len = off ? 1 + rng_below(r, value_len - off) : value_len;
    struct cairn_sgl list = gpu_list(g, r, len, run_max(r, len), runs);
    value_fill(h->value, rng_next(r), 1, 0, value_len);
    cairn_hash_pieces(h->value, value_len, h->checks);
    cr_assert_eq(ordered_out(&list, 0, h, value_len, off, len, rng_one_in(r, 2), PATIENCE),
                 CAIRN_OK);
    cr_assert_eq(emu_pending(), 0, "a copy was under way when the move was over");
    gpu_read(&list, h->other);
    cr_assert_eq(memcmp(h->other, h->value + off, len), 0);
}

static void one_in_of(struct gpu *g, struct host *h, struct rng *r, size_t len)
{
    struct cairn_sgl list = gpu_list(g, r, len, run_max(r, len), runs);
    value_fill(h->other, rng_next(r), 1, 0, len);
    gpu_write(&list, h->other);
    memset(h->value, 0x5a, len);
    cr_assert_eq(ordered_in(h->value, &list, len, h->made, PATIENCE), CAIRN_OK);
    cr_assert_eq(emu_pending(), 0, "a copy was under way when the move was over");
    cr_assert_eq(memcmp(h->value, h->other, len), 0);
    cairn_hash_pieces(h->other, len, h->checks);
    cr_assert_eq(memcmp(h->made, h->checks, cairn_piece_count(len) * sizeof(uint64_t)), 0);
}

static void one_out(struct gpu *g, struct host *h, struct rng *r)
{
    one_out_of(g, h, r, some_len(r));
}

static void one_in(struct gpu *g, struct host *h, struct rng *r)
{
    one_in_of(g, h, r, some_len(r));
}

/* driver: 12000 has no batched copies, 12080 and 13000 have one form each. */
static void random_moves(const char *name, int driver, bool offered, bool kernels)
{
    struct rng r = test_rng(name);
    for (int mode = EMU_EARLIEST; mode <= EMU_RANDOM; mode++) {
        gpu_begin(EMULATED_CUDA, rng_next(&r), (enum emu_time)mode);
        emu_driver_version(driver);
        emu_modules_load(kernels);
        struct gpu g = gpu_open_on(0, 3 * VALUE_MAX);
        struct host h = host_open(offered);
        make_known(&g, &h);
        for (int i = 0; i < 8; i++)
            rng_one_in(&r, 2) ? one_out(&g, &h, &r) : one_in(&g, &h, &r);
        host_close(&h);
        gpu_end();
    }
}

Test(cuda, moves_by_batches_of_13)
{
    random_moves("batches_of_13", 13000, true, false);
    cr_assert_eq(emu_calls("cuMemcpyAsync") > 0, true, "single runs are copied by themselves");
    cr_assert_gt(emu_calls("cuMemcpyBatchAsync"), 0);
}

Test(cuda, moves_by_batches_of_12_8)
{
    random_moves("batches_of_12_8", 12080, true, false);
    cr_assert_gt(emu_calls("cuMemcpyBatchAsync"), 0);
}

Test(cuda, moves_one_by_one)
{
    random_moves("one_by_one", 12000, true, false);
    cr_assert_eq(emu_calls("cuMemcpyBatchAsync"), 0);
}

Test(cuda, moves_with_kernels)
{
    random_moves("kernels", 13000, true, true);
    cr_assert_eq(emu_calls("cuLaunchKernel") > 0, cairn_cuda_kernels() != NULL);
}

Test(cuda, moves_of_memory_that_is_not_pinned)
{
    random_moves("not_pinned", 13000, false, true);
}

Test(cuda, moves_of_more_steps_than_can_be_under_way)
{
    struct rng r = test_rng("long");
    for (int offered = 0; offered < 2; offered++) {
        gpu_begin(EMULATED_CUDA, rng_next(&r), rng_one_in(&r, 2) ? EMU_LATEST : EMU_RANDOM);
        struct gpu g = gpu_open_on(0, 3 * LONG_VALUE);
        struct host h = host_open_of(LONG_VALUE, offered);
        make_known(&g, &h);
        one_out_of(&g, &h, &r, LONG_VALUE - rng_below(&r, MIB));
        one_in_of(&g, &h, &r, LONG_VALUE - rng_below(&r, MIB));
        host_close(&h);
        gpu_end();
    }
}

/* What the engine has queued on the page comes first: it reads the old bytes. */
Test(cuda, a_load_waits_for_its_stream)
{
    gpu_begin(EMULATED_CUDA, 1, EMU_LATEST);
    struct gpu g = gpu_open_on(0, MIB);
    struct host h = host_open(true);
    struct cairn_iov page;
    struct cairn_sgl list = gpu_page(&g, &page, 4096);
    char seen[4096];
    make_known(&g, &h);
    memset(h.other, 7, 4096);
    gpu_write(&list, h.other);
    memset(h.value, 9, 4096);
    cr_assert_eq(emu_stream_block(g.stream), CU_OK);
    cr_assert_eq(emu_stream_read(g.stream, seen, g.memory, sizeof seen), CU_OK);
    cr_assert_eq(ordered_out(&list, 0, &h, 4096, 0, 4096, false, cairn_deadline_ns(5000000)),
                 CAIRN_TIMEOUT);
    gpu_read(&list, h.other);
    cr_assert_eq(h.other[0], 7, "a load that was too late has written");
    cr_assert_eq(emu_stream_unblock(g.stream), CU_OK);
    cr_assert_eq(ordered_out(&list, 0, &h, 4096, 0, 4096, false, PATIENCE), CAIRN_OK);
    for (size_t i = 0; i < sizeof seen; i++)
        cr_assert_eq(seen[i], 7);
    gpu_read(&list, h.other);
    cr_assert_eq(h.other[4095], 9);
    host_close(&h);
    gpu_end();
}

/* What the engine is still to write is what is saved. */
Test(cuda, a_save_waits_for_its_stream)
{
    for (int legacy = 0; legacy < 2; legacy++) {
        gpu_begin(EMULATED_CUDA, 2, EMU_LATEST);
        struct gpu g = gpu_open_on(0, MIB);
        struct host h = host_open(true);
        cu_stream stream = legacy ? NULL : g.stream;
        struct cairn_iov page = {(void *)(uintptr_t)g.memory, 65536};
        struct cairn_sgl list = {
            .iov = &page, .count = 1, .mem = CAIRN_MEM_CUDA, .stream = stream};
        make_known(&g, &h);
        cr_assert_eq(cu.context_push(g.context), CU_OK);
        cr_assert_eq(emu_stream_fill(stream, g.memory, 65536, 42), CU_OK);
        cr_assert_eq(cu.context_pop(&g.context), CU_OK);
        cr_assert_eq(ordered_in(h.value, &list, 65536, h.made, PATIENCE), CAIRN_OK);
        for (size_t i = 0; i < 65536; i++)
            cr_assert_eq(h.value[i], 42);
        host_close(&h);
        gpu_end();
    }
}

Test(cuda, a_damaged_piece_is_no_hit_and_leaves_nothing_under_way)
{
    struct rng r = test_rng("damaged");
    for (int i = 0; i < 6; i++) {
        gpu_begin(EMULATED_CUDA, rng_next(&r), EMU_LATEST);
        struct gpu g = gpu_open_on(0, 3 * VALUE_MAX);
        struct host h = host_open(i % 2);
        make_known(&g, &h);
        struct cairn_sgl list = gpu_list(&g, &r, VALUE_MAX, MIB, runs);
        value_fill(h.value, 1, 1, 0, VALUE_MAX);
        cairn_hash_pieces(h.value, VALUE_MAX, h.checks);
        h.value[rng_below(&r, VALUE_MAX)] ^= 1;
        cr_assert_eq(ordered_out(&list, 0, &h, VALUE_MAX, 0, VALUE_MAX, true, PATIENCE),
                     CAIRN_CORRUPT);
        cr_assert_eq(emu_pending(), 0);
        host_close(&h);
        gpu_end();
    }
}

Test(cuda, a_capturing_stream_is_refused_and_the_capture_lives)
{
    gpu_begin(EMULATED_CUDA, 3, EMU_EARLIEST);
    struct gpu g = gpu_open_on(0, MIB);
    struct host h = host_open(true);
    struct cairn_iov page;
    struct cairn_sgl list = gpu_page(&g, &page, 4096);
    cu_stream other;
    make_known(&g, &h);
    cr_assert_eq(cu.context_push(g.context), CU_OK);
    cr_assert_eq(cu.stream_create(&other, CU_STREAM_NON_BLOCKING), CU_OK);
    cr_assert_eq(emu_capture(g.stream, 1), CU_OK);
    cr_assert_eq(ordered_out(&list, 0, &h, 4096, 0, 4096, false, PATIENCE), CAIRN_IO);
    /* Beside it all goes on, in the thread that captures too. */
    list.stream = other;
    cr_assert_eq(ordered_out(&list, 0, &h, 4096, 0, 4096, false, PATIENCE), CAIRN_OK);
    struct cairn_order order = {.count = 0};
    cairn_order_add(&order, &list);
    cairn_order_enter(&order);
    cr_assert_eq(cairn_order_wait(PATIENCE), CAIRN_OK);
    cairn_order_enter(NULL);
    cairn_order_end(&order);
    cr_assert_eq(emu_capture(g.stream, 0), CU_OK);
    cr_assert_eq(cu.stream_destroy(other), CU_OK);
    cr_assert_eq(cu.context_pop(&g.context), CU_OK);
    host_close(&h);
    gpu_end();
}

Test(cuda, lists_that_are_no_memory_of_one_gpu_are_refused)
{
    gpu_begin(EMULATED_CUDA, 4, EMU_EARLIEST);
    struct gpu a = gpu_open_on(0, MIB), b = gpu_open_on(1, MIB);
    struct host h = host_open(false);
    struct cairn_iov two[] = {{(void *)(uintptr_t)a.memory, 64}, {(void *)(uintptr_t)b.memory, 64}};
    struct cairn_sgl list = {.iov = two, .count = 2, .mem = CAIRN_MEM_CUDA, .stream = a.stream};
    cr_assert_eq(cairn_move_out(&list, 0, h.value, 128, 0, 128, NULL, PATIENCE), CAIRN_IO);
    two[1] = (struct cairn_iov){h.other, 64};
    cr_assert_eq(cairn_move_out(&list, 0, h.value, 128, 0, 128, NULL, PATIENCE), CAIRN_IO);
    two[1] = (struct cairn_iov){(void *)(uintptr_t)(a.memory + MIB - 32), 64};
    cr_assert_eq(cairn_move_out(&list, 0, h.value, 128, 0, 128, NULL, PATIENCE), CAIRN_IO);
    list.mem = 17;
    cr_assert_eq(cairn_move_out(&list, 0, h.value, 128, 0, 128, NULL, PATIENCE), CAIRN_INVAL);
    host_close(&h);
    gpu_end();
}

Test(cuda, several_gpus_of_one_process)
{
    struct rng r = test_rng("several");
    gpu_begin(EMULATED_CUDA, rng_next(&r), EMU_RANDOM);
    struct host h = host_open(true);
    struct gpu g[3];
    for (int i = 0; i < 3; i++) {
        g[i] = gpu_open_on(i, 3 * VALUE_MAX);
        make_known(&g[i], &h);
    }
    for (int i = 0; i < 9; i++)
        rng_one_in(&r, 2) ? one_out(&g[i % 3], &h, &r) : one_in(&g[i % 3], &h, &r);
    host_close(&h);
    gpu_end();
}

/* An allocation a layer: the driver is asked once for each, not once for each page. */
Test(cuda, pages_of_many_allocations)
{
    enum { LAYERS = 160, BLOCKS = 16, PAGE = 4096 };
    gpu_begin(EMULATED_CUDA, 7, EMU_LATEST);
    struct gpu g = gpu_open_on(0, MIB);
    struct host h = host_open_of((size_t)LAYERS * BLOCKS * PAGE, true);
    struct cairn_sgl list = {.iov = runs, .mem = CAIRN_MEM_CUDA, .stream = g.stream};
    cu_ptr layer[LAYERS];
    make_known(&g, &h);
    cr_assert_eq(cu.context_push(g.context), CU_OK);
    for (uint32_t i = 0; i < LAYERS; i++)
        cr_assert_eq(cu.alloc(&layer[i], BLOCKS * PAGE), CU_OK);
    cr_assert_eq(cu.context_pop(&g.context), CU_OK);
    for (uint32_t layers = LAYERS / 2; layers <= LAYERS; layers += LAYERS / 2) {
        list.count = 0;
        for (uint32_t b = 0; b < BLOCKS; b++)
            for (uint32_t i = 0; i < layers; i++)
                runs[list.count++] =
                    (struct cairn_iov){(void *)(uintptr_t)(layer[i] + b * PAGE), PAGE};
        size_t len = (size_t)list.count * PAGE;
        uint64_t asked = emu_calls("cuPointerGetAttributes");
        value_fill(h.value, layers, 1, 0, len);
        cr_assert_eq(ordered_out(&list, 0, &h, len, 0, len, false, PATIENCE), CAIRN_OK);
        if (layers == LAYERS / 2)
            cr_assert_leq(emu_calls("cuPointerGetAttributes") - asked, 2 * layers);
        gpu_read(&list, h.other);
        cr_assert_eq(memcmp(h.other, h.value, len), 0);
    }
    host_close(&h);
    gpu_end();
}

/* A process that has no GPU memory never starts a driver, which takes long and memory. */
Test(cuda, host_memory_alone_loads_no_driver)
{
    gpu_begin(EMULATED_CUDA, 7, EMU_EARLIEST);
    uint64_t before = emu_calls("cuInit");
    struct host h = host_open(true);
    host_close(&h);
    cr_assert_eq(emu_calls("cuInit"), before);
    gpu_end();
}

/* NULL is another stream in each context: one call's lists wait for the ones of both GPUs. */
Test(cuda, the_default_streams_of_two_gpus_are_two)
{
    gpu_begin(EMULATED_CUDA, 8, EMU_LATEST);
    struct gpu g[] = {gpu_open_on(0, MIB), gpu_open_on(1, MIB)};
    struct host h = host_open(true);
    struct cairn_order order = {.count = 0};
    struct cairn_iov page[2];
    struct cairn_sgl list[2];
    for (int i = 0; i < 2; i++) {
        make_known(&g[i], &h);
        page[i] = (struct cairn_iov){(void *)(uintptr_t)g[i].memory, 65536};
        list[i] = (struct cairn_sgl){.iov = &page[i], .count = 1, .mem = CAIRN_MEM_CUDA};
        cr_assert_eq(cu.context_push(g[i].context), CU_OK);
        cr_assert_eq(emu_stream_fill(NULL, g[i].memory, 65536, 42 + i), CU_OK);
        cr_assert_eq(cu.context_pop(&g[i].context), CU_OK);
        for (int again = 0; again < 3; again++)
            cairn_order_add(&order, &list[i]);
    }
    cr_assert_eq(order.count, 2);
    cairn_order_enter(&order);
    for (int i = 1; i >= 0; i--) {
        cr_assert_eq(cairn_move_in(h.value, &list[i], 0, 65536, h.made, PATIENCE), CAIRN_OK);
        for (size_t k = 0; k < 65536; k++)
            cr_assert_eq(h.value[k], 42 + i, "saved before it was written");
    }
    cairn_order_enter(NULL);
    cairn_order_end(&order);
    host_close(&h);
    gpu_end();
}

/* The caller's mistake, of which the GPU's other users know nothing. */
Test(cuda, a_stream_of_another_gpu_is_refused)
{
    gpu_begin(EMULATED_CUDA, 9, EMU_EARLIEST);
    struct gpu a = gpu_open_on(0, MIB), b = gpu_open_on(1, MIB);
    struct host h = host_open(true);
    struct cairn_iov page = {(void *)(uintptr_t)a.memory, 4096};
    struct cairn_sgl list = {.iov = &page, .count = 1, .mem = CAIRN_MEM_CUDA, .stream = b.stream};
    cr_assert_eq(ordered_out(&list, 0, &h, 4096, 0, 4096, false, PATIENCE), CAIRN_IO);
    list.stream = a.stream;
    cr_assert_eq(ordered_out(&list, 0, &h, 4096, 0, 4096, false, PATIENCE), CAIRN_OK);
    host_close(&h);
    gpu_end();
}

Test(cuda, a_batch_that_is_refused_goes_one_by_one)
{
    struct rng r = test_rng("refused");
    gpu_begin(EMULATED_CUDA, rng_next(&r), EMU_LATEST);
    emu_modules_load(0);
    struct gpu g = gpu_open_on(0, 3 * VALUE_MAX);
    struct host h = host_open(true);
    make_known(&g, &h);
    struct cairn_sgl list = gpu_list(&g, &r, MIB, 65536, runs);
    value_fill(h.value, 1, 1, 0, MIB);
    emu_fail("cuMemcpyBatchAsync", 1, CU_NOT_SUPPORTED);
    cr_assert_eq(ordered_out(&list, 0, &h, MIB, 0, MIB, false, PATIENCE), CAIRN_OK);
    gpu_read(&list, h.other);
    cr_assert_eq(memcmp(h.other, h.value, MIB), 0);
    host_close(&h);
    gpu_end();
}

/* It has none of its parent's threads and memory, and the driver is of no use to it. */
static int in_a_child(const struct host *h, const struct cairn_sgl *list)
{
    cu_ptr device;
    char *own = cairn_table_alloc(VALUE_MAX);
    if (!own || cuda_pinned(h->value, MIB, true, &device))
        return 1;
    if (cairn_move_out(list, 0, own, 4096, 0, 4096, NULL, PATIENCE) != CAIRN_IO)
        return 2;
    cairn_memory_offer(own, VALUE_MAX, true);
    cairn_memory_withdraw(own);
    return emu_violations() ? 3 : 0;
}

Test(cuda, a_forked_child_has_no_gpu)
{
    gpu_begin(EMULATED_CUDA, 10, EMU_EARLIEST);
    struct gpu g = gpu_open_on(0, MIB);
    struct host h = host_open(true);
    struct cairn_iov page;
    struct cairn_sgl list = gpu_page(&g, &page, 4096);
    make_known(&g, &h);
    int status;
    pid_t child = fork();
    if (child == 0)
        _exit(in_a_child(&h, &list));
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFEXITED(status));
    cr_assert_eq(WEXITSTATUS(status), 0, "step %d", WEXITSTATUS(status));
    cr_assert_eq(ordered_out(&list, 0, &h, 4096, 0, 4096, false, PATIENCE), CAIRN_OK);
    host_close(&h);
    gpu_end();
}

/* Memory of no context, such as torch's expandable segments, is used in the primary one. */
Test(cuda, memory_without_a_context)
{
    struct rng r = test_rng("pooled");
    gpu_begin(EMULATED_CUDA, rng_next(&r), EMU_LATEST);
    struct gpu g = gpu_open_on(0, MIB);
    struct host h = host_open(true);
    g.len = 3 * VALUE_MAX;
    cr_assert_eq(emu_alloc_pooled(&g.memory, g.len, 0), CU_OK);
    make_known(&g, &h);
    for (int i = 0; i < 4; i++)
        rng_one_in(&r, 2) ? one_out(&g, &h, &r) : one_in(&g, &h, &r);
    host_close(&h);
    gpu_end();
}

/* Every call may fail: then the move says so, or its bytes are right all the same. */
static void fail_each(bool stays, bool offered)
{
    struct rng r = test_rng("faults");
    for (int call = 0; emu_call_name(call); call++) {
        for (unsigned int nth = 1; nth <= 2; nth++) {
            bool in = rng_one_in(&r, 2);
            gpu_begin(EMULATED_CUDA, rng_next(&r), rng_one_in(&r, 2) ? EMU_LATEST : EMU_RANDOM);
            struct gpu g = gpu_open_on(0, 3 * VALUE_MAX);
            struct host h = host_open(offered);
            struct cairn_sgl list = gpu_list(&g, &r, VALUE_MAX, 65536, runs);
            value_fill(in ? h.other : h.value, 1, 1, 0, VALUE_MAX);
            cairn_hash_pieces(in ? h.other : h.value, VALUE_MAX, h.checks);
            if (in)
                gpu_write(&list, h.other);
            cu_result result = rng_one_in(&r, 2) ? CU_ILLEGAL_ADDRESS : CU_INVALID_VALUE;
            if (stays)
                emu_fail_always(emu_call_name(call), nth, CU_ILLEGAL_ADDRESS);
            else
                emu_fail(emu_call_name(call), nth, result);
            for (int again = 0; again < 2; again++) {
                cairn_status st = in ? ordered_in(h.value, &list, VALUE_MAX, h.made, PATIENCE)
                                     : ordered_out(&list, 0, &h, VALUE_MAX, 0, VALUE_MAX, true,
                                                   PATIENCE);
                cr_assert(st == CAIRN_OK || st == CAIRN_IO || st == CAIRN_UNSUPPORTED ||
                              (in && st == CAIRN_STATE),
                          "%s: %d", emu_call_name(call), st);
                if (st == CAIRN_OK) {
                    /* emu_read is no call of the driver's. */
                    if (!in)
                        gpu_read(&list, h.other);
                    cr_assert_eq(memcmp(h.value, h.other, VALUE_MAX), 0, "%s",
                                 emu_call_name(call));
                }
            }
            host_close(&h);
            cairn_cuda_close();
            cr_assert_eq(emu_violations(), 0, "%s: %s", emu_call_name(call), emu_violation_text());
        }
    }
}

Test(cuda, any_call_may_fail_once)
{
    fail_each(false, true);
}

Test(cuda, any_call_may_fail_for_good)
{
    fail_each(true, true);
}

Test(cuda, any_call_may_fail_where_nothing_is_pinned)
{
    fail_each(false, false);
}

/* A copy that fails while it runs takes the context with it: one message, misses from then on. */
Test(cuda, a_lost_context_is_left_alone)
{
    gpu_begin(EMULATED_CUDA, 5, EMU_LATEST);
    struct gpu g = gpu_open_on(0, MIB);
    struct host h = host_open(true);
    struct cairn_iov page;
    struct cairn_sgl list = gpu_page(&g, &page, 65536);
    make_known(&g, &h);
    emu_fail_queued(1, CU_ILLEGAL_ADDRESS);
    cr_assert_eq(ordered_out(&list, 0, &h, 65536, 0, 65536, false, PATIENCE), CAIRN_IO);
    uint64_t copies = emu_calls("cuMemcpyAsync"), records = emu_calls("cuEventRecord");
    for (int i = 0; i < 10; i++)
        cr_assert_eq(ordered_out(&list, 0, &h, 65536, 0, 65536, false, PATIENCE), CAIRN_IO);
    cr_assert_eq(emu_calls("cuMemcpyAsync"), copies);
    cr_assert_eq(emu_calls("cuEventRecord"), records);
    host_close(&h);
    gpu_end();
}

/* The engine gives its GPU back, and takes it again. */
static struct gpu reset(struct gpu *g)
{
    cr_assert_eq(cu.primary_release(0), CU_OK);
    cr_assert_eq(emu_leaks(), 0, "Cairn keeps a context alive");
    struct gpu again = gpu_open_on(0, g->len);
    cr_assert_eq(again.context, g->context, "the emulation's primary context keeps its handle");
    return again;
}

/* Out of pinned memory and through the lane's own. */
static void there_and_back(struct gpu *g, struct host *pinned, struct host *plain, uint64_t seed)
{
    struct cairn_iov page;
    struct cairn_sgl list = gpu_page(g, &page, MIB);
    cu_ptr device;
    value_fill(pinned->value, seed, 1, 0, MIB);
    cr_assert_eq(ordered_out(&list, 0, pinned, MIB, 0, MIB, false, PATIENCE), CAIRN_OK);
    cr_assert_eq(ordered_in(plain->value, &list, MIB, NULL, PATIENCE), CAIRN_OK);
    cr_assert_eq(value_check(plain->value, seed, 1, 0, MIB), MIB);
    settle();
    cr_assert(cuda_pinned(pinned->value, MIB, true, &device), "it is pinned, again");
}

/* What Cairn had in a context went with it, though the next one lies where it did: streams, events,
 * kernels, what was registered, and that it was lost. */
Test(cuda, a_context_that_is_made_again_is_another_one)
{
    struct rng r = test_rng("again");
    for (int mode = EMU_EARLIEST; mode <= EMU_RANDOM; mode++) {
        gpu_begin(EMULATED_CUDA, rng_next(&r), (enum emu_time)mode);
        struct gpu g = gpu_open_on(0, 2 * MIB);
        struct host pinned = host_open(true), plain = host_open(false);
        for (int i = 0; i < 4; i++) {
            there_and_back(&g, &pinned, &plain, rng_next(&r));
            g = reset(&g);
        }
        there_and_back(&g, &pinned, &plain, rng_next(&r));
        struct cairn_iov page;
        struct cairn_sgl list = gpu_page(&g, &page, MIB);
        emu_fail_queued(1, CU_ILLEGAL_ADDRESS);
        for (int i = 0; i < 3; i++)
            cr_assert_eq(ordered_out(&list, 0, &pinned, MIB, 0, MIB, false, PATIENCE), CAIRN_IO);
        g = reset(&g);
        there_and_back(&g, &pinned, &plain, rng_next(&r));
        host_close(&pinned);
        host_close(&plain);
        gpu_end();
    }
}

/* Nobody has told Cairn of it yet when there is more to be pinned: while there is no context, and
 * while there is another one where the known one lay. */
Test(cuda, memory_offered_after_a_reset_is_pinned_once_the_next_context_is_known)
{
    struct rng r = test_rng("offered_after");
    for (int made_again = 0; made_again <= 1; made_again++) {
        gpu_begin(EMULATED_CUDA, rng_next(&r), EMU_RANDOM);
        struct gpu g = gpu_open_on(0, 2 * MIB);
        struct host pinned = host_open(true), plain = host_open(false);
        there_and_back(&g, &pinned, &plain, rng_next(&r));
        cr_assert_eq(cu.primary_release(0), CU_OK);
        if (made_again)
            g = gpu_open_on(0, 2 * MIB);
        struct host later = host_open(true);
        settle();
        cr_assert_eq(emu_violations(), 0, "%s", emu_violation_text());
        if (!made_again)
            g = gpu_open_on(0, 2 * MIB);
        there_and_back(&g, &later, &plain, rng_next(&r));
        there_and_back(&g, &pinned, &plain, rng_next(&r));
        host_close(&later);
        host_close(&pinned);
        host_close(&plain);
        gpu_end();
    }
}

/* Memory is pinned once, in one context, for all of them: when that one goes another has to. */
Test(cuda, a_gpu_that_is_given_back_leaves_the_others_their_pinned_memory)
{
    struct rng r = test_rng("given_back");
    for (int mode = EMU_EARLIEST; mode <= EMU_RANDOM; mode++) {
        gpu_begin(EMULATED_CUDA, rng_next(&r), (enum emu_time)mode);
        struct gpu first = gpu_open_on(0, 2 * MIB), second = gpu_open_on(1, 2 * MIB);
        struct host pinned = host_open(true), plain = host_open(false);
        there_and_back(&first, &pinned, &plain, rng_next(&r));
        there_and_back(&second, &pinned, &plain, rng_next(&r));
        cr_assert_eq(cu.primary_release(0), CU_OK);
        there_and_back(&second, &pinned, &plain, rng_next(&r));
        first = gpu_open_on(0, 2 * MIB);
        there_and_back(&first, &pinned, &plain, rng_next(&r));
        host_close(&pinned);
        host_close(&plain);
        gpu_end();
    }
}

/* What belonged to a context went with it: at its end Cairn names none of that to the driver. */
Test(cuda, a_gpu_that_was_given_back_is_no_matter_at_the_end)
{
    gpu_begin(EMULATED_CUDA, 9, EMU_LATEST);
    struct gpu g = gpu_open_on(0, 2 * MIB);
    struct host pinned = host_open(true), plain = host_open(false);
    there_and_back(&g, &pinned, &plain, 9);
    cr_assert_eq(cu.primary_release(0), CU_OK);
    host_close(&pinned);
    host_close(&plain);
    gpu_end();
}

/* Several threads may wait for an engine's kernels at once, beside its own threads. */
Test(cuda, a_stream_that_is_busy_for_long_is_asked_seldom)
{
    gpu_begin(EMULATED_CUDA, 10, EMU_LATEST);
    struct gpu g = gpu_open_on(0, MIB);
    struct host h = host_open(false);
    struct cairn_iov page;
    struct cairn_sgl list = gpu_page(&g, &page, 65536);
    make_known(&g, &h);
    cr_assert_eq(emu_stream_block(g.stream), CU_OK);
    uint64_t asked = emu_calls("cuEventQuery");
    cr_assert_eq(ordered_out(&list, 0, &h, 65536, 0, 65536, false,
                             cairn_deadline_ns(CAIRN_NS_PER_S / 5)), CAIRN_TIMEOUT);
    cr_assert_leq(emu_calls("cuEventQuery") - asked, 1500, "0.2 s in pauses of 0.2 ms");
    cr_assert_eq(emu_stream_unblock(g.stream), CU_OK);
    host_close(&h);
    gpu_end();
}

static void *unblock_later(void *stream)
{
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    emu_stream_unblock(stream);
    return NULL;
}

/* Another move's error turns the GPU off: copies that are under way are waited for all the same, or
 * they would land in pages that their owner has back. */
Test(cuda, copies_under_way_end_before_a_move_does_on_a_gpu_that_is_off)
{
    gpu_begin(EMULATED_CUDA, 11, EMU_EARLIEST);
    struct gpu g = gpu_open_on(0, MIB);
    struct host h = host_open(true);
    struct cairn_iov page;
    struct cairn_sgl list = gpu_page(&g, &page, 4096);
    struct cuda_run run = {.device = g.memory, .host = h.value, .len = 4096};
    struct cuda_entry e;
    struct cuda_gpu *known;
    pthread_t thread;
    make_known(&g, &h);
    memset(h.value, 6, 4096);
    cr_assert(cuda_pinned(h.value, 4096, false, &run.host_device));
    cr_assert_eq(cuda_gpu_of(&list, &known), CAIRN_OK);
    cr_assert(cuda_enter(known, &e));
    struct cuda_lane *l = cuda_lane_take(known, PATIENCE);
    cr_assert_not_null(l);
    cr_assert_eq(emu_stream_block(l->stream), CU_OK);
    cr_assert(cuda_copy_runs(l, &run, 1, true));
    cr_assert(cuda_lane_mark(l, 0));
    atomic_store(&known->off, true);
    cr_assert_eq(pthread_create(&thread, NULL, unblock_later, l->stream), 0);
    cr_assert_eq(cuda_lane_wait(l, 0), CAIRN_OK);
    gpu_read(&list, h.other);
    cr_assert_eq(memcmp(h.other, h.value, 4096), 0);
    cr_assert_eq(pthread_join(thread, NULL), 0);
    atomic_store(&known->off, false);
    cuda_lane_give(l);
    cuda_leave(&e);
    host_close(&h);
    gpu_end();
}

Test(cuda, without_a_driver_there_is_no_gpu_memory)
{
    char out[512], err[256];
    cairn_cuda_close();
    cr_assert_eq(cairn_cuda_use("/nonexistent/libcuda.so.1"), CAIRN_OK);
    struct cairn_iov page = {(void *)0x1000, 64};
    struct cairn_sgl list = {.iov = &page, .count = 1, .mem = CAIRN_MEM_CUDA};
    cr_assert_eq(cairn_move_out(&list, 0, out, 64, 0, 64, NULL, PATIENCE), CAIRN_IO);
    cr_assert_lt(cairn_cuda_describe(out, sizeof out), sizeof out);
    cr_assert_not_null(strstr(out, "no CUDA driver: /nonexistent/libcuda.so.1"), "%s", out);
    cr_assert_eq(cairn_cuda_option("/another.so", err, sizeof err), CAIRN_STATE);
    cr_assert_not_null(strstr(err, "a process has one driver"), "%s", err);
    cairn_cuda_close();
}

/* Read-only mappings, as a client has of a node's arena, are pinned where the device can; elsewhere
 * their copies go through other memory. */
Test(cuda, read_only_memory)
{
    for (int supported = 0; supported < 2; supported++) {
        gpu_begin(EMULATED_CUDA, 6, EMU_LATEST);
        emu_attribute(0, CU_DEVICE_READ_ONLY_REGISTER, supported);
        struct gpu g = gpu_open_on(0, MIB);
        struct cairn_mapping m;
        cr_assert_eq(cairn_mapping_open(2 * MIB, "test", &m), CAIRN_OK);
        memset(m.base, 3, m.len);
        char *shared = mmap(NULL, m.len, PROT_READ, MAP_SHARED, m.fd, 0);
        cr_assert_neq(shared, MAP_FAILED);
        cairn_memory_offer(shared, m.len, false);
        struct cairn_iov page;
        struct cairn_sgl list = gpu_page(&g, &page, MIB);
        cr_assert_eq(cairn_move_out(&list, 0, shared, MIB, 0, MIB, NULL, PATIENCE), CAIRN_OK);
        settle();
        cu_ptr device;
        cr_assert_eq(cuda_pinned(shared, MIB, false, &device), supported);
        cr_assert_not(cuda_pinned(shared, MIB, true, &device));
        cr_assert_eq(cairn_move_out(&list, 0, shared, MIB, 0, MIB, NULL, PATIENCE), CAIRN_OK);
        char *seen = malloc(MIB);
        gpu_read(&list, seen);
        for (size_t i = 0; i < MIB; i++)
            cr_assert_eq(seen[i], 3);
        free(seen);
        cairn_memory_withdraw(shared);
        munmap(shared, m.len);
        cairn_mapping_close(&m);
        gpu_end();
    }
}

Test(cuda, everything_is_given_back)
{
    struct rng r = test_rng("leaks");
    gpu_begin(EMULATED_CUDA, rng_next(&r), EMU_RANDOM);
    struct gpu g = gpu_open_on(0, 3 * VALUE_MAX);
    struct host pinned = host_open(true), plain = host_open(false);
    uint64_t before = emu_leaks();
    make_known(&g, &pinned);
    for (int i = 0; i < 4; i++) {
        one_out(&g, &pinned, &r);
        one_in(&g, &plain, &r);
    }
    host_close(&pinned);
    host_close(&plain);
    gpu_end();
    cr_assert_eq(emu_leaks(), before);
}

struct mover_thread {
    struct gpu gpu;
    uint64_t seed;
    bool offered;
};

static void *many_moves(void *arg)
{
    struct mover_thread *t = arg;
    struct rng r = {.state = t->seed};
    struct host h = host_open(t->offered);
    struct cairn_iov *iov = calloc(GPU_RUNS_MAX, sizeof *iov);
    for (int i = 0; i < 4; i++) {
        size_t len = 1 + rng_below(&r, MIB);
        struct cairn_sgl list = gpu_list(&t->gpu, &r, len, 65536, iov);
        value_fill(h.value, t->seed, (uint64_t)i, 0, len);
        cairn_hash_pieces(h.value, len, h.checks);
        cr_assert_eq(ordered_out(&list, 0, &h, len, 0, len, true, PATIENCE), CAIRN_OK);
        memcpy(h.other, h.value, len);
        memset(h.value, 0, len);
        cr_assert_eq(ordered_in(h.value, &list, len, h.made, PATIENCE), CAIRN_OK);
        cr_assert_eq(memcmp(h.value, h.other, len), 0);
    }
    free(iov);
    host_close(&h);
    return NULL;
}

Test(cuda, many_threads)
{
    struct rng r = test_rng("threads");
    struct mover_thread t[CUDA_LANES + 4];
    pthread_t threads[CUDA_LANES + 4];
    gpu_begin(EMULATED_CUDA, rng_next(&r), EMU_RANDOM);
    for (size_t i = 0; i < CUDA_LANES + 4; i++)
        t[i] = (struct mover_thread){gpu_open_on(0, 3 * VALUE_MAX), rng_next(&r), i % 2};
    for (size_t i = 0; i < CUDA_LANES + 4; i++)
        cr_assert_eq(pthread_create(&threads[i], NULL, many_moves, &t[i]), 0);
    for (size_t i = 0; i < CUDA_LANES + 4; i++)
        pthread_join(threads[i], NULL);
    gpu_end();
}
