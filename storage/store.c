#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/move.h"
#include "base/options.h"
#include "storage/store_internal.h"

#define VERSION_GAP (1u << 20) /* stepped over at open: versions given out but never written */

static uint32_t default_entries(const struct cairn_vault_opts *o)
{
    uint64_t n = o->disk_bytes / 65536 + o->ram_bytes / (2 * CAIRN_BLOCK);
    return n < 4096 ? 4096 : n > UINT32_MAX / 4 ? UINT32_MAX / 4 : (uint32_t)n;
}

static cairn_status fail(char *err, size_t cap, cairn_status st, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static cairn_status fail(char *err, size_t cap, cairn_status st, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    if (cap)
        vsnprintf(err, cap, fmt, ap);
    va_end(ap);
    return st;
}

static cairn_status open_tables(struct cairn_vault *v)
{
    uint32_t entries = v->o.entries ? v->o.entries : default_entries(&v->o);
    uint32_t slots = v->arena_blocks / 2;
    v->slot_count = slots > entries + VAULT_WINDOW ? entries + VAULT_WINDOW : slots;
    v->slot_bytes = (size_t)v->slot_count * sizeof *v->slots;
    v->slots = cairn_table_alloc(v->slot_bytes);
    v->ops = cairn_calloc(VAULT_OPS, sizeof *v->ops);
    v->evict_list = cairn_malloc(VAULT_EVICT_MAX * sizeof *v->evict_list);
    v->drops = drops_open();
    v->forgotten = v->o.path ? forgotten_open(v->o.disk_bytes) : NULL;
    v->doubted = v->o.path ? forgotten_open(0) : NULL;
    if (!v->slots || !v->ops || !v->evict_list || !v->drops ||
        (v->o.path && !(v->forgotten && v->doubted)))
        return CAIRN_NOMEM;
    const struct slot_list empty = {CAIRN_SLOT_NONE, CAIRN_SLOT_NONE};
    v->free = v->dirty = v->flying = v->ready = empty;
    for (uint32_t n = 0; n < v->slot_count; n++) {
        v->slots[n].entry = CAIRN_ENTRY_NONE;
        v->slots[n].parent = CAIRN_SLOT_NONE;
        slot_list_push(v, &v->free, n);
    }
    cairn_status st = cairn_extents_create(v->arena_blocks, &v->extents);
    if (!st)
        st = cairn_index_create(entries, &v->index);
    if (!st)
        st = cairn_policy_find(v->o.policy)->create(v->slot_count, &v->policy);
    return st;
}

static void free_tables(struct cairn_vault *v)
{
    if (v->policy)
        v->policy->ops->destroy(v->policy);
    cairn_index_destroy(v->index);
    cairn_extents_destroy(v->extents);
    drops_close(v->drops);
    forgotten_close(v->forgotten);
    forgotten_close(v->doubted);
    free(v->evict_list);
    free(v->ops);
    if (v->slots)
        cairn_table_free(v->slots, v->slot_bytes);
    for (uint32_t i = 0; i < v->seen_count; i++)
        free(v->seen[i].canon);
}

static cairn_status remember(struct cairn_vault *v, const void *canon, uint32_t len)
{
    for (uint32_t i = 0; i < v->seen_count; i++)
        if (v->seen[i].len == len && memcmp(v->seen[i].canon, canon, len) == 0)
            return CAIRN_EXISTS;
    void *copy = cairn_malloc(len);
    if (!copy)
        return CAIRN_NOMEM;
    memcpy(copy, canon, len);
    if (v->seen_count == CAIRN_IDENT_SLOTS) {
        free(v->seen[0].canon);
        memmove(v->seen, v->seen + 1, (CAIRN_IDENT_SLOTS - 1) * sizeof v->seen[0]);
        v->seen_count--;
    }
    v->seen[v->seen_count++] = (struct seen_identity){copy, len};
    return CAIRN_OK;
}

static void remember_each(void *arg, const void *canon, uint32_t len)
{
    if (remember(arg, canon, len) == CAIRN_NOMEM)
        cairn_log(CAIRN_LOG_WARN, "no memory to remember an identity");
}

/* What recovery left in the index: marks of dead keys and values of cleared spaces go, expired and
 * live values stay. */
static void end_recovery(struct cairn_vault *v)
{
    /* The tier runs by now, and may be asking about what it reclaims. */
    pthread_mutex_lock(&v->lock);
    for (uint32_t id = cairn_index_next(v->index, 0); id != CAIRN_ENTRY_NONE;
         id = cairn_index_next(v->index, id + 1)) {
        const struct cairn_entry *e = cairn_index_entry(v->index, id);
        if (e->flags & CAIRN_ENTRY_TOMB)
            entry_remove(v, id, CAIRN_CAUSE_NONE);
        else if (!entry_living(v, e))
            entry_remove(v, id, CAIRN_CAUSE_CLEARED);
    }
    pthread_mutex_unlock(&v->lock);
}

static cairn_status open_tier(struct cairn_vault *v, char *err, size_t err_cap)
{
    const struct cairn_ioq_ops *ioq = v->o.ioq ? v->o.ioq : cairn_ioq_find(v->o.engine);
    if (!ioq)
        return fail(err, err_cap, CAIRN_UNSUPPORTED,
                    "engine '%s' cannot run here; use engine=auto or engine=pool", v->o.engine);
    struct cairn_tier_opts to = {
        .path = v->o.path,
        .disk_bytes = v->o.disk_bytes,
        .ioq = ioq,
        .ioq_arg = v->o.ioq_arg,
        .region = v->arena.base,
        .region_len = v->arena.len,
        .lock_wait_ns = v->o.lock_wait_ns,
        .io_deadline_ns = v->o.io_deadline_ns,
        .errors_max = v->o.errors_max,
        .probe_ns = v->o.probe_ns,
        .reinsert_percent = v->o.reinsert_percent,
        .queue_max = VAULT_OPS,
        .prewrite = v->o.prewrite,
    };
    vault_host(v);
    struct cairn_tier *tier;
    cairn_status st = cairn_tier_find("nvme")->open(&to, &v->host, &tier, err, err_cap);
    if (st)
        return st;
    struct cairn_tier_info info;
    tier->ops->info(tier, &info);
    /* Its thread may be reclaiming by now, and tell of what strayed. */
    pthread_mutex_lock(&v->lock);
    v->tier = tier;
    v->segments = info.segments;
    pthread_mutex_unlock(&v->lock);
    v->version = info.version_max + VERSION_GAP;
    if (info.value_max < v->value_max)
        v->value_max = info.value_max;
    v->tier->ops->ident_each(v->tier, remember_each, v);
    end_recovery(v);
    return CAIRN_OK;
}

static void init_sync(struct cairn_vault *v)
{
    pthread_mutexattr_t ma;
    pthread_mutexattr_init(&ma);
    pthread_mutexattr_settype(&ma, PTHREAD_MUTEX_ADAPTIVE_NP);
    pthread_mutex_init(&v->lock, &ma);
    pthread_mutexattr_destroy(&ma);
    pthread_condattr_t ca;
    pthread_condattr_init(&ca);
    pthread_condattr_setclock(&ca, CLOCK_MONOTONIC);
    pthread_cond_init(&v->changed, &ca);
    pthread_condattr_destroy(&ca);
}

cairn_status cairn_vault_open(const struct cairn_vault_opts *o, struct cairn_vault **ret,
                              char *err, size_t err_cap)
{
    if (!cairn_policy_find(o->policy))
        return fail(err, err_cap, CAIRN_INVAL, "no eviction policy '%s'", o->policy);
    struct cairn_vault *v = cairn_calloc(1, sizeof *v);
    if (!v)
        return fail(err, err_cap, CAIRN_NOMEM, "no memory for the store");
    v->o = *o;
    v->arena.fd = -1;
    init_sync(v);
    cairn_status st = cairn_mapping_open(o->ram_bytes, "cairn-arena", &v->arena);
    if (st) {
        fail(err, err_cap, st, "ram=%llu bytes cannot be had (%s); use a smaller ram",
             (unsigned long long)o->ram_bytes,
             v->arena.note[0] ? v->arena.note : cairn_status_name(st));
        goto out;
    }
    if (v->arena.note[0])
        cairn_log(CAIRN_LOG_WARN, "%s", v->arena.note);
    v->arena_blocks = (uint32_t)(v->arena.len / CAIRN_BLOCK);
    v->value_max = (uint64_t)(v->arena_blocks / 2 - 1) * CAIRN_BLOCK;
    if (v->value_max > CAIRN_VALUE_MAX)
        v->value_max = CAIRN_VALUE_MAX;
    st = open_tables(v);
    if (st) {
        fail(err, err_cap, st, "no memory for the tables of the store; use a smaller ram or disk");
        goto out;
    }
    if (o->path)
        st = open_tier(v, err, err_cap);
    if (!st) {
        char size[32];
        cairn_memory_offer(v->arena.base, v->arena.len, true);
        cairn_log(CAIRN_LOG_INFO, "store open: the largest value that fits is %s",
                  cairn_format_size(v->value_max, size, sizeof size));
        *ret = v;
        return CAIRN_OK;
    }
out:
    cairn_vault_close(v);
    return st;
}

void cairn_vault_close(struct cairn_vault *v)
{
    if (!v)
        return;
    bool unmap = true;
    if (v->tier) {
        /* Write-through values are in the tier's queue already: close drains it. */
        bool all = v->o.write != CAIRN_WRITE_NONE;
        if ((all || v->some_on_evict) &&
            vault_flush(v, all, cairn_deadline_ns(10 * CAIRN_NS_PER_S)) != CAIRN_OK)
            cairn_log(CAIRN_LOG_WARN, "closing with values that are not on disk");
        unmap = v->tier->ops->close(v->tier);
    }
    free_tables(v);
    if (v->arena.base)
        cairn_memory_withdraw(v->arena.base);
    /* A device that never answered may still write into the arena: then it stays mapped. */
    if (unmap)
        cairn_mapping_close(&v->arena);
    pthread_cond_destroy(&v->changed);
    pthread_mutex_destroy(&v->lock);
    free(v);
}

uint64_t cairn_vault_value_max(const struct cairn_vault *v)
{
    return v->value_max;
}

cairn_status cairn_vault_note_identity(struct cairn_vault *v, const void *canon, uint32_t len)
{
    pthread_mutex_lock(&v->lock);
    cairn_status st = remember(v, canon, len);
    pthread_mutex_unlock(&v->lock);
    if (st == CAIRN_OK && v->tier)
        st = v->tier->ops->ident_put(v->tier, canon, len);
    return st == CAIRN_EXISTS ? CAIRN_OK : st;
}

void cairn_vault_each_identity(struct cairn_vault *v,
                               void (*fn)(void *arg, const void *canon, uint32_t len), void *arg)
{
    pthread_mutex_lock(&v->lock);
    for (uint32_t i = 0; i < v->seen_count; i++)
        fn(arg, v->seen[i].canon, v->seen[i].len);
    pthread_mutex_unlock(&v->lock);
}

uint64_t cairn_vault_drop_ram(struct cairn_vault *v)
{
    uint64_t dropped = 0;
    pthread_mutex_lock(&v->lock);
    for (uint32_t n = 0; n < v->slot_count; n++) {
        struct slot *s = &v->slots[n];
        if (!slot_evictable(v, s) || s->entry == CAIRN_ENTRY_NONE ||
            cairn_index_entry(v->index, s->entry)->block == CAIRN_BLOCK_NONE)
            continue;
        dropped += s->value_len;
        slot_evict(v, s);
    }
    pthread_mutex_unlock(&v->lock);
    return dropped;
}

uint64_t cairn_vault_space_count(struct cairn_vault *v, uint16_t space)
{
    pthread_mutex_lock(&v->lock);
    uint64_t held = space < VAULT_SPACES ? v->held[space] : 0;
    pthread_mutex_unlock(&v->lock);
    return held;
}

cairn_status cairn_vault_share(struct cairn_vault *v, int *ret_fd, const void **ret_base,
                               size_t *ret_len)
{
    if (!v->arena.sealed)
        return CAIRN_UNSUPPORTED;
    *ret_fd = v->arena.fd;
    *ret_base = v->arena.base;
    *ret_len = v->arena.len;
    return CAIRN_OK;
}
