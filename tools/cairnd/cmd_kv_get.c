/* CAIRN.GET. A value in RAM is pinned and sent from where it lies, behind the checks it was stored
 * with: who gets it compares them with the bytes, so nothing is read here. First everything is
 * pinned, then everything is written, so that a batch that turns out to wait for the disk can start
 * again on a worker. */
#include <stdlib.h>
#include <string.h>

#include "tools/cairnd/cmd_kv.h"

#define BYTES_MAX (128ull * 1024 * 1024)   /* of one answer, or one value if that is more */
#define COPY_MAX 16384u                    /* shorter values are copied into the output   */
#define HASH_AT_ONCE (1024u * 1024u)       /* more of ranges is hashed on a worker        */
#define LOADS 64u                          /* values read from disk at the same time      */

/* Bytes that are in no pinned value: the part of one that is on disk, or what the lease budget
 * left no pin for. */
struct copy {
    struct client *client;
    size_t len;
    uint64_t version;
    char bytes[];
};

struct got {
    struct cairn_wire_get want;
    struct cairn_key key;     /* that of `want` */
    struct cairn_pin pin;     /* value NULL: none */
    struct copy *copy;
    cairn_status status;
    enum cairn_cause cause;
};

struct get_batch {
    struct call *c;
    struct cairn_vault *vault;
    uint64_t deadline_ns;
    uint64_t bytes_left, hash_left;
    uint32_t count;
    struct got *got;
};

static bool is_range(const struct got *g)
{
    return g->want.flags & CAIRN_GET_RANGE;
}

static const uint8_t *fingerprint_of(const struct got *g)
{
    static const uint8_t any[32];
    return memcmp(g->want.fingerprint, any, sizeof any) ? g->want.fingerprint : NULL;
}

/* --- giving back --- */

static void unpin_slot(void *arg, uint64_t slot)
{
    struct cairn_pin pin = {.slot = (uint32_t)slot};
    cairn_vault_unpin(arg, &pin, 1);
}

static void copy_free(void *arg, uint64_t unused)
{
    struct copy *copy = arg;
    (void)unused;
    client_discharge(copy->client, copy->len);
    free(copy);
}

static void let_go(struct get_batch *b, struct got *g)
{
    if (g->pin.value)
        cairn_vault_unpin(b->vault, &g->pin, 1);
    if (g->copy)
        copy_free(g->copy, 0);
    g->pin.value = NULL;
    g->copy = NULL;
}

/* It is pinned, but not what was asked for, or damaged. */
static void reject(struct get_batch *b, struct got *g, enum cairn_cause cause)
{
    cairn_vault_pin_reject(b->vault, &g->pin, cause);
    g->pin.value = NULL;
    g->status = CAIRN_MISS;
    g->cause = cause;
}

static void fail(struct get_batch *b, struct got *g, cairn_status st, enum cairn_cause cause)
{
    let_go(b, g);
    g->status = st;
    g->cause = cause;
}

/* --- judging --- */

/* Are the pieces that the range touches what was stored? */
static bool range_good(const struct got *g)
{
    const struct cairn_record_body_disk *body = cairn_pin_body(&g->pin);
    const char *value = g->pin.value;
    uint64_t last = (g->want.offset + g->want.len - 1) / CAIRN_PIECE_BYTES;
    for (uint64_t i = g->want.offset / CAIRN_PIECE_BYTES; i <= last; i++) {
        size_t at = i * CAIRN_PIECE_BYTES, left = g->pin.value_len - at;
        if (cairn_hash64(value + at, left < CAIRN_PIECE_BYTES ? left : CAIRN_PIECE_BYTES) !=
            body->piece_check[i])
            return false;
    }
    return true;
}

static enum cairn_cause judge(const struct got *g)
{
    const struct cairn_record_body_disk *body = cairn_pin_body(&g->pin);
    const uint8_t *fingerprint = fingerprint_of(g);
    uint64_t len = g->pin.value_len;
    if (fingerprint && memcmp(body->identity, fingerprint, sizeof body->identity) != 0)
        return CAIRN_CAUSE_IDENTITY;
    if (is_range(g) ? g->want.offset > len || g->want.len > len - g->want.offset
                    : g->want.len != len)
        return CAIRN_CAUSE_LENGTH;
    return CAIRN_CAUSE_NONE;
}

/* A pinned value becomes an answer, or a miss. false: its range is too long to be hashed here. */
static bool accept_pin(struct get_batch *b, struct got *g)
{
    enum cairn_cause cause = judge(g);
    if (cause) {
        reject(b, g, cause);
        return true;
    }
    if (is_range(g)) {
        if (g->want.len > b->hash_left)
            return false;
        b->hash_left -= g->want.len;
        if (!range_good(g)) {
            reject(b, g, CAIRN_CAUSE_CHECKSUM);
            return true;
        }
    }
    g->status = CAIRN_OK;
    return true;
}

