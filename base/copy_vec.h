/* The few vector operations that copies and XXH3 are made of, for the instruction set that the
 * including file is compiled for. */
#ifndef CAIRN_BASE_COPY_VEC_H
#define CAIRN_BASE_COPY_VEC_H

#include <immintrin.h>
#include <stdint.h>

#define CAIRN_INLINE static inline __attribute__((always_inline))

#if defined(__AVX512F__)

typedef __m512i cairn_vec;
CAIRN_INLINE cairn_vec cairn_vec_load(const void *p) { return _mm512_loadu_si512(p); }
CAIRN_INLINE void cairn_vec_store(void *p, cairn_vec v) { _mm512_storeu_si512(p, v); }
CAIRN_INLINE void cairn_vec_stream(void *p, cairn_vec v) { _mm512_stream_si512(p, v); }
CAIRN_INLINE cairn_vec cairn_vec_xor(cairn_vec a, cairn_vec b) { return _mm512_xor_si512(a, b); }
CAIRN_INLINE cairn_vec cairn_vec_add(cairn_vec a, cairn_vec b) { return _mm512_add_epi64(a, b); }
CAIRN_INLINE cairn_vec cairn_vec_mul32(cairn_vec a, cairn_vec b) { return _mm512_mul_epu32(a, b); }
CAIRN_INLINE cairn_vec cairn_vec_set(uint64_t x) { return _mm512_set1_epi64((long long)x); }
#define CAIRN_VEC_SHIFT_RIGHT(v, n) _mm512_srli_epi64(v, n)
#define CAIRN_VEC_SHIFT_LEFT(v, n) _mm512_slli_epi64(v, n)
#define CAIRN_VEC_SWAP64(v) _mm512_shuffle_epi32(v, _MM_PERM_BADC)

#elif defined(__AVX2__)

typedef __m256i cairn_vec;
CAIRN_INLINE cairn_vec cairn_vec_load(const void *p) { return _mm256_loadu_si256(p); }
CAIRN_INLINE void cairn_vec_store(void *p, cairn_vec v) { _mm256_storeu_si256(p, v); }
CAIRN_INLINE void cairn_vec_stream(void *p, cairn_vec v) { _mm256_stream_si256(p, v); }
CAIRN_INLINE cairn_vec cairn_vec_xor(cairn_vec a, cairn_vec b) { return _mm256_xor_si256(a, b); }
CAIRN_INLINE cairn_vec cairn_vec_add(cairn_vec a, cairn_vec b) { return _mm256_add_epi64(a, b); }
CAIRN_INLINE cairn_vec cairn_vec_mul32(cairn_vec a, cairn_vec b) { return _mm256_mul_epu32(a, b); }
CAIRN_INLINE cairn_vec cairn_vec_set(uint64_t x) { return _mm256_set1_epi64x((long long)x); }
#define CAIRN_VEC_SHIFT_RIGHT(v, n) _mm256_srli_epi64(v, n)
#define CAIRN_VEC_SHIFT_LEFT(v, n) _mm256_slli_epi64(v, n)
#define CAIRN_VEC_SWAP64(v) _mm256_shuffle_epi32(v, 0x4e)

#else

typedef __m128i cairn_vec;
CAIRN_INLINE cairn_vec cairn_vec_load(const void *p) { return _mm_loadu_si128(p); }
CAIRN_INLINE void cairn_vec_store(void *p, cairn_vec v) { _mm_storeu_si128(p, v); }
CAIRN_INLINE void cairn_vec_stream(void *p, cairn_vec v) { _mm_stream_si128(p, v); }
CAIRN_INLINE cairn_vec cairn_vec_xor(cairn_vec a, cairn_vec b) { return _mm_xor_si128(a, b); }
CAIRN_INLINE cairn_vec cairn_vec_add(cairn_vec a, cairn_vec b) { return _mm_add_epi64(a, b); }
CAIRN_INLINE cairn_vec cairn_vec_mul32(cairn_vec a, cairn_vec b) { return _mm_mul_epu32(a, b); }
CAIRN_INLINE cairn_vec cairn_vec_set(uint64_t x) { return _mm_set1_epi64x((long long)x); }
#define CAIRN_VEC_SHIFT_RIGHT(v, n) _mm_srli_epi64(v, n)
#define CAIRN_VEC_SHIFT_LEFT(v, n) _mm_slli_epi64(v, n)
#define CAIRN_VEC_SWAP64(v) _mm_shuffle_epi32(v, 0x4e)

#endif

#define CAIRN_VEC_BYTES sizeof(cairn_vec)
#define CAIRN_LINE_VECS (64 / CAIRN_VEC_BYTES)

#endif
