/* Numbers of RESP: decimal digits, as Redis takes and writes them. */
#ifndef CAIRN_TRANSPORT_DECIMAL_H
#define CAIRN_TRANSPORT_DECIMAL_H

#include <stdbool.h>

#include "base/types.h"

#define CAIRN_DECIMAL_MAX 20u /* characters of the longest one */

/* Only the one shortest form of a number: no sign "+", no leading zeros, no white space. */
static inline bool cairn_decimal_read(const char *text, size_t len, int64_t *ret)
{
    bool minus = len > 0 && text[0] == '-';
    size_t i = minus;
    uint64_t value = 0, limit = (uint64_t)INT64_MAX + minus;
    if (i == len || len > CAIRN_DECIMAL_MAX || (text[i] == '0' && len > 1))
        return false;
    for (; i < len; i++) {
        uint64_t digit = (uint64_t)(unsigned char)text[i] - '0';
        if (digit > 9 || value > (limit - digit) / 10)
            return false;
        value = value * 10 + digit;
    }
    *ret = minus ? (int64_t)(0 - value) : (int64_t)value;
    return true;
}

/* Writes at most CAIRN_DECIMAL_MAX characters, no NUL; returns how many. */
static inline size_t cairn_decimal_write(char *out, int64_t value)
{
    char backwards[CAIRN_DECIMAL_MAX];
    uint64_t rest = value < 0 ? 0 - (uint64_t)value : (uint64_t)value;
    size_t count = 0, len = 0;
    do {
        backwards[count++] = (char)('0' + rest % 10);
        rest /= 10;
    } while (rest > 0);
    if (value < 0)
        out[len++] = '-';
    while (count > 0)
        out[len++] = backwards[--count];
    return len;
}

#endif
