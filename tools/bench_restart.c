/* How long a store with a full log takes to know what it holds. No process that had the log open
 * closes it: each ends as a killed one does. */
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "storage/format.h"
#include "tools/bench.h"

#define VALUE (256u << 10)
#define RAM_BYTES (256ull << 20)
#define OPENS 9u
#define TIMEOUT (60 * CAIRN_NS_PER_S)
#define CHECKED 64u
/* Values in the segment that was still open: few, so that behind them either log has as much to
 * look at as the longest record takes. However large the log, that belongs to the fixed cost. */
#define OPEN_VALUES 8u
#define SEGMENTS 28u

struct log {
    const char *path;
    uint64_t bytes, records;
    double recovery_ms[OPENS], open_ms[OPENS], bare_ms;
};

static uint64_t values_of(uint64_t log_bytes)
{
    uint32_t blocks = (uint32_t)(cairn_segment_bytes_for(log_bytes) / CAIRN_BLOCK);
    uint32_t each = (blocks - 1) / cairn_record_blocks(VALUE, 0);
    while (1 + each * cairn_record_blocks(VALUE, 0) + cairn_footer_blocks(each) > blocks)
        each--;
    return (uint64_t)SEGMENTS * each + OPEN_VALUES;
}

static bool put_value(struct cairn_vault *v, uint64_t id, void *value)
{
    struct cairn_iov iov = {.base = value, .len = VALUE};
    struct cairn_put p = {.value = {.iov = &iov, .count = 1}};
    size_t stored = 0;
    uint64_t end = cairn_deadline_ns(TIMEOUT);
    bench_key_of(id, &p.key);
    bench_fill(value, VALUE, id, 0);
    /* A full store refuses at once; it has room again when more was written. */
    for (;;) {
        cairn_vault_put(v, &p, 1, end, &stored);
        if (stored || cairn_now_ns() > end)
            break;
        nanosleep(&(struct timespec){.tv_nsec = 500000}, NULL);
    }
    return stored || bench_fail("the log refused value %llu while it was filled",
                                (unsigned long long)id);
}

static bool flush(struct cairn_vault *v)
{
    cairn_status s = cairn_vault_flush(v, cairn_deadline_ns(TIMEOUT));
    return s == CAIRN_OK || bench_fail("flush failed: %s", cairn_status_name(s));
}

static bool fill(struct bench *b, struct log *log, uint32_t i)
{
    (void)b;
    (void)i;
    struct cairn_vault *v = bench_log_open(log->path, RAM_BYTES, log->bytes, CAIRN_WRITE_THROUGH);
    void *value = malloc(VALUE);
    uint64_t count = values_of(log->bytes);
    bool ok = v && value;
    for (uint64_t id = 0; ok && id + 1 < count; id++)
        ok = put_value(v, id, value);
    /* The last record says that all before it are durable: their payloads need no second look. */
    return ok && flush(v) && put_value(v, count - 1, value) && flush(v);
}

/* Runs it in a process that ends without closing anything. */
static bool in_child(bool (*fn)(struct bench *b, struct log *log, uint32_t i), struct bench *b,
                     struct log *log, uint32_t i)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        bool ok = fn(b, log, i);
        fflush(NULL);
        _exit(ok ? 0 : 1);
    }
    int status = 0;
    if (pid < 0 || waitpid(pid, &status, 0) < 0)
        return bench_fail("cannot start a process for the log");
    return WIFEXITED(status) && !WEXITSTATUS(status);
}

static bool check_values(struct cairn_vault *v, uint64_t records)
{
    void *value = malloc(VALUE);
    uint64_t random = records;
    bool ok = value;
    for (uint32_t i = 0; ok && i < CHECKED; i++) {
        uint64_t id = bench_random(&random) % records;
        struct cairn_iov iov = {.base = value, .len = VALUE};
        struct cairn_get g = {.out = {.iov = &iov, .count = 1}};
        size_t hits = 0;
        bench_key_of(id, &g.key);
        cairn_vault_get(v, &g, 1, cairn_deadline_ns(TIMEOUT), &hits);
        if (!hits)
            ok = bench_fail("flushed value %llu is gone after a restart", (unsigned long long)id);
        else if (!bench_verify(value, VALUE, id, 0))
            ok = bench_fail("wrong bytes after a restart");
    }
    free(value);
    return ok;
}

