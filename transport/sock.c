#include "transport/sock.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

cairn_status cairn_sock_wait(int fd, short events, uint64_t deadline_ns, short *ret_events)
{
    for (;;) {
        struct pollfd p = {.fd = fd, .events = events};
        uint64_t now = cairn_now_ns();
        struct timespec left = cairn_timespec(deadline_ns > now ? deadline_ns - now : 0);
        int n = ppoll(&p, 1, deadline_ns == UINT64_MAX ? NULL : &left, NULL);
        if (n > 0 && p.revents & POLLNVAL)
            return CAIRN_IO;
        if (n > 0) {
            if (ret_events)
                *ret_events = p.revents & (POLLERR | POLLHUP) ? events : p.revents & events;
            return CAIRN_OK;
        }
        if (n < 0 && errno != EINTR)
            return CAIRN_IO;
        if (cairn_now_ns() >= deadline_ns)
            return CAIRN_TIMEOUT;
    }
}

static void iov_advance(struct iovec **iov, uint32_t *count, size_t len)
{
    while (*count > 0 && len >= (*iov)->iov_len) {
        len -= (*iov)->iov_len;
        (*iov)++;
        (*count)--;
    }
    if (len > 0) {
        (*iov)->iov_base = (char *)(*iov)->iov_base + len;
        (*iov)->iov_len -= len;
    }
}

cairn_status cairn_sock_send_all(int fd, struct iovec *iov, uint32_t count, uint64_t deadline_ns)
{
    static const uint32_t at_once = 64;
    iov_advance(&iov, &count, 0);
    while (count > 0) {
        struct msghdr m = {.msg_iov = iov, .msg_iovlen = count < at_once ? count : at_once};
        ssize_t n = sendmsg(fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n >= 0) {
            iov_advance(&iov, &count, (size_t)n);
            continue;
        }
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN && errno != EWOULDBLOCK)
            return CAIRN_IO;
        cairn_status status = cairn_sock_wait(fd, POLLOUT, deadline_ns, NULL);
        if (status != CAIRN_OK)
            return status;
    }
    return CAIRN_OK;
}

static cairn_status receive(int fd, struct msghdr *message, size_t *ret_len)
{
    for (;;) {
        ssize_t n = recvmsg(fd, message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n > 0) {
            *ret_len = (size_t)n;
            return CAIRN_OK;
        }
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return CAIRN_INPROGRESS;
        if (n == 0 || errno != EINTR)
            return CAIRN_IO;
    }
}

cairn_status cairn_sock_recv(int fd, struct iovec *iov, uint32_t count, size_t *ret_len)
{
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = count};
    return receive(fd, &message, ret_len);
}

void cairn_sock_fds_close(struct cairn_sock_fds *fds)
{
    for (uint32_t i = 0; i < fds->count; i++)
        close(fds->fd[i]);
    fds->count = 0;
}

cairn_status cairn_sock_recv_fds(int fd, struct iovec *iov, uint32_t count, size_t *ret_len,
                                 struct cairn_sock_fds *ret_fds)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(CAIRN_SOCK_FDS_MAX * sizeof(int))];
    struct msghdr message = {.msg_iov = iov,
                             .msg_iovlen = count,
                             .msg_control = control,
                             .msg_controllen = sizeof(control)};
    struct cairn_sock_fds came = {.count = 0};
    cairn_status status = receive(fd, &message, ret_len);
    if (status != CAIRN_OK)
        return status;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        size_t bytes = c->cmsg_len - CMSG_LEN(0);
        memcpy(came.fd, CMSG_DATA(c), bytes);
        came.count = (uint32_t)(bytes / sizeof(int));
    }
    if (message.msg_flags & MSG_CTRUNC) {
        cairn_sock_fds_close(&came);
        return CAIRN_IO;
    }
    *ret_fds = came;
    return CAIRN_OK;
}

bool cairn_sock_alive(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLRDHUP};
    int n;
    do {
        n = poll(&p, 1, 0);
    } while (n < 0 && errno == EINTR);
    return n == 0;
}

cairn_status cairn_sock_peer(int fd, pid_t *ret_pid, uid_t *ret_uid)
{
    struct ucred who;
    socklen_t len = sizeof(who);
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &len) != 0)
        return cairn_status_from_errno(errno);
    if (len != sizeof(who) || who.pid <= 0)
        return CAIRN_UNSUPPORTED;
    *ret_pid = who.pid;
    *ret_uid = who.uid;
    return CAIRN_OK;
}

const char *cairn_sock_peer_name(int fd, char *out, size_t cap)
{
    static const char scheme[] = "tcp://";
    char text[CAIRN_ADDR_TEXT_MAX];
    struct cairn_addr a = {.len = sizeof(a.at)};
    if (getpeername(fd, &a.at.any, &a.len) != 0 || cairn_addr_is_unix(&a))
        snprintf(out, cap, "?");
    else
        snprintf(out, cap, "%s", cairn_addr_print(&a, text, sizeof(text)) + sizeof(scheme) - 1);
    return out;
}
