/* Getting and looking up. A get runs over its keys with a window: values on disk are being read
 * into RAM ahead of the one that is copied out. */
#include <string.h>

#include "base/clock.h"
#include "base/move.h"
#include "storage/store_internal.h"

/* One key of a get between admission and the end of its copy. Holds a pin on `slot`. */
struct flight {
    struct slot *slot;   /* NULL: failed with `cause`                      */
    uint8_t cause;
    bool disk;           /* was not in RAM                                 */
    bool unverified;     /* nobody had verified it when it was asked for   */
    bool verify;         /* the copy in RAM is to be verified              */
    bool bad;            /* the copy in RAM is damaged                     */
    bool expired;
};

struct get_run {
    struct cairn_vault *v;
    struct cairn_get *gets;
    size_t count, next, admitted, settled;
    uint64_t deadline_ns, loading_blocks;
    size_t hits;
    struct flight flights[VAULT_WINDOW];
};

bool slot_needs_verify(const struct cairn_vault *v, const struct slot *s)
{
    return v->o.verify == CAIRN_VERIFY_ALWAYS || s->unverified ||
           (v->o.verify == CAIRN_VERIFY_FIRST && !s->checked);
}

void slot_verified(struct slot *s)
{
    s->checked = true;
    s->unverified = false;
}

uint32_t entry_blocks(const struct cairn_entry *e)
{
    return 1 + cairn_blocks(e->value_len) + (e->flags >> CAIRN_ENTRY_SIDE_SHIFT);
}

/* The first `bytes` of a value may be copied. */
static void load_part(struct cairn_tier_op *top, uint64_t bytes)
{
    struct vault_op *op = top->owner;
    struct cairn_vault *v = op->vault;
    pthread_mutex_lock(&v->lock);
    struct slot *s = &v->slots[op->slot];
    s->loaded = bytes < s->value_len ? (uint32_t)bytes : s->value_len;
    if (s->waited)
        pthread_cond_broadcast(&v->changed);
    pthread_mutex_unlock(&v->lock);
}

/* Submits the read of an entry's record into a slot that nobody else sees yet. `what`: key, pieces,
 * who verifies. */
static struct slot *load_submit(struct cairn_vault *v, const struct cairn_entry *e,
                                struct cairn_tier_op what, enum cairn_cause *cause)
{
    *cause = CAIRN_CAUSE_QUEUE_FULL;
    struct vault_op *op = v->tier_off ? NULL : op_take(v);
    if (!op) {
        if (v->tier_off)
            *cause = CAIRN_CAUSE_TIER_OFF;
        return NULL;
    }
    *cause = CAIRN_CAUSE_NO_ROOM;
    /* Eviction does not touch this entry: it has no slot. */
    struct slot *s = room_take(v, entry_blocks(e), false);
    if (!s) {
        op_give(v, op);
        return NULL;
    }
    s->state = SLOT_LOADING;
    s->version = e->version;
    s->value_len = e->value_len;
    s->unverified = what.host_verifies;
    /* Nobody reads what the tier verifies before it did. */
    s->checked = !s->unverified;
    op->slot = slot_number(v, s);
    what.kind = CAIRN_TIER_LOAD;
    what.block = e->block;
    what.blocks = s->blocks;
    what.image = slot_image(v, s);
    what.version = e->version;
    what.value_len = e->value_len;
    what.part = what.piece_count ? NULL : load_part;
    what.deadline_ns = cairn_deadline_ns(v->o.io_deadline_ns);
    what.done = op->op.done;
    what.owner = op;
    op->op = what;
    slot_pin(s); /* the op's */
    if (v->tier->ops->submit(v->tier, &op->op) != CAIRN_OK) {
        *cause = CAIRN_CAUSE_TIER_OFF;
        op_give(v, op);
        slot_unpin(v, s);
        slot_unpin(v, s);
        return NULL;
    }
    return s;
}

static struct slot *load_whole(struct cairn_vault *v, uint32_t id, const struct cairn_key *key,
                               bool host_verifies, enum cairn_cause *cause)
{
    struct cairn_tier_op what = {.key = *key, .host_verifies = host_verifies};
    struct slot *s = load_submit(v, cairn_index_entry(v->index, id), what, cause);
    if (!s)
        return NULL;
    s->entry = id;
    cairn_index_entry(v->index, id)->slot = slot_number(v, s);
    return s;
}

struct slot *load_begin(struct cairn_vault *v, uint32_t id, const struct cairn_key *key,
                        enum cairn_cause *cause)
{
    return load_whole(v, id, key, false, cause);
}

