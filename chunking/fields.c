#include "chunking/fields.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

enum form {
    FORM_TEXT,   /* any UTF-8                          */
    FORM_WORD,   /* printable ASCII without a space    */
    FORM_NUMBER, /* decimal, from min to max           */
};

struct known {
    const char *name;
    enum form form;
    uint32_t min, max;
    bool required;
};

static const struct known known_fields[] = {
    {"model", FORM_TEXT, 0, 0, true},
    {"chunk_tokens", FORM_NUMBER, 1, 1048576, true},
    {"weights", FORM_TEXT, 0, 0, false},
    {"tokenizer", FORM_TEXT, 0, 0, false},
    {"lora", FORM_TEXT, 0, 0, false},
    {"kv_dtype", FORM_WORD, 0, 0, false},
    {"quant", FORM_TEXT, 0, 0, false},
    {"layout", FORM_TEXT, 0, 0, false},
    {"isa", FORM_WORD, 0, 0, false},
    {"block_tokens", FORM_NUMBER, 1, 1048576, false},
    {"layers", FORM_NUMBER, 1, 65536, false},
    {"heads", FORM_NUMBER, 1, 65536, false},
    {"head_size", FORM_NUMBER, 1, 65536, false},
    {"tp_rank", FORM_NUMBER, 0, 65535, false},
    {"tp_size", FORM_NUMBER, 1, 65536, false},
    {"pp_rank", FORM_NUMBER, 0, 65535, false},
    {"pp_size", FORM_NUMBER, 1, 65536, false},
    {"cp_rank", FORM_NUMBER, 0, 65535, false},
    {"cp_size", FORM_NUMBER, 1, 65536, false},
};
#define KNOWN_COUNT (sizeof known_fields / sizeof known_fields[0])

__attribute__((format(printf, 3, 4)))
static cairn_status refuse(char *err, size_t cap, const char *format, ...)
{
    if (err && cap) {
        va_list args;
        va_start(args, format);
        vsnprintf(err, cap, format, args);
        va_end(args);
    }
    return CAIRN_INVAL;
}

static bool name_is(const struct cairn_id_field *f, const char *name)
{
    return strlen(name) == f->name_len && memcmp(name, f->name, f->name_len) == 0;
}

static const struct known *known_find(const struct cairn_id_field *f)
{
    for (size_t i = 0; i < KNOWN_COUNT; i++)
        if (name_is(f, known_fields[i].name))
            return &known_fields[i];
    return NULL;
}

/* Length of the code point at p, or 0. Overlong forms, surrogates and values above U+10FFFF are not
 * UTF-8 (RFC 3629). */
static size_t utf8_step(const unsigned char *p, size_t left)
{
    if (p[0] < 0x80)
        return p[0] != 0;
    size_t n;
    unsigned char low = 0x80, high = 0xbf;
    if (p[0] >= 0xc2 && p[0] <= 0xdf) {
        n = 2;
    } else if (p[0] >= 0xe0 && p[0] <= 0xef) {
        n = 3;
        low = p[0] == 0xe0 ? 0xa0 : 0x80;
        high = p[0] == 0xed ? 0x9f : 0xbf;
    } else if (p[0] >= 0xf0 && p[0] <= 0xf4) {
        n = 4;
        low = p[0] == 0xf0 ? 0x90 : 0x80;
        high = p[0] == 0xf4 ? 0x8f : 0xbf;
    } else {
        return 0;
    }
    if (left < n || p[1] < low || p[1] > high)
        return 0;
    for (size_t i = 2; i < n; i++)
        if ((p[i] & 0xc0) != 0x80)
            return 0;
    return n;
}

bool cairn_utf8_valid(const char *bytes, size_t len)
{
    const unsigned char *p = (const unsigned char *)bytes;
    for (size_t i = 0; i < len;) {
        size_t n = utf8_step(p + i, len - i);
        if (n == 0)
            return false;
        i += n;
    }
    return true;
}

static bool name_valid(const struct cairn_id_field *f)
{
    if (f->name_len == 0 || f->name_len > CAIRN_ID_NAME_MAX)
        return false;
    for (size_t i = 0; i < f->name_len; i++) {
        unsigned char c = (unsigned char)f->name[i];
        if (c < 0x20 || c == 0x7f || c == '=')
            return false;
    }
    return cairn_utf8_valid(f->name, f->name_len);
}

static cairn_status number_check(struct cairn_id_field *f, const struct known *k, char *err,
                                 size_t cap)
{
    uint64_t n = 0;
    bool good = f->value_len > 0;
    for (size_t i = 0; i < f->value_len && good; i++) {
        char c = f->value[i];
        good = c >= '0' && c <= '9';
        if (good && n <= k->max)
            n = n * 10 + (uint64_t)(c - '0');
    }
    if (!good || n < k->min || n > k->max)
        return refuse(err, cap, "identity field '%s' is '%.*s': it must be a number from %u to %u",
                      k->name, f->value_len < 64 ? (int)f->value_len : 64, f->value, k->min,
                      k->max);
    while (f->value_len > 1 && f->value[0] == '0') {
        f->value++;
        f->value_len--;
    }
    return CAIRN_OK;
}

