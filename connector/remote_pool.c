/* The connections of a store, and when to leave a node alone.
 *
 * A call takes an idle connection, makes one, or waits for one. A connection on which a call
 * failed is dropped; its socket stays open, unused, while views of leases taken over it are in
 * use, and before it is closed the node is told that all of them are over: an end alone does not
 * tell it that nobody reads there any more. */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "connector/remote.h"
#include "transport/sock.h"

/* A call that waited for less says nothing of the node. */
#define FAILURE_MIN_NS (20 * CAIRN_NS_PER_MS)
/* While the breaker is open one call in a pause tries the node: it waits so long for its hello. */
#define TRIAL_NS (100 * CAIRN_NS_PER_MS)
/* A store is opened once: there is time. */
#define OPEN_NS (5 * CAIRN_NS_PER_S)
/* So long no further connection is tried of a node that had no room for one more. */
#define FULL_NS CAIRN_NS_PER_S
/* How long a store that is closed waits for the node to hear of it. */
#define LEAVE_NS (100 * CAIRN_NS_PER_MS)

uint64_t remote_patience(const struct remote *r)
{
    return cairn_deadline_ns(r->o.timeout_ns);
}

enum cairn_cause remote_cause(cairn_status failed)
{
    switch (failed) {
    case CAIRN_OK: return CAIRN_CAUSE_ABSENT;
    case CAIRN_TIMEOUT: return CAIRN_CAUSE_DEADLINE;
    case CAIRN_BUSY: return CAIRN_CAUSE_QUEUE_FULL;
    case CAIRN_NOMEM: return CAIRN_CAUSE_NO_ROOM;
    default: return CAIRN_CAUSE_NODE;
    }
}

cairn_status remote_status(cairn_status failed)
{
    switch (failed) {
    case CAIRN_NOTFOUND: return CAIRN_BUSY;
    case CAIRN_CORRUPT: return CAIRN_IO;
    default: return failed;
    }
}

static void count(_Atomic uint64_t *counter)
{
    atomic_fetch_add_explicit(counter, 1, memory_order_relaxed);
}

void remote_unknown(struct remote *r, uint64_t keys)
{
    atomic_fetch_add_explicit(&r->counts.unknown, keys, memory_order_relaxed);
}

/* --- pins --- */

/* Has the node closed it, or at least nothing to say now? What it says is thrown away. */
static bool left(int fd)
{
    char nothing[4096];
    ssize_t n;
    do {
        n = recv(fd, nothing, sizeof nothing, MSG_DONTWAIT);
    } while (n > 0);
    return n == 0 || errno != EAGAIN;
}

/* Closes the sockets that the node has closed on its side, or all. Lock held. */
static void reap(struct remote *r, bool all)
{
    uint32_t kept = 0;
    for (uint32_t i = 0; i < r->leaving_count; i++) {
        if (left(r->leaving[i]) || all)
            conn_close_socket(r->leaving[i]);
        else
            r->leaving[kept++] = r->leaving[i];
    }
    r->leaving_count = kept;
}

/* Nobody uses the dropped connection any more. Its socket is closed after the node's side is: a
 * node that cannot send an earlier answer would not read the release behind it. */
static void farewell(struct remote *r, struct remote_conn *c)
{
    bool says = c->arena && !c->lost && !c->send_failed;
    if (says) {
        conn_command(c, "CAIRN.RELEASE", 1);
        conn_bytes(c, "ALL", 3);
        says = conn_flush_now(c) && shutdown(c->fd, SHUT_WR) == 0;
    }
    pthread_mutex_lock(&r->lock);
    reap(r, false);
    says = says && r->leaving_count < REMOTE_LEAVING_MAX;
    if (says)
        r->leaving[r->leaving_count++] = c->fd;
    pthread_mutex_unlock(&r->lock);
    conn_close(c, !says);
}

void remote_pin_bind(struct remote_conn *c, struct remote_pin *pin, struct remote *r)
{
    pin->conn = c;
    memcpy(pin->run_id, c->hello.run_id, sizeof pin->run_id);
    pthread_mutex_lock(&r->lock);
    c->leases++;
    pthread_mutex_unlock(&r->lock);
}

/* Writes the release of every pin of the list, and frees it. */
static void write_releases(struct remote_conn *c, struct remote_pin *list)
{
    while (list) {
        struct remote_pin *pin = list;
        list = pin->next;
        if (strcmp(pin->run_id, c->hello.run_id) == 0)
            conn_release(c, pin->id);
        free(pin);
    }
}

static void drop(struct remote *r, struct remote_conn *c, bool lost);

