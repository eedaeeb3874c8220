/* Inside the emulated driver. One lock around all of it, taken by driver.c and control.c; every
 * other function here is called with it held. */
#ifndef CAIRN_TESTS_EMULATION_H
#define CAIRN_TESTS_EMULATION_H

#include <pthread.h>
#include <stdbool.h>

#include "tests/emulation/cuda_emulation.h"
#include "tests/helpers/value.h"

#define MAX_DEVICES 4
#define MAX_ATTRIBUTE 160
#define POISON 0xFD

struct op;

struct context {
    cu_context handle;
    uint64_t id; /* another each time that it is made, though a primary one keeps its handle */
    int device;
    bool primary, alive;
    uint64_t retains;
    cu_result error; /* sticky */
    struct stream *legacy;
    struct context *next;
};

struct stream {
    cu_stream handle;
    struct context *context;
    bool legacy, non_blocking, alive;
    bool capturing, capture_broken;
    pthread_t captor;
    uint64_t queued, done; /* operations ever; they are numbered from 1 */
    struct op *head, *tail;
    uint64_t needed; /* run up to this one, while something is observed */
    struct stream *next;
};

/* A place in a stream: reached when as many operations of it are done. No stream = reached. */
struct place {
    struct stream *stream;
    uint64_t number;
};

struct event {
    cu_event handle;
    struct context *context;
    struct place place;
    unsigned int patience; /* answers "not ready" that it still gives though it could be done */
};

struct module {
    cu_module handle;
    struct context *context;
};

/* What a kernel was launched with. */
struct launch {
    const struct kernel *kernel;
    unsigned int blocks, threads; /* in each */
    unsigned int first_block;     /* the one that begins; the others follow in turn */
    void *parameter;              /* a copy of its only one */
};

struct piece {
    cu_ptr dst, src;
    size_t len;
};

enum op_kind { OP_MARK, OP_BLOCK, OP_COPY, OP_FILL, OP_READ, OP_KERNEL };

struct op {
    enum op_kind kind;
    bool lifted; /* a block that holds nothing back any more */
    const char *what;
    struct stream *stream;
    uint64_t number; /* in its stream */
    struct op *next; /* in its stream */
    struct op *older, *newer;
    struct place *deps;
    size_t dep_count;
    size_t part_count, part_done; /* pieces of a copy or blocks of a kernel */
    struct piece *pieces;         /* in the order in which they run */
    struct piece memory; /* of a fill or a read */
    int byte;
    struct launch launch;
};

struct kernel {
    const char *name;
    size_t parameter_len;
    /* Whether it touches any byte of [at, at + len). */
    bool (*uses)(const struct launch *l, cu_ptr at, size_t len);
    cu_result (*run)(const struct launch *l, const struct context *c, unsigned int block);
};

struct device {
    struct context *primary;
    int attributes[MAX_ATTRIBUTE]; /* < 0: the driver knows none of this number */
};

struct emulation {
    struct rng rng;
    enum emu_time time;
    unsigned int lull; /* times that random time still lets nothing run */
    int version, device_count;
    bool initialized, modules_load, forked;
    struct device devices[MAX_DEVICES];
    struct context *contexts;
    struct stream *streams;
    uint64_t epoch; /* resets so far: what a thread holds from before one is stale */
};

extern struct emulation emu;

/* ---- handles.c: opaque values that name objects; never used twice, so a stale one is known. */
enum handle_kind {
    HANDLE_CONTEXT = 1,
    HANDLE_STREAM,
    HANDLE_EVENT,
    HANDLE_MODULE,
    HANDLE_FUNCTION,
};

void *handle_new(enum handle_kind kind, void *object);
/* NULL if it names no live object of the kind, which is a violation. */
void *handle_object(enum handle_kind kind, const void *handle, const char *call);
/* The name is of nothing from now on; returns the object. */
void *handle_end(enum handle_kind kind, const void *handle);
uint64_t handle_count(enum handle_kind kind);
/* Objects of a kind in turn: from *at on, NULL at the end. */
void *handle_next(enum handle_kind kind, size_t *at);
void handles_reset(void);

/* ---- contexts.c */
struct context *context_new(int device, bool primary);
/* A primary one that is not there is made. */
void context_retain(struct context *c);
/* Its streams, events, modules, memory and registrations go with it. */
void context_end(struct context *c);
/* Marks it as of no use and drops what is queued in it. */
void context_fail(struct context *c, cu_result error);
/* All of them. */
void contexts_fail(cu_result error);
cu_result context_push(cu_context handle);
cu_result context_pop(cu_context *ret);
/* The calling thread's context; NULL if there is none. */
struct context *context_current(void);
int context_depth(void);
/* Of the calling thread. */
int capture_mode_exchange(int mode);
int capture_mode(void);
bool engine_thread(void);
void engine_thread_set(bool on);

