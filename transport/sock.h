/* Sockets of one machine: listening, dialling, moving bytes with a deadline, the peer's process and
 * the descriptors it sends. Every socket made here is non-blocking and close-on-exec; deadlines are
 * those of base/clock.h. TIMEOUT = the deadline passed; IO = the connection is gone. */
#ifndef CAIRN_TRANSPORT_SOCK_H
#define CAIRN_TRANSPORT_SOCK_H

#include <sys/types.h>
#include <sys/uio.h>

#include "transport/addr.h"

/* Descriptors taken from one message of a peer, at most. */
#define CAIRN_SOCK_FDS_MAX 4u

struct cairn_listener {
    int fd;                 /* to poll for reading                                    */
    struct cairn_addr addr; /* with the port that port 0 became                       */
    dev_t dev;              /* of the socket's file, so that no other one is removed  */
    ino_t ino;
};

/* A unix socket is for its user alone (0600) from its first moment; the file that a dead daemon
 * left is replaced, a live daemon's is CAIRN_LOCKED, any other file is left alone. A failure says
 * why in err. */
cairn_status cairn_listener_open(struct cairn_listener *l, const struct cairn_addr *addr, char *err,
                                 size_t err_cap);
void cairn_listener_close(struct cairn_listener *l);
/* INPROGRESS = none waits; BUSY = no descriptors or memory left: try later, as polling says "ready"
 * all the while. TCP connections have TCP_NODELAY. */
cairn_status cairn_listener_accept(const struct cairn_listener *l, int *ret_fd);

/* NOTFOUND = no node listens there. A failure says why in err. */
cairn_status cairn_sock_dial(const struct cairn_addr *addr, uint64_t deadline_ns, int *ret_fd,
                             char *err, size_t err_cap);

/* Waits for POLLIN or POLLOUT (or both); *ret_events (NULL is fine) has those that came. */
cairn_status cairn_sock_wait(int fd, short events, uint64_t deadline_ns, short *ret_events);
/* All bytes of the list; it is used up. */
cairn_status cairn_sock_send_all(int fd, struct iovec *iov, uint32_t count, uint64_t deadline_ns);

/* What has come, without waiting: *ret_len bytes, at least 1. INPROGRESS = nothing; IO = end. */
cairn_status cairn_sock_recv(int fd, struct iovec *iov, uint32_t count, size_t *ret_len);
/* Also the descriptors that came with the bytes (close-on-exec); the caller owns them. More than
 * CAIRN_SOCK_FDS_MAX are closed, and IO says so. A plain receive drops descriptors. */
struct cairn_sock_fds {
    int fd[CAIRN_SOCK_FDS_MAX];
    uint32_t count;
};
cairn_status cairn_sock_recv_fds(int fd, struct iovec *iov, uint32_t count, size_t *ret_len,
                                 struct cairn_sock_fds *ret_fds);
void cairn_sock_fds_close(struct cairn_sock_fds *fds);

/* false: the peer has closed its sending side or is gone. Looks, takes nothing. */
bool cairn_sock_alive(int fd);

/* Which process was at the other end of a unix socket when it connected. */
cairn_status cairn_sock_peer(int fd, pid_t *ret_pid, uid_t *ret_uid);
/* "127.0.0.1:40312" as Redis lists clients; "?" if it is gone, or not over TCP. Returns out. */
const char *cairn_sock_peer_name(int fd, char *out, size_t cap);
#endif
