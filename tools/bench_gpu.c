/* `cairn bench gpu`: moves between host memory and a GPU's pages, beside one large copy of pinned
 * memory in the same direction. The program is its own engine: it makes the device's primary
 * context, with the driver's table that Cairn loads too. */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/cuda_config.h"
#include "base/move.h"
#include "tools/bench_gpu.h"

/* 16-token blocks of 8 KV heads x 128 x bf16, K and V together, 32 layers; and of 576 x bf16 in
 * 61 layers. */
static const struct bench_pages shapes[] = {
    {"256-tokens", 65536, 16 * 32}, {"64-tokens", 65536, 4 * 32}, {"16-tokens", 65536, 32},
    {"mla-256-tokens", 18432, 16 * 61}, {"mla-64-tokens", 18432, 4 * 61},
    {"mla-16-tokens", 18432, 61},
};

/* One direction's share of a round, in a thread of its own where both go at once. */
struct way {
    struct bench_gpu *g;
    const struct bench_pages *shape; /* NULL: the limit */
    bool to_gpu, ok;
    size_t from, len; /* of the host memory */
    uint64_t bytes, ns;
};

static bool gpu_open(struct bench_gpu *g)
{
    const struct cuda_driver *d = g->driver;
    return gpu_good(d->device_get(&g->device, 0), "cuDeviceGet") &&
           gpu_good(d->primary_retain(&g->context, g->device), "cuDevicePrimaryCtxRetain") &&
           gpu_good(d->context_push(g->context), "cuCtxPushCurrent") &&
           gpu_good(d->stream_create(&g->streams[0], CU_STREAM_NON_BLOCKING), "cuStreamCreate") &&
           gpu_good(d->stream_create(&g->streams[1], CU_STREAM_NON_BLOCKING), "cuStreamCreate") &&
           gpu_good(d->event_create(&g->events[0], CU_EVENT_DISABLE_TIMING), "cuEventCreate") &&
           gpu_good(d->event_create(&g->events[1], CU_EVENT_DISABLE_TIMING), "cuEventCreate") &&
           gpu_good(d->alloc(&g->memory, 2 * BENCH_GPU_POOL), "cuMemAlloc") &&
           gpu_good(d->alloc(&g->flat, BENCH_GPU_POOL), "cuMemAlloc");
}

static void gpu_close(struct bench_gpu *g)
{
    const struct cuda_driver *d = g->driver;
    cairn_cuda_close();
    for (int i = 0; i < 2; i++) {
        if (g->events[i])
            d->event_destroy(g->events[i]);
        if (g->streams[i])
            d->stream_destroy(g->streams[i]);
    }
    if (g->memory)
        d->free(g->memory);
    if (g->flat)
        d->free(g->flat);
    if (g->context) {
        d->context_pop(&g->context);
        d->primary_release(g->device);
    }
}

struct cairn_sgl bench_gpu_pick(struct bench_gpu *g, const struct bench_pages *s, bool to_gpu)
{
    struct cairn_iov *iov = g->iov[to_gpu];
    size_t slots = BENCH_GPU_POOL / s->page, at = bench_random(&g->random[to_gpu]) % slots;
    cu_ptr half = g->memory + (to_gpu ? BENCH_GPU_POOL : 0);
    for (uint32_t i = 0; i < s->count; i++) {
        iov[i] = (struct cairn_iov){(void *)(uintptr_t)(half + at * s->page), s->page};
        at = (at + 3) % slots;
    }
    for (uint32_t i = s->count; i > 1; i--) {
        uint32_t k = (uint32_t)(bench_random(&g->random[to_gpu]) % i);
        struct cairn_iov swap = iov[i - 1];
        iov[i - 1] = iov[k];
        iov[k] = swap;
    }
    return (struct cairn_sgl){.iov = iov, .count = s->count, .mem = CAIRN_MEM_CUDA,
                              .stream = g->streams[to_gpu]};
}

