#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "tests/helpers/seed.h"
#include "tests/helpers/transcript.h"
#include "transport/resp.h"

static const struct cairn_resp_limits usual = {
    .args_max = 1000,
    .inline_max = 65536,
    .small_max = 16384,
    .bulk_max = 64u << 20,
    .request_max = 1u << 20,
};
/* Everything is at a limit soon. */
static const struct cairn_resp_limits tight = {
    .args_max = 20,
    .inline_max = 64,
    .small_max = 8,
    .bulk_max = 5000,
    .request_max = 200,
};

/* Whole, byte by byte and in random pieces; the first is what the others must say too. */
static char *said(const struct cairn_resp_limits *limits, const char *data, size_t len)
{
    static const size_t pieces[] = {0, 1, 2, 7, 100, 5000};
    struct rng random = {.state = len};
    struct transcript first = {0};
    transcript_requests(&first, limits, data, len, 0, &random);
    for (size_t i = 1; i < sizeof(pieces) / sizeof(*pieces); i++) {
        struct transcript t = {0};
        transcript_requests(&t, limits, data, len, pieces[i], &random);
        cr_assert_str_eq(t.text, first.text, "pieces of up to %zu bytes", pieces[i]);
        transcript_free(&t);
    }
    return first.text;
}

static void says(const struct cairn_resp_limits *limits, const char *data, const char *want)
{
    char *text = said(limits, data, strlen(data));
    cr_expect_str_eq(text, want, "input:\n%s\nsaid:\n%s\nwanted:\n%s", data, text, want);
    free(text);
}

/* The first request error of the input; the sentence alone. */
static void fails(const struct cairn_resp_limits *limits, const char *data, size_t len,
                  const char *want)
{
    char *text = said(limits, data, len);
    const char *at = strstr(text, "] ERR ");
    cr_expect(at && strcmp(at + 2, want) == 0, "input:\n%.80s\nsaid:\n%s\nwanted:\n%s", data, text,
              want);
    free(text);
}

Test(resp, arrays)
{
    says(&usual, "*1\r\n$4\r\nPING\r\n", "R1[PING]\nM0");
    says(&usual, "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$0\r\n\r\n*2\r\n$3\r\nGET\r\n$1\r\nk\r\n",
         "R3[SET][k][]\nR2[GET][k]\nM0");
    says(&usual, "*2\r\n$3\r\nGET\r\n$4\r\n\r\n\r\n\r\n", "R2[GET][\\0d\\0a\\0d\\0a]\nM0");
    says(&usual, "*2\r\n$3\r\nGET\r\n$4\r\nab", "M19");
}

Test(resp, redis_reads_past)
{
    says(&usual, "*0\r\n*-1\r\n*-7\r\n*1\r\n$1\r\na\r\n", "R1[a]\nM0");
    says(&usual, "\r\n\n   \r\n*1\r\n$1\r\na\r\n", "R1[a]\nM0");
    says(&usual, "*1\r\n$1\r\naXY*1\r\n$1\r\nb\r\n", "R1[a]\nR1[b]\nM0");
    says(&usual, "*1\rX$1\rYa\r\n", "R1[a]\nM0");
}

Test(resp, inline_quotes)
{
    says(&usual, "PING\r\n", "R1[PING]\nM0");
    says(&usual, "  set\tk  v \n", "R3[set][k][v]\nM0");
    says(&usual, "a \"b c\" 'd e' \"\" ''\n", "R5[a][b\\20c][d\\20e][][]\nM0");
    says(&usual, "\"\\x41\\x0d\\n\\r\\t\\b\\a\\\"\\q\\xg\"\n",
         "R1[A\\0d\\0a\\0d\\09\\08\\07\"qxg]\nM0");
    says(&usual, "'a\\'b\\n'\n", "R1[a'b\\5cn]\nM0");
    says(&usual, "foo\"bar\" x\n", "R2[foobar][x]\nM0");
    says(&usual, "a\\nb\n", "R1[a\\5cnb]\nM0");
    says(&usual, "\v\fa\vb 'c'\v\n", "R2[a\\0bb][c]\nM0");
    says(&usual, "a 'b' \r\r\nc\rd\n", "R2[a][b]\nR2[c][d]\nM0");
}

