/* Keys: the names of chunks, a chain of HMAC-SHA-256. chunking/README.md is the specification,
 * chunking/vectors.json its test vectors.
 */
#ifndef CAIRN_CHUNKING_KEY_H
#define CAIRN_CHUNKING_KEY_H

#include "base/types.h"
#include "chunking/identity.h"

#define CAIRN_DOMAIN_KEY_MAX 64u
#define CAIRN_EXTRA_MAX 65536u
#define CAIRN_HASH_MIN 8u
#define CAIRN_HASH_MAX 64u

/* Both are public: connector/cairn.h has their contract. Extras that are not sorted by chunk or
 * name a chunk past the last one are CAIRN_INVAL: an extra that silently names nothing would let
 * two different prompts share a chunk. *ret_count is the number of keys written: of more chunks
 * than cap, the first cap. */
cairn_status cairn_keys(const cairn_identity *id, const struct cairn_domain *domain,
                        const struct cairn_key *parent, const uint32_t *tokens, size_t token_count,
                        const struct cairn_extra *extras, size_t extra_count,
                        struct cairn_key *out, size_t cap, size_t *ret_count);
cairn_status cairn_keys_from_hashes(const cairn_identity *id, const struct cairn_domain *domain,
                                    const struct cairn_key *parent, const void *hashes,
                                    size_t hash_len, size_t count, const struct cairn_extra *extras,
                                    size_t extra_count, struct cairn_key *out, size_t cap,
                                    size_t *ret_count);

#endif
