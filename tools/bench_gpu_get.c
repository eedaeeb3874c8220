/* `cairn bench gpu`: gets into a GPU's pages, out of RAM and from the disk. */
#include <stdio.h>
#include <string.h>

#include "tools/bench_gpu.h"

static const struct bench_pages value = {"64-tokens", 65536, 4 * 32};

static bool put_values(struct cairn_vault *v, struct bench_gpu *g, size_t len, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct cairn_iov iov = {g->host.base, len};
        struct cairn_put p = {.value = {.iov = &iov, .count = 1}};
        size_t stored = 0;
        bench_fill(g->host.base, len, i, 0);
        bench_key_of(i, &p.key);
        cairn_vault_put(v, &p, 1, cairn_deadline_ns(BENCH_GPU_TIMEOUT), &stored);
        if (!stored)
            return bench_fail("gpu: value %u of %u was refused by a store", i, count);
    }
    return true;
}

/* Every value once, into pages or (shape NULL) into host memory. */
static bool get_round(struct cairn_vault *v, struct bench_gpu *g, const struct bench_pages *s,
                      size_t len, uint32_t count, struct bench_side *side)
{
    uint64_t ns = 0;
    double cpu = 0;
    for (uint32_t i = 0; i < count; i++) {
        struct cairn_iov iov = {g->host.base, len};
        struct cairn_get get = {.out = {.iov = &iov, .count = 1}};
        size_t hits = 0;
        if (s)
            get.out = bench_gpu_pick(g, s, true);
        bench_key_of(i, &get.key);
        double cpu_begin = bench_cpu_s();
        uint64_t begin = cairn_now_ns();
        cairn_vault_get(v, &get, 1, cairn_deadline_ns(BENCH_GPU_TIMEOUT), &hits);
        ns += cairn_now_ns() - begin;
        cpu += bench_cpu_s() - cpu_begin;
        if (!hits)
            return bench_fail("gpu: value %u of %u is missed", i, count);
        if (i == 0 && s && !bench_gpu_holds(g, &get.out, i))
            return false;
    }
    bench_side_add(side, (uint64_t)len * count, ns, cpu);
    return true;
}

/* RAM: beside a large copy. Disk: beside the same gets into host memory. */
static bool get_row(struct bench *b, struct bench_gpu *g, bool disk)
{
    const struct bench_pages *s = &value;
    size_t len = s->page * s->count;
    uint32_t count = BENCH_GPU_POOL / 2 / (uint32_t)len;
    struct bench_side cairn = {0}, limit = {0};
    struct bench_row row = bench_row("GB/s", disk ? "the same into host memory"
                                                  : "one large pinned copy");
    struct cairn_vault_opts vo = bench_vault_opts(2 * BENCH_GPU_POOL);
    const char *path = disk ? bench_file(b, "gpu") : NULL;
    vo.verify = CAIRN_VERIFY_ALWAYS;
    if (disk) {
        vo.write = CAIRN_WRITE_THROUGH;
        vo.path = path;
        vo.disk_bytes = 4 * BENCH_GPU_POOL;
    }
    struct cairn_vault *v = bench_vault_open(&vo);
    bool ok = v && bench_gpu_pinned() && put_values(v, g, len, count);
    ok = ok && (!disk || cairn_vault_flush(v, cairn_deadline_ns(BENCH_GPU_TIMEOUT)) == CAIRN_OK ||
                bench_fail("gpu: a flush failed"));
    for (uint64_t r = 0; ok && r < g->o->rounds; r++) {
        if (disk)
            cairn_vault_drop_ram(v);
        ok = get_round(v, g, s, len, count, &cairn);
        if (disk)
            cairn_vault_drop_ram(v);
        ok = ok && (disk ? get_round(v, g, NULL, len, count, &limit)
                         : bench_gpu_limit(g, &limit));
    }
    if (ok) {
        snprintf(row.name, sizeof row.name, disk ? "gpu-get-disk" : "gpu-get-ram-verified");
        bench_sides_row(&cairn, &limit, &row);
        bench_add(b, &row);
    }
    cairn_vault_close(v);
    if (path)
        bench_forget_file(path);
    return ok;
}

bool bench_gpu_gets(struct bench *b, struct bench_gpu *g)
{
    return get_row(b, g, false) && get_row(b, g, true);
}
