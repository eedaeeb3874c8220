#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/json.h"
#include "tools/node_call.h"

#define SECTIONS_MAX 16u

struct options {
    struct node_where node;
    bool json;
};

static const struct cairn_opt options[] = {
    NODE_ROWS(struct options),
    {.name = "json", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, json), .def = "no",
     .help = "print one JSON object: a section an object, values as strings"},
    {.name = NULL},
};

/* "# Section" and "name:value" lines; cut in place. */
static void print_json(char *text)
{
    const char *section_end = "", *comma = "";
    putchar('{');
    for (char *line = strtok(text, "\r\n"); line; line = strtok(NULL, "\r\n")) {
        char *value = strchr(line, ':');
        if (line[0] == '#') {
            fputs(section_end, stdout);
            json_string(stdout, line + 1 + strspn(line + 1, " "));
            fputs(": {", stdout);
            section_end = "}, ";
            comma = "";
        } else if (value && section_end[0]) {
            *value++ = 0;
            fputs(comma, stdout);
            json_string(stdout, line);
            fputs(": ", stdout);
            json_string(stdout, value);
            comma = ", ";
        }
    }
    puts(section_end[0] ? "}}" : "}");
}

static int run(const void *opts, char **args, uint32_t count)
{
    const struct options *o = opts;
    struct cairn_iov words[SECTIONS_MAX + 1] = {NODE_WORD("INFO")};
    for (uint32_t i = 0; i < count; i++)
        words[i + 1] = (struct cairn_iov)NODE_WORD(args[i]);
    struct node_call *c = NULL;
    int status = node_connect("info", &o->node, &c);
    if (status)
        return status;
    const struct node_reply *r = node_ask("info", c, words, count + 1);
    char *text = r && r->text ? strdup(r->text) : NULL;
    node_call_close(c);
    if (!r)
        return CLI_FAILED;
    if (!text)
        return cli_fail(CLI_FAILED, "info: the answer is no text: is this a node?");
    if (count && !text[strspn(text, "\r\n ")]) {
        free(text);
        return cli_fail(CLI_FAILED, "info: no section '%s': cairn info without one prints all",
                        args[0]);
    }
    if (o->json)
        print_json(text);
    else
        fputs(text, stdout);
    free(text);
    return CLI_OK;
}

const struct cli_command cli_info = {
    .name = "info",
    .args = "[SECTION ...]",
    .args_max = SECTIONS_MAX,
    .options = options,
    .options_size = sizeof(struct options),
    .run = run,
    .help = "what a node says about itself (INFO), whole or by section",
};
