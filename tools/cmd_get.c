#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tools/cli.h"
#include "tools/json.h"

struct options {
    char store[4096];
    char output[1024];
    bool json;
    uint64_t timeout_ns;
};

#define FIELD(f) .offset = offsetof(struct options, f), .max = sizeof(((struct options *)0)->f)
static const struct cairn_opt options[] = {
    {.name = "store", .type = CAIRN_OPT_STRING, FIELD(store), .help = "where: embedded:///path"},
    {.name = "output", .type = CAIRN_OPT_STRING, FIELD(output),
     .help = "file to write (-o FILE); standard output without it"},
    {.name = "json", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, json), .def = "no",
     .help = "print one JSON object about the value (its bytes only with -o FILE)"},
    {.name = "timeout", .type = CAIRN_OPT_DURATION, .offset = offsetof(struct options, timeout_ns),
     .def = "30s", .help = "give up after this long"},
    {.name = NULL},
};

static int report(const struct options *o, const char *hex, uint64_t len, uint64_t ns)
{
    if (!o->json)
        return CLI_OK;
    printf("{\"key\": \"%s\", \"bytes\": %llu, \"verified\": true, \"seconds\": %.6f, \"output\": ",
           hex, (unsigned long long)len, (double)ns / 1e9);
    if (o->output[0])
        json_string(stdout, o->output);
    else
        printf("null");
    puts("}");
    return CLI_OK;
}

static int get(const struct options *o, cairn_store *store, const struct cairn_key *key,
               const char *hex)
{
    uint64_t len = cairn_value_len(store, key);
    if (!len)
        return cli_fail(1, "key '%.16s...' is not held by '%s': check the key, or `cairn why`", hex,
                        o->store);
    struct cairn_iov iov = {.base = malloc(len), .len = len};
    if (!iov.base)
        return cli_fail(1, "no memory for a value of %llu bytes: close other programs",
                        (unsigned long long)len);
    struct cairn_get g = {.key = *key, .out = {.iov = &iov, .count = 1}};
    size_t hits = 0;
    uint64_t start = cairn_now_ns();
    cairn_status s = cairn_get(store, &g, 1, o->timeout_ns, &hits);
    uint64_t ns = cairn_now_ns() - start;
    int status;
    if (!hits)
        status = cli_fail(1, "key '%.16s...' could not be read: %s", hex,
                          cli_reason(s != CAIRN_OK ? s : g.status, g.cause));
    else if (o->json && !o->output[0])
        status = report(o, hex, len, ns);
    else
        status = cli_write_file(o->output, iov.base, len) ? report(o, hex, len, ns) : CLI_FAILED;
    free(iov.base);
    return status;
}

static int run(const void *opts, char **args, uint32_t count)
{
    (void)count;
    const struct options *o = opts;
    struct cairn_key key;
    if (!cli_parse_key(args[0], &key))
        return cli_fail(2, "get: '%s' is not a key: give 64 hexadecimal digits", args[0]);
    if (o->json && !strcmp(o->output, "-"))
        return cli_fail(2, "get: --json and -o - both write to standard output: name a file");
    cairn_store *store = NULL;
    int status = cli_open(o->store, true, &store);
    if (status)
        return status;
    status = get(o, store, &key, args[0]);
    cairn_close(store);
    return status;
}

const struct cli_command cli_get = {
    .name = "get",
    .args = "KEYHEX [-o FILE]",
    .args_min = 1,
    .args_max = 1,
    .options = options,
    .options_size = sizeof(struct options),
    .run = run,
    .help = "get one value, verified",
};
