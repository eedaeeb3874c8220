#include <stdio.h>

#include "base/clock.h"
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

static int run(const void *opts, char **args, uint32_t count)
{
    (void)args;
    (void)count;
    const struct options *o = opts;
    struct node_call *c = NULL;
    int status = node_connect("ping", &o->node, &c);
    if (status)
        return status;
    uint64_t start = cairn_now_ns();
    const struct node_reply *r = node_ask("ping", c, NODE_ARGS(NODE_WORD("PING")));
    double us = (double)(cairn_now_ns() - start) / 1e3;
    char reply[64] = "";
    if (r && r->text)
        snprintf(reply, sizeof reply, "%s", r->text);
    bool ours = r && node_call_is_cairnd(c);
    node_call_close(c);
    if (!r)
        return CLI_FAILED;
    if (o->json) {
        fputs("{\"uri\": ", stdout);
        json_string(stdout, node_uri(&o->node));
        fputs(", \"reply\": ", stdout);
        json_string(stdout, reply);
        printf(", \"us\": %.1f, \"cairnd\": %s}\n", us, ours ? "true" : "false");
    } else {
        printf("%s from %s in %.0f us%s\n", reply, node_uri(&o->node), us,
               ours ? "" : " (this is no cairnd)");
    }
    return CLI_OK;
}

const struct cli_command cli_ping = {
    .name = "ping",
    .args = "",
    .options = options,
    .options_size = sizeof(struct options),
    .run = run,
    .help = "does a node answer, and how fast",
};
