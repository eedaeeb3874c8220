/* Naming a prompt: 131,072 tokens in 512 chunks, one call. */
#include <stdio.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#include "connector/cairn.h"
#include "tools/bench.h"

#define TOKENS (128u * 1024u)
#define CHUNK 256u
#define CHUNKS (TOKENS / CHUNK)
/* A key hashes its parent, the fingerprint and the tokens. */
#define HASHED (TOKENS * 4u + CHUNKS * 64u)
#define CALLS 40u

static const struct cairn_field fields[] = {{"model", "bench"}, {"chunk_tokens", "256"}};

struct work {
    cairn_identity *id;
    uint32_t *tokens;
    struct cairn_key *keys;
    uint8_t *bytes;
    struct bench_lat lat, limit;
};

static bool name_prompt(struct work *w)
{
    struct cairn_domain domain = {.name = "public"};
    size_t made = 0;
    uint64_t start = cairn_now_ns();
    cairn_status s =
        cairn_keys(w->id, &domain, NULL, w->tokens, TOKENS, NULL, 0, w->keys, CHUNKS, &made);
    bench_lat_add(&w->lat, cairn_now_ns() - start);
    if (s != CAIRN_OK || made != CHUNKS)
        return bench_fail("cairn_keys gave %zu keys: %s", made, cairn_status_name(s));
    return true;
}

static bool hash_bytes(struct work *w)
{
    uint8_t out[EVP_MAX_MD_SIZE];
    unsigned len = sizeof out;
    uint64_t start = cairn_now_ns();
    int ok = EVP_Digest(w->bytes, HASHED, out, &len, EVP_sha256(), NULL);
    bench_lat_add(&w->limit, cairn_now_ns() - start);
    return ok || bench_fail("SHA-256 is not available from libcrypto: install openssl");
}

static bool measure(struct bench *b, struct work *w)
{
    double value[BENCH_ROUNDS_MAX], limit[BENCH_ROUNDS_MAX];
    struct cairn_key first = {{0}};
    double cpu = 0;
    for (uint32_t r = 0; r < b->o->rounds; r++) {
        size_t cairn_at = w->lat.count, limit_at = w->limit.count;
        double cpu_before = bench_cpu_s();
        for (uint32_t i = 0; i < CALLS; i++)
            if (!name_prompt(w))
                return false;
        cpu += bench_cpu_s() - cpu_before;
        for (uint32_t i = 0; i < CALLS; i++)
            if (!hash_bytes(w))
                return false;
        struct bench_lat c = {.ns = w->lat.ns + cairn_at, .count = CALLS};
        struct bench_lat l = {.ns = w->limit.ns + limit_at, .count = CALLS};
        value[r] = bench_lat_us(&c, 0.5) / 1e3;
        limit[r] = bench_lat_us(&l, 0.5) / 1e3;
        if (!r)
            first = w->keys[CHUNKS - 1];
        if (memcmp(&first, &w->keys[CHUNKS - 1], sizeof first))
            return bench_fail("cairn_keys gave two names to one prompt");
    }
    struct bench_row row = bench_row("ms", "SHA-256 of the same bytes");
    snprintf(row.name, sizeof row.name, "keys-128k");
    row.value = bench_median(value, (uint32_t)b->o->rounds);
    row.limit = bench_median(limit, (uint32_t)b->o->rounds);
    row.ratio = row.limit / row.value;
    row.cpu_s_per_gb = cpu / ((double)b->o->rounds * CALLS * HASHED / 1e9);
    bench_lat_row(&w->lat, &row);
    bench_add(b, &row);
    return true;
}

bool bench_key(struct bench *b)
{
    struct work w = {.tokens = malloc(TOKENS * 4), .keys = calloc(CHUNKS, sizeof *w.keys),
                     .bytes = calloc(1, HASHED)};
    char err[256] = "";
    bool ok = w.tokens && w.keys && w.bytes && bench_lat_init(&w.lat, b->o->rounds * CALLS) &&
              bench_lat_init(&w.limit, b->o->rounds * CALLS);
    uint64_t random = b->o->seed;
    for (uint32_t i = 0; ok && i < TOKENS; i++)
        w.tokens[i] = (uint32_t)(bench_random(&random) % 128000);
    if (ok && cairn_identity_create(fields, 2, &w.id, err, sizeof err) != CAIRN_OK)
        ok = bench_fail("%s", err);
    ok = ok && measure(b, &w);
    cairn_identity_destroy(w.id);
    bench_lat_free(&w.lat);
    bench_lat_free(&w.limit);
    free(w.tokens);
    free(w.keys);
    free(w.bytes);
    return ok;
}
