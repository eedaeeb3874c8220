/* Puts. Attached: a value is copied and hashed into the window, a ring of what the node has not
 * answered yet, so that it takes one in while the next is written. Larger ones, and all of them
 * over other sockets, go from the caller's memory into the socket. */
#include <string.h>

#include "base/copy.h"
#include "base/move.h"
#include "connector/remote.h"
#include "transport/sock.h"

#define FLIGHTS 32u
#define RUNS 64u
#define ALIGN 4096u

/* A put that the node has not answered. */
struct flight {
    size_t index;
    uint64_t ticket;
    uint64_t start; /* in the window */
};

struct put_call {
    struct cairn_put *puts;
    size_t count;
};

struct put_run {
    struct remote_conn *c;
    struct cairn_put *puts;
    struct flight flights[FLIGHTS];
    uint32_t first, count;
    uint64_t head; /* of the window: where the next value goes */
    bool accepted;
};

static bool open_still(const struct cairn_put *p)
{
    return p->status == CAIRN_INPROGRESS;
}

static cairn_status answer_read(struct put_run *run)
{
    struct remote_conn *c = run->c;
    struct flight *f = &run->flights[run->first % FLIGHTS];
    uint64_t parts;
    int64_t status, cause;
    cairn_status st = conn_await(c, f->ticket);
    if (st == CAIRN_BUSY) {
        run->puts[f->index].status = CAIRN_BUSY;
        run->puts[f->index].cause = CAIRN_CAUSE_QUEUE_FULL;
    } else {
        if (!st)
            st = conn_array(c, &parts);
        if (!st)
            st = parts == 2 ? conn_int(c, &status) : CAIRN_CORRUPT;
        if (!st)
            st = conn_int(c, &cause);
        if (st)
            return st;
        run->puts[f->index].status = status <= 0 ? (cairn_status)status : CAIRN_IO;
        run->accepted |= status == CAIRN_OK || status == CAIRN_EXISTS;
        run->puts[f->index].cause = cause > 0 && cause < CAIRN_CAUSE_COUNT ? (int32_t)cause : 0;
    }
    run->first++;
    run->count--;
    return CAIRN_OK;
}

/* Room for a value in the window, once older values have left it. */
static cairn_status room(struct put_run *run, uint64_t len, uint64_t *ret_at)
{
    uint64_t size = run->c->window_len;
    len = (len + ALIGN - 1) / ALIGN * ALIGN;
    for (;;) {
        uint64_t oldest = run->flights[run->first % FLIGHTS].start;
        if (run->count == 0)
            run->head = oldest = 0;
        bool wrapped = run->count > 0 && run->head <= oldest;
        if ((wrapped ? oldest : size) - run->head >= len && run->count < FLIGHTS) {
            *ret_at = run->head;
            run->head += len;
            return CAIRN_OK;
        }
        if (!wrapped && run->count > 0 && run->count < FLIGHTS && oldest >= len) {
            *ret_at = 0;
            run->head = len;
            return CAIRN_OK;
        }
        cairn_status st = answer_read(run);
        if (st)
            return st;
    }
}

static uint64_t command(struct remote_conn *c, const struct cairn_put *p, uint64_t len,
                        const uint64_t *window_at, const uint64_t *checks)
{
    struct cairn_wire_put item = {.value_len = len,
                                  .expires_ns = p->expires_ns,
                                  .window_offset = window_at ? *window_at : 0,
                                  .flags = p->flags & CAIRN_PUT_REPLACE};
    if (window_at)
        item.flags |= CAIRN_WIRE_PUT_WINDOW;
    memcpy(item.key, p->key.bytes, sizeof item.key);
    memcpy(item.parent, p->parent.bytes, sizeof item.parent);
    if (p->fingerprint)
        memcpy(item.fingerprint, p->fingerprint, sizeof item.fingerprint);
    uint64_t ticket = conn_command(c, "CAIRN.PUT", 5);
    conn_number(c, conn_wire_timeout(c));
    conn_bytes(c, &item, sizeof item);
    conn_bytes(c, checks, cairn_piece_count(len) * sizeof checks[0]);
    conn_ref(c, p->side, p->side_len);
    return ticket;
}

