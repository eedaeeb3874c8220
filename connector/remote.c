#include "connector/remote.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/copy.h"
#include "base/log.h"
#include "base/mem.h"
#include "chunking/why.h"
#include "transport/sock.h"

/* Three calls in a row that the node leaves unanswered, and it is left alone for a while. */
static const struct cairn_breaker_limits breaker_limits = {
    .failures = 3,
    .pause_min_ns = 100 * CAIRN_NS_PER_MS,
    .pause_max_ns = 2 * CAIRN_NS_PER_S,
    .trial_ns = 10 * CAIRN_NS_PER_S,
};

static struct remote *remote_of(struct cairn_backend *b)
{
    return (struct remote *)b;
}

static void locks_init(struct remote *r)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&r->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&r->lock, NULL);
    pthread_mutex_init(&r->lease_lock, NULL);
    pthread_mutex_init(&r->identity_lock, NULL);
    pthread_mutex_init(&r->life_lock, NULL);
    pthread_mutex_init(&r->arenas.lock, NULL);
    cairn_breaker_open(&r->breaker, &breaker_limits, cairn_now_ns() ^ (uintptr_t)r);
}

static void identities_free(struct remote_identity *list)
{
    while (list) {
        struct remote_identity *id = list;
        list = id->next;
        free(id);
    }
}

static void remote_close(struct cairn_backend *b)
{
    struct remote *r = remote_of(b);
    remote_pool_close(r);
    pthread_mutex_destroy(&r->arenas.lock);
    pthread_mutex_destroy(&r->identity_lock);
    pthread_mutex_destroy(&r->life_lock);
    pthread_mutex_destroy(&r->lease_lock);
    pthread_mutex_destroy(&r->lock);
    pthread_cond_destroy(&r->changed);
    cairn_breaker_close(&r->breaker);
    identities_free(r->identities);
    free(r);
}

static cairn_status remote_open(const char *uri, struct cairn_backend **ret, char *err, size_t cap)
{
    struct remote *r = cairn_calloc(1, sizeof *r);
    if (!r)
        return CAIRN_NOMEM;
    cairn_status st = remote_uri_parse(uri, &r->o, err, cap);
    if (!st)
        st = cairn_cuda_option(r->o.cuda, err, cap);
    if (st) {
        free(r);
        return st;
    }
    cairn_copy_init();
    locks_init(r);
    r->base.workers = r->o.workers;
    atomic_store(&r->lease_due_ns, UINT64_MAX);
    st = remote_pool_open(r, err, cap);
    if (st) {
        remote_close(&r->base);
        return st;
    }
    *ret = &r->base;
    return CAIRN_OK;
}

static uint64_t remote_value_max(struct cairn_backend *b)
{
    return atomic_load_explicit(&remote_of(b)->value_max, memory_order_acquire);
}

/* --- calls of one command --- */

/* A command whose answer is a number. */
static cairn_status ask_int(struct remote_conn *c, uint64_t ticket, int64_t *ret)
{
    cairn_status st = conn_await(c, ticket);
    return st ? st : conn_int(c, ret);
}

static cairn_status status_of(int64_t number)
{
    return number <= 0 && number >= CAIRN_STATE ? (cairn_status)number : CAIRN_IO;
}

struct keys_call {
    const struct cairn_key *keys;
    size_t count, done;
    uint64_t number;
    cairn_status first, *results;
};

static uint32_t keys_now(const struct keys_call *call)
{
    size_t left = call->count - call->done;
    return left < CAIRN_WIRE_KEYS_MAX ? (uint32_t)left : CAIRN_WIRE_KEYS_MAX;
}

static cairn_status lookup_over(struct remote *r, struct remote_conn *c, void *arg)
{
    struct keys_call *call = arg;
    (void)r;
    for (bool whole = true; whole && call->done < call->count;) {
        uint32_t n = keys_now(call);
        uint64_t parts, ticket = conn_command(c, "CAIRN.LOOKUP", 1);
        int64_t held, resident;
        conn_ref(c, call->keys + call->done, n * sizeof *call->keys);
        cairn_status st = conn_await(c, ticket);
        if (!st)
            st = conn_array(c, &parts);
        if (!st)
            st = parts == 2 ? conn_int(c, &held) : CAIRN_CORRUPT;
        if (!st)
            st = conn_int(c, &resident);
        if (!st && (held < 0 || held > n))
            st = CAIRN_CORRUPT;
        if (st)
            return st;
        call->done += (size_t)held;
        whole = held == n;
    }
    return CAIRN_OK;
}

