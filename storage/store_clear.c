/* Clearing a space: one durable record makes every older value of it dead, however many there are.
 * From the moment its version is given nothing older of the space is written or carried over
 * (entry_writable), so that nothing of it comes to lie behind the record in the log. */
#include "storage/store_internal.h"

#define AT_ONCE 1024u /* entries looked at before others get the lock */

/* Takes the dead entries from `id` on out. Returns where to go on. Lock held. `sure`: the record
 * that says so is durable; otherwise they are in doubt (bury_failed): a restart may find them. */
static uint32_t sweep_some(struct cairn_vault *v, uint16_t space, uint64_t version, bool sure,
                           uint32_t id)
{
    id = cairn_index_next(v->index, id);
    for (uint32_t n = 0; n < AT_ONCE && id != CAIRN_ENTRY_NONE; n++) {
        struct cairn_entry *e = cairn_index_entry(v->index, id);
        if (e->space == space && e->version < version) {
            if (e->slot != CAIRN_SLOT_NONE)
                slot_detach(v, &v->slots[e->slot]);
            if (!sure)
                doubt_note(v, e->key);
            entry_remove(v, id, sure ? CAIRN_CAUSE_CLEARED : CAIRN_CAUSE_TOMBSTONE);
            count(&v->c.deleted, sure);
        }
        id = cairn_index_next(v->index, id + 1);
    }
    return id;
}

cairn_status cairn_vault_clear_space(struct cairn_vault *v, uint16_t space, uint64_t deadline_ns)
{
    if (space >= VAULT_SPACES)
        return CAIRN_INVAL;
    pthread_mutex_lock(&v->lock);
    uint64_t version = v->cleared[space] = ++v->version;
    cairn_status st = CAIRN_OK;
    if (v->tier)
        st = op_run(v, (struct cairn_tier_op){.kind = CAIRN_TIER_CLEAR, .space = space,
                                              .version = version, .deadline_ns = deadline_ns});
    for (uint32_t id = 0; id != CAIRN_ENTRY_NONE;) {
        id = sweep_some(v, space, version, st == CAIRN_OK, id);
        pthread_mutex_unlock(&v->lock);
        pthread_mutex_lock(&v->lock);
    }
    if (st)
        count_refused(v, CAIRN_CAUSE_TOMBSTONE);
    pthread_mutex_unlock(&v->lock);
    return st;
}
