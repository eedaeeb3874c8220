#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/options.h"
#include "tools/json.h"
#include "tools/top.h"

#define LINE_MAX_BYTES 512
#define BAR_WIDTH 30

/* Lines that a screen has room for. */
struct page {
    FILE *f;
    const char *end;
    unsigned rows, columns; /* 0 = no bound */
    unsigned used;
};

__attribute__((format(printf, 2, 3))) static void line(struct page *p, const char *fmt, ...)
{
    char text[LINE_MAX_BYTES];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (p->rows && p->used >= p->rows)
        return;
    p->used++;
    fprintf(p->f, "%.*s%s", p->columns ? (int)p->columns : LINE_MAX_BYTES, text, p->end);
}

static const char *size_of(double bytes, char out[32])
{
    return cairn_format_size(bytes > 0 ? (uint64_t)bytes : 0, out, 32);
}

static const char *percent(double part, char out[16])
{
    if (part < 0)
        snprintf(out, 16, "-");
    else
        snprintf(out, 16, "%.1f %%", 100 * part);
    return out;
}

static const char *bar(double part, char out[BAR_WIDTH + 3])
{
    int full = (int)((part < 0 ? 0 : part > 1 ? 1 : part) * BAR_WIDTH + 0.5);
    out[0] = '[';
    memset(out + 1, '|', (size_t)full);
    memset(out + 1 + full, ' ', (size_t)(BAR_WIDTH - full));
    out[BAR_WIDTH + 1] = ']';
    out[BAR_WIDTH + 2] = 0;
    return out;
}

static const char *age(double seconds, char out[32])
{
    uint64_t s = (uint64_t)seconds;
    if (s >= 86400)
        snprintf(out, 32, "%" PRIu64 " d %02u:%02u", s / 86400, (unsigned)(s % 86400 / 3600),
                 (unsigned)(s % 3600 / 60));
    else
        snprintf(out, 32, "%02u:%02u:%02u", (unsigned)(s / 3600), (unsigned)(s % 3600 / 60),
                 (unsigned)(s % 60));
    return out;
}

static void show_tiers(struct page *p, const struct top_sample *s, const struct top_rates *r)
{
    char a[32], b[32], c[32], shown[BAR_WIDTH + 3];
    double used = s->ram_capacity > 0 ? 1 - s->ram_free / s->ram_capacity : 0;
    line(p, "ram     %s %5.1f %% of %s  %.0f values  %s unwritten  %s leased", bar(used, shown),
         100 * used, size_of(s->ram_capacity, a), s->ram_values, size_of(s->ram_unwritten, b),
         size_of(s->ram_leased, c));
    if (s->disk_segments <= 0) {
        line(p, "disk    none");
        return;
    }
    used = 1 - s->disk_segments_free / s->disk_segments;
    line(p, "disk    %s %5.1f %% of %s  %s  reads %s/s  writes %s/s  errors %.0f",
         bar(used, shown), 100 * used, size_of(s->disk_capacity, a),
         s->disk_off > 0 ? "OFF" : "ok", size_of(r->disk_read, b), size_of(r->disk_written, c),
         s->disk_errors);
}

/* A field of a CLIENT LIST line. */
static void field(const char *text, const char *name, char *out, size_t cap)
{
    out[0] = 0;
    size_t len = strlen(name);
    for (const char *p = text; *p; p += *p != 0) {
        size_t word = strcspn(p, " ");
        if (word > len && !strncmp(p, name, len) && p[len] == '=') {
            snprintf(out, cap, "%.*s", (int)(word - len - 1), p + len + 1);
            return;
        }
        p += word;
    }
}

