/* /metrics: what the node counts, as Prometheus reads it. A row a figure; README.md of tools lists
 * the families. */
#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "connector/cairn.h"
#include "storage/figures.h"
#include "tools/cairnd/exposition.h"
#include "tools/cairnd/kv_share.h"
#include "tools/cairnd/node.h"

static uint64_t get(const _Atomic uint64_t *c)
{
    return atomic_load_explicit(c, memory_order_relaxed);
}

static void counter(struct text *t, const char *name, const char *help, uint64_t value)
{
    struct metric m = metric_begin(t, name, METRIC_COUNTER, help);
    metric_count(&m, NULL, value);
}

static void gauge(struct text *t, const char *name, const char *help, double value)
{
    struct metric m = metric_begin(t, name, METRIC_GAUGE, help);
    metric_value(&m, NULL, value);
}

static void by_cause(struct text *t, const char *name, const char *label, const char *help,
                     const uint64_t *counts)
{
    struct metric m = metric_begin(t, name, METRIC_COUNTER, help);
    for (int i = 1; i < CAIRN_CAUSE_COUNT; i++)
        metric_count(&m, LABELS({label, cairn_cause_name((enum cairn_cause)i)}), counts[i]);
}

static void add_work(struct text *t, const struct cairn_vault_figures *f)
{
    struct metric m = metric_begin(t, "cairn_get_hits_total", METRIC_COUNTER,
                                   "values found and verified, by the tier that had them");
    metric_count(&m, LABELS({"tier", "ram"}), f->get_ram);
    metric_count(&m, LABELS({"tier", "disk"}), f->get_disk);
    by_cause(t, "cairn_get_misses_total", "cause", "values not found or not trusted, by cause",
             f->miss);
    m = metric_begin(t, "cairn_puts_total", METRIC_COUNTER, "values stored, by what was there");
    metric_count(&m, LABELS({"result", "stored"}), f->put_stored);
    metric_count(&m, LABELS({"result", "existing"}), f->put_existing);
    metric_count(&m, LABELS({"result", "replaced"}), f->put_replaced);
    by_cause(t, "cairn_put_refused_total", "cause", "values not stored, by cause", f->refused);
    counter(t, "cairn_deletes_total", "values deleted", f->deleted);
    counter(t, "cairn_lookups_total", "lookups of chains", f->lookups);
    counter(t, "cairn_lookup_chunks_total", "chunks asked for by lookups", f->lookup_keys);
    counter(t, "cairn_lookup_held_chunks_total", "chunks that lookups found held", f->lookup_held);
    m = metric_begin(t, "cairn_bytes_total", METRIC_COUNTER,
                     "bytes moved: get and put of values in RAM, read and written on disk");
    metric_count(&m, LABELS({"tier", "ram"}, {"op", "get"}), f->get_bytes);
    metric_count(&m, LABELS({"tier", "ram"}, {"op", "put"}), f->put_bytes);
    if (f->has_disk) {
        const struct cairn_tier_stats *d = f->disk_stats;
        metric_count(&m, LABELS({"tier", "disk"}, {"op", "read"}), get(&d->read_bytes));
        metric_count(&m, LABELS({"tier", "disk"}, {"op", "write"}), get(&d->written_bytes));
        metric_count(&m, LABELS({"tier", "disk"}, {"op", "reinsert"}), get(&d->reinserted_bytes));
    }
    counter(t, "cairn_evicted_chunks_total", "values that left RAM for room", f->evicted);
    m = metric_begin(t, "cairn_evicted_bytes_total", METRIC_COUNTER,
                     "bytes that left RAM for room");
    metric_count(&m, LABELS({"tenant", "default"}), f->evicted_bytes);
    by_cause(t, "cairn_chunks_dropped_total", "reason", "values held no more, by what took them",
             f->dropped);
    counter(t, "cairn_forgotten_chunks_total", "disk copies no longer found", f->forgotten);
    counter(t, "cairn_lost_writes_total", "accepted values that left RAM unwritten",
            f->lost_writes);
}

struct command_list {
    struct metric m;
    const struct node_stats *stats;
};

/* Those that were never called would be most of the text. */
static void add_command(void *arg, const struct command *c)
{
    const struct command_list *l = arg;
    uint32_t number = command_number(c);
    /* In this order there are never more errors than calls. */
    uint64_t errors = get(&l->stats->command[number].errors);
    uint64_t calls = get(&l->stats->command[number].calls);
    char name[32];
    snprintf(name, sizeof name, "%s", c ? c->name : "(unknown)");
    for (char *p = name; *p; p++)
        *p = (char)tolower((unsigned char)*p);
    if (calls > errors)
        metric_count(&l->m, LABELS({"command", name}, {"result", "ok"}), calls - errors);
    if (errors)
        metric_count(&l->m, LABELS({"command", name}, {"result", "error"}), errors);
}

