/* Who watches the node: /metrics, /healthz and /debug/state over HTTP, loopback only, on one thread
 * of its own. Everything is bounded: connections, their memory, and their whole life, so that one
 * that dawdles cannot hold a place. Every answer closes its connection. */
#include <errno.h>
#include <microhttpd.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "tools/cairnd/node.h"
#include "transport/addr.h"

#define CONNECTIONS_MAX 32
#define CONNECTION_MEMORY 16384
#define CONNECTION_SECONDS 10
#define TEXT_MAX (32u << 20)

struct http {
    struct node *node;
    struct MHD_Daemon *daemon;
    pthread_t thread;
    int stop_fd;
    _Atomic bool stopping;
    /* The thread's: connections and when they came; fd -1 = a free place. */
    struct http_place {
        int fd;
        uint64_t since_ns;
    } place[CONNECTIONS_MAX];
    bool ended; /* a connection did, since the last MHD_run */
};

static const char index_text[] = "cairnd\n"
                                 "/metrics      Prometheus text\n"
                                 "/healthz      200 while values can be stored and read, else 503\n"
                                 "/debug/state  options, tiers, clients, leases, workers as JSON\n";

static enum MHD_Result answer(struct MHD_Connection *c, unsigned status, const char *type,
                              char *text, size_t len, enum MHD_ResponseMemoryMode mode)
{
    struct MHD_Response *r = MHD_create_response_from_buffer(len, text, mode);
    if (!r) {
        if (mode == MHD_RESPMEM_MUST_FREE)
            free(text);
        return MHD_NO;
    }
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE, type);
    MHD_add_response_header(r, MHD_HTTP_HEADER_CONNECTION, "close");
    MHD_add_response_header(r, "Cache-Control", "no-store");
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    if (status == MHD_HTTP_METHOD_NOT_ALLOWED)
        MHD_add_response_header(r, MHD_HTTP_HEADER_ALLOW, "GET, HEAD");
    enum MHD_Result done = MHD_queue_response(c, status, r);
    MHD_destroy_response(r);
    return done;
}

#define PLAIN "text/plain; charset=utf-8"

static enum MHD_Result answer_text(struct MHD_Connection *c, unsigned status, const char *text)
{
    char copy[512];
    int len = snprintf(copy, sizeof copy, "%s", text);
    return answer(c, status, PLAIN, copy, len < (int)sizeof copy ? (size_t)len : sizeof copy - 1,
                  MHD_RESPMEM_MUST_COPY);
}

static enum MHD_Result answer_report(struct http *h, struct MHD_Connection *c, const char *type,
                                     size_t (*report)(struct node *n, char *out, size_t cap))
{
    size_t cap = 65536;
    char *text = NULL;
    while (cap <= TEXT_MAX) {
        char *more = realloc(text, cap);
        if (!more)
            break;
        text = more;
        size_t need = report(h->node, text, cap);
        if (need < cap)
            return answer(c, MHD_HTTP_OK, type, text, need, MHD_RESPMEM_MUST_FREE);
        cap = need + need / 4;
    }
    free(text);
    return answer_text(c, MHD_HTTP_INTERNAL_SERVER_ERROR, "no memory for this text\n");
}

static enum MHD_Result answer_health(struct http *h, struct MHD_Connection *c)
{
    char why[256], text[260];
    if (report_health(h->node, why, sizeof why))
        return answer_text(c, MHD_HTTP_OK, "ok\n");
    snprintf(text, sizeof text, "%s\n", why);
    return answer_text(c, MHD_HTTP_SERVICE_UNAVAILABLE, text);
}

static enum MHD_Result handle(void *arg, struct MHD_Connection *c, const char *url,
                              const char *method, const char *version, const char *upload,
                              size_t *upload_len, void **state)
{
    struct http *h = arg;
    (void)version;
    (void)upload;
    (void)upload_len;
    (void)state;
    if (strcmp(method, MHD_HTTP_METHOD_GET) && strcmp(method, MHD_HTTP_METHOD_HEAD))
        return answer_text(c, MHD_HTTP_METHOD_NOT_ALLOWED, "only GET and HEAD are served here\n");
    if (!strcmp(url, "/metrics"))
        return answer_report(h, c, "text/plain; version=0.0.4; charset=utf-8", report_metrics);
    if (!strcmp(url, "/healthz"))
        return answer_health(h, c);
    if (!strcmp(url, "/debug/state"))
        return answer_report(h, c, "application/json", report_state_json);
    if (!strcmp(url, "/"))
        return answer_text(c, MHD_HTTP_OK, index_text);
    return answer_text(c, MHD_HTTP_NOT_FOUND, "not found: / lists what is here\n");
}