static void show_clients(struct page *p, const struct top_sample *s)
{
    line(p, "%8s  %-28s %-16s %8s %8s  %-18s", "client", "address", "name", "age s", "idle s",
         "last command");
    for (const char *at = s->client_list; *at;) {
        size_t len = strcspn(at, "\r\n");
        char one[1024], id[24], address[64], name[64], since[24], idle[24], command[48];
        snprintf(one, sizeof one, "%.*s", (int)(len < sizeof one ? len : sizeof one - 1), at);
        field(one, "id", id, sizeof id);
        field(one, "addr", address, sizeof address);
        field(one, "name", name, sizeof name);
        field(one, "age", since, sizeof since);
        field(one, "idle", idle, sizeof idle);
        field(one, "cmd", command, sizeof command);
        line(p, "%8s  %-28.28s %-16.16s %8s %8s  %-18.18s", id, address, name, since, idle,
             command);
        at += len;
        at += strspn(at, "\r\n");
    }
}

void top_print_text(FILE *f, const char *uri, const struct top_sample *s, const struct top_rates *r,
                    unsigned rows, unsigned columns, const char *end)
{
    struct page p = {.f = f, .end = end, .rows = rows, .columns = columns};
    char a[32], b[32], now[16], all[16];
    line(&p, "cairn %s at %s  up %s  %.0f clients  cpu %.0f %%", s->version, uri, age(s->uptime, a),
         s->clients, 100 * r->cpu);
    line(&p, "rates   %.0f commands/s  in %s/s  out %s/s  gets %.0f/s  puts %.0f/s  errors %.0f/s",
         r->commands, size_of(r->net_in, a), size_of(r->net_out, b), r->gets, r->puts, r->errors);
    line(&p, "hits    %s of tokens asked now, %s since the start (%.0f of %.0f)",
         percent(r->hit_share, now), percent(r->hit_share_all, all), s->tokens_hit,
         s->tokens_asked);
    line(&p, "times   command p50 %.0f us p99 %.0f us  get from ram p99 %.0f us  load from disk "
         "p99 %.0f us", s->command_p50_ns / 1e3, s->command_p99_ns / 1e3, s->ram_get_p99,
         s->disk_load_p99);
    show_tiers(&p, s, r);
    line(&p, "evicted %.0f/s  %s/s  %.0f since the start", r->evicted, size_of(r->evicted_bytes, a),
         s->evicted);
    line(&p, "leases  %.0f/s  oldest %.1f s  %.0f lost with their client  damage found %.0f",
         r->leases, s->oldest_lease_ms / 1e3, s->leases_lost, s->bad_bytes);
    line(&p, "%s", "");
    show_clients(&p, s);
}

void top_print_json(FILE *f, const struct top_sample *s, const struct top_rates *r)
{
    fputs("{\"version\": ", f);
    json_string(f, s->version);
    fputs(", \"run_id\": ", f);
    json_string(f, s->run_id);
#define TOP_VALUE(name, source) fprintf(f, ", \"" #name "\": %.15g", s->name);
    TOP_FIGURES(TOP_VALUE)
#undef TOP_VALUE
    fputs(", \"rates\": {", f);
#define RATES(X) \
    X(commands) X(errors) X(net_in) X(net_out) X(gets) X(puts) X(evicted) X(evicted_bytes) \
    X(leases) X(disk_read) X(disk_written) X(cpu)
#define TOP_RATE(name) fprintf(f, "\"" #name "\": %.6g, ", r->name);
    RATES(TOP_RATE)
#undef TOP_RATE
    fputs("\"hit_share\": ", f);
    json_number(f, r->hit_share < 0 ? __builtin_nan("") : r->hit_share);
    fputs(", \"hit_share_all\": ", f);
    json_number(f, r->hit_share_all < 0 ? __builtin_nan("") : r->hit_share_all);
    fputs("}}\n", f);
}

void top_absent_text(FILE *f, const char *uri, const struct top_absence *a, unsigned columns,
                     const char *end)
{
    struct page p = {.f = f, .end = end, .columns = columns};
    char since[32];
    line(&p, "cairn at %s  GONE for %s, tried again at each look", uri, age(a->seconds, since));
    line(&p, "%s", a->why);
}

void top_absent_json(FILE *f, const struct top_absence *a)
{
    fprintf(f, "{\"gone\": true, \"seconds\": %.3f, \"why\": ", a->seconds);
    json_string(f, a->why);
    fputs("}\n", f);
}
