#include "connector/embedded.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/copy.h"
#include "base/mem.h"
#include "chunking/identity.h"

static struct cairn_vault *vault_of(struct cairn_backend *b)
{
    return ((struct embedded *)b)->vault;
}

static cairn_status embedded_open(const char *uri, struct cairn_backend **ret, char *err,
                                  size_t err_cap)
{
    struct embedded *e = cairn_calloc(1, sizeof *e);
    if (!e) {
        snprintf(err, err_cap, "no memory for the store: end something else, or use a smaller ram");
        return CAIRN_NOMEM;
    }
    cairn_status st = cairn_uri_parse(uri, &e->uri, err, err_cap);
    if (!st)
        st = cairn_cuda_option(e->uri.cuda, err, err_cap);
    if (!st) {
        cairn_copy_init();
        st = cairn_vault_open(&e->uri.vault, &e->vault, err, err_cap);
    }
    if (st) {
        free(e);
        return st;
    }
    pthread_mutex_init(&e->lease_lock, NULL);
    e->base.workers = e->uri.workers;
    *ret = &e->base;
    return CAIRN_OK;
}

static void embedded_close(struct cairn_backend *b)
{
    struct embedded *e = (struct embedded *)b;
    cairn_vault_close(e->vault);
    pthread_mutex_destroy(&e->lease_lock);
    free(e);
}

static uint64_t embedded_value_max(struct cairn_backend *b)
{
    return cairn_vault_value_max(vault_of(b));
}

static cairn_status embedded_note_identity(struct cairn_backend *b, const cairn_identity *id)
{
    size_t len;
    const void *canon = cairn_identity_canonical(id, &len);
    return cairn_vault_note_identity(vault_of(b), canon, (uint32_t)len);
}

/* A put that found no room may find it where leases have run out. */
static bool refused_for_room(const struct cairn_put *puts, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (puts[i].status == CAIRN_NOSPACE)
            return true;
    return false;
}

static cairn_status embedded_put(struct cairn_backend *b, struct cairn_put *puts, size_t count,
                                 uint64_t deadline_ns)
{
    struct embedded *e = (struct embedded *)b;
    cairn_status st = cairn_vault_put(e->vault, puts, count, deadline_ns, NULL);
    if (st == CAIRN_NOSPACE && refused_for_room(puts, count) && embedded_leases_expire(e))
        /* What was stored the first time is held now and keeps its bytes. */
        st = cairn_vault_put(e->vault, puts, count, deadline_ns, NULL);
    return st;
}

static cairn_status embedded_get(struct cairn_backend *b, struct cairn_get *gets, size_t count,
                                 uint64_t deadline_ns, size_t *ret_hits)
{
    return cairn_vault_get(vault_of(b), gets, count, deadline_ns, ret_hits);
}

static size_t embedded_lookup(struct cairn_backend *b, const struct cairn_key *keys, size_t count)
{
    return cairn_vault_lookup(vault_of(b), keys, count);
}

static uint64_t embedded_value_len(struct cairn_backend *b, const struct cairn_key *key)
{
    return cairn_vault_value_len(vault_of(b), key);
}

static cairn_status embedded_side(struct cairn_backend *b, const struct cairn_key *key, void *out,
                                  uint32_t *len, uint64_t deadline_ns)
{
    return cairn_vault_side(vault_of(b), key, out, len, deadline_ns);
}

static cairn_status embedded_remove(struct cairn_backend *b, const struct cairn_key *keys,
                                    size_t count, uint64_t deadline_ns, cairn_status *results)
{
    return cairn_vault_delete(vault_of(b), keys, count, deadline_ns, results);
}

static cairn_status embedded_flush(struct cairn_backend *b, uint64_t deadline_ns)
{
    return cairn_vault_flush(vault_of(b), deadline_ns);
}

static size_t embedded_why(struct cairn_backend *b, const cairn_identity *id, char *out, size_t cap)
{
    return cairn_vault_why(vault_of(b), id, out, cap);
}

static size_t embedded_stats(struct cairn_backend *b, char *out, size_t cap)
{
    struct embedded *e = (struct embedded *)b;
    embedded_leases_expire(e);
    return cairn_vault_stats(e->vault, embedded_leases_oldest_ns(e), out, cap);
}

const struct cairn_backend_ops cairn_embedded_ops = {
    .scheme = "embedded:",
    .example = "embedded:///path?ram=1GiB&disk=8GiB or embedded:?ram=1GiB",
    .open = embedded_open,
    .close = embedded_close,
    .value_max = embedded_value_max,
    .note_identity = embedded_note_identity,
    .put = embedded_put,
    .get = embedded_get,
    .lookup = embedded_lookup,
    .value_len = embedded_value_len,
    .side = embedded_side,
    .remove = embedded_remove,
    .flush = embedded_flush,
    .lease_take = embedded_lease_take,
    .lease_view = embedded_lease_view,
    .lease_renew = embedded_lease_renew,
    .lease_release = embedded_lease_release,
    .why = embedded_why,
    .stats = embedded_stats,
};
