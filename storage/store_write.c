/* From RAM to the tier: the queue of unwritten values, flush, and what the tier tells us. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "storage/store_internal.h"

bool vault_wait(struct cairn_vault *v, uint64_t deadline_ns)
{
    if (cairn_now_ns() >= deadline_ns)
        return false;
    /* Bounded naps, so that a lost wake-up costs a second and not the whole deadline. */
    uint64_t nap = cairn_deadline_ns(CAIRN_NS_PER_S);
    struct timespec t = cairn_timespec(nap < deadline_ns ? nap : deadline_ns);
    pthread_cond_timedwait(&v->changed, &v->lock, &t);
    return true;
}

struct vault_op *op_take(struct cairn_vault *v)
{
    struct vault_op *op = v->ops_free;
    if (!op)
        return NULL;
    v->ops_free = op->next;
    op->next = NULL;
    op->done = op->abandoned = false;
    op->slot = CAIRN_SLOT_NONE;
    void (*done)(struct cairn_tier_op *) = op->op.done;
    op->op = (struct cairn_tier_op){.done = done, .owner = op};
    return op;
}

void op_give(struct cairn_vault *v, struct vault_op *op)
{
    op->next = v->ops_free;
    v->ops_free = op;
}

void write_queue(struct cairn_vault *v, struct slot *s)
{
    if (s->write == WRITE_FAILED)
        v->failed_slots--;
    if (s->ready)
        slot_stay(v, s);
    s->write = WRITE_QUEUED;
    s->ticket = ++v->ticket;
    v->dirty_blocks += s->blocks;
    slot_list_push(v, &v->dirty, slot_number(v, s));
}

static void write_begin(struct cairn_vault *v, struct vault_op *op, struct slot *s)
{
    slot_list_remove(v, &v->dirty, slot_number(v, s));
    op->slot = slot_number(v, s);
    op->op.kind = CAIRN_TIER_STORE;
    op->op.blocks = s->blocks;
    op->op.image = slot_image(v, s);
    op->op.value_len = s->value_len;
    op->op.version = s->version;
    memcpy(op->op.key.bytes, op->op.image->body.key, sizeof op->op.key.bytes);
    op->op.deadline_ns = cairn_deadline_ns(4 * v->o.io_deadline_ns);
    s->write = WRITE_FLYING;
    s->tried = true;
    v->ops_writing++;
    slot_list_push(v, &v->flying, slot_number(v, s));
}

/* Ends a write, whatever came of it. */
static void write_end(struct cairn_vault *v, struct slot *s, bool failed)
{
    slot_list_remove(v, &v->flying, slot_number(v, s));
    v->ops_writing--;
    v->dirty_blocks -= s->blocks;
    s->write = WRITE_CLEAN;
    if (failed)
        slot_stay(v, s);
    if (failed && s->entry != CAIRN_ENTRY_NONE) {
        s->write = WRITE_FAILED;
        v->failed_slots++;
    }
}

void write_pump(struct cairn_vault *v)
{
    while (v->dirty.head != CAIRN_SLOT_NONE && v->ops_writing < VAULT_OPS / 2 && !v->tier_off) {
        struct vault_op *op = op_take(v);
        if (!op)
            return;
        struct slot *s = &v->slots[v->dirty.head];
        write_begin(v, op, s);
        cairn_status st = v->tier->ops->submit(v->tier, &op->op);
        if (st == CAIRN_OK)
            continue;
        write_end(v, s, true);
        op_give(v, op);
        slot_release(v, s);
        pthread_cond_broadcast(&v->changed);
    }
}

bool slot_unwritten(const struct cairn_vault *v, const struct slot *s)
{
    return s->state == SLOT_RESIDENT && s->entry != CAIRN_ENTRY_NONE && !s->lost &&
           (s->write == WRITE_CLEAN || s->write == WRITE_FAILED) &&
           cairn_index_entry(v->index, s->entry)->block == CAIRN_BLOCK_NONE &&
           entry_writable(v, cairn_index_entry(v->index, s->entry));
}

/* A value that is written when it leaves RAM is chosen to leave a little before, or puts find no
 * victims that are written: so much of the arena is free or leaving. What is asked for meanwhile
 * stays. */
#define LEAVING_BYTES_MAX (512ull << 20)
#define LEAVING_AT_ONCE 64u