static void add_commands(struct text *t, const struct node_stats *s)
{
    struct command_list l = {.stats = s};
    l.m = metric_begin(t, "cairn_command_calls_total", METRIC_COUNTER,
                       "commands answered, by name and result");
    command_each(add_command, &l);
    add_command(&l, NULL);
}

static void add_requests(struct text *t, const struct node *n)
{
    const struct node_stats *s = &n->stats;
    add_commands(t, s);
    counter(t, "cairn_commands_total", "commands run", get(&s->commands));
    counter(t, "cairn_command_errors_total", "commands answered with an error", get(&s->errors));
    counter(t, "cairn_commands_deferred_total", "commands that a worker ran, as they could wait",
            get(&s->slow_commands));
    struct metric m = metric_begin(t, "cairn_network_bytes_total", METRIC_COUNTER,
                                   "bytes received and sent on the sockets");
    metric_count(&m, LABELS({"direction", "in"}), get(&s->bytes_in));
    metric_count(&m, LABELS({"direction", "out"}), get(&s->bytes_out));
    counter(t, "cairn_kv_chunks_hit_total", "KV chunks that clients got or leased",
            get(&s->kv_hits));
    counter(t, "cairn_kv_chunks_missed_total", "KV chunks that clients asked for in vain",
            get(&s->kv_misses));
    m = metric_begin(t, "cairn_kv_tokens_hit_total", METRIC_COUNTER,
                     "tokens whose KV was found, by the tier that had it");
    metric_count(&m, LABELS({"tenant", "default"}, {"tier", "ram"}), get(&s->kv_tokens_ram));
    metric_count(&m, LABELS({"tenant", "default"}, {"tier", "disk"}), get(&s->kv_tokens_disk));
    m = metric_begin(t, "cairn_kv_tokens_asked_total", METRIC_COUNTER,
                     "tokens whose KV was asked for");
    metric_count(&m, LABELS({"tenant", "default"}), get(&s->kv_tokens_asked));
    m = metric_begin(t, "cairn_string_reads_total", METRIC_COUNTER, "strings read, by result");
    metric_count(&m, LABELS({"result", "hit"}), get(&s->string_hits));
    metric_count(&m, LABELS({"result", "miss"}), get(&s->string_misses));
    counter(t, "cairn_string_expired_total", "strings found expired", get(&s->string_expired));
}

static void add_latency(struct text *t, const struct node *n, const struct cairn_vault_figures *f)
{
    struct metric m = metric_begin(t, "cairn_latency_seconds", METRIC_HISTOGRAM,
                                   "time of operations by tier: get, put and lookup of the store, "
                                   "load, store and sync of the disk, commands of the node");
    metric_hist(&m, LABELS({"tier", "ram"}, {"op", "get"}), f->get_ram_ns);
    metric_hist(&m, LABELS({"tier", "disk"}, {"op", "get"}), f->get_disk_ns);
    metric_hist(&m, LABELS({"tier", "ram"}, {"op", "put"}), f->put_ns);
    metric_hist(&m, LABELS({"tier", "ram"}, {"op", "lookup"}), f->lookup_ns);
    if (f->has_disk) {
        metric_hist(&m, LABELS({"tier", "disk"}, {"op", "load"}), &f->disk_stats->load_ns);
        metric_hist(&m, LABELS({"tier", "disk"}, {"op", "store"}), &f->disk_stats->store_ns);
        metric_hist(&m, LABELS({"tier", "disk"}, {"op", "sync"}), &f->disk_stats->sync_ns);
    }
    metric_hist(&m, LABELS({"tier", "node"}, {"op", "command"}), &n->stats.command_ns);
    counter(t, "cairn_deadline_misses_total", "gets whose deadline passed first",
            f->miss[CAIRN_CAUSE_DEADLINE]);
}

