/* Stream capture, as far as others can break it: what is queued on a captured stream by somebody
 * who does not belong to the graph, and calls that may not be made while anything is captured. */
#include "tests/emulation/emulation.h"

static void break_capture(struct stream *s, const char *call, const char *why)
{
    s->capture_broken = true;
    violation("%s: %s", call, why);
}

cu_result capture_refuses(struct stream *s, const char *call)
{
    if (s->capturing) {
        break_capture(s, call, "the stream is being captured");
        return CU_STREAM_CAPTURE_UNSUPPORTED;
    }
    if (!s->legacy)
        return CU_OK;
    for (struct stream *o = emu.streams; o; o = o->next) {
        if (o->capturing && o->context == s->context && !o->non_blocking) {
            break_capture(o, call, "the legacy stream would wait for one that is being captured");
            return CU_STREAM_CAPTURE_IMPLICIT;
        }
    }
    return CU_OK;
}

static bool forbidden(const struct stream *s)
{
    enum { GLOBAL, THREAD_LOCAL };

    if (!s->capturing)
        return false;
    return capture_mode() == GLOBAL ||
           (capture_mode() == THREAD_LOCAL && pthread_equal(s->captor, pthread_self()));
}

cu_result capture_refuses_unsafe(const char *call)
{
    cu_result e = CU_OK;

    for (struct stream *s = emu.streams; s; s = s->next) {
        if (forbidden(s)) {
            break_capture(s, call, "unsafe while a stream is being captured; the mode of this "
                                   "thread is not relaxed");
            e = CU_STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    return e;
}

cu_result capture_state(struct stream *s, int *ret)
{
    enum { ACTIVE = 1, INVALIDATED = 2 };

    for (struct stream *o = s->legacy ? emu.streams : NULL; o; o = o->next) {
        if (o->capturing && o->context == s->context && !o->non_blocking)
            return CU_STREAM_CAPTURE_IMPLICIT;
    }
    *ret = !s->capturing ? CU_CAPTURE_NONE : s->capture_broken ? INVALIDATED : ACTIVE;
    return CU_OK;
}
