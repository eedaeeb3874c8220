#include <string.h>

#include "storage/store_internal.h"

#define EVICT_ALONE_MAX 32u
#define VICTIM_TRIES 4096u /* bounds the time under the lock; unusable ones move to the back */
#define FORGET_TRIES 1024u
#define COST_UNWRITTEN (UINT64_MAX - 1) /* above any rank */

uint32_t slot_number(const struct cairn_vault *v, const struct slot *s)
{
    return (uint32_t)(s - v->slots);
}

void slot_list_push(struct cairn_vault *v, struct slot_list *l, uint32_t n)
{
    struct slot *s = &v->slots[n];
    s->prev = l->tail;
    s->next = CAIRN_SLOT_NONE;
    if (l->tail == CAIRN_SLOT_NONE)
        l->head = n;
    else
        v->slots[l->tail].next = n;
    l->tail = n;
}

void slot_list_remove(struct cairn_vault *v, struct slot_list *l, uint32_t n)
{
    struct slot *s = &v->slots[n];
    if (s->prev == CAIRN_SLOT_NONE)
        l->head = s->next;
    else
        v->slots[s->prev].next = s->next;
    if (s->next == CAIRN_SLOT_NONE)
        l->tail = s->prev;
    else
        v->slots[s->next].prev = s->prev;
    s->prev = s->next = CAIRN_SLOT_NONE;
}

void slot_pin(struct slot *s)
{
    s->pins++;
}

void slot_unpin(struct cairn_vault *v, struct slot *s)
{
    s->pins--;
    slot_release(v, s);
}

void slot_leave_orphans(struct cairn_vault *v, struct slot *s)
{
    v->orphans -= s->orphan;
    s->orphan = false;
}

static void leave_policy(struct cairn_vault *v, struct slot *s, bool evicted)
{
    slot_leave_orphans(v, s);
    if (s->in_policy)
        v->policy->ops->remove(v->policy, slot_number(v, s), evicted);
    s->in_policy = false;
}

/* For the policy it is gone: asked for again, it comes back as one that was missed. */
void slot_leave(struct cairn_vault *v, struct slot *s)
{
    leave_policy(v, s, true);
    s->leaving = true;
    v->leaving_blocks += s->blocks;
}

void slot_ready(struct cairn_vault *v, struct slot *s)
{
    s->ready = true;
    slot_list_push(v, &v->ready, slot_number(v, s));
}

void slot_stay(struct cairn_vault *v, struct slot *s)
{
    if (!s->leaving)
        return;
    v->leaving_blocks -= s->blocks;
    if (s->ready)
        slot_list_remove(v, &v->ready, slot_number(v, s));
    s->leaving = s->ready = false;
    if (s->entry != CAIRN_ENTRY_NONE)
        slot_enter_policy(v, s, s->blocks);
}

void slot_touch(struct cairn_vault *v, struct slot *s)
{
    slot_stay(v, s);
    if (s->in_policy)
        v->policy->ops->touch(v->policy, slot_number(v, s));
}

static void leave_parent(struct cairn_vault *v, struct slot *s)
{
    if (s->parent != CAIRN_SLOT_NONE && v->slots[s->parent].gen == s->parent_gen)
        v->slots[s->parent].children--;
    s->parent = CAIRN_SLOT_NONE;
}

void slot_release(struct cairn_vault *v, struct slot *s)
{
    if (s->pins || s->entry != CAIRN_ENTRY_NONE || s->state == SLOT_FREE ||
        s->write == WRITE_FLYING)
        return;
    leave_policy(v, s, false);
    leave_parent(v, s);
    cairn_extent_free(v->extents, s->first);
    s->state = SLOT_FREE;
    s->gen++;
    s->children = 0;
    slot_list_push(v, &v->free, slot_number(v, s));
}

/* Ends the wish to write a slot that the tier has not taken yet. */
static void unqueue(struct cairn_vault *v, struct slot *s)
{
    if (s->write == WRITE_QUEUED) {
        slot_list_remove(v, &v->dirty, slot_number(v, s));
        v->dirty_blocks -= s->blocks;
        s->write = WRITE_CLEAN;
    } else if (s->write == WRITE_FAILED) {
        v->failed_slots--;
        s->write = WRITE_CLEAN;
    }
}

