/* INFO: what Redis's tools read, with the same names where the thing is the same. */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/clock.h"
#include "connector/cairn.h"
#include "storage/figures.h"
#include "tools/cairnd/node.h"
#include "tools/cairnd/text.h"

/* The protocol and the strings are those of this version. */
#define REDIS_VERSION "7.0.15"

struct info {
    struct text text;
    struct node *node;
    struct cairn_vault_figures figures;
};

static uint64_t get(const _Atomic uint64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

static void number(struct info *i, const char *name, uint64_t value)
{
    text_add(&i->text, "%s:%" PRIu64 "\r\n", name, value);
}

static void word(struct info *i, const char *name, const char *value)
{
    text_add(&i->text, "%s:%s\r\n", name, value);
}

static void bytes(struct info *i, const char *name, const char *human, uint64_t value)
{
    char text[32];
    number(i, name, value);
    word(i, human, cairn_format_size(value, text, sizeof text));
}

static void add_server(struct info *i)
{
    const struct node *n = i->node;
    struct utsname u;
    uint64_t up = (cairn_now_ns() - n->started_ns) / CAIRN_NS_PER_S;
    word(i, "redis_version", REDIS_VERSION);
    word(i, "redis_mode", "standalone");
    word(i, "cairn_version", CAIRN_VERSION_STRING);
    if (uname(&u) == 0)
        text_add(&i->text, "os:%s %s %s\r\n", u.sysname, u.release, u.machine);
    number(i, "arch_bits", 8 * sizeof(void *));
    word(i, "multiplexing_api", "epoll");
    number(i, "process_id", (uint64_t)getpid());
    word(i, "run_id", n->run_id);
    number(i, "tcp_port", n->o.port);
    number(i, "http_port", n->o.http_port);
    word(i, "unix_socket", n->o.socket);
    number(i, "server_time_usec", cairn_wall_ns() / 1000);
    number(i, "uptime_in_seconds", up);
    number(i, "uptime_in_days", up / 86400);
    number(i, "network_threads", n->thread_count);
    number(i, "worker_threads", n->o.workers);
    word(i, "config_file", n->o.config);
}

static void add_clients(struct info *i)
{
    struct node *n = i->node;
    pthread_mutex_lock(&n->clients_lock);
    uint32_t count = n->client_count;
    pthread_mutex_unlock(&n->clients_lock);
    number(i, "connected_clients", count);
    number(i, "maxclients", node_live(&n->o.clients_max));
    number(i, "blocked_clients", 0);
    number(i, "tracking_clients", 0);
}

static uint64_t resident_bytes(void)
{
    unsigned long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f) {
        if (fscanf(f, "%*u %llu", &pages) != 1)
            pages = 0;
        fclose(f);
    }
    return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void add_memory(struct info *i)
{
    const struct cairn_vault_figures *f = &i->figures;
    bytes(i, "used_memory", "used_memory_human", f->ram_capacity - f->ram_free);
    bytes(i, "used_memory_rss", "used_memory_rss_human", resident_bytes());
    bytes(i, "maxmemory", "maxmemory_human", f->ram_capacity);
    word(i, "maxmemory_policy", "allkeys-lru");
    number(i, "cairn_resident_bytes", f->ram_resident);
    number(i, "cairn_resident_values", f->resident_values);
    number(i, "cairn_unwritten_bytes", f->ram_unwritten);
    number(i, "cairn_leased_bytes", f->ram_leased);
    number(i, "cairn_filling_bytes", f->ram_filling);
    number(i, "cairn_receiving_bytes", get(&i->node->receiving));
    number(i, "cairn_clients_bytes", get(&i->node->clients_memory));
    word(i, "cairn_pages", f->ram_pages);
    text_add(&i->text, "cairn_huge_share:%.3f\r\n", f->ram_huge_share);
}

static void add_persistence(struct info *i)
{
    const struct cairn_vault_figures *f = &i->figures;
    number(i, "loading", 0);
    number(i, "rdb_changes_since_last_save", 0);
    number(i, "rdb_bgsave_in_progress", 0);
    word(i, "rdb_last_bgsave_status", "ok");
    number(i, "aof_enabled", 0);
    word(i, "cairn_disk", !f->has_disk ? "none" : f->disk_off ? "off" : "on");
    if (!f->has_disk)
        return;
    number(i, "cairn_disk_capacity_bytes", f->disk.capacity_bytes);
    number(i, "cairn_disk_written_bytes", get(&f->disk_stats->written_bytes));
    number(i, "cairn_disk_read_bytes", get(&f->disk_stats->read_bytes));
    number(i, "cairn_disk_errors", get(&f->disk_stats->io_errors));
    word(i, "cairn_disk_engine", f->disk.engine);
    if (f->disk_off)
        word(i, "cairn_disk_off_why", f->disk_off_why);
}

static void add_stats(struct info *i)
{
    const struct node_stats *s = &i->node->stats;
    const struct cairn_vault_figures *f = &i->figures;
    number(i, "total_connections_received", get(&s->connections));
    number(i, "total_commands_processed", get(&s->commands));
    number(i, "total_net_input_bytes", get(&s->bytes_in));
    number(i, "total_net_output_bytes", get(&s->bytes_out));
    number(i, "rejected_connections", get(&s->connections_refused));
    number(i, "total_error_replies", get(&s->errors));
    number(i, "expired_keys", get(&s->string_expired));
    number(i, "evicted_keys", f->evicted);
    number(i, "keyspace_hits", get(&s->string_hits));
    number(i, "keyspace_misses", get(&s->string_misses));
    number(i, "cairn_waited_commands", get(&s->slow_commands));
    number(i, "cairn_closed_idle", get(&s->closed_idle));
    number(i, "cairn_closed_handshake", get(&s->closed_handshake));
    number(i, "cairn_closed_request", get(&s->closed_request));
    number(i, "cairn_closed_output", get(&s->closed_output));
    number(i, "cairn_closed_protocol", get(&s->closed_protocol));
    number(i, "cairn_closed_memory", get(&s->closed_memory));
    number(i, "cairn_closed_by_command", get(&s->connections_killed));
    number(i, "cairn_payload_refused", get(&s->payload_refused));
}

static void add_replication(struct info *i)
{
    word(i, "role", "master");
    number(i, "connected_slaves", 0);
}

static void add_cpu(struct info *i)
{
    struct rusage r;
    if (getrusage(RUSAGE_SELF, &r))
        return;
    text_add(&i->text, "used_cpu_sys:%ld.%06ld\r\nused_cpu_user:%ld.%06ld\r\n",
             (long)r.ru_stime.tv_sec, (long)r.ru_stime.tv_usec, (long)r.ru_utime.tv_sec,
             (long)r.ru_utime.tv_usec);
}

static void add_keyspace(struct info *i)
{
    uint64_t keys = cairn_vault_space_count(i->node->vault, CAIRN_SPACE_STRINGS);
    if (keys)
        text_add(&i->text, "db0:keys=%" PRIu64 ",expires=0,avg_ttl=0\r\n", keys);
}

static void add_cairn(struct info *i)
{
    const struct node_stats *s = &i->node->stats;
    const struct cairn_vault_figures *f = &i->figures;
    number(i, "kv_hits", get(&s->kv_hits));
    number(i, "kv_misses", get(&s->kv_misses));
    number(i, "kv_tokens_hit", get(&s->kv_tokens_ram) + get(&s->kv_tokens_disk));
    number(i, "kv_tokens_asked", get(&s->kv_tokens_asked));
    number(i, "leases_taken", get(&s->leases_taken));
    number(i, "leases_released", get(&s->leases_released));
    number(i, "leases_expired", get(&s->leases_expired));
    number(i, "leases_lost", get(&s->leases_lost));
    number(i, "window_rejects", get(&s->window_rejects));
    number(i, "chunks", cairn_vault_space_count(i->node->vault, 0));
    number(i, "index_entries", f->entries);
    number(i, "index_entries_max", f->entries_max);
    number(i, "identities", f->identities);
    number(i, "value_max", f->value_max);
    number(i, "command_p50_ns", cairn_hist_quantile(&s->command_ns, 0.5));
    number(i, "command_p99_ns", cairn_hist_quantile(&s->command_ns, 0.99));
}

static void add_command(void *arg, const struct command *c)
{
    struct info *i = arg;
    const struct node_stats *s = &i->node->stats;
    uint32_t number = command_number(c);
    uint64_t calls = get(&s->command[number].calls);
    char name[32];
    size_t at = 0;
    for (; at + 1 < sizeof name && c->name[at]; at++)
        name[at] = (char)tolower((unsigned char)c->name[at]);
    name[at] = '\0';
    if (calls)
        text_add(&i->text, "cmdstat_%s:calls=%" PRIu64 ",failed_calls=%" PRIu64 "\r\n", name, calls,
                 get(&s->command[number].errors));
}

static void add_commands(struct info *i)
{
    command_each(add_command, i);
}

static const struct {
    const char *name;
    void (*add)(struct info *i);
    bool asked_only; /* not among the usual ones */
} sections[] = {
    {"Server", add_server, false},           {"Clients", add_clients, false},
    {"Memory", add_memory, false},           {"Persistence", add_persistence, false},
    {"Stats", add_stats, false},             {"Replication", add_replication, false},
    {"CPU", add_cpu, false},                 {"Commandstats", add_commands, true},
    {"Keyspace", add_keyspace, false},       {"Cairn", add_cairn, false},
};

static bool word_is(const char *word, size_t len, const char *name)
{
    return len == strlen(name) && strncasecmp(word, name, len) == 0;
}

/* Is the section among the words? */
static bool asked(const char *words, const char *name, bool asked_only)
{
    const char *p = words ? words + strspn(words, " ") : "";
    if (!*p)
        return !asked_only;
    for (; *p; p += strspn(p, " ")) {
        size_t len = strcspn(p, " ");
        if (word_is(p, len, name) || word_is(p, len, "all") || word_is(p, len, "everything") ||
            (!asked_only && word_is(p, len, "default")))
            return true;
        p += len;
    }
    return false;
}

size_t report_info(struct node *n, const char *section, char *out, size_t cap)
{
    struct info i = {.text = {out, cap, 0}, .node = n};
    cairn_vault_figures(n->vault, &i.figures);
    if (cap)
        out[0] = '\0';
    for (size_t s = 0; s < sizeof sections / sizeof *sections; s++) {
        if (!asked(section, sections[s].name, sections[s].asked_only))
            continue;
        text_add(&i.text, "%s# %s\r\n", i.text.len ? "\r\n" : "", sections[s].name);
        sections[s].add(&i);
    }
    return i.text.len;
}
