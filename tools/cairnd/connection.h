/* Inside of net.c and client.c: a network thread and a connection of it.
 *
 * A connection belongs to its thread. Others may only set what is atomic in it and wake the thread.
 * While one of its commands runs on a worker, the worker owns the call, its output and the
 * arguments; the thread goes on sending what was queued before and reads nothing. */
#ifndef CAIRN_TOOLS_CAIRND_CONNECTION_H
#define CAIRN_TOOLS_CAIRND_CONNECTION_H

#include "tools/cairnd/bulk.h"
#include "tools/cairnd/node.h"
#include "tools/cairnd/timer.h"

/* A descriptor on its way from the accepting thread to its own. */
struct arrival {
    int fd;
    bool local;
    int pid;
    char address[64];
};

#define ARRIVALS_MAX 256u

struct net_thread {
    struct node *node;
    uint32_t index;
    pthread_t thread;
    bool running;
    int epoll, event;            /* event: an eventfd, written by who wakes it                  */
    struct timers timers;
    struct connection *all;      /* its connections, dead ones too                              */
    uint32_t count;
    struct connection *graves;   /* ended in this turn, whose events may still name them        */
    struct connection *ready;    /* have more to do although no event will say so               */
    struct bulk bulk;            /* whose long reply is sent                                    */
    uint64_t now_ns;             /* of this turn                                                */
    uint64_t accept_after_ns;    /* thread 0: no descriptors were left, try again then          */
    uint32_t accept_next;        /* thread 0: who gets the next connection                      */
    bool accepting;
    bool worked;                 /* something came in this turn                                 */
    _Atomic uint64_t turns;      /* for the watchdog                                            */

    pthread_mutex_t lock;        /* of what follows */
    struct arrival arrivals[ARRIVALS_MAX];
    uint32_t arrival_count;
    struct connection *woken;
};

/* Memory of long arguments that are in no room. */
struct block {
    struct block *next;
    size_t len;
    _Alignas(64) char data[];
};

struct connection {
    struct client c;             /* first: a client is its connection                           */
    struct connection *next, *prev;             /* of its thread                                */
    struct connection *ready_next, *woken_next, *grave_next;
    bool is_ready, is_woken;     /* is_woken: under the thread's lock                           */
    bool gone;                   /* everything is given back but this struct                    */
    struct timer timer;
    struct bulk_place bulk;
    uint32_t events;             /* that epoll watches; 0 = it does not know the descriptor     */
    bool eof;                    /* nothing more will come                                      */
    bool dead;                   /* closed, and a worker still has its call                     */
    bool broken;                 /* nothing can be sent either                                  */
    bool reset;                  /* the client closed it with bytes unread                      */

    struct block *blocks;
    bool refused;                /* an argument of this request got no memory                   */
    uint64_t receiving;          /* of node->receiving                                          */
    bool room_wait;              /* the parser waits for memory of an argument                  */
    uint64_t room_since_ns;

    bool paused;                 /* was not read because too much output waited                 */
    uint64_t request_since_ns;   /* first byte of a request that is not whole yet, else 0       */
    uint64_t request_len;        /* bytes its long arguments announced                          */
    uint64_t output_since_ns;    /* nothing was taken of what is queued since then, else 0      */
    bool greeted;                /* one whole request came                                      */

    bool on_worker;
    _Atomic bool call_ended;
    uint64_t call_since_ns;
    struct call call;
    struct cairn_out call_out;
    uint32_t errors_before;      /* in its output, when the call began                          */

    uint64_t clock_ns;           /* end of the command before in this turn, else 0              */
    uint64_t own;                /* of c.memory: input and output, as last counted              */
    _Atomic uint64_t queued_seen;/* for CLIENT LIST                                             */
    _Atomic uint32_t proto_seen;
};

static inline struct connection *connection_of(struct client *c)
{
    return (struct connection *)c;
}

/* client.c; all on the connection's thread */

/* Takes over the descriptor; closes it if there is no memory. */
void connection_open(struct net_thread *t, const struct arrival *a);
/* Reads, executes and sends what can be without waiting. It may be gone afterwards. */
void connection_turn(struct connection *k, uint32_t events);
/* Its timer has come. It may be gone afterwards. */
void connection_expire(struct connection *k);
/* Ends what can be ended: true = nothing is in flight any more, and it is gone. */
bool connection_drain(struct connection *k, bool at_once);

/* net.c */
void net_make_ready(struct connection *k);
/* A worker's last word on a connection: from now on it may be gone. */
void net_call_ended(struct connection *k);
/* Takes a connection that has ended out of its thread's lists; frees it after this turn. */
void net_bury(struct connection *k);

#endif
