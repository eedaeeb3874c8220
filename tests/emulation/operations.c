/* What queued operations do when their turn has come. Memory is looked up then: it may be gone. */
#include <stdlib.h>
#include <string.h>

#include "tests/emulation/emulation.h"

void op_free(struct op *op)
{
    free(op->deps);
    free(op->pieces);
    free(op->launch.parameter);
    free(op);
}

static void swap_pieces(struct piece *a, struct piece *b)
{
    struct piece t = *a;
    *a = *b;
    *b = t;
}

/* Each in two: what is visible of a copy that runs is any part of it. */
static void cut_pieces(struct op *op)
{
    size_t count = op->part_count;
    struct piece *cut = calloc(2 * count, sizeof(*cut));

    if (!cut)
        abort();
    for (size_t i = 0; i < count; i++) {
        struct piece p = op->pieces[i];
        size_t at = p.len ? rng_below(&emu.rng, p.len) : 0;
        cut[2 * i] = (struct piece){p.dst, p.src, at};
        cut[2 * i + 1] = (struct piece){p.dst + at, p.src + at, p.len - at};
    }
    free(op->pieces);
    op->pieces = cut;
    op->part_count = 2 * count;
}

/* Its pieces run in any order. */
struct op *op_copy(const char *what, const struct piece *pieces, size_t count)
{
    struct op *op = op_new(count ? OP_COPY : OP_MARK, what);

    op->pieces = calloc(count ? count : 1, sizeof(*pieces));
    if (!op->pieces)
        abort();
    memcpy(op->pieces, pieces, count * sizeof(*pieces));
    op->part_count = count;
    if (emu.time == EMU_RANDOM && count)
        cut_pieces(op);
    for (size_t i = op->part_count; i > 1; i--)
        swap_pieces(&op->pieces[i - 1], &op->pieces[rng_below(&emu.rng, i)]);
    return op;
}

static cu_result copy_piece(const struct op *op, struct piece p, struct context *c)
{
    unsigned char *dst, *src;

    if (!p.len)
        return CU_OK;
    dst = memory_bytes(p.dst, p.len, true, c, op->what);
    src = memory_bytes(p.src, p.len, false, c, op->what);
    if (!dst || !src)
        return CU_ILLEGAL_ADDRESS;
    memmove(dst, src, p.len);
    return CU_OK;
}

/* A part of the bytes arrive, and that is all. */
static void copy_half(struct op *op, struct context *c)
{
    size_t half = op->part_count / 2;

    op->pieces[half].len /= 2;
    while (op->part_done <= half) {
        if (copy_piece(op, op->pieces[op->part_done++], c))
            return;
    }
}

static cu_result run_copy(struct op *op, struct context *c, bool *done)
{
    cu_result e = CU_OK;

    if (op->part_done == 0 && (e = fault_at_run())) {
        copy_half(op, c);
        return e;
    }
    e = copy_piece(op, op->pieces[op->part_done++], c);
    *done = op->part_done == op->part_count;
    return e;
}

/* One block of it. */
static cu_result run_kernel(struct op *op, struct context *c, bool *done)
{
    const struct launch *l = &op->launch;
    cu_result fault = op->part_done == 0 ? fault_at_run() : CU_OK, e = CU_OK;
    size_t end = fault ? op->part_count / 2 : op->part_done + 1;

    while (op->part_done < end && !e)
        e = l->kernel->run(l, c, (unsigned)(l->first_block + op->part_done++) % l->blocks);
    *done = op->part_done == op->part_count;
    return fault ? fault : e;
}

cu_result op_run(struct op *op, struct context *c, bool *done)
{
    struct piece m = op->memory;
    unsigned char *bytes;

    *done = true;
    switch (op->kind) {
    case OP_MARK:
    case OP_BLOCK:
        return CU_OK;
    case OP_COPY:
        return run_copy(op, c, done);
    case OP_KERNEL:
        return run_kernel(op, c, done);
    case OP_FILL:
        if (!(bytes = memory_bytes(m.dst, m.len, true, c, op->what)))
            return CU_ILLEGAL_ADDRESS;
        memset(bytes, op->byte, m.len);
        return CU_OK;
    case OP_READ:
        if (!(bytes = memory_bytes(m.src, m.len, false, c, op->what)))
            return CU_ILLEGAL_ADDRESS;
        memcpy((void *)(uintptr_t)m.dst, bytes, m.len);
        return CU_OK;
    }
    abort();
}

struct op *op_kernel(const struct kernel *kernel, const void *parameter, unsigned int blocks,
                     unsigned int threads)
{
    struct op *op = op_new(OP_KERNEL, kernel->name);
    void *copy = malloc(kernel->parameter_len);

    if (!copy)
        abort();
    memcpy(copy, parameter, kernel->parameter_len);
    op->part_count = blocks;
    op->launch = (struct launch){.kernel = kernel, .blocks = blocks, .threads = threads,
                                 .first_block = (unsigned)rng_below(&emu.rng, blocks),
                                 .parameter = copy};
    return op;
}

bool overlap(cu_ptr a, size_t a_len, cu_ptr b, size_t b_len)
{
    return a < b + b_len && b < a + a_len;
}

bool op_uses(const struct op *op, cu_ptr at, size_t len)
{
    const struct launch *l = &op->launch;
    struct piece m = op->memory;

    for (size_t i = op->part_done; op->pieces && i < op->part_count; i++) {
        struct piece p = op->pieces[i];
        if (overlap(p.dst, p.len, at, len) || overlap(p.src, p.len, at, len))
            return true;
    }
    if (op->kind == OP_FILL || op->kind == OP_READ)
        return overlap(op->kind == OP_FILL ? m.dst : m.src, m.len, at, len);
    return op->kind == OP_KERNEL && l->kernel->uses(l, at, len);
}
