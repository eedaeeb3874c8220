#include <criterion/criterion.h>
#include <string.h>
#include <time.h>

#include "tests/helpers/seed.h"
#include "tools/cairnd/glob.h"

static bool match(const char *pattern, const char *text)
{
    return glob_match(pattern, strlen(pattern), text, strlen(text));
}

static const struct {
    const char *pattern, *text;
    bool want;
} cases[] = {
    {"", "", true},
    {"", "a", false},
    {"*", "", true},
    {"**", "", false}, /* as Redis has it */
    {"**", "a", true},
    {"a*", "a", true},
    {"a***", "a", true},
    {"*a", "ba", true},
    {"*a", "ab", false},
    {"a*b*c", "a-b-b-c", true},
    {"a*b*c", "a-c-b", false},
    {"*ab", "aab", true},
    {"*a*a", "aa", true},
    {"*a*a", "a", false},
    {"?", "a", true},
    {"?", "ab", false},
    {"??", "a", false},
    {"h?llo", "hello", true},
    {"h[ae]llo", "hallo", true},
    {"h[ae]llo", "hillo", false},
    {"h[^e]llo", "hello", false},
    {"h[^e]llo", "hallo", true},
    {"[a-c]x", "bx", true},
    {"[c-a]x", "bx", true},
    {"[a-c]x", "dx", false},
    {"[a-]x]", "_", true}, /* a range down to the bracket, and the class goes on */
    {"[a-]x]", "x", true},
    {"[a-]x]", "ax]", false},
    {"[\\]]", "]", true},
    {"[\\-]", "-", true},
    {"[\\a-c]", "-", true},
    {"[^\\]]", "]", false},
    {"[]", "a", false},
    {"[^]", "a", true},
    {"[abc", "c", true},
    {"[abc", "d", false},
    {"[", "[", false},
    {"[^", "x", true},
    {"a[", "a", false},
    {"\\*", "*", true},
    {"\\*", "a", false},
    {"\\[a]", "[a]", true},
    {"\\", "\\", true},
    {"a\\", "a\\", true},
    {"\\a", "a", true},
    {"*\\?", "who?", true},
    {"*[0-9]", "key:9", true},
    {"*[0-9]*[0-9]", "k1:x", false},
    {"a?*b", "ab", false},
    {"a?*b", "axb", true},
};

Test(glob, matches_as_redis_does)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        cr_expect_eq(match(cases[i].pattern, cases[i].text), cases[i].want, "\"%s\" \"%s\"",
                     cases[i].pattern, cases[i].text);
}

Test(glob, takes_any_bytes)
{
    static const char nul[] = {'a', 0, 'b'}, high[] = {(char)0xff};
    cr_assert(glob_match("a?b", 3, nul, 3));
    cr_assert(glob_match(nul, 3, nul, 3));
    cr_assert_not(glob_match("a", 1, nul, 3));
    cr_assert(glob_match("[\x80-\xff]", 5, high, 1));
    cr_assert_not(glob_match("[a-z]", 5, high, 1));
}

/* The obvious way: every place that a star could end at. */
static bool slow(const char *p, const char *t)
{
    if (*p == '*')
        return slow(p + 1, t) || (*t && slow(p, t + 1));
    if (!*p || !*t)
        return *p == *t;
    return (*p == '?' || *p == *t) && slow(p + 1, t + 1);
}

Test(glob, finds_the_stars_that_trying_all_of_them_finds)
{
    struct rng r = test_rng("glob");
    for (int i = 0; i < 200000; i++) {
        char pattern[9] = "", text[9] = "";
        size_t p = rng_below(&r, 8), t = 1 + rng_below(&r, 8);
        for (size_t j = 0; j < p; j++)
            pattern[j] = "**?aab"[rng_below(&r, 6)];
        for (size_t j = 0; j < t; j++)
            text[j] = "ab"[rng_below(&r, 2)];
        cr_assert_eq(match(pattern, text), slow(pattern, text), "\"%s\" \"%s\"", pattern, text);
    }
}

Test(glob, is_quick_for_the_worst_of_patterns, .timeout = 20)
{
    char pattern[1024], text[1024];
    for (size_t i = 0; i < sizeof pattern; i++)
        pattern[i] = i % 2 ? 'a' : '*';
    memset(text, 'a', sizeof text);
    pattern[sizeof pattern - 1] = 'b';
    clock_t begin = clock();
    cr_assert_not(glob_match(pattern, sizeof pattern, text, sizeof text));
    cr_assert_lt(clock() - begin, CLOCKS_PER_SEC);
}
