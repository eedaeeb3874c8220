/* Leases at a node. The node keeps what is leased to an attached client until it is told
 * otherwise, so the time to live is kept here: whoever enters a call that makes or asks for
 * leases ends those that nobody looked into. Without the node's memory a view is a copy, made
 * when it is first asked for. */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "connector/remote.h"

/* One leased value. */
struct remote_view {
    struct cairn_wire_view at;
    struct cairn_key key;
    _Atomic bool verified;  /* in place        */
    _Atomic(void *) copy;   /* or a copy of it */
};

#define FEW 64u
#define TTL_MAX_MS (24ull * 3600 * 1000)

struct take_call {
    const struct cairn_key *keys;
    uint32_t count, held;
    uint64_t ttl_ms;
    struct cairn_wire_view *views; /* room for `count` */
    struct cairn_wire_view few[FEW];
    struct remote_pin *pin;
    struct remote_arena *arena;
};

cairn_status remote_lease_read(struct remote_conn *c, uint64_t ticket,
                               struct cairn_wire_view *views, uint32_t max, uint64_t *ret_lease,
                               uint32_t *ret_held)
{
    uint64_t parts, len;
    int64_t id;
    *ret_lease = 0;
    *ret_held = 0;
    cairn_status st = conn_await(c, ticket);
    if (st)
        return st == CAIRN_BUSY ? CAIRN_OK : st;
    st = conn_array(c, &parts);
    if (!st)
        st = parts == 2 ? conn_int(c, &id) : CAIRN_CORRUPT;
    if (!st)
        st = conn_string(c, views, max * sizeof *views, &len);
    if (st)
        return st;
    if (len == CONN_NULL)
        len = 0;
    if (len % sizeof *views != 0 || (id == 0) != (len == 0))
        return CAIRN_CORRUPT;
    *ret_lease = (uint64_t)id;
    *ret_held = (uint32_t)(len / sizeof *views);
    return CAIRN_OK;
}

static cairn_status take_over(struct remote *r, struct remote_conn *c, void *arg)
{
    struct take_call *call = arg;
    uint64_t ticket = conn_command(c, "CAIRN.LEASE", 3);
    conn_number(c, call->ttl_ms);
    conn_number(c, conn_wire_timeout(c));
    conn_ref(c, call->keys, call->count * sizeof *call->keys);
    cairn_status st = remote_lease_read(c, ticket, call->views, call->count, &call->pin->id,
                                        &call->held);
    if (st || call->held == 0)
        return st;
    remote_pin_bind(c, call->pin, r);
    call->arena = c->arena;
    if (c->arena)
        remote_arena_hold(&r->arenas, c->arena);
    return CAIRN_OK;
}

/* Pins the keys at the node. On CAIRN_OK views and pin are the caller's. */
static cairn_status take_run(struct remote *r, struct take_call *call, uint64_t ttl_ns,
                             uint64_t deadline_ns)
{
    call->ttl_ms = ttl_ns / CAIRN_NS_PER_MS < TTL_MAX_MS ? ttl_ns / CAIRN_NS_PER_MS + 1
                                                         : TTL_MAX_MS;
    call->views = call->count <= FEW ? call->few : cairn_malloc(call->count * sizeof *call->views);
    call->pin = cairn_calloc(1, sizeof *call->pin);
    cairn_status st = call->views && call->pin ? remote_run(r, take_over, call, deadline_ns)
                                               : CAIRN_NOMEM;
    if (!st && call->held)
        return CAIRN_OK;
    free(call->pin);
    call->pin = NULL;
    return st == CAIRN_NOMEM ? st : CAIRN_MISS;
}

static void take_end(struct take_call *call)
{
    if (call->views != call->few)
        free(call->views);
}

static struct remote_lease *lease_new(uint32_t count)
{
    struct remote_lease *l = cairn_calloc(1, sizeof *l);
    if (l && !(l->views = cairn_calloc(count, sizeof *l->views))) {
        free(l);
        l = NULL;
    }
    return l;
}

static void lease_free(struct remote_lease *l)
{
    if (l)
        free(l->views);
    free(l);
}

/* A lease that nobody looks into is due. Lock held. */
static void due(struct remote *r, uint64_t ends_ns)
{
    if (ends_ns < atomic_load_explicit(&r->lease_due_ns, memory_order_relaxed))
        atomic_store_explicit(&r->lease_due_ns, ends_ns, memory_order_relaxed);
}

static void lease_add(struct remote *r, struct remote_lease *l)
{
    pthread_mutex_lock(&r->lease_lock);
    l->next = r->leases;
    if (l->next)
        l->next->prev = l;
    r->leases = l;
    due(r, l->ends_ns);
    pthread_mutex_unlock(&r->lease_lock);
}

