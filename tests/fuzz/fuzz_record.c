/* A header that is taken keeps inside its segment, and its lengths agree with its blocks. */
#include "tests/fuzz/log_shape.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct cairn_record_disk r;
    static uint8_t payload[CAIRN_PIECE_BYTES];
    size_t used = fuzz_block(&r, data, size);
    cairn_record_check(&r, &fuzz_shape, r.loc.block, r.loc.generation);
    /* Past the checks and the names that only our own logs have. */
    memcpy(r.loc.uuid, fuzz_shape.uuid, sizeof r.loc.uuid);
    if (r.loc.segment >= fuzz_shape.segments)
        r.loc.segment %= fuzz_shape.segments;
    uint32_t first = cairn_segment_first(&fuzz_shape, r.loc.segment);
    if (cairn_segment_of(&fuzz_shape, r.loc.block) != r.loc.segment)
        r.loc.block = first + r.loc.block % cairn_segment_blocks(&fuzz_shape);
    cairn_loc_seal(&r.loc);
    cairn_body_seal(&r.body);
    if (!cairn_record_check(&r, &fuzz_shape, r.loc.block, r.loc.generation))
        return 0;
    require(r.loc.block >= first && r.loc.blocks >= 1);
    require(r.loc.blocks < cairn_segment_blocks(&fuzz_shape) - (r.loc.block - first));
    require(r.body.value_len <= CAIRN_VALUE_MAX && r.body.side_len <= CAIRN_SIDE_MAX);
    if (r.loc.kind == CAIRN_RECORD_VALUE) {
        require(r.loc.blocks == cairn_record_blocks(r.body.value_len, r.body.side_len));
        memcpy(payload, data + used, size - used < sizeof payload ? size - used : sizeof payload);
        for (uint32_t i = 0; i <= CAIRN_PIECES_MAX; i++)
            cairn_piece_check(&r, i, payload);
        cairn_side_check(&r, payload);
    }
    struct cairn_summary_disk s;
    cairn_summary_of(&r, &s);
    require(s.block == r.loc.block && s.blocks == r.loc.blocks);
    return 0;
}
