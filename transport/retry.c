#include "transport/retry.h"

void cairn_breaker_open(struct cairn_breaker *b, const struct cairn_breaker_limits *limits,
                        uint64_t seed)
{
    *b = (struct cairn_breaker){
        .limits = *limits, .closed = true, .pause_ns = limits->pause_min_ns, .random = seed | 1};
    pthread_mutex_init(&b->lock, NULL);
}

void cairn_breaker_close(struct cairn_breaker *b)
{
    pthread_mutex_destroy(&b->lock);
}

static uint64_t after(uint64_t now_ns, uint64_t ns)
{
    return ns > UINT64_MAX - now_ns ? UINT64_MAX : now_ns + ns;
}

/* Half of the pause to all of it. */
static uint64_t spread(struct cairn_breaker *b)
{
    b->random ^= b->random << 13;
    b->random ^= b->random >> 7;
    b->random ^= b->random << 17;
    uint64_t half = b->pause_ns / 2;
    return half + b->random % (b->pause_ns - half + 1);
}

/* Opens, and the pause after that will be twice as long. */
static void pause_begins(struct cairn_breaker *b, uint64_t now_ns)
{
    atomic_store_explicit(&b->closed, false, memory_order_relaxed);
    b->trial = false;
    b->until_ns = after(now_ns, spread(b));
    b->pause_ns = b->pause_ns > b->limits.pause_max_ns / 2 ? b->limits.pause_max_ns
                                                           : b->pause_ns * 2;
}

bool cairn_breaker_may(struct cairn_breaker *b, uint64_t now_ns)
{
    if (atomic_load_explicit(&b->closed, memory_order_relaxed))
        return true;
    pthread_mutex_lock(&b->lock);
    bool closed = atomic_load_explicit(&b->closed, memory_order_relaxed);
    bool may = closed || now_ns >= b->until_ns;
    if (may && !closed) {
        b->trial = true;
        b->until_ns = after(now_ns, b->limits.trial_ns);
    }
    pthread_mutex_unlock(&b->lock);
    return may;
}

/* `weight` failures at once; none: it went well. */
static void went(struct cairn_breaker *b, uint32_t weight, uint64_t now_ns)
{
    bool closed = atomic_load_explicit(&b->closed, memory_order_relaxed);
    if (!weight && closed && atomic_load_explicit(&b->failed, memory_order_relaxed) == 0)
        return;
    pthread_mutex_lock(&b->lock);
    if (!weight) {
        atomic_store_explicit(&b->failed, 0, memory_order_relaxed);
        atomic_store_explicit(&b->closed, true, memory_order_relaxed);
        b->pause_ns = b->limits.pause_min_ns;
    } else if (!atomic_load_explicit(&b->closed, memory_order_relaxed)) {
        /* Calls from before it opened fail late, and together: they say nothing new. */
        if (b->trial)
            pause_begins(b, now_ns);
    } else if (atomic_fetch_add_explicit(&b->failed, weight, memory_order_relaxed) + weight >=
               b->limits.failures) {
        atomic_fetch_add_explicit(&b->opens, 1, memory_order_relaxed);
        pause_begins(b, now_ns);
    }
    pthread_mutex_unlock(&b->lock);
}

void cairn_breaker_went(struct cairn_breaker *b, bool well, uint64_t now_ns)
{
    went(b, well ? 0 : 1, now_ns);
}

void cairn_breaker_silent(struct cairn_breaker *b, uint64_t now_ns)
{
    went(b, b->limits.failures, now_ns);
}

uint64_t cairn_breaker_wait(struct cairn_breaker *b, uint64_t now_ns)
{
    pthread_mutex_lock(&b->lock);
    bool closed = atomic_load_explicit(&b->closed, memory_order_relaxed);
    uint64_t ns = closed || now_ns >= b->until_ns ? 0 : b->until_ns - now_ns;
    pthread_mutex_unlock(&b->lock);
    return ns;
}
