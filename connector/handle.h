/* Inside of the public handles. */
#ifndef CAIRN_CONNECTOR_HANDLE_H
#define CAIRN_CONNECTOR_HANDLE_H

#include <pthread.h>
#include <stdbool.h>

#include "connector/backend.h"

struct cairn_store {
    struct cairn_backend *backend;
    uint64_t forks;                /* value of the fork counter at open: another = a child's use */
    pthread_mutex_t session_lock;  /* sessions and their lists; taken before a backend's locks   */
    struct cairn_session *sessions;
    struct cairn_pool *pool;       /* worker threads, made by the first queue                    */
    pthread_mutex_t pool_lock;
};

/* May this process use the handle? False in a child after fork. */
bool cairn_handle_ours(const struct cairn_store *s);

void cairn_pool_close(struct cairn_pool *p); /* NULL is fine */

#endif
