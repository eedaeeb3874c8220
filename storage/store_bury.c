/* Deleting, and making old versions dead on disk: whatever the log holds of a key is dead once a
 * durable tombstone says so, and until then the old value stays readable. */
#include <string.h>

#include "storage/store_internal.h"

static bool on_disk(const struct cairn_vault *v, const struct cairn_entry *e)
{
    return e->block != CAIRN_BLOCK_NONE ||
           (e->slot != CAIRN_SLOT_NONE && v->slots[e->slot].tried);
}

bool bury_needed(struct cairn_vault *v, const struct cairn_key *key, uint32_t id,
                 uint64_t covered)
{
    const struct cairn_entry *e = id == CAIRN_ENTRY_NONE ? NULL : cairn_index_entry(v->index, id);
    return (!covered && forgotten_may(v, key)) || (e && e->version > covered && on_disk(v, e));
}

struct burial {
    struct burying under_way;
    struct vault_op *op; /* NULL: not needed, or refused with st */
    uint64_t version;    /* 0: not needed; at its end: nobody knows what it covers */
    cairn_status st;
};

/* Submits the tombstone that makes every version of the key up to now dead on disk. */
static void bury_begin(struct cairn_vault *v, const struct cairn_key *key, uint64_t deadline_ns,
                       bool wait, struct burial *b)
{
    uint32_t id = cairn_index_find(v->index, key);
    /* Whether it is on disk or not: a write that began now would lie behind the tombstone, and be
     * there still when that is gone. */
    if (id != CAIRN_ENTRY_NONE)
        cairn_index_entry(v->index, id)->flags |= CAIRN_ENTRY_DYING;
    b->version = ++v->version;
    b->under_way = (struct burying){.next = v->burying};
    cairn_key16(key->bytes, b->under_way.key16);
    v->burying = &b->under_way;
    b->op = op_begin(v, (struct cairn_tier_op){.kind = CAIRN_TIER_TOMBSTONE, .key = *key,
                                               .version = b->version, .deadline_ns = deadline_ns},
                     wait, &b->st);
}

/* A tombstone failed and may have landed all the same: the disk holds the value or does not, so no
 * flush can vouch for it any more, and whoever asked does not want it. In doubt it is a miss; what
 * a restart would find is remembered, and the next put or delete of the key buries it. */
static void bury_failed(struct cairn_vault *v, const struct cairn_key *key, uint64_t version)
{
    uint32_t id = cairn_index_find(v->index, key);
    uint8_t key16[16];
    cairn_key16(key->bytes, key16);
    doubt_note(v, key16);
    if (id == CAIRN_ENTRY_NONE || cairn_index_entry(v->index, id)->version > version)
        return;
    if (cairn_index_entry(v->index, id)->slot != CAIRN_SLOT_NONE)
        slot_detach(v, &v->slots[cairn_index_entry(v->index, id)->slot]);
    entry_remove(v, id, CAIRN_CAUSE_TOMBSTONE);
}

static void under_way_no_more(struct cairn_vault *v, struct burial *b)
{
    struct burying **at = &v->burying;
    while (*at != &b->under_way)
        at = &(*at)->next;
    *at = b->under_way.next;
}

/* The end of a burial, whatever came of it. */
static cairn_status bury_end(struct cairn_vault *v, const struct cairn_key *key, struct burial *b)
{
    if (!b->version)
        return b->st;
    if (b->op)
        b->st = op_end(v, b->op);
    b->op = NULL;
    under_way_no_more(v, b);
    if (b->st)
        bury_failed(v, key, b->version);
    else if (b->under_way.forgot)
        b->version = 0;
    return b->st;
}

cairn_status bury_once(struct cairn_vault *v, const struct cairn_key *key, uint64_t deadline_ns,
                       uint64_t *covered)
{
    struct burial b;
    bury_begin(v, key, deadline_ns, true, &b);
    bury_end(v, key, &b);
    *covered = b.version;
    return b.st;
}

/* --- deleting --- */

#define DELETE_BATCH 64u

struct deletion {
    uint16_t space;
    const struct cairn_key *keys;
    size_t count;
    uint64_t deadline_ns;
    cairn_status results[DELETE_BATCH];
    struct burial burials[DELETE_BATCH];
    bool held[DELETE_BATCH];
};

/* Is it held, as far as can be told without reading? */
static bool shows(const struct cairn_vault *v, uint32_t id)
{
    if (id == CAIRN_ENTRY_NONE)
        return false;
    const struct cairn_entry *e = cairn_index_entry(v->index, id);
    bool told = e->slot != CAIRN_SLOT_NONE && v->slots[e->slot].state == SLOT_RESIDENT;
    return !told || !entry_expired(v, e);
}

/* Another space's, of which the deleted one knows nothing. */
static bool foreign(const struct cairn_vault *v, uint32_t id, uint16_t space)
{
    return id != CAIRN_ENTRY_NONE && !entry_of(v, id, space);
}

/* The disk may hold a value of the space that was forgotten before another space took the key: a
 * tombstone would bury both. */
static bool beneath(struct cairn_vault *v, const struct cairn_key *key, bool other)
{
    return other && v->tier && forgotten_may(v, key);
}

