#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "tools/node_call.h"
#include "tools/prompt.h"
#include "transport/wire.h"

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

struct keys {
    struct prompt prompt;
    struct cairn_key one;
    const struct cairn_key *list;
    size_t count;
};

static int read_keys(const char *command, const struct options *o, char **args, uint32_t count,
                     struct keys *k)
{
    *k = (struct keys){.list = &k->one, .count = 1};
    if ((o->key[0] != 0) == (count != 0))
        return cli_fail(CLI_USAGE, "%s: say what: a file of tokens with --identity, or --key "
                        "KEYHEX", command);
    if (o->key[0])
        return cli_parse_key(o->key, &k->one)
                   ? CLI_OK
                   : cli_fail(CLI_USAGE, "%s: '%s' is not a key: --key takes 64 hexadecimal digits",
                              command, o->key);
    int status = prompt_read(command, &o->prompt, args[0], &k->prompt);
    if (status)
        return status;
    k->list = k->prompt.keys;
    k->count = k->prompt.count;
    if (k->count <= CAIRN_WIRE_KEYS_MAX)
        return CLI_OK;
    prompt_free(&k->prompt);
    return cli_fail(CLI_USAGE, "%s: '%s' makes %zu chunks, and a command takes %u: give a shorter "
                    "file", command, args[0], k->count, CAIRN_WIRE_KEYS_MAX);
}

static int pin(const char *command, const char *node_command, const char *done, const void *opts,
               char **args, uint32_t count)
{
    const struct options *o = opts;
    struct keys k;
    int status = read_keys(command, o, args, count, &k);
    if (status)
        return status;
    int64_t n = 0;
    struct node_call *c = NULL;
    if (k.count)
        status = node_connect(command, &o->node, &c);
    if (c) {
        const struct node_reply *r = node_ask(
            command, c,
            NODE_ARGS(NODE_WORD(node_command), NODE_BYTES(k.list, k.count * sizeof *k.list)));
        status = r ? CLI_OK : CLI_FAILED;
        n = node_integer(r, 0);
    }
    node_call_close(c);
    if (!status && o->json)
        printf("{\"chunks\": %zu, \"%s\": %" PRId64 "}\n", k.count, done, n);
    else if (!status)
        printf("%" PRId64 " of %zu chunks %s\n", n, k.count, done);
    prompt_free(&k.prompt);
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
