/* Which value leaves RAM first. Works on slot numbers below a fixed capacity and knows nothing of
 * the store, so that `cairn bench replay` runs the same code. Policies: "lru", "s3fifo" (Yang et
 * al., SOSP 2023). Callers insert and touch a chain from its tail to its head, so that within a
 * chain the tail is always the better victim. Not thread-safe. */
#ifndef CAIRN_STORAGE_POLICY_H
#define CAIRN_STORAGE_POLICY_H

#include <stdbool.h>

#include "base/types.h"

struct cairn_policy;

struct cairn_policy_ops {
    const char *name;
    /* capacity: slot numbers are below it. */
    cairn_status (*create)(uint32_t capacity, struct cairn_policy **ret);
    void (*destroy)(struct cairn_policy *p);
    /* weight: size of the value in any unit; s3fifo sizes its queues by it. */
    void (*insert)(struct cairn_policy *p, uint32_t slot, uint64_t key_hash, uint32_t weight);
    void (*touch)(struct cairn_policy *p, uint32_t slot);
    /* evicted: true = left for room (s3fifo remembers it in its ghost queue), false = deleted. */
    void (*remove)(struct cairn_policy *p, uint32_t slot, bool evicted);
    /* Best victim for which usable(arg, slot) is true; looks at no more than `tries` candidates;
     * UINT32_MAX if none of them is usable. Does not remove it. Candidates that are not usable go
     * to the back of their queue, so that pinned values at its front are not looked at again by
     * every call. */
    uint32_t (*victim)(struct cairn_policy *p, bool (*usable)(void *arg, uint32_t slot), void *arg,
                       uint32_t tries);
    /* The same without a change of any order, for looking ahead of evictions. */
    uint32_t (*peek)(const struct cairn_policy *p, bool (*usable)(void *arg, uint32_t slot),
                     void *arg, uint32_t tries);
    /* Smaller = would leave sooner; for comparing neighbours. */
    uint64_t (*rank)(const struct cairn_policy *p, uint32_t slot);
};

struct cairn_policy {
    const struct cairn_policy_ops *ops;
};

const struct cairn_policy_ops *cairn_policy_find(const char *name); /* NULL if there is none */
const struct cairn_policy_ops *const *cairn_policy_all(uint32_t *n);

#endif
