/* The page copy (base/cuda_pages.h) as a kernel: 16-byte accesses to pinned host memory, few
 * blocks, so that it takes little from the kernels of the engine it runs beside. */
#include "base/cuda_pages.h"

extern "C" __global__ void cairn_copy_pages(const __grid_constant__ struct cairn_page_table table)
{
    cairn_copy_pages_thread(&table, blockIdx.x, gridDim.x, threadIdx.x, blockDim.x);
}