static void notice(void *arg, struct MHD_Connection *c, void **socket_context,
                   enum MHD_ConnectionNotificationCode what)
{
    struct http *h = arg;
    (void)socket_context;
    int fd = MHD_get_connection_info(c, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
    int want = what == MHD_CONNECTION_NOTIFY_STARTED ? -1 : fd;
    h->ended |= what == MHD_CONNECTION_NOTIFY_CLOSED;
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        if (h->place[i].fd != want)
            continue;
        h->place[i].fd = want == -1 ? fd : -1;
        h->place[i].since_ns = cairn_now_ns();
        return;
    }
}

/* libmicrohttpd ends connections that are silent, not those that drip. Returns milliseconds until
 * the next one is due, -1 without any. */
static int end_old(struct http *h)
{
    uint64_t now = cairn_now_ns(), life = CONNECTION_SECONDS * CAIRN_NS_PER_S, next = UINT64_MAX;
    for (int i = 0; i < CONNECTIONS_MAX; i++) {
        if (h->place[i].fd < 0)
            continue;
        uint64_t age = now - h->place[i].since_ns;
        if (age >= life)
            shutdown(h->place[i].fd, SHUT_RDWR);
        uint64_t left = age >= life ? CAIRN_NS_PER_S : life - age;
        if (left < next)
            next = left;
    }
    return next == UINT64_MAX ? -1 : (int)(next / CAIRN_NS_PER_MS) + 1;
}

static void *serve(void *arg)
{
    struct http *h = arg;
    int epoll_fd = MHD_get_daemon_info(h->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    while (!atomic_load(&h->stopping)) {
        int wait_ms = end_old(h);
        MHD_UNSIGNED_LONG_LONG due;
        if (MHD_get_timeout(h->daemon, &due) == MHD_YES && (wait_ms < 0 || due < (unsigned)wait_ms))
            wait_ms = (int)due;
        struct pollfd p[2] = {{.fd = epoll_fd, .events = POLLIN},
                              {.fd = h->stop_fd, .events = POLLIN}};
        poll(p, 2, wait_ms);
        /* With all places taken it stops listening, and listens again only in the run after the one
         * that freed a place: nothing else may ever wake this thread for it. */
        do {
            h->ended = false;
            MHD_run(h->daemon);
        } while (h->ended);
    }
    return NULL;
}

static struct MHD_Daemon *start_daemon(struct http *h, const struct cairn_addr *at)
{
    unsigned family = at->at.any.sa_family == AF_INET6 ? MHD_USE_IPv6 : 0;
    return MHD_start_daemon(
        MHD_USE_EPOLL | family, 0, NULL, NULL, handle, h,
        MHD_OPTION_SOCK_ADDR, &at->at.any,
        MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS_MAX,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY,
        MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)CONNECTION_SECONDS,
        MHD_OPTION_NOTIFY_CONNECTION, notice, h,
        MHD_OPTION_END);
}

static void destroy(struct http *h)
{
    if (h->daemon)
        MHD_stop_daemon(h->daemon);
    if (h->stop_fd >= 0)
        close(h->stop_fd);
    free(h);
}

cairn_status http_start(struct node *n, char *err, size_t err_cap)
{
    n->http = NULL;
    if (!n->o.http_port)
        return CAIRN_OK;
    struct cairn_addr at;
    cairn_status s = cairn_addr_tcp(n->o.bind, (uint16_t)n->o.http_port, &at, err, err_cap);
    if (s)
        return s;
    struct http *h = calloc(1, sizeof *h);
    if (!h)
        return CAIRN_NOMEM;
    h->node = n;
    for (int i = 0; i < CONNECTIONS_MAX; i++)
        h->place[i].fd = -1;
    h->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    errno = 0;
    h->daemon = h->stop_fd < 0 ? NULL : start_daemon(h, &at);
    if (!h->daemon || pthread_create(&h->thread, NULL, serve, h)) {
        snprintf(err, err_cap, "cannot serve HTTP on %s port %u: %s; give another --http-port, "
                 "or 0 for none", n->o.bind, (unsigned)n->o.http_port,
                 errno ? strerror(errno) : "no memory");
        destroy(h);
        return CAIRN_IO;
    }
    pthread_setname_np(h->thread, "cairnd-http");
    n->http = h;
    return CAIRN_OK;
}

void http_stop(struct node *n)
{
    struct http *h = n->http;
    if (!h)
        return;
    atomic_store(&h->stopping, true);
    eventfd_write(h->stop_fd, 1);
    pthread_join(h->thread, NULL);
    destroy(h);
    n->http = NULL;
}
