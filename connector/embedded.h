/* The vault of this process behind the API. */
#ifndef CAIRN_CONNECTOR_EMBEDDED_H
#define CAIRN_CONNECTOR_EMBEDDED_H

#include <pthread.h>

#include "connector/backend.h"
#include "connector/uri.h"
#include "storage/store.h"

struct embedded_lease;

struct embedded {
    struct cairn_backend base;
    struct cairn_uri uri;
    struct cairn_vault *vault;
    pthread_mutex_t lease_lock;     /* taken before the vault's lock */
    struct embedded_lease *leases;
};

/* embedded_lease.c */
cairn_status embedded_lease_take(struct cairn_backend *b, const struct cairn_key *keys,
                                 size_t count, uint64_t ttl_ns, uint64_t deadline_ns,
                                 struct cairn_lease **ret, size_t *ret_held);
cairn_status embedded_lease_view(struct cairn_backend *b, struct cairn_lease *l, size_t i,
                                 const void **ret, uint64_t *ret_len);
cairn_status embedded_lease_renew(struct cairn_backend *b, struct cairn_lease *l, uint64_t ttl_ns);
void embedded_lease_release(struct cairn_backend *b, struct cairn_lease *l);
/* Ends leases whose time is over and that nobody looks into. Returns how many values were
 * unpinned. */
size_t embedded_leases_expire(struct embedded *e);
/* Age of the oldest lease. */
uint64_t embedded_leases_oldest_ns(struct embedded *e);

#endif
