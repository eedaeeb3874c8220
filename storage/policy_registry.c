#include <string.h>

#include "storage/policy.h"
#include "storage/policy_builtin.h"

static const struct cairn_policy_ops *const policies[] = {&cairn_policy_lru, &cairn_policy_s3fifo};

#define POLICY_COUNT (sizeof policies / sizeof policies[0])

const struct cairn_policy_ops *cairn_policy_find(const char *name)
{
    for (size_t i = 0; name && i < POLICY_COUNT; i++)
        if (strcmp(policies[i]->name, name) == 0)
            return policies[i];
    return NULL;
}

const struct cairn_policy_ops *const *cairn_policy_all(uint32_t *n)
{
    *n = POLICY_COUNT;
    return policies;
}
