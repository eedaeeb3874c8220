#include <stdlib.h>
#include <string.h>

#include "tools/cli.h"
#include "tools/node_call.h"
#include "tools/prompt.h"

struct options {
    char store[4096];
    struct node_where node;
    struct prompt_options prompt;
    bool json;
};

static const struct cairn_opt options[] = {
    {.name = "store", .type = CAIRN_OPT_STRING, .offset = offsetof(struct options, store),
     .max = sizeof(((struct options *)0)->store),
     .help = "a store without a node: embedded:///path"},
    NODE_ROWS(struct options),
    PROMPT_IDENTITY_ROWS(struct options),
    {.name = "json", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, json), .def = "no",
     .help = "print one JSON object"},
    {.name = NULL},
};

static size_t fill(void *arg, char *out, size_t cap)
{
    return cairn_stats(arg, out, cap);
}

static int stat_store(const struct options *o)
{
    cairn_store *store = NULL;
    int status = cli_open(o->store, true, &store);
    if (status)
        return status;
    char *text = cli_text(fill, store);
    cairn_close(store);
    return cli_show(text, o->json);
}

static int stat_node(const struct options *o, bool of_identity)
{
    uint8_t fingerprint[32];
    if (of_identity) {
        cairn_identity *id = prompt_identity("stat", &o->prompt);
        if (!id)
            return CLI_USAGE;
        cairn_identity_fingerprint(id, fingerprint);
        cairn_identity_destroy(id);
    }
    struct node_call *c = NULL;
    int status = node_connect("stat", &o->node, &c);
    if (status)
        return status;
    struct cairn_iov words[] = {NODE_WORD("CAIRN.STATS"), NODE_WORD("IDENTITY"),
                                NODE_BYTES(fingerprint, sizeof fingerprint)};
    const struct node_reply *r = node_ask("stat", c, words, of_identity ? 3 : 1);
    char *text = r && r->text ? strdup(r->text) : NULL;
    node_call_close(c);
    if (r && !text)
        return cli_fail(CLI_FAILED, "stat: the answer is no text: is this a cairnd?");
    return cli_show(text, o->json);
}

static int run(const void *opts, char **args, uint32_t count)
{
    (void)args;
    (void)count;
    const struct options *o = opts;
    bool of_identity = o->prompt.identity[0] || o->prompt.identity_file[0];
    if (o->store[0] && (o->node.uri[0] || of_identity))
        return cli_fail(CLI_USAGE, "stat: --store reads a store without a node: leave out --uri "
                        "and --identity, or --store");
    return o->store[0] ? stat_store(o) : stat_node(o, of_identity);
}

const struct cli_command cli_stat = {
    .name = "stat",
    .args = "",
    .options = options,
    .options_size = sizeof(struct options),
    .run = run,
    .help = "statistics of a node or of a store: what it holds, its log, how recovery went",
    .more = "With --identity only what a node holds of that identity.\n",
};
