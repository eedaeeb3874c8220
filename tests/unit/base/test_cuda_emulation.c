/* The emulated CUDA driver itself: what it lets through, what it refuses and when it runs what is
 * queued. A test of Cairn on it proves no more than this does. */
#include <criterion/criterion.h>
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cuda_pages.h"
#include "tests/emulation/cuda_emulation.h"
#include "tests/helpers/seed.h"

#define LEN 65536u

#define CONTROLS(X)                                                                       \
    X(emu_reset) X(emu_time) X(emu_devices) X(emu_driver_version) X(emu_attribute)        \
    X(emu_modules_load) X(emu_context_create) X(emu_context_destroy) X(emu_context_depth) \
    X(emu_context_current) X(emu_capture_mode) X(emu_engine_thread)                       \
    X(emu_alloc_pooled) X(emu_write) X(emu_read)                                          \
    X(emu_stream_fill) X(emu_stream_read) X(emu_stream_block) X(emu_stream_unblock)       \
    X(emu_stream_sync) X(emu_drain) X(emu_pending) X(emu_capture) X(emu_fail)             \
    X(emu_fail_always) X(emu_fail_queued) X(emu_call_name) X(emu_calls) X(emu_violations) \
    X(emu_violation_text) X(emu_live) X(emu_leaks)

static struct {
#define X(name) __typeof(name) *name;
    CONTROLS(X)
#undef X
} t;

static struct {
#define X(member, name, parameters) cu_result(*member) parameters;
    CU_CALLS(X)
#undef X
    cu_copy_batch_12080_fn batch_12080;
    cu_copy_batch_13000_fn batch_13000;
} cu;

static cu_get_proc_address_fn get_proc;
static cu_context context;
static cu_ptr memory;
static unsigned char *host; /* LEN bytes, registered */

static void *symbol(void *library, const char *name)
{
    void *found = dlsym(library, name);
    cr_assert_not_null(found, "%s", name);
    return found;
}

/* A function's address out of a data pointer, which C has no cast for. */
static void take(void *member, void *found)
{
    memcpy(member, &found, sizeof(found));
}

static void *call_of(const char *name, int version)
{
    void *found = NULL;
    int status = -1;
    cr_assert_eq(get_proc(name, &found, version, 0, &status), CU_OK, "%s", name);
    cr_assert_eq(status, CU_PROC_SUCCESS);
    return found;
}

static void open_library(void)
{
    void *library = dlopen(EMULATED_CUDA, RTLD_NOW | RTLD_LOCAL);
    cr_assert_not_null(library, "%s", dlerror());
#define X(name) take(&t.name, symbol(library, #name));
    CONTROLS(X)
#undef X
    take(&get_proc, symbol(library, "cuGetProcAddress_v2"));
#define X(member, name, parameters) take(&cu.member, call_of(#name, CU_ABI));
    CU_CALLS(X)
#undef X
    take(&cu.batch_12080, call_of("cuMemcpyBatchAsync", 12080));
    take(&cu.batch_13000, call_of("cuMemcpyBatchAsync", 13000));
}

