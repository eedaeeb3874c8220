/* Addresses of nodes. Users and TLS are not there yet, so only what does not leave the machine is
 * one: unix sockets and the loopback addresses. */
#ifndef CAIRN_TRANSPORT_ADDR_H
#define CAIRN_TRANSPORT_ADDR_H

#include <netinet/in.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/un.h>

#include "base/types.h"

/* Characters of the text of any address, with the NUL. */
#define CAIRN_ADDR_TEXT_MAX 128u

struct cairn_addr {
    union {
        struct sockaddr any;
        struct sockaddr_un unix_path;
        struct sockaddr_in in4;
        struct sockaddr_in6 in6;
    } at;
    socklen_t len;
};

static inline bool cairn_addr_is_unix(const struct cairn_addr *a)
{
    return a->at.any.sa_family == AF_UNIX;
}

/* "unix:/path", "tcp://127.0.0.1:port", "tcp://[::1]:port", "tcp://localhost:port". On failure one
 * sentence in err: CAIRN_UNSUPPORTED for an address that is not of this machine, else
 * CAIRN_INVAL. */
cairn_status cairn_addr_parse(const char *text, struct cairn_addr *ret, char *err, size_t err_cap);
/* The same of parts, as options name them. Port 0 is any free one, for listening. */
cairn_status cairn_addr_unix(const char *path, struct cairn_addr *ret, char *err, size_t err_cap);
cairn_status cairn_addr_tcp(const char *host, uint16_t port, struct cairn_addr *ret, char *err,
                            size_t err_cap);
/* Text that cairn_addr_parse takes back; returns out. */
const char *cairn_addr_print(const struct cairn_addr *a, char *out, size_t cap);

#endif
