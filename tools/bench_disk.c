/* Values to and from the log, beside a bare io_uring loop on a file of the same size. Reads come
 * from the disk because every RAM copy is dropped before them; bytes are compared in full, outside
 * the timed part. */
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/bench.h"

#define RAM_BYTES (1ull << 30)
#define MEM_BYTES (512ull << 20)
/* Many times the last-level cache: values are not in it either. */
#define IO_BYTES (512ull << 20)
/* As long as a round of the bare loop, which has one start and one end too. */
#define BATCH_BYTES MEM_BYTES
#define BATCH_MAX 2048u
#define TIMEOUT (30 * CAIRN_NS_PER_S)
#define SINGLES 200u
#define SINGLES_NS (CAIRN_NS_PER_S / 2)

uint64_t bench_disk_put(struct bench_disk *d, uint64_t size, uint64_t count)
{
    static struct cairn_put puts[256];
    static struct cairn_iov iov[256];
    uint64_t stored = 0, per_call = (16ull << 20) / size;
    per_call = per_call < 1 ? 1 : per_call > 256 ? 256 : per_call;
    for (uint64_t done = 0; done < count;) {
        uint64_t n = count - done < per_call ? count - done : per_call;
        for (uint64_t i = 0; i < n; i++) {
            iov[i] = (struct cairn_iov){.base = (char *)d->mem.base + (done + i) * size,
                                        .len = size};
            puts[i] = (struct cairn_put){.value = {.iov = &iov[i], .count = 1}};
            bench_key_of(d->next_id + done + i, &puts[i].key);
        }
        size_t ok = 0;
        cairn_vault_put(d->vault, puts, n, cairn_deadline_ns(TIMEOUT), &ok);
        stored += ok;
        done += n;
    }
    d->next_id += count;
    return stored;
}

uint64_t bench_disk_get(struct bench_disk *d, uint64_t size, const uint64_t *ids, uint64_t count)
{
    static struct cairn_get gets[BATCH_MAX];
    static struct cairn_iov iov[BATCH_MAX];
    for (uint64_t i = 0; i < count; i++) {
        iov[i] = (struct cairn_iov){.base = (char *)d->mem.base + i * size, .len = size};
        gets[i] = (struct cairn_get){.out = {.iov = &iov[i], .count = 1}};
        bench_key_of(ids[i], &gets[i].key);
    }
    size_t hits = 0;
    cairn_vault_get(d->vault, gets, count, cairn_deadline_ns(TIMEOUT), &hits);
    return hits;
}

bool bench_disk_limit(struct bench_disk *d, uint64_t size, bool write, uint32_t depth, uint64_t ns,
                      struct cairn_limit *ret)
{
    struct cairn_limit_disk l = {
        .fd = d->bare_fd, .to = d->log_bytes, .len = (uint32_t)size, .depth = depth, .write = write,
        .region = d->io.base, .region_len = d->io.len, .duration_ns = ns, .seed = d->next_id + 1,
    };
    char why[256] = "";
    if (cairn_limit_disk_run(&l, ret, why, sizeof why) != CAIRN_OK)
        return bench_fail("the bare loop failed: %s", why);
    return true;
}

static void fill_mem(struct bench_disk *d, uint64_t size, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        bench_fill((char *)d->mem.base + i * size, size, d->next_id + i, 0);
}

static bool flush(struct bench_disk *d)
{
    cairn_status s = cairn_vault_flush(d->vault, cairn_deadline_ns(TIMEOUT));
    return s == CAIRN_OK || bench_fail("flush of '%s' failed: %s", d->log, cairn_status_name(s));
}

/* Writes every segment once, so that what is measured overwrites recycled extents. */
static bool fill_log(struct bench_disk *d)
{
    const uint64_t size = 4u << 20, count = MEM_BYTES / size;
    for (uint64_t done = 0; done < d->log_bytes + d->log_bytes / 8; done += count * size) {
        fill_mem(d, size, count);
        if (bench_disk_put(d, size, count) != count)
            return bench_fail("the log refused values while it was filled");
        if (!flush(d))
            return false;
    }
    return true;
}

