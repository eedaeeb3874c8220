/* Gets. Attached: the chain is leased a part at a time, checked while it is copied out of the
 * node's memory, and released. What no lease covers, and all of it over other sockets, comes as
 * bytes. */
#include <string.h>

#include "base/copy.h"
#include "base/move.h"
#include "connector/remote.h"

#define CHUNK_KEYS 64u
#define CHUNK_BYTES (16ull * 1024 * 1024)
#define LEASE_TTL_MS 60000u
#define RUNS 64u

#define SUSPECTS 16u

struct get_call {
    struct remote *r;
    struct cairn_get *gets;
    size_t count;
    struct cairn_key suspects[SUSPECTS]; /* whose bytes or headers did not verify            */
    uint32_t suspect_count;
    bool told;                           /* the node was told once: what fails now, is a miss */
};

/* Keys that are asked for with one command. */
struct chunk {
    size_t first;
    uint32_t count;
    uint64_t ticket;
};

void remote_missed(struct remote *r, enum cairn_cause cause)
{
    atomic_fetch_add_explicit(&r->counts.misses[cause], 1, memory_order_relaxed);
}

static void settle(struct cairn_get *g, enum cairn_cause cause)
{
    g->cause = cause;
    g->status = cause == CAIRN_CAUSE_NONE       ? CAIRN_OK
                : cause == CAIRN_CAUSE_DEADLINE ? CAIRN_TIMEOUT
                                                : CAIRN_MISS;
}

/* A damaged copy in the node's memory may have a good one on its disk: the key stays without a
 * result until the node has looked. */
static void settle_checked(struct get_call *call, struct cairn_get *g, enum cairn_cause cause)
{
    if (!remote_damage(cause) || call->told || call->suspect_count == SUSPECTS) {
        settle(g, cause);
        return;
    }
    remote_missed(call->r, cause);
    call->suspects[call->suspect_count++] = g->key;
}

bool remote_damage(enum cairn_cause c)
{
    return c == CAIRN_CAUSE_CHECKSUM || c == CAIRN_CAUSE_HEADER || c == CAIRN_CAUSE_KEY ||
           c == CAIRN_CAUSE_VERSION;
}

/* Has the node verify them; the answer is read past. */
static void tell_suspects(struct remote_conn *c, struct get_call *call)
{
    if (call->suspect_count == 0)
        return;
    conn_command(c, "CAIRN.VERIFY", 1);
    conn_bytes(c, call->suspects, call->suspect_count * sizeof call->suspects[0]);
    call->suspect_count = 0;
    call->told = true;
}

static bool open_still(const struct cairn_get *g)
{
    return g->status == CAIRN_INPROGRESS;
}

/* The next keys without a result from `from` on, side by side. */
static struct chunk chunk_next(const struct get_call *call, size_t from)
{
    struct chunk k = {.first = from};
    uint64_t bytes = 0;
    while (k.first < call->count && !open_still(&call->gets[k.first]))
        k.first++;
    for (size_t i = k.first; i < call->count && k.count < CHUNK_KEYS; i++, k.count++) {
        bytes += cairn_sgl_bytes(&call->gets[i].out);
        if (!open_still(&call->gets[i]) || (k.count && bytes > CHUNK_BYTES))
            break;
    }
    return k;
}

/* --- in place --- */

static void ask_lease(struct remote_conn *c, const struct get_call *call, struct chunk *k)
{
    uint8_t keys[CHUNK_KEYS * sizeof(struct cairn_key)];
    for (uint32_t i = 0; i < k->count; i++)
        memcpy(keys + i * sizeof(struct cairn_key), &call->gets[k->first + i].key,
               sizeof(struct cairn_key));
    k->ticket = conn_command(c, "CAIRN.LEASE", 3);
    conn_number(c, LEASE_TTL_MS);
    conn_number(c, conn_wire_timeout(c));
    conn_bytes(c, keys, k->count * sizeof(struct cairn_key));
}

