/* Pins: values that stay where they are while somebody reads them in place (leases, a node that
 * sends from the arena), and the side records behind them. */
#include <string.h>

#include "base/clock.h"
#include "storage/store_internal.h"

/* In pins[].slot while cairn_vault_pin runs: the value was not in RAM when it was asked for. */
#define PIN_LOADED (1u << 31)

static void count_hit(struct cairn_vault *v, uint64_t len, bool disk, uint64_t since_ns)
{
    count(&v->c.get_bytes, len);
    count_got(v, disk, since_ns);
}

static enum cairn_cause verify_in_place(const struct cairn_vault *v, const struct slot *s,
                                        const struct cairn_key *key, bool verify)
{
    const struct cairn_record_body_disk *b = &slot_image(v, s)->body;
    enum cairn_cause cause = slot_check(b, s, key, NULL, verify);
    if (cause || !verify)
        return cause;
    const char *value = slot_value(v, s);
    for (uint32_t i = 0; i < cairn_piece_count(s->value_len); i++) {
        size_t off = (size_t)i * CAIRN_PIECE_BYTES, left = s->value_len - off;
        if (cairn_hash64(value + off, left < CAIRN_PIECE_BYTES ? left : CAIRN_PIECE_BYTES) !=
            b->piece_check[i])
            return CAIRN_CAUSE_CHECKSUM;
    }
    return CAIRN_CAUSE_NONE;
}

static void lease_count(struct cairn_vault *v, struct slot *s)
{
    if (s->leases++ == 0)
        v->lease_blocks += s->blocks;
}

static void lease_uncount(struct cairn_vault *v, struct slot *s)
{
    if (--s->leases == 0)
        v->lease_blocks -= s->blocks;
}

static struct cairn_pin pin_of(const struct cairn_vault *v, const struct slot *s)
{
    return (struct cairn_pin){slot_number(v, s), s->value_len, slot_value(v, s)};
}

/* Finds and pins one key for a lease. Lock held. */
static struct slot *pin_begin(struct cairn_vault *v, uint16_t space, const struct cairn_key *key)
{
    uint32_t id = cairn_index_find(v->index, key);
    struct cairn_entry *e = entry_of(v, id, space);
    if (!e)
        return NULL;
    uint32_t blocks = entry_blocks(e);
    bool counted = e->slot != CAIRN_SLOT_NONE && v->slots[e->slot].leases;
    if (!counted && v->lease_blocks + blocks > v->arena_blocks / 2)
        return NULL;
    enum cairn_cause cause;
    struct slot *s;
    if (e->slot != CAIRN_SLOT_NONE) {
        s = &v->slots[e->slot];
        slot_pin(s);
        slot_touch(v, s);
    } else {
        s = load_begin(v, id, key, &cause);
    }
    if (s) {
        e->flags |= CAIRN_ENTRY_HIT;
        identity_hit(v, e->identity, e->value_len);
        lease_count(v, s);
    }
    return s;
}

static enum cairn_cause pin_finish(struct cairn_vault *v, struct slot *s,
                                   const struct cairn_key *key, uint64_t deadline_ns)
{
    enum cairn_cause cause = load_wait(v, s, deadline_ns);
    bool verify = false;
    if (!cause) {
        pthread_mutex_lock(&v->lock);
        verify = slot_needs_verify(v, s);
        pthread_mutex_unlock(&v->lock);
        cause = verify_in_place(v, s, key, verify);
    }
    pthread_mutex_lock(&v->lock);
    if (cause) {
        count_miss(v, cause);
        if (cause_is_damage(cause))
            slot_drop_damaged(v, s, cause);
    } else if (verify) {
        slot_verified(s);
    }
    pthread_mutex_unlock(&v->lock);
    return cause;
}

/* Brings a pin that was begun to its end. Bytes that were damaged in RAM, or that a get had loaded
 * and nobody had verified, may be good on the disk. */
