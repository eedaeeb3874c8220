/* The two ways to move a list of pages: the driver's batched copies, which the copy engines do, and
 * a kernel that reads or writes pinned host memory itself. The engines take a fixed time for each
 * page, so small ones go faster by the kernel. */
#include "base/cuda.h"

#define KERNEL_BLOCKS 32u /* few, so that the engine's own kernels keep their processors */
#define KERNEL_THREADS 512u

static bool kernel_better(const struct cuda_gpu *g, const struct cuda_run *runs, uint32_t count,
                          bool to_device)
{
    size_t bytes = 0;
    size_t below = atomic_load_explicit(&g->kernel_below[to_device], memory_order_acquire);
    if (below == 0)
        return false;
    for (uint32_t i = 0; i < count; i++)
        bytes += runs[i].len;
    return bytes / count < below;
}

static bool by_kernel(struct cuda_lane *l, const struct cuda_driver *d,
                      const struct cuda_run *runs, uint32_t count, bool to_device)
{
    struct cairn_page_table *t = &l->table;
    t->tiles = 0;
    t->count = count;
    t->to_device = to_device;
    for (uint32_t i = 0; i < count; i++) {
        t->pages[i] = (struct cairn_page){.device = runs[i].device,
                                          .host = runs[i].host_device,
                                          .len = (uint32_t)runs[i].len,
                                          .first_tile = t->tiles};
        t->tiles += (uint32_t)((runs[i].len + CAIRN_TILE_BYTES - 1) / CAIRN_TILE_BYTES);
    }
    uint32_t blocks = t->tiles < KERNEL_BLOCKS ? t->tiles : KERNEL_BLOCKS;
    void *parameters[] = {t}; /* copied by the launch */
    return cuda_ok(l->gpu, "cuLaunchKernel",
                   d->launch(l->gpu->copy_pages, blocks, 1, 1, KERNEL_THREADS, 1, 1, 0, l->stream,
                             parameters, NULL));
}

static bool by_batch(struct cuda_lane *l, const struct cuda_driver *d, uint32_t count)
{
    struct cu_copy_attributes attributes = {.access_order = CU_ACCESS_ORDER_STREAM};
    size_t first = 0, failed = 0;
    cu_result r = d->copy_batch_13000
                      ? d->copy_batch_13000(l->dst, l->src, l->len, count, &attributes, &first, 1,
                                            l->stream)
                      : d->copy_batch_12080(l->dst, l->src, l->len, count, &attributes, &first, 1,
                                            &failed, l->stream);
    return cuda_ok(l->gpu, "cuMemcpyBatchAsync", r);
}

static bool one_by_one(struct cuda_lane *l, const struct cuda_driver *d, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++)
        if (!cuda_ok(l->gpu, "cuMemcpyAsync",
                     d->copy(l->dst[i], l->src[i], l->len[i], l->stream)))
            return false;
    return true;
}

bool cuda_copy_by(struct cuda_lane *l, const struct cuda_run *runs, uint32_t count, bool to_device,
                  enum cuda_way way)
{
    const char *why;
    const struct cuda_driver *d = cuda_driver(&why);
    if (way == CUDA_WAY_KERNEL)
        return by_kernel(l, d, runs, count, to_device);
    for (uint32_t i = 0; i < count; i++) {
        cu_ptr host = (cu_ptr)(uintptr_t)runs[i].host;
        l->dst[i] = to_device ? runs[i].device : host;
        l->src[i] = to_device ? host : runs[i].device;
        l->len[i] = runs[i].len;
    }
    bool batch = d->copy_batch_12080 || d->copy_batch_13000;
    if (batch && count > 1 && by_batch(l, d, count))
        return true;
    /* What a driver refuses as a batch (as some do that are shared) it may take one by one. */
    return !atomic_load_explicit(&l->gpu->off, memory_order_relaxed) && one_by_one(l, d, count);
}

bool cuda_copy_runs(struct cuda_lane *l, const struct cuda_run *runs, uint32_t count,
                    bool to_device)
{
    return cuda_copy_by(l, runs, count, to_device,
                        kernel_better(l->gpu, runs, count, to_device) ? CUDA_WAY_KERNEL
                                                                      : CUDA_WAY_ENGINE);
}