/* A small range of a large value on disk: only its pieces, into memory that is not shared. */
static struct slot *load_range(struct cairn_vault *v, const struct cairn_entry *e,
                               const struct cairn_get *g, enum cairn_cause *cause)
{
    size_t len = cairn_sgl_bytes(&g->out);
    if (!(g->flags & CAIRN_GET_RANGE) || len == 0 || g->offset >= e->value_len ||
        len > e->value_len - g->offset || len > e->value_len / 2)
        return NULL;
    uint32_t first = (uint32_t)(g->offset / CAIRN_PIECE_BYTES);
    uint32_t last = (uint32_t)((g->offset + len - 1) / CAIRN_PIECE_BYTES);
    struct cairn_tier_op what = {
        .key = g->key, .piece_first = first, .piece_count = last - first + 1};
    return load_submit(v, e, what, cause);
}

/* Is every byte of the value copied out? */
static bool get_copies_all(const struct cairn_get *g, uint32_t value_len)
{
    return !(g->flags & CAIRN_GET_RANGE) && g->out.mem == CAIRN_MEM_HOST &&
           cairn_sgl_bytes(&g->out) == value_len;
}

/* Finds the key and pins its slot, or begins to load it; `again`: what was found first was bad, so
 * the tier is to find out whether the disk is. Lock held. */
static struct flight admit(struct cairn_vault *v, const struct cairn_get *g, bool again)
{
    struct flight f = {.cause = CAIRN_CAUSE_ABSENT};
    uint32_t id = cairn_index_find(v->index, &g->key);
    struct cairn_entry *e = entry_of(v, id, 0);
    if (!e)
        return f;
    if (e->slot != CAIRN_SLOT_NONE) {
        f.slot = &v->slots[e->slot];
        f.disk = f.slot->state == SLOT_LOADING;
        slot_pin(f.slot);
    } else {
        enum cairn_cause cause = CAIRN_CAUSE_ABSENT;
        f.disk = true;
        f.slot = load_range(v, e, g, &cause);
        if (!f.slot)
            f.slot = load_whole(v, id, &g->key, !again && get_copies_all(g, e->value_len), &cause);
        f.cause = (uint8_t)cause;
    }
    if (f.slot) {
        e->flags |= CAIRN_ENTRY_HIT;
        f.unverified = f.slot->unverified;
        f.verify = slot_needs_verify(v, f.slot);
        slot_leave_orphans(v, f.slot);
        f.cause = CAIRN_CAUSE_NONE;
    }
    return f;
}

/* Admits keys until the window, the room or the ops are used up. Lock held. */
static void admit_more(struct get_run *r)
{
    struct cairn_vault *v = r->v;
    size_t from = r->admitted;
    while (r->admitted < r->count && r->admitted - r->settled < VAULT_WINDOW &&
           (r->admitted == r->next || r->loading_blocks < v->arena_blocks / 4)) {
        struct flight f = admit(v, &r->gets[r->admitted], false);
        bool later = f.cause == CAIRN_CAUSE_NO_ROOM || f.cause == CAIRN_CAUSE_QUEUE_FULL;
        if (!f.slot && later && r->admitted > r->next)
            break; /* once what this call holds is given back */
        if (f.slot && f.disk)
            r->loading_blocks += f.slot->blocks;
        r->flights[r->admitted++ % VAULT_WINDOW] = f;
    }
    /* Tail first, so that the head of a chain ends up as the most recent. */
    for (size_t i = r->admitted; i-- > from;) {
        struct slot *s = r->flights[i % VAULT_WINDOW].slot;
        if (s)
            slot_touch(v, s);
    }
}

void slot_drop_damaged(struct cairn_vault *v, struct slot *s, enum cairn_cause cause)
{
    uint32_t id = s->entry;
    if (id == CAIRN_ENTRY_NONE)
        return;
    if (cause == CAIRN_CAUSE_CHECKSUM)
        count(s->unverified ? &v->c.bad_disk : &v->c.bad_ram, 1);
    slot_count_lost(v, s);
    slot_forget(v, s);
    slot_detach(v, s);
    entry_drop_if_empty(v, id, cause);
}

void slot_drop_expired(struct cairn_vault *v, struct slot *s)
{
    uint32_t id = s->entry;
    if (id == CAIRN_ENTRY_NONE)
        return;
    slot_detach(v, s);
    cairn_index_entry(v->index, id)->block = CAIRN_BLOCK_NONE;
    entry_drop_if_empty(v, id, CAIRN_CAUSE_EXPIRED);
}

