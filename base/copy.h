/* Copies between cold memory and cold memory, which is what moving KV is. A plain memcpy reads the
 * destination before it overwrites it; non-temporal stores over several interleaved streams do
 * not, and are 1.5x as fast on large cold copies. Which variant is best is measured once per
 * process (cairn_copy_init), because it differs between machines.
 */
#ifndef CAIRN_BASE_COPY_H
#define CAIRN_BASE_COPY_H

#include "base/types.h"

/* Measures the variants (about 20 ms) and fixes the choice; later calls return at once.
 * Thread-safe. Every function below works before it, with the portable variant. */
void cairn_copy_init(void);

/* "avx512-nt4", "avx2-nt4", "memcpy", ...: what large copies use. */
const char *cairn_copy_variant(void);

/* Contiguous copy. Regions do not overlap. Stores are globally visible on return (sfence). */
void cairn_copy(void *dst, const void *src, size_t len);

/* Copies bytes [off, off + len) of the list to dst (gather) or from src into it (scatter).
 * off + len <= cairn_sgl_bytes(list). */
void cairn_copy_gather(void *dst, const struct cairn_sgl *list, size_t off, size_t len);
void cairn_copy_scatter(const struct cairn_sgl *list, size_t off, const void *src, size_t len);

/* Gather of a whole value with the piece checks of hash.h computed on the way: the source is read
 * from DRAM once. checks has cairn_piece_count(len) entries; len == cairn_sgl_bytes(list). */
void cairn_copy_gather_hash(void *dst, const struct cairn_sgl *list, size_t len, uint64_t *checks);

/* Scatter of the bytes [off, off + len) of a value held contiguously at `value` (start of the
 * value, not of the range) into the list's first len bytes, comparing the checks of every piece
 * touched (pieces are read whole: value_len bytes at `value` are readable).
 * Returns the index of the first bad piece, or -1. On a bad piece the destination's content is
 * unspecified. */
int cairn_copy_scatter_verify(const struct cairn_sgl *list, const void *value, size_t value_len,
                              size_t off, size_t len, const uint64_t *checks);

/* The same for a list that holds the whole value, of which only [off, off + len) is copied now. Of
 * the pieces that touch it every byte is read. */
int cairn_copy_scatter_verify_part(const struct cairn_sgl *list, const void *value,
                                   size_t value_len, size_t off, size_t len,
                                   const uint64_t *checks);

/* Every variant this machine can run, for `cairn bench` and tests: names[i] and fn(i). */
typedef void (*cairn_copy_fn)(void *dst, const void *src, size_t len);
uint32_t cairn_copy_variants(const char **names, cairn_copy_fn *fns, uint32_t cap);

#endif
