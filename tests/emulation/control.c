/* The tests' side of the emulation. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/emulation/emulation.h"

static void devices_reset(void)
{
    for (int i = 0; i < MAX_DEVICES; i++) {
        int *attributes = emu.devices[i].attributes;
        for (int k = 0; k < MAX_ATTRIBUTE; k++)
            attributes[k] = -1;
        attributes[CU_DEVICE_COMPUTE_MAJOR] = 9;
        attributes[CU_DEVICE_COMPUTE_MINOR] = 0;
        attributes[CU_DEVICE_READ_ONLY_REGISTER] = 1;
    }
}

void emulation_reset(uint64_t seed)
{
    struct context *c;
    void *object;

    streams_reset();
    for (size_t at = 0; (object = handle_next(HANDLE_MODULE, &at));)
        module_end(object);
    for (size_t at = 0; (object = handle_next(HANDLE_EVENT, &at));)
        free(object);
    handles_reset();
    while ((c = emu.contexts)) {
        emu.contexts = c->next;
        free(c);
    }
    memory_reset();
    faults_reset();
    emu = (struct emulation){.epoch = emu.epoch + 1,
                             .rng = {.state = seed},
                             .version = 13000,
                             .device_count = 1,
                             .modules_load = true};
    devices_reset();
}

void emulation_configure(void)
{
    static const char *const times[] = {"earliest", "latest", "random"};
    const char *text = getenv("CAIRN_EMULATED_CUDA");
    char word[64];
    int n;

    for (; text && sscanf(text, " %63[^ ]%n", word, &n) == 1; text += n) {
        uint64_t value = strchr(word, '=') ? strtoull(strchr(word, '=') + 1, NULL, 0) : 0;
        if (!strncmp(word, "seed=", 5))
            emu.rng.state = value;
        else if (!strncmp(word, "devices=", 8) && value <= MAX_DEVICES)
            emu.device_count = (int)value;
        else if (!strncmp(word, "version=", 8))
            emu.version = (int)value;
        else if (!strncmp(word, "time=", 5))
            for (int i = EMU_EARLIEST; i <= EMU_RANDOM; i++)
                emu.time = strcmp(word + 5, times[i]) ? emu.time : (enum emu_time)i;
        else
            fprintf(stderr, "CAIRN_EMULATED_CUDA: \"%s\" is none of seed=, devices=, version=, "
                            "time=earliest|latest|random\n", word);
    }
}

void emu_reset(uint64_t seed)
{
    emu_lock();
    emulation_reset(seed);
    emu_unlock();
}

void emu_time(enum emu_time mode)
{
    emu_lock();
    emu.time = mode;
    streams_advance();
    emu_unlock();
}

cu_result emu_devices(int count)
{
    bool right = count >= 0 && count <= MAX_DEVICES;

    emu_lock();
    right = right && !emu.initialized;
    if (right)
        emu.device_count = count;
    emu_unlock();
    return right ? CU_OK : CU_INVALID_VALUE;
}

void emu_driver_version(int version)
{
    emu_lock();
    emu.version = version;
    emu_unlock();
}

cu_result emu_attribute(int device, int attribute, int value)
{
    if (device < 0 || device >= MAX_DEVICES || attribute < 0 || attribute >= MAX_ATTRIBUTE)
        return CU_INVALID_VALUE;
    emu_lock();
    emu.devices[device].attributes[attribute] = value;
    emu_unlock();
    return CU_OK;
}

void emu_modules_load(int yes)
{
    emu_lock();
    emu.modules_load = yes;
    emu_unlock();
}

/* ---- contexts */

cu_result emu_context_create(cu_context *ret, int device)
{
    bool right;

    emu_lock();
    right = emu.initialized && device >= 0 && device < emu.device_count;
    if (right)
        *ret = context_new(device, false)->handle;
    emu_unlock();
    return right ? CU_OK : CU_INVALID_VALUE;
}

