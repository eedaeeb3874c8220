/* What a node sends, to a client that trusts it with nothing. The first byte chooses the limits and
 * whether strings are lent; the rest is the stream, read whole and in pieces. */
#include <stdlib.h>
#include <string.h>

#include "tests/helpers/transcript.h"

/* Not byte by byte from here on: slow, and short inputs say the same. */
#define LONG_INPUT 2000u

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct cairn_reply_limits limits[] = {
    {.small_max = 8, .count_max = 6, .bulk_max = 4096},
    {.small_max = 65536, .count_max = 100000, .bulk_max = 1u << 20},
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const size_t pieces[] = {1, 5, 64};
    if (size == 0)
        return 0;
    const struct cairn_reply_limits *l = &limits[data[0] & 1];
    bool straight = data[0] & 2;
    struct rng random = {.state = size};
    struct transcript whole = {0};
    transcript_replies(&whole, l, straight, data + 1, size - 1, 0, &random);
    for (size_t i = size > LONG_INPUT; i < sizeof(pieces) / sizeof(*pieces); i++) {
        struct transcript t = {0};
        transcript_replies(&t, l, straight, data + 1, size - 1, pieces[i], &random);
        if (strcmp(t.text, whole.text) != 0)
            abort();
        transcript_free(&t);
    }
    transcript_free(&whole);
    return 0;
}
