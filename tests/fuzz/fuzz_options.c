/* The text of a URI's query and of sizes and durations comes from outside. Beside not crashing:
 * a refusal says something, and what was accepted prints as text that gives the same value. */
#include <stdlib.h>
#include <string.h>

#include "base/options.h"

struct opts {
    uint64_t size, wait, count;
    bool flag;
    uint32_t choice;
    char text[32];
};

static const char *const choices[] = {"through", "on-evict", "none", NULL};

static const struct cairn_opt table[] = {
    {"size", CAIRN_OPT_SIZE, "1GiB", 4096, UINT64_MAX, NULL, offsetof(struct opts, size), ""},
    {"wait", CAIRN_OPT_DURATION, "5s", 0, 0, NULL, offsetof(struct opts, wait), ""},
    {"count", CAIRN_OPT_COUNT, "3", 1, 100, NULL, offsetof(struct opts, count), ""},
    {"flag", CAIRN_OPT_BOOL, "yes", 0, 0, NULL, offsetof(struct opts, flag), ""},
    {"choice", CAIRN_OPT_CHOICE, "none", 0, 0, choices, offsetof(struct opts, choice), ""},
    {"text", CAIRN_OPT_STRING, "a", 0, 32, NULL, offsetof(struct opts, text), ""},
    {.name = NULL},
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *input = malloc(size + 1);
    if (!input)
        return 0;
    memcpy(input, data, size);
    input[size] = '\0';

    struct opts o, back;
    char err[128] = "", text[64];
    cairn_opts_defaults(table, &o);
    memcpy(&back, &o, sizeof(o));
    if (cairn_opts_query(table, &o, input, err, sizeof(err)) != CAIRN_OK && !err[0])
        abort();
    for (const struct cairn_opt *row = table; row->name; row++) {
        cairn_opts_print(row, &o, text, sizeof(text));
        if (cairn_opts_set(table, &back, row->name, text, err, sizeof(err)) != CAIRN_OK)
            abort();
    }
    if (o.size != back.size || o.wait != back.wait || o.count != back.count ||
        o.flag != back.flag || o.choice != back.choice || strcmp(o.text, back.text) != 0)
        abort();

    uint64_t n;
    if (cairn_parse_size(input, &n) == CAIRN_OK)
        cairn_format_size(n, text, sizeof(text));
    cairn_parse_duration(input, &n);
    free(input);
    return 0;
}
