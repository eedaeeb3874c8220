/* The disk tier went off and is back: what it may have lost is written again. */
#include "base/log.h"
#include "storage/store_internal.h"

#define AT_ONCE 1024u /* slots looked at before others get the lock */

/* Values that were put or failed while the tier was off. As many as a flush queues at a time: what
 * is queued cannot leave RAM. */
void write_again(struct cairn_vault *v)
{
    for (uint32_t n = 0; v->rewriting && n < AT_ONCE; n++) {
        if (v->rewrite_at == v->slot_count) {
            v->rewriting = false;
            return;
        }
        if (v->tier_off || v->dirty_blocks > v->arena_blocks / 4)
            return;
        struct slot *s = &v->slots[v->rewrite_at++];
        bool through = v->o.write == CAIRN_WRITE_THROUGH && !s->on_evict;
        if ((through || s->write == WRITE_FAILED) && slot_unwritten(v, s))
            write_queue(v, s);
    }
}

void write_again_on(struct cairn_vault *v)
{
    for (;;) {
        write_again(v);
        write_pump(v);
        if (!v->rewriting || v->tier_off || v->dirty_blocks)
            return;
        pthread_mutex_unlock(&v->lock);
        pthread_mutex_lock(&v->lock);
    }
}

void host_doubted(void *arg, const struct cairn_summary_disk *r)
{
    struct cairn_vault *v = arg;
    pthread_mutex_lock(&v->lock);
    /* A restart may find it. */
    forgotten_note(v, r->key);
    v->was_off = true;
    uint32_t id = cairn_index_find16(v->index, r->key);
    struct cairn_entry *e = id == CAIRN_ENTRY_NONE ? NULL : cairn_index_entry(v->index, id);
    if (e && e->block == r->block) {
        e->block = CAIRN_BLOCK_NONE;
        struct slot *s = e->slot == CAIRN_SLOT_NONE ? NULL : &v->slots[e->slot];
        if (s) {
            s->tried = true;
            s->written = false;
            slot_stay(v, s);
        } else {
            count(&v->c.lost_writes, 1);
            entry_remove(v, id, CAIRN_CAUSE_IO_ERROR);
        }
    }
    pthread_mutex_unlock(&v->lock);
}

void host_turned_on(void *arg)
{
    struct cairn_vault *v = arg;
    pthread_mutex_lock(&v->lock);
    v->tier_off = false;
    v->off_why[0] = '\0';
    v->was_off = true;
    v->rewriting = true;
    v->rewrite_at = 0;
    write_again_on(v);
    pthread_cond_broadcast(&v->changed);
    pthread_mutex_unlock(&v->lock);
    cairn_log(CAIRN_LOG_WARN, "disk tier on again");
}
