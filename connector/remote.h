/* A node behind the API: "unix:" and "tcp:" stores. README.md says how calls, connections, leases
 * and failures go together. */
#ifndef CAIRN_CONNECTOR_REMOTE_H
#define CAIRN_CONNECTOR_REMOTE_H

#include <pthread.h>
#include <stdatomic.h>

#include "connector/backend.h"
#include "connector/remote_conn.h"
#include "transport/retry.h"

/* Whose word a flush needs: puts that the node accepted die with it. */
struct remote_life {
    char run_id[41]; /* "": nobody's */
    bool several;
};

#define REMOTE_LEAVING_MAX 128u
/* Of an engine: one a rank and KV group. */
#define REMOTE_IDENTITIES_MAX 64u

struct remote_identity {
    struct remote_identity *next;
    size_t len;
    uint8_t canon[];
};

/* What this client saw, beside what the node counts. */
struct remote_counts {
    _Atomic uint64_t calls, refused;      /* refused: at once, while the breaker was open         */
    _Atomic uint64_t timeouts, lost;      /* calls that the node left without an answer           */
    _Atomic uint64_t busy;                /* calls that found no connection free, or an error     */
    _Atomic uint64_t unknown;             /* puts and deletes of which no answer came             */
    _Atomic uint64_t dials, dials_failed;
    _Atomic uint64_t dials_refused;       /* of the failed: the node was there and said no        */
    _Atomic uint64_t misses[CAIRN_CAUSE_COUNT]; /* keys that a get or a view did not give         */
};

struct remote {
    struct cairn_backend base;
    struct remote_options o;
    struct remote_arenas arenas;
    struct remote_counts counts;
    _Atomic uint64_t value_max;           /* 0: the node was not there yet                        */
    _Atomic uint64_t copied;              /* bytes of views that are copies                       */
    _Atomic uint64_t lease_due_ns;        /* no lease that nobody viewed ends before              */

    pthread_mutex_t lock;                 /* the pool: all below                                  */
    pthread_cond_t changed;               /* a connection is free, or the breaker opened          */
    struct remote_conn *idle;             /* the latest used first                                */
    uint32_t open;                        /* connections that are idle or in a call               */
    uint64_t full_until_ns;               /* the node has no room for more than are open          */
    struct remote_pin *orphans;           /* released after their connection was lost             */
    int leaving[REMOTE_LEAVING_MAX];      /* sockets whose last words the node has not heard yet  */
    uint32_t leaving_count;
    struct cairn_breaker breaker;
    char refusal[256];                    /* what the node said last to a dial, if it was no      */

    pthread_mutex_t lease_lock;           /* taken before `lock` */
    struct remote_lease *leases;

    pthread_mutex_t life_lock;
    struct remote_life unflushed;         /* of the node that accepted puts since the last flush  */

    pthread_mutex_t identity_lock;
    struct remote_identity *identities;   /* that each connection tells, the latest last          */
};

/* Something that is done over a connection. CAIRN_OK or CAIRN_BUSY: the connection is as good as
 * before; anything else: it is dropped. It may be called again, over another connection, and then
 * does what is left: of what changes something that is nothing that the node may have done. */
typedef cairn_status (*remote_fn)(struct remote *r, struct remote_conn *c, void *arg);

/* remote_pool.c: runs fn over a connection, again over a new one if the node closed the first.
 * CAIRN_OK; CAIRN_BUSY: the node answered with an error; CAIRN_NOTFOUND: it is gone, or known to
 * be; CAIRN_TIMEOUT: it did not answer, or no connection was free in time; CAIRN_IO,
 * CAIRN_CORRUPT: it ended in the middle. */
