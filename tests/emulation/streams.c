/* Streams are queues. An operation may run when those before it in its stream have, and when the
 * places it depends on are reached; when it does run is up to the time that the test chose.
 *
 * All that is queued also stands in one list in the order of the calls. An operation depends on
 * older ones alone, so one walk back finds what something needs and one walk forth can run it. */
#include <stdlib.h>

#include "tests/emulation/emulation.h"

#define LEGACY_HANDLE ((cu_stream)1)

static struct op *oldest, *newest;

struct stream *stream_new(struct context *c, bool non_blocking)
{
    struct stream *s = calloc(1, sizeof(*s));

    if (!s)
        abort();
    s->context = c;
    s->non_blocking = non_blocking;
    s->alive = true;
    s->next = emu.streams;
    emu.streams = s;
    return s;
}

struct stream *stream_of(cu_stream handle, struct context *current, const char *call)
{
    if (!handle || handle == LEGACY_HANDLE)
        return current ? current->legacy : NULL;
    return handle_object(HANDLE_STREAM, handle, call);
}

void stream_end(struct stream *s)
{
    handle_end(HANDLE_STREAM, s->handle);
    s->alive = false;
    s->capturing = false;
}

struct op *op_new(enum op_kind kind, const char *what)
{
    struct op *op = calloc(1, sizeof(*op));

    if (!op)
        abort();
    op->kind = kind;
    op->what = what;
    return op;
}

void op_depend(struct op *op, struct place p)
{
    if (place_reached(p))
        return;
    op->deps = realloc(op->deps, (op->dep_count + 1) * sizeof(*op->deps));
    if (!op->deps)
        abort();
    op->deps[op->dep_count++] = p;
}

/* The legacy stream and the blocking ones of its context wait for each other. */
static void depend_on_legacy(struct stream *s, struct op *op)
{
    struct stream *legacy = s->context->legacy;

    if (s->legacy) {
        for (struct stream *o = emu.streams; o; o = o->next) {
            if (o->context == s->context && o != s && !o->non_blocking)
                op_depend(op, (struct place){o, o->queued});
        }
    } else if (!s->non_blocking) {
        op_depend(op, (struct place){legacy, legacy->queued});
    }
}

static void forget(struct op *op)
{
    *(op->older ? &op->older->newer : &oldest) = op->newer;
    *(op->newer ? &op->newer->older : &newest) = op->older;
    op_free(op);
}

/* The first of its stream is done. */
static void retire(struct op *op)
{
    struct stream *s = op->stream;

    s->head = op->next;
    if (!s->head)
        s->tail = NULL;
    s->done++;
    forget(op);
}

static bool may_run(const struct op *op)
{
    if (op->stream->head != op || (op->kind == OP_BLOCK && !op->lifted))
        return false;
    for (size_t i = 0; i < op->dep_count; i++) {
        if (!place_reached(op->deps[i]))
            return false;
    }
    return true;
}

/* One part of it, or all; false if its context broke, which has emptied its queues. */
static bool run(struct op *op, bool whole)
{
    struct context *c = op->stream->context;
    bool done = false;

    do {
        cu_result e = op_run(op, c, &done);
        if (e) {
            context_fail(c, e);
            return false;
        }
    } while (whole && !done);
    if (done)
        retire(op);
    return true;
}

/* Runs what may run, the oldest first, of what is needed or of all. */
static void sweep(bool needed_only)
{
    struct op *op = oldest;

    while (op) {
        struct op *newer = op->newer;
        bool wanted = !needed_only || op->number <= op->stream->needed;
        if (wanted && may_run(op) && !run(op, true))
            newer = oldest;
        op = newer;
    }
}

void streams_run_all(void)
{
    sweep(false);
}

bool place_reached(struct place p)
{
    return !p.stream || p.stream->done >= p.number;
}

static void mark_needed(struct place p)
{
    if (p.number > p.stream->needed)
        p.stream->needed = p.number;
}

bool place_reach(struct place p)
{
    if (place_reached(p))
        return true;
    for (struct stream *s = emu.streams; s; s = s->next)
        s->needed = 0;
    mark_needed(p);
    for (struct op *op = newest; op; op = op->older) {
        if (op->number > op->stream->needed)
            continue;
        for (size_t i = 0; i < op->dep_count; i++)
            mark_needed(op->deps[i]);
    }
    sweep(true);
    return place_reached(p);
}

/* A part of an operation of any stream that has one which may run. */
static bool run_any(void)
{
    struct op *chosen = NULL;
    uint64_t count = 0;

    for (struct stream *s = emu.streams; s; s = s->next) {
        if (s->head && may_run(s->head) && rng_one_in(&emu.rng, ++count))
            chosen = s->head;
    }
    if (chosen)
        run(chosen, false);
    return chosen;
}

void streams_advance(void)
{
    if (emu.time == EMU_EARLIEST)
        streams_run_all();
    if (emu.time != EMU_RANDOM)
        return;
    if (emu.lull) {
        emu.lull--;
        return;
    }
    /* Now and then nothing runs for a while: else queues would never grow. */
    if (rng_one_in(&emu.rng, 8))
        emu.lull = (unsigned)rng_below(&emu.rng, 100);
    for (uint64_t n = rng_below(&emu.rng, 4); n && run_any(); n--)
        ;
}

void stream_queue(struct stream *s, struct op *op)
{
    depend_on_legacy(s, op);
    op->stream = s;
    op->number = ++s->queued;
    *(s->tail ? &s->tail->next : &s->head) = op;
    s->tail = op;
    op->older = newest;
    *(newest ? &newest->newer : &oldest) = op;
    newest = op;
}

void stream_lift_blocks(struct stream *s)
{
    for (struct op *op = s->head; op; op = op->next)
        op->lifted = true;
}

void streams_drop(struct context *c)
{
    for (struct stream *s = emu.streams; s; s = s->next) {
        while (s->context == c && s->head)
            retire(s->head);
    }
}

const char *streams_using(cu_ptr at, size_t len)
{
    for (struct op *op = oldest; op; op = op->newer) {
        if (op_uses(op, at, len))
            return op->what;
    }
    return NULL;
}

uint64_t streams_pending(const struct context *c)
{
    uint64_t n = 0;

    for (const struct op *op = oldest; op; op = op->newer)
        n += !c || op->stream->context == c;
    return n;
}

void streams_reset(void)
{
    struct stream *s;

    while (oldest)
        forget(oldest);
    while ((s = emu.streams)) {
        emu.streams = s->next;
        free(s);
    }
}
