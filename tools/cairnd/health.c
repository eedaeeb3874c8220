/* Health, as /healthz answers it: red as soon as the node takes requests and stores nothing. */
#include <inttypes.h>
#include <stdio.h>

#include "base/clock.h"
#include "storage/figures.h"
#include "tools/cairnd/node.h"

#define REFUSED_IN_A_ROW 16u
#define REFUSED_RECENT_NS (60 * CAIRN_NS_PER_S)

/* What earlier looks saw: is every put refused? */
static struct {
    pthread_mutex_t lock;
    uint64_t stored, refused_then, refused_last, refused_ns;
} watch = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* Of the causes only those that are the store's doing: bytes that differ from their checks, a key
 * or value of an impossible size, a key of another namespace are their sender's. */
static uint64_t refusals(const struct node *n, const struct cairn_vault_figures *f)
{
    uint64_t sum = atomic_load_explicit(&n->stats.no_room, memory_order_relaxed);
    for (int i = 1; i < CAIRN_CAUSE_COUNT; i++)
        if (i != CAIRN_CAUSE_NO_ROOM && i != CAIRN_CAUSE_BAD_KEY && i != CAIRN_CAUSE_TOO_BIG &&
            i != CAIRN_CAUSE_CHECKSUM && i != CAIRN_CAUSE_SPACE)
            sum += f->refused[i];
    return sum;
}

/* How many puts were refused since one was stored, 0 unless they go on being refused. */
static uint64_t refused_in_a_row(const struct node *n, const struct cairn_vault_figures *f)
{
    uint64_t stored = f->put_stored + f->put_existing + f->put_replaced;
    uint64_t refused = refusals(n, f);
    uint64_t now = cairn_now_ns();
    pthread_mutex_lock(&watch.lock);
    if (stored != watch.stored) {
        watch.stored = stored;
        watch.refused_then = refused;
    }
    if (refused != watch.refused_last) {
        watch.refused_last = refused;
        watch.refused_ns = now;
    }
    uint64_t row = now - watch.refused_ns < REFUSED_RECENT_NS ? refused - watch.refused_then : 0;
    pthread_mutex_unlock(&watch.lock);
    return row;
}

bool report_health(struct node *n, char *why, size_t cap)
{
    struct cairn_vault_figures f;
    cairn_vault_figures(n->vault, &f);
    uint64_t refused = refused_in_a_row(n, &f);
    if (atomic_load(&n->stopping) || f.closing)
        snprintf(why, cap, "the node is stopping: send nothing more to it");
    else if (f.disk_off)
        snprintf(why, cap, "the disk tier is off (%s): see the log, repair the disk%s",
                 f.disk_off_why[0] ? f.disk_off_why : "repeated errors",
                 f.disk.stays_off ? ", and start the node again" : "; it is tried again by itself");
    else if (refused >= REFUSED_IN_A_ROW)
        snprintf(why, cap, "every put is refused, %" PRIu64 " since one was stored: "
                 "cairn_put_refused_total in /metrics names the cause", refused);
    else
        return true;
    return false;
}
