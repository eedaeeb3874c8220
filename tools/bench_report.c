#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/options.h"
#include "tools/bench.h"
#include "tools/json.h"

#define GOALS_MAX 96

extern const char bench_goals[]; /* tools/bench/goals.json, embedded by the build */

struct bench_row bench_row(const char *unit, const char *limit_name)
{
    struct bench_row r = {.unit = unit, .value = NAN, .limit = NAN, .ratio = NAN, .p50_us = NAN,
                          .p99_us = NAN, .p999_us = NAN, .cpu_s_per_gb = NAN};
    snprintf(r.limit_name, sizeof r.limit_name, "%s", limit_name);
    return r;
}

void bench_name(struct bench_row *r, const char *prefix, uint64_t size)
{
    if (size % (1u << 20) == 0)
        snprintf(r->name, sizeof r->name, "%s-%lluMiB", prefix, (unsigned long long)size >> 20);
    else
        snprintf(r->name, sizeof r->name, "%s-%lluKiB", prefix, (unsigned long long)size >> 10);
}

void bench_print_header(void)
{
    printf("%-32s %10s %-5s %10s %7s %10s %10s %10s %8s  %s\n", "figure", "value", "unit", "limit",
           "ratio", "p50 us", "p99 us", "p99.9 us", "cpu s/GB", "limit is");
}

static void print_cell(int width, double v)
{
    if (isfinite(v))
        printf(" %*.4g", width, v);
    else
        printf(" %*s", width, "-");
}

void bench_add(struct bench *b, const struct bench_row *r)
{
    if (b->count == BENCH_ROWS_MAX)
        return;
    b->rows[b->count++] = *r;
    if (b->o->json) {
        if (isatty(STDERR_FILENO))
            fprintf(stderr, "measured %s\n", r->name);
        return;
    }
    printf("%-32s", r->name);
    print_cell(10, r->value);
    printf(" %-5s", r->unit);
    print_cell(10, r->limit);
    print_cell(7, r->ratio);
    print_cell(10, r->p50_us);
    print_cell(10, r->p99_us);
    print_cell(10, r->p999_us);
    print_cell(8, r->cpu_s_per_gb);
    printf("  %s\n", r->limit_name);
    fflush(stdout);
}

static void json_field(const char *name, double v)
{
    printf(", \"%s\": ", name);
    json_number(stdout, v);
}

void bench_print_json(const struct bench *b)
{
    printf("[");
    for (uint32_t i = 0; i < b->count; i++) {
        const struct bench_row *r = &b->rows[i];
        printf("%s\n {\"name\": ", i ? "," : "");
        json_string(stdout, r->name);
        json_field("value", r->value);
        printf(", \"unit\": ");
        json_string(stdout, r->unit);
        json_field("limit", r->limit);
        printf(", \"limit_name\": ");
        json_string(stdout, r->limit_name);
        json_field("ratio", r->ratio);
        json_field("p50_us", r->p50_us);
        json_field("p99_us", r->p99_us);
        json_field("p999_us", r->p999_us);
        json_field("cpu_s_per_gb", r->cpu_s_per_gb);
        printf("}");
    }
    puts("\n]");
}

struct goal {
    char name[56], metric[8]; /* value, ratio, or cpu: seconds a GB */
    bool max;                 /* else a lower bound */
    double bound;
};

struct goals {
    struct goal list[GOALS_MAX];
    uint32_t count;
};

static void take_goal(void *arg, const char *path, const char *value, bool is_string)
{
    struct goals *g = arg;
    (void)is_string;
    char *field;
    unsigned long i = strtoul(path, &field, 10);
    if (*field != '.' || i >= GOALS_MAX)
        return;
    struct goal *goal = &g->list[i];
    g->count = i + 1 > g->count ? (uint32_t)i + 1 : g->count;
    field++;
    if (!strcmp(field, "name"))
        snprintf(goal->name, sizeof goal->name, "%s", value);
    else if (!strcmp(field, "metric"))
        snprintf(goal->metric, sizeof goal->metric, "%s", value);
    else if (!strcmp(field, "direction"))
        goal->max = !strcmp(value, "max");
    else if (!strcmp(field, "bound"))
        goal->bound = strtod(value, NULL);
}

static const struct bench_row *find_row(const struct bench *b, const char *name)
{
    for (uint32_t i = 0; i < b->count; i++)
        if (!strcmp(b->rows[i].name, name))
            return &b->rows[i];
    return NULL;
}

static bool meets(const struct goal *g, const struct bench_row *r)
{
    bool value = !strcmp(g->metric, "value"), cpu = !strcmp(g->metric, "cpu");
    double got = value ? r->value : cpu ? r->cpu_s_per_gb : r->ratio;
    const char *unit = value ? r->unit : cpu ? "s/GB" : "";
    if (isfinite(got) && (g->max ? got <= g->bound : got >= g->bound))
        return true;
    fprintf(stderr, "missed: %s: %s %.4g, the goal is %s %.4g%s%s\n", g->name, g->metric, got,
            g->max ? "at most" : "at least", g->bound, *unit ? " " : "", unit);
    return false;
}

/* Those figures are checked by the program that measures them, deploy/bench_engine.py. */
static bool is_of_engine(const struct goal *g)
{
    return strncmp(g->name, "engine-", strlen("engine-")) == 0;
}

/* Nor is a machine without one asked for the figures of a GPU; its absence was said. */
static bool is_of_absent_gpu(const struct goal *g)
{
    char why[300];
    return strncmp(g->name, "gpu-", strlen("gpu-")) == 0 && bench_gpu_missing(why, sizeof why);
}

bool bench_check(const struct bench *b, bool all)
{
    struct goals g = {0};
    if (!json_walk(bench_goals, take_goal, &g))
        return bench_fail("tools/bench/goals.json is not JSON: correct it and build again");
    uint32_t measured = 0, missed = 0;
    for (uint32_t i = 0; i < g.count; i++) {
        const struct bench_row *r = find_row(b, g.list[i].name);
        if (!r && (!all || is_of_engine(&g.list[i]) || is_of_absent_gpu(&g.list[i])))
            continue;
        if (!r)
            fprintf(stderr, "missed: %s: not measured\n", g.list[i].name);
        measured++;
        missed += !r || !meets(&g.list[i], r);
    }
    fprintf(stderr, "%u of %u goals met\n", measured - missed, measured);
    return !missed;
}
