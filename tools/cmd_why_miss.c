/* Why does this prompt miss here? Asks the node about the first chunk that it does not hold, about
 * the identity, and whether the same tokens are held under another name. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/json.h"
#include "tools/node_call.h"
#include "tools/prompt.h"
#include "transport/wire.h"

#define WHY "why-miss"
#define FIELDS_MAX 128u
#define WAYS_MAX 8u

struct options {
    struct node_where node;
    struct prompt_options prompt;
    char key[80];
    bool json;
};

static const struct cairn_opt options[] = {
    NODE_ROWS(struct options),
    {.name = "key", .type = CAIRN_OPT_STRING, .offset = offsetof(struct options, key), .max = 80,
     .help = "key of one chunk, instead of a file"},
    PROMPT_ROWS(struct options),
    {.name = "json", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, json), .def = "no",
     .help = "print one JSON object"},
    {.name = NULL},
};

struct way_tried {
    const char *name;
    size_t held;
};

struct answer {
    size_t chunks, held;
    struct node_chunk missing; /* of chunk `held` */
    char *identity_json;       /* what CAIRN.WHY says, own memory */
    bool known;
    char differs[256];         /* "kv_dtype: 'bf16' here, 'fp8' there"; empty = none near */
    struct way_tried ways[WAYS_MAX];
    uint32_t way_count;
    char verdict[512];
};

static bool ask_held(struct node_call *c, const struct cairn_key *keys, size_t count, size_t *ret)
{
    const struct node_reply *r =
        node_ask(WHY, c, NODE_ARGS(NODE_WORD("CAIRN.LOOKUP"),
                                   NODE_BYTES(keys, count * sizeof *keys)));
    *ret = r && r->count ? (size_t)node_integer(&r->items[0], 0) : 0;
    return r != NULL;
}

#define UNDER_NEAREST "under the nearest identity"

/* The nearest identity's fields and the differences, out of the answer of CAIRN.WHY. */
struct nearest {
    struct answer *a;
    struct cairn_field fields[FIELDS_MAX];
    size_t count;
    bool whole;
};

static void take_leaf(void *arg, const char *path, const char *value, bool is_string)
{
    struct nearest *n = arg;
    struct answer *a = n->a;
    size_t used = strlen(a->differs);
    const char *last = strrchr(path, '.');
    if (!strcmp(path, "known")) {
        a->known = !strcmp(value, "true");
    } else if (!strncmp(path, "nearest.fields.", 15)) {
        if (n->count == FIELDS_MAX || !strcmp(value, "(hidden)")) {
            n->whole = false;
            return;
        }
        n->fields[n->count++] = (struct cairn_field){strdup(path + 15), strdup(value)};
    } else if (!strncmp(path, "differs.", 8) && last) {
        const char *quote = is_string ? "'" : "";
        const char *shown = is_string ? value : "not given";
        if (!strcmp(last, ".field"))
            snprintf(a->differs + used, sizeof a->differs - used, "%s%s ", used ? "; " : "", value);
        else if (!strcmp(last, ".this"))
            snprintf(a->differs + used, sizeof a->differs - used, "%s%s%s here", quote, shown,
                     quote);
        else if (!strcmp(last, ".nearest"))
            snprintf(a->differs + used, sizeof a->differs - used, ", %s%s%s there", quote, shown,
                     quote);
    }
}

static void free_nearest(struct nearest *n)
{
    for (size_t i = 0; i < n->count; i++) {
        free(node_bytes(n->fields[i].name));
        free(node_bytes(n->fields[i].value));
    }
}

static bool try_way(struct node_call *c, const struct options *o, const struct prompt *p,
                    const char *name, const struct prompt_way *way, struct answer *a)
{
    size_t count = 0, held = 0;
    struct cairn_key *keys = prompt_rename(p, &o->prompt, way, &count);
    bool ok = true;
    if (keys && count && count <= CAIRN_WIRE_KEYS_MAX && a->way_count < WAYS_MAX) {
        ok = ask_held(c, keys, count, &held);
        a->ways[a->way_count++] = (struct way_tried){name, held};
    }
    free(keys);
    return ok;
}