bool bench_gpu_wait(struct bench_gpu *g, cu_event e)
{
    cu_result r;
    while ((r = g->driver->event_query(e)) == CU_NOT_READY)
        ;
    return gpu_good(r, "cuEventQuery");
}

/* What was queued on the stream is done. */
static bool stream_wait(struct bench_gpu *g, bool to_gpu)
{
    cu_event e = g->events[to_gpu];
    return gpu_good(g->driver->event_record(e, g->streams[to_gpu]), "cuEventRecord") &&
           bench_gpu_wait(g, e);
}

/* The limit: all of it in one copy. */
static bool copy_flat(struct way *w)
{
    struct bench_gpu *g = w->g;
    cu_ptr host = (cu_ptr)(uintptr_t)g->host.base + w->from, flat = g->flat + w->from;
    w->bytes += w->len;
    return gpu_good(g->driver->copy(w->to_gpu ? flat : host, w->to_gpu ? host : flat, w->len,
                                    g->streams[w->to_gpu]), "cuMemcpyAsync") &&
           stream_wait(g, w->to_gpu);
}

bool bench_gpu_move(struct bench_gpu *g, const struct bench_pages *s, bool to_gpu, void *value)
{
    size_t len = s->page * s->count;
    struct cairn_sgl list = bench_gpu_pick(g, s, to_gpu);
    uint64_t deadline = cairn_deadline_ns(BENCH_GPU_TIMEOUT);
    cairn_status st = to_gpu ? cairn_move_out(&list, 0, value, len, 0, len, NULL, deadline)
                             : cairn_move_in(value, &list, 0, len, NULL, deadline);
    return st == CAIRN_OK || bench_fail("gpu: a move failed: %s", cairn_status_name(st));
}

static bool move_chunk(struct way *w, uint64_t turn)
{
    size_t len = w->shape->page * w->shape->count;
    char *value = (char *)w->g->host.base + w->from + turn % (w->len / len) * len;
    w->bytes += len;
    return bench_gpu_move(w->g, w->shape, w->to_gpu, value);
}

static void *way_run(void *arg)
{
    struct way *w = arg;
    cu_context popped;
    uint64_t begin = cairn_now_ns(), end = begin + w->g->round_ns, turn = 0;
    w->ok = gpu_good(w->g->driver->context_push(w->g->context), "cuCtxPushCurrent");
    if (!w->ok)
        return NULL;
    do {
        w->ok = w->shape ? move_chunk(w, turn++) : copy_flat(w);
    } while (w->ok && cairn_now_ns() < end);
    w->ns = cairn_now_ns() - begin;
    w->g->driver->context_pop(&popped);
    return NULL;
}

/* A round of one direction or, with half the host memory each, of both. */
static bool round_run(struct bench_gpu *g, const struct bench_pages *s, int direction,
                      struct bench_side *side)
{
    struct way w[2];
    pthread_t other;
    bool both = direction < 0;
    size_t share = both ? BENCH_GPU_POOL / 2 : BENCH_GPU_POOL;
    double cpu = bench_cpu_s();
    for (int i = 0; i < 2; i++)
        w[i] = (struct way){.g = g, .shape = s, .to_gpu = both ? i : direction,
                            .from = both && i ? share : 0, .len = share};
    if (both && pthread_create(&other, NULL, way_run, &w[1]))
        return bench_fail("gpu: no thread can be started");
    way_run(&w[0]);
    if (both)
        pthread_join(other, NULL);
    uint64_t ns = both && w[1].ns > w[0].ns ? w[1].ns : w[0].ns;
    bench_side_add(side, w[0].bytes + w[1].bytes, ns, bench_cpu_s() - cpu);
    return w[0].ok && (!both || w[1].ok);
}

bool bench_gpu_holds(struct bench_gpu *g, const struct cairn_sgl *list, uint64_t id)
{
    char *to = (char *)g->host.base + BENCH_GPU_POOL / 2;
    size_t at = 0;
    for (uint32_t i = 0; i < list->count; at += list->iov[i++].len)
        if (!gpu_good(g->driver->copy((cu_ptr)(uintptr_t)(to + at),
                                      (cu_ptr)(uintptr_t)list->iov[i].base, list->iov[i].len,
                                      g->streams[0]), "cuMemcpyAsync"))
            return false;
    return stream_wait(g, false) &&
           (bench_verify(to, at, id, 0) || bench_fail("wrong bytes: the GPU's pages hold others"));
}