bool bench_disk_open(struct bench *b, enum cairn_write_policy write, struct bench_disk *d)
{
    *d = (struct bench_disk){.o = b->o, .bare_fd = -1};
    d->working_set = b->o->working_set ? b->o->working_set : 2ull << 30;
    d->log_bytes = 2 * d->working_set;
    d->next_id = 1;
    if (!bench_mapping(MEM_BYTES, &d->mem) || !bench_mapping(IO_BYTES, &d->io))
        return false;
    memset(d->io.base, 1, d->io.len);
    char why[256] = "";
    d->bare = bench_file(b, "bare");
    d->bare_fd = cairn_limit_file(d->bare, d->log_bytes, d->io.base, d->io.len, why, sizeof why);
    if (d->bare_fd < 0)
        return bench_fail("%s", why);
    d->log = bench_file(b, "log");
    d->vault = bench_log_open(d->log, RAM_BYTES, d->log_bytes, write);
    if (!d->vault || !fill_log(d))
        return false;
    d->depth = b->o->depth ? (uint32_t)b->o->depth
                           : (uint32_t)bench_vault_stat(d->vault, "disk.depth");
    d->depth = d->depth ? d->depth : 4;
    return true;
}

void bench_disk_close(struct bench_disk *d)
{
    if (d->vault)
        cairn_vault_close(d->vault);
    if (d->bare_fd >= 0)
        close(d->bare_fd);
    if (d->log)
        bench_forget_file(d->log);
    if (d->bare)
        bench_forget_file(d->bare);
    cairn_mapping_close(&d->mem);
    cairn_mapping_close(&d->io);
}

/* What one size's figures share. */
struct sized {
    struct bench_disk *d;
    uint64_t size, round_ns;
    uint64_t first_id; /* values of this size: first_id .. d->next_id - 1 */
    uint64_t *ids;     /* a random order of the working set               */
    uint64_t count, next;
    uint64_t failed;
    struct bench_side cairn, limit;
    struct bench_lat lat;
};

/* Values lie in RAM when the clock starts, as they do in the bare loop's buffers: what putting them
 * there costs is ram-put's figure, and what both at once give disk-write-through's. */
static bool write_round(struct sized *s)
{
    struct bench_disk *d = s->d;
    uint64_t count = MEM_BYTES / s->size, bytes = 0, ns = 0;
    double cpu = 0;
    do {
        fill_mem(d, s->size, count);
        /* So that no put makes room by evicting one of this round, which is not written yet. */
        cairn_vault_drop_ram(d->vault);
        uint64_t stored = bench_disk_put(d, s->size, count);
        double cpu_before = bench_cpu_s();
        uint64_t start = cairn_now_ns();
        if (!flush(d))
            return false;
        ns += cairn_now_ns() - start;
        cpu += bench_cpu_s() - cpu_before;
        bytes += stored * s->size;
        s->failed += count - stored;
    } while (ns < s->round_ns);
    bench_side_add(&s->cairn, bytes, ns, cpu);
    return true;
}

/* The newest working set in random order; ids are not repeated until all were read. */
static bool order_ids(struct sized *s)
{
    struct bench_disk *d = s->d;
    uint64_t held = d->next_id - s->first_id, want = d->working_set / s->size;
    s->count = held < want ? held : want;
    s->next = 0;
    if (!s->ids)
        s->ids = malloc(want * sizeof *s->ids);
    if (!s->ids)
        return bench_fail("no memory for %llu keys", (unsigned long long)want);
    uint64_t random = d->o->seed + d->next_id;
    for (uint64_t i = 0; i < s->count; i++) {
        uint64_t j = bench_random(&random) % (i + 1);
        s->ids[i] = s->ids[j];
        s->ids[j] = d->next_id - s->count + i;
    }
    return true;
}

static bool check_batch(struct sized *s, const uint64_t *ids, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (!bench_verify((char *)s->d->mem.base + i * s->size, s->size, ids[i], 0))
            return bench_fail("wrong bytes: a read of the log gave other bytes than were put");
    return true;
}

static bool read_batch(struct sized *s, uint64_t n, uint64_t *ns, uint64_t *bytes, double *cpu_s)
{
    if (s->next + n > s->count) {
        s->next = 0;
        cairn_vault_drop_ram(s->d->vault);
    }
    const uint64_t *ids = s->ids + s->next;
    double cpu = bench_cpu_s();
    uint64_t start = cairn_now_ns();
    uint64_t hits = bench_disk_get(s->d, s->size, ids, n);
    *ns = cairn_now_ns() - start;
    *cpu_s += bench_cpu_s() - cpu;
    *bytes = hits * s->size;
    s->next += n;
    s->failed += n - hits;
    return hits < n || check_batch(s, ids, n);
}

