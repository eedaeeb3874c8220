#include "connector/remote_conn.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/mem.h"
#include "transport/sock.h"

/* An awake node answers small things in less; a sleep and a wake-up cost more than that. */
#define SPIN_NS 30000u
#define RUNS 16u
#define ANSWER_MARGIN 8u /* the node is given 7/8 of the time */

static const struct cairn_reply_limits limits = {
    .small_max = 4096,
    .count_max = 1u << 20,
    .bulk_max = CAIRN_VALUE_MAX,
};

/* --- patience --- */

/* Until when the next sign of the node is waited for. */
static uint64_t patience(const struct remote_conn *c)
{
    uint64_t silent = c->progress_ns + c->o->timeout_ns;
    return c->opened && silent < c->deadline_ns ? silent : c->deadline_ns;
}

uint64_t conn_wire_timeout(const struct remote_conn *c)
{
    uint64_t now = cairn_now_ns(), left = c->deadline_ns > now ? c->deadline_ns - now : 0;
    left = left < c->o->timeout_ns ? left : c->o->timeout_ns;
    uint64_t ms = (left - left / ANSWER_MARGIN) / CAIRN_NS_PER_MS;
    return ms ? ms : 1;
}

/* --- writing --- */

static bool send_some(struct remote_conn *c, const struct iovec *iov, uint32_t count, size_t *ret)
{
    struct msghdr m = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = count};
    ssize_t n;
    do {
        n = sendmsg(c->fd, &m, MSG_NOSIGNAL | MSG_DONTWAIT);
    } while (n < 0 && errno == EINTR);
    *ret = n > 0 ? (size_t)n : 0;
    return n >= 0 || errno == EAGAIN || errno == EWOULDBLOCK;
}

static void written(struct remote_conn *c)
{
    c->text_len = 0;
    c->iov_count = 0;
}

/* Sends what is written, waiting for the socket or not. After a failure nothing more is sent:
 * half a command may be out. */
static cairn_status send_all(struct remote_conn *c, bool wait)
{
    struct iovec *iov = c->iov;
    uint32_t count = c->iov_count;
    cairn_status st = c->send_failed;
    while (count && !st) {
        size_t sent;
        if (!send_some(c, iov, count, &sent)) {
            st = CAIRN_IO;
        } else if (sent == 0) {
            st = wait ? cairn_sock_wait(c->fd, POLLOUT, patience(c), NULL) : CAIRN_TIMEOUT;
        } else {
            c->progress_ns = wait ? cairn_now_ns() : c->progress_ns;
            while (count && sent >= iov->iov_len) {
                sent -= iov->iov_len;
                iov++;
                count--;
            }
            if (count) {
                iov->iov_base = (char *)iov->iov_base + sent;
                iov->iov_len -= sent;
            }
        }
    }
    c->send_failed = st;
    written(c);
    return st;
}

cairn_status conn_flush(struct remote_conn *c)
{
    return send_all(c, true);
}

bool conn_flush_now(struct remote_conn *c)
{
    return send_all(c, false) == CAIRN_OK;
}

void conn_forget(struct remote_conn *c)
{
    if (c->iov_count && !c->send_failed)
        c->send_failed = CAIRN_CANCELED;
    written(c);
}

/* Text goes to the end of the last run if that is text too. */
static void text_add(struct remote_conn *c, const void *data, size_t len)
{
    while (len) {
        if (c->text_len == CONN_TEXT_BYTES || c->iov_count == CONN_IOVS)
            (void)send_all(c, true);
        size_t n = CONN_TEXT_BYTES - c->text_len;
        n = n < len ? n : len;
        char *at = c->text + c->text_len;
        memcpy(at, data, n);
        struct iovec *last = c->iov_count ? &c->iov[c->iov_count - 1] : NULL;
        if (last && (char *)last->iov_base + last->iov_len == at)
            last->iov_len += n;
        else
            c->iov[c->iov_count++] = (struct iovec){at, n};
        c->text_len += n;
        data = (const char *)data + n;
        len -= n;
    }
}

