#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "base/options.h"
#include "tests/helpers/seed.h"

struct opts {
    uint64_t ram, wait, count;
    bool fast;
    uint32_t mode;
    char path[16];
    uint64_t free_count;
};

static const char *const modes[] = {"through", "on-evict", "none", NULL};

static const struct cairn_opt table[] = {
    {"ram", CAIRN_OPT_SIZE, "1GiB", 4096, UINT64_MAX, NULL, offsetof(struct opts, ram), "RAM."},
    {"wait", CAIRN_OPT_DURATION, "5s", 0, 60000000000u, NULL, offsetof(struct opts, wait), "Wait."},
    {"count", CAIRN_OPT_COUNT, "3", 1, 100, NULL, offsetof(struct opts, count), "Count."},
    {"fast", CAIRN_OPT_BOOL, "yes", 0, 0, NULL, offsetof(struct opts, fast), "Fast."},
    {"mode", CAIRN_OPT_CHOICE, "on-evict", 0, 0, modes, offsetof(struct opts, mode), "Mode."},
    {"path", CAIRN_OPT_STRING, "/a", 0, 16, NULL, offsetof(struct opts, path), "Path."},
    {"free", CAIRN_OPT_COUNT, NULL, 0, 0, NULL, offsetof(struct opts, free_count), "Free."},
    {.name = NULL},
};

static struct opts defaults(void)
{
    struct opts o;
    memset(&o, 0xAA, sizeof(o));
    cairn_opts_defaults(table, &o);
    return o;
}

Test(options, defaults_fill_every_field)
{
    struct opts o = defaults();
    cr_assert_eq(o.ram, 1ull << 30);
    cr_assert_eq(o.wait, 5000000000ull);
    cr_assert_eq(o.count, 3);
    cr_assert_eq(o.fast, true);
    cr_assert_eq(o.mode, 1);
    cr_assert_str_eq(o.path, "/a");
    cr_assert_eq(o.free_count, 0);
}

Test(options, sizes)
{
    static const struct {
        const char *text;
        uint64_t want;
    } good[] = {{"0", 0},
                {"4096", 4096},
                {"17B", 17},
                {"64KiB", 65536},
                {"64k", 65536},
                {"8G", 8ull << 30},
                {"1.5GiB", 3ull << 29},
                {"1.5 gib", 3ull << 29},
                {"1GB", 1000000000},
                {"0.1KB", 100},
                {"2TiB", 2ull << 40},
                {"0.000000001GB", 1},
                {"18446744073709551615", UINT64_MAX}};
    static const char *const bad[] = {"", "x", "-1", "+1", "1.", ".5", "1.5", "1.5B", "1XiB", "1 ",
                                      "1  KiB", " 1", "1e9", "0x10", "1GiBs", "1.1234567890GiB",
                                      "18446744073709551616", "16777216TiB", "1,5GiB",
                                      "99999999999999999999GiB"};
    uint64_t got;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        cr_assert_eq(cairn_parse_size(good[i].text, &got), CAIRN_OK, "'%s'", good[i].text);
        cr_assert_eq(got, good[i].want, "'%s'", good[i].text);
    }
    got = 42;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        cr_assert_eq(cairn_parse_size(bad[i], &got), CAIRN_INVAL, "'%s'", bad[i]);
    cr_assert_eq(cairn_parse_size(NULL, &got), CAIRN_INVAL);
    cr_assert_eq(got, 42, "written on failure");
}

Test(options, durations)
{
    static const struct {
        const char *text;
        uint64_t want;
    } good[] = {{"0", 0},          {"5", 5000000000ull}, {"0.5", 500000000}, {"5s", 5000000000ull},
                {"250ms", 250000000}, {"10us", 10000},   {"7ns", 7},         {"1.5ms", 1500000},
                {"2m", 120000000000ull}, {"1h", 3600000000000ull}, {"1d", 86400000000000ull}};
    static const char *const bad[] = {"", "s", "-1s", "1.5ns", "5 sec", "584542046091s", "1w"};
    uint64_t got;
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        cr_assert_eq(cairn_parse_duration(good[i].text, &got), CAIRN_OK, "'%s'", good[i].text);
        cr_assert_eq(got, good[i].want, "'%s'", good[i].text);
    }
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        cr_assert_eq(cairn_parse_duration(bad[i], &got), CAIRN_INVAL, "'%s'", bad[i]);
}

