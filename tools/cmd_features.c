#include "tools/cli.h"

struct options {
    bool json;
};

static const struct cairn_opt options[] = {
    {.name = "json", .type = CAIRN_OPT_BOOL, .def = "no", .offset = offsetof(struct options, json),
     .help = "print one JSON object"},
    {.name = NULL},
};

static size_t fill(void *arg, char *out, size_t cap)
{
    return cairn_features(arg, out, cap);
}

static int run(const void *opts, char **args, uint32_t count)
{
    const struct options *o = opts;
    char *text = cli_text(fill, count ? args[0] : NULL);
    return cli_show(text, o->json);
}

const struct cli_command cli_features = {
    .name = "features",
    .args = "[PATH]",
    .args_max = 1,
    .options = options,
    .options_size = sizeof(struct options),
    .run = run,
    .help = "what this machine gives: huge pages, io_uring, copy and hash variants, O_DIRECT",
    .more = "With PATH (a directory or a file) also what the file system it is on allows.\n",
};
