#include "tools/cairnd/kv_lease.h"

#include <stdlib.h>

#include "base/mem.h"

/* A request's usual chain fits; what is longer is as rare as its memory is cheap beside its
 * bytes. */
#define SMALL_PINS 64u
#define SPARES_MAX 32u
#define SLOT_NONE UINT32_MAX

void kv_leases_open(struct kv_leases *l, struct cairn_vault *v)
{
    *l = (struct kv_leases){.vault = v, .free = SLOT_NONE};
    pthread_mutex_init(&l->lock, NULL);
}

struct kv_lease *kv_lease_prepare(struct kv_leases *l, uint32_t count)
{
    struct kv_lease *lease = NULL;
    if (count <= SMALL_PINS) {
        count = SMALL_PINS;
        pthread_mutex_lock(&l->lock);
        lease = l->spare;
        if (lease) {
            l->spare = lease->next;
            l->spares--;
        }
        pthread_mutex_unlock(&l->lock);
    }
    if (!lease) {
        lease = cairn_malloc(sizeof *lease + count * sizeof lease->pins[0]);
        if (!lease)
            return NULL;
        lease->room = count;
    }
    lease->count = 0;
    return lease;
}

static void recycle(struct kv_leases *l, struct kv_lease *lease)
{
    pthread_mutex_lock(&l->lock);
    bool keep = lease->room == SMALL_PINS && l->spares < SPARES_MAX && !l->ended;
    if (keep) {
        lease->next = l->spare;
        l->spare = lease;
        l->spares++;
    }
    pthread_mutex_unlock(&l->lock);
    if (!keep)
        free(lease);
}

void kv_lease_discard(struct kv_leases *l, struct kv_lease *lease)
{
    if (lease->count)
        cairn_vault_unpin(l->vault, lease->pins, lease->count);
    recycle(l, lease);
}

static bool grow(struct kv_leases *l)
{
    uint32_t capacity = l->capacity ? l->capacity * 2 : 8;
    if (capacity > KV_LEASES_MAX)
        return false;
    struct kv_lease_slot *slots = realloc(l->slots, capacity * sizeof *slots);
    if (!slots)
        return false;
    for (uint32_t i = capacity; i-- > l->capacity;) {
        slots[i] = (struct kv_lease_slot){NULL, l->free};
        l->free = i;
    }
    l->slots = slots;
    l->capacity = capacity;
    return true;
}

/* The slot's number is in the id; the serial number makes an id that was released stay unknown. */
static uint64_t next_id(struct kv_leases *l, uint32_t slot)
{
    return ++l->serial * KV_LEASES_MAX + slot;
}

cairn_status kv_lease_add(struct kv_leases *l, struct kv_lease *lease,
                          void (*ready)(void *arg, const struct kv_lease *lease), void *arg)
{
    cairn_status st = CAIRN_OK;
    pthread_mutex_lock(&l->lock);
    if (l->ended)
        st = CAIRN_STATE;
    else if (l->pins + lease->count > KV_LEASE_PINS_MAX || (l->free == SLOT_NONE && !grow(l)))
        st = CAIRN_BUSY;
    if (!st) {
        uint32_t slot = l->free;
        l->free = l->slots[slot].next;
        l->slots[slot].lease = lease;
        l->count++;
        l->pins += lease->count;
        lease->id = next_id(l, slot);
        lease->answer_end = UINT64_MAX; /* it waits for a place in the output */
        ready(arg, lease);
    }
    pthread_mutex_unlock(&l->lock);
    if (st)
        kv_lease_discard(l, lease);
    return st;
}

static struct kv_lease *find(struct kv_leases *l, uint64_t id)
{
    uint32_t slot = (uint32_t)(id % KV_LEASES_MAX);
    struct kv_lease *lease = slot < l->capacity ? l->slots[slot].lease : NULL;
    return lease && lease->id == id ? lease : NULL;
}

/* Lock held. */
static void take_out(struct kv_leases *l, struct kv_lease *lease)
{
    uint32_t slot = (uint32_t)(lease->id % KV_LEASES_MAX);
    l->slots[slot] = (struct kv_lease_slot){NULL, l->free};
    l->free = slot;
    l->count--;
    l->pins -= lease->count;
}

bool kv_lease_release(struct kv_leases *l, uint64_t id)
{
    pthread_mutex_lock(&l->lock);
    struct kv_lease *lease = find(l, id);
    if (lease)
        take_out(l, lease);
    pthread_mutex_unlock(&l->lock);
    if (lease)
        kv_lease_discard(l, lease);
    return lease != NULL;
}

