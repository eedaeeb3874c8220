/* Walking a space. What an item says is in the header of its record: read in place where the value
 * is in RAM, else from the disk, into one block, a batch of them at a time. */
#include <string.h>

#include "base/clock.h"
#include "storage/store_internal.h"

#define SCAN_BATCH 32u
#define SCAN_LOOKS 4096u /* entries looked at before others get the lock */

struct scan_one {
    struct slot *slot; /* pinned */
    uint32_t id;
    bool ram, disk;
};

struct scan {
    struct cairn_vault *v;
    uint16_t space;
    uint32_t at;        /* next entry to look at                   */
    uint32_t again;     /* entry whose header went away under it   */
    uint64_t deadline_ns;
    struct scan_one batch[SCAN_BATCH];
    uint32_t count;
};

/* Into a slot of one block that nobody else sees. Lock held. */
static struct slot *header_begin(struct cairn_vault *v, const struct cairn_entry *e)
{
    struct vault_op *op = v->tier_off ? NULL : op_take(v);
    struct slot *s = op ? room_take(v, 1, false) : NULL;
    if (!s) {
        if (op)
            op_give(v, op);
        return NULL;
    }
    s->state = SLOT_LOADING;
    s->version = e->version;
    s->value_len = e->value_len;
    op->slot = slot_number(v, s);
    op->op.kind = CAIRN_TIER_LOAD;
    op->op.header_only = true;
    op->op.block = e->block;
    op->op.blocks = entry_blocks(e);
    op->op.image = slot_image(v, s);
    memcpy(op->op.key.bytes, e->key, sizeof e->key);
    op->op.version = e->version;
    op->op.value_len = e->value_len;
    op->op.deadline_ns = cairn_deadline_ns(v->o.io_deadline_ns);
    slot_pin(s); /* the op's */
    if (v->tier->ops->submit(v->tier, &op->op) == CAIRN_OK)
        return s;
    op_give(v, op);
    slot_unpin(v, s);
    slot_unpin(v, s);
    return NULL;
}

/* Fills the batch from s->at on. False: something is there, but no room or op to read its header
 * with. Lock held. */
static bool collect(struct scan *s, size_t max)
{
    struct cairn_vault *v = s->v;
    s->count = 0;
    for (uint32_t n = 0; n < SCAN_LOOKS && s->count < SCAN_BATCH && s->count < max; n++) {
        s->at = cairn_index_next(v->index, s->at);
        if (s->at == CAIRN_ENTRY_NONE)
            return true;
        const struct cairn_entry *e = cairn_index_entry(v->index, s->at);
        if (e->space == s->space && entry_living(v, e)) {
            struct scan_one one = {.id = s->at, .disk = e->block != CAIRN_BLOCK_NONE,
                                   .ram = e->slot != CAIRN_SLOT_NONE};
            if (one.ram)
                slot_pin(one.slot = &v->slots[e->slot]);
            else if (!(one.slot = header_begin(v, e)) && !v->tier_off)
                return false;
            if (one.slot)
                s->batch[s->count++] = one;
        }
        s->at++;
    }
    return true;
}

/* The header of a pinned slot as an item; its cause if it is none. */
static enum cairn_cause item_of(const struct scan *s, const struct scan_one *one,
                                struct cairn_scan_item *ret)
{
    enum cairn_cause cause = load_wait(s->v, one->slot, s->deadline_ns);
    if (cause)
        return cause;
    const struct cairn_record_body_disk *b = &slot_image(s->v, one->slot)->body;
    struct cairn_key key;
    memcpy(key.bytes, b->key, sizeof key.bytes);
    cause = slot_check(b, one->slot, &key, NULL, true);
    if (cause)
        return cause;
    *ret = (struct cairn_scan_item){.key = key, .expires_ns = b->expires_ns,
                                    .value_len = one->slot->value_len, .tenant = b->tenant,
                                    .mark = b->flags, .name_len = b->name_len,
                                    .ram = one->ram, .disk = one->disk};
    memcpy(ret->parent.bytes, b->parent, sizeof ret->parent.bytes);
    memcpy(ret->identity, b->identity, sizeof ret->identity);
    memcpy(ret->name, b->name, b->name_len);
    return CAIRN_CAUSE_NONE;
}

static void release(struct scan *s)
{
    pthread_mutex_lock(&s->v->lock);
    for (uint32_t i = 0; i < s->count; i++)
        slot_unpin(s->v, s->batch[i].slot);
    pthread_mutex_unlock(&s->v->lock);
}

