/* `cairn bench net`: cairnd over TCP loopback beside a bare loop of the same sizes, and beside
 * redis-server where one is installed. The client is the same program on both sides. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "tools/bench.h"
#include "tools/bench_peer.h"

#define KEY "bench:%08u"
#define WORKING_SET (256u << 20)
#define IDLE 1000u
#define RECEIVE (1u << 20)

/* A raw client: requests of one length, replies of one length, `depth` of them under way. */
struct raw {
    int fd;
    uint64_t value, sent, got;
    uint32_t keys, depth;
    char *buf;       /* SET: one request; GET: where replies go */
    bool set;
};

static size_t get_request(char *out, size_t cap, uint32_t key)
{
    char name[32];
    int n = snprintf(name, sizeof name, KEY, key);
    return (size_t)snprintf(out, cap, "*2\r\n$3\r\nGET\r\n$%d\r\n%s\r\n", n, name);
}

static size_t set_head(char *out, size_t cap, uint32_t key, uint64_t value)
{
    char name[32];
    int n = snprintf(name, sizeof name, KEY, key);
    return (size_t)snprintf(out, cap, "*3\r\n$3\r\nSET\r\n$%d\r\n%s\r\n$%llu\r\n", n, name,
                            (unsigned long long)value);
}

static uint32_t keys_of(uint64_t value)
{
    return (uint32_t)(WORKING_SET / value);
}

static uint64_t reply_bytes(uint64_t value)
{
    char head[32];
    int n = snprintf(head, sizeof head, "$%llu\r\n", (unsigned long long)value);
    return (uint64_t)n + value + 2;
}

static bool send_get(struct raw *r)
{
    char request[96];
    size_t n = get_request(request, sizeof request, (uint32_t)(r->sent++ % r->keys));
    return bench_send_all(r->fd, request, n);
}

/* Reads one reply of the known length; its first bytes must be the head of a bulk. */
static bool take_reply(struct raw *r)
{
    char head[32];
    int n = snprintf(head, sizeof head, "$%llu\r\n", (unsigned long long)r->value);
    uint64_t left = reply_bytes(r->value);
    if (!bench_recv_all(r->fd, r->buf, (size_t)n) || memcmp(r->buf, head, (size_t)n) != 0)
        return bench_fail("a reply is not the value: %.16s", r->buf);
    for (left -= (uint64_t)n; left;) {
        size_t part = left < RECEIVE ? (size_t)left : RECEIVE;
        if (!bench_recv_all(r->fd, r->buf, part))
            return bench_fail("the connection ended in a reply");
        left -= part;
    }
    r->got++;
    return true;
}

static bool get_for(struct raw *r, uint64_t ns, uint64_t *ret_bytes, uint64_t *ret_ns)
{
    uint64_t begin = cairn_now_ns(), end = begin + ns, got = r->got;
    while (cairn_now_ns() < end) {
        while (r->sent - r->got < r->depth)
            if (!send_get(r))
                return bench_fail("the connection ended in a request");
        if (!take_reply(r))
            return false;
    }
    *ret_bytes = (r->got - got) * r->value;
    *ret_ns = cairn_now_ns() - begin;
    while (r->got < r->sent)
        if (!take_reply(r))
            return false;
    return true;
}

static bool take_ok(struct raw *r)
{
    char ok[5];
    if (!bench_recv_all(r->fd, ok, sizeof ok) || memcmp(ok, "+OK\r\n", 5) != 0)
        return bench_fail("SET was not answered with OK: %.5s", ok);
    r->got++;
    return true;
}

static bool send_set(struct raw *r)
{
    char head[128];
    uint32_t key = (uint32_t)(r->sent++ % r->keys);
    size_t n = set_head(head, sizeof head, key, r->value);
    bench_fill(r->buf, 64, key, 0);
    return bench_send_all(r->fd, head, n) && bench_send_all(r->fd, r->buf, r->value) &&
           bench_send_all(r->fd, "\r\n", 2);
}

static bool set_for(struct raw *r, uint64_t ns, uint64_t *ret_bytes, uint64_t *ret_ns)
{
    uint64_t begin = cairn_now_ns(), end = begin + ns, got = r->got;
    while (cairn_now_ns() < end) {
        if (!send_set(r))
            return bench_fail("the connection ended in a request");
        while (r->sent - r->got >= r->depth)
            if (!take_ok(r))
                return false;
    }
    *ret_bytes = (r->got - got) * r->value;
    *ret_ns = cairn_now_ns() - begin;
    while (r->got < r->sent)
        if (!take_ok(r))
            return false;
    return true;
}

static bool raw_open(struct raw *r, const struct bench_peer *p, uint64_t value, uint32_t depth,
                     bool set)
{
    *r = (struct raw){.fd = bench_dial_tcp(p->port), .value = value, .depth = depth,
                      .keys = keys_of(value), .set = set};
    r->buf = r->fd < 0 ? NULL : malloc(set ? value : RECEIVE);
    if (r->buf)
        memset(r->buf, 'v', set ? value : RECEIVE);
    return r->buf != NULL;
}

