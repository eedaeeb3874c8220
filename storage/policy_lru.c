#include <stdlib.h>

#include "base/mem.h"
#include "storage/policy_builtin.h"

#define SLOT_OUT UINT32_MAX

struct lru_node {
    uint32_t older, newer; /* older == SLOT_OUT: not in the list */
    uint64_t tick;
};

/* A ring through nodes[capacity], its `newer` being the oldest slot and its `older` the newest. */
struct lru {
    struct cairn_policy base;
    uint32_t capacity;
    uint64_t tick;
    size_t nodes_len;
    struct lru_node *nodes;
};

static void node_unlink(struct lru *l, uint32_t slot)
{
    struct lru_node *n = &l->nodes[slot];
    l->nodes[n->older].newer = n->newer;
    l->nodes[n->newer].older = n->older;
    n->older = SLOT_OUT;
}

static void node_append(struct lru *l, uint32_t slot)
{
    struct lru_node *n = &l->nodes[slot], *ring = &l->nodes[l->capacity];
    n->older = ring->older;
    n->newer = l->capacity;
    n->tick = ++l->tick;
    l->nodes[ring->older].newer = slot;
    ring->older = slot;
}

static bool slot_in(const struct lru *l, uint32_t slot)
{
    return slot < l->capacity && l->nodes[slot].older != SLOT_OUT;
}

static cairn_status lru_create(uint32_t capacity, struct cairn_policy **ret)
{
    if (!capacity || capacity == SLOT_OUT)
        return CAIRN_INVAL;
    struct lru *l = cairn_calloc(1, sizeof *l);
    if (!l)
        return CAIRN_NOMEM;
    l->base.ops = &cairn_policy_lru;
    l->capacity = capacity;
    l->nodes_len = ((size_t)capacity + 1) * sizeof *l->nodes;
    l->nodes = cairn_table_alloc(l->nodes_len);
    if (!l->nodes) {
        free(l);
        return CAIRN_NOMEM;
    }
    for (uint32_t i = 0; i < capacity; i++)
        l->nodes[i].older = SLOT_OUT;
    l->nodes[capacity] = (struct lru_node){.older = capacity, .newer = capacity};
    *ret = &l->base;
    return CAIRN_OK;
}

static void lru_destroy(struct cairn_policy *p)
{
    struct lru *l = (struct lru *)p;
    if (!l)
        return;
    cairn_table_free(l->nodes, l->nodes_len);
    free(l);
}

static void lru_insert(struct cairn_policy *p, uint32_t slot, uint64_t key_hash, uint32_t weight)
{
    struct lru *l = (struct lru *)p;
    (void)key_hash;
    (void)weight;
    if (slot < l->capacity && !slot_in(l, slot))
        node_append(l, slot);
}

static void lru_touch(struct cairn_policy *p, uint32_t slot)
{
    struct lru *l = (struct lru *)p;
    if (!slot_in(l, slot))
        return;
    node_unlink(l, slot);
    node_append(l, slot);
}

static void lru_remove(struct cairn_policy *p, uint32_t slot, bool evicted)
{
    struct lru *l = (struct lru *)p;
    (void)evicted;
    if (slot_in(l, slot))
        node_unlink(l, slot);
}

static uint32_t lru_victim(struct cairn_policy *p, bool (*usable)(void *arg, uint32_t slot),
                           void *arg, uint32_t tries)
{
    struct lru *l = (struct lru *)p;
    while (tries--) {
        uint32_t slot = l->nodes[l->capacity].newer;
        if (slot == l->capacity)
            return UINT32_MAX;
        if (usable(arg, slot))
            return slot;
        lru_touch(p, slot);
    }
    return UINT32_MAX;
}

static uint32_t lru_peek(const struct cairn_policy *p, bool (*usable)(void *arg, uint32_t slot),
                         void *arg, uint32_t tries)
{
    const struct lru *l = (const struct lru *)p;
    uint32_t slot = l->nodes[l->capacity].newer;
    for (; slot != l->capacity && tries--; slot = l->nodes[slot].newer)
        if (usable(arg, slot))
            return slot;
    return UINT32_MAX;
}

static uint64_t lru_rank(const struct cairn_policy *p, uint32_t slot)
{
    const struct lru *l = (const struct lru *)p;
    return slot_in(l, slot) ? l->nodes[slot].tick : 0;
}

const struct cairn_policy_ops cairn_policy_lru = {
    .name = "lru",
    .create = lru_create,
    .destroy = lru_destroy,
    .insert = lru_insert,
    .touch = lru_touch,
    .remove = lru_remove,
    .victim = lru_victim,
    .peek = lru_peek,
    .rank = lru_rank,
};