/* Nothing of it is left on disk. Lock held. */
static bool delete_entry(struct cairn_vault *v, uint16_t space, const struct cairn_key *key)
{
    uint32_t id = cairn_index_find(v->index, key);
    bool held = shows(v, id);
    const struct cairn_entry *e = entry_of(v, id, space);
    if (!e)
        return false;
    if (e->slot != CAIRN_SLOT_NONE)
        slot_detach(v, &v->slots[e->slot]);
    entry_remove(v, id, CAIRN_CAUSE_DELETED);
    count(&v->c.deleted, 1);
    return held;
}

/* Submits the tombstones of as many keys as there are ops for. */
static size_t delete_begin(struct cairn_vault *v, struct deletion *d)
{
    size_t n = 0;
    for (; n < d->count && n < DELETE_BATCH; n++) {
        struct burial *b = &d->burials[n];
        uint32_t id = cairn_index_find(v->index, &d->keys[n]);
        bool other = foreign(v, id, d->space);
        *b = (struct burial){.st = beneath(v, &d->keys[n], other) ? CAIRN_IO : CAIRN_OK};
        d->held[n] = !other && shows(v, id);
        if (other || !v->tier || !bury_needed(v, &d->keys[n], id, 0))
            continue;
        bury_begin(v, &d->keys[n], d->deadline_ns, n == 0, b);
        if (!b->op && n > 0) {
            under_way_no_more(v, b);
            break;
        }
    }
    return n;
}

/* Was key n deleted further ahead in the same batch? */
static bool deleted_before(const struct deletion *d, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (d->results[i] == CAIRN_OK && memcmp(&d->keys[i], &d->keys[n], sizeof *d->keys) == 0)
            return true;
    return false;
}

/* It is not held, perhaps since its tombstone was under way: reclaim or eviction came first. */
static cairn_status delete_gone(struct cairn_vault *v, const struct deletion *d, size_t n)
{
    uint8_t key16[16];
    if (!d->held[n] || deleted_before(d, n))
        return CAIRN_MISS;
    cairn_key16(d->keys[n].bytes, key16);
    drops_note(v->drops, key16, CAIRN_CAUSE_DELETED);
    return CAIRN_OK;
}

static void delete_end(struct cairn_vault *v, struct deletion *d, size_t n)
{
    struct burial *b = &d->burials[n];
    const struct cairn_key *key = &d->keys[n];
    uint32_t id = cairn_index_find(v->index, key);
    /* A put that came in while the tombstone was under way is deleted with the rest. */
    while (!b->st && v->tier && !foreign(v, id, d->space) &&
           bury_needed(v, key, id, b->version)) {
        b->st = bury_once(v, key, d->deadline_ns, &b->version);
        id = cairn_index_find(v->index, key);
    }
    d->results[n] = b->st;
    if (b->st)
        count_refused(v, CAIRN_CAUSE_TOMBSTONE);
    else if (!delete_entry(v, d->space, key))
        d->results[n] = delete_gone(v, d, n);
}

cairn_status cairn_vault_space_delete(struct cairn_vault *v, uint16_t space,
                                      const struct cairn_key *keys, size_t count_keys,
                                      uint64_t deadline_ns, cairn_status *results)
{
    cairn_status first = CAIRN_OK;
    for (size_t at = 0; at < count_keys;) {
        struct deletion d = {.space = space, .keys = keys + at, .count = count_keys - at,
                             .deadline_ns = deadline_ns};
        pthread_mutex_lock(&v->lock);
        size_t n = delete_begin(v, &d);
        /* All ops are given back before one more is waited for. */
        for (size_t i = 0; i < n; i++)
            bury_end(v, &keys[at + i], &d.burials[i]);
        for (size_t i = 0; i < n; i++)
            delete_end(v, &d, i);
        pthread_mutex_unlock(&v->lock);
        for (size_t i = 0; i < n; i++, at++) {
            if (results)
                results[at] = d.results[i];
            if (d.results[i] && d.results[i] != CAIRN_MISS && !first)
                first = d.results[i];
        }
    }
    return first;
}

cairn_status cairn_vault_delete(struct cairn_vault *v, const struct cairn_key *keys,
                                size_t count_keys, uint64_t deadline_ns, cairn_status *results)
{
    return cairn_vault_space_delete(v, 0, keys, count_keys, deadline_ns, results);
}

cairn_status cairn_vault_space_delete_now(struct cairn_vault *v, uint16_t space,
                                          const struct cairn_key *key)
{
    pthread_mutex_lock(&v->lock);
    uint32_t id = cairn_index_find(v->index, key);
    cairn_status st = CAIRN_INPROGRESS;
    bool other = foreign(v, id, space);
    if (other ? !beneath(v, key, true) : !bury_needed(v, key, id, 0))
        st = delete_entry(v, space, key) ? CAIRN_OK : CAIRN_MISS;
    pthread_mutex_unlock(&v->lock);
    return st;
}

cairn_status cairn_vault_delete_now(struct cairn_vault *v, const struct cairn_key *key)
{
    return cairn_vault_space_delete_now(v, 0, key);
}
