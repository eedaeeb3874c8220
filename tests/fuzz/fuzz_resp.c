/* What a client sends. The first byte chooses the limits, the rest is the stream: it is read whole,
 * byte by byte and in pieces, long arguments given or refused, and must say the same each time. */
#include <stdlib.h>
#include <string.h>

#include "tests/helpers/transcript.h"

/* Not byte by byte from here on: slow, and short inputs say the same. */
#define LONG_INPUT 2000u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct cairn_resp_limits limits[] = {
    {.args_max = 64, .inline_max = 64, .small_max = 8, .bulk_max = 4096, .request_max = 300},
    {.args_max = 1024,
     .inline_max = 65536,
     .small_max = 16384,
     .bulk_max = 1u << 20,
     .request_max = 1u << 20},
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const size_t pieces[] = {1, 5, 64};
    if (size == 0)
        return 0;
    const struct cairn_resp_limits *l = &limits[data[0] & 1];
    struct rng random = {.state = size};
    struct transcript whole = {0};
    transcript_requests(&whole, l, data + 1, size - 1, 0, &random);
    for (size_t i = size > LONG_INPUT; i < sizeof(pieces) / sizeof(*pieces); i++) {
        struct transcript t = {0};
        transcript_requests(&t, l, data + 1, size - 1, pieces[i], &random);
        if (strcmp(t.text, whole.text) != 0)
            abort();
        transcript_free(&t);
    }
    transcript_free(&whole);
    return 0;
}
