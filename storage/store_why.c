#include <stdlib.h>
#include <string.h>

#include "chunking/why.h"
#include "storage/store.h"

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

size_t cairn_vault_why(struct cairn_vault *v, const cairn_identity *id, char *out, size_t cap)
{
    struct seen seen = {.count = 0};
    cairn_vault_each_identity(v, collect, &seen);
    size_t len = cairn_identity_why_json(id, seen.list, seen.count, out, cap);
    for (size_t i = 0; i < seen.count; i++)
        free((void *)(uintptr_t)seen.list[i].bytes);
    return len;
}
