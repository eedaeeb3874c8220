#include "tools/bench_peer.h"

#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "tools/bench.h"

#define FDS_MAX 2048
#define START_NS (10 * CAIRN_NS_PER_S)

static int listen_tcp(int *ret_port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 128) ||
        getsockname(fd, (struct sockaddr *)&a, &len)) {
        bench_fail("cannot listen on loopback: %s", strerror(errno));
        if (fd >= 0)
            close(fd);
        return -1;
    }
    *ret_port = ntohs(a.sin_port);
    return fd;
}

int bench_dial_tcp(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                            .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a)) {
        bench_fail("cannot connect to 127.0.0.1:%d: %s", port, strerror(errno));
        if (fd >= 0)
            close(fd);
        return -1;
    }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
}

int bench_dial_unix(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a)) {
        bench_fail("cannot connect to %s: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return -1;
    }
    return fd;
}

bool bench_send_all(int fd, const void *data, size_t len)
{
    for (const char *p = data; len;) {
        ssize_t n = send(fd, p, len, MSG_NOSIGNAL);
        if (n <= 0 && errno != EINTR)
            return false;
        p += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
    return true;
}

bool bench_recv_all(int fd, void *data, size_t len)
{
    for (char *p = data; len;) {
        ssize_t n = recv(fd, p, len, 0);
        if (n == 0 || (n < 0 && errno != EINTR))
            return false;
        p += n > 0 ? n : 0;
        len -= n > 0 ? (size_t)n : 0;
    }
    return true;
}

/* A child that dies with its parent. True in both; pid is 0 in the child. */
static bool child(struct bench_peer *p)
{
    fflush(NULL);
    p->pid = fork();
    if (p->pid < 0)
        return bench_fail("cannot start a process: %s", strerror(errno));
    if (p->pid == 0)
        prctl(PR_SET_PDEATHSIG, SIGKILL);
    return true;
}

/* --- the canned server --- */

struct canned {
    size_t request, value, region, at;
    char *memory;
    size_t have[FDS_MAX]; /* bytes of an unfinished request, by descriptor */
};

static bool canned_reply(struct canned *c, int fd)
{
    char head[32];
    struct iovec iov[3] = {
        {head, (size_t)snprintf(head, sizeof head, "$%zu\r\n", c->value)},
        {c->memory + c->at, c->value},
        {(void *)(uintptr_t)"\r\n", 2},
    };
    c->at = c->at + 2 * c->value <= c->region ? c->at + c->value : 0;
    for (int i = 0; i < 3;) {
        struct msghdr m = {.msg_iov = iov + i, .msg_iovlen = (size_t)(3 - i)};
        ssize_t n = sendmsg(fd, &m, MSG_NOSIGNAL);
        if (n < 0 && errno != EINTR)
            return false;
        for (; i < 3 && n >= (ssize_t)iov[i].iov_len; i++)
            n -= (ssize_t)iov[i].iov_len;
        if (i < 3 && n > 0) {
            iov[i].iov_base = (char *)iov[i].iov_base + n;
            iov[i].iov_len -= (size_t)n;
        }
    }
    return true;
}

static bool canned_serve(struct canned *c, int fd)
{
    static char buf[65536];
    ssize_t n = recv(fd, buf, sizeof buf, 0);
    if (n <= 0)
        return false;
    if (n > 12 && memmem(buf, (size_t)n, "CONFIG", 6))
        return bench_send_all(fd, "*0\r\n", 4);
    c->have[fd] += (size_t)n;
    for (; c->have[fd] >= c->request; c->have[fd] -= c->request)
        if (!canned_reply(c, fd))
            return false;
    return true;
}

static _Noreturn void canned_loop(struct canned *c, int listener)
{
    struct epoll_event ev = {.events = EPOLLIN, .data.fd = listener}, got[64];
    int ep = epoll_create1(EPOLL_CLOEXEC), one = 1;
    epoll_ctl(ep, EPOLL_CTL_ADD, listener, &ev);
    for (;;) {
        int n = epoll_wait(ep, got, 64, -1);
        for (int i = 0; i < n; i++) {
            int fd = got[i].data.fd;
            if (fd != listener) {
                if (!canned_serve(c, fd))
                    close(fd);
                continue;
            }
            fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
            if (fd < 0 || fd >= FDS_MAX)
                continue;
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            c->have[fd] = 0;
            ev.data.fd = fd;
            epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
        }
    }
}

bool bench_peer_canned(size_t request, size_t value, size_t region, struct bench_peer *ret)
{
    *ret = (struct bench_peer){0};
    int fd = listen_tcp(&ret->port);
    if (fd < 0 || !child(ret))
        return false;
    if (ret->pid == 0) {
        static struct canned c;
        struct cairn_mapping m;
        c = (struct canned){.request = request, .value = value, .region = region};
        if (cairn_mapping_open(region, "canned", &m) != CAIRN_OK)
            _exit(1);
        c.memory = m.base;
        memset(c.memory, 'x', region);
        canned_loop(&c, fd);
    }
    close(fd);
    return true;
}

/* --- the echo --- */

static bool readable(int fd, uint64_t spin_ns)
{
    uint64_t end = cairn_now_ns() + spin_ns;
    struct pollfd p = {.fd = fd, .events = POLLIN};
    while (spin_ns && cairn_now_ns() < end)
        if (poll(&p, 1, 0) == 1)
            return true;
    return poll(&p, 1, -1) == 1;
}

bool bench_peer_echo(size_t request, size_t reply, uint64_t spin_ns, struct bench_peer *ret)
{
    *ret = (struct bench_peer){0};
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(ret->dir, sizeof ret->dir, "/tmp/cairn-bench-XXXXXX");
    if (!mkdtemp(ret->dir))
        return bench_fail("cannot make a directory in /tmp: %s", strerror(errno));
    snprintf(ret->socket, sizeof ret->socket, "%s/echo.sock", ret->dir);
    snprintf(a.sun_path, sizeof a.sun_path, "%s", ret->socket);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) || listen(fd, 8) || !child(ret))
        return bench_fail("cannot listen on %s: %s", ret->socket, strerror(errno));
    if (ret->pid == 0) {
        static char buf[1u << 20];
        int c = accept4(fd, NULL, NULL, SOCK_CLOEXEC);
        while (readable(c, spin_ns) && bench_recv_all(c, buf, request) &&
               bench_send_all(c, buf, reply))
            ;
        _exit(0);
    }
    close(fd);
    return true;
}