void write_ahead(struct cairn_vault *v)
{
    if (!v->some_on_evict || !v->tier || v->tier_off)
        return;
    uint64_t target = v->arena_blocks / 4;
    if (target > LEAVING_BYTES_MAX / CAIRN_BLOCK)
        target = LEAVING_BYTES_MAX / CAIRN_BLOCK;
    for (uint32_t n = 0; n < LEAVING_AT_ONCE; n++) {
        if (cairn_extents_free_blocks(v->extents) + v->leaving_blocks >= target)
            break;
        uint32_t next = slot_leaves_next(v);
        if (next == CAIRN_SLOT_NONE)
            break;
        struct slot *s = &v->slots[next];
        slot_leave(v, s);
        if (s->on_evict && slot_unwritten(v, s))
            write_queue(v, s);
        else
            slot_ready(v, s);
    }
    write_pump(v);
}

void write_settle(struct cairn_vault *v)
{
    write_again(v);
    write_pump(v);
    write_ahead(v);
}

/* --- what the tier tells --- */

static void store_done(struct cairn_vault *v, struct vault_op *op, struct slot *s)
{
    cairn_status st = op->op.status;
    write_end(v, s, st != CAIRN_OK && st != CAIRN_CANCELED);
    if (op->op.image_lost) {
        /* Until image_back. Placing it again would change what the device may still read. */
        slot_pin(s);
        s->lost = true;
    }
    if (st == CAIRN_OK && s->entry != CAIRN_ENTRY_NONE) {
        struct cairn_entry *e = cairn_index_entry(v->index, s->entry);
        e->block = op->op.block;
        s->written = true;
        e->flags &= (uint16_t)~CAIRN_ENTRY_HIT;
        if (s->leaving)
            slot_ready(v, s);
    } else {
        slot_stay(v, s);
    }
    slot_release(v, s);
}

static bool doubtful(enum cairn_cause c)
{
    return c == CAIRN_CAUSE_CHECKSUM || c == CAIRN_CAUSE_HEADER || c == CAIRN_CAUSE_KEY ||
           c == CAIRN_CAUSE_LENGTH || c == CAIRN_CAUSE_VERSION;
}

static void load_failed(struct cairn_vault *v, struct vault_op *op, struct slot *s)
{
    s->state = SLOT_FAILED;
    s->cause = (uint8_t)op->op.cause;
    if (op->op.cause == CAIRN_CAUSE_CHECKSUM)
        count(&v->c.bad_disk, 1);
    uint32_t id = s->entry;
    if (id == CAIRN_ENTRY_NONE)
        return;
    struct cairn_entry *e = cairn_index_entry(v->index, id);
    e->slot = CAIRN_SLOT_NONE;
    s->entry = CAIRN_ENTRY_NONE;
    if (e->block != op->op.block)
        s->cause = CAIRN_CAUSE_RECLAIMED; /* moved under the read: not damage */
    if (doubtful(op->op.cause) && e->block == op->op.block)
        entry_forget_disk(v, id, op->op.cause);
    else
        entry_drop_if_empty(v, id, op->op.cause);
}

/* Footers of older writers do not say it. */
static void learn_identity(struct cairn_vault *v, const struct slot *s)
{
    struct cairn_entry *e = cairn_index_entry(v->index, s->entry);
    if (e->identity)
        return;
    entry_count(v, e, -1);
    e->identity = identity_number(v, slot_image(v, s)->body.identity);
    entry_count(v, e, 1);
}

static void load_done(struct cairn_vault *v, struct vault_op *op, struct slot *s)
{
    if (op->op.image_lost)
        slot_pin(s);
    if (op->op.status != CAIRN_OK) {
        load_failed(v, op, s);
    } else {
        s->state = SLOT_RESIDENT;
        s->written = true;
        s->on_evict = v->o.write == CAIRN_WRITE_ON_EVICT;
        s->checked = op->op.piece_count == 0;
        if (s->entry != CAIRN_ENTRY_NONE) {
            v->resident_bytes += s->value_len;
            v->resident_count++;
            slot_adopt(v, s, slot_image(v, s)->body.parent);
            learn_identity(v, s);
            slot_enter_policy(v, s, s->blocks);
        }
    }
    if (s->waited)
        pthread_cond_broadcast(&v->changed);
    slot_unpin(v, s);
}

