#include "storage/figures.h"

#include <stdio.h>

#include "storage/store_internal.h"

static uint64_t get(const _Atomic uint64_t *c)
{
    return atomic_load_explicit(c, memory_order_relaxed);
}

static void read_counters(const struct vault_counters *c, struct cairn_vault_figures *f)
{
    f->get_ram = get(&c->get_ram);
    f->get_disk = get(&c->get_disk);
    f->get_bytes = get(&c->get_bytes);
    f->put_stored = get(&c->put_stored);
    f->put_existing = get(&c->put_existing);
    f->put_replaced = get(&c->put_replaced);
    f->put_bytes = get(&c->put_bytes);
    f->deleted = get(&c->deleted);
    f->lookups = get(&c->lookups);
    f->lookup_keys = get(&c->lookup_keys);
    f->lookup_held = get(&c->lookup_held);
    f->evicted = get(&c->evicted);
    f->evicted_bytes = get(&c->evicted_bytes);
    f->forgotten = get(&c->forgotten);
    f->lost_writes = get(&c->lost_writes);
    for (int i = 0; i < CAIRN_CAUSE_COUNT; i++) {
        f->miss[i] = get(&c->miss[i]);
        f->refused[i] = get(&c->refused[i]);
        f->dropped[i] = get(&c->dropped[i]);
    }
    f->bad_ram = get(&c->bad_ram);
    f->bad_disk = get(&c->bad_disk);
    f->last_get_ram_ns = get(&c->last_get_ram_ns);
    f->last_get_disk_ns = get(&c->last_get_disk_ns);
    f->last_put_ns = get(&c->last_put_ns);
    f->lookup_ns = &c->lookup_ns;
    f->get_ram_ns = &c->get_ram_ns;
    f->get_disk_ns = &c->get_disk_ns;
    f->put_ns = &c->put_ns;
}

/* The lock is held. */
static void read_ram(const struct cairn_vault *v, struct cairn_vault_figures *f)
{
    static const char *const pages[] = {"4k", "thp", "hugetlb"};
    f->ram_capacity = v->arena.len;
    f->ram_free = cairn_extents_free_blocks(v->extents) * CAIRN_BLOCK;
    f->ram_resident = v->resident_bytes;
    f->resident_values = v->resident_count;
    f->ram_unwritten = v->dirty_blocks * CAIRN_BLOCK;
    f->ram_leased = v->lease_blocks * CAIRN_BLOCK;
    f->ram_filling = v->filling_blocks * CAIRN_BLOCK;
    f->ram_pages = pages[v->arena.pages];
    f->ram_huge_share = v->arena.huge_share;
    f->writes_failed = v->failed_slots;
    f->entries = cairn_index_count(v->index);
    f->entries_max = cairn_index_capacity(v->index);
    f->index_bytes = cairn_index_bytes(v->index);
    f->identities = v->seen_count;
    f->closing = v->closing;
    f->disk_off = v->tier_off;
    snprintf(f->disk_off_why, sizeof f->disk_off_why, "%s", v->off_why);
}

void cairn_vault_figures(struct cairn_vault *v, struct cairn_vault_figures *ret)
{
    *ret = (struct cairn_vault_figures){.value_max = v->value_max, .has_disk = v->tier != NULL};
    read_counters(&v->c, ret);
    pthread_mutex_lock(&v->lock);
    read_ram(v, ret);
    pthread_mutex_unlock(&v->lock);
    if (!v->tier)
        return;
    v->tier->ops->info(v->tier, &ret->disk);
    ret->disk_stats = v->tier->ops->stats(v->tier);
    ret->disk_off |= ret->disk.off;
}
