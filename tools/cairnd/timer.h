/* Which connection's deadline is next: a heap, so that ten thousand idle clients cost nothing. One
 * thread's; a timer is embedded in what it belongs to. */
#ifndef CAIRN_TOOLS_CAIRND_TIMER_H
#define CAIRN_TOOLS_CAIRND_TIMER_H

#include "base/types.h"

struct timer {
    uint64_t at_ns;
    uint32_t place; /* in the heap, 1 = first; 0 = not armed */
};

struct timers {
    struct timer **heap;
    uint32_t count, cap;
};

/* Room for `count` armed timers, so that arming cannot fail. */
cairn_status timers_reserve(struct timers *t, uint32_t count);
void timers_close(struct timers *t);
/* Arms or moves it. */
void timer_set(struct timers *t, struct timer *timer, uint64_t at_ns);
void timer_cancel(struct timers *t, struct timer *timer);
/* The earliest, still armed; NULL if none is. */
struct timer *timers_first(const struct timers *t);

#endif
