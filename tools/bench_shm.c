/* `cairn bench shm`: what a client on the same host waits for a lease and for a lookup, beside a
 * bare ping-pong of messages of the same size over a unix socket. */
#include <math.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "connector/cairn.h"
#include "tools/bench.h"
#include "tools/bench_peer.h"
#include "transport/wire.h"

#define CHUNK (4u << 20)
#define CHUNKS 32u
#define LOOKUP 512u
#define SPIN_NS 50000u
#define ROUND_CALLS 2000u
#define TIMEOUT (5 * CAIRN_NS_PER_S)

struct shm {
    cairn_store *store;
    cairn_session *session;
    struct cairn_key keys[LOOKUP];
    struct bench_lat lat;
};

static bool put_chunks(struct shm *s)
{
    void *bytes = malloc(CHUNK);
    bool ok = bytes != NULL;
    for (uint32_t i = 0; i < LOOKUP; i++)
        bench_key_of(i, &s->keys[i]);
    for (uint32_t i = 0; ok && i < LOOKUP; i++) {
        size_t len = i < CHUNKS ? CHUNK : 4096;
        struct cairn_iov iov = {.base = bytes, .len = len};
        struct cairn_put p = {.key = s->keys[i], .value = {.iov = &iov, .count = 1}};
        bench_fill(bytes, len, i, 0);
        ok = cairn_put(s->store, &p, 1, TIMEOUT) == CAIRN_OK ||
             bench_fail("chunk %u was not stored: %s", i, cairn_status_str(p.status));
    }
    free(bytes);
    return ok;
}

/* Every leased byte once, in place, before anything is timed. */
static bool check_chunks(struct shm *s)
{
    bool ok = true;
    for (uint32_t i = 0; ok && i < CHUNKS; i++) {
        cairn_lease *l = NULL;
        const void *bytes;
        uint64_t len;
        size_t held;
        ok = !cairn_lease_take(s->session, &s->keys[i], 1, TIMEOUT, TIMEOUT, &l, &held) &&
             cairn_lease_view(l, 0, &bytes, &len) == CAIRN_OK && len == CHUNK &&
             bench_verify(bytes, len, i, 0);
        cairn_lease_release(l);
    }
    return ok || bench_fail("a leased chunk does not hold its bytes");
}

static bool lease_once(struct shm *s, uint32_t i)
{
    cairn_lease *l = NULL;
    size_t held;
    uint64_t begin = cairn_now_ns();
    if (cairn_lease_take(s->session, &s->keys[i % CHUNKS], 1, TIMEOUT, TIMEOUT, &l, &held))
        return bench_fail("a resident chunk could not be leased");
    bench_lat_add(&s->lat, cairn_now_ns() - begin);
    cairn_lease_release(l);
    return true;
}

static bool lookup_once(struct shm *s, uint32_t i)
{
    (void)i;
    uint64_t begin = cairn_now_ns();
    if (cairn_lookup(s->store, s->keys, LOOKUP) != LOOKUP)
        return bench_fail("a lookup of %u held keys did not find them all", LOOKUP);
    bench_lat_add(&s->lat, cairn_now_ns() - begin);
    return true;
}

static bool ping_once(int fd, size_t request, size_t reply, struct bench_lat *lat)
{
    static char buf[1u << 20];
    struct pollfd p = {.fd = fd, .events = POLLIN};
    uint64_t begin = cairn_now_ns();
    if (!bench_send_all(fd, buf, request))
        return bench_fail("the echo ended");
    while (poll(&p, 1, 0) == 0 && cairn_now_ns() - begin < SPIN_NS)
        ;
    if (!bench_recv_all(fd, buf, reply))
        return bench_fail("the echo ended");
    bench_lat_add(lat, cairn_now_ns() - begin);
    return true;
}

