/* Device memory and registered host memory.
 *
 * The address of device memory is that of a mapping which nobody can touch; the bytes are in
 * another mapping of the same pages, which only the emulation knows. A freed address is never given
 * out again, so that its use is known. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/emulation/emulation.h"

#define PAGE 4096u

struct range {
    cu_ptr base;
    size_t len;
    size_t room;            /* whole pages                        */
    unsigned char *bytes;   /* of device memory; NULL: freed      */
    unsigned int flags;     /* of registered memory               */
    struct context *context; /* NULL: of the device, of no context */
    int device;
};

/* In the order of their addresses. */
struct ranges {
    struct range *at;
    size_t count, room;
};

static struct ranges blocks, registered;

static size_t whole_pages(size_t len)
{
    return (len + PAGE - 1) / PAGE * PAGE;
}

/* How many begin at or below the address. */
static size_t below(const struct ranges *r, cu_ptr at)
{
    size_t low = 0, high = r->count;

    while (low < high) {
        size_t mid = low + (high - low) / 2;
        if (r->at[mid].base <= at)
            low = mid + 1;
        else
            high = mid;
    }
    return low;
}

/* The one that holds the address, counting whole pages of device memory. */
static struct range *range_of(const struct ranges *r, cu_ptr at)
{
    size_t n = below(r, at);
    struct range *found = n ? &r->at[n - 1] : NULL;

    return found && at - found->base < (found->room ? found->room : found->len) ? found : NULL;
}

static void range_add(struct ranges *r, struct range new)
{
    size_t n = below(r, new.base);

    if (r->count == r->room) {
        r->room = r->room ? 2 * r->room : 16;
        r->at = realloc(r->at, r->room * sizeof(*r->at));
        if (!r->at)
            abort();
    }
    memmove(&r->at[n + 1], &r->at[n], (r->count - n) * sizeof(*r->at));
    r->at[n] = new;
    r->count++;
}

static void range_remove(struct ranges *r, const struct range *gone)
{
    size_t n = (size_t)(gone - r->at);

    memmove(&r->at[n], &r->at[n + 1], (r->count - n - 1) * sizeof(*r->at));
    r->count--;
}

/* ---- device memory */

