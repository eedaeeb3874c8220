#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tools/json.h"
#include "tools/top.h"

struct figure {
    const char *source;
    size_t offset;
};

static const struct figure figures[] = {
#define TOP_ROW(name, source) {source, offsetof(struct top_sample, name)},
    TOP_FIGURES(TOP_ROW)
#undef TOP_ROW
};

static void set_figure(struct top_sample *s, const char *prefix, const char *name,
                       const char *value)
{
    size_t len = strlen(prefix);
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++) {
        const char *source = figures[i].source;
        if (strncmp(source, prefix, len) || strcmp(source + len, name))
            continue;
        double *at = (double *)((char *)s + figures[i].offset);
        *at = !strcmp(value, "true") ? 1 : strtod(value, NULL);
    }
}

static void take_leaf(void *arg, const char *path, const char *value, bool is_string)
{
    (void)is_string;
    set_figure(arg, "", path, value);
}

/* "name:value" lines; cut in place. */
static void take_info(struct top_sample *s, char *text)
{
    for (char *line = strtok(text, "\r\n"); line; line = strtok(NULL, "\r\n")) {
        char *value = strchr(line, ':');
        if (!value)
            continue;
        *value++ = 0;
        set_figure(s, "info:", line, value);
        if (!strcmp(line, "cairn_version"))
            snprintf(s->version, sizeof s->version, "%s", value);
        else if (!strcmp(line, "run_id"))
            snprintf(s->run_id, sizeof s->run_id, "%s", value);
    }
}

/* The text that a command answers with, own memory; NULL and why. */
static char *ask_text(struct node_call *c, const struct cairn_iov *args, uint32_t count, char *why,
                      size_t why_cap)
{
    const struct node_reply *r = node_call_run(c, args, count, why, why_cap);
    if (!r)
        return NULL;
    if (r->kind == '+')
        return strdup(r->text);
    snprintf(why, why_cap, "the node answers to %s: %s", (const char *)args[0].base,
             r->text ? r->text : "no text");
    return NULL;
}

bool top_take(struct node_call *c, struct top_sample *ret, char *why, size_t why_cap)
{
    *ret = (struct top_sample){0};
    char *info = ask_text(c, NODE_ARGS(NODE_WORD("INFO")), why, why_cap);
    if (!info)
        return false;
    take_info(ret, info);
    free(info);
    char *stats = ask_text(c, NODE_ARGS(NODE_WORD("CAIRN.STATS")), why, why_cap);
    bool ok = stats && json_walk(stats, take_leaf, ret);
    if (stats && !ok)
        snprintf(why, why_cap, "the answer to CAIRN.STATS is no JSON: is it a cairnd?");
    free(stats);
    if (!ok)
        return false;
    ret->client_list = ask_text(c, NODE_ARGS(NODE_WORD("CLIENT"), NODE_WORD("LIST")), why, why_cap);
    ret->at_ns = cairn_now_ns();
    return ret->client_list != NULL;
}

void top_free(struct top_sample *s)
{
    free(s->client_list);
    s->client_list = NULL;
}

static double share(double hit, double asked)
{
    return asked > 0 ? hit / asked : -1;
}

void top_compare(const struct top_sample *before, const struct top_sample *now,
                 struct top_rates *ret)
{
    /* Another start of the node counts from zero. */
    static const struct top_sample zero;
    const struct top_sample *b = strcmp(before->run_id, now->run_id) ? &zero : before;
    double seconds = (double)(now->at_ns - before->at_ns) / 1e9;
    double s = seconds > 0 ? seconds : 1;
    *ret = (struct top_rates){
        .commands = (now->commands - b->commands) / s,
        .errors = (now->errors - b->errors) / s,
        .net_in = (now->net_in - b->net_in) / s,
        .net_out = (now->net_out - b->net_out) / s,
        .gets = (now->get_ram + now->get_disk - b->get_ram - b->get_disk) / s,
        .puts = (now->put_stored + now->put_replaced - b->put_stored - b->put_replaced) / s,
        .evicted = (now->evicted - b->evicted) / s,
        .evicted_bytes = (now->evicted_bytes - b->evicted_bytes) / s,
        .leases = (now->leases_taken - b->leases_taken) / s,
        .disk_read = (now->disk_read - b->disk_read) / s,
        .disk_written = (now->disk_written - b->disk_written) / s,
        .cpu = (now->cpu_user + now->cpu_sys - b->cpu_user - b->cpu_sys) / s,
        .hit_share = share(now->tokens_hit - b->tokens_hit, now->tokens_asked - b->tokens_asked),
        .hit_share_all = share(now->tokens_hit, now->tokens_asked)};
}
