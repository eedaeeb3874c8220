/* CAIRN.CLEAR. What is to go is found by walking over all chunks, in bounded batches; one walk at a
 * time in the whole node. Strings are another space, and stay. */
#include <stdlib.h>
#include <string.h>

#include "tools/cairnd/cmd_kv.h"
#include "tools/cairnd/kv_pins.h"

#define BATCH 1024u
#define CLEAR_NS (60 * CAIRN_NS_PER_S) /* longer than any other command: it is an operator's */
#define EDGES_FIRST 4096u
#define EDGES_MAX (4u * 1024 * 1024) /* 192 MiB while it runs */

struct clear {
    struct call *c;
    struct cairn_vault *vault;
    uint64_t deadline_ns, deleted;
    struct cairn_key wanted;    /* a fingerprint, or the first key */
    struct cairn_key *keys;     /* BATCH */
    uint32_t count;
};

static bool time_up(const struct clear *cl)
{
    return cairn_now_ns() >= cl->deadline_ns ||
           atomic_load_explicit(&cl->c->node->stopping, memory_order_relaxed);
}

/* Deletes the batch. false: an error was written. */
static bool delete_batch(struct clear *cl)
{
    cairn_status results[BATCH];
    if (cl->count == 0)
        return true;
    cairn_vault_delete(cl->vault, cl->keys, cl->count, cl->deadline_ns, results);
    cairn_status failed = CAIRN_OK;
    for (uint32_t i = 0; i < cl->count; i++) {
        if (results[i] == CAIRN_OK) {
            cl->deleted++;
            kv_pins_remove(cl->c->node->kv->pins, &cl->keys[i]);
        } else if (results[i] != CAIRN_MISS) {
            failed = results[i];
        }
    }
    cl->count = 0;
    if (!failed && !time_up(cl))
        return true;
    kv_error(cl->c, failed ? "a delete failed (%s) after %llu values were deleted; ask again"
                           : "the time was up (%s) after %llu values were deleted; ask again",
             cairn_status_name(failed ? failed : CAIRN_TIMEOUT), (unsigned long long)cl->deleted);
    return false;
}

/* Walks on from *cursor with fn, over a batch at most. false: an error was written. */
static bool walk(struct clear *cl, uint32_t *cursor,
                 bool (*fn)(void *arg, const struct cairn_scan_item *item), void *arg)
{
    cairn_status st = cairn_vault_scan(cl->vault, 0, cursor, BATCH, cl->deadline_ns, fn, arg);
    if (!st && !time_up(cl))
        return true;
    kv_error(cl->c, "not all chunks were looked at (%s), %llu were deleted; ask again",
             cairn_status_name(st ? st : CAIRN_TIMEOUT), (unsigned long long)cl->deleted);
    return false;
}

/* --- by identity --- */

static bool take_identity(void *arg, const struct cairn_scan_item *item)
{
    struct clear *cl = arg;
    if (memcmp(item->identity, cl->wanted.bytes, sizeof item->identity) == 0)
        cl->keys[cl->count++] = item->key;
    return true;
}

static bool clear_identity(struct clear *cl)
{
    uint32_t cursor = 0;
    do {
        if (!walk(cl, &cursor, take_identity, cl) || !delete_batch(cl))
            return false;
    } while (cursor);
    return true;
}

/* --- by prefix --- */

/* A chunk and the one it follows, of which 16 bytes are enough to find it again. */
struct edge {
    struct cairn_key key;
    uint8_t parent[16];
};

struct tree {
    struct edge *edges;
    uint32_t count, capacity;
    bool full;
};

static bool take_edge(void *arg, const struct cairn_scan_item *item)
{
    static const struct cairn_key none;
    struct tree *t = arg;
    if (memcmp(&item->parent, &none, sizeof none) == 0)
        return true;
    if (t->count == t->capacity) {
        uint32_t capacity = t->capacity ? t->capacity * 2 : EDGES_FIRST;
        struct edge *edges = capacity <= EDGES_MAX
                                 ? realloc(t->edges, capacity * sizeof *edges) : NULL;
        if (!edges) {
            t->full = true;
            return false;
        }
        t->edges = edges;
        t->capacity = capacity;
    }
    struct edge *e = &t->edges[t->count++];
    e->key = item->key;
    memcpy(e->parent, item->parent.bytes, sizeof e->parent);
    return true;
}

static int by_parent(const void *a, const void *b)
{
    return memcmp(((const struct edge *)a)->parent, ((const struct edge *)b)->parent,
                  sizeof ((const struct edge *)a)->parent);
}

