/* What a thread of the matmul does that `cairn bench gpu` runs beside its loads: one text for the
 * GPU (bench_matmul.cu) and for the emulation. A block computes a tile of the product of a square
 * matrix with itself, in steps of a few columns that its threads fetch together; after each of the
 * two parts of a step they wait for each other. */
#ifndef CAIRN_TOOLS_BENCH_MATMUL_H
#define CAIRN_TOOLS_BENCH_MATMUL_H

#include <stdint.h>

#ifdef __CUDACC__
#define BENCH_MATMUL_CALL static __device__ __forceinline__
#else
#define BENCH_MATMUL_CALL static inline
#endif

#define BENCH_MATMUL_TILE 64u     /* the matrix has a multiple of it */
#define BENCH_MATMUL_STEP 16u
#define BENCH_MATMUL_SIDE 16u     /* threads, each way */
#define BENCH_MATMUL_THREADS (BENCH_MATMUL_SIDE * BENCH_MATMUL_SIDE)
#define BENCH_MATMUL_CELLS (BENCH_MATMUL_TILE / BENCH_MATMUL_SIDE) /* of a thread, each way */

/* The kernel's one parameter: n x n floats each, in rows. */
struct bench_matmul {
    uint64_t matrix, product;
    uint32_t n, unused;
};

/* What the threads of a block share (rows one longer than needed: so those of a warp that write a
 * column of it meet in few banks), and what each keeps. */
struct bench_matmul_tiles {
    float left[BENCH_MATMUL_STEP][BENCH_MATMUL_TILE + 1];
    float right[BENCH_MATMUL_STEP][BENCH_MATMUL_TILE + 1];
};
struct bench_matmul_sums {
    float cells[BENCH_MATMUL_CELLS][BENCH_MATMUL_CELLS];
};

BENCH_MATMUL_CALL void bench_matmul_fetch(const struct bench_matmul *m,
                                          struct bench_matmul_tiles *t, uint32_t block,
                                          uint32_t thread, uint32_t step)
{
    const float *matrix = (const float *)(uintptr_t)m->matrix;
    uint32_t across = m->n / BENCH_MATMUL_TILE;
    uint32_t row = block / across * BENCH_MATMUL_TILE, column = block % across * BENCH_MATMUL_TILE;
    for (uint32_t i = thread; i < BENCH_MATMUL_TILE * BENCH_MATMUL_STEP;
         i += BENCH_MATMUL_THREADS) {
        uint32_t at = i / BENCH_MATMUL_STEP, k = i % BENCH_MATMUL_STEP;
        t->left[k][at] = matrix[(uint64_t)(row + at) * m->n + step + k];
        at = i % BENCH_MATMUL_TILE;
        k = i / BENCH_MATMUL_TILE;
        t->right[k][at] = matrix[(uint64_t)(step + k) * m->n + column + at];
    }
}

BENCH_MATMUL_CALL void bench_matmul_add(const struct bench_matmul_tiles *t,
                                        struct bench_matmul_sums *s, uint32_t thread)
{
    uint32_t y = thread / BENCH_MATMUL_SIDE, x = thread % BENCH_MATMUL_SIDE;
    for (uint32_t k = 0; k < BENCH_MATMUL_STEP; k++)
        for (uint32_t i = 0; i < BENCH_MATMUL_CELLS; i++)
            for (uint32_t j = 0; j < BENCH_MATMUL_CELLS; j++)
                s->cells[i][j] += t->left[k][y + i * BENCH_MATMUL_SIDE] *
                                  t->right[k][x + j * BENCH_MATMUL_SIDE];
}

BENCH_MATMUL_CALL void bench_matmul_store(const struct bench_matmul *m,
                                          const struct bench_matmul_sums *s, uint32_t block,
                                          uint32_t thread)
{
    float *product = (float *)(uintptr_t)m->product;
    uint32_t across = m->n / BENCH_MATMUL_TILE;
    uint32_t row = block / across * BENCH_MATMUL_TILE + thread / BENCH_MATMUL_SIDE;
    uint32_t column = block % across * BENCH_MATMUL_TILE + thread % BENCH_MATMUL_SIDE;
    for (uint32_t i = 0; i < BENCH_MATMUL_CELLS; i++)
        for (uint32_t j = 0; j < BENCH_MATMUL_CELLS; j++)
            product[(uint64_t)(row + i * BENCH_MATMUL_SIDE) * m->n + column +
                    j * BENCH_MATMUL_SIDE] = s->cells[i][j];
}

#endif