/* --- finding --- */

/* Through a copy of its own: verified by the vault. Waits. */
static void get_copy(struct get_batch *b, struct got *g)
{
    struct client *client = b->c->client;
    if (!client_charge(client, g->want.len)) {
        fail(b, g, CAIRN_BUSY, CAIRN_CAUSE_QUEUE_FULL);
        return;
    }
    struct copy *copy = malloc(sizeof *copy + g->want.len);
    if (!copy) {
        client_discharge(client, g->want.len);
        fail(b, g, CAIRN_NOMEM, CAIRN_CAUSE_NO_ROOM);
        return;
    }
    *copy = (struct copy){.client = client, .len = g->want.len};
    g->copy = copy;
    struct cairn_iov iov = {copy->bytes, g->want.len};
    struct cairn_get get = {.key = g->key, .out = {.iov = &iov, .count = 1},
                            .fingerprint = fingerprint_of(g), .offset = g->want.offset,
                            .flags = g->want.flags};
    cairn_vault_get(b->vault, &get, 1, b->deadline_ns, NULL);
    if (get.status)
        fail(b, g, get.status, (enum cairn_cause)get.cause);
    else
        g->status = CAIRN_OK;
}

/* Reads this value and those behind it from disk, as many at once as may be. Returns how many of
 * the batch are done. */
static uint32_t load_run(struct get_batch *b, uint32_t from)
{
    struct cairn_key keys[LOADS];
    struct cairn_pin pins[LOADS];
    uint64_t bytes = 0;
    uint32_t count = 0;
    for (; count < LOADS && from + count < b->count; count++) {
        const struct got *g = &b->got[from + count];
        if (is_range(g) || bytes + g->want.len > b->bytes_left)
            break;
        bytes += g->want.len;
        keys[count] = g->key;
    }
    size_t held = cairn_vault_pin(b->vault, keys, count, b->deadline_ns, pins);
    for (uint32_t i = 0; i < held; i++) {
        struct got *g = &b->got[from + i];
        g->pin = pins[i];
        accept_pin(b, g);
        b->bytes_left -= g->status ? 0 : g->want.len;
    }
    return (uint32_t)held;
}

/* Why a value that was there is not any more: what the read from disk found, if it was that. */
static enum cairn_cause gone_cause(struct get_batch *b, const struct got *g)
{
    uint64_t age_ns;
    enum cairn_cause cause = cairn_vault_drop_cause(b->vault, &g->key, &age_ns);
    return cause >= CAIRN_CAUSE_CHECKSUM && cause <= CAIRN_CAUSE_IO_ERROR ? cause
                                                                          : CAIRN_CAUSE_ABSENT;
}

/* What could not be pinned although a moment ago it was there, or should be. */
static void load_failed(struct get_batch *b, struct got *g)
{
    enum cairn_cause cause;
    cairn_status st = cairn_vault_pin_now(b->vault, &g->key, false, &g->pin, &cause);
    if (st == CAIRN_OK)
        accept_pin(b, g);
    else if (st == CAIRN_INPROGRESS && cairn_now_ns() >= b->deadline_ns)
        fail(b, g, CAIRN_TIMEOUT, CAIRN_CAUSE_DEADLINE);
    else if (st == CAIRN_INPROGRESS || cause == CAIRN_CAUSE_NO_ROOM)
        get_copy(b, g);
    else
        fail(b, g, st, cause == CAIRN_CAUSE_ABSENT ? gone_cause(b, g) : cause);
}

/* One value without waiting; INPROGRESS: it takes a worker. */
static cairn_status find_now(struct get_batch *b, struct got *g)
{
    enum cairn_cause cause;
    if (g->want.len > b->bytes_left) {
        fail(b, g, CAIRN_BUSY, CAIRN_CAUSE_QUEUE_FULL);
        return CAIRN_OK;
    }
    cairn_status st = cairn_vault_pin_now(b->vault, &g->key, false, &g->pin, &cause);
    if (st == CAIRN_OK && !accept_pin(b, g)) {
        let_go(b, g);
        return CAIRN_INPROGRESS;
    }
    if (st == CAIRN_INPROGRESS || (st && cause == CAIRN_CAUSE_NO_ROOM))
        return CAIRN_INPROGRESS;
    if (st)
        fail(b, g, st, cause);
    b->bytes_left -= g->status ? 0 : g->want.len;
    return CAIRN_OK;
}

static cairn_status find_all(struct get_batch *b)
{
    for (uint32_t i = 0; i < b->count;) {
        struct got *g = &b->got[i];
        if (find_now(b, g) == CAIRN_OK) {
            i++;
            continue;
        }
        if (!b->c->may_wait)
            return CAIRN_INPROGRESS;
        uint32_t done = is_range(g) ? 0 : load_run(b, i);
        if (done == 0) {
            if (is_range(g))
                get_copy(b, g);
            else
                load_failed(b, g);
            b->bytes_left -= g->status ? 0 : g->want.len;
            done = 1;
        }
        i += done;
    }
    return CAIRN_OK;
}

