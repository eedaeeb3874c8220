/* S3-FIFO (Yang et al., SOSP 2023): a small queue that new values pass through, a main queue for
 * those asked for again, and a ghost queue that remembers what left the small one. */
#include <stdlib.h>

#include "base/mem.h"
#include "storage/policy_builtin.h"

#define SLOT_OUT UINT32_MAX
#define FREQ_MAX 3u
#define SMALL_PERCENT 10u
#define GHOST_WAYS 8u

enum { QUEUE_SMALL, QUEUE_MAIN, QUEUE_COUNT };

struct s3_node {
    uint32_t older, newer; /* older == SLOT_OUT: in no queue */
    uint64_t tick;         /* when it entered its queue      */
    uint64_t key_hash;
    uint32_t weight;
    uint8_t queue;
    uint8_t freq;
};

/* Ghosts are a set with an age instead of a list: a ghost whose stamp is more than the limit of
 * insertions old has left the queue. One cache line a bucket. */
struct ghost {
    uint32_t mark; /* of the key's hash, 0: none */
    uint32_t stamp;
};
struct ghost_bucket {
    struct ghost ways[GHOST_WAYS];
};

/* A queue is a ring through nodes[capacity + queue], whose `newer` is its oldest slot. */
struct s3fifo {
    struct cairn_policy base;
    uint32_t capacity;
    uint32_t ghost_buckets;
    uint32_t ghost_clock;
    uint32_t count;
    uint64_t tick;
    uint64_t weight[QUEUE_COUNT];
    struct s3_node *nodes;
    struct ghost_bucket *ghosts;
};

static size_t nodes_len(const struct s3fifo *s)
{
    return ((size_t)s->capacity + QUEUE_COUNT) * sizeof *s->nodes;
}

static size_t ghosts_len(const struct s3fifo *s)
{
    return (size_t)s->ghost_buckets * sizeof *s->ghosts;
}

static struct ghost_bucket *ghost_home(const struct s3fifo *s, uint64_t hash, uint32_t *ret_mark)
{
    hash *= 0x9e3779b97f4a7c15ull;
    hash ^= hash >> 32;
    *ret_mark = (uint32_t)hash | 1;
    return &s->ghosts[(uint32_t)(((hash >> 32) * s->ghost_buckets) >> 32)];
}

static bool ghost_lives(const struct s3fifo *s, const struct ghost *g)
{
    return g->mark && s->ghost_clock - g->stamp <= s->count;
}

static void ghost_add(struct s3fifo *s, uint64_t hash)
{
    uint32_t mark, oldest = 0;
    struct ghost *ways = ghost_home(s, hash, &mark)->ways;
    for (uint32_t i = 0; i < GHOST_WAYS; i++) {
        if (ways[i].mark == mark || !ghost_lives(s, &ways[i])) {
            oldest = i;
            break;
        }
        if (s->ghost_clock - ways[i].stamp > s->ghost_clock - ways[oldest].stamp)
            oldest = i;
    }
    ways[oldest] = (struct ghost){.mark = mark, .stamp = ++s->ghost_clock};
}

/* True once for a key that is remembered. */
static bool ghost_take(struct s3fifo *s, uint64_t hash)
{
    uint32_t mark;
    struct ghost *ways = ghost_home(s, hash, &mark)->ways;
    for (uint32_t i = 0; i < GHOST_WAYS; i++) {
        if (ways[i].mark == mark) {
            bool lives = ghost_lives(s, &ways[i]);
            ways[i].mark = 0;
            return lives;
        }
    }
    return false;
}

static bool slot_in(const struct s3fifo *s, uint32_t slot)
{
    return slot < s->capacity && s->nodes[slot].older != SLOT_OUT;
}

static void node_unlink(struct s3fifo *s, uint32_t slot)
{
    struct s3_node *n = &s->nodes[slot];
    s->nodes[n->older].newer = n->newer;
    s->nodes[n->newer].older = n->older;
    n->older = SLOT_OUT;
    s->weight[n->queue] -= n->weight;
}

static void node_append(struct s3fifo *s, uint32_t slot, uint8_t queue)
{
    struct s3_node *n = &s->nodes[slot], *ring = &s->nodes[s->capacity + queue];
    n->queue = queue;
    n->older = ring->older;
    n->newer = s->capacity + queue;
    n->tick = ++s->tick;
    s->nodes[ring->older].newer = slot;
    ring->older = slot;
    s->weight[queue] += n->weight;
}

static void node_move(struct s3fifo *s, uint32_t slot, uint8_t queue)
{
    node_unlink(s, slot);
    node_append(s, slot, queue);
}

static void s3_destroy(struct cairn_policy *p)
{
    struct s3fifo *s = (struct s3fifo *)p;
    if (!s)
        return;
    if (s->nodes)
        cairn_table_free(s->nodes, nodes_len(s));
    if (s->ghosts)
        cairn_table_free(s->ghosts, ghosts_len(s));
    free(s);
}

static cairn_status s3_create(uint32_t capacity, struct cairn_policy **ret)
{
    if (!capacity || capacity > SLOT_OUT - QUEUE_COUNT)
        return CAIRN_INVAL;
    struct s3fifo *s = cairn_calloc(1, sizeof *s);
    if (!s)
        return CAIRN_NOMEM;
    s->base.ops = &cairn_policy_s3fifo;
    s->capacity = capacity;
    /* Twice the ghosts there may be: few buckets overflow before their ghosts are due. */
    s->ghost_buckets = capacity / (GHOST_WAYS / 2) + 1;
    s->nodes = cairn_table_alloc(nodes_len(s));
    s->ghosts = cairn_table_alloc(ghosts_len(s));
    if (!s->nodes || !s->ghosts) {
        s3_destroy(&s->base);
        return CAIRN_NOMEM;
    }
    for (uint32_t i = 0; i < capacity; i++)
        s->nodes[i].older = SLOT_OUT;
    for (uint32_t q = capacity; q < capacity + QUEUE_COUNT; q++)
        s->nodes[q] = (struct s3_node){.older = q, .newer = q};
    *ret = &s->base;
    return CAIRN_OK;
}

