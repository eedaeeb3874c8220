#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/mem.h"
#include "tests/helpers/seed.h"
#include "tests/helpers/transcript.h"
#include "transport/out.h"
#include "transport/reply.h"

static const struct cairn_reply_limits usual = {
    .small_max = 65536, .count_max = 10000, .bulk_max = 64u << 20};
static const struct cairn_reply_limits tight = {.small_max = 8, .count_max = 4, .bulk_max = 100};

static char *said(const struct cairn_reply_limits *limits, bool straight, const char *data,
                  size_t len)
{
    static const size_t pieces[] = {0, 1, 2, 7, 100, 5000};
    struct rng random = {.state = len};
    struct transcript first = {0};
    transcript_replies(&first, limits, straight, data, len, 0, &random);
    for (size_t i = 1; i < sizeof(pieces) / sizeof(*pieces); i++) {
        struct transcript t = {0};
        transcript_replies(&t, limits, straight, data, len, pieces[i], &random);
        cr_assert_str_eq(t.text, first.text, "pieces of up to %zu bytes", pieces[i]);
        transcript_free(&t);
    }
    return first.text;
}

static void says(const char *data, const char *want)
{
    char *text = said(&usual, false, data, strlen(data));
    cr_expect_str_eq(text, want, "input:\n%s\nsaid:\n%s\nwanted:\n%s", data, text, want);
    free(text);
}

static void fails(const struct cairn_reply_limits *limits, const char *data, const char *want)
{
    char *text = said(limits, false, data, strlen(data));
    cr_expect(strstr(text, want), "input:\n%s\nsaid:\n%s\nwanted:\n%s", data, text, want);
    free(text);
}

Test(reply, scalars)
{
    says("+OK\r\n-ERR no\r\n:-5\r\n$3\r\na b\r\n$0\r\n\r\n$-1\r\n*-1\r\n",
         "0 simple 0 last[OK]\n0 failure 0 last[ERR\\20no]\n0 int -5 last\n"
         "0 string 0 last[a\\20b]\n0 string 0 last[]\n0 null 0 last\n0 null 0 last\nidle");
    says("_\r\n#t\r\n#f\r\n,1.5\r\n,inf\r\n(12345678901234567890\r\n=7\r\ntxt:abc\r\n"
         "!5\r\nERR x\r\n",
         "0 null 0 last\n0 bool 1 last\n0 bool 0 last\n0 double 0 last[1.5]\n0 double 0 last[inf]\n"
         "0 big 0 last[12345678901234567890]\n0 string 0 last[abc]\n"
         "0 failure 0 last[ERR\\20x]\nidle");
}

Test(reply, aggregates)
{
    says("*2\r\n*1\r\n:1\r\n*0\r\n:7\r\n",
         "0 array 2\n1 array 1\n2 int 1\n1 array 0 last\n0 int 7 last\nidle");
    says("%1\r\n+a\r\n~2\r\n:1\r\n:2\r\n>1\r\n+b\r\n*0\r\n",
         "0 map 1\n1 simple 0[a]\n1 set 2\n2 int 1\n2 int 2 last\n"
         "0 push 1\n1 simple 0 last[b]\n0 array 0 last\nidle");
    says("*1\r\n$1\r\na\r", "0 array 1\nmore");
}

Test(reply, attributes_are_no_elements)
{
    says("*2\r\n|1\r\n+ttl\r\n:3\r\n:1\r\n:2\r\n|1\r\n+a\r\n+b\r\n:9\r\n|0\r\n:8\r\n",
         "0 array 2\n1 attribute 1\n2 simple 0[ttl]\n2 int 3\n1 int 1\n1 int 2 last\n"
         "0 attribute 1\n1 simple 0[a]\n1 simple 0[b]\n0 int 9 last\n0 attribute 0\n0 int 8 last\n"
         "idle");
}

Test(reply, what_is_no_reply)
{
    static const char *const cases[] = {"\r\n",     "x\r\n",       ":1\n",      ":\r\n",
                                        ":1x\r\n",  "$x\r\n",      "$-2\r\n",   "*-2\r\n",
                                        "#x\r\n",   "_x\r\n",      "%-1\r\n",   "$?\r\n",
                                        "=-1\r\n",  "$1\r\nabc",   "=3\r\nabc\r\n",
                                        "=5\r\ntxtab\r\n", "*18446744073709551616\r\n",
                                        ":9223372036854775808\r\n"};
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
        fails(&usual, cases[i], " reply");
}

Test(reply, limits)
{
    fails(&tight, "*5\r\n", "more elements");
    fails(&tight, "%5\r\n", "more elements");
    fails(&tight, "$101\r\n", "longer than can be");
    fails(&tight, "=9\r\n", "longer than can be");
    fails(&usual, "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n", "nested deeper");
    char line[70000];
    memset(line, 'a', sizeof(line));
    line[0] = '+';
    line[sizeof(line) - 1] = '\0';
    fails(&usual, line, "a line of a reply is longer");
}

Test(reply, long_strings_go_where_they_belong)
{
    static char input[300000];
    size_t len = (size_t)sprintf(input, "*3\r\n$3\r\nabc\r\n$200000\r\n");
    for (size_t i = 0; i < 200000; i++)
        input[len++] = (char)(i * 7);
    len += (size_t)sprintf(input + len, "\r\n$-1\r\n+next\r\n");
    char *text = said(&usual, false, input, len);
    cr_expect(strstr(text, "1 string 0[abc]\n1 string 0\n[200000:"), "%s", text);
    cr_expect(strstr(text, "] taken\n1 null 0 last\n0 simple 0 last[next]\nidle"), "%s", text);
    free(text);
    text = said(&usual, true, input, len);
    cr_expect(strstr(text, "1 string 0\n dropped\n1 string 0\n[200000:"), "%s", text);
    free(text);
}

