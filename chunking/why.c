#include "chunking/why.h"

#include <string.h>

#define MODEL_WEIGHT (CAIRN_ID_FIELDS_MAX * 2 + 1)

/* Counts past the end, so that the caller learns the length it needs. */
struct text {
    char *out;
    size_t cap;
    size_t len;
};

static void put_char(struct text *t, char c)
{
    if (t->len + 1 < t->cap)
        t->out[t->len] = c;
    t->len++;
}

static void put(struct text *t, const char *s)
{
    while (*s)
        put_char(t, *s++);
}

static void put_hex(struct text *t, unsigned char byte)
{
    static const char digits[] = "0123456789abcdef";
    put_char(t, digits[byte >> 4]);
    put_char(t, digits[byte & 15]);
}

static void put_count(struct text *t, size_t n)
{
    if (n >= 10)
        put_count(t, n / 10);
    put_char(t, (char)('0' + n % 10));
}

/* The bytes are UTF-8: an identity holds nothing else. */
static void put_string(struct text *t, const char *s, size_t len)
{
    put_char(t, '"');
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)s[i];
        if (c < 0x20 || c == 0x7f) {
            put(t, "\\u00");
            put_hex(t, c);
            continue;
        }
        if (c == '"' || c == '\\')
            put_char(t, '\\');
        put_char(t, s[i]);
    }
    put_char(t, '"');
}

static void put_value(struct text *t, const struct cairn_id_field *f)
{
    if (cairn_id_field_hidden(f))
        put(t, "\"(hidden)\"");
    else
        put_string(t, f->value, f->value_len);
}

static void put_identity(struct text *t, const cairn_identity *id)
{
    struct cairn_identity_iter it = {0};
    struct cairn_id_field f;
    uint8_t fingerprint[32];
    const char *comma = "";
    cairn_identity_fingerprint(id, fingerprint);
    put(t, "\"fingerprint\": \"");
    for (size_t i = 0; i < sizeof fingerprint; i++)
        put_hex(t, fingerprint[i]);
    put(t, "\", \"fields\": {");
    while (cairn_identity_next(id, &it, &f)) {
        put(t, comma);
        put_string(t, f.name, f.name_len);
        put(t, ": ");
        put_value(t, &f);
        comma = ", ";
    }
    put_char(t, '}');
}

/* Walks two identities by name. One side is NULL where only the other has the field. */
struct pair_walk {
    const cairn_identity *id[2];
    struct cairn_identity_iter it[2];
    struct cairn_id_field field[2];
    bool have[2];
};

static void walk_start(struct pair_walk *w, const cairn_identity *a, const cairn_identity *b)
{
    *w = (struct pair_walk){.id = {a, b}};
    for (int i = 0; i < 2; i++)
        w->have[i] = cairn_identity_next(w->id[i], &w->it[i], &w->field[i]);
}

static bool field_equal(const struct cairn_id_field *a, const struct cairn_id_field *b)
{
    return a->value_len == b->value_len && memcmp(a->value, b->value, a->value_len) == 0;
}

/* The next field that differs, in ret_a, ret_b (has = which of them are given). */
static bool walk_next(struct pair_walk *w, struct cairn_id_field ret[2], bool has[2])
{
    while (w->have[0] || w->have[1]) {
        int order = !w->have[0]   ? 1
                    : !w->have[1] ? -1
                                  : cairn_id_field_cmp(&w->field[0], &w->field[1]);
        bool same = order == 0 && field_equal(&w->field[0], &w->field[1]);
        has[0] = order <= 0;
        has[1] = order >= 0;
        for (int i = 0; i < 2; i++) {
            if (!has[i])
                continue;
            ret[i] = w->field[i];
            w->have[i] = cairn_identity_next(w->id[i], &w->it[i], &w->field[i]);
        }
        if (!same)
            return true;
    }
    return false;
}

static size_t distance(const cairn_identity *a, const cairn_identity *b)
{
    struct pair_walk w;
    struct cairn_id_field f[2];
    bool has[2];
    size_t sum = 0;
    walk_start(&w, a, b);
    while (walk_next(&w, f, has)) {
        const struct cairn_id_field *one = has[0] ? &f[0] : &f[1];
        sum += cairn_id_field_find(one, 1, "model") ? MODEL_WEIGHT : 1;
    }
    return sum;
}

static void put_differs(struct text *t, const cairn_identity *id, const cairn_identity *nearest)
{
    struct pair_walk w;
    struct cairn_id_field f[2];
    bool has[2];
    const char *comma = "";
    walk_start(&w, id, nearest);
    while (walk_next(&w, f, has)) {
        const struct cairn_id_field *one = has[0] ? &f[0] : &f[1];
        put(t, comma);
        put(t, "{\"field\": ");
        put_string(t, one->name, one->name_len);
        for (int i = 0; i < 2; i++) {
            put(t, i == 0 ? ", \"this\": " : ", \"nearest\": ");
            if (has[i])
                put_value(t, &f[i]);
            else
                put(t, "null");
        }
        put_char(t, '}');
        comma = ", ";
    }
}

/* The nearest of the others that were seen, made anew, or NULL. */
static cairn_identity *nearest_of(const cairn_identity *id, const struct cairn_canon *seen,
                                  size_t n, size_t *ret_count, bool *ret_known)
{
    cairn_identity *best = NULL, *one;
    size_t count = 0, best_distance = SIZE_MAX;
    bool known = false;
    for (size_t i = 0; i < n; i++) {
        if (cairn_identity_decode(seen[i].bytes, seen[i].len, &one) != CAIRN_OK)
            continue;
        count++;
        size_t d = distance(id, one);
        known = known || d == 0;
        if (d && d <= best_distance) {
            cairn_identity_destroy(best);
            best = one;
            best_distance = d;
        } else {
            cairn_identity_destroy(one);
        }
    }
    *ret_count = count;
    *ret_known = known;
    return best;
}

size_t cairn_identity_why_json(const cairn_identity *id, const struct cairn_canon *seen, size_t n,
                               char *out, size_t cap)
{
    struct text t = {.out = out, .cap = cap};
    size_t count;
    bool known;
    cairn_identity *nearest = nearest_of(id, seen, n, &count, &known);
    put(&t, "{\"seen\": ");
    put_count(&t, count);
    put(&t, ", \"known\": ");
    put(&t, known ? "true" : "false");
    put(&t, ", ");
    put_identity(&t, id);
    put(&t, ", \"nearest\": ");
    if (nearest) {
        put_char(&t, '{');
        put_identity(&t, nearest);
        put_char(&t, '}');
    } else {
        put(&t, "null");
    }
    put(&t, ", \"differs\": [");
    if (nearest)
        put_differs(&t, id, nearest);
    put(&t, "]}");
    if (cap)
        out[t.len < cap ? t.len : cap - 1] = 0;
    cairn_identity_destroy(nearest);
    return t.len;
}