/* The caller's memory could not be read: nothing of the value is sent. */
static void unread(struct cairn_put *p, cairn_status st)
{
    p->status = st == CAIRN_TIMEOUT ? CAIRN_TIMEOUT : CAIRN_IO;
    p->cause = st == CAIRN_TIMEOUT ? CAIRN_CAUSE_DEADLINE : CAIRN_CAUSE_DEVICE;
}

static cairn_status send_window(struct put_run *run, struct cairn_put *p, size_t len,
                                struct flight *f)
{
    uint64_t checks[CAIRN_PIECES_MAX];
    struct remote_conn *c = run->c;
    cairn_status st = room(run, len, &f->start);
    if (st)
        return st;
    st = cairn_move_in(c->window + f->start, &p->value, 0, len, checks, c->deadline_ns);
    if (st) {
        unread(p, st);
        /* Of a device that hangs the window is lost, and the connection with it. */
        return st == CAIRN_STATE ? CAIRN_IO : CAIRN_OK;
    }
    f->ticket = command(c, p, len, &f->start, checks);
    conn_ref(c, NULL, 0);
    return conn_flush(c);
}

static size_t piece_len(size_t len, size_t at)
{
    return len - at < CAIRN_PIECE_BYTES ? len - at : CAIRN_PIECE_BYTES;
}

static cairn_status value_checks(struct remote_conn *c, const struct cairn_sgl *value, size_t len,
                                 uint64_t *checks)
{
    for (size_t at = 0; at < len; at += CAIRN_PIECE_BYTES) {
        uint64_t *check = &checks[at / CAIRN_PIECE_BYTES];
        size_t piece = piece_len(len, at);
        cairn_status st = CAIRN_OK;
        if (value->mem == CAIRN_MEM_HOST)
            *check = remote_piece_hash(c, value, at, piece);
        else if (!(st = cairn_move_in(c->scratch, value, at, piece, NULL, c->deadline_ns)))
            *check = cairn_hash64(c->scratch, piece);
        if (st)
            return st;
    }
    return CAIRN_OK;
}

static cairn_status send_host_value(struct remote_conn *c, const struct cairn_sgl *value,
                                    size_t len)
{
    for (size_t at = 0, got; at < len; at += got) {
        struct iovec iov[RUNS];
        uint32_t n = remote_runs(value, at, len - at, iov, RUNS, &got);
        for (uint32_t i = 0; i < n; i++)
            conn_part(c, iov[i].iov_base, iov[i].iov_len);
    }
    return CAIRN_OK;
}

/* A piece at a time, through this process's memory. The node compares with the checks. */
static cairn_status send_device_value(struct remote_conn *c, const struct cairn_sgl *value,
                                      size_t len)
{
    for (size_t at = 0; at < len; at += CAIRN_PIECE_BYTES) {
        size_t piece = piece_len(len, at);
        cairn_status st = cairn_move_in(c->scratch, value, at, piece, NULL, c->deadline_ns);
        if (st)
            return CAIRN_IO; /* half a value: the connection is of no use any more */
        conn_part(c, c->scratch, piece);
        if ((st = conn_flush(c)))
            return st;
    }
    return CAIRN_OK;
}

static cairn_status send_bytes(struct put_run *run, struct cairn_put *p, size_t len,
                               struct flight *f)
{
    uint64_t checks[CAIRN_PIECES_MAX];
    struct remote_conn *c = run->c;
    f->start = run->head; /* takes nothing of the window */
    cairn_status st = value_checks(c, &p->value, len, checks);
    if (st) {
        unread(p, st);
        return CAIRN_OK;
    }
    f->ticket = command(c, p, len, NULL, checks);
    conn_part_head(c, len);
    st = p->value.mem == CAIRN_MEM_HOST ? send_host_value(c, &p->value, len)
                                        : send_device_value(c, &p->value, len);
    if (st)
        return st;
    conn_part_end(c);
    return conn_flush(c);
}

/* The node has got these and did not answer: it may have stored them or not. Stored again they
 * could undo what others did to the keys since. */
