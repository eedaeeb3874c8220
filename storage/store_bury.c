/* Deleting, and making old versions dead on disk: whatever the log holds of a key is dead once a
 * durable tombstone says so, and until then the old value stays readable. */
#include <string.h>

#include "storage/store_internal.h"

/* Makes every version of the key up to now dead on disk. The lock is held on entry and return, but
 * not while it waits. */
static cairn_status bury(struct cairn_vault *v, const struct cairn_key *key, uint64_t deadline_ns,
                         uint64_t *ret_version)
{
    uint64_t version = ++v->version;
    cairn_status st = op_run(v, (struct cairn_tier_op){.kind = CAIRN_TIER_TOMBSTONE, .key = *key,
                                                       .version = version,
                                                       .deadline_ns = deadline_ns});
    if (!st)
        *ret_version = version;
    return st;
}

static bool on_disk(const struct cairn_vault *v, const struct cairn_entry *e)
{
    return e->block != CAIRN_BLOCK_NONE ||
           (e->slot != CAIRN_SLOT_NONE && v->slots[e->slot].tried);
}

/* Copies that the index has forgotten would be found again by the next recovery. */
static bool forgotten(const struct cairn_vault *v)
{
    return v->tier && atomic_load_explicit(&v->c.forgotten, memory_order_relaxed) > 0;
}

bool bury_needed(const struct cairn_vault *v, const struct cairn_key *key)
{
    uint32_t id = cairn_index_find(v->index, key);
    return forgotten(v) ||
           (id != CAIRN_ENTRY_NONE && on_disk(v, cairn_index_entry(v->index, id)));
}

cairn_status bury_all(struct cairn_vault *v, const struct cairn_key *key, uint64_t deadline_ns)
{
    uint64_t covered = 0;
    bool unknown = forgotten(v);
    for (;;) {
        uint32_t id = cairn_index_find(v->index, key);
        struct cairn_entry *e = id == CAIRN_ENTRY_NONE ? NULL : cairn_index_entry(v->index, id);
        bool living = e && e->version > covered && on_disk(v, e);
        if (!living && (covered || !unknown))
            return CAIRN_OK;
        /* If the tombstone fails it may have landed all the same: the entry stays unwritable then,
         * and is still right to read. */
        if (living)
            e->flags |= CAIRN_ENTRY_DYING;
        cairn_status st = bury(v, key, deadline_ns, &covered);
        if (st)
            return st;
    }
}

/* Nothing of it is left on disk. Lock held. */
static bool delete_entry(struct cairn_vault *v, const struct cairn_key *key)
{
    uint32_t id = cairn_index_find(v->index, key);
    if (id == CAIRN_ENTRY_NONE)
        return false;
    struct cairn_entry *e = cairn_index_entry(v->index, id);
    if (e->slot != CAIRN_SLOT_NONE)
        slot_detach(v, &v->slots[e->slot]);
    entry_remove(v, id, CAIRN_CAUSE_DELETED);
    count(&v->c.deleted, 1);
    return true;
}

static cairn_status delete_one(struct cairn_vault *v, const struct cairn_key *key,
                               uint64_t deadline_ns)
{
    pthread_mutex_lock(&v->lock);
    bool held = cairn_index_find(v->index, key) != CAIRN_ENTRY_NONE;
    cairn_status st = v->tier ? bury_all(v, key, deadline_ns) : CAIRN_OK;
    /* A put that came in while the tombstone was under way is deleted with the rest. */
    if (st)
        count_refused(v, CAIRN_CAUSE_TOMBSTONE);
    else
        delete_entry(v, key);
    pthread_mutex_unlock(&v->lock);
    return st ? st : held ? CAIRN_OK : CAIRN_MISS;
}

cairn_status cairn_vault_delete(struct cairn_vault *v, const struct cairn_key *keys,
                                size_t count_keys, uint64_t deadline_ns, cairn_status *results)
{
    cairn_status first = CAIRN_OK;
    for (size_t i = 0; i < count_keys; i++) {
        cairn_status st = delete_one(v, &keys[i], deadline_ns);
        if (results)
            results[i] = st;
        if (st && st != CAIRN_MISS && !first)
            first = st;
    }
    return first;
}

cairn_status cairn_vault_delete_now(struct cairn_vault *v, const struct cairn_key *key)
{
    pthread_mutex_lock(&v->lock);
    cairn_status st = CAIRN_INPROGRESS;
    if (!bury_needed(v, key))
        st = delete_entry(v, key) ? CAIRN_OK : CAIRN_MISS;
    pthread_mutex_unlock(&v->lock);
    return st;
}
