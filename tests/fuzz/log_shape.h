/* The log that the fuzzed structures claim to be part of: 32 segments of 1 MiB. */
#ifndef CAIRN_TESTS_FUZZ_LOG_SHAPE_H
#define CAIRN_TESTS_FUZZ_LOG_SHAPE_H

#include <stdlib.h>
#include <string.h>

#include "storage/format.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct cairn_log_shape fuzz_shape = {
    .uuid = "fuzzed log uuid",
    .segment_bytes = 1u << 20,
    .segments = 32,
};

static inline void require(bool ok)
{
    if (!ok)
        abort();
}

/* Input bytes over a block of zeros; the rest of the input is returned. */
static inline size_t fuzz_block(void *block, const uint8_t *data, size_t size)
{
    size_t n = size < CAIRN_BLOCK ? size : CAIRN_BLOCK;
    memset(block, 0, CAIRN_BLOCK);
    memcpy(block, data, n);
    return n;
}

#endif
