#include "base/hash_isa.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t cairn_hash64_avx512(const void *data, size_t len)
{
    return XXH3_64bits(data, len);
}
