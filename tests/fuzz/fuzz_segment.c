/* Head, trailer and summaries: what is taken lies in the segment, in order, without overlap. */
#include "tests/fuzz/log_shape.h"

static void head(const uint8_t *data, size_t size)
{
    static struct cairn_head_disk h;
    fuzz_block(&h, data, size);
    cairn_head_check(&h, &fuzz_shape, h.segment);
    memcpy(h.uuid, fuzz_shape.uuid, sizeof h.uuid);
    cairn_head_seal(&h);
    if (cairn_head_check(&h, &fuzz_shape, 3) == CAIRN_VERDICT_OK)
        require(h.segment == 3 && h.generation != 0 && h.floor <= h.generation);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct cairn_trailer_disk t;
    static struct cairn_summary_disk sums[256];
    size_t used = fuzz_block(&t, data, size);
    head(data, size);
    memset(sums, 0, sizeof sums);
    memcpy(sums, data + used, size - used < sizeof sums ? size - used : sizeof sums);
    cairn_trailer_check(&t, &fuzz_shape, t.segment, t.generation);
    memcpy(t.uuid, fuzz_shape.uuid, sizeof t.uuid);
    t.segment = 3;
    /* A count beyond the segment must be refused before anybody reads so many. */
    uint32_t count = t.count;
    if (count > 256)
        t.count = 256;
    cairn_trailer_seal(&t, sums);
    if (count > 256) {
        uint64_t check = t.summary_check;
        t.count = count;
        t.check = cairn_hash64(&t, sizeof t - 8);
        t.summary_check = check;
        require(cairn_trailer_check(&t, &fuzz_shape, 3, t.generation) != CAIRN_VERDICT_OK);
        return 0;
    }
    if (cairn_trailer_check(&t, &fuzz_shape, 3, t.generation) != CAIRN_VERDICT_OK)
        return 0;
    uint32_t first = cairn_segment_first(&fuzz_shape, 3);
    require(t.first_block > first && t.count < 256);
    if (!cairn_summaries_check(&t, sums, &fuzz_shape))
        return 0;
    uint32_t at = first + 1;
    for (uint32_t i = 0; i < t.count; i++) {
        require(sums[i].block >= at && sums[i].blocks >= 1);
        at = sums[i].block + sums[i].blocks;
        require(at <= t.first_block && sums[i].value_len <= CAIRN_VALUE_MAX);
    }
    return 0;
}
