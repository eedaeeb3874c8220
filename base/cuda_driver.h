/* The CUDA driver, loaded at run time: the same binary runs with and without one. */
#ifndef CAIRN_BASE_CUDA_DRIVER_H
#define CAIRN_BASE_CUDA_DRIVER_H

#include "base/cuda_api.h"
#include "base/types.h"

struct cuda_driver {
#define CU_MEMBER(member, name, parameters) cu_result(*member) parameters;
    CU_CALLS(CU_MEMBER)
#undef CU_MEMBER
    cu_copy_batch_12080_fn copy_batch_12080; /* one of the two, or none: driver < 12.8 */
    cu_copy_batch_13000_fn copy_batch_13000;
    int version;                             /* 13000 = 13.0 */
};

/* `path`: a file, or a name that the loader looks for. The library stays loaded. On failure one
 * sentence in why. */
cairn_status cuda_driver_load(const char *path, struct cuda_driver *ret, char *why, size_t cap);

#endif
