/* What a parser of the transport layer said about a stream of bytes, as text: however the stream is
 * cut into pieces, the text is the same. */
#ifndef CAIRN_TESTS_TRANSCRIPT_H
#define CAIRN_TESTS_TRANSCRIPT_H

#include "tests/helpers/value.h"
#include "transport/reply.h"
#include "transport/resp.h"

struct transcript {
    char *text;
    size_t len, cap;
};

__attribute__((format(printf, 2, 3))) void transcript_add(struct transcript *t, const char *fmt,
                                                          ...);
void transcript_bytes(struct transcript *t, const void *data, size_t len);
void transcript_free(struct transcript *t);

/* Feeds the stream in pieces of random sizes up to `piece` (0 = as large as the parser takes, 1 =
 * byte by byte). Every long argument whose length is divisible by 3 is refused. Aborts where the
 * parser breaks what its header says, memory above all. */
void transcript_requests(struct transcript *t, const struct cairn_resp_limits *limits,
                         const void *data, size_t len, size_t piece, struct rng *random);
/* The same of replies. Of strings that are not lent whole every third is read past, the others go
 * into runs of random sizes; `random` is for these alone and for the pieces. */
void transcript_replies(struct transcript *t, const struct cairn_reply_limits *limits,
                        bool straight, const void *data, size_t len, size_t piece,
                        struct rng *random);

#endif
