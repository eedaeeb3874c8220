#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "tools/cairnd/connection.h"

#define EVENTS_MAX 256
#define ACCEPTS_A_TURN 64
#define ACCEPT_PAUSE_NS (100 * CAIRN_NS_PER_MS)

/* Threads that look for more work without sleeping; one core is left to everybody else. */
static _Atomic uint32_t spinning;

/* --- waking --- */

static void thread_wake(struct net_thread *t)
{
    uint64_t one = 1;
    /* It fails only if the counter is full, and then the thread is awake. */
    if (write(t->event, &one, sizeof one) < 0)
        return;
}

/* Under the thread's lock. True = the thread must be woken. */
static bool woken_push(struct net_thread *t, struct connection *k)
{
    bool first = !t->woken;
    if (k->is_woken)
        return false;
    k->is_woken = true;
    k->woken_next = t->woken;
    t->woken = k;
    return first;
}

void net_wake(struct client *c)
{
    struct net_thread *t = c->thread;
    pthread_mutex_lock(&t->lock);
    bool first = woken_push(t, connection_of(c));
    pthread_mutex_unlock(&t->lock);
    if (first)
        thread_wake(t);
}

void net_call_ended(struct connection *k)
{
    struct net_thread *t = k->c.thread;
    pthread_mutex_lock(&t->lock);
    bool first = woken_push(t, k);
    /* Under the lock, which whoever frees the connection takes first. Pairs with the acquire in
     * connection_turn. */
    atomic_store_explicit(&k->call_ended, true, memory_order_release);
    /* So does the wake-up: at a stop the thread's descriptor goes with its last connection. */
    if (first)
        thread_wake(t);
    pthread_mutex_unlock(&t->lock);
}

void net_make_ready(struct connection *k)
{
    struct net_thread *t = k->c.thread;
    if (k->is_ready)
        return;
    k->is_ready = true;
    k->ready_next = t->ready;
    t->ready = k;
}

void net_bury(struct connection *k)
{
    struct net_thread *t = k->c.thread;
    k->gone = true;
    k->grave_next = t->graves;
    t->graves = k;
    for (struct connection **at = &t->ready; k->is_ready && *at; at = &(*at)->ready_next)
        if (*at == k) {
            *at = k->ready_next;
            k->is_ready = false;
            break;
        }
    pthread_mutex_lock(&t->lock);
    for (struct connection **at = &t->woken; k->is_woken && *at; at = &(*at)->woken_next)
        if (*at == k) {
            *at = k->woken_next;
            k->is_woken = false;
            break;
        }
    pthread_mutex_unlock(&t->lock);
}

/* After a turn: no event of its batch names them any more. */
static void graves_empty(struct net_thread *t)
{
    while (t->graves) {
        struct connection *k = t->graves;
        t->graves = k->grave_next;
        free(k);
    }
}

static struct connection *woken_pop(struct net_thread *t)
{
    pthread_mutex_lock(&t->lock);
    struct connection *k = t->woken;
    if (k) {
        t->woken = k->woken_next;
        k->is_woken = false;
    }
    pthread_mutex_unlock(&t->lock);
    return k;
}

static bool arrival_pop(struct net_thread *t, struct arrival *ret)
{
    pthread_mutex_lock(&t->lock);
    bool any = t->arrival_count > 0;
    if (any)
        *ret = t->arrivals[--t->arrival_count];
    pthread_mutex_unlock(&t->lock);
    return any;
}

/* --- accepting: thread 0 --- */

static bool arrival_push(struct net_thread *t, const struct arrival *a)
{
    pthread_mutex_lock(&t->lock);
    bool room = t->arrival_count < ARRIVALS_MAX;
    if (room)
        t->arrivals[t->arrival_count++] = *a;
    pthread_mutex_unlock(&t->lock);
    if (room)
        thread_wake(t);
    return room;
}

static void refuse(struct node *n, int fd, const char *why)
{
    atomic_fetch_add_explicit(&n->stats.connections_refused, 1, memory_order_relaxed);
    /* A new socket takes a line; if not, its client sees the end all the same. */
    if (send(fd, why, strlen(why), MSG_DONTWAIT | MSG_NOSIGNAL) < 0)
        why = NULL;
    close(fd);
}

/* May this one come in? Counts it if so. */
static bool admit(struct node *n)
{
    pthread_mutex_lock(&n->clients_lock);
    bool ok = n->client_count < node_live(&n->o.clients_max);
    n->client_count += ok;
    pthread_mutex_unlock(&n->clients_lock);
    return ok;
}

