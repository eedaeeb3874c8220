/* Contexts, and which of them is current to a thread. */
#include <stdlib.h>

#include "tests/emulation/emulation.h"

#define MAX_DEPTH 64

struct thread {
    uint64_t epoch;
    int depth, capture_mode;
    bool engine;
    struct context *stack[MAX_DEPTH];
};

static _Thread_local struct thread self;

static struct thread *thread(void)
{
    if (self.epoch != emu.epoch)
        self = (struct thread){.epoch = emu.epoch};
    return &self;
}

static uint64_t new_id(void)
{
    static uint64_t last; /* it goes on through resets */

    return ++last;
}

struct context *context_new(int device, bool primary)
{
    struct context *c = calloc(1, sizeof(*c));

    if (!c)
        abort();
    c->device = device;
    c->primary = primary;
    c->alive = !primary;
    c->id = new_id();
    c->handle = handle_new(HANDLE_CONTEXT, c);
    c->legacy = stream_new(c, false);
    c->legacy->legacy = true;
    c->next = emu.contexts;
    emu.contexts = c;
    return c;
}

void context_retain(struct context *c)
{
    if (!c->alive)
        c->id = new_id();
    c->alive = true;
    c->retains++;
}

void context_end(struct context *c)
{
    struct event *event;
    struct module *module;

    streams_drop(c);
    for (struct stream *s = emu.streams; s; s = s->next) {
        if (s->context == c && !s->legacy && s->alive)
            stream_end(s);
    }
    for (size_t at = 0; (event = handle_next(HANDLE_EVENT, &at));) {
        if (event->context == c)
            free(handle_end(HANDLE_EVENT, event->handle));
    }
    for (size_t at = 0; (module = handle_next(HANDLE_MODULE, &at));) {
        if (module->context == c)
            module_end(module);
    }
    memory_end(c);
    c->alive = false;
    c->error = CU_OK;
}

void context_fail(struct context *c, cu_result error)
{
    if (!c->error)
        c->error = error;
    streams_drop(c);
}

void contexts_fail(cu_result error)
{
    struct context *c;

    for (size_t at = 0; (c = handle_next(HANDLE_CONTEXT, &at));)
        context_fail(c, error);
}

cu_result context_push(cu_context handle)
{
    struct context *c = handle_object(HANDLE_CONTEXT, handle, "cuCtxPushCurrent");
    struct thread *t = thread();

    if (!c)
        return CU_INVALID_CONTEXT;
    if (!c->alive) {
        violation("cuCtxPushCurrent: the primary context of device %d is not retained", c->device);
        return CU_INVALID_CONTEXT;
    }
    if (t->depth == MAX_DEPTH) {
        violation("cuCtxPushCurrent: %d contexts are pushed on this thread", MAX_DEPTH);
        return CU_INVALID_VALUE;
    }
    t->stack[t->depth++] = c;
    return c->error;
}

cu_result context_pop(cu_context *ret)
{
    struct thread *t = thread();

    if (!t->depth) {
        violation("cuCtxPopCurrent: no context is pushed on this thread");
        return CU_INVALID_CONTEXT;
    }
    t->depth--;
    if (ret)
        *ret = t->stack[t->depth]->handle;
    return t->stack[t->depth]->error;
}

struct context *context_current(void)
{
    struct thread *t = thread();
    struct context *c = t->depth ? t->stack[t->depth - 1] : NULL;

    return c && c->alive ? c : NULL;
}

int context_depth(void)
{
    return thread()->depth;
}

int capture_mode(void)
{
    return thread()->capture_mode;
}

bool engine_thread(void)
{
    return thread()->engine;
}

void engine_thread_set(bool on)
{
    thread()->engine = on;
}

int capture_mode_exchange(int mode)
{
    int old = thread()->capture_mode;

    thread()->capture_mode = mode;
    return old;
}
