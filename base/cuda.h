/* CUDA memory: what its files share. A GPU is known from the first pointer into it: Cairn makes no
 * context of its own, takes the one that the caller's memory belongs to, and has its own streams
 * and events there. Nothing here waits for a device or a stream as a whole. */
#ifndef CAIRN_BASE_CUDA_H
#define CAIRN_BASE_CUDA_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/cuda_driver.h"
#include "base/cuda_pages.h"
#include "base/mem_kind.h"

#define CUDA_GPUS 16u
#define CUDA_LANES 8u               /* moves at once, a GPU; more wait for one of them */
#define CUDA_FLIGHTS 8u             /* steps of a move under way                       */
#define CUDA_STEP_BYTES (1u << 20)  /* a multiple of the pieces of hash.h              */
#define CUDA_STEP_RUNS CAIRN_PAGES_MAX
#define CUDA_EVENTS 64u             /* kept for later orders                           */

struct cuda_gpu;

/* A stream with what one move needs: used by one thread at a time. */
struct cuda_lane {
    struct cuda_gpu *gpu;
    cu_stream stream;
    cu_event done[CUDA_FLIGHTS];
    char *stage;                /* CUDA_FLIGHTS steps of pinned memory; NULL until needed */
    cu_ptr stage_device;
    bool made, busy;
    bool lost; /* what was queued may never end */
    /* The copies of one step, for the driver. */
    cu_ptr dst[CUDA_STEP_RUNS], src[CUDA_STEP_RUNS];
    size_t len[CUDA_STEP_RUNS];
    struct cairn_page_table table;
};

struct cuda_gpu {
    cu_context context;
    uint64_t context_id;        /* no other context of the process ever has it */
    cu_device device;
    char name[64];
    atomic_bool off;            /* an error that no later call will survive */
    pthread_mutex_t lock;
    bool gone;                  /* the context is no more, and all that was made in it */
    struct cuda_gpu *next_gone;
    pthread_cond_t lane_free;
    struct cuda_lane lanes[CUDA_LANES];
    cu_event events[CUDA_EVENTS];
    uint32_t event_count;
    cu_module module;
    cu_function copy_pages;     /* where kernel_below is not 0    */
    _Atomic size_t kernel_below[2]; /* out of, into the device: shorter pages go by the kernel */
    atomic_bool measured;           /* no, they are what no GPU was asked about */
    cu_ptr measure_memory;          /* 0: none */
    bool read_only_register;
};

/* The driver; NULL and why if there is none. Loaded once, by the first who asks. */
const struct cuda_driver *cuda_driver(const char **ret_why);

/* A child has no driver, nor anything that its parent offered. Called before what a lock guards. */
void cuda_watch_forks(void);

/* The GPU that all of the list lies in. CAIRN_INVAL: it is no device memory, or not of one GPU;
 * CAIRN_UNSUPPORTED: no driver; CAIRN_IO: the GPU is off. */
cairn_status cuda_gpu_of(const struct cairn_sgl *list, struct cuda_gpu **ret);
/* The first one on the device that is known; NULL: none. Good until cairn_cuda_close. */
struct cuda_gpu *cuda_gpu_on(cu_device device);

/* Its context is no more, be there another one in its place or none. */
bool cuda_gone(const struct cuda_gpu *g);

/* A thread's own state before an entry: what it was is put back by leave. */
struct cuda_entry {
    int capture_mode;
    bool pushed;
};
/* False: the GPU is off, or gone. */
bool cuda_enter(struct cuda_gpu *g, struct cuda_entry *e);
void cuda_leave(struct cuda_entry *e);

/* True if the call went well; an error that stays turns the GPU off, once, with a message. */
bool cuda_ok(struct cuda_gpu *g, const char *call, cu_result r);

/* Entered: a lane of one's own, NULL at the deadline or when the GPU is off. */
struct cuda_lane *cuda_lane_take(struct cuda_gpu *g, uint64_t deadline_ns);
void cuda_lane_give(struct cuda_lane *l);
/* Its own pinned memory is there. */
bool cuda_lane_stage(struct cuda_lane *l);
/* A mark behind what was queued, also after a copy that was refused: those before it are on their
 * way. Without one nobody knows when memory is free, so then the GPU is off. */
bool cuda_lane_mark(struct cuda_lane *l, uint32_t place);
/* What is before the mark is done. CAIRN_STATE: nobody will ever know, the GPU is off and what was
 * queued may still write. */
cairn_status cuda_lane_wait(struct cuda_lane *l, uint32_t place);

cu_event cuda_event_take(struct cuda_gpu *g); /* NULL: none can be made */
void cuda_event_give(struct cuda_gpu *g, cu_event e);

/* Is [at, at + len) pinned as one piece, for the device to write if it is to? Then where the device
 * sees it. */
bool cuda_pinned(const void *at, size_t len, bool device_writes, cu_ptr *ret_device);
/* In the background: measures the GPU, pins all that was offered and will be. */
void cuda_pin_begin(struct cuda_gpu *g);
/* Memory is registered in one context for all: if that one is no more, it is done again in g's. */
void cuda_pin_follow(struct cuda_gpu *g);
void cuda_pin_end(void);                 /* before the GPU goes: ends that                       */
void cuda_pin_in_child(void);
bool cuda_pin_settled(void);             /* is there nothing left to pin or measure?             */
/* Entered: memory of Cairn's own; NULL: none. */
void *cuda_pin_alloc(struct cuda_gpu *g, size_t len, cu_ptr *ret_device);
void cuda_pin_free(void *p, size_t len);
void cuda_offer(void *base, size_t len, bool writable);
void cuda_withdraw(void *base);

cairn_status cuda_order(const struct cairn_sgl *list, struct cairn_order_point *ret);
bool cuda_ordered(const struct cairn_order_point *p, const struct cairn_sgl *list);
cairn_status cuda_order_wait(const struct cairn_order_point *p, uint64_t deadline_ns);
void cuda_order_end(const struct cairn_order_point *p);

cairn_status cuda_out(const struct cairn_move *m);
cairn_status cuda_in(const struct cairn_move *m);

/* One run of a step: the page, the host bytes, and where the device sees those. */
struct cuda_run {
    cu_ptr device, host_device;
    char *host;
    size_t len;
};
/* Queues the copies of at most CUDA_STEP_RUNS runs on the lane's stream. */
bool cuda_copy_runs(struct cuda_lane *l, const struct cuda_run *runs, uint32_t count,
                    bool to_device);
enum cuda_way { CUDA_WAY_ENGINE, CUDA_WAY_KERNEL };
/* Queues them by that way. */
bool cuda_copy_by(struct cuda_lane *l, const struct cuda_run *runs, uint32_t count, bool to_device,
                  enum cuda_way way);

/* Loads the kernels and measures; kernel_below stays 0 where there are none. */
void cuda_kernels_begin(struct cuda_gpu *g);
/* Sets kernel_below where there are kernels, if that can be done now. */
void cuda_measure(struct cuda_gpu *g);
/* For tests: what GPUs that are found from now on have instead, if it is not 0, and how long to
 * measure the others. */
void cuda_measure_set(size_t below, uint64_t budget_ns);

#endif
