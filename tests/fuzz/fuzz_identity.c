/* Whatever the decoder takes comes back byte for byte, and describes itself as one JSON object. */
#include <stdlib.h>
#include <string.h>

#include "chunking/why.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool ok)
{
    if (!ok)
        abort();
}

static void check_create(const cairn_identity *id)
{
    struct cairn_field fields[CAIRN_ID_FIELDS_MAX];
    char text[2 * CAIRN_IDENTITY_MAX], *at = text;
    struct cairn_identity_iter it = {0};
    struct cairn_id_field f;
    size_t count = 0, len, again_len;
    while (cairn_identity_next(id, &it, &f)) {
        fields[count].name = memcpy(at, f.name, f.name_len);
        at += f.name_len;
        *at++ = 0;
        fields[count++].value = memcpy(at, f.value, f.value_len);
        at += f.value_len;
        *at++ = 0;
    }
    cairn_identity *again;
    require(cairn_identity_create(fields, count, &again, NULL, 0) == CAIRN_OK);
    const void *canon = cairn_identity_canonical(id, &len);
    const void *other = cairn_identity_canonical(again, &again_len);
    require(len == again_len && memcmp(canon, other, len) == 0);
    cairn_identity_destroy(again);
}

static void check_why(const cairn_identity *id, const uint8_t *data, size_t size)
{
    /* Each byte of a text takes up to 6 as an escape, and it is written three times. */
    static char text[20 * CAIRN_IDENTITY_MAX];
    struct cairn_canon seen[] = {{data, size / 2}, {data, size}};
    size_t len = cairn_identity_why_json(id, seen, 2, text, sizeof text);
    require(len < sizeof text && strlen(text) == len && strstr(text, "\"known\": true"));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    cairn_identity *id = NULL;
    size_t len;
    if (cairn_identity_decode(data, size, &id) != CAIRN_OK) {
        require(!id);
        return 0;
    }
    const void *canon = cairn_identity_canonical(id, &len);
    require(len == size && memcmp(canon, data, len) == 0);
    require(cairn_identity_chunk_tokens(id) >= 1);
    check_create(id);
    check_why(id, data, size);
    cairn_identity_destroy(id);
    return 0;
}