static void cut(struct cairn_vault *v, struct slot *s, bool evicted)
{
    if (s->entry != CAIRN_ENTRY_NONE)
        cairn_index_entry(v->index, s->entry)->slot = CAIRN_SLOT_NONE;
    s->entry = CAIRN_ENTRY_NONE;
    slot_stay(v, s);
    unqueue(v, s);
    leave_policy(v, s, evicted);
    if (s->state == SLOT_RESIDENT) {
        v->resident_bytes -= s->value_len;
        v->resident_count--;
    }
    slot_release(v, s);
}

void slot_detach(struct cairn_vault *v, struct slot *s)
{
    cut(v, s, false);
}

void slot_enter_policy(struct cairn_vault *v, struct slot *s, uint32_t weight)
{
    const uint8_t *key = cairn_index_entry(v->index, s->entry)->key;
    v->policy->ops->insert(v->policy, slot_number(v, s), key_hash(key), weight);
    s->in_policy = true;
}

void slot_adopt(struct cairn_vault *v, struct slot *s, const uint8_t parent_key[32])
{
    static const uint8_t none[32];
    struct cairn_key parent;
    if (memcmp(parent_key, none, sizeof none) == 0)
        return;
    memcpy(parent.bytes, parent_key, sizeof parent.bytes);
    uint32_t id = cairn_index_find(v->index, &parent);
    struct cairn_entry *e = entry_of(v, id, cairn_index_entry(v->index, s->entry)->space);
    if (!e) {
        s->orphan = true;
        v->orphans++;
    }
    if (!e || id == s->entry)
        return;
    /* Its chain grows: worth carrying over when its segment is reclaimed. */
    e->flags |= CAIRN_ENTRY_HIT;
    if (e->slot == CAIRN_SLOT_NONE)
        return;
    s->parent = e->slot;
    s->parent_gen = v->slots[e->slot].gen;
    v->slots[e->slot].children++;
}

static bool only_in_ram(const struct cairn_vault *v, const struct slot *s)
{
    return s->entry != CAIRN_ENTRY_NONE &&
           cairn_index_entry(v->index, s->entry)->block == CAIRN_BLOCK_NONE;
}

bool slot_evictable(const struct cairn_vault *v, const struct slot *s)
{
    if (s->state != SLOT_RESIDENT || s->pins ||
        (s->write != WRITE_CLEAN && s->write != WRITE_FAILED))
        return false;
    /* On-evict: it leaves once it is on disk, as long as there is one that takes it. */
    bool writes_first = v->tier && !v->tier_off && s->on_evict;
    return !writes_first || s->write == WRITE_FAILED || !only_in_ram(v, s) ||
           !entry_writable(v, cairn_index_entry(v->index, s->entry));
}

/* It should be written first, but leaves all the same before a put fails for it. */
static bool slot_yields(const struct slot *s)
{
    return s->yields && s->state == SLOT_RESIDENT && !s->pins && s->write == WRITE_CLEAN;
}

void slot_forget(struct cairn_vault *v, const struct slot *s)
{
    if (s->tried && only_in_ram(v, s))
        forgotten_note(v, cairn_index_entry(v->index, s->entry)->key);
}

void slot_count_lost(struct cairn_vault *v, const struct slot *s)
{
    /* Written once and then reclaimed is not lost: reclaim may drop what was durable. */
    if (v->tier && s->write != WRITE_FLYING && !s->written && only_in_ram(v, s))
        count(&v->c.lost_writes, 1);
}

void entry_count(struct cairn_vault *v, const struct cairn_entry *e, int by)
{
    if (e->flags & CAIRN_ENTRY_TOMB)
        return;
    v->identities[e->identity].f.held += (uint64_t)by;
    if (e->space < VAULT_SPACES)
        v->held[e->space] += (uint64_t)by;
}

bool entry_living(const struct cairn_vault *v, const struct cairn_entry *e)
{
    return e->space >= VAULT_SPACES || e->version >= v->cleared[e->space];
}