/* The first edge from this parent, or where it would be. */
static uint32_t first_child(const struct tree *t, const struct cairn_key *parent)
{
    uint32_t low = 0, high = t->count;
    while (low < high) {
        uint32_t mid = low + (high - low) / 2;
        if (memcmp(t->edges[mid].parent, parent->bytes, sizeof t->edges[mid].parent) < 0)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* Adds the children of `parent` to those still to be followed: order[*end...]. A chunk is in the
 * tree twice only if it was replaced while the walk went on, or by a client's design; `seen`
 * stops both. */
static void follow(const struct tree *t, const struct cairn_key *parent, bool *seen,
                   uint32_t *order, uint32_t *end)
{
    for (uint32_t i = first_child(t, parent); i < t->count; i++) {
        if (memcmp(t->edges[i].parent, parent->bytes, sizeof t->edges[i].parent) != 0)
            return;
        if (!seen[i])
            order[(*end)++] = i;
        seen[i] = true;
    }
}

/* All that follow the wanted key, parents before children; then deletes them, children first, so
 * that a clear that is broken off leaves no chunk behind that its next run would not reach. */
static bool delete_tree(struct clear *cl, struct tree *t)
{
    bool *seen = calloc(t->count + 1, sizeof *seen);
    uint32_t *order = malloc((t->count + 1) * sizeof *order);
    uint32_t end = 0;
    bool ok = seen && order;
    if (!ok)
        kv_error(cl->c, "no memory for %u chunks", t->count);
    if (t->count)
        qsort(t->edges, t->count, sizeof *t->edges, by_parent);
    if (ok)
        follow(t, &cl->wanted, seen, order, &end);
    for (uint32_t i = 0; ok && i < end; i++)
        follow(t, &t->edges[order[i]].key, seen, order, &end);
    while (ok && end > 0) {
        cl->keys[cl->count++] = t->edges[order[--end]].key;
        ok = cl->count < BATCH || delete_batch(cl);
    }
    if (ok) {
        cl->keys[cl->count++] = cl->wanted;
        ok = delete_batch(cl);
    }
    free(seen);
    free(order);
    return ok;
}

/* Again until nothing more is found: chunks may be put while it walks. */
static bool clear_prefix(struct clear *cl)
{
    uint64_t before;
    bool ok;
    do {
        struct tree t = {.count = 0};
        uint32_t cursor = 0;
        before = cl->deleted;
        do
            ok = walk(cl, &cursor, take_edge, &t);
        while (ok && cursor && !t.full);
        if (ok && t.full) {
            kv_error(cl->c, "more than %u chunks are held, or no memory to sort them", EDGES_MAX);
            ok = false;
        }
        if (ok)
            ok = delete_tree(cl, &t);
        free(t.edges);
    } while (ok && cl->deleted > before);
    return ok;
}

/* --- the command --- */

static enum call_flow clear_all(struct call *c)
{
    uint64_t before = cairn_vault_space_count(c->node->vault, 0);
    cairn_status st = cairn_vault_clear_space(c->node->vault, 0, c->deadline_ns);
    if (st)
        return kv_error(c, "the chunks were not cleared (%s); ask again", cairn_status_name(st));
    kv_pins_clear(c->node->kv->pins);
    cairn_out_int(c->out, (int64_t)before);
    return CALL_DONE;
}

enum call_flow kv_clear_run(struct call *c)
{
    struct clear cl = {.c = c, .vault = c->node->vault,
                       .deadline_ns = cairn_deadline_ns(CLEAR_NS)};
    bool identity = c->argc == 3 && call_is(c, 1, "IDENTITY");
    bool prefix = c->argc == 3 && call_is(c, 1, "PREFIX");
    bool all = c->argc == 2 && call_is(c, 1, "ALL");
    if (!identity && !prefix && !all)
        return kv_error(c, "say IDENTITY and a fingerprint, PREFIX and a key, or ALL");
    if (!all && !kv_key(c, 2, &cl.wanted))
        return CALL_DONE;
    if (!c->may_wait)
        return CALL_WAITS;
    if (all)
        return clear_all(c);
    if (pthread_mutex_trylock(&c->node->kv->clear_lock))
        return kv_error(c, "another CAIRN.CLEAR is under way; ask again when it is done");
    cl.keys = malloc(BATCH * sizeof *cl.keys);
    bool ok = cl.keys;
    if (!ok)
        kv_error(c, "no memory");
    else
        ok = identity ? clear_identity(&cl) : clear_prefix(&cl);
    pthread_mutex_unlock(&c->node->kv->clear_lock);
    free(cl.keys);
    if (ok)
        cairn_out_int(c->out, (int64_t)cl.deleted);
    return CALL_DONE;
}
