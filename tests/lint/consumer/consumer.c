/* A program as a user writes it, in the part of C99 that is C++ too: built outside this tree, from
 * an installed prefix, with pkg-config. It names a prompt, stores its chunks, gets them back. */
#include <cairn.h>
#include <stdio.h>
#include <string.h>

#define CHUNKS 3
#define VALUE_BYTES 5000

static unsigned char values[CHUNKS][VALUE_BYTES], got[CHUNKS][VALUE_BYTES];

static int name_chunks(struct cairn_key *keys)
{
    struct cairn_field fields[2];
    struct cairn_domain domain;
    uint32_t tokens[10];
    cairn_identity *id = NULL;
    char err[256];
    size_t count = 0, i;
    for (i = 0; i < 10; i++)
        tokens[i] = (uint32_t)i;
    fields[0].name = "model";
    fields[0].value = "consumer";
    fields[1].name = "chunk_tokens";
    fields[1].value = "4";
    memset(&domain, 0, sizeof domain);
    domain.name = "public";
    if (cairn_identity_create(fields, 2, &id, err, sizeof err) != CAIRN_OK) {
        printf("identity: %s\n", err);
        return 0;
    }
    if (cairn_keys(id, &domain, NULL, tokens, 10, NULL, 0, keys, CHUNKS, &count) != CAIRN_OK)
        count = 0;
    cairn_identity_destroy(id);
    return count == CHUNKS;
}

static int store_chunks(cairn_store *s, const struct cairn_key *keys)
{
    struct cairn_put puts[CHUNKS];
    struct cairn_iov runs[CHUNKS][2];
    size_t i;
    memset(puts, 0, sizeof puts);
    for (i = 0; i < CHUNKS; i++) {
        memset(values[i], (int)(i + 1), VALUE_BYTES);
        runs[i][0].base = values[i];
        runs[i][0].len = 1000;
        runs[i][1].base = values[i] + 1000;
        runs[i][1].len = VALUE_BYTES - 1000;
        puts[i].key = keys[i];
        if (i > 0)
            puts[i].parent = keys[i - 1];
        puts[i].value.iov = runs[i];
        puts[i].value.count = 2;
    }
    return cairn_put(s, puts, CHUNKS, 1000000000u) == CAIRN_OK;
}

static int load_chunks(cairn_store *s, const struct cairn_key *keys)
{
    struct cairn_get gets[CHUNKS];
    struct cairn_iov runs[CHUNKS];
    size_t hits = 0, i;
    memset(gets, 0, sizeof gets);
    for (i = 0; i < CHUNKS; i++) {
        runs[i].base = got[i];
        runs[i].len = VALUE_BYTES;
        gets[i].key = keys[i];
        gets[i].out.iov = &runs[i];
        gets[i].out.count = 1;
    }
    if (cairn_get(s, gets, CHUNKS, 1000000000u, &hits) != CAIRN_OK || hits != CHUNKS)
        return 0;
    return memcmp(values, got, sizeof got) == 0;
}

int main(void)
{
    struct cairn_key keys[CHUNKS];
    cairn_store *s = NULL;
    char err[256];
    int ok;
    if (!name_chunks(keys))
        return 1;
    if (cairn_open("embedded:?ram=64MiB", &s, err, sizeof err) != CAIRN_OK) {
        printf("open: %s\n", err);
        return 1;
    }
    ok = store_chunks(s, keys) && cairn_lookup(s, keys, CHUNKS) == CHUNKS && load_chunks(s, keys);
    cairn_close(s);
    printf("cairn %s: %s\n", cairn_version(), ok ? "all chunks came back" : "FAILED");
    return !ok;
}
