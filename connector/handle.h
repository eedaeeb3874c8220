/* Inside of the public handles. */
#ifndef CAIRN_CONNECTOR_HANDLE_H
#define CAIRN_CONNECTOR_HANDLE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "connector/cairn.h"
#include "connector/uri.h"
#include "storage/store.h"

struct cairn_store {
    struct cairn_uri uri;
    struct cairn_vault *vault;
    uint64_t forks;              /* value of the fork counter at open: another = a child's use */
    pthread_mutex_t lease_lock;  /* sessions and leases; taken before the vault's lock         */
    struct cairn_session *sessions;
    struct cairn_pool *pool;     /* worker threads, made by the first queue                    */
    pthread_mutex_t pool_lock;
};

/* May this process use the handle? False in a child after fork. */
bool cairn_handle_ours(const struct cairn_store *s);

/* Ends leases whose time is over and that nobody looks into. Returns how many values were
 * unpinned. */
size_t cairn_leases_expire(struct cairn_store *s);
/* Age of the oldest lease. */
uint64_t cairn_leases_oldest_ns(struct cairn_store *s);

void cairn_pool_close(struct cairn_pool *p); /* NULL is fine */

#endif
