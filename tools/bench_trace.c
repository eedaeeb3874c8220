/* `cairn bench replay`: the store's own eviction policies on a request trace, no bytes moved. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage/policy.h"
#include "tools/bench.h"
#include "tools/bench_replay.h"

#define CAPACITIES_MAX 16u

static bool parse_capacities(const char *text, uint64_t *out, size_t *ret_count)
{
    size_t n = 0;
    for (const char *p = text; *p; p += *p == ',') {
        char *end;
        unsigned long long v = strtoull(p, &end, 10);
        if (end == p || (*end && *end != ',') || !v || v > UINT32_MAX / 2 ||
            n == CAPACITIES_MAX - 1)
            return bench_fail("capacity '%s' is not a list of numbers: write --capacity "
                              "1000,10000, at most %u", text, CAPACITIES_MAX - 1);
        out[n++] = v;
        p = end;
    }
    *ret_count = n;
    return n || bench_fail("no capacity given: write --capacity 1000,10000");
}

static void add_result(struct bench *b, const struct cairn_replay_result *r, double unbounded)
{
    struct bench_row row = bench_row("share", "token hit rate of an endless cache");
    snprintf(row.name, sizeof row.name, "replay-%s-%llu", r->policy,
             (unsigned long long)r->capacity);
    row.value = r->token_hit_rate;
    row.limit = unbounded;
    row.ratio = row.value / row.limit;
    bench_add(b, &row);
    row = bench_row("GB", "");
    snprintf(row.name, sizeof row.name, "replay-%s-%llu-written", r->policy,
             (unsigned long long)r->capacity);
    row.value = (double)r->bytes_written / 1e9;
    bench_add(b, &row);
}

bool bench_replay(struct bench *b, const char *trace)
{
    uint64_t capacities[CAPACITIES_MAX];
    size_t count = 0;
    uint32_t policies;
    if (!parse_capacities(b->o->capacities, capacities, &count))
        return false;
    cairn_policy_all(&policies);
    struct cairn_replay_opts o = {.capacities = capacities, .capacity_count = count,
                                  .policy_count = policies, .chunk_bytes = b->o->chunk_bytes};
    struct cairn_replay_result *r = calloc((count + 1) * policies, sizeof *r);
    struct cairn_replay_trace t = {0};
    char err[512] = "";
    if (!r)
        return bench_fail("no memory for the results");
    cairn_status s = cairn_bench_replay(trace, &o, r, &t, err, sizeof err);
    if (s == CAIRN_OK) {
        uint64_t endless = t.distinct + 1;
        struct cairn_replay_opts all = o;
        all.capacities = &endless;
        all.capacity_count = 1;
        s = cairn_bench_replay(trace, &all, r + count * policies, NULL, err, sizeof err);
    }
    for (size_t i = 0; s == CAIRN_OK && i < count * policies; i++)
        add_result(b, &r[i], r[count * policies].token_hit_rate);
    free(r);
    return s == CAIRN_OK || bench_fail("%s", err[0] ? err : cairn_status_name(s));
}