static enum cairn_cause move_cause(cairn_status st)
{
    return st == CAIRN_OK        ? CAIRN_CAUSE_NONE
           : st == CAIRN_CORRUPT ? CAIRN_CAUSE_CHECKSUM
           : st == CAIRN_TIMEOUT ? CAIRN_CAUSE_DEADLINE
                                 : CAIRN_CAUSE_DEVICE;
}

static enum cairn_cause copy_out(const struct remote_arena *a, const struct cairn_wire_view *v,
                                 const struct cairn_get *g, uint64_t deadline_ns)
{
    struct cairn_record_body_disk header;
    size_t len = cairn_sgl_bytes(&g->out), off = g->flags & CAIRN_GET_RANGE ? g->offset : 0;
    enum cairn_cause cause = remote_header_read(a, v, &g->key, g->fingerprint, &header);
    if (cause)
        return cause;
    bool fits = g->flags & CAIRN_GET_RANGE ? off <= v->len && len <= v->len - off : len == v->len;
    if (!fits)
        return CAIRN_CAUSE_LENGTH;
    /* A second look tells a damaged value from a read that went wrong on the way. */
    for (int tries = 0; tries < 2 && (tries == 0 || cause == CAIRN_CAUSE_CHECKSUM); tries++)
        cause = move_cause(cairn_move_out(&g->out, 0, a->base + v->offset, v->len, off, len,
                                          header.piece_check, deadline_ns));
    return cause;
}

/* Settles what the leases cover. A part that is not held whole is the last: behind a hole there is
 * little, and how much, one answer with bytes tells. */
static cairn_status get_in_place(struct remote_conn *c, struct get_call *call)
{
    struct cairn_wire_view views[CHUNK_KEYS];
    struct chunk now = chunk_next(call, 0);
    bool whole = true;
    if (now.count)
        ask_lease(c, call, &now);
    while (now.count) {
        struct chunk ahead = {.count = 0};
        if (whole)
            ahead = chunk_next(call, now.first + now.count);
        if (ahead.count)
            ask_lease(c, call, &ahead);
        uint64_t lease;
        uint32_t held;
        cairn_status st = remote_lease_read(c, now.ticket, views, now.count, &lease, &held);
        if (st)
            return st;
        for (uint32_t i = 0; i < held; i++)
            settle_checked(call, &call->gets[now.first + i],
                           copy_out(c->arena, &views[i], &call->gets[now.first + i],
                                    c->deadline_ns));
        if (lease)
            conn_release(c, lease);
        whole = whole && held == now.count;
        now = ahead;
    }
    return conn_flush_now(c) ? CAIRN_OK : CAIRN_IO;
}

/* --- as bytes --- */

static void ask_bytes(struct remote_conn *c, const struct get_call *call, struct chunk *k)
{
    struct cairn_wire_get items[CHUNK_KEYS];
    for (uint32_t i = 0; i < k->count; i++) {
        const struct cairn_get *g = &call->gets[k->first + i];
        bool range = g->flags & CAIRN_GET_RANGE;
        items[i] = (struct cairn_wire_get){.offset = range ? g->offset : 0,
                                           .len = cairn_sgl_bytes(&g->out),
                                           .flags = range ? CAIRN_GET_RANGE : 0};
        memcpy(items[i].key, g->key.bytes, sizeof items[i].key);
        if (g->fingerprint)
            memcpy(items[i].fingerprint, g->fingerprint, sizeof items[i].fingerprint);
    }
    k->ticket = conn_command(c, "CAIRN.GET", 2);
    conn_number(c, conn_wire_timeout(c));
    conn_bytes(c, items, k->count * sizeof items[0]);
}

uint32_t remote_runs(const struct cairn_sgl *list, size_t off, size_t len, struct iovec *out,
                     uint32_t cap, size_t *ret_len)
{
    uint32_t n = 0;
    *ret_len = 0;
    for (uint32_t i = 0; i < list->count && n < cap && len; i++) {
        if (off >= list->iov[i].len) {
            off -= list->iov[i].len;
            continue;
        }
        size_t here = list->iov[i].len - off;
        here = here < len ? here : len;
        out[n++] = (struct iovec){(char *)list->iov[i].base + off, here};
        *ret_len += here;
        len -= here;
        off = 0;
    }
    return n;
}

