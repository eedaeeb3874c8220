/* Statistics: the node's, with what this client saw itself as one more member, "client". */
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "connector/remote.h"

struct text {
    char *out;
    size_t cap, len;
};

__attribute__((format(printf, 2, 3))) static void add(struct text *t, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    bool room = t->len < t->cap;
    int n = vsnprintf(room ? t->out + t->len : NULL, room ? t->cap - t->len : 0, fmt, args);
    va_end(args);
    t->len += n > 0 ? (size_t)n : 0;
}

static void add_counter(struct text *t, const char *name, _Atomic uint64_t *counter)
{
    add(t, "\"%s\": %" PRIu64 ", ", name, atomic_load_explicit(counter, memory_order_relaxed));
}

static void add_connections(struct text *t, struct remote *r)
{
    uint32_t attached = 0;
    pthread_mutex_lock(&r->lock);
    uint32_t open = r->open;
    for (struct remote_conn *c = r->idle; c; c = c->next)
        attached += c->arena != NULL;
    pthread_mutex_unlock(&r->lock);
    add(t, "\"connections\": %u, \"attached_idle\": %u, ", open, attached);
}

/* What a node says may be anything: outside ASCII it is not taken for UTF-8. */
static void add_string(struct text *t, const char *name, const char *value)
{
    add(t, "\"%s\": \"", name);
    for (const unsigned char *p = (const unsigned char *)value; *p; p++) {
        if (*p == '"' || *p == '\\')
            add(t, "\\%c", *p);
        else if (*p < 0x20 || *p >= 0x7f)
            add(t, "\\u%04x", *p);
        else
            add(t, "%c", *p);
    }
    add(t, "\", ");
}

/* In a word, whether the node takes this client, and what it says if not. */
static void add_state(struct text *t, struct remote *r)
{
    char why[sizeof r->refusal] = "";
    bool refuses = remote_refusal(&r->base, why, sizeof why) > 0;
    bool here = atomic_load_explicit(&r->breaker.closed, memory_order_relaxed);
    add_string(t, "state", refuses ? "refuses" : here ? "here" : "away");
    add_string(t, "refusal", why);
}

static void add_breaker(struct text *t, struct remote *r)
{
    bool closed = atomic_load_explicit(&r->breaker.closed, memory_order_relaxed);
    uint64_t wait = cairn_breaker_wait(&r->breaker, cairn_now_ns());
    add(t, "\"breaker\": \"%s\", \"retry_ms\": %" PRIu64 ", ",
        closed ? "closed" : wait ? "open" : "half-open", (uint64_t)(wait / CAIRN_NS_PER_MS));
    add_counter(t, "breaker_opens", &r->breaker.opens);
}

/* Keys that this client did not get, by cause: what the node said, or what did not verify here. */
static void add_misses(struct text *t, struct remote *r)
{
    add(t, "\"misses\": {");
    for (int i = CAIRN_CAUSE_NONE + 1; i < CAIRN_CAUSE_COUNT; i++)
        add(t, "%s\"%s\": %" PRIu64, i == CAIRN_CAUSE_NONE + 1 ? "" : ", ",
            cairn_cause_name((enum cairn_cause)i),
            atomic_load_explicit(&r->counts.misses[i], memory_order_relaxed));
    add(t, "}");
}

static void add_client(struct text *t, struct remote *r)
{
    uint64_t oldest;
    uint32_t leases;
    remote_leases_count(r, &leases, &oldest);
    add(t, "\"client\": {\"node\": \"%s\", ", r->o.address);
    add_state(t, r);
    add_counter(t, "calls", &r->counts.calls);
    add_counter(t, "refused", &r->counts.refused);
    add_counter(t, "timeouts", &r->counts.timeouts);
    add_counter(t, "lost", &r->counts.lost);
    add_counter(t, "busy", &r->counts.busy);
    add_counter(t, "unknown", &r->counts.unknown);
    add_counter(t, "dials", &r->counts.dials);
    add_counter(t, "dials_failed", &r->counts.dials_failed);
    add_counter(t, "dials_refused", &r->counts.dials_refused);
    add_connections(t, r);
    add_breaker(t, r);
    add(t, "\"leases\": %u, \"oldest_lease_ms\": %" PRIu64 ", ", leases,
        (uint64_t)(oldest / CAIRN_NS_PER_MS));
    add_counter(t, "copied_bytes", &r->copied);
    add_misses(t, r);
    add(t, "}}");
}

size_t remote_stats(struct cairn_backend *b, char *out, size_t cap)
{
    struct remote *r = (struct remote *)b;
    struct text t = {out, cap, 0};
    char *node = NULL;
    remote_leases_expire(r);
    if (remote_text(r, "CAIRN.STATS", NULL, 0, &node) && strrchr(node, '}'))
        *strrchr(node, '}') = '\0';
    if (node && node[0] == '{' && node[1])
        add(&t, "%s, ", node);
    else
        add(&t, "{");
    free(node);
    add_client(&t, r);
    return t.len;
}
