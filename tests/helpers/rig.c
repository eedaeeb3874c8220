#include "tests/helpers/rig.h"

#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define EXIT_SKIPPED 77
#define MIB (1024u * 1024u)

static const char *const write_names[] = {"through", "on-evict", "none", NULL};
static const char *const verify_names[] = {"always", "first", "never", NULL};

_Noreturn void rig_fail(const struct rig *r, const char *format, ...)
{
    va_list ap;

    fflush(stdout);
    fprintf(stderr, "%s: seed %llu: ", r->program, (unsigned long long)r->seed);
    va_start(ap, format);
    vfprintf(stderr, format, ap);
    va_end(ap);
    fprintf(stderr, " (engine %s write %s verify %s policy %s; log %s)\n", r->engine,
            write_names[r->o.write], verify_names[r->o.verify], r->o.policy, r->path);
    exit(1);
}

static unsigned choice(const char *text, const char *const *names)
{
    for (unsigned i = 0; names[i]; i++) {
        if (!strcmp(names[i], text))
            return i;
    }
    fprintf(stderr, "%s is not one of those known\n", text);
    exit(2);
}

static void parse(struct rig *r, int argc, char **argv)
{
    static const struct option options[] = {
        {"seed", required_argument, NULL, 's'},   {"ops", required_argument, NULL, 'n'},
        {"engine", required_argument, NULL, 'e'}, {"write", required_argument, NULL, 'w'},
        {"verify", required_argument, NULL, 'v'}, {"policy", required_argument, NULL, 'p'},
        {"ram", required_argument, NULL, 'r'},    {"disk", required_argument, NULL, 'd'},
        {"cuts", no_argument, NULL, 'c'},         {"faults", required_argument, NULL, 'f'},
        {NULL, 0, NULL, 0}};
    int c;

    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (c) {
        case 's': r->seed = strtoull(optarg, NULL, 0); break;
        case 'n': r->ops = strtoull(optarg, NULL, 0); break;
        case 'e': r->engine = optarg; break;
        case 'w': r->o.write = choice(optarg, write_names); break;
        case 'v': r->o.verify = choice(optarg, verify_names); break;
        case 'p': r->o.policy = optarg; break;
        case 'r': r->o.ram_bytes = strtoull(optarg, NULL, 0) * MIB; break;
        case 'd': r->o.disk_bytes = strtoull(optarg, NULL, 0) * MIB; break;
        case 'c': r->cuts = true; break;
        case 'f': r->faults = (uint32_t)strtoul(optarg, NULL, 0); break;
        default: exit(2);
        }
    }
}

static void skip_if_engine_lacks(const struct rig *r)
{
    const char *only = getenv("CAIRN_TEST_ENGINES");
    const struct cairn_ioq_ops *ops = cairn_ioq_find(r->engine);
    char why[160] = "";

    if (only && !strstr(only, r->engine)) {
        printf("skipped: CAIRN_TEST_ENGINES=%s\n", only);
        exit(EXIT_SKIPPED);
    }
    if (strcmp(r->engine, "sim") && (!ops || !ops->probe(why, sizeof(why)))) {
        printf("skipped: engine %s cannot run here: %s\n", r->engine, why);
        exit(EXIT_SKIPPED);
    }
}

