/* Kernels as C functions, found by name: Cairn's own text of what each thread does. They see device
 * memory through memory_bytes: its addresses themselves can be used by nobody. */
#include <stdlib.h>
#include <string.h>

#include "base/cuda_pages.h"
#include "tests/emulation/emulation.h"
#include "tools/bench_matmul.h"

/* A tile behind the end of its page would make the threads run over it. */
static bool tiles_right(const struct cairn_page_table *t)
{
    if (t->count == 0 || t->count > CAIRN_PAGES_MAX)
        return false;
    for (uint32_t tile = 0; tile < t->tiles; tile++) {
        const struct cairn_page *p = &t->pages[cairn_tile_page(t->pages, t->count, tile)];
        uint64_t from = (uint64_t)(tile - p->first_tile) * CAIRN_TILE_BYTES;
        if (tile < p->first_tile || from >= p->len)
            return false;
    }
    return true;
}

/* The table with addresses that can be used, or NULL. */
static struct cairn_page_table *usable(const struct launch *l, const struct context *c)
{
    struct cairn_page_table *t = malloc(sizeof(*t));
    bool right;

    if (!t)
        abort();
    memcpy(t, l->parameter, sizeof(*t));
    right = tiles_right(t);
    if (!right)
        violation("%s: %u pages, %u tiles: a tile is behind the end of its page", l->kernel->name,
                  t->count, t->tiles);
    for (uint32_t i = 0; right && i < t->count; i++) {
        struct cairn_page *p = &t->pages[i];
        void *device = memory_bytes(p->device, p->len, t->to_device, c, l->kernel->name);
        void *host = memory_bytes(p->host, p->len, !t->to_device, c, l->kernel->name);
        p->device = (uint64_t)(uintptr_t)device;
        p->host = (uint64_t)(uintptr_t)host;
        right = device && host;
    }
    if (right)
        return t;
    free(t);
    return NULL;
}

static bool copy_pages_uses(const struct launch *l, cu_ptr at, size_t len)
{
    const struct cairn_page_table *t = l->parameter;

    for (uint32_t i = 0; i < t->count && i < CAIRN_PAGES_MAX; i++) {
        const struct cairn_page *p = &t->pages[i];
        if (overlap(p->device, p->len, at, len) || overlap(p->host, p->len, at, len))
            return true;
    }
    return false;
}

static cu_result copy_pages_run(const struct launch *l, const struct context *c,
                                unsigned int block)
{
    struct cairn_page_table *t = usable(l, c);

    if (!t)
        return CU_ILLEGAL_ADDRESS;
    for (uint32_t thread = l->threads; thread-- > 0;)
        cairn_copy_pages_thread(t, block, l->blocks, thread, l->threads);
    free(t);
    return CU_OK;
}

static size_t matrix_bytes(const struct bench_matmul *m)
{
    return (size_t)m->n * m->n * sizeof(float);
}

static bool matmul_uses(const struct launch *l, cu_ptr at, size_t len)
{
    const struct bench_matmul *m = l->parameter;

    return overlap(m->matrix, matrix_bytes(m), at, len) ||
           overlap(m->product, matrix_bytes(m), at, len);
}

/* Where the threads of a block wait for each other, all of them get there before one goes on. */
static void matmul_block(const struct bench_matmul *m, unsigned int block)
{
    struct bench_matmul_tiles tiles;
    struct bench_matmul_sums sums[BENCH_MATMUL_THREADS] = {0};

    for (uint32_t step = 0; step < m->n; step += BENCH_MATMUL_STEP) {
        for (uint32_t thread = BENCH_MATMUL_THREADS; thread-- > 0;)
            bench_matmul_fetch(m, &tiles, block, thread, step);
        for (uint32_t thread = BENCH_MATMUL_THREADS; thread-- > 0;)
            bench_matmul_add(&tiles, &sums[thread], thread);
    }
    for (uint32_t thread = BENCH_MATMUL_THREADS; thread-- > 0;)
        bench_matmul_store(m, &sums[thread], block, thread);
}

static cu_result matmul_run(const struct launch *l, const struct context *c, unsigned int block)
{
    struct bench_matmul m = *(const struct bench_matmul *)l->parameter;
    uint32_t across = m.n / BENCH_MATMUL_TILE;
    void *matrix = memory_bytes(m.matrix, matrix_bytes(&m), false, c, l->kernel->name);
    void *product = memory_bytes(m.product, matrix_bytes(&m), true, c, l->kernel->name);

    if (m.n % BENCH_MATMUL_TILE || l->blocks != across * across ||
        l->threads != BENCH_MATMUL_THREADS) {
        violation("%s: %u blocks of %u threads for a matrix of %u", l->kernel->name, l->blocks,
                  l->threads, m.n);
        return CU_ILLEGAL_ADDRESS;
    }
    if (!matrix || !product)
        return CU_ILLEGAL_ADDRESS;
    m.matrix = (uint64_t)(uintptr_t)matrix;
    m.product = (uint64_t)(uintptr_t)product;
    matmul_block(&m, block);
    return CU_OK;
}

static const struct kernel kernels[] = {
    {.name = "cairn_copy_pages",
     .parameter_len = sizeof(struct cairn_page_table),
     .uses = copy_pages_uses,
     .run = copy_pages_run},
    {.name = "cairn_bench_matmul",
     .parameter_len = sizeof(struct bench_matmul),
     .uses = matmul_uses,
     .run = matmul_run},
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