/* The call is over: what was released meanwhile is told to the node, then others may have it. */
static void give_back(struct remote *r, struct remote_conn *c)
{
    pthread_mutex_lock(&r->lock);
    while (c->released || (r->orphans && c->arena)) {
        struct remote_pin *own = c->released, *orphans = c->arena ? r->orphans : NULL;
        c->released = NULL;
        if (orphans)
            r->orphans = NULL;
        pthread_mutex_unlock(&r->lock);
        write_releases(c, own);
        write_releases(c, orphans);
        if (!conn_flush_now(c)) {
            drop(r, c, false);
            return;
        }
        pthread_mutex_lock(&r->lock);
    }
    c->busy = false;
    c->next = r->idle;
    r->idle = c;
    pthread_cond_signal(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

/* Lock held. */
static bool idle_take_out(struct remote *r, struct remote_conn *c)
{
    for (struct remote_conn **at = &r->idle; *at; at = &(*at)->next) {
        if (*at != c)
            continue;
        *at = c->next;
        c->busy = true;
        return true;
    }
    return false;
}

void remote_pin_release(struct remote *r, struct remote_pin *pin)
{
    pthread_mutex_lock(&r->lock);
    struct remote_conn *c = pin->conn;
    bool last = --c->leases == 0, gone = c->dropped;
    struct remote_pin **list = gone ? &r->orphans : &c->released;
    bool told = gone && (!c->arena || (last && !c->lost));
    if (!told) {
        pin->next = *list;
        *list = pin;
    }
    bool now = !gone && idle_take_out(r, c);
    pthread_mutex_unlock(&r->lock);
    if (told)
        free(pin);
    if (now)
        give_back(r, c);
    if (gone && last)
        farewell(r, c);
}

/* What was released over a connection and may not have been heard is released over another one: a
 * lease that has ended already is no error. Lock held. */
static void release_again(struct remote *r, struct remote_conn *c)
{
    for (uint32_t i = 0; i < CONN_UNHEARD && c->arena; i++) {
        struct remote_pin *pin = c->unheard[i] ? cairn_calloc(1, sizeof *pin) : NULL;
        if (!pin)
            continue;
        pin->id = c->unheard[i];
        memcpy(pin->run_id, c->hello.run_id, sizeof pin->run_id);
        pin->next = r->orphans;
        r->orphans = pin;
    }
}

/* Takes the connection of the caller's call out of use. */
static void drop(struct remote *r, struct remote_conn *c, bool lost)
{
    pthread_mutex_lock(&r->lock);
    c->dropped = true;
    c->lost = lost;
    conn_forget(c);
    while (c->released) {
        struct remote_pin *pin = c->released;
        c->released = pin->next;
        pin->next = r->orphans;
        r->orphans = pin;
    }
    if (lost || c->send_failed)
        release_again(r, c);
    bool unused = c->leases == 0;
    r->open--;
    pthread_cond_signal(&r->changed);
    pthread_mutex_unlock(&r->lock);
    if (unused)
        farewell(r, c);
}

/* --- connections --- */

/* Drops the idle connections that the node has closed, or all of them. */
static void drop_idle(struct remote *r, bool all)
{
    for (;;) {
        pthread_mutex_lock(&r->lock);
        struct remote_conn *c = r->idle;
        while (c && !all && cairn_sock_alive(c->fd))
            c = c->next;
        if (c)
            idle_take_out(r, c);
        pthread_mutex_unlock(&r->lock);
        if (!c)
            return;
        drop(r, c, !all);
    }
}

/* What the client knows already is told first; the answers are read past. */
static void introduce(struct remote *r, struct remote_conn *c)
{
    pthread_mutex_lock(&r->identity_lock);
    for (const struct remote_identity *id = r->identities; id; id = id->next) {
        conn_command(c, "CAIRN.IDENTITY", 1);
        conn_bytes(c, id->canon, id->len);
    }
    pthread_mutex_unlock(&r->identity_lock);
}

/* Somebody is there and does not want this client, or is no node. */
static bool is_refusal(cairn_status st)
{
    return st && st != CAIRN_NOTFOUND && st != CAIRN_TIMEOUT && st != CAIRN_IO &&
           st != CAIRN_NOMEM;
}

/* What is silent or breaks off says nothing new: a node that refuses may do so too. */
static void note_dial(struct remote *r, cairn_status st, const char *why)
{
    bool refused = is_refusal(st);
    pthread_mutex_lock(&r->lock);
    bool news = refused && strcmp(r->refusal, why) != 0;
    if (refused)
        snprintf(r->refusal, sizeof r->refusal, "%s", why);
    else if (st == CAIRN_OK || st == CAIRN_NOTFOUND)
        r->refusal[0] = '\0';
    pthread_mutex_unlock(&r->lock);
    if (st)
        count(&r->counts.dials_failed);
    if (refused)
        count(&r->counts.dials_refused);
    if (st)
        cairn_log(news ? CAIRN_LOG_WARN : CAIRN_LOG_INFO, "%s", why);
}

static cairn_status dial(struct remote *r, uint64_t deadline_ns, struct remote_conn **ret)
{
    char err[256] = "";
    uint64_t patience = remote_patience(r);
    count(&r->counts.dials);
    cairn_status st = conn_open(&r->o, &r->arenas, deadline_ns < patience ? deadline_ns : patience,
                                ret, err, sizeof err);
    note_dial(r, st, err);
    if (st)
        return st;
    (*ret)->busy = true;
    introduce(r, *ret);
    return CAIRN_OK;
}

static bool breaker_closed(const struct remote *r)
{
    return atomic_load_explicit(&r->breaker.closed, memory_order_relaxed);
}

/* A node that has no room for one more connection serves those that are there. */
size_t remote_refusal(struct cairn_backend *b, char *out, size_t cap)
{
    struct remote *r = (struct remote *)b;
    if (breaker_closed(r))
        return 0;
    pthread_mutex_lock(&r->lock);
    int n = snprintf(out, cap, "%s", r->refusal);
    pthread_mutex_unlock(&r->lock);
    return n > 0 ? (size_t)n : 0;
}

/* May one more connection be made? Lock held. */
static bool may_dial(const struct remote *r)
{
    return r->open == 0 || (r->open < r->o.connections && cairn_now_ns() >= r->full_until_ns);
}

/* Waits for what lets a call go on, or until a further connection may be tried again. False: the
 * deadline passed. Lock held. */
static bool wait_change(struct remote *r, uint64_t deadline_ns)
{
    bool full = r->open < r->o.connections && r->full_until_ns < deadline_ns;
    struct timespec until = cairn_timespec(full ? r->full_until_ns : deadline_ns);
    return !pthread_cond_timedwait(&r->changed, &r->lock, &until) || full;
}

/* An idle connection, or leave to make one: then *ret is NULL. */
static cairn_status take(struct remote *r, uint64_t deadline_ns, bool trial,
                         struct remote_conn **ret)
{
    cairn_status st = CAIRN_OK;
    pthread_mutex_lock(&r->lock);
    while (!r->idle && !may_dial(r) && !st) {
        if (!wait_change(r, deadline_ns))
            st = CAIRN_TIMEOUT;
        else if (!trial && !breaker_closed(r))
            st = CAIRN_NOTFOUND;
    }
    *ret = NULL;
    if (!st && r->idle) {
        *ret = r->idle;
        r->idle = r->idle->next;
        (*ret)->busy = true;
    } else if (!st) {
        r->open++;
    }
    pthread_mutex_unlock(&r->lock);
    return st;
}

/* Is there another connection that the call can wait for, since the node (or this process) has no
 * room for one more? Then none is tried for a while. */
static bool dial_failed(struct remote *r, cairn_status st)
{
    pthread_mutex_lock(&r->lock);
    r->open--;
    bool others = r->open && (is_refusal(st) || st == CAIRN_NOMEM);
    if (others)
        r->full_until_ns = cairn_deadline_ns(FULL_NS);
    pthread_cond_signal(&r->changed);
    pthread_mutex_unlock(&r->lock);
    return others;
}

/* How an attempt went beside its status. */
struct manner {
    bool old;    /* on a connection that was made for an earlier call      */
    bool silent; /* the node gave no sign in all the time that it was given */
};

static cairn_status obtained(struct remote *r, bool trial, uint64_t since_ns,
                             const struct remote_conn *c)
{
    if (trial)
        cairn_breaker_went(&r->breaker, true, since_ns);
    /* Who sees by it that the node has come finds the breaker closed. */
    atomic_store_explicit(&r->value_max, c->hello.value_max, memory_order_release);
    return CAIRN_OK;
}

/* A connection for the call. */
static cairn_status obtain(struct remote *r, uint64_t deadline_ns, bool trial,
                           struct remote_conn **ret, struct manner *m)
{
    uint64_t now = cairn_now_ns();
    *m = (struct manner){0};
    if (trial) {
        /* What is idle dates from before the node fell silent. */
        drop_idle(r, true);
        if (deadline_ns > now + TRIAL_NS)
            deadline_ns = now + TRIAL_NS;
    }
    for (;;) {
        cairn_status st = take(r, deadline_ns, trial, ret);
        if (st || *ret) {
            m->old = true;
            return st;
        }
        now = cairn_now_ns();
        st = dial(r, deadline_ns, ret);
        if (st == CAIRN_OK)
            return obtained(r, trial, now, *ret);
        m->silent = st == CAIRN_TIMEOUT && cairn_now_ns() - now >= r->o.timeout_ns;
        if (!dial_failed(r, st))
            return st == CAIRN_TIMEOUT || st == CAIRN_NOMEM ? st : CAIRN_NOTFOUND;
    }
}

static cairn_status attempt(struct remote *r, remote_fn fn, void *arg, uint64_t deadline_ns,
                            bool trial, struct manner *m)
{
    struct remote_conn *c;
    cairn_status st = obtain(r, deadline_ns, trial, &c, m);
    if (st)
        return st;
    c->deadline_ns = deadline_ns;
    c->progress_ns = cairn_now_ns();
    st = fn(r, c, arg);
    m->silent = st == CAIRN_TIMEOUT && cairn_now_ns() - c->progress_ns >= r->o.timeout_ns;
    if (st == CAIRN_OK || st == CAIRN_BUSY)
        give_back(r, c);
    else
        drop(r, c, st == CAIRN_IO);
    return st;
}

/* Those that wait for a connection of a node that is gone go on without one. */
static void failed(struct remote *r, bool silent, uint64_t now_ns)
{
    if (silent)
        cairn_breaker_silent(&r->breaker, now_ns);
    else
        cairn_breaker_went(&r->breaker, false, now_ns);
    if (breaker_closed(r))
        return;
    pthread_mutex_lock(&r->lock);
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
}

/* Tells the breaker how it went, if it says anything of the node. */
static void judge(struct remote *r, cairn_status st, bool silent, uint64_t begin_ns, bool trial)
{
    uint64_t now = cairn_now_ns();
    if (st == CAIRN_OK || st == CAIRN_BUSY)
        cairn_breaker_went(&r->breaker, true, now);
    else if (st != CAIRN_NOMEM && (st != CAIRN_TIMEOUT || trial || now - begin_ns > FAILURE_MIN_NS))
        failed(r, silent, now);
    if (st == CAIRN_TIMEOUT)
        count(&r->counts.timeouts);
    else if (st == CAIRN_IO || st == CAIRN_CORRUPT)
        count(&r->counts.lost);
    else if (st == CAIRN_BUSY)
        count(&r->counts.busy);
}

cairn_status remote_run(struct remote *r, remote_fn fn, void *arg, uint64_t deadline_ns)
{
    uint64_t begin = cairn_now_ns();
    struct manner m;
    bool trial = !breaker_closed(r);
    count(&r->counts.calls);
    if (!cairn_breaker_may(&r->breaker, begin)) {
        count(&r->counts.refused);
        return CAIRN_NOTFOUND;
    }
    cairn_status st = attempt(r, fn, arg, deadline_ns, trial, &m);
    /* A connection that a restarted node left behind says nothing of the node that is there now. */
    while (st == CAIRN_IO && m.old) {
        drop_idle(r, false);
        st = attempt(r, fn, arg, deadline_ns, false, &m);
    }
    judge(r, st, m.silent, begin, trial);
    return st;
}

/* Nothing there, or nothing that answers: a node may come yet, unlike where one refuses. */
static bool may_come(const struct remote *r, cairn_status st)
{
    return r->o.lazy && !is_refusal(st) && st != CAIRN_NOMEM;
}

cairn_status remote_pool_open(struct remote *r, char *err, size_t err_cap)
{
    struct remote_conn *c;
    count(&r->counts.dials);
    cairn_status st = conn_open(&r->o, &r->arenas, cairn_deadline_ns(OPEN_NS), &c, err, err_cap);
    if (st)
        count(&r->counts.dials_failed);
    if (st && may_come(r, st)) {
        cairn_breaker_silent(&r->breaker, cairn_now_ns());
        return CAIRN_OK;
    }
    if (st)
        return st;
    atomic_store_explicit(&r->value_max, c->hello.value_max, memory_order_relaxed);
    r->open = 1;
    give_back(r, c);
    return CAIRN_OK;
}

void remote_pool_close(struct remote *r)
{
    while (r->idle) {
        struct remote_conn *c = r->idle;
        r->idle = c->next;
        farewell(r, c);
    }
    while (r->orphans) {
        struct remote_pin *pin = r->orphans;
        r->orphans = pin->next;
        free(pin);
    }
    uint64_t deadline = cairn_deadline_ns(LEAVE_NS);
    for (uint32_t i = 0; i < r->leaving_count; i++)
        while (!left(r->leaving[i]) && !cairn_sock_wait(r->leaving[i], POLLIN, deadline, NULL)) {
        }
    reap(r, true);
}
