/* What a test says to the emulated CUDA driver behind Cairn's back. The library exports these
 * beside the driver's entry points, so that whoever has it open (dlsym, ctypes) can call them. Any
 * thread may, at any time, except emu_reset.
 *
 * Results are those of the driver. Where a stream is named, NULL is the legacy stream of the
 * context that is current to the calling thread.
 *
 * A program that no test speaks to takes its beginning from the environment, and says at its end
 * what it did wrong: CAIRN_EMULATED_CUDA="devices=2 version=12040 time=random seed=7". */
#ifndef CAIRN_TESTS_CUDA_EMULATION_H
#define CAIRN_TESTS_CUDA_EMULATION_H

#include "base/cuda_api.h"

#define EMU_API __attribute__((visibility("default")))

/* When queued work runs, within what streams and events allow. */
enum emu_time {
    EMU_EARLIEST, /* before the call that queues it returns                                     */
    EMU_LATEST,   /* when the host has seen that it is done, and then only what that needs      */
    EMU_RANDOM,   /* in pieces, at other calls; a copy may stand half done for a long time      */
};

/* Forgets everything, handles and device memory too, and starts anew: earliest time, one device,
 * driver 13.0, no faults. No other thread may be in the library. */
EMU_API void emu_reset(uint64_t seed);
EMU_API void emu_time(enum emu_time mode);
/* Before cuInit: 0 to 4. */
EMU_API cu_result emu_devices(int count);
EMU_API void emu_driver_version(int version);
EMU_API cu_result emu_attribute(int device, int attribute, int value);
/* Modules load for this device or, with 0, fail with CU_NO_BINARY_FOR_GPU. */
EMU_API void emu_modules_load(int yes);

/* A context beside the primary one of its device; destroying it takes all that was made in it. */
EMU_API cu_result emu_context_create(cu_context *ret, int device);
EMU_API cu_result emu_context_destroy(cu_context context);
/* The calling thread's: how many are pushed, and the top one. */
EMU_API int emu_context_depth(void);
EMU_API cu_context emu_context_current(void);
EMU_API int emu_capture_mode(void);
/* The calling thread is one of an engine that may not wait: calls that may block are violations. */
EMU_API void emu_engine_thread(int on);

/* Device memory that belongs to a device and to no context, as that of pools and of virtual memory
 * (expandable segments) does: CU_POINTER_CONTEXT gives NULL. Freed by cuMemFree. */
EMU_API cu_result emu_alloc_pooled(cu_ptr *ret, size_t len, int device);
/* At once, past all queues, as a debugger does. */
EMU_API cu_result emu_write(cu_ptr to, const void *from, size_t len);
EMU_API cu_result emu_read(void *to, cu_ptr from, size_t len);

/* An engine's own work, queued. `out` is written when it runs. */
EMU_API cu_result emu_stream_fill(cu_stream stream, cu_ptr to, size_t len, int byte);
EMU_API cu_result emu_stream_read(cu_stream stream, void *out, cu_ptr from, size_t len);
/* What is queued after a block waits until all blocks of the stream are lifted. */
EMU_API cu_result emu_stream_block(cu_stream stream);
EMU_API cu_result emu_stream_unblock(cu_stream stream);
/* Runs what the stream holds; CU_NOT_READY if a block is in the way. */
EMU_API cu_result emu_stream_sync(cu_stream stream);
/* Runs all that no block holds back. */
EMU_API void emu_drain(void);
/* Operations that are queued and not done, in all streams. */
EMU_API uint64_t emu_pending(void);

/* Begins (in global mode, the calling thread being the one that captures) or ends a capture; the
 * end of one that something broke is CU_STREAM_CAPTURE_INVALIDATED. */
EMU_API cu_result emu_capture(cu_stream stream, int on);

/* The nth call (1 = next) of the name in the driver fails with `result`, once; NULL = of any name.
 * One of the results that a context does not survive takes all contexts with it.
 * CU_INVALID_VALUE for a name that is none. */
EMU_API cu_result emu_fail(const char *call, unsigned int nth, cu_result result);
/* The same, and with it every call of any name from then on. What is the thread's own still works,
 * whatever it returns: contexts are popped and the capture mode is exchanged. */
EMU_API cu_result emu_fail_always(const char *call, unsigned int nth, cu_result result);
/* The nth copy, batch or kernel that runs from now on stops half way, and its context is of no use
 * from then on: every call that needs it returns `result`. */
EMU_API void emu_fail_queued(unsigned int nth, cu_result result);
/* Names of the driver's calls in turn, NULL at the end. */
EMU_API const char *emu_call_name(int index);
/* How often it was called; NULL = all together. UINT64_MAX for a name that is none. */
EMU_API uint64_t emu_calls(const char *call);

/* Uses that a driver refuses, survives by waiting or does not notice, and that Cairn must not make.
 * The text, a line each of the first of them, is good until the thread's next call. */
EMU_API uint64_t emu_violations(void);
EMU_API const char *emu_violation_text(void);
/* What is alive: "streams", "events", "modules", "registrations", "retains", "allocations";
 * UINT64_MAX for other words. emu_leaks: all of them but allocations. */
EMU_API uint64_t emu_live(const char *what);
EMU_API uint64_t emu_leaks(void);

/* Results that only tests name. */
enum {
    CU_STREAM_CAPTURE_INVALIDATED = 901,
    CU_STREAM_CAPTURE_IMPLICIT = 906,
};

#endif
