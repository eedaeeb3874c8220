/* Memory's own limit: the fastest of all copies at hand, cold to cold. */
#include "tools/bench_limits.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/copy.h"
#include "tools/bench_samples.h"

#define VARIANTS_MAX 16u
#define WAYS 8u
#define THREADS_MAX 64u
#define BLOCKS_MAX 4096u

struct pair {
    char *dst;
    const char *src;
};

/* Copies len bytes (a multiple of 256) of each of WAYS pairs, in turn. */
typedef void (*interleave_fn)(const struct pair *p, size_t len);

struct variant {
    const char *name;
    cairn_copy_fn flat;       /* one block after the other, or a contiguous value */
    interleave_fn interleave; /* or WAYS blocks at a time                         */
};

#if defined(__x86_64__)
#include <immintrin.h>

/* Prefetched by hand: the hardware's prefetchers start anew with every block and page. */
#define AHEAD 1024
#define INTERLEAVE(name, isa, vec, load, stream)                                    \
    __attribute__((target(isa))) static void name(const struct pair *p, size_t len) \
    {                                                                               \
        enum { STEP = 128, N = STEP / sizeof(vec) };                                \
        for (size_t at = 0; at < len; at += STEP)                                   \
            for (uint32_t k = 0; k < WAYS; k++) {                                   \
                vec v[N];                                                           \
                _mm_prefetch(p[k].src + at + AHEAD, _MM_HINT_NTA);                  \
                _mm_prefetch(p[k].src + at + AHEAD + 64, _MM_HINT_NTA);             \
                _Pragma("GCC unroll 8") for (uint32_t i = 0; i < N; i++)            \
                    v[i] = load((const void *)(p[k].src + at + i * sizeof(vec)));   \
                _Pragma("GCC unroll 8") for (uint32_t i = 0; i < N; i++)            \
                    stream((void *)(p[k].dst + at + i * sizeof(vec)), v[i]);        \
            }                                                                       \
        _mm_sfence();                                                               \
    }

INTERLEAVE(interleave_avx512, "avx512f", __m512i, _mm512_loadu_si512, _mm512_stream_si512)
INTERLEAVE(interleave_avx2, "avx2", __m256i, _mm256_loadu_si256, _mm256_stream_si256)
INTERLEAVE(interleave_sse2, "sse2", __m128i, _mm_loadu_si128, _mm_stream_si128)

static uint32_t interleaved(struct variant *v)
{
    uint32_t n = 0;
    if (__builtin_cpu_supports("avx512f"))
        v[n++] = (struct variant){.name = "avx512 8-way", .interleave = interleave_avx512};
    if (__builtin_cpu_supports("avx2"))
        v[n++] = (struct variant){.name = "avx2 8-way", .interleave = interleave_avx2};
    else
        v[n++] = (struct variant){.name = "sse2 8-way", .interleave = interleave_sse2};
    return n;
}
#else
static uint32_t interleaved(struct variant *v)
{
    (void)v;
    return 0;
}
#endif

struct worker {
    const struct cairn_limit_copy *o;
    const struct variant *v;
    _Atomic int *go; /* 1: start, -1: do not */
    uint64_t random;
    struct bench_samples samples;
    double seconds, cpu;
};