void conn_part(struct remote_conn *c, const void *data, size_t len)
{
    if (len == 0)
        return;
    if (c->iov_count == CONN_IOVS)
        (void)send_all(c, true);
    c->iov[c->iov_count++] = (struct iovec){(void *)(uintptr_t)data, len};
}

void conn_part_head(struct remote_conn *c, uint64_t len)
{
    char head[32];
    text_add(c, head, (size_t)snprintf(head, sizeof head, "$%" PRIu64 "\r\n", len));
}

void conn_part_end(struct remote_conn *c)
{
    text_add(c, "\r\n", 2);
}

void conn_bytes(struct remote_conn *c, const void *data, size_t len)
{
    conn_part_head(c, len);
    text_add(c, data, len);
    conn_part_end(c);
}

void conn_ref(struct remote_conn *c, const void *data, size_t len)
{
    conn_part_head(c, len);
    conn_part(c, data, len);
    conn_part_end(c);
}

void conn_number(struct remote_conn *c, uint64_t n)
{
    char digits[24];
    conn_bytes(c, digits, (size_t)snprintf(digits, sizeof digits, "%" PRIu64, n));
}

uint64_t conn_command(struct remote_conn *c, const char *name, uint32_t arguments)
{
    char head[32];
    text_add(c, head, (size_t)snprintf(head, sizeof head, "*%u\r\n", arguments + 1));
    conn_bytes(c, name, strlen(name));
    return c->asked++;
}

void conn_release(struct remote_conn *c, uint64_t lease)
{
    conn_command(c, "CAIRN.RELEASE", 1);
    conn_number(c, lease);
    c->unheard[c->unheard_next++ % CONN_UNHEARD] = lease;
}

/* --- reading --- */

/* Descriptors that come with the bytes go to `fds`, if it is not NULL. */
static cairn_status receive(struct remote_conn *c, struct cairn_sock_fds *fds)
{
    struct iovec iov[RUNS];
    struct cairn_sock_fds came = {.count = 0};
    uint64_t begin = 0;
    size_t len;
    uint32_t n = cairn_reply_space(&c->in, iov, RUNS);
    if (n == 0)
        return CAIRN_NOMEM;
    for (;;) {
        cairn_status st = fds ? cairn_sock_recv_fds(c->fd, iov, n, &len, &came)
                              : cairn_sock_recv(c->fd, iov, n, &len);
        uint64_t now = cairn_now_ns();
        if (st == CAIRN_OK) {
            c->progress_ns = now;
            cairn_reply_filled(&c->in, len);
            if (came.count)
                *fds = came;
            return CAIRN_OK;
        }
        if (st != CAIRN_INPROGRESS)
            return st;
        begin = begin ? begin : now;
        if (now - begin < SPIN_NS && now < patience(c))
            continue;
        st = cairn_sock_wait(c->fd, POLLIN, patience(c), NULL);
        if (st)
            return st;
    }
}

static void string_ended(struct remote_conn *c)
{
    c->answered += c->ending;
    c->ending = false;
}

/* The next element. Bytes of a string that nobody took are read past. */
static cairn_status next_item(struct remote_conn *c, struct cairn_sock_fds *fds)
{
    if (c->peeked) {
        c->peeked = false;
        return CAIRN_OK;
    }
    for (;;) {
        cairn_status st;
        switch (cairn_reply_next(&c->in)) {
        case CAIRN_REPLY_MORE:
            st = receive(c, fds);
            if (st)
                return st;
            break;
        case CAIRN_REPLY_FILLED:
            string_ended(c);
            break;
        case CAIRN_REPLY_ITEM:
            if (c->in.item.kind == CAIRN_REPLY_ATTRIBUTE)
                break;
            c->ending = c->in.item.last && c->in.item.kind == CAIRN_REPLY_STRING &&
                        !c->in.item.text;
            c->answered += c->in.item.last && !c->ending;
            return CAIRN_OK;
        case CAIRN_REPLY_ERROR:
            cairn_log(CAIRN_LOG_WARN, "%s: no answer of a node: %s", c->o->address, c->in.error);
            return CAIRN_CORRUPT;
        }
    }
}

