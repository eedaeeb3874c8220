/* The driver's entry points: the lock, the counts and the injected failures, what a call needs of
 * its thread, and how the calls are found by name. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/emulation/emulation.h"

struct emulation emu;

EMU_API cu_result cuGetProcAddress_v2(const char *name, void **ret, int version, uint64_t flags,
                                      int *status);
EMU_API cu_result cuGetProcAddress(const char *name, void **ret, int version, uint64_t flags);

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

enum {
#define X(member, name, parameters) CALL_##member,
    CU_CALLS(X)
#undef X
    CALL_copy_batch,
};

#define X(member, name, parameters) static cu_result call_##member parameters;
CU_CALLS(X)
#undef X

void emu_unlock(void)
{
    pthread_mutex_unlock(&lock);
}

static void after_fork(void)
{
    emu.forked = true;
    emu_unlock();
}

void emu_lock(void)
{
    pthread_mutex_lock(&lock);
    if (emu.epoch)
        return;
    emulation_reset(1);
    emulation_configure();
    pthread_atfork(emu_lock, emu_unlock, after_fork);
}

static cu_result end(cu_result e)
{
    emu_unlock();
    return e;
}

/* Those that a driver may take milliseconds for, or wait for the device in. */
static bool may_block(int id)
{
    return id == CALL_init || id == CALL_alloc || id == CALL_free || id == CALL_host_register ||
           id == CALL_host_unregister || id == CALL_module_load || id == CALL_module_unload;
}

/* After such a result nothing that was queued runs any more. */
static bool stays(cu_result e)
{
    return e >= CU_ILLEGAL_ADDRESS && e < CU_NOT_PERMITTED &&
           e != CU_HOST_MEMORY_ALREADY_REGISTERED && e != CU_HOST_MEMORY_NOT_REGISTERED;
}

static cu_result begin(int id)
{
    cu_result e;

    emu_lock();
    e = fault_at_call(id);
    if (stays(e))
        contexts_fail(e);
    if (emu.forked)
        violation("%s: a forked child has no driver", call_name(id));
    if (!e && (!emu.initialized || emu.forked) && id != CALL_init && id != CALL_driver_version)
        e = CU_NOT_INITIALIZED;
    if (engine_thread() && may_block(id))
        violation("%s: may block, and this is a thread of the engine", call_name(id));
    if (emu.time == EMU_RANDOM)
        streams_advance();
    return e;
}

