#include "base/options.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/clock.h"

#define NAME_MAX_BYTES 64
#define VALUE_MAX_BYTES 4096
/* How much of a value from outside a message repeats. */
#define SHOWN_BYTES 80

static const char *const bool_names[] = {"no", "yes", "false", "true", "off", "on", "0", "1", NULL};

/* Text from outside as a message may show it: printable and short. */
static const char *shown(const char *text, char out[SHOWN_BYTES])
{
    size_t n = 0;
    for (; text[n] && n < SHOWN_BYTES - 1; n++) {
        unsigned char c = (unsigned char)text[n];
        out[n] = (char)(c < 0x20 || c == 0x7f ? '?' : c);
    }
    if (text[n])
        memcpy(out + n - 3, "...", 3);
    out[n] = '\0';
    return out;
}

static char lower(char c)
{
    return (char)(c >= 'A' && c <= 'Z' ? c + 32 : c);
}

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Edits that turn a into b: insert, delete, replace, swap neighbours. Both at most
 * NAME_MAX_BYTES - 1 long. */
static uint32_t edit_distance(const char *a, const char *b)
{
    uint32_t rows[3][NAME_MAX_BYTES];
    uint32_t *before = rows[0], *above = rows[1], *row = rows[2];
    uint32_t len = (uint32_t)strlen(b);
    for (uint32_t j = 0; j <= len; j++)
        above[j] = j;
    for (uint32_t i = 1; a[i - 1]; i++) {
        row[0] = i;
        for (uint32_t j = 1; j <= len; j++) {
            bool differ = lower(a[i - 1]) != lower(b[j - 1]);
            uint32_t d = least(least(above[j], row[j - 1]) + 1, above[j - 1] + differ);
            if (i > 1 && j > 1 && lower(a[i - 1]) == lower(b[j - 2]) &&
                lower(a[i - 2]) == lower(b[j - 1]))
                d = least(d, before[j - 2] + 1);
            row[j] = d;
        }
        uint32_t *oldest = before;
        before = above;
        above = row;
        row = oldest;
    }
    return above[len];
}

const char *cairn_nearest(const char *name, const char *const *names)
{
    size_t len = strlen(name);
    if (len == 0 || len >= NAME_MAX_BYTES)
        return NULL;
    const char *best = NULL;
    uint32_t best_distance = UINT32_MAX;
    for (; *names; names++) {
        size_t other = strlen(*names);
        if (other == 0 || other >= NAME_MAX_BYTES)
            continue;
        uint32_t d = edit_distance(name, *names);
        /* "disk_size" is near "disk" although five edits away. */
        size_t shorter = other < len ? other : len;
        if (shorter >= 3 && strncasecmp(name, *names, shorter) == 0)
            d = least(d, 1);
        if (d < best_distance && d <= (len + 2) / 3) {
            best = *names;
            best_distance = d;
        }
    }
    return best;
}

static uint32_t choice_index(const char *const *choices, const char *value)
{
    uint32_t i = 0;
    while (choices[i] && strcasecmp(choices[i], value) != 0)
        i++;
    return choices[i] ? i : UINT32_MAX;
}

static cairn_status number_parse(const struct cairn_opt *o, const char *value, uint64_t *ret)
{
    if (o->type == CAIRN_OPT_SIZE)
        return cairn_parse_size(value, ret);
    if (o->type == CAIRN_OPT_DURATION)
        return cairn_parse_duration(value, ret);
    /* Units would be accepted by the size parser; a count has none. */
    if (value[strspn(value, "0123456789")])
        return CAIRN_INVAL;
    return cairn_parse_size(value, ret);
}

static void number_print(const struct cairn_opt *o, uint64_t n, char *out, size_t cap)
{
    static const struct {
        const char *name;
        uint64_t factor;
    } sizes[] = {{"TiB", 1ull << 40}, {"GiB", 1ull << 30}, {"MiB", 1ull << 20},
                 {"KiB", 1ull << 10}},
      times[] = {{"s", CAIRN_NS_PER_S}, {"ms", CAIRN_NS_PER_MS}, {"us", 1000}, {"ns", 1}};
    for (int i = 0; i < 4 && n && o->type != CAIRN_OPT_COUNT; i++) {
        uint64_t factor = o->type == CAIRN_OPT_SIZE ? sizes[i].factor : times[i].factor;
        const char *name = o->type == CAIRN_OPT_SIZE ? sizes[i].name : times[i].name;
        if (n % factor == 0) {
            snprintf(out, cap, "%llu%s", (unsigned long long)(n / factor), name);
            return;
        }
    }
    snprintf(out, cap, "%llu", (unsigned long long)n);
}