cu_result emu_context_destroy(cu_context context)
{
    struct context *c;

    emu_lock();
    c = handle_object(HANDLE_CONTEXT, context, "emu_context_destroy");
    if (c && !c->primary) {
        handle_end(HANDLE_CONTEXT, context);
        context_end(c);
    }
    emu_unlock();
    return c && !c->primary ? CU_OK : CU_INVALID_CONTEXT;
}

int emu_context_depth(void)
{
    int depth;

    emu_lock();
    depth = context_depth();
    emu_unlock();
    return depth;
}

int emu_capture_mode(void)
{
    int mode;

    emu_lock();
    mode = capture_mode();
    emu_unlock();
    return mode;
}

void emu_engine_thread(int on)
{
    emu_lock();
    engine_thread_set(on);
    emu_unlock();
}

cu_context emu_context_current(void)
{
    struct context *c;

    emu_lock();
    c = context_current();
    emu_unlock();
    return c ? c->handle : NULL;
}

/* ---- memory */

cu_result emu_alloc_pooled(cu_ptr *ret, size_t len, int device)
{
    cu_result e = CU_INVALID_VALUE;

    emu_lock();
    if (device >= 0 && device < emu.device_count)
        e = device_alloc(ret, len, NULL, device);
    emu_unlock();
    return e;
}

static cu_result debug_copy(cu_ptr at, void *host, size_t len, bool write)
{
    unsigned char *bytes;

    emu_lock();
    bytes = memory_is_device(at) ? memory_bytes(at, len, write, NULL, NULL) : NULL;
    if (bytes)
        memcpy(write ? bytes : host, write ? host : bytes, len);
    emu_unlock();
    return bytes ? CU_OK : CU_INVALID_VALUE;
}

cu_result emu_write(cu_ptr to, const void *from, size_t len)
{
    return debug_copy(to, (void *)(uintptr_t)from, len, true);
}

cu_result emu_read(void *to, cu_ptr from, size_t len)
{
    return debug_copy(from, to, len, false);
}

/* ---- streams */

/* Takes the lock; with NULL it is given back. */
static struct stream *lock_stream(cu_stream handle, const char *call)
{
    struct stream *s;

    emu_lock();
    s = stream_of(handle, context_current(), call);
    if (!s)
        emu_unlock();
    return s;
}

static cu_result queue_own(struct stream *s, struct op *op)
{
    cu_result e = s->capturing ? CU_STREAM_CAPTURE_UNSUPPORTED : s->context->error;

    if (e) {
        op_free(op);
    } else {
        stream_queue(s, op);
        streams_advance();
        e = s->context->error;
    }
    emu_unlock();
    return e;
}

cu_result emu_stream_fill(cu_stream stream, cu_ptr to, size_t len, int byte)
{
    struct stream *s = lock_stream(stream, "emu_stream_fill");
    struct op *op;

    if (!s)
        return CU_INVALID_HANDLE;
    op = op_new(OP_FILL, "emu_stream_fill");
    op->memory = (struct piece){.dst = to, .len = len};
    op->byte = byte;
    return queue_own(s, op);
}

cu_result emu_stream_read(cu_stream stream, void *out, cu_ptr from, size_t len)
{
    struct stream *s = lock_stream(stream, "emu_stream_read");
    struct op *op;

    if (!s)
        return CU_INVALID_HANDLE;
    op = op_new(OP_READ, "emu_stream_read");
    op->memory = (struct piece){.dst = (cu_ptr)(uintptr_t)out, .src = from, .len = len};
    return queue_own(s, op);
}

cu_result emu_stream_block(cu_stream stream)
{
    struct stream *s = lock_stream(stream, "emu_stream_block");

    return s ? queue_own(s, op_new(OP_BLOCK, "emu_stream_block")) : CU_INVALID_HANDLE;
}

