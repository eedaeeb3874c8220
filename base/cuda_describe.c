#include <stdio.h>
#include <string.h>

#include "base/cuda.h"
#include "base/cuda_config.h"

/* A name from the driver, safe inside JSON. */
static void plain(char *text)
{
    for (; *text; text++)
        if (*text == '"' || *text == '\\' || (unsigned char)*text < ' ')
            *text = '\'';
}

/* What is known once the GPU is in use: the ways that its pages go. */
static size_t ways_text(const struct cuda_gpu *g, char *out, size_t cap)
{
    if (!g)
        return (size_t)snprintf(out, cap, "null");
    return (size_t)snprintf(out, cap, "{\"from_gpu\":%zu,\"to_gpu\":%zu,\"measured\":%s}",
                            atomic_load_explicit(&g->kernel_below[0], memory_order_relaxed),
                            atomic_load_explicit(&g->kernel_below[1], memory_order_relaxed),
                            atomic_load_explicit(&g->measured, memory_order_relaxed) ? "true"
                                                                                     : "false");
}

static size_t gpu_text(const struct cuda_driver *d, int i, char *out, size_t cap)
{
    cu_device device;
    char name[64] = "?", ways[128];
    int major = 0, minor = 0, read_only = 0;
    if (d->device_get(&device, i) != CU_OK)
        return (size_t)snprintf(out, cap, "null");
    d->device_name(name, sizeof name, device);
    d->device_attribute(&major, CU_DEVICE_COMPUTE_MAJOR, device);
    d->device_attribute(&minor, CU_DEVICE_COMPUTE_MINOR, device);
    d->device_attribute(&read_only, CU_DEVICE_READ_ONLY_REGISTER, device);
    plain(name);
    ways_text(cuda_gpu_on(device), ways, sizeof ways);
    return (size_t)snprintf(out, cap, "{\"name\":\"%s\",\"compute\":\"%d.%d\","
                                      "\"read_only_register\":%s,\"kernel_below\":%s}",
                            name, major, minor, read_only ? "true" : "false", ways);
}

size_t cairn_cuda_describe(char *out, size_t cap)
{
    const char *why;
    const struct cuda_driver *d = cuda_driver(&why);
    char devices[4096] = "", reason[256];
    size_t at = 0;
    int count = 0;
    snprintf(reason, sizeof reason, "%s", why);
    plain(reason);
    if (d)
        d->device_count(&count);
    for (int i = 0; i < count && at + 320 < sizeof devices; i++) {
        at += (size_t)snprintf(devices + at, sizeof devices - at, "%s", i ? "," : "");
        at += gpu_text(d, i, devices + at, sizeof devices - at);
    }
    const char *copies = !d                     ? "none"
                         : d->copy_batch_13000 ? "batched (13.0)"
                         : d->copy_batch_12080 ? "batched (12.8)"
                                               : "one by one";
    return (size_t)snprintf(out, cap,
                            "{\"driver\":%d,\"why_not\":\"%s\",\"copies\":\"%s\","
                            "\"kernels\":\"%s\",\"devices\":[%s]}",
                            d ? d->version : 0, reason, copies,
                            cairn_cuda_kernels() ? "built in" : "left out: built without nvcc 13",
                            devices);
}