/* Out to pages, looked at; and back in, looked at. */
static bool check_moves(struct bench_gpu *g, const struct bench_pages *s)
{
    size_t len = s->page * s->count;
    struct cairn_sgl list = bench_gpu_pick(g, s, true);
    uint64_t id = bench_random(&g->random[0]), deadline = cairn_deadline_ns(BENCH_GPU_TIMEOUT);
    bench_fill(g->host.base, len, id, 0);
    if (cairn_move_out(&list, 0, g->host.base, len, 0, len, NULL, deadline) != CAIRN_OK)
        return bench_fail("gpu: a move to the GPU failed");
    if (!bench_gpu_holds(g, &list, id))
        return false;
    memset(g->host.base, 0, len);
    if (cairn_move_in(g->host.base, &list, 0, len, NULL, deadline) != CAIRN_OK)
        return bench_fail("gpu: a move from the GPU failed");
    return bench_verify(g->host.base, len, id, 0) || bench_fail("wrong bytes: %s", s->name);
}

static const char *const direction_names[] = {"from", "to", "both"};

static bool move_row(struct bench *b, struct bench_gpu *g, const struct bench_pages *s,
                     int direction)
{
    struct bench_side cairn = {0}, limit = {0};
    struct bench_row row = bench_row("GB/s", direction < 0 ? "a large pinned copy each way"
                                                           : "one large pinned copy");
    snprintf(row.name, sizeof row.name, "gpu-%s-%s",
             direction_names[direction < 0 ? 2 : direction], s->name);
    for (uint64_t r = 0; r < g->o->rounds; r++)
        if (!round_run(g, s, direction, &cairn) || !round_run(g, NULL, direction, &limit))
            return false;
    bench_sides_row(&cairn, &limit, &row);
    bench_add(b, &row);
    return true;
}

static bool move_rows(struct bench *b, struct bench_gpu *g)
{
    bool ok = true;
    for (size_t i = 0; ok && i < sizeof shapes / sizeof *shapes; i++)
        ok = check_moves(g, &shapes[i]) && move_row(b, g, &shapes[i], 1) &&
             move_row(b, g, &shapes[i], 0);
    return ok && move_row(b, g, &shapes[0], -1) && move_row(b, g, &shapes[1], -1);
}

bool bench_gpu_limit(struct bench_gpu *g, struct bench_side *limit)
{
    return round_run(g, NULL, 1, limit);
}

bool bench_gpu_pinned(void)
{
    uint64_t deadline = cairn_deadline_ns(BENCH_GPU_TIMEOUT);
    while (!cuda_pin_settled() && cairn_now_ns() < deadline)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    return cuda_pin_settled() || bench_fail("gpu: memory was not pinned within a minute");
}

/* --- the two ways, by the size of a page --- */

/* All steps of a lane once; CUDA_FLIGHTS MiB. */
static bool lane_round(struct bench_gpu *g, struct cuda_lane *l, size_t page, bool to_gpu,
                       enum cuda_way way)
{
    struct cuda_run runs[CUDA_STEP_RUNS];
    uint32_t count = (uint32_t)(CUDA_STEP_BYTES / page);
    bool queued = true;
    for (uint32_t step = 0; queued && step < CUDA_FLIGHTS; step++) {
        for (uint32_t i = 0; i < count; i++) {
            size_t at = (size_t)step * CUDA_STEP_BYTES + i * page;
            runs[i] = (struct cuda_run){
                .device = g->memory + 2 * (cu_ptr)step * CUDA_STEP_BYTES + 2 * i * page,
                .host = l->stage + at, .host_device = l->stage_device + at, .len = page};
        }
        queued = cuda_copy_by(l, runs, count, to_gpu, way);
    }
    return cuda_lane_mark(l, 0) && cuda_lane_wait(l, 0) == CAIRN_OK && queued;
}

