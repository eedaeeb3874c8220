#include "tools/cairnd/timer.h"

#include <stdlib.h>

cairn_status timers_reserve(struct timers *t, uint32_t count)
{
    if (count <= t->cap)
        return CAIRN_OK;
    uint32_t cap = t->cap ? t->cap : 64;
    while (cap < count)
        cap *= 2;
    struct timer **more = realloc(t->heap, cap * sizeof(struct timer *));
    if (!more)
        return CAIRN_NOMEM;
    t->heap = more;
    t->cap = cap;
    return CAIRN_OK;
}

void timers_close(struct timers *t)
{
    free(t->heap);
    t->heap = NULL;
    t->count = t->cap = 0;
}

static void put(struct timers *t, uint32_t place, struct timer *timer)
{
    t->heap[place - 1] = timer;
    timer->place = place;
}

static void rise(struct timers *t, struct timer *timer)
{
    uint32_t place = timer->place;
    while (place > 1 && t->heap[place / 2 - 1]->at_ns > timer->at_ns) {
        put(t, place, t->heap[place / 2 - 1]);
        place /= 2;
    }
    put(t, place, timer);
}

static void sink(struct timers *t, struct timer *timer)
{
    uint32_t place = timer->place;
    for (uint32_t child; (child = 2 * place) <= t->count; place = child) {
        if (child < t->count && t->heap[child]->at_ns < t->heap[child - 1]->at_ns)
            child++;
        if (t->heap[child - 1]->at_ns >= timer->at_ns)
            break;
        put(t, place, t->heap[child - 1]);
    }
    put(t, place, timer);
}

void timer_set(struct timers *t, struct timer *timer, uint64_t at_ns)
{
    timer->at_ns = at_ns;
    if (!timer->place)
        put(t, ++t->count, timer);
    rise(t, timer);
    sink(t, timer);
}

void timer_cancel(struct timers *t, struct timer *timer)
{
    uint32_t place = timer->place;
    if (!place)
        return;
    struct timer *last = t->heap[--t->count];
    timer->place = 0;
    if (last == timer)
        return;
    put(t, place, last);
    rise(t, last);
    sink(t, last);
}

struct timer *timers_first(const struct timers *t)
{
    return t->count ? t->heap[0] : NULL;
}
