/* What is done under each identity. Rows are told apart by the first 8 bytes of a fingerprint, as
 * much as a footer keeps of it; a row without held values makes way for a new identity, the one
 * that was used longest ago first. */
#include <string.h>

#include "storage/store_internal.h"

static uint64_t name_of(const uint8_t *fingerprint)
{
    uint64_t name;
    memcpy(&name, fingerprint, sizeof name);
    return name;
}

static struct identity_row *row_find(struct cairn_vault *v, uint64_t name)
{
    for (uint32_t i = 1; i < VAULT_IDENTITIES; i++)
        if (v->identities[i].name == name)
            return &v->identities[i];
    return NULL;
}

uint8_t identity_number(struct cairn_vault *v, const uint8_t *fingerprint)
{
    uint64_t name = name_of(fingerprint);
    struct identity_row *row = name ? &v->identities[v->identity_last] : NULL;
    if (row && row->name != name)
        row = row_find(v, name);
    for (uint32_t i = 1; name && !row && i < VAULT_IDENTITIES; i++)
        if (v->identities[i].f.held == 0 && (!row || v->identities[i].used < row->used))
            row = &v->identities[i];
    if (!row)
        return 0;
    if (row->name != name)
        *row = (struct identity_row){.name = name};
    row->used = ++v->identity_tick;
    v->identity_last = (uint32_t)(row - v->identities);
    return (uint8_t)v->identity_last;
}

void identity_put(struct cairn_vault *v, uint8_t number, uint64_t bytes)
{
    v->identities[number].f.puts++;
    v->identities[number].f.put_bytes += bytes;
}

void identity_hit(struct cairn_vault *v, uint8_t number, uint64_t bytes)
{
    v->identities[number].f.hits++;
    v->identities[number].f.hit_bytes += bytes;
}

cairn_status cairn_vault_identity_figures(struct cairn_vault *v, const uint8_t fingerprint[32],
                                          struct cairn_identity_figures *ret)
{
    uint64_t name = name_of(fingerprint);
    pthread_mutex_lock(&v->lock);
    const struct identity_row *row = name ? row_find(v, name) : NULL;
    if (row)
        *ret = row->f;
    pthread_mutex_unlock(&v->lock);
    return row ? CAIRN_OK : CAIRN_MISS;
}
