/* A superblock that is taken has a geometry that the block numbers of 32 bits can express. */
#include "tests/fuzz/log_shape.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct cairn_super_disk s;
    fuzz_block(&s, data, size);
    cairn_super_check(&s);
    cairn_super_seal(&s);
    if (cairn_super_check(&s) != CAIRN_VERDICT_OK)
        return 0;
    uint64_t bytes;
    require(!__builtin_mul_overflow((uint64_t)s.segments, s.segment_bytes, &bytes));
    require((CAIRN_DATA_OFFSET + bytes) / CAIRN_BLOCK <= UINT32_MAX);
    require(s.segments >= 32 && s.prewritten <= s.segments);
    struct cairn_log_shape shape = {.segment_bytes = s.segment_bytes, .segments = s.segments};
    uint32_t last = cairn_segment_first(&shape, s.segments - 1) + cairn_segment_blocks(&shape) - 1;
    require(cairn_segment_of(&shape, last) == s.segments - 1);
    require(cairn_segment_of(&shape, last + 1) == UINT32_MAX);
    return 0;
}
