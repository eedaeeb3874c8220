#include "storage/ioq_fault.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define BLOCK 4096u
#define HOLD_NS (20 * CAIRN_NS_PER_MS)
#define REORDER_MAX 8u
#define BATCH 32u

enum slot_state {
    SLOT_FREE,
    SLOT_LATE,    /* waits for due_ns before it goes to the next queue      */
    SLOT_RUNNING,
    SLOT_HELD,    /* done; waits for `after` others, or for due_ns          */
    SLOT_READY,
    SLOT_LOST
};

struct slot {
    struct cairn_io inner;
    struct cairn_io *outer;
    enum slot_state state;
    int fault;      /* enum cairn_fault, -1 = none */
    uint64_t arg;
    uint64_t due_ns;
    uint64_t after; /* returned count that lets a held one go */
    void *bounce;   /* a changed copy of what is written      */
};

struct faulty {
    struct cairn_ioq base;
    struct cairn_ioq *next;
    struct cairn_fault_plan *plan;
    uint64_t random;
    uint64_t returned;
    uint32_t depth;
    uint32_t lost;
    struct slot slots[];
};

static uint64_t draw(struct faulty *f, uint64_t below)
{
    f->random ^= f->random << 13;
    f->random ^= f->random >> 7;
    f->random ^= f->random << 17;
    return below ? f->random % below : 0;
}

static bool rule_matches(const struct cairn_fault_rule *r, const struct cairn_io *io)
{
    if (r->kinds && !(r->kinds & 1u << io->kind))
        return false;
    return r->to == 0 || (io->off < r->to && io->off + io->len > r->from);
}

void cairn_fault_arm(struct cairn_fault_plan *plan, const struct cairn_fault_rule *rule)
{
    pthread_mutex_lock(&plan->lock);
    plan->rule_count = rule ? 1 : 0;
    if (rule)
        plan->rules[0] = *rule;
    atomic_store(&plan->matched[0], 0);
    pthread_mutex_unlock(&plan->lock);
}

/* The first rule that hits this io. Every rule counts its matches, hit or not. */
static bool choose(struct faulty *f, const struct cairn_io *io, struct cairn_fault_rule *ret)
{
    bool hit = false;
    pthread_mutex_lock(&f->plan->lock);
    for (uint32_t i = 0; i < f->plan->rule_count; i++) {
        const struct cairn_fault_rule *r = &f->plan->rules[i];
        if (!rule_matches(r, io))
            continue;
        uint64_t n = atomic_fetch_add(&f->plan->matched[i], 1) + 1;
        uint64_t times = r->times ? r->times : 1;
        bool now = r->nth ? n >= r->nth && n - r->nth < times : draw(f, 1000000) < r->ppm;
        if (now && !hit)
            *ret = *r;
        hit |= now;
    }
    pthread_mutex_unlock(&f->plan->lock);
    return hit;
}

static uint64_t default_arg(struct faulty *f, int fault, const struct cairn_io *io)
{
    switch (fault) {
    case CAIRN_FAULT_SHORT:
        return draw(f, io->len);
    case CAIRN_FAULT_DELAY:
        return draw(f, HOLD_NS);
    case CAIRN_FAULT_REORDER:
        return 1 + draw(f, REORDER_MAX);
    case CAIRN_FAULT_BITFLIP:
        return draw(f, (uint64_t)io->len * 8);
    case CAIRN_FAULT_MISDIRECT:
        return BLOCK * (1 + draw(f, 64));
    default:
        return draw(f, io->len / BLOCK);
    }
}

static void finish_with(struct slot *s, int32_t res)
{
    s->outer->res = res;
    s->state = SLOT_READY;
}

static void flip(void *buf, uint32_t len, uint64_t bit)
{
    if (len)
        ((uint8_t *)buf)[bit / 8 % len] ^= (uint8_t)(1u << bit % 8);
}

/* A flipped bit must not show in the caller's memory, which is still its copy in RAM. */
static bool bounce(struct slot *s)
{
    s->bounce = aligned_alloc(BLOCK, s->inner.len);
    if (!s->bounce)
        return false;
    memcpy(s->bounce, s->inner.buf, s->inner.len);
    flip(s->bounce, s->inner.len, s->arg);
    s->inner.buf = s->bounce;
    return true;
}

