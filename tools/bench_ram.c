/* Moving values between the caller's memory and the arena, cold on both sides: the pools are far
 * larger than the last-level cache and places are chosen at random. */
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/bench.h"

#define POOL (512u << 20)
#define LATENCIES 2000000u
#define SAMPLES 8u /* places checked after each round; all of them at the end */
#define RING 64u   /* newest puts checked after each round                    */
#define TIMEOUT (10 * CAIRN_NS_PER_S)

struct figure {
    const char *name;
    bool put, blocks;
    enum cairn_verify verify;
};

struct ram {
    const struct bench_opts *o;
    const struct figure *figure;
    struct cairn_vault *vault;
    struct cairn_mapping caller, other; /* what values move to or from; the limit's second pool */
    uint64_t size, values;              /* bytes of a value; get: values held                   */
    uint32_t places;                    /* values that fit into the caller's pool               */
    uint32_t iov_each;                  /* runs of memory a place                               */
    struct cairn_iov *iov;              /* places x iov_each                                    */
    uint64_t *id_at;                    /* per place: value it holds, UINT64_MAX none           */
    _Atomic uint64_t next_put;
    uint64_t round_ns;
};

struct worker {
    struct ram *ram;
    uint64_t random, bytes, failed;
    uint64_t busy_ns; /* in calls of the store: choosing places is the caller's business */
    uint32_t place_first, place_count;
    struct bench_lat lat;
    size_t lat_mark; /* first latency of this round */
    uint64_t ring[RING];
    uint32_t ring_place[RING];
    uint64_t ring_count;
};

static struct cairn_sgl place_sgl(const struct ram *m, uint32_t place)
{
    return (struct cairn_sgl){.iov = m->iov + (size_t)place * m->iov_each, .count = m->iov_each};
}

/* Cuts the caller's pool into places; with blocks, each place is a random set of 32 KiB blocks. */
static bool cut_places(struct ram *m)
{
    size_t run = m->figure->blocks ? BENCH_BLOCK : m->size;
    size_t runs = m->caller.len / run;
    m->iov_each = (uint32_t)(m->size / run);
    m->places = (uint32_t)(runs / m->iov_each);
    m->iov = calloc(runs, sizeof *m->iov);
    m->id_at = malloc(m->places * sizeof *m->id_at);
    if (!m->iov || !m->id_at)
        return bench_fail("no memory for %zu runs: close other programs", runs);
    uint64_t random = m->o->seed;
    for (size_t i = 0; i < runs; i++) {
        size_t j = bench_random(&random) % (i + 1);
        m->iov[i] = m->iov[j];
        m->iov[j] = (struct cairn_iov){.base = (char *)m->caller.base + i * run, .len = run};
    }
    for (uint32_t p = 0; p < m->places; p++)
        m->id_at[p] = UINT64_MAX;
    return true;
}

static void fill_place(const struct ram *m, uint32_t place, uint64_t id)
{
    struct cairn_sgl list = place_sgl(m, place);
    size_t off = 0;
    for (uint32_t i = 0; i < list.count; i++) {
        bench_fill(list.iov[i].base, list.iov[i].len, id, off);
        off += list.iov[i].len;
    }
    m->id_at[place] = id;
}

static bool put_value(struct ram *m, uint64_t key_id, uint32_t place)
{
    struct cairn_put p = {.value = place_sgl(m, place)};
    size_t stored = 0;
    bench_key_of(key_id, &p.key);
    cairn_vault_put(m->vault, &p, 1, cairn_deadline_ns(TIMEOUT), &stored);
    return stored == 1;
}

/* get: the arena holds `values` values. put: the caller's pool holds them, and the arena is full,
 * so that every put evicts. */
static bool prepare(struct ram *m)
{
    if (m->figure->put) {
        for (uint32_t p = 0; p < m->places; p++)
            fill_place(m, p, p);
        uint64_t fill = m->o->working_set / m->size;
        for (uint64_t i = 0; i < fill; i++)
            if (!put_value(m, m->next_put++, (uint32_t)(i % m->places)))
                return bench_fail("a put into a RAM store of %llu MiB was refused",
                                  (unsigned long long)m->o->working_set >> 20);
        return true;
    }
    for (uint64_t i = 0; i < m->values; i++) {
        fill_place(m, (uint32_t)(i % m->places), i);
        if (!put_value(m, i, (uint32_t)(i % m->places)))
            return bench_fail("value %llu of %llu was refused by a RAM store",
                              (unsigned long long)i, (unsigned long long)m->values);
    }
    return true;
}

static void took(struct worker *w, uint64_t ns)
{
    w->busy_ns += ns;
    bench_lat_add(&w->lat, ns);
}

static void one_get(struct worker *w)
{
    struct ram *m = w->ram;
    uint32_t place = w->place_first + (uint32_t)(bench_random(&w->random) % w->place_count);
    uint64_t id = bench_random(&w->random) % m->values;
    struct cairn_get g = {.out = place_sgl(m, place)};
    size_t hits = 0;
    bench_key_of(id, &g.key);
    uint64_t start = cairn_now_ns();
    cairn_vault_get(m->vault, &g, 1, cairn_deadline_ns(TIMEOUT), &hits);
    took(w, cairn_now_ns() - start);
    m->id_at[place] = hits ? id : UINT64_MAX;
    w->bytes += hits * m->size;
    w->failed += !hits;
}

