#include <criterion/criterion.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/mem.h"
#include "tests/helpers/seed.h"
#include "transport/out.h"
#include "transport/sock.h"

static struct cairn_out o;
static int pair[2];

static void begin(uint8_t proto)
{
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
    cairn_out_open(&o);
    o.proto = proto;
}

static void end(void)
{
    cairn_out_close(&o);
    cr_assert_eq(o.memory, 0);
    cr_assert_eq(o.queued, 0);
    close(pair[0]);
    close(pair[1]);
}

/* Sends what fits into the socket and reads it back. */
static const char *arrived(void)
{
    static char text[65536];
    uint64_t queued = o.queued, before = o.sent;
    cr_assert_eq(cairn_out_send(&o, pair[0]), CAIRN_OK);
    ssize_t n = read(pair[1], text, sizeof(text) - 1);
    cr_assert_eq((uint64_t)n, queued);
    cr_assert_eq(o.sent - before, queued);
    cr_assert_eq(o.queued, 0);
    cr_assert_eq(o.memory, 0);
    text[n] = '\0';
    return text;
}

Test(out, resp2)
{
    begin(2);
    cairn_out_simple(&o, "OK");
    cairn_out_int(&o, INT64_MIN);
    cairn_out_int(&o, 0);
    cairn_out_bulk(&o, "a\0b", 3);
    cr_assert_eq(memcmp(arrived(), "+OK\r\n:-9223372036854775808\r\n:0\r\n$3\r\na\0b\r\n", 41), 0);
    cairn_out_null(&o);
    cairn_out_bool(&o, true);
    cairn_out_bool(&o, false);
    cairn_out_text(&o, "");
    cairn_out_verbatim(&o, "some", 4);
    cr_assert_str_eq(arrived(), "$-1\r\n:1\r\n:0\r\n$0\r\n\r\n$4\r\nsome\r\n");
    cairn_out_double(&o, 0.5);
    cairn_out_double(&o, 1e300);
    cairn_out_double(&o, -INFINITY);
    cairn_out_double(&o, -NAN);
    cr_assert_str_eq(arrived(), "$3\r\n0.5\r\n$23\r\n1.0000000000000001e+300\r\n$4\r\n-inf\r\n"
                                "$3\r\nnan\r\n");
    cairn_out_array(&o, 2);
    cairn_out_map(&o, 2);
    cairn_out_set(&o, 3);
    cairn_out_push(&o, 4);
    cairn_out_bulk_head(&o, UINT32_MAX);
    cr_assert_str_eq(arrived(), "*2\r\n*4\r\n*3\r\n*4\r\n$4294967295\r\n");
    end();
}

Test(out, resp3)
{
    begin(3);
    cairn_out_null(&o);
    cairn_out_bool(&o, true);
    cairn_out_bool(&o, false);
    cairn_out_text(&o, "x");
    cairn_out_verbatim(&o, "some", 4);
    cairn_out_double(&o, 0.5);
    cairn_out_double(&o, INFINITY);
    cairn_out_double(&o, NAN);
    cr_assert_str_eq(arrived(), "_\r\n#t\r\n#f\r\n$1\r\nx\r\n=8\r\ntxt:some\r\n,0.5\r\n,inf\r\n"
                                ",nan\r\n");
    cairn_out_array(&o, 2);
    cairn_out_map(&o, 2);
    cairn_out_set(&o, 3);
    cairn_out_push(&o, 4);
    cr_assert_str_eq(arrived(), "*2\r\n%2\r\n~3\r\n>4\r\n");
    end();
}

Test(out, errors_are_one_line)
{
    static char endless[5000];
    begin(2);
    cairn_out_error(&o, "ERR unknown command '%s'", "a\r\nb");
    cr_assert_str_eq(arrived(), "-ERR unknown command 'a  b'\r\n");
    memset(endless, 'x', sizeof(endless) - 1);
    cairn_out_error(&o, "ERR %s", endless);
    const char *text = arrived();
    cr_assert_eq(strlen(text), 1 + 1023 + 2);
    cr_assert_str_eq(text + strlen(text) - 3, "x\r\n");
    end();
}

