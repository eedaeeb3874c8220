#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "tools/tokens.h"

/* Is the text the tokens that follow? */
static void takes(const char *text, size_t len, const uint32_t *want, size_t count)
{
    const char *bad;
    size_t got;
    uint32_t *tokens = tokens_of_text(text, len, &got, &bad);
    cr_assert(tokens, "'%s' is refused at '%s'", text, bad);
    cr_assert_eq(got, count, "'%s' has %zu tokens", text, got);
    cr_assert(count == 0 || memcmp(tokens, want, count * sizeof *want) == 0, "'%s'", text);
    free(tokens);
}

static void refuses(const char *text, size_t len, size_t at)
{
    const char *bad;
    size_t got;
    cr_assert_null(tokens_of_text(text, len, &got, &bad), "'%s'", text);
    cr_assert_eq(bad - text, at, "'%s' is refused at %td", text, bad - text);
}

Test(tokens, lists_of_all_kinds)
{
    takes("", 0, NULL, 0);
    takes(" \n", 2, NULL, 0);
    takes("7", 1, (uint32_t[]){7}, 1);
    takes("[1, 2,\n3]\n", 10, (uint32_t[]){1, 2, 3}, 3);
    takes("0 4294967295", 12, (uint32_t[]){0, UINT32_MAX}, 2);
    takes("1 2 3", 3, (uint32_t[]){1, 2}, 2);
}

Test(tokens, what_is_none_is_refused_where_it_stands)
{
    refuses("1 x", 3, 2);
    refuses("-1", 2, 0);
    refuses("+1", 2, 0);
    refuses("1 4294967296", 12, 2);
    refuses("99999999999999999999999", 23, 0);
    refuses("12x", 3, 0);
    refuses("1.5", 3, 0);
    refuses("1 2\0 3", 6, 2); /* a file is not over at a zero */
    refuses("1 \0 3", 5, 2);
}

Test(tokens, numbers_of_32_bits)
{
    size_t count;
    uint32_t *tokens = tokens_of_binary("\1\0\0\0\xff\xfe\xfd\xfc", 8, &count);
    cr_assert_eq(count, 2);
    cr_assert_eq(tokens[0], 1);
    cr_assert_eq(tokens[1], 0xfcfdfeff);
    free(tokens);
    tokens = tokens_of_binary("", 0, &count);
    cr_assert(tokens && count == 0);
    free(tokens);
}
