/* `cairn top`: figures of a node at two moments, and what follows from the pair. */
#ifndef CAIRN_TOOLS_TOP_H
#define CAIRN_TOOLS_TOP_H

#include <stdbool.h>
#include <stdio.h>

#include "tools/node_call.h"

/* X(field, where it stands: "info:NAME" or the path in CAIRN.STATS) */
#define TOP_FIGURES(X) \
    X(uptime, "info:uptime_in_seconds") \
    X(clients, "info:connected_clients") \
    X(commands, "info:total_commands_processed") \
    X(errors, "info:total_error_replies") \
    X(waited, "info:cairn_waited_commands") \
    X(net_in, "info:total_net_input_bytes") \
    X(net_out, "info:total_net_output_bytes") \
    X(cpu_user, "info:used_cpu_user") \
    X(cpu_sys, "info:used_cpu_sys") \
    X(string_hits, "info:keyspace_hits") \
    X(string_misses, "info:keyspace_misses") \
    X(kv_hits, "info:kv_hits") \
    X(kv_misses, "info:kv_misses") \
    X(tokens_hit, "info:kv_tokens_hit") \
    X(tokens_asked, "info:kv_tokens_asked") \
    X(leases_taken, "info:leases_taken") \
    X(leases_released, "info:leases_released") \
    X(leases_lost, "info:leases_lost") \
    X(command_p50_ns, "info:command_p50_ns") \
    X(command_p99_ns, "info:command_p99_ns") \
    X(get_ram, "get.hits_ram") \
    X(get_disk, "get.hits_disk") \
    X(put_stored, "put.stored") \
    X(put_replaced, "put.replaced") \
    X(evicted, "evicted") \
    X(evicted_bytes, "evicted_bytes") \
    X(bad_bytes, "misses.checksum") \
    X(ram_capacity, "ram.capacity_bytes") \
    X(ram_free, "ram.free_bytes") \
    X(ram_values, "ram.resident_values") \
    X(ram_unwritten, "ram.unwritten_bytes") \
    X(ram_leased, "ram.leased_bytes") \
    X(oldest_lease_ms, "ram.oldest_lease_ms") \
    X(ram_get_p99, "get_ram_us.p99_us") \
    X(entries, "index.entries") \
    X(disk_capacity, "disk.capacity_bytes") \
    X(disk_segments, "disk.segments") \
    X(disk_segments_free, "disk.segments_free") \
    X(disk_read, "disk.read_bytes") \
    X(disk_written, "disk.written_bytes") \
    X(disk_errors, "disk.io_errors") \
    X(disk_off, "disk.off") \
    X(disk_load_p99, "disk.load_us.p99_us")

struct top_sample {
    uint64_t at_ns;
    char version[32], run_id[48];
#define TOP_FIELD(name, source) double name;
    TOP_FIGURES(TOP_FIELD)
#undef TOP_FIELD
    char *client_list; /* CLIENT LIST, own memory */
};

/* false and a sentence in why; free *ret all the same. */
bool top_take(struct node_call *c, struct top_sample *ret, char *why, size_t why_cap);
void top_free(struct top_sample *s);

/* What happened between two samples of one start of the node, each a second. */
struct top_rates {
    double commands, errors, net_in, net_out, gets, puts, evicted, evicted_bytes, leases;
    double disk_read, disk_written, cpu; /* cpu: of one core */
    double hit_share, hit_share_all;     /* of tokens asked, 0 to 1; < 0: none were asked */
};
void top_compare(const struct top_sample *before, const struct top_sample *now,
                 struct top_rates *ret);

/* A look at a node that does not answer: since when, and why. */
struct top_absence {
    double seconds;
    char why[512];
};
void top_absent_json(FILE *f, const struct top_absence *a);
void top_absent_text(FILE *f, const char *uri, const struct top_absence *a, unsigned columns,
                     const char *end);
void top_print_json(FILE *f, const struct top_sample *s, const struct top_rates *r);
/* rows: at most so many lines, 0 = all. end: what a line ends in. */
void top_print_text(FILE *f, const char *uri, const struct top_sample *s, const struct top_rates *r,
                    unsigned rows, unsigned columns, const char *end);

#endif