static void send(struct faulty *f, struct slot *s)
{
    s->state = f->next->ops->submit(f->next, &s->inner) ? SLOT_RUNNING : SLOT_LATE;
}

static void shorten(struct faulty *f, struct slot *s, uint64_t bytes)
{
    if (bytes >= s->inner.len)
        bytes = s->inner.len;
    s->inner.len = (uint32_t)(bytes / BLOCK * BLOCK);
    if (s->inner.len > 0)
        send(f, s);
    else
        finish_with(s, s->fault == CAIRN_FAULT_TORN       ? (int32_t)s->outer->len
                       : s->fault == CAIRN_FAULT_TORN_EIO ? -EIO
                                                          : 0);
}

/* What a fault does before the io starts. */
static void begin(struct faulty *f, struct slot *s)
{
    bool write = s->inner.kind == CAIRN_IO_WRITE;
    switch (s->fault) {
    case CAIRN_FAULT_EIO:
        finish_with(s, -EIO);
        return;
    case CAIRN_FAULT_ENOSPC:
        finish_with(s, -ENOSPC);
        return;
    case CAIRN_FAULT_ZERO:
        finish_with(s, 0);
        return;
    case CAIRN_FAULT_GONE:
        s->state = SLOT_LOST;
        f->lost++;
        return;
    case CAIRN_FAULT_DELAY:
        s->state = SLOT_LATE;
        s->due_ns = cairn_deadline_ns(s->arg);
        return;
    case CAIRN_FAULT_SHORT:
        if (s->inner.kind != CAIRN_IO_SYNC) {
            shorten(f, s, s->arg);
            return;
        }
        break;
    case CAIRN_FAULT_TORN:
    case CAIRN_FAULT_TORN_EIO:
        if (write) {
            shorten(f, s, s->arg * BLOCK);
            return;
        }
        break;
    case CAIRN_FAULT_MISDIRECT:
        s->inner.off += s->arg;
        break;
    case CAIRN_FAULT_BITFLIP:
        if (write && !bounce(s)) {
            finish_with(s, -ENOMEM);
            return;
        }
        break;
    default:
        break;
    }
    send(f, s);
}

/* What a fault does when the next queue has done the io. */
static void end(struct faulty *f, struct slot *s)
{
    int32_t res = s->inner.res;
    free(s->bounce);
    s->bounce = NULL;
    finish_with(s, res);
    if (res < 0)
        return;
    switch (s->fault) {
    case CAIRN_FAULT_TORN:
        if (s->inner.kind == CAIRN_IO_WRITE)
            s->outer->res = (int32_t)s->outer->len;
        break;
    case CAIRN_FAULT_TORN_EIO:
        s->outer->res = -EIO;
        break;
    case CAIRN_FAULT_BITFLIP:
        if (s->inner.kind == CAIRN_IO_READ)
            flip(s->inner.buf, (uint32_t)res, s->arg);
        break;
    case CAIRN_FAULT_LOST:
        s->state = SLOT_LOST;
        f->lost++;
        break;
    case CAIRN_FAULT_REORDER:
        s->state = SLOT_HELD;
        s->after = f->returned + s->arg;
        s->due_ns = cairn_deadline_ns(HOLD_NS);
        break;
    default:
        break;
    }
}

static bool fault_probe(char *why, size_t why_cap)
{
    (void)why;
    (void)why_cap;
    return true;
}

static cairn_status fault_open(const struct cairn_ioq_params *p, struct cairn_ioq **ret)
{
    struct cairn_fault_plan *plan = p->arg;
    if (!plan || !plan->next || plan->rule_count > CAIRN_FAULT_RULES || p->depth == 0)
        return CAIRN_INVAL;
    struct faulty *f = calloc(1, sizeof(*f) + p->depth * sizeof(struct slot));
    if (!f)
        return CAIRN_NOMEM;
    f->base.ops = &cairn_ioq_fault;
    f->plan = plan;
    f->random = (plan->seed + 1) * 0x9e3779b97f4a7c15ull | 1;
    f->depth = p->depth;
    struct cairn_ioq_params inner = *p;
    inner.arg = plan->next_arg;
    cairn_status s = plan->next->open(&inner, &f->next);
    if (s != CAIRN_OK) {
        free(f);
        return s;
    }
    *ret = &f->base;
    return CAIRN_OK;
}

