#include "chunking/identity.h"

#define OPENSSL_SUPPRESS_DEPRECATED
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"

#define MAGIC "CAIRNID"
#define VERSION 1
#define HEAD_BYTES 10u /* magic 7, version 1, field count 2 */

struct cairn_identity {
    uint8_t fingerprint[32];
    uint32_t chunk_tokens;
    uint32_t len;
    uint8_t canon[];
};

static void store16(uint8_t *p, uint32_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

static uint16_t load16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static size_t record_bytes(const struct cairn_id_field *fields, size_t count)
{
    size_t n = HEAD_BYTES;
    for (size_t i = 0; i < count; i++)
        n += 4u + fields[i].name_len + fields[i].value_len;
    return n;
}

static void encode(const struct cairn_id_field *fields, size_t count, uint8_t *out)
{
    memcpy(out, MAGIC, 7);
    out[7] = VERSION;
    store16(out + 8, (uint32_t)count);
    out += HEAD_BYTES;
    for (size_t i = 0; i < count; i++) {
        const struct cairn_id_field *f = &fields[i];
        store16(out, f->name_len);
        store16(out + 2, f->value_len);
        memcpy(out + 4, f->name, f->name_len);
        memcpy(out + 4 + f->name_len, f->value, f->value_len);
        out += 4u + f->name_len + f->value_len;
    }
}

/* From checked and sorted fields. */
static struct cairn_identity *build(const struct cairn_id_field *fields, size_t count)
{
    size_t len = record_bytes(fields, count);
    struct cairn_identity *id = cairn_malloc(sizeof *id + len);
    if (!id)
        return NULL;
    id->len = (uint32_t)len;
    id->chunk_tokens = cairn_id_field_number(cairn_id_field_find(fields, count, "chunk_tokens"));
    encode(fields, count, id->canon);
    /* The low-level calls: they neither allocate nor fail. */
    SHA256_CTX sha;
    SHA256_Init(&sha);
    SHA256_Update(&sha, id->canon, len);
    SHA256_Final(id->fingerprint, &sha);
    return id;
}

static cairn_status too_large(char *err, size_t cap, const char *what, unsigned limit)
{
    if (err && cap)
        snprintf(err, cap, "an identity has too many %s: at most %u", what, limit);
    return CAIRN_INVAL;
}

static cairn_status gather(const struct cairn_field *in, size_t count, struct cairn_id_field *out,
                           char *err, size_t cap)
{
    for (size_t i = 0; i < count; i++) {
        if (!in[i].name || !in[i].value) {
            if (err && cap)
                snprintf(err, cap, "identity field %zu has no %s", i,
                         in[i].name ? "value" : "name");
            return CAIRN_INVAL;
        }
        /* One byte past the limit is enough for the check to refuse. */
        struct cairn_id_field f = {
            .name = in[i].name,
            .value = in[i].value,
            .name_len = (uint16_t)strnlen(in[i].name, CAIRN_ID_NAME_MAX + 1),
            .value_len = (uint16_t)strnlen(in[i].value, CAIRN_ID_VALUE_MAX + 1),
        };
        cairn_status s = cairn_id_field_check(&f, err, cap);
        if (s != CAIRN_OK)
            return s;
        size_t at = i;
        while (at > 0 && cairn_id_field_cmp(&out[at - 1], &f) > 0) {
            out[at] = out[at - 1];
            at--;
        }
        out[at] = f;
    }
    return CAIRN_OK;
}

cairn_status cairn_identity_create(const struct cairn_field *fields, size_t count,
                                   cairn_identity **ret, char *err, size_t err_cap)
{
    struct cairn_id_field sorted[CAIRN_ID_FIELDS_MAX] = {0};
    if (!ret || (count && !fields)) {
        if (err && err_cap)
            snprintf(err, err_cap, "cairn_identity_create was given a NULL pointer");
        return CAIRN_INVAL;
    }
    if (count > CAIRN_ID_FIELDS_MAX)
        return too_large(err, err_cap, "fields", CAIRN_ID_FIELDS_MAX);
    cairn_status s = gather(fields, count, sorted, err, err_cap);
    if (s == CAIRN_OK)
        s = cairn_id_fields_check(sorted, count, err, err_cap);
    if (s != CAIRN_OK)
        return s;
    if (record_bytes(sorted, count) > CAIRN_IDENTITY_MAX)
        return too_large(err, err_cap, "bytes of names and values", CAIRN_IDENTITY_MAX);
    struct cairn_identity *id = build(sorted, count);
    if (!id) {
        if (err && err_cap)
            snprintf(err, err_cap, "no memory for an identity");
        return CAIRN_NOMEM;
    }
    *ret = id;
    return CAIRN_OK;
}

void cairn_identity_destroy(cairn_identity *id)
{
    free(id);
}

void cairn_identity_fingerprint(const cairn_identity *id, uint8_t out[32])
{
    memcpy(out, id->fingerprint, 32);
}

const void *cairn_identity_canonical(const cairn_identity *id, size_t *ret_len)
{
    *ret_len = id->len;
    return id->canon;
}

uint32_t cairn_identity_chunk_tokens(const cairn_identity *id)
{
    return id->chunk_tokens;
}

/* Reads the field at *offset and moves on; false if it does not fit the bytes. */
static bool field_read(const uint8_t *bytes, size_t len, size_t *offset, struct cairn_id_field *ret)
{
    size_t left = len - *offset;
    if (left < 4)
        return false;
    const uint8_t *p = bytes + *offset;
    ret->name_len = load16(p);
    ret->value_len = load16(p + 2);
    if (left - 4 < (size_t)ret->name_len + ret->value_len)
        return false;
    ret->name = (const char *)p + 4;
    ret->value = ret->name + ret->name_len;
    *offset += 4u + ret->name_len + ret->value_len;
    return true;
}

cairn_status cairn_identity_decode(const void *bytes, size_t len, cairn_identity **ret)
{
    struct cairn_id_field fields[CAIRN_ID_FIELDS_MAX];
    const uint8_t *p = bytes;
    if (!p || len < HEAD_BYTES || len > CAIRN_IDENTITY_MAX || memcmp(p, MAGIC, 7) != 0)
        return CAIRN_CORRUPT;
    if (p[7] != VERSION)
        return CAIRN_VERSION;
    size_t count = load16(p + 8), offset = HEAD_BYTES;
    if (count > CAIRN_ID_FIELDS_MAX)
        return CAIRN_CORRUPT;
    for (size_t i = 0; i < count; i++) {
        if (!field_read(p, len, &offset, &fields[i]))
            return CAIRN_CORRUPT;
        uint16_t as_read = fields[i].value_len;
        if (cairn_id_field_check(&fields[i], NULL, 0) != CAIRN_OK
            || fields[i].value_len != as_read
            || (i > 0 && cairn_id_field_cmp(&fields[i - 1], &fields[i]) >= 0))
            return CAIRN_CORRUPT;
    }
    if (offset != len || cairn_id_fields_check(fields, count, NULL, 0) != CAIRN_OK)
        return CAIRN_CORRUPT;
    struct cairn_identity *id = build(fields, count);
    if (!id)
        return CAIRN_NOMEM;
    *ret = id;
    return CAIRN_OK;
}

bool cairn_identity_next(const cairn_identity *id, struct cairn_identity_iter *it,
                         struct cairn_id_field *ret)
{
    if (it->offset == 0)
        it->offset = HEAD_BYTES;
    return it->offset < id->len && field_read(id->canon, id->len, &it->offset, ret);
}