static void s3_insert(struct cairn_policy *p, uint32_t slot, uint64_t key_hash, uint32_t weight)
{
    struct s3fifo *s = (struct s3fifo *)p;
    if (slot >= s->capacity || slot_in(s, slot))
        return;
    struct s3_node *n = &s->nodes[slot];
    n->key_hash = key_hash;
    n->weight = weight;
    n->freq = 0;
    node_append(s, slot, ghost_take(s, key_hash) ? QUEUE_MAIN : QUEUE_SMALL);
    s->count++;
}

static void s3_touch(struct cairn_policy *p, uint32_t slot)
{
    struct s3fifo *s = (struct s3fifo *)p;
    if (slot_in(s, slot) && s->nodes[slot].freq < FREQ_MAX)
        s->nodes[slot].freq++;
}

static void s3_remove(struct cairn_policy *p, uint32_t slot, bool evicted)
{
    struct s3fifo *s = (struct s3fifo *)p;
    if (!slot_in(s, slot))
        return;
    if (evicted && s->nodes[slot].queue == QUEUE_SMALL)
        ghost_add(s, s->nodes[slot].key_hash);
    node_unlink(s, slot);
    s->count--;
}

/* Oldest slot of the queue whose turn it is, SLOT_OUT if all is empty. `not_from`: a queue to take
 * it from only if the other one is empty, QUEUE_COUNT for none. */
static uint32_t next_candidate(const struct s3fifo *s, uint32_t not_from)
{
    uint32_t small = s->nodes[s->capacity + QUEUE_SMALL].newer;
    uint32_t main = s->nodes[s->capacity + QUEUE_MAIN].newer;
    bool small_empty = small >= s->capacity, main_empty = main >= s->capacity;
    if (small_empty || main_empty)
        return !small_empty ? small : !main_empty ? main : SLOT_OUT;
    if (not_from != QUEUE_COUNT)
        return not_from == QUEUE_SMALL ? main : small;
    uint64_t total = s->weight[QUEUE_SMALL] + s->weight[QUEUE_MAIN];
    return s->weight[QUEUE_SMALL] >= total * SMALL_PERCENT / 100 ? small : main;
}

static uint32_t s3_victim(struct cairn_policy *p, bool (*usable)(void *arg, uint32_t slot),
                          void *arg, uint32_t tries)
{
    struct s3fifo *s = (struct s3fifo *)p;
    uint32_t best = SLOT_OUT, not_from = QUEUE_COUNT;
    while (tries--) {
        uint32_t slot = next_candidate(s, not_from);
        if (slot == SLOT_OUT)
            break;
        struct s3_node *n = &s->nodes[slot];
        bool may = usable(arg, slot);
        if (may && !n->freq)
            return slot;
        if (may && best == SLOT_OUT)
            best = slot;
        /* New values not yet on disk can fill the small queue: then the main one has victims. */
        not_from = may ? QUEUE_COUNT : n->queue;
        /* Asked for again in the small queue: into the main one. There, each pass takes one off. */
        bool promote = n->queue == QUEUE_SMALL && n->freq;
        if (n->queue == QUEUE_MAIN && n->freq)
            n->freq--;
        node_move(s, slot, promote ? QUEUE_MAIN : n->queue);
    }
    return best;
}

static uint32_t s3_peek(const struct cairn_policy *p, bool (*usable)(void *arg, uint32_t slot),
                        void *arg, uint32_t tries)
{
    const struct s3fifo *s = (const struct s3fifo *)p;
    uint32_t slot = next_candidate(s, QUEUE_COUNT), best = SLOT_OUT;
    if (slot == SLOT_OUT)
        return best;
    uint8_t queue = s->nodes[slot].queue;
    for (uint32_t q = 0; q < QUEUE_COUNT; q++, queue ^= 1) {
        slot = s->nodes[s->capacity + queue].newer;
        for (; slot < s->capacity && tries; tries--, slot = s->nodes[slot].newer) {
            if (!usable(arg, slot))
                continue;
            if (!s->nodes[slot].freq)
                return slot;
            if (best == SLOT_OUT)
                best = slot;
        }
    }
    return best;
}

/* By how many passes it would survive, then by age. */
static uint64_t s3_rank(const struct cairn_policy *p, uint32_t slot)
{
    const struct s3fifo *s = (const struct s3fifo *)p;
    if (!slot_in(s, slot))
        return 0;
    const struct s3_node *n = &s->nodes[slot];
    uint64_t passes = n->queue == QUEUE_MAIN || n->freq ? 1u + n->freq : 0;
    return passes << 56 | (n->tick & (UINT64_MAX >> 8));
}

const struct cairn_policy_ops cairn_policy_s3fifo = {
    .name = "s3fifo",
    .create = s3_create,
    .destroy = s3_destroy,
    .insert = s3_insert,
    .touch = s3_touch,
    .remove = s3_remove,
    .victim = s3_victim,
    .peek = s3_peek,
    .rank = s3_rank,
};
