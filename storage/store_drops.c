/* Why a key is not held any more: the latest drops, by their hash, in sets of four of which the
 * oldest is written over. A hint: another key may have the same 64 bits. */
#include "base/clock.h"
#include "storage/store_internal.h"

#define SETS 16384u
#define WAYS 4u

struct drop {
    uint64_t hash;
    uint64_t when_ms : 56, cause : 8;
};

struct drops {
    struct drop sets[SETS][WAYS];
};

struct drops *drops_open(void)
{
    return cairn_table_alloc(sizeof(struct drops));
}

void drops_close(struct drops *d)
{
    if (d)
        cairn_table_free(d, sizeof *d);
}

static struct drop *set_of(struct drops *d, uint64_t hash)
{
    return d->sets[cairn_mix64(hash) % SETS];
}

void drops_note(struct drops *d, const uint8_t key16[16], enum cairn_cause cause)
{
    uint64_t hash = key_hash(key16);
    struct drop *set = set_of(d, hash), *into = set;
    for (uint32_t i = 0; i < WAYS; i++) {
        if (set[i].hash == hash) {
            into = &set[i];
            break;
        }
        if (set[i].when_ms < into->when_ms)
            into = &set[i];
    }
    into->hash = hash;
    into->when_ms = cairn_now_ns() / CAIRN_NS_PER_MS;
    into->cause = (uint8_t)cause;
}

enum cairn_cause cairn_vault_drop_cause(struct cairn_vault *v, const struct cairn_key *key,
                                        uint64_t *ret_age_ns)
{
    uint8_t key16[16];
    cairn_key16(key->bytes, key16);
    uint64_t hash = key_hash(key16), now_ms = cairn_now_ns() / CAIRN_NS_PER_MS;
    enum cairn_cause cause = CAIRN_CAUSE_ABSENT;
    *ret_age_ns = 0;
    pthread_mutex_lock(&v->lock);
    const struct drop *set = set_of(v->drops, hash);
    for (uint32_t i = 0; i < WAYS; i++) {
        if (set[i].hash != hash || set[i].cause == CAIRN_CAUSE_NONE)
            continue;
        cause = (enum cairn_cause)set[i].cause;
        *ret_age_ns = (now_ms - set[i].when_ms) * CAIRN_NS_PER_MS;
    }
    if (entry_of(v, cairn_index_find(v->index, key), 0))
        cause = CAIRN_CAUSE_NONE;
    pthread_mutex_unlock(&v->lock);
    return cause;
}