bool entry_writable(const struct cairn_vault *v, const struct cairn_entry *e)
{
    return !(e->flags & CAIRN_ENTRY_DYING) && entry_living(v, e);
}

void entry_remove(struct cairn_vault *v, uint32_t id, enum cairn_cause cause)
{
    const struct cairn_entry *e = cairn_index_entry(v->index, id);
    entry_count(v, e, -1);
    if (cause) {
        drops_note(v->drops, e->key, cause);
        count(&v->c.dropped[cause], 1);
    }
    cairn_index_remove(v->index, id);
}

void entry_drop_if_empty(struct cairn_vault *v, uint32_t id, enum cairn_cause cause)
{
    const struct cairn_entry *e = cairn_index_entry(v->index, id);
    if (e->slot == CAIRN_SLOT_NONE && e->block == CAIRN_BLOCK_NONE)
        entry_remove(v, id, cause);
}

void entry_forget_disk(struct cairn_vault *v, uint32_t id, enum cairn_cause cause)
{
    struct cairn_entry *e = cairn_index_entry(v->index, id);
    if (e->block != CAIRN_BLOCK_NONE)
        forgotten_note(v, e->key);
    e->block = CAIRN_BLOCK_NONE;
    entry_drop_if_empty(v, id, cause);
}

void slot_evict(struct cairn_vault *v, struct slot *s)
{
    uint32_t id = s->entry;
    slot_forget(v, s);
    count(&v->c.evicted, 1);
    count(&v->c.evicted_bytes, s->value_len);
    slot_count_lost(v, s);
    cut(v, s, true);
    entry_drop_if_empty(v, id, CAIRN_CAUSE_EVICTED);
}

static bool usable_tail(void *arg, uint32_t n)
{
    const struct cairn_vault *v = arg;
    return slot_evictable(v, &v->slots[n]) && v->slots[n].children == 0;
}

static bool usable_any(void *arg, uint32_t n)
{
    const struct cairn_vault *v = arg;
    return slot_evictable(v, &v->slots[n]) || slot_yields(&v->slots[n]);
}

static uint64_t evict_cost(void *arg, uint32_t n)
{
    const struct cairn_vault *v = arg;
    const struct slot *s = &v->slots[n];
    if (slot_evictable(v, s))
        return v->policy->ops->rank(v->policy, n);
    return slot_yields(s) ? COST_UNWRITTEN : UINT64_MAX;
}

static bool usable_orphan(void *arg, uint32_t n)
{
    const struct cairn_vault *v = arg;
    return v->slots[n].orphan && usable_tail(arg, n);
}

static bool usable_next(void *arg, uint32_t n)
{
    const struct cairn_vault *v = arg;
    const struct slot *s = &v->slots[n];
    return s->state == SLOT_RESIDENT && !s->pins && s->children == 0 &&
           (s->write == WRITE_CLEAN || s->write == WRITE_FAILED);
}

uint32_t slot_leaves_next(struct cairn_vault *v)
{
    return v->policy->ops->victim(v->policy, usable_next, v, 128);
}

/* The first of those whose turn had come before. */
static uint32_t take_ready(struct cairn_vault *v)
{
    while (v->ready.head != CAIRN_SLOT_NONE) {
        struct slot *s = &v->slots[v->ready.head];
        if (slot_evictable(v, s) && s->children == 0)
            return v->ready.head;
        slot_stay(v, s);
    }
    return CAIRN_SLOT_NONE;
}

/* A chain loses its tail before its head. First goes what no lookup can reach, since the chain
 * before it is gone; then what has no resident children; anything only if all have some. */
static uint32_t pick_victim(struct cairn_vault *v)
{
    uint32_t n = CAIRN_SLOT_NONE;
    if (v->orphans)
        n = v->policy->ops->peek(v->policy, usable_orphan, v, 64);
    if (n == CAIRN_SLOT_NONE)
        n = take_ready(v);
    if (n == CAIRN_SLOT_NONE)
        n = v->policy->ops->victim(v->policy, usable_tail, v, 128);
    if (n == CAIRN_SLOT_NONE)
        n = v->policy->ops->victim(v->policy, usable_any, v, VICTIM_TRIES);
    return n;
}

