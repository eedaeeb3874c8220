#include "chunking/key.h"

#define OPENSSL_SUPPRESS_DEPRECATED
#include <openssl/sha.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "tokens and lengths are hashed as they lie in memory");

enum chunk_kind {
    KIND_TOKENS = 1,
    KIND_HASH = 2,
};

/* Start of each message. Its size and every length that follows are fixed by it. */
struct chunk_head {
    struct cairn_key parent;
    uint8_t fingerprint[32];
    uint32_t kind;
    uint32_t units; /* tokens, or bytes of the hash */
    uint32_t extras;
    uint32_t domain_len; /* HMAC pads its key with zeros: "a" and "a\0" must be two domains */
};
_Static_assert(sizeof(struct chunk_head) == 80, "hashed as it lies");

/* SHA-256 of "cairn public domain 1". */
static const uint8_t public_key[32] = {
    0xf1, 0x37, 0xdc, 0xc3, 0xb9, 0xae, 0x6d, 0xd8, 0xb9, 0x19, 0x11, 0x31, 0xd4, 0x00, 0x23, 0x54,
    0xc5, 0x30, 0x46, 0x17, 0xf5, 0x5e, 0x2a, 0x81, 0x3d, 0x5d, 0x8d, 0xf1, 0x59, 0xb9, 0xe9, 0xd5,
};

/* What one call names. The low-level SHA-256 calls are used, though deprecated, because the newer
 * ones allocate. */
struct chain {
    SHA256_CTX inner, outer; /* after the key's block */
    struct chunk_head head;
    const uint8_t *body;
    size_t body_len;
    size_t step; /* bytes of a full chunk */
    size_t unit; /* bytes of a token; of a hash, 1 */
    const struct cairn_extra *extras;
    size_t extra_count;
};

static cairn_status domain_check(const struct cairn_domain *d, const void **ret_key,
                                 size_t *ret_len)
{
    if (!d)
        return CAIRN_INVAL;
    if (d->name) {
        if (d->key || d->key_len || strcmp(d->name, "public") != 0)
            return CAIRN_INVAL;
        *ret_key = public_key;
        *ret_len = sizeof public_key;
        return CAIRN_OK;
    }
    if (!d->key || d->key_len < 1 || d->key_len > CAIRN_DOMAIN_KEY_MAX)
        return CAIRN_INVAL;
    *ret_key = d->key;
    *ret_len = d->key_len;
    return CAIRN_OK;
}

static cairn_status extras_check(const struct chain *c, size_t chunks)
{
    uint32_t last = 0;
    if ((c->extra_count && !c->extras) || c->extra_count > UINT32_MAX)
        return CAIRN_INVAL;
    for (size_t i = 0; i < c->extra_count; i++) {
        const struct cairn_extra *e = &c->extras[i];
        if (e->chunk < last || e->chunk >= chunks || e->len > CAIRN_EXTRA_MAX
            || (e->len && !e->data))
            return CAIRN_INVAL;
        last = e->chunk;
    }
    return CAIRN_OK;
}

static void hmac_init(struct chain *c, const void *key, size_t len)
{
    uint8_t inner[64] = {0}, outer[64];
    memcpy(inner, key, len);
    for (size_t i = 0; i < sizeof inner; i++) {
        outer[i] = inner[i] ^ 0x5c;
        inner[i] ^= 0x36;
    }
    SHA256_Init(&c->inner);
    SHA256_Update(&c->inner, inner, sizeof inner);
    SHA256_Init(&c->outer);
    SHA256_Update(&c->outer, outer, sizeof outer);
    explicit_bzero(inner, sizeof inner);
    explicit_bzero(outer, sizeof outer);
}

