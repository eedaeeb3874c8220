/* Reading in place: attaching, leases, and what an operator pins. A lease of values in RAM is taken
 * on the network thread: nothing is verified here (who reads the bytes does that) and nothing is
 * allocated. */
#include <string.h>

#include "tools/cairnd/cmd_kv.h"
#include "tools/cairnd/kv_pins.h"

/* Longer chains go to a worker, so that nobody else waits for them. */
#define CHAIN_AT_ONCE 1024u

static void count_up(_Atomic uint64_t *counter, uint64_t n)
{
    atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static bool window_size(struct call *c, int64_t *ret)
{
    if (call_int(c, 1, ret) && *ret >= 0)
        return true;
    kv_error(c, "the window's size is a number of bytes, 0 for none");
    return false;
}

enum call_flow kv_attach_run(struct call *c)
{
    int64_t window;
    char why[200];
    if (!window_size(c, &window))
        return CALL_DONE;
    if (!c->may_wait)
        return kv_attach(c->client, why, sizeof why) ? kv_error(c, "%s", why) : CALL_WAITS;
    kv_open_window(c->client, (uint64_t)window);
    struct client_shared *s = c->client->shared;
    s->attached = true;
    const struct kv *kv = c->node->kv;
    const int fds[] = {kv->arena_fd, s->window.fd};
    cairn_out_fds(c->out, fds, s->window.len ? 2 : 1);
    cairn_out_array(c->out, 2);
    cairn_out_int(c->out, (int64_t)kv->arena_len);
    cairn_out_int(c->out, (int64_t)s->window.len);
    return CALL_DONE;
}

enum call_flow kv_window_run(struct call *c)
{
    int64_t window;
    struct client_shared *s = c->client->shared;
    if (!window_size(c, &window))
        return CALL_DONE;
    if (!s || !s->attached)
        return kv_error(c, "attach before you ask for a window");
    if (s->window.len)
        return kv_error(c, "this connection has a window of %zu bytes already", s->window.len);
    if (!c->may_wait)
        return CALL_WAITS;
    kv_open_window(c->client, (uint64_t)window);
    if (s->window.len)
        cairn_out_fds(c->out, &s->window.fd, 1);
    cairn_out_int(c->out, (int64_t)s->window.len);
    return CALL_DONE;
}

/* --- leases --- */

/* Pins the held keys from the start. INPROGRESS: some must be read first. */
static cairn_status pin_chain(struct call *c, const struct cairn_key *keys, uint32_t count,
                              uint64_t deadline_ns, struct kv_lease *l)
{
    struct cairn_vault *v = c->node->vault;
    while (l->count < count) {
        struct cairn_pin *at = &l->pins[l->count];
        enum cairn_cause cause;
        size_t got = 1;
        cairn_status st = cairn_vault_pin_now(v, &keys[l->count], false, at, &cause);
        if (st == CAIRN_INPROGRESS) {
            if (!c->may_wait)
                return st;
            got = cairn_vault_pin(v, &keys[l->count], count - l->count, deadline_ns, at);
            st = got ? CAIRN_OK : CAIRN_MISS;
        }
        if (st)
            break;
        l->count += (uint32_t)got;
    }
    return CAIRN_OK;
}

static void write_lease(void *arg, const struct kv_lease *l)
{
    struct call *c = arg;
    c->client->shared->unplaced = l->id;
    const struct kv *kv = c->node->kv;
    cairn_out_array(c->out, 2);
    cairn_out_int(c->out, (int64_t)l->id);
    cairn_out_bulk_head(c->out, (uint64_t)l->count * sizeof(struct cairn_wire_view));
    for (uint32_t i = 0; i < l->count; i++) {
        const struct cairn_record_body_disk *b = cairn_pin_body(&l->pins[i]);
        struct cairn_wire_view view = {
            .offset = kv->arena ? (uint64_t)((const char *)l->pins[i].value - kv->arena) : 0,
            .len = l->pins[i].value_len,
            .version = b->version,
            .check = b->check,
        };
        cairn_out_raw(c->out, &view, sizeof view);
    }
    cairn_out_raw(c->out, "\r\n", 2);
}

static enum call_flow no_lease(struct call *c)
{
    cairn_out_array(c->out, 2);
    cairn_out_int(c->out, 0);
    cairn_out_bulk(c->out, "", 0);
    return CALL_DONE;
}

static uint64_t lease_end(const struct client_shared *s, const struct node *n, uint64_t ttl_ns)
{
    if (s->attached)
        return KV_LEASE_ENDLESS;
    return cairn_deadline_ns(ttl_ns < n->o.lease_ttl_ns ? ttl_ns : n->o.lease_ttl_ns);
}

enum call_flow kv_lease_run(struct call *c)
{
    const struct cairn_key *keys;
    uint32_t count;
    uint64_t ttl, deadline;
    if (!kv_millis(c, 1, &ttl) || !kv_deadline(c, 2, &deadline) || !kv_keys(c, 3, &keys, &count))
        return CALL_DONE;
    if (count > CHAIN_AT_ONCE && !c->may_wait)
        return CALL_WAITS;
    struct client_shared *s = kv_shared(c->client);
    struct kv_leases *leases = s ? kv_leases_of(s) : NULL;
    struct kv_lease *l = leases ? kv_lease_prepare(leases, count) : NULL;
    if (!l)
        return kv_error(c, "no memory");
    if (pin_chain(c, keys, count, deadline, l) == CAIRN_INPROGRESS) {
        kv_lease_discard(leases, l);
        return CALL_WAITS;
    }
    struct node_stats *stats = &c->node->stats;
    count_up(&stats->kv_hits, l->count);
    count_up(&stats->kv_misses, count - l->count);
    if (l->count == 0) {
        kv_lease_discard(leases, l);
        return no_lease(c);
    }
    l->client = c->client->id;
    l->taken_ns = cairn_now_ns();
    l->ends_ns = lease_end(s, c->node, ttl);
    bool timed = l->ends_ns != KV_LEASE_ENDLESS;
    cairn_status st = kv_lease_add(leases, l, write_lease, c);
    if (st == CAIRN_BUSY)
        return kv_error(c, "this client holds %u leases or %u values already: release some",
                        KV_LEASES_MAX, KV_LEASE_PINS_MAX);
    if (st)
        return kv_error(c, "the process that attached is gone");
    if (timed)
        kv_watch_time(c->node->kv);
    count_up(&stats->leases_taken, 1);
    return CALL_DONE;
}

/* false: an error was written */
static bool lease_id(struct call *c, uint32_t i, uint64_t *ret)
{
    int64_t id;
    if (!call_int(c, i, &id) || id <= 0) {
        kv_error(c, "argument %u is not the number of a lease", i);
        return false;
    }
    *ret = (uint64_t)id;
    return true;
}

enum call_flow kv_renew_run(struct call *c)
{
    uint64_t id, ttl;
    if (!lease_id(c, 1, &id) || !kv_millis(c, 2, &ttl))
        return CALL_DONE;
    struct client_shared *s = c->client->shared;
    cairn_status st = CAIRN_TIMEOUT;
    if (s)
        st = kv_lease_renew(kv_leases_of(s), id, lease_end(s, c->node, ttl));
    cairn_out_int(c->out, st);
    return CALL_DONE;
}

enum call_flow kv_release_run(struct call *c)
{
    struct client_shared *s = c->client->shared;
    uint64_t id, released = 0;
    bool all = c->argc == 2 && call_is(c, 1, "ALL");
    if (all || (c->argc == 2 && call_is(c, 1, "CLOSED"))) {
        if (s)
            released = kv_leases_release_client(kv_leases_of(s), all ? c->client->id : KV_CLOSED);
    } else {
        for (uint32_t i = 1; i < c->argc; i++)
            if (!lease_id(c, i, &id))
                return CALL_DONE;
        for (uint32_t i = 1; s && i < c->argc && lease_id(c, i, &id); i++)
            released += kv_lease_release(kv_leases_of(s), id);
    }
    count_up(&c->node->stats.leases_released, released);
    cairn_out_int(c->out, (int64_t)released);
    return CALL_DONE;
}

/* --- an operator's pins --- */

enum call_flow kv_pin_run(struct call *c)
{
    const struct cairn_key *keys;
    uint32_t count, pinned = 0;
    if (!kv_keys(c, 1, &keys, &count))
        return CALL_DONE;
    if (!c->may_wait)
        return CALL_WAITS;
    for (uint32_t i = 0; i < count && cairn_now_ns() < c->deadline_ns; i++)
        pinned += kv_pins_add(c->node->kv->pins, &keys[i], c->deadline_ns) == CAIRN_OK;
    cairn_out_int(c->out, pinned);
    return CALL_DONE;
}

enum call_flow kv_unpin_run(struct call *c)
{
    const struct cairn_key *keys;
    uint32_t count, unpinned = 0;
    if (!kv_keys(c, 1, &keys, &count))
        return CALL_DONE;
    for (uint32_t i = 0; i < count; i++)
        unpinned += kv_pins_remove(c->node->kv->pins, &keys[i]);
    cairn_out_int(c->out, unpinned);
    return CALL_DONE;
}