static bool pin_bring(struct cairn_vault *v, uint16_t space, const struct cairn_key *key,
                      uint64_t deadline_ns, struct cairn_pin *p)
{
    struct slot *s = &v->slots[p->slot];
    enum cairn_cause cause = pin_finish(v, s, key, deadline_ns);
    if (!cause || !cause_is_damage(cause))
        return !cause;
    pthread_mutex_lock(&v->lock);
    struct slot *again = pin_begin(v, space, key);
    if (again) {
        *p = pin_of(v, again);
        lease_uncount(v, s);
        slot_unpin(v, s);
    }
    pthread_mutex_unlock(&v->lock);
    return again && pin_finish(v, again, key, deadline_ns) == CAIRN_CAUSE_NONE;
}

size_t cairn_vault_space_pin(struct cairn_vault *v, uint16_t space, const struct cairn_key *keys,
                             size_t count_keys, uint64_t deadline_ns, struct cairn_pin *pins)
{
    size_t begun = 0, held = 0;
    uint64_t since_ns = cairn_now_ns();
    pthread_mutex_lock(&v->lock);
    for (; begun < count_keys; begun++) {
        struct slot *s = pin_begin(v, space, &keys[begun]);
        if (!s)
            break;
        pins[begun] = pin_of(v, s);
        pins[begun].slot |= s->state == SLOT_RESIDENT ? 0 : PIN_LOADED;
    }
    pthread_mutex_unlock(&v->lock);
    bool whole = true;
    for (size_t i = 0; i < begun; i++) {
        bool loaded = pins[i].slot & PIN_LOADED;
        pins[i].slot &= ~PIN_LOADED;
        whole = whole && pin_bring(v, space, &keys[i], deadline_ns, &pins[i]);
        if (whole)
            count_hit(v, pins[i].value_len, loaded, since_ns);
        held += whole;
    }
    cairn_vault_unpin(v, pins + held, begun - held);
    return held;
}

size_t cairn_vault_pin(struct cairn_vault *v, const struct cairn_key *keys, size_t count_keys,
                       uint64_t deadline_ns, struct cairn_pin *pins)
{
    return cairn_vault_space_pin(v, 0, keys, count_keys, deadline_ns, pins);
}

/* The bytes of a pinned value are not what they should be. Lock held. */
static cairn_status pin_refused(struct cairn_vault *v, struct slot *s, enum cairn_cause cause)
{
    uint32_t id = s->entry;
    bool on_disk = id != CAIRN_ENTRY_NONE && cause_is_damage(cause) &&
                   cairn_index_entry(v->index, id)->block != CAIRN_BLOCK_NONE;
    count_miss(v, cause);
    if (cause_is_damage(cause))
        slot_drop_damaged(v, s, cause);
    else if (cause == CAIRN_CAUSE_EXPIRED)
        slot_drop_expired(v, s);
    lease_uncount(v, s);
    slot_unpin(v, s);
    return on_disk ? CAIRN_INPROGRESS : CAIRN_MISS;
}

/* The slot of a value in RAM, pinned. Lock held. */
static cairn_status pin_resident(struct cairn_vault *v, uint16_t space,
                                 const struct cairn_key *key, struct slot **ret,
                                 enum cairn_cause *cause)
{
    struct cairn_entry *e = entry_of(v, cairn_index_find(v->index, key), space);
    *cause = CAIRN_CAUSE_ABSENT;
    if (!e)
        return CAIRN_MISS;
    struct slot *s = e->slot == CAIRN_SLOT_NONE ? NULL : &v->slots[e->slot];
    if (!s && v->tier_off) {
        *cause = CAIRN_CAUSE_TIER_OFF;
        return CAIRN_MISS;
    }
    if (!s || s->state != SLOT_RESIDENT)
        return CAIRN_INPROGRESS;
    *cause = CAIRN_CAUSE_NO_ROOM;
    if (!s->leases && v->lease_blocks + s->blocks > v->arena_blocks / 2)
        return CAIRN_MISS;
    e->flags |= CAIRN_ENTRY_HIT;
    identity_hit(v, e->identity, e->value_len);
    slot_pin(s);
    lease_count(v, s);
    slot_leave_orphans(v, s);
    slot_touch(v, s);
    *cause = CAIRN_CAUSE_NONE;
    *ret = s;
    return CAIRN_OK;
}

