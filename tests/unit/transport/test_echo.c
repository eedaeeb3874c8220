/* Both ends together: a process that echoes requests, and one that pipelines them without waiting,
 * over real sockets. Every byte that comes back is checked. */
#include <criterion/criterion.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/helpers/seed.h"
#include "transport/out.h"
#include "transport/reply.h"
#include "transport/resp.h"
#include "transport/sock.h"

#define COMMANDS 1500u
#define ARGS_MAX 5u
#define SMALL 1000u
#define LONGEST 300000u
/* Replies that may wait at the server, and requests at the client. */
#define QUEUED_MAX (1u << 20)
#define PATIENCE_NS (60 * CAIRN_NS_PER_S)

/* Arguments of command number `id` follow from it. */
static uint32_t args_of(uint64_t id, size_t *len)
{
    struct rng r = {.state = id * 77 + 1};
    uint32_t count = 1 + (uint32_t)rng_below(&r, ARGS_MAX);
    for (uint32_t i = 0; i < count; i++)
        len[i] = rng_below(&r, rng_one_in(&r, 6) ? LONGEST : SMALL / 2);
    return count;
}

static bool is_refused(size_t len)
{
    return len > SMALL && len % 3 == 0;
}

/* --- the server --- */

struct echo {
    int fd;
    struct cairn_resp in;
    struct cairn_out out;
    void *memory[ARGS_MAX];
};

static void free_arg(void *memory, uint64_t token)
{
    (void)token;
    free(memory);
}

static void echo_request(struct echo *e)
{
    cairn_out_array(&e->out, e->in.argc);
    for (uint32_t i = 0; i < e->in.argc; i++) {
        const struct cairn_resp_arg *arg = &e->in.args[i];
        if (!arg->data) {
            cairn_out_null(&e->out);
        } else if (e->memory[i]) {
            cairn_out_bulk_head(&e->out, arg->len);
            cairn_out_ref(&e->out, arg->data, arg->len, free_arg, e->memory[i], 0);
            cairn_out_raw(&e->out, "\r\n", 2);
        } else {
            cairn_out_bulk(&e->out, arg->data, arg->len);
        }
        e->memory[i] = NULL;
    }
    cairn_resp_done(&e->in);
}

static bool echo_receive(struct echo *e)
{
    size_t room, n = 0;
    void *to = cairn_resp_space(&e->in, &room);
    cairn_status status = cairn_sock_recv(e->fd, &(struct iovec){to, room}, 1, &n);
    cairn_resp_filled(&e->in, n);
    if (status == CAIRN_INPROGRESS)
        status = cairn_sock_wait(e->fd, POLLIN, cairn_deadline_ns(PATIENCE_NS), NULL);
    return status == CAIRN_OK;
}

/* Sends what waits: all of it if the parser has nothing to do, else until it is not too much. */
static bool echo_send(struct echo *e, bool all)
{
    for (;;) {
        cairn_status status = cairn_out_send(&e->out, e->fd);
        bool enough = !all && e->out.queued < QUEUED_MAX;
        if (status == CAIRN_OK || (status == CAIRN_INPROGRESS && enough))
            return true;
        if (status != CAIRN_INPROGRESS)
            return false;
        if (cairn_sock_wait(e->fd, POLLOUT, cairn_deadline_ns(PATIENCE_NS), NULL) != CAIRN_OK)
            return false;
    }
}

