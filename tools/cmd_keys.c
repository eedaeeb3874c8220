#include <stdio.h>

#include "tools/cli.h"
#include "tools/prompt.h"

struct options {
    bool json;
    struct prompt_options prompt;
};

static const struct cairn_opt options[] = {
    PROMPT_ROWS(struct options),
    {.name = "json", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, json), .def = "no",
     .help = "print one JSON object"},
    {.name = NULL},
};

static void print_keys(const struct prompt *p, bool json)
{
    char hex[65];
    if (json) {
        uint8_t fingerprint[32];
        cairn_identity_fingerprint(p->identity, fingerprint);
        cli_format_hex(fingerprint, sizeof fingerprint, hex);
        printf("{\"fingerprint\": \"%s\", \"chunk_tokens\": %u, \"keys\": [", hex,
               cairn_identity_chunk_tokens(p->identity));
    }
    for (size_t i = 0; i < p->count; i++) {
        cli_format_hex(p->keys[i].bytes, sizeof p->keys[i].bytes, hex);
        if (json)
            printf("%s\"%s\"", i ? ", " : "", hex);
        else
            puts(hex);
    }
    if (json)
        puts("]}");
}

static int run(const void *opts, char **args, uint32_t count)
{
    (void)count;
    const struct options *o = opts;
    struct prompt p;
    int status = prompt_read("keys", &o->prompt, args[0], &p);
    if (status)
        return status;
    print_keys(&p, o->json);
    prompt_free(&p);
    return CLI_OK;
}

const struct cli_command cli_keys = {
    .name = "keys",
    .args = "TOKENFILE|-",
    .args_min = 1,
    .args_max = 1,
    .options = options,
    .options_size = sizeof(struct options),
    .run = run,
    .help = "the keys of a prompt's chunks, one a line",
    .more = PROMPT_MORE,
};
