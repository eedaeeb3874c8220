/* The 16 bytes that index and footers keep of a key. */
#ifndef CAIRN_STORAGE_KEY16_H
#define CAIRN_STORAGE_KEY16_H

#include <stdint.h>
#include <string.h>

/* murmur3's 64-bit finalizer: a bijection. */
static inline uint64_t cairn_mix64(uint64_t x)
{
    x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdull;
    x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ull;
    return x ^ (x >> 33);
}

/* Both halves of the key go in, since keys that callers make up (a counter in 32 bytes) often
 * differ in one half only; two keys with an equal half never collide. */
static inline void cairn_key16(const uint8_t key[32], uint8_t out[16])
{
    uint64_t q[4];
    memcpy(q, key, sizeof q);
    q[0] ^= cairn_mix64(q[2]);
    q[1] ^= cairn_mix64(q[3]);
    memcpy(out, q, 16);
}

#endif