uint64_t remote_piece_hash(struct remote_conn *c, const struct cairn_sgl *list, size_t off,
                           size_t len)
{
    struct iovec run;
    size_t together;
    remote_runs(list, off, len, &run, 1, &together);
    if (together == len)
        return cairn_hash64(run.iov_base, len);
    cairn_copy_gather(c->scratch, list, off, len);
    return cairn_hash64(c->scratch, len);
}

static cairn_status receive_piece(struct remote_conn *c, const struct cairn_sgl *list, size_t at,
                                  size_t len)
{
    for (size_t done = 0, got; done < len; done += got) {
        struct iovec iov[RUNS];
        uint32_t n = remote_runs(list, at + done, len - done, iov, RUNS, &got);
        cairn_status st = conn_string_part(c, iov, n);
        if (st)
            return st;
    }
    return CAIRN_OK;
}

/* Receives the value piece by piece, each hashed while it is warm. A socket cannot write to a
 * device: such pieces are moved there from this process's memory once they are known to be good. */
static cairn_status receive(struct remote_conn *c, struct cairn_get *g, size_t len,
                            const uint8_t *checks, enum cairn_cause *ret_cause)
{
    const struct cairn_iov scratch = {c->scratch, CAIRN_PIECE_BYTES};
    const struct cairn_sgl piece_list = {.iov = &scratch, .count = 1};
    bool host = g->out.mem == CAIRN_MEM_HOST;
    *ret_cause = CAIRN_CAUSE_NONE;
    for (size_t at = 0; at < len;) {
        size_t piece = len - at < CAIRN_PIECE_BYTES ? len - at : CAIRN_PIECE_BYTES;
        const struct cairn_sgl *list = host ? &g->out : &piece_list;
        cairn_status st = receive_piece(c, list, host ? at : 0, piece);
        if (st)
            return st;
        uint64_t want;
        memcpy(&want, checks + at / CAIRN_PIECE_BYTES * sizeof want, sizeof want);
        if (*ret_cause == CAIRN_CAUSE_NONE &&
            remote_piece_hash(c, list, host ? at : 0, piece) != want)
            *ret_cause = CAIRN_CAUSE_CHECKSUM;
        if (*ret_cause == CAIRN_CAUSE_NONE && !host)
            *ret_cause = move_cause(cairn_move_out(&g->out, at, c->scratch, piece, 0, piece, NULL,
                                                   c->deadline_ns));
        at += piece;
    }
    return CAIRN_OK;
}

static cairn_status read_value(struct remote_conn *c, struct get_call *call,
                               struct cairn_get *g)
{
    uint8_t bytes[sizeof(struct cairn_wire_value) + CAIRN_PIECES_MAX * sizeof(uint64_t)];
    struct cairn_wire_value head;
    uint64_t parts, head_len, len;
    size_t want = cairn_sgl_bytes(&g->out);
    enum cairn_cause cause;

    cairn_status st = conn_array(c, &parts);
    if (!st)
        st = parts == 2 ? conn_string(c, bytes, sizeof bytes, &head_len) : CAIRN_CORRUPT;
    if (!st)
        st = head_len != CONN_NULL && head_len >= sizeof head ? conn_string_head(c, &len)
                                                              : CAIRN_CORRUPT;
    if (st)
        return st;
    memcpy(&head, bytes, sizeof head);
    if (head.status != CAIRN_OK) {
        bool known = head.cause > CAIRN_CAUSE_NONE && head.cause < CAIRN_CAUSE_COUNT;
        settle(g, known ? (enum cairn_cause)head.cause : CAIRN_CAUSE_ABSENT);
        return len == CONN_NULL ? CAIRN_OK : CAIRN_CORRUPT;
    }
    if (len != want || head.len != want ||
        head_len != sizeof head + cairn_piece_count(want) * sizeof(uint64_t))
        return CAIRN_CORRUPT;
    st = receive(c, g, want, bytes + sizeof head, &cause);
    if (st)
        return st;
    settle_checked(call, g, cause);
    return CAIRN_OK;
}

