/* The machine's own limits, measured in the same run as Cairn's figures: bare loops that know
 * nothing of Cairn's layers above base/. */
#ifndef CAIRN_TOOLS_BENCH_LIMITS_H
#define CAIRN_TOOLS_BENCH_LIMITS_H

#include <stdbool.h>

#include "base/types.h"

struct cairn_limit {
    double gb_per_s;       /* 1 GB = 1e9 bytes                      */
    double p50_us, p99_us, p999_us; /* one io, or one value copied  */
    double cpu_s_per_gb;   /* of this process, user and system      */
    uint64_t count;        /* ios or values                         */
    uint64_t bytes;
    char variant[32];      /* copies: which one was best            */
};

/* --- disk: a bare io_uring loop, O_DIRECT, registered file and buffers, random offsets --- */
struct cairn_limit_disk {
    int fd;                /* O_DIRECT, extents written before (cairn_limit_file)           */
    uint64_t from, to;     /* bytes of the file that ios stay in                            */
    uint32_t len;          /* bytes an io, a multiple of 4 KiB                              */
    uint32_t depth;        /* 1 to 64                                                       */
    bool write;            /* overwrite with what region holds; else read                   */
    void *region;          /* huge-page memory, at least depth * len bytes: ios go round it,
                            * so that with much more of it than cache they find it cold     */
    size_t region_len;
    uint64_t duration_ns;
    uint64_t seed;
};
/* CAIRN_IO and a sentence in why when an io fails: nothing is counted then. */
cairn_status cairn_limit_disk_run(const struct cairn_limit_disk *o, struct cairn_limit *ret,
                                  char *why, size_t why_cap);

/* A file of `bytes`, written once end to end from region with O_DIRECT, and synced: what the disk
 * loop runs on. An existing file of that size is taken as it is. Its descriptor, or -1 and why. */
int cairn_limit_file(const char *path, uint64_t bytes, void *region, size_t region_len,
                     char *why, size_t why_cap);

/* --- memory: the best cold copy of values of `len` bytes between random places of two pools --- */
struct cairn_limit_copy {
    void *src, *dst;       /* pools, at least 4x the last-level cache each to be cold       */
    size_t pool_len;
    size_t len;            /* bytes a value                                                 */
    size_t block;          /* 0 = contiguous; else one side of the copy is len / block scattered
                            * blocks and 8 blocks are copied interleaved                    */
    bool scatter;          /* with block: scattered blocks are the destination, else source */
    uint32_t threads;      /* 1 or more, each its own values; count and bytes are the sum   */
    uint64_t duration_ns;  /* of each variant tried                                         */
    uint64_t seed;
};
/* Tries every variant of base/copy.h (and the interleaved ones of this file) and gives the best. */
cairn_status cairn_limit_copy_run(const struct cairn_limit_copy *o, struct cairn_limit *ret);

#endif
