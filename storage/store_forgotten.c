/* Keys whose record on disk the index has forgotten: a recovery would find it again, so a put or a
 * delete of such a key needs a tombstone although nothing seems to be held. Kept as a Bloom filter:
 * of a key that it does not know nothing was forgotten, of others a tombstone too many is written.
 * Keys in doubt are forgotten ones with a filter of their own: their tombstone failed.
 *
 * Two filters. The younger one takes notes; once as many segments were reclaimed as the log has, a
 * record that was forgotten before that is gone from the disk, and so is the older filter. */
#include <stdlib.h>
#include <string.h>

#include "storage/store_internal.h"

#define BITS_MIN (1ull << 20)
#define BITS_MAX (1ull << 27)
#define PROBES 4u

struct forgotten {
    uint8_t *young, *old;
    uint64_t bits;
    uint64_t since; /* segments reclaimed when `young` began */
    bool any_young, any_old;
};

struct forgotten *forgotten_open(uint64_t disk_bytes)
{
    struct forgotten *f = cairn_calloc(1, sizeof *f);
    if (!f)
        return NULL;
    /* A byte for each record of two blocks that the disk has room for. */
    f->bits = BITS_MIN;
    while (f->bits < BITS_MAX && f->bits < disk_bytes / (2 * CAIRN_BLOCK) * 8)
        f->bits *= 2;
    f->young = cairn_table_alloc(f->bits / 8);
    f->old = cairn_table_alloc(f->bits / 8);
    if (f->young && f->old)
        return f;
    forgotten_close(f);
    return NULL;
}

void forgotten_close(struct forgotten *f)
{
    if (!f)
        return;
    if (f->young)
        cairn_table_free(f->young, f->bits / 8);
    if (f->old)
        cairn_table_free(f->old, f->bits / 8);
    free(f);
}

/* Bit `probe` of a key. */
static uint64_t bit_of(const struct forgotten *f, const uint8_t key16[16], uint32_t probe)
{
    uint64_t q[2];
    memcpy(q, key16, sizeof q);
    uint64_t h = cairn_mix64(q[0] ^ cairn_mix64(q[1]));
    return (h + probe * (cairn_mix64(h) | 1)) & (f->bits - 1);
}

static bool knows(const struct forgotten *f, const uint8_t *map, const uint8_t key16[16])
{
    for (uint32_t i = 0; i < PROBES; i++) {
        uint64_t bit = bit_of(f, key16, i);
        if (!(map[bit / 8] >> (bit % 8) & 1))
            return false;
    }
    return true;
}

static void turn(struct cairn_vault *v, struct forgotten *f)
{
    if (!v->tier)
        return;
    uint64_t reclaimed = atomic_load_explicit(&v->tier->ops->stats(v->tier)->segments_reclaimed,
                                              memory_order_relaxed);
    if (reclaimed - f->since < v->segments)
        return;
    uint8_t *map = f->old;
    if (f->any_old)
        memset(map, 0, f->bits / 8);
    f->old = f->young;
    f->any_old = f->any_young;
    f->young = map;
    f->any_young = false;
    f->since = reclaimed;
}

static void note(struct cairn_vault *v, struct forgotten *f, const uint8_t key16[16])
{
    turn(v, f);
    for (uint32_t i = 0; i < PROBES; i++) {
        uint64_t bit = bit_of(f, key16, i);
        f->young[bit / 8] |= (uint8_t)(1u << (bit % 8));
    }
    f->any_young = true;
}

static bool may(struct cairn_vault *v, struct forgotten *f, const struct cairn_key *key)
{
    if (!f || !(f->any_young || f->any_old))
        return false;
    turn(v, f);
    uint8_t key16[16];
    cairn_key16(key->bytes, key16);
    return (f->any_young && knows(f, f->young, key16)) || (f->any_old && knows(f, f->old, key16));
}

void forgotten_note(struct cairn_vault *v, const uint8_t key16[16])
{
    count(&v->c.forgotten, 1);
    for (struct burying *b = v->burying; b; b = b->next)
        b->forgot = b->forgot || memcmp(b->key16, key16, sizeof b->key16) == 0;
    note(v, v->forgotten, key16);
}

bool forgotten_may(struct cairn_vault *v, const struct cairn_key *key)
{
    return may(v, v->forgotten, key);
}

void doubt_note(struct cairn_vault *v, const uint8_t key16[16])
{
    forgotten_note(v, key16);
    note(v, v->doubted, key16);
}

bool doubt_may(struct cairn_vault *v, const struct cairn_key *key)
{
    return may(v, v->doubted, key);
}
