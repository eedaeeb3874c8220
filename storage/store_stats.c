#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#include "storage/store_internal.h"

struct text {
    char *out;
    size_t cap, len;
};

static void add(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void add(struct text *t, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    size_t room = t->len < t->cap ? t->cap - t->len : 0;
    int n = vsnprintf(room ? t->out + t->len : NULL, room, fmt, ap);
    va_end(ap);
    t->len += n > 0 ? (size_t)n : 0;
}

static uint64_t get(const _Atomic uint64_t *c)
{
    return atomic_load_explicit(c, memory_order_relaxed);
}

static void add_hist(struct text *t, const char *name, const struct cairn_hist *h)
{
    add(t, "\"%s\":{\"count\":%" PRIu64 ",\"p50_us\":%.1f,\"p99_us\":%.1f,\"p999_us\":%.1f},", name,
        get(&h->count), (double)cairn_hist_quantile(h, 0.5) / 1e3,
        (double)cairn_hist_quantile(h, 0.99) / 1e3, (double)cairn_hist_quantile(h, 0.999) / 1e3);
}

static void add_causes(struct text *t, const char *name, const _Atomic uint64_t *counts)
{
    add(t, "\"%s\":{", name);
    for (int i = 1; i < CAIRN_CAUSE_COUNT; i++)
        add(t, "%s\"%s\":%" PRIu64, i > 1 ? "," : "", cairn_cause_name((enum cairn_cause)i),
            get(&counts[i]));
    add(t, "},");
}

static void add_tier(struct text *t, const struct cairn_vault *v)
{
    struct cairn_tier_info i;
    const struct cairn_tier_stats *s = v->tier->ops->stats(v->tier);
    v->tier->ops->info(v->tier, &i);
    add(t, "\"disk\":{\"capacity_bytes\":%" PRIu64 ",\"segment_bytes\":%" PRIu64
           ",\"segments\":%u,\"segments_free\":%" PRIu64 ",\"engine\":\"%s\",\"direct\":%s,"
           "\"depth\":%u,\"off\":%s,",
        i.capacity_bytes, i.segment_bytes, i.segments, get(&s->segments_free), i.engine,
        i.direct ? "true" : "false", i.depth, i.off ? "true" : "false");
    add(t, "\"loads\":%" PRIu64 ",\"stores\":%" PRIu64 ",\"tombstones\":%" PRIu64
           ",\"syncs\":%" PRIu64 ",\"read_bytes\":%" PRIu64 ",\"written_bytes\":%" PRIu64
           ",\"reinserted_bytes\":%" PRIu64 ",\"retries\":%" PRIu64 ",\"io_errors\":%" PRIu64
           ",\"lost_ios\":%" PRIu64 ",\"holes\":%" PRIu64 ",\"segments_reclaimed\":%" PRIu64
           ",\"turned_off\":%" PRIu64 ",\"probes\":%" PRIu64
           ",\"recovered_records\":%" PRIu64 ",\"recovery_us\":%" PRIu64
           ",\"prewritten_bytes\":%" PRIu64 ",",
        get(&s->loads), get(&s->stores), get(&s->tombstones), get(&s->syncs), get(&s->read_bytes),
        get(&s->written_bytes), get(&s->reinserted_bytes), get(&s->retries), get(&s->io_errors),
        get(&s->lost_ios), get(&s->holes), get(&s->segments_reclaimed),
        get(&s->turned_off), get(&s->probes),
        get(&s->recovered_records), get(&s->recovery_ns) / 1000, get(&s->prewritten_bytes));
    add_hist(t, "load_us", &s->load_ns);
    add_hist(t, "store_us", &s->store_ns);
    add_hist(t, "sync_us", &s->sync_ns);
    t->len--;
    add(t, "},");
}

static void add_ram(struct text *t, struct cairn_vault *v, uint64_t oldest_lease_ns)
{
    static const char *const pages[] = {"4k", "thp", "hugetlb"};
    add(t, "\"ram\":{\"capacity_bytes\":%zu,\"pages\":\"%s\",\"huge_share\":%.3f,"
           "\"resident_bytes\":%" PRIu64 ",\"resident_values\":%" PRIu64
           ",\"free_bytes\":%" PRIu64 ",\"unwritten_bytes\":%" PRIu64 ",\"leased_bytes\":%" PRIu64
           ",\"oldest_lease_ms\":%" PRIu64 ",\"policy\":\"%s\"},",
        v->arena.len, pages[v->arena.pages], v->arena.huge_share, v->resident_bytes,
        v->resident_count, cairn_extents_free_blocks(v->extents) * CAIRN_BLOCK,
        v->dirty_blocks * CAIRN_BLOCK, v->lease_blocks * CAIRN_BLOCK, oldest_lease_ns / 1000000,
        v->policy->ops->name);
    add(t, "\"index\":{\"entries\":%u,\"capacity\":%u,\"bytes\":%" PRIu64 "},",
        cairn_index_count(v->index), cairn_index_capacity(v->index),
        cairn_index_bytes(v->index));
}

size_t cairn_vault_stats(struct cairn_vault *v, uint64_t oldest_lease_ns, char *out, size_t cap)
{
    struct text t = {out, cap, 0};
    const struct vault_counters *c = &v->c;
    add(&t, "{\"get\":{\"hits_ram\":%" PRIu64 ",\"hits_disk\":%" PRIu64 ",\"bytes\":%" PRIu64
            "},\"put\":{\"stored\":%" PRIu64 ",\"existing\":%" PRIu64 ",\"replaced\":%" PRIu64
            ",\"bytes\":%" PRIu64 "},\"deleted\":%" PRIu64 ",\"lookup\":{\"calls\":%" PRIu64
            ",\"keys\":%" PRIu64 ",\"held\":%" PRIu64 "},\"evicted\":%" PRIu64
            ",\"evicted_bytes\":%" PRIu64 ",\"forgotten\":%" PRIu64 ",\"lost_writes\":%" PRIu64 ",",
        get(&c->get_ram), get(&c->get_disk), get(&c->get_bytes), get(&c->put_stored),
        get(&c->put_existing), get(&c->put_replaced), get(&c->put_bytes), get(&c->deleted),
        get(&c->lookups), get(&c->lookup_keys), get(&c->lookup_held), get(&c->evicted),
        get(&c->evicted_bytes), get(&c->forgotten), get(&c->lost_writes));
    add_causes(&t, "misses", c->miss);
    add_causes(&t, "refused", c->refused);
    add_hist(&t, "get_ram_us", &c->get_ram_ns);
    add_hist(&t, "get_disk_us", &c->get_disk_ns);
    add_hist(&t, "put_us", &c->put_ns);
    pthread_mutex_lock(&v->lock);
    add_ram(&t, v, oldest_lease_ns);
    uint32_t identities = v->seen_count;
    pthread_mutex_unlock(&v->lock);
    if (v->tier)
        add_tier(&t, v);
    add(&t, "\"value_max\":%" PRIu64 ",\"identities\":%u}", v->value_max, identities);
    return t.len;
}
