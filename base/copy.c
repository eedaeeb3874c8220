#include "base/copy.h"

#include <string.h>

#include "base/hash.h"

void cairn_copy_init(void)
{
}

const char *cairn_copy_variant(void)
{
    return "memcpy";
}

void cairn_copy(void *dst, const void *src, size_t len)
{
    if (len)
        memcpy(dst, src, len);
}

static void copy_list(const struct cairn_sgl *list, size_t off, size_t len, unsigned char *flat,
                      int gather)
{
    for (uint32_t i = 0; len && i < list->count; i++) {
        size_t n = list->iov[i].len;
        if (off >= n) {
            off -= n;
            continue;
        }
        n = n - off < len ? n - off : len;
        unsigned char *part = (unsigned char *)list->iov[i].base + off;
        memcpy(gather ? flat : part, gather ? part : flat, n);
        flat += n;
        len -= n;
        off = 0;
    }
}

void cairn_copy_gather(void *dst, const struct cairn_sgl *list, size_t off, size_t len)
{
    copy_list(list, off, len, dst, 1);
}

void cairn_copy_scatter(const struct cairn_sgl *list, size_t off, const void *src, size_t len)
{
    copy_list(list, off, len, (unsigned char *)(uintptr_t)src, 0);
}

void cairn_copy_gather_hash(void *dst, const struct cairn_sgl *list, size_t len, uint64_t *checks)
{
    cairn_copy_gather(dst, list, 0, len);
    cairn_hash_pieces(dst, len, checks);
}

int cairn_copy_scatter_verify(const struct cairn_sgl *list, const void *value, size_t value_len,
                              size_t off, size_t len, const uint64_t *checks)
{
    const unsigned char *v = value;
    if (len == 0)
        return -1;
    for (size_t i = off / CAIRN_PIECE_BYTES; i <= (off + len - 1) / CAIRN_PIECE_BYTES; i++) {
        size_t at = i * CAIRN_PIECE_BYTES;
        size_t n = value_len - at < CAIRN_PIECE_BYTES ? value_len - at : CAIRN_PIECE_BYTES;
        if (cairn_hash64(v + at, n) != checks[i])
            return (int)i;
    }
    cairn_copy_scatter(list, 0, v + off, len);
    return -1;
}

static void copy_memcpy(void *dst, const void *src, size_t len)
{
    memcpy(dst, src, len);
}

uint32_t cairn_copy_variants(const char **names, cairn_copy_fn *fns, uint32_t cap)
{
    if (cap == 0)
        return 0;
    names[0] = "memcpy";
    fns[0] = copy_memcpy;
    return 1;
}