/* The rest of a string that nobody took: the answer ends with it, and not one byte further. */
static cairn_status string_skip(struct remote_conn *c, struct cairn_sock_fds *fds)
{
    switch (cairn_reply_next(&c->in)) {
    case CAIRN_REPLY_FILLED:
        string_ended(c);
        return CAIRN_OK;
    case CAIRN_REPLY_MORE:
        return receive(c, fds);
    default:
        return CAIRN_CORRUPT;
    }
}

/* Descriptors come with the first byte of an answer: all that is read up to it may bring them. */
static cairn_status await(struct remote_conn *c, uint64_t ticket, struct cairn_sock_fds *fds)
{
    cairn_status st = c->iov_count || c->send_failed ? conn_flush(c) : CAIRN_OK;
    /* A node that takes no client says why, and closes before it has read a word. */
    if (st == CAIRN_IO && !c->opened)
        st = CAIRN_OK;
    while (!st && c->answered < ticket)
        st = c->ending ? string_skip(c, fds) : next_item(c, fds);
    if (!st)
        st = next_item(c, fds);
    if (st)
        return st;
    const struct cairn_reply_item *i = &c->in.item;
    if (i->kind == CAIRN_REPLY_FAILURE) {
        /* Before that whoever opens it says what was refused, not at each try. */
        if (c->opened)
            cairn_log(CAIRN_LOG_WARN, "%s: %.*s", c->o->address, (int)i->len, i->text);
        return CAIRN_BUSY;
    }
    c->peeked = true;
    return CAIRN_OK;
}

cairn_status conn_await(struct remote_conn *c, uint64_t ticket)
{
    return await(c, ticket, NULL);
}

cairn_status conn_int(struct remote_conn *c, int64_t *ret)
{
    cairn_status st = next_item(c, NULL);
    if (!st && c->in.item.kind != CAIRN_REPLY_INT && c->in.item.kind != CAIRN_REPLY_BOOL)
        st = CAIRN_CORRUPT;
    if (!st)
        *ret = c->in.item.number;
    return st;
}

cairn_status conn_array(struct remote_conn *c, uint64_t *ret_count)
{
    cairn_status st = next_item(c, NULL);
    const struct cairn_reply_item *i = &c->in.item;
    if (!st && i->kind != CAIRN_REPLY_ARRAY && i->kind != CAIRN_REPLY_MAP)
        st = CAIRN_CORRUPT;
    if (!st)
        *ret_count = (uint64_t)i->number * (i->kind == CAIRN_REPLY_MAP ? 2 : 1);
    return st;
}

cairn_status conn_string_head(struct remote_conn *c, uint64_t *ret_len)
{
    c->in.straight = true;
    cairn_status st = next_item(c, NULL);
    c->in.straight = false;
    if (st)
        return st;
    c->lent = c->in.item.text;
    *ret_len = c->in.item.len;
    if (c->in.item.kind == CAIRN_REPLY_NULL)
        *ret_len = CONN_NULL;
    return c->in.item.kind == CAIRN_REPLY_STRING || *ret_len == CONN_NULL ? CAIRN_OK
                                                                         : CAIRN_CORRUPT;
}

/* The string was looked at before, and lies in the buffer. */
static void part_lent(struct remote_conn *c, const struct iovec *iov, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        memcpy(iov[i].iov_base, c->lent, iov[i].iov_len);
        c->lent += iov[i].iov_len;
    }
}

