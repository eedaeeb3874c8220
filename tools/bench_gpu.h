/* What the files of `cairn bench gpu` share: the program's own engine, its memory and its moves. */
#ifndef CAIRN_TOOLS_BENCH_GPU_H
#define CAIRN_TOOLS_BENCH_GPU_H

#include "base/cuda.h"
#include "tools/bench.h"

#define BENCH_GPU_POOL (128u << 20) /* of host memory, and twice that of pages */
#define BENCH_GPU_PAGES 1024u       /* of a list                               */
#define BENCH_GPU_TIMEOUT (60 * CAIRN_NS_PER_S)

/* What an engine's chunk is: pages of one size anywhere in its pool. */
struct bench_pages {
    const char *name;
    size_t page;
    uint32_t count;
};

struct bench_gpu {
    const struct bench_opts *o;
    const struct cuda_driver *driver;
    cu_device device;
    cu_context context;
    cu_stream streams[2]; /* the engine's: for copies from the GPU, and to it */
    cu_event events[2];
    cu_ptr memory, flat; /* pages; what the limit copies to and from, as long as host */
    struct cairn_mapping host;
    struct cuda_gpu *gpu;
    struct cairn_iov iov[2][BENCH_GPU_PAGES];
    uint64_t round_ns, random[2];
};

static inline bool gpu_good(cu_result r, const char *call)
{
    return r == CU_OK || bench_fail("gpu: %s failed with %d: is the GPU in use by another program, "
                                    "or its memory full?", call, r);
}

/* Pages of a chunk, no two the same, in any order of the direction's half of the pool. The list is
 * good until the direction's next one. */
struct cairn_sgl bench_gpu_pick(struct bench_gpu *g, const struct bench_pages *s, bool to_gpu);
/* A chunk between host memory and pages of its own, by Cairn. */
bool bench_gpu_move(struct bench_gpu *g, const struct bench_pages *s, bool to_gpu, void *value);
/* Are the bytes of the list's pages those of the value, read past all that Cairn does? */
bool bench_gpu_holds(struct bench_gpu *g, const struct cairn_sgl *list, uint64_t id);
/* Until the event has passed; a core spins meanwhile. */
bool bench_gpu_wait(struct bench_gpu *g, cu_event e);
/* A round of large pinned copies to the GPU. */
bool bench_gpu_limit(struct bench_gpu *g, struct bench_side *limit);
/* All that was offered is pinned and the GPU measured; false after a minute. */
bool bench_gpu_pinned(void);

/* The kernel of bench_matmul.h for all architectures; NULL: built without. */
const void *bench_matmul_image(void);

bool bench_gpu_gets(struct bench *b, struct bench_gpu *g);   /* bench_gpu_get.c    */
bool bench_gpu_matmul(struct bench *b, struct bench_gpu *g); /* bench_gpu_matmul.c */

#endif
