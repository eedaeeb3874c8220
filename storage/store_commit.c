/* Values that are filled in place, and the one step in which any put becomes visible: under the
 * lock, after all of it is in the arena with its checks. What it replaces is made dead on disk
 * first (a durable tombstone), so that it cannot come back after a crash that loses the new one. */
#include <string.h>

#include "base/clock.h"
#include "storage/store_internal.h"

void slot_fill(struct cairn_vault *v, struct slot *s, const struct cairn_commit *c)
{
    struct cairn_record_disk *image = slot_image(v, s);
    struct cairn_record_body_disk *b = &image->body;
    size_t len = s->value_len, padded = (size_t)cairn_blocks(len) * CAIRN_BLOCK;
    char *value = slot_value(v, s);

    memset(image, 0, sizeof *image);
    b->created_ns = cairn_wall_ns();
    b->expires_ns = c->expires_ns;
    b->value_len = len;
    memcpy(b->key, c->key.bytes, sizeof b->key);
    memcpy(b->parent, c->parent.bytes, sizeof b->parent);
    if (c->fingerprint)
        memcpy(b->identity, c->fingerprint, sizeof b->identity);
    b->tenant = c->tenant;
    b->space = c->space;
    b->flags = c->mark;
    b->name_len = (uint16_t)c->name_len;
    if (c->name_len)
        memcpy(b->name, c->name, c->name_len);
    memset(value + len, 0, padded - len);
    if (s->side_len) {
        char *side = value + padded;
        memcpy(side, c->side, s->side_len);
        memset(side + s->side_len, 0,
               (size_t)cairn_blocks(s->side_len) * CAIRN_BLOCK - s->side_len);
        b->side_len = s->side_len;
        b->side_check = cairn_hash64(side, s->side_len);
    }
}

bool entry_expired(const struct cairn_vault *v, const struct cairn_entry *e)
{
    if (!(e->flags & CAIRN_ENTRY_EXPIRES))
        return false;
    /* The time itself is only in the header: without a RAM copy the new bytes win. */
    if (e->slot == CAIRN_SLOT_NONE || v->slots[e->slot].state != SLOT_RESIDENT)
        return true;
    return slot_image(v, &v->slots[e->slot])->body.expires_ns <= cairn_wall_ns();
}

static bool taken(const struct cairn_vault *v, uint32_t id, uint16_t space)
{
    return id != CAIRN_ENTRY_NONE && !entry_of(v, id, space) &&
           entry_living(v, cairn_index_entry(v->index, id));
}

/* Has another space's value of the key ended? Where only its header on disk says when that is, it
 * is read; what cannot be read is there. Lock held, but not while it waits. */
static void ended_drop(struct cairn_vault *v, const struct cairn_key *key, uint32_t id,
                       uint64_t deadline_ns)
{
    struct cairn_scan_item item;
    enum cairn_cause cause;
    uint64_t version = cairn_index_entry(v->index, id)->version;
    uint16_t space = cairn_index_entry(v->index, id)->space;
    pthread_mutex_unlock(&v->lock);
    cairn_vault_header(v, space, key, deadline_ns, &item, &cause);
    pthread_mutex_lock(&v->lock);
    id = cairn_index_find(v->index, key);
    struct cairn_entry *e = entry_of(v, id, space);
    if (cause != CAIRN_CAUSE_EXPIRED || !e || e->version != version)
        return;
    if (e->slot != CAIRN_SLOT_NONE)
        slot_detach(v, &v->slots[e->slot]);
    e->block = CAIRN_BLOCK_NONE;
    entry_drop_if_empty(v, id, CAIRN_CAUSE_EXPIRED);
}

cairn_status space_check(struct cairn_vault *v, const struct cairn_key *key, uint16_t space,
                         uint32_t flags, uint64_t deadline_ns)
{
    uint32_t id = cairn_index_find(v->index, key);
    if (!taken(v, id, space))
        return CAIRN_OK;
    const struct cairn_entry *e = cairn_index_entry(v->index, id);
    if (!entry_expired(v, e))
        return CAIRN_INVAL;
    if (e->slot != CAIRN_SLOT_NONE && v->slots[e->slot].state == SLOT_RESIDENT)
        return CAIRN_OK;
    if (flags & CAIRN_COMMIT_NOWAIT)
        return CAIRN_INPROGRESS;
    ended_drop(v, key, id, deadline_ns);
    return taken(v, cairn_index_find(v->index, key), space) ? CAIRN_INVAL : CAIRN_OK;
}

