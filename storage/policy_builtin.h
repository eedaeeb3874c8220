/* What policy_registry.c lists: one line a policy_*.c. */
#ifndef CAIRN_STORAGE_POLICY_BUILTIN_H
#define CAIRN_STORAGE_POLICY_BUILTIN_H

#include "storage/policy.h"

extern const struct cairn_policy_ops cairn_policy_lru;
extern const struct cairn_policy_ops cairn_policy_s3fifo;

#endif
