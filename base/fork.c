#include "base/fork.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

#define DROPS 256

/* fd + 1, 0 = free: no lock, because a child is a copy of a process in any state. */
static _Atomic int drops[DROPS];
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void in_child(void)
{
    for (int i = 0; i < DROPS; i++) {
        int fd = atomic_exchange(&drops[i], 0) - 1;
        if (fd >= 0)
            close(fd);
    }
}

static void watch(void)
{
    pthread_atfork(NULL, NULL, in_child);
}

void cairn_fork_drop(int fd)
{
    pthread_once(&once, watch);
    for (int i = 0; fd >= 0 && i < DROPS; i++) {
        int none = 0;
        if (atomic_compare_exchange_strong(&drops[i], &none, fd + 1))
            return;
    }
}

void cairn_fork_forget(int fd)
{
    for (int i = 0; fd >= 0 && i < DROPS; i++) {
        int it = fd + 1;
        if (atomic_compare_exchange_strong(&drops[i], &it, 0))
            return;
    }
}
