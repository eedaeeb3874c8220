/* cairnd: the node as a program. Its main thread waits for signals and feeds the watchdog. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "connector/cairn.h"
#include "tools/cairnd/daemon_log.h"
#include "tools/cairnd/node.h"
#include "tools/cairnd/notify.h"

#define NETWORK_THREADS_MAX 64

static struct node node;

static void exit_at_once(int signal)
{
    (void)signal;
    _exit(1);
}

/* Every thread inherits the mask, so that only the main one sees these. */
static void signals_hold(sigset_t *held)
{
    sigemptyset(held);
    sigaddset(held, SIGTERM);
    sigaddset(held, SIGINT);
    sigaddset(held, SIGHUP);
    pthread_sigmask(SIG_BLOCK, held, NULL);
    signal(SIGPIPE, SIG_IGN);
    /* A file beyond RLIMIT_FSIZE is a failed write. */
    signal(SIGXFSZ, SIG_IGN);
}

static void second_signal_exits(void)
{
    struct sigaction sa = {.sa_handler = exit_at_once};
    sigset_t ending;
    sigaction(SIGTERM, &sa, NULL);
    sigaction(SIGINT, &sa, NULL);
    sigemptyset(&ending);
    sigaddset(&ending, SIGTERM);
    sigaddset(&ending, SIGINT);
    pthread_sigmask(SIG_UNBLOCK, &ending, NULL);
}

/* Until it shall end. The watchdog hears of us only while every network thread makes its turns. */
static void wait_for_end(const sigset_t *held)
{
    uint64_t seen[NETWORK_THREADS_MAX] = {0};
    uint64_t watchdog = notify_watchdog_ns();
    struct timespec tick = cairn_timespec(watchdog / 3);
    for (;;) {
        int got = watchdog ? sigtimedwait(held, NULL, &tick) : sigwaitinfo(held, NULL);
        if (got == SIGTERM || got == SIGINT)
            return;
        if (got == SIGHUP)
            daemon_log_reopen();
        else if (got < 0 && errno == EAGAIN && net_alive(&node, seen))
            notify_send("WATCHDOG=1");
    }
}

static void announce_budgets(const struct node_options *o)
{
    char ram[32], disk[32];
    cairn_format_size(o->ram, ram, sizeof ram);
    cairn_format_size(o->disk, disk, sizeof disk);
    if (o->disk_path[0])
        cairn_log(CAIRN_LOG_INFO, "cairnd %s: opening with %s of memory and %s of disk at %s",
                  CAIRN_VERSION_STRING, ram, disk, o->disk_path);
    else
        cairn_log(CAIRN_LOG_INFO, "cairnd %s: opening with %s of memory and no disk (--disk-path)",
                  CAIRN_VERSION_STRING, ram);
}

static void announce_addresses(const struct node *n)
{
    char address[CAIRN_ADDR_TEXT_MAX];
    const struct cairn_listener *listeners[] = {&n->local, &n->tcp};
    for (int i = 0; i < 2; i++)
        if (listeners[i]->fd >= 0)
            cairn_log(CAIRN_LOG_INFO, "ready on %s",
                      cairn_addr_print(&listeners[i]->addr, address, sizeof address));
    if (n->o.http_port)
        cairn_log(CAIRN_LOG_INFO, "metrics on http://%s:%u/metrics", n->o.bind,
                  (unsigned)n->o.http_port);
}

static int run(void)
{
    char err[1024];
    sigset_t held;
    signals_hold(&held);
    cairn_status st = daemon_log_open(&node.o, err, sizeof err);
    if (!st) {
        announce_budgets(&node.o);
        st = node_start(&node, err, sizeof err);
    }
    if (st) {
        fprintf(stderr, "cairnd: %s\n", err);
        return 1;
    }
    announce_addresses(&node);
    notify_send("READY=1");
    wait_for_end(&held);
    second_signal_exits();
    notify_send("STOPPING=1");
    cairn_log(CAIRN_LOG_INFO, "stopping");
    node_stop(&node);
    cairn_log(CAIRN_LOG_INFO, "stopped");
    return 0;
}

int main(int argc, char **argv)
{
    static char text[NODE_CONFIG_TEXT_MAX];
    char err[1024];
    int action;
    if (node_options_read(&node.o, argc, argv, &action, err, sizeof err)) {
        fprintf(stderr, "cairnd: %s\n", err);
        return 2;
    }
    switch (action) {
    case NODE_PRINT_HELP:
        node_options_help(text, sizeof text);
        fputs(text, stdout);
        return 0;
    case NODE_PRINT_CONFIG:
        node_options_print(&node.o, text, sizeof text);
        fputs(text, stdout);
        return 0;
    case NODE_PRINT_VERSION:
        printf("cairnd %s\n", CAIRN_VERSION_STRING);
        return 0;
    default:
        return run();
    }
}
