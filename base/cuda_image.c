/* The kernels of all architectures, as nvcc made them. */
#include "base/cuda_config.h"

#ifdef CAIRN_CUDA_FATBIN
__asm__(".section .rodata\n"
        ".balign 64\n"
        "cairn_cuda_fatbin:\n"
        ".incbin \"" CAIRN_CUDA_FATBIN "\"\n"
        ".byte 0\n"
        ".previous\n");
extern const char cairn_cuda_fatbin[];

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
