/* `cairn bench gpu`: what a load at full speed costs the kernels of the engine it runs beside. They
 * are a matmul that fills the GPU, launched again and again on the engine's own stream. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>

#include "tools/bench_gpu.h"
#include "tools/bench_matmul.h"

#define LAUNCHES 4u /* queued, so that the GPU never waits for the host */
#define N_MAX 4096u
#define MATRIX_BYTES ((size_t)N_MAX * N_MAX * sizeof(float))
#define LAUNCH_NS (4 * CAIRN_NS_PER_MS) /* many waves of blocks on the largest GPU */
#define CELLS_CHECKED 64u

static const struct bench_pages chunk = {"256-tokens", 65536, 16 * 32};

struct matmul {
    struct bench_gpu *g;
    cu_module module;
    cu_function function;
    cu_event done[LAUNCHES];
    cu_ptr matrix, product;
    uint32_t n;
};

/* Loads one after the other, in a thread of its own, until they are to end. */
struct load {
    struct bench_gpu *g;
    atomic_bool begun, ending;
    bool ok;
    uint64_t bytes, ns;
};

static bool launch(struct matmul *m, uint64_t turn)
{
    const struct cuda_driver *d = m->g->driver;
    struct bench_matmul of = {.matrix = m->matrix, .product = m->product, .n = m->n};
    uint32_t tiles = m->n / BENCH_MATMUL_TILE;
    void *parameters[] = {&of};
    return gpu_good(d->launch(m->function, tiles * tiles, 1, 1, BENCH_MATMUL_THREADS, 1, 1, 0,
                              m->g->streams[0], parameters, NULL), "cuLaunchKernel") &&
           gpu_good(d->event_record(m->done[turn % LAUNCHES], m->g->streams[0]), "cuEventRecord");
}

static bool launch_wait(struct matmul *m, uint64_t turn)
{
    return bench_gpu_wait(m->g, m->done[turn % LAUNCHES]);
}

/* Launches for `ns`, at least one; the mean time of one. */
static bool launches(struct matmul *m, uint64_t ns, double *ret_us)
{
    uint64_t begin = cairn_now_ns(), count = 0;
    bool ok = true;
    do {
        ok = (count < LAUNCHES || launch_wait(m, count)) && launch(m, count);
        count++;
    } while (ok && cairn_now_ns() - begin < ns);
    ok = ok && launch_wait(m, count - 1); /* and all before it */
    *ret_us = (double)(cairn_now_ns() - begin) / (double)count / 1e3;
    return ok;
}

/* Small whole numbers: their sums are exact. */
static float cell(uint32_t row, uint32_t column)
{
    return (float)((row * 2654435761u ^ column * 40503u) >> 7 & 7u);
}

static bool copy(struct matmul *m, cu_ptr to, cu_ptr from, size_t len)
{
    const struct cuda_driver *d = m->g->driver;
    return gpu_good(d->copy(to, from, len, m->g->streams[0]), "cuMemcpyAsync") &&
           gpu_good(d->event_record(m->done[0], m->g->streams[0]), "cuEventRecord") &&
           bench_gpu_wait(m->g, m->done[0]);
}

static bool matrix_fill(struct matmul *m)
{
    float *host = m->g->host.base;
    for (uint32_t row = 0; row < m->n; row++)
        for (uint32_t column = 0; column < m->n; column++)
            host[(size_t)row * m->n + column] = cell(row, column);
    return copy(m, m->matrix, (cu_ptr)(uintptr_t)host, (size_t)m->n * m->n * sizeof *host);
}

static bool product_right(struct matmul *m)
{
    float *host = m->g->host.base;
    if (!copy(m, (cu_ptr)(uintptr_t)host, m->product, (size_t)m->n * m->n * sizeof *host))
        return false;
    for (uint32_t i = 0; i < CELLS_CHECKED; i++) {
        uint64_t random = bench_random(&m->g->random[0]);
        uint32_t row = (uint32_t)(random % m->n), column = (uint32_t)((random >> 32) % m->n);
        float sum = 0;
        for (uint32_t k = 0; k < m->n; k++)
            sum += cell(row, k) * cell(k, column);
        if (host[(size_t)row * m->n + column] != sum)
            return bench_fail("gpu: the matmul is wrong: row %u, column %u of %u", row, column,
                              m->n);
    }
    return true;
}

/* The matrix with which a launch takes long enough. */
static bool matmul_size(struct matmul *m)
{
    double us = 0;
    for (m->n = BENCH_MATMUL_TILE; ; m->n *= 2) {
        /* The first one of all takes the driver's time too. */
        if (!matrix_fill(m) || !launches(m, 0, &us) || !launches(m, 0, &us))
            return false;
        if (m->n == N_MAX || us * 1e3 >= (double)LAUNCH_NS)
            return product_right(m);
    }
}