/* Until the client has gone. */
static int echo_serve(int fd)
{
    static const struct cairn_resp_limits limits = {.args_max = ARGS_MAX,
                                                    .inline_max = 64,
                                                    .small_max = SMALL,
                                                    .bulk_max = LONGEST,
                                                    .request_max = 10 * SMALL};
    struct echo e = {.fd = fd};
    cairn_out_open(&e.out);
    bool going = cairn_resp_open(&e.in, &limits) == CAIRN_OK;
    while (going) {
        switch (cairn_resp_next(&e.in)) {
        case CAIRN_RESP_MORE: going = echo_send(&e, true) && echo_receive(&e); break;
        case CAIRN_RESP_REQUEST:
            echo_request(&e);
            going = echo_send(&e, false);
            break;
        case CAIRN_RESP_BULK:
            if (!is_refused(e.in.bulk_len))
                e.memory[e.in.argc] = malloc(e.in.bulk_len);
            cairn_resp_give(&e.in, e.memory[e.in.argc]);
            break;
        case CAIRN_RESP_ERROR: return 1;
        }
    }
    cairn_resp_close(&e.in);
    cairn_out_close(&e.out);
    for (uint32_t i = 0; i < ARGS_MAX; i++)
        free(e.memory[i]);
    return 0;
}

/* --- the client --- */

struct asker {
    int fd;
    struct cairn_out out;
    struct cairn_reply in;
    uint64_t asked, answered;
    uint32_t arg, args;   /* of the reply under way */
    size_t len[ARGS_MAX];
    char *value;          /* its bytes, when they come in pieces */
    struct iovec run[2];
};

static void ask(struct asker *a)
{
    size_t len[ARGS_MAX];
    uint64_t id = a->asked++;
    uint32_t count = args_of(id, len);
    cairn_out_array(&a->out, count);
    for (uint32_t i = 0; i < count; i++) {
        char *bytes = malloc(len[i] + 1);
        value_fill(bytes, id, i + 1, 0, len[i]);
        cairn_out_bulk_head(&a->out, len[i]);
        cairn_out_ref(&a->out, bytes, len[i], free_arg, bytes, 0);
        cairn_out_raw(&a->out, "\r\n", 2);
    }
}

static void argument_came(struct asker *a, const char *bytes)
{
    size_t len = a->len[a->arg];
    if (bytes)
        cr_assert_eq(value_check(bytes, a->answered, a->arg + 1, 0, len), len);
    else
        cr_assert(is_refused(len));
    a->arg++;
    a->answered += a->arg == a->args;
}

static void item_came(struct asker *a)
{
    const struct cairn_reply_item *item = &a->in.item;
    if (item->depth == 0) {
        a->arg = 0;
        a->args = args_of(a->answered, a->len);
        cr_assert(item->kind == CAIRN_REPLY_ARRAY && item->number == a->args);
        return;
    }
    cr_assert(item->kind == CAIRN_REPLY_NULL || item->len == a->len[a->arg]);
    cr_assert_eq(item->last, a->arg + 1 == a->args);
    if (item->kind == CAIRN_REPLY_NULL || item->text) {
        argument_came(a, item->text);
        return;
    }
    a->value = malloc(item->len);
    a->run[0] = (struct iovec){a->value, item->len / 3};
    a->run[1] = (struct iovec){a->value + item->len / 3, item->len - item->len / 3};
    cairn_reply_into(&a->in, a->run, 2);
}

static void answers_read(struct asker *a)
{
    enum cairn_reply_event e;
    while ((e = cairn_reply_next(&a->in)) != CAIRN_REPLY_MORE) {
        cr_assert_neq(e, CAIRN_REPLY_ERROR, "%s", a->in.error);
        if (e == CAIRN_REPLY_ITEM) {
            item_came(a);
        } else {
            argument_came(a, a->value);
            free(a->value);
            a->value = NULL;
        }
    }
}

static void asker_turn(struct asker *a)
{
    struct iovec iov[4];
    size_t n = 0;
    short events = 0;
    while (a->asked < COMMANDS && a->out.queued < QUEUED_MAX)
        ask(a);
    cr_assert_neq(cairn_out_send(&a->out, a->fd), CAIRN_IO);
    cr_assert_eq(cairn_sock_wait(a->fd, a->out.queued > 0 ? POLLIN | POLLOUT : POLLIN,
                                 cairn_deadline_ns(PATIENCE_NS), &events),
                 CAIRN_OK);
    if (!(events & POLLIN))
        return;
    uint32_t count = cairn_reply_space(&a->in, iov, 4);
    cairn_status status = cairn_sock_recv(a->fd, iov, count, &n);
    cr_assert_eq(status, CAIRN_OK);
    cairn_reply_filled(&a->in, n);
    answers_read(a);
}

