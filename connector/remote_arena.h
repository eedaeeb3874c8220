/* The node's memory in this process: its arena, read-only, and what may be believed of it. */
#ifndef CAIRN_CONNECTOR_REMOTE_ARENA_H
#define CAIRN_CONNECTOR_REMOTE_ARENA_H

#include <pthread.h>
#include <sys/types.h>

#include "storage/cause.h"
#include "storage/format.h"
#include "transport/wire.h"

/* One life of a node has one arena: all connections of that life share the mapping, and it stays
 * until the last of them and the last of their leases is gone, so that a reader never faults. */
struct remote_arena {
    struct remote_arena *next;
    uint32_t users;  /* under the list's lock */
    dev_t device;
    ino_t inode;
    const char *base;
    size_t len;
};

struct remote_arenas {
    pthread_mutex_t lock;
    struct remote_arena *list;
};

/* Maps the arena behind fd (which stays the caller's), or finds it mapped already. NULL and why
 * if it is not what a node may hand out. */
struct remote_arena *remote_arena_get(struct remote_arenas *all, int fd, uint64_t len,
                                      const char **why);
void remote_arena_hold(struct remote_arenas *all, struct remote_arena *a);
void remote_arena_put(struct remote_arenas *all, struct remote_arena *a); /* NULL is fine */

/* Maps a client's window for writing; NULL if it is not one. */
char *remote_window_map(int fd, uint64_t len);
void remote_window_unmap(char *window, size_t len);

/* Copies the header of a leased record out and compares it with the view and with what was asked
 * for: from then on `ret` holds true checks of the value's pieces, whatever happens to the arena.
 */
enum cairn_cause remote_header_read(const struct remote_arena *a, const struct cairn_wire_view *v,
                                    const struct cairn_key *key, const uint8_t *fingerprint,
                                    struct cairn_record_body_disk *ret);
/* The value itself in place. */
enum cairn_cause remote_value_verify(const struct remote_arena *a, const struct cairn_wire_view *v,
                                     const struct cairn_record_body_disk *header);

#endif
