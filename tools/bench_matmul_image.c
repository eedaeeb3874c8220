/* The bench's own kernel, as nvcc made it. */
#include "base/cuda_image.h"
#include "tools/bench_gpu.h"

#ifdef CAIRN_CUDA_FATBIN
CAIRN_CUDA_IMAGE(bench_matmul_fatbin);

const void *bench_matmul_image(void)
{
    return bench_matmul_fatbin;
}
#else
const void *bench_matmul_image(void)
{
    return NULL;
}
#endif