/* Reading as many bytes as the segments' footers hold, one after another and nothing else. */
static bool measure_bare(struct bench *b, struct log *log, struct cairn_vault *v)
{
    double segments = bench_vault_stat(v, "disk.segments");
    double summaries = (double)log->records / segments * sizeof(struct cairn_summary_disk);
    struct cairn_mapping m;
    if (!bench_mapping(8u << 20, &m))
        return false;
    int fd = open(log->path, O_RDONLY | O_DIRECT | O_CLOEXEC);
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

/* One opening. The last one also checks what was found and measures the bare reads. */
static bool open_once(struct bench *b, struct log *log, uint32_t i)
{
    uint64_t start = cairn_now_ns();
    struct cairn_vault *v =
        bench_log_open(log->path, RAM_BYTES, log->bytes, CAIRN_WRITE_THROUGH);
    log->open_ms[i] = (double)(cairn_now_ns() - start) / 1e6;
    if (!v)
        return false;
    log->recovery_ms[i] = bench_vault_stat(v, "disk.recovery_us") / 1e3;
    log->records = (uint64_t)bench_vault_stat(v, "disk.recovered_records");
    bool ok = log->records == values_of(log->bytes) ||
              bench_fail("%llu of %llu flushed values were found in '%s'",
                         (unsigned long long)log->records,
                         (unsigned long long)values_of(log->bytes), log->path);
    if (ok && i + 1 == OPENS)
        ok = check_values(v, log->records) && measure_bare(b, log, v);
    return ok;
}

static void add_rows(struct bench *b, struct log *small, struct log *large)
{
    double tb = (double)(large->bytes - small->bytes) / 1e12;
    double small_ms = bench_median(small->recovery_ms, OPENS);
    double large_ms = bench_median(large->recovery_ms, OPENS);
    double slope = fmax(0, large_ms - small_ms) / 1e3 / tb;
    double bare_slope = fmax(0, large->bare_ms - small->bare_ms) / 1e3 / tb;
    struct bench_row row = bench_row("ms", "bare reads of as many footers");
    snprintf(row.name, sizeof row.name, "restart-fixed");
    row.value = small_ms - slope * (double)small->bytes / 1e12 * 1e3;
    row.limit = small->bare_ms - bare_slope * (double)small->bytes / 1e12 * 1e3;
    row.ratio = row.limit / row.value;
    bench_add(b, &row);
    row = bench_row("s/TB", "bare reads of as many footers");
    snprintf(row.name, sizeof row.name, "restart-slope");
    row.value = slope;
    row.limit = bare_slope;
    row.ratio = row.limit / row.value;
    bench_add(b, &row);
    row = bench_row("ms", "its part without memory and threads");
    snprintf(row.name, sizeof row.name, "restart-open-8GiB");
    row.value = bench_median(large->open_ms, OPENS);
    row.limit = large_ms;
    row.ratio = row.limit / row.value;
    bench_add(b, &row);
}

bool bench_restart(struct bench *b)
{
    size_t len = 2 * sizeof(struct log); /* what the processes find out is shared */
    struct log *logs = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (logs == MAP_FAILED)
        return bench_fail("no memory for the figures");
    logs[0] = (struct log){.bytes = 2ull << 30, .path = bench_file(b, "restart-2G")};
    logs[1] = (struct log){.bytes = 8ull << 30, .path = bench_file(b, "restart-8G")};
    bool ok = in_child(fill, b, &logs[0], 0) && in_child(fill, b, &logs[1], 0);
    for (uint32_t i = 0; ok && i < OPENS; i++)
        ok = in_child(open_once, b, &logs[0], i) && in_child(open_once, b, &logs[1], i);
    bench_forget_file(logs[0].path);
    bench_forget_file(logs[1].path);
    if (ok)
        add_rows(b, &logs[0], &logs[1]);
    munmap(logs, len);
    return ok;
}
