/* `cairn bench`: one file a figure family; what they share is here. Every figure is measured in
 * rounds that alternate Cairn and the machine's own limit, and is the median of the rounds. */
#ifndef CAIRN_TOOLS_BENCH_H
#define CAIRN_TOOLS_BENCH_H

#include <stdbool.h>

#include "base/clock.h"
#include "base/mem.h"
#include "storage/store.h"
#include "tools/bench_limits.h"

#define BENCH_ROWS_MAX 128u
#define BENCH_ROUNDS_MAX 64u
#define BENCH_BLOCK (32u * 1024u) /* an engine's block, what scatter and gather use */

struct bench_opts {
    uint64_t size;         /* of a value; 0 = the sizes that the goals name           */
    uint64_t threads;
    uint64_t depth;        /* values in flight on the disk; 0 = automatic             */
    uint64_t read_percent; /* of operations in `mixed`; 101 = the default figures     */
    uint64_t working_set;  /* bytes; 0 = automatic                                    */
    uint64_t seconds_ns;   /* a figure                                                */
    uint64_t rounds;
    uint64_t seed;
    char path[1024];       /* directory for the files of the disk figures             */
    char cuda[512];        /* a driver's path; "auto"                                 */
    char capacities[256];  /* replay: chunks held, separated by commas                */
    uint64_t chunk_bytes;  /* replay                                                  */
    bool json, check;
};

/* NAN = not measured, printed as null. */
struct bench_row {
    char name[56];
    const char *unit;
    double value, limit, ratio; /* share of the limit reached; of a tail latency: times it */
    char limit_name[64];
    double p50_us, p99_us, p999_us, cpu_s_per_gb;
};

struct bench {
    const struct bench_opts *o;
    struct bench_row rows[BENCH_ROWS_MAX];
    uint32_t count;
};

/* Each returns false after a message: a failure, wrong bytes, or no room. */
bool bench_key(struct bench *b);
bool bench_index(struct bench *b);
bool bench_ram(struct bench *b);
bool bench_disk(struct bench *b);
bool bench_mixed(struct bench *b);
bool bench_restart(struct bench *b);
bool bench_net(struct bench *b);
bool bench_shm(struct bench *b);
bool bench_gpu(struct bench *b);
/* Is there no GPU to measure? Then one sentence of why. */
bool bench_gpu_missing(char *why, size_t cap);
bool bench_replay(struct bench *b, const char *trace);
/* Gives the process to the bench of a real engine; returns an exit status if that cannot be. */
int bench_engine(int argc, char **argv);

/* --- bench_report.c --- */
struct bench_row bench_row(const char *unit, const char *limit_name); /* all numbers NAN */
void bench_name(struct bench_row *r, const char *prefix, uint64_t size);
void bench_add(struct bench *b, const struct bench_row *row); /* prints it, unless --json */
void bench_print_header(void);
void bench_print_json(const struct bench *b);
/* Compares with the goals; all: a goal that was not measured is a miss too. False = some missed. */
bool bench_check(const struct bench *b, bool all);

/* --- bench_stat.c --- */
double bench_median(double *values, uint32_t n); /* sorts them; NAN if n is 0 */
double bench_cpu_s(void);                        /* user and system time of the process so far */

/* Latencies of one figure; drops samples beyond its capacity. */
struct bench_lat {
    uint64_t *ns;
    size_t count, cap;
};
bool bench_lat_init(struct bench_lat *l, size_t cap);
void bench_lat_free(struct bench_lat *l);
static inline void bench_lat_add(struct bench_lat *l, uint64_t ns)
{
    if (l->count < l->cap)
        l->ns[l->count++] = ns;
}
double bench_lat_us(struct bench_lat *l, double q); /* sorts */
void bench_lat_row(struct bench_lat *l, struct bench_row *r);

/* What one side of a figure did, a round each. */
struct bench_side {
    double rate[BENCH_ROUNDS_MAX]; /* GB/s */
    uint32_t rounds;
    double bytes, cpu_s;
};
void bench_side_add(struct bench_side *s, uint64_t bytes, uint64_t ns, double cpu_s);
/* value, limit, ratio and cpu_s_per_gb of a row from both sides. */
void bench_sides_row(struct bench_side *cairn, struct bench_side *limit, struct bench_row *r);

static inline uint64_t bench_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Key and bytes of value number `id`: every byte read can be checked by its number alone. */
void bench_key_of(uint64_t id, struct cairn_key *ret);
void bench_fill(void *dst, size_t len, uint64_t id, size_t off);
bool bench_verify(const void *src, size_t len, uint64_t id, size_t off);
bool bench_verify_sgl(const struct cairn_sgl *list, uint64_t id);

/* --- bench_env.c --- */
/* Options of a RAM-only vault; the caller changes what it needs. */
struct cairn_vault_opts bench_vault_opts(uint64_t ram_bytes);
struct cairn_vault *bench_vault_open(const struct cairn_vault_opts *o);
/* Number from the vault's statistics, 0 if absent. */
double bench_vault_stat(struct cairn_vault *v, const char *path);
bool bench_mapping(size_t len, struct cairn_mapping *ret);
/* Path of a file in --path that is removed by bench_forget_file or when the program is stopped. */
const char *bench_file(const struct bench *b, const char *name);
void bench_forget_file(const char *path);
/* A recovered or fresh log of `disk_bytes`; NULL after a message. */
struct cairn_vault *bench_log_open(const char *path, uint64_t ram_bytes, uint64_t disk_bytes,
                                   enum cairn_write_policy write);
/* Prints a message and returns false. */
bool bench_fail(const char *fmt, ...) __attribute__((format(printf, 1, 2)));


/* --- bench_disk.c --- */
/* A log that was written once end to end, a file of the same size beside it for the bare loop, and
 * memory of huge pages for the values. */
struct bench_disk {
    const struct bench_opts *o;
    struct cairn_vault *vault;
    const char *log, *bare;
    int bare_fd;
    uint64_t log_bytes, working_set;
    struct cairn_mapping mem, io;
    uint64_t next_id; /* of the next value put */
    uint32_t depth;   /* of the bare loop      */
};
bool bench_disk_open(struct bench *b, enum cairn_write_policy write, struct bench_disk *ret);
void bench_disk_close(struct bench_disk *d);
/* Puts `count` values of `size` bytes that lie one after another in mem; how many were stored. */
uint64_t bench_disk_put(struct bench_disk *d, uint64_t size, uint64_t count);
/* Gets values by number into mem, one after another. Returns hits; a miss ends nothing. */
uint64_t bench_disk_get(struct bench_disk *d, uint64_t size, const uint64_t *ids, uint64_t count);
/* The bare loop for `ns`; false after a message. */
bool bench_disk_limit(struct bench_disk *d, uint64_t size, bool write, uint32_t depth, uint64_t ns,
                      struct cairn_limit *ret);

#endif
