#include "transport/wire.h"

#include <string.h>

#define VALUE_MAX ((uint64_t)CAIRN_PIECES_MAX * CAIRN_PIECE_BYTES)

static cairn_status refuse(const char **why, const char *text)
{
    *why = text;
    return CAIRN_INVAL;
}

static bool key_is_zero(const uint8_t *key)
{
    static const uint8_t zero[32];
    return memcmp(key, zero, sizeof(zero)) == 0;
}

cairn_status cairn_wire_get_read(const void *bytes, struct cairn_wire_get *ret, const char **why)
{
    struct cairn_wire_get item;
    memcpy(&item, bytes, sizeof(item));
    if (item.flags & ~(uint32_t)CAIRN_GET_RANGE)
        return refuse(why, "unknown flags in a get; the client is newer than this node");
    if (item.pad != 0)
        return refuse(why, "padding of a get is not zero");
    if (key_is_zero(item.key))
        return refuse(why, "a key of 32 zero bytes is no key");
    if (item.len == 0 || item.len > VALUE_MAX)
        return refuse(why, "a get asks for 0 bytes or for more than the largest value");
    if (!(item.flags & CAIRN_GET_RANGE) && item.offset != 0)
        return refuse(why, "a get has an offset, but is not one of a range");
    if (item.offset > VALUE_MAX - item.len)
        return refuse(why, "a range ends behind the largest value");
    *ret = item;
    return CAIRN_OK;
}

cairn_status cairn_wire_put_read(const void *bytes, struct cairn_wire_put *ret, const char **why)
{
    struct cairn_wire_put item;
    memcpy(&item, bytes, sizeof(item));
    if (item.flags & ~(CAIRN_PUT_REPLACE | CAIRN_WIRE_PUT_WINDOW))
        return refuse(why, "unknown flags in a put; the client is newer than this node");
    if (item.pad != 0)
        return refuse(why, "padding of a put is not zero");
    if (key_is_zero(item.key))
        return refuse(why, "a key of 32 zero bytes is no key");
    if (item.value_len == 0 || item.value_len > VALUE_MAX)
        return refuse(why, "a put is of 0 bytes or of more than the largest value");
    if (!(item.flags & CAIRN_WIRE_PUT_WINDOW) && item.window_offset != 0)
        return refuse(why, "a put has an offset into the window, but does not use it");
    if (item.window_offset > UINT64_MAX - item.value_len)
        return refuse(why, "a put ends behind its window");
    *ret = item;
    return CAIRN_OK;
}