static cairn_status number_set(const struct cairn_opt *o, uint64_t *field, const char *value,
                               char *err, size_t err_cap)
{
    static const char *const wanted[] = {
        [CAIRN_OPT_SIZE] = "a size, as in 65536, 512MiB or 1.5GiB",
        [CAIRN_OPT_DURATION] = "a duration, as in 250ms, 5s or 1.5min",
        [CAIRN_OPT_COUNT] = "a whole number",
    };
    char text[SHOWN_BYTES];
    uint64_t n;
    if (number_parse(o, value, &n)) {
        snprintf(err, err_cap, "option '%s': '%s' is not %s", o->name, shown(value, text),
                 wanted[o->type]);
        return CAIRN_INVAL;
    }
    if ((o->min || o->max) && (n < o->min || n > o->max)) {
        char low[32], high[32];
        number_print(o, o->min, low, sizeof(low));
        number_print(o, o->max, high, sizeof(high));
        if (o->max == UINT64_MAX)
            snprintf(err, err_cap, "option '%s': %s is too small, at least %s is needed", o->name,
                     shown(value, text), low);
        else
            snprintf(err, err_cap, "option '%s': %s is out of range, allowed are %s to %s",
                     o->name, shown(value, text), low, high);
        return CAIRN_INVAL;
    }
    *field = n;
    return CAIRN_OK;
}

/* " (one, two or three)" */
static void choices_print(const char *const *choices, char *out, size_t cap)
{
    size_t at = 0;
    out[0] = '\0';
    for (uint32_t i = 0; choices[i] && at < cap; i++) {
        const char *between = i == 0 ? "" : choices[i + 1] ? ", " : " or ";
        int n = snprintf(out + at, cap - at, "%s%s", between, choices[i]);
        at += n > 0 ? (size_t)n : 0;
    }
}

static cairn_status word_fail(const struct cairn_opt *o, const char *const *words,
                              const char *value, char *err, size_t err_cap)
{
    char text[SHOWN_BYTES], all[256];
    const char *near = cairn_nearest(value, words);
    choices_print(words, all, sizeof(all));
    if (near)
        snprintf(err, err_cap, "option '%s': '%s' is not one of %s; did you mean '%s'?", o->name,
                 shown(value, text), all, near);
    else
        snprintf(err, err_cap, "option '%s': '%s' is not one of %s", o->name, shown(value, text),
                 all);
    return CAIRN_INVAL;
}

static cairn_status row_set(const struct cairn_opt *o, void *opts, const char *value, char *err,
                            size_t err_cap)
{
    char *field = (char *)opts + o->offset;
    uint32_t index;
    switch (o->type) {
    case CAIRN_OPT_SIZE:
    case CAIRN_OPT_DURATION:
    case CAIRN_OPT_COUNT:
        return number_set(o, (uint64_t *)(void *)field, value, err, err_cap);
    case CAIRN_OPT_BOOL:
        index = choice_index(bool_names, value);
        if (index == UINT32_MAX)
            return word_fail(o, bool_names, value, err, err_cap);
        *(bool *)field = index & 1;
        return CAIRN_OK;
    case CAIRN_OPT_CHOICE:
        index = choice_index(o->choices, value);
        if (index == UINT32_MAX)
            return word_fail(o, o->choices, value, err, err_cap);
        memcpy(field, &index, sizeof(index));
        return CAIRN_OK;
    case CAIRN_OPT_STRING:
        if (strlen(value) >= o->max) {
            snprintf(err, err_cap,
                     "option '%s': a value of %zu bytes is too long, at most %llu fit",
                     o->name, strlen(value), (unsigned long long)(o->max ? o->max - 1 : 0));
            return CAIRN_INVAL;
        }
        memset(field, 0, o->max);
        memcpy(field, value, strlen(value));
        return CAIRN_OK;
    }
    return CAIRN_INVAL;
}

void cairn_opts_defaults(const struct cairn_opt *table, void *opts)
{
    static const size_t sizes[] = {
        [CAIRN_OPT_SIZE] = 8, [CAIRN_OPT_DURATION] = 8,         [CAIRN_OPT_COUNT] = 8,
        [CAIRN_OPT_BOOL] = sizeof(bool), [CAIRN_OPT_CHOICE] = 4,
    };
    for (const struct cairn_opt *o = table; o->name; o++) {
        char err[256];
        size_t size = o->type == CAIRN_OPT_STRING ? o->max : sizes[o->type];
        memset((char *)opts + o->offset, 0, size);
        if (o->def)
            row_set(o, opts, o->def, err, sizeof(err));
    }
}

