/* The fields of an identity: which names are known, what their values may look like. */
#ifndef CAIRN_CHUNKING_FIELDS_H
#define CAIRN_CHUNKING_FIELDS_H

#include <stdbool.h>

#include "base/types.h"

#define CAIRN_ID_FIELDS_MAX 64u
#define CAIRN_ID_NAME_MAX 64u
/* Value bytes; the bound of all fields together is CAIRN_IDENTITY_MAX (identity.h). */
#define CAIRN_ID_VALUE_MAX 2048u

/* One name and value, not terminated: they point into the caller's or the record's bytes. */
struct cairn_id_field {
    const char *name;
    const char *value;
    uint16_t name_len;
    uint16_t value_len;
};

/* Whether these bytes are well-formed UTF-8 without U+0000. */
bool cairn_utf8_valid(const char *bytes, size_t len);

/* Checks the field for shape and brings its value into canonical form (a number loses its leading
 * zeros, by moving `value`). Else CAIRN_INVAL and a sentence in err. */
cairn_status cairn_id_field_check(struct cairn_id_field *f, char *err, size_t err_cap);

/* Checks what depends on several fields: each name once, the required ones there, each rank below
 * its size. `fields` is sorted by cairn_id_field_cmp. */
cairn_status cairn_id_fields_check(const struct cairn_id_field *fields, size_t count, char *err,
                                   size_t err_cap);

/* Order of the canonical record: by the bytes of the name. */
int cairn_id_field_cmp(const struct cairn_id_field *a, const struct cairn_id_field *b);

/* The field of that name, or NULL. */
const struct cairn_id_field *cairn_id_field_find(const struct cairn_id_field *fields, size_t count,
                                                 const char *name);

/* Value of a checked numeric field. */
uint32_t cairn_id_field_number(const struct cairn_id_field *f);

/* A free field whose name says that its value is nobody's business (salt, api_key, ...). */
bool cairn_id_field_hidden(const struct cairn_id_field *f);

#endif
