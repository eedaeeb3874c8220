/* Identity: everything that made the KV, as one canonical record. chunking/README.md is the
 * specification of its bytes and of the fingerprint.
 *
 * An identity never changes after it was made, so that any thread may read it.
 */
#ifndef CAIRN_CHUNKING_IDENTITY_H
#define CAIRN_CHUNKING_IDENTITY_H

#include <stdbool.h>

#include "base/types.h"
#include "chunking/fields.h"

/* Canonical bytes of one identity: they fit one 4 KiB block beside its header. */
#define CAIRN_IDENTITY_MAX 3840u

typedef struct cairn_identity cairn_identity;

/* These five are public: connector/cairn.h has their contract. */
cairn_status cairn_identity_create(const struct cairn_field *fields, size_t count,
                                   cairn_identity **ret, char *err, size_t err_cap);
void cairn_identity_destroy(cairn_identity *id);
void cairn_identity_fingerprint(const cairn_identity *id, uint8_t out[32]);
const void *cairn_identity_canonical(const cairn_identity *id, size_t *ret_len);
uint32_t cairn_identity_chunk_tokens(const cairn_identity *id);

/* Reads canonical bytes that come from outside. Takes exactly what create can make: CAIRN_CORRUPT
 * for anything else, CAIRN_VERSION for another version of the record. Copies. */
cairn_status cairn_identity_decode(const void *bytes, size_t len, cairn_identity **ret);

/* Fields in canonical order. Start with a zeroed iterator; false = no more. */
struct cairn_identity_iter {
    size_t offset;
};
bool cairn_identity_next(const cairn_identity *id, struct cairn_identity_iter *it,
                         struct cairn_id_field *ret);

#endif
