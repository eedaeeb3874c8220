#include <criterion/criterion.h>
#include <string.h>

#include "transport/wire.h"

static const char *why;

static struct cairn_wire_get a_get(void)
{
    return (struct cairn_wire_get){.key = {1}, .len = 5};
}

static struct cairn_wire_put a_put(void)
{
    return (struct cairn_wire_put){.key = {[31] = 9}, .value_len = 64u << 20};
}

static cairn_status get(struct cairn_wire_get item)
{
    char bytes[sizeof(item) + 1];
    struct cairn_wire_get back;
    memcpy(bytes + 1, &item, sizeof(item));
    cairn_status status = cairn_wire_get_read(bytes + 1, &back, &why);
    cr_assert(status != CAIRN_OK || memcmp(&back, &item, sizeof(item)) == 0);
    return status;
}

static cairn_status put(struct cairn_wire_put item)
{
    char bytes[sizeof(item) + 1];
    struct cairn_wire_put back;
    memcpy(bytes + 1, &item, sizeof(item));
    cairn_status status = cairn_wire_put_read(bytes + 1, &back, &why);
    cr_assert(status != CAIRN_OK || memcmp(&back, &item, sizeof(item)) == 0);
    return status;
}

#define REFUSED(decode, make, change, word)                     \
    do {                                                        \
        __typeof__(make()) item = make();                       \
        change;                                                 \
        cr_expect_eq(decode(item), CAIRN_INVAL, "%s", #change); \
        cr_expect(strstr(why, word), "%s: %s", #change, why);   \
    } while (0)

Test(wire, gets)
{
    struct cairn_wire_get good = a_get();
    cr_assert_eq(get(good), CAIRN_OK);
    good.flags = CAIRN_GET_RANGE;
    good.offset = (64u << 20) - 5;
    cr_assert_eq(get(good), CAIRN_OK);
    REFUSED(get, a_get, item.flags = 2, "flags");
    REFUSED(get, a_get, item.pad = 1, "padding");
    REFUSED(get, a_get, item.key[0] = 0, "key");
    REFUSED(get, a_get, item.len = 0, "0 bytes");
    REFUSED(get, a_get, item.len = (64u << 20) + 1, "largest");
    REFUSED(get, a_get, item.offset = 1, "offset");
    REFUSED(get, a_get, item.flags = 1; item.offset = (64u << 20) - 4, "range");
    REFUSED(get, a_get, item.flags = 1; item.offset = UINT64_MAX, "range");
}

Test(wire, puts)
{
    struct cairn_wire_put good = a_put();
    cr_assert_eq(put(good), CAIRN_OK);
    good.flags = CAIRN_PUT_REPLACE | CAIRN_WIRE_PUT_WINDOW;
    good.window_offset = UINT64_MAX - good.value_len;
    cr_assert_eq(put(good), CAIRN_OK);
    REFUSED(put, a_put, item.flags = 2, "flags");
    REFUSED(put, a_put, item.pad = 1, "padding");
    REFUSED(put, a_put, item.key[31] = 0, "key");
    REFUSED(put, a_put, item.value_len = 0, "0 bytes");
    REFUSED(put, a_put, item.value_len++, "largest");
    REFUSED(put, a_put, item.window_offset = 1, "window");
    REFUSED(put, a_put, item.flags = 256; item.window_offset = UINT64_MAX, "window");
}

Test(wire, counts)
{
    uint32_t count = 0;
    cr_assert(cairn_wire_count(64, 32, 2, &count) && count == 2);
    cr_assert(!cairn_wire_count(0, 32, 2, &count));
    cr_assert(!cairn_wire_count(33, 32, 2, &count));
    cr_assert(!cairn_wire_count(96, 32, 2, &count));
    cr_assert(!cairn_wire_count(SIZE_MAX - 31, 32, CAIRN_WIRE_KEYS_MAX, &count));
}