static size_t remote_lookup(struct cairn_backend *b, const struct cairn_key *keys, size_t count)
{
    struct remote *r = remote_of(b);
    struct keys_call call = {.keys = keys, .count = count};
    if (count)
        (void)remote_run(r, lookup_over, &call, remote_patience(r));
    return call.done;
}

static cairn_status length_over(struct remote *r, struct remote_conn *c, void *arg)
{
    struct keys_call *call = arg;
    int64_t len = 0;
    (void)r;
    uint64_t ticket = conn_command(c, "CAIRN.LENGTH", 1);
    conn_bytes(c, call->keys, sizeof *call->keys);
    cairn_status st = ask_int(c, ticket, &len);
    call->number = !st && len > 0 ? (uint64_t)len : 0;
    return st;
}

static uint64_t remote_value_len(struct cairn_backend *b, const struct cairn_key *key)
{
    struct remote *r = remote_of(b);
    struct keys_call call = {.keys = key, .count = 1};
    (void)remote_run(r, length_over, &call, remote_patience(r));
    return call.number;
}

static void delete_result(struct keys_call *call, cairn_status result)
{
    if (call->results)
        call->results[call->done] = result;
    if (result && result != CAIRN_MISS && !call->first)
        call->first = result;
    call->done++;
}

/* As many keys as one command takes. */
static cairn_status delete_some(struct remote *r, struct remote_conn *c, struct keys_call *call)
{
    uint32_t n = keys_now(call);
    size_t end = call->done + n;
    uint64_t parts, ticket = conn_command(c, "CAIRN.DELETE", 2);
    conn_number(c, conn_wire_timeout(c));
    conn_ref(c, call->keys + call->done, n * sizeof *call->keys);
    cairn_status st = conn_await(c, ticket);
    if (!st)
        st = conn_array(c, &parts);
    if (!st && parts != n)
        st = CAIRN_CORRUPT;
    while (call->done < end && !st) {
        int64_t number;
        st = conn_int(c, &number);
        if (!st)
            delete_result(call, status_of(number));
    }
    /* What went out whole may have been done: done again it could take what was put since. */
    if (st && st != CAIRN_BUSY && !c->send_failed) {
        remote_unknown(r, end - call->done);
        while (call->done < end)
            delete_result(call, remote_status(st));
    }
    return st;
}

static cairn_status delete_over(struct remote *r, struct remote_conn *c, void *arg)
{
    struct keys_call *call = arg;
    /* What is sent to a node which is gone already would be a delete of which nothing is known. */
    cairn_status st = cairn_sock_alive(c->fd) ? CAIRN_OK : CAIRN_IO;
    while (call->done < call->count && !st)
        st = delete_some(r, c, call);
    return st;
}

static cairn_status remote_remove(struct cairn_backend *b, const struct cairn_key *keys,
                                  size_t count, uint64_t deadline_ns, cairn_status *results)
{
    struct keys_call call = {.keys = keys, .count = count, .results = results};
    cairn_status st = count ? remote_run(remote_of(b), delete_over, &call, deadline_ns) : CAIRN_OK;
    for (size_t i = call.done; i < count && results; i++)
        results[i] = st ? remote_status(st) : CAIRN_IO;
    return call.first ? call.first : st ? remote_status(st) : CAIRN_OK;
}

struct side_call {
    const struct cairn_key *key;
    void *out;
    uint32_t *len;
    cairn_status status;
};