static bool ask_identity(struct node_call *c, const struct options *o, const struct prompt *p,
                         struct answer *a)
{
    size_t len;
    const void *canonical = cairn_identity_canonical(p->identity, &len);
    const struct node_reply *r =
        node_ask(WHY, c, NODE_ARGS(NODE_WORD("CAIRN.WHY"), NODE_BYTES(canonical, len)));
    if (!r)
        return false;
    a->identity_json = r->text ? strdup(r->text) : NULL;
    if (!a->identity_json)
        return true;
    struct nearest n = {.a = a, .whole = true};
    json_walk(a->identity_json, take_leaf, &n);
    cairn_identity *id = NULL;
    bool ok = true;
    if (n.count && n.whole && cairn_identity_create(n.fields, n.count, &id, NULL, 0) == CAIRN_OK)
        ok = try_way(c, o, p, UNDER_NEAREST, &(struct prompt_way){.identity = id}, a);
    cairn_identity_destroy(id);
    free_nearest(&n);
    return ok;
}

static bool try_ways(struct node_call *c, const struct options *o, const struct prompt *p,
                     struct answer *a)
{
    bool secret = o->prompt.domain_file[0] || getenv("CAIRN_DOMAIN_KEY");
    return (!o->prompt.extra[0] ||
            try_way(c, o, p, "without the extras", &(struct prompt_way){.no_extras = true}, a)) &&
           (!o->prompt.parent[0] ||
            try_way(c, o, p, "without the parent", &(struct prompt_way){.no_parent = true}, a)) &&
           (!secret || try_way(c, o, p, "in the public domain",
                               &(struct prompt_way){.public_domain = true}, a)) &&
           try_way(c, o, p, "without the first token", &(struct prompt_way){.skip = 1}, a);
}

static const struct way_tried *best_way(const struct answer *a)
{
    const struct way_tried *best = NULL;
    for (uint32_t i = 0; i < a->way_count; i++)
        if (a->ways[i].held > a->held && (!best || a->ways[i].held > best->held))
            best = &a->ways[i];
    return best;
}

static void judge(struct answer *a, size_t tail_tokens)
{
    const struct way_tried *way = best_way(a);
    size_t cap = sizeof a->verdict;
    if (a->held == a->chunks)
        snprintf(a->verdict, cap, "nothing is missing: every chunk is held");
    else if (a->missing.held)
        snprintf(a->verdict, cap, "it was stored while this was asked");
    else if (a->missing.cause != CAIRN_CAUSE_ABSENT && a->missing.cause != CAIRN_CAUSE_NONE)
        snprintf(a->verdict, cap, "chunk %zu was held and was dropped %.1f s ago: %s", a->held,
                 (double)a->missing.age_ms / 1e3, a->missing.text);
    else if (way && !strcmp(way->name, UNDER_NEAREST))
        snprintf(a->verdict, cap, "the same tokens are held %s (%zu chunks): %s", way->name,
                 way->held, a->differs);
    else if (way)
        snprintf(a->verdict, cap, "the same tokens are held %s (%zu chunks): name them so here or "
                 "there", way->name, way->held);
    else if (!a->known && a->differs[0])
        snprintf(a->verdict, cap, "nothing was ever stored under this identity; nearest: %s",
                 a->differs);
    else if (!a->known)
        snprintf(a->verdict, cap, "nothing was ever stored under this identity, and none is near: "
                 "is it the right node?");
    else if (tail_tokens && a->held + 1 == a->chunks)
        snprintf(a->verdict, cap, "only the tail of %zu tokens is missing: a tail is held only if "
                 "a prompt ended there", tail_tokens);
    else if (a->held)
        snprintf(a->verdict, cap, "the prompt was stored up to chunk %zu: what follows has other "
                 "tokens or extras, or was never stored", a->held - 1);
    else
        snprintf(a->verdict, cap, "the identity is known, and no prompt was stored that begins so: "
                 "other tokens, extras or domain, or dropped longer ago than is remembered");
}

