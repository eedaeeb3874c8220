#include "tools/json.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 32
#define PATH_CAP 256
#define VALUE_CAP 4096

void json_string(FILE *f, const char *text)
{
    fputc('"', f);
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        if (*p == '"' || *p == '\\')
            fprintf(f, "\\%c", *p);
        else if (*p < 0x20)
            fprintf(f, "\\u%04x", *p);
        else
            fputc(*p, f);
    }
    fputc('"', f);
}

void json_number(FILE *f, double value)
{
    if (isfinite(value))
        fprintf(f, "%.6g", value);
    else
        fputs("null", f);
}

struct walk {
    const char *p;
    json_leaf_fn fn;
    void *arg;
    char path[PATH_CAP];
    char value[VALUE_CAP];
};

static bool walk_value(struct walk *w, size_t path_len, int depth);

static void skip_space(struct walk *w)
{
    w->p += strspn(w->p, " \t\r\n");
}

static bool put_char(char *out, size_t cap, size_t *len, char c)
{
    if (*len + 1 >= cap)
        return false;
    out[(*len)++] = c;
    out[*len] = 0;
    return true;
}

/* Code points above ASCII come out as UTF-8; surrogate halves as '?'. */
static bool put_escape(struct walk *w, char *out, size_t cap, size_t *len)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    char c = *w->p++;
    const char *at = c ? strchr(from, c) : NULL;
    if (at)
        return put_char(out, cap, len, to[at - from]);
    if (c != 'u')
        return false;
    char hex[5] = {0};
    for (int i = 0; i < 4; i++, w->p++) {
        if (!strchr("0123456789abcdefABCDEF", *w->p) || !*w->p)
            return false;
        hex[i] = *w->p;
    }
    unsigned long u = strtoul(hex, NULL, 16);
    if (u < 0x80)
        return put_char(out, cap, len, (char)u);
    if (u >= 0xd800 && u < 0xe000)
        return put_char(out, cap, len, '?');
    if (u < 0x800)
        return put_char(out, cap, len, (char)(0xc0 | (u >> 6))) &&
               put_char(out, cap, len, (char)(0x80 | (u & 0x3f)));
    return put_char(out, cap, len, (char)(0xe0 | (u >> 12))) &&
           put_char(out, cap, len, (char)(0x80 | ((u >> 6) & 0x3f))) &&
           put_char(out, cap, len, (char)(0x80 | (u & 0x3f)));
}

/* p is behind the opening quote. */
static bool take_string(struct walk *w, char *out, size_t cap)
{
    size_t len = 0;
    out[0] = 0;
    while (*w->p != '"') {
        if (!*w->p)
            return false;
        if (*w->p == '\\') {
            w->p++;
            if (!put_escape(w, out, cap, &len))
                return false;
        } else if (!put_char(out, cap, &len, *w->p++)) {
            return false;
        }
    }
    w->p++;
    return true;
}

static size_t push_path(struct walk *w, size_t path_len, const char *name)
{
    int n = snprintf(w->path + path_len, PATH_CAP - path_len, "%s%s", path_len ? "." : "", name);
    size_t len = path_len + (size_t)(n < 0 ? 0 : n);
    return len < PATH_CAP ? len : PATH_CAP - 1;
}

static bool walk_members(struct walk *w, size_t path_len, int depth, char close)
{
    bool object = close == '}';
    skip_space(w);
    if (*w->p == close) {
        w->p++;
        return true;
    }
    for (unsigned i = 0;; i++) {
        char name[128];
        skip_space(w);
        if (object) {
            if (*w->p++ != '"' || !take_string(w, name, sizeof name))
                return false;
            skip_space(w);
            if (*w->p++ != ':')
                return false;
        } else {
            snprintf(name, sizeof name, "%u", i);
        }
        if (!walk_value(w, push_path(w, path_len, name), depth + 1))
            return false;
        skip_space(w);
        char c = *w->p++;
        if (c == close)
            return true;
        if (c != ',')
            return false;
    }
}

static bool walk_scalar(struct walk *w)
{
    size_t n = strspn(w->p, "+-.0123456789abcdefghijklmnopqrstuvwxyzE");
    if (!n || n >= VALUE_CAP)
        return false;
    memcpy(w->value, w->p, n);
    w->value[n] = 0;
    w->p += n;
    static const char *const words[] = {"true", "false", "null"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strcmp(w->value, words[i]))
            return true;
    char *end;
    strtod(w->value, &end);
    return !*end && strchr("-0123456789", w->value[0]);
}

static bool walk_value(struct walk *w, size_t path_len, int depth)
{
    if (depth > DEPTH_MAX)
        return false;
    skip_space(w);
    w->path[path_len] = 0;
    if (*w->p == '{' || *w->p == '[')
        return walk_members(w, path_len, depth, *w->p++ == '{' ? '}' : ']');
    bool is_string = *w->p == '"';
    if (is_string) {
        w->p++;
        if (!take_string(w, w->value, sizeof w->value))
            return false;
    } else if (!walk_scalar(w)) {
        return false;
    }
    w->fn(w->arg, w->path, w->value, is_string);
    return true;
}

bool json_walk(const char *text, json_leaf_fn fn, void *arg)
{
    struct walk w = {.p = text, .fn = fn, .arg = arg};
    if (!walk_value(&w, 0, 0))
        return false;
    skip_space(&w);
    return !*w.p;
}

struct find {
    const char *path;
    double value;
    bool found;
};

static void find_leaf(void *arg, const char *path, const char *value, bool is_string)
{
    struct find *f = arg;
    if (is_string || strcmp(path, f->path))
        return;
    char *end;
    f->value = strtod(value, &end);
    f->found = !*end;
}

bool json_find_number(const char *text, const char *path, double *ret)
{
    struct find f = {.path = path};
    if (!json_walk(text, find_leaf, &f) || !f.found)
        return false;
    *ret = f.value;
    return true;
}

static void print_leaf(void *arg, const char *path, const char *value, bool is_string)
{
    (void)is_string;
    fprintf(arg, "%-40s %s\n", path, value);
}

void json_print_flat(FILE *f, const char *text)
{
    json_walk(text, print_leaf, f);
}
