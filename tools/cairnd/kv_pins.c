#include "tools/cairnd/kv_pins.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define NONE UINT32_MAX

struct pinned {
    struct cairn_key key;
    struct cairn_pin pin;
    uint32_t next; /* of its bucket, or of the free ones */
};

struct kv_pins {
    struct cairn_vault *vault;
    pthread_mutex_t lock; /* taken before the vault's */
    _Atomic uint32_t count;
    uint32_t free;
    uint32_t bucket[KV_PINS_MAX];
    struct pinned entries[KV_PINS_MAX];
};

struct kv_pins *kv_pins_open(struct cairn_vault *v)
{
    struct kv_pins *p = cairn_calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->vault = v;
    pthread_mutex_init(&p->lock, NULL);
    for (uint32_t i = 0; i < KV_PINS_MAX; i++) {
        p->bucket[i] = NONE;
        p->entries[i].next = i + 1 < KV_PINS_MAX ? i + 1 : NONE;
    }
    return p;
}

static uint32_t *bucket_of(struct kv_pins *p, const struct cairn_key *key)
{
    uint32_t h;
    memcpy(&h, key->bytes, sizeof h); /* keys are digests */
    return &p->bucket[h % KV_PINS_MAX];
}

/* The link that leads to the key's entry, or to NONE. Lock held. */
static uint32_t *find(struct kv_pins *p, const struct cairn_key *key)
{
    uint32_t *at = bucket_of(p, key);
    while (*at != NONE && memcmp(&p->entries[*at].key, key, sizeof *key) != 0)
        at = &p->entries[*at].next;
    return at;
}

/* Lock held. */
static void take_out(struct kv_pins *p, uint32_t *at)
{
    uint32_t i = *at;
    struct pinned *e = &p->entries[i];
    cairn_vault_unpin(p->vault, &e->pin, 1);
    *at = e->next;
    e->next = p->free;
    p->free = i;
    atomic_fetch_sub(&p->count, 1);
}

void kv_pins_clear(struct kv_pins *p)
{
    pthread_mutex_lock(&p->lock);
    for (uint32_t i = 0; i < KV_PINS_MAX; i++)
        while (p->bucket[i] != NONE)
            take_out(p, &p->bucket[i]);
    pthread_mutex_unlock(&p->lock);
}

void kv_pins_close(struct kv_pins *p)
{
    if (!p)
        return;
    kv_pins_clear(p);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

cairn_status kv_pins_add(struct kv_pins *p, const struct cairn_key *key, uint64_t deadline_ns)
{
    struct cairn_pin new;
    cairn_status st = CAIRN_OK;
    if (cairn_vault_pin(p->vault, key, 1, deadline_ns, &new) == 0)
        return CAIRN_MISS;
    pthread_mutex_lock(&p->lock);
    uint32_t *at = find(p, key);
    uint32_t i = *at != NONE ? *at : p->free;
    if (*at != NONE) {
        cairn_vault_unpin(p->vault, &p->entries[i].pin, 1);
        p->entries[i].pin = new;
    } else if (i == NONE) {
        st = CAIRN_BUSY;
        cairn_vault_unpin(p->vault, &new, 1);
    } else {
        p->free = p->entries[i].next;
        p->entries[i] = (struct pinned){*key, new, NONE};
        *at = i;
        atomic_fetch_add(&p->count, 1);
    }
    pthread_mutex_unlock(&p->lock);
    return st;
}

bool kv_pins_remove(struct kv_pins *p, const struct cairn_key *key)
{
    if (kv_pins_count(p) == 0)
        return false;
    pthread_mutex_lock(&p->lock);
    uint32_t *at = find(p, key);
    bool found = *at != NONE;
    if (found)
        take_out(p, at);
    pthread_mutex_unlock(&p->lock);
    return found;
}

void kv_pins_refresh(struct kv_pins *p, const struct cairn_key *key)
{
    if (kv_pins_count(p) == 0)
        return;
    enum cairn_cause cause;
    struct cairn_pin new;
    pthread_mutex_lock(&p->lock);
    uint32_t *at = find(p, key);
    if (*at != NONE && cairn_vault_pin_now(p->vault, key, false, &new, &cause) == CAIRN_OK) {
        cairn_vault_unpin(p->vault, &p->entries[*at].pin, 1);
        p->entries[*at].pin = new;
    }
    pthread_mutex_unlock(&p->lock);
}

uint32_t kv_pins_count(const struct kv_pins *p)
{
    return atomic_load_explicit(&p->count, memory_order_acquire);
}