/* Only what nobody looked into ends by itself. */
void remote_leases_expire(struct remote *r)
{
    uint64_t now = cairn_now_ns(), next = UINT64_MAX;
    if (now < atomic_load_explicit(&r->lease_due_ns, memory_order_relaxed))
        return;
    struct remote_pin *over = NULL;
    pthread_mutex_lock(&r->lease_lock);
    for (struct remote_lease *l = r->leases; l; l = l->next) {
        if (!l->pin || l->viewed)
            continue;
        if (l->ends_ns > now) {
            next = l->ends_ns < next ? l->ends_ns : next;
            continue;
        }
        l->pin->next = over;
        over = l->pin;
        l->pin = NULL;
    }
    atomic_store_explicit(&r->lease_due_ns, next, memory_order_relaxed);
    pthread_mutex_unlock(&r->lease_lock);
    while (over) {
        struct remote_pin *pin = over;
        over = pin->next;
        remote_pin_release(r, pin);
    }
}

void remote_leases_count(struct remote *r, uint32_t *ret_leases, uint64_t *ret_oldest_ns)
{
    uint64_t now = cairn_now_ns(), oldest = now;
    uint32_t n = 0;
    pthread_mutex_lock(&r->lease_lock);
    for (struct remote_lease *l = r->leases; l; l = l->next) {
        if (!l->pin)
            continue;
        n++;
        oldest = l->taken_ns < oldest ? l->taken_ns : oldest;
    }
    pthread_mutex_unlock(&r->lease_lock);
    *ret_leases = n;
    *ret_oldest_ns = now - oldest;
}

cairn_status remote_lease_take(struct cairn_backend *b, const struct cairn_key *keys, size_t count,
                               uint64_t ttl_ns, uint64_t deadline_ns, struct cairn_lease **ret,
                               size_t *ret_held)
{
    struct remote *r = (struct remote *)b;
    struct take_call call = {.keys = keys};
    uint64_t ends_ns = cairn_deadline_ns(ttl_ns);
    if (count == 0)
        return CAIRN_MISS;
    call.count = count < CAIRN_WIRE_KEYS_MAX ? (uint32_t)count : CAIRN_WIRE_KEYS_MAX;
    remote_leases_expire(r);
    struct remote_lease *l = lease_new(call.count);
    cairn_status st = l ? take_run(r, &call, ttl_ns, deadline_ns) : CAIRN_NOMEM;
    if (st) {
        lease_free(l);
    } else {
        for (uint32_t i = 0; i < call.held; i++) {
            l->views[i].at = call.views[i];
            l->views[i].key = keys[i];
        }
        l->held = call.held;
        l->pin = call.pin;
        l->arena = call.arena;
        l->taken_ns = cairn_now_ns();
        l->ends_ns = ends_ns;
        *ret_held = l->held;
        *ret = &l->base;
        lease_add(r, l);
    }
    take_end(&call);
    return st;
}

/* Has it ended? Lock held. Once the node has closed its connection a lease gives no new views: it
 * may be another life of the node that is there now. */
static bool over(const struct remote_lease *l)
{
    return !l->pin || l->ends_ns <= cairn_now_ns() || l->pin->conn->lost;
}

static enum cairn_cause verify(const struct remote_lease *l, const struct remote_view *v)
{
    struct cairn_record_body_disk header;
    enum cairn_cause cause = remote_header_read(l->arena, &v->at, &v->key, NULL, &header);
    return cause ? cause : remote_value_verify(l->arena, &v->at, &header);
}

/* Has the node verify a value whose bytes were wrong here. */
static cairn_status suspect_over(struct remote *r, struct remote_conn *c, void *arg)
{
    struct remote_view *v = arg;
    int64_t dropped;
    (void)r;
    uint64_t ticket = conn_command(c, "CAIRN.VERIFY", 1);
    conn_bytes(c, &v->key, sizeof v->key);
    cairn_status st = conn_await(c, ticket);
    return st ? st : conn_int(c, &dropped);
}

static cairn_status view_in_place(struct remote *r, struct remote_lease *l, struct remote_view *v,
                                  const void **ret)
{
    if (!atomic_load_explicit(&v->verified, memory_order_acquire)) {
        enum cairn_cause cause = verify(l, v);
        if (cause) {
            remote_missed(r, cause);
            if (remote_damage(cause))
                (void)remote_run(r, suspect_over, v, remote_patience(r));
            return CAIRN_CORRUPT;
        }
        atomic_store_explicit(&v->verified, true, memory_order_release);
    }
    *ret = l->arena->base + v->at.offset;
    return CAIRN_OK;
}

/* Takes the memory of a copy from the budget. */
static void *copy_memory(struct remote *r, uint64_t len)
{
    uint64_t before = atomic_fetch_add_explicit(&r->copied, len, memory_order_relaxed);
    void *memory = before + len <= r->o.copies ? cairn_malloc(len) : NULL;
    if (!memory)
        atomic_fetch_sub_explicit(&r->copied, len, memory_order_relaxed);
    return memory;
}

