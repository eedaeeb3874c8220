/* Runs a command with less than it is used to.
 *
 * usage: confine [--nobody] [--memlock-0] [--no-uring] COMMAND [ARGUMENT...]
 * Exits with 77 when the system does not let it take that away. */
#include <errno.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EXIT_SKIPPED 77
#define NOBODY 65534u

static int refuse(const char *what)
{
    fprintf(stderr, "confine: %s: %s\n", what, strerror(errno));
    return EXIT_SKIPPED;
}

static int become_nobody(void)
{
    for (int cap = 0; cap <= CAP_LAST_CAP; cap++)
        prctl(PR_CAPBSET_DROP, cap, 0, 0, 0);
    if (setgroups(0, NULL) || setresgid(NOBODY, NOBODY, NOBODY) ||
        setresuid(NOBODY, NOBODY, NOBODY))
        return refuse("becoming nobody");
    return 0;
}

static int lock_nothing(void)
{
    struct rlimit none = {0, 0};

    return setrlimit(RLIMIT_MEMLOCK, &none) ? refuse("RLIMIT_MEMLOCK") : 0;
}

/* The three io_uring calls have the same numbers on every architecture. */
static int refuse_uring(void)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, SYS_io_uring_setup, 0, 2),
        BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, SYS_io_uring_register, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {.len = sizeof(filter) / sizeof(filter[0]), .filter = filter};

    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
        prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        return refuse("seccomp");
    return 0;
}

int main(int argc, char **argv)
{
    int rc = 0, i = 1;

    for (; i < argc && !strncmp(argv[i], "--", 2) && !rc; i++) {
        if (!strcmp(argv[i], "--nobody"))
            rc = become_nobody();
        else if (!strcmp(argv[i], "--memlock-0"))
            rc = lock_nothing();
        else if (!strcmp(argv[i], "--no-uring"))
            rc = refuse_uring();
        else
            rc = 2;
    }
    if (rc || i >= argc)
        return rc ? rc : 2;
    execv(argv[i], argv + i);
    return refuse(argv[i]);
}