/* --- answering --- */

static void write_head(struct call *c, const struct got *g, const char *bytes)
{
    struct {
        struct cairn_wire_value value;
        uint64_t checks[CAIRN_PIECES_MAX];
    } head;
    const struct cairn_record_body_disk *body = g->pin.value ? cairn_pin_body(&g->pin) : NULL;
    uint32_t pieces = g->status ? 0 : cairn_piece_count(g->want.len);
    head.value = (struct cairn_wire_value){
        .status = g->status,
        .cause = (int32_t)g->cause,
        .version = g->status == CAIRN_OK && body ? body->version : 0,
        .len = g->status ? 0 : g->want.len,
    };
    if (pieces && body && !is_range(g))
        memcpy(head.checks, body->piece_check, pieces * sizeof head.checks[0]);
    else if (pieces)
        cairn_hash_pieces(bytes, g->want.len, head.checks);
    cairn_out_array(c->out, 2);
    cairn_out_bulk(c->out, &head, sizeof head.value + pieces * sizeof head.checks[0]);
}

/* Gives the pin or the copy away to the output. */
static void write_bytes(struct get_batch *b, struct got *g, const char *bytes)
{
    struct cairn_out *out = b->c->out;
    if (g->status) {
        cairn_out_null(out);
        return;
    }
    if (g->want.len <= COPY_MAX) {
        cairn_out_bulk(out, bytes, g->want.len);
        let_go(b, g);
        return;
    }
    cairn_out_bulk_head(out, g->want.len);
    if (g->copy)
        cairn_out_ref(out, bytes, g->want.len, copy_free, g->copy, 0);
    else
        cairn_out_ref(out, bytes, g->want.len, unpin_slot, b->vault, g->pin.slot);
    cairn_out_raw(out, "\r\n", 2);
}

static void write_all(struct get_batch *b)
{
    uint64_t hits = 0;
    cairn_out_array(b->c->out, b->count);
    for (uint32_t i = 0; i < b->count; i++) {
        struct got *g = &b->got[i];
        const char *bytes = NULL;
        if (g->status == CAIRN_OK) {
            hits++;
            bytes = g->copy ? g->copy->bytes
                            : (const char *)g->pin.value + (is_range(g) ? g->want.offset : 0);
        }
        write_head(b->c, g, bytes);
        write_bytes(b, g, bytes);
    }
    atomic_fetch_add_explicit(&b->c->node->stats.kv_hits, hits, memory_order_relaxed);
    atomic_fetch_add_explicit(&b->c->node->stats.kv_misses, b->count - hits, memory_order_relaxed);
}

static bool read_items(struct get_batch *b)
{
    const char *why = NULL;
    for (uint32_t i = 0; i < b->count; i++) {
        struct got *g = &b->got[i];
        const char *at = b->c->args[2].data + i * sizeof g->want;
        *g = (struct got){.status = CAIRN_MISS};
        if (cairn_wire_get_read(at, &g->want, &why)) {
            kv_error(b->c, "item %u: %s", i, why);
            return false;
        }
        memcpy(g->key.bytes, g->want.key, sizeof g->key.bytes);
    }
    return true;
}

enum call_flow kv_get_run(struct call *c)
{
    const struct cairn_resp_arg *items = &c->args[2];
    struct get_batch b = {.c = c, .vault = c->node->vault};
    if (!kv_deadline(c, 1, &b.deadline_ns))
        return CALL_DONE;
    if (!items->data || !cairn_wire_count(items->len, sizeof(struct cairn_wire_get),
                                          CAIRN_WIRE_BATCH_MAX, &b.count))
        return kv_error(c, "items are 1 to %u times %zu bytes, not %zu bytes",
                        CAIRN_WIRE_BATCH_MAX, sizeof(struct cairn_wire_get), items->len);
    uint64_t value_max = cairn_vault_value_max(b.vault);
    b.bytes_left = value_max > BYTES_MAX ? value_max : BYTES_MAX;
    b.hash_left = c->may_wait ? UINT64_MAX : HASH_AT_ONCE;
    b.got = malloc(b.count * sizeof *b.got);
    if (!b.got)
        return kv_error(c, "no memory");
    enum call_flow flow = CALL_DONE;
    if (read_items(&b)) {
        if (find_all(&b) == CAIRN_OK) {
            write_all(&b);
        } else {
            for (uint32_t i = 0; i < b.count; i++)
                let_go(&b, &b.got[i]);
            flow = CALL_WAITS;
        }
    }
    free(b.got);
    return flow;
}
