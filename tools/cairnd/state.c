/* /debug/state: what the node is and does at this moment. */
#include <inttypes.h>

#include "base/clock.h"
#include "connector/cairn.h"
#include "storage/figures.h"
#include "tools/cairnd/kv_share.h"
#include "tools/cairnd/node.h"
#include "tools/cairnd/text.h"

#define CLIENTS_SHOWN 1000u
#define LEASES_SHOWN 1000u

static uint64_t get(const _Atomic uint64_t *c)
{
    return atomic_load_explicit(c, memory_order_relaxed);
}

static const char *yes_no(bool b)
{
    return b ? "true" : "false";
}

static void add_options(struct text *t, const struct node_options *o)
{
    text_add(t, "\"options\":{");
    for (const struct cairn_opt *row = node_option_table; row->name; row++) {
        char value[2048];
        cairn_opts_print(row, o, value, sizeof value);
        text_add(t, "%s\"%s\":", row == node_option_table ? "" : ",", row->name);
        text_json_string(t, value);
    }
    text_add(t, "},");
}

static void add_node(struct text *t, struct node *n)
{
    char why[256] = "";
    bool healthy = report_health(n, why, sizeof why);
    text_add(t, "\"version\":\"%s\",\"run_id\":\"%s\",\"uptime_s\":%.3f,\"stopping\":%s,"
                "\"healthy\":%s,\"why\":", cairn_version(), n->run_id,
             (double)(cairn_now_ns() - n->started_ns) / 1e9, yes_no(atomic_load(&n->stopping)),
             yes_no(healthy));
    text_json_string(t, healthy ? "" : why);
    text_add(t, ",");
}

static void add_tiers(struct text *t, const struct cairn_vault_figures *f)
{
    text_add(t, "\"tiers\":[{\"name\":\"ram\",\"state\":\"%s\",\"capacity_bytes\":%" PRIu64
                ",\"free_bytes\":%" PRIu64 ",\"resident_bytes\":%" PRIu64 ",\"values\":%" PRIu64
                ",\"unwritten_bytes\":%" PRIu64 ",\"leased_bytes\":%" PRIu64
                ",\"filling_bytes\":%" PRIu64 ",\"pages\":\"%s\",\"huge_share\":%.3f}",
             f->closing ? "off" : "ok", f->ram_capacity, f->ram_free, f->ram_resident,
             f->resident_values, f->ram_unwritten, f->ram_leased, f->ram_filling, f->ram_pages,
             f->ram_huge_share);
    if (f->has_disk) {
        text_add(t, ",{\"name\":\"disk\",\"state\":\"%s\",\"why\":", f->disk_off ? "off" : "ok");
        text_json_string(t, f->disk_off_why);
        text_add(t, ",\"capacity_bytes\":%" PRIu64 ",\"free_bytes\":%" PRIu64
                    ",\"segments\":%u,\"segment_bytes\":%" PRIu64 ",\"engine\":\"%s\","
                    "\"direct\":%s,\"depth\":%u,\"io_errors\":%" PRIu64 ",\"lost_ios\":%" PRIu64
                    ",\"writes_failed\":%u,\"turned_off\":%" PRIu64 ",\"probes\":%" PRIu64 "}",
                 f->disk.capacity_bytes, get(&f->disk_stats->segments_free) * f->disk.segment_bytes,
                 f->disk.segments, f->disk.segment_bytes, f->disk.engine, yes_no(f->disk.direct),
                 f->disk.depth, get(&f->disk_stats->io_errors), get(&f->disk_stats->lost_ios),
                 f->writes_failed, get(&f->disk_stats->turned_off), get(&f->disk_stats->probes));
    }
    text_add(t, "],\"index\":{\"entries\":%u,\"capacity\":%u,\"bytes\":%" PRIu64
                "},\"identities\":%u,", f->entries, f->entries_max, f->index_bytes, f->identities);
}