static void one_put(struct worker *w)
{
    struct ram *m = w->ram;
    uint32_t place = w->place_first + (uint32_t)(bench_random(&w->random) % w->place_count);
    uint64_t id = m->next_put++;
    uint64_t start = cairn_now_ns();
    bool stored = put_value(m, id, place);
    took(w, cairn_now_ns() - start);
    if (!stored) {
        w->failed++;
        return;
    }
    w->bytes += m->size;
    w->ring[w->ring_count % RING] = id;
    w->ring_place[w->ring_count++ % RING] = place;
}

static void *work(void *arg)
{
    struct worker *w = arg;
    uint64_t end = cairn_deadline_ns(w->ram->round_ns);
    do {
        if (w->ram->figure->put)
            one_put(w);
        else
            one_get(w);
    } while (cairn_now_ns() < end);
    return NULL;
}

static bool check_places(const struct ram *m, uint64_t *random, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t p = count == m->places ? i : (uint32_t)(bench_random(random) % m->places);
        struct cairn_sgl list = place_sgl(m, p);
        if (m->id_at[p] != UINT64_MAX && !bench_verify_sgl(&list, m->id_at[p]))
            return bench_fail("wrong bytes: %s gave other bytes than were put", m->figure->name);
    }
    return true;
}

/* The newest puts must be there and hold what their place holds. Only as many as stay whatever the
 * policy does: s3fifo keeps a tenth for what was not asked for again. */
static bool check_puts(struct ram *m, struct worker *w, void *scratch)
{
    uint64_t n = m->o->working_set / 32 / m->size;
    n = n > RING ? RING : n ? n : 1;
    n = n > w->ring_count ? w->ring_count : n;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t at = (w->ring_count - 1 - i) % RING;
        struct cairn_iov iov = {.base = scratch, .len = m->size};
        struct cairn_get g = {.out = {.iov = &iov, .count = 1}};
        size_t hits = 0;
        bench_key_of(w->ring[at], &g.key);
        cairn_vault_get(m->vault, &g, 1, cairn_deadline_ns(TIMEOUT), &hits);
        /* One of several callers may not have had its turn for longer than values stay. */
        if (!hits && m->o->threads > 1)
            continue;
        if (!hits)
            return bench_fail("a value put a moment ago is gone: %s", m->figure->name);
        if (!bench_verify(scratch, m->size, m->id_at[w->ring_place[at]], 0))
            return bench_fail("wrong bytes: %s stored other bytes than were given",
                              m->figure->name);
    }
    return true;
}

static bool limit_round(struct ram *m, struct bench_side *side, struct bench_row *row)
{
    struct cairn_limit_copy c = {
        .src = m->figure->put ? m->caller.base : m->other.base,
        .dst = m->figure->put ? m->other.base : m->caller.base,
        .pool_len = m->caller.len,
        .len = m->size,
        .block = m->figure->blocks ? BENCH_BLOCK : 0,
        .scatter = !m->figure->put,
        .threads = (uint32_t)m->o->threads,
        .duration_ns = m->round_ns / 4,
        .seed = m->o->seed + side->rounds,
    };
    struct cairn_limit l = {0};
    if (cairn_limit_copy_run(&c, &l) != CAIRN_OK)
        return bench_fail("the copy limit could not be measured: no memory");
    double rate = m->o->threads > 1 ? l.gb_per_s : (double)m->size / (l.p50_us * 1e3);
    bench_side_add(side, (uint64_t)(rate * 1e9), CAIRN_NS_PER_S, 0);
    snprintf(row->limit_name, sizeof row->limit_name, "best copy%s, %s",
             m->figure->blocks ? " over 8 blocks" : "", l.variant);
    return true;
}

/* Of this round's operations. One caller's rate is that of its median operation, as the limit's is:
 * an operation that lost the processor to another program says nothing about copying. */
static double median_us(struct worker *w)
{
    struct bench_lat round = {.ns = w->lat.ns + w->lat_mark, .count = w->lat.count - w->lat_mark};
    w->lat_mark = w->lat.count;
    return bench_lat_us(&round, 0.5);
}

static bool cairn_round(struct ram *m, struct worker *workers, struct bench_side *side)
{
    pthread_t threads[64];
    uint32_t n = (uint32_t)m->o->threads, started = 0;
    uint64_t bytes = 0, ns = 0;
    double cpu = bench_cpu_s();
    for (uint32_t i = 1; i < n; i++, started++)
        if (pthread_create(&threads[i], NULL, work, &workers[i]))
            break;
    work(&workers[0]);
    for (uint32_t i = 1; i <= started; i++)
        pthread_join(threads[i], NULL);
    cpu = bench_cpu_s() - cpu;
    for (uint32_t i = 0; i < n; i++) {
        bytes += workers[i].bytes;
        ns = workers[i].busy_ns > ns ? workers[i].busy_ns : ns;
        workers[i].bytes = workers[i].busy_ns = 0;
    }
    bench_side_add(side, bytes, ns, cpu);
    if (n == 1 && bytes)
        side->rate[side->rounds - 1] = (double)m->size / (median_us(&workers[0]) * 1e3);
    return started == n - 1 || bench_fail("cannot start %u threads: give fewer --threads", n);
}