/* Frees a run of `blocks` around the policy's victim. `alone` counts the victims that left without
 * that: it is bounded, lest one large value between pinned ones empties the cache for nothing. */
static bool evict_for(struct cairn_vault *v, uint32_t blocks, uint32_t *alone)
{
    uint32_t victim = *alone < EVICT_ALONE_MAX ? pick_victim(v) : CAIRN_SLOT_NONE, found = 0;
    if (victim == CAIRN_SLOT_NONE)
        return false;
    bool window = cairn_extent_window(v->extents, v->slots[victim].first, blocks, evict_cost, v,
                                      v->evict_list, VAULT_EVICT_MAX, &found);
    if (!window) {
        /* Pinned neighbours on both sides: this one's room alone, and on to the next victim. */
        v->evict_list[0] = victim;
        found = 1;
        (*alone)++;
    }
    for (uint32_t i = 0; i < found; i++)
        slot_evict(v, &v->slots[v->evict_list[i]]);
    return true;
}

struct slot *room_take(struct cairn_vault *v, uint32_t blocks, bool for_put)
{
    uint64_t held = v->dirty_blocks + v->filling_blocks + v->lease_blocks;
    uint64_t reserve = v->tier ? v->arena_blocks / 8 : 0; /* staging for gets from disk */
    if (blocks > v->arena_blocks || (for_put && held + blocks + reserve > v->arena_blocks))
        return NULL;
    uint32_t n = v->free.head, first, alone = 0;
    while (n == CAIRN_SLOT_NONE || (first = cairn_extent_alloc(v->extents, blocks, n)) ==
                                       CAIRN_EXTENT_NONE) {
        /* Without a free slot any one victim will do. */
        if (!evict_for(v, n == CAIRN_SLOT_NONE ? 1 : blocks, &alone))
            return NULL;
        n = v->free.head;
    }
    slot_list_remove(v, &v->free, n);
    struct slot *s = &v->slots[n];
    uint32_t gen = s->gen;
    *s = (struct slot){.first = first, .blocks = blocks, .gen = gen, .pins = 1,
                       .entry = CAIRN_ENTRY_NONE, .parent = CAIRN_SLOT_NONE,
                       .prev = CAIRN_SLOT_NONE, .next = CAIRN_SLOT_NONE, .state = SLOT_FILLING};
    return s;
}

/* Second chance over the entries that only the disk holds. */
static bool forget_one(struct cairn_vault *v)
{
    uint32_t hit = CAIRN_ENTRY_NONE;
    for (uint32_t seen = 0; seen < FORGET_TRIES; seen++) {
        uint32_t id = cairn_index_next(v->index, v->clock_hand);
        v->clock_hand = id == CAIRN_ENTRY_NONE ? 0 : id + 1;
        if (id == CAIRN_ENTRY_NONE)
            continue;
        struct cairn_entry *e = cairn_index_entry(v->index, id);
        if (e->slot != CAIRN_SLOT_NONE)
            continue;
        if (!(e->flags & CAIRN_ENTRY_HIT)) {
            entry_forget_disk(v, id, CAIRN_CAUSE_EVICTED);
            return true;
        }
        e->flags &= (uint16_t)~CAIRN_ENTRY_HIT;
        hit = id;
    }
    if (hit != CAIRN_ENTRY_NONE)
        entry_forget_disk(v, hit, CAIRN_CAUSE_EVICTED);
    return hit != CAIRN_ENTRY_NONE;
}

uint32_t entry_insert(struct cairn_vault *v, const struct cairn_key *key)
{
    uint32_t id = cairn_index_insert(v->index, key);
    if (id != CAIRN_ENTRY_NONE)
        return id;
    if (!forget_one(v)) {
        uint32_t victim = pick_victim(v);
        if (victim == CAIRN_SLOT_NONE)
            return CAIRN_ENTRY_NONE;
        uint32_t old = v->slots[victim].entry;
        bool on_disk = cairn_index_entry(v->index, old)->block != CAIRN_BLOCK_NONE;
        slot_evict(v, &v->slots[victim]);
        if (on_disk)
            entry_forget_disk(v, old, CAIRN_CAUSE_EVICTED);
    }
    return cairn_index_insert(v->index, key);
}