/* One sentence that says all of these words. */
static void refused(const char *name, const char *value, const char *const *words)
{
    struct opts o = defaults(), before = o;
    char err[512] = "";
    cr_assert_eq(cairn_opts_set(table, &o, name, value, err, sizeof(err)), CAIRN_INVAL, "%s=%s",
                 name, value);
    for (; *words; words++)
        cr_assert(strstr(err, *words), "'%s' does not say '%s'", err, *words);
    cr_assert_null(strchr(err, '\n'));
    cr_assert_eq(memcmp(&o, &before, sizeof(o)), 0, "%s=%s changed something", name, value);
}

#define REFUSED(name, value, ...) refused(name, value, (const char *const[]){__VA_ARGS__, NULL})

Test(options, refusals_name_option_value_and_fix)
{
    REFUSED("ram", "lots", "'ram'", "'lots'", "512MiB");
    REFUSED("ram", "1KiB", "'ram'", "1KiB", "at least 4KiB");
    REFUSED("wait", "soon", "'wait'", "'soon'", "250ms");
    REFUSED("wait", "2m", "'wait'", "2m", "60s");
    REFUSED("count", "4k", "'count'", "'4k'", "whole number");
    REFUSED("count", "", "'count'", "whole number");
    REFUSED("count", "0", "'count'", "1 to 100");
    REFUSED("count", "101", "'count'", "1 to 100");
    REFUSED("fast", "maybe", "'fast'", "'maybe'", "no, yes");
    REFUSED("mode", "on-evct", "'mode'", "'on-evct'", "did you mean 'on-evict'?");
    REFUSED("mode", "", "'mode'", "through, on-evict or none");
    REFUSED("path", "/0123456789abcde", "'path'", "16 bytes", "at most 15");
    REFUSED("rma", "1", "'rma'", "did you mean 'ram'?");
    REFUSED("ram_size", "1", "'ram_size'", "did you mean 'ram'?");
    REFUSED("zzzzzzz", "1", "'zzzzzzz'", "known are ram, wait, count, fast, mode, path or free");
    REFUSED("", "1", "unknown option ''", "known are");
    REFUSED("ram", "a\nb\x1b[2J", "'a?b?[2J'");
}

Test(options, accepts_what_is_allowed)
{
    struct opts o = defaults();
    char err[64];
    cr_assert_eq(cairn_opts_set(table, &o, "ram", "4096", err, sizeof(err)), CAIRN_OK);
    cr_assert_eq(cairn_opts_set(table, &o, "count", "100", err, sizeof(err)), CAIRN_OK);
    cr_assert_eq(cairn_opts_set(table, &o, "fast", "Off", err, sizeof(err)), CAIRN_OK);
    cr_assert_eq(cairn_opts_set(table, &o, "mode", "none", err, sizeof(err)), CAIRN_OK);
    cr_assert_eq(cairn_opts_set(table, &o, "path", "/0123456789abcd", err, sizeof(err)), CAIRN_OK);
    cr_assert_eq(cairn_opts_set(table, &o, "free", "18446744073709551615", err, sizeof(err)),
                 CAIRN_OK);
    cr_assert_eq(o.ram, 4096);
    cr_assert_eq(o.count, 100);
    cr_assert_eq(o.fast, false);
    cr_assert_eq(o.mode, 2);
    cr_assert_str_eq(o.path, "/0123456789abcd");
    cr_assert_eq(o.free_count, UINT64_MAX);
}

Test(options, query)
{
    struct opts o = defaults();
    char err[512];
    cr_assert_eq(cairn_opts_query(table, &o, NULL, err, sizeof(err)), CAIRN_OK);
    cr_assert_eq(cairn_opts_query(table, &o, "", err, sizeof(err)), CAIRN_OK);
    cr_assert_eq(cairn_opts_query(table, &o, "&ram=2GiB&&path=%2Fa%20%25&m%6Fde=none&", err,
                                  sizeof(err)), CAIRN_OK);
    cr_assert_eq(o.ram, 2ull << 30);
    cr_assert_str_eq(o.path, "/a %");
    cr_assert_eq(o.mode, 2);
    cr_assert_eq(cairn_opts_query(table, &o, "count=5&count=6", err, sizeof(err)), CAIRN_OK);
    cr_assert_eq(o.count, 6, "the last one counts");
}

