/* The leases of one owner: a process that reads in the arena, or a connection that does not.
 * What is pinned for an owner and how often is bounded here; how much memory, by the vault's
 * lease budget. Any thread. */
#ifndef CAIRN_TOOLS_CAIRND_KV_LEASE_H
#define CAIRN_TOOLS_CAIRND_KV_LEASE_H

#include <pthread.h>
#include <stdbool.h>

#include "storage/store.h"

#define KV_LEASES_MAX 4096u      /* of one owner, a power of two */
#define KV_LEASE_PINS_MAX 65536u /* of one owner */
#define KV_LEASE_ENDLESS UINT64_MAX
#define KV_CLOSED 0u             /* no client has this number */

struct kv_lease {
    uint64_t id;      /* unique among its owner's, not 0                                          */
    uint64_t client;  /* over whose connection it was taken, KV_CLOSED once that is closed        */
    uint64_t taken_ns, ends_ns; /* KV_LEASE_ENDLESS: not before it is released                    */
    uint64_t answer_end; /* in its connection's output; see kv_lease_answered */
    uint32_t count;   /* pins */
    uint32_t room;    /* for so many */
    struct kv_lease *next;
    struct cairn_pin pins[];
};

struct kv_lease_slot {
    struct kv_lease *lease; /* NULL: free */
    uint32_t next;          /* free list */
};

struct kv_leases {
    struct cairn_vault *vault;
    pthread_mutex_t lock;         /* taken before the vault's */
    struct kv_lease_slot *slots;
    uint32_t capacity, free, count;
    uint64_t pins, serial;
    struct kv_lease *spare;       /* small ones, so that taking a lease allocates nothing */
    uint32_t spares;
    bool ended;                   /* the owner is gone: nothing more is leased to it */
};

void kv_leases_open(struct kv_leases *l, struct cairn_vault *v);
/* Releases all that is left. Returns how many leases that were. */
uint32_t kv_leases_close(struct kv_leases *l);
/* The owner is gone: releases all, and nothing can be added any more. */
uint32_t kv_leases_end(struct kv_leases *l);

/* A lease with room for `count` pins that is not the owner's yet; NULL: no memory. */
struct kv_lease *kv_lease_prepare(struct kv_leases *l, uint32_t count);
void kv_lease_discard(struct kv_leases *l, struct kv_lease *lease); /* unpins what it pins */
/* Makes it the owner's, from when on others may release it; `ready` sees it with its id just
 * before. CAIRN_BUSY: the owner has too many; CAIRN_STATE: the owner is gone. The lease is
 * discarded then. */
cairn_status kv_lease_add(struct kv_leases *l, struct kv_lease *lease,
                          void (*ready)(void *arg, const struct kv_lease *lease), void *arg);

bool kv_lease_release(struct kv_leases *l, uint64_t id);
/* Those taken over one connection; KV_CLOSED: over any that is closed. */
uint32_t kv_leases_release_client(struct kv_leases *l, uint64_t client);
/* The answer that tells of it ends with that byte of its connection's output. */
void kv_lease_answered(struct kv_leases *l, uint64_t id, uint64_t answer_end);
/* The connection is closed, and its client has taken `taken` bytes of its output at most: what was
 * leased over it stays, but for leases whose answers it cannot have read. Returns how many those
 * were. */
uint32_t kv_leases_closed(struct kv_leases *l, uint64_t client, uint64_t taken);
/* Those whose time is over. */
uint32_t kv_leases_expire(struct kv_leases *l, uint64_t now_ns);
/* Never shortens an endless one. CAIRN_TIMEOUT: it has ended, or never was. */
cairn_status kv_lease_renew(struct kv_leases *l, uint64_t id, uint64_t ends_ns);
uint32_t kv_leases_count(struct kv_leases *l, uint64_t *ret_pins); /* ret_pins may be NULL */
/* fn is called under the owner's lock. */
void kv_leases_each(struct kv_leases *l, void (*fn)(void *arg, const struct kv_lease *lease),
                    void *arg);

#endif
