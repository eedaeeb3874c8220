/* Values on their way from disk to RAM because somebody will ask for them (CAIRN.PREFETCH). A
 * bounded queue that takes one worker at most, and gives it back after every few values. */
#ifndef CAIRN_TOOLS_CAIRND_KV_PREFETCH_H
#define CAIRN_TOOLS_CAIRND_KV_PREFETCH_H

#include "tools/cairnd/node.h"

struct kv_prefetch;

struct kv_prefetch *kv_prefetch_open(struct node *n); /* NULL: no memory */
void kv_prefetch_close(struct kv_prefetch *p);        /* workers have ended; NULL is fine */
/* Never waits. false: the queue or the workers are full, nothing is kept. */
bool kv_prefetch_add(struct kv_prefetch *p, const struct cairn_key *keys, uint32_t count);
uint32_t kv_prefetch_waiting(struct kv_prefetch *p);

#endif
