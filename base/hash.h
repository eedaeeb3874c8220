/* XXH3-64 (the xxHash library, header-only, seed 0), compiled once per instruction set and chosen
 * at load time: the distribution's shared library has no AVX-512 path. */
#ifndef CAIRN_BASE_HASH_H
#define CAIRN_BASE_HASH_H

#include "base/types.h"

/* XXH3-64 of `len` bytes. */
uint64_t cairn_hash64(const void *data, size_t len);

/* Values are checked in pieces, so that a part of a value can be read and verified alone. */
#define CAIRN_PIECE_BYTES (256u * 1024u)
#define CAIRN_PIECES_MAX 256u

static inline uint32_t cairn_piece_count(size_t len)
{
    return (uint32_t)((len + CAIRN_PIECE_BYTES - 1) / CAIRN_PIECE_BYTES);
}

/* Checks of each 256 KiB piece of a contiguous value into checks[cairn_piece_count(len)]. */
void cairn_hash_pieces(const void *data, size_t len, uint64_t *checks);

/* Name of the implementation in use: "avx512", "avx2", "sse2" or "scalar". */
const char *cairn_hash_variant(void);

#endif
