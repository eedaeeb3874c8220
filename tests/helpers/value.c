#include "tests/helpers/value.h"

#include <string.h>

static uint64_t mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

uint64_t rng_next(struct rng *r)
{
    r->state += 0x9e3779b97f4a7c15u;
    return mix(r->state);
}

uint64_t rng_below(struct rng *r, uint64_t n)
{
    return rng_next(r) % n;
}

bool rng_one_in(struct rng *r, uint64_t n)
{
    return rng_below(r, n) == 0;
}

void value_key(uint64_t id, uint8_t out[32])
{
    struct rng r = {.state = mix(id + 1)};
    uint64_t words[4];

    for (int i = 0; i < 4; i++)
        words[i] = rng_next(&r) | 1;
    memcpy(out, words, 32);
}

static uint64_t name_word(uint64_t id, uint64_t gen)
{
    return mix(id ^ 0x6361697264u) ^ mix(gen);
}

static uint64_t word_at(uint64_t seed, uint64_t id, uint64_t gen, uint64_t index)
{
    if (index == 0)
        return gen;
    if (index == 1)
        return name_word(id, gen);
    return mix(seed + index * 0x9e3779b97f4a7c15u);
}

/* One step of the stream: the bytes of a word from byte `off` on, at most len of them. */
static size_t next_bytes(uint64_t seed, uint64_t id, uint64_t gen, uint64_t off, size_t len,
                         uint8_t out[8])
{
    uint64_t word = word_at(seed, id, gen, off / 8);
    size_t skip = off % 8;
    size_t n = 8 - skip < len ? 8 - skip : len;

    memcpy(out, (const uint8_t *)&word + skip, n);
    return n;
}

void value_fill(void *out, uint64_t id, uint64_t gen, uint64_t off, size_t len)
{
    uint64_t seed = mix(id * 0x100000001b3u + mix(gen));
    uint8_t *to = out;
    size_t at = 0;

    while (at < len) {
        uint8_t bytes[8];
        size_t n = next_bytes(seed, id, gen, off + at, len - at, bytes);

        memcpy(to + at, bytes, n);
        at += n;
    }
}

size_t value_check(const void *data, uint64_t id, uint64_t gen, uint64_t off, size_t len)
{
    uint64_t seed = mix(id * 0x100000001b3u + mix(gen));
    const uint8_t *from = data;
    size_t at = 0;

    while (at < len) {
        uint8_t bytes[8];
        size_t n = next_bytes(seed, id, gen, off + at, len - at, bytes);

        if (memcmp(from + at, bytes, n) != 0) {
            while (from[at] == bytes[0] && n-- > 1) {
                at++;
                memmove(bytes, bytes + 1, n);
            }
            return at;
        }
        at += n;
    }
    return len;
}

uint64_t value_generation(const void *data, size_t len, uint64_t id)
{
    uint64_t words[2];

    if (len < VALUE_NAMED)
        return 0;
    memcpy(words, data, sizeof(words));
    return words[1] == name_word(id, words[0]) ? words[0] : 0;
}
