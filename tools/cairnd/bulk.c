#include "tools/cairnd/bulk.h"

static void hold(struct bulk *b, struct bulk_place *p, uint64_t now_ns)
{
    b->holder = p;
    b->since_ns = b->moved_ns = now_ns;
}

bool bulk_enter(struct bulk *b, struct bulk_place *p, uint64_t now_ns)
{
    if (b->holder == p || now_ns < p->paused_until_ns)
        return true;
    if (!b->holder && !b->first) {
        hold(b, p, now_ns);
        return true;
    }
    if (p->waiting)
        return false;
    p->waiting = true;
    p->next = NULL;
    if (b->first)
        b->last->next = p;
    else
        b->first = p;
    b->last = p;
    return false;
}

void bulk_moved(struct bulk *b, struct bulk_place *p, uint64_t now_ns)
{
    if (b->holder == p)
        b->moved_ns = now_ns;
}

/* It took nothing, and others waited for that. */
static void punish(struct bulk_place *p, uint64_t now_ns)
{
    p->pause_ns = p->pause_ns ? p->pause_ns * 2 : BULK_PAUSE_MIN_NS;
    if (p->pause_ns > BULK_PAUSE_MAX_NS)
        p->pause_ns = BULK_PAUSE_MAX_NS;
    p->paused_until_ns = now_ns + p->pause_ns;
}

struct bulk_place *bulk_next(struct bulk *b, uint64_t now_ns)
{
    if (!b->first)
        return NULL;
    if (b->holder) {
        bool stalled = now_ns > b->moved_ns + BULK_STALL_NS;
        if (!stalled && now_ns <= b->since_ns + BULK_TURN_NS)
            return NULL;
        if (stalled)
            punish(b->holder, now_ns);
        else
            b->holder->pause_ns = 0;
    }
    struct bulk_place *p = b->first;
    b->first = p->next;
    p->waiting = false;
    hold(b, p, now_ns);
    return p;
}

void bulk_leave(struct bulk *b, struct bulk_place *p)
{
    if (b->holder == p) {
        b->holder = NULL;
        p->pause_ns = 0;
    }
    if (!p->waiting)
        return;
    p->waiting = false;
    struct bulk_place *before = NULL;
    for (struct bulk_place *at = b->first; at != p; at = at->next)
        before = at;
    if (before)
        before->next = p->next;
    else
        b->first = p->next;
    if (b->last == p)
        b->last = before;
}
