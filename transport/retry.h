/* When to call a node that may be gone. Closed: every call may. After `failures` of them in a row
 * it opens: no call may until a pause is over; then one may try (half-open). Success closes it;
 * failure opens it again for twice as long. One call that a node left without a word for all its
 * time opens it too: each more would cost as much. Pauses are spread at random, so that a thousand
 * clients do not come back at once. Thread-safe. Times are those of base/clock.h, given by the
 * caller. */
#ifndef CAIRN_TRANSPORT_RETRY_H
#define CAIRN_TRANSPORT_RETRY_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/types.h"

struct cairn_breaker_limits {
    uint32_t failures;      /* in a row, >= 1                                              */
    uint64_t pause_min_ns;  /* the first pause; each is then spread over 1/2 to 1 of itself */
    uint64_t pause_max_ns;
    uint64_t trial_ns;      /* after so long without a word of a trial another may be made  */
};

struct cairn_breaker {
    struct cairn_breaker_limits limits;
    _Atomic bool closed;    /* written under the lock; read alone it lets calls pass        */
    _Atomic uint32_t failed; /* in a row                                                    */
    pthread_mutex_t lock;
    uint64_t pause_ns;
    uint64_t until_ns;      /* open: no call before                                         */
    bool trial;             /* one is under way                                             */
    _Atomic uint64_t opens; /* times that it opened                                         */
    uint64_t random;
};

/* seed: any number that differs between clients. */
void cairn_breaker_open(struct cairn_breaker *b, const struct cairn_breaker_limits *limits,
                        uint64_t seed);
void cairn_breaker_close(struct cairn_breaker *b);

/* May a call be made now? Who is told true says afterwards how it went. */
bool cairn_breaker_may(struct cairn_breaker *b, uint64_t now_ns);
void cairn_breaker_went(struct cairn_breaker *b, bool well, uint64_t now_ns);
/* The same, not well, for a call whose whole time passed. */
void cairn_breaker_silent(struct cairn_breaker *b, uint64_t now_ns);
/* ns until a call may be made, 0 = now. */
uint64_t cairn_breaker_wait(struct cairn_breaker *b, uint64_t now_ns);

#endif