static bool page_row(struct bench *b, struct bench_gpu *g, struct cuda_lane *l, size_t page,
                     bool to_gpu)
{
    struct bench_side sides[2] = {{.rounds = 0}, {.rounds = 0}};
    struct bench_row row = bench_row("GB/s", "the kernel");
    char prefix[40];
    for (uint64_t r = 0; r < g->o->rounds; r++)
        for (int way = 0; way < 2; way++) {
            uint64_t begin = cairn_now_ns(), bytes = 0;
            double cpu = bench_cpu_s();
            if (way == CUDA_WAY_KERNEL && !g->gpu->copy_pages)
                continue;
            do {
                if (!lane_round(g, l, page, to_gpu, (enum cuda_way)way))
                    return bench_fail("gpu: pages of %zu bytes were not moved", page);
                bytes += (uint64_t)CUDA_FLIGHTS * CUDA_STEP_BYTES;
            } while (cairn_now_ns() - begin < g->round_ns / 10);
            bench_side_add(&sides[way], bytes, cairn_now_ns() - begin, bench_cpu_s() - cpu);
        }
    snprintf(prefix, sizeof prefix, "gpu-engines-%s", direction_names[to_gpu]);
    bench_name(&row, prefix, page);
    bench_sides_row(&sides[CUDA_WAY_ENGINE], &sides[CUDA_WAY_KERNEL], &row);
    bench_add(b, &row);
    return true;
}

static bool page_rows(struct bench *b, struct bench_gpu *g)
{
    struct cuda_entry e;
    if (!cuda_enter(g->gpu, &e))
        return bench_fail("gpu: the GPU is not used any more");
    struct cuda_lane *l = cuda_lane_take(g->gpu, cairn_deadline_ns(BENCH_GPU_TIMEOUT));
    bool ok = l && (cuda_lane_stage(l) || bench_fail("gpu: no memory could be pinned"));
    for (size_t page = 2048; ok && page <= CUDA_STEP_BYTES; page *= 2)
        ok = page_row(b, g, l, page, true) && page_row(b, g, l, page, false);
    if (l)
        cuda_lane_give(l);
    cuda_leave(&e);
    return ok;
}

bool bench_gpu_missing(char *why, size_t cap)
{
    const char *no_driver;
    const struct cuda_driver *d = cuda_driver(&no_driver);
    int count = 0;
    if (!d)
        snprintf(why, cap, "%s", no_driver);
    else if (d->device_count(&count) != CU_OK || count == 0)
        snprintf(why, cap, "the CUDA driver knows no GPU");
    return count == 0;
}

bool bench_gpu(struct bench *b)
{
    static struct bench_gpu g;
    char why[300];
    if (bench_gpu_missing(why, sizeof why))
        return bench_fail("gpu: %s", why);
    g = (struct bench_gpu){.o = b->o, .random = {b->o->seed, ~b->o->seed},
                           .round_ns = b->o->seconds_ns / b->o->rounds / 2};
    const char *unused;
    g.driver = cuda_driver(&unused);
    bool ok = bench_mapping(BENCH_GPU_POOL, &g.host) && gpu_open(&g);
    struct cairn_sgl list = ok ? bench_gpu_pick(&g, &shapes[1], true) : (struct cairn_sgl){0};
    if (ok) {
        memset(g.host.base, 1, g.host.len);
        cairn_memory_offer(g.host.base, g.host.len, true);
        ok = cuda_gpu_of(&list, &g.gpu) == CAIRN_OK || bench_fail("gpu: it cannot be used");
    }
    ok = ok && bench_gpu_pinned() && move_rows(b, &g) && bench_gpu_gets(b, &g) &&
         bench_gpu_matmul(b, &g) && page_rows(b, &g);
    if (g.host.base)
        cairn_memory_withdraw(g.host.base);
    gpu_close(&g);
    cairn_mapping_close(&g.host);
    return ok;
}
