/* Other processes that the network figures need: bare loops to compare with, servers to measure.
 * All are children of the bench, die with it, and listen on loopback only. */
#ifndef CAIRN_TOOLS_BENCH_PEER_H
#define CAIRN_TOOLS_BENCH_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct bench_peer {
    pid_t pid;         /* 0 = not running */
    int port;          /* TCP, 0 = none */
    char socket[108];  /* unix socket, empty = none */
    char dir[64];      /* its directory, removed by bench_peer_stop */
};

/* Answers every `request` bytes of any connection with the same bulk reply of `value` bytes, taken
 * in turn from memory of `region` bytes: what a server does at the very least. CONFIG GET, which
 * redis-benchmark asks first, answers an empty array. */
bool bench_peer_canned(size_t request, size_t value, size_t region, struct bench_peer *ret);
/* Sends back `reply` bytes for every `request` bytes on a unix socket; looks for spin_ns before it
 * sleeps, 0 = sleeps at once. */
bool bench_peer_echo(size_t request, size_t reply, uint64_t spin_ns, struct bench_peer *ret);
/* cairnd, which lies beside this program, with `ram` bytes and no disk. */
bool bench_peer_cairnd(const char *ram, struct bench_peer *ret);
/* redis-server without persistence; false without a message if it is not installed. */
bool bench_peer_redis(struct bench_peer *ret);
void bench_peer_stop(struct bench_peer *p);

/* CPU seconds that the process took so far. */
double bench_peer_cpu_s(const struct bench_peer *p);
/* Anonymous memory of the process in bytes, shared arenas not counted; NAN if unknown. */
double bench_peer_anon_bytes(const struct bench_peer *p);

/* Connected descriptors; -1 after a message. */
int bench_dial_tcp(int port);
int bench_dial_unix(const char *path);
bool bench_send_all(int fd, const void *data, size_t len);
bool bench_recv_all(int fd, void *data, size_t len);

/* Requests a second of `redis-benchmark -p port ARGS`; NAN if it is not installed or fails. */
double bench_redis_benchmark(int port, const char *args);

#endif
