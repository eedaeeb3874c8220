#include "base/cuda_driver.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static bool find(cu_get_proc_address_fn get, const char *name, int version, void **ret)
{
    int status = 0;
    *ret = NULL;
    return get(name, ret, version, 0, &status) == CU_OK && status == CU_PROC_SUCCESS && *ret;
}

/* Functions as data pointers, as POSIX has it. */
static bool find_all(cu_get_proc_address_fn get, struct cuda_driver *d, const char **ret_missing)
{
    void *at;
#define CU_FIND(member, name, parameters)                \
    *ret_missing = #name;                                \
    if (!find(get, #name, CU_ABI, &at))                  \
        return false;                                    \
    memcpy(&d->member, &at, sizeof at);
    CU_CALLS(CU_FIND)
#undef CU_FIND
    return true;
}

/* A copy of many runs at once. Asked for by a plain name, a 13.x driver gives the form of 12.8. */
static void find_batch(cu_get_proc_address_fn get, struct cuda_driver *d)
{
    void *at;
    if (d->version >= 13000 && find(get, "cuMemcpyBatchAsync", 13000, &at))
        memcpy(&d->copy_batch_13000, &at, sizeof at);
    else if (d->version >= 12080 && find(get, "cuMemcpyBatchAsync", 12080, &at))
        memcpy(&d->copy_batch_12080, &at, sizeof at);
}

cairn_status cuda_driver_load(const char *path, struct cuda_driver *ret, char *why, size_t cap)
{
    const char *missing = "cuGetProcAddress_v2";
    cu_get_proc_address_fn get = NULL;
    struct cuda_driver d = {.version = 0};
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        snprintf(why, cap, "no CUDA driver: %s", dlerror());
        return CAIRN_NOTFOUND;
    }
    void *at = dlsym(lib, "cuGetProcAddress_v2");
    memcpy(&get, &at, sizeof at);
    if (!get || !find_all(get, &d, &missing)) {
        snprintf(why, cap, "%s has no %s: install driver 525 (CUDA 12.0) or later", path, missing);
        return CAIRN_VERSION;
    }
    const char *text = "unknown error";
    cu_result r = d.init(0);
    if (!r)
        r = d.driver_version(&d.version);
    if (r) {
        d.error_string(r, &text);
        snprintf(why, cap, "%s does not start: %s", path, text);
        return r == CU_NO_DEVICE ? CAIRN_NOTFOUND : CAIRN_IO;
    }
    find_batch(get, &d);
    *ret = d;
    return CAIRN_OK;
}