static void copy_free(struct remote *r, struct remote_view *v, void *memory)
{
    if (memory)
        atomic_fetch_sub_explicit(&r->copied, v->at.len, memory_order_relaxed);
    free(memory);
}

/* The value as bytes; a get verifies it. Of two threads that come at once one's copy stays. */
static cairn_status view_copied(struct remote *r, struct remote_view *v, const void **ret)
{
    void *copy = atomic_load_explicit(&v->copy, memory_order_acquire);
    if (!copy) {
        if (v->at.len == 0 || v->at.len > CAIRN_VALUE_MAX)
            return CAIRN_CORRUPT;
        void *memory = copy_memory(r, v->at.len);
        if (!memory)
            return CAIRN_NOSPACE;
        struct cairn_iov iov = {memory, v->at.len};
        struct cairn_get get = {.key = v->key, .out = {.iov = &iov, .count = 1}};
        cairn_status st = remote_get(&r->base, &get, 1, remote_patience(r), NULL);
        if (st) {
            copy_free(r, v, memory);
            return get.status;
        }
        if (atomic_compare_exchange_strong(&v->copy, &copy, memory))
            copy = memory;
        else
            copy_free(r, v, memory);
    }
    *ret = copy;
    return CAIRN_OK;
}

cairn_status remote_lease_view(struct cairn_backend *b, struct cairn_lease *lease, size_t i,
                               const void **ret, uint64_t *ret_len)
{
    struct remote *r = (struct remote *)b;
    struct remote_lease *l = (struct remote_lease *)lease;
    pthread_mutex_lock(&r->lease_lock);
    cairn_status st = over(l) ? CAIRN_TIMEOUT : i >= l->held ? CAIRN_INVAL : CAIRN_OK;
    if (!st)
        l->viewed = true;
    pthread_mutex_unlock(&r->lease_lock);
    if (st)
        return st;
    struct remote_view *v = &l->views[i];
    st = l->arena ? view_in_place(r, l, v, ret) : view_copied(r, v, ret);
    if (!st)
        *ret_len = v->at.len;
    return st;
}

/* Where nothing is mapped the node ends leases by itself: the keys are leased anew. It must be
 * the very values; then the new pin takes the place of the old one. */
static cairn_status renew_pin(struct remote *r, struct remote_lease *l, uint64_t ttl_ns)
{
    struct take_call call = {.count = l->held};
    struct cairn_key *keys = cairn_malloc(l->held * sizeof *keys);
    if (!keys)
        return CAIRN_NOMEM;
    for (uint32_t i = 0; i < l->held; i++)
        keys[i] = l->views[i].key;
    call.keys = keys;
    cairn_status st = take_run(r, &call, ttl_ns, remote_patience(r));
    bool same = !st && call.held == l->held;
    for (uint32_t i = 0; i < l->held && same; i++)
        same = call.views[i].version == l->views[i].at.version;
    if (same) {
        pthread_mutex_lock(&r->lease_lock);
        struct remote_pin *old = l->pin;
        l->pin = call.pin;
        pthread_mutex_unlock(&r->lease_lock);
        call.pin = old;
    }
    if (call.pin)
        remote_pin_release(r, call.pin);
    if (call.arena)
        remote_arena_put(&r->arenas, call.arena);
    take_end(&call);
    free(keys);
    return same ? CAIRN_OK : CAIRN_TIMEOUT;
}

cairn_status remote_lease_renew(struct cairn_backend *b, struct cairn_lease *lease, uint64_t ttl_ns)
{
    struct remote *r = (struct remote *)b;
    struct remote_lease *l = (struct remote_lease *)lease;
    uint64_t ends_ns = cairn_deadline_ns(ttl_ns);
    pthread_mutex_lock(&r->lease_lock);
    cairn_status st = over(l) ? CAIRN_TIMEOUT : CAIRN_OK;
    pthread_mutex_unlock(&r->lease_lock);
    if (!st && !l->arena)
        st = renew_pin(r, l, ttl_ns);
    if (st)
        return st;
    pthread_mutex_lock(&r->lease_lock);
    l->ends_ns = ends_ns;
    due(r, ends_ns);
    pthread_mutex_unlock(&r->lease_lock);
    return CAIRN_OK;
}

void remote_lease_release(struct cairn_backend *b, struct cairn_lease *lease)
{
    struct remote *r = (struct remote *)b;
    struct remote_lease *l = (struct remote_lease *)lease;
    pthread_mutex_lock(&r->lease_lock);
    if (l->prev)
        l->prev->next = l->next;
    else
        r->leases = l->next;
    if (l->next)
        l->next->prev = l->prev;
    struct remote_pin *pin = l->pin;
    pthread_mutex_unlock(&r->lease_lock);
    for (uint32_t i = 0; i < l->held; i++)
        copy_free(r, &l->views[i], atomic_load(&l->views[i].copy));
    if (pin)
        remote_pin_release(r, pin);
    remote_arena_put(&r->arenas, l->arena);
    lease_free(l);
}