static bool fault_submit(struct cairn_ioq *q, struct cairn_io *io)
{
    struct faulty *f = (struct faulty *)q;
    struct slot *s = f->slots;
    while (s < f->slots + f->depth && s->state != SLOT_FREE)
        s++;
    if (s == f->slots + f->depth)
        return false;
    io->submitted_ns = cairn_now_ns();
    *s = (struct slot){.inner = *io, .outer = io, .fault = -1};
    s->inner.owner = s;
    atomic_fetch_add(&f->plan->seen[io->kind], 1);
    struct cairn_fault_rule r;
    if (!atomic_load(&f->plan->off) && choose(f, io, &r)) {
        s->fault = (int)r.fault;
        s->arg = r.arg == CAIRN_FAULT_RANDOM ? default_arg(f, s->fault, io) : r.arg;
        atomic_fetch_add(&f->plan->hit[r.fault], 1);
    }
    begin(f, s);
    return true;
}

static void advance(struct faulty *f)
{
    struct cairn_io *done[BATCH];
    uint64_t now = cairn_now_ns();
    for (uint32_t i = 0; i < f->depth; i++)
        if (f->slots[i].state == SLOT_LATE && f->slots[i].due_ns <= now)
            send(f, &f->slots[i]);
    for (uint32_t n = BATCH; n == BATCH;) {
        n = f->next->ops->poll(f->next, done, BATCH);
        for (uint32_t i = 0; i < n; i++)
            end(f, done[i]->owner);
    }
}

static bool may_return(const struct faulty *f, const struct slot *s, uint64_t now)
{
    return s->state == SLOT_READY ||
           (s->state == SLOT_HELD && (f->returned >= s->after || s->due_ns <= now));
}

static uint32_t fault_poll(struct cairn_ioq *q, struct cairn_io **done, uint32_t cap)
{
    struct faulty *f = (struct faulty *)q;
    uint32_t n = 0;
    advance(f);
    uint64_t now = cairn_now_ns();
    for (uint32_t i = 0; i < f->depth && n < cap; i++) {
        struct slot *s = &f->slots[i];
        if (!may_return(f, s, now))
            continue;
        done[n++] = s->outer;
        f->returned++;
        s->state = SLOT_FREE;
    }
    return n;
}

static void fault_wait(struct cairn_ioq *q, uint64_t deadline_ns)
{
    struct faulty *f = (struct faulty *)q;
    uint64_t now = cairn_now_ns();
    for (uint32_t i = 0; i < f->depth; i++) {
        const struct slot *s = &f->slots[i];
        if (may_return(f, s, now))
            return;
        if ((s->state == SLOT_LATE || s->state == SLOT_HELD) && s->due_ns < deadline_ns)
            deadline_ns = s->due_ns;
    }
    f->next->ops->wait(f->next, deadline_ns);
}

static void fault_wake(struct cairn_ioq *q)
{
    struct faulty *f = (struct faulty *)q;
    f->next->ops->wake(f->next);
}

static bool fault_close(struct cairn_ioq *q)
{
    if (!q)
        return true;
    struct faulty *f = (struct faulty *)q;
    bool back = f->next->ops->close(f->next);
    for (uint32_t i = 0; i < f->depth && back; i++)
        if (f->slots[i].state == SLOT_RUNNING)
            free(f->slots[i].bounce);
    back = back && f->lost == 0;
    free(f);
    return back;
}

const struct cairn_ioq_ops cairn_ioq_fault = {
    .name = "fault",
    .probe = fault_probe,
    .open = fault_open,
    .submit = fault_submit,
    .poll = fault_poll,
    .wait = fault_wait,
    .wake = fault_wake,
    .close = fault_close,
};
