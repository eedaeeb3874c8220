#include "connector/remote_arena.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/mem.h"
#include "base/move.h"

#define HUGE_PAGE (2u * 1024u * 1024u)

/* A memory file that may shrink could fault its reader. */
static bool fixed_size(int fd, uint64_t len, struct stat *st)
{
    int seals = fcntl(fd, F_GET_SEALS);
    return seals >= 0 && (seals & F_SEAL_SHRINK) && fstat(fd, st) == 0 && len > 0 &&
           len <= SIZE_MAX && st->st_size > 0 && (uint64_t)st->st_size >= len;
}

/* On a 2 MiB boundary, so that huge pages of the file can be mapped as such. NULL: no memory. */
static void *map_aligned(int fd, size_t len, int protection)
{
    if (len > SIZE_MAX - HUGE_PAGE)
        return NULL;
    size_t room = len + HUGE_PAGE;
    char *range = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (range == MAP_FAILED)
        return NULL;
    char *at = (char *)(((uintptr_t)range + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1));
    if (mmap(at, len, protection, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        munmap(range, room);
        return NULL;
    }
    size_t page_end = (len + 4095) & ~(size_t)4095;
    if (at > range)
        munmap(range, (size_t)(at - range));
    if (at + page_end < range + room)
        munmap(at + page_end, (size_t)(range + room - at) - page_end);
    madvise(at, len, MADV_DONTFORK);
    madvise(at, len, MADV_DONTDUMP);
    return at;
}

/* Lock held. */
static struct remote_arena *find(struct remote_arenas *all, const struct stat *st, uint64_t len)
{
    for (struct remote_arena *a = all->list; a; a = a->next)
        if (a->inode == st->st_ino && a->device == st->st_dev && a->len == len)
            return a;
    return NULL;
}

struct remote_arena *remote_arena_get(struct remote_arenas *all, int fd, uint64_t len,
                                      const char **why)
{
    struct stat st;
    if (!fixed_size(fd, len, &st)) {
        *why = "its shared memory is shorter than it says, or could become so";
        return NULL;
    }
    pthread_mutex_lock(&all->lock);
    struct remote_arena *a = find(all, &st, len);
    if (!a && (a = cairn_calloc(1, sizeof *a))) {
        a->base = map_aligned(fd, (size_t)len, PROT_READ);
        if (a->base) {
            a->len = (size_t)len;
            a->device = st.st_dev;
            a->inode = st.st_ino;
            a->next = all->list;
            all->list = a;
            cairn_memory_offer((void *)(uintptr_t)a->base, a->len, false);
        } else {
            free(a);
            a = NULL;
        }
    }
    if (a)
        a->users++;
    else
        *why = "its shared memory cannot be mapped: no address space";
    pthread_mutex_unlock(&all->lock);
    return a;
}

void remote_arena_hold(struct remote_arenas *all, struct remote_arena *a)
{
    pthread_mutex_lock(&all->lock);
    a->users++;
    pthread_mutex_unlock(&all->lock);
}

void remote_arena_put(struct remote_arenas *all, struct remote_arena *a)
{
    if (!a)
        return;
    pthread_mutex_lock(&all->lock);
    bool last = --a->users == 0;
    if (last) {
        struct remote_arena **at = &all->list;
        while (*at != a)
            at = &(*at)->next;
        *at = a->next;
    }
    pthread_mutex_unlock(&all->lock);
    if (last) {
        cairn_memory_withdraw((void *)(uintptr_t)a->base);
        munmap((void *)(uintptr_t)a->base, a->len);
        free(a);
    }
}

char *remote_window_map(int fd, uint64_t len)
{
    struct stat st;
    char *window = fixed_size(fd, len, &st) ? map_aligned(fd, (size_t)len, PROT_READ | PROT_WRITE)
                                            : NULL;
    if (window)
        cairn_memory_offer(window, (size_t)len, true);
    return window;
}

void remote_window_unmap(char *window, size_t len)
{
    cairn_memory_withdraw(window);
    munmap(window, len);
}

/* Does the view lie in the arena, with its header before it? */
static bool inside(const struct remote_arena *a, const struct cairn_wire_view *v)
{
    return v->len > 0 && v->len <= CAIRN_VALUE_MAX && v->offset >= CAIRN_BLOCK &&
           v->offset % CAIRN_BLOCK == 0 && v->offset <= a->len && v->len <= a->len - v->offset;
}

enum cairn_cause remote_header_read(const struct remote_arena *a, const struct cairn_wire_view *v,
                                    const struct cairn_key *key, const uint8_t *fingerprint,
                                    struct cairn_record_body_disk *ret)
{
    if (!inside(a, v))
        return CAIRN_CAUSE_HEADER;
    const char *header = a->base + v->offset - CAIRN_BLOCK;
    memcpy(ret, header + offsetof(struct cairn_record_disk, body), sizeof *ret);
    if (cairn_hash64(ret, offsetof(struct cairn_record_body_disk, check)) != ret->check)
        return CAIRN_CAUSE_HEADER;
    if (memcmp(ret->key, key->bytes, sizeof ret->key) != 0)
        return CAIRN_CAUSE_KEY;
    if (ret->version != v->version || ret->check != v->check)
        return CAIRN_CAUSE_VERSION;
    if (ret->value_len != v->len)
        return CAIRN_CAUSE_LENGTH;
    if (fingerprint && memcmp(ret->identity, fingerprint, sizeof ret->identity) != 0)
        return CAIRN_CAUSE_IDENTITY;
    if (ret->expires_ns && ret->expires_ns <= cairn_wall_ns())
        return CAIRN_CAUSE_EXPIRED;
    return CAIRN_CAUSE_NONE;
}

enum cairn_cause remote_value_verify(const struct remote_arena *a, const struct cairn_wire_view *v,
                                     const struct cairn_record_body_disk *header)
{
    const char *value = a->base + v->offset;
    for (uint32_t i = 0; i < cairn_piece_count(v->len); i++) {
        size_t at = (size_t)i * CAIRN_PIECE_BYTES, left = v->len - at;
        if (cairn_hash64(value + at, left < CAIRN_PIECE_BYTES ? left : CAIRN_PIECE_BYTES) !=
            header->piece_check[i])
            return CAIRN_CAUSE_CHECKSUM;
    }
    return CAIRN_CAUSE_NONE;
}
