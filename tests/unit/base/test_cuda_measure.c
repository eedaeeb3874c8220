/* The choice between the copy engines and the kernel, measured on the emulated driver: what comes
 * out is the emulation's own speed, so the tests are of what is kept, left and taken by it. */
#include "base/cuda.h"

#include "base/clock.h"
#include "base/mem.h"
#include "base/move.h"
#include "tests/helpers/gpu.h"

#define MIB (1024u * 1024u)
#define MEMORY (4 * MIB)
#define CALLS_MAX 256
#define AGES (600 * CAIRN_NS_PER_S)
#define CONSTANT (64u << 10)
#define PATIENCE (cairn_deadline_ns(60 * CAIRN_NS_PER_S))

static struct cairn_iov runs[GPU_RUNS_MAX];
static char value[MEMORY], seen[MEMORY];

static void need_kernels(void)
{
    if (!cairn_cuda_kernels())
        cr_skip_test("built without kernels: there is nothing to choose from");
}

TestSuite(cuda_measure, .init = need_kernels);

static void settle(void)
{
    while (!cuda_pin_settled())
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
}

/* A GPU that Cairn knows and that is not measured. */
static struct cuda_gpu *known(struct gpu *engine, uint64_t seed, enum emu_time mode)
{
    struct cuda_gpu *g;
    cuda_measure_set(CONSTANT, 0);
    gpu_begin(EMULATED_CUDA, seed, mode);
    *engine = gpu_open_on(0, 2 * MEMORY);
    struct cairn_iov one = {(void *)(uintptr_t)engine->memory, 16};
    struct cairn_sgl list = {.iov = &one, .count = 1, .mem = CAIRN_MEM_CUDA};
    cr_assert_eq(cuda_gpu_of(&list, &g), CAIRN_OK);
    settle();
    cr_assert_eq(atomic_load(&g->kernel_below[0]), CONSTANT);
    cr_assert_eq(atomic_load(&g->kernel_below[1]), CONSTANT);
    return g;
}

static struct cairn_sgl pages(struct gpu *g, size_t page, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        runs[i] = (struct cairn_iov){(void *)(uintptr_t)(g->memory + i * 2 * page), page};
    return (struct cairn_sgl){
        .iov = runs, .count = count, .mem = CAIRN_MEM_CUDA, .stream = g->stream};
}

/* There and back; CAIRN_IO: the GPU is off. */
static cairn_status round_trip(struct gpu *g, uint64_t seed, size_t page)
{
    uint32_t count = MEMORY / 4 / (uint32_t)page;
    size_t len = page * count;
    struct cairn_sgl list = pages(g, page, count);
    value_fill(value, seed, 1, 0, len);
    memset(seen, 0, len);
    cairn_status st = cairn_move_out(&list, 0, value, len, 0, len, NULL, PATIENCE);
    if (!st)
        st = cairn_move_in(seen, &list, 0, len, NULL, PATIENCE);
    if (!st)
        cr_assert_eq(memcmp(seen, value, len), 0);
    return st;
}

static void measured(const struct cuda_gpu *g)
{
    cr_assert(atomic_load(&g->measured));
    for (int i = 0; i < 2; i++) {
        size_t below = atomic_load(&g->kernel_below[i]);
        cr_assert(below >= 2u << 10 && below <= 512u << 10, "%zu", below);
        cr_assert_eq(below & (below - 1), 0, "%zu", below);
    }
}

Test(cuda_measure, every_gpu_in_the_background)
{
    struct rng r = test_rng("measure");
    for (int mode = EMU_EARLIEST; mode <= EMU_RANDOM; mode++) {
        cuda_measure_set(0, AGES);
        gpu_begin(EMULATED_CUDA, rng_next(&r), (enum emu_time)mode);
        for (int i = 0; i < 3; i++) {
            struct gpu engine = gpu_open_on(i, 2 * MEMORY);
            struct cairn_sgl list = pages(&engine, 4096, 1);
            struct cuda_gpu *g;
            cr_assert_eq(cuda_gpu_of(&list, &g), CAIRN_OK);
            cr_assert_eq(round_trip(&engine, rng_next(&r), 4096), CAIRN_OK);
            settle();
            measured(g);
            cr_assert_eq(emu_pending(), 0);
            cr_assert_eq(round_trip(&engine, rng_next(&r), 4096), CAIRN_OK);
        }
        cr_assert_gt(emu_calls("cuLaunchKernel"), 0);
        gpu_end();
        cr_assert_eq(emu_live("allocations"), 3, "only the engines' own are left");
    }
}