bool entry_keeps(struct cairn_vault *v, uint32_t id, uint32_t flags)
{
    if ((flags & CAIRN_PUT_REPLACE) || id == CAIRN_ENTRY_NONE)
        return false;
    struct cairn_entry *e = cairn_index_entry(v->index, id);
    if (!entry_living(v, e) || entry_expired(v, e))
        return false;
    if (e->slot != CAIRN_SLOT_NONE)
        slot_touch(v, &v->slots[e->slot]);
    return true;
}

/* Must copies above version `covered` be made dead before this put shows? Not for a key that is not
 * held: its value is named by what made it, so a forgotten copy of it has the same bytes, unless it
 * was to be deleted or replaced. */
static bool buries(struct cairn_vault *v, const struct cairn_key *key, uint32_t id,
                   uint32_t flags, uint64_t covered)
{
    return v->tier &&
           ((flags & CAIRN_PUT_REPLACE) || id != CAIRN_ENTRY_NONE || doubt_may(v, key)) &&
           bury_needed(v, key, id, covered);
}

/* Swaps the filled slot in, for entry `id` of its key or a new one. Lock held. */
static bool publish(struct cairn_vault *v, struct slot *s, const struct cairn_key *key,
                    uint32_t id, uint32_t flags)
{
    struct cairn_record_body_disk *b = &slot_image(v, s)->body;
    bool replaced = id != CAIRN_ENTRY_NONE;
    if (!replaced)
        id = entry_insert(v, key);
    if (id == CAIRN_ENTRY_NONE)
        return false;
    struct cairn_entry *e = cairn_index_entry(v->index, id);
    if (replaced)
        entry_count(v, e, -1);
    if (e->slot != CAIRN_SLOT_NONE)
        slot_detach(v, &v->slots[e->slot]);
    s->version = b->version = ++v->version;
    b->check = cairn_hash64(b, offsetof(struct cairn_record_body_disk, check));
    e->version = s->version;
    e->block = CAIRN_BLOCK_NONE;
    e->slot = slot_number(v, s);
    e->value_len = s->value_len;
    e->space = (uint8_t)b->space;
    e->identity = identity_number(v, b->identity);
    e->flags = (uint16_t)((b->expires_ns ? CAIRN_ENTRY_EXPIRES : 0) |
                          (cairn_blocks(b->side_len) << CAIRN_ENTRY_SIDE_SHIFT));
    entry_count(v, e, 1);
    identity_put(v, e->identity, s->value_len);
    s->entry = id;
    s->state = SLOT_RESIDENT;
    s->yields = (flags & CAIRN_COMMIT_ON_EVICT) != 0;
    s->on_evict = s->yields || v->o.write == CAIRN_WRITE_ON_EVICT;
    v->some_on_evict = v->some_on_evict || s->on_evict;
    v->resident_bytes += s->value_len;
    v->resident_count++;
    slot_adopt(v, s, b->parent);
    count(replaced ? &v->c.put_replaced : &v->c.put_stored, 1);
    count(&v->c.put_bytes, s->value_len);
    return true;
}

cairn_status slot_enter(struct cairn_vault *v, struct slot *s, uint32_t flags,
                        uint64_t deadline_ns, enum cairn_cause *ret_cause)
{
    struct cairn_key key;
    memcpy(key.bytes, slot_image(v, s)->body.key, sizeof key.bytes);
    uint16_t space = slot_image(v, s)->body.space;
    uint64_t covered = 0;
    uint32_t id;
    for (;;) {
        cairn_status st = space_check(v, &key, space, flags, deadline_ns);
        if (st == CAIRN_INVAL)
            *ret_cause = CAIRN_CAUSE_SPACE;
        if (st)
            return st;
        id = cairn_index_find(v->index, &key);
        if (entry_keeps(v, id, flags)) {
            count(&v->c.put_existing, 1);
            return CAIRN_EXISTS;
        }
        if (!buries(v, &key, id, flags, covered))
            break;
        if (flags & CAIRN_COMMIT_NOWAIT)
            return CAIRN_INPROGRESS;
        /* Another put may come first while the tombstone is under way: its value is the one that
         * is kept then, and not to be buried with those before it. */
        if (bury_once(v, &key, deadline_ns, &covered)) {
            *ret_cause = CAIRN_CAUSE_TOMBSTONE;
            return CAIRN_IO;
        }
    }
    if (publish(v, s, &key, id, flags))
        return CAIRN_OK;
    *ret_cause = CAIRN_CAUSE_NO_ROOM;
    return CAIRN_NOSPACE;
}

