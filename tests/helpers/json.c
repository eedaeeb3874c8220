#include "tests/helpers/json.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 32

struct reader {
    const char *at;
    bool bad;
};

static struct json *read_value(struct reader *r, int depth);

static char skip_space(struct reader *r)
{
    while (*r->at && strchr(" \t\r\n", *r->at))
        r->at++;
    return *r->at;
}

static bool take(struct reader *r, const char *word)
{
    size_t n = strlen(word);
    if (strncmp(r->at, word, n) != 0)
        return false;
    r->at += n;
    return true;
}

static unsigned read_hex4(struct reader *r)
{
    unsigned v = 0;
    for (int i = 0; i < 4; i++, r->at++) {
        if (!isxdigit((unsigned char)*r->at)) {
            r->bad = true;
            return 0;
        }
        char c = *r->at;
        v = v * 16 + (unsigned)(c <= '9' ? c - '0' : (c | 32) - 'a' + 10);
    }
    return v;
}

static char *write_utf8(char *out, unsigned c)
{
    if (c < 0x80) {
        *out++ = (char)c;
    } else if (c < 0x800) {
        *out++ = (char)(0xc0 | c >> 6);
        *out++ = (char)(0x80 | (c & 63));
    } else if (c < 0x10000) {
        *out++ = (char)(0xe0 | c >> 12);
        *out++ = (char)(0x80 | (c >> 6 & 63));
        *out++ = (char)(0x80 | (c & 63));
    } else {
        *out++ = (char)(0xf0 | c >> 18);
        *out++ = (char)(0x80 | (c >> 12 & 63));
        *out++ = (char)(0x80 | (c >> 6 & 63));
        *out++ = (char)(0x80 | (c & 63));
    }
    return out;
}

static char *read_escape(struct reader *r, char *out)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = *r->at++;
    const char *found = c ? strchr(from, c) : NULL;
    if (found) {
        *out++ = to[found - from];
        return out;
    }
    if (c != 'u') {
        r->bad = true;
        return out;
    }
    unsigned v = read_hex4(r);
    if (v >= 0xd800 && v < 0xdc00) {
        r->bad |= !take(r, "\\u");
        unsigned low = r->bad ? 0 : read_hex4(r);
        r->bad |= low < 0xdc00 || low > 0xdfff;
        v = 0x10000 + ((v - 0xd800) << 10) + (low - 0xdc00);
    }
    r->bad |= v == 0;
    return r->bad ? out : write_utf8(out, v);
}

static char *read_string(struct reader *r, size_t *ret_len)
{
    if (!take(r, "\"")) {
        r->bad = true;
        return NULL;
    }
    char *text = malloc(strlen(r->at) + 1), *out = text;
    while (!r->bad && *r->at != '"') {
        if ((unsigned char)*r->at < 0x20) {
            r->bad = true;
        } else if (*r->at == '\\') {
            r->at++;
            out = read_escape(r, out);
        } else {
            *out++ = *r->at++;
        }
    }
    *out = 0;
    r->at += !r->bad;
    *ret_len = (size_t)(out - text);
    return realloc(text, *ret_len + 1);
}

static void read_members(struct reader *r, struct json *j, char end, int depth)
{
    struct json **tail = &j->kids;
    if (skip_space(r) == end) {
        r->at++;
        return;
    }
    while (!r->bad) {
        char *name = NULL;
        size_t len;
        skip_space(r);
        if (end == '}') {
            name = read_string(r, &len);
            r->bad |= skip_space(r) != ':';
            r->at += !r->bad;
        }
        struct json *kid = read_value(r, depth + 1);
        kid->name = name;
        *tail = kid;
        tail = &kid->next;
        j->count++;
        char c = skip_space(r);
        r->bad |= c != ',' && c != end;
        r->at += !r->bad;
        if (c == end)
            return;
    }
}

static void read_number(struct reader *r, struct json *j)
{
    char *end;
    if (*r->at != '-' && !isdigit((unsigned char)*r->at)) {
        r->bad = true;
        return;
    }
    j->kind = JSON_NUMBER;
    j->number = strtod(r->at, &end);
    r->at = end;
}

static struct json *read_value(struct reader *r, int depth)
{
    struct json *j = calloc(1, sizeof *j);
    char c = skip_space(r);
    if (depth > DEPTH_MAX) {
        r->bad = true;
    } else if (c == '{' || c == '[') {
        j->kind = c == '{' ? JSON_OBJECT : JSON_ARRAY;
        r->at++;
        read_members(r, j, c == '{' ? '}' : ']', depth);
    } else if (c == '"') {
        j->kind = JSON_STRING;
        j->text = read_string(r, &j->count);
    } else if (take(r, "true")) {
        j->kind = JSON_BOOL;
        j->truth = true;
    } else if (take(r, "false")) {
        j->kind = JSON_BOOL;
    } else if (!take(r, "null")) {
        read_number(r, j);
    }
    return j;
}

struct json *json_parse(const char *text)
{
    struct reader r = {.at = text};
    struct json *j = read_value(&r, 0);
    if (!r.bad && skip_space(&r) == 0)
        return j;
    json_free(j);
    return NULL;
}

struct json *json_load(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return NULL;
    size_t cap = 1 << 20, len = 0, n;
    char *text = malloc(cap + 1);
    while ((n = fread(text + len, 1, cap - len, f)) > 0) {
        len += n;
        if (len == cap)
            text = realloc(text, (cap *= 2) + 1);
    }
    text[len] = 0;
    fclose(f);
    struct json *j = json_parse(text);
    free(text);
    return j;
}

void json_free(struct json *j)
{
    while (j) {
        struct json *next = j->next;
        json_free(j->kids);
        free(j->text);
        free(j->name);
        free(j);
        j = next;
    }
}

const struct json *json_get(const struct json *object, const char *name)
{
    if (!object || object->kind != JSON_OBJECT)
        return NULL;
    for (const struct json *j = object->kids; j; j = j->next)
        if (strcmp(j->name, name) == 0)
            return j;
    return NULL;
}

const char *json_text(const struct json *object, const char *name)
{
    const struct json *j = json_get(object, name);
    return j && j->kind == JSON_STRING ? j->text : NULL;
}

double json_number(const struct json *object, const char *name, double other)
{
    const struct json *j = json_get(object, name);
    return j && j->kind == JSON_NUMBER ? j->number : other;
}
