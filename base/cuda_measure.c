/* The kernels of a GPU, loaded in the background: that takes the driver milliseconds, for which no
 * thread of an engine is to wait. And from which page size on the copy engines beat them, each
 * direction: measured once a process and GPU, beside the moves. It costs 50 ms and 2 MiB of the
 * GPU. What an error or the time leaves out keeps what it was. */
#include "base/clock.h"
#include "base/cuda.h"
#include "base/cuda_config.h"
#include "base/log.h"

#define BUDGET_NS (50 * CAIRN_NS_PER_MS)
#define STEPS 4u /* so many under way that the link counts and the first page's way does not */
#define SAMPLES 3u
#define BELOW (32u << 10) /* bytes of a page, where nothing was measured */
#define PAGE_MIN (2u << 10)
#define PAGE_MAX (256u << 10)
#define MEMORY_BYTES (2u << 20)

struct measure {
    struct cuda_lane *lane;
    const struct cuda_driver *driver;
    cu_ptr memory;
    uint64_t deadline_ns;
};

static _Atomic size_t fixed;
static _Atomic uint64_t budget = BUDGET_NS;

void cuda_measure_set(size_t below, uint64_t budget_ns)
{
    atomic_store_explicit(&fixed, below, memory_order_relaxed);
    atomic_store_explicit(&budget, budget_ns, memory_order_relaxed);
}

/* A step's pages lie one behind the other in the value and anywhere in the device's memory. */
static bool queue_step(struct measure *m, uint32_t step, size_t page, bool to_device,
                       enum cuda_way way)
{
    struct cuda_run runs[CUDA_STEP_RUNS];
    uint32_t count = (uint32_t)(CUDA_STEP_BYTES / page);
    cu_ptr memory = m->memory + (cu_ptr)step * CUDA_STEP_BYTES % MEMORY_BYTES;
    for (uint32_t i = 0; i < count; i++) {
        size_t at = (size_t)step * CUDA_STEP_BYTES + i * page;
        runs[i] = (struct cuda_run){.device = memory + (cu_ptr)(i * 3u % count) * page,
                                    .host = m->lane->stage + at,
                                    .host_device = m->lane->stage_device + at,
                                    .len = page};
    }
    return cuda_copy_by(m->lane, runs, count, to_device, way);
}

/* All that was queued is done on return. Asked for without a pause: a sleep takes as long as what
 * is measured. */
static bool sample(struct measure *m, size_t page, bool to_device, enum cuda_way way,
                   uint64_t *ret_ns)
{
    uint64_t begin = cairn_now_ns();
    bool queued = true;
    for (uint32_t i = 0; i < STEPS && queued; i++)
        queued = queue_step(m, i, page, to_device, way);
    if (!cuda_lane_mark(m->lane, 0))
        return false;
    while (m->driver->event_query(m->lane->done[0]) == CU_NOT_READY &&
           cairn_now_ns() < m->deadline_ns)
        ;
    bool done = cuda_lane_wait(m->lane, 0) == CAIRN_OK;
    uint64_t end = cairn_now_ns();
    *ret_ns = end - begin;
    return queued && done && end < m->deadline_ns;
}

static bool best(struct measure *m, size_t page, bool to_device, enum cuda_way way,
                 uint64_t *ret_ns)
{
    uint64_t ns;
    *ret_ns = UINT64_MAX;
    for (uint32_t i = 0; i < SAMPLES; i++) {
        if (!sample(m, page, to_device, way, &ns))
            return false;
        *ret_ns = ns < *ret_ns ? ns : *ret_ns;
    }
    return true;
}

/* Where they are equal the engines have it: they take nothing from the engine's own kernels. */
static bool engines_win(uint64_t engine_ns, uint64_t kernel_ns)
{
    return engine_ns <= kernel_ns + kernel_ns / 20;
}

static bool crossover(struct measure *m, bool to_device, size_t *ret_below)
{
    uint64_t engine_ns, kernel_ns;
    size_t page = PAGE_MIN;
    for (; page <= PAGE_MAX; page *= 2) {
        if (!best(m, page, to_device, CUDA_WAY_ENGINE, &engine_ns) ||
            !best(m, page, to_device, CUDA_WAY_KERNEL, &kernel_ns))
            return false;
        if (engines_win(engine_ns, kernel_ns))
            break;
    }
    *ret_below = page;
    return true;
}

static bool ready(struct measure *m, struct cuda_gpu *g)
{
    if (!cuda_lane_stage(m->lane))
        return false;
    /* Kept to the end: giving it back would wait for all that runs on the device. */
    if (!g->measure_memory &&
        !cuda_ok(g, "cuMemAlloc", m->driver->alloc(&g->measure_memory, MEMORY_BYTES)))
        g->measure_memory = 0;
    m->memory = g->measure_memory;
    return m->memory != 0;
}

static void set_below(struct cuda_gpu *g, size_t from_gpu, size_t to_gpu)
{
    atomic_store_explicit(&g->kernel_below[0], from_gpu, memory_order_release);
    atomic_store_explicit(&g->kernel_below[1], to_gpu, memory_order_release);
}

static void measure_both(struct cuda_gpu *g)
{
    const char *why;
    size_t below[2];
    uint64_t deadline = cairn_deadline_ns(atomic_load_explicit(&budget, memory_order_relaxed));
    struct measure m = {.driver = cuda_driver(&why), .deadline_ns = deadline};
    if (!m.driver || !(m.lane = cuda_lane_take(g, m.deadline_ns)))
        return;
    if (ready(&m, g) && crossover(&m, false, &below[0]) && crossover(&m, true, &below[1])) {
        set_below(g, below[0], below[1]);
        atomic_store_explicit(&g->measured, true, memory_order_relaxed);
        cairn_log(CAIRN_LOG_INFO, "GPU %s: pages shorter than %zu bytes go to it by a kernel, "
                                  "shorter than %zu come from it so", g->name, below[1], below[0]);
    }
    cuda_lane_give(m.lane);
}

static bool kernels_load(struct cuda_gpu *g)
{
    const char *why, *text = "unknown error";
    const struct cuda_driver *d = cuda_driver(&why);
    const void *image = cairn_cuda_kernels();
    if (!d || !image)
        return false;
    cu_result r = d->module_load(&g->module, image);
    if (!r)
        r = d->module_function(&g->copy_pages, g->module, "cairn_copy_pages");
    if (!r)
        return true;
    d->error_string(r, &text);
    cairn_log(CAIRN_LOG_INFO, "GPU %s: pages are moved by the copy engines alone, the kernels "
                              "(which need driver 580) were not taken: %s", g->name, text);
    return false;
}

void cuda_measure(struct cuda_gpu *g)
{
    struct cuda_entry e;
    size_t below = atomic_load_explicit(&fixed, memory_order_relaxed);
    if (atomic_load_explicit(&g->kernel_below[0], memory_order_relaxed) == 0)
        return;
    if (below) {
        set_below(g, below, below);
    } else if (cuda_enter(g, &e)) {
        measure_both(g);
        cuda_leave(&e);
    }
}

void cuda_kernels_begin(struct cuda_gpu *g)
{
    struct cuda_entry e;
    if (!cuda_enter(g, &e))
        return;
    if (kernels_load(g))
        set_below(g, BELOW, BELOW); /* from here on moves use them */
    cuda_leave(&e);
    cuda_measure(g);
}
