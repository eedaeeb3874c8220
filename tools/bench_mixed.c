/* Reads and writes at the same time. By default: how far writing as fast as it goes raises the
 * tail of reads. With --read-share: a mix of both by several threads. */
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tools/bench.h"

#define TIMEOUT (30 * CAIRN_NS_PER_S)
#define SAMPLES_MAX 100000u
#define THREADS_MAX 64u
#define READ_MARK (1ull << 63) /* in the ring: was read, so it is in RAM now */

struct mixed {
    struct bench_disk d;
    uint64_t size, round_ns;
    uint64_t contents;       /* different values in the upper half of d.mem           */
    _Atomic uint64_t *ring;  /* numbers of the newest values, one a place of the log  */
    uint64_t ring_len;
    _Atomic uint64_t put_count, next_id;
    atomic_bool stop, wrong;
};

/* One thread's view. */
struct actor {
    struct mixed *m;
    uint32_t read_percent;
    uint64_t back_min, back_max; /* how far behind the newest value reads look, in values */
    uint64_t random, bytes, missed, refused;
    void *out;                   /* where gets go */
    struct bench_lat lat;        /* of gets       */
    bool once;                   /* read no value twice */
};

static const void *content(const struct mixed *m, uint64_t id)
{
    return (const char *)m->d.mem.base + m->d.mem.len / 2 + id % m->contents * m->size;
}

static bool put_one(struct actor *a)
{
    struct mixed *m = a->m;
    uint64_t id = atomic_fetch_add(&m->next_id, 1);
    struct cairn_iov iov = {.base = (void *)(uintptr_t)content(m, id), .len = m->size};
    struct cairn_put p = {.value = {.iov = &iov, .count = 1}};
    size_t stored = 0;
    bench_key_of(id, &p.key);
    cairn_vault_put(m->d.vault, &p, 1, cairn_deadline_ns(TIMEOUT), &stored);
    if (!stored) {
        a->refused++;
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
        return false;
    }
    atomic_store(&m->ring[atomic_fetch_add(&m->put_count, 1) % m->ring_len], id);
    a->bytes += m->size;
    return true;
}

static bool pick(struct actor *a, uint64_t *ret_id)
{
    struct mixed *m = a->m;
    for (int tries = 0; tries < 1000; tries++) {
        uint64_t back = a->back_min + bench_random(&a->random) % (a->back_max - a->back_min);
        uint64_t at = (atomic_load(&m->put_count) - 1 - back) % m->ring_len;
        uint64_t id = atomic_load(&m->ring[at]);
        if (id & READ_MARK)
            continue;
        if (a->once && !atomic_compare_exchange_strong(&m->ring[at], &id, id | READ_MARK))
            continue;
        *ret_id = id;
        return true;
    }
    return false;
}

static void get_one(struct actor *a)
{
    struct mixed *m = a->m;
    struct cairn_iov iov = {.base = a->out, .len = m->size};
    struct cairn_get g = {.out = {.iov = &iov, .count = 1}};
    uint64_t id;
    size_t hits = 0;
    if (!pick(a, &id))
        return;
    bench_key_of(id, &g.key);
    uint64_t start = cairn_now_ns();
    cairn_vault_get(m->d.vault, &g, 1, cairn_deadline_ns(TIMEOUT), &hits);
    uint64_t ns = cairn_now_ns() - start;
    if (!hits) {
        a->missed++;
        return;
    }
    bench_lat_add(&a->lat, ns);
    a->bytes += m->size;
    /* memcmp of a whole value between two reads would leave the device idle: a sample of each. */
    size_t at = bench_random(&a->random) % (m->size / 4096) * 4096;
    const char *want = content(m, id);
    if (memcmp((char *)a->out + at, want + at, 4096) ||
        memcmp((char *)a->out + m->size - 64, want + m->size - 64, 64))
        atomic_store(&m->wrong, true);
}

static void *act(void *arg)
{
    struct actor *a = arg;
    while (!atomic_load_explicit(&a->m->stop, memory_order_relaxed)) {
        if (bench_random(&a->random) % 100 < a->read_percent)
            get_one(a);
        else
            put_one(a);
    }
    return NULL;
}

static bool flush(struct mixed *m)
{
    cairn_status s = cairn_vault_flush(m->d.vault, cairn_deadline_ns(TIMEOUT));
    return s == CAIRN_OK || bench_fail("flush failed: %s", cairn_status_name(s));
}

