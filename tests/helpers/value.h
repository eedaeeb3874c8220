/* Values that say what they are: every byte follows from (key, generation), so that any byte read
 * can be checked without keeping a copy. */
#ifndef CAIRN_TESTS_VALUE_H
#define CAIRN_TESTS_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Shortest value from which value_generation reads the generation. */
#define VALUE_NAMED 16u

struct rng {
    uint64_t state;
};

uint64_t rng_next(struct rng *r);
/* Uniform in [0, n); n > 0. */
uint64_t rng_below(struct rng *r, uint64_t n);
/* True once in n. */
bool rng_one_in(struct rng *r, uint64_t n);

/* 32 bytes of key number `id`; never all zero. */
void value_key(uint64_t id, uint8_t out[32]);
/* Bytes [off, off + len) of generation `gen` of key `id`. */
void value_fill(void *out, uint64_t id, uint64_t gen, uint64_t off, size_t len);
/* Offset in `data` of the first byte that differs, len if none does. */
size_t value_check(const void *data, uint64_t id, uint64_t gen, uint64_t off, size_t len);
/* The generation a whole value (from VALUE_NAMED bytes on) claims to be; 0: not of this key. */
uint64_t value_generation(const void *data, size_t len, uint64_t id);

#endif