#define ANY_CLIENT UINT64_MAX

/* Which leases: of a client, that end at `ends_ns` or before, whose answers end at `answer_min` or
 * behind it. */
struct which {
    uint64_t client, ends_ns, answer_min;
};

static bool is_one(const struct kv_lease *lease, const struct which *w)
{
    return (w->client == ANY_CLIENT || lease->client == w->client) &&
           lease->ends_ns <= w->ends_ns && lease->answer_end >= w->answer_min;
}

/* Lock held on entry and return. */
static uint32_t release_some(struct kv_leases *l, const struct which *w)
{
    struct kv_lease *out = NULL;
    uint32_t released = 0;
    for (uint32_t i = 0; i < l->capacity; i++) {
        struct kv_lease *lease = l->slots[i].lease;
        if (!lease || !is_one(lease, w))
            continue;
        take_out(l, lease);
        lease->next = out;
        out = lease;
        released++;
    }
    pthread_mutex_unlock(&l->lock);
    while (out) {
        struct kv_lease *next = out->next;
        kv_lease_discard(l, out);
        out = next;
    }
    pthread_mutex_lock(&l->lock);
    return released;
}

uint32_t kv_leases_end(struct kv_leases *l)
{
    pthread_mutex_lock(&l->lock);
    l->ended = true;
    uint32_t released = release_some(l, &(struct which){ANY_CLIENT, KV_LEASE_ENDLESS, 0});
    pthread_mutex_unlock(&l->lock);
    return released;
}

uint32_t kv_leases_close(struct kv_leases *l)
{
    uint32_t released = kv_leases_end(l);
    while (l->spare) {
        struct kv_lease *next = l->spare->next;
        free(l->spare);
        l->spare = next;
    }
    free(l->slots);
    pthread_mutex_destroy(&l->lock);
    return released;
}

uint32_t kv_leases_release_client(struct kv_leases *l, uint64_t client)
{
    pthread_mutex_lock(&l->lock);
    uint32_t released = release_some(l, &(struct which){client, KV_LEASE_ENDLESS, 0});
    pthread_mutex_unlock(&l->lock);
    return released;
}

void kv_lease_answered(struct kv_leases *l, uint64_t id, uint64_t answer_end)
{
    pthread_mutex_lock(&l->lock);
    struct kv_lease *lease = find(l, id);
    if (lease)
        lease->answer_end = answer_end;
    pthread_mutex_unlock(&l->lock);
}

uint32_t kv_leases_closed(struct kv_leases *l, uint64_t client, uint64_t taken)
{
    pthread_mutex_lock(&l->lock);
    uint32_t lost = release_some(l, &(struct which){client, KV_LEASE_ENDLESS, taken + 1});
    for (uint32_t i = 0; i < l->capacity; i++)
        if (l->slots[i].lease && l->slots[i].lease->client == client)
            l->slots[i].lease->client = KV_CLOSED;
    pthread_mutex_unlock(&l->lock);
    return lost;
}

uint32_t kv_leases_expire(struct kv_leases *l, uint64_t now_ns)
{
    pthread_mutex_lock(&l->lock);
    uint32_t released = l->count ? release_some(l, &(struct which){ANY_CLIENT, now_ns, 0}) : 0;
    pthread_mutex_unlock(&l->lock);
    return released;
}

cairn_status kv_lease_renew(struct kv_leases *l, uint64_t id, uint64_t ends_ns)
{
    pthread_mutex_lock(&l->lock);
    struct kv_lease *lease = find(l, id);
    if (lease && lease->ends_ns != KV_LEASE_ENDLESS)
        lease->ends_ns = ends_ns;
    pthread_mutex_unlock(&l->lock);
    return lease ? CAIRN_OK : CAIRN_TIMEOUT;
}

uint32_t kv_leases_count(struct kv_leases *l, uint64_t *ret_pins)
{
    pthread_mutex_lock(&l->lock);
    uint32_t count = l->count;
    if (ret_pins)
        *ret_pins = l->pins;
    pthread_mutex_unlock(&l->lock);
    return count;
}

void kv_leases_each(struct kv_leases *l, void (*fn)(void *arg, const struct kv_lease *lease),
                    void *arg)
{
    pthread_mutex_lock(&l->lock);
    for (uint32_t i = 0; i < l->capacity; i++)
        if (l->slots[i].lease)
            fn(arg, l->slots[i].lease);
    pthread_mutex_unlock(&l->lock);
}