Test(resp, error_texts_of_redis)
{
    static const struct {
        const char *input, *want;
    } cases[] = {
        {"*x\r\n", "invalid multibulk length"},
        {"*\r\n", "invalid multibulk length"},
        {"*+1\r\n", "invalid multibulk length"},
        {"*01\r\n", "invalid multibulk length"},
        {"*-0\r\n", "invalid multibulk length"},
        {"* 1\r\n", "invalid multibulk length"},
        {"*\n1\r\n", "invalid multibulk length"},
        {"*2147483648\r\n", "invalid multibulk length"},
        {"*99999999999999999999\r\n", "invalid multibulk length"},
        {"*1\r\n$x\r\n", "invalid bulk length"},
        {"*1\r\n$-1\r\n", "invalid bulk length"},
        {"*1\r\n$\r\n", "invalid bulk length"},
        {"*1\r\n$67108865\r\n", "invalid bulk length"},
        {"*1\r\nx\r\n", "expected '$', got 'x'"},
        {"*1\r\n*1\r\n", "expected '$', got '*'"},
        {"*1\r\n\r\n", "expected '$', got ' '"},
        {"a \"b\n", "unbalanced quotes in request"},
        {"a 'b\n", "unbalanced quotes in request"},
        {"a \"b\"c\n", "unbalanced quotes in request"},
        {"a 'b'c\n", "unbalanced quotes in request"},
        {"a \"b\\\"\n", "unbalanced quotes in request"},
        {"a \"b\\\n", "unbalanced quotes in request"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        char want[128];
        snprintf(want, sizeof(want), "ERR Protocol error: %s", cases[i].want);
        fails(&usual, cases[i].input, strlen(cases[i].input), want);
    }
}

Test(resp, endless_lines)
{
    static char line[70000];
    memset(line, '1', sizeof(line));
    fails(&usual, line, sizeof(line), "ERR Protocol error: too big inline request");
    line[0] = '*';
    fails(&usual, line, sizeof(line), "ERR Protocol error: too big mbulk count string");
    memcpy(line, "*1\r\n$", 5);
    fails(&usual, line, sizeof(line), "ERR Protocol error: too big bulk count string");
    memset(line, 'a', sizeof(line));
    line[65536] = '\n';
    char *text = said(&usual, line, 65537);
    cr_assert(strncmp(text, "R1[65536:", 9) == 0, "%s", text);
    free(text);
    line[65536] = 'a';
    line[65537] = '\n';
    fails(&usual, line, 65538, "ERR Protocol error: too big inline request");
}

Test(resp, limits)
{
    fails(&tight, "*21\r\n", 5, "ERR Protocol error: invalid multibulk length");
    fails(&tight, "*1\r\n$5001\r\n", 11, "ERR Protocol error: invalid bulk length");
    says(&tight, "*1\r\n$8\r\n12345678\r\n*1\r\n$9\r\n123456789\r\n",
         "R1[12345678]\nB9 R1[refused 9]\nM0");
    static const char arg[] = "$8\r\n12345678\r\n";
    char many[512] = "*20\r\n";
    for (int i = 0; i < 20; i++)
        strcat(many, arg);
    fails(&tight, many, strlen(many), "ERR Protocol error: too big request");
    fails(&tight, "1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 x\n", 42,
          "ERR Protocol error: too many arguments in inline request");
}

Test(resp, long_arguments)
{
    struct cairn_resp p;
    size_t room;
    char memory[40000];
    static const char head[] = "*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$40000\r\nabc";
    cr_assert_eq(cairn_resp_open(&p, &usual), CAIRN_OK);
    memcpy(cairn_resp_space(&p, &room), head, sizeof(head) - 1);
    cairn_resp_filled(&p, sizeof(head) - 1);
    cr_assert_eq(cairn_resp_next(&p), CAIRN_RESP_BULK);
    cr_assert_eq(cairn_resp_next(&p), CAIRN_RESP_BULK, "until it is given or refused");
    cr_assert_eq(p.argc, 2);
    cr_assert_eq(p.bulk_len, 40000);
    cairn_resp_give(&p, memory);
    cr_assert_eq(cairn_resp_next(&p), CAIRN_RESP_MORE);
    cr_assert_eq(cairn_resp_space(&p, &room), memory + 3, "straight into the memory given");
    cr_assert_eq(room, 39997);
    memset(memory + 3, 'x', room);
    cairn_resp_filled(&p, room);
    memcpy(cairn_resp_space(&p, &room), "\r\n", 2);
    cr_assert_leq(room, 4096, "what comes behind is likely to be long too");
    cairn_resp_filled(&p, 2);
    cr_assert_eq(cairn_resp_next(&p), CAIRN_RESP_REQUEST);
    cr_assert_eq(cairn_resp_next(&p), CAIRN_RESP_REQUEST, "until it is done");
    cr_assert_eq(p.args[2].data, memory);
    cr_assert_eq(memcmp(memory, "abcxx", 5), 0);
    cairn_resp_done(&p);
    cr_assert_eq(cairn_resp_next(&p), CAIRN_RESP_MORE);
    cairn_resp_close(&p);
    cairn_resp_close(&p);
}

Test(resp, no_copy_of_small_arguments)
{
    struct cairn_resp p;
    size_t room;
    static const char input[] = "*2\r\n$3\r\nGET\r\n$1\r\nk\r\n";
    cairn_resp_open(&p, &usual);
    char *at = cairn_resp_space(&p, &room);
    memcpy(at, input, sizeof(input) - 1);
    cairn_resp_filled(&p, sizeof(input) - 1);
    cr_assert_eq(cairn_resp_next(&p), CAIRN_RESP_REQUEST);
    cr_assert_eq(p.args[0].data, at + 8);
    cr_assert_eq(p.args[1].data, at + 17);
    cairn_resp_close(&p);
}

Test(resp, idle_ones_cost_nothing)
{
    enum { COUNT = 1000 };
    static struct cairn_resp p[COUNT];
    static const char input[] = "*1\r\n$4\r\nPING\r\n";
    for (int i = 0; i < COUNT; i++) {
        size_t room;
        cairn_resp_open(&p[i], &usual);
        memcpy(cairn_resp_space(&p[i], &room), input, sizeof(input) - 1);
        cairn_resp_filled(&p[i], sizeof(input) - 1);
        cr_assert_eq(cairn_resp_next(&p[i]), CAIRN_RESP_REQUEST);
        cairn_resp_done(&p[i]);
        cr_assert_eq(cairn_resp_next(&p[i]), CAIRN_RESP_MORE);
        cr_assert_lt(cairn_resp_memory(&p[i]), 1024);
        cairn_resp_space(&p[i], &room);
        cairn_resp_filled(&p[i], 0);
        cr_assert_lt(cairn_resp_memory(&p[i]), 1024, "after a receive that found nothing");
    }
    for (int i = 0; i < COUNT; i++)
        cairn_resp_close(&p[i]);
}

Test(resp, a_large_request_gives_its_memory_back)
{
    struct cairn_resp p;
    static char input[400000];
    size_t len = (size_t)sprintf(input, "*40\r\n"), at = 0;
    for (int i = 0; i < 40; i++) {
        len += (size_t)sprintf(input + len, "$9000\r\n");
        memset(input + len, 'a' + i % 26, 9000);
        len += 9000;
        len += (size_t)sprintf(input + len, "\r\n");
    }
    cairn_resp_open(&p, &usual);
    while (cairn_resp_next(&p) == CAIRN_RESP_MORE) {
        size_t room;
        char *to = cairn_resp_space(&p, &room);
        room = room < len - at ? room : len - at;
        memcpy(to, input + at, room);
        cairn_resp_filled(&p, room);
        at += room;
    }
    cr_assert_eq(p.argc, 40);
    cr_assert_gt(cairn_resp_memory(&p), 360000);
    for (uint32_t i = 0; i < p.argc; i++)
        cr_assert(p.args[i].len == 9000 && p.args[i].data[8999] == (char)('a' + i % 26));
    cairn_resp_done(&p);
    cr_assert_lt(cairn_resp_memory(&p), 70000);
    cr_assert_eq(cairn_resp_next(&p), CAIRN_RESP_MORE);
    cr_assert_lt(cairn_resp_memory(&p), 1024);
    cairn_resp_close(&p);
}

/* A request of random arguments behind `out`, and what the parser should say of it. */
static size_t random_request(struct rng *r, char *out, struct transcript *want)
{
    size_t len = 0;
    uint32_t args = 1 + (uint32_t)rng_below(r, rng_one_in(r, 10) ? 60 : 4);
    struct transcript line = {0};
    transcript_add(&line, "R%u", args);
    len += (size_t)sprintf(out + len, "*%u\r\n", args);
    for (uint32_t i = 0; i < args; i++) {
        size_t n = rng_below(r, rng_one_in(r, 20) ? 3000 : rng_one_in(r, 3) ? 100 : 10);
        len += (size_t)sprintf(out + len, "$%zu\r\n", n);
        for (size_t b = 0; b < n; b++)
            out[len + b] = (char)rng_next(r);
        if (n > 500)
            transcript_add(want, "B%zu ", n);
        if (n > 500 && n % 3 == 0)
            transcript_add(&line, "[refused %zu]", n);
        else
            transcript_bytes(&line, out + len, n);
        len += n;
        len += (size_t)sprintf(out + len, "\r\n");
    }
    transcript_add(&line, "\n");
    for (size_t i = 0; i < line.len; i += 200)
        transcript_add(want, "%.200s", line.text + i);
    transcript_free(&line);
    return len;
}

Test(resp, random_streams_against_a_model)
{
    static const struct cairn_resp_limits limits = {
        .args_max = 100, .inline_max = 100, .small_max = 500, .bulk_max = 1u << 20,
        .request_max = 1u << 20};
    struct rng r = test_rng("resp");
    static char input[4u << 20];
    for (int round = 0; round < 40; round++) {
        struct transcript want = {0};
        size_t len = 0;
        for (int i = 0; i < 30 && len < sizeof(input) / 2; i++)
            len += random_request(&r, input + len, &want);
        transcript_add(&want, "M0");
        char *text = said(&limits, input, len);
        cr_assert_str_eq(text, want.text);
        free(text);
        transcript_free(&want);
    }
}

Test(resp, no_memory_is_an_error_or_a_status)
{
    char input[256] = "*20\r\n";
    for (int i = 0; i < 18; i++)
        strcat(input, "$1\r\na\r\n");
    int failures = 0;
    for (uint64_t nth = 1; nth <= 4; nth++) {
        struct cairn_resp p;
        size_t room;
        cairn_mem_fail_nth(nth);
        if (cairn_resp_open(&p, &usual) != CAIRN_OK) {
            failures++;
            continue;
        }
        char *to = cairn_resp_space(&p, &room);
        if (to) {
            memcpy(to, input, strlen(input));
            cairn_resp_filled(&p, strlen(input));
        }
        if (cairn_resp_next(&p) == CAIRN_RESP_ERROR) {
            failures++;
            cr_assert_str_eq(p.error, "ERR out of memory for this request");
        }
        cairn_mem_fail_nth(0);
        cairn_resp_close(&p);
    }
    cr_assert_eq(failures, 3);
}
