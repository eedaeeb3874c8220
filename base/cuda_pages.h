/* Which bytes a thread of the page copy moves: one text for the GPU (cuda_kernels.cu) and for the
 * emulation that the tests run on. A list of pages is cut into tiles, and blocks take tiles in
 * turn; the threads of a block take 16 bytes in turn. */
#ifndef CAIRN_BASE_CUDA_PAGES_H
#define CAIRN_BASE_CUDA_PAGES_H

#include <stdint.h>

#ifdef __CUDACC__
#define CAIRN_PAGES_CALL static __device__ __forceinline__
#else
#define CAIRN_PAGES_CALL static inline
#endif

#define CAIRN_TILE_BYTES 16384u

/* Device and host addresses and the length of a page, and the first tile that is its own. */
struct cairn_page {
    uint64_t device, host;
    uint32_t len, first_tile;
};

/* The kernel's one parameter, by value: constant memory is the fastest place that all threads
 * read. Parameters end at 32,764 bytes. */
#define CAIRN_PAGES_MAX 512u
struct cairn_page_table {
    uint32_t tiles, count, to_device, unused;
    struct cairn_page pages[CAIRN_PAGES_MAX];
};

/* 16 bytes at once: one access of the GPU, which the alignment allows the compiler to make. */
struct __attribute__((aligned(16))) cairn_word16 {
    uint32_t part[4];
};

/* The page of a tile: the last one whose first tile is not behind it. */
CAIRN_PAGES_CALL uint32_t cairn_tile_page(const struct cairn_page *pages, uint32_t count,
                                          uint32_t tile)
{
    uint32_t low = 0, high = count;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (pages[middle].first_tile <= tile)
            low = middle;
        else
            high = middle;
    }
    return low;
}

CAIRN_PAGES_CALL void cairn_copy_tile(const struct cairn_page *p, uint32_t tile, int to_device,
                                      uint32_t thread, uint32_t threads)
{
    uint32_t from = (tile - p->first_tile) * CAIRN_TILE_BYTES;
    uint32_t end = p->len - from < CAIRN_TILE_BYTES ? p->len : from + CAIRN_TILE_BYTES;
    const char *src = (const char *)(uintptr_t)(to_device ? p->host : p->device);
    char *dst = (char *)(uintptr_t)(to_device ? p->device : p->host);
    uint32_t at = from;
    if ((((uintptr_t)src | (uintptr_t)dst) & 15u) == 0) {
        for (at = from + thread * 16u; at + 16u <= end; at += threads * 16u)
            *(struct cairn_word16 *)(dst + at) = *(const struct cairn_word16 *)(src + at);
        at = end & ~15u;
    }
    for (at += thread; at < end; at += threads)
        dst[at] = src[at];
}

/* All that one thread of one block does. */
CAIRN_PAGES_CALL void cairn_copy_pages_thread(const struct cairn_page_table *t, uint32_t block,
                                              uint32_t blocks, uint32_t thread, uint32_t threads)
{
    for (uint32_t tile = block; tile < t->tiles; tile += blocks)
        cairn_copy_tile(&t->pages[cairn_tile_page(t->pages, t->count, tile)], tile,
                        (int)t->to_device, thread, threads);
}

#endif