void slot_filled(struct cairn_vault *v, struct slot *s)
{
    bool write = v->tier && !v->tier_off && v->o.write == CAIRN_WRITE_THROUGH && !s->on_evict;
    v->filling_blocks -= s->blocks;
    if (s->entry != CAIRN_ENTRY_NONE) {
        slot_enter_policy(v, s, s->blocks);
        /* A flush may have queued it already, or even written it. */
        if (write && s->write == WRITE_CLEAN &&
            cairn_index_entry(v->index, s->entry)->block == CAIRN_BLOCK_NONE)
            write_queue(v, s);
    }
    slot_unpin(v, s);
}

/* --- rooms --- */

cairn_status cairn_vault_room(struct cairn_vault *v, size_t len, size_t side_len,
                              struct cairn_room *ret)
{
    if (len == 0 || side_len > CAIRN_SIDE_MAX)
        return CAIRN_INVAL;
    if (len > v->value_max)
        return CAIRN_TOOBIG;
    pthread_mutex_lock(&v->lock);
    struct slot *s = room_take(v, cairn_record_blocks(len, (uint32_t)side_len), true);
    if (s) {
        s->value_len = (uint32_t)len;
        s->side_len = (uint32_t)side_len;
        v->filling_blocks += s->blocks;
        *ret = (struct cairn_room){slot_number(v, s), slot_value(v, s), len, side_len};
    } else {
        /* Not counted as refused: who receives a value asks again until it gives up. */
        write_ahead(v);
    }
    pthread_mutex_unlock(&v->lock);
    return s ? CAIRN_OK : CAIRN_NOSPACE;
}

void cairn_vault_room_drop(struct cairn_vault *v, struct cairn_room *room)
{
    if (!room->value)
        return;
    pthread_mutex_lock(&v->lock);
    slot_filled(v, &v->slots[room->slot]);
    pthread_mutex_unlock(&v->lock);
    room->value = NULL;
}

static bool sound(const struct cairn_room *room, const struct cairn_commit *c)
{
    static const struct cairn_key none;
    return memcmp(&c->key, &none, sizeof none) != 0 && c->name_len <= CAIRN_NAME_MAX &&
           (c->name || !c->name_len) && (c->side || !room->side_len) && c->space < VAULT_SPACES;
}

/* Header and checks. Nobody else sees the slot, so no lock is needed. */
static enum cairn_cause seal(struct cairn_vault *v, struct slot *s, const struct cairn_commit *c)
{
    struct cairn_record_body_disk *b = &slot_image(v, s)->body;
    if (!s->sealed) {
        slot_fill(v, s, c);
        cairn_hash_pieces(slot_value(v, s), s->value_len, b->piece_check);
        s->sealed = true;
    }
    b->expires_ns = c->expires_ns;
    b->flags = c->mark;
    if (c->checks && memcmp(c->checks, b->piece_check,
                            cairn_piece_count(s->value_len) * sizeof *c->checks) != 0)
        return CAIRN_CAUSE_CHECKSUM;
    return CAIRN_CAUSE_NONE;
}

cairn_status cairn_vault_commit(struct cairn_vault *v, struct cairn_room *room,
                                const struct cairn_commit *c, uint64_t deadline_ns,
                                enum cairn_cause *ret_cause)
{
    struct slot *s = &v->slots[room->slot];
    uint64_t since_ns = cairn_now_ns();
    bool good = sound(room, c);
    enum cairn_cause cause = good ? seal(v, s, c) : CAIRN_CAUSE_BAD_KEY;
    cairn_status st = !good ? CAIRN_INVAL : cause ? CAIRN_CORRUPT : CAIRN_OK;
    pthread_mutex_lock(&v->lock);
    if (!st)
        st = slot_enter(v, s, c->flags, deadline_ns, &cause);
    if (cause)
        count_refused(v, cause);
    if (st != CAIRN_INPROGRESS) {
        slot_filled(v, s);
        write_settle(v);
        room->value = NULL;
    }
    pthread_mutex_unlock(&v->lock);
    if (st == CAIRN_OK)
        count_took(&v->c.put_ns, &v->c.last_put_ns, since_ns);
    *ret_cause = cause;
    return st;
}
