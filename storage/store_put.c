/* Putting and deleting. A value becomes visible in one step, under the lock, after all of it is in
 * the arena with its checks. What it replaces is made dead on disk first (a durable tombstone), so
 * that it cannot come back after a crash that loses the new value. */
#include <string.h>

#include "base/clock.h"
#include "base/copy.h"
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
    bool write = v->tier && !v->tier_off && v->o.write == CAIRN_WRITE_THROUGH;
    for (uint32_t i = g->count; i-- > 0;) {
        struct slot *s = g->slots[i];
        v->filling_blocks -= s->blocks;
        if (s->entry != CAIRN_ENTRY_NONE) {
            slot_enter_policy(v, s, s->blocks);
            /* A flush may have queued it already. */
            if (write && s->write == WRITE_CLEAN)
                write_queue(v, s);
        }
        slot_unpin(v, s);
    }
    g->count = 0;
    g->blocks = 0;
    if (write)
        write_pump(v);
    else
        write_ahead(v);
}

static void fill_image(struct cairn_vault *v, struct slot *s, const struct cairn_put *p)
{
    struct cairn_record_disk *image = slot_image(v, s);
    struct cairn_record_body_disk *b = &image->body;
    size_t len = s->value_len, padded = (size_t)cairn_blocks(len) * CAIRN_BLOCK;
    char *value = slot_value(v, s);

    memset(image, 0, sizeof *image);
    b->created_ns = cairn_wall_ns();
    b->expires_ns = p->expires_ns;
    b->value_len = len;
    memcpy(b->key, p->key.bytes, sizeof b->key);
    memcpy(b->parent, p->parent.bytes, sizeof b->parent);
    if (p->fingerprint)
        memcpy(b->identity, p->fingerprint, sizeof b->identity);
    cairn_copy_gather_hash(value, &p->value, len, b->piece_check);
    memset(value + len, 0, padded - len);
    if (p->side_len) {
        char *side = value + padded;
        memcpy(side, p->side, p->side_len);
        memset(side + p->side_len, 0,
               (size_t)cairn_blocks(p->side_len) * CAIRN_BLOCK - p->side_len);
        b->side_len = p->side_len;
        b->side_check = cairn_hash64(side, p->side_len);
    }
}

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

