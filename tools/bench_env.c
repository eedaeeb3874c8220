#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/bench.h"
#include "tools/json.h"

#define FILES_MAX 8
#define STATS_CAP (64u * 1024u)

static char files[FILES_MAX][1152];
static uint32_t file_count;

bool bench_fail(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("cairn: bench: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    return false;
}

struct cairn_vault_opts bench_vault_opts(uint64_t ram_bytes)
{
    return (struct cairn_vault_opts){
        .ram_bytes = ram_bytes,
        .write = CAIRN_WRITE_NONE,
        .verify = CAIRN_VERIFY_FIRST,
        .policy = "s3fifo",
        .engine = "auto",
        .lock_wait_ns = 5 * CAIRN_NS_PER_S,
        .io_deadline_ns = 30 * CAIRN_NS_PER_S,
        .errors_max = 16,
        .reinsert_percent = 0,
    };
}

struct cairn_vault *bench_vault_open(const struct cairn_vault_opts *o)
{
    struct cairn_vault *v = NULL;
    char err[512] = "";
    cairn_status s = cairn_vault_open(o, &v, err, sizeof err);
    if (s == CAIRN_OK)
        return v;
    bench_fail("%s", err[0] ? err : cairn_status_name(s));
    return NULL;
}

struct cairn_vault *bench_log_open(const char *path, uint64_t ram_bytes, uint64_t disk_bytes,
                                   enum cairn_write_policy write)
{
    struct cairn_vault_opts o = bench_vault_opts(ram_bytes);
    o.write = write;
    o.path = path;
    o.disk_bytes = disk_bytes;
    return bench_vault_open(&o);
}

double bench_vault_stat(struct cairn_vault *v, const char *path)
{
    double value = 0;
    char *text = malloc(STATS_CAP);
    if (text && cairn_vault_stats(v, 0, text, STATS_CAP) < STATS_CAP)
        json_find_number(text, path, &value);
    free(text);
    return value;
}

bool bench_mapping(size_t len, struct cairn_mapping *ret)
{
    cairn_status s = cairn_mapping_open(len, "cairn-bench", ret);
    if (s != CAIRN_OK)
        return bench_fail("no memory for %zu MiB (%s): close other programs or give a smaller "
                          "--working-set", len >> 20, cairn_status_name(s));
    return true;
}

static void remove_files(int signal_number)
{
    for (uint32_t i = 0; i < FILES_MAX; i++)
        if (files[i][0])
            unlink(files[i]);
    _exit(128 + signal_number);
}

const char *bench_file(const struct bench *b, const char *name)
{
    struct sigaction act = {.sa_handler = remove_files};
    sigaction(SIGINT, &act, NULL);
    sigaction(SIGTERM, &act, NULL);
    uint32_t i = file_count++ % FILES_MAX;
    snprintf(files[i], sizeof files[i], "%s/cairn-bench-%d-%s", b->o->path, getpid(), name);
    unlink(files[i]);
    return files[i];
}

void bench_forget_file(const char *path)
{
    unlink(path);
    for (uint32_t i = 0; i < FILES_MAX; i++)
        if (path == files[i])
            files[i][0] = 0;
}
