/* Prometheus text exposition, version 0.0.4: families of samples, written in order.
 * https://prometheus.io/docs/instrumenting/exposition_formats/ */
#ifndef CAIRN_TOOLS_CAIRND_EXPOSITION_H
#define CAIRN_TOOLS_CAIRND_EXPOSITION_H

#include <stdint.h>

#include "base/hist.h"
#include "tools/cairnd/text.h"

enum metric_type { METRIC_COUNTER, METRIC_GAUGE, METRIC_HISTOGRAM };

#define METRIC_LABELS_MAX 4

/* Names and values one after the other; ends at the first NULL name. */
struct metric_labels {
    const char *pair[METRIC_LABELS_MAX][2];
};
#define LABELS(...) (&(const struct metric_labels){.pair = {__VA_ARGS__}})

/* A family: what follows until the next one are its samples. name and help are lent meanwhile. */
struct metric {
    struct text *to;
    const char *name;
};
struct metric metric_begin(struct text *t, const char *name, enum metric_type type,
                           const char *help);
/* labels may be NULL. */
void metric_count(const struct metric *m, const struct metric_labels *labels, uint64_t value);
void metric_value(const struct metric *m, const struct metric_labels *labels, double value);
/* In seconds, at most METRIC_LABELS_MAX - 1 labels. Its bounds are the powers of two from 1 us to
 * 34 s less a nanosecond, where the histogram's own buckets end, so that every count is exact. */
void metric_hist(const struct metric *m, const struct metric_labels *labels,
                 const struct cairn_hist *h);

#endif
