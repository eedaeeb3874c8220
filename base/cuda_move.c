/* Moves between host memory and a GPU's pages: in steps of 1 MiB, so many under way that the link
 * never waits for the host, which checks the next step (out) or the last one (in) meanwhile.
 * Pinned host memory is read and written by the device itself; other memory goes through the
 * lane's. */
#include <string.h>

#include "base/clock.h"
#include "base/copy.h"
#include "base/cuda.h"
#include "base/hash.h"
#include "base/move.h"

/* Bytes [at, at + len) of the value, on their way; done when the lane's event of its place is. */
struct step {
    size_t at, len;
    char *stage; /* NULL: the value's own memory */
};

struct mover {
    const struct cairn_move *m;
    struct cuda_lane *lane;
    bool to_device;
    struct step steps[CUDA_FLIGHTS];
    uint64_t first, next; /* of the steps under way */
    size_t at;            /* next byte of the value to be queued */
    uint32_t iov;         /* and its place in the list           */
    size_t iov_at;
};

static size_t step_len(const struct mover *v)
{
    size_t end = v->m->off + v->m->len, edge = (v->at / CUDA_STEP_BYTES + 1) * CUDA_STEP_BYTES;
    return (edge < end ? edge : end) - v->at;
}

static void list_seek(struct mover *v, size_t off)
{
    const struct cairn_sgl *list = v->m->list;
    while (v->iov < list->count && off >= list->iov[v->iov].len)
        off -= list->iov[v->iov++].len;
    v->iov_at = off;
}

/* Queues the copies of len bytes between `host` and the list's next ones. */
static bool queue_copies(struct mover *v, char *host, cu_ptr host_device, size_t len)
{
    struct cuda_run runs[CUDA_STEP_RUNS];
    uint32_t count = 0;
    while (len) {
        const struct cairn_iov *iov = &v->m->list->iov[v->iov];
        size_t here = iov->len - v->iov_at < len ? iov->len - v->iov_at : len;
        runs[count++] = (struct cuda_run){.device = (cu_ptr)(uintptr_t)iov->base + v->iov_at,
                                          .host = host,
                                          .host_device = host_device,
                                          .len = here};
        host += here;
        host_device += here;
        len -= here;
        list_seek(v, v->iov_at + here);
        if ((count == CUDA_STEP_RUNS || len == 0) &&
            !cuda_copy_runs(v->lane, runs, count, v->to_device))
            return false;
        if (count == CUDA_STEP_RUNS)
            count = 0;
    }
    return true;
}

/* Ends the oldest step: what came in is checked, and copied to where it belongs. */
static cairn_status step_end(struct mover *v)
{
    const struct cairn_move *m = v->m;
    const struct step *s = &v->steps[v->first % CUDA_FLIGHTS];
    cairn_status st = cuda_lane_wait(v->lane, v->first % CUDA_FLIGHTS);
    v->first++;
    if (st || v->to_device)
        return st;
    uint64_t *checks = m->checks ? m->checks + s->at / CAIRN_PIECE_BYTES : NULL;
    struct cairn_iov iov = {s->stage, s->len};
    struct cairn_sgl staged = {.iov = &iov, .count = 1};
    if (s->stage && checks)
        cairn_copy_gather_hash(m->value + s->at, &staged, s->len, checks);
    else if (s->stage)
        cairn_copy(m->value + s->at, s->stage, s->len);
    else if (checks)
        cairn_hash_pieces(m->value + s->at, s->len, checks);
    return CAIRN_OK;
}

/* Are the value's pieces that the bytes touch what their checks say? */
static bool pieces_good(const struct cairn_move *m, size_t at, size_t len)
{
    for (size_t i = at / CAIRN_PIECE_BYTES; i * CAIRN_PIECE_BYTES < at + len; i++) {
        size_t begin = i * CAIRN_PIECE_BYTES, left = m->value_len - begin;
        if (cairn_hash64(m->value + begin, left < CAIRN_PIECE_BYTES ? left : CAIRN_PIECE_BYTES) !=
            m->checks[i])
            return false;
    }
    return true;
}

/* Brings the step's bytes to the lane's memory, checking what is brought. */
static bool stage_out(const struct cairn_move *m, const struct step *s)
{
    struct cairn_iov iov = {s->stage, s->len};
    struct cairn_sgl staged = {.iov = &iov, .count = 1};
    if (m->checks)
        return cairn_copy_scatter_verify(&staged, m->value, m->value_len, s->at, s->len,
                                         m->checks) < 0;
    cairn_copy(s->stage, m->value + s->at, s->len);
    return true;
}

/* Queues the next step. */
static cairn_status step_begin(struct mover *v)
{
    const struct cairn_move *m = v->m;
    uint32_t place = v->next % CUDA_FLIGHTS;
    struct step *s = &v->steps[place];
    cu_ptr device;
    *s = (struct step){.at = v->at, .len = step_len(v)};
    bool pinned = cuda_pinned(m->value + s->at, s->len, !v->to_device, &device);
    if (!pinned) {
        if (!cuda_lane_stage(v->lane))
            return CAIRN_IO;
        s->stage = v->lane->stage + (size_t)place * CUDA_STEP_BYTES;
        device = v->lane->stage_device + (cu_ptr)place * CUDA_STEP_BYTES;
    }
    if (v->to_device && !(pinned ? !m->checks || pieces_good(m, s->at, s->len) : stage_out(m, s)))
        return CAIRN_CORRUPT;
    bool queued = queue_copies(v, pinned ? m->value + s->at : s->stage, device, s->len);
    if (!cuda_lane_mark(v->lane, place))
        return CAIRN_STATE;
    v->next++;
    v->at += s->len;
    return queued ? CAIRN_OK : CAIRN_IO;
}

static cairn_status move_over(struct mover *v)
{
    const struct cairn_move *m = v->m;
    cairn_status st = CAIRN_OK, ended;
    while (!st && v->at < m->off + m->len) {
        if (v->next - v->first == CUDA_FLIGHTS)
            st = step_end(v);
        if (!st)
            st = step_begin(v);
    }
    /* Nothing is left under way, whatever happened. */
    while (v->first < v->next) {
        ended = step_end(v);
        if (ended == CAIRN_STATE || !st)
            st = ended;
    }
    return st;
}

static cairn_status move(const struct cairn_move *m, bool to_device)
{
    struct mover v = {.m = m, .to_device = to_device, .at = m->off};
    struct cuda_entry e;
    struct cuda_gpu *g;
    cairn_status st = cuda_gpu_of(m->list, &g);
    if (st)
        return CAIRN_IO;
    if (!cuda_enter(g, &e))
        return CAIRN_IO;
    cuda_pin_follow(g);
    st = cairn_order_wait(m->deadline_ns);
    if (!st && !(v.lane = cuda_lane_take(g, m->deadline_ns)))
        st = cairn_now_ns() >= m->deadline_ns ? CAIRN_TIMEOUT : CAIRN_IO;
    if (!st) {
        list_seek(&v, m->list_off);
        st = move_over(&v);
        cuda_lane_give(v.lane);
    }
    cuda_leave(&e);
    return st == CAIRN_OK || st == CAIRN_CORRUPT || st == CAIRN_TIMEOUT || st == CAIRN_STATE
               ? st
               : CAIRN_IO;
}

cairn_status cuda_out(const struct cairn_move *m)
{
    cairn_status st = move(m, true);
    return st == CAIRN_STATE ? CAIRN_IO : st;
}

cairn_status cuda_in(const struct cairn_move *m)
{
    return move(m, false);
}