static cairn_status side_over(struct remote *r, struct remote_conn *c, void *arg)
{
    struct side_call *call = arg;
    uint64_t parts, len = 0;
    int64_t number = 0;
    (void)r;
    uint64_t ticket = conn_command(c, "CAIRN.SIDE", 2);
    conn_number(c, conn_wire_timeout(c));
    conn_bytes(c, call->key, sizeof *call->key);
    cairn_status st = conn_await(c, ticket);
    if (!st)
        st = conn_array(c, &parts);
    if (!st)
        st = parts == 2 ? conn_int(c, &number) : CAIRN_CORRUPT;
    if (!st)
        st = conn_string_head(c, &len);
    if (st)
        return st;
    call->status = status_of(number);
    if (call->status)
        return CAIRN_OK;
    len = len == CONN_NULL ? 0 : len;
    struct iovec run = {call->out, len};
    bool fits = len <= *call->len;
    *call->len = (uint32_t)len;
    call->status = fits ? CAIRN_OK : CAIRN_TOOBIG;
    return fits && len ? conn_string_part(c, &run, 1) : CAIRN_OK;
}

static cairn_status remote_side(struct cairn_backend *b, const struct cairn_key *key, void *out,
                                uint32_t *len, uint64_t deadline_ns)
{
    struct side_call call = {.key = key, .out = out, .len = len};
    cairn_status st = remote_run(remote_of(b), side_over, &call, deadline_ns);
    return st == CAIRN_NOTFOUND ? CAIRN_MISS : st ? remote_status(st) : call.status;
}

/* --- flush --- */

static void life_add(struct remote_life *to, const struct remote_life *more)
{
    if (!more->run_id[0])
        return;
    to->several |= more->several || (to->run_id[0] && strcmp(to->run_id, more->run_id) != 0);
    memcpy(to->run_id, more->run_id, sizeof to->run_id);
}

void remote_accepted(struct remote *r, const struct remote_conn *c)
{
    struct remote_life life = {.several = false};
    memcpy(life.run_id, c->hello.run_id, sizeof life.run_id);
    pthread_mutex_lock(&r->life_lock);
    life_add(&r->unflushed, &life);
    pthread_mutex_unlock(&r->life_lock);
}

struct flush_call {
    struct remote_life life;
    int64_t result;
};

/* The node answers from time to time, so that its silence means something. */
static cairn_status flush_over(struct remote *r, struct remote_conn *c, void *arg)
{
    struct flush_call *call = arg;
    (void)r;
    do {
        uint64_t ticket = conn_command(c, "CAIRN.FLUSH", 1);
        conn_number(c, conn_wire_timeout(c));
        cairn_status st = ask_int(c, ticket, &call->result);
        if (st)
            return st;
    } while (call->result == CAIRN_TIMEOUT && cairn_now_ns() < c->deadline_ns);
    struct remote_life *life = &call->life;
    life->several |= life->run_id[0] && strcmp(life->run_id, c->hello.run_id) != 0;
    return CAIRN_OK;
}

/* What was put to a node that has ended since may not have reached its disk. */
static cairn_status remote_flush(struct cairn_backend *b, uint64_t deadline_ns)
{
    struct remote *r = remote_of(b);
    struct flush_call call = {.result = CAIRN_IO};
    pthread_mutex_lock(&r->life_lock);
    call.life = r->unflushed;
    r->unflushed = (struct remote_life){.several = false};
    pthread_mutex_unlock(&r->life_lock);
    cairn_status st = remote_run(r, flush_over, &call, deadline_ns);
    st = st ? remote_status(st) : status_of(call.result);
    if (st) {
        pthread_mutex_lock(&r->life_lock);
        life_add(&r->unflushed, &call.life);
        pthread_mutex_unlock(&r->life_lock);
        return st;
    }
    if (!call.life.several)
        return CAIRN_OK;
    cairn_log(CAIRN_LOG_WARN, "%s: the node was started again after values were put: it may not "
              "have written them before", r->o.address);
    return CAIRN_IO;
}

/* --- identities --- */

/* As the latest of all, where it is known already too; the oldest makes way. */
static bool identity_keep(struct remote *r, const void *canon, size_t len)
{
    struct remote_identity *id = cairn_malloc(sizeof *id + len);
    if (!id)
        return false;
    id->next = NULL;
    id->len = len;
    memcpy(id->canon, canon, len);
    pthread_mutex_lock(&r->identity_lock);
    struct remote_identity **at = &r->identities, **out = NULL, *gone = NULL;
    uint32_t kept = 0;
    for (; *at; at = &(*at)->next, kept++)
        if ((*at)->len == len && memcmp((*at)->canon, canon, len) == 0)
            out = at;
    *at = id;
    if (!out && kept == REMOTE_IDENTITIES_MAX)
        out = &r->identities;
    if (out) {
        gone = *out;
        *out = gone->next;
    }
    pthread_mutex_unlock(&r->identity_lock);
    free(gone);
    return true;
}

