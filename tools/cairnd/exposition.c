#include "tools/cairnd/exposition.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#define BOUND_FIRST 10u /* 2^10 ns = 1.02 us */
#define BOUNDS 26u      /* to 2^35 ns = 34.4 s */

static void add_escaped(struct text *t, const char *s, const char *quoted)
{
    for (; *s; s++) {
        if (*s == '\n')
            text_add(t, "\\n");
        else if (*s == '\\' || *s == *quoted)
            text_add(t, "\\%c", *s);
        else
            text_add(t, "%c", *s);
    }
}

struct metric metric_begin(struct text *t, const char *name, enum metric_type type,
                           const char *help)
{
    static const char *const types[] = {"counter", "gauge", "histogram"};
    text_add(t, "# HELP %s ", name);
    add_escaped(t, help, "");
    text_add(t, "\n# TYPE %s %s\n", name, types[type]);
    return (struct metric){t, name};
}

static void add_head(const struct metric *m, const char *suffix, const struct metric_labels *labels,
                     const char *le)
{
    text_add(m->to, "%s%s", m->name, suffix);
    const char *open = "{";
    for (int i = 0; labels && i < METRIC_LABELS_MAX && labels->pair[i][0]; i++) {
        text_add(m->to, "%s%s=\"", open, labels->pair[i][0]);
        add_escaped(m->to, labels->pair[i][1] ? labels->pair[i][1] : "", "\"");
        text_add(m->to, "\"");
        open = ",";
    }
    if (le)
        text_add(m->to, "%sle=\"%s\"", open, le);
    text_add(m->to, "%s ", le || *open == ',' ? "}" : "");
}

void metric_count(const struct metric *m, const struct metric_labels *labels, uint64_t value)
{
    add_head(m, "", labels, NULL);
    text_add(m->to, "%" PRIu64 "\n", value);
}

static void add_double(struct text *t, double value)
{
    if (isnan(value))
        text_add(t, "NaN\n");
    else if (isinf(value))
        text_add(t, "%sInf\n", value < 0 ? "-" : "+");
    else
        text_add(t, "%.17g\n", value);
}

void metric_value(const struct metric *m, const struct metric_labels *labels, double value)
{
    add_head(m, "", labels, NULL);
    add_double(m->to, value);
}

void metric_hist(const struct metric *m, const struct metric_labels *labels,
                 const struct cairn_hist *h)
{
    uint64_t bounds[BOUNDS], below[BOUNDS];
    for (uint32_t i = 0; i < BOUNDS; i++)
        bounds[i] = (1ull << (BOUND_FIRST + i)) - 1;
    uint64_t sum_ns = atomic_load_explicit(&h->sum_ns, memory_order_relaxed);
    uint64_t total = cairn_hist_cumulate(h, bounds, BOUNDS, below);
    for (uint32_t i = 0; i < BOUNDS; i++) {
        char le[32];
        snprintf(le, sizeof le, "%.11g", (double)bounds[i] / 1e9);
        add_head(m, "_bucket", labels, le);
        text_add(m->to, "%" PRIu64 "\n", below[i]);
    }
    add_head(m, "_bucket", labels, "+Inf");
    text_add(m->to, "%" PRIu64 "\n", total);
    add_head(m, "_sum", labels, NULL);
    add_double(m->to, (double)sum_ns / 1e9);
    add_head(m, "_count", labels, NULL);
    text_add(m->to, "%" PRIu64 "\n", total);
}
