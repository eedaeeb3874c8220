/* Seed of a randomised unit test: CAIRN_SEED if it is set, else from the clock; always printed. */
#ifndef CAIRN_TESTS_SEED_H
#define CAIRN_TESTS_SEED_H

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "tests/helpers/value.h"

static inline struct rng test_rng(const char *name)
{
    const char *given = getenv("CAIRN_SEED");
    struct rng r = {.state = given ? strtoull(given, NULL, 0) : cairn_now_ns()};
    fprintf(stderr, "%s: CAIRN_SEED=%" PRIu64 "\n", name, r.state);
    return r;
}

#endif
