#include "tools/cairnd/kv_share.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "tools/cairnd/kv_pins.h"
#include "tools/cairnd/kv_prefetch.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif
#define TICK_MS 100      /* how late a lease may end */
#define WAKE_ID 0u       /* processes count from 1 */

static void wake(struct kv *kv)
{
    ssize_t done = write(kv->wake, &(uint64_t){1}, sizeof(uint64_t));
    (void)done; /* full = it will wake anyway */
}

void kv_watch_time(struct kv *kv)
{
    if (!atomic_exchange_explicit(&kv->timed, true, memory_order_acq_rel))
        wake(kv);
}

/* --- processes: all under kv->lock --- */

static struct kv_process *process_find(struct kv *kv, uint64_t id)
{
    struct kv_process *p = kv->processes;
    while (p && p->id != id)
        p = p->next;
    return p;
}

static void process_free(struct kv *kv, struct kv_process *p)
{
    struct kv_process **at = &kv->processes;
    while (*at != p)
        at = &(*at)->next;
    *at = p->next;
    kv->process_count--;
    epoll_ctl(kv->epoll, EPOLL_CTL_DEL, p->pidfd, NULL);
    close(p->pidfd);
    uint32_t lost = kv_leases_close(&p->leases);
    atomic_fetch_add(&kv->node->stats.leases_lost, lost);
    free(p);
}

/* Its memory is gone, so nobody reads there any more. */
static void process_ended(struct kv *kv, struct kv_process *p)
{
    p->ended = true;
    epoll_ctl(kv->epoll, EPOLL_CTL_DEL, p->pidfd, NULL);
    atomic_fetch_add(&kv->node->stats.leases_lost, kv_leases_end(&p->leases));
    if (p->connections == 0)
        process_free(kv, p);
}

static bool pidfd_ended(int pidfd)
{
    struct pollfd at = {.fd = pidfd, .events = POLLIN};
    return poll(&at, 1, 0) != 0;
}

/* The one who connected; SO_PEERPIDFD (Linux 6.5) cannot mean a later process of the same
 * number. */
static int peer_pidfd(const struct client *c)
{
    int pidfd = -1;
    socklen_t len = sizeof pidfd;
    if (getsockopt(c->fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &len) == 0)
        return pidfd;
    return errno == ENOPROTOOPT ? (int)syscall(SYS_pidfd_open, c->pid, 0) : -1;
}

static cairn_status process_new(struct kv *kv, int pid, int pidfd, struct kv_process **ret)
{
    if (kv->process_count >= KV_PROCESSES_MAX)
        return CAIRN_BUSY;
    struct kv_process *p = cairn_calloc(1, sizeof *p);
    if (!p)
        return CAIRN_NOMEM;
    p->kv = kv;
    p->id = ++kv->process_last_id;
    p->pid = pid;
    p->pidfd = pidfd;
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = p->id};
    if (epoll_ctl(kv->epoll, EPOLL_CTL_ADD, pidfd, &e)) {
        free(p);
        return CAIRN_NOMEM;
    }
    kv_leases_open(&p->leases, kv->node->vault);
    p->next = kv->processes;
    kv->processes = p;
    kv->process_count++;
    *ret = p;
    return CAIRN_OK;
}

/* Another connection of the same process shares what is known of it: while its pidfd does not
 * say that it ended, nobody else has its number. */
static cairn_status process_join(struct kv *kv, struct client *c, struct kv_process **ret)
{
    /* All processes that this one's namespace does not show have the number 0. */
    int pidfd = c->pid > 0 ? peer_pidfd(c) : -1;
    if (pidfd < 0 || pidfd_ended(pidfd)) {
        if (pidfd >= 0)
            close(pidfd);
        return CAIRN_NOTFOUND;
    }
    cairn_status st = CAIRN_OK;
    pthread_mutex_lock(&kv->lock);
    struct kv_process *p = kv->processes;
    while (p && (p->pid != c->pid || p->ended || pidfd_ended(p->pidfd)))
        p = p->next;
    if (p)
        close(pidfd);
    else if ((st = process_new(kv, c->pid, pidfd, &p)))
        close(pidfd);
    if (!st) {
        p->connections++;
        *ret = p;
    }
    pthread_mutex_unlock(&kv->lock);
    return st;
}

