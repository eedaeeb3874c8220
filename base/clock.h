/* Time. Deadlines are absolute CLOCK_MONOTONIC nanoseconds everywhere; 0 means "already over" and
 * UINT64_MAX "never" (used only where the caller has a bound of its own). */
#ifndef CAIRN_BASE_CLOCK_H
#define CAIRN_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#define CAIRN_NS_PER_MS 1000000ull
#define CAIRN_NS_PER_S 1000000000ull

static inline uint64_t cairn_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * CAIRN_NS_PER_S + (uint64_t)t.tv_nsec;
}

/* Wall clock, for what outlives the process (expiry, creation times). */
static inline uint64_t cairn_wall_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * CAIRN_NS_PER_S + (uint64_t)t.tv_nsec;
}

static inline uint64_t cairn_deadline_ns(uint64_t timeout_ns)
{
    uint64_t now = cairn_now_ns();
    return timeout_ns > UINT64_MAX - now ? UINT64_MAX : now + timeout_ns;
}

static inline struct timespec cairn_timespec(uint64_t ns)
{
    struct timespec t = {.tv_sec = (time_t)(ns / CAIRN_NS_PER_S),
                         .tv_nsec = (long)(ns % CAIRN_NS_PER_S)};
    return t;
}

#endif