/* Runs the actors together for `ns`; how many bytes reached the disk meanwhile, in GB/s. */
static double run_actors(struct mixed *m, struct actor *actors, uint32_t count, uint64_t ns)
{
    pthread_t threads[THREADS_MAX];
    uint32_t started = 0;
    atomic_store(&m->stop, false);
    double before = bench_vault_stat(m->d.vault, "disk.written_bytes");
    uint64_t start = cairn_now_ns();
    for (; started < count; started++)
        if (pthread_create(&threads[started], NULL, act, &actors[started]))
            break;
    struct timespec t = cairn_timespec(ns);
    nanosleep(&t, NULL);
    double written = bench_vault_stat(m->d.vault, "disk.written_bytes") - before;
    uint64_t took = cairn_now_ns() - start;
    atomic_store(&m->stop, true);
    for (uint32_t i = 0; i < started; i++)
        pthread_join(threads[i], NULL);
    return started == count ? written / (double)took : (double)NAN;
}

static bool fill(struct mixed *m)
{
    struct actor writer = {.m = m};
    while (atomic_load(&m->put_count) < m->ring_len + m->ring_len / 8)
        if (!put_one(&writer) && writer.refused > 100000)
            return bench_fail("the log refused values while it was filled");
    return flush(m);
}

static bool mixed_open(struct bench *b, struct mixed *m)
{
    m->size = b->o->size ? b->o->size : 4u << 20;
    m->round_ns = b->o->seconds_ns / b->o->rounds / 2;
    if (!bench_disk_open(b, CAIRN_WRITE_THROUGH, &m->d))
        return false;
    m->contents = m->d.mem.len / 2 / m->size;
    m->ring_len = m->d.log_bytes / m->size;
    m->ring = calloc(m->ring_len, sizeof *m->ring);
    if (!m->ring)
        return bench_fail("no memory for %llu values", (unsigned long long)m->ring_len);
    atomic_store(&m->next_id, m->d.next_id);
    for (uint64_t i = 0; i < m->contents; i++)
        bench_fill((char *)m->d.mem.base + m->d.mem.len / 2 + i * m->size, m->size, i, 0);
    return fill(m);
}

static void report_misses(const struct actor *a, const char *what)
{
    if (a->missed)
        bench_fail("%s: %llu gets missed and were not counted", what,
                   (unsigned long long)a->missed);
}

struct tail {
    struct actor idle, loaded, writer;
    double write_idle[BENCH_ROUNDS_MAX], write_loaded[BENCH_ROUNDS_MAX];
    double write_bare[BENCH_ROUNDS_MAX];
};

static bool tail_rounds(struct mixed *m, struct tail *t)
{
    for (uint64_t r = 0; r < m->d.o->rounds; r++) {
        struct actor both[2];
        cairn_vault_drop_ram(m->d.vault);
        run_actors(m, &t->idle, 1, m->round_ns);
        t->write_idle[r] = run_actors(m, &t->writer, 1, m->round_ns);
        struct cairn_limit bare;
        if (!flush(m) ||
            !bench_disk_limit(&m->d, m->size, true, m->d.depth, m->round_ns, &bare))
            return false;
        t->write_bare[r] = bare.gb_per_s;
        both[0] = t->loaded;
        both[1] = t->writer;
        t->write_loaded[r] = run_actors(m, both, 2, 2 * m->round_ns);
        t->loaded = both[0];
        if (!flush(m))
            return false;
        if (atomic_load(&m->wrong))
            return bench_fail("wrong bytes: a read beside writes gave other bytes than were put");
    }
    return true;
}

static void tail_rows(struct bench *b, const struct mixed *m, struct tail *t)
{
    uint32_t rounds = (uint32_t)b->o->rounds;
    report_misses(&t->idle, "disk-read idle");
    report_misses(&t->loaded, "disk-read-p99-under-write");
    struct bench_row row = bench_row("us", "p99 of the same reads without writes");
    snprintf(row.name, sizeof row.name, "disk-read-p99-under-write");
    bench_lat_row(&t->loaded.lat, &row);
    row.value = row.p99_us;
    row.limit = bench_lat_us(&t->idle.lat, 0.99);
    row.ratio = row.value / row.limit;
    bench_add(b, &row);
    row = bench_row("GB/s", "the same writes without reads");
    snprintf(row.name, sizeof row.name, "disk-write-under-read");
    row.value = bench_median(t->write_loaded, rounds);
    row.limit = bench_median(t->write_idle, rounds);
    row.ratio = row.value / row.limit;
    bench_add(b, &row);
    row = bench_row("GB/s", "bare io_uring loop");
    bench_name(&row, "disk-write-through", m->size);
    row.value = bench_median(t->write_idle, rounds);
    row.limit = bench_median(t->write_bare, rounds);
    row.ratio = row.value / row.limit;
    bench_add(b, &row);
}