static uint64_t released[64];
static uint32_t releases;

static void note(void *arg, uint64_t token)
{
    cr_assert_eq(arg, &releases);
    released[releases++] = token;
}

Test(out, references_are_released_once_sent)
{
    static char large[4u << 20];
    begin(2);
    cairn_out_bulk_head(&o, 3);
    cairn_out_ref(&o, "abc", 3, note, &releases, 7);
    cairn_out_raw(&o, "\r\n", 2);
    cairn_out_ref(&o, large, sizeof(large), note, &releases, 8);
    cairn_out_ref(&o, "", 0, note, &releases, 9);
    cr_assert(releases == 1 && released[0] == 9, "nothing to send");
    cr_assert_eq(cairn_out_send(&o, pair[0]), CAIRN_INPROGRESS);
    cr_assert(releases == 2 && released[1] == 7);
    cr_assert_gt(o.queued, 0);
    cairn_out_ref(&o, "tail", 4, note, &releases, 10);
    cairn_out_close(&o);
    cr_assert(releases == 4 && released[2] == 8 && released[3] == 10);
    end();
}

/* Bytes of the stream that the sender is told to send: any place of it is known. */
static char stream[1u << 20];

static void stream_make(struct rng *r)
{
    for (size_t i = 0; i < sizeof(stream); i += 8) {
        uint64_t word = rng_next(r);
        memcpy(stream + i, &word, 8);
    }
}

static size_t queue_some(struct rng *r, size_t at, uint32_t *refs)
{
    size_t left = sizeof(stream) - at, n = rng_below(r, rng_one_in(r, 4) ? 100000 : 300) + 1;
    n = n < left ? n : left;
    if (!rng_one_in(r, 3)) {
        cairn_out_raw(&o, stream + at, n);
    } else if (rng_one_in(r, 2)) {
        cairn_out_ref(&o, stream + at, n, note, &releases, 0);
        (*refs)++;
    } else {
        struct cairn_out other;
        cairn_out_open(&other);
        cairn_out_raw(&other, stream + at, n / 2);
        cairn_out_raw(&other, stream + at + n / 2, n - n / 2);
        cairn_out_append(&o, &other);
        cr_assert(other.queued == 0 && other.memory == 0 && !other.head);
        cairn_out_close(&other);
    }
    return at + n;
}

Test(out, what_arrives_is_what_was_queued)
{
    static char back[sizeof(stream)];
    struct rng r = test_rng("out");
    stream_make(&r);
    begin(2);
    size_t at = 0, got = 0;
    uint32_t refs = 0;
    while (got < sizeof(stream)) {
        releases = 0;
        refs = 0;
        for (uint64_t i = rng_below(&r, 40); i > 0 && at < sizeof(stream); i--)
            at = queue_some(&r, at, &refs);
        cr_assert_eq(o.queued + o.sent, at);
        while (o.queued > 0) {
            cr_assert_neq(cairn_out_send(&o, pair[0]), CAIRN_IO);
            ssize_t n = read(pair[1], back + got, 1 + rng_below(&r, 200000));
            got += n > 0 ? (size_t)n : 0;
        }
        cr_assert_eq(releases, refs);
        ssize_t n;
        while ((n = read(pair[1], back + got, sizeof(back) - got)) > 0)
            got += (size_t)n;
    }
    cr_assert_eq(memcmp(back, stream, sizeof(stream)), 0);
    end();
}

Test(out, a_peer_that_is_gone)
{
    begin(2);
    close(pair[1]);
    cairn_out_simple(&o, "OK");
    cairn_out_ref(&o, "abc", 3, note, &releases, 1);
    cr_assert_eq(cairn_out_send(&o, pair[0]), CAIRN_IO, "and no SIGPIPE");
    cr_assert_eq(releases, 0);
    pair[1] = -1;
    cairn_out_close(&o);
    cr_assert_eq(releases, 1);
    end();
}

static int memfd_of(const char *text)
{
    int fd = memfd_create("test", MFD_CLOEXEC);
    cr_assert_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
    return fd;
}

static bool holds(int fd, const char *text)
{
    char back[32] = "";
    return pread(fd, back, sizeof(back) - 1, 0) == (ssize_t)strlen(text) && strcmp(back, text) == 0;
}