/* Gives back what was copied out. Lock held. */
static void settle(struct get_run *r)
{
    for (; r->settled < r->next; r->settled++) {
        struct flight *f = &r->flights[r->settled % VAULT_WINDOW];
        if (!f->slot)
            continue;
        if (f->disk)
            r->loading_blocks -= f->slot->blocks;
        if (f->bad)
            slot_drop_damaged(r->v, f->slot, f->cause);
        if (f->expired)
            slot_drop_expired(r->v, f->slot);
        if (r->gets[r->settled].status == CAIRN_OK && f->slot->entry != CAIRN_ENTRY_NONE)
            identity_hit(r->v, cairn_index_entry(r->v->index, f->slot->entry)->identity,
                         cairn_sgl_bytes(&r->gets[r->settled].out));
        slot_unpin(r->v, f->slot);
    }
}

/* Sleeps until the slot is loaded or more than *loaded bytes of it are good, which is noted then.
 * Returns its cause, DEADLINE if it took too long. */
static enum cairn_cause wait_part(struct cairn_vault *v, struct slot *s, uint64_t deadline_ns,
                                  uint32_t *loaded, bool *ret_ended)
{
    enum cairn_cause cause = CAIRN_CAUSE_NONE;
    pthread_mutex_lock(&v->lock);
    while (s->state == SLOT_LOADING && s->loaded <= *loaded) {
        s->waited = true;
        if (!vault_wait(v, deadline_ns)) {
            cause = CAIRN_CAUSE_DEADLINE;
            break;
        }
    }
    if (s->state == SLOT_FAILED)
        cause = s->cause;
    *loaded = s->loaded;
    *ret_ended = s->state != SLOT_LOADING;
    pthread_mutex_unlock(&v->lock);
    return cause;
}

enum cairn_cause load_wait(struct cairn_vault *v, struct slot *s, uint64_t deadline_ns)
{
    uint32_t all = UINT32_MAX;
    bool ended;
    return wait_part(v, s, deadline_ns, &all, &ended);
}

enum cairn_cause slot_check(const struct cairn_record_body_disk *b, const struct slot *s,
                            const struct cairn_key *key, const uint8_t *fingerprint, bool verify)
{
    if (verify && cairn_hash64(b, offsetof(struct cairn_record_body_disk, check)) != b->check)
        return CAIRN_CAUSE_HEADER;
    if (memcmp(b->key, key->bytes, sizeof b->key) != 0)
        return CAIRN_CAUSE_KEY;
    if (b->value_len != s->value_len)
        return CAIRN_CAUSE_LENGTH;
    if (b->version != s->version)
        return CAIRN_CAUSE_VERSION;
    if (fingerprint && memcmp(b->identity, fingerprint, sizeof b->identity) != 0)
        return CAIRN_CAUSE_IDENTITY;
    if (b->expires_ns && b->expires_ns <= cairn_wall_ns())
        return CAIRN_CAUSE_EXPIRED;
    return CAIRN_CAUSE_NONE;
}

/* Moves bytes [from, end) of what is asked for out. */
static enum cairn_cause copy_part(const struct cairn_get *g, const struct cairn_record_disk *r,
                                  bool verify, size_t from, size_t end, uint64_t deadline_ns)
{
    const char *value = (const char *)r + CAIRN_BLOCK;
    size_t off = (g->flags & CAIRN_GET_RANGE ? g->offset : 0) + from;
    switch (cairn_move_out(&g->out, from, value, r->body.value_len, off, end - from,
                           verify ? r->body.piece_check : NULL, deadline_ns)) {
    case CAIRN_OK:
        return CAIRN_CAUSE_NONE;
    case CAIRN_CORRUPT:
        return CAIRN_CAUSE_CHECKSUM;
    case CAIRN_TIMEOUT:
        return CAIRN_CAUSE_DEADLINE;
    default:
        return CAIRN_CAUSE_DEVICE;
    }
}

/* Waits for a value that is being read and copies its first bytes out meanwhile, as far as they
 * are there and good: *ret_copied. They count only if the rest of it is good too. */