Test(options, query_refusals)
{
    static const struct {
        const char *query, *word;
    } bad[] = {{"ram", "name=value"},       {"ram&count=1", "name=value"},
               {"path=%", "hex digits"},    {"path=%2", "hex digits"},
               {"path=%zz", "hex digits"},  {"path=%2&x=1", "hex digits"},
               {"path=a%00b", "zero byte"}, {"rmm=1", "did you mean 'ram'?"},
               {"=1", "unknown option"},    {"path=aaaaaaaaaaaaaaaaaaaa", "at most 15"}};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct opts o = defaults();
        char err[512] = "";
        cr_assert_eq(cairn_opts_query(table, &o, bad[i].query, err, sizeof(err)), CAIRN_INVAL,
                     "%s", bad[i].query);
        cr_assert(strstr(err, bad[i].word), "'%s' for %s", err, bad[i].query);
    }
    char longer[6000];
    memset(longer, 'a', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    memcpy(longer, "path=", 5);
    struct opts o = defaults();
    char err[512] = "";
    cr_assert_eq(cairn_opts_query(table, &o, longer, err, sizeof(err)), CAIRN_INVAL);
    cr_assert(strstr(err, "too long"), "%s", err);
    longer[4] = 'x';
    cr_assert_eq(cairn_opts_query(table, &o, longer, err, sizeof(err)), CAIRN_INVAL);
    cr_assert_eq(cairn_opts_query(table, &o, "rmm=1", NULL, 0), CAIRN_INVAL, "no room for err");
}

Test(options, what_is_printed_is_taken_back)
{
    struct rng r = test_rng("options print");
    for (int i = 0; i < 2000; i++) {
        struct opts o = defaults(), back = defaults();
        o.ram = 4096 + (rng_next(&r) >> (1 + rng_below(&r, 50)));
        o.ram &= rng_one_in(&r, 2) ? ~(uint64_t)0 : ~(uint64_t)0xFFFFF;
        o.ram = o.ram < 4096 ? 4096 : o.ram;
        o.wait = rng_below(&r, 60000000001u);
        o.count = 1 + rng_below(&r, 100);
        o.fast = rng_one_in(&r, 2);
        o.mode = (uint32_t)rng_below(&r, 3);
        o.free_count = rng_next(&r);
        snprintf(o.path, sizeof(o.path), "/%u", (unsigned)rng_next(&r));
        for (const struct cairn_opt *row = table; row->name; row++) {
            char text[64], err[256];
            cairn_opts_print(row, &o, text, sizeof(text));
            cr_assert_eq(cairn_opts_set(table, &back, row->name, text, err, sizeof(err)), CAIRN_OK,
                         "%s: %s", text, err);
        }
        cr_assert_eq(back.ram, o.ram);
        cr_assert_eq(back.wait, o.wait);
        cr_assert_eq(back.count, o.count);
        cr_assert_eq(back.fast, o.fast);
        cr_assert_eq(back.mode, o.mode);
        cr_assert_eq(back.free_count, o.free_count);
        cr_assert_str_eq(back.path, o.path);
    }
}

Test(options, nearest)
{
    static const char *const names[] = {"ram", "disk", "policy", "reinsert", NULL};
    cr_assert_str_eq(cairn_nearest("disc", names), "disk");
    cr_assert_str_eq(cairn_nearest("DISK", names), "disk");
    cr_assert_str_eq(cairn_nearest("idsk", names), "disk");
    cr_assert_str_eq(cairn_nearest("polices", names), "policy");
    cr_assert_str_eq(cairn_nearest("reinsert_percent", names), "reinsert");
    cr_assert_null(cairn_nearest("", names));
    cr_assert_null(cairn_nearest("x", names));
    cr_assert_null(cairn_nearest("qqqqqqqq", names));
    char longer[200];
    memset(longer, 'r', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    cr_assert_null(cairn_nearest(longer, names));
}

Test(options, sizes_as_text)
{
    static const struct {
        uint64_t bytes;
        const char *want;
    } known[] = {{0, "0 B"}, {17, "17 B"}, {1023, "1023 B"}, {1024, "1 KiB"}, {1536, "1.5 KiB"},
                 {3ull << 29, "1.5 GiB"}, {1ull << 40, "1 TiB"}, {UINT64_MAX, "16.0 EiB"}};
    char text[32];
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        cr_assert_str_eq(cairn_format_size(known[i].bytes, text, sizeof(text)), known[i].want);
}
