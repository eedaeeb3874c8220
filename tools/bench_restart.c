/* How long a store with a full log takes to know what it holds. The process that wrote the log ends
 * without closing it, as a killed one does. */
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "storage/format.h"
#include "tools/bench.h"

#define VALUE (256u << 10)
#define RAM_BYTES (512ull << 20)
#define OPENS 5u
#define TIMEOUT (60 * CAIRN_NS_PER_S)
#define CHECKED 64u

struct log {
    uint64_t bytes;
    double recovery_ms, open_ms, bare_ms;
    uint64_t records;
};

static bool fill(const char *path, uint64_t bytes)
{
    struct cairn_vault *v = bench_log_open(path, RAM_BYTES, bytes);
    void *value = malloc(VALUE);
    if (!v || !value)
        return false;
    uint64_t count = bytes / (VALUE + CAIRN_BLOCK) * 9 / 10;
    for (uint64_t id = 0; id < count; id++) {
        struct cairn_iov iov = {.base = value, .len = VALUE};
        struct cairn_put p = {.value = {.iov = &iov, .count = 1}};
        size_t stored = 0;
        bench_key_of(id, &p.key);
        bench_fill(value, VALUE, id, 0);
        uint64_t end = cairn_deadline_ns(TIMEOUT);
        /* A full store refuses at once; it has room again when more was written. */
        for (;;) {
            cairn_vault_put(v, &p, 1, end, &stored);
            if (stored || cairn_now_ns() > end)
                break;
            nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
        }
        if (!stored)
            return bench_fail("the log refused value %llu while it was filled",
                              (unsigned long long)id);
    }
    cairn_status s = cairn_vault_flush(v, cairn_deadline_ns(TIMEOUT));
    return s == CAIRN_OK || bench_fail("flush failed: %s", cairn_status_name(s));
}

static bool fill_in_child(const char *path, uint64_t bytes)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        _exit(fill(path, bytes) ? 0 : 1);
    int status = 0;
    if (pid < 0 || waitpid(pid, &status, 0) < 0)
        return bench_fail("cannot start a process to fill the log");
    return WIFEXITED(status) && !WEXITSTATUS(status);
}

static bool check_values(struct cairn_vault *v, uint64_t records)
{
    void *value = malloc(VALUE);
    uint64_t random = records, held = 0;
    bool ok = value;
    for (uint32_t i = 0; ok && i < CHECKED; i++) {
        uint64_t id = bench_random(&random) % records;
        struct cairn_iov iov = {.base = value, .len = VALUE};
        struct cairn_get g = {.out = {.iov = &iov, .count = 1}};
        size_t hits = 0;
        bench_key_of(id, &g.key);
        cairn_vault_get(v, &g, 1, cairn_deadline_ns(TIMEOUT), &hits);
        if (hits && !bench_verify(value, VALUE, id, 0))
            ok = bench_fail("wrong bytes after a restart");
        held += hits;
    }
    free(value);
    if (ok && held < CHECKED * 9 / 10)
        ok = bench_fail("only %llu of %u flushed values were there after a restart",
                        (unsigned long long)held, CHECKED);
    return ok;
}

/* Reading as many bytes as the segments' footers hold, one after another and nothing else. */
static bool measure_bare(struct bench *b, const char *path, struct log *log,
                         struct cairn_vault *v)
{
    double segments = bench_vault_stat(v, "disk.segments");
    double summaries = (double)log->records / segments * sizeof(struct cairn_summary_disk);
    struct cairn_mapping m;
    if (!bench_mapping(8u << 20, &m))
        return false;
    int fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    struct cairn_limit_disk l = {
        .fd = fd, .from = CAIRN_DATA_OFFSET, .to = log->bytes,
        .len = cairn_blocks((uint64_t)summaries + CAIRN_BLOCK) * CAIRN_BLOCK, .depth = 1,
        .region = m.base, .region_len = m.len, .duration_ns = CAIRN_NS_PER_S / 10,
        .seed = b->o->seed,
    };
    struct cairn_limit got;
    char why[256] = "";
    bool ok = fd >= 0 && cairn_limit_disk_run(&l, &got, why, sizeof why) == CAIRN_OK;
    if (ok)
        log->bare_ms = got.p50_us * segments / 1e3;
    else
        bench_fail("the bare loop failed: %s", why);
    if (fd >= 0)
        close(fd);
    cairn_mapping_close(&m);
    return ok;
}

static bool measure(struct bench *b, struct log *log)
{
    double recovery[OPENS], opened[OPENS];
    char name[32];
    snprintf(name, sizeof name, "restart-%lluG", (unsigned long long)log->bytes >> 30);
    const char *path = bench_file(b, name);
    bool ok = fill_in_child(path, log->bytes);
    for (uint32_t i = 0; ok && i < OPENS; i++) {
        uint64_t start = cairn_now_ns();
        struct cairn_vault *v = bench_log_open(path, RAM_BYTES, log->bytes);
        opened[i] = (double)(cairn_now_ns() - start) / 1e6;
        ok = v;
        if (!v)
            break;
        recovery[i] = bench_vault_stat(v, "disk.recovery_us") / 1e3;
        log->records = (uint64_t)bench_vault_stat(v, "disk.recovered_records");
        ok = log->records || bench_fail("nothing was recovered from '%s'", path);
        if (ok && i + 1 == OPENS)
            ok = check_values(v, log->records) && measure_bare(b, path, log, v);
        cairn_vault_close(v);
    }
    bench_forget_file(path);
    if (ok) {
        log->recovery_ms = bench_median(recovery, OPENS);
        log->open_ms = bench_median(opened, OPENS);
    }
    return ok;
}

bool bench_restart(struct bench *b)
{
    struct log small = {.bytes = 2ull << 30}, large = {.bytes = 8ull << 30};
    if (!measure(b, &small) || !measure(b, &large))
        return false;
    double tb = (double)(large.bytes - small.bytes) / 1e12;
    double slope = fmax(0, large.recovery_ms - small.recovery_ms) / 1e3 / tb;
    double bare_slope = fmax(0, large.bare_ms - small.bare_ms) / 1e3 / tb;
    struct bench_row row = bench_row("ms", "bare reads of as many footers");
    snprintf(row.name, sizeof row.name, "restart-fixed");
    row.value = small.recovery_ms - slope * (double)small.bytes / 1e12 * 1e3;
    row.limit = small.bare_ms - bare_slope * (double)small.bytes / 1e12 * 1e3;
    row.ratio = row.limit / row.value;
    bench_add(b, &row);
    row = bench_row("s/TB", "bare reads of as many footers");
    snprintf(row.name, sizeof row.name, "restart-slope");
    row.value = slope;
    row.limit = bare_slope;
    row.ratio = row.limit / row.value;
    bench_add(b, &row);
    row = bench_row("ms", "recovery of 8 GiB, without memory and threads");
    snprintf(row.name, sizeof row.name, "restart-open-8GiB");
    row.value = large.open_ms;
    row.limit = large.recovery_ms;
    row.ratio = row.limit / row.value;
    bench_add(b, &row);
    return true;
}