static cairn_status unknown_name(const struct cairn_opt *table, const char *name, char *err,
                                 size_t err_cap)
{
    const char *names[128];
    uint32_t count = 0;
    for (const struct cairn_opt *o = table; o->name && count < 127; o++)
        names[count++] = o->name;
    names[count] = NULL;
    char text[SHOWN_BYTES], all[512];
    const char *near = cairn_nearest(name, names);
    if (near) {
        snprintf(err, err_cap, "unknown option '%s'; did you mean '%s'?", shown(name, text), near);
    } else {
        choices_print(names, all, sizeof(all));
        snprintf(err, err_cap, "unknown option '%s'; known are %s", shown(name, text), all);
    }
    return CAIRN_INVAL;
}

cairn_status cairn_opts_set(const struct cairn_opt *table, void *opts, const char *name,
                            const char *value, char *err, size_t err_cap)
{
    for (const struct cairn_opt *o = table; o->name; o++)
        if (strcmp(o->name, name) == 0)
            return row_set(o, opts, value, err, err_cap);
    return unknown_name(table, name, err, err_cap);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = lower(c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Decodes %XX in text[0..len). NULL or why not. */
static const char *percent_decode(const char *text, size_t len, char *out, size_t cap)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        char c = text[i];
        if (c == '%') {
            bool room = len - i > 2;
            int high = room ? hex_digit(text[i + 1]) : -1;
            int low = room ? hex_digit(text[i + 2]) : -1;
            if (high < 0 || low < 0)
                return "a '%' must be followed by two hex digits (write %25 for itself)";
            c = (char)(high * 16 + low);
            i += 2;
        }
        if (c == '\0')
            return "a zero byte is not allowed";
        if (n + 1 >= cap)
            return "the text is too long";
        out[n++] = c;
    }
    out[n] = '\0';
    return NULL;
}

static cairn_status pair_set(const struct cairn_opt *table, void *opts, const char *pair,
                             size_t len, char *err, size_t err_cap)
{
    char name[NAME_MAX_BYTES], value[VALUE_MAX_BYTES], text[SHOWN_BYTES];
    char start[SHOWN_BYTES];
    snprintf(start, sizeof(start), "%.*s", (int)(len < SHOWN_BYTES ? len : SHOWN_BYTES - 1), pair);
    const char *equals = memchr(pair, '=', len);
    if (!equals) {
        snprintf(err, err_cap, "option '%s' has no value: write it as name=value",
                 shown(start, text));
        return CAIRN_INVAL;
    }
    size_t name_len = (size_t)(equals - pair);
    const char *why = percent_decode(pair, name_len, name, sizeof(name));
    if (!why)
        why = percent_decode(equals + 1, len - name_len - 1, value, sizeof(value));
    if (why) {
        snprintf(err, err_cap, "option '%s': %s", shown(start, text), why);
        return CAIRN_INVAL;
    }
    return cairn_opts_set(table, opts, name, value, err, err_cap);
}

cairn_status cairn_opts_query(const struct cairn_opt *table, void *opts, const char *query,
                              char *err, size_t err_cap)
{
    const char *p = query ? query : "";
    while (*p) {
        size_t len = strcspn(p, "&");
        if (len) {
            cairn_status s = pair_set(table, opts, p, len, err, err_cap);
            if (s)
                return s;
        }
        p += len + (p[len] == '&');
    }
    return CAIRN_OK;
}

void cairn_opts_print(const struct cairn_opt *o, const void *opts, char *out, size_t cap)
{
    const char *field = (const char *)opts + o->offset;
    uint64_t n = 0;
    uint32_t index;
    switch (o->type) {
    case CAIRN_OPT_SIZE:
    case CAIRN_OPT_DURATION:
    case CAIRN_OPT_COUNT:
        memcpy(&n, field, sizeof(n));
        number_print(o, n, out, cap);
        break;
    case CAIRN_OPT_BOOL:
        snprintf(out, cap, "%s", *(const bool *)field ? "yes" : "no");
        break;
    case CAIRN_OPT_CHOICE:
        memcpy(&index, field, sizeof(index));
        snprintf(out, cap, "%s", o->choices[index]);
        break;
    case CAIRN_OPT_STRING:
        snprintf(out, cap, "%s", field);
        break;
    }
}