static void process_leave(struct kv *kv, struct kv_process *p)
{
    p->connections--;
    if (p->connections == 0 && (p->ended || kv_leases_count(&p->leases, NULL) == 0))
        process_free(kv, p);
}

/* --- the watcher --- */

static void expire(struct kv *kv)
{
    uint64_t now = cairn_now_ns();
    bool left = false;
    atomic_store_explicit(&kv->timed, false, memory_order_release);
    pthread_mutex_lock(&kv->lock);
    for (struct client_shared *s = kv->clients; s; s = s->next) {
        uint32_t ended = kv_leases_expire(&s->leases, now);
        atomic_fetch_add(&kv->node->stats.leases_expired, ended);
        left |= kv_leases_count(&s->leases, NULL) > 0;
    }
    pthread_mutex_unlock(&kv->lock);
    if (left)
        atomic_store_explicit(&kv->timed, true, memory_order_release);
}

static void *watch(void *arg)
{
    struct kv *kv = arg;
    struct epoll_event events[16];
    pthread_setname_np(pthread_self(), "cairn-leases");
    while (!atomic_load(&kv->stopping)) {
        bool timed = atomic_load_explicit(&kv->timed, memory_order_acquire);
        int n = epoll_wait(kv->epoll, events, 16, timed ? TICK_MS : -1);
        if (timed)
            expire(kv);
        for (int i = 0; i < n; i++) {
            uint64_t drained;
            if (events[i].data.u64 == WAKE_ID) {
                if (read(kv->wake, &drained, sizeof drained) < 0)
                    cairn_log(CAIRN_LOG_DEBUG, "lease watcher: woken for nothing");
                continue;
            }
            pthread_mutex_lock(&kv->lock);
            struct kv_process *p = process_find(kv, events[i].data.u64);
            if (p && !p->ended)
                process_ended(kv, p);
            pthread_mutex_unlock(&kv->lock);
        }
    }
    return NULL;
}

static cairn_status watcher_start(struct kv *kv, char *err, size_t err_cap)
{
    struct epoll_event e = {.events = EPOLLIN, .data.u64 = WAKE_ID};
    kv->epoll = epoll_create1(EPOLL_CLOEXEC);
    kv->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (kv->epoll >= 0 && kv->wake >= 0 &&
        epoll_ctl(kv->epoll, EPOLL_CTL_ADD, kv->wake, &e) == 0 &&
        pthread_create(&kv->watcher, NULL, watch, kv) == 0)
        return CAIRN_OK;
    snprintf(err, err_cap, "the watcher of leases did not start: raise the limits on threads and "
                           "open files");
    return CAIRN_NOMEM;
}

/* --- start and stop --- */

static void kv_free(struct kv *kv)
{
    kv_prefetch_close(kv->prefetch);
    kv_pins_close(kv->pins);
    if (kv->epoll >= 0)
        close(kv->epoll);
    if (kv->wake >= 0)
        close(kv->wake);
    pthread_mutex_destroy(&kv->lock);
    pthread_mutex_destroy(&kv->clear_lock);
    free(kv);
}

cairn_status kv_start(struct node *n, char *err, size_t err_cap)
{
    struct kv *kv = cairn_calloc(1, sizeof *kv);
    if (!kv) {
        snprintf(err, err_cap, "no memory for the tables of the KV commands");
        return CAIRN_NOMEM;
    }
    kv->node = n;
    kv->epoll = kv->wake = kv->arena_fd = -1;
    pthread_mutex_init(&kv->lock, NULL);
    pthread_mutex_init(&kv->clear_lock, NULL);
    const void *arena = NULL;
    kv->arena_status = cairn_vault_share(n->vault, &kv->arena_fd, &arena, &kv->arena_len);
    kv->arena = arena;
    kv->window_max = n->o.ram / 2 > KV_WINDOWS_MIN ? n->o.ram / 2 : KV_WINDOWS_MIN;
    kv->pins = kv_pins_open(n->vault);
    kv->prefetch = kv_prefetch_open(n);
    cairn_status st = CAIRN_OK;
    if (!kv->pins || !kv->prefetch) {
        snprintf(err, err_cap, "no memory for the tables of the KV commands");
        st = CAIRN_NOMEM;
    } else {
        st = watcher_start(kv, err, err_cap);
    }
    if (st) {
        kv_free(kv);
        return st;
    }
    n->kv = kv;
    return CAIRN_OK;
}

