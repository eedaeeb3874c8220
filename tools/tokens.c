#include "tools/tokens.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

static bool between(char c)
{
    return isspace((unsigned char)c) || c == ',' || c == '[' || c == ']';
}

uint32_t *tokens_of_text(const char *text, size_t len, size_t *ret_count, const char **ret_bad)
{
    uint32_t *tokens = malloc((len / 2 + 1) * sizeof *tokens);
    size_t n = 0;
    *ret_bad = NULL;
    for (const char *p = text; tokens && p < text + len;) {
        if (between(*p)) {
            p++;
            continue;
        }
        char *end;
        errno = 0;
        unsigned long long v = strtoull(p, &end, 10);
        /* Two tokens have something between them, or the buffer would not take all. */
        if (!isdigit((unsigned char)*p) || errno || v > UINT32_MAX ||
            (end < text + len && !between(*end))) {
            *ret_bad = p;
            free(tokens);
            return NULL;
        }
        tokens[n++] = (uint32_t)v;
        p = end;
    }
    *ret_count = n;
    return tokens;
}

uint32_t *tokens_of_binary(const void *raw, size_t len, size_t *ret_count)
{
    uint32_t *tokens = calloc(len / 4 + 1, 4);
    const unsigned char *b = raw;
    for (size_t i = 0; tokens && i < len / 4; i++, b += 4)
        tokens[i] = (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 |
                    (uint32_t)b[3] << 24;
    *ret_count = len / 4;
    return tokens;
}