static void raw_close(struct raw *r)
{
    if (r->fd >= 0)
        close(r->fd);
    free(r->buf);
}

/* Every key of the working set once, each with bytes of its own. */
static bool fill(const struct bench_peer *p, uint64_t value)
{
    struct raw r;
    bool ok = raw_open(&r, p, value, 4, true);
    for (uint32_t i = 0; ok && i < r.keys; i++) {
        bench_fill(r.buf, value, i, 0);
        char head[128];
        size_t n = set_head(head, sizeof head, i, value);
        ok = bench_send_all(r.fd, head, n) && bench_send_all(r.fd, r.buf, value) &&
             bench_send_all(r.fd, "\r\n", 2) && take_ok(&r);
    }
    raw_close(&r);
    return ok;
}

/* Every byte of every value, before anything is timed. */
static bool check(const struct bench_peer *p, uint64_t value)
{
    struct raw r;
    char head[32];
    int n = snprintf(head, sizeof head, "$%llu\r\n", (unsigned long long)value);
    bool ok = raw_open(&r, p, value, 1, true); /* its buffer holds a whole value */
    for (uint32_t i = 0; ok && i < r.keys; i++) {
        char got[32];
        ok = send_get(&r) && bench_recv_all(r.fd, got, (size_t)n) &&
             !memcmp(got, head, (size_t)n) && bench_recv_all(r.fd, r.buf, value) &&
             bench_recv_all(r.fd, got, 2);
        if (!ok || !bench_verify(r.buf, value, i, 0))
            ok = bench_fail("key %u came back with other bytes", i);
    }
    raw_close(&r);
    return ok;
}

static bool one_side(struct raw *r, const struct bench_peer *p, uint64_t ns, struct bench_side *s)
{
    uint64_t bytes = 0, took = 0;
    double cpu = bench_peer_cpu_s(p);
    bool ok = r->set ? set_for(r, ns, &bytes, &took) : get_for(r, ns, &bytes, &took);
    if (ok)
        bench_side_add(s, bytes, took, bench_peer_cpu_s(p) - cpu);
    return ok;
}

/* Rounds that alternate; the cpu of a row is the server's. */
static bool compare(struct bench *b, const struct bench_peer *cairn, const struct bench_peer *limit,
                    uint64_t value, bool set, struct bench_row *row, double *ret_cpu_ratio)
{
    struct raw mine, other;
    struct bench_side s[2] = {0};
    uint32_t depth = value >= 4u << 20 ? 4 : 8;
    uint64_t ns = b->o->seconds_ns / b->o->rounds / 2;
    bool ok = raw_open(&mine, cairn, value, depth, set);
    ok = raw_open(&other, limit, value, depth, set) && ok;
    for (uint64_t i = 0; ok && i < b->o->rounds; i++)
        ok = one_side(&mine, cairn, ns, &s[0]) && one_side(&other, limit, ns, &s[1]);
    raw_close(&mine);
    raw_close(&other);
    if (ok) {
        bench_sides_row(&s[0], &s[1], row);
        *ret_cpu_ratio = row->cpu_s_per_gb / (s[1].cpu_s / (s[1].bytes / 1e9));
    }
    return ok;
}

static bool get_rows(struct bench *b, const struct bench_peer *cairn, uint64_t value,
                     const char *name)
{
    char request[96];
    struct bench_peer bare;
    struct bench_row row = bench_row("GB/s", "bare TCP loop"), cpu = bench_row("s/GB", "bare loop");
    bool ok = bench_peer_canned(get_request(request, sizeof request, 0), value, WORKING_SET, &bare);
    double cpu_ratio = NAN;
    bench_name(&row, name, value);
    ok = ok && compare(b, cairn, &bare, value, false, &row, &cpu_ratio);
    bench_peer_stop(&bare);
    if (!ok)
        return false;
    bench_add(b, &row);
    bench_name(&cpu, "net-server-cpu", value);
    cpu.value = row.cpu_s_per_gb;
    cpu.limit = cpu.value / cpu_ratio;
    cpu.ratio = cpu_ratio;
    if (!strcmp(name, "net-get"))
        bench_add(b, &cpu);
    return true;
}

static bool set_row(struct bench *b, const struct bench_peer *cairn, const struct bench_peer *redis)
{
    struct bench_row row = bench_row("GB/s", "redis-server");
    double cpu_ratio;
    bench_name(&row, "net-set", 1u << 20);
    if (!compare(b, cairn, redis, 1u << 20, true, &row, &cpu_ratio))
        return false;
    bench_add(b, &row);
    return true;
}