/* Names one chunk; its key becomes the next one's parent. */
static void chain_step(struct chain *c, const uint8_t *body, size_t body_len,
                       const struct cairn_extra *extras, uint32_t extra_count)
{
    c->head.units = (uint32_t)(body_len / c->unit);
    c->head.extras = extra_count;
    SHA256_CTX sha = c->inner;
    SHA256_Update(&sha, &c->head, sizeof c->head);
    SHA256_Update(&sha, body, body_len);
    for (uint32_t i = 0; i < extra_count; i++) {
        uint32_t len = (uint32_t)extras[i].len;
        SHA256_Update(&sha, &len, sizeof len);
        if (len)
            SHA256_Update(&sha, extras[i].data, len);
    }
    SHA256_Final(c->head.parent.bytes, &sha);
    sha = c->outer;
    SHA256_Update(&sha, c->head.parent.bytes, 32);
    SHA256_Final(c->head.parent.bytes, &sha);
}

static size_t chain_run(struct chain *c, size_t chunks, struct cairn_key *out)
{
    size_t extra = 0;
    for (size_t i = 0; i < chunks; i++) {
        size_t at = i * c->step;
        size_t len = c->body_len - at < c->step ? c->body_len - at : c->step;
        size_t first = extra;
        while (extra < c->extra_count && c->extras[extra].chunk == i)
            extra++;
        chain_step(c, c->body + at, len, c->extras + first, (uint32_t)(extra - first));
        out[i] = c->head.parent;
    }
    return chunks;
}

/* The caller has set what is hashed (kind, body, step, unit, extras). */
static cairn_status keys_of(struct chain *c, const cairn_identity *id,
                            const struct cairn_domain *domain, const struct cairn_key *parent,
                            struct cairn_key *out, size_t cap, size_t *ret_count)
{
    const void *key;
    size_t key_len;
    if (!id || !ret_count || (cap && !out) || (c->body_len && !c->body))
        return CAIRN_INVAL;
    cairn_status s = domain_check(domain, &key, &key_len);
    if (s != CAIRN_OK)
        return s;
    size_t chunks = c->body_len / c->step + (c->body_len % c->step != 0);
    s = extras_check(c, chunks);
    if (s != CAIRN_OK)
        return s;
    cairn_identity_fingerprint(id, c->head.fingerprint);
    c->head.domain_len = (uint32_t)key_len;
    if (parent)
        c->head.parent = *parent;
    hmac_init(c, key, key_len);
    *ret_count = chain_run(c, chunks < cap ? chunks : cap, out);
    explicit_bzero(&c->inner, sizeof c->inner);
    explicit_bzero(&c->outer, sizeof c->outer);
    return CAIRN_OK;
}

cairn_status cairn_keys(const cairn_identity *id, const struct cairn_domain *domain,
                        const struct cairn_key *parent, const uint32_t *tokens, size_t token_count,
                        const struct cairn_extra *extras, size_t extra_count,
                        struct cairn_key *out, size_t cap, size_t *ret_count)
{
    if (!id || token_count > SIZE_MAX / sizeof *tokens)
        return CAIRN_INVAL;
    struct chain c = {
        .head = {.kind = KIND_TOKENS},
        .body = (const uint8_t *)tokens,
        .body_len = token_count * sizeof *tokens,
        .step = (size_t)cairn_identity_chunk_tokens(id) * sizeof *tokens,
        .unit = sizeof *tokens,
        .extras = extras,
        .extra_count = extra_count,
    };
    return keys_of(&c, id, domain, parent, out, cap, ret_count);
}

cairn_status cairn_keys_from_hashes(const cairn_identity *id, const struct cairn_domain *domain,
                                    const struct cairn_key *parent, const void *hashes,
                                    size_t hash_len, size_t count, const struct cairn_extra *extras,
                                    size_t extra_count, struct cairn_key *out, size_t cap,
                                    size_t *ret_count)
{
    if (hash_len < CAIRN_HASH_MIN || hash_len > CAIRN_HASH_MAX || count > SIZE_MAX / hash_len)
        return CAIRN_INVAL;
    struct chain c = {
        .head = {.kind = KIND_HASH},
        .body = hashes,
        .body_len = count * hash_len,
        .step = hash_len,
        .unit = 1,
        .extras = extras,
        .extra_count = extra_count,
    };
    return keys_of(&c, id, domain, parent, out, cap, ret_count);
}
