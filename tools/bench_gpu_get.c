/* `cairn bench gpu`: gets into a GPU's pages, out of RAM and from the disk, as engines make them:
 * several values at once, submitted to the queue of a store whose threads verify side by side. */
#include <stdio.h>
#include <string.h>

#include "connector/embedded.h"
#include "connector/handle.h"
#include "tools/bench_gpu.h"

#define VALUES 8u /* at once; all their pages are one list */
#define VALUE_PAGES (BENCH_GPU_PAGES / VALUES)

static const struct bench_pages all = {"all", 65536, BENCH_GPU_PAGES};

struct getter {
    struct bench_gpu *g;
    cairn_store *store;
    cairn_queue *queue;
    size_t len; /* of a value */
    bool disk;
    struct cairn_iov host[VALUES];
    struct cairn_get gets[VALUES];
};

static void drop_ram(struct getter *t)
{
    cairn_vault_drop_ram(((struct embedded *)t->store->backend)->vault);
}

static bool put_values(struct getter *t)
{
    for (uint32_t i = 0; i < VALUES; i++) {
        struct cairn_iov iov = {t->g->host.base, t->len};
        struct cairn_put p = {.value = {.iov = &iov, .count = 1}};
        bench_fill(t->g->host.base, t->len, i, 0);
        bench_key_of(i, &p.key);
        if (cairn_put(t->store, &p, 1, BENCH_GPU_TIMEOUT) != CAIRN_OK)
            return bench_fail("gpu: value %u of %u was refused by a store: %s", i, VALUES,
                              cairn_status_name(p.status));
    }
    return !t->disk || cairn_flush(t->store, BENCH_GPU_TIMEOUT) == CAIRN_OK ||
           bench_fail("gpu: a flush failed");
}

/* Where each value goes: pages of its own, or its place in host memory. */
static void name_places(struct getter *t, bool to_gpu)
{
    struct cairn_sgl pages = bench_gpu_pick(t->g, &all, true);
    for (uint32_t i = 0; i < VALUES; i++) {
        struct cairn_get *get = &t->gets[i];
        t->host[i] = (struct cairn_iov){(char *)t->g->host.base + i * t->len, t->len};
        *get = (struct cairn_get){.out = {.iov = &t->host[i], .count = 1}};
        bench_key_of(i, &get->key);
        if (to_gpu) {
            get->out = pages;
            get->out.iov = pages.iov + i * VALUE_PAGES;
            get->out.count = VALUE_PAGES;
        }
    }
}

static bool submit_all(struct getter *t)
{
    struct cairn_call calls[VALUES];
    for (uint32_t i = 0; i < VALUES; i++)
        calls[i] = (struct cairn_call){.count = 1, .tag = &t->gets[i]};
    return cairn_submit_gets(t->queue, t->gets, calls, VALUES, BENCH_GPU_TIMEOUT) == VALUES ||
           bench_fail("gpu: a queue took fewer than %u gets", VALUES);
}

/* All values, and each anew as soon as it is there until `end`; how many came. */
static bool get_all(struct getter *t, uint64_t end, uint64_t *ret_count)
{
    uint64_t out = VALUES, count = 0;
    bool ok = submit_all(t);
    while (ok && out) {
        struct cairn_completion done;
        ok = cairn_poll(t->queue, &done, 1, BENCH_GPU_TIMEOUT) == 1 && done.hits == 1;
        count++;
        if (!ok || cairn_now_ns() >= end)
            out--;
        else
            ok = cairn_submit_get(t->queue, done.tag, 1, BENCH_GPU_TIMEOUT, done.tag) == CAIRN_OK;
    }
    *ret_count = count;
    return ok || bench_fail("gpu: a get of a value that was put was a miss");
}

static bool values_right(struct getter *t, bool to_gpu)
{
    for (uint32_t i = 0; i < VALUES; i++)
        if (to_gpu ? !bench_gpu_holds(t->g, &t->gets[i].out, i)
                   : !bench_verify(t->host[i].base, t->len, i, 0))
            return bench_fail("wrong bytes: value %u of %u", i, VALUES);
    return true;
}

/* From the disk each value comes once; what is in RAM comes again and again. */
static bool get_round(struct getter *t, bool to_gpu, struct bench_side *side)
{
    uint64_t count;
    if (t->disk)
        drop_ram(t);
    name_places(t, to_gpu);
    double cpu = bench_cpu_s();
    uint64_t begin = cairn_now_ns();
    bool ok = get_all(t, t->disk ? begin : begin + t->g->round_ns, &count);
    bench_side_add(side, count * t->len, cairn_now_ns() - begin, bench_cpu_s() - cpu);
    return ok && values_right(t, to_gpu);
}

static void name_store(struct getter *t, const char *path, char *out, size_t cap)
{
    bool absolute = path && *path == '/';
    size_t at = (size_t)snprintf(out, cap, absolute ? "embedded://" : "embedded:");
    for (; path && *path && at + 3 < cap; path++)
        if (*path == '%' || *path == '?')
            at += (size_t)snprintf(out + at, cap - at, "%%%02X", (unsigned)*path);
        else
            out[at++] = *path;
    snprintf(out + at, cap - at, "?ram=%u&verify=always%s", 2 * BENCH_GPU_POOL,
             t->disk ? "&disk=512MiB&prewrite=no" : "");
}

static bool getter_open(struct getter *t, const char *path)
{
    char uri[4096], err[600] = "";
    name_store(t, path, uri, sizeof uri);
    if (cairn_open(uri, &t->store, err, sizeof err) != CAIRN_OK)
        return bench_fail("%s", err);
    return cairn_queue_open(t->store, &t->queue) == CAIRN_OK ||
           bench_fail("gpu: no memory for a queue");
}

/* RAM: beside a large copy. Disk: beside the same gets into host memory. */
static bool get_row(struct bench *b, struct bench_gpu *g, bool disk)
{
    struct getter t = {.g = g, .len = all.page * VALUE_PAGES, .disk = disk};
    struct bench_side cairn = {.rounds = 0}, limit = {.rounds = 0};
    struct bench_row row = bench_row("GB/s", disk ? "the same into host memory"
                                                  : "one large pinned copy");
    const char *path = disk ? bench_file(b, "gpu") : NULL;
    bool ok = getter_open(&t, path) && bench_gpu_pinned() && put_values(&t);
    for (uint64_t r = 0; ok && r < g->o->rounds; r++)
        ok = get_round(&t, true, &cairn) &&
             (disk ? get_round(&t, false, &limit) : bench_gpu_limit(g, &limit));
    if (ok) {
        snprintf(row.name, sizeof row.name, disk ? "gpu-get-disk" : "gpu-get-ram-verified");
        bench_sides_row(&cairn, &limit, &row);
        bench_add(b, &row);
    }
    cairn_queue_close(t.queue);
    cairn_close(t.store);
    if (path)
        bench_forget_file(path);
    return ok;
}

bool bench_gpu_gets(struct bench *b, struct bench_gpu *g)
{
    return get_row(b, g, false) && get_row(b, g, true);
}