static bool tail_figure(struct bench *b, struct mixed *m)
{
    uint64_t from = m->ring_len * 35 / 100, to = m->ring_len * 75 / 100;
    struct tail *t = calloc(1, sizeof *t);
    if (!t)
        return bench_fail("no memory");
    t->idle = (struct actor){.m = m, .read_percent = 100, .back_min = from, .back_max = to,
                             .random = b->o->seed, .out = m->d.mem.base, .once = true};
    t->loaded = t->idle;
    t->writer = (struct actor){.m = m, .random = b->o->seed + 1};
    bool ok = bench_lat_init(&t->idle.lat, SAMPLES_MAX) &&
              bench_lat_init(&t->loaded.lat, SAMPLES_MAX) && tail_rounds(m, t);
    if (ok)
        tail_rows(b, m, t);
    bench_lat_free(&t->idle.lat);
    bench_lat_free(&t->loaded.lat);
    free(t);
    return ok;
}

/* What the device would give to such a mix: reads and writes one after the other. */
static bool mix_limit(struct mixed *m, struct bench_side *side)
{
    struct cairn_limit r, w;
    double share = (double)m->d.o->read_percent / 100;
    if (!bench_disk_limit(&m->d, m->size, false, m->d.depth, m->round_ns / 2, &r) ||
        !bench_disk_limit(&m->d, m->size, true, m->d.depth, m->round_ns / 2, &w))
        return false;
    double rate = 1 / (share / r.gb_per_s + (1 - share) / w.gb_per_s);
    bench_side_add(side, (uint64_t)(rate * 1e9), CAIRN_NS_PER_S, 0);
    return true;
}

static bool mix_rounds(struct bench *b, struct mixed *m, struct actor *actors, uint32_t n)
{
    struct bench_side cairn = {0}, limit = {0};
    for (uint64_t r = 0; r < b->o->rounds; r++) {
        double cpu = bench_cpu_s();
        uint64_t bytes = 0, start = cairn_now_ns();
        run_actors(m, actors, n, m->round_ns);
        if (!flush(m))
            return false;
        for (uint32_t i = 0; i < n; i++) {
            bytes += actors[i].bytes;
            actors[i].bytes = 0;
        }
        bench_side_add(&cairn, bytes, cairn_now_ns() - start, bench_cpu_s() - cpu);
        if (atomic_load(&m->wrong))
            return bench_fail("wrong bytes: a read in a mix gave other bytes than were put");
        if (!mix_limit(m, &limit))
            return false;
    }
    for (uint32_t i = 0; i < n; i++)
        report_misses(&actors[i], "mixed");
    struct bench_row row = bench_row("GB/s", "bare loops, reads and writes in turn");
    char prefix[32];
    snprintf(prefix, sizeof prefix, "mixed-r%u", (unsigned)b->o->read_percent);
    bench_name(&row, prefix, m->size);
    bench_sides_row(&cairn, &limit, &row);
    bench_lat_row(&actors[0].lat, &row);
    bench_add(b, &row);
    return true;
}

static bool mix_figure(struct bench *b, struct mixed *m)
{
    uint32_t n = (uint32_t)b->o->threads;
    uint64_t room = m->d.mem.len / 2 / m->size;
    if (n > room)
        return bench_fail("%u threads of %llu KiB values do not fit: give fewer --threads", n,
                          (unsigned long long)m->size >> 10);
    struct actor *actors = calloc(n, sizeof *actors);
    bool ok = actors || bench_fail("no memory for %u threads", n);
    for (uint32_t i = 0; ok && i < n; i++) {
        actors[i] = (struct actor){
            .m = m, .read_percent = (uint32_t)b->o->read_percent, .random = b->o->seed + i,
            .back_max = m->d.working_set / m->size,
            .out = (char *)m->d.mem.base + i * m->size,
        };
        ok = bench_lat_init(&actors[i].lat, SAMPLES_MAX);
    }
    ok = ok && mix_rounds(b, m, actors, n);
    for (uint32_t i = 0; actors && i < n; i++)
        bench_lat_free(&actors[i].lat);
    free(actors);
    return ok;
}

bool bench_mixed(struct bench *b)
{
    struct mixed m = {.size = 0};
    bool ok = mixed_open(b, &m) &&
              (b->o->read_percent > 100 ? tail_figure(b, &m) : mix_figure(b, &m));
    bench_disk_close(&m.d);
    free(m.ring);
    return ok;
}
