#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "storage/tier.h"
#include "tools/cli.h"
#include "tools/json.h"

struct options {
    bool dump, json, quiet;
};

static const struct cairn_opt options[] = {
    {.name = "dump", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, dump), .def = "no",
     .help = "print every superblock, head, footer and record header, one JSON object a line"},
    {.name = "json", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, json), .def = "no",
     .help = "print the report as one JSON object (after the dump, on a line of its own)"},
    {.name = "quiet", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, quiet),
     .def = "no", .help = "no progress on standard error"},
    {.name = NULL},
};

static void dump_line(void *arg, const char *json)
{
    fprintf(arg, "%s\n", json);
}

static void progress(void *arg, uint64_t done, uint64_t total)
{
    cli_progress(arg, done, total);
}

#define COUNTS(X)                                                                                  \
    X(segments) X(sealed) X(open) X(records) X(tombstones) X(clears) X(holes) X(bad_headers)       \
    X(bad_payloads) X(bad_footers) X(bad_supers) X(payload_bytes)

static void print_report(const struct cairn_fsck_report *r, const char *path, bool ok, bool json)
{
    if (json) {
        printf("{\"path\": ");
        json_string(stdout, path);
        printf(", \"ok\": %s", ok ? "true" : "false");
#define JSON_COUNT(name) printf(", \"" #name "\": %" PRIu64, r->name);
        COUNTS(JSON_COUNT)
        puts("}");
        return;
    }
#define TEXT_COUNT(name) printf("%-16s%" PRIu64 "\n", #name, r->name);
    COUNTS(TEXT_COUNT)
}

static int run(const void *opts, char **args, uint32_t count)
{
    (void)count;
    const struct options *o = opts;
    char path[4096];
    struct stat st;
    if (!stat(args[0], &st) && S_ISDIR(st.st_mode))
        snprintf(path, sizeof path, "%s/cairn.log", args[0]);
    else
        snprintf(path, sizeof path, "%s", args[0]);
    struct cairn_fsck_report r = {0};
    char err[512] = "";
    cairn_status s = cairn_fsck(path, &r, o->dump ? dump_line : NULL, stdout,
                                o->quiet ? NULL : progress, path, err, sizeof err);
    if (s != CAIRN_OK && s != CAIRN_CORRUPT)
        return cli_fail(1, "%s", err[0] ? err : cairn_status_str(s));
    print_report(&r, path, s == CAIRN_OK, o->json);
    if (s == CAIRN_CORRUPT)
        return cli_fail(1, "'%s' is damaged: %" PRIu64 " headers, %" PRIu64 " payloads, %" PRIu64
                        " footers, %" PRIu64 " superblocks; opening the store drops what is bad "
                        "and keeps the rest", path, r.bad_headers, r.bad_payloads, r.bad_footers,
                        r.bad_supers);
    return CLI_OK;
}

const struct cli_command cli_fsck = {
    .name = "fsck",
    .args = "LOGFILE|DIRECTORY",
    .args_min = 1,
    .args_max = 1,
    .options = options,
    .options_size = sizeof(struct options),
    .run = run,
    .help = "verify a log without changing it: every header, payload and footer",
    .more = "Exit status 1 if anything is damaged.\n",
};