static void print_json(const struct answer *a, const char *key_hex)
{
    printf("{\"chunks\": %zu, \"held\": %zu, ", a->chunks, a->held);
    if (key_hex) {
        printf("\"missing\": {\"chunk\": %zu, \"key\": \"%s\", \"cause\": \"%s\", \"text\": ",
               a->held, key_hex, cairn_cause_name(a->missing.cause));
        json_string(stdout, a->missing.text);
        printf(", \"age_ms\": %" PRId64 "}, ", a->missing.age_ms);
    }
    printf("\"identity\": %s, \"tried\": [", a->identity_json ? a->identity_json : "null");
    for (uint32_t i = 0; i < a->way_count; i++)
        printf("%s{\"way\": \"%s\", \"held\": %zu}", i ? ", " : "", a->ways[i].name,
               a->ways[i].held);
    fputs("], \"verdict\": ", stdout);
    json_string(stdout, a->verdict);
    puts("}");
}

static void print_text(const struct answer *a, const char *key_hex)
{
    printf("%s\n", a->verdict);
    printf("  chunks    %zu of %zu held from the start\n", a->held, a->chunks);
    if (key_hex)
        printf("  missing   chunk %zu, key %s: %s\n", a->held, key_hex, a->missing.text);
    if (a->identity_json)
        printf("  identity  %s%s%s\n", a->known ? "known here" : "never seen here",
               a->differs[0] ? "; nearest: " : "", a->differs);
    for (uint32_t i = 0; i < a->way_count; i++)
        printf("  tried     %s: %zu chunks held\n", a->ways[i].name, a->ways[i].held);
}

static int finish(const struct options *o, struct answer *a, const struct cairn_key *missing)
{
    char hex[65];
    if (missing)
        cli_format_hex(missing->bytes, sizeof missing->bytes, hex);
    if (o->json)
        print_json(a, missing ? hex : NULL);
    else
        print_text(a, missing ? hex : NULL);
    return CLI_OK;
}

static int ask_prompt(const struct options *o, const struct prompt *p, struct node_call *c)
{
    struct answer a = {.chunks = p->count};
    bool ok = ask_held(c, p->keys, p->count, &a.held);
    bool all = a.held == p->count;
    const struct cairn_key *missing = all ? NULL : &p->keys[a.held];
    if (ok && missing)
        ok = node_ask_chunk(WHY, c, missing, &a.missing) && ask_identity(c, o, p, &a) &&
             try_ways(c, o, p, &a);
    judge(&a, p->tokens % cairn_identity_chunk_tokens(p->identity));
    int status = ok ? finish(o, &a, missing) : CLI_FAILED;
    free(a.identity_json);
    return status;
}

static int ask_key(const struct options *o, const struct cairn_key *key, struct node_call *c)
{
    struct answer a = {.chunks = 1};
    if (!node_ask_chunk(WHY, c, key, &a.missing))
        return CLI_FAILED;
    a.held = a.missing.held;
    a.known = true;
    judge(&a, 0);
    if (!a.held && a.missing.cause == CAIRN_CAUSE_ABSENT)
        snprintf(a.verdict, sizeof a.verdict, "no drop of this key is remembered: it was never "
                 "stored, or long ago; a token file and --identity tell more");
    return finish(o, &a, a.held ? NULL : key);
}

static int run(const void *opts, char **args, uint32_t count)
{
    const struct options *o = opts;
    struct cairn_key key;
    struct prompt p;
    struct node_call *c = NULL;
    int status = prompt_or_key(WHY, o->key, &o->prompt, args, count, &key, &p);
    if (status)
        return status;
    status = node_connect(WHY, &o->node, &c);
    if (!status)
        status = p.count ? ask_prompt(o, &p, c) : ask_key(o, &key, c);
    node_call_close(c);
    prompt_free(&p);
    return status;
}

const struct cli_command cli_why_miss = {
    .name = WHY,
    .args = "[TOKENFILE|-]",
    .args_max = 1,
    .options = options,
    .options_size = sizeof(struct options),
    .run = run,
    .help = "why a prompt misses: what part of key or identity differs, or what dropped it",
    .more = PROMPT_MORE,
};
