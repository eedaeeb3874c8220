/* Kernels inside the program: the file that the build made of them with nvcc (CAIRN_CUDA_FATBIN, of
 * deploy/cmake/cuda.cmake) as bytes with a name. */
#ifndef CAIRN_BASE_CUDA_IMAGE_H
#define CAIRN_BASE_CUDA_IMAGE_H

#define CAIRN_CUDA_IMAGE(name)             \
    __asm__(".section .rodata\n"           \
            ".balign 64\n" #name ":\n"     \
            ".incbin \"" CAIRN_CUDA_FATBIN \
            "\"\n"                         \
            ".byte 0\n"                    \
            ".previous\n");                \
    extern const char name[]

#endif
