/* What an operator pinned (CAIRN.PIN): stays in RAM until it is unpinned, deleted, cleared or the
 * node ends. Bounded in number here and in bytes by the vault's lease budget. Any thread. */
#ifndef CAIRN_TOOLS_CAIRND_KV_PINS_H
#define CAIRN_TOOLS_CAIRND_KV_PINS_H

#include <stdbool.h>

#include "storage/store.h"

#define KV_PINS_MAX 4096u

struct kv_pins;

struct kv_pins *kv_pins_open(struct cairn_vault *v); /* NULL: no memory */
void kv_pins_close(struct kv_pins *p);               /* unpins all; NULL is fine */

/* May wait for a disk. OK = it is pinned; MISS = not held, or the budget is used up; BUSY = too
 * many are. */
cairn_status kv_pins_add(struct kv_pins *p, const struct cairn_key *key, uint64_t deadline_ns);
bool kv_pins_remove(struct kv_pins *p, const struct cairn_key *key);
/* The key's value was replaced: pins the new one in the old one's place, if the key is pinned. */
void kv_pins_refresh(struct kv_pins *p, const struct cairn_key *key);
void kv_pins_clear(struct kv_pins *p);
uint32_t kv_pins_count(const struct kv_pins *p);

#endif
