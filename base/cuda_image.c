/* The kernels of all architectures, as nvcc made them. */
#include "base/cuda_config.h"
#include "base/cuda_image.h"

#ifdef CAIRN_CUDA_FATBIN
CAIRN_CUDA_IMAGE(cairn_cuda_fatbin);

const void *cairn_cuda_kernels(void)
{
    return cairn_cuda_fatbin;
}
#else
const void *cairn_cuda_kernels(void)
{
    return NULL;
}
#endif