static void dismiss(struct node *n)
{
    pthread_mutex_lock(&n->clients_lock);
    n->client_count--;
    pthread_mutex_unlock(&n->clients_lock);
}

static void welcome(struct net_thread *t, int fd, bool local)
{
    struct node *n = t->node;
    struct arrival a = {.fd = fd, .local = local};
    if (local) {
        uid_t uid;
        if (cairn_sock_peer(fd, &a.pid, &uid) || !node_options_uid(&n->o, uid)) {
            atomic_fetch_add_explicit(&n->stats.auth_failures, 1, memory_order_relaxed);
            refuse(n, fd, "-NOPERM this user may not connect; see the option allow-uids\r\n");
            return;
        }
        snprintf(a.address, sizeof a.address, "unix:%.58s", n->o.socket);
    } else {
        cairn_sock_peer_name(fd, a.address, sizeof a.address);
    }
    if (!admit(n)) {
        refuse(n, fd, "-ERR max number of clients reached\r\n");
        return;
    }
    struct net_thread *to = &n->threads[t->accept_next++ % n->thread_count];
    if (to != t && arrival_push(to, &a))
        return;
    connection_open(t, &a);
}

static void accept_pause(struct net_thread *t, bool pause)
{
    struct node *n = t->node;
    struct cairn_listener *listeners[] = {&n->tcp, &n->local};
    for (int i = 0; i < 2; i++) {
        struct epoll_event e = {.events = pause ? 0 : EPOLLIN, .data.ptr = listeners[i]};
        if (listeners[i]->fd >= 0)
            epoll_ctl(t->epoll, EPOLL_CTL_MOD, listeners[i]->fd, &e);
    }
    t->accept_after_ns = pause ? t->now_ns + ACCEPT_PAUSE_NS : 0;
}

static void accept_some(struct net_thread *t, const struct cairn_listener *l)
{
    for (int i = 0; i < ACCEPTS_A_TURN; i++) {
        int fd;
        cairn_status st = cairn_listener_accept(l, &fd);
        if (!st) {
            welcome(t, fd, l == &t->node->local);
            continue;
        }
        if (st == CAIRN_BUSY) {
            cairn_log(CAIRN_LOG_WARN, "no connection can be accepted: no descriptors or memory are "
                                      "left; raise the limit of open files or lower clients-max");
            accept_pause(t, true);
        }
        return;
    }
}

/* --- a thread --- */

static int sleep_ms(const struct net_thread *t, uint64_t now)
{
    const struct timer *first = timers_first(&t->timers);
    uint64_t at = first ? first->at_ns : UINT64_MAX;
    if (t->accept_after_ns && t->accept_after_ns < at)
        at = t->accept_after_ns;
    if (at == UINT64_MAX)
        return -1;
    if (at <= now)
        return 0;
    uint64_t ms = (at - now + CAIRN_NS_PER_MS - 1) / CAIRN_NS_PER_MS;
    return ms > 60000 ? 60000 : (int)ms;
}

static bool spin_begin(struct net_thread *t)
{
    static _Atomic long cores;
    long count = atomic_load_explicit(&cores, memory_order_relaxed);
    if (!count) {
        cpu_set_t set;
        count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
        atomic_store_explicit(&cores, count, memory_order_relaxed);
    }
    if (!node_live(&t->node->o.spin_ns))
        return false;
    if ((long)atomic_fetch_add_explicit(&spinning, 1, memory_order_relaxed) + 1 < count)
        return true;
    atomic_fetch_sub_explicit(&spinning, 1, memory_order_relaxed);
    return false;
}

/* A side that is busy is asked again sooner than a sleep and a wake-up take. */
static int spin(struct net_thread *t, struct epoll_event *events)
{
    uint64_t until = cairn_now_ns() + node_live(&t->node->o.spin_ns);
    int n;
    do {
        n = epoll_wait(t->epoll, events, EVENTS_MAX, 0);
        if (n == 0)
            sched_yield();
    } while (n == 0 && cairn_now_ns() < until);
    atomic_fetch_sub_explicit(&spinning, 1, memory_order_relaxed);
    return n;
}

static void pass_turn_on(struct net_thread *t)
{
    struct bulk_place *next = bulk_next(&t->bulk, t->now_ns);
    if (next)
        net_make_ready((struct connection *)((char *)next - offsetof(struct connection, bulk)));
}