/* Buries until the disk holds no living copy of the key. Lock held on entry and return. */
static cairn_status bury_all(struct cairn_vault *v, const struct cairn_key *key,
                             uint64_t deadline_ns)
{
    uint64_t covered = 0;
    /* Copies that the index has forgotten would be found again by the next recovery. */
    bool forgotten = v->tier && atomic_load_explicit(&v->c.forgotten, memory_order_relaxed) > 0;
    for (;;) {
        uint32_t id = cairn_index_find(v->index, key);
        struct cairn_entry *e = id == CAIRN_ENTRY_NONE ? NULL : cairn_index_entry(v->index, id);
        bool living = e && e->version > covered && on_disk(v, e);
        if (!living && (covered || !forgotten))
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

static bool expired(const struct cairn_vault *v, const struct cairn_entry *e)
{
    if (!(e->flags & CAIRN_ENTRY_EXPIRES))
        return false;
    /* The time itself is only in the header: without a RAM copy the new bytes win. */
    if (e->slot == CAIRN_SLOT_NONE || v->slots[e->slot].state != SLOT_RESIDENT)
        return true;
    return slot_image(v, &v->slots[e->slot])->body.expires_ns <= cairn_wall_ns();
}

/* Must older copies be made dead before this put shows? Not for a key that is not held: its value
 * is named by what made it, so a forgotten copy of it has the same bytes. */
static bool buries(const struct cairn_vault *v, const struct cairn_put *p)
{
    return v->tier && ((p->flags & CAIRN_PUT_REPLACE) ||
                       cairn_index_find(v->index, &p->key) != CAIRN_ENTRY_NONE);
}

static bool keeps(struct cairn_vault *v, const struct cairn_put *p)
{
    if (p->flags & CAIRN_PUT_REPLACE)
        return false;
    uint32_t id = cairn_index_find(v->index, &p->key);
    if (id == CAIRN_ENTRY_NONE)
        return false;
    struct cairn_entry *e = cairn_index_entry(v->index, id);
    if (expired(v, e))
        return false;
    if (e->slot != CAIRN_SLOT_NONE && v->slots[e->slot].in_policy)
        v->policy->ops->touch(v->policy, e->slot);
    return true;
}

static cairn_status refuse(struct cairn_vault *v, struct cairn_put *p, cairn_status st,
                           enum cairn_cause cause)
{
    count_refused(v, cause);
    p->cause = cause;
    return p->status = st;
}

/* Swaps the filled slot in. Lock held. */
static cairn_status publish(struct cairn_vault *v, struct cairn_put *p, struct slot *s)
{
    struct cairn_record_body_disk *b = &slot_image(v, s)->body;
    uint32_t id = cairn_index_find(v->index, &p->key);
    bool replaced = id != CAIRN_ENTRY_NONE;
    if (!replaced)
        id = entry_insert(v, &p->key);
    if (id == CAIRN_ENTRY_NONE)
        return refuse(v, p, CAIRN_NOSPACE, CAIRN_CAUSE_NO_ROOM);
    struct cairn_entry *e = cairn_index_entry(v->index, id);
    if (e->slot != CAIRN_SLOT_NONE)
        slot_detach(v, &v->slots[e->slot]);
    s->version = b->version = ++v->version;
    b->check = cairn_hash64(b, offsetof(struct cairn_record_body_disk, check));
    e->version = s->version;
    e->block = CAIRN_BLOCK_NONE;
    e->slot = slot_number(v, s);
    e->value_len = s->value_len;
    e->flags = (uint16_t)((b->expires_ns ? CAIRN_ENTRY_EXPIRES : 0) |
                          (cairn_blocks(b->side_len) << CAIRN_ENTRY_SIDE_SHIFT));
    s->entry = id;
    s->state = SLOT_RESIDENT;
    v->resident_bytes += s->value_len;
    v->resident_count++;
    slot_adopt(v, s, b->parent);
    count(replaced ? &v->c.put_replaced : &v->c.put_stored, 1);
    count(&v->c.put_bytes, s->value_len);
    return p->status = CAIRN_OK;
}

static cairn_status check_put(const struct cairn_vault *v, const struct cairn_put *p, size_t len)
{
    static const struct cairn_key none;
    if (len == 0 || memcmp(&p->key, &none, sizeof none) == 0 || p->side_len > CAIRN_SIDE_MAX ||
        (p->side_len && !p->side) || p->value.mem != CAIRN_MEM_HOST)
        return CAIRN_INVAL;
    return len > v->value_max ? CAIRN_TOOBIG : CAIRN_OK;
}

static cairn_status put_one(struct cairn_vault *v, struct cairn_put *p, uint64_t deadline_ns,
                            struct group *g)
{
    size_t len = cairn_sgl_bytes(&p->value);
    p->cause = CAIRN_CAUSE_NONE;
    cairn_status st = check_put(v, p, len);
    if (st)
        return refuse(v, p, st, st == CAIRN_TOOBIG ? CAIRN_CAUSE_TOO_BIG : CAIRN_CAUSE_BAD_KEY);
    uint32_t blocks = cairn_record_blocks(len, p->side_len);

    pthread_mutex_lock(&v->lock);
    if (g->count == GROUP || g->blocks + blocks > v->arena_blocks / 8)
        group_end(v, g);
    if (keeps(v, p)) {
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
    v->filling_blocks += blocks;
    pthread_mutex_unlock(&v->lock);

    fill_image(v, s, p);

    pthread_mutex_lock(&v->lock);
    if (keeps(v, p)) {
        count(&v->c.put_existing, 1);
        p->status = CAIRN_EXISTS;
    } else if (buries(v, p) && bury_all(v, &p->key, deadline_ns)) {
        st = refuse(v, p, CAIRN_IO, CAIRN_CAUSE_TOMBSTONE);
    } else if (keeps(v, p)) {
        /* Another put came first while the tombstone was under way. */
        count(&v->c.put_existing, 1);
        p->status = CAIRN_EXISTS;
    } else {
        st = publish(v, p, s);
    }
    if (s->entry == CAIRN_ENTRY_NONE) {
        v->filling_blocks -= blocks;
        slot_unpin(v, s);
    } else {
        g->slots[g->count++] = s;
        g->blocks += blocks;
    }
    pthread_mutex_unlock(&v->lock);
    return st;
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
    if (stored)
        cairn_hist_add(&v->c.put_ns, (cairn_now_ns() - begin) / stored);
    if (ret_stored)
        *ret_stored = stored;
    return first;
}

static cairn_status delete_one(struct cairn_vault *v, const struct cairn_key *key,
                               uint64_t deadline_ns)
{
    pthread_mutex_lock(&v->lock);
    bool held = cairn_index_find(v->index, key) != CAIRN_ENTRY_NONE;
    cairn_status st = v->tier ? bury_all(v, key, deadline_ns) : CAIRN_OK;
    /* A put that came in while the tombstone was under way is deleted with the rest. */
    uint32_t id = st ? CAIRN_ENTRY_NONE : cairn_index_find(v->index, key);
    if (id != CAIRN_ENTRY_NONE) {
        struct cairn_entry *e = cairn_index_entry(v->index, id);
        if (e->slot != CAIRN_SLOT_NONE)
            slot_detach(v, &v->slots[e->slot]);
        cairn_index_remove(v->index, id);
        count(&v->c.deleted, 1);
    }
    if (st)
        count_refused(v, CAIRN_CAUSE_TOMBSTONE);
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