cairn_status cairn_vault_space_pin_now(struct cairn_vault *v, uint16_t space,
                                       const struct cairn_key *key, bool check,
                                       struct cairn_pin *ret, enum cairn_cause *ret_cause)
{
    struct slot *s = NULL;
    enum cairn_cause cause;
    uint64_t since_ns = cairn_now_ns();
    pthread_mutex_lock(&v->lock);
    cairn_status st = pin_resident(v, space, key, &s, &cause);
    bool verify = !st && check && slot_needs_verify(v, s);
    pthread_mutex_unlock(&v->lock);
    if (st == CAIRN_MISS)
        count_miss(v, cause);
    if (!st)
        cause = verify_in_place(v, s, key, verify);
    if (cause == CAIRN_CAUSE_LENGTH && slot_damaged_length(v, s))
        cause = CAIRN_CAUSE_HEADER;
    if (!st && (cause || verify)) {
        pthread_mutex_lock(&v->lock);
        if (cause)
            st = pin_refused(v, s, cause);
        else
            slot_verified(s);
        pthread_mutex_unlock(&v->lock);
    }
    *ret_cause = cause;
    if (st)
        return st;
    *ret = pin_of(v, s);
    count_hit(v, s->value_len, false, since_ns);
    return CAIRN_OK;
}

cairn_status cairn_vault_pin_now(struct cairn_vault *v, const struct cairn_key *key, bool check,
                                 struct cairn_pin *ret, enum cairn_cause *cause)
{
    return cairn_vault_space_pin_now(v, 0, key, check, ret, cause);
}

void cairn_vault_unpin(struct cairn_vault *v, const struct cairn_pin *pins, size_t count_pins)
{
    pthread_mutex_lock(&v->lock);
    for (size_t i = 0; i < count_pins; i++) {
        struct slot *s = &v->slots[pins[i].slot];
        lease_uncount(v, s);
        slot_unpin(v, s);
    }
    pthread_mutex_unlock(&v->lock);
}

void cairn_vault_pin_reject(struct cairn_vault *v, const struct cairn_pin *pin,
                            enum cairn_cause cause)
{
    pthread_mutex_lock(&v->lock);
    struct slot *s = &v->slots[pin->slot];
    count_miss(v, cause);
    if (cause_is_damage(cause))
        slot_drop_damaged(v, s, cause);
    lease_uncount(v, s);
    slot_unpin(v, s);
    pthread_mutex_unlock(&v->lock);
}

cairn_status cairn_vault_side(struct cairn_vault *v, const struct cairn_key *key, void *out,
                              uint32_t *len, uint64_t deadline_ns)
{
    struct cairn_pin pin;
    if (cairn_vault_pin(v, key, 1, deadline_ns, &pin) == 0)
        return CAIRN_MISS;
    const struct cairn_record_body_disk *b = &slot_image(v, &v->slots[pin.slot])->body;
    const char *side = (const char *)pin.value + (size_t)cairn_blocks(pin.value_len) * CAIRN_BLOCK;
    cairn_status st = CAIRN_OK;
    if (b->side_len > *len) {
        st = CAIRN_TOOBIG;
    } else if (cairn_record_blocks(pin.value_len, b->side_len) >
                   v->slots[pin.slot].blocks ||
               (b->side_len && cairn_hash64(side, b->side_len) != b->side_check)) {
        count_miss(v, CAIRN_CAUSE_CHECKSUM);
        st = CAIRN_MISS;
    } else {
        memcpy(out, side, b->side_len);
    }
    if (st != CAIRN_MISS)
        *len = b->side_len;
    cairn_vault_unpin(v, &pin, 1);
    return st;
}