struct text_call {
    const char *command;
    const void *canon; /* NULL: no argument */
    size_t canon_len;
    char *text;        /* malloc'd */
    size_t len;
    int64_t number;
};

static cairn_status identity_over(struct remote *r, struct remote_conn *c, void *arg)
{
    struct text_call *call = arg;
    (void)r;
    uint64_t ticket = conn_command(c, call->command, 1);
    conn_bytes(c, call->canon, call->canon_len);
    return ask_int(c, ticket, &call->number);
}

static cairn_status remote_note_identity(struct cairn_backend *b, const cairn_identity *id)
{
    struct remote *r = remote_of(b);
    struct text_call call = {.command = "CAIRN.IDENTITY"};
    call.canon = cairn_identity_canonical(id, &call.canon_len);
    if (!identity_keep(r, call.canon, call.canon_len))
        return CAIRN_NOMEM;
    cairn_status st = remote_run(r, identity_over, &call, remote_patience(r));
    return st ? remote_status(st) : status_of(call.number);
}

/* --- texts --- */

static cairn_status text_over(struct remote *r, struct remote_conn *c, void *arg)
{
    struct text_call *call = arg;
    uint64_t len;
    (void)r;
    uint64_t ticket = conn_command(c, call->command, call->canon ? 1 : 0);
    if (call->canon)
        conn_bytes(c, call->canon, call->canon_len);
    cairn_status st = conn_await(c, ticket);
    if (!st)
        st = conn_string_head(c, &len);
    if (st)
        return st;
    if (len == CONN_NULL || len > UINT32_MAX)
        return CAIRN_CORRUPT;
    free(call->text);
    call->len = (size_t)len;
    call->text = cairn_malloc(len + 1);
    if (!call->text)
        return CAIRN_NOMEM;
    struct iovec run = {call->text, call->len};
    st = len ? conn_string_part(c, &run, 1) : CAIRN_OK;
    call->text[len] = '\0';
    return st;
}

bool remote_text(struct remote *r, const char *command, const void *canon, size_t canon_len,
                 char **ret)
{
    struct text_call call = {.command = command, .canon = canon, .canon_len = canon_len};
    if (remote_run(r, text_over, &call, remote_patience(r))) {
        free(call.text);
        return false;
    }
    *ret = call.text;
    return true;
}

static size_t remote_why(struct cairn_backend *b, const cairn_identity *id, char *out, size_t cap)
{
    size_t len;
    char *text;
    const void *canon = cairn_identity_canonical(id, &len);
    if (!remote_text(remote_of(b), "CAIRN.WHY", canon, len, &text))
        return cairn_identity_why_json(id, NULL, 0, out, cap);
    int n = snprintf(out, cap, "%s", text);
    free(text);
    return n > 0 ? (size_t)n : 0;
}

#define REMOTE_OPS \
    .open = remote_open, .close = remote_close, .value_max = remote_value_max, \
    .note_identity = remote_note_identity, .put = remote_put, .get = remote_get, \
    .lookup = remote_lookup, .value_len = remote_value_len, .side = remote_side, \
    .remove = remote_remove, .flush = remote_flush, .lease_take = remote_lease_take, \
    .lease_view = remote_lease_view, .lease_renew = remote_lease_renew, \
    .lease_release = remote_lease_release, .why = remote_why, .refusal = remote_refusal, \
    .stats = remote_stats

const struct cairn_backend_ops cairn_unix_ops = {
    .scheme = "unix:",
    .example = "unix:/run/cairn/cairn.sock",
    REMOTE_OPS,
};

const struct cairn_backend_ops cairn_tcp_ops = {
    .scheme = "tcp:",
    .example = "tcp://127.0.0.1:7379",
    REMOTE_OPS,
};
