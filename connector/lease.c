/* Sessions: owners of leases. What a lease is, its backend knows. */
#include <stdlib.h>

#include "base/clock.h"
#include "connector/handle.h"

struct cairn_session {
    struct cairn_store *store;
    struct cairn_session *prev, *next;
    struct cairn_lease *leases;
};

cairn_status cairn_session_open(cairn_store *s, cairn_session **ret)
{
    if (!cairn_handle_ours(s))
        return CAIRN_STATE;
    struct cairn_session *ss = calloc(1, sizeof *ss);
    if (!ss)
        return CAIRN_NOMEM;
    ss->store = s;
    pthread_mutex_lock(&s->session_lock);
    ss->next = s->sessions;
    if (ss->next)
        ss->next->prev = ss;
    s->sessions = ss;
    pthread_mutex_unlock(&s->session_lock);
    *ret = ss;
    return CAIRN_OK;
}

/* Takes the lease out of its session and ends it. Lock held. */
static void drop_lease(struct cairn_lease *l)
{
    struct cairn_session *ss = l->session;
    struct cairn_backend *b = ss->store->backend;
    if (l->prev)
        l->prev->next = l->next;
    else
        ss->leases = l->next;
    if (l->next)
        l->next->prev = l->prev;
    b->ops->lease_release(b, l);
}

void cairn_session_close(cairn_session *ss)
{
    if (!ss || !cairn_handle_ours(ss->store))
        return;
    struct cairn_store *s = ss->store;
    pthread_mutex_lock(&s->session_lock);
    while (ss->leases)
        drop_lease(ss->leases);
    if (ss->prev)
        ss->prev->next = ss->next;
    else
        s->sessions = ss->next;
    if (ss->next)
        ss->next->prev = ss->prev;
    pthread_mutex_unlock(&s->session_lock);
    free(ss);
}

cairn_status cairn_lease_take(cairn_session *ss, const struct cairn_key *keys, size_t count,
                              uint64_t ttl_ns, uint64_t timeout_ns, cairn_lease **ret,
                              size_t *ret_held)
{
    if (!ss || !cairn_handle_ours(ss->store))
        return CAIRN_STATE;
    struct cairn_store *s = ss->store;
    struct cairn_lease *l;
    size_t held;
    cairn_status st = s->backend->ops->lease_take(s->backend, keys, count, ttl_ns,
                                                  cairn_deadline_ns(timeout_ns), &l, &held);
    if (st)
        return st;
    l->session = ss;
    l->prev = NULL;
    pthread_mutex_lock(&s->session_lock);
    l->next = ss->leases;
    if (l->next)
        l->next->prev = l;
    ss->leases = l;
    pthread_mutex_unlock(&s->session_lock);
    *ret_held = held;
    *ret = l;
    return CAIRN_OK;
}

cairn_status cairn_lease_view(cairn_lease *l, size_t i, const void **ret, uint64_t *ret_len)
{
    if (!l || !cairn_handle_ours(l->session->store))
        return CAIRN_STATE;
    struct cairn_backend *b = l->session->store->backend;
    return b->ops->lease_view(b, l, i, ret, ret_len);
}

cairn_status cairn_lease_renew(cairn_lease *l, uint64_t ttl_ns)
{
    if (!l || !cairn_handle_ours(l->session->store))
        return CAIRN_STATE;
    struct cairn_backend *b = l->session->store->backend;
    return b->ops->lease_renew(b, l, ttl_ns);
}

void cairn_lease_release(cairn_lease *l)
{
    if (!l || !cairn_handle_ours(l->session->store))
        return;
    struct cairn_store *s = l->session->store;
    pthread_mutex_lock(&s->session_lock);
    drop_lease(l);
    pthread_mutex_unlock(&s->session_lock);
}
