/* CAIRN.PUT. The bytes come with the command, long ones straight into their place in the arena, or
 * lie in the client's window. From there they are read once, and what is hashed is the copy: what
 * the client does to its window meanwhile can only make the checks wrong. They are read with pread
 * because the client may free the window's pages too, and touching a page that cannot be had again
 * would end this process. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/copy.h"
#include "tools/cairnd/cmd_kv.h"
#include "tools/cairnd/kv_pins.h"

/* Longer values are copied out of a window, or hashed where they were received, by a worker, so
 * that nobody else waits for them. */
#define COPY_AT_ONCE (1024u * 1024u)
#define HASH_AT_ONCE (4u * 1024u * 1024u)

#define ARG_ITEM 2
#define ARG_CHECKS 3
#define ARG_SIDE 4
#define ARG_BYTES 5

struct put {
    struct call *c;
    struct cairn_wire_put item;
    uint64_t deadline_ns;
    const struct cairn_mapping *window; /* its bytes lie there; NULL: they came with the command */
    uint64_t checks[CAIRN_PIECES_MAX];
};

static enum call_flow answer(struct call *c, cairn_status st, enum cairn_cause cause)
{
    cairn_out_array(c->out, 2);
    cairn_out_int(c->out, st);
    cairn_out_int(c->out, (int64_t)cause);
    return CALL_DONE;
}

static enum call_flow refuse_room(struct call *c)
{
    atomic_fetch_add_explicit(&c->node->stats.no_room, 1, memory_order_relaxed);
    return answer(c, CAIRN_NOSPACE, CAIRN_CAUSE_NO_ROOM);
}

/* Was there an argument that could not even be received? */
static bool no_memory(const struct call *c)
{
    for (uint32_t i = 1; i < c->argc; i++)
        if (c->args[i].len && !c->args[i].data)
            return true;
    return false;
}

/* false: an error was written */
static bool find_window(struct put *p)
{
    const struct client_shared *s = p->c->client->shared;
    uint64_t end;
    if (!s || s->window.len == 0) {
        kv_error(p->c, "this connection has no window: attach first");
        return false;
    }
    if (__builtin_add_overflow(p->item.window_offset, p->item.value_len, &end) ||
        end > s->window.len) {
        kv_error(p->c, "the value does not lie in the window of %zu bytes", s->window.len);
        return false;
    }
    if (p->c->args[ARG_BYTES].len) {
        kv_error(p->c, "the bytes lie in the window or come with the command, not both");
        return false;
    }
    p->window = &s->window;
    return true;
}

/* false: an error was written */
static bool read_put(struct put *p)
{
    struct call *c = p->c;
    const struct cairn_resp_arg *item = &c->args[ARG_ITEM], *checks = &c->args[ARG_CHECKS];
    const char *why = NULL;
    if (!kv_deadline(c, 1, &p->deadline_ns))
        return false;
    if (!item->data || item->len != sizeof p->item) {
        kv_error(c, "the item is %zu bytes, not %zu", sizeof p->item, item->len);
        return false;
    }
    if (cairn_wire_put_read(item->data, &p->item, &why)) {
        kv_error(c, "%s", why);
        return false;
    }
    uint32_t pieces = cairn_piece_count(p->item.value_len);
    if (!checks->data || checks->len != pieces * sizeof p->checks[0]) {
        kv_error(c, "a value of %llu bytes has %u checks of 8 bytes, not %zu bytes of them",
                 (unsigned long long)p->item.value_len, pieces, checks->len);
        return false;
    }
    memcpy(p->checks, checks->data, checks->len);
    if (c->args[ARG_SIDE].len > CAIRN_SIDE_MAX) {
        kv_error(c, "side records are at most %u bytes, not %zu", CAIRN_SIDE_MAX,
                 c->args[ARG_SIDE].len);
        return false;
    }
    if (p->item.flags & CAIRN_WIRE_PUT_WINDOW)
        return find_window(p);
    if (c->args[ARG_BYTES].len == p->item.value_len)
        return true;
    kv_error(c, "the item says %llu bytes, but %zu came", (unsigned long long)p->item.value_len,
             c->args[ARG_BYTES].len);
    return false;
}

