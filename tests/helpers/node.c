#include "tests/helpers/node.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* For sanitizer builds on a busy machine. */
#define START_TRIES 3000 /* of 10 ms */
#define END_TRIES 30000  /* of 2 ms  */

static int free_port(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), port = 0;
    if (bind(fd, (struct sockaddr *)&at, len) == 0 &&
        getsockname(fd, (struct sockaddr *)&at, &len) == 0)
        port = ntohs(at.sin_port);
    close(fd);
    return port;
}

static void argument(struct test_node *n, const char *name, const char *value)
{
    char *at = n->arguments[n->argument_count++];
    snprintf(at, sizeof n->arguments[0], "--%s%s", name, value);
}

void node_prepare(struct test_node *n, bool tcp, const char *options)
{
    char number[16], copy[512], *rest = copy;
    static int count;
    *n = (struct test_node){.port = tcp ? free_port() : 0};
    /* A test may run in the directory of any file system, and the name of a socket is short. */
    snprintf(n->socket, sizeof n->socket, "/tmp/cairn-test-%d-%d.sock", (int)getpid(), count++);
    snprintf(n->log, sizeof n->log, "%s.log", n->socket);
    snprintf(number, sizeof number, "%d", n->port);
    argument(n, "socket=", n->socket);
    argument(n, "port=", number);
    argument(n, "http-port=", "0");
    argument(n, "log-level=", "warn");
    snprintf(copy, sizeof copy, "%s", options);
    for (char *o = strsep(&rest, "&"); o; o = strsep(&rest, "&"))
        if (o[0])
            argument(n, o, "");
    leftovers_begin(&n->left, n->socket, n->log);
}

static void run(const struct test_node *n)
{
    const char *program = getenv("CAIRN_TEST_CAIRND");
    char *argv[NODE_ARGUMENTS_MAX + 2] = {(char *)(uintptr_t)program};
    for (int i = 0; i < n->argument_count; i++)
        argv[i + 1] = (char *)(uintptr_t)n->arguments[i];
    int out = open(n->log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    dup2(out, 1);
    dup2(out, 2);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    /* LeakSanitizer stops a process that ends and waits for ever if that was stopped before. */
    setenv("ASAN_OPTIONS", "detect_leaks=0", 1);
    if (program)
        execv(program, argv);
    dprintf(2, "CAIRN_TEST_CAIRND=%s is no program\n", program ? program : "");
    _exit(127);
}

static bool listening(const struct test_node *n)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    snprintf(at.sun_path, sizeof at.sun_path, "%s", n->socket);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    bool well = connect(fd, (struct sockaddr *)&at, sizeof at) == 0;
    char pong[8] = "";
    well = well && send(fd, "PING\r\n", 6, MSG_NOSIGNAL) == 6 && recv(fd, pong, 7, 0) == 7;
    close(fd);
    return well && strcmp(pong, "+PONG\r\n") == 0;
}

static void tell(const struct test_node *n, const char *what)
{
    fprintf(stderr, "%s; it says:\n", what);
    FILE *said = fopen(n->log, "r");
    for (int c; said && (c = fgetc(said)) != EOF;)
        fputc(c, stderr);
    if (said)
        fclose(said);
}

bool node_start(struct test_node *n)
{
    int status;
    n->pid = fork();
    if (n->pid == 0)
        run(n);
    for (int i = 0; i < START_TRIES; i++) {
        if (listening(n))
            return true;
        if (waitpid(n->pid, &status, WNOHANG) == n->pid)
            break;
        usleep(10000);
    }
    tell(n, "cairnd did not start");
    return false;
}

void node_end(struct test_node *n, int signal)
{
    int status, ended = 0;
    if (!n->pid)
        return;
    kill(n->pid, signal);
    kill(n->pid, SIGCONT);
    for (int i = 0; i < END_TRIES && !ended; i++) {
        ended = waitpid(n->pid, &status, WNOHANG) == n->pid;
        if (!ended)
            usleep(2000);
    }
    if (!ended) {
        tell(n, "cairnd does not end");
        abort();
    }
    if (WIFSIGNALED(status) ? WTERMSIG(status) != SIGKILL : WEXITSTATUS(status) != 0)
        tell(n, "cairnd ended badly");
    n->pid = 0;
}

void node_stall(struct test_node *n)
{
    int status;
    kill(n->pid, SIGSTOP);
    while (waitpid(n->pid, &status, WUNTRACED) < 0 && errno == EINTR) {
    }
}

void node_go_on(struct test_node *n)
{
    kill(n->pid, SIGCONT);
}

void node_finish(struct test_node *n)
{
    node_end(n, SIGKILL);
    leftovers_end(&n->left);
}
