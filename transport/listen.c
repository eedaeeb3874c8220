#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "transport/sock.h"

#define BACKLOG 511
#define PAUSE_NS CAIRN_NS_PER_MS
/* What is sent and not read yet grows to tens of MiB on loopback where the kernel chooses: too much
 * for any cache, so that every byte costs the reader three times as much, who then stays behind.
 * The kernel takes twice this; with less who reads fast waits for the next part. Accepted sockets
 * have it of their listener. */
#define SEND_BYTES (96 * 1024)
/* Others hold the folder for as long as it takes to bind a socket. */
#define FOLDER_WAIT_NS (2 * CAIRN_NS_PER_S)

struct refusal {
    const struct cairn_addr *addr;
    char *text;
    size_t cap;
};

/* "ADDRESS: sentence" */
__attribute__((format(printf, 3, 4))) static cairn_status
refuse(const struct refusal *r, cairn_status status, const char *fmt, ...)
{
    char addr[CAIRN_ADDR_TEXT_MAX], why[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(why, sizeof(why), fmt, args);
    va_end(args);
    snprintf(r->text, r->cap, "%s: %s", cairn_addr_print(r->addr, addr, sizeof(addr)), why);
    return status;
}

static cairn_status refuse_errno(const struct refusal *r, const char *what, int error)
{
    return refuse(r, cairn_status_from_errno(error), "%s: %s", what, strerror(error));
}

static int socket_new(const struct cairn_addr *addr)
{
    return socket(addr->at.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

static void pause_a_moment(void)
{
    struct timespec t = cairn_timespec(PAUSE_NS);
    nanosleep(&t, NULL);
}

static void no_delay(int fd)
{
    int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

/* A peer that vanished without a word is found within a minute and a half. */
static void keep_alive(int fd)
{
    int on = 1, idle_s = 60, interval_s = 10, probes = 3;
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
}

/* The lock of the socket's folder: two daemons that start at once must not both find a dead
 * socket, and one remove what the other has just bound. Closing it unlocks. */
static cairn_status folder_lock(const struct refusal *r, int *ret_fd)
{
    char folder[CAIRN_ADDR_TEXT_MAX];
    const char *path = r->addr->at.unix_path.sun_path, *slash = strrchr(path, '/');
    snprintf(folder, sizeof(folder), "%.*s", slash == path ? 1 : (int)(slash - path), path);
    int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return refuse(r, cairn_status_from_errno(errno),
                      "its folder %s cannot be opened: %s%s", folder, strerror(errno),
                      errno == ENOENT ? "; make it first" : "");
    uint64_t deadline_ns = cairn_deadline_ns(FOLDER_WAIT_NS);
    while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        int error = errno;
        if ((error != EWOULDBLOCK && error != EINTR) || cairn_now_ns() >= deadline_ns) {
            close(fd);
            return refuse(r, CAIRN_LOCKED, "its folder %s cannot be locked: %s", folder,
                          strerror(error));
        }
        pause_a_moment();
    }
    *ret_fd = fd;
    return CAIRN_OK;
}

/* Makes way for a new socket: OK if there is no file, or a dead daemon's was removed. */
static cairn_status path_clear(const struct refusal *r)
{
    const char *path = r->addr->at.unix_path.sun_path;
    struct stat st;
    if (lstat(path, &st) != 0)
        return errno == ENOENT ? CAIRN_OK : refuse_errno(r, "cannot look at it", errno);
    if (!S_ISSOCK(st.st_mode))
        return refuse(r, CAIRN_LOCKED, "a file that is no socket is there; move it away");
    int fd = socket_new(r->addr);
    if (fd < 0)
        return refuse_errno(r, "no socket", errno);
    int error = connect(fd, &r->addr->at.any, r->addr->len) == 0 ? 0 : errno;
    close(fd);
    if (error == 0 || error == EAGAIN || error == EINPROGRESS)
        return refuse(r, CAIRN_LOCKED, "another process listens there");
    if (error != ECONNREFUSED && error != ENOENT)
        return refuse_errno(r, "cannot tell whether another process listens there", error);
    if (unlink(path) != 0 && errno != ENOENT)
        return refuse_errno(r, "cannot remove the socket that a dead process left", errno);
    return CAIRN_OK;
}

static cairn_status listen_unix(struct cairn_listener *l, const struct refusal *r)
{
    const char *path = r->addr->at.unix_path.sun_path;
    struct stat st;
    int folder = -1;
    cairn_status status = folder_lock(r, &folder);
    if (status != CAIRN_OK)
        return status;
    status = path_clear(r);
    /* Linux gives the file the mode of the socket, so that it is never open to others, and the
     * process's umask stays as it is. */
    if (status == CAIRN_OK && (fchmod(l->fd, 0600) != 0 ||
                               bind(l->fd, &r->addr->at.any, r->addr->len) != 0))
        status = refuse_errno(r, "cannot bind", errno);
    else if (status == CAIRN_OK && (lstat(path, &st) != 0 || listen(l->fd, BACKLOG) != 0))
        status = refuse_errno(r, "cannot listen", errno);
    else if (status == CAIRN_OK) {
        l->dev = st.st_dev;
        l->ino = st.st_ino;
    }
    close(folder);
    return status;
}

static cairn_status listen_tcp(struct cairn_listener *l, const struct refusal *r)
{
    int on = 1, bytes = SEND_BYTES;
    setsockopt(l->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    setsockopt(l->fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
    if (r->addr->at.any.sa_family == AF_INET6)
        setsockopt(l->fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
    if (bind(l->fd, &r->addr->at.any, r->addr->len) != 0 || listen(l->fd, BACKLOG) != 0) {
        if (errno == EADDRINUSE)
            return refuse(r, CAIRN_LOCKED, "another process listens there; choose another port");
        return refuse_errno(r, "cannot listen", errno);
    }
    l->addr.len = sizeof(l->addr.at);
    if (getsockname(l->fd, &l->addr.at.any, &l->addr.len) != 0)
        return refuse_errno(r, "cannot read the port", errno);
    return CAIRN_OK;
}

cairn_status cairn_listener_open(struct cairn_listener *l, const struct cairn_addr *addr, char *err,
                                 size_t err_cap)
{
    struct refusal r = {addr, err, err_cap};
    struct cairn_listener made = {.addr = *addr, .fd = socket_new(addr)};
    if (made.fd < 0)
        return refuse_errno(&r, "no socket", errno);
    cairn_status status = cairn_addr_is_unix(addr) ? listen_unix(&made, &r) : listen_tcp(&made, &r);
    if (status == CAIRN_OK)
        *l = made;
    else
        close(made.fd);
    return status;
}

void cairn_listener_close(struct cairn_listener *l)
{
    struct stat st;
    if (l->fd < 0)
        return;
    if (cairn_addr_is_unix(&l->addr) && lstat(l->addr.at.unix_path.sun_path, &st) == 0 &&
        st.st_dev == l->dev && st.st_ino == l->ino)
        unlink(l->addr.at.unix_path.sun_path);
    close(l->fd);
    l->fd = -1;
}

cairn_status cairn_listener_accept(const struct cairn_listener *l, int *ret_fd)
{
    for (;;) {
        int fd = accept4(l->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            if (!cairn_addr_is_unix(&l->addr)) {
                no_delay(fd);
                keep_alive(fd);
            }
            *ret_fd = fd;
            return CAIRN_OK;
        }
        switch (errno) {
        case EINTR:
        case ECONNABORTED: continue;
        case EAGAIN: return CAIRN_INPROGRESS;
        case EMFILE:
        case ENFILE:
        case ENOBUFS:
        case ENOMEM: return CAIRN_BUSY;
        default: return CAIRN_IO;
        }
    }
}

static cairn_status dial_failed(const struct refusal *r, int error)
{
    switch (error) {
    case ENOENT:
    case ECONNREFUSED: return refuse(r, CAIRN_NOTFOUND, "no node listens there; start cairnd");
    case EACCES:
    case EPERM: return refuse(r, CAIRN_PERM, "this user may not use the node of another one");
    case EAGAIN:
    case ETIMEDOUT: return refuse(r, CAIRN_TIMEOUT, "the node did not answer in time");
    default: return refuse_errno(r, "cannot connect", error);
    }
}

/* 0 or an errno. */
static int connect_by(int fd, const struct cairn_addr *addr, uint64_t deadline_ns)
{
    int error;
    socklen_t len = sizeof(error);
    for (;;) {
        if (connect(fd, &addr->at.any, addr->len) == 0)
            return 0;
        if (errno == EINPROGRESS || errno == EALREADY || errno == EINTR)
            break;
        /* The queue of a unix socket is full, and nothing tells when it no longer is. */
        if (errno != EAGAIN || cairn_now_ns() >= deadline_ns)
            return errno;
        pause_a_moment();
    }
    if (cairn_sock_wait(fd, POLLOUT, deadline_ns, NULL) != CAIRN_OK)
        return ETIMEDOUT;
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) == 0 ? error : errno;
}

/* A port that nobody listens at may be given to the very socket that dials it, and TCP connects it
 * to itself: the port would be taken when the node comes back. */
static bool reached_itself(int fd)
{
    struct cairn_addr here = {.len = sizeof(here.at)}, there = {.len = sizeof(there.at)};
    struct linger at_once = {.l_onoff = 1};
    if (getsockname(fd, &here.at.any, &here.len) != 0 ||
        getpeername(fd, &there.at.any, &there.len) != 0 || here.len != there.len ||
        memcmp(&here.at, &there.at, here.len) != 0)
        return false;
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
    return true;
}

cairn_status cairn_sock_dial(const struct cairn_addr *addr, uint64_t deadline_ns, int *ret_fd,
                             char *err, size_t err_cap)
{
    struct refusal r = {addr, err, err_cap};
    int fd = socket_new(addr);
    if (fd < 0)
        return refuse_errno(&r, "no socket", errno);
    int error = connect_by(fd, addr, deadline_ns);
    if (error == 0 && !cairn_addr_is_unix(addr) && reached_itself(fd))
        error = ECONNREFUSED;
    if (error != 0) {
        close(fd);
        return dial_failed(&r, error);
    }
    if (!cairn_addr_is_unix(addr))
        no_delay(fd);
    *ret_fd = fd;
    return CAIRN_OK;
}
