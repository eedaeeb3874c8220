/* Handles are numbers that look like addresses, lead nowhere and are never used twice: a stale one
 * is known as such instead of being followed. */
#include <stdlib.h>

#include "tests/emulation/emulation.h"

#define FIRST_ADDRESS UINT64_C(0xC0DA00000000)
#define STEP 16u

struct entry {
    enum handle_kind kind;
    void *object; /* NULL: ended */
};

static struct entry *entries;
static size_t used, room;
static uint64_t first; /* number of entries[0]: it goes on through resets */

static struct entry *entry_of(const void *handle)
{
    uint64_t at = (uint64_t)(uintptr_t)handle;
    uint64_t number = (at - FIRST_ADDRESS) / STEP;

    if (at < FIRST_ADDRESS || at % STEP || number < first || number - first >= used)
        return NULL;
    return &entries[number - first];
}

void *handle_new(enum handle_kind kind, void *object)
{
    if (used == room) {
        room = room ? 2 * room : 64;
        entries = realloc(entries, room * sizeof(*entries));
        if (!entries)
            abort();
    }
    entries[used] = (struct entry){.kind = kind, .object = object};
    return (void *)(uintptr_t)(FIRST_ADDRESS + (first + used++) * STEP);
}

void *handle_object(enum handle_kind kind, const void *handle, const char *call)
{
    static const char *const names[] = {"", "context", "stream", "event", "module",
                                        "function"};
    struct entry *e = entry_of(handle);

    if (e && e->kind == kind && e->object)
        return e->object;
    violation("%s: %p is %s %s", call, handle,
              e && e->kind == kind ? "a destroyed" : "no handle of a live", names[kind]);
    return NULL;
}

void *handle_end(enum handle_kind kind, const void *handle)
{
    struct entry *e = entry_of(handle);
    void *object = e && e->kind == kind ? e->object : NULL;

    if (object)
        e->object = NULL;
    return object;
}

uint64_t handle_count(enum handle_kind kind)
{
    uint64_t n = 0;

    for (size_t i = 0; i < used; i++)
        n += entries[i].kind == kind && entries[i].object;
    return n;
}

void *handle_next(enum handle_kind kind, size_t *at)
{
    while (*at < used) {
        struct entry *e = &entries[(*at)++];
        if (e->kind == kind && e->object)
            return e->object;
    }
    return NULL;
}

void handles_reset(void)
{
    first += used;
    free(entries);
    entries = NULL;
    used = room = 0;
}