/* Any increase is damage that was found and answered as a miss. */
static void add_integrity(struct text *t, const struct node *n, const struct cairn_vault_figures *f)
{
    struct metric m = metric_begin(t, "cairn_checksum_mismatch_total", METRIC_COUNTER,
                                   "copies whose bytes differ from their checksum, by their tier");
    metric_count(&m, LABELS({"tier", "ram"}), f->bad_ram);
    metric_count(&m, LABELS({"tier", "disk"}), f->bad_disk);
    counter(t, "cairn_header_mismatch_total", "records with a damaged or misplaced header",
            f->miss[CAIRN_CAUSE_HEADER]);
    counter(t, "cairn_key_mismatch_total", "records found that hold another key",
            f->miss[CAIRN_CAUSE_KEY]);
    counter(t, "cairn_identity_mismatch_total", "records made under another identity",
            f->miss[CAIRN_CAUSE_IDENTITY]);
    counter(t, "cairn_generation_mismatch_total", "records found that are another version",
            f->miss[CAIRN_CAUSE_VERSION]);
    counter(t, "cairn_length_mismatch_total", "records of another length than the index says",
            f->miss[CAIRN_CAUSE_LENGTH]);
    counter(t, "cairn_window_rejects_total", "values of a client's window without the checks given",
            get(&n->stats.window_rejects));
}

static void add_ram(struct text *t, const struct cairn_vault_figures *f)
{
    struct metric m = metric_begin(t, "cairn_ram_bytes", METRIC_GAUGE,
                                   "bytes of the arena: capacity, free, resident values, not yet "
                                   "written, leased, being filled");
    metric_count(&m, LABELS({"state", "capacity"}), f->ram_capacity);
    metric_count(&m, LABELS({"state", "free"}), f->ram_free);
    metric_count(&m, LABELS({"state", "resident"}), f->ram_resident);
    metric_count(&m, LABELS({"state", "unwritten"}), f->ram_unwritten);
    metric_count(&m, LABELS({"state", "leased"}), f->ram_leased);
    metric_count(&m, LABELS({"state", "filling"}), f->ram_filling);
    gauge(t, "cairn_ram_values", "values in RAM", (double)f->resident_values);
    m = metric_begin(t, "cairn_ram_huge_share", METRIC_GAUGE,
                     "share of the arena in huge pages, and their kind");
    metric_value(&m, LABELS({"pages", f->ram_pages}), f->ram_huge_share);
    gauge(t, "cairn_index_entries", "values the index knows", f->entries);
    gauge(t, "cairn_index_entries_max", "values the index has room for", f->entries_max);
    gauge(t, "cairn_index_bytes", "memory of the index", (double)f->index_bytes);
    gauge(t, "cairn_identities", "identities remembered", f->identities);
    gauge(t, "cairn_value_max_bytes", "largest value taken", (double)f->value_max);
}

static void add_disk(struct text *t, const struct cairn_vault_figures *f)
{
    const struct cairn_tier_stats *s = f->disk_stats;
    struct metric m = metric_begin(t, "cairn_disk_bytes", METRIC_GAUGE,
                                   "bytes of the log: capacity, free segments");
    metric_count(&m, LABELS({"state", "capacity"}), f->disk.capacity_bytes);
    metric_count(&m, LABELS({"state", "free"}), get(&s->segments_free) * f->disk.segment_bytes);
    m = metric_begin(t, "cairn_disk_engine_info", METRIC_GAUGE, "how the disk is driven");
    metric_count(&m, LABELS({"engine", f->disk.engine}), 1);
    gauge(t, "cairn_disk_direct_io", "1 = O_DIRECT was granted", f->disk.direct);
    gauge(t, "cairn_disk_depth", "requests kept in flight", f->disk.depth);
    gauge(t, "cairn_disk_in_flight", "requests that the device has not answered",
          (double)get(&s->in_flight));
    gauge(t, "cairn_quarantined_buffers",
          "of them those given up, whose memory waits for the device: alert if it does not drain",
          (double)get(&s->quarantined));
    m = metric_begin(t, "cairn_disk_ops_total", METRIC_COUNTER, "operations of the disk tier");
    metric_count(&m, LABELS({"op", "load"}), get(&s->loads));
    metric_count(&m, LABELS({"op", "store"}), get(&s->stores));
    metric_count(&m, LABELS({"op", "tombstone"}), get(&s->tombstones));
    metric_count(&m, LABELS({"op", "sync"}), get(&s->syncs));
    counter(t, "cairn_disk_read_retries_total", "bad reads that were tried again",
            get(&s->retries));
    counter(t, "cairn_disk_io_errors_total", "requests the device failed", get(&s->io_errors));
    counter(t, "cairn_disk_lost_ios_total",
            "requests the device did not answer in time; their memory is in quarantine",
            get(&s->lost_ios));
    counter(t, "cairn_disk_holes_total", "records that could not be written", get(&s->holes));
    counter(t, "cairn_segments_reclaimed_total", "segments given up for room",
            get(&s->segments_reclaimed));
    gauge(t, "cairn_writes_failed", "values in RAM that the disk could not take",
          f->writes_failed);
    gauge(t, "cairn_index_recovered_chunks", "values found in the log at the start",
          (double)get(&s->recovered_records));
    gauge(t, "cairn_recovery_seconds", "time the log's recovery took",
          (double)get(&s->recovery_ns) / 1e9);
}