/* Leaves the function with the injected failure of the call, if it has one now. */
#define BEGIN(member)                                                                            \
    const char *const call = call_name(CALL_##member);                                           \
    cu_result e = begin(CALL_##member);                                                          \
    if (e)                                                                                       \
        return end(e);                                                                           \
    (void)call

/* The context of the calling thread; sets *e if there is none, or it is of no use any more. */
static struct context *here(cu_result *e)
{
    struct context *c = context_current();

    *e = c ? c->error : CU_INVALID_CONTEXT;
    return c;
}

/* The stream, which has to be of the calling thread's context; NULL with *e set. */
static struct stream *stream_here(cu_stream handle, const char *call, cu_result *e)
{
    struct context *c = here(e);
    struct stream *s = *e ? NULL : stream_of(handle, c, call);

    if (*e)
        return NULL;
    if (s && s->context == c)
        return s;
    if (s)
        violation("%s: the stream is of another context than the current one", call);
    *e = CU_INVALID_HANDLE;
    return NULL;
}

/* The same for one on which something is to be queued. */
static struct stream *stream_to_queue(cu_stream handle, const char *call, cu_result *e)
{
    struct stream *s = stream_here(handle, call, e);

    if (s)
        *e = capture_refuses(s, call);
    return *e ? NULL : s;
}

static struct event *event_here(cu_event handle, const char *call, cu_result *e)
{
    struct context *c = here(e);
    struct event *event = *e ? NULL : handle_object(HANDLE_EVENT, handle, call);

    if (*e)
        return NULL;
    if (event && event->context == c)
        return event;
    if (event)
        violation("%s: the event is of another context than the current one", call);
    *e = CU_INVALID_HANDLE;
    return NULL;
}

/* ---- the driver and its devices */

static cu_result call_init(unsigned int flags)
{
    BEGIN(init);
    if (flags || emu.forked)
        return end(flags ? CU_INVALID_VALUE : CU_NOT_INITIALIZED);
    if (!emu.device_count)
        return end(CU_NO_DEVICE);
    for (int i = 0; i < emu.device_count && !emu.initialized; i++)
        emu.devices[i].primary = context_new(i, true);
    emu.initialized = true;
    return end(CU_OK);
}

static cu_result call_driver_version(int *ret)
{
    BEGIN(driver_version);
    if (!ret)
        return end(CU_INVALID_VALUE);
    *ret = emu.version;
    return end(CU_OK);
}

static cu_result call_error_string(cu_result error, const char **ret)
{
    static const struct {
        cu_result error;
        const char *text;
    } texts[] = {{CU_OK, "no error"},
                 {CU_INVALID_VALUE, "invalid argument"},
                 {CU_OUT_OF_MEMORY, "out of memory"},
                 {CU_NOT_INITIALIZED, "initialization error"},
                 {CU_NO_DEVICE, "no CUDA-capable device is detected"},
                 {CU_INVALID_CONTEXT, "invalid device context"},
                 {CU_NO_BINARY_FOR_GPU, "no kernel image is available for execution on the device"},
                 {CU_INVALID_HANDLE, "invalid resource handle"},
                 {CU_NOT_FOUND, "named symbol not found"},
                 {CU_NOT_READY, "device not ready"},
                 {CU_ILLEGAL_ADDRESS, "an illegal memory access was encountered"}};

    if (!ret)
        return CU_INVALID_VALUE;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        *ret = texts[i].text;
        if (texts[i].error == error)
            return CU_OK;
    }
    *ret = NULL;
    return CU_INVALID_VALUE;
}

static bool is_device(cu_device device)
{
    return device >= 0 && device < emu.device_count;
}

static cu_result call_device_count(int *ret)
{
    BEGIN(device_count);
    if (!ret)
        return end(CU_INVALID_VALUE);
    *ret = emu.device_count;
    return end(CU_OK);
}

static cu_result call_device_get(cu_device *ret, int ordinal)
{
    BEGIN(device_get);
    if (!ret || !is_device(ordinal))
        return end(ret ? 101 : CU_INVALID_VALUE); /* 101: no such device */
    *ret = ordinal;
    return end(CU_OK);
}

static cu_result call_device_name(char *out, int cap, cu_device device)
{
    BEGIN(device_name);
    if (!out || cap <= 0 || !is_device(device))
        return end(CU_INVALID_VALUE);
    snprintf(out, (size_t)cap, "Emulated GPU %d", device);
    return end(CU_OK);
}

static cu_result call_device_attribute(int *ret, int attribute, cu_device device)
{
    BEGIN(device_attribute);
    if (!ret || !is_device(device) || attribute < 0 || attribute >= MAX_ATTRIBUTE ||
        emu.devices[device].attributes[attribute] < 0)
        return end(CU_INVALID_VALUE);
    *ret = emu.devices[device].attributes[attribute];
    return end(CU_OK);
}

/* ---- contexts */

static cu_result call_primary_state(cu_device device, unsigned int *flags, int *active)
{
    BEGIN(primary_state);
    if (!is_device(device) || !flags || !active)
        return end(CU_INVALID_VALUE);
    *flags = 0;
    *active = emu.devices[device].primary->alive;
    return end(CU_OK);
}

static cu_result call_primary_retain(cu_context *ret, cu_device device)
{
    struct context *c;

    BEGIN(primary_retain);
    if (!ret || !is_device(device))
        return end(CU_INVALID_VALUE);
    c = emu.devices[device].primary;
    context_retain(c);
    *ret = c->handle;
    return end(CU_OK);
}

static cu_result call_primary_release(cu_device device)
{
    struct context *c;

    BEGIN(primary_release);
    if (!is_device(device))
        return end(CU_INVALID_VALUE);
    c = emu.devices[device].primary;
    if (!c->retains) {
        violation("%s: device %d is released more often than it was retained", call, device);
        return end(CU_INVALID_CONTEXT);
    }
    if (--c->retains)
        return end(CU_OK);
    if (streams_pending(c))
        violation("%s: the context of device %d goes while work is queued in it", call, device);
    context_end(c);
    return end(CU_OK);
}

static cu_result call_context_push(cu_context context)
{
    BEGIN(context_push);
    return end(context_push(context));
}

static cu_result call_context_pop(cu_context *ret)
{
    cu_result e = begin(CALL_context_pop), popped;

    if (e && !fault_stays())
        return end(e);
    popped = context_pop(ret);
    return end(e ? e : popped);
}

static cu_result call_context_id(cu_context context, uint64_t *ret)
{
    struct context *c;

    BEGIN(context_id);
    c = context ? handle_object(HANDLE_CONTEXT, context, call) : context_current();
    if (!c || !c->alive || !ret)
        return end(ret ? CU_INVALID_CONTEXT : CU_INVALID_VALUE);
    *ret = c->id;
    return end(c->error);
}

static cu_result call_context_device(cu_device *ret)
{
    struct context *c;

    BEGIN(context_device);
    c = here(&e);
    if (!e && !ret)
        e = CU_INVALID_VALUE;
    if (!e)
        *ret = c->device;
    return end(e);
}

static cu_result call_capture_mode(int *mode)
{
    cu_result e = begin(CALL_capture_mode);

    if (e && !fault_stays())
        return end(e);
    if (!mode || *mode < 0 || *mode > CU_CAPTURE_MODE_RELAXED)
        return end(CU_INVALID_VALUE);
    *mode = capture_mode_exchange(*mode);
    return end(e);
}

/* ---- memory */

/* What an address is of that the driver does not know: nothing, which is no failure. */
static cu_result pointer_attribute(int attribute, void *value, const struct memory_info *m)
{
    bool known = m->kind != MEMORY_NONE;

    switch (attribute) {
    case CU_POINTER_CONTEXT:
        *(cu_context *)value = m->context ? m->context->handle : NULL;
        return CU_OK;
    case CU_POINTER_MEMORY_TYPE:
        *(unsigned int *)value = !known                      ? 0u
                                 : m->kind == MEMORY_DEVICE ? (unsigned)CU_MEMORY_DEVICE
                                                            : (unsigned)CU_MEMORY_HOST;
        return CU_OK;
    case CU_POINTER_ORDINAL:
        *(int *)value = known ? m->device : -2;
        return CU_OK;
    case CU_POINTER_RANGE_START:
        *(cu_ptr *)value = m->base;
        return CU_OK;
    case CU_POINTER_RANGE_SIZE:
        *(size_t *)value = m->len;
        return CU_OK;
    }
    return CU_INVALID_VALUE;
}

static cu_result call_pointer_attributes(unsigned int count, int *attributes, void **values,
                                         cu_ptr pointer)
{
    struct memory_info m;

    BEGIN(pointer_attributes);
    if (!count || !attributes || !values)
        return end(CU_INVALID_VALUE);
    memory_info(pointer, &m);
    for (unsigned int i = 0; i < count && !e; i++)
        e = pointer_attribute(attributes[i], values[i], &m);
    return end(e);
}

static cu_result call_alloc(cu_ptr *ret, size_t len)
{
    struct context *c;

    BEGIN(alloc);
    c = here(&e);
    if (!e)
        e = capture_refuses_unsafe(call);
    if (!e)
        e = ret ? device_alloc(ret, len, c, c->device) : CU_INVALID_VALUE;
    return end(e);
}

static cu_result call_free(cu_ptr pointer)
{
    BEGIN(free);
    here(&e);
    if (e != CU_INVALID_CONTEXT && !capture_refuses_unsafe(call)) {
        cu_result freed = device_free(pointer, call);
        e = e ? e : freed;
    } else if (!e) {
        e = CU_STREAM_CAPTURE_UNSUPPORTED;
    }
    return end(e);
}

static cu_result call_host_register(void *base, size_t len, unsigned int flags)
{
    struct context *c;

    BEGIN(host_register);
    c = here(&e);
    if (!e)
        e = capture_refuses_unsafe(call);
    if (!e)
        e = host_register(base, len, flags, c);
    return end(e);
}

static cu_result call_host_unregister(void *base)
{
    BEGIN(host_unregister);
    here(&e);
    if (e != CU_INVALID_CONTEXT && !capture_refuses_unsafe(call)) {
        cu_result undone = host_unregister(base);
        e = e ? e : undone;
    } else if (!e) {
        e = CU_STREAM_CAPTURE_UNSUPPORTED;
    }
    return end(e);
}

static cu_result call_host_pointer(cu_ptr *ret, void *base, unsigned int flags)
{
    struct context *c;

    BEGIN(host_pointer);
    c = here(&e);
    if (!e)
        e = ret && !flags ? host_device_pointer(ret, base, c) : CU_INVALID_VALUE;
    return end(e);
}

/* ---- streams and events */

static cu_result call_stream_create(cu_stream *ret, unsigned int flags)
{
    struct context *c;

    BEGIN(stream_create);
    c = here(&e);
    if (!e && (!ret || flags & ~(unsigned)CU_STREAM_NON_BLOCKING))
        e = CU_INVALID_VALUE;
    if (!e) {
        struct stream *s = stream_new(c, flags & CU_STREAM_NON_BLOCKING);
        *ret = s->handle = handle_new(HANDLE_STREAM, s);
    }
    return end(e);
}

static cu_result call_stream_destroy(cu_stream stream)
{
    struct stream *s;

    BEGIN(stream_destroy);
    if (!context_current())
        return end(CU_INVALID_CONTEXT);
    if (!(s = handle_object(HANDLE_STREAM, stream, call)))
        return end(CU_INVALID_HANDLE);
    stream_end(s);
    return end(s->context->error);
}

static cu_result call_stream_context(cu_stream stream, cu_context *ret)
{
    struct stream *s;

    BEGIN(stream_context);
    s = stream_of(stream, context_current(), call);
    if (!s || !ret)
        return end(!ret ? CU_INVALID_VALUE : stream ? CU_INVALID_HANDLE : CU_INVALID_CONTEXT);
    *ret = s->context->handle;
    return end(s->context->error);
}

static cu_result call_stream_capturing(cu_stream stream, int *ret)
{
    struct stream *s;

    BEGIN(stream_capturing);
    s = stream_of(stream, context_current(), call);
    if (!s || !ret)
        return end(!ret ? CU_INVALID_VALUE : stream ? CU_INVALID_HANDLE : CU_INVALID_CONTEXT);
    return end(s->context->error ? s->context->error : capture_state(s, ret));
}

static void queue_mark(struct stream *s, const char *call, struct place until)
{
    struct op *op = op_new(OP_MARK, call);

    op_depend(op, until);
    stream_queue(s, op);
}

static cu_result call_stream_wait(cu_stream stream, cu_event event, unsigned int flags)
{
    struct event *waited;
    struct stream *s;

    BEGIN(stream_wait);
    s = stream_to_queue(stream, call, &e);
    if (!s)
        return end(e);
    if (flags)
        return end(CU_INVALID_VALUE);
    if (!(waited = handle_object(HANDLE_EVENT, event, call)))
        return end(CU_INVALID_HANDLE);
    queue_mark(s, call, waited->place);
    streams_advance();
    return end(CU_OK);
}

static cu_result call_event_create(cu_event *ret, unsigned int flags)
{
    struct context *c;
    struct event *event;

    BEGIN(event_create);
    c = here(&e);
    if (!e && (!ret || flags & ~3u))
        e = CU_INVALID_VALUE;
    if (e)
        return end(e);
    if (!(event = calloc(1, sizeof(*event))))
        abort();
    event->context = c;
    *ret = event->handle = handle_new(HANDLE_EVENT, event);
    return end(CU_OK);
}

static cu_result call_event_destroy(cu_event event)
{
    struct event *gone;

    BEGIN(event_destroy);
    if (!context_current())
        return end(CU_INVALID_CONTEXT);
    if (!(gone = handle_object(HANDLE_EVENT, event, call)))
        return end(CU_INVALID_HANDLE);
    e = gone->context->error;
    free(handle_end(HANDLE_EVENT, event));
    return end(e);
}

static cu_result call_event_record(cu_event event, cu_stream stream)
{
    struct event *recorded;
    struct stream *s;

    BEGIN(event_record);
    recorded = event_here(event, call, &e);
    s = e ? NULL : stream_to_queue(stream, call, &e);
    if (!s)
        return end(e);
    queue_mark(s, call, (struct place){0});
    recorded->place = (struct place){s, s->queued};
    recorded->patience = emu.time == EMU_EARLIEST ? 0 : (unsigned)rng_below(&emu.rng, 4);
    streams_advance();
    return end(CU_OK);
}

static cu_result call_event_query(cu_event event)
{
    struct event *asked;

    BEGIN(event_query);
    asked = event_here(event, call, &e);
    if (!e)
        e = capture_refuses_unsafe(call);
    if (e || place_reached(asked->place))
        return end(e);
    if (asked->patience) {
        asked->patience--;
        return end(CU_NOT_READY);
    }
    e = place_reach(asked->place) ? CU_OK : CU_NOT_READY;
    return end(asked->context->error ? asked->context->error : e);
}

/* ---- work */

/* Whether a copy may be queued: between registered host memory and the context's own device memory,
 * or within the latter. */
static bool copy_allowed(struct piece p, const struct context *c, const char *call)
{
    bool to = memory_is_device(p.dst), from = memory_is_device(p.src);

    if (p.len > UINT64_MAX - p.dst || p.len > UINT64_MAX - p.src) {
        violation("%s: a length of %zu", call, p.len);
        return false;
    }
    if (!to && !from) {
        violation("%s: neither side of the copy is in device memory", call);
        return false;
    }
    return memory_bytes(p.dst, p.len, true, c, call) && memory_bytes(p.src, p.len, false, c, call);
}

static cu_result call_copy(cu_ptr dst, cu_ptr src, size_t len, cu_stream stream)
{
    struct piece p = {dst, src, len};
    struct stream *s;

    BEGIN(copy);
    s = stream_to_queue(stream, call, &e);
    if (!s)
        return end(e);
    if (len && !copy_allowed(p, s->context, call))
        return end(CU_INVALID_VALUE);
    stream_queue(s, op_copy(call, &p, len ? 1 : 0));
    streams_advance();
    return end(CU_OK);
}

struct batch {
    cu_ptr *dst, *src;
    size_t *len, count;
    struct cu_copy_attributes *attributes;
    size_t *first, attribute_count;
};

static bool attributes_right(const struct batch *b, const char *call)
{
    bool right = b->attributes && b->first && b->attribute_count &&
                 b->attribute_count <= b->count && b->first[0] == 0;

    for (size_t i = 0; right && i < b->attribute_count; i++)
        right = b->attributes[i].access_order == CU_ACCESS_ORDER_STREAM &&
                b->attributes[i].flags <= 1 && b->first[i] < b->count &&
                (i == 0 || b->first[i] > b->first[i - 1]);
    if (!right)
        violation("%s: attributes must be in stream order, cover every copy from 0 on, ascending",
                  call);
    return right;
}

/* Queues the copies up to one that is wrong, which *failed names. */
static cu_result queue_batch(struct stream *s, const struct batch *b, size_t *failed,
                             const char *call)
{
    struct piece *pieces = calloc(b->count, sizeof(*pieces));
    size_t good = 0;

    if (!pieces)
        abort();
    for (; good < b->count; good++) {
        pieces[good] = (struct piece){b->dst[good], b->src[good], b->len[good]};
        if (!b->len[good])
            violation("%s: copy %zu has no length", call, good);
        if (!b->len[good] || !copy_allowed(pieces[good], s->context, call))
            break;
    }
    stream_queue(s, op_copy(call, pieces, good));
    free(pieces);
    if (good == b->count)
        return CU_OK;
    *failed = good;
    return CU_INVALID_VALUE;
}

static cu_result copy_batch(const struct batch *b, size_t *failed, cu_stream stream)
{
    struct stream *s;

    *failed = SIZE_MAX;
    BEGIN(copy_batch);
    s = stream_to_queue(stream, call, &e);
    if (!s)
        return end(e);
    if (s->legacy) {
        violation("%s: the legacy stream takes no batch", call);
        return end(CU_INVALID_VALUE);
    }
    if (!b->count || !b->dst || !b->src || !b->len || !attributes_right(b, call))
        return end(CU_INVALID_VALUE);
    e = queue_batch(s, b, failed, call);
    streams_advance();
    return end(e);
}

static cu_result call_copy_batch_12080(cu_ptr *dst, cu_ptr *src, size_t *len, size_t count,
                                       struct cu_copy_attributes *attributes, size_t *first,
                                       size_t attribute_count, size_t *failed, cu_stream stream)
{
    struct batch b = {dst, src, len, count, attributes, first, attribute_count};

    return failed ? copy_batch(&b, failed, stream) : CU_INVALID_VALUE;
}

static cu_result call_copy_batch_13000(cu_ptr *dst, cu_ptr *src, size_t *len, size_t count,
                                       struct cu_copy_attributes *attributes, size_t *first,
                                       size_t attribute_count, cu_stream stream)
{
    struct batch b = {dst, src, len, count, attributes, first, attribute_count};
    size_t failed;

    return copy_batch(&b, &failed, stream);
}

static cu_result call_module_load(cu_module *ret, const void *image)
{
    struct context *c;

    BEGIN(module_load);
    c = here(&e);
    if (!e)
        e = capture_refuses_unsafe(call);
    if (!e && (!ret || !image))
        e = CU_INVALID_VALUE;
    if (!e && !emu.modules_load)
        e = CU_NO_BINARY_FOR_GPU;
    if (e)
        return end(e);
    *ret = module_new(c)->handle;
    return end(CU_OK);
}

static cu_result call_module_function(cu_function *ret, cu_module module, const char *name)
{
    struct module *m;

    BEGIN(module_function);
    here(&e);
    if (e)
        return end(e);
    if (!(m = handle_object(HANDLE_MODULE, module, call)))
        return end(CU_INVALID_HANDLE);
    if (!ret || !name)
        return end(CU_INVALID_VALUE);
    *ret = module_function(m, name);
    return end(*ret ? CU_OK : CU_NOT_FOUND);
}

static cu_result call_module_unload(cu_module module)
{
    struct module *m;

    BEGIN(module_unload);
    if (!context_current())
        return end(CU_INVALID_CONTEXT);
    if (!(m = handle_object(HANDLE_MODULE, module, call)))
        return end(CU_INVALID_HANDLE);
    e = m->context->error;
    module_end(m);
    return end(e);
}

static cu_result call_launch(cu_function function, unsigned int grid_x, unsigned int grid_y,
                             unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                             unsigned int block_z, unsigned int shared, cu_stream stream,
                             void **parameters, void **extra)
{
    unsigned int threads = block_x * block_y * block_z;
    const struct kernel *kernel;
    struct stream *s;

    BEGIN(launch);
    s = stream_to_queue(stream, call, &e);
    if (!s)
        return end(e);
    kernel = function_kernel(function, s->context, call);
    if (!kernel)
        return end(CU_INVALID_HANDLE);
    if (!grid_x || !grid_y || !grid_z || !threads || threads > 1024 || shared > 48u * 1024 ||
        !parameters || !parameters[0] || extra) {
        violation("%s: a grid of %u x %u x %u, blocks of %u x %u x %u, %u bytes shared", call,
                  grid_x, grid_y, grid_z, block_x, block_y, block_z, shared);
        return end(CU_INVALID_VALUE);
    }
    stream_queue(s, op_kernel(kernel, parameters[0], grid_x * grid_y * grid_z, threads));
    streams_advance();
    return end(CU_OK);
}

/* ---- names */

typedef void (*any_fn)(void);

static any_fn find_call(const char *name, int version, int *status)
{
    enum { NOT_FOUND = 1, TOO_NEW = 2 };
    any_fn found = NULL;

    *status = CU_PROC_SUCCESS;
#define X(member, symbol, parameters) \
    if (!strcmp(name, #symbol))       \
        found = (any_fn)call_##member;
    CU_CALLS(X)
#undef X
    if (found && version >= CU_ABI && version <= emu.version)
        return found;
    if (!strcmp(name, "cuMemcpyBatchAsync")) {
        if (version >= 13000 && version <= emu.version)
            return (any_fn)call_copy_batch_13000;
        if (version >= 12080 && version <= emu.version)
            return (any_fn)call_copy_batch_12080;
        found = (any_fn)call_copy_batch_12080;
    }
    if (!strcmp(name, "cuGetProcAddress") && version >= CU_ABI && version <= emu.version)
        return (any_fn)cuGetProcAddress_v2;
    *status = found ? TOO_NEW : NOT_FOUND;
    return NULL;
}

EMU_API cu_result cuGetProcAddress_v2(const char *name, void **ret, int version, uint64_t flags,
                                      int *status)
{
    union {
        any_fn fn;
        void *address;
    } found;
    int why;

    if (!name || !ret || flags > 1)
        return CU_INVALID_VALUE;
    emu_lock();
    found.fn = find_call(name, version, &why);
    emu_unlock();
    *ret = found.address;
    if (status)
        *status = why;
    return found.fn ? CU_OK : CU_NOT_FOUND;
}

/* That of 11.3: it has no status. */
EMU_API cu_result cuGetProcAddress(const char *name, void **ret, int version, uint64_t flags)
{
    return cuGetProcAddress_v2(name, ret, version, flags, NULL);
}

/* The linker's names are those of a real driver: what has a second version there has no first here,
 * which would be another ABI. */
#define EXPORT(member, symbol) \
    EMU_API extern __typeof(call_##member) symbol __attribute__((alias("call_" #member)))

EXPORT(init, cuInit);
EXPORT(driver_version, cuDriverGetVersion);
EXPORT(error_string, cuGetErrorString);
EXPORT(device_count, cuDeviceGetCount);
EXPORT(device_get, cuDeviceGet);
EXPORT(device_name, cuDeviceGetName);
EXPORT(device_attribute, cuDeviceGetAttribute);
EXPORT(primary_state, cuDevicePrimaryCtxGetState);
EXPORT(primary_retain, cuDevicePrimaryCtxRetain);
EXPORT(primary_release, cuDevicePrimaryCtxRelease_v2);
EXPORT(context_push, cuCtxPushCurrent_v2);
EXPORT(context_pop, cuCtxPopCurrent_v2);
EXPORT(context_id, cuCtxGetId);
EXPORT(context_device, cuCtxGetDevice);
EXPORT(capture_mode, cuThreadExchangeStreamCaptureMode);
EXPORT(pointer_attributes, cuPointerGetAttributes);
EXPORT(stream_create, cuStreamCreate);
EXPORT(stream_destroy, cuStreamDestroy_v2);
EXPORT(stream_context, cuStreamGetCtx);
EXPORT(stream_capturing, cuStreamIsCapturing);
EXPORT(stream_wait, cuStreamWaitEvent);
EXPORT(event_create, cuEventCreate);
EXPORT(event_destroy, cuEventDestroy_v2);
EXPORT(event_record, cuEventRecord);
EXPORT(event_query, cuEventQuery);
EXPORT(copy, cuMemcpyAsync);
EXPORT(host_register, cuMemHostRegister_v2);
EXPORT(host_unregister, cuMemHostUnregister);
EXPORT(host_pointer, cuMemHostGetDevicePointer_v2);
EXPORT(alloc, cuMemAlloc_v2);
EXPORT(free, cuMemFree_v2);
EXPORT(module_load, cuModuleLoadData);
EXPORT(module_function, cuModuleGetFunction);
EXPORT(module_unload, cuModuleUnload);
EXPORT(launch, cuLaunchKernel);
EXPORT(copy_batch_12080, cuMemcpyBatchAsync);