/* Rounds that alternate; value is how much longer Cairn's call takes than the ping-pong. */
static bool compare(struct bench *b, struct shm *s, const char *name,
                    bool (*once)(struct shm *s, uint32_t i), size_t request, size_t reply)
{
    struct bench_peer echo;
    struct bench_lat ping = {0};
    struct bench_row row = bench_row("us+", "unix ping-pong, both awake");
    size_t calls = b->o->rounds * ROUND_CALLS;
    bool ok = bench_peer_echo(request, reply, SPIN_NS, &echo) && bench_lat_init(&ping, calls) &&
              bench_lat_init(&s->lat, calls);
    int fd = ok ? bench_dial_unix(echo.socket) : -1;
    ok = fd >= 0;
    for (uint64_t r = 0; ok && r < b->o->rounds; r++) {
        for (uint32_t i = 0; ok && i < ROUND_CALLS; i++)
            ok = once(s, i);
        for (uint32_t i = 0; ok && i < ROUND_CALLS; i++)
            ok = ping_once(fd, request, reply, &ping);
    }
    if (ok) {
        snprintf(row.name, sizeof row.name, "%s", name);
        bench_lat_row(&s->lat, &row);
        row.limit = bench_lat_us(&ping, 0.5);
        row.value = row.p50_us - row.limit;
        row.ratio = row.p50_us / row.limit;
        bench_add(b, &row);
    }
    bench_lat_free(&s->lat);
    bench_lat_free(&ping);
    if (fd >= 0)
        close(fd);
    bench_peer_stop(&echo);
    return ok;
}

/* How fast a resident value reaches the caller's memory through the arena, verified. */
static bool copy_row(struct bench *b, struct shm *s)
{
    struct cairn_mapping m;
    struct bench_side mine = {0}, limit = {0};
    struct bench_row row = bench_row("GB/s", "memcpy of the same size");
    if (!bench_mapping((size_t)CHUNKS * CHUNK * 2, &m))
        return false;
    char *to = m.base, *from = to + (size_t)CHUNKS * CHUNK;
    bool ok = true;
    for (uint64_t r = 0; ok && r < b->o->rounds; r++) {
        uint64_t begin = cairn_now_ns();
        for (uint32_t i = 0; ok && i < CHUNKS; i++) {
            struct cairn_iov iov = {.base = to + (size_t)i * CHUNK, .len = CHUNK};
            struct cairn_get g = {.key = s->keys[i], .out = {.iov = &iov, .count = 1}};
            ok = cairn_get(s->store, &g, 1, TIMEOUT, NULL) == CAIRN_OK ||
                 bench_fail("a resident chunk is missed: %s", cairn_status_str(g.status));
        }
        bench_side_add(&mine, (uint64_t)CHUNKS * CHUNK, cairn_now_ns() - begin, 0);
        begin = cairn_now_ns();
        for (uint32_t i = 0; i < CHUNKS; i++)
            memcpy(to + (size_t)i * CHUNK, from + (size_t)i * CHUNK, CHUNK);
        bench_side_add(&limit, (uint64_t)CHUNKS * CHUNK, cairn_now_ns() - begin, 0);
    }
    if (ok) {
        bench_name(&row, "shm-get", CHUNK);
        bench_sides_row(&mine, &limit, &row);
        row.cpu_s_per_gb = NAN;
        bench_add(b, &row);
    }
    cairn_mapping_close(&m);
    return ok;
}

bool bench_shm(struct bench *b)
{
    static struct shm s;
    struct bench_peer cairn;
    char uri[128], err[512] = "";
    bool ok = bench_peer_cairnd("1GiB", &cairn);
    snprintf(uri, sizeof uri, "unix:%s", cairn.socket);
    if (ok && (cairn_open(uri, &s.store, err, sizeof err) ||
               cairn_session_open(s.store, &s.session)))
        ok = bench_fail("%s", err);
    ok = ok && put_chunks(&s) && check_chunks(&s) &&
         compare(b, &s, "shm-lease-4MiB", lease_once, 120, 80) &&
         compare(b, &s, "shm-lookup-512", lookup_once, LOOKUP * 32 + 40, 24) && copy_row(b, &s);
    cairn_session_close(s.session);
    cairn_close(s.store);
    s = (struct shm){0};
    bench_peer_stop(&cairn);
    return ok;
}