static void add_clients(struct text *t, struct node *n)
{
    const struct node_stats *s = &n->stats;
    pthread_mutex_lock(&n->clients_lock);
    uint32_t clients = n->client_count;
    pthread_mutex_unlock(&n->clients_lock);
    gauge(t, "cairn_clients", "connections open", clients);
    gauge(t, "cairn_client_memory_bytes", "held for clients: input, output, long arguments",
          (double)get(&n->clients_memory));
    gauge(t, "cairn_client_memory_max_bytes", "that may be held for all clients",
          (double)node_live(&n->o.clients_memory));
    gauge(t, "cairn_clients_max", "connections allowed", (double)node_live(&n->o.clients_max));
    struct metric m = metric_begin(t, "cairn_connections_total", METRIC_COUNTER,
                                   "connections by what became of them at first");
    metric_count(&m, LABELS({"result", "accepted"}), get(&s->connections));
    metric_count(&m, LABELS({"result", "refused"}), get(&s->connections_refused));
    m = metric_begin(t, "cairn_connections_closed_total", METRIC_COUNTER,
                     "connections that the node closed, by reason");
    metric_count(&m, LABELS({"reason", "killed"}), get(&s->connections_killed));
    metric_count(&m, LABELS({"reason", "idle"}), get(&s->closed_idle));
    metric_count(&m, LABELS({"reason", "handshake"}), get(&s->closed_handshake));
    metric_count(&m, LABELS({"reason", "request"}), get(&s->closed_request));
    metric_count(&m, LABELS({"reason", "output"}), get(&s->closed_output));
    metric_count(&m, LABELS({"reason", "protocol"}), get(&s->closed_protocol));
    metric_count(&m, LABELS({"reason", "memory"}), get(&s->closed_memory));
    counter(t, "cairn_auth_failures_total", "connections refused for their user (allow-uids)",
            get(&s->auth_failures));
    counter(t, "cairn_handshake_timeouts_total", "connections that did not say a thing in time",
            get(&s->closed_handshake));
    counter(t, "cairn_protocol_errors_total", "connections that did not speak the protocol",
            get(&s->closed_protocol));
    counter(t, "cairn_payloads_refused_total", "long arguments there was no memory for",
            get(&s->payload_refused));
}

static void add_leases(struct text *t, struct node *n)
{
    const struct node_stats *s = &n->stats;
    struct kv_figures kv;
    kv_figures(n, &kv);
    gauge(t, "cairn_leases_active", "leases that pin values", kv.leases);
    gauge(t, "cairn_lease_pins", "values that leases pin", (double)kv.lease_pins);
    gauge(t, "cairn_oldest_lease_seconds", "age of the oldest lease, 0 without any",
          (double)node_leases_each(n, NULL, NULL) / 1e9);
    gauge(t, "cairn_operator_pins", "values pinned by CAIRN.PIN", kv.operator_pins);
    gauge(t, "cairn_shared_processes", "processes that map the arena", kv.processes);
    gauge(t, "cairn_shared_orphans", "of them those without a connection that hold leases",
          kv.orphans);
    gauge(t, "cairn_window_bytes", "memory of clients' windows", (double)kv.window_bytes);
    gauge(t, "cairn_prefetch_queue", "chunks that wait to be brought into RAM", kv.prefetch_keys);
    struct metric m = metric_begin(t, "cairn_leases_total", METRIC_COUNTER,
                     "leases taken, released, expired, and lost with their client");
    metric_count(&m, LABELS({"event", "taken"}), get(&s->leases_taken));
    metric_count(&m, LABELS({"event", "released"}), get(&s->leases_released));
    metric_count(&m, LABELS({"event", "expired"}), get(&s->leases_expired));
    metric_count(&m, LABELS({"event", "lost"}), get(&s->leases_lost));
}

static uint64_t open_files(void)
{
    DIR *d = opendir("/proc/self/fd");
    uint64_t count = 0;
    for (struct dirent *e; d && (e = readdir(d));)
        count += e->d_name[0] != '.';
    if (!d)
        return 0;
    closedir(d);
    return count - 1; /* the one that reads here */
}