static void op_done(struct cairn_tier_op *top)
{
    struct vault_op *op = top->owner;
    struct cairn_vault *v = op->vault;
    pthread_mutex_lock(&v->lock);
    if (top->kind == CAIRN_TIER_STORE || top->kind == CAIRN_TIER_LOAD) {
        struct slot *s = &v->slots[op->slot];
        bool store = top->kind == CAIRN_TIER_STORE;
        if (store)
            store_done(v, op, s);
        else
            load_done(v, op, s);
        op_give(v, op);
        write_again_on(v);
        if (store || !v->ops_free || !v->ops_free->next)
            pthread_cond_broadcast(&v->changed);
    } else {
        op->done = true;
        if (op->abandoned)
            op_give(v, op);
        pthread_cond_broadcast(&v->changed);
    }
    pthread_mutex_unlock(&v->lock);
}

static bool host_still_wanted(void *arg, const struct cairn_tier_op *top)
{
    struct cairn_vault *v = arg;
    const struct vault_op *op = top->owner;
    pthread_mutex_lock(&v->lock);
    const struct slot *s = &v->slots[op->slot];
    bool wanted = s->entry != CAIRN_ENTRY_NONE &&
                  entry_writable(v, cairn_index_entry(v->index, s->entry));
    pthread_mutex_unlock(&v->lock);
    return wanted;
}

/* Runs before any other thread knows the vault. */
static bool host_recovered(void *arg, const struct cairn_tier *t,
                           const struct cairn_summary_disk *r)
{
    struct cairn_vault *v = arg;
    if (r->kind == CAIRN_RECORD_CLEAR) {
        if (r->space < VAULT_SPACES && r->version > v->cleared[r->space])
            v->cleared[r->space] = r->version;
        return true;
    }
    uint32_t id = cairn_index_find16(v->index, r->key);
    if (id == CAIRN_ENTRY_NONE) {
        /* Once something was left out, a new key could be an older version of it. */
        id = v->recover_overflow ? CAIRN_ENTRY_NONE : cairn_index_insert16(v->index, r->key);
        if (id == CAIRN_ENTRY_NONE) {
            v->recover_overflow = true;
            forgotten_note(v, r->key);
            return true;
        }
    }
    struct cairn_entry *e = cairn_index_entry(v->index, id);
    if (e->version > r->version || (e->version == r->version && e->block != CAIRN_BLOCK_NONE &&
                                    !t->ops->outlives(t, r->block, e->block)))
        return true;
    entry_count(v, e, -(e->version != 0));
    bool value = r->kind == CAIRN_RECORD_VALUE;
    uint32_t side = value ? r->blocks - 1 - cairn_blocks(r->value_len) : 0;
    e->version = r->version;
    e->block = value ? r->block : CAIRN_BLOCK_NONE;
    e->value_len = r->value_len;
    e->space = r->space < VAULT_SPACES ? (uint8_t)r->space : UINT8_MAX;
    e->identity = identity_number(v, r->identity);
    e->flags = (uint16_t)((value ? 0 : CAIRN_ENTRY_TOMB) |
                          (r->expires_ns ? CAIRN_ENTRY_EXPIRES : 0) |
                          (side << CAIRN_ENTRY_SIDE_SHIFT));
    entry_count(v, e, 1);
    return true;
}

static uint32_t find_at(const struct cairn_vault *v, const struct cairn_summary_disk *r)
{
    uint32_t id = cairn_index_find16(v->index, r->key);
    if (id == CAIRN_ENTRY_NONE || cairn_index_entry(v->index, id)->block != r->block)
        return CAIRN_ENTRY_NONE;
    return id;
}

static bool host_wanted(void *arg, const struct cairn_summary_disk *r)
{
    struct cairn_vault *v = arg;
    pthread_mutex_lock(&v->lock);
    uint32_t id = find_at(v, r);
    bool wanted = false;
    if (id != CAIRN_ENTRY_NONE) {
        const struct cairn_entry *e = cairn_index_entry(v->index, id);
        wanted = entry_writable(v, e) &&
                 ((e->flags & CAIRN_ENTRY_HIT) || e->slot != CAIRN_SLOT_NONE) &&
                 (r->expires_ns == 0 || r->expires_ns > cairn_wall_ns());
    }
    pthread_mutex_unlock(&v->lock);
    return wanted;
}

static void host_moved(void *arg, const struct cairn_summary_disk *r, uint32_t new_block)
{
    struct cairn_vault *v = arg;
    pthread_mutex_lock(&v->lock);
    uint32_t id = find_at(v, r);
    if (id != CAIRN_ENTRY_NONE) {
        cairn_index_entry(v->index, id)->block = new_block;
        cairn_index_entry(v->index, id)->flags &= (uint16_t)~CAIRN_ENTRY_HIT;
    }
    pthread_mutex_unlock(&v->lock);
}