static void asker_open(struct asker *a, const struct cairn_addr *addr)
{
    static const struct cairn_reply_limits limits = {
        .small_max = 5000, .count_max = ARGS_MAX, .bulk_max = LONGEST};
    char err[256];
    *a = (struct asker){0};
    cairn_out_open(&a->out);
    cairn_reply_open(&a->in, &limits);
    cr_assert_eq(cairn_sock_dial(addr, cairn_deadline_ns(PATIENCE_NS), &a->fd, err, sizeof(err)),
                 CAIRN_OK, "%s", err);
}

static void asker_close(struct asker *a)
{
    close(a->fd);
    cairn_out_close(&a->out);
    cairn_reply_close(&a->in);
    free(a->value);
}

static pid_t server_of(struct cairn_listener *l)
{
    struct cairn_addr addr;
    char err[256];
    int fd;
    cr_assert_eq(cairn_addr_tcp("127.0.0.1", 0, &addr, err, sizeof(err)), CAIRN_OK);
    cr_assert_eq(cairn_listener_open(l, &addr, err, sizeof(err)), CAIRN_OK, "%s", err);
    pid_t pid = fork();
    if (pid != 0)
        return pid;
    if (cairn_sock_wait(l->fd, POLLIN, cairn_deadline_ns(PATIENCE_NS), NULL) != CAIRN_OK ||
        cairn_listener_accept(l, &fd) != CAIRN_OK)
        _exit(2);
    _exit(echo_serve(fd));
}

Test(echo, pipelined_without_waiting)
{
    struct cairn_listener l;
    struct asker a;
    int status;
    pid_t pid = server_of(&l);
    asker_open(&a, &l.addr);
    while (a.answered < COMMANDS)
        asker_turn(&a);
    cr_assert(cairn_reply_idle(&a.in));
    cr_assert_eq(a.out.memory, 0);
    asker_close(&a);
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert_eq(status, 0);
    cairn_listener_close(&l);
}

Test(echo, a_client_that_goes_at_any_point)
{
    struct rng r = test_rng("echo");
    for (int round = 0; round < 20; round++) {
        struct cairn_listener l;
        struct asker a;
        int status;
        pid_t pid = server_of(&l);
        asker_open(&a, &l.addr);
        for (uint64_t turns = rng_below(&r, 200); turns > 0 && a.answered < COMMANDS; turns--)
            asker_turn(&a);
        asker_close(&a);
        cr_assert_eq(waitpid(pid, &status, 0), pid);
        cr_assert_eq(status, 0, "the server ends in peace");
        cairn_listener_close(&l);
    }
}

Test(echo, a_server_that_is_killed_at_any_point)
{
    struct rng r = test_rng("echo");
    for (int round = 0; round < 20; round++) {
        struct cairn_listener l;
        struct asker a;
        pid_t pid = server_of(&l);
        asker_open(&a, &l.addr);
        for (uint64_t turns = rng_below(&r, 200); turns > 0 && a.answered < COMMANDS; turns--)
            asker_turn(&a);
        kill(pid, SIGKILL);
        cr_assert_eq(waitpid(pid, NULL, 0), pid);
        /* It may have died before it accepted: the connection then ends with the listener. */
        cairn_listener_close(&l);
        cairn_status status = CAIRN_OK;
        char drain[65536];
        while (status != CAIRN_IO) {
            size_t n;
            cr_assert_eq(cairn_sock_wait(a.fd, POLLIN, cairn_deadline_ns(PATIENCE_NS), NULL),
                         CAIRN_OK, "its end is seen");
            status = cairn_sock_recv(a.fd, &(struct iovec){drain, sizeof(drain)}, 1, &n);
        }
        cr_assert(!cairn_sock_alive(a.fd));
        asker_close(&a);
    }
}
