/* Leases: pins with an owner and an end. A lease that nobody looked into ends by itself; one whose
 * memory was handed out ends only when its owner releases it or goes, since nothing else says that
 * nobody reads there any more. */
#include <stdlib.h>

#include "base/clock.h"
#include "connector/handle.h"

struct cairn_lease {
    struct cairn_session *session;
    struct cairn_lease *prev, *next;
    uint64_t taken_ns, ends_ns;
    size_t held;          /* pins; 0 once it has ended */
    bool viewed;
    struct cairn_pin pins[];
};

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
    pthread_mutex_lock(&s->lease_lock);
    ss->next = s->sessions;
    if (ss->next)
        ss->next->prev = ss;
    s->sessions = ss;
    pthread_mutex_unlock(&s->lease_lock);
    *ret = ss;
    return CAIRN_OK;
}

static size_t end_lease(struct cairn_store *s, struct cairn_lease *l)
{
    size_t held = l->held;
    cairn_vault_unpin(s->vault, l->pins, held);
    l->held = 0;
    return held;
}

static void drop_lease(struct cairn_store *s, struct cairn_lease *l)
{
    end_lease(s, l);
    if (l->prev)
        l->prev->next = l->next;
    else
        l->session->leases = l->next;
    if (l->next)
        l->next->prev = l->prev;
    free(l);
}

void cairn_session_close(cairn_session *ss)
{
    if (!ss || !cairn_handle_ours(ss->store))
        return;
    struct cairn_store *s = ss->store;
    pthread_mutex_lock(&s->lease_lock);
    while (ss->leases)
        drop_lease(s, ss->leases);
    if (ss->prev)
        ss->prev->next = ss->next;
    else
        s->sessions = ss->next;
    if (ss->next)
        ss->next->prev = ss->prev;
    pthread_mutex_unlock(&s->lease_lock);
    free(ss);
}

static size_t expire_locked(struct cairn_store *s)
{
    uint64_t now = cairn_now_ns();
    size_t freed = 0;
    for (struct cairn_session *ss = s->sessions; ss; ss = ss->next)
        for (struct cairn_lease *l = ss->leases; l; l = l->next)
            if (l->held && !l->viewed && l->ends_ns <= now)
                freed += end_lease(s, l);
    return freed;
}

size_t cairn_leases_expire(struct cairn_store *s)
{
    pthread_mutex_lock(&s->lease_lock);
    size_t freed = expire_locked(s);
    pthread_mutex_unlock(&s->lease_lock);
    return freed;
}

uint64_t cairn_leases_oldest_ns(struct cairn_store *s)
{
    uint64_t now = cairn_now_ns(), oldest = now;
    pthread_mutex_lock(&s->lease_lock);
    for (struct cairn_session *ss = s->sessions; ss; ss = ss->next)
        for (struct cairn_lease *l = ss->leases; l; l = l->next)
            if (l->held && l->taken_ns < oldest)
                oldest = l->taken_ns;
    pthread_mutex_unlock(&s->lease_lock);
    return now - oldest;
}

cairn_status cairn_lease_take(cairn_session *ss, const struct cairn_key *keys, size_t count,
                              uint64_t ttl_ns, uint64_t timeout_ns, cairn_lease **ret,
                              size_t *ret_held)
{
    if (!ss || !cairn_handle_ours(ss->store))
        return CAIRN_STATE;
    struct cairn_store *s = ss->store;
    if (count > (SIZE_MAX - sizeof(struct cairn_lease)) / sizeof(struct cairn_pin))
        return CAIRN_INVAL;
    struct cairn_lease *l = calloc(1, sizeof *l + count * sizeof l->pins[0]);
    if (!l)
        return CAIRN_NOMEM;
    cairn_leases_expire(s);
    l->held = cairn_vault_pin(s->vault, keys, count, cairn_deadline_ns(timeout_ns), l->pins);
    if (l->held == 0) {
        free(l);
        return CAIRN_MISS;
    }
    l->session = ss;
    l->taken_ns = cairn_now_ns();
    l->ends_ns = cairn_deadline_ns(ttl_ns);
    pthread_mutex_lock(&s->lease_lock);
    l->next = ss->leases;
    if (l->next)
        l->next->prev = l;
    ss->leases = l;
    pthread_mutex_unlock(&s->lease_lock);
    *ret_held = l->held;
    *ret = l;
    return CAIRN_OK;
}

/* Has it ended? Lock held. */
static bool over(const struct cairn_lease *l)
{
    return l->held == 0 || l->ends_ns <= cairn_now_ns();
}

cairn_status cairn_lease_view(cairn_lease *l, size_t i, const void **ret, uint64_t *ret_len)
{
    if (!l || !cairn_handle_ours(l->session->store))
        return CAIRN_STATE;
    struct cairn_store *s = l->session->store;
    cairn_status st = CAIRN_OK;
    pthread_mutex_lock(&s->lease_lock);
    if (over(l)) {
        st = CAIRN_TIMEOUT;
    } else if (i >= l->held) {
        st = CAIRN_INVAL;
    } else {
        l->viewed = true;
        *ret = l->pins[i].value;
        *ret_len = l->pins[i].value_len;
    }
    pthread_mutex_unlock(&s->lease_lock);
    return st;
}

cairn_status cairn_lease_renew(cairn_lease *l, uint64_t ttl_ns)
{
    if (!l || !cairn_handle_ours(l->session->store))
        return CAIRN_STATE;
    struct cairn_store *s = l->session->store;
    pthread_mutex_lock(&s->lease_lock);
    cairn_status st = over(l) ? CAIRN_TIMEOUT : CAIRN_OK;
    if (!st)
        l->ends_ns = cairn_deadline_ns(ttl_ns);
    pthread_mutex_unlock(&s->lease_lock);
    return st;
}

void cairn_lease_release(cairn_lease *l)
{
    if (!l || !cairn_handle_ours(l->session->store))
        return;
    struct cairn_store *s = l->session->store;
    pthread_mutex_lock(&s->lease_lock);
    drop_lease(s, l);
    pthread_mutex_unlock(&s->lease_lock);
}