/* The segment of its disk copy is void by now. */
static void entry_reclaimed(struct cairn_vault *v, uint32_t id)
{
    struct cairn_entry *e = cairn_index_entry(v->index, id);
    e->block = CAIRN_BLOCK_NONE;
    if (e->slot != CAIRN_SLOT_NONE)
        v->slots[e->slot].tried = v->slots[e->slot].write == WRITE_FLYING;
    entry_drop_if_empty(v, id, CAIRN_CAUSE_RECLAIMED);
}

static void host_reclaim(void *arg, const struct cairn_summary_disk *r, uint32_t n)
{
    struct cairn_vault *v = arg;
    pthread_mutex_lock(&v->lock);
    for (uint32_t i = 0; i < n; i++) {
        uint32_t id = find_at(v, &r[i]);
        if (id != CAIRN_ENTRY_NONE)
            entry_reclaimed(v, id);
    }
    pthread_mutex_unlock(&v->lock);
}

#define SWEEP_AT_ONCE 1024u /* entries looked at before others get the lock */

static void host_reclaim_all(void *arg, uint32_t from, uint32_t end)
{
    struct cairn_vault *v = arg;
    pthread_mutex_lock(&v->lock);
    uint32_t id = cairn_index_next(v->index, 0);
    for (uint32_t n = 1; id != CAIRN_ENTRY_NONE; n++) {
        uint32_t block = cairn_index_entry(v->index, id)->block;
        if (block >= from && block < end)
            entry_reclaimed(v, id);
        if (n % SWEEP_AT_ONCE == 0) {
            pthread_mutex_unlock(&v->lock);
            pthread_mutex_lock(&v->lock);
        }
        id = cairn_index_next(v->index, id + 1);
    }
    pthread_mutex_unlock(&v->lock);
}

static void host_strayed(void *arg, const struct cairn_summary_disk *r)
{
    struct cairn_vault *v = arg;
    pthread_mutex_lock(&v->lock);
    forgotten_note(v, r->key);
    pthread_mutex_unlock(&v->lock);
}

static void host_image_back(void *arg, struct cairn_record_disk *image, uint32_t blocks)
{
    struct cairn_vault *v = arg;
    (void)blocks;
    pthread_mutex_lock(&v->lock);
    struct cairn_extent_run run;
    uint32_t first = (uint32_t)(((char *)image - (char *)v->arena.base) / CAIRN_BLOCK);
    if (cairn_extent_at(v->extents, first, &run) && run.used) {
        struct slot *s = &v->slots[run.owner];
        s->lost = false;
        slot_unpin(v, s);
    }
    pthread_mutex_unlock(&v->lock);
}

static void host_turned_off(void *arg, const char *why)
{
    struct cairn_vault *v = arg;
    pthread_mutex_lock(&v->lock);
    v->tier_off = true;
    v->turn_offs++;
    snprintf(v->off_why, sizeof v->off_why, "%s", why);
    /* What was to be written stays in RAM as long as there is room. */
    while (v->dirty.head != CAIRN_SLOT_NONE) {
        struct slot *s = &v->slots[v->dirty.head];
        slot_list_remove(v, &v->dirty, v->dirty.head);
        v->dirty_blocks -= s->blocks;
        s->write = WRITE_FAILED;
        v->failed_slots++;
        slot_stay(v, s);
    }
    pthread_cond_broadcast(&v->changed);
    pthread_mutex_unlock(&v->lock);
    cairn_log(CAIRN_LOG_ERROR, "disk tier off: %s", why);
}

void vault_host(struct cairn_vault *v)
{
    v->host = (struct cairn_tier_host){
        .arg = v,
        .still_wanted = host_still_wanted,
        .recovered = host_recovered,
        .wanted = host_wanted,
        .moved = host_moved,
        .reclaim = host_reclaim,
        .reclaim_all = host_reclaim_all,
        .strayed = host_strayed,
        .image_back = host_image_back,
        .turned_off = host_turned_off,
        .turned_on = host_turned_on,
        .doubted = host_doubted,
    };
    for (uint32_t i = 0; i < VAULT_OPS; i++) {
        v->ops[i].vault = v;
        v->ops[i].op.done = op_done;
        op_give(v, &v->ops[i]);
    }
}

/* --- flush --- */

