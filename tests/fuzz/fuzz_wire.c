/* Items of the CAIRN.* commands. What is taken has the bytes that came, and lies within bounds. */
#include <stdlib.h>
#include <string.h>

#include "transport/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool ok)
{
    if (!ok)
        abort();
}

static void get_check(const uint8_t *data)
{
    struct cairn_wire_get item;
    const char *why = NULL;
    if (cairn_wire_get_read(data, &item, &why) != CAIRN_OK) {
        require(why && *why);
        return;
    }
    require(memcmp(&item, data, sizeof(item)) == 0 && item.len > 0);
    require(item.offset <= (64u << 20) && item.offset + item.len <= (64u << 20));
}

static void put_check(const uint8_t *data)
{
    struct cairn_wire_put item;
    const char *why = NULL;
    if (cairn_wire_put_read(data, &item, &why) != CAIRN_OK) {
        require(why && *why);
        return;
    }
    require(memcmp(&item, data, sizeof(item)) == 0);
    require(item.value_len > 0 && item.value_len <= (64u << 20));
    require(item.window_offset + item.value_len > item.window_offset);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint32_t count;
    if (cairn_wire_count(size, sizeof(struct cairn_wire_get), CAIRN_WIRE_BATCH_MAX, &count))
        for (uint32_t i = 0; i < count; i++)
            get_check(data + i * sizeof(struct cairn_wire_get));
    if (cairn_wire_count(size, sizeof(struct cairn_wire_put), CAIRN_WIRE_BATCH_MAX, &count))
        for (uint32_t i = 0; i < count; i++)
            put_check(data + i * sizeof(struct cairn_wire_put));
    return 0;
}
