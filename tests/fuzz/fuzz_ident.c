/* An identity slot that is taken names no more bytes than it has. */
#include "tests/fuzz/log_shape.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct cairn_ident_disk d;
    fuzz_block(&d, data, size);
    cairn_ident_check(&d, &fuzz_shape);
    memcpy(d.uuid, fuzz_shape.uuid, sizeof d.uuid);
    cairn_ident_seal(&d);
    if (cairn_ident_check(&d, &fuzz_shape) == CAIRN_VERDICT_OK)
        require(d.len >= 1 && d.len <= sizeof d.bytes);
    return 0;
}
