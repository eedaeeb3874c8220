/* An engine with a GPU, for tests: the emulated driver's entry points (tests/emulation), a context,
 * and pages of device memory in which the runs of lists lie. */
#ifndef CAIRN_TESTS_GPU_H
#define CAIRN_TESTS_GPU_H

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "base/cuda_config.h"
#include "base/cuda_driver.h"
#include "base/types.h"
#include "tests/emulation/cuda_emulation.h"
#include "tests/helpers/seed.h"

/* The engine's own way to the driver. */
static struct cuda_driver cu;

#define GPU_RUNS_MAX 4096u

struct gpu {
    cu_context context;
    cu_stream stream;
    cu_ptr memory;
    size_t len;
};

static inline struct gpu gpu_open_on(int ordinal, size_t len)
{
    struct gpu g = {.len = len};
    cu_device device;
    cr_assert_eq(cu.init(0), CU_OK);
    cr_assert_eq(cu.device_get(&device, ordinal), CU_OK);
    cr_assert_eq(cu.primary_retain(&g.context, device), CU_OK);
    cr_assert_eq(cu.context_push(g.context), CU_OK);
    cr_assert_eq(cu.stream_create(&g.stream, CU_STREAM_NON_BLOCKING), CU_OK);
    cr_assert_eq(cu.alloc(&g.memory, len), CU_OK);
    cr_assert_eq(cu.context_pop(&g.context), CU_OK);
    return g;
}

/* library: the emulated driver. */
static inline void gpu_begin(const char *library, uint64_t seed, enum emu_time mode)
{
    char why[256];
    emu_reset(seed);
    emu_time(mode);
    cr_assert_eq(emu_devices(3), CU_OK);
    cr_assert_eq(cuda_driver_load(library, &cu, why, sizeof why), CAIRN_OK, "%s", why);
    cr_assert_eq(cairn_cuda_use(library), CAIRN_OK);
}

/* Nothing that Cairn did was unlawful, it gives everything back, and the calling thread, the
 * engine's own, is as it was. */
static inline void gpu_end(void)
{
    cairn_cuda_close();
    cr_assert_eq(emu_context_depth(), 0);
    cr_assert_eq(emu_capture_mode(), 0);
    cr_assert_eq(emu_violations(), 0, "%s", emu_violation_text());
}

/* The first len bytes of the device's memory, as a list of one run. */
static inline struct cairn_sgl gpu_page(const struct gpu *g, struct cairn_iov *iov, size_t len)
{
    *iov = (struct cairn_iov){(void *)(uintptr_t)g->memory, len};
    return (struct cairn_sgl){.iov = iov, .count = 1, .mem = CAIRN_MEM_CUDA, .stream = g->stream};
}

/* Cuts len bytes of the device's memory into runs that do not touch each other, in any order. */
static inline struct cairn_sgl gpu_list(const struct gpu *g, struct rng *r, size_t len,
                                        size_t run_max, struct cairn_iov *iov)
{
    struct cairn_sgl list = {.iov = iov, .mem = CAIRN_MEM_CUDA, .stream = g->stream};
    size_t at = rng_below(r, 64);
    while (len) {
        size_t n = 1 + rng_below(r, run_max);
        n = n < len ? n : len;
        cr_assert_leq(at + n, g->len);
        cr_assert_lt(list.count, GPU_RUNS_MAX);
        iov[list.count++] = (struct cairn_iov){(void *)(uintptr_t)(g->memory + at), n};
        at += n + rng_below(r, 3) * 16;
        len -= n;
    }
    for (uint32_t i = list.count; i > 1; i--) {
        uint32_t k = (uint32_t)rng_below(r, i);
        struct cairn_iov swap = iov[i - 1];
        iov[i - 1] = iov[k];
        iov[k] = swap;
    }
    return list;
}

static inline void gpu_write(const struct cairn_sgl *list, const void *from)
{
    const char *at = from;
    for (uint32_t i = 0; i < list->count; at += list->iov[i++].len)
        cr_assert_eq(emu_write((cu_ptr)(uintptr_t)list->iov[i].base, at, list->iov[i].len), CU_OK);
}

static inline void gpu_read(const struct cairn_sgl *list, void *to)
{
    char *at = to;
    for (uint32_t i = 0; i < list->count; at += list->iov[i++].len)
        cr_assert_eq(emu_read(at, (cu_ptr)(uintptr_t)list->iov[i].base, list->iov[i].len), CU_OK);
}

#endif