static cairn_status word_check(const struct cairn_id_field *f, const struct known *k, char *err,
                               size_t cap)
{
    for (size_t i = 0; i < f->value_len; i++)
        if (f->value[i] <= 0x20 || f->value[i] >= 0x7f)
            return refuse(err, cap, "identity field '%s' is '%.*s': it must be one ASCII word",
                          k->name, f->value_len < 64 ? (int)f->value_len : 64, f->value);
    return CAIRN_OK;
}

cairn_status cairn_id_field_check(struct cairn_id_field *f, char *err, size_t err_cap)
{
    if (!name_valid(f))
        return refuse(err, err_cap, "an identity field's name must be 1 to %u bytes of UTF-8 "
                      "without control characters and '='", CAIRN_ID_NAME_MAX);
    if (f->value_len > CAIRN_ID_VALUE_MAX)
        return refuse(err, err_cap, "identity field '%.*s' has %u bytes: the largest value is %u; "
                      "give a digest instead", (int)f->name_len, f->name, f->value_len,
                      CAIRN_ID_VALUE_MAX);
    if (!cairn_utf8_valid(f->value, f->value_len))
        return refuse(err, err_cap, "identity field '%.*s' is not UTF-8: give bytes as hex",
                      (int)f->name_len, f->name);
    const struct known *k = known_find(f);
    if (!k)
        return CAIRN_OK;
    if (f->value_len == 0)
        return refuse(err, err_cap, "identity field '%s' is empty: leave it out or give a value",
                      k->name);
    if (k->form == FORM_NUMBER)
        return number_check(f, k, err, err_cap);
    if (k->form == FORM_WORD)
        return word_check(f, k, err, err_cap);
    return CAIRN_OK;
}

int cairn_id_field_cmp(const struct cairn_id_field *a, const struct cairn_id_field *b)
{
    size_t n = a->name_len < b->name_len ? a->name_len : b->name_len;
    int c = memcmp(a->name, b->name, n);
    return c ? c : (int)a->name_len - (int)b->name_len;
}

const struct cairn_id_field *cairn_id_field_find(const struct cairn_id_field *fields, size_t count,
                                                 const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (name_is(&fields[i], name))
            return &fields[i];
    return NULL;
}

uint32_t cairn_id_field_number(const struct cairn_id_field *f)
{
    uint32_t n = 0;
    for (size_t i = 0; i < f->value_len; i++)
        n = n * 10 + (uint32_t)(f->value[i] - '0');
    return n;
}

static cairn_status rank_check(const struct cairn_id_field *fields, size_t count,
                               const char *rank_name, const char *size_name, char *err, size_t cap)
{
    const struct cairn_id_field *rank = cairn_id_field_find(fields, count, rank_name);
    const struct cairn_id_field *size = cairn_id_field_find(fields, count, size_name);
    if (!rank != !size)
        return refuse(err, cap, "identity field '%s' is given without '%s': give both or none",
                      rank ? rank_name : size_name, rank ? size_name : rank_name);
    if (rank && cairn_id_field_number(rank) >= cairn_id_field_number(size))
        return refuse(err, cap, "identity field '%s' is %u, but '%s' is %u: a rank is below its "
                      "size", rank_name, cairn_id_field_number(rank), size_name,
                      cairn_id_field_number(size));
    return CAIRN_OK;
}

cairn_status cairn_id_fields_check(const struct cairn_id_field *fields, size_t count, char *err,
                                   size_t err_cap)
{
    for (size_t i = 1; i < count; i++)
        if (cairn_id_field_cmp(&fields[i - 1], &fields[i]) == 0)
            return refuse(err, err_cap, "identity field '%.*s' is given twice",
                          (int)fields[i].name_len, fields[i].name);
    for (size_t i = 0; i < KNOWN_COUNT; i++)
        if (known_fields[i].required
            && !cairn_id_field_find(fields, count, known_fields[i].name))
            return refuse(err, err_cap, "an identity needs the field '%s'", known_fields[i].name);
    cairn_status s = rank_check(fields, count, "tp_rank", "tp_size", err, err_cap);
    if (s == CAIRN_OK)
        s = rank_check(fields, count, "pp_rank", "pp_size", err, err_cap);
    if (s == CAIRN_OK)
        s = rank_check(fields, count, "cp_rank", "cp_size", err, err_cap);
    return s;
}

bool cairn_id_field_hidden(const struct cairn_id_field *f)
{
    static const char *const endings[] = {"salt", "secret", "password", "token", "key"};
    if (known_find(f))
        return false;
    for (size_t i = 0; i < sizeof endings / sizeof endings[0]; i++) {
        size_t n = strlen(endings[i]);
        if (f->name_len < n || strncasecmp(f->name + f->name_len - n, endings[i], n) != 0)
            continue;
        if (f->name_len == n || strchr("_-. ", f->name[f->name_len - n - 1]))
            return true;
    }
    return false;
}