cairn_status conn_string_part(struct remote_conn *c, const struct iovec *iov, uint32_t count)
{
    if (c->lent) {
        part_lent(c, iov, count);
        return CAIRN_OK;
    }
    cairn_reply_into(&c->in, iov, count);
    for (;;) {
        cairn_status st;
        switch (cairn_reply_next(&c->in)) {
        case CAIRN_REPLY_FILLED:
            if (c->in.string_left == 0)
                string_ended(c);
            return CAIRN_OK;
        case CAIRN_REPLY_MORE:
            st = receive(c, NULL);
            if (st)
                return st;
            break;
        default:
            return CAIRN_CORRUPT;
        }
    }
}

cairn_status conn_string(struct remote_conn *c, void *out, size_t cap, uint64_t *ret_len)
{
    cairn_status st = next_item(c, NULL);
    const struct cairn_reply_item *i = &c->in.item;
    if (st)
        return st;
    if (i->kind == CAIRN_REPLY_NULL) {
        *ret_len = CONN_NULL;
        return CAIRN_OK;
    }
    if ((i->kind != CAIRN_REPLY_STRING && i->kind != CAIRN_REPLY_SIMPLE) || i->len > cap)
        return CAIRN_CORRUPT;
    *ret_len = i->len;
    c->lent = i->text;
    struct iovec run = {out, i->len};
    return conn_string_part(c, &run, 1);
}

/* --- opening --- */

static bool is(const char *text, uint64_t len, const char *word)
{
    return len == strlen(word) && memcmp(text, word, len) == 0;
}

/* One pair of the answer to CAIRN.HELLO. */
static cairn_status hello_pair(struct remote_conn *c, bool *shared)
{
    char name[64];
    uint64_t len;
    int64_t number = 0;
    cairn_status st = conn_string(c, name, sizeof name, &len);
    if (st)
        return st;
    if (is(name, len, "run_id")) {
        st = conn_string(c, c->hello.run_id, sizeof c->hello.run_id - 1, &len);
        if (!st && len == CONN_NULL)
            st = CAIRN_CORRUPT;
        if (!st)
            c->hello.run_id[len] = '\0';
        return st;
    }
    if (is(name, len, "value_max") || is(name, len, "shared")) {
        st = conn_int(c, &number);
        if (is(name, len, "shared"))
            *shared = number != 0;
        else
            c->hello.value_max = (uint64_t)number;
        return st;
    }
    return next_item(c, NULL);
}

static cairn_status hello(struct remote_conn *c, bool *shared, char *err, size_t cap)
{
    uint64_t count = 0;
    uint64_t ticket = conn_command(c, "CAIRN.HELLO", 3);
    conn_number(c, CAIRN_WIRE_VERSION);
    conn_bytes(c, "TENANT", 6);
    conn_bytes(c, c->o->tenant, strlen(c->o->tenant));
    cairn_status st = conn_await(c, ticket);
    if (st == CAIRN_BUSY) {
        snprintf(err, cap, "%s: the node refuses: %.*s", c->o->address, (int)c->in.item.len,
                 c->in.item.text);
        return CAIRN_UNSUPPORTED;
    }
    if (!st)
        st = conn_array(c, &count);
    for (uint64_t i = 0; i < count / 2 && !st; i++)
        st = hello_pair(c, shared);
    if (!st && (c->hello.value_max == 0 || c->hello.value_max > CAIRN_VALUE_MAX))
        st = CAIRN_CORRUPT;
    if (st)
        snprintf(err, cap, "%s: %s", c->o->address,
                 st == CAIRN_TIMEOUT ? "the node does not answer" : "no Cairn node answers there");
    return st;
}

static cairn_status attach_map(struct remote_conn *c, const struct cairn_sock_fds *fds,
                               int64_t arena, char *err, size_t cap)
{
    const char *why = "it sent no descriptor of its memory";
    if (fds->count == 1)
        c->arena = remote_arena_get(c->arenas, fds->fd[0], (uint64_t)arena, &why);
    if (c->arena)
        return CAIRN_OK;
    snprintf(err, cap, "%s: the node's memory cannot be used: %s", c->o->address, why);
    return CAIRN_CORRUPT;
}

