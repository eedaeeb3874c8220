/* Kernels as C functions, found by name. They see device memory through memory_bytes: its addresses
 * themselves can be used by nobody. */
#include <stdlib.h>
#include <string.h>

#include "tests/emulation/emulation.h"

struct cairn_page {
    uint64_t device, host;
    uint32_t len, first_tile;
};

struct copy_pages {
    cu_ptr pages;
    uint32_t tile_count, page_count, to_device;
};

static struct copy_pages copy_pages_of(const struct launch *l)
{
    return (struct copy_pages){.pages = l->parameters[0],
                               .tile_count = (uint32_t)l->parameters[1],
                               .page_count = (uint32_t)l->parameters[2],
                               .to_device = (uint32_t)l->parameters[3]};
}

static bool copy_pages_uses(const struct launch *l, const struct context *c, cu_ptr at, size_t len)
{
    struct copy_pages p = copy_pages_of(l);
    size_t table_len = p.page_count * sizeof(struct cairn_page);
    const unsigned char *table = memory_bytes(p.pages, table_len, false, c, NULL);

    if (overlap(p.pages, table_len, at, len))
        return true;
    for (uint32_t i = 0; table && i < p.page_count; i++) {
        struct cairn_page page;
        memcpy(&page, table + i * sizeof(page), sizeof(page));
        if (overlap(page.device, page.len, at, len) || overlap(page.host, page.len, at, len))
            return true;
    }
    return false;
}

static cu_result copy_pages_run(const struct launch *l, const struct context *c, bool part)
{
    const char *name = l->kernel->name;
    struct copy_pages p = copy_pages_of(l);
    size_t table_len = p.page_count * sizeof(struct cairn_page);
    const unsigned char *table = memory_bytes(p.pages, table_len, false, c, name);

    if (!table)
        return CU_ILLEGAL_ADDRESS;
    for (uint32_t i = 0; i < (part ? p.page_count / 2 : p.page_count); i++) {
        struct cairn_page page;
        unsigned char *device, *host;
        memcpy(&page, table + i * sizeof(page), sizeof(page));
        device = memory_bytes(page.device, page.len, p.to_device, c, name);
        host = memory_bytes(page.host, page.len, !p.to_device, c, name);
        if (!device || !host)
            return CU_ILLEGAL_ADDRESS;
        memcpy(p.to_device ? device : host, p.to_device ? host : device, page.len);
    }
    return CU_OK;
}

static const struct kernel kernels[] = {
    {.name = "cairn_copy_pages",
     .parameter_len = {8, 4, 4, 4},
     .uses = copy_pages_uses,
     .run = copy_pages_run},
};
enum { KERNELS = sizeof(kernels) / sizeof(kernels[0]) };

struct function {
    cu_function handle;
    struct module *module;
    const struct kernel *kernel;
};

struct module *module_new(struct context *c)
{
    struct module *m = calloc(1, sizeof(*m));

    if (!m)
        abort();
    m->context = c;
    m->handle = handle_new(HANDLE_MODULE, m);
    return m;
}

void module_end(struct module *m)
{
    struct function *f;

    for (size_t at = 0; (f = handle_next(HANDLE_FUNCTION, &at));) {
        if (f->module == m)
            free(handle_end(HANDLE_FUNCTION, f->handle));
    }
    free(handle_end(HANDLE_MODULE, m->handle));
}

cu_function module_function(struct module *m, const char *name)
{
    struct function *f;
    size_t i = 0;

    while (i < KERNELS && strcmp(kernels[i].name, name))
        i++;
    if (i == KERNELS)
        return NULL;
    f = calloc(1, sizeof(*f));
    if (!f)
        abort();
    f->module = m;
    f->kernel = &kernels[i];
    f->handle = handle_new(HANDLE_FUNCTION, f);
    return f->handle;
}

const struct kernel *function_kernel(cu_function function, struct context *c, const char *call)
{
    struct function *f = handle_object(HANDLE_FUNCTION, function, call);

    if (f && f->module->context == c)
        return f->kernel;
    if (f)
        violation("%s: the kernel was loaded in another context than the current one", call);
    return NULL;
}