static void *load_run(void *arg)
{
    struct load *l = arg;
    size_t len = chunk.page * chunk.count;
    cu_context popped;
    uint64_t begin = cairn_now_ns();
    l->ok = gpu_good(l->g->driver->context_push(l->g->context), "cuCtxPushCurrent");
    bool pushed = l->ok;
    while (l->ok && !atomic_load_explicit(&l->ending, memory_order_relaxed)) {
        char *value = (char *)l->g->host.base + l->bytes % BENCH_GPU_POOL;
        l->ok = bench_gpu_move(l->g, &chunk, true, value);
        l->bytes += len;
        atomic_store_explicit(&l->begun, true, memory_order_relaxed);
    }
    l->ns = cairn_now_ns() - begin;
    atomic_store_explicit(&l->begun, true, memory_order_relaxed);
    if (pushed)
        l->g->driver->context_pop(&popped);
    return NULL;
}

/* The same launches while loads go on, from the first one's end to the last one's begin. */
static bool launches_beside(struct matmul *m, double *ret_us, struct bench_side *loads)
{
    struct load l = {.g = m->g};
    pthread_t thread;
    if (pthread_create(&thread, NULL, load_run, &l))
        return bench_fail("gpu: no thread can be started");
    while (!atomic_load_explicit(&l.begun, memory_order_relaxed))
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    bool ok = launches(m, m->g->round_ns, ret_us);
    atomic_store_explicit(&l.ending, true, memory_order_relaxed);
    pthread_join(thread, NULL);
    bench_side_add(loads, l.bytes, l.ns, 0);
    return ok && l.ok;
}

static void rows_add(struct bench *b, const char *way, double *alone, double *beside,
                     struct bench_side *loads, struct bench_side *limit)
{
    uint32_t rounds = loads->rounds;
    struct bench_row row = bench_row("us", "a launch alone");
    snprintf(row.name, sizeof row.name, "gpu-matmul-beside-%s", way);
    row.value = bench_median(beside, rounds);
    row.limit = bench_median(alone, rounds);
    row.ratio = row.value / row.limit;
    bench_add(b, &row);
    row = bench_row("GB/s", "one large pinned copy");
    snprintf(row.name, sizeof row.name, "gpu-load-beside-matmul-%s", way);
    row.value = bench_median(loads->rate, rounds);
    row.limit = bench_median(limit->rate, limit->rounds);
    row.ratio = row.value / row.limit;
    bench_add(b, &row);
}

/* All pages by one way, whatever was measured. */
static bool way_rows(struct bench *b, struct matmul *m, const char *name, size_t kernel_below)
{
    double alone[BENCH_ROUNDS_MAX], beside[BENCH_ROUNDS_MAX];
    struct bench_side loads = {.rounds = 0}, limit = {.rounds = 0};
    _Atomic size_t *below = &m->g->gpu->kernel_below[1];
    size_t measured = atomic_exchange_explicit(below, kernel_below, memory_order_relaxed);
    bool ok = true;
    for (uint64_t r = 0; ok && r < m->g->o->rounds; r++)
        ok = launches(m, m->g->round_ns, &alone[r]) && launches_beside(m, &beside[r], &loads) &&
             bench_gpu_limit(m->g, &limit);
    atomic_store_explicit(below, measured, memory_order_relaxed);
    ok = ok && product_right(m);
    if (ok)
        rows_add(b, name, alone, beside, &loads, &limit);
    return ok;
}

static void matmul_close(struct matmul *m)
{
    const struct cuda_driver *d = m->g->driver;
    for (uint32_t i = 0; i < LAUNCHES; i++)
        if (m->done[i])
            d->event_destroy(m->done[i]);
    if (m->matrix)
        d->free(m->matrix);
    if (m->product)
        d->free(m->product);
    if (m->module)
        d->module_unload(m->module);
}

static bool matmul_open(struct matmul *m)
{
    const struct cuda_driver *d = m->g->driver;
    bool ok = gpu_good(d->module_function(&m->function, m->module, "cairn_bench_matmul"),
                       "cuModuleGetFunction") &&
              gpu_good(d->alloc(&m->matrix, MATRIX_BYTES), "cuMemAlloc") &&
              gpu_good(d->alloc(&m->product, MATRIX_BYTES), "cuMemAlloc");
    for (uint32_t i = 0; ok && i < LAUNCHES; i++)
        ok = gpu_good(d->event_create(&m->done[i], CU_EVENT_DISABLE_TIMING), "cuEventCreate");
    return ok && matmul_size(m);
}

/* Without the kernels of the bench or of Cairn there is nothing to run, or one way of two. */
static const char *left_out(struct matmul *m)
{
    const void *image = bench_matmul_image();
    if (!image)
        return "this program was built without nvcc 13";
    if (m->g->driver->module_load(&m->module, image) != CU_OK || !m->g->gpu->copy_pages)
        return "the driver does not take its kernels, which need driver 580";
    return NULL;
}

bool bench_gpu_matmul(struct bench *b, struct bench_gpu *g)
{
    struct matmul m = {.g = g};
    const char *why = left_out(&m);
    bool ok = true;
    if (why)
        fprintf(stderr, "cairn: bench: gpu-matmul-beside-* is left out: %s\n", why);
    else
        ok = matmul_open(&m) && way_rows(b, &m, "engines", 0) &&
             way_rows(b, &m, "kernel", SIZE_MAX);
    matmul_close(&m);
    return ok;
}