/* Without a window: that takes the node longer than all else, and who only reads needs none. */
static cairn_status attach(struct remote_conn *c, char *err, size_t cap)
{
    struct cairn_sock_fds fds = {.count = 0};
    uint64_t count;
    int64_t arena = 0, window = 0;
    uint64_t ticket = conn_command(c, "CAIRN.ATTACH", 1);
    conn_number(c, 0);
    cairn_status st = await(c, ticket, &fds);
    if (st == CAIRN_BUSY) {
        cairn_log(CAIRN_LOG_WARN, "%s: not attached, bytes go through the socket: %.*s",
                  c->o->address, (int)c->in.item.len, c->in.item.text);
        cairn_sock_fds_close(&fds);
        return CAIRN_OK;
    }
    if (!st)
        st = conn_array(c, &count);
    if (!st)
        st = count == 2 ? conn_int(c, &arena) : CAIRN_CORRUPT;
    if (!st)
        st = conn_int(c, &window);
    if (!st)
        st = attach_map(c, &fds, arena, err, cap);
    else
        snprintf(err, cap, "%s: the node %s while this client attached", c->o->address,
                 st == CAIRN_TIMEOUT ? "fell silent" : "went away");
    cairn_sock_fds_close(&fds);
    return st;
}

cairn_status conn_window(struct remote_conn *c)
{
    struct cairn_sock_fds fds = {.count = 0};
    int64_t len = 0;
    if (!c->arena || !c->o->window || c->window_asked)
        return CAIRN_OK;
    c->window_asked = true;
    uint64_t ticket = conn_command(c, "CAIRN.WINDOW", 1);
    conn_number(c, c->o->window);
    cairn_status st = await(c, ticket, &fds);
    if (!st)
        st = conn_int(c, &len);
    if (!st && len > 0) {
        c->window = fds.count == 1 ? remote_window_map(fds.fd[0], (uint64_t)len) : NULL;
        c->window_len = c->window ? (uint64_t)len : 0;
        if (!c->window)
            cairn_log(CAIRN_LOG_WARN, "%s: the window cannot be mapped, values go through the "
                      "socket", c->o->address);
    }
    cairn_sock_fds_close(&fds);
    return st == CAIRN_BUSY ? CAIRN_OK : st;
}

cairn_status conn_open(const struct remote_options *o, struct remote_arenas *arenas,
                       uint64_t deadline_ns, struct remote_conn **ret, char *err, size_t err_cap)
{
    struct remote_conn *c = cairn_calloc(1, sizeof *c);
    bool shared = false;
    if (!c || !(c->scratch = cairn_malloc(CAIRN_PIECE_BYTES))) {
        free(c);
        return CAIRN_NOMEM;
    }
    c->o = o;
    c->arenas = arenas;
    c->deadline_ns = deadline_ns;
    c->progress_ns = cairn_now_ns();
    cairn_reply_open(&c->in, &limits);
    cairn_status st = cairn_sock_dial(&o->addr, deadline_ns, &c->fd, err, err_cap);
    if (st) {
        free(c->scratch);
        free(c);
        return st;
    }
    cairn_fork_drop(c->fd);
    st = hello(c, &shared, err, err_cap);
    if (!st && shared && o->attach)
        st = attach(c, err, err_cap);
    if (st) {
        conn_close(c, true);
        return st;
    }
    c->opened = true;
    *ret = c;
    return CAIRN_OK;
}

void conn_close_socket(int fd)
{
    cairn_fork_forget(fd);
    close(fd);
}

void conn_close(struct remote_conn *c, bool socket_too)
{
    if (socket_too)
        conn_close_socket(c->fd);
    if (c->window)
        remote_window_unmap(c->window, c->window_len);
    remote_arena_put(c->arenas, c->arena);
    cairn_reply_close(&c->in);
    free(c->scratch);
    free(c);
}