static unsigned char *pages(size_t len, int rights)
{
    void *p = mmap(NULL, len, rights, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cr_assert_neq(p, MAP_FAILED);
    return p;
}

/* Two devices, the first one's primary context pushed, memory of each kind. */
static void begin(void)
{
    struct rng r = test_rng("emulated CUDA");
    open_library();
    t.emu_reset(rng_next(&r));
    cr_assert_eq(t.emu_devices(2), CU_OK);
    cr_assert_eq(cu.init(0), CU_OK);
    cr_assert_eq(cu.primary_retain(&context, 0), CU_OK);
    cr_assert_eq(cu.context_push(context), CU_OK);
    cr_assert_eq(cu.alloc(&memory, LEN), CU_OK);
    host = pages(LEN, PROT_READ | PROT_WRITE);
    cr_assert_eq(cu.host_register(host, LEN, CU_REGISTER_PORTABLE | CU_REGISTER_DEVICEMAP), CU_OK);
}

static void end(void)
{
    t.emu_reset(1);
    munmap(host, LEN);
}

static cu_ptr address(const void *p)
{
    return (cu_ptr)(uintptr_t)p;
}

static bool all(const unsigned char *p, size_t len, int byte)
{
    for (size_t i = 0; i < len; i++) {
        if (p[i] != byte)
            return false;
    }
    return true;
}

static bool device_all(int byte)
{
    static unsigned char seen[LEN];
    cr_assert_eq(t.emu_read(seen, memory, LEN), CU_OK);
    return all(seen, LEN, byte);
}

static cu_stream stream_new(void)
{
    cu_stream s = NULL;
    cr_assert_eq(cu.stream_create(&s, CU_STREAM_NON_BLOCKING), CU_OK);
    return s;
}

static cu_event event_new(void)
{
    cu_event e = NULL;
    cr_assert_eq(cu.event_create(&e, CU_EVENT_DISABLE_TIMING), CU_OK);
    return e;
}

static void wait_for(cu_event e)
{
    int asked = 0;
    cu_result got;
    while ((got = cu.event_query(e)) == CU_NOT_READY)
        cr_assert_lt(asked++, 1000);
    cr_assert_eq(got, CU_OK);
}

/* A violation, one more than before, that speaks of the word. */
static void expect_violation(uint64_t before, const char *word)
{
    const char *text = t.emu_violation_text();
    cr_assert_eq(t.emu_violations(), before + 1, "%s", text);
    cr_assert_not_null(strstr(text, word), "no \"%s\" in: %s", word, text);
}

#define EXPECT_VIOLATION(word, result, ...)               \
    do {                                                  \
        uint64_t before_ = t.emu_violations();            \
        cr_assert_eq((__VA_ARGS__), (result));            \
        expect_violation(before_, (word));                \
    } while (0)

TestSuite(emulation, .init = begin, .fini = end);

Test(emulation, calls_are_found_by_name_and_version)
{
    void *found = &found;
    int status = CU_PROC_SUCCESS;
    cr_assert_eq(get_proc("cuNoSuchCall", &found, CU_ABI, 0, &status), CU_NOT_FOUND);
    cr_assert_null(found);
    cr_assert_eq(status, 1);
    cr_assert_eq(get_proc("cuMemcpyBatchAsync", &found, 12000, 0, &status), CU_NOT_FOUND);
    cr_assert_eq(status, 2);
    t.emu_driver_version(12040);
    cr_assert_eq(get_proc("cuMemcpyBatchAsync", &found, 12080, 0, &status), CU_NOT_FOUND);
    t.emu_driver_version(12080);
    cr_assert_eq(get_proc("cuMemcpyBatchAsync", &found, 12080, 0, &status), CU_OK);
    cr_assert_eq(get_proc("cuMemcpyBatchAsync", &found, 13000, 0, &status), CU_NOT_FOUND);
}

Test(emulation, the_host_cannot_touch_device_memory)
{
    volatile unsigned char *p = (volatile unsigned char *)(uintptr_t)memory;
    for (int write = 0; write < 2; write++) {
        int status = 0;
        pid_t pid = fork();
        if (pid == 0) {
            signal(SIGSEGV, SIG_DFL);
            if (write)
                *p = 1;
            else
                (void)*p;
            _exit(0);
        }
        cr_assert_eq(waitpid(pid, &status, 0), pid);
        cr_assert(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV, "status 0x%x", status);
    }
}

Test(emulation, new_memory_is_poisoned_and_freed_memory_is_refused)
{
    unsigned char byte;
    cu_stream s = stream_new();
    cr_assert_not(device_all(0));
    cr_assert_eq(cu.free(memory), CU_OK);
    EXPECT_VIOLATION("freed", CU_INVALID_VALUE, cu.copy(memory, address(host), 16, s));
    EXPECT_VIOLATION("freed", CU_INVALID_VALUE, cu.free(memory));
    cr_assert_eq(t.emu_read(&byte, memory, 1), CU_INVALID_VALUE);
}

Test(emulation, what_runs_late_shows_a_missing_wait)
{
    cu_stream loads = stream_new(), engine = stream_new();
    cu_event loaded = event_new();
    static unsigned char seen[LEN];
    t.emu_time(EMU_LATEST);
    memset(host, 1, LEN);
    cr_assert_eq(cu.copy(memory, address(host), LEN, loads), CU_OK);
    cr_assert_eq(cu.event_record(loaded, loads), CU_OK);
    cr_assert_eq(t.emu_stream_read(engine, seen, memory, LEN), CU_OK);
    cr_assert_eq(t.emu_stream_sync(engine), CU_OK);
    cr_assert_not(all(seen, LEN, 1));
    cr_assert_eq(t.emu_pending(), 2);

    cr_assert_eq(cu.stream_wait(engine, loaded, 0), CU_OK);
    cr_assert_eq(t.emu_stream_read(engine, seen, memory, LEN), CU_OK);
    cr_assert_eq(t.emu_stream_sync(engine), CU_OK);
    cr_assert(all(seen, LEN, 1));
    cr_assert_eq(t.emu_violations(), 0);
}

Test(emulation, what_is_overwritten_before_the_copy_ran_arrives_wrong)
{
    cu_stream s = stream_new();
    cu_event copied = event_new();
    t.emu_time(EMU_LATEST);
    memset(host, 1, LEN);
    cr_assert_eq(cu.copy(memory, address(host), LEN, s), CU_OK);
    cr_assert_eq(cu.event_record(copied, s), CU_OK);
    memset(host, 2, LEN);
    wait_for(copied);
    cr_assert(device_all(2));

    t.emu_time(EMU_EARLIEST);
    memset(host, 3, LEN);
    cr_assert_eq(cu.copy(memory, address(host), LEN, s), CU_OK);
    memset(host, 4, LEN);
    cr_assert(device_all(3));
}

Test(emulation, random_time_shows_copies_half_done)
{
    cu_stream s = stream_new();
    cu_event copied = event_new();
    int torn = 0;
    for (int round = 1; round < 400 && !torn; round++) {
        t.emu_time(EMU_RANDOM);
        memset(host, round % 128, LEN);
        cr_assert_eq(cu.copy(memory, address(host), LEN, s), CU_OK);
        cr_assert_eq(cu.event_record(copied, s), CU_OK);
        torn += !device_all(round % 128);
        wait_for(copied);
        cr_assert(device_all(round % 128));
    }
    cr_assert(torn);
}

Test(emulation, an_event_is_its_latest_record_at_the_time_of_the_wait)
{
    cu_stream a = stream_new(), b = stream_new();
    cu_event e = event_new();
    static unsigned char seen[LEN];
    t.emu_time(EMU_LATEST);
    cr_assert_eq(cu.event_query(e), CU_OK);
    cr_assert_eq(cu.stream_wait(b, e, 0), CU_OK);
    cr_assert_eq(t.emu_stream_fill(a, memory, LEN, 1), CU_OK);
    cr_assert_eq(cu.event_record(e, a), CU_OK);
    cr_assert_eq(cu.stream_wait(b, e, 0), CU_OK);
    cr_assert_eq(t.emu_stream_fill(a, memory, LEN, 2), CU_OK);
    cr_assert_eq(cu.event_record(e, a), CU_OK);
    cr_assert_eq(t.emu_stream_read(b, seen, memory, LEN), CU_OK);
    cr_assert_eq(t.emu_stream_sync(b), CU_OK);
    cr_assert(all(seen, LEN, 1));
    wait_for(e);
    cr_assert(device_all(2));
}

Test(emulation, the_legacy_stream_waits_for_blocking_streams_and_they_for_it)
{
    cu_stream blocking = NULL, apart = stream_new();
    static unsigned char seen[LEN];
    t.emu_time(EMU_LATEST);
    cr_assert_eq(cu.stream_create(&blocking, 0), CU_OK);
    cr_assert_eq(t.emu_stream_fill(blocking, memory, LEN, 1), CU_OK);
    cr_assert_eq(t.emu_stream_read(NULL, seen, memory, LEN), CU_OK);
    cr_assert_eq(t.emu_stream_fill(NULL, memory, LEN, 2), CU_OK);
    cr_assert_eq(t.emu_stream_fill(blocking, memory, LEN / 2, 3), CU_OK);
    cr_assert_eq(t.emu_stream_sync(apart), CU_OK);
    cr_assert(device_all(0xFD));
    cr_assert_eq(t.emu_stream_sync(NULL), CU_OK);
    cr_assert(all(seen, LEN, 1));
    cr_assert(device_all(2));
    cr_assert_eq(t.emu_stream_read(apart, seen, memory, LEN), CU_OK);
    cr_assert_eq(t.emu_stream_sync(apart), CU_OK);
    cr_assert(all(seen, LEN, 2));
    cr_assert_eq(t.emu_stream_sync(blocking), CU_OK);
    cr_assert_eq(t.emu_read(seen, memory, LEN), CU_OK);
    cr_assert(all(seen, LEN / 2, 3));
}

Test(emulation, a_block_holds_back_what_comes_after_it)
{
    cu_stream s = stream_new();
    cu_event e = event_new();
    cr_assert_eq(t.emu_stream_fill(s, memory, LEN, 1), CU_OK);
    cr_assert_eq(t.emu_stream_block(s), CU_OK);
    cr_assert_eq(t.emu_stream_fill(s, memory, LEN, 2), CU_OK);
    cr_assert_eq(cu.event_record(e, s), CU_OK);
    for (int i = 0; i < 20; i++)
        cr_assert_eq(cu.event_query(e), CU_NOT_READY);
    cr_assert_eq(t.emu_stream_sync(s), CU_NOT_READY);
    cr_assert(device_all(1));
    cr_assert_eq(t.emu_stream_unblock(s), CU_OK);
    cr_assert_eq(cu.event_query(e), CU_OK);
    cr_assert(device_all(2));
}

Test(emulation, only_registered_memory_is_copied)
{
    cu_stream s = stream_new();
    unsigned char *other = pages(LEN, PROT_READ | PROT_WRITE);
    EXPECT_VIOLATION("registered", CU_INVALID_VALUE, cu.copy(memory, address(other), LEN, s));
    EXPECT_VIOLATION("registered", CU_INVALID_VALUE, cu.copy(address(other), memory, LEN, s));
    EXPECT_VIOLATION("end", CU_INVALID_VALUE, cu.copy(memory, address(host) + 1, LEN, s));
    EXPECT_VIOLATION("end", CU_INVALID_VALUE, cu.copy(memory + 1, address(host), LEN, s));
    EXPECT_VIOLATION("neither", CU_INVALID_VALUE,
                     cu.copy(address(host), address(host) + LEN / 2, 16, s));
    munmap(other, LEN);
}

Test(emulation, registration_is_as_strict_as_a_driver)
{
    unsigned char *seen = pages(LEN, PROT_READ), *gone = pages(LEN, PROT_READ);
    cu_stream s = stream_new();
    munmap(gone, LEN);
    cr_assert_eq(cu.host_register(host + LEN / 2, LEN / 2, 0), CU_HOST_MEMORY_ALREADY_REGISTERED);
    cr_assert_eq(cu.host_unregister(host + 4096), CU_HOST_MEMORY_NOT_REGISTERED);
    cr_assert_eq(cu.host_register(gone, LEN, 0), CU_INVALID_VALUE);
    cr_assert_eq(cu.host_register(seen, LEN, 0), CU_INVALID_VALUE);
    t.emu_attribute(0, CU_DEVICE_READ_ONLY_REGISTER, 0);
    cr_assert_eq(cu.host_register(seen, LEN, CU_REGISTER_READ_ONLY), CU_NOT_SUPPORTED);
    t.emu_attribute(0, CU_DEVICE_READ_ONLY_REGISTER, 1);
    cr_assert_eq(cu.host_register(seen, LEN, CU_REGISTER_READ_ONLY), CU_OK);
    cr_assert_eq(cu.copy(memory, address(seen), LEN, s), CU_OK);
    EXPECT_VIOLATION("read-only", CU_INVALID_VALUE, cu.copy(address(seen), memory, LEN, s));
    cr_assert_eq(cu.host_unregister(seen), CU_OK);
    munmap(seen, LEN);
}

Test(emulation, memory_in_use_is_not_given_up)
{
    cu_stream s = stream_new();
    t.emu_time(EMU_LATEST);
    cr_assert_eq(cu.copy(memory, address(host), LEN, s), CU_OK);
    EXPECT_VIOLATION("used", CU_INVALID_VALUE, cu.host_unregister(host));
    cr_assert_eq(t.emu_stream_sync(s), CU_OK);
    cr_assert_eq(cu.host_unregister(host), CU_OK);
    cr_assert_eq(t.emu_violations(), 1);
}

Test(emulation, a_copy_whose_memory_is_freed_breaks_its_context)
{
    cu_stream s = stream_new();
    t.emu_time(EMU_LATEST);
    cr_assert_eq(cu.copy(memory, address(host), LEN, s), CU_OK);
    EXPECT_VIOLATION("queued", CU_OK, cu.free(memory));
    cr_assert_eq(t.emu_stream_sync(s), CU_ILLEGAL_ADDRESS);
    cr_assert_eq(cu.alloc(&memory, LEN), CU_ILLEGAL_ADDRESS);
}

Test(emulation, contexts_are_kept_apart)
{
    cu_context second = NULL, beside = NULL;
    cu_stream first_stream = stream_new(), s;
    cu_event first_event = event_new(), e;
    cu_ptr there;
    cr_assert_eq(cu.context_pop(NULL), CU_OK);
    cr_assert_eq(cu.stream_create(&s, 0), CU_INVALID_CONTEXT);
    cr_assert_eq(cu.alloc(&there, LEN), CU_INVALID_CONTEXT);
    cr_assert_eq(cu.primary_retain(&second, 1), CU_OK);
    cr_assert_eq(cu.context_push(second), CU_OK);
    s = stream_new();
    e = event_new();
    cr_assert_eq(cu.alloc(&there, LEN), CU_OK);
    EXPECT_VIOLATION("another context", CU_INVALID_VALUE, cu.copy(memory, address(host), 8, s));
    EXPECT_VIOLATION("another context", CU_INVALID_HANDLE,
                     cu.copy(there, address(host), 8, first_stream));
    EXPECT_VIOLATION("another context", CU_INVALID_HANDLE, cu.event_record(first_event, s));
    EXPECT_VIOLATION("another context", CU_INVALID_HANDLE, cu.event_query(first_event));
    cr_assert_eq(cu.stream_wait(s, first_event, 0), CU_OK);
    cr_assert_eq(cu.copy(there, address(host), LEN, s), CU_OK);
    cr_assert_eq(cu.event_record(e, s), CU_OK);
    cr_assert_eq(cu.event_query(e), CU_OK);
    cr_assert_eq(t.emu_context_create(&beside, 1), CU_OK);
    cr_assert_eq(cu.context_push(beside), CU_OK);
    cr_assert_eq(t.emu_context_depth(), 2);
    EXPECT_VIOLATION("another context", CU_INVALID_HANDLE, cu.copy(there, address(host), 8, s));
}

Test(emulation, stale_handles_are_known)
{
    cu_stream s = stream_new();
    cu_event e = event_new();
    cr_assert_eq(cu.stream_destroy(s), CU_OK);
    EXPECT_VIOLATION("destroyed", CU_INVALID_HANDLE, cu.event_record(e, s));
    cr_assert_eq(cu.event_destroy(e), CU_OK);
    EXPECT_VIOLATION("destroyed", CU_INVALID_HANDLE, cu.event_query(e));
    cr_assert_eq(cu.primary_release(0), CU_OK);
    EXPECT_VIOLATION("more often", CU_INVALID_CONTEXT, cu.primary_release(0));
    cr_assert_eq(t.emu_leaks(), 0, "all went with the context");
}

Test(emulation, pointers_say_what_they_are)
{
    int attributes[] = {CU_POINTER_CONTEXT, CU_POINTER_MEMORY_TYPE, CU_POINTER_ORDINAL,
                        CU_POINTER_RANGE_START, CU_POINTER_RANGE_SIZE};
    cu_context c;
    unsigned int type;
    int ordinal, mark = 0;
    cu_ptr start, pooled;
    size_t len;
    void *values[] = {&c, &type, &ordinal, &start, &len};
    cr_assert_eq(cu.pointer_attributes(5, attributes, values, memory + 5), CU_OK);
    cr_assert(c == context && type == CU_MEMORY_DEVICE && ordinal == 0);
    cr_assert(start == memory && len == LEN);
    cr_assert_eq(cu.pointer_attributes(5, attributes, values, address(host + 5)), CU_OK);
    cr_assert(type == CU_MEMORY_HOST && start == address(host));
    cr_assert_eq(cu.pointer_attributes(5, attributes, values, address(&mark)), CU_OK);
    cr_assert(c == NULL && type == 0 && start == 0);
    cr_assert_eq(t.emu_alloc_pooled(&pooled, LEN, 1), CU_OK);
    cr_assert_eq(cu.pointer_attributes(5, attributes, values, pooled), CU_OK);
    cr_assert(c == NULL && type == CU_MEMORY_DEVICE && ordinal == 1);
}

/* ---- batches */

#define PARTS 8

struct parts {
    cu_ptr dst[PARTS], src[PARTS];
    size_t len[PARTS], first[2];
    struct cu_copy_attributes attributes[2];
};

static struct parts parts_to_device(void)
{
    struct parts p = {.attributes = {{.access_order = CU_ACCESS_ORDER_STREAM},
                                     {.access_order = CU_ACCESS_ORDER_STREAM}}};
    for (size_t i = 0; i < PARTS; i++) {
        p.dst[i] = memory + i * (LEN / PARTS);
        p.src[i] = address(host) + (PARTS - 1 - i) * (LEN / PARTS);
        p.len[i] = LEN / PARTS;
    }
    return p;
}

static void check_reversed(void)
{
    static unsigned char seen[LEN];
    t.emu_drain();
    cr_assert_eq(t.emu_read(seen, memory, LEN), CU_OK);
    for (size_t i = 0; i < PARTS; i++)
        cr_assert(all(seen + i * (LEN / PARTS), LEN / PARTS, (int)(PARTS - i)));
}

static void number_parts(void)
{
    for (size_t i = 0; i < PARTS; i++)
        memset(host + i * (LEN / PARTS), (int)i + 1, LEN / PARTS);
}

Test(emulation, both_signatures_of_the_batch_copy)
{
    for (int mode = EMU_EARLIEST; mode <= EMU_RANDOM; mode++) {
        struct parts p = parts_to_device();
        cu_stream s = stream_new();
        size_t failed = 0;
        t.emu_time(mode);
        number_parts();
        cr_assert_eq(cu.batch_12080(p.dst, p.src, p.len, PARTS, p.attributes, p.first, 1, &failed,
                                    s), CU_OK);
        check_reversed();
        memset(host, 0, LEN);
        cr_assert_eq(t.emu_write(memory, host, LEN), CU_OK);
        number_parts();
        cr_assert_eq(cu.batch_13000(p.dst, p.src, p.len, PARTS, p.attributes, p.first, 1, s),
                     CU_OK);
        check_reversed();
    }
    cr_assert_eq(t.emu_violations(), 0);
    cr_assert_eq(t.emu_calls("cuMemcpyBatchAsync"), 6);
}

static cu_result batch(struct parts *p, size_t attribute_count, cu_stream s)
{
    return cu.batch_13000(p->dst, p->src, p->len, PARTS, p->attributes, p->first, attribute_count,
                          s);
}

Test(emulation, batches_that_a_driver_refuses)
{
    struct parts good = parts_to_device(), p = good;
    cu_stream s = stream_new();
    size_t failed = 0;
    EXPECT_VIOLATION("legacy", CU_INVALID_VALUE, batch(&p, 1, NULL));
    EXPECT_VIOLATION("attributes", CU_INVALID_VALUE, batch(&p, 0, s));
    EXPECT_VIOLATION("attributes", CU_INVALID_VALUE, batch(&p, 2, s));
    p.first[0] = 1;
    EXPECT_VIOLATION("attributes", CU_INVALID_VALUE, batch(&p, 1, s));
    p = good;
    p.attributes[0].access_order = 3;
    EXPECT_VIOLATION("attributes", CU_INVALID_VALUE, batch(&p, 1, s));
    p = good;
    p.src[5] = address(&p);
    EXPECT_VIOLATION("registered", CU_INVALID_VALUE,
                     cu.batch_12080(p.dst, p.src, p.len, PARTS, p.attributes, p.first, 1, &failed,
                                    s));
    cr_assert_eq(failed, 5);
    p = good;
    p.first[1] = 4;
    cr_assert_eq(batch(&p, 2, s), CU_OK);
}

/* ---- capture */

Test(emulation, nobody_disturbs_a_capture)
{
    cu_stream graph = stream_new(), own = stream_new();
    cu_event e = event_new();
    cu_ptr more;
    int state, mode = CU_CAPTURE_MODE_RELAXED;
    cr_assert_eq(t.emu_capture(graph, 1), CU_OK);
    cr_assert_eq(cu.stream_capturing(graph, &state), CU_OK);
    cr_assert_eq(state, 1);
    cr_assert_eq(cu.copy(memory, address(host), LEN, own), CU_OK);
    cr_assert_eq(t.emu_capture(graph, 0), CU_OK);

    cr_assert_eq(t.emu_capture(graph, 1), CU_OK);
    EXPECT_VIOLATION("captured", CU_STREAM_CAPTURE_UNSUPPORTED, cu.event_record(e, graph));
    cr_assert_eq(t.emu_capture(graph, 0), CU_STREAM_CAPTURE_INVALIDATED);

    cr_assert_eq(t.emu_capture(graph, 1), CU_OK);
    EXPECT_VIOLATION("not relaxed", CU_STREAM_CAPTURE_UNSUPPORTED, cu.alloc(&more, LEN));
    cr_assert_eq(t.emu_capture(graph, 0), CU_STREAM_CAPTURE_INVALIDATED);

    cr_assert_eq(cu.capture_mode(&mode), CU_OK);
    cr_assert_eq(mode, 0);
    cr_assert_eq(t.emu_capture(graph, 1), CU_OK);
    cr_assert_eq(cu.alloc(&more, LEN), CU_OK);
    cr_assert_eq(cu.event_query(e), CU_OK);
    cr_assert_eq(t.emu_capture_mode(), CU_CAPTURE_MODE_RELAXED);
    cr_assert_eq(t.emu_capture(graph, 0), CU_OK);
}

Test(emulation, the_legacy_stream_stays_away_from_a_capture)
{
    cu_stream graph = NULL;
    cu_event e = event_new();
    int state;
    cr_assert_eq(cu.stream_create(&graph, 0), CU_OK);
    cr_assert_eq(t.emu_capture(graph, 1), CU_OK);
    cr_assert_eq(cu.stream_capturing(NULL, &state), CU_STREAM_CAPTURE_IMPLICIT);
    EXPECT_VIOLATION("legacy", CU_STREAM_CAPTURE_IMPLICIT, cu.event_record(e, NULL));
    cr_assert_eq(t.emu_capture(graph, 0), CU_STREAM_CAPTURE_INVALIDATED);
    cr_assert_eq(cu.stream_capturing(NULL, &state), CU_OK);
    cr_assert_eq(state, CU_CAPTURE_NONE);
}

Test(emulation, a_thread_of_the_engine_may_not_wait)
{
    cu_stream s = stream_new();
    cu_ptr more;
    t.emu_engine_thread(1);
    cr_assert_eq(cu.copy(memory, address(host), LEN, s), CU_OK);
    EXPECT_VIOLATION("block", CU_OK, cu.alloc(&more, LEN));
    EXPECT_VIOLATION("block", CU_OK, cu.host_unregister(host));
    t.emu_engine_thread(0);
    cr_assert_eq(cu.free(more), CU_OK);
    cr_assert_eq(t.emu_violations(), 2);
}

Test(emulation, a_forked_child_has_no_driver)
{
    int status = 0;
    pid_t pid = fork();
    if (pid == 0) {
        cu_stream s;
        bool refused = cu.stream_create(&s, 0) == CU_NOT_INITIALIZED &&
                       cu.init(0) == CU_NOT_INITIALIZED && t.emu_violations() == 2;
        _exit(refused ? 0 : 1);
    }
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert_eq(status, 0);
    cr_assert_eq(t.emu_violations(), 0);
}

/* ---- kernels */

static cu_function copy_pages_kernel(void)
{
    cu_module module = NULL;
    cu_function function = NULL;
    cr_assert_eq(cu.module_load(&module, "image"), CU_OK);
    cr_assert_eq(cu.module_function(&function, module, "no_such_kernel"), CU_NOT_FOUND);
    cr_assert_eq(cu.module_function(&function, module, "cairn_copy_pages"), CU_OK);
    return function;
}

/* Its parameter is the launch's own from then on. */
static cu_result launch_pages(cu_stream s, const struct cairn_page_table *table,
                              unsigned int blocks)
{
    struct cairn_page_table copy = *table;
    void *parameters[] = {&copy};
    cu_result e = cu.launch(copy_pages_kernel(), blocks, 1, 1, 64, 1, 1, 0, s, parameters, NULL);
    memset(&copy, 0, sizeof(copy));
    return e;
}

/* Pages of odd places and lengths, in another order on each side; what is between stays. */
static void odd_pages(struct cairn_page_table *table, uint32_t to_device)
{
    static const uint32_t places[] = {40001, 3, 16, 60000}, lens[] = {19999, 13, 32768, 1};
    uint32_t at = 5;

    *table = (struct cairn_page_table){.count = 4, .to_device = to_device};
    for (int i = 0; i < 4; i++) {
        table->pages[i] = (struct cairn_page){.device = memory + places[i],
                                              .host = address(host) + at,
                                              .len = lens[i],
                                              .first_tile = table->tiles};
        table->tiles += (lens[i] + CAIRN_TILE_BYTES - 1) / CAIRN_TILE_BYTES;
        at += lens[i] + 11;
    }
}

static void expect_odd_pages(const unsigned char *device, const unsigned char *at_host,
                             const struct cairn_page_table *table)
{
    for (uint32_t i = 0; i < table->count; i++)
        cr_assert_arr_eq(device + (table->pages[i].device - memory),
                         at_host + (table->pages[i].host - address(host)), table->pages[i].len);
}

Test(emulation, a_kernel_copies_pages)
{
    static struct cairn_page_table table;
    static unsigned char seen[LEN], was[LEN];
    struct rng r = test_rng("pages");
    for (int mode = EMU_EARLIEST; mode <= EMU_RANDOM; mode++) {
        cu_stream s = stream_new();
        cu_event e = event_new();
        t.emu_time(mode);
        for (uint32_t to_device = 0; to_device < 2; to_device++) {
            for (size_t i = 0; i < LEN; i++) {
                host[i] = (unsigned char)rng_next(&r);
                was[i] = (unsigned char)rng_next(&r);
            }
            cr_assert_eq(t.emu_write(memory, was, LEN), CU_OK);
            odd_pages(&table, to_device);
            cr_assert_eq(launch_pages(s, &table, 3), CU_OK);
            cr_assert_eq(cu.event_record(e, s), CU_OK);
            wait_for(e);
            cr_assert_eq(t.emu_read(seen, memory, LEN), CU_OK);
            expect_odd_pages(seen, host, &table);
            cr_assert_arr_eq(seen, was, 3);
            cr_assert_arr_eq(seen + 60001, was + 60001, LEN - 60001);
        }
    }
    cr_assert_eq(t.emu_violations(), 0, "%s", t.emu_violation_text());
}

Test(emulation, the_pages_of_a_kernel_are_in_use_until_it_ran)
{
    static struct cairn_page_table table;
    cu_stream s = stream_new();
    t.emu_time(EMU_LATEST);
    odd_pages(&table, 1);
    cr_assert_eq(launch_pages(s, &table, 2), CU_OK);
    EXPECT_VIOLATION("used", CU_INVALID_VALUE, cu.host_unregister(host));
    cr_assert_eq(t.emu_stream_sync(s), CU_OK);
    cr_assert_eq(cu.host_unregister(host), CU_OK);
}

Test(emulation, a_kernel_with_a_wrong_table_breaks_its_context)
{
    static struct cairn_page_table table;
    cu_stream s = stream_new();
    odd_pages(&table, 1);
    table.tiles++;
    EXPECT_VIOLATION("tile", CU_OK, launch_pages(s, &table, 2));
    cr_assert_eq(t.emu_stream_sync(s), CU_ILLEGAL_ADDRESS);
}

Test(emulation, modules_that_fit_no_device)
{
    cu_module module = NULL;
    t.emu_modules_load(0);
    cr_assert_eq(cu.module_load(&module, "image"), CU_NO_BINARY_FOR_GPU);
}

/* ---- faults */

Test(emulation, calls_fail_as_asked)
{
    cu_stream s = stream_new();
    uint64_t before = t.emu_calls("cuMemcpyAsync");
    cr_assert_eq(t.emu_fail("cuNoSuchCall", 1, CU_UNKNOWN), CU_INVALID_VALUE);
    cr_assert_eq(t.emu_fail("cuMemcpyAsync", 2, CU_OUT_OF_MEMORY), CU_OK);
    cr_assert_eq(cu.copy(memory, address(host), LEN, s), CU_OK);
    cr_assert_eq(cu.copy(memory, address(host), LEN, s), CU_OUT_OF_MEMORY);
    cr_assert_eq(cu.copy(memory, address(host), LEN, s), CU_OK);
    cr_assert_eq(t.emu_calls("cuMemcpyAsync"), before + 3);
    cr_assert_eq(t.emu_fail_always("cuMemcpyAsync", 1, CU_ILLEGAL_ADDRESS), CU_OK);
    cr_assert_eq(cu.copy(memory, address(host), LEN, s), CU_ILLEGAL_ADDRESS);
    cr_assert_eq(cu.stream_destroy(s), CU_ILLEGAL_ADDRESS);
    cr_assert_eq(cu.context_pop(NULL), CU_ILLEGAL_ADDRESS);
    cr_assert_eq(t.emu_context_depth(), 0);
    for (int i = 0; t.emu_call_name(i); i++)
        cr_assert_eq(t.emu_fail(t.emu_call_name(i), 1, CU_UNKNOWN), i < 32 ? CU_OK : 2);
}

Test(emulation, work_that_fails_when_it_runs_takes_its_context_along)
{
    cu_stream s = stream_new();
    cu_event e = event_new();
    cu_result got;
    int asked = 0;
    t.emu_time(EMU_LATEST);
    memset(host, 7, LEN);
    t.emu_fail_queued(1, CU_ILLEGAL_ADDRESS);
    cr_assert_eq(cu.copy(memory, address(host), LEN, s), CU_OK);
    cr_assert_eq(cu.event_record(e, s), CU_OK);
    while ((got = cu.event_query(e)) == CU_NOT_READY)
        cr_assert_lt(asked++, 100);
    cr_assert_eq(got, CU_ILLEGAL_ADDRESS);
    cr_assert_not(device_all(7));
    cr_assert_eq(cu.copy(memory, address(host), LEN, s), CU_ILLEGAL_ADDRESS);
    cr_assert_eq(t.emu_pending(), 0);
    cr_assert_eq(cu.host_unregister(host), CU_ILLEGAL_ADDRESS);
    cr_assert_eq(t.emu_live("registrations"), 0);
}

/* ---- threads */

#define THREADS 4
#define ROUNDS 200

static void *copies(void *arg)
{
    unsigned char *part = host + (size_t)(uintptr_t)arg * (LEN / THREADS);
    cu_ptr there = memory + (size_t)(uintptr_t)arg * (LEN / THREADS);
    cu_stream s;
    cu_event e;
    cr_assert_eq(cu.context_push(context), CU_OK);
    s = stream_new();
    e = event_new();
    for (int i = 0; i < ROUNDS; i++) {
        memset(part, i, LEN / THREADS);
        cr_assert_eq(cu.copy(there, address(part), LEN / THREADS, s), CU_OK);
        cr_assert_eq(cu.event_record(e, s), CU_OK);
        wait_for(e);
        memset(part, 255, LEN / THREADS);
        cr_assert_eq(cu.copy(address(part), there, LEN / THREADS, s), CU_OK);
        cr_assert_eq(cu.event_record(e, s), CU_OK);
        wait_for(e);
        cr_assert(all(part, LEN / THREADS, i & 255));
    }
    cr_assert_eq(cu.context_pop(NULL), CU_OK);
    return NULL;
}

Test(emulation, many_threads)
{
    for (int mode = EMU_EARLIEST; mode <= EMU_RANDOM; mode++) {
        pthread_t threads[THREADS];
        t.emu_time(mode);
        for (size_t i = 0; i < THREADS; i++)
            cr_assert_eq(pthread_create(&threads[i], NULL, copies, (void *)(uintptr_t)i), 0);
        for (size_t i = 0; i < THREADS; i++)
            pthread_join(threads[i], NULL);
    }
    cr_assert_eq(t.emu_violations(), 0, "%s", t.emu_violation_text());
}

/* ---- programs */

#define STREAMS 4
#define REGIONS 6
#define REGION (LEN / REGIONS)
#define STEPS 120

/* A random program of fills and copies between regions of host and device memory over several
 * streams, and what it does when it runs step by step. Each region remembers the event of what
 * wrote it or read it last; with `waits`, a step waits for those of the regions it touches. */
struct program {
    cu_stream streams[STREAMS];
    cu_event used[2][REGIONS]; /* of host, of device */
    unsigned char want[2][LEN];
};

static void touch(struct program *p, cu_stream s, int side, size_t region, bool waits)
{
    if (p->used[side][region] && waits)
        cr_assert_eq(cu.stream_wait(s, p->used[side][region], 0), CU_OK);
}

static void touched(struct program *p, cu_stream s, int side, size_t region)
{
    p->used[side][region] = event_new();
    cr_assert_eq(cu.event_record(p->used[side][region], s), CU_OK);
}

static void step(struct program *p, struct rng *r, bool waits)
{
    cu_stream s = p->streams[rng_below(r, STREAMS)];
    size_t device = rng_below(r, REGIONS), other = rng_below(r, REGIONS);
    int kind = (int)rng_below(r, 3), byte = (int)rng_below(r, 256);
    cu_ptr there = memory + device * REGION, here = address(host) + other * REGION;
    unsigned char *want_there = p->want[1] + device * REGION;
    unsigned char *want_here = p->want[0] + other * REGION;

    touch(p, s, 1, device, waits);
    if (kind == 0) {
        cr_assert_eq(t.emu_stream_fill(s, there, REGION, byte), CU_OK);
        memset(want_there, byte, REGION);
    } else {
        touch(p, s, 0, other, waits);
        cr_assert_eq(cu.copy(kind == 1 ? there : here, kind == 1 ? here : there, REGION, s), CU_OK);
        memcpy(kind == 1 ? want_there : want_here, kind == 1 ? want_here : want_there, REGION);
        touched(p, s, 0, other);
    }
    touched(p, s, 1, device);
}

/* Whether memory holds in the end what it does when the steps run one after the other. */
static bool runs_as_written(uint64_t seed, int mode, bool waits)
{
    static struct program p;
    static unsigned char seen[LEN];
    struct rng r = {.state = seed};

    p = (struct program){.used = {{NULL}}};
    memset(host, 0, LEN);
    cr_assert_eq(t.emu_write(memory, host, LEN), CU_OK);
    t.emu_time(mode);
    for (int i = 0; i < STREAMS; i++)
        p.streams[i] = stream_new();
    for (int i = 0; i < STEPS; i++)
        step(&p, &r, waits);
    for (int i = 0; i < STREAMS; i++)
        cr_assert_eq(t.emu_stream_sync(p.streams[i]), CU_OK);
    cr_assert_eq(t.emu_pending(), 0);
    cr_assert_eq(t.emu_read(seen, memory, LEN), CU_OK);
    return !memcmp(seen, p.want[1], LEN) && !memcmp(host, p.want[0], LEN);
}

Test(emulation, programs_with_all_their_waits_run_as_written_and_others_do_not)
{
    struct rng r = test_rng("programs");
    int wrong[3] = {0};
    for (int round = 0; round < 20; round++) {
        uint64_t seed = rng_next(&r);
        for (int mode = EMU_EARLIEST; mode <= EMU_RANDOM; mode++)
            cr_assert(runs_as_written(seed, mode, true), "round %d, mode %d", round, mode);
        for (int mode = EMU_LATEST; mode <= EMU_RANDOM; mode++)
            wrong[mode] += !runs_as_written(seed, mode, false);
    }
    cr_assert(wrong[EMU_LATEST] && wrong[EMU_RANDOM], "missing waits never showed");
    cr_assert_eq(t.emu_violations(), 0, "%s", t.emu_violation_text());
}