/* Calls fn for the batch. False: stopped, s->at says where. */
static bool show(struct scan *s, size_t *left, cairn_status *st,
                 bool (*fn)(void *arg, const struct cairn_scan_item *item), void *arg)
{
    struct cairn_scan_item item;
    for (uint32_t i = 0; i < s->count; i++) {
        const struct scan_one *one = &s->batch[i];
        enum cairn_cause cause = item_of(s, one, &item);
        if (cause == CAIRN_CAUSE_DEADLINE && cairn_now_ns() >= s->deadline_ns) {
            *st = CAIRN_TIMEOUT;
            s->at = one->id;
            return false;
        }
        if (cause && cause != CAIRN_CAUSE_EXPIRED && s->again != one->id) {
            /* Moved by reclaim, or the device is slow: look again, once. */
            s->at = s->again = one->id;
            return true;
        }
        if (cause)
            continue;
        (*left)--;
        if (!fn(arg, &item) || *left == 0) {
            s->at = one->id + 1;
            return false;
        }
    }
    return true;
}

cairn_status cairn_vault_scan(struct cairn_vault *v, uint16_t space, uint32_t *cursor, size_t max,
                              uint64_t deadline_ns,
                              bool (*fn)(void *arg, const struct cairn_scan_item *item), void *arg)
{
    struct scan s = {.v = v, .space = space, .at = *cursor, .again = CAIRN_ENTRY_NONE,
                     .deadline_ns = deadline_ns};
    cairn_status st = CAIRN_OK;
    bool more = max > 0;
    while (more && !st && s.at != CAIRN_ENTRY_NONE) {
        pthread_mutex_lock(&v->lock);
        if (!collect(&s, max) && s.count == 0 && !vault_wait(v, deadline_ns))
            st = CAIRN_TIMEOUT;
        pthread_mutex_unlock(&v->lock);
        more = show(&s, &max, &st, fn, arg);
        release(&s);
    }
    *cursor = s.at == CAIRN_ENTRY_NONE ? 0 : s.at;
    return st;
}

/* --- one key --- */

/* Pins what has the key's header, or begins to read it: OK, MISS, or BUSY without room or op. Lock
 * held. */
static cairn_status header_pin(const struct scan *s, const struct cairn_key *key,
                               struct scan_one *ret)
{
    struct cairn_vault *v = s->v;
    uint32_t id = cairn_index_find(v->index, key);
    const struct cairn_entry *e = entry_of(v, id, s->space);
    if (!e || !entry_living(v, e))
        return CAIRN_MISS;
    *ret = (struct scan_one){.id = id, .disk = e->block != CAIRN_BLOCK_NONE,
                             .ram = e->slot != CAIRN_SLOT_NONE};
    if (ret->ram)
        slot_pin(ret->slot = &v->slots[e->slot]);
    else if (!(ret->slot = header_begin(v, e)))
        return v->tier_off ? CAIRN_MISS : CAIRN_BUSY;
    return CAIRN_OK;
}

static cairn_status header_once(const struct scan *s, const struct cairn_key *key,
                                struct cairn_scan_item *ret, enum cairn_cause *cause)
{
    struct cairn_vault *v = s->v;
    struct scan_one one;
    cairn_status st;
    *cause = CAIRN_CAUSE_ABSENT;
    pthread_mutex_lock(&v->lock);
    while ((st = header_pin(s, key, &one)) == CAIRN_BUSY && vault_wait(v, s->deadline_ns)) {
    }
    pthread_mutex_unlock(&v->lock);
    if (st)
        return st == CAIRN_BUSY ? CAIRN_TIMEOUT : st;
    *cause = item_of(s, &one, ret);
    if (!*cause && memcmp(&ret->key, key, sizeof *key) != 0)
        *cause = CAIRN_CAUSE_KEY;
    pthread_mutex_lock(&v->lock);
    slot_unpin(v, one.slot);
    pthread_mutex_unlock(&v->lock);
    return *cause ? CAIRN_MISS : CAIRN_OK;
}

cairn_status cairn_vault_header(struct cairn_vault *v, uint16_t space, const struct cairn_key *key,
                                uint64_t deadline_ns, struct cairn_scan_item *ret,
                                enum cairn_cause *cause)
{
    struct scan s = {.v = v, .space = space, .deadline_ns = deadline_ns};
    cairn_status st = header_once(&s, key, ret, cause);
    /* Moved by reclaim, or the device is slow: look again, once. */
    if (st == CAIRN_MISS && *cause != CAIRN_CAUSE_ABSENT && *cause != CAIRN_CAUSE_EXPIRED)
        st = header_once(&s, key, ret, cause);
    return *cause == CAIRN_CAUSE_DEADLINE ? CAIRN_TIMEOUT : st;
}
