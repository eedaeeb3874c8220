#include "tools/cli.h"

struct options {
    char store[4096];
    bool json;
};

static const struct cairn_opt options[] = {
    {.name = "store", .type = CAIRN_OPT_STRING, .offset = offsetof(struct options, store),
     .max = sizeof(((struct options *)0)->store), .help = "where: embedded:///path"},
    {.name = "json", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, json), .def = "no",
     .help = "print one JSON object"},
    {.name = NULL},
};

static size_t fill(void *arg, char *out, size_t cap)
{
    return cairn_stats(arg, out, cap);
}

static int run(const void *opts, char **args, uint32_t count)
{
    (void)args;
    (void)count;
    const struct options *o = opts;
    cairn_store *store = NULL;
    int status = cli_open(o->store, true, &store);
    if (status)
        return status;
    char *text = cli_text(fill, store);
    cairn_close(store);
    return cli_show(text, o->json);
}

const struct cli_command cli_stat = {
    .name = "stat",
    .args = "",
    .options = options,
    .options_size = sizeof(struct options),
    .run = run,
    .help = "statistics of a store: what it holds, what its log is, how recovery went",
};
