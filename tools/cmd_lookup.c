#include <stdio.h>

#include "tools/json.h"
#include "tools/node_call.h"
#include "tools/prompt.h"

struct options {
    struct node_where node;
    struct prompt_options prompt;
    bool json;
};

static const struct cairn_opt options[] = {
    NODE_ROWS(struct options),
    PROMPT_ROWS(struct options),
    {.name = "json", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, json), .def = "no",
     .help = "print one JSON object"},
    {.name = NULL},
};

static const char *place_of(const struct node_chunk *w)
{
    return w->ram && w->disk ? "ram and disk" : w->ram ? "ram" : w->disk ? "disk" : "held";
}

static size_t chunk_length(const struct prompt *p, size_t i)
{
    size_t chunk = cairn_identity_chunk_tokens(p->identity), at = i * chunk;
    return p->tokens - at < chunk ? p->tokens - at : chunk;
}

static void print_chunk(const struct prompt *p, size_t i, const struct node_chunk *w, bool json)
{
    char hex[65];
    cli_format_hex(p->keys[i].bytes, sizeof p->keys[i].bytes, hex);
    size_t first = i * cairn_identity_chunk_tokens(p->identity), len = chunk_length(p, i);
    if (!json) {
        printf("%5zu  tokens %zu..%zu  %.16s  %s%s%s\n", i, first, first + len - 1, hex,
               w->held ? place_of(w) : "-", w->held ? "" : "  ", w->held ? "" : w->text);
        return;
    }
    printf("%s{\"chunk\": %zu, \"first_token\": %zu, \"tokens\": %zu, "
           "\"key\": \"%s\", \"held\": %s, \"ram\": %s, \"disk\": %s, \"cause\": ",
           i ? ", " : "", i, first, len, hex, w->held ? "true" : "false",
           w->ram ? "true" : "false", w->disk ? "true" : "false");
    json_string(stdout, w->held ? "" : cairn_cause_name(w->cause));
    putchar('}');
}

static int show(const struct prompt *p, struct node_call *c, bool json)
{
    const struct node_reply *r =
        node_ask("lookup", c, NODE_ARGS(NODE_WORD("CAIRN.LOOKUP"),
                                        NODE_BYTES(p->keys, p->count * sizeof *p->keys)));
    if (!r)
        return CLI_FAILED;
    size_t held = r->count == 2 ? (size_t)node_integer(&r->items[0], 0) : 0;
    size_t resident = r->count == 2 ? (size_t)node_integer(&r->items[1], 0) : 0;
    size_t chunk = cairn_identity_chunk_tokens(p->identity);
    size_t tokens = held == p->count ? p->tokens : held * chunk;
    if (json)
        printf("{\"chunks\": %zu, \"tokens\": %zu, \"held\": %zu, \"held_tokens\": %zu, "
               "\"resident\": %zu, \"list\": [", p->count, p->tokens, held, tokens, resident);
    for (size_t i = 0; i < p->count; i++) {
        struct node_chunk w;
        if (!node_ask_chunk("lookup", c, &p->keys[i], &w))
            return CLI_FAILED;
        print_chunk(p, i, &w, json);
    }
    if (json)
        puts("]}");
    else
        printf("held from the start: %zu of %zu chunks, %zu of %zu tokens; in RAM from the start: "
               "%zu chunks\n", held, p->count, tokens, p->tokens, resident);
    return CLI_OK;
}

static int run(const void *opts, char **args, uint32_t count)
{
    (void)count;
    const struct options *o = opts;
    struct prompt p;
    struct node_call *c = NULL;
    int status = prompt_read_for_node("lookup", &o->prompt, args[0], &p);
    if (status)
        return status;
    status = node_connect("lookup", &o->node, &c);
    if (!status)
        status = show(&p, c, o->json);
    node_call_close(c);
    prompt_free(&p);
    return status;
}

const struct cli_command cli_lookup = {
    .name = "lookup",
    .args = "TOKENFILE|-",
    .args_min = 1,
    .args_max = 1,
    .options = options,
    .options_size = sizeof(struct options),
    .run = run,
    .help = "which chunks of a prompt a node holds, and where",
    .more = PROMPT_MORE "Only what is held from the start saves an engine its work.\n",
};