static bool measure(struct ram *m, struct worker *workers, struct bench_row *row)
{
    struct bench_side cairn = {0}, limit = {0};
    uint64_t random = m->o->seed;
    void *scratch = m->other.base;
    for (uint64_t r = 0; r < m->o->rounds; r++) {
        if (!cairn_round(m, workers, &cairn))
            return false;
        if (m->figure->put ? !check_puts(m, &workers[0], scratch)
                           : !check_places(m, &random, SAMPLES))
            return false;
        /* The limit overwrites the pool that gets filled. */
        if (!m->figure->put && r + 1 == m->o->rounds && !check_places(m, &random, m->places))
            return false;
        if (!limit_round(m, &limit, row))
            return false;
        for (uint32_t p = 0; !m->figure->put && p < m->places; p++)
            m->id_at[p] = UINT64_MAX;
    }
    bench_sides_row(&cairn, &limit, row);
    uint64_t failed = 0;
    for (uint64_t i = 0; i < m->o->threads; i++)
        failed += workers[i].failed;
    if (failed)
        bench_fail("%s: %llu operations failed and were not counted", row->name,
                   (unsigned long long)failed);
    return isfinite(row->value) || bench_fail("%s: nothing succeeded", row->name);
}

static bool run_workers(struct ram *m, struct bench_row *row)
{
    struct worker *workers = calloc(m->o->threads, sizeof *workers);
    if (!workers)
        return bench_fail("no memory for %llu threads", (unsigned long long)m->o->threads);
    uint32_t each = m->places / (uint32_t)m->o->threads;
    bool ok = each || bench_fail("more threads than values fit: give fewer --threads");
    for (uint32_t i = 0; ok && i < m->o->threads; i++) {
        workers[i] = (struct worker){.ram = m, .random = m->o->seed + i + 1,
                                     .place_first = i * each, .place_count = each};
        ok = bench_lat_init(&workers[i].lat, i ? 1 : LATENCIES);
    }
    ok = ok && measure(m, workers, row);
    if (ok)
        bench_lat_row(&workers[0].lat, row);
    for (uint64_t i = 0; i < m->o->threads; i++)
        bench_lat_free(&workers[i].lat);
    free(workers);
    return ok;
}

static bool run_figure(struct bench *b, struct ram *m)
{
    const struct figure *f = m->figure;
    struct bench_row row = bench_row("GB/s", "best copy");
    if (f->blocks)
        snprintf(row.name, sizeof row.name, "%s", f->name);
    else
        bench_name(&row, f->name, m->size);
    /* Room for the header and for a value that is on its way in. */
    struct cairn_vault_opts vo = bench_vault_opts(m->o->working_set + m->o->working_set / 4 +
                                                  (256u << 20));
    if (f->put)
        vo.ram_bytes = m->o->working_set;
    vo.verify = f->verify;
    m->values = m->o->working_set / m->size;
    m->next_put = 0;
    m->round_ns = m->o->seconds_ns / m->o->rounds / 2;
    m->vault = bench_vault_open(&vo);
    bool ok = m->vault && cut_places(m) && prepare(m) && run_workers(m, &row);
    if (ok)
        bench_add(b, &row);
    cairn_vault_close(m->vault);
    free(m->iov);
    free(m->id_at);
    m->vault = NULL;
    m->iov = NULL;
    m->id_at = NULL;
    return ok;
}

bool bench_ram(struct bench *b)
{
    static const struct figure figures[] = {
        {"ram-get", false, false, CAIRN_VERIFY_NEVER},
        {"ram-get-scatter-32KiB", false, true, CAIRN_VERIFY_NEVER},
        {"ram-get-scatter-32KiB-verified", false, true, CAIRN_VERIFY_ALWAYS},
        {"ram-put", true, false, CAIRN_VERIFY_FIRST},
        {"ram-put-gather-32KiB", true, true, CAIRN_VERIFY_FIRST},
    };
    struct bench_opts o = *b->o;
    o.working_set = o.working_set ? o.working_set : 512u << 20;
    struct ram m = {.o = &o, .size = o.size ? o.size : 4u << 20};
    bool ok = bench_mapping(POOL, &m.caller) && bench_mapping(POOL, &m.other);
    if (ok)
        memset(m.other.base, 1, m.other.len);
    for (size_t i = 0; ok && i < sizeof figures / sizeof *figures; i++) {
        m.figure = &figures[i];
        ok = run_figure(b, &m);
    }
    cairn_mapping_close(&m.caller);
    cairn_mapping_close(&m.other);
    return ok;
}