static void leave_unknown(struct remote *r, struct put_run *run, cairn_status st)
{
    for (; run->count; run->first++, run->count--) {
        struct cairn_put *p = &run->puts[run->flights[run->first % FLIGHTS].index];
        p->status = remote_status(st);
        p->cause = remote_cause(st);
        remote_unknown(r, 1);
    }
}

static cairn_status put_over(struct remote *r, struct remote_conn *c, void *arg)
{
    struct put_call *call = arg;
    struct put_run run = {.c = c, .puts = call->puts};
    /* A value that went to a node which is gone already would be one of which nothing is known. */
    cairn_status st = cairn_sock_alive(c->fd) ? conn_window(c) : CAIRN_IO;
    for (size_t i = 0; i < call->count && !st; i++) {
        struct cairn_put *p = &call->puts[i];
        struct flight f = {.index = i};
        size_t len = cairn_sgl_bytes(&p->value);
        if (!open_still(p))
            continue;
        while (run.count == FLIGHTS && !st)
            st = answer_read(&run);
        if (!st)
            st = c->window && len <= c->window_len / ALIGN * ALIGN ? send_window(&run, p, len, &f)
                                                                   : send_bytes(&run, p, len, &f);
        /* What could not be sent whole was not done, and may be sent again. */
        if (!st && open_still(p))
            run.flights[(run.first + run.count++) % FLIGHTS] = f;
    }
    while (run.count && !st)
        st = answer_read(&run);
    leave_unknown(r, &run, st);
    if (run.accepted)
        remote_accepted(r, c);
    return st;
}

static cairn_status refusal(struct remote *r, const struct cairn_put *p, int32_t *ret_cause)
{
    static const struct cairn_key none;
    size_t len = cairn_sgl_bytes(&p->value);
    *ret_cause = CAIRN_CAUSE_BAD_KEY;
    if (len == 0 || memcmp(&p->key, &none, sizeof none) == 0 || p->side_len > CAIRN_SIDE_MAX ||
        (p->side_len && !p->side) || !cairn_sgl_known(&p->value))
        return CAIRN_INVAL;
    uint64_t max = atomic_load_explicit(&r->value_max, memory_order_relaxed);
    /* What no node takes has no room for its checks either. */
    if (len > (max ? max : CAIRN_VALUE_MAX)) {
        *ret_cause = CAIRN_CAUSE_TOO_BIG;
        return CAIRN_TOOBIG;
    }
    *ret_cause = CAIRN_CAUSE_NONE;
    return CAIRN_INPROGRESS;
}

/* Before a connection is taken, as in remote_get. */
static cairn_status device_ready(const struct cairn_put *puts, size_t count, uint64_t deadline_ns)
{
    for (size_t i = 0; i < count; i++)
        if (puts[i].value.mem != CAIRN_MEM_HOST)
            return cairn_order_wait(deadline_ns);
    return CAIRN_OK;
}

cairn_status remote_put(struct cairn_backend *b, struct cairn_put *puts, size_t count,
                        uint64_t deadline_ns)
{
    struct remote *r = (struct remote *)b;
    struct put_call call = {puts, count};
    cairn_status first = CAIRN_OK, st = CAIRN_OK;
    bool ask = false;
    cairn_status ready = device_ready(puts, count, deadline_ns);
    for (size_t i = 0; i < count; i++) {
        puts[i].status = refusal(r, &puts[i], &puts[i].cause);
        if (ready && open_still(&puts[i]) && puts[i].value.mem != CAIRN_MEM_HOST)
            unread(&puts[i], ready);
        ask = ask || open_still(&puts[i]);
    }
    if (ask)
        st = remote_run(r, put_over, &call, deadline_ns);
    for (size_t i = 0; i < count; i++) {
        if (open_still(&puts[i])) {
            puts[i].status = st ? remote_status(st) : CAIRN_IO;
            puts[i].cause = remote_cause(st);
        }
        if (puts[i].status && puts[i].status != CAIRN_EXISTS && !first)
            first = puts[i].status;
    }
    return first;
}