cu_result device_alloc(cu_ptr *ret, size_t len, struct context *c, int device)
{
    struct range new = {.len = len, .room = whole_pages(len), .context = c, .device = device};
    int fd = len && new.room >= len ? memfd_create("emulated device memory", MFD_CLOEXEC) : -1;
    void *hidden = MAP_FAILED, *bytes = MAP_FAILED;

    if (!len)
        return CU_INVALID_VALUE;
    if (fd >= 0 && !ftruncate(fd, (off_t)new.room)) {
        hidden = mmap(NULL, new.room, PROT_NONE, MAP_SHARED, fd, 0);
        bytes = mmap(NULL, new.room, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    if (fd >= 0)
        close(fd);
    if (hidden == MAP_FAILED || bytes == MAP_FAILED) {
        if (hidden != MAP_FAILED)
            munmap(hidden, new.room);
        if (bytes != MAP_FAILED)
            munmap(bytes, new.room);
        return CU_OUT_OF_MEMORY;
    }
    memset(bytes, POISON, new.room);
    new.base = (cu_ptr)(uintptr_t)hidden;
    new.bytes = bytes;
    range_add(&blocks, new);
    *ret = new.base;
    return CU_OK;
}

/* The address stays taken: what still uses it is found out. */
static void block_free(struct range *b)
{
    void *at = (void *)(uintptr_t)b->base;

    munmap(b->bytes, b->room);
    b->bytes = NULL;
    if (mmap(at, b->room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1,
             0) == MAP_FAILED)
        abort();
}

cu_result device_free(cu_ptr at, const char *call)
{
    struct range *b = range_of(&blocks, at);
    const char *user;

    if (!at)
        return CU_OK;
    if (!b || b->base != at || !b->bytes) {
        violation("%s: 0x%" PRIx64 " is not what an allocation returned%s", call, at,
                  b && !b->bytes ? ", or is freed already" : "");
        return CU_INVALID_VALUE;
    }
    if ((user = streams_using(b->base, b->len)))
        violation("%s: 0x%" PRIx64 " is freed while a queued %s uses it", call, at, user);
    block_free(b);
    return CU_OK;
}

/* ---- registered memory */

/* Whether all of it is mapped and may be written, or only read. */
static bool mapped(cu_ptr at, size_t len, bool to_write)
{
    FILE *maps = fopen("/proc/self/maps", "re");
    cu_ptr end = at + len, from, to;
    char line[512], rights[8];

    if (!maps)
        return false;
    while (at < end && fgets(line, sizeof(line), maps)) {
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s", &from, &to, rights) != 3 || to <= at)
            continue;
        if (from > at || rights[0] != 'r' || (to_write && rights[1] != 'w'))
            break;
        at = to;
    }
    fclose(maps);
    return at >= end;
}

/* Memory is pinned by pages, and a page once. */
static bool pages_taken(cu_ptr base, size_t len)
{
    cu_ptr from = base / PAGE * PAGE, to = base + len;
    size_t n = below(&registered, (to + PAGE - 1) / PAGE * PAGE - 1);
    const struct range *last = n ? &registered.at[n - 1] : NULL;

    return last && (last->base + last->len + PAGE - 1) / PAGE * PAGE > from;
}

cu_result host_register(void *base, size_t len, unsigned int flags, struct context *c)
{
    struct range new = {.base = (cu_ptr)(uintptr_t)base, .len = len, .flags = flags,
                        .context = c, .device = c->device};
    const int *attributes = emu.devices[c->device].attributes;
    bool read_only = flags & CU_REGISTER_READ_ONLY;

    if (!base || !len || new.base + len < new.base ||
        flags & ~(unsigned)(CU_REGISTER_PORTABLE | CU_REGISTER_DEVICEMAP | CU_REGISTER_READ_ONLY))
        return CU_INVALID_VALUE;
    if (read_only && attributes[CU_DEVICE_READ_ONLY_REGISTER] != 1)
        return CU_NOT_SUPPORTED;
    if (pages_taken(new.base, len))
        return CU_HOST_MEMORY_ALREADY_REGISTERED;
    if (!mapped(new.base, len, !read_only))
        return CU_INVALID_VALUE;
    range_add(&registered, new);
    return CU_OK;
}

cu_result host_unregister(void *base)
{
    cu_ptr at = (cu_ptr)(uintptr_t)base;
    struct range *r = range_of(&registered, at);
    const char *user;

    if (!r || r->base != at)
        return CU_HOST_MEMORY_NOT_REGISTERED;
    if ((user = streams_using(r->base, r->len))) {
        violation("cuMemHostUnregister: %p is used by a queued %s", base, user);
        return CU_INVALID_VALUE;
    }
    range_remove(&registered, r);
    return CU_OK;
}

cu_result host_device_pointer(cu_ptr *ret, void *base, struct context *c)
{
    cu_ptr at = (cu_ptr)(uintptr_t)base;
    const struct range *r = range_of(&registered, at);

    if (!r || !(r->flags & CU_REGISTER_DEVICEMAP) ||
        (r->context != c && !(r->flags & CU_REGISTER_PORTABLE)))
        return CU_INVALID_VALUE;
    *ret = at;
    return CU_OK;
}

/* ---- both */

void memory_info(cu_ptr at, struct memory_info *ret)
{
    const struct range *b = range_of(&blocks, at), *r = range_of(&registered, at);
    const struct range *found = b && b->bytes && at - b->base < b->len ? b : r;

    *ret = (struct memory_info){.device = -1};
    if (found)
        *ret = (struct memory_info){.kind = found == r ? MEMORY_HOST : MEMORY_DEVICE,
                                    .context = found->context,
                                    .device = found->device,
                                    .base = found->base,
                                    .len = found->len};
}

static const char *block_fault(const struct range *b, cu_ptr at, size_t len,
                               const struct context *c)
{
    if (!b->bytes)
        return "in device memory that was freed";
    if (at - b->base > b->len || len > b->len - (at - b->base))
        return "beyond the end of its device memory";
    if (c && (b->context ? b->context != c : b->device != c->device))
        return "in device memory of another context";
    return NULL;
}

static const char *host_fault(const struct range *r, cu_ptr at, size_t len, bool write,
                              const struct context *c)
{
    if (!r)
        return "in no registered memory";
    if (len > r->len - (at - r->base))
        return "beyond the end of its registered range";
    if (r->context != c && !(r->flags & CU_REGISTER_PORTABLE))
        return "in memory that another context registered, and not as portable";
    if (write && r->flags & CU_REGISTER_READ_ONLY)
        return "written, but registered as read-only";
    return NULL;
}

unsigned char *memory_bytes(cu_ptr at, size_t len, bool write, const struct context *c,
                            const char *what)
{
    const struct range *b = range_of(&blocks, at);
    const char *fault = b ? block_fault(b, at, len, c)
                          : host_fault(range_of(&registered, at), at, len, write, c);

    if (!fault)
        return b ? b->bytes + (at - b->base) : (unsigned char *)(uintptr_t)at;
    if (what)
        violation("%s: [0x%" PRIx64 ", +%zu) is %s", what, at, len, fault);
    return NULL;
}

bool memory_is_device(cu_ptr at)
{
    return range_of(&blocks, at);
}

void memory_end(const struct context *c)
{
    for (size_t i = 0; i < blocks.count; i++) {
        if (blocks.at[i].bytes && blocks.at[i].context == c)
            block_free(&blocks.at[i]);
    }
    for (size_t i = registered.count; i--;) {
        if (registered.at[i].context == c)
            range_remove(&registered, &registered.at[i]);
    }
}

uint64_t allocations_live(void)
{
    uint64_t n = 0;

    for (size_t i = 0; i < blocks.count; i++)
        n += blocks.at[i].bytes != NULL;
    return n;
}

uint64_t registrations_live(void)
{
    return registered.count;
}

void memory_reset(void)
{
    for (size_t i = 0; i < blocks.count; i++) {
        struct range *b = &blocks.at[i];
        if (b->bytes)
            munmap(b->bytes, b->room);
        munmap((void *)(uintptr_t)b->base, b->room);
    }
    free(blocks.at);
    free(registered.at);
    blocks = registered = (struct ranges){0};
}
