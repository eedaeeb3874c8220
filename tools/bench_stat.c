#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "tools/bench.h"

static int compare_double(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static int compare_u64(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

double bench_median(double *values, uint32_t n)
{
    if (!n)
        return NAN;
    qsort(values, n, sizeof *values, compare_double);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

double bench_cpu_s(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

bool bench_lat_init(struct bench_lat *l, size_t cap)
{
    *l = (struct bench_lat){.ns = calloc(cap, sizeof *l->ns), .cap = cap};
    return l->ns || bench_fail("no memory for %zu latencies: close other programs", cap);
}

void bench_lat_free(struct bench_lat *l)
{
    free(l->ns);
    *l = (struct bench_lat){0};
}

double bench_lat_us(struct bench_lat *l, double q)
{
    if (!l->count)
        return NAN;
    qsort(l->ns, l->count, sizeof *l->ns, compare_u64);
    size_t at = (size_t)ceil(q * (double)l->count);
    return (double)l->ns[at ? at - 1 : 0] / 1e3;
}

void bench_lat_row(struct bench_lat *l, struct bench_row *r)
{
    r->p50_us = bench_lat_us(l, 0.5);
    r->p99_us = bench_lat_us(l, 0.99);
    r->p999_us = bench_lat_us(l, 0.999);
}

void bench_side_add(struct bench_side *s, uint64_t bytes, uint64_t ns, double cpu_s)
{
    if (!bytes || !ns || s->rounds == BENCH_ROUNDS_MAX)
        return;
    s->rate[s->rounds++] = (double)bytes / (double)ns;
    s->bytes += (double)bytes;
    s->cpu_s += cpu_s;
}

void bench_sides_row(struct bench_side *cairn, struct bench_side *limit, struct bench_row *r)
{
    r->value = bench_median(cairn->rate, cairn->rounds);
    r->limit = bench_median(limit->rate, limit->rounds);
    r->ratio = r->value / r->limit;
    r->cpu_s_per_gb = cairn->cpu_s / (cairn->bytes / 1e9);
}

void bench_key_of(uint64_t id, struct cairn_key *ret)
{
    uint64_t state = id * 0xd1342543de82ef95u + 1;
    for (size_t i = 0; i < sizeof ret->bytes; i += 8) {
        uint64_t v = bench_random(&state);
        memcpy(ret->bytes + i, &v, 8);
    }
}

/* One multiply a word keeps the generator faster than the memory it is compared with. */
static inline uint64_t word_of(uint64_t seed, uint64_t i)
{
    uint64_t z = (i + seed) * 0x9e3779b97f4a7c15u;
    return z ^ (z >> 29);
}

static uint64_t seed_of(uint64_t id)
{
    uint64_t state = id;
    return bench_random(&state);
}

void bench_fill(void *dst, size_t len, uint64_t id, size_t off)
{
    uint64_t seed = seed_of(id), *p = dst;
    for (size_t i = 0; i < len / 8; i++)
        p[i] = word_of(seed, off / 8 + i);
}

bool bench_verify(const void *src, size_t len, uint64_t id, size_t off)
{
    uint64_t seed = seed_of(id), wrong = 0;
    const uint64_t *p = src;
    for (size_t i = 0; i < len / 8; i++)
        wrong |= p[i] ^ word_of(seed, off / 8 + i);
    return !wrong;
}

bool bench_verify_sgl(const struct cairn_sgl *list, uint64_t id)
{
    size_t off = 0;
    for (uint32_t i = 0; i < list->count; i++) {
        if (!bench_verify(list->iov[i].base, list->iov[i].len, id, off))
            return false;
        off += list->iov[i].len;
    }
    return true;
}
