#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/copy.h"
#include "base/cuda_config.h"
#include "tools/bench.h"
#include "tools/cli.h"

#define AT(f) .offset = offsetof(struct bench_opts, f)
static const struct cairn_opt options[] = {
    {.name = "size", .type = CAIRN_OPT_SIZE, AT(size), .min = 65536, .max = 33554432,
     .help = "bytes of a value, 64KiB to 32MiB, a power of two (the sizes of the goals)"},
    {.name = "threads", .type = CAIRN_OPT_COUNT, AT(threads), .def = "1", .min = 1, .max = 64,
     .help = "callers at the same time"},
    {.name = "depth", .type = CAIRN_OPT_COUNT, AT(depth), .min = 1, .max = 64,
     .help = "values in flight on the disk (the store's own choice)"},
    {.name = "read-share", .type = CAIRN_OPT_COUNT, AT(read_percent), .def = "101", .min = 0,
     .max = 101, .help = "mixed: percent of reads, 0 to 100; 101 is reads under full writing"},
    {.name = "working-set", .type = CAIRN_OPT_SIZE, AT(working_set), .min = 64u << 20,
     .max = 1ull << 40, .help = "bytes of values in use (512MiB in RAM, 2GiB on disk)"},
    {.name = "path", .type = CAIRN_OPT_STRING, AT(path), .def = ".", .max = 1024,
     .help = "directory for the disk figures' files, about 10 GiB, removed at the end"},
    {.name = "seconds", .type = CAIRN_OPT_DURATION, AT(seconds_ns), .def = "3s",
     .min = CAIRN_NS_PER_S / 10, .max = 600 * CAIRN_NS_PER_S,
     .help = "time a figure, Cairn and limit together"},
    {.name = "rounds", .type = CAIRN_OPT_COUNT, AT(rounds), .def = "7", .min = 1,
     .max = BENCH_ROUNDS_MAX, .help = "alternations of Cairn and limit a figure"},
    {.name = "seed", .type = CAIRN_OPT_COUNT, AT(seed), .def = "1", .min = 0, .max = INT64_MAX,
     .help = "of the order of keys"},
    {.name = "capacity", .type = CAIRN_OPT_STRING, AT(capacities), .max = 256,
     .def = "1000,3000,10000,30000", .help = "replay: chunks held, separated by commas"},
    {.name = "chunk-bytes", .type = CAIRN_OPT_SIZE, AT(chunk_bytes), .def = "4MiB", .min = 1,
     .max = 1ull << 32, .help = "replay: bytes of a chunk, for the bytes written"},
    {.name = "cuda", .type = CAIRN_OPT_STRING, AT(cuda), .def = "auto", .max = 512,
     .help = "gpu: the driver, auto = libcuda.so.1, or a path"},
    {.name = "json", .type = CAIRN_OPT_BOOL, AT(json), .def = "no",
     .help = "print one JSON array instead of the table"},
    {.name = "check", .type = CAIRN_OPT_BOOL, AT(check), .def = "no",
     .help = "compare with the goals, exit 1 naming each miss"},
    {.name = NULL},
};

static const struct family {
    const char *name;
    bool (*run)(struct bench *b);
} families[] = {
    {"key", bench_key},     {"index", bench_index}, {"ram", bench_ram},
    {"disk", bench_disk},   {"mixed", bench_mixed}, {"restart", bench_restart},
    {"net", bench_net},     {"shm", bench_shm},     {"gpu", bench_gpu},
};
#define FAMILIES (sizeof families / sizeof *families)

static int unknown_family(const char *name)
{
    const char *names[FAMILIES + 4] = {"all", "replay", "engine"};
    for (size_t i = 0; i < FAMILIES; i++)
        names[i + 3] = families[i].name;
    const char *near = cairn_nearest(name, names);
    if (near)
        return cli_fail(CLI_USAGE, "bench: unknown figure '%s': did you mean '%s'?", name, near);
    return cli_fail(CLI_USAGE, "bench: unknown figure '%s': cairn bench --help lists them", name);
}

/* One family, or all of them with the replay of a trace if there is one. */
static bool run_families(struct bench *b, const char *name, const char *trace)
{
    bool all = !strcmp(name, "all"), ok = true;
    char why[300];
    for (size_t i = 0; ok && i < FAMILIES; i++)
        if (all && families[i].run == bench_gpu && bench_gpu_missing(why, sizeof why))
            fprintf(stderr, "cairn: bench: gpu is left out: %s\n", why);
        else if (all || !strcmp(name, families[i].name))
            ok = families[i].run(b);
    if (ok && trace && (all || !strcmp(name, "replay")))
        ok = bench_replay(b, trace);
    return ok;
}

static bool is_family(const char *name)
{
    bool found = !strcmp(name, "all") || !strcmp(name, "replay");
    for (size_t i = 0; i < FAMILIES; i++)
        found |= !strcmp(name, families[i].name);
    return found;
}

static int run(const void *opts, char **args, uint32_t count)
{
    const struct bench_opts *o = opts;
    static struct bench b;
    b = (struct bench){.o = o};
    const char *name = args[0], *trace = count > 1 ? args[1] : NULL;
    if (!strcmp(name, cli_bench.apart))
        return cli_fail(CLI_USAGE, "bench: options of 'engine' stand behind it: cairn bench engine "
                        "--help lists them");
    if (!is_family(name))
        return unknown_family(name);
    if (o->size & (o->size - 1))
        return cli_fail(CLI_USAGE, "bench: size %llu is not a power of two: give 64KiB to 32MiB",
                        (unsigned long long)o->size);
    if (!strcmp(name, "replay") && !trace)
        return cli_fail(CLI_USAGE, "bench: replay needs a trace: cairn bench replay FILE.jsonl.gz");
    if (access(o->path, W_OK))
        return cli_fail(CLI_USAGE, "bench: cannot write to '%s': give --path a directory on the "
                        "disk to measure", o->path);
    char err[600];
    if (cairn_cuda_option(o->cuda, err, sizeof err))
        return cli_fail(CLI_USAGE, "bench: %s", err);
    cairn_copy_init();
    if (!o->json)
        bench_print_header();
    bool ok = run_families(&b, name, trace);
    if (o->json)
        bench_print_json(&b);
    if (ok && o->check)
        ok = bench_check(&b, !strcmp(name, "all"));
    return ok ? CLI_OK : CLI_FAILED;
}

const struct cli_command cli_bench = {
    .name = "bench",
    .args = "key|index|ram|disk|mixed|restart|net|shm|gpu|all | replay TRACE | engine ...",
    .args_min = 1,
    .args_max = 2,
    .options = options,
    .options_size = sizeof(struct bench_opts),
    .run = run,
    .help = "measure Cairn beside this machine's own limits",
    .more = "A figure is the median of rounds that alternate Cairn and the limit; bytes are\n"
            "checked and failures are not counted. tools/README.md says what each figure is.\n"
            "engine measures a real vLLM: cairn bench engine --help lists its options.\n",
    .apart = "engine",
    .run_apart = bench_engine,
};