static double thread_cpu(void)
{
    struct rusage u;
    getrusage(RUSAGE_THREAD, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static char *place(struct worker *w, void *pool, size_t unit)
{
    return (char *)pool + bench_random(&w->random) % (w->o->pool_len / unit) * unit;
}

static void copy_blocks(const struct worker *w, const struct pair *p, uint32_t count)
{
    size_t block = w->o->block;
    uint32_t i = 0;
    if (w->v->interleave)
        for (; i + WAYS <= count; i += WAYS)
            w->v->interleave(p + i, block);
    for (; i < count; i++) {
        if (w->v->flat)
            w->v->flat(p[i].dst, p[i].src, block);
        else
            memcpy(p[i].dst, p[i].src, block);
    }
}

/* One value: places are drawn before the clock starts, as an engine knows its block table. */
static uint64_t copy_value(struct worker *w)
{
    const struct cairn_limit_copy *o = w->o;
    static _Thread_local struct pair pairs[BLOCKS_MAX];
    char *src = place(w, o->src, o->len), *dst = place(w, o->dst, o->len);
    uint32_t count = o->block ? (uint32_t)(o->len / o->block) : 0;
    for (uint32_t i = 0; i < count; i++) {
        size_t at = (size_t)i * o->block;
        pairs[i].src = o->scatter ? src + at : place(w, o->src, o->block);
        pairs[i].dst = o->scatter ? place(w, o->dst, o->block) : dst + at;
    }
    uint64_t begin = cairn_now_ns();
    if (count)
        copy_blocks(w, pairs, count);
    else
        w->v->flat(dst, src, o->len);
    return cairn_now_ns() - begin;
}

static void *work(void *arg)
{
    struct worker *w = arg;
    int go;
    while ((go = atomic_load(w->go)) == 0)
        sched_yield();
    if (go < 0)
        return NULL;
    double cpu = thread_cpu();
    uint64_t begin = cairn_now_ns(), end = begin + w->o->duration_ns, spent = 0;
    /* Only the copies count: drawing places is not part of one. */
    while (cairn_now_ns() < end) {
        uint64_t ns = copy_value(w);
        bench_samples_add(&w->samples, ns);
        spent += ns;
    }
    w->seconds = (double)spent / 1e9;
    w->cpu = thread_cpu() - cpu;
    return NULL;
}

static cairn_status run_threads(struct worker *w, uint32_t threads)
{
    pthread_t t[THREADS_MAX];
    _Atomic int go = 0;
    uint32_t n = 1;
    for (uint32_t i = 0; i < threads; i++)
        w[i].go = &go;
    while (n < threads && pthread_create(&t[n], NULL, work, &w[n]) == 0)
        n++;
    atomic_store(&go, n == threads ? 1 : -1);
    if (n == threads)
        work(&w[0]);
    for (uint32_t i = 1; i < n; i++)
        pthread_join(t[i], NULL);
    return n == threads ? CAIRN_OK : CAIRN_NOMEM;
}

static cairn_status measure(struct worker *w, const struct cairn_limit_copy *o,
                            const struct variant *v, struct cairn_limit *ret)
{
    double gb_per_s = 0, cpu = 0;
    for (uint32_t i = 0; i < o->threads; i++) {
        w[i].v = v;
        w[i].samples.count = 0;
    }
    cairn_status status = run_threads(w, o->threads);
    if (status != CAIRN_OK)
        return status;
    *ret = (struct cairn_limit){.count = 0};
    for (uint32_t i = 0; i < o->threads; i++) {
        uint64_t bytes = w[i].samples.count * o->len;
        gb_per_s += (double)bytes / 1e9 / w[i].seconds;
        cpu += w[i].cpu;
        ret->count += w[i].samples.count;
        ret->bytes += bytes;
    }
    ret->gb_per_s = gb_per_s;
    ret->cpu_s_per_gb = cpu / ((double)ret->bytes / 1e9);
    snprintf(ret->variant, sizeof(ret->variant), "%s", v->name);
    bench_samples_read(&w[0].samples, ret);
    return CAIRN_OK;
}

static uint32_t variants(const struct cairn_limit_copy *o, struct variant *v)
{
    const char *names[VARIANTS_MAX];
    cairn_copy_fn fns[VARIANTS_MAX];
    uint32_t n = o->block ? interleaved(v) : 0;
    uint32_t flat = cairn_copy_variants(names, fns, VARIANTS_MAX - n);
    for (uint32_t i = 0; i < flat; i++)
        v[n++] = (struct variant){.name = names[i], .flat = fns[i]};
    return n;
}

cairn_status cairn_limit_copy_run(const struct cairn_limit_copy *o, struct cairn_limit *ret)
{
    struct variant v[VARIANTS_MAX];
    struct worker w[THREADS_MAX];
    cairn_status status = CAIRN_OK;
    *ret = (struct cairn_limit){.count = 0};
    if (o->len == 0 || o->pool_len < o->len || o->threads == 0 || o->threads > THREADS_MAX ||
        (o->block && (o->block % 256 || o->len % o->block || o->len / o->block > BLOCKS_MAX)))
        return CAIRN_INVAL;
    uint32_t count = variants(o, v);
    for (uint32_t i = 0; i < o->threads; i++) {
        w[i] = (struct worker){.o = o};
        w[i].random = (o->seed + i + 1) * 0x9e3779b97f4a7c15ull | 1;
        w[i].samples.ns = malloc(BENCH_SAMPLES * sizeof(uint32_t));
        if (w[i].samples.ns)
            memset(w[i].samples.ns, 0, BENCH_SAMPLES * sizeof(uint32_t));
        else
            status = CAIRN_NOMEM;
    }
    for (uint32_t i = 0; i < count && status == CAIRN_OK; i++) {
        struct cairn_limit one;
        status = measure(w, o, &v[i], &one);
        if (status == CAIRN_OK && one.gb_per_s > ret->gb_per_s)
            *ret = one;
    }
    for (uint32_t i = 0; i < o->threads; i++)
        free(w[i].samples.ns);
    return status;
}
