/* The matmul of the bench (tools/bench_matmul.h) as a kernel: what an engine's own kernels are to
 * Cairn's loads, a GPU that is full. */
#include "tools/bench_matmul.h"

extern "C" __global__ void cairn_bench_matmul(const __grid_constant__ struct bench_matmul m)
{
    __shared__ struct bench_matmul_tiles tiles;
    struct bench_matmul_sums sums = {};
    for (uint32_t step = 0; step < m.n; step += BENCH_MATMUL_STEP) {
        bench_matmul_fetch(&m, &tiles, blockIdx.x, threadIdx.x, step);
        __syncthreads();
        bench_matmul_add(&tiles, &sums, threadIdx.x);
        __syncthreads();
    }
    bench_matmul_store(&m, &sums, blockIdx.x, threadIdx.x);
}