/* The next bytes are `text`, and `count` descriptors come with them. */
static bool arrives(const char *text, uint32_t count, struct cairn_sock_fds *fds)
{
    char back[32];
    size_t n, len = strlen(text);
    struct iovec iov = {back, len};
    return cairn_sock_wait(pair[1], POLLIN, cairn_deadline_ns(60 * CAIRN_NS_PER_S), NULL) ==
               CAIRN_OK &&
           cairn_sock_recv_fds(pair[1], &iov, 1, &n, fds) == CAIRN_OK && n == len &&
           memcmp(back, text, len) == 0 && fds->count == count;
}

static void descriptors_queue(bool by_reference)
{
    int a = memfd_of("arena"), w = memfd_of("window");
    cairn_out_simple(&o, "before");
    cairn_out_fds(&o, &a, 1);
    cairn_out_fds(&o, &w, 1);
    if (by_reference)
        cairn_out_ref(&o, "+with\r\n", 7, NULL, NULL, 0);
    else
        cairn_out_simple(&o, "with");
    cairn_out_simple(&o, "behind");
    cr_assert_eq(cairn_out_send(&o, pair[0]), CAIRN_OK);
    close(a);
    close(w);
}

/* Not before the byte they belong to, and with it. */
static bool descriptors_come(void)
{
    struct cairn_sock_fds none, fds;
    bool good = arrives("+before\r\n", 0, &none) && arrives("+", 2, &fds) &&
                holds(fds.fd[0], "arena") && holds(fds.fd[1], "window") &&
                fcntl(fds.fd[0], F_GETFD) & FD_CLOEXEC;
    if (good)
        cairn_sock_fds_close(&fds);
    return good && arrives("with\r\n+behind\r\n", 0, &none);
}

Test(out, descriptors_travel_with_the_next_byte)
{
    begin(2);
    descriptors_queue(false);
    cr_assert(descriptors_come());
    descriptors_queue(true);
    cr_assert(descriptors_come());
    end();
}

Test(out, descriptors_reach_another_process)
{
    begin(2);
    pid_t pid = fork();
    if (pid == 0) {
        cairn_out_close(&o);
        close(pair[0]);
        _exit(descriptors_come() ? 0 : 1);
    }
    descriptors_queue(false);
    int status;
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert_eq(status, 0);
    end();
}

Test(out, descriptors_of_an_appended_queue_stay_in_place)
{
    struct cairn_out other;
    int a = memfd_of("arena"), w = memfd_of("window");
    begin(2);
    cairn_out_open(&other);
    cairn_out_simple(&o, "before");
    cairn_out_fds(&other, (int[]){a, w}, 2);
    cairn_out_simple(&other, "with");
    cairn_out_append(&o, &other);
    cairn_out_simple(&o, "behind");
    cr_assert_eq(cairn_out_send(&o, pair[0]), CAIRN_OK);
    close(a);
    close(w);
    cr_assert(descriptors_come());
    cairn_out_fds(&o, (int[]){0, 1, 2, 0, 1}, 5);
    cr_assert(o.failed, "more than can travel");
    cairn_out_close(&other);
    end();
}

Test(out, no_memory_fails_the_queue_and_leaks_nothing)
{
    static char large[100000];
    for (uint64_t nth = 1;; nth++) {
        begin(2);
        releases = 0;
        cairn_mem_fail_nth(nth);
        cairn_out_raw(&o, large, sizeof(large));
        cairn_out_ref(&o, large, 10, note, &releases, 1);
        cairn_out_simple(&o, "OK");
        cairn_mem_fail_nth(0);
        bool failed = o.failed;
        cr_assert_eq(cairn_out_send(&o, pair[0]) == CAIRN_IO, failed);
        end();
        cr_assert_eq(releases, 1);
        if (!failed)
            return;
    }
}

Test(out, blocks_given_back_are_used_again)
{
    begin(2);
    for (int i = 0; i < 10000; i++) {
        cairn_out_simple(&o, "OK");
        cr_assert_leq(o.memory, 16384);
        arrived();
    }
    end();
}
