#include "tests/helpers/log_host.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "storage/key16.h"

#define SLOT_BYTES ((1u << 20) + (128u << 10))
#define SLOTS 48u
#define PATIENCE (60 * CAIRN_NS_PER_S)

static uint32_t home_of(const uint8_t key[16])
{
    uint32_t n;
    memcpy(&n, key, sizeof n);
    return n % HOST_NAMES;
}

static void names_make(struct log_host *h)
{
    for (uint32_t id = 0; id < HOST_KEYS; id++) {
        uint8_t key[32];
        value_key(id, key);
        cairn_key16(key, h->key16[id]);
        uint32_t at = home_of(h->key16[id]);
        while (h->names[at])
            at = (at + 1) % HOST_NAMES;
        h->names[at] = (uint16_t)(id + 1);
    }
}

static struct host_entry *entry_of(struct log_host *h, const uint8_t key[16], uint64_t *ret_id)
{
    for (uint32_t at = home_of(key); h->names[at]; at = (at + 1) % HOST_NAMES) {
        uint32_t id = h->names[at] - 1u;
        if (memcmp(h->key16[id], key, 16) != 0)
            continue;
        if (ret_id)
            *ret_id = id;
        return &h->keys[id];
    }
    return NULL;
}

static bool on_still_wanted(void *arg, const struct cairn_tier_op *op)
{
    struct log_host *h = arg;
    (void)op;
    return !h->refuse;
}

static bool on_recovered(void *arg, const struct cairn_tier *t, const struct cairn_summary_disk *s)
{
    struct log_host *h = arg;
    if (s->kind == CAIRN_RECORD_CLEAR) {
        if (h->cleared[s->space] < s->version)
            h->cleared[s->space] = s->version;
        return true;
    }
    struct host_entry *e = entry_of(h, s->key, NULL);
    if (!e) {
        fprintf(stderr, "recovered a key that was never put\n");
        abort();
    }
    h->recovered++;
    h->recovered_tombs += s->kind == CAIRN_RECORD_TOMBSTONE;
    if (s->version < e->version ||
        (s->version == e->version && e->block && !t->ops->outlives(t, s->block, e->block)))
        return true;
    e->version = s->version;
    e->tomb = s->kind == CAIRN_RECORD_TOMBSTONE;
    e->block = e->tomb ? 0 : s->block;
    e->blocks = s->blocks;
    e->len = s->value_len;
    e->space = s->space;
    return true;
}

static bool on_wanted(void *arg, const struct cairn_summary_disk *s)
{
    struct log_host *h = arg;
    uint64_t id;
    pthread_mutex_lock(&h->lock);
    const struct host_entry *e = entry_of(h, s->key, &id);
    bool wanted = e && e->block == s->block && h->wanted_every && id % h->wanted_every == 0;
    pthread_mutex_unlock(&h->lock);
    return wanted;
}

static void on_moved(void *arg, const struct cairn_summary_disk *s, uint32_t new_block)
{
    struct log_host *h = arg;
    pthread_mutex_lock(&h->lock);
    struct host_entry *e = entry_of(h, s->key, NULL);
    if (e && e->block == s->block) {
        e->block = new_block;
        h->moved++;
    }
    pthread_mutex_unlock(&h->lock);
}

static void on_reclaim(void *arg, const struct cairn_summary_disk *s, uint32_t count)
{
    struct log_host *h = arg;
    pthread_mutex_lock(&h->lock);
    for (uint32_t i = 0; i < count; i++) {
        struct host_entry *e = entry_of(h, s[i].key, NULL);
        if (e && e->block == s[i].block) {
            e->block = 0;
            h->reclaimed++;
        }
    }
    pthread_mutex_unlock(&h->lock);
}

static void on_reclaim_all(void *arg, uint32_t from, uint32_t end)
{
    struct log_host *h = arg;
    pthread_mutex_lock(&h->lock);
    for (uint32_t id = 0; id < HOST_KEYS; id++) {
        if (h->keys[id].block >= from && h->keys[id].block < end) {
            h->keys[id].block = 0;
            h->reclaimed++;
        }
    }
    pthread_mutex_unlock(&h->lock);
}