static int wait_for_events(struct net_thread *t, struct epoll_event *events)
{
    pass_turn_on(t);
    int timeout = t->ready ? 0 : sleep_ms(t, t->now_ns);
    if (t->bulk.first && timeout)
        timeout = 1; /* a turn may have to be ended */
    int n = 0;
    if (timeout && t->worked && spin_begin(t))
        n = spin(t, events);
    t->worked = false;
    if (n == 0)
        n = epoll_wait(t->epoll, events, EVENTS_MAX, timeout);
    t->now_ns = cairn_now_ns();
    return n;
}

static void take_messages(struct net_thread *t)
{
    uint64_t count;
    if (read(t->event, &count, sizeof count) < 0)
        return;
    struct arrival a;
    while (arrival_pop(t, &a))
        connection_open(t, &a);
    for (struct connection *k; (k = woken_pop(t));)
        connection_turn(k, 0);
}

static void take_event(struct net_thread *t, const struct epoll_event *e)
{
    struct node *n = t->node;
    if (e->data.ptr == t) {
        take_messages(t);
    } else if (e->data.ptr == &n->tcp || e->data.ptr == &n->local) {
        if (t->accepting)
            accept_some(t, e->data.ptr);
    } else {
        struct connection *k = e->data.ptr;
        t->worked = true;
        if (!k->gone)
            connection_turn(k, e->events);
    }
}

static void take_ready(struct net_thread *t)
{
    struct connection *list = t->ready;
    t->ready = NULL;
    while (list) {
        struct connection *k = list;
        list = k->ready_next;
        k->is_ready = false;
        if (!k->gone)
            connection_turn(k, 0);
    }
}

static void take_timers(struct net_thread *t)
{
    for (struct timer *first; (first = timers_first(&t->timers)) && first->at_ns <= t->now_ns;) {
        timer_cancel(&t->timers, first);
        connection_expire((struct connection *)((char *)first -
                                                offsetof(struct connection, timer)));
    }
    if (t->accept_after_ns && t->accept_after_ns <= t->now_ns)
        accept_pause(t, false);
}

static void accept_end(struct net_thread *t)
{
    struct node *n = t->node;
    if (!t->accepting)
        return;
    t->accepting = false;
    t->accept_after_ns = 0;
    struct cairn_listener *listeners[] = {&n->tcp, &n->local};
    for (int i = 0; i < 2; i++)
        if (listeners[i]->fd >= 0)
            epoll_ctl(t->epoll, EPOLL_CTL_DEL, listeners[i]->fd, NULL);
}

/* Ends what is not in flight. True = no connection is left. */
static bool drain(struct net_thread *t, bool at_once)
{
    struct arrival a;
    while (arrival_pop(t, &a)) {
        close(a.fd);
        dismiss(t->node);
    }
    for (struct connection *k = t->all, *next; k; k = next) {
        next = k->next;
        connection_drain(k, at_once);
    }
    return !t->all;
}

static void *thread_main(void *arg)
{
    struct net_thread *t = arg;
    struct node *n = t->node;
    struct epoll_event events[EVENTS_MAX];
    t->now_ns = cairn_now_ns();
    while (!atomic_load_explicit(&n->stopping, memory_order_acquire)) {
        int count = wait_for_events(t, events);
        for (int i = 0; i < count; i++)
            take_event(t, &events[i]);
        take_ready(t);
        take_timers(t);
        graves_empty(t);
        atomic_fetch_add_explicit(&t->turns, 1, memory_order_relaxed);
    }
    accept_end(t);
    uint64_t until = atomic_load_explicit(&n->stop_deadline_ns, memory_order_acquire);
    while (!drain(t, t->now_ns >= until)) {
        /* A worker's end is waited for in any case: its call borrows the connection. */
        int count = epoll_wait(t->epoll, events, EVENTS_MAX, 10);
        t->now_ns = cairn_now_ns();
        for (int i = 0; i < count; i++)
            take_event(t, &events[i]);
        take_timers(t);
        graves_empty(t);
    }
    graves_empty(t);
    return NULL;
}

/* --- start and stop --- */

/* A folder for the socket under /run belongs to a service that has just started. */
static void folder_make(const char *path)
{
    char folder[sizeof((struct node_options *)NULL)->socket];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash && slash != folder) {
        *slash = '\0';
        /* Listening says what is wrong if this did not help. */
        if (mkdir(folder, 0755))
            return;
    }
}

