#include <stdio.h>
#include <string.h>

#include "tools/json.h"
#include "tools/node_call.h"

struct options {
    struct node_where node;
    bool json;
};

static const struct cairn_opt options[] = {
    NODE_ROWS(struct options),
    {.name = "json", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, json), .def = "no",
     .help = "print one JSON object"},
    {.name = NULL},
};

/* CONFIG GET: a map, or the same as a flat list. */
static int print_pairs(const struct node_reply *r, const char *asked, bool json)
{
    if (r->count == 0)
        return cli_fail(CLI_USAGE, "config: no option '%s': cairn config print lists them", asked);
    if (json)
        putchar('{');
    for (size_t i = 0; i + 1 < r->count; i += 2) {
        const char *name = r->items[i].text, *value = r->items[i + 1].text;
        if (!name || !value)
            continue;
        if (json) {
            fputs(i ? ", " : "", stdout);
            json_string(stdout, name);
            fputs(": ", stdout);
            json_string(stdout, value);
        } else {
            bool quote = !value[0] || strpbrk(value, " \t\"#");
            printf(quote ? "%s \"%s\"\n" : "%s %s\n", name, value);
        }
    }
    if (json)
        puts("}");
    return CLI_OK;
}

static int talk(const struct options *o, char **args, uint32_t count, struct node_call *c)
{
    const char *verb = args[0], *name = count > 1 ? args[1] : "*";
    if (strcmp(verb, "set")) {
        const struct node_reply *r = node_ask(
            "config", c, NODE_ARGS(NODE_WORD("CONFIG"), NODE_WORD("GET"), NODE_WORD(name)));
        return r ? print_pairs(r, name, o->json) : CLI_FAILED;
    }
    const struct node_reply *r =
        node_ask("config", c, NODE_ARGS(NODE_WORD("CONFIG"), NODE_WORD("SET"), NODE_WORD(name),
                                        NODE_WORD(args[2])));
    if (!r)
        return CLI_FAILED;
    r = node_ask("config", c, NODE_ARGS(NODE_WORD("CONFIG"), NODE_WORD("GET"), NODE_WORD(name)));
    return r ? print_pairs(r, name, o->json) : CLI_FAILED;
}

static int run(const void *opts, char **args, uint32_t count)
{
    const struct options *o = opts;
    static const char *const verbs[] = {"get", "set", "print", NULL};
    static const uint32_t wanted[] = {2, 3, 1};
    int verb = 0;
    while (verbs[verb] && strcmp(args[0], verbs[verb]))
        verb++;
    if (!verbs[verb])
        return cli_fail(CLI_USAGE, "config: '%s' is none of get, set and print", args[0]);
    if (count != wanted[verb])
        return cli_fail(CLI_USAGE, "config: write cairn config get NAME, cairn config set NAME "
                        "VALUE, or cairn config print");
    struct node_call *c = NULL;
    int status = node_connect("config", &o->node, &c);
    if (!status)
        status = talk(o, args, count, c);
    node_call_close(c);
    return status;
}

const struct cli_command cli_config = {
    .name = "config",
    .args = "get NAME | set NAME VALUE | print",
    .args_min = 1,
    .args_max = 3,
    .options = options,
    .options_size = sizeof(struct options),
    .run = run,
    .help = "options of a running node: reads one (or a pattern), sets one, prints all",
    .more = "What is set lasts until the node ends; its file is not changed.\n",
};