static enum cairn_cause wait_copying(struct get_run *r, const struct flight *f,
                                     const struct cairn_get *g, uint32_t *ret_copied)
{
    struct slot *s = f->slot;
    const struct cairn_record_disk *image = slot_image(r->v, s);
    /* What the tier verifies, `always` verifies once more, in RAM. */
    bool ended = false, early = get_copies_all(g, s->value_len) && f->verify == f->unverified;
    uint32_t copied = 0, loaded = early ? 0 : UINT32_MAX;
    for (;;) {
        enum cairn_cause cause = wait_part(r->v, s, r->deadline_ns, &loaded, &ended);
        if (cause || ended) {
            *ret_copied = copied;
            return cause;
        }
        if (slot_check(&image->body, s, &g->key, g->fingerprint, false) == CAIRN_CAUSE_NONE &&
            copy_part(g, image, f->verify, copied, loaded, r->deadline_ns) == CAIRN_CAUSE_NONE)
            copied = loaded;
        else
            loaded = UINT32_MAX; /* copy_out says what is wrong */
    }
}

/* Copies a pinned value out from `copied` on, verifying what must be. */
static enum cairn_cause copy_out(const struct cairn_vault *v, const struct slot *s,
                                 const struct cairn_get *g, bool verify, uint32_t copied,
                                 uint64_t deadline_ns)
{
    const struct cairn_record_disk *r = slot_image(v, s);
    size_t len = cairn_sgl_bytes(&g->out), off = g->offset;
    enum cairn_cause cause = slot_check(&r->body, s, &g->key, g->fingerprint, verify);
    if (cause)
        return cause;
    bool fits = g->flags & CAIRN_GET_RANGE
                    ? off <= s->value_len && len <= s->value_len - off && len > 0
                    : len == s->value_len;
    if (!fits || !cairn_sgl_known(&g->out))
        return CAIRN_CAUSE_LENGTH;
    cause = copy_part(g, r, verify, copied, len, deadline_ns);
    /* A second look tells a damaged value from a read that went wrong on the way. */
    return cause == CAIRN_CAUSE_CHECKSUM ? copy_part(g, r, verify, copied, len, deadline_ns)
                                         : cause;
}

static cairn_status status_of(enum cairn_cause c)
{
    switch (c) {
    case CAIRN_CAUSE_NONE:
        return CAIRN_OK;
    case CAIRN_CAUSE_DEADLINE:
        return CAIRN_TIMEOUT;
    default:
        return CAIRN_MISS;
    }
}

bool cause_is_damage(enum cairn_cause c)
{
    return c == CAIRN_CAUSE_CHECKSUM || c == CAIRN_CAUSE_HEADER || c == CAIRN_CAUSE_KEY ||
           c == CAIRN_CAUSE_VERSION;
}

bool slot_damaged_length(const struct cairn_vault *v, const struct slot *s)
{
    return slot_image(v, s)->body.value_len != s->value_len;
}

/* Brings one admitted key to its result; `f` keeps its pin. */
static enum cairn_cause finish(struct get_run *r, struct flight *f, const struct cairn_get *g)
{
    struct cairn_vault *v = r->v;
    if (!f->slot)
        return f->cause;
    uint32_t copied = 0;
    if (f->disk) {
        enum cairn_cause cause = wait_copying(r, f, g, &copied);
        if (cause)
            return cause;
    }
    enum cairn_cause cause = copy_out(v, f->slot, g, f->verify, copied, r->deadline_ns);
    f->expired = cause == CAIRN_CAUSE_EXPIRED;
    f->bad = cause_is_damage(cause) ||
             (cause == CAIRN_CAUSE_LENGTH && slot_damaged_length(v, f->slot));
    f->cause = (uint8_t)cause;
    return cause;
}

/* A copy in RAM was damaged, came bad from the disk, or a segment was reclaimed under the read: the
 * disk may still have it. */
static bool worth_retry(const struct flight *f, enum cairn_cause cause)
{
    return (f->bad && (!f->disk || f->unverified)) || cause == CAIRN_CAUSE_RECLAIMED;
}

static enum cairn_cause retry(struct get_run *r, struct flight *f, const struct cairn_get *g)
{
    struct cairn_vault *v = r->v;
    pthread_mutex_lock(&v->lock);
    uint32_t held = f->disk ? f->slot->blocks : 0;
    if (f->bad)
        slot_drop_damaged(v, f->slot, f->cause);
    slot_unpin(v, f->slot);
    *f = admit(v, g, true);
    r->loading_blocks -= held;
    if (f->slot && f->disk)
        r->loading_blocks += f->slot->blocks;
    pthread_mutex_unlock(&v->lock);
    return finish(r, f, g);
}

