/* Numbers with units, to and from text. Locale-free and overflow-checked. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/clock.h"
#include "base/options.h"

#define FRACTION_DIGITS_MAX 9

struct unit {
    const char *name;
    uint64_t factor;
};

static const struct unit size_units[] = {
    {"", 1},           {"B", 1},           {"K", 1ull << 10},   {"KiB", 1ull << 10},
    {"KB", 1000},      {"M", 1ull << 20},  {"MiB", 1ull << 20}, {"MB", 1000000ull},
    {"G", 1ull << 30}, {"GiB", 1ull << 30}, {"GB", 1000000000ull}, {"T", 1ull << 40},
    {"TiB", 1ull << 40}, {"TB", 1000000000000ull}, {NULL, 0},
};

static const struct unit time_units[] = {
    {"", CAIRN_NS_PER_S},
    {"ns", 1},
    {"us", 1000},
    {"ms", CAIRN_NS_PER_MS},
    {"s", CAIRN_NS_PER_S},
    {"min", 60 * CAIRN_NS_PER_S},
    {"m", 60 * CAIRN_NS_PER_S},
    {"h", 3600 * CAIRN_NS_PER_S},
    {"d", 86400 * CAIRN_NS_PER_S},
    {NULL, 0},
};

/* Digits of *text as a number; false if there are none or they overflow. */
static bool digits_parse(const char **text, uint64_t *ret)
{
    const char *p = *text;
    uint64_t n = 0;
    for (; *p >= '0' && *p <= '9'; p++)
        if (__builtin_mul_overflow(n, 10u, &n) ||
            __builtin_add_overflow(n, (uint64_t)(*p - '0'), &n))
            return false;
    if (p == *text)
        return false;
    *text = p;
    *ret = n;
    return true;
}

static cairn_status quantity_parse(const char *text, const struct unit *units, uint64_t *ret)
{
    const char *p = text;
    uint64_t whole, fraction = 0, scale = 1;
    if (!p || !digits_parse(&p, &whole))
        return CAIRN_INVAL;
    if (*p == '.') {
        const char *start = ++p;
        if (!digits_parse(&p, &fraction) || p - start > FRACTION_DIGITS_MAX)
            return CAIRN_INVAL;
        for (const char *d = start; d < p; d++)
            scale *= 10;
    }
    if (p[0] == ' ' && p[1] != '\0')
        p++;
    for (const struct unit *u = units; u->name; u++) {
        if (strcasecmp(p, u->name) != 0)
            continue;
        uint64_t n;
        if (scale > 1 && u->factor == 1)
            return CAIRN_INVAL;
        uint64_t part = (uint64_t)((unsigned __int128)fraction * u->factor / scale);
        if (__builtin_mul_overflow(whole, u->factor, &n) || __builtin_add_overflow(n, part, &n))
            return CAIRN_INVAL;
        *ret = n;
        return CAIRN_OK;
    }
    return CAIRN_INVAL;
}

cairn_status cairn_parse_size(const char *text, uint64_t *ret_bytes)
{
    return quantity_parse(text, size_units, ret_bytes);
}

cairn_status cairn_parse_duration(const char *text, uint64_t *ret_ns)
{
    return quantity_parse(text, time_units, ret_ns);
}

const char *cairn_format_size(uint64_t bytes, char *out, size_t cap)
{
    static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    uint32_t unit = 0;
    while (unit < 6 && bytes >> (10 * (unit + 1)))
        unit++;
    uint64_t one = 1ull << (10 * unit);
    if (bytes % one == 0)
        snprintf(out, cap, "%llu %s", (unsigned long long)(bytes / one), names[unit]);
    else
        snprintf(out, cap, "%.1f %s", (double)bytes / (double)one, names[unit]);
    return out;
}
