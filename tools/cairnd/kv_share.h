/* Clients that read in place. What CAIRN.ATTACH gives a process: the arena's descriptor, read-only
 * for good, and a window of its own to write values into. What it leases stays pinned until it is
 * released or the process has ended, because until then it may still read there, connection or not.
 * So such leases belong to the process (by its pidfd) and not to its connections; a thread watches
 * the ends of processes, and of leases that have an end of their own.
 *
 * Lock order: kv->lock, an owner's lock, the vault's. */
#ifndef CAIRN_TOOLS_CAIRND_KV_SHARE_H
#define CAIRN_TOOLS_CAIRND_KV_SHARE_H

#include "base/mem.h"
#include "tools/cairnd/kv_lease.h"
#include "tools/cairnd/node.h"

#define KV_PROCESSES_MAX 1024u
#define KV_WINDOW_MAX (256ull * 1024 * 1024)      /* of one connection */
#define KV_WINDOWS_MIN (64ull * 1024 * 1024)      /* of all together: half of the RAM, or this */

/* A process that maps the arena. Lives while it has a connection, or leases. */
struct kv_process {
    struct kv *kv;
    struct kv_process *next;
    uint64_t id;          /* of this struct, never used again */
    int pid;
    int pidfd;
    uint32_t connections; /* under kv->lock, as `ended` */
    bool ended;
    struct kv_leases leases;
};

/* What the KV commands keep for a connection, from its first command of them that needs it. */
struct client_shared {
    struct client *client;
    struct client_shared *next, *prev; /* of all, under kv->lock */
    struct kv_process *process;        /* NULL: not attached */
    bool attached;                     /* the answer to its CAIRN.ATTACH was written */
    struct kv_leases leases;           /* of a client that is not attached */
    struct cairn_mapping window;       /* len 0: none */
    uint64_t unplaced;                 /* lease whose answer has no place in the output yet, or 0 */
    uint32_t chunk_tokens;             /* of its last CAIRN.IDENTITY, 0 = not known */
};

struct kv_pins;
struct kv_prefetch;

struct kv {
    struct node *node;
    /* Of the arena; without it (arena_status) nobody can attach. */
    cairn_status arena_status;
    int arena_fd;
    const char *arena;
    size_t arena_len;

    pthread_mutex_t lock;
    struct kv_process *processes;
    struct client_shared *clients;
    uint32_t process_count;
    uint64_t process_last_id;
    uint64_t window_bytes, window_max;

    pthread_t watcher;
    int epoll, wake;
    _Atomic bool timed;      /* there may be leases that end by themselves */
    _Atomic bool stopping;

    struct kv_pins *pins;
    struct kv_prefetch *prefetch;
    pthread_mutex_t clear_lock; /* held by the one CAIRN.CLEAR that scans */
};

/* After the vault is open, before the network. */
cairn_status kv_start(struct node *n, char *err, size_t err_cap);
/* After network, workers and HTTP, before the vault is closed. */
void kv_stop(struct node *n);
/* The connection is over and nothing of it is left in any output; unread: it was closed with bytes
 * in its socket that the client had not read. On its network thread. */
void kv_client_gone(struct client *c, bool unread);
/* A command of the client was answered: all of that is in its output now. */
void kv_client_answered(struct client *c);

/* The connection's part, made if it is missing; NULL: no memory. */
struct client_shared *kv_shared(struct client *c);
/* Who owns what this connection leases. */
static inline struct kv_leases *kv_leases_of(struct client_shared *s)
{
    return s->attached ? &s->process->leases : &s->leases;
}
/* There is a lease with an end of its own now. */
void kv_watch_time(struct kv *kv);
/* Joins the connection to its process; on its network thread, as the socket says who that is. On
 * failure one sentence in why. */
cairn_status kv_attach(struct client *c, char *why, size_t why_cap);
/* Then its window, at most this long; less, or none, if there is no memory for it. May wait. */
void kv_open_window(struct client *c, uint64_t wanted);

struct kv_figures {
    uint32_t processes;     /* attached */
    uint32_t orphans;       /* of them without a connection: their leases keep them here          */
    uint32_t leases;
    uint64_t lease_pins;
    uint64_t window_bytes;
    uint32_t operator_pins;
    uint32_t prefetch_keys; /* waiting */
};
void kv_figures(struct node *n, struct kv_figures *ret);
/* Every lease (fn may be NULL); returns the age of the oldest one in ns, 0 if there is none.
 * `client` may be gone already; ends_in_ns is UINT64_MAX for one that ends with its process. */
uint64_t node_leases_each(struct node *n,
                          void (*fn)(void *arg, uint64_t lease, uint64_t client, uint64_t age_ns,
                                     uint64_t ends_in_ns, uint32_t values, uint64_t bytes),
                          void *arg);

#endif
