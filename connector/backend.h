/* What stands behind a store: the vault of this process (embedded.c) or a node (remote.c). The API
 * (api.c, lease.c, queue.c) checks arguments and forks, turns timeouts into deadlines and calls
 * these; every one of them may be called by many threads at once.
 *
 * cairn.h has the contract of each call. A backend whose other side does not answer keeps it too:
 * what cannot be had by the deadline is a miss, a put that was not kept, 0 keys. */
#ifndef CAIRN_CONNECTOR_BACKEND_H
#define CAIRN_CONNECTOR_BACKEND_H

#include <stdbool.h>

#include "connector/cairn.h"

/* Base of every backend: its first member. */
struct cairn_backend {
    const struct cairn_backend_ops *ops;
    uint64_t workers; /* threads for submitted calls; 0 = as many as fit the machine */
};

/* Base of every lease: its first member. The fields are the session's. */
struct cairn_lease {
    struct cairn_session *session;
    struct cairn_lease *prev, *next;
};

struct cairn_backend_ops {
    const char *scheme;  /* how its URIs begin, with the colon */
    const char *example; /* a URI, for messages                */

    cairn_status (*open)(const char *uri, struct cairn_backend **ret, char *err, size_t err_cap);
    void (*close)(struct cairn_backend *b); /* no call is inside and no lease is left */
    uint64_t (*value_max)(struct cairn_backend *b);
    cairn_status (*note_identity)(struct cairn_backend *b, const cairn_identity *id);

    cairn_status (*put)(struct cairn_backend *b, struct cairn_put *puts, size_t count,
                        uint64_t deadline_ns);
    cairn_status (*get)(struct cairn_backend *b, struct cairn_get *gets, size_t count,
                        uint64_t deadline_ns, size_t *ret_hits);
    size_t (*lookup)(struct cairn_backend *b, const struct cairn_key *keys, size_t count);
    uint64_t (*value_len)(struct cairn_backend *b, const struct cairn_key *key);
    cairn_status (*side)(struct cairn_backend *b, const struct cairn_key *key, void *out,
                         uint32_t *len, uint64_t deadline_ns);
    cairn_status (*remove)(struct cairn_backend *b, const struct cairn_key *keys, size_t count,
                           uint64_t deadline_ns, cairn_status *results);
    cairn_status (*flush)(struct cairn_backend *b, uint64_t deadline_ns);

    /* Makes a lease of at least one value; release ends and frees it. */
    cairn_status (*lease_take)(struct cairn_backend *b, const struct cairn_key *keys, size_t count,
                               uint64_t ttl_ns, uint64_t deadline_ns, struct cairn_lease **ret,
                               size_t *ret_held);
    cairn_status (*lease_view)(struct cairn_backend *b, struct cairn_lease *l, size_t i,
                               const void **ret, uint64_t *ret_len);
    cairn_status (*lease_renew)(struct cairn_backend *b, struct cairn_lease *l, uint64_t ttl_ns);
    void (*lease_release)(struct cairn_backend *b, struct cairn_lease *l);

    size_t (*why)(struct cairn_backend *b, const cairn_identity *id, char *out, size_t cap);
    size_t (*refusal)(struct cairn_backend *b, char *out, size_t cap); /* NULL: never one */
    size_t (*stats)(struct cairn_backend *b, char *out, size_t cap);
};

/* The backend whose scheme the URI has, NULL if none has. The list ends with NULL. */
const struct cairn_backend_ops *cairn_backend_find(const char *uri);
extern const struct cairn_backend_ops *const cairn_backends[];

extern const struct cairn_backend_ops cairn_embedded_ops, cairn_unix_ops, cairn_tcp_ops;

#endif
