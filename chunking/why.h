/* Explains an identity that never hits: which of those seen is nearest, and what differs. */
#ifndef CAIRN_CHUNKING_WHY_H
#define CAIRN_CHUNKING_WHY_H

#include "chunking/identity.h"

/* Canonical bytes as they were remembered; hostile. */
struct cairn_canon {
    const void *bytes;
    size_t len;
};

/* One JSON object:
 *   {"seen": 2, "known": false, "fingerprint": HEX, "fields": {NAME: VALUE, ...},
 *    "nearest": {"fingerprint": HEX, "fields": {...}} | null,
 *    "differs": [{"field": NAME, "this": VALUE | null, "nearest": VALUE | null}, ...]}
 * Values are strings, null = not given. `known`: this very identity was seen. The nearest is one
 * of the others all the same, since an engine that never hits stores under its own: it differs in
 * the fewest fields, a differing model weighing more than all others together; of equals the last
 * of the list. What is not a canonical record is not counted as seen. Values of free
 * fields named like a secret (cairn_id_field_hidden) are shown as "(hidden)". Writes at most cap
 * bytes with the NUL; returns the length needed without it. */
size_t cairn_identity_why_json(const cairn_identity *id, const struct cairn_canon *seen, size_t n,
                               char *out, size_t cap);

#endif
