#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "transport/addr.h"

static struct cairn_addr a;
static char err[256];

static cairn_status parse(const char *text)
{
    err[0] = '\0';
    return cairn_addr_parse(text, &a, err, sizeof(err));
}

Test(addr, what_is_taken_prints_the_same)
{
    static const char *const good[] = {"unix:/run/cairn/cairn.sock", "tcp://127.0.0.1:7379",
                                       "tcp://127.8.9.10:1", "tcp://[::1]:65535"};
    for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
        char text[CAIRN_ADDR_TEXT_MAX];
        cr_assert_eq(parse(good[i]), CAIRN_OK, "%s: %s", good[i], err);
        cr_assert_str_eq(cairn_addr_print(&a, text, sizeof(text)), good[i]);
    }
    cr_assert(!cairn_addr_is_unix(&a));
    cr_assert_eq(parse("tcp://localhost:80"), CAIRN_OK);
    cr_assert_eq(a.at.in4.sin_addr.s_addr, htonl(INADDR_LOOPBACK));
}

Test(addr, other_machines_are_refused_in_a_sentence)
{
    static const char *const far[] = {
        "tcp://0.0.0.0:1",     "tcp://10.0.0.1:7379", "tcp://[::]:1",      "tcp://[fe80::1]:2",
        "tcp://example.org:1", "tcp://128.0.0.1:1",   "tcp://126.0.0.1:1", "tcp://[::2]:1",
        "tcp://[::ffff:127.0.0.1]:1",
        "tcp://a-host-name-that-is-longer-than-any-address-of-a-machine-can-be-written.org:1"};
    for (size_t i = 0; i < sizeof(far) / sizeof(*far); i++) {
        cr_assert_eq(parse(far[i]), CAIRN_UNSUPPORTED, "%s", far[i]);
        cr_assert(strstr(err, "127.0.0.1"), "%s", err);
    }
    cr_assert_eq(cairn_addr_tcp("0.0.0.0", 0, &a, err, sizeof(err)), CAIRN_UNSUPPORTED);
    cr_assert_eq(cairn_addr_tcp("127.0.0.1", 0, &a, err, sizeof(err)), CAIRN_OK);
}

Test(addr, what_is_no_address)
{
    static const char *const bad[] = {
        "",          "/run/x",           "unix:",           "unix:relative",  "udp://127.0.0.1:1",
        "tcp://",    "tcp://127.0.0.1",  "tcp://127.0.0.1:", "tcp://:1",      "tcp://[::1]",
        "tcp://[::1]:0", "tcp://127.0.0.1:65536", "tcp://127.0.0.1:+1", "tcp://127.0.0.1:1x",
        "tcp://[::1:5", "tcp://[::1]x5", "tcp://127.0.0.1:01", "tcp://[]:1"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
        cr_assert_eq(parse(bad[i]), CAIRN_INVAL, "%s", bad[i]);
        cr_assert(strlen(err) > 20, "%s: %s", bad[i], err);
    }
}

Test(addr, socket_paths_fit_or_are_refused)
{
    char text[256];
    size_t most = sizeof(a.at.unix_path.sun_path) - 1;
    for (size_t len = most; len <= most + 1; len++) {
        snprintf(text, sizeof(text), "unix:/%0*d", (int)len - 1, 0);
        cr_assert_eq(parse(text), len == most ? CAIRN_OK : CAIRN_INVAL);
    }
    cr_assert(strstr(err, "108 bytes, at most 107"), "%s", err);
}
