#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tools/node_call.h"
#include "tools/prompt.h"

struct options {
    struct node_where node;
    struct prompt_options prompt;
    char key[80];
    bool json;
};

static const struct cairn_opt options[] = {
    NODE_ROWS(struct options),
    {.name = "key", .type = CAIRN_OPT_STRING, .offset = offsetof(struct options, key), .max = 80,
     .help = "key of one chunk, instead of a file"},
    PROMPT_ROWS(struct options),
    {.name = "json", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, json), .def = "no",
     .help = "print one JSON object"},
    {.name = NULL},
};

static int pin(const char *command, const char *node_command, const char *done, const void *opts,
               char **args, uint32_t count)
{
    const struct options *o = opts;
    struct prompt p;
    struct cairn_key one;
    int status = prompt_or_key(command, o->key, &o->prompt, args, count, &one, &p);
    if (status)
        return status;
    const struct cairn_key *keys = p.count ? p.keys : &one;
    size_t chunks = p.count ? p.count : 1;
    int64_t n = 0;
    struct node_call *c = NULL;
    status = node_connect(command, &o->node, &c);
    if (!status) {
        const struct node_reply *r = node_ask(
            command, c,
            NODE_ARGS(NODE_WORD(node_command), NODE_BYTES(keys, chunks * sizeof *keys)));
        status = r ? CLI_OK : CLI_FAILED;
        n = node_integer(r, 0);
    }
    node_call_close(c);
    if (!status && o->json)
        printf("{\"chunks\": %zu, \"%s\": %" PRId64 "}\n", chunks, done, n);
    else if (!status)
        printf("%" PRId64 " of %zu chunks %s\n", n, chunks, done);
    prompt_free(&p);
    return status;
}

static int run_pin(const void *opts, char **args, uint32_t count)
{
    return pin("pin", "CAIRN.PIN", "pinned", opts, args, count);
}

static int run_unpin(const void *opts, char **args, uint32_t count)
{
    return pin("unpin", "CAIRN.UNPIN", "unpinned", opts, args, count);
}

const struct cli_command cli_pin = {
    .name = "pin",
    .args = "[TOKENFILE|-]",
    .args_max = 1,
    .options = options,
    .options_size = sizeof(struct options),
    .run = run_pin,
    .help = "keeps the chunks of a prompt in a node's RAM until unpin, clear or its end",
    .more = PROMPT_MORE "Pins share the half of the RAM that leases may take.\n",
};

const struct cli_command cli_unpin = {
    .name = "unpin",
    .args = "[TOKENFILE|-]",
    .args_max = 1,
    .options = options,
    .options_size = sizeof(struct options),
    .run = run_unpin,
    .help = "ends what pin did",
    .more = PROMPT_MORE,
};