static uint64_t oldest_ticket(const struct cairn_vault *v)
{
    /* Both lists are in ticket order, and what flies was queued before what waits. */
    if (v->flying.head != CAIRN_SLOT_NONE)
        return v->slots[v->flying.head].ticket;
    if (v->dirty.head != CAIRN_SLOT_NONE)
        return v->slots[v->dirty.head].ticket;
    return UINT64_MAX;
}

/* Queues what is in RAM alone and older than now. A quarter of the arena at a time: what is queued
 * cannot leave, and puts go on meanwhile. */
static cairn_status queue_unwritten(struct cairn_vault *v, bool all, uint64_t deadline_ns)
{
    uint64_t version = v->version;
    for (uint32_t n = 0; n < v->slot_count; n++) {
        const struct slot *s = &v->slots[n];
        while (slot_unwritten(v, s) && s->version <= version && !v->tier_off &&
               v->dirty_blocks > v->arena_blocks / 4) {
            write_pump(v);
            if (!vault_wait(v, deadline_ns))
                return CAIRN_TIMEOUT;
        }
        /* Nobody would take it out of the queue any more. */
        if (v->tier_off)
            return CAIRN_IO;
        if (slot_unwritten(v, s) && s->version <= version && (all || s->on_evict))
            write_queue(v, &v->slots[n]);
    }
    write_pump(v);
    return CAIRN_OK;
}

struct vault_op *op_begin(struct cairn_vault *v, struct cairn_tier_op what, bool wait,
                          cairn_status *ret)
{
    struct vault_op *op = NULL;
    *ret = CAIRN_TIMEOUT;
    while (!v->tier_off && !(op = op_take(v)))
        if (!wait || !vault_wait(v, what.deadline_ns))
            return NULL;
    *ret = CAIRN_IO;
    if (v->tier_off) {
        if (op)
            op_give(v, op);
        return NULL;
    }
    what.done = op->op.done;
    what.owner = op;
    op->op = what;
    *ret = v->tier->ops->submit(v->tier, &op->op);
    if (!*ret)
        return op;
    op_give(v, op);
    return NULL;
}

cairn_status op_end(struct cairn_vault *v, struct vault_op *op)
{
    uint64_t deadline_ns = op->op.deadline_ns;
    while (!op->done && vault_wait(v, deadline_ns)) {
    }
    if (!op->done) {
        op->abandoned = true;
        return CAIRN_TIMEOUT;
    }
    cairn_status st = op->op.status;
    op_give(v, op);
    return st;
}

cairn_status op_run(struct cairn_vault *v, struct cairn_tier_op what)
{
    cairn_status st;
    struct vault_op *op = op_begin(v, what, true, &st);
    return op ? op_end(v, op) : st;
}

cairn_status vault_flush(struct cairn_vault *v, bool all, uint64_t deadline_ns)
{
    pthread_mutex_lock(&v->lock);
    cairn_status st = v->tier_off ? CAIRN_IO : CAIRN_OK;
    uint64_t turn_offs = v->turn_offs;
    bool look = v->failed_slots || v->was_off || v->some_on_evict ||
                v->o.write != CAIRN_WRITE_THROUGH;
    if (!st && look)
        st = queue_unwritten(v, all, deadline_ns);
    if (!st && all && v->turn_offs == turn_offs)
        v->was_off = false;
    uint64_t upto = v->ticket;
    while (!st && oldest_ticket(v) <= upto) {
        if (v->tier_off)
            st = CAIRN_IO;
        else if (!vault_wait(v, deadline_ns))
            st = CAIRN_TIMEOUT;
    }
    if (!st)
        st = op_run(v, (struct cairn_tier_op){.kind = CAIRN_TIER_SYNC, .deadline_ns = deadline_ns});
    uint64_t lost = atomic_load_explicit(&v->c.lost_writes, memory_order_relaxed);
    /* It may be back: what was written before it went is in doubt, and was not looked at again. */
    if (!st && v->turn_offs != turn_offs)
        st = CAIRN_IO;
    if (!st && (v->failed_slots || lost != v->lost_writes_flushed))
        st = CAIRN_IO;
    v->lost_writes_flushed = lost;
    pthread_mutex_unlock(&v->lock);
    return st;
}

cairn_status cairn_vault_flush(struct cairn_vault *v, uint64_t deadline_ns)
{
    return v->tier ? vault_flush(v, true, deadline_ns) : CAIRN_UNSUPPORTED;
}
