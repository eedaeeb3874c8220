/* chunking/vectors.json, made by an independent implementation, against this one. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "chunking/key.h"
#include "tests/helpers/json.h"

struct bytes {
    uint8_t *data;
    size_t len;
};

static struct json *document(void)
{
    struct json *j = json_load(CAIRN_SOURCE_DIR "/chunking/vectors.json");
    cr_assert_not_null(j, "chunking/vectors.json is missing or not JSON");
    return j;
}

static struct bytes from_hex(const char *hex)
{
    struct bytes b = {.len = strlen(hex) / 2};
    b.data = malloc(b.len + 1);
    for (size_t i = 0; i < b.len; i++) {
        unsigned v;
        cr_assert_eq(sscanf(hex + 2 * i, "%2x", &v), 1);
        b.data[i] = (uint8_t)v;
    }
    return b;
}

static struct bytes expand_bytes(const struct json *rule)
{
    if (rule->kind == JSON_STRING)
        return from_hex(rule->text);
    struct bytes b = {.len = (size_t)json_number(rule, "length", -1)};
    uint64_t start = (uint64_t)json_number(rule, "start", -1);
    uint64_t step = (uint64_t)json_number(rule, "step", -1);
    b.data = malloc(b.len + 1);
    for (size_t i = 0; i < b.len; i++)
        b.data[i] = (uint8_t)(start + i * step);
    return b;
}

static uint32_t *expand_tokens(const struct json *rule, size_t *ret_count)
{
    bool list = rule->kind == JSON_ARRAY;
    size_t count = list ? rule->count : (size_t)json_number(rule, "length", -1), i = 0;
    uint32_t *tokens = calloc(count + 1, sizeof *tokens);
    if (list)
        for (const struct json *t = rule->kids; t; t = t->next)
            tokens[i++] = (uint32_t)t->number;
    uint64_t start = (uint64_t)json_number(rule, "start", 0);
    uint64_t step = (uint64_t)json_number(rule, "step", 0);
    for (; i < count; i++)
        tokens[i] = (uint32_t)(start + i * step);
    *ret_count = count;
    return tokens;
}

static void check_hex(const char *what, const char *hex, const void *data, size_t len)
{
    struct bytes b = from_hex(hex);
    cr_assert_eq(b.len, len, "%s", what);
    cr_assert_arr_eq(b.data, data, len, "%s", what);
    free(b.data);
}

static cairn_identity *create(const struct json *identity)
{
    const struct json *fields = json_get(identity, "fields");
    struct cairn_field f[CAIRN_ID_FIELDS_MAX];
    size_t n = 0;
    char err[256] = "";
    cairn_identity *id = NULL;
    for (const struct json *j = fields->kids; j; j = j->next)
        f[n++] = (struct cairn_field){j->name, j->text};
    cr_assert_eq(cairn_identity_create(f, n, &id, err, sizeof err), CAIRN_OK, "%s", err);
    return id;
}

static cairn_identity *create_named(const struct json *doc, const char *name)
{
    const struct json *identities = json_get(doc, "identities");
    for (const struct json *j = identities->kids; j; j = j->next)
        if (strcmp(json_text(j, "name"), name) == 0)
            return create(j);
    cr_assert_fail("no identity %s", name);
    return NULL;
}

Test(vectors, identities)
{
    struct json *doc = document();
    size_t count = 0;
    for (const struct json *j = json_get(doc, "identities")->kids; j; j = j->next, count++) {
        const char *name = json_text(j, "name");
        cairn_identity *id = create(j), *decoded = NULL;
        uint8_t fingerprint[32];
        size_t len;
        const void *canon = cairn_identity_canonical(id, &len);
        check_hex(name, json_text(j, "canonical"), canon, len);
        cairn_identity_fingerprint(id, fingerprint);
        check_hex(name, json_text(j, "fingerprint"), fingerprint, 32);
        cr_assert_eq(cairn_identity_decode(canon, len, &decoded), CAIRN_OK, "%s", name);
        cairn_identity_fingerprint(decoded, fingerprint);
        check_hex(name, json_text(j, "fingerprint"), fingerprint, 32);
        cairn_identity_destroy(id);
        cairn_identity_destroy(decoded);
    }
    cr_assert_gt(count, 10u);
    json_free(doc);
}

Test(vectors, refused_records)
{
    struct json *doc = document();
    size_t count = 0;
    for (const struct json *j = json_get(doc, "refused_records")->kids; j; j = j->next, count++) {
        struct bytes b = from_hex(json_text(j, "canonical"));
        cairn_identity *id = NULL;
        cairn_status s = cairn_identity_decode(b.data, b.len, &id);
        bool version = strcmp(json_text(j, "why"), "version") == 0;
        cr_assert_eq(s, version ? CAIRN_VERSION : CAIRN_CORRUPT, "%s", json_text(j, "why"));
        cr_assert_null(id);
        free(b.data);
    }
    cr_assert_gt(count, 20u);
    json_free(doc);
}

struct inputs {
    cairn_identity *id;
    struct cairn_domain domain;
    struct bytes domain_key;
    struct cairn_key parent;
    struct cairn_extra extras[16];
    size_t extra_count;
};

static void inputs_read(const struct json *doc, const struct json *v, struct inputs *in)
{
    *in = (struct inputs){.id = create_named(doc, json_text(v, "identity"))};
    const struct json *domain = json_get(v, "domain");
    in->domain.name = json_text(domain, "name");
    if (!in->domain.name) {
        in->domain_key = expand_bytes(json_get(domain, "key"));
        in->domain.key = in->domain_key.data;
        in->domain.key_len = in->domain_key.len;
    }
    if (json_text(v, "parent")) {
        struct bytes b = from_hex(json_text(v, "parent"));
        cr_assert_eq(b.len, 32u);
        memcpy(in->parent.bytes, b.data, 32);
        free(b.data);
    }
    for (const struct json *e = json_get(v, "extras")->kids; e; e = e->next) {
        struct bytes b = expand_bytes(json_get(e, "data"));
        in->extras[in->extra_count++] = (struct cairn_extra){
            .chunk = (uint32_t)json_number(e, "chunk", 0), .data = b.data, .len = b.len};
    }
}

static void inputs_free(struct inputs *in)
{
    for (size_t i = 0; i < in->extra_count; i++) {
        void *data;
        memcpy(&data, &in->extras[i].data, sizeof data);
        free(data);
    }
    free(in->domain_key.data);
    cairn_identity_destroy(in->id);
}

static size_t run(const struct json *v, const struct inputs *in, struct cairn_key *keys, size_t cap)
{
    const struct json *hashes = json_get(v, "hashes");
    const struct cairn_key *parent = json_text(v, "parent") ? &in->parent : NULL;
    size_t n = 0, count;
    if (!hashes) {
        uint32_t *tokens = expand_tokens(json_get(v, "tokens"), &count);
        cr_assert_eq(cairn_keys(in->id, &in->domain, parent, tokens, count, in->extras,
                                in->extra_count, keys, cap, &n), CAIRN_OK);
        free(tokens);
        return n;
    }
    uint8_t all[16 * 64];
    size_t len = 32;
    count = 0;
    for (const struct json *h = hashes->kids; h; h = h->next, count++) {
        struct bytes b = from_hex(h->text);
        len = b.len;
        memcpy(all + count * len, b.data, len);
        free(b.data);
    }
    cr_assert_eq(cairn_keys_from_hashes(in->id, &in->domain, parent, all, len, count, in->extras,
                                        in->extra_count, keys, cap, &n), CAIRN_OK);
    return n;
}

Test(vectors, keys)
{
    struct json *doc = document();
    static struct cairn_key keys[1024];
    size_t vectors = 0;
    for (const struct json *v = json_get(doc, "vectors")->kids; v; v = v->next, vectors++) {
        const char *name = json_text(v, "name"), *last = json_text(v, "last_key");
        struct inputs in;
        inputs_read(doc, v, &in);
        size_t n = run(v, &in, keys, 1024), i = 0;
        cr_assert_eq(n, (size_t)json_number(v, "count", -1), "%s", name);
        if (last)
            check_hex(name, last, &keys[n - 1], 32);
        else
            for (const struct json *k = json_get(v, "keys")->kids; k; k = k->next)
                check_hex(name, k->text, &keys[i++], 32);
        cr_assert(last || i == n, "%s", name);
        inputs_free(&in);
    }
    cr_assert_geq(vectors, 30u);
    json_free(doc);
}