static cairn_status read_window(const struct put *p, void *to)
{
    size_t done = 0, len = p->item.value_len;
    while (done < len) {
        ssize_t n = pread(p->window->fd, (char *)to + done, len - done,
                          (off_t)(p->item.window_offset + done));
        if (n == 0 || (n < 0 && errno != EINTR))
            return CAIRN_IO;
        done += n > 0 ? (size_t)n : 0;
    }
    return CAIRN_OK;
}

/* The value in a place of its own in the arena. */
static cairn_status fill_room(struct put *p, struct cairn_room *room)
{
    struct cairn_vault *v = p->c->node->vault;
    cairn_status st = cairn_vault_room(v, p->item.value_len, p->c->args[ARG_SIDE].len, room);
    if (st)
        return st;
    if (p->window)
        st = read_window(p, room->value);
    else
        cairn_copy(room->value, p->c->args[ARG_BYTES].data, p->item.value_len);
    if (st)
        cairn_vault_room_drop(v, room);
    return st;
}

static enum cairn_cause cause_of(cairn_status st)
{
    return st == CAIRN_TOOBIG ? CAIRN_CAUSE_TOO_BIG
           : st == CAIRN_IO ? CAIRN_CAUSE_IO_ERROR
                            : CAIRN_CAUSE_BAD_KEY;
}

static struct cairn_commit commit_of(const struct put *p)
{
    static const uint8_t none[32];
    const struct call *c = p->c;
    struct cairn_commit commit = {
        .checks = p->checks,
        .side = c->args[ARG_SIDE].data,
        .tenant = c->client->tenant,
        .flags = (p->item.flags & CAIRN_PUT_REPLACE) | (c->may_wait ? 0 : CAIRN_COMMIT_NOWAIT),
        .expires_ns = p->item.expires_ns,
    };
    memcpy(commit.key.bytes, p->item.key, sizeof commit.key.bytes);
    memcpy(commit.parent.bytes, p->item.parent, sizeof commit.parent.bytes);
    if (memcmp(p->item.fingerprint, none, sizeof none) != 0)
        commit.fingerprint = p->item.fingerprint;
    return commit;
}

static void account(const struct put *p, cairn_status st)
{
    if (st == CAIRN_CORRUPT && p->window)
        atomic_fetch_add_explicit(&p->c->node->stats.window_rejects, 1, memory_order_relaxed);
    if (st == CAIRN_OK && (p->item.flags & CAIRN_PUT_REPLACE))
        kv_pins_refresh(p->c->node->kv->pins, (const struct cairn_key *)p->item.key);
}

/* A replacement usually waits for the disk: better before its bytes are copied. */
static bool takes_long(const struct put *p)
{
    if (!p->window)
        return p->item.value_len > HASH_AT_ONCE;
    return p->item.value_len > COPY_AT_ONCE || (p->item.flags & CAIRN_PUT_REPLACE);
}

enum call_flow kv_put_run(struct call *c)
{
    struct put p = {.c = c};
    struct cairn_room room;
    if (no_memory(c))
        return refuse_room(c);
    if (!read_put(&p))
        return CALL_DONE;
    if (!c->may_wait && takes_long(&p))
        return CALL_WAITS;
    bool received = call_take_room(c, &room);
    if (received && room.side_len != c->args[ARG_SIDE].len) {
        call_return_room(c, &room);
        return kv_error(c, "its place was made for %zu bytes of side records", room.side_len);
    }
    if (!received) {
        cairn_status st = fill_room(&p, &room);
        if (st)
            return st == CAIRN_NOSPACE ? refuse_room(c) : answer(c, st, cause_of(st));
    }
    struct cairn_commit commit = commit_of(&p);
    enum cairn_cause cause = CAIRN_CAUSE_NONE;
    cairn_status st = cairn_vault_commit(c->node->vault, &room, &commit, p.deadline_ns, &cause);
    if (st == CAIRN_INPROGRESS) {
        if (received)
            call_return_room(c, &room);
        else
            cairn_vault_room_drop(c->node->vault, &room);
        return CALL_WAITS;
    }
    account(&p, st);
    return answer(c, st, cause);
}
