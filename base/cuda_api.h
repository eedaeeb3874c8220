/* What Cairn uses of the CUDA driver API, declared here so that neither a toolkit nor a driver is
 * needed to build. Types and values are those of the driver's ABI (cuda.h 12.0 and later). */
#ifndef CAIRN_BASE_CUDA_API_H
#define CAIRN_BASE_CUDA_API_H

#include <stddef.h>
#include <stdint.h>

typedef int cu_result;
typedef int cu_device;
typedef uint64_t cu_ptr; /* CUdeviceptr */
typedef struct CUctx_st *cu_context;
typedef struct CUstream_st *cu_stream;
typedef struct CUevent_st *cu_event;
typedef struct CUmod_st *cu_module;
typedef struct CUfunc_st *cu_function;

enum {
    CU_OK = 0,
    CU_INVALID_VALUE = 1,
    CU_OUT_OF_MEMORY = 2,
    CU_NOT_INITIALIZED = 3,
    CU_NO_DEVICE = 100,
    CU_INVALID_CONTEXT = 201,
    CU_NO_BINARY_FOR_GPU = 209,
    CU_INVALID_HANDLE = 400,
    CU_NOT_FOUND = 500,
    CU_NOT_READY = 600,
    CU_ILLEGAL_ADDRESS = 700,
    CU_CONTEXT_IS_DESTROYED = 709,
    CU_HOST_MEMORY_ALREADY_REGISTERED = 712,
    CU_HOST_MEMORY_NOT_REGISTERED = 713,
    CU_NOT_PERMITTED = 800,
    CU_NOT_SUPPORTED = 801,
    CU_STREAM_CAPTURE_UNSUPPORTED = 900,
    CU_STREAM_CAPTURE_ISOLATION = 905,
    CU_STREAM_CAPTURE_WRONG_THREAD = 908,
    CU_UNKNOWN = 999,
};

enum {
    CU_EVENT_DISABLE_TIMING = 2,
    CU_STREAM_NON_BLOCKING = 1,
    CU_STREAM_PER_THREAD = 2, /* a handle, as 1 is and NULL: the legacy stream */
    CU_CAPTURE_NONE = 0,
    CU_CAPTURE_MODE_RELAXED = 2,
    CU_REGISTER_PORTABLE = 1,
    CU_REGISTER_DEVICEMAP = 2,
    CU_REGISTER_READ_ONLY = 8,
    CU_DEVICE_COMPUTE_MAJOR = 75,
    CU_DEVICE_COMPUTE_MINOR = 76,
    CU_DEVICE_READ_ONLY_REGISTER = 113,
    CU_POINTER_CONTEXT = 1,
    CU_POINTER_MEMORY_TYPE = 2,
    CU_POINTER_ORDINAL = 9,
    CU_POINTER_RANGE_START = 11,
    CU_POINTER_RANGE_SIZE = 12,
    CU_MEMORY_HOST = 1,
    CU_MEMORY_DEVICE = 2,
    CU_ACCESS_ORDER_STREAM = 1,
    CU_PROC_SUCCESS = 0,
};

struct cu_location {
    int type, id;
};

struct cu_copy_attributes {
    int access_order; /* CU_ACCESS_ORDER_* */
    struct cu_location src, dst;
    unsigned int flags;
};

typedef cu_result (*cu_get_proc_address_fn)(const char *name, void **ret, int version,
                                            uint64_t flags, int *status);
/* The batched copy has another signature in each of two versions. */
typedef cu_result (*cu_copy_batch_12080_fn)(cu_ptr *dst, cu_ptr *src, size_t *len, size_t count,
                                            struct cu_copy_attributes *attributes, size_t *first,
                                            size_t attribute_count, size_t *failed,
                                            cu_stream stream);
typedef cu_result (*cu_copy_batch_13000_fn)(cu_ptr *dst, cu_ptr *src, size_t *len, size_t count,
                                            struct cu_copy_attributes *attributes, size_t *first,
                                            size_t attribute_count, cu_stream stream);

/* Every other call: X(member, name in the driver, parameters). All are taken with the ABI of 12.0,
 * by cuGetProcAddress(name, 12000). */
#define CU_ABI 12000
#define CU_CALLS(X)                                                                              \
    X(init, cuInit, (unsigned int flags))                                                        \
    X(driver_version, cuDriverGetVersion, (int *ret))                                            \
    X(error_string, cuGetErrorString, (cu_result error, const char **ret))                       \
    X(device_count, cuDeviceGetCount, (int *ret))                                                \
    X(device_get, cuDeviceGet, (cu_device *ret, int ordinal))                                    \
    X(device_name, cuDeviceGetName, (char *out, int cap, cu_device device))                      \
    X(device_attribute, cuDeviceGetAttribute, (int *ret, int attribute, cu_device device))       \
    X(primary_state, cuDevicePrimaryCtxGetState,                                                 \
      (cu_device device, unsigned int *flags, int *active))                                      \
    X(primary_retain, cuDevicePrimaryCtxRetain, (cu_context *ret, cu_device device))             \
    X(primary_release, cuDevicePrimaryCtxRelease, (cu_device device))                            \
    X(context_push, cuCtxPushCurrent, (cu_context context))                                      \
    X(context_pop, cuCtxPopCurrent, (cu_context *ret))                                           \
    X(context_id, cuCtxGetId, (cu_context context, uint64_t * ret))                              \
    X(context_device, cuCtxGetDevice, (cu_device *ret))                                          \
    X(capture_mode, cuThreadExchangeStreamCaptureMode, (int *mode))                              \
    X(pointer_attributes, cuPointerGetAttributes,                                                \
      (unsigned int count, int *attributes, void **values, cu_ptr pointer))                      \
    X(stream_create, cuStreamCreate, (cu_stream *ret, unsigned int flags))                       \
    X(stream_destroy, cuStreamDestroy, (cu_stream stream))                                       \
    X(stream_context, cuStreamGetCtx, (cu_stream stream, cu_context *ret))                       \
    X(stream_capturing, cuStreamIsCapturing, (cu_stream stream, int *ret))                       \
    X(stream_wait, cuStreamWaitEvent, (cu_stream stream, cu_event event, unsigned int flags))    \
    X(event_create, cuEventCreate, (cu_event *ret, unsigned int flags))                          \
    X(event_destroy, cuEventDestroy, (cu_event event))                                           \
    X(event_record, cuEventRecord, (cu_event event, cu_stream stream))                           \
    X(event_query, cuEventQuery, (cu_event event))                                               \
    X(copy, cuMemcpyAsync, (cu_ptr dst, cu_ptr src, size_t len, cu_stream stream))               \
    X(host_register, cuMemHostRegister, (void *base, size_t len, unsigned int flags))            \
    X(host_unregister, cuMemHostUnregister, (void *base))                                        \
    X(host_pointer, cuMemHostGetDevicePointer, (cu_ptr * ret, void *base, unsigned int flags))   \
    X(alloc, cuMemAlloc, (cu_ptr * ret, size_t len))                                             \
    X(free, cuMemFree, (cu_ptr pointer))                                                         \
    X(module_load, cuModuleLoadData, (cu_module * ret, const void *image))                       \
    X(module_function, cuModuleGetFunction,                                                      \
      (cu_function * ret, cu_module module, const char *name))                                   \
    X(module_unload, cuModuleUnload, (cu_module module))                                         \
    X(launch, cuLaunchKernel,                                                                    \
      (cu_function function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,      \
       unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared,    \
       cu_stream stream, void **parameters, void **extra))

#endif