cairn_status net_listen(struct node *n, char *err, size_t cap)
{
    struct cairn_addr addr;
    cairn_status st = CAIRN_OK;
    if (n->o.socket[0]) {
        folder_make(n->o.socket);
        st = cairn_addr_unix(n->o.socket, &addr, err, cap);
        if (!st)
            st = cairn_listener_open(&n->local, &addr, err, cap);
    }
    if (!st && n->o.port) {
        st = cairn_addr_tcp(n->o.bind, (uint16_t)n->o.port, &addr, err, cap);
        if (!st)
            st = cairn_listener_open(&n->tcp, &addr, err, cap);
    }
    return st;
}

void net_unlisten(struct node *n)
{
    if (n->local.fd >= 0)
        cairn_listener_close(&n->local);
    if (n->tcp.fd >= 0)
        cairn_listener_close(&n->tcp);
}

static cairn_status thread_open(struct node *n, struct net_thread *t, uint32_t index)
{
    t->node = n;
    t->index = index;
    pthread_mutex_init(&t->lock, NULL);
    t->epoll = epoll_create1(EPOLL_CLOEXEC);
    t->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = t};
    if (t->epoll < 0 || t->event < 0 || epoll_ctl(t->epoll, EPOLL_CTL_ADD, t->event, &e))
        return cairn_status_from_errno(errno);
    t->accepting = index == 0;
    struct cairn_listener *listeners[] = {&n->tcp, &n->local};
    for (int i = 0; i < 2 && t->accepting; i++) {
        struct epoll_event l = {.events = EPOLLIN, .data.ptr = listeners[i]};
        int fd = listeners[i]->fd;
        if (fd >= 0 && epoll_ctl(t->epoll, EPOLL_CTL_ADD, fd, &l))
            return cairn_status_from_errno(errno);
    }
    return CAIRN_OK;
}

static uint32_t thread_count(const struct node *n)
{
    if (n->o.threads)
        return (uint32_t)n->o.threads;
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores < 4 ? 1 : cores >= 8 ? 4 : (uint32_t)cores / 2;
}

cairn_status net_start(struct node *n, char *err, size_t cap)
{
    uint32_t count = thread_count(n);
    n->threads = calloc(count, sizeof *n->threads);
    cairn_status st = n->threads ? CAIRN_OK : CAIRN_NOMEM;
    for (uint32_t i = 0; !st && i < count; i++) {
        n->thread_count = i + 1;
        st = thread_open(n, &n->threads[i], i);
    }
    for (uint32_t i = 0; !st && i < count; i++) {
        char name[16];
        snprintf(name, sizeof name, "net-%u", i);
        if (pthread_create(&n->threads[i].thread, NULL, thread_main, &n->threads[i])) {
            st = CAIRN_NOMEM;
            break;
        }
        n->threads[i].running = true;
        pthread_setname_np(n->threads[i].thread, name);
    }
    if (st)
        snprintf(err, cap, "the %u network threads could not be started: %s; lower --threads or "
                           "raise the limits of processes and open files", count,
                 cairn_status_name(st));
    return st;
}

void net_stop(struct node *n, uint64_t deadline_ns)
{
    atomic_store_explicit(&n->stop_deadline_ns, deadline_ns, memory_order_release);
    atomic_store_explicit(&n->stopping, true, memory_order_release);
    for (uint32_t i = 0; i < n->thread_count; i++)
        if (n->threads[i].running)
            thread_wake(&n->threads[i]);
    for (uint32_t i = 0; i < n->thread_count; i++) {
        struct net_thread *t = &n->threads[i];
        if (t->running)
            pthread_join(t->thread, NULL);
        timers_close(&t->timers);
        if (t->event > 0)
            close(t->event);
        if (t->epoll > 0)
            close(t->epoll);
        pthread_mutex_destroy(&t->lock);
    }
    free(n->threads);
    n->threads = NULL;
}

bool net_alive(struct node *n, uint64_t *seen)
{
    bool alive = true;
    for (uint32_t i = 0; i < n->thread_count; i++) {
        uint64_t turns = atomic_load_explicit(&n->threads[i].turns, memory_order_relaxed);
        alive &= turns != seen[i];
        seen[i] = turns;
        thread_wake(&n->threads[i]);
    }
    return alive;
}