Test(cuda_measure, shorter_pages_go_by_the_kernel)
{
    struct gpu engine;
    known(&engine, 1, EMU_LATEST);
    uint64_t launches = emu_calls("cuLaunchKernel"), batches = emu_calls("cuMemcpyBatchAsync");
    cr_assert_eq(round_trip(&engine, 1, CONSTANT / 2), CAIRN_OK);
    cr_assert_eq(emu_calls("cuLaunchKernel"), launches + 2, "1 MiB each direction");
    cr_assert_eq(emu_calls("cuMemcpyBatchAsync"), batches);
    cr_assert_eq(round_trip(&engine, 2, CONSTANT), CAIRN_OK);
    cr_assert_eq(emu_calls("cuLaunchKernel"), launches + 2);
    cr_assert_eq(emu_calls("cuMemcpyBatchAsync"), batches + 2);
    gpu_end();
}

static void kept(const struct cuda_gpu *g)
{
    cr_assert_not(atomic_load(&g->measured));
    cr_assert_eq(atomic_load(&g->kernel_below[0]), CONSTANT);
    cr_assert_eq(atomic_load(&g->kernel_below[1]), CONSTANT);
}

Test(cuda_measure, what_there_is_no_time_or_memory_for_stays)
{
    struct gpu engine;
    struct cuda_gpu *g = known(&engine, 2, EMU_LATEST);
    char text[4096];
    cuda_measure_set(0, AGES);
    emu_fail("cuMemAlloc", 1, CU_OUT_OF_MEMORY);
    cuda_measure(g);
    kept(g);
    cuda_measure_set(0, 0);
    cuda_measure(g);
    kept(g);
    cuda_measure_set(0, AGES);
    cr_assert_lt(cairn_cuda_describe(text, sizeof text), sizeof text);
    cr_assert_not_null(strstr(text, "\"kernel_below\":{\"from_gpu\":65536,\"to_gpu\":65536,"
                                    "\"measured\":false}"), "%s", text);
    cr_assert_not_null(strstr(text, "\"kernel_below\":null"), "%s", text);
    cr_assert_eq(round_trip(&engine, 3, 4096), CAIRN_OK);
    cuda_measure(g);
    measured(g);
    cr_assert_lt(cairn_cuda_describe(text, sizeof text), sizeof text);
    cr_assert_not_null(strstr(text, "\"measured\":true}"), "%s", text);
    gpu_end();
}

/* The calls that measuring makes. */
static void find_used(bool *used)
{
    struct gpu engine;
    struct cuda_gpu *g = known(&engine, 1, EMU_EARLIEST);
    uint64_t before[CALLS_MAX];
    for (int call = 0; emu_call_name(call); call++)
        before[call] = emu_calls(emu_call_name(call));
    cuda_measure_set(0, AGES);
    cuda_measure(g);
    for (int call = 0; emu_call_name(call); call++)
        used[call] = emu_calls(emu_call_name(call)) > before[call];
    gpu_end();
}

/* An error that passes turns nothing off; none leaves anything under way. */
static void fail_each(cu_result result, bool stays)
{
    struct rng r = test_rng("measure_faults");
    bool used[CALLS_MAX];
    find_used(used);
    for (int call = 0; emu_call_name(call); call++) {
        if (!used[call])
            continue;
        for (unsigned int nth = 1; nth <= 9; nth += 4) {
            const char *name = emu_call_name(call);
            struct gpu engine;
            struct cuda_gpu *g = known(&engine, rng_next(&r),
                                       rng_one_in(&r, 2) ? EMU_LATEST : EMU_EARLIEST);
            cuda_measure_set(0, AGES);
            stays ? emu_fail_always(name, nth, result) : emu_fail(name, nth, result);
            cuda_measure(g);
            if (!stays)
                cr_assert_eq(emu_pending(), 0, "%s", name);
            cairn_status st = round_trip(&engine, rng_next(&r), 16384);
            if (!stays) {
                cr_assert_not(atomic_load(&g->off), "%s", name);
                if (st) /* what the measuring did not reach has struck this */
                    st = round_trip(&engine, rng_next(&r), 16384);
                cr_assert_eq(st, CAIRN_OK, "%s", name);
            }
            cr_assert(st == CAIRN_OK || st == CAIRN_IO, "%s: %d", name, st);
            gpu_end();
        }
    }
}

Test(cuda_measure, any_call_may_fail_once)
{
    fail_each(CU_INVALID_VALUE, false);
}

Test(cuda_measure, any_call_may_fail_for_good)
{
    fail_each(CU_ILLEGAL_ADDRESS, true);
}

/* A copy or kernel that fails while it runs takes the context along. */
Test(cuda_measure, a_lost_context_is_left_alone)
{
    for (unsigned int nth = 1; nth <= 25; nth += 6) {
        struct gpu engine;
        struct cuda_gpu *g = known(&engine, nth, EMU_LATEST);
        cuda_measure_set(0, AGES);
        emu_fail_queued(nth, CU_ILLEGAL_ADDRESS);
        cuda_measure(g);
        cr_assert(atomic_load(&g->off));
        kept(g);
        cr_assert_eq(round_trip(&engine, nth, 4096), CAIRN_IO);
        gpu_end();
    }
}