/* ---- streams.c */
struct stream *stream_new(struct context *c, bool non_blocking);
/* NULL and CU_STREAM_LEGACY are the legacy stream of `current`. */
struct stream *stream_of(cu_stream handle, struct context *current, const char *call);
/* No operation can be queued here from now on; what is queued still runs. */
void stream_end(struct stream *s);
/* The operation becomes the stream's. */
void stream_queue(struct stream *s, struct op *op);
struct op *op_new(enum op_kind kind, const char *what);
/* Before it is queued. */
void op_depend(struct op *op, struct place p);
bool place_reached(struct place p);
/* Runs whatever has to run before it is reached; false if a block is in the way. */
bool place_reach(struct place p);
/* Runs something or nothing, as the time wants it. */
void streams_advance(void);
void streams_run_all(void);
void stream_lift_blocks(struct stream *s);
/* Forgets all that is queued in a context. */
void streams_drop(struct context *c);
/* What is queued that uses [at, at + len), or NULL. */
const char *streams_using(cu_ptr at, size_t len);
/* Operations not done; NULL = of all contexts. */
uint64_t streams_pending(const struct context *c);
void streams_reset(void);

/* ---- operations.c: what an operation does when its turn has come. */
/* Does the next part of it; sets *done with the last. */
cu_result op_run(struct op *op, struct context *c, bool *done);
bool op_uses(const struct op *op, cu_ptr at, size_t len);
struct op *op_copy(const char *what, const struct piece *pieces, size_t count);
struct op *op_kernel(const struct kernel *kernel, const void *parameter, unsigned int blocks,
                     unsigned int threads);
bool overlap(cu_ptr a, size_t a_len, cu_ptr b, size_t b_len);
void op_free(struct op *op);

/* ---- memory.c */
enum memory_kind { MEMORY_NONE, MEMORY_DEVICE, MEMORY_HOST };

struct memory_info {
    enum memory_kind kind;
    struct context *context; /* NULL: of no context */
    int device;
    cu_ptr base;
    size_t len;
};

cu_result device_alloc(cu_ptr *ret, size_t len, struct context *c, int device);
cu_result device_free(cu_ptr at, const char *call);
cu_result host_register(void *base, size_t len, unsigned int flags, struct context *c);
cu_result host_unregister(void *base);
cu_result host_device_pointer(cu_ptr *ret, void *base, struct context *c);
void memory_info(cu_ptr at, struct memory_info *ret);
/* The bytes of [at, at + len) for work of the context, or NULL with a violation that names `what`,
 * if that is not NULL. Without a context: a debugger's sight, past the borders of contexts. */
unsigned char *memory_bytes(cu_ptr at, size_t len, bool write, const struct context *c,
                            const char *what);
/* In device memory, be it freed. */
bool memory_is_device(cu_ptr at);
void memory_end(const struct context *c);
uint64_t allocations_live(void);
uint64_t registrations_live(void);
void memory_reset(void);

/* ---- capture.c */
/* What may not be queued on a stream that is captured; a violation breaks the capture. */
cu_result capture_refuses(struct stream *s, const char *call);
/* The same for calls that are unsafe while anything is captured. */
cu_result capture_refuses_unsafe(const char *call);
/* The legacy stream cannot be asked while a blocking one captures. */
cu_result capture_state(struct stream *s, int *ret);

/* ---- faults.c */
int call_id(const char *name); /* < 0: no such call */
const char *call_name(int id);
int call_count(void);
/* Counts a call and gives the result that a test wants it to have. */
cu_result fault_at_call(int id);
/* Every call fails from now on. */
bool fault_stays(void);
cu_result fault_at_run(void);
cu_result fault_add(const char *call, unsigned int nth, cu_result result, bool always);
void fault_add_queued(unsigned int nth, cu_result result);
uint64_t calls_made(int id);
void violation(const char *format, ...) __attribute__((format(printf, 1, 2)));
uint64_t violations(void);
const char *violation_text(void);
void faults_reset(void);

/* ---- kernels.c */
struct module *module_new(struct context *c);
void module_end(struct module *m);
/* NULL: it has no kernel of this name. */
cu_function module_function(struct module *m, const char *name);
const struct kernel *function_kernel(cu_function function, struct context *c, const char *call);

/* ---- control.c */
void emulation_reset(uint64_t seed);
/* As the environment has it. */
void emulation_configure(void);

/* ---- driver.c */
void emu_lock(void);
void emu_unlock(void);

#endif