static uint64_t resident_pages(void)
{
    unsigned long all = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fscanf(f, "%lu %lu", &all, &resident) != 2)
        resident = 0;
    if (f)
        fclose(f);
    return resident;
}

/* Names that every Prometheus client library uses. */
static void add_process(struct text *t, const struct node *n)
{
    struct rusage u;
    struct rlimit files, lock;
    getrusage(RUSAGE_SELF, &u);
    getrlimit(RLIMIT_NOFILE, &files);
    getrlimit(RLIMIT_MEMLOCK, &lock);
    struct metric m = metric_begin(t, "process_cpu_seconds_total", METRIC_COUNTER,
                                   "processor time, user and system");
    metric_value(&m, NULL, (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
                               (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6);
    gauge(t, "process_resident_memory_bytes", "memory in use, the arena included",
          (double)resident_pages() * (double)sysconf(_SC_PAGESIZE));
    gauge(t, "process_open_fds", "files open", (double)open_files());
    gauge(t, "process_max_fds", "files allowed", (double)files.rlim_cur);
    gauge(t, "cairn_memlock_limit_bytes", "RLIMIT_MEMLOCK",
          lock.rlim_cur == RLIM_INFINITY ? __builtin_inf() : (double)lock.rlim_cur);
    gauge(t, "process_start_time_seconds", "when the node started, Unix time",
          (double)n->started_wall_ns / 1e9);
}

/* It works, but some of what it was given it did not do. */
static bool disk_degraded(const struct cairn_vault_figures *f)
{
    return f->writes_failed || get(&f->disk_stats->quarantined);
}

/* Before the first one, since the start. */
static void add_age(const struct metric *m, const struct node *n, const char *tier, const char *op,
                    uint64_t last_ns)
{
    uint64_t now = cairn_now_ns(), since = last_ns ? last_ns : n->started_ns;
    metric_value(m, LABELS({"tier", tier}, {"op", op}),
                 (double)(now > since ? now - since : 0) / 1e9);
}

static void add_ages(struct text *t, const struct node *n, const struct cairn_vault_figures *f)
{
    struct metric m = metric_begin(t, "cairn_last_success_age_seconds", METRIC_GAUGE,
                                   "since an operation last went well, or since the start");
    add_age(&m, n, "ram", "get", f->last_get_ram_ns);
    add_age(&m, n, "ram", "put", f->last_put_ns);
    if (!f->has_disk)
        return;
    add_age(&m, n, "disk", "get", f->last_get_disk_ns);
    add_age(&m, n, "disk", "store", get(&f->disk_stats->last_store_ns));
}

static void add_health(struct text *t, struct node *n, const struct cairn_vault_figures *f)
{
    struct metric m = metric_begin(t, "cairn_build_info", METRIC_GAUGE, "version and this start");
    metric_count(&m, LABELS({"version", cairn_version()}, {"run_id", n->run_id}), 1);
    char why[256];
    gauge(t, "cairn_healthy", "1 = values can be stored and read, as /healthz says",
          report_health(n, why, sizeof why));
    gauge(t, "cairn_restart_ready_seconds", "from the start until it answered",
          (double)(n->ready_ns - n->started_ns) / 1e9);
    add_ages(t, n, f);
    m = metric_begin(t, "cairn_tier_state", METRIC_GAUGE,
                     "0 = in use, 1 = some of its writes failed or hang, 2 = off");
    metric_count(&m, LABELS({"tier", "ram"}), f->closing ? 2 : 0);
    if (!f->has_disk)
        return;
    metric_count(&m, LABELS({"tier", "disk"}), f->disk_off ? 2 : disk_degraded(f));
    counter(t, "cairn_disk_turned_off_total", "times that repeated errors turned the disk off",
            get(&f->disk_stats->turned_off));
    counter(t, "cairn_disk_probes_total", "times that a disk which was off was tried again",
            get(&f->disk_stats->probes));
}

size_t report_metrics(struct node *n, char *out, size_t cap)
{
    struct text t = {.out = out, .cap = cap};
    struct cairn_vault_figures f;
    cairn_vault_figures(n->vault, &f);
    f.refused[CAIRN_CAUSE_NO_ROOM] = get(&n->stats.no_room);
    add_health(&t, n, &f);
    add_work(&t, &f);
    add_requests(&t, n);
    add_latency(&t, n, &f);
    add_integrity(&t, n, &f);
    add_ram(&t, &f);
    if (f.has_disk)
        add_disk(&t, &f);
    add_clients(&t, n);
    add_leases(&t, n);
    add_process(&t, n);
    return t.len;
}