static uint64_t slot_bit(const struct log_host *h, const struct cairn_record_disk *image)
{
    return 1ull << (size_t)((const uint8_t *)image - h->arena) / SLOT_BYTES;
}

static void on_strayed(void *arg, const struct cairn_summary_disk *s)
{
    (void)arg;
    (void)s;
}

static void on_doubted(void *arg, const struct cairn_summary_disk *s)
{
    struct log_host *h = arg;
    pthread_mutex_lock(&h->lock);
    struct host_entry *e = entry_of(h, s->key, NULL);
    if (e && e->block == s->block) {
        e->block = 0;
        e->doubted = true;
    }
    pthread_mutex_unlock(&h->lock);
}

static void on_image_back(void *arg, struct cairn_record_disk *image, uint32_t blocks)
{
    struct log_host *h = arg;
    (void)blocks;
    pthread_mutex_lock(&h->lock);
    h->held &= ~slot_bit(h, image);
    h->images_back++;
    pthread_cond_broadcast(&h->changed);
    pthread_mutex_unlock(&h->lock);
}

static void on_turned_off(void *arg, const char *why)
{
    struct log_host *h = arg;
    pthread_mutex_lock(&h->lock);
    snprintf(h->off, sizeof h->off, "%s", why);
    pthread_mutex_unlock(&h->lock);
}

static void on_turned_on(void *arg)
{
    struct log_host *h = arg;
    atomic_fetch_add(&h->turned_on, 1);
}

static void on_done(struct cairn_tier_op *op)
{
    struct host_op *o = op->owner;
    struct log_host *h = o->h;
    pthread_mutex_lock(&h->lock);
    if (op->image_lost)
        h->held |= slot_bit(h, op->image);
    if (op->kind == CAIRN_TIER_STORE && op->status == CAIRN_OK) {
        struct host_entry *e = &h->keys[o->id];
        if (op->version >= e->version) {
            *e = (struct host_entry){.version = op->version, .block = op->block,
                                     .blocks = op->blocks, .len = op->value_len,
                                     .space = op->image->body.space};
        }
    }
    o->done = true;
    pthread_cond_broadcast(&h->changed);
    pthread_mutex_unlock(&h->lock);
}

