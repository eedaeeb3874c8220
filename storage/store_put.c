/* Putting batches: room, gather, commit, for one value after the other. */
#include <string.h>

#include "base/clock.h"
#include "base/move.h"
#include "storage/store_internal.h"

#define GROUP 64u

/* Puts of one batch that are visible, but not yet in the policy nor queued for the disk: both are
 * done tail first, so that a chain's tail leaves RAM and log before its head. */
struct group {
    struct slot *slots[GROUP];
    uint32_t count;
    uint64_t blocks;
};

static void group_end(struct cairn_vault *v, struct group *g)
{
    while (g->count > 0)
        slot_filled(v, g->slots[--g->count]);
    g->blocks = 0;
    write_settle(v);
}

static cairn_status fill_image(struct cairn_vault *v, struct slot *s, const struct cairn_put *p,
                               uint64_t deadline_ns)
{
    slot_fill(v, s, &(struct cairn_commit){.key = p->key, .parent = p->parent,
                                           .fingerprint = p->fingerprint, .side = p->side,
                                           .expires_ns = p->expires_ns});
    return cairn_move_in(slot_value(v, s), &p->value, 0, s->value_len,
                         slot_image(v, s)->body.piece_check, deadline_ns);
}

static cairn_status refuse(struct cairn_vault *v, struct cairn_put *p, cairn_status st,
                           enum cairn_cause cause)
{
    count_refused(v, cause);
    p->cause = cause;
    return p->status = st;
}

static cairn_status check_put(const struct cairn_vault *v, const struct cairn_put *p, size_t len)
{
    static const struct cairn_key none;
    if (len == 0 || memcmp(&p->key, &none, sizeof none) == 0 || p->side_len > CAIRN_SIDE_MAX ||
        (p->side_len && !p->side) || !cairn_sgl_known(&p->value))
        return CAIRN_INVAL;
    return len > v->value_max ? CAIRN_TOOBIG : CAIRN_OK;
}

static enum cairn_cause cause_unread(cairn_status st)
{
    return st == CAIRN_TIMEOUT ? CAIRN_CAUSE_DEADLINE : CAIRN_CAUSE_DEVICE;
}

/* What the caller has queued on a device comes before its memory is read, and may take until the
 * deadline. Nothing leaves RAM for a value of which that is the end, and one that is held already
 * needs no waiting. */
static cairn_status wait_for_device(struct cairn_vault *v, const struct cairn_put *p,
                                    uint64_t deadline_ns)
{
    if (p->value.mem == CAIRN_MEM_HOST)
        return CAIRN_OK;
    pthread_mutex_lock(&v->lock);
    bool kept = entry_keeps(v, cairn_index_find(v->index, &p->key), p->flags);
    pthread_mutex_unlock(&v->lock);
    cairn_status st = kept ? CAIRN_OK : cairn_order_wait(deadline_ns);
    return st == CAIRN_OK || st == CAIRN_TIMEOUT ? st : CAIRN_IO;
}

static cairn_status put_one(struct cairn_vault *v, struct cairn_put *p, uint64_t deadline_ns,
                            struct group *g)
{
    size_t len = cairn_sgl_bytes(&p->value);
    p->cause = CAIRN_CAUSE_NONE;
    cairn_status st = check_put(v, p, len);
    if (st)
        return refuse(v, p, st, st == CAIRN_TOOBIG ? CAIRN_CAUSE_TOO_BIG : CAIRN_CAUSE_BAD_KEY);
    if ((st = wait_for_device(v, p, deadline_ns)) != CAIRN_OK)
        return refuse(v, p, st, cause_unread(st));
    uint32_t blocks = cairn_record_blocks(len, p->side_len);

    pthread_mutex_lock(&v->lock);
    if (g->count == GROUP || g->blocks + blocks > v->arena_blocks / 8)
        group_end(v, g);
    if (space_check(v, &p->key, 0, 0, deadline_ns)) {
        refuse(v, p, CAIRN_INVAL, CAIRN_CAUSE_SPACE);
        pthread_mutex_unlock(&v->lock);
        return CAIRN_INVAL;
    }
    if (entry_keeps(v, cairn_index_find(v->index, &p->key), p->flags)) {
        count(&v->c.put_existing, 1);
        p->status = CAIRN_EXISTS;
        pthread_mutex_unlock(&v->lock);
        return CAIRN_OK;
    }
    struct slot *s = room_take(v, blocks, true);
    if (!s && g->count) {
        group_end(v, g);
        s = room_take(v, blocks, true);
    }
    if (!s) {
        refuse(v, p, CAIRN_NOSPACE, CAIRN_CAUSE_NO_ROOM);
        write_ahead(v);
        pthread_mutex_unlock(&v->lock);
        return CAIRN_NOSPACE;
    }
    s->value_len = (uint32_t)len;
    s->side_len = p->side_len;
    v->filling_blocks += blocks;
    pthread_mutex_unlock(&v->lock);

    enum cairn_cause cause = CAIRN_CAUSE_NONE;
    st = fill_image(v, s, p, deadline_ns);

    pthread_mutex_lock(&v->lock);
    if (st == CAIRN_STATE) {
        slot_pin(s); /* a device that hangs may still write to it: nobody gets it any more */
        st = CAIRN_IO;
    }
    if (st)
        cause = cause_unread(st);
    else
        st = slot_enter(v, s, p->flags & CAIRN_PUT_REPLACE, deadline_ns, &cause);
    p->status = st;
    if (cause)
        refuse(v, p, st, cause);
    if (st) {
        slot_filled(v, s);
    } else {
        g->slots[g->count++] = s;
        g->blocks += blocks;
    }
    pthread_mutex_unlock(&v->lock);
    return st == CAIRN_EXISTS ? CAIRN_OK : st;
}

cairn_status cairn_vault_put(struct cairn_vault *v, struct cairn_put *puts, size_t count_puts,
                             uint64_t deadline_ns, size_t *ret_stored)
{
    struct group g = {.count = 0};
    cairn_status first = CAIRN_OK;
    size_t stored = 0;
    uint64_t begin = cairn_now_ns();
    for (size_t i = 0; i < count_puts; i++) {
        cairn_status st;
        if (i && cairn_now_ns() >= deadline_ns)
            st = refuse(v, &puts[i], CAIRN_TIMEOUT, CAIRN_CAUSE_DEADLINE);
        else
            st = put_one(v, &puts[i], deadline_ns, &g);
        if (st && !first)
            first = st;
        stored += st == CAIRN_OK;
    }
    pthread_mutex_lock(&v->lock);
    group_end(v, &g);
    pthread_mutex_unlock(&v->lock);
    if (stored) {
        uint64_t now = cairn_now_ns();
        cairn_hist_add(&v->c.put_ns, (now - begin) / stored);
        atomic_store_explicit(&v->c.last_put_ns, now, memory_order_relaxed);
    }
    if (ret_stored)
        *ret_stored = stored;
    return first;
}