cairn_status remote_run(struct remote *r, remote_fn fn, void *arg, uint64_t deadline_ns);
/* Notes that the node behind the connection accepted a put. */
void remote_accepted(struct remote *r, const struct remote_conn *c);
/* Counts puts or deletes that went out whole and were not answered. */
void remote_unknown(struct remote *r, uint64_t keys);
/* A deadline for calls that are given none. */
uint64_t remote_patience(const struct remote *r);
/* Makes the first connection; err: one sentence, also of a node that need not be there yet. */
cairn_status remote_pool_open(struct remote *r, char *err, size_t err_cap);
void remote_pool_close(struct remote *r);
/* What the node says to each try, while it is left alone for it; as cairn_refusal. */
size_t remote_refusal(struct cairn_backend *b, char *out, size_t cap);
/* Why a run that failed did so, as a cause of each of its keys, and what callers are told. */
enum cairn_cause remote_cause(cairn_status failed);
cairn_status remote_status(cairn_status failed);

/* What a lease of the API pins at the node, until the node is told that it is over. Where the
 * node's memory is mapped, any connection of this process may tell it. */
struct remote_pin {
    struct remote_pin *next;
    struct remote_conn *conn; /* over which it was taken */
    uint64_t id;
    char run_id[41];          /* of the node: ids of another life name other leases */
};
/* remote_pool.c: by the call that has the connection. */
void remote_pin_bind(struct remote_conn *c, struct remote_pin *pin, struct remote *r);
/* Tells the node at the next occasion, which may be now, and frees the pin. */
void remote_pin_release(struct remote *r, struct remote_pin *pin);

/* remote_lease.c */
struct remote_lease {
    struct cairn_lease base;
    struct remote_lease *prev, *next; /* of all */
    struct remote_pin *pin;           /* NULL once it has ended     */
    struct remote_arena *arena;       /* NULL: views are copies     */
    uint64_t taken_ns, ends_ns;
    bool viewed;
    uint32_t held;
    struct remote_view *views;
};
cairn_status remote_lease_take(struct cairn_backend *b, const struct cairn_key *keys, size_t count,
                               uint64_t ttl_ns, uint64_t deadline_ns, struct cairn_lease **ret,
                               size_t *ret_held);
cairn_status remote_lease_view(struct cairn_backend *b, struct cairn_lease *l, size_t i,
                               const void **ret, uint64_t *ret_len);
cairn_status remote_lease_renew(struct cairn_backend *b, struct cairn_lease *l, uint64_t ttl_ns);
void remote_lease_release(struct cairn_backend *b, struct cairn_lease *l);
/* Ends leases whose time is over and that nobody looked into. */
void remote_leases_expire(struct remote *r);
void remote_leases_count(struct remote *r, uint32_t *ret_leases, uint64_t *ret_oldest_ns);
/* Reads the answer to a CAIRN.LEASE of at most `max` keys; none held: lease 0, held 0. A node that
 * answers with an error holds nothing. */
cairn_status remote_lease_read(struct remote_conn *c, uint64_t ticket,
                               struct cairn_wire_view *views, uint32_t max, uint64_t *ret_lease,
                               uint32_t *ret_held);

/* remote_get.c, remote_put.c */
cairn_status remote_get(struct cairn_backend *b, struct cairn_get *gets, size_t count,
                        uint64_t deadline_ns, size_t *ret_hits);
cairn_status remote_put(struct cairn_backend *b, struct cairn_put *puts, size_t count,
                        uint64_t deadline_ns);
/* Check of the bytes [off, off + len) of a list, at most one piece. */
uint64_t remote_piece_hash(struct remote_conn *c, const struct cairn_sgl *list, size_t off,
                           size_t len);
/* The list's runs from byte `off` on, at most `len` bytes of them. Returns how many were written.
 */
uint32_t remote_runs(const struct cairn_sgl *list, size_t off, size_t len, struct iovec *out,
                     uint32_t cap, size_t *ret_len);
void remote_missed(struct remote *r, enum cairn_cause cause);
bool remote_damage(enum cairn_cause cause);

/* remote.c: text that a command answers with (free it); false: there is none. */
bool remote_text(struct remote *r, const char *command, const void *canon, size_t canon_len,
                 char **ret);

/* remote_stats.c */
size_t remote_stats(struct cairn_backend *b, char *out, size_t cap);

#endif
