#include "tools/cli.h"

struct options {
    char store[4096];
    char identity[4096], identity_file[1024];
    bool json;
};

#define FIELD(f) .offset = offsetof(struct options, f), .max = sizeof(((struct options *)0)->f)
static const struct cairn_opt options[] = {
    {.name = "store", .type = CAIRN_OPT_STRING, FIELD(store), .help = "where: embedded:///path"},
    {.name = "identity", .type = CAIRN_OPT_STRING, FIELD(identity),
     .help = "the identity that never hits: model=x,chunk_tokens=256,..."},
    {.name = "identity-file", .type = CAIRN_OPT_STRING, FIELD(identity_file),
     .help = "the same from a file, one name=value a line"},
    {.name = "json", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, json), .def = "no",
     .help = "print one JSON object"},
    {.name = NULL},
};

struct question {
    cairn_store *store;
    cairn_identity *id;
};

static size_t fill(void *arg, char *out, size_t cap)
{
    struct question *q = arg;
    return cairn_why(q->store, q->id, out, cap);
}

static int run(const void *opts, char **args, uint32_t count)
{
    (void)args;
    (void)count;
    const struct options *o = opts;
    if (!o->identity[0] && !o->identity_file[0])
        return cli_fail(2, "why: no identity given: add --identity model=NAME,chunk_tokens=256");
    struct question q = {.id = cli_identity(o->identity, o->identity_file)};
    if (!q.id)
        return CLI_USAGE;
    int status = cli_open(o->store, true, &q.store);
    char *text = status ? NULL : cli_text(fill, &q);
    cairn_close(q.store);
    cairn_identity_destroy(q.id);
    return status ? status : cli_show(text, o->json);
}

const struct cli_command cli_why = {
    .name = "why",
    .args = "",
    .options = options,
    .options_size = sizeof(struct options),
    .run = run,
    .help = "why an identity never hits: the nearest one the store has seen and what differs",
};
