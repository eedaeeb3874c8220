#include "transport/addr.h"

#include <arpa/inet.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "transport/decimal.h"

#define HOST_MAX 64u

__attribute__((format(printf, 4, 5))) static cairn_status
refuse(cairn_status status, char *err, size_t err_cap, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(err, err_cap, fmt, args);
    va_end(args);
    return status;
}

cairn_status cairn_addr_unix(const char *path, struct cairn_addr *ret, char *err, size_t err_cap)
{
    struct cairn_addr a = {0};
    size_t len = strlen(path);
    if (path[0] != '/')
        return refuse(CAIRN_INVAL, err, err_cap,
                      "unix socket \"%s\": give an absolute path, such as /run/cairn/cairn.sock",
                      path);
    if (len >= sizeof(a.at.unix_path.sun_path))
        return refuse(CAIRN_INVAL, err, err_cap,
                      "unix socket \"%s\": the path has %zu bytes, at most %zu are possible", path,
                      len, sizeof(a.at.unix_path.sun_path) - 1);
    a.at.unix_path.sun_family = AF_UNIX;
    memcpy(a.at.unix_path.sun_path, path, len + 1);
    a.len = sizeof(a.at.unix_path);
    *ret = a;
    return CAIRN_OK;
}

static cairn_status not_loopback(const char *host, char *err, size_t err_cap)
{
    return refuse(CAIRN_UNSUPPORTED, err, err_cap,
                  "address \"%s\" is not of this machine alone: use 127.0.0.1, ::1 or a unix "
                  "socket; other machines need users and TLS, which are not there yet",
                  host);
}

cairn_status cairn_addr_tcp(const char *host, uint16_t port, struct cairn_addr *ret, char *err,
                            size_t err_cap)
{
    struct cairn_addr a = {0};
    const char *number = strcmp(host, "localhost") == 0 ? "127.0.0.1" : host;
    if (inet_pton(AF_INET, number, &a.at.in4.sin_addr) == 1) {
        if (ntohl(a.at.in4.sin_addr.s_addr) >> 24 != IN_LOOPBACKNET)
            return not_loopback(host, err, err_cap);
        a.at.in4.sin_family = AF_INET;
        a.at.in4.sin_port = htons(port);
        a.len = sizeof(a.at.in4);
    } else if (inet_pton(AF_INET6, number, &a.at.in6.sin6_addr) == 1) {
        if (!IN6_IS_ADDR_LOOPBACK(&a.at.in6.sin6_addr))
            return not_loopback(host, err, err_cap);
        a.at.in6.sin6_family = AF_INET6;
        a.at.in6.sin6_port = htons(port);
        a.len = sizeof(a.at.in6);
    } else {
        return not_loopback(host, err, err_cap);
    }
    *ret = a;
    return CAIRN_OK;
}

/* "host:port" or "[host]:port" */
static cairn_status tcp_parse(const char *text, const char *rest, struct cairn_addr *ret, char *err,
                              size_t err_cap)
{
    char host[HOST_MAX];
    bool bracket = rest[0] == '[';
    const char *host_end = bracket ? strchr(rest, ']') : strrchr(rest, ':');
    const char *first = rest + bracket;
    const char *colon = host_end ? host_end + bracket : NULL;
    int64_t port;
    if (!colon || *colon != ':' || host_end == first ||
        !cairn_decimal_read(colon + 1, strlen(colon + 1), &port) || port < 1 || port > UINT16_MAX)
        return refuse(CAIRN_INVAL, err, err_cap,
                      "address \"%s\": write tcp://127.0.0.1:port or tcp://[::1]:port with a port "
                      "of 1 to 65535",
                      text);
    if ((size_t)(host_end - first) >= sizeof(host))
        return not_loopback(text, err, err_cap);
    memcpy(host, first, (size_t)(host_end - first));
    host[host_end - first] = '\0';
    return cairn_addr_tcp(host, (uint16_t)port, ret, err, err_cap);
}

cairn_status cairn_addr_parse(const char *text, struct cairn_addr *ret, char *err, size_t err_cap)
{
    static const char unix_scheme[] = "unix:", tcp_scheme[] = "tcp://";
    if (strncmp(text, unix_scheme, sizeof(unix_scheme) - 1) == 0)
        return cairn_addr_unix(text + sizeof(unix_scheme) - 1, ret, err, err_cap);
    if (strncmp(text, tcp_scheme, sizeof(tcp_scheme) - 1) == 0)
        return tcp_parse(text, text + sizeof(tcp_scheme) - 1, ret, err, err_cap);
    return refuse(CAIRN_INVAL, err, err_cap,
                  "address \"%s\": write unix:/path or tcp://127.0.0.1:port", text);
}

const char *cairn_addr_print(const struct cairn_addr *a, char *out, size_t cap)
{
    char host[INET6_ADDRSTRLEN] = "";
    switch (a->at.any.sa_family) {
    case AF_UNIX:
        snprintf(out, cap, "unix:%s", a->at.unix_path.sun_path);
        break;
    case AF_INET:
        inet_ntop(AF_INET, &a->at.in4.sin_addr, host, sizeof(host));
        snprintf(out, cap, "tcp://%s:%u", host, ntohs(a->at.in4.sin_port));
        break;
    default:
        inet_ntop(AF_INET6, &a->at.in6.sin6_addr, host, sizeof(host));
        snprintf(out, cap, "tcp://[%s]:%u", host, ntohs(a->at.in6.sin6_port));
    }
    return out;
}