cu_result emu_stream_unblock(cu_stream stream)
{
    struct stream *s = lock_stream(stream, "emu_stream_unblock");

    if (!s)
        return CU_INVALID_HANDLE;
    stream_lift_blocks(s);
    streams_advance();
    emu_unlock();
    return CU_OK;
}

cu_result emu_stream_sync(cu_stream stream)
{
    struct stream *s = lock_stream(stream, "emu_stream_sync");
    cu_result e;

    if (!s)
        return CU_INVALID_HANDLE;
    e = place_reach((struct place){s, s->queued}) ? CU_OK : CU_NOT_READY;
    if (s->context->error)
        e = s->context->error;
    emu_unlock();
    return e;
}

void emu_drain(void)
{
    emu_lock();
    streams_run_all();
    emu_unlock();
}

uint64_t emu_pending(void)
{
    uint64_t n;

    emu_lock();
    n = streams_pending(NULL);
    emu_unlock();
    return n;
}

cu_result emu_capture(cu_stream stream, int on)
{
    struct stream *s = lock_stream(stream, "emu_capture");
    cu_result e = CU_OK;

    if (!s)
        return CU_INVALID_HANDLE;
    if (s->legacy || s->capturing == (on != 0)) {
        e = CU_STREAM_CAPTURE_UNSUPPORTED;
    } else {
        if (!on && s->capture_broken)
            e = CU_STREAM_CAPTURE_INVALIDATED;
        s->capturing = on;
        s->capture_broken = false;
        s->captor = pthread_self();
    }
    emu_unlock();
    return e;
}

/* ---- faults and counts */

static cu_result fail(const char *call, unsigned int nth, cu_result result, bool always)
{
    cu_result e;

    emu_lock();
    e = fault_add(call, nth, result, always);
    emu_unlock();
    return e;
}

cu_result emu_fail(const char *call, unsigned int nth, cu_result result)
{
    return fail(call, nth, result, false);
}

cu_result emu_fail_always(const char *call, unsigned int nth, cu_result result)
{
    return fail(call, nth, result, true);
}

void emu_fail_queued(unsigned int nth, cu_result result)
{
    emu_lock();
    fault_add_queued(nth, result);
    emu_unlock();
}

const char *emu_call_name(int index)
{
    return call_name(index);
}

uint64_t emu_calls(const char *call)
{
    int id = call ? call_id(call) : -1;
    uint64_t n;

    if (call && id < 0)
        return UINT64_MAX;
    emu_lock();
    n = calls_made(id);
    emu_unlock();
    return n;
}

uint64_t emu_violations(void)
{
    uint64_t n;

    emu_lock();
    n = violations();
    emu_unlock();
    return n;
}

const char *emu_violation_text(void)
{
    static _Thread_local char copy[16384];

    emu_lock();
    snprintf(copy, sizeof(copy), "%s", violation_text());
    emu_unlock();
    return copy;
}

static uint64_t retains(void)
{
    uint64_t n = 0;

    for (const struct context *c = emu.contexts; c; c = c->next)
        n += c->retains;
    return n;
}

static uint64_t live(const char *what)
{
    if (!strcmp(what, "streams"))
        return handle_count(HANDLE_STREAM);
    if (!strcmp(what, "events"))
        return handle_count(HANDLE_EVENT);
    if (!strcmp(what, "modules"))
        return handle_count(HANDLE_MODULE);
    if (!strcmp(what, "registrations"))
        return registrations_live();
    if (!strcmp(what, "retains"))
        return retains();
    return strcmp(what, "allocations") ? UINT64_MAX : allocations_live();
}

uint64_t emu_live(const char *what)
{
    uint64_t n;

    emu_lock();
    n = live(what);
    emu_unlock();
    return n;
}

uint64_t emu_leaks(void)
{
    return emu_live("streams") + emu_live("events") + emu_live("modules") +
           emu_live("registrations") + emu_live("retains");
}