/* --- servers --- */

static bool answers(const struct bench_peer *p)
{
    uint64_t end = cairn_deadline_ns(START_NS);
    char pong[7];
    while (cairn_now_ns() < end && waitpid(p->pid, NULL, WNOHANG) == 0) {
        struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)p->port),
                                .sin_addr = {htonl(INADDR_LOOPBACK)}};
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        bool ok = fd >= 0 && !connect(fd, (struct sockaddr *)&a, sizeof a) &&
                  bench_send_all(fd, "PING\r\n", 6) && bench_recv_all(fd, pong, sizeof pong) &&
                  !memcmp(pong, "+PONG\r\n", 7);
        if (fd >= 0)
            close(fd);
        if (ok)
            return true;
        nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    }
    return false;
}

static int free_port(void)
{
    int port = 0, fd = listen_tcp(&port);
    if (fd >= 0)
        close(fd);
    return port;
}

static bool server_dir(struct bench_peer *p)
{
    *p = (struct bench_peer){.port = free_port()};
    snprintf(p->dir, sizeof p->dir, "/tmp/cairn-bench-XXXXXX");
    return p->port && (mkdtemp(p->dir) || bench_fail("cannot make a directory in /tmp: %s",
                                                     strerror(errno)));
}

bool bench_peer_cairnd(const char *ram, struct bench_peer *ret)
{
    char self[900], program[1024], port[16];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n < 0 || !server_dir(ret))
        return false;
    self[n] = '\0';
    *strrchr(self, '/') = '\0';
    snprintf(program, sizeof program, "%s/cairnd", self);
    if (access(program, X_OK))
        return bench_fail("%s is missing: build it", program);
    snprintf(ret->socket, sizeof ret->socket, "%s/cairn.sock", ret->dir);
    snprintf(port, sizeof port, "%d", ret->port);
    if (!child(ret))
        return false;
    if (ret->pid == 0) {
        execl(program, program, "--port", port, "--socket", ret->socket, "--http-port", "0",
              "--ram", ram, "--log-level", "error", (char *)NULL);
        _exit(127);
    }
    return answers(ret) || bench_fail("cairnd did not start");
}

bool bench_peer_redis(struct bench_peer *ret)
{
    char port[16];
    *ret = (struct bench_peer){0};
    if (system("command -v redis-server >/dev/null 2>&1") != 0 || !server_dir(ret))
        return false;
    snprintf(port, sizeof port, "%d", ret->port);
    if (!child(ret))
        return false;
    if (ret->pid == 0) {
        if (!freopen("/dev/null", "w", stdout))
            _exit(127);
        execlp("redis-server", "redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "",
               "--appendonly", "no", "--dir", ret->dir, "--loglevel", "warning", (char *)NULL);
        _exit(127);
    }
    return answers(ret) || bench_fail("redis-server did not start");
}

void bench_peer_stop(struct bench_peer *p)
{
    if (p->pid > 0) {
        kill(p->pid, SIGKILL);
        waitpid(p->pid, NULL, 0);
    }
    if (p->socket[0])
        unlink(p->socket);
    if (p->dir[0])
        rmdir(p->dir);
    *p = (struct bench_peer){0};
}

double bench_peer_cpu_s(const struct bench_peer *p)
{
    clockid_t clock;
    struct timespec t;
    if (clock_getcpuclockid(p->pid, &clock) || clock_gettime(clock, &t))
        return NAN;
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

double bench_peer_anon_bytes(const struct bench_peer *p)
{
    char path[64], line[256];
    double kib = NAN;
    snprintf(path, sizeof path, "/proc/%d/status", (int)p->pid);
    FILE *f = fopen(path, "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "RssAnon:", 8))
            kib = strtod(line + 8, NULL);
    if (f)
        fclose(f);
    return kib * 1024;
}

double bench_redis_benchmark(int port, const char *args)
{
    char command[512], line[512];
    double rate = NAN;
    snprintf(command, sizeof command, "redis-benchmark -p %d --csv %s 2>/dev/null", port, args);
    FILE *f = popen(command, "r");
    while (f && fgets(line, sizeof line, f)) {
        const char *comma = strchr(line, ',');
        if (line[0] == '"' && comma && comma[1] == '"' && strncmp(line, "\"test\"", 6) != 0)
            rate = strtod(comma + 2, NULL);
    }
    if (f && pclose(f) != 0)
        rate = NAN;
    return rate;
}
