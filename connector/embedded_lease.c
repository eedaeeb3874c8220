/* Leases: pins with an owner and an end. A lease that nobody looked into ends by itself; one whose
 * memory was handed out ends only when its owner releases it or goes, since nothing else says that
 * nobody reads there any more. */
#include <stdlib.h>

#include "base/clock.h"
#include "connector/embedded.h"

struct embedded_lease {
    struct cairn_lease base;
    struct embedded_lease *prev, *next; /* of all the vault's leases */
    uint64_t taken_ns, ends_ns;
    size_t held;          /* pins; 0 once it has ended */
    bool viewed;
    struct cairn_pin pins[];
};

static size_t end_lease(struct embedded *e, struct embedded_lease *l)
{
    size_t held = l->held;
    cairn_vault_unpin(e->vault, l->pins, held);
    l->held = 0;
    return held;
}

size_t embedded_leases_expire(struct embedded *e)
{
    size_t freed = 0;
    pthread_mutex_lock(&e->lease_lock);
    uint64_t now = cairn_now_ns();
    for (struct embedded_lease *l = e->leases; l; l = l->next)
        if (l->held && !l->viewed && l->ends_ns <= now)
            freed += end_lease(e, l);
    pthread_mutex_unlock(&e->lease_lock);
    return freed;
}

uint64_t embedded_leases_oldest_ns(struct embedded *e)
{
    uint64_t now = cairn_now_ns(), oldest = now;
    pthread_mutex_lock(&e->lease_lock);
    for (struct embedded_lease *l = e->leases; l; l = l->next)
        if (l->held && l->taken_ns < oldest)
            oldest = l->taken_ns;
    pthread_mutex_unlock(&e->lease_lock);
    return now - oldest;
}

cairn_status embedded_lease_take(struct cairn_backend *b, const struct cairn_key *keys,
                                 size_t count, uint64_t ttl_ns, uint64_t deadline_ns,
                                 struct cairn_lease **ret, size_t *ret_held)
{
    struct embedded *e = (struct embedded *)b;
    if (count > (SIZE_MAX - sizeof(struct embedded_lease)) / sizeof(struct cairn_pin))
        return CAIRN_INVAL;
    struct embedded_lease *l = calloc(1, sizeof *l + count * sizeof l->pins[0]);
    if (!l)
        return CAIRN_NOMEM;
    embedded_leases_expire(e);
    l->held = cairn_vault_pin(e->vault, keys, count, deadline_ns, l->pins);
    if (l->held == 0) {
        free(l);
        return CAIRN_MISS;
    }
    l->taken_ns = cairn_now_ns();
    l->ends_ns = cairn_deadline_ns(ttl_ns);
    *ret_held = l->held;
    *ret = &l->base;
    pthread_mutex_lock(&e->lease_lock);
    l->next = e->leases;
    if (l->next)
        l->next->prev = l;
    e->leases = l;
    pthread_mutex_unlock(&e->lease_lock);
    return CAIRN_OK;
}

/* Has it ended? Lock held. */
static bool over(const struct embedded_lease *l)
{
    return l->held == 0 || l->ends_ns <= cairn_now_ns();
}

cairn_status embedded_lease_view(struct cairn_backend *b, struct cairn_lease *lease, size_t i,
                                 const void **ret, uint64_t *ret_len)
{
    struct embedded *e = (struct embedded *)b;
    struct embedded_lease *l = (struct embedded_lease *)lease;
    cairn_status st = CAIRN_OK;
    pthread_mutex_lock(&e->lease_lock);
    if (over(l)) {
        st = CAIRN_TIMEOUT;
    } else if (i >= l->held) {
        st = CAIRN_INVAL;
    } else {
        l->viewed = true;
        *ret = l->pins[i].value;
        *ret_len = l->pins[i].value_len;
    }
    pthread_mutex_unlock(&e->lease_lock);
    return st;
}

cairn_status embedded_lease_renew(struct cairn_backend *b, struct cairn_lease *lease,
                                  uint64_t ttl_ns)
{
    struct embedded *e = (struct embedded *)b;
    struct embedded_lease *l = (struct embedded_lease *)lease;
    pthread_mutex_lock(&e->lease_lock);
    cairn_status st = over(l) ? CAIRN_TIMEOUT : CAIRN_OK;
    if (!st)
        l->ends_ns = cairn_deadline_ns(ttl_ns);
    pthread_mutex_unlock(&e->lease_lock);
    return st;
}

void embedded_lease_release(struct cairn_backend *b, struct cairn_lease *lease)
{
    struct embedded *e = (struct embedded *)b;
    struct embedded_lease *l = (struct embedded_lease *)lease;
    pthread_mutex_lock(&e->lease_lock);
    end_lease(e, l);
    if (l->prev)
        l->prev->next = l->next;
    else
        e->leases = l->next;
    if (l->next)
        l->next->prev = l->prev;
    pthread_mutex_unlock(&e->lease_lock);
    free(l);
}