void kv_stop(struct node *n)
{
    struct kv *kv = n->kv;
    if (!kv)
        return;
    atomic_store(&kv->stopping, true);
    wake(kv);
    pthread_join(kv->watcher, NULL);
    while (kv->processes)
        process_free(kv, kv->processes);
    kv_free(kv);
    n->kv = NULL;
}

/* --- connections --- */

struct client_shared *kv_shared(struct client *c)
{
    if (c->shared)
        return c->shared;
    struct kv *kv = c->node->kv;
    struct client_shared *s = cairn_calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->client = c;
    s->window.fd = -1;
    kv_leases_open(&s->leases, c->node->vault);
    pthread_mutex_lock(&kv->lock);
    s->next = kv->clients;
    if (s->next)
        s->next->prev = s;
    kv->clients = s;
    pthread_mutex_unlock(&kv->lock);
    c->shared = s;
    return s;
}

void kv_client_answered(struct client *c)
{
    struct client_shared *s = c->shared;
    if (!s || !s->unplaced)
        return;
    kv_lease_answered(kv_leases_of(s), s->unplaced, c->out.sent + c->out.queued);
    s->unplaced = 0;
}

/* What the client may have read of its output: not what no socket took, and if it left bytes
 * behind, not the last one. */
static uint64_t taken_max(const struct client *c, bool unread)
{
    return c->out.sent - (unread && c->out.sent > 0);
}

void kv_client_gone(struct client *c, bool unread)
{
    struct client_shared *s = c->shared;
    if (!s)
        return;
    struct kv *kv = c->node->kv;
    c->shared = NULL;
    pthread_mutex_lock(&kv->lock);
    if (s->next)
        s->next->prev = s->prev;
    if (s->prev)
        s->prev->next = s->next;
    else
        kv->clients = s->next;
    if (s->process) {
        uint32_t lost = kv_leases_closed(&s->process->leases, c->id, taken_max(c, unread));
        atomic_fetch_add(&c->node->stats.leases_lost, lost);
        process_leave(kv, s->process);
    }
    kv->window_bytes -= s->window.len;
    pthread_mutex_unlock(&kv->lock);
    atomic_fetch_add(&c->node->stats.leases_lost, kv_leases_close(&s->leases));
    if (s->window.len)
        cairn_mapping_close(&s->window);
    free(s);
}

/* A client without a window sends its values through the socket: less than asked, or nothing, is no
 * failure. */
void kv_open_window(struct client *c, uint64_t wanted)
{
    struct kv *kv = c->node->kv;
    struct client_shared *s = c->shared;
    const uint64_t unit = 2ull * 1024 * 1024; /* what a mapping is rounded up to */
    if (wanted > KV_WINDOW_MAX)
        wanted = KV_WINDOW_MAX;
    wanted = (wanted + unit - 1) / unit * unit;
    pthread_mutex_lock(&kv->lock);
    uint64_t left = kv->window_max - kv->window_bytes;
    if (wanted > left)
        wanted = left / unit * unit;
    kv->window_bytes += wanted;
    pthread_mutex_unlock(&kv->lock);
    if (wanted == 0)
        return;
    struct cairn_mapping m;
    if (cairn_mapping_open_writable(wanted, "cairn-window", &m)) {
        cairn_log(CAIRN_LOG_WARN, "client %llu gets no window: %s",
                  (unsigned long long)s->client->id, m.note);
        m.len = 0;
    }
    pthread_mutex_lock(&kv->lock);
    kv->window_bytes -= wanted - m.len;
    if (m.len)
        s->window = m;
    pthread_mutex_unlock(&kv->lock);
}

