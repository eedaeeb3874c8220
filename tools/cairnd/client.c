#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "tools/cairnd/connection.h"
#include "tools/cairnd/kv_share.h"

/* One client's share of a turn; then the others have theirs. */
#define TURN_COMMANDS 256u
#define TURN_BYTES (8u << 20)
#define TURN_NS (2 * CAIRN_NS_PER_MS)
/* Full arenas free themselves within a write or two; beyond this the argument goes elsewhere. */
#define ROOM_WAIT_NS (20 * CAIRN_NS_PER_MS)
#define ROOM_AGAIN_NS CAIRN_NS_PER_MS
/* An input buffer that no limit looks at. */
#define INPUT_USUAL (256u * 1024u)
/* A long argument may take this long on top of the stall timeout: 1 MiB/s. */
#define REQUEST_NS_A_BYTE 954u

#define OOM "OOM command not allowed when used memory > 'maxmemory'."

/* --- memory --- */

static void count(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static void memory_change(struct client *c, uint64_t difference)
{
    count(&c->memory, difference);
    count(&c->node->clients_memory, difference);
}

bool client_charge(struct client *c, size_t more)
{
    const struct node_options *o = &c->node->o;
    uint64_t mine = atomic_fetch_add_explicit(&c->memory, more, memory_order_relaxed);
    uint64_t all = atomic_fetch_add_explicit(&c->node->clients_memory, more, memory_order_relaxed);
    if (mine + more <= node_live(&o->client_memory) && all + more <= node_live(&o->clients_memory))
        return true;
    memory_change(c, 0 - (uint64_t)more);
    return false;
}

void client_discharge(struct client *c, size_t less)
{
    memory_change(c, 0 - (uint64_t)less);
}

/* Counts anew what input and output hold. */
static void own_update(struct connection *k)
{
    uint64_t own = cairn_resp_memory(&k->c.in) + k->c.out.memory;
    if (own != k->own)
        memory_change(&k->c, own - k->own);
    k->own = own;
}

/* Its input has grown beyond what one may hold, or it is one of the large ones while all together
 * hold too much. */
static bool input_too_large(const struct connection *k)
{
    const struct node *n = k->c.node;
    size_t held = cairn_resp_memory(&k->c.in);
    if (held <= INPUT_USUAL)
        return false;
    return held > node_live(&n->o.client_memory) ||
           atomic_load_explicit(&n->clients_memory, memory_order_relaxed) >
               node_live(&n->o.clients_memory);
}

/* Requests that are not whole yet may hold a quarter of the arena: with what leases and replies pin
 * that leaves enough for everybody's puts, however slowly the bytes come. */
static bool receiving_enter(struct connection *k)
{
    struct node *n = k->c.node;
    uint64_t len = k->c.in.bulk_len;
    uint64_t others = atomic_fetch_add_explicit(&n->receiving, len, memory_order_relaxed);
    k->receiving = len;
    return others == 0 || others + len <= n->o.ram / 4;
}

static void receiving_leave(struct connection *k)
{
    if (k->receiving)
        atomic_fetch_sub_explicit(&k->c.node->receiving, k->receiving, memory_order_relaxed);
    k->receiving = 0;
}

static void blocks_free(struct connection *k)
{
    while (k->blocks) {
        struct block *b = k->blocks;
        k->blocks = b->next;
        client_discharge(&k->c, sizeof *b + b->len);
        free(b);
    }
}

static void *block_take(struct connection *k, size_t len)
{
    if (!client_charge(&k->c, sizeof(struct block) + len))
        return NULL;
    struct block *b = cairn_malloc(sizeof *b + len);
    if (!b) {
        client_discharge(&k->c, sizeof *b + len);
        return NULL;
    }
    b->len = len;
    b->next = k->blocks;
    k->blocks = b;
    return b->data;
}

/* What the arguments of a request were received into. */
static void arguments_free(struct connection *k)
{
    if (k->c.room.value)
        cairn_vault_room_drop(k->c.node->vault, &k->c.room);
    k->c.room.value = NULL;
    receiving_leave(k);
    if (k->blocks)
        blocks_free(k);
}

/* --- birth and death --- */

static void list_enter(struct client *c)
{
    struct node *n = c->node;
    pthread_mutex_lock(&n->clients_lock);
    c->id = ++n->client_last_id;
    c->prev = NULL;
    c->next = n->clients;
    if (c->next)
        c->next->prev = c;
    n->clients = c;
    pthread_mutex_unlock(&n->clients_lock);
}

static void list_leave(struct client *c)
{
    struct node *n = c->node;
    pthread_mutex_lock(&n->clients_lock);
    if (c->prev)
        c->prev->next = c->next;
    else
        n->clients = c->next;
    if (c->next)
        c->next->prev = c->prev;
    n->client_count--;
    pthread_mutex_unlock(&n->clients_lock);
}

static bool watch(struct connection *k, uint32_t events)
{
    struct epoll_event e = {.events = events, .data.ptr = k};
    int op = !events ? EPOLL_CTL_DEL : k->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    if (events == k->events)
        return true;
    k->events = events;
    return epoll_ctl(k->c.thread->epoll, op, k->c.fd, &e) == 0;
}

/* Nobody uses it any more. */
static void connection_free(struct connection *k)
{
    struct net_thread *t = k->c.thread;
    if (k->prev)
        k->prev->next = k->next;
    else
        t->all = k->next;
    if (k->next)
        k->next->prev = k->prev;
    t->count--;
    arguments_free(k);
    /* A reply that came after the end has its references too. */
    cairn_out_close(&k->c.out);
    cairn_out_close(&k->call_out);
    memory_change(&k->c, 0 - k->own);
    kv_client_gone(&k->c, k->reset);
    cairn_resp_close(&k->c.in);
    net_bury(k);
}

static void connection_close(struct connection *k)
{
    if (k->dead)
        return;
    list_leave(&k->c);
    timer_cancel(&k->c.thread->timers, &k->timer);
    bulk_leave(&k->c.thread->bulk, &k->bulk);
    close(k->c.fd);
    k->c.fd = -1;
    k->events = 0;
    cairn_out_close(&k->c.out);
    k->dead = true;
    if (!k->on_worker)
        connection_free(k);
}

static cairn_status connection_prepare(struct connection *k)
{
    struct net_thread *t = k->c.thread;
    cairn_status st = timers_reserve(&t->timers, t->count + 1);
    if (!st)
        st = cairn_resp_open(&k->c.in, &k->c.node->limits);
    return st;
}

void connection_open(struct net_thread *t, const struct arrival *a)
{
    struct node *n = t->node;
    struct connection *k = cairn_calloc(1, sizeof *k);
    if (k) {
        k->c.node = n;
        k->c.thread = t;
        k->c.fd = a->fd;
    }
    if (!k || connection_prepare(k)) {
        free(k);
        close(a->fd);
        pthread_mutex_lock(&n->clients_lock);
        n->client_count--;
        pthread_mutex_unlock(&n->clients_lock);
        return;
    }
    k->c.local = k->c.shared_ok = a->local;
    k->c.pid = a->pid;
    memcpy(k->c.address, a->address, sizeof k->c.address);
    k->c.since_ns = cairn_now_ns();
    atomic_store_explicit(&k->c.active_ns, k->c.since_ns, memory_order_relaxed);
    cairn_out_open(&k->c.out);
    k->c.out.proto = 2;
    cairn_out_open(&k->call_out);
    atomic_store_explicit(&k->proto_seen, 2, memory_order_relaxed);
    own_update(k);
    k->next = t->all;
    if (k->next)
        k->next->prev = k;
    t->all = k;
    t->count++;
    list_enter(&k->c);
    count(&n->stats.connections, 1);
    timer_set(&t->timers, &k->timer, k->c.since_ns + node_live(&n->o.stall_ns));
    if (!watch(k, EPOLLIN))
        connection_close(k);
}

/* --- commands --- */

/* The request is over: gives back what it was received into. */
static void request_end(struct connection *k)
{
    arguments_free(k);
    k->refused = false;
    k->request_len = 0;
    k->request_since_ns = 0;
    cairn_resp_done(&k->c.in);
}

/* It is answered, on whichever thread. */
static void call_measure(struct connection *k, uint64_t since_ns, uint64_t now_ns)
{
    struct node_stats *s = &k->c.node->stats;
    uint32_t number = command_number(k->call.command);
    cairn_hist_add(&s->command_ns, now_ns - since_ns);
    count(&s->command[number].calls, 1);
    if (k->call.out->errors == k->errors_before)
        return;
    count(&s->command[number].errors, 1);
    count(&s->errors, 1);
}

static void on_worker(void *arg)
{
    struct connection *k = arg;
    if (k->call.command->run(&k->call) == CALL_WAITS)
        call_error(&k->call, "ERR the command could not be finished");
    call_measure(k, k->call_since_ns, cairn_now_ns());
    net_call_ended(k);
}

static void call_submit(struct connection *k)
{
    struct node *n = k->c.node;
    k->call_out.proto = k->c.out.proto;
    k->call.out = &k->call_out;
    k->errors_before = k->call_out.errors;
    k->call.may_wait = true;
    k->call_since_ns = cairn_now_ns();
    k->call.deadline_ns = k->call_since_ns + node_live(&n->o.io_timeout_ns);
    k->clock_ns = 0;
    k->on_worker = true;
    atomic_store_explicit(&k->call_ended, false, memory_order_relaxed);
    count(&n->stats.slow_commands, 1);
    if (work_submit(n, k->call.command->flags & COMMAND_LONG, on_worker, k))
        return;
    k->on_worker = false;
    k->call.out = &k->c.out;
    k->errors_before = k->c.out.errors;
    call_error(&k->call, "BUSY too many commands wait for the disk; try again");
    call_measure(k, k->call_since_ns, cairn_now_ns());
    request_end(k);
}

static void call_collect(struct connection *k)
{
    k->on_worker = false;
    if (k->call_out.failed)
        k->broken = true;
    cairn_out_append(&k->c.out, &k->call_out);
    kv_client_answered(&k->c);
    request_end(k);
}

/* What stands against running it, answered; true = answered. */
static bool call_refused(struct connection *k, const struct command *command)
{
    struct call *call = &k->call;
    if (k->refused && !(command && (command->flags & COMMAND_REFUSED))) {
        count(&k->c.node->stats.no_room, 1);
        call_error(call, OOM);
    } else if (!command) {
        command_unknown(call);
    } else if (command->arity > 0 ? (int)call->argc != command->arity
                                  : (int)call->argc < -command->arity) {
        call_arity(call);
    } else if ((command->flags & COMMAND_LOCAL) && !k->c.local) {
        call_error(call, "ERR this command works on the unix socket only");
    } else {
        return false;
    }
    return true;
}

static void execute(struct connection *k)
{
    struct client *c = &k->c;
    struct node *n = c->node;
    uint64_t since = k->clock_ns ? k->clock_ns : cairn_now_ns();
    const struct command *command = NULL;
    k->greeted = true;
    k->call = (struct call){.client = c, .node = n, .args = c->in.args, .argc = c->in.argc,
                            .out = &c->out};
    if (c->in.args[0].data)
        command = command_find(c->in.args[0].data, c->in.args[0].len);
    k->call.command = command;
    k->errors_before = c->out.errors;
    atomic_store_explicit(&c->command, command, memory_order_relaxed);
    atomic_store_explicit(&c->active_ns, since, memory_order_relaxed);
    count(&n->stats.commands, 1);
    if (!call_refused(k, command) && command->run(&k->call) == CALL_WAITS) {
        call_submit(k);
        return;
    }
    kv_client_answered(c);
    request_end(k);
    k->clock_ns = cairn_now_ns();
    call_measure(k, since, k->clock_ns);
}

/* --- long arguments --- */

/* In the arena, if it is the payload of its command: what is received there is stored already. */
static cairn_status room_take(struct connection *k)
{
    struct client *c = &k->c;
    const struct cairn_resp_arg *args = c->in.args;
    const struct command *command = NULL;
    if (c->in.argc && args[0].data)
        command = command_find(args[0].data, args[0].len);
    if (!command || !(command->flags & COMMAND_PAYLOAD) || c->in.argc != command->payload)
        return CAIRN_UNSUPPORTED;
    size_t side_len = command->side && args[command->side].data ? args[command->side].len : 0;
    cairn_status st = CAIRN_UNSUPPORTED;
    if (receiving_enter(k))
        st = cairn_vault_room(c->node->vault, c->in.bulk_len, side_len, &c->room);
    if (st) {
        c->room.value = NULL;
        receiving_leave(k);
    }
    return st;
}

/* False: there is no room for now, the timer comes back to it. */
static bool argument_place(struct connection *k)
{
    struct client *c = &k->c;
    uint64_t now = cairn_now_ns();
    if (!k->room_wait)
        k->room_since_ns = now;
    cairn_status st = room_take(k);
    k->room_wait = st == CAIRN_NOSPACE && now - k->room_since_ns < ROOM_WAIT_NS;
    if (k->room_wait)
        return false;
    void *memory = st ? block_take(k, c->in.bulk_len) : c->room.value;
    if (!memory) {
        k->refused = true;
        count(&c->node->stats.payload_refused, 1);
    }
    k->request_len += c->in.bulk_len;
    cairn_resp_give(&c->in, memory);
    return true;
}

/* --- a turn --- */

static bool may_parse(const struct connection *k)
{
    const struct node *n = k->c.node;
    return !k->on_worker && !k->room_wait && !k->c.closing && !k->broken &&
           !atomic_load_explicit(&n->stopping, memory_order_relaxed) &&
           k->c.out.queued <= node_live(&n->o.output_max);
}

enum arrived { NOTHING, SOME, ALL_THERE_WAS };

static enum arrived receive(struct connection *k, size_t *budget)
{
    struct client *c = &k->c;
    size_t len;
    void *into = cairn_resp_space(&c->in, &len);
    ssize_t n = into ? recv(c->fd, into, len, MSG_DONTWAIT) : -1;
    if (n > 0) {
        cairn_resp_filled(&c->in, (size_t)n);
        count(&c->node->stats.bytes_in, (uint64_t)n);
        *budget -= (size_t)n < *budget ? (size_t)n : *budget;
        k->clock_ns = 0;
        return (size_t)n < len ? ALL_THERE_WAS : SOME;
    }
    if (!into)
        return SOME; /* the parser says what is wrong */
    bool none = n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
    k->reset = n < 0 && errno == ECONNRESET;
    cairn_resp_filled(&c->in, 0);
    if (n == 0)
        k->eof = true;
    else if (!none)
        k->broken = true;
    return n == 0 ? SOME : NOTHING;
}

/* The parser wants more: false = it must be waited for. */
static bool more(struct connection *k, bool *drained, size_t *budget)
{
    bool inside = cairn_resp_buffered(&k->c.in) > 0;
    if (!inside)
        k->request_since_ns = 0;
    else if (!k->request_since_ns || k->paused)
        k->request_since_ns = k->c.thread->now_ns;
    k->paused = false;
    if (k->eof) {
        k->c.closing = true;
        return false;
    }
    if (*drained)
        return false;
    if (!*budget) {
        net_make_ready(k);
        return false;
    }
    enum arrived came = receive(k, budget);
    *drained = came != SOME;
    return came != NOTHING;
}

static void protocol_error(struct connection *k)
{
    cairn_out_error(&k->c.out, "%s", k->c.in.error);
    count(&k->c.node->stats.errors, 1);
    count(&k->c.node->stats.closed_protocol, 1);
    k->c.closing = true;
}

static void parse(struct connection *k, bool readable)
{
    size_t bytes = TURN_BYTES;
    uint32_t commands = 0;
    uint64_t until = 0;
    bool drained = !readable;
    while (may_parse(k)) {
        switch (cairn_resp_next(&k->c.in)) {
        case CAIRN_RESP_MORE:
            if (!more(k, &drained, &bytes))
                return;
            break;
        case CAIRN_RESP_BULK:
            if (!argument_place(k))
                return;
            break;
        case CAIRN_RESP_ERROR:
            protocol_error(k);
            return;
        case CAIRN_RESP_REQUEST:
            if (commands++ == TURN_COMMANDS || (until && k->clock_ns > until)) {
                net_make_ready(k);
                return;
            }
            execute(k);
            until = until ? until : k->clock_ns + TURN_NS;
            break;
        }
    }
    k->paused = k->c.out.queued > 0;
}

/* False: it is another's turn to be sent a long reply. A node that ends knows no turns. */
static bool may_send(struct connection *k)
{
    return k->c.out.queued < BULK_BYTES ||
           atomic_load_explicit(&k->c.node->stopping, memory_order_relaxed) ||
           bulk_enter(&k->c.thread->bulk, &k->bulk, k->c.thread->now_ns);
}

static void transmit(struct connection *k)
{
    struct cairn_out *out = &k->c.out;
    uint64_t before = out->sent;
    if (out->failed) {
        k->broken = true;
        return;
    }
    if (!out->queued)
        return;
    if (!may_send(k)) {
        /* That nothing is taken is not its fault, unless it lost its turn for taking nothing. */
        if (!k->bulk.pause_ns)
            k->output_since_ns = 0;
        return;
    }
    if (cairn_out_send(out, k->c.fd) == CAIRN_IO)
        k->broken = true;
    count(&k->c.node->stats.bytes_out, out->sent - before);
    if (out->sent != before)
        bulk_moved(&k->c.thread->bulk, &k->bulk, k->c.thread->now_ns);
    if (!out->queued) {
        bulk_leave(&k->c.thread->bulk, &k->bulk);
        k->output_since_ns = 0;
    } else if (out->sent != before || !k->output_since_ns)
        k->output_since_ns = k->c.thread->now_ns;
    if (!out->queued && k->paused && !k->on_worker && !k->room_wait)
        net_make_ready(k);
}

static uint64_t sooner(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* When something must have happened, and the counter of what it means if it has not. */
static uint64_t deadline(struct connection *k, _Atomic uint64_t **cause)
{
    struct node *n = k->c.node;
    uint64_t stall = node_live(&n->o.stall_ns), idle = node_live(&n->o.idle_ns);
    uint64_t output = k->output_since_ns ? k->output_since_ns + stall : UINT64_MAX;
    uint64_t input = UINT64_MAX;
    *cause = &n->stats.closed_output;
    if (k->room_wait)
        return sooner(k->c.thread->now_ns + ROOM_AGAIN_NS, output);
    if (k->on_worker || k->c.out.queued)
        return output;
    if (k->request_since_ns) {
        input = k->request_since_ns + stall + k->request_len * REQUEST_NS_A_BYTE;
        *cause = &n->stats.closed_request;
    } else if (!k->greeted) {
        input = k->c.since_ns + stall;
        *cause = &n->stats.closed_handshake;
    } else if (idle) {
        input = atomic_load_explicit(&k->c.active_ns, memory_order_relaxed) + idle;
        *cause = &n->stats.closed_idle;
    }
    return input;
}

/* After everything that may have changed it. */
static void settle(struct connection *k, uint32_t events)
{
    struct net_thread *t = k->c.thread;
    uint32_t want = k->c.out.queued && !k->bulk.waiting ? EPOLLOUT : 0;
    if (may_parse(k) && !k->eof)
        want |= EPOLLIN;
    else if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && !k->eof)
        want |= k->events & EPOLLIN; /* not worth a system call until something comes */
    if (!watch(k, want))
        k->broken = true;
    own_update(k);
    atomic_store_explicit(&k->queued_seen, k->c.out.queued, memory_order_relaxed);
    atomic_store_explicit(&k->proto_seen, k->c.out.proto, memory_order_relaxed);
    if (input_too_large(k)) {
        count(&k->c.node->stats.closed_memory, 1);
        k->broken = true;
    }
    _Atomic uint64_t *cause;
    uint64_t at = deadline(k, &cause);
    if (at != UINT64_MAX && (!k->timer.place || at < k->timer.at_ns))
        timer_set(&t->timers, &k->timer, at);
}

static bool ended(const struct connection *k)
{
    return k->broken || (k->c.closing && !k->c.out.queued && !k->on_worker);
}

void connection_turn(struct connection *k, uint32_t events)
{
    /* Pairs with the release in net_call_ended. */
    if (k->on_worker && atomic_load_explicit(&k->call_ended, memory_order_acquire)) {
        call_collect(k);
        if (k->dead) {
            connection_free(k);
            return;
        }
    }
    if (k->dead)
        return;
    if (atomic_load_explicit(&k->c.kill, memory_order_relaxed)) {
        connection_close(k);
        return;
    }
    k->clock_ns = 0;
    if (!k->room_wait || argument_place(k))
        parse(k, true);
    transmit(k);
    if (!ended(k))
        settle(k, events);
    if (ended(k))
        connection_close(k);
}

void connection_expire(struct connection *k)
{
    _Atomic uint64_t *cause;
    if (k->room_wait) {
        connection_turn(k, 0);
        return;
    }
    uint64_t at = deadline(k, &cause);
    if (at > k->c.thread->now_ns) {
        if (at != UINT64_MAX)
            timer_set(&k->c.thread->timers, &k->timer, at);
        return;
    }
    count(cause, 1);
    connection_close(k);
}

bool connection_drain(struct connection *k, bool at_once)
{
    if (k->on_worker && atomic_load_explicit(&k->call_ended, memory_order_acquire)) {
        call_collect(k);
        if (k->dead) {
            connection_free(k);
            return true;
        }
    }
    if (k->dead)
        return false;
    transmit(k);
    if (k->broken || at_once || (!k->c.out.queued && !k->on_worker)) {
        connection_close(k);
        return !k->on_worker;
    }
    if (k->c.out.queued && !watch(k, EPOLLOUT))
        connection_close(k);
    return false;
}