static void add_client(struct text *t, const struct client *c, uint64_t now)
{
    const struct command *command = atomic_load(&c->command);
    uint64_t active = get(&c->active_ns);
    text_add(t, "{\"id\":%" PRIu64 ",\"address\":", c->id);
    text_json_string(t, c->address);
    text_add(t, ",\"pid\":%d,\"name\":", c->pid);
    text_json_string(t, c->name);
    text_add(t, ",\"library\":");
    text_json_string(t, c->library);
    text_add(t, ",\"age_s\":%.3f,\"idle_s\":%.3f,\"command\":", (double)(now - c->since_ns) / 1e9,
             active && active <= now ? (double)(now - active) / 1e9 : 0.0);
    text_json_string(t, command ? command->name : "");
    text_add(t, ",\"memory_bytes\":%" PRIu64 "}", get(&c->memory));
}

static void add_clients(struct text *t, struct node *n)
{
    uint32_t shown = 0;
    text_add(t, "\"clients\":[");
    pthread_mutex_lock(&n->clients_lock);
    uint64_t now = cairn_now_ns();
    uint32_t count = n->client_count;
    for (const struct client *c = n->clients; c && shown < CLIENTS_SHOWN; c = c->next, shown++) {
        text_add(t, "%s", shown ? "," : "");
        add_client(t, c, now);
    }
    pthread_mutex_unlock(&n->clients_lock);
    text_add(t, "],\"clients_count\":%u,\"clients_shown\":%u,", count, shown);
}

struct lease_list {
    struct text *t;
    uint32_t count;
};

static void add_lease(void *arg, uint64_t lease, uint64_t client, uint64_t age_ns,
                      uint64_t ends_in_ns, uint32_t values, uint64_t bytes)
{
    struct lease_list *l = arg;
    if (l->count++ >= LEASES_SHOWN)
        return;
    text_add(l->t, "%s{\"lease\":%" PRIu64 ",\"client\":%" PRIu64 ",\"age_s\":%.3f,\"ends_in_s\":",
             l->count > 1 ? "," : "", lease, client, (double)age_ns / 1e9);
    if (ends_in_ns == UINT64_MAX)
        text_add(l->t, "null");
    else
        text_add(l->t, "%.3f", (double)ends_in_ns / 1e9);
    text_add(l->t, ",\"values\":%u,\"bytes\":%" PRIu64 "}", values, bytes);
}

static void add_leases(struct text *t, struct node *n)
{
    struct lease_list l = {t, 0};
    text_add(t, "\"leases\":[");
    uint64_t oldest = node_leases_each(n, add_lease, &l);
    text_add(t, "],\"leases_count\":%u,\"oldest_lease_s\":%.3f,", l.count, (double)oldest / 1e9);
    struct kv_figures kv;
    kv_figures(n, &kv);
    text_add(t, "\"shared\":{\"processes\":%u,\"orphans\":%u,\"window_bytes\":%" PRIu64
                ",\"lease_pins\":%" PRIu64 ",\"operator_pins\":%u},",
             kv.processes, kv.orphans, kv.window_bytes, kv.lease_pins, kv.operator_pins);
}

static void add_queues(struct text *t, struct node *n)
{
    uint32_t queued, running, capacity;
    struct kv_figures kv;
    work_state(n, &queued, &running, &capacity);
    kv_figures(n, &kv);
    text_add(t, "\"queues\":{\"prefetch\":%u,\"workers\":%u},", kv.prefetch_keys, queued);
    text_add(t, "\"network_threads\":%u,\"workers\":{\"count\":%" PRIu64 ",\"running\":%u,"
                "\"queued\":%u,\"queue_capacity\":%u}", n->thread_count, n->o.workers, running,
             queued, capacity);
}

size_t report_state_json(struct node *n, char *out, size_t cap)
{
    struct text t = {.out = out, .cap = cap};
    struct cairn_vault_figures f;
    cairn_vault_figures(n->vault, &f);
    text_add(&t, "{");
    add_node(&t, n);
    struct node_options now;
    node_options_copy(&n->o, &now);
    add_options(&t, &now);
    add_tiers(&t, &f);
    add_clients(&t, n);
    add_leases(&t, n);
    add_queues(&t, n);
    text_add(&t, "}\n");
    return t.len;
}
