/* Whose long reply a network thread sends now: one at a time.
 *
 * A socket takes a few MiB. If every connection is given its part in turn, each client is left with
 * a part of its value: none can go on, and their half-filled buffers together fit into no cache. So
 * who has much to send and takes it keeps the turn until all is sent or its time is over. Requests
 * and short replies of all others are served meanwhile: nobody waits but who has a long reply too.
 * Who takes nothing for a while has lost its turn, and for a pause, longer each time, it is given
 * its part whenever there is room for it: then it can hold up nobody.
 *
 * All on the thread it belongs to. */
#ifndef CAIRN_TOOLS_CAIRND_BULK_H
#define CAIRN_TOOLS_CAIRND_BULK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"

/* Less than this is sent without a turn. */
#define BULK_BYTES (256u * 1024u)
/* A turn, if others wait for theirs: long enough to see who takes nothing of it. */
#define BULK_TURN_NS (32 * CAIRN_NS_PER_MS)
/* Both sockets' buffers hold several MiB, up to 32 MiB where the client's grows; a full one says
 * that there is room when a third of it is read. A busy client reads first what its other
 * connections were sent. One that lost its turn for being busy is sent to beside them, which makes
 * it slower: with 3 ms here whole runs of redis-benchmark fell to half their rate for good. */
#define BULK_STALL_NS (30 * CAIRN_NS_PER_MS)
#define BULK_PAUSE_MIN_NS (100 * CAIRN_NS_PER_MS)
#define BULK_PAUSE_MAX_NS (60 * CAIRN_NS_PER_S)

/* One connection's. All zeroes at first. */
struct bulk_place {
    struct bulk_place *next;
    bool waiting;
    uint64_t pause_ns, paused_until_ns;
};

/* One thread's. All zeroes at first. */
struct bulk {
    struct bulk_place *holder;
    struct bulk_place *first, *last; /* waiting */
    uint64_t since_ns, moved_ns;     /* the holder's turn began; it last took something */
};

/* May it send now? False: it waits until bulk_next names it. */
bool bulk_enter(struct bulk *b, struct bulk_place *p, uint64_t now_ns);
/* It took something. */
void bulk_moved(struct bulk *b, struct bulk_place *p, uint64_t now_ns);
/* It has nothing more to send, or has ended. */
void bulk_leave(struct bulk *b, struct bulk_place *p);
/* Ends the turn of who has had it for too long. Whose it is instead; NULL: nobody waits, or not yet
 * long enough. */
struct bulk_place *bulk_next(struct bulk *b, uint64_t now_ns);

#endif