/* Errors and silence, no lies: what was acknowledged still holds. */
static void plan_faults(struct rig *r)
{
    static const struct {
        enum cairn_fault fault;
        uint32_t kinds, share; /* of --faults, in percent */
    } kinds[] = {
        {CAIRN_FAULT_EIO, 0, 100},
        {CAIRN_FAULT_ENOSPC, CAIRN_FAULT_WRITES, 100},
        {CAIRN_FAULT_SHORT, CAIRN_FAULT_READS | CAIRN_FAULT_WRITES, 100},
        {CAIRN_FAULT_ZERO, CAIRN_FAULT_READS | CAIRN_FAULT_WRITES, 50},
        {CAIRN_FAULT_TORN_EIO, CAIRN_FAULT_WRITES, 100},
        {CAIRN_FAULT_DELAY, 0, 100},
        {CAIRN_FAULT_REORDER, 0, 300},
        {CAIRN_FAULT_LOST, 0, 2},
        {CAIRN_FAULT_GONE, 0, 2},
    };

    r->plan.next = r->o.ioq ? r->o.ioq : cairn_ioq_find(r->engine);
    r->plan.next_arg = r->o.ioq_arg;
    r->plan.seed = r->seed;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        r->plan.rules[r->plan.rule_count++] =
            (struct cairn_fault_rule){.fault = kinds[i].fault,
                                      .kinds = kinds[i].kinds,
                                      .ppm = r->faults * kinds[i].share / 100,
                                      .arg = CAIRN_FAULT_RANDOM};
    }
    r->o.ioq = &cairn_ioq_fault;
    r->o.ioq_arg = &r->plan;
    /* Long enough for a busy machine, or open finds a device that fails. */
    r->o.io_deadline_ns = 2 * RIG_SECOND;
    r->o.errors_max = 1000;
    /* A sync that fails turns the tier off. */
    r->o.probe_ns = RIG_SECOND / 1000;
}

void rig_init(struct rig *r, int argc, char **argv)
{
    struct timespec now;

    clock_gettime(CLOCK_REALTIME, &now);
    *r = (struct rig){.program = strrchr(argv[0], '/') ? strrchr(argv[0], '/') + 1 : argv[0],
                      .seed = (uint64_t)now.tv_nsec * 2654435761u + (uint64_t)now.tv_sec,
                      .ops = 3000,
                      .engine = "pool"};
    r->o = (struct cairn_vault_opts){.ram_bytes = 8 * MIB,
                                     .disk_bytes = 32 * MIB,
                                     .policy = "s3fifo",
                                     .lock_wait_ns = 5 * RIG_SECOND,
                                     .io_deadline_ns = RIG_PATIENCE,
                                     .errors_max = 16,
                                     .reinsert_percent = 10};
    parse(r, argc, argv);
    skip_if_engine_lacks(r);
    r->rng.state = r->seed;
    snprintf(r->dir, sizeof(r->dir), "rig-%d-XXXXXX", (int)getpid());
    if (!mkdtemp(r->dir))
        rig_fail(r, "cannot make a directory");
    snprintf(r->path, sizeof(r->path), "%s/cairn.log", r->dir);
    r->o.path = r->o.disk_bytes ? r->path : NULL;
    r->o.engine = r->engine;
    if (!strcmp(r->engine, "sim")) {
        r->sim = cairn_sim_create(&(struct cairn_sim_opts){.seed = r->seed});
        if (!r->sim)
            rig_fail(r, "no simulated disk");
        r->o.ioq = &cairn_ioq_sim;
        r->o.ioq_arg = r->sim;
    }
    if (r->faults)
        plan_faults(r);
    printf("%s: seed %llu, %llu ops, engine %s, write %s, verify %s, policy %s\n", r->program,
           (unsigned long long)r->seed, (unsigned long long)r->ops, r->engine,
           write_names[r->o.write], verify_names[r->o.verify], r->o.policy);
    fflush(stdout);
}

void rig_open(struct rig *r)
{
    char err[512] = "";
    cairn_status s = cairn_vault_open(&r->o, &r->vault, err, sizeof(err));

    if (s != CAIRN_OK)
        rig_fail(r, "open: status %d: %s", s, err);
}

void rig_close(struct rig *r)
{
    cairn_vault_close(r->vault);
    r->vault = NULL;
}

void rig_power_cycle(struct rig *r)
{
    struct cairn_sim *after = cairn_sim_power_cut(r->sim, rng_next(&r->rng));

    if (!after)
        rig_fail(r, "no memory for the disk after the power cut");
    rig_close(r);
    cairn_sim_destroy(r->sim);
    r->sim = after;
    if (r->faults)
        r->plan.next_arg = after;
    else
        r->o.ioq_arg = after;
    rig_open(r);
}

void rig_fini(struct rig *r)
{
    cairn_sim_destroy(r->sim);
    unlink(r->path);
    rmdir(r->dir);
}