static void finish_next(struct get_run *r)
{
    struct cairn_vault *v = r->v;
    struct cairn_get *g = &r->gets[r->next];
    struct flight *f = &r->flights[r->next % VAULT_WINDOW];
    uint64_t begin = cairn_now_ns();
    enum cairn_cause cause = begin >= r->deadline_ns && r->next ? CAIRN_CAUSE_DEADLINE
                                                                : finish(r, f, g);
    if (worth_retry(f, cause)) {
        /* A bad read that the second heals is no miss, and one that it does not is only one. */
        if (!f->bad || !f->disk)
            count_miss(v, cause);
        cause = retry(r, f, g);
    }
    g->cause = cause;
    g->status = status_of(cause);
    if (cause) {
        count_miss(v, cause);
    } else {
        r->hits++;
        count(&v->c.get_bytes, cairn_sgl_bytes(&g->out));
        count_got(v, f->disk, begin);
    }
    r->next++;
}

/* Values that were verified whole on this way need no second verification. Lock held. */
static void note_checked(struct get_run *r, size_t from)
{
    for (size_t i = from; i < r->next; i++) {
        struct flight *f = &r->flights[i % VAULT_WINDOW];
        if (f->slot && f->verify && r->gets[i].status == CAIRN_OK &&
            !(r->gets[i].flags & CAIRN_GET_RANGE))
            slot_verified(f->slot);
    }
}

cairn_status cairn_vault_get(struct cairn_vault *v, struct cairn_get *gets, size_t count_gets,
                             uint64_t deadline_ns, size_t *ret_hits)
{
    struct get_run r = {.v = v, .gets = gets, .count = count_gets, .deadline_ns = deadline_ns};
    size_t from = 0;
    while (r.settled < r.count) {
        pthread_mutex_lock(&v->lock);
        note_checked(&r, from);
        settle(&r);
        admit_more(&r);
        pthread_mutex_unlock(&v->lock);
        from = r.next;
        /* Half a window at a time, so that reads go on while the rest is copied out. */
        size_t upto = r.admitted == r.count ? r.count : r.next + (r.admitted - r.next + 1) / 2;
        while (r.next < upto)
            finish_next(&r);
    }
    if (ret_hits)
        *ret_hits = r.hits;
    return r.hits == count_gets ? CAIRN_OK : CAIRN_MISS;
}

size_t cairn_vault_lookup_where(struct cairn_vault *v, const struct cairn_key *keys,
                                size_t count_keys, size_t *ret_resident)
{
    uint32_t ids[512];
    size_t held = 0, resident = 0;
    uint64_t begin = cairn_now_ns();
    while (held < count_keys) {
        uint32_t n = count_keys - held > 512 ? 512 : (uint32_t)(count_keys - held);
        pthread_mutex_lock(&v->lock);
        uint32_t seen = cairn_index_find_many(v->index, keys + held, n, 1, ids), i = 0;
        for (; i < seen && entry_of(v, ids[i], 0); i++)
            if (resident == held + i)
                resident += cairn_index_entry(v->index, ids[i])->slot != CAIRN_SLOT_NONE;
        pthread_mutex_unlock(&v->lock);
        held += i;
        if (i < seen)
            break;
    }
    count(&v->c.lookups, 1);
    count(&v->c.lookup_keys, count_keys);
    count(&v->c.lookup_held, held);
    cairn_hist_add(&v->c.lookup_ns, cairn_now_ns() - begin);
    if (ret_resident)
        *ret_resident = resident;
    return held;
}

size_t cairn_vault_lookup(struct cairn_vault *v, const struct cairn_key *keys, size_t count_keys)
{
    return cairn_vault_lookup_where(v, keys, count_keys, NULL);
}

uint64_t cairn_vault_space_value_len(struct cairn_vault *v, uint16_t space,
                                     const struct cairn_key *key)
{
    pthread_mutex_lock(&v->lock);
    const struct cairn_entry *e = entry_of(v, cairn_index_find(v->index, key), space);
    uint64_t len = e ? e->value_len : 0;
    pthread_mutex_unlock(&v->lock);
    return len;
}

uint64_t cairn_vault_value_len(struct cairn_vault *v, const struct cairn_key *key)
{
    return cairn_vault_space_value_len(v, 0, key);
}

uint32_t cairn_vault_where(struct cairn_vault *v, const struct cairn_key *key)
{
    pthread_mutex_lock(&v->lock);
    const struct cairn_entry *e = entry_of(v, cairn_index_find(v->index, key), 0);
    uint32_t where = 0;
    if (e)
        where = (e->slot != CAIRN_SLOT_NONE ? CAIRN_IN_RAM : 0) |
                (e->block != CAIRN_BLOCK_NONE ? CAIRN_ON_DISK : 0);
    pthread_mutex_unlock(&v->lock);
    return where;
}
