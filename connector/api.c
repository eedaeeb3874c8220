#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/move.h"
#include "base/types.h"
#include "connector/handle.h"

static _Atomic uint64_t fork_count;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void in_child(void)
{
    atomic_fetch_add_explicit(&fork_count, 1, memory_order_relaxed);
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, in_child);
}

bool cairn_handle_ours(const struct cairn_store *s)
{
    return s && s->forks == atomic_load_explicit(&fork_count, memory_order_relaxed);
}

const char *cairn_version(void)
{
    return CAIRN_VERSION_STRING;
}

const char *cairn_status_str(cairn_status s)
{
    return cairn_status_name(s);
}

void cairn_messages_to(cairn_message_fn fn, void *arg, int level_max)
{
    cairn_log_to(fn, arg, level_max);
}

/* No backend has this scheme: the sentence shows one URI of each. */
static cairn_status refuse_scheme(const char *uri, char *err, size_t cap)
{
    int n = snprintf(err, cap, "'%s': unknown kind of store; write", uri);
    for (const struct cairn_backend_ops *const *o = cairn_backends; *o; o++) {
        if (n < 0 || (size_t)n >= cap)
            break;
        n += snprintf(err + n, cap - (size_t)n, "%s %s", o == cairn_backends ? "" : " or",
                      (*o)->example);
    }
    return CAIRN_INVAL;
}

cairn_status cairn_open(const char *uri, cairn_store **ret, char *err, size_t err_cap)
{
    char scratch[1];
    if (!err || !err_cap) {
        err = scratch;
        err_cap = sizeof scratch;
    }
    err[0] = '\0';
    if (!uri || !ret) {
        snprintf(err, err_cap, "cairn_open needs a URI and a place for the store");
        return CAIRN_INVAL;
    }
    const struct cairn_backend_ops *ops = cairn_backend_find(uri);
    if (!ops)
        return refuse_scheme(uri, err, err_cap);
    pthread_once(&fork_once, watch_forks);
    struct cairn_store *s = cairn_calloc(1, sizeof *s);
    if (!s) {
        snprintf(err, err_cap, "no memory for the store: end something else, or use a smaller ram");
        return CAIRN_NOMEM;
    }
    cairn_status st = ops->open(uri, &s->backend, err, err_cap);
    if (st) {
        free(s);
        return st;
    }
    s->backend->ops = ops;
    s->forks = atomic_load_explicit(&fork_count, memory_order_relaxed);
    pthread_mutex_init(&s->session_lock, NULL);
    pthread_mutex_init(&s->pool_lock, NULL);
    *ret = s;
    return CAIRN_OK;
}

void cairn_close(cairn_store *s)
{
    /* A child leaves everything as it is: the memory and the threads are its parent's. */
    if (!cairn_handle_ours(s))
        return;
    while (s->sessions)
        cairn_session_close(s->sessions);
    cairn_pool_close(s->pool);
    s->backend->ops->close(s->backend);
    pthread_mutex_destroy(&s->session_lock);
    pthread_mutex_destroy(&s->pool_lock);
    free(s);
}

uint64_t cairn_value_max(const cairn_store *s)
{
    return cairn_handle_ours(s) ? s->backend->ops->value_max(s->backend) : 0;
}

cairn_status cairn_note_identity(cairn_store *s, const cairn_identity *id)
{
    return cairn_handle_ours(s) ? s->backend->ops->note_identity(s->backend, id) : CAIRN_STATE;
}

cairn_status cairn_put(cairn_store *s, struct cairn_put *puts, size_t count, uint64_t timeout_ns)
{
    if (!cairn_handle_ours(s)) {
        for (size_t i = 0; i < count; i++)
            puts[i].status = CAIRN_STATE;
        return CAIRN_STATE;
    }
    struct cairn_order order = {.count = 0};
    cairn_order_add_puts(&order, puts, count);
    const struct cairn_order *before = cairn_order_enter(&order);
    cairn_status st = s->backend->ops->put(s->backend, puts, count, cairn_deadline_ns(timeout_ns));
    cairn_order_enter(before);
    cairn_order_end(&order);
    return st;
}

cairn_status cairn_get(cairn_store *s, struct cairn_get *gets, size_t count, uint64_t timeout_ns,
                       size_t *ret_hits)
{
    if (ret_hits)
        *ret_hits = 0;
    if (!cairn_handle_ours(s)) {
        for (size_t i = 0; i < count; i++)
            gets[i].status = CAIRN_STATE;
        return CAIRN_STATE;
    }
    struct cairn_order order = {.count = 0};
    cairn_order_add_gets(&order, gets, count);
    const struct cairn_order *before = cairn_order_enter(&order);
    cairn_status st = s->backend->ops->get(s->backend, gets, count, cairn_deadline_ns(timeout_ns),
                                           ret_hits);
    cairn_order_enter(before);
    cairn_order_end(&order);
    return st;
}

size_t cairn_lookup(cairn_store *s, const struct cairn_key *keys, size_t count)
{
    return cairn_handle_ours(s) ? s->backend->ops->lookup(s->backend, keys, count) : 0;
}

uint64_t cairn_value_len(cairn_store *s, const struct cairn_key *key)
{
    return cairn_handle_ours(s) ? s->backend->ops->value_len(s->backend, key) : 0;
}

cairn_status cairn_side(cairn_store *s, const struct cairn_key *key, void *out, uint32_t *len,
                        uint64_t timeout_ns)
{
    if (!cairn_handle_ours(s))
        return CAIRN_STATE;
    return s->backend->ops->side(s->backend, key, out, len, cairn_deadline_ns(timeout_ns));
}

cairn_status cairn_delete(cairn_store *s, const struct cairn_key *keys, size_t count,
                          uint64_t timeout_ns, cairn_status *results)
{
    if (!cairn_handle_ours(s))
        return CAIRN_STATE;
    return s->backend->ops->remove(s->backend, keys, count, cairn_deadline_ns(timeout_ns),
                                   results);
}

cairn_status cairn_flush(cairn_store *s, uint64_t timeout_ns)
{
    if (!cairn_handle_ours(s))
        return CAIRN_STATE;
    return s->backend->ops->flush(s->backend, cairn_deadline_ns(timeout_ns));
}

size_t cairn_why(cairn_store *s, const cairn_identity *id, char *out, size_t cap)
{
    return cairn_handle_ours(s) ? s->backend->ops->why(s->backend, id, out, cap) : 0;
}

size_t cairn_refusal(cairn_store *s, char *out, size_t cap)
{
    if (cap)
        out[0] = '\0';
    if (!cairn_handle_ours(s) || !s->backend->ops->refusal)
        return 0;
    return s->backend->ops->refusal(s->backend, out, cap);
}

size_t cairn_stats(cairn_store *s, char *out, size_t cap)
{
    return cairn_handle_ours(s) ? s->backend->ops->stats(s->backend, out, cap) : 0;
}