static cairn_status attach_refused(const struct client *c, struct client_shared *s, char *why,
                                   size_t why_cap)
{
    const struct kv *kv = c->node->kv;
    if (!c->local)
        snprintf(why, why_cap, "memory is shared over the unix socket only");
    else if (!c->shared_ok)
        snprintf(why, why_cap, "this user may not map the node's memory: see --allow-uids");
    else if (kv->arena_status)
        snprintf(why, why_cap, "this kernel cannot share memory read-only for good "
                 "(F_SEAL_FUTURE_WRITE, Linux 5.1)");
    else if (s->attached)
        snprintf(why, why_cap, "this connection is attached already");
    else if (kv_leases_count(&s->leases, NULL))
        snprintf(why, why_cap, "attach before the first lease, or release the leases first");
    else
        return CAIRN_OK;
    return CAIRN_PERM;
}

cairn_status kv_attach(struct client *c, char *why, size_t why_cap)
{
    struct kv *kv = c->node->kv;
    struct client_shared *s = kv_shared(c);
    if (!s) {
        snprintf(why, why_cap, "no memory");
        return CAIRN_NOMEM;
    }
    cairn_status st = attach_refused(c, s, why, why_cap);
    if (st || s->process)
        return st;
    struct kv_process *p = NULL;
    st = process_join(kv, c, &p);
    switch (st) {
    case CAIRN_OK:
        s->process = p;
        break;
    case CAIRN_BUSY:
        snprintf(why, why_cap, "%u processes are attached or hold leases already",
                 KV_PROCESSES_MAX);
        break;
    case CAIRN_NOTFOUND:
        snprintf(why, why_cap, "the process that opened this connection is gone, or in another "
                 "process namespace: connect from the process that attaches");
        break;
    default:
        snprintf(why, why_cap, "no memory, or too many open files");
        break;
    }
    return st;
}

/* --- figures --- */

struct leases_seen {
    uint64_t now_ns, oldest_ns;
    void (*fn)(void *arg, uint64_t lease, uint64_t client, uint64_t age_ns, uint64_t ends_in_ns,
               uint32_t values, uint64_t bytes);
    void *arg;
};

static void see(void *arg, const struct kv_lease *lease)
{
    struct leases_seen *seen = arg;
    uint64_t age = seen->now_ns > lease->taken_ns ? seen->now_ns - lease->taken_ns : 0;
    uint64_t left = lease->ends_ns > seen->now_ns ? lease->ends_ns - seen->now_ns : 0;
    uint64_t bytes = 0;
    if (age > seen->oldest_ns)
        seen->oldest_ns = age;
    if (!seen->fn)
        return;
    for (uint32_t i = 0; i < lease->count; i++)
        bytes += lease->pins[i].value_len;
    seen->fn(seen->arg, lease->id, lease->client, age,
             lease->ends_ns == KV_LEASE_ENDLESS ? UINT64_MAX : left, lease->count, bytes);
}

uint64_t node_leases_each(struct node *n,
                          void (*fn)(void *arg, uint64_t lease, uint64_t client, uint64_t age_ns,
                                     uint64_t ends_in_ns, uint32_t values, uint64_t bytes),
                          void *arg)
{
    struct leases_seen seen = {cairn_now_ns(), 0, fn, arg};
    struct kv *kv = n->kv;
    if (!kv)
        return 0;
    pthread_mutex_lock(&kv->lock);
    for (struct kv_process *p = kv->processes; p; p = p->next)
        kv_leases_each(&p->leases, see, &seen);
    for (struct client_shared *s = kv->clients; s; s = s->next)
        kv_leases_each(&s->leases, see, &seen);
    pthread_mutex_unlock(&kv->lock);
    return seen.oldest_ns;
}

void kv_figures(struct node *n, struct kv_figures *ret)
{
    struct kv *kv = n->kv;
    uint64_t pins = 0;
    *ret = (struct kv_figures){0};
    if (!kv)
        return;
    pthread_mutex_lock(&kv->lock);
    for (struct kv_process *p = kv->processes; p; p = p->next) {
        ret->processes++;
        ret->orphans += p->connections == 0;
        ret->leases += kv_leases_count(&p->leases, &pins);
        ret->lease_pins += pins;
    }
    for (struct client_shared *s = kv->clients; s; s = s->next) {
        ret->leases += kv_leases_count(&s->leases, &pins);
        ret->lease_pins += pins;
    }
    ret->window_bytes = kv->window_bytes;
    pthread_mutex_unlock(&kv->lock);
    ret->operator_pins = kv_pins_count(kv->pins);
    ret->prefetch_keys = kv_prefetch_waiting(kv->prefetch);
}