void host_init(struct log_host *h, const char *path, uint64_t disk, const char *engine)
{
    memset(h, 0, sizeof *h);
    names_make(h);
    h->arena_len = (size_t)SLOTS * SLOT_BYTES;
    h->arena = mmap(NULL, h->arena_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (h->arena == MAP_FAILED)
        abort();
    pthread_mutex_init(&h->lock, NULL);
    pthread_condattr_t a;
    pthread_condattr_init(&a);
    pthread_condattr_setclock(&a, CLOCK_MONOTONIC);
    pthread_cond_init(&h->changed, &a);
    pthread_condattr_destroy(&a);
    h->o = (struct cairn_tier_opts){
        .path = path,
        .disk_bytes = disk,
        .ioq = cairn_ioq_find(engine),
        .region = h->arena,
        .region_len = h->arena_len,
        .lock_wait_ns = 5 * CAIRN_NS_PER_S,
        .io_deadline_ns = 10 * CAIRN_NS_PER_S,
        .errors_max = 16,
        .reinsert_percent = 10,
        .queue_max = 256,
    };
    h->host = (struct cairn_tier_host){
        .arg = h,
        .still_wanted = on_still_wanted,
        .recovered = on_recovered,
        .wanted = on_wanted,
        .moved = on_moved,
        .reclaim = on_reclaim,
        .reclaim_all = on_reclaim_all,
        .strayed = on_strayed,
        .image_back = on_image_back,
        .turned_off = on_turned_off,
        .turned_on = on_turned_on,
        .doubted = on_doubted,
    };
}

uint32_t host_block(struct log_host *h, uint64_t id)
{
    pthread_mutex_lock(&h->lock);
    uint32_t block = h->keys[id].block;
    pthread_mutex_unlock(&h->lock);
    return block;
}

void host_fini(struct log_host *h)
{
    munmap(h->arena, h->arena_len);
    pthread_mutex_destroy(&h->lock);
    pthread_cond_destroy(&h->changed);
}

cairn_status host_open(struct log_host *h)
{
    cairn_status st = cairn_tier_find("nvme")->open(&h->o, &h->host, &h->tier, h->err,
                                                    sizeof h->err);
    if (st)
        return st;
    struct cairn_tier_info i;
    h->tier->ops->info(h->tier, &i);
    if (i.version_max > h->version)
        h->version = i.version_max;
    return CAIRN_OK;
}

bool host_close(struct log_host *h)
{
    if (!h->tier)
        return true;
    struct cairn_tier *t = h->tier;
    h->tier = NULL;
    return t->ops->close(t);
}

void host_forget(struct log_host *h)
{
    memset(h->keys, 0, sizeof h->keys);
    memset(h->cleared, 0, sizeof h->cleared);
    h->recovered = h->recovered_tombs = 0;
}

static struct cairn_record_disk *slot_of(struct log_host *h, uint32_t slot)
{
    return (struct cairn_record_disk *)(void *)(h->arena + (size_t)(slot % SLOTS) * SLOT_BYTES);
}

void host_prepare_store(struct log_host *h, struct host_op *op, uint32_t slot, uint64_t id,
                        uint64_t version, uint32_t len)
{
    struct cairn_record_disk *r = slot_of(h, slot);
    uint8_t *value = (uint8_t *)r + CAIRN_BLOCK;
    uint32_t side_len = (uint32_t)h->side_len;
    memset(r, 0, sizeof *r);
    value_key(id, r->body.key);
    value_fill(value, id, version, 0, len);
    size_t padded = (size_t)cairn_blocks(len) * CAIRN_BLOCK;
    memset(value + len, 0, padded - len);
    cairn_hash_pieces(value, len, r->body.piece_check);
    r->body.version = version;
    r->body.value_len = len;
    r->body.space = h->space;
    if (side_len) {
        memset(value + padded, (int)id + 1, (size_t)cairn_blocks(side_len) * CAIRN_BLOCK);
        r->body.side_len = side_len;
        r->body.side_check = cairn_hash64(value + padded, side_len);
    }
    cairn_body_seal(&r->body);
    memset(op, 0, sizeof *op);
    op->h = h;
    op->id = id;
    op->op.kind = CAIRN_TIER_STORE;
    op->op.image = r;
    op->op.blocks = cairn_record_blocks(len, side_len);
    op->op.deadline_ns = cairn_deadline_ns(PATIENCE);
    op->op.version = version;
    op->op.value_len = len;
    value_key(id, op->op.key.bytes);
    op->op.done = on_done;
    op->op.owner = op;
}

void host_prepare_load(struct log_host *h, struct host_op *op, uint32_t slot, uint64_t id)
{
    memset(op, 0, sizeof *op);
    pthread_mutex_lock(&h->lock);
    const struct host_entry e = h->keys[id];
    pthread_mutex_unlock(&h->lock);
    op->h = h;
    op->id = id;
    op->op.kind = CAIRN_TIER_LOAD;
    op->op.image = slot_of(h, slot);
    op->op.block = e.block;
    op->op.blocks = e.blocks;
    op->op.version = e.version;
    op->op.value_len = e.len;
    op->op.deadline_ns = cairn_deadline_ns(PATIENCE);
    value_key(id, op->op.key.bytes);
    op->op.done = on_done;
    op->op.owner = op;
}

void host_prepare_mark(struct log_host *h, struct host_op *op, enum cairn_tier_kind kind,
                       uint64_t id, uint64_t version)
{
    memset(op, 0, sizeof *op);
    op->h = h;
    op->id = id;
    op->op.kind = kind;
    op->op.version = version;
    op->op.deadline_ns = cairn_deadline_ns(PATIENCE);
    value_key(id, op->op.key.bytes);
    op->op.done = on_done;
    op->op.owner = op;
}

cairn_status host_submit(struct log_host *h, struct host_op *op)
{
    return h->tier->ops->submit(h->tier, &op->op);
}

cairn_status host_wait(struct log_host *h, struct host_op *op)
{
    struct timespec end = cairn_timespec(cairn_deadline_ns(2 * PATIENCE));
    pthread_mutex_lock(&h->lock);
    while (!op->done) {
        if (pthread_cond_timedwait(&h->changed, &h->lock, &end) != 0) {
            fprintf(stderr, "an op was never answered\n");
            abort();
        }
    }
    pthread_mutex_unlock(&h->lock);
    return op->op.status;
}

static cairn_status both(struct log_host *h, struct host_op *op)
{
    cairn_status st = host_submit(h, op);
    return st ? st : host_wait(h, op);
}

/* One of eight slots from `first` on that the device does not hold. */
static uint32_t slot_free(struct log_host *h, uint32_t first)
{
    pthread_mutex_lock(&h->lock);
    uint64_t held = h->held >> first & 0xff;
    pthread_mutex_unlock(&h->lock);
    if (held == 0xff) {
        fprintf(stderr, "the device holds all slots\n");
        abort();
    }
    return first + (uint32_t)__builtin_ctzll(~held);
}

cairn_status host_put(struct log_host *h, uint64_t id, uint32_t len)
{
    struct host_op op;
    host_prepare_store(h, &op, slot_free(h, 32), id, ++h->version, len);
    return both(h, &op);
}

cairn_status host_delete(struct log_host *h, uint64_t id)
{
    struct host_op op;
    host_prepare_mark(h, &op, CAIRN_TIER_TOMBSTONE, id, ++h->version);
    pthread_mutex_lock(&h->lock);
    h->keys[id] = (struct host_entry){.version = h->version, .tomb = true};
    pthread_mutex_unlock(&h->lock);
    return both(h, &op);
}

cairn_status host_clear(struct log_host *h, uint16_t space)
{
    struct host_op op;
    host_prepare_mark(h, &op, CAIRN_TIER_CLEAR, 0, ++h->version);
    op.op.space = space;
    h->cleared[space] = h->version;
    return both(h, &op);
}

cairn_status host_sync(struct log_host *h)
{
    struct host_op op;
    host_prepare_mark(h, &op, CAIRN_TIER_SYNC, 0, 0);
    return both(h, &op);
}

static void must_be_right(const void *value, uint64_t id, uint64_t version, size_t from, size_t len)
{
    size_t bad = value_check(value, id, version, from, len);
    if (bad != len) {
        fprintf(stderr, "wrong bytes: key %llu version %llu at %zu\n", (unsigned long long)id,
                (unsigned long long)version, from + bad);
        abort();
    }
}

cairn_status host_get_part(struct log_host *h, uint64_t id, uint32_t piece, uint32_t count)
{
    struct host_op op;
    host_prepare_load(h, &op, slot_free(h, 40), id);
    if (op.op.block == 0 || op.op.version < h->cleared[h->keys[id].space])
        return CAIRN_MISS;
    op.op.piece_first = piece;
    op.op.piece_count = count;
    memset(op.op.image, 0xa5, (size_t)op.op.blocks * CAIRN_BLOCK);
    cairn_status st = both(h, &op);
    if (st)
        return st;
    size_t from = (size_t)piece * CAIRN_PIECE_BYTES, end = op.op.value_len;
    if (count && from + (size_t)count * CAIRN_PIECE_BYTES < end)
        end = from + (size_t)count * CAIRN_PIECE_BYTES;
    must_be_right((uint8_t *)op.op.image + CAIRN_BLOCK + from, id, op.op.version, from, end - from);
    return CAIRN_OK;
}

cairn_status host_get(struct log_host *h, uint64_t id)
{
    return host_get_part(h, id, 0, 0);
}
