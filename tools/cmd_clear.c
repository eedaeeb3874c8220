#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tools/node_call.h"
#include "tools/prompt.h"

struct options {
    struct node_where node;
    struct prompt_options prompt;
    char prefix[80];
    bool all, yes, json;
};

static const struct cairn_opt options[] = {
    NODE_ROWS(struct options),
    PROMPT_IDENTITY_ROWS(struct options),
    {.name = "prefix", .type = CAIRN_OPT_STRING, .offset = offsetof(struct options, prefix),
     .max = 80, .help = "key of a chunk: it and all that follow it"},
    {.name = "all", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, all), .def = "no",
     .help = "every chunk of every identity"},
    {.name = "yes", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, yes), .def = "no",
     .help = "do not ask"},
    {.name = "json", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, json), .def = "no",
     .help = "print one JSON object"},
    {.name = NULL},
};

/* What is cleared: the words behind CAIRN.CLEAR, and a sentence for people. */
struct target {
    const char *kind;
    uint8_t id[32];
    bool has_id;
    char text[160];
};

static int choose(const struct options *o, struct target *t)
{
    bool identity = o->prompt.identity[0] || o->prompt.identity_file[0];
    if (identity + (o->prefix[0] != 0) + o->all != 1)
        return cli_fail(CLI_USAGE, "clear: say what: one of --identity model=NAME,..., --prefix "
                        "KEYHEX and --all");
    *t = (struct target){.kind = "ALL", .text = "every chunk"};
    if (identity) {
        cairn_identity *id = prompt_identity("clear", &o->prompt);
        if (!id)
            return CLI_USAGE;
        char hex[65];
        cairn_identity_fingerprint(id, t->id);
        cairn_identity_destroy(id);
        cli_format_hex(t->id, 32, hex);
        t->kind = "IDENTITY";
        snprintf(t->text, sizeof t->text, "every chunk of identity %.16s...", hex);
    } else if (o->prefix[0]) {
        struct cairn_key key;
        if (!cli_parse_key(o->prefix, &key))
            return cli_fail(CLI_USAGE, "clear: '%s' is not a key: --prefix takes 64 hexadecimal "
                            "digits", o->prefix);
        memcpy(t->id, key.bytes, sizeof t->id);
        t->kind = "PREFIX";
        snprintf(t->text, sizeof t->text, "chunk %.16s... and all that follow it", o->prefix);
    }
    t->has_id = identity || o->prefix[0];
    return CLI_OK;
}

static int confirm(const struct options *o, const struct target *t)
{
    if (o->yes)
        return CLI_OK;
    if (!isatty(STDIN_FILENO))
        return cli_fail(CLI_USAGE, "clear: would delete %s of %s: add --yes to do it", t->text,
                        node_uri(&o->node));
    fprintf(stderr, "delete %s of %s? [y/N] ", t->text, node_uri(&o->node));
    char answer[16] = "";
    if (!fgets(answer, sizeof answer, stdin) || (answer[0] != 'y' && answer[0] != 'Y'))
        return cli_fail(CLI_FAILED, "clear: nothing was deleted");
    return CLI_OK;
}

static int run(const void *opts, char **args, uint32_t count)
{
    (void)args;
    (void)count;
    const struct options *o = opts;
    struct target t;
    int status = choose(o, &t);
    if (!status)
        status = confirm(o, &t);
    struct node_call *c = NULL;
    if (!status)
        status = node_connect("clear", &o->node, &c);
    if (status)
        return status;
    struct cairn_iov words[] = {NODE_WORD("CAIRN.CLEAR"), NODE_WORD(t.kind),
                                NODE_BYTES(t.id, sizeof t.id)};
    const struct node_reply *r = node_ask("clear", c, words, t.has_id ? 3 : 2);
    if (r)
        printf(o->json ? "{\"deleted\": %" PRId64 "}\n" : "%" PRId64 " chunks deleted\n",
               node_integer(r, 0));
    node_call_close(c);
    return r ? CLI_OK : CLI_FAILED;
}

const struct cli_command cli_clear = {
    .name = "clear",
    .args = "",
    .options = options,
    .options_size = sizeof(struct options),
    .run = run,
    .help = "deletes chunks of a node: those of an identity, those behind a prefix, or all",
    .more = "Asks first, unless --yes is given. Strings of Redis clients stay (FLUSHDB).\n",
};
