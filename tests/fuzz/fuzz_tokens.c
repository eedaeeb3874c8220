/* A file of tokens, read as text and as numbers. What was taken, written down again as a list,
 * gives the same tokens; what was refused is named by a place in the text. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/tokens.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool ok)
{
    if (!ok)
        abort();
}

/* In memory of exactly that size, so that a read past its end is seen. */
static char *text_of(const void *data, size_t size)
{
    char *text = malloc(size + 1);
    require(text);
    memcpy(text, data, size);
    text[size] = 0;
    return text;
}

static void check_list(const uint32_t *tokens, size_t count)
{
    char *list = malloc(count * 11 + 3), *at = list;
    const char *bad;
    size_t again_count;
    require(list);
    for (size_t i = 0; i < count; i++)
        at += sprintf(at, "%s%u", i ? "," : "[", tokens[i]);
    *at = 0;
    uint32_t *again = tokens_of_text(list, (size_t)(at - list), &again_count, &bad);
    require(again && again_count == count && memcmp(again, tokens, count * sizeof *tokens) == 0);
    free(again);
    free(list);
}

static void check_text(const uint8_t *data, size_t size)
{
    char *text = text_of(data, size);
    const char *bad;
    size_t count;
    uint32_t *tokens = tokens_of_text(text, size, &count, &bad);
    if (tokens) {
        require(count <= size && !memchr(text, 0, size));
        check_list(tokens, count);
    } else {
        require(bad >= text && bad < text + size);
    }
    free(tokens);
    free(text);
}

static void check_binary(const uint8_t *data, size_t size)
{
    size_t count;
    char *raw = text_of(data, size - size % 4);
    uint32_t *tokens = tokens_of_binary(raw, size - size % 4, &count);
    require(tokens && count == size / 4);
    check_list(tokens, count);
    free(tokens);
    free(raw);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    check_text(data, size);
    check_binary(data, size);
    return 0;
}