/* Both sides under the same redis-benchmark call, in turn. */
static bool benchmark_row(struct bench *b, const char *name, int cairn, int limit,
                          const char *limit_name, const char *args)
{
    struct bench_row row = bench_row("op/s", limit_name);
    double mine[BENCH_ROUNDS_MAX], other[BENCH_ROUNDS_MAX];
    uint32_t rounds = (uint32_t)b->o->rounds;
    for (uint32_t i = 0; i < rounds; i++) {
        mine[i] = bench_redis_benchmark(cairn, args);
        other[i] = bench_redis_benchmark(limit, args);
        if (!isfinite(mine[i]) || !isfinite(other[i]))
            return bench_fail("redis-benchmark %s failed", args);
    }
    snprintf(row.name, sizeof row.name, "%s", name);
    row.value = bench_median(mine, rounds);
    row.limit = bench_median(other, rounds);
    row.ratio = row.value / row.limit;
    bench_add(b, &row);
    return true;
}

static bool canned_benchmark_row(struct bench *b, const struct bench_peer *cairn, uint64_t value)
{
    static const char request[] = "*2\r\n$3\r\nGET\r\n$16\r\nkey:__rand_int__\r\n";
    struct bench_peer canned;
    char name[56], args[128], set[128];
    snprintf(set, sizeof set, "-t set -d %llu -n 8 -c 1", (unsigned long long)value);
    snprintf(args, sizeof args, "-t get -d %llu -n %llu -c 4 -P 4", (unsigned long long)value,
             (unsigned long long)((2ull << 30) / value));
    struct bench_row named = bench_row("op/s", "");
    bench_name(&named, "net-benchmark-get", value);
    snprintf(name, sizeof name, "%s", named.name);
    bool ok = isfinite(bench_redis_benchmark(cairn->port, set)) &&
              bench_peer_canned(sizeof request - 1, value, value, &canned);
    ok = ok && benchmark_row(b, name, cairn->port, canned.port, "canned replies", args);
    bench_peer_stop(&canned);
    return ok;
}

static bool redis_rows(struct bench *b, const struct bench_peer *cairn,
                       const struct bench_peer *redis)
{
    static const char large[] = "-t get -d 1048576 -n 2048 -c 4 -P 4";
    static const char get[] = "-t get -d 4096 -n 300000 -c 50 -P 16";
    static const char set[] = "-t set -d 4096 -n 300000 -c 50 -P 16";
    return isfinite(bench_redis_benchmark(redis->port, "-t set -d 1048576 -n 8 -c 1")) &&
           isfinite(bench_redis_benchmark(cairn->port, "-t set -d 1048576 -n 8 -c 1")) &&
           benchmark_row(b, "net-benchmark-get-1MiB-redis", cairn->port, redis->port,
                         "redis-server", large) &&
           benchmark_row(b, "net-benchmark-set-4KiB", cairn->port, redis->port, "redis-server",
                         set) &&
           benchmark_row(b, "net-benchmark-get-4KiB", cairn->port, redis->port, "redis-server",
                         get);
}

static bool idle_open(const struct bench_peer *p, int *fds)
{
    char pong[7];
    for (uint32_t i = 0; i < IDLE; i++) {
        fds[i] = bench_dial_tcp(p->port);
        if (fds[i] < 0 || !bench_send_all(fds[i], "PING\r\n", 6) ||
            !bench_recv_all(fds[i], pong, sizeof pong))
            return bench_fail("connection %u of %u was refused", i + 1, IDLE);
    }
    return true;
}

static bool idle_rows(struct bench *b, const struct bench_peer *cairn)
{
    static int fds[IDLE];
    struct bench_row row = bench_row("KiB", "");
    struct rlimit files = {.rlim_cur = 4096, .rlim_max = 4096};
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max < 4096 ? files.rlim_max : 4096;
    setrlimit(RLIMIT_NOFILE, &files);
    memset(fds, -1, sizeof fds);
    double before = bench_peer_anon_bytes(cairn);
    bool ok = idle_open(cairn, fds);
    if (ok) {
        snprintf(row.name, sizeof row.name, "net-idle-connection");
        row.value = (bench_peer_anon_bytes(cairn) - before) / IDLE / 1024;
        bench_add(b, &row);
        ok = get_rows(b, cairn, 4u << 20, "net-get-beside-1000-idle");
    }
    for (uint32_t i = 0; i < IDLE; i++)
        if (fds[i] >= 0)
            close(fds[i]);
    return ok;
}

bool bench_net(struct bench *b)
{
    struct bench_peer cairn, redis;
    bool ok = bench_peer_cairnd("1GiB", &cairn);
    for (uint64_t value = 1u << 20; ok && value <= 4u << 20; value *= 4)
        ok = fill(&cairn, value) && check(&cairn, value) && get_rows(b, &cairn, value, "net-get");
    ok = ok && idle_rows(b, &cairn);
    bool compared = ok && bench_peer_redis(&redis);
    if (ok && !compared)
        fprintf(stderr, "bench: redis-server is not installed: its figures are left out\n");
    ok = ok && (!compared || (canned_benchmark_row(b, &cairn, 1u << 20) &&
                              canned_benchmark_row(b, &cairn, 4u << 20) &&
                              set_row(b, &cairn, &redis) && redis_rows(b, &cairn, &redis)));
    if (compared)
        bench_peer_stop(&redis);
    bench_peer_stop(&cairn);
    return ok;
}