static bool read_round(struct sized *s)
{
    uint64_t n = s->d->o->depth ? s->d->o->depth : BATCH_BYTES / s->size, total = 0, ns = 0;
    n = n > BATCH_MAX ? BATCH_MAX : n > s->count ? s->count : n;
    double cpu = 0;
    cairn_vault_drop_ram(s->d->vault);
    while (ns < s->round_ns) {
        uint64_t batch_ns, bytes;
        if (!read_batch(s, n, &batch_ns, &bytes, &cpu))
            return false;
        ns += batch_ns;
        total += bytes;
    }
    bench_side_add(&s->cairn, total, ns, cpu);
    return true;
}

static bool limit_round(struct sized *s, bool write)
{
    struct cairn_limit l;
    if (!bench_disk_limit(s->d, s->size, write, s->d->depth, s->round_ns, &l))
        return false;
    bench_side_add(&s->limit, (uint64_t)(l.gb_per_s * 1e9), CAIRN_NS_PER_S, 0);
    return true;
}

/* Latency of one value at a time: a get, or a put until it is durable. */
static bool single_writes(struct sized *s)
{
    uint64_t end = cairn_deadline_ns(SINGLES_NS);
    for (uint32_t i = 0; i < SINGLES && cairn_now_ns() < end; i++) {
        fill_mem(s->d, s->size, 1);
        uint64_t start = cairn_now_ns();
        uint64_t stored = bench_disk_put(s->d, s->size, 1);
        if (!flush(s->d))
            return false;
        if (stored)
            bench_lat_add(&s->lat, cairn_now_ns() - start);
    }
    return true;
}

static bool single_reads(struct sized *s)
{
    uint64_t end = cairn_deadline_ns(SINGLES_NS), ns, bytes;
    double cpu = 0;
    cairn_vault_drop_ram(s->d->vault);
    for (uint32_t i = 0; i < SINGLES && cairn_now_ns() < end; i++) {
        if (!read_batch(s, 1, &ns, &bytes, &cpu))
            return false;
        if (bytes)
            bench_lat_add(&s->lat, ns);
    }
    return true;
}

static bool add_row(struct bench *b, struct sized *s, const char *prefix)
{
    struct bench_row row = bench_row("GB/s", "bare io_uring loop");
    bench_name(&row, prefix, s->size);
    bench_sides_row(&s->cairn, &s->limit, &row);
    bench_lat_row(&s->lat, &row);
    if (s->failed)
        bench_fail("%s: %llu operations failed and were not counted", row.name,
                   (unsigned long long)s->failed);
    if (!isfinite(row.value))
        return bench_fail("%s: nothing succeeded", row.name);
    bench_add(b, &row);
    return true;
}

static bool measure(struct bench *b, struct sized *s)
{
    bool ok = bench_lat_init(&s->lat, SINGLES);
    for (uint64_t r = 0; ok && r < b->o->rounds; r++)
        ok = write_round(s) && limit_round(s, true);
    ok = ok && single_writes(s) && add_row(b, s, "disk-write");
    s->cairn = s->limit = (struct bench_side){0};
    s->lat.count = s->failed = 0;
    ok = ok && order_ids(s);
    for (uint64_t r = 0; ok && r < b->o->rounds; r++)
        ok = read_round(s) && limit_round(s, false);
    ok = ok && single_reads(s) && add_row(b, s, "disk-read");
    bench_lat_free(&s->lat);
    free(s->ids);
    return ok;
}

bool bench_disk(struct bench *b)
{
    static const uint64_t sizes[] = {4u << 20, 1u << 20, 16u << 20, 64u << 10};
    struct bench_disk d;
    bool ok = bench_disk_open(b, CAIRN_WRITE_NONE, &d);
    uint32_t n = b->o->size ? 1 : sizeof sizes / sizeof *sizes;
    for (uint32_t i = 0; ok && i < n; i++) {
        struct sized s = {.d = &d, .size = b->o->size ? b->o->size : sizes[i],
                          .round_ns = b->o->seconds_ns / b->o->rounds / 2, .first_id = d.next_id};
        ok = measure(b, &s);
    }
    bench_disk_close(&d);
    return ok;
}