static cairn_status read_values(struct remote_conn *c, struct get_call *call,
                                const struct chunk *k)
{
    uint64_t count;
    cairn_status st = conn_await(c, k->ticket);
    if (!st)
        st = conn_array(c, &count);
    if (!st && count != k->count)
        st = CAIRN_CORRUPT;
    for (uint32_t i = 0; i < k->count && !st; i++)
        st = read_value(c, call, &call->gets[k->first + i]);
    return st;
}

static cairn_status get_bytes(struct remote_conn *c, struct get_call *call)
{
    struct chunk now = chunk_next(call, 0);
    cairn_status st = CAIRN_OK;
    if (now.count)
        ask_bytes(c, call, &now);
    while (now.count && !st) {
        struct chunk ahead = chunk_next(call, now.first + now.count);
        if (ahead.count)
            ask_bytes(c, call, &ahead);
        st = read_values(c, call, &now);
        now = ahead;
    }
    return st;
}

static cairn_status get_over(struct remote *r, struct remote_conn *c, void *arg)
{
    struct get_call *call = arg;
    (void)r;
    cairn_status st = c->arena ? get_in_place(c, call) : CAIRN_OK;
    if (!st) {
        tell_suspects(c, call);
        st = get_bytes(c, call);
    }
    if (!st && call->suspect_count) {
        tell_suspects(c, call);
        st = get_bytes(c, call);
    }
    return st;
}

/* What no node needs to be asked for. */
static bool impossible(const struct cairn_get *g)
{
    static const struct cairn_key none;
    size_t len = cairn_sgl_bytes(&g->out);
    return len == 0 || len > CAIRN_VALUE_MAX || !cairn_sgl_known(&g->out) ||
           ((g->flags & CAIRN_GET_RANGE) && g->offset > CAIRN_VALUE_MAX - len) ||
           memcmp(&g->key, &none, sizeof none) == 0;
}

/* Why device memory cannot be written by now. A stream that stands still is no fault of the node's:
 * waited for within a call it would keep a connection from others, and count as one. */
static enum cairn_cause device_unready(const struct cairn_get *gets, size_t count,
                                       uint64_t deadline_ns)
{
    for (size_t i = 0; i < count; i++)
        if (gets[i].out.mem != CAIRN_MEM_HOST)
            return move_cause(cairn_order_wait(deadline_ns));
    return CAIRN_CAUSE_NONE;
}

cairn_status remote_get(struct cairn_backend *b, struct cairn_get *gets, size_t count,
                        uint64_t deadline_ns, size_t *ret_hits)
{
    struct remote *r = (struct remote *)b;
    struct get_call call = {.r = r, .gets = gets, .count = count};
    size_t hits = 0;
    bool ask = false;
    enum cairn_cause unready = device_unready(gets, count, deadline_ns);
    for (size_t i = 0; i < count; i++) {
        gets[i].status = CAIRN_INPROGRESS;
        if (impossible(&gets[i]))
            settle(&gets[i], CAIRN_CAUSE_LENGTH);
        else if (unready && gets[i].out.mem != CAIRN_MEM_HOST)
            settle(&gets[i], unready);
        ask = ask || open_still(&gets[i]);
    }
    cairn_status st = ask ? remote_run(r, get_over, &call, deadline_ns) : CAIRN_OK;
    for (size_t i = 0; i < count; i++) {
        if (open_still(&gets[i]))
            settle(&gets[i], remote_cause(st));
        if (gets[i].status == CAIRN_OK)
            hits++;
        else
            remote_missed(r, (enum cairn_cause)gets[i].cause);
    }
    if (ret_hits)
        *ret_hits = hits;
    return hits == count ? CAIRN_OK : CAIRN_MISS;
}
