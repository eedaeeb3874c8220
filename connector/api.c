#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/copy.h"
#include "base/log.h"
#include "chunking/identity.h"
#include "chunking/why.h"
#include "connector/handle.h"

static _Atomic uint64_t fork_count;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void in_child(void)
{
    atomic_fetch_add_explicit(&fork_count, 1, memory_order_relaxed);
}

static void watch_forks(void)
{
    pthread_atfork(NULL, NULL, in_child);
}

bool cairn_handle_ours(const struct cairn_store *s)
{
    return s && s->forks == atomic_load_explicit(&fork_count, memory_order_relaxed);
}

const char *cairn_version(void)
{
    return CAIRN_VERSION_STRING;
}

const char *cairn_status_str(cairn_status s)
{
    return cairn_status_name(s);
}

void cairn_messages_to(cairn_message_fn fn, void *arg, int level_max)
{
    cairn_log_to(fn, arg, level_max);
}

cairn_status cairn_open(const char *uri, cairn_store **ret, char *err, size_t err_cap)
{
    char scratch[1];
    if (!err || !err_cap) {
        err = scratch;
        err_cap = sizeof scratch;
    }
    err[0] = '\0';
    if (!uri || !ret) {
        snprintf(err, err_cap, "cairn_open needs a URI and a place for the store");
        return CAIRN_INVAL;
    }
    pthread_once(&fork_once, watch_forks);
    struct cairn_store *s = calloc(1, sizeof *s);
    if (!s)
        return CAIRN_NOMEM;
    cairn_status st = cairn_uri_parse(uri, &s->uri, err, err_cap);
    if (!st) {
        cairn_copy_init();
        st = cairn_vault_open(&s->uri.vault, &s->vault, err, err_cap);
    }
    if (st) {
        free(s);
        return st;
    }
    s->forks = atomic_load_explicit(&fork_count, memory_order_relaxed);
    pthread_mutex_init(&s->lease_lock, NULL);
    pthread_mutex_init(&s->pool_lock, NULL);
    *ret = s;
    return CAIRN_OK;
}

void cairn_close(cairn_store *s)
{
    /* A child leaves everything as it is: the memory and the threads are its parent's. */
    if (!cairn_handle_ours(s))
        return;
    while (s->sessions)
        cairn_session_close(s->sessions);
    cairn_pool_close(s->pool);
    cairn_vault_close(s->vault);
    pthread_mutex_destroy(&s->lease_lock);
    pthread_mutex_destroy(&s->pool_lock);
    free(s);
}

uint64_t cairn_value_max(const cairn_store *s)
{
    return cairn_handle_ours(s) ? cairn_vault_value_max(s->vault) : 0;
}

cairn_status cairn_note_identity(cairn_store *s, const cairn_identity *id)
{
    if (!cairn_handle_ours(s))
        return CAIRN_STATE;
    size_t len;
    const void *canon = cairn_identity_canonical(id, &len);
    return cairn_vault_note_identity(s->vault, canon, (uint32_t)len);
}

/* A put that found no room may find it where leases have run out. */
static bool refused_for_room(const struct cairn_put *puts, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (puts[i].status == CAIRN_NOSPACE)
            return true;
    return false;
}

cairn_status cairn_put(cairn_store *s, struct cairn_put *puts, size_t count, uint64_t timeout_ns)
{
    if (!cairn_handle_ours(s)) {
        for (size_t i = 0; i < count; i++)
            puts[i].status = CAIRN_STATE;
        return CAIRN_STATE;
    }
    uint64_t deadline = cairn_deadline_ns(timeout_ns);
    cairn_status st = cairn_vault_put(s->vault, puts, count, deadline, NULL);
    if (st == CAIRN_NOSPACE && refused_for_room(puts, count) && cairn_leases_expire(s))
        /* What was stored the first time is held now and keeps its bytes. */
        st = cairn_vault_put(s->vault, puts, count, deadline, NULL);
    return st;
}

cairn_status cairn_get(cairn_store *s, struct cairn_get *gets, size_t count, uint64_t timeout_ns,
                       size_t *ret_hits)
{
    if (ret_hits)
        *ret_hits = 0;
    if (!cairn_handle_ours(s)) {
        for (size_t i = 0; i < count; i++)
            gets[i].status = CAIRN_STATE;
        return CAIRN_STATE;
    }
    return cairn_vault_get(s->vault, gets, count, cairn_deadline_ns(timeout_ns), ret_hits);
}

size_t cairn_lookup(cairn_store *s, const struct cairn_key *keys, size_t count)
{
    return cairn_handle_ours(s) ? cairn_vault_lookup(s->vault, keys, count) : 0;
}

uint64_t cairn_value_len(cairn_store *s, const struct cairn_key *key)
{
    return cairn_handle_ours(s) ? cairn_vault_value_len(s->vault, key) : 0;
}

cairn_status cairn_side(cairn_store *s, const struct cairn_key *key, void *out, uint32_t *len,
                        uint64_t timeout_ns)
{
    if (!cairn_handle_ours(s))
        return CAIRN_STATE;
    return cairn_vault_side(s->vault, key, out, len, cairn_deadline_ns(timeout_ns));
}

cairn_status cairn_delete(cairn_store *s, const struct cairn_key *keys, size_t count,
                          uint64_t timeout_ns, cairn_status *results)
{
    if (!cairn_handle_ours(s))
        return CAIRN_STATE;
    return cairn_vault_delete(s->vault, keys, count, cairn_deadline_ns(timeout_ns), results);
}

cairn_status cairn_flush(cairn_store *s, uint64_t timeout_ns)
{
    if (!cairn_handle_ours(s))
        return CAIRN_STATE;
    return cairn_vault_flush(s->vault, cairn_deadline_ns(timeout_ns));
}

/* Copies of the identities seen: the vault lends them only under its lock. */
struct seen {
    struct cairn_canon list[CAIRN_IDENT_SLOTS];
    size_t count;
};

static void collect(void *arg, const void *canon, uint32_t len)
{
    struct seen *seen = arg;
    void *copy = seen->count < CAIRN_IDENT_SLOTS ? malloc(len) : NULL;
    if (!copy)
        return;
    memcpy(copy, canon, len);
    seen->list[seen->count++] = (struct cairn_canon){copy, len};
}

size_t cairn_why(cairn_store *s, const cairn_identity *id, char *out, size_t cap)
{
    struct seen seen = {.count = 0};
    if (!cairn_handle_ours(s))
        return 0;
    cairn_vault_each_identity(s->vault, collect, &seen);
    size_t len = cairn_identity_why_json(id, seen.list, seen.count, out, cap);
    for (size_t i = 0; i < seen.count; i++)
        free((void *)(uintptr_t)seen.list[i].bytes);
    return len;
}

size_t cairn_stats(cairn_store *s, char *out, size_t cap)
{
    if (!cairn_handle_ours(s))
        return 0;
    cairn_leases_expire(s);
    return cairn_vault_stats(s->vault, cairn_leases_oldest_ns(s), out, cap);
}