Test(reply, socket_bytes_go_straight_into_the_runs)
{
    static char a[100000], b[100000];
    struct cairn_reply p;
    struct iovec run[2] = {{a, 70000}, {b, 30000}}, iov[8];
    cairn_reply_open(&p, &usual);
    uint32_t count = cairn_reply_space(&p, iov, 8);
    cr_assert_eq(count, 1);
    memcpy(iov[0].iov_base, "$100000\r\nxy", 11);
    cairn_reply_filled(&p, 11);
    cr_assert_eq(cairn_reply_next(&p), CAIRN_REPLY_ITEM);
    cr_assert(p.item.last && !p.item.text && p.item.len == 100000);
    cairn_reply_into(&p, run, 2);
    cr_assert_eq(cairn_reply_next(&p), CAIRN_REPLY_MORE);
    cr_assert_eq(memcmp(a, "xy", 2), 0);
    count = cairn_reply_space(&p, iov, 8);
    cr_assert_eq(count, 3);
    cr_assert(iov[0].iov_base == a + 2 && iov[0].iov_len == 69998);
    cr_assert(iov[1].iov_base == b && iov[1].iov_len == 30000);
    cr_assert_eq(cairn_reply_space(&p, iov, 2), 1, "the last place is the buffer's");
    cairn_reply_filled(&p, 99998);
    cr_assert_eq(cairn_reply_next(&p), CAIRN_REPLY_MORE);
    cr_assert(!cairn_reply_idle(&p), "the line end is under way");
    count = cairn_reply_space(&p, iov, 8);
    memcpy(iov[count - 1].iov_base, "\r\n", 2);
    cairn_reply_filled(&p, 2);
    cr_assert_eq(cairn_reply_next(&p), CAIRN_REPLY_FILLED);
    cr_assert_eq(cairn_reply_next(&p), CAIRN_REPLY_MORE);
    cr_assert(cairn_reply_idle(&p));
    cairn_reply_close(&p);
}

/* A random element of at most this depth, as the node writes it. */
static void random_element(struct rng *r, struct cairn_out *o, uint32_t depth)
{
    static char bytes[200000];
    uint64_t n = rng_below(r, 4);
    switch (rng_below(r, depth > 0 ? 12 : 8)) {
    case 0: cairn_out_simple(o, "OK"); break;
    case 1: cairn_out_error(o, "ERR %u", (unsigned)n); break;
    case 2: cairn_out_int(o, (int64_t)rng_next(r)); break;
    case 3: cairn_out_null(o); break;
    case 4: cairn_out_bool(o, rng_one_in(r, 2)); break;
    case 5: cairn_out_verbatim(o, "verbatim", rng_below(r, 8)); break;
    case 6: cairn_out_double(o, (double)rng_next(r)); break;
    case 7:
        n = rng_below(r, rng_one_in(r, 5) ? sizeof(bytes) : 300);
        for (size_t i = 0; i < n; i++)
            bytes[i] = (char)rng_next(r);
        cairn_out_bulk(o, bytes, n);
        break;
    default: {
        static void (*const head[])(struct cairn_out *, uint64_t) = {
            cairn_out_array, cairn_out_set, cairn_out_push, cairn_out_map};
        uint64_t kind = rng_below(r, 4);
        head[kind](o, n);
        for (uint64_t i = 0; i < n * (kind == 3 ? 2 : 1); i++)
            random_element(r, o, depth - 1);
    }
    }
}

static size_t out_bytes(struct cairn_out *o, char **ret)
{
    int pair[2];
    size_t len = 0, all = o->queued;
    char *bytes = malloc(all + 1);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair), 0);
    while (len < all) {
        cr_assert_neq(cairn_out_send(o, pair[0]), CAIRN_IO);
        ssize_t n = read(pair[1], bytes + len, all - len);
        cr_assert_gt(n, 0);
        len += (size_t)n;
    }
    close(pair[0]);
    close(pair[1]);
    *ret = bytes;
    return all;
}

Test(reply, what_the_node_writes_in_any_pieces)
{
    struct rng r = test_rng("reply");
    for (int round = 0; round < 30; round++) {
        struct cairn_out o;
        char *bytes;
        cairn_out_open(&o);
        o.proto = rng_one_in(&r, 2) ? 2 : 3;
        for (int i = 0; i < 10; i++)
            random_element(&r, &o, 4);
        size_t len = out_bytes(&o, &bytes);
        struct cairn_reply_limits limits = usual;
        limits.small_max = (uint32_t)rng_below(&r, 100000) + 8;
        char *text = said(&limits, rng_one_in(&r, 2), bytes, len);
        cr_assert(strlen(text) > 4 && strcmp(text + strlen(text) - 4, "idle") == 0, "%s", text);
        free(text);
        free(bytes);
        cairn_out_close(&o);
    }
}

Test(reply, no_memory_is_an_error)
{
    struct cairn_reply p;
    struct iovec iov[2];
    cairn_reply_open(&p, &usual);
    cairn_mem_fail_nth(1);
    cr_assert_eq(cairn_reply_space(&p, iov, 2), 0);
    cr_assert_eq(cairn_reply_next(&p), CAIRN_REPLY_ERROR);
    cr_assert_str_eq(p.error, "out of memory for a reply");
    cairn_reply_close(&p);
}
