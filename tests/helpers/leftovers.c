#include "tests/helpers/leftovers.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static void remove_all(const struct leftovers *l)
{
    for (int i = 0; i < LEFTOVERS_MAX; i++)
        if (l->paths[i])
            unlink(l->paths[i]);
}

/* It has nothing open but its end of the pipe: who waits for the end of the test's output must not
 * wait for this process, and of other pipes of this kind it must not hold the ends. */
static _Noreturn void outlive(const struct leftovers *l, int end)
{
    char none;
    setsid();
    if (end > 0)
        close_range(0, (unsigned)end - 1, 0);
    close_range((unsigned)end + 1, ~0u, 0);
    while (read(end, &none, 1) < 0 && errno == EINTR) {
    }
    remove_all(l);
    _exit(0);
}

void leftovers_begin(struct leftovers *l, const char *first, const char *second)
{
    int ends[2];
    *l = (struct leftovers){.paths = {first, second}};
    if (pipe2(ends, O_CLOEXEC))
        return;
    fflush(NULL);
    l->pid = fork();
    if (l->pid == 0)
        outlive(l, ends[0]);
    close(ends[0]);
    l->end = ends[1];
}

void leftovers_end(struct leftovers *l)
{
    remove_all(l);
    if (l->pid <= 0)
        return;
    kill(l->pid, SIGKILL);
    waitpid(l->pid, NULL, 0);
    close(l->end);
    l->pid = 0;
}
