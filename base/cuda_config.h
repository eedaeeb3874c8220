/* What the upper layers say and ask about CUDA. */
#ifndef CAIRN_BASE_CUDA_CONFIG_H
#define CAIRN_BASE_CUDA_CONFIG_H

#include "base/types.h"

#define CAIRN_CUDA_PATH_MAX 512

/* The driver that is loaded when the first device memory is seen: a path, or a name that the loader
 * looks for (libcuda.so.1 when nothing is said); "" = none. One a process: CAIRN_STATE if another
 * one was loaded already. */
cairn_status cairn_cuda_use(const char *path);
/* The value of an option cuda=: auto (as above), no, or a path. One sentence in err. */
#define CAIRN_CUDA_OPTION_HELP \
    "driver for GPU memory, loaded when the first is seen: auto = libcuda.so.1, no, or a path"
cairn_status cairn_cuda_option(const char *value, char *err, size_t err_cap);
/* What was found and why not, as one JSON object (lengths as of snprintf). Loads the driver. */
size_t cairn_cuda_describe(char *out, size_t cap);
/* Forgets driver and GPUs: for tests, when nothing of it is in use. */
void cairn_cuda_close(void);
/* The kernels for all architectures as one image; NULL: built without. */
const void *cairn_cuda_kernels(void);

#endif
