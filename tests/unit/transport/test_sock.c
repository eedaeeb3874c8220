#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/helpers/stall.h"
#include "transport/sock.h"

static char folder[64], path[96], err[256];
static struct cairn_addr addr;
static struct cairn_listener l;

static uint64_t soon(uint64_t ms)
{
    return cairn_deadline_ns(ms * CAIRN_NS_PER_MS);
}

static void unix_address(void)
{
    snprintf(folder, sizeof(folder), "/tmp/cairn-sock-XXXXXX");
    cr_assert(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/s", folder);
    cr_assert_eq(cairn_addr_unix(path, &addr, err, sizeof(err)), CAIRN_OK);
}

static void tcp_address(const char *host)
{
    cr_assert_eq(cairn_addr_tcp(host, 0, &addr, err, sizeof(err)), CAIRN_OK);
}

static void listening(void)
{
    cr_assert_eq(cairn_listener_open(&l, &addr, err, sizeof(err)), CAIRN_OK, "%s", err);
}

static void tidy(void)
{
    cairn_listener_close(&l);
    unlink(path);
    cr_assert_eq(rmdir(folder), 0);
}

/* A connection to the listener, both ends. */
static void connected(int *ret_client, int *ret_server)
{
    cr_assert_eq(cairn_sock_dial(&l.addr, soon(2000), ret_client, err, sizeof(err)), CAIRN_OK, "%s",
                 err);
    cr_assert_eq(cairn_sock_wait(l.fd, POLLIN, soon(2000), NULL), CAIRN_OK);
    cr_assert_eq(cairn_listener_accept(&l, ret_server), CAIRN_OK);
}

static cairn_status receive_all(int fd, char *data, size_t len, uint64_t deadline_ns)
{
    cairn_status status = CAIRN_OK;
    for (size_t n = 0; len > 0 && status == CAIRN_OK; len -= n, data += n, n = 0) {
        status = cairn_sock_recv(fd, &(struct iovec){data, len}, 1, &n);
        if (status == CAIRN_INPROGRESS)
            status = cairn_sock_wait(fd, POLLIN, deadline_ns, NULL);
    }
    return status;
}

static bool talk(int a, int b)
{
    char text[6] = "";
    struct iovec iov[3] = {{(char[]){"he"}, 2}, {NULL, 0}, {(char[]){"llo"}, 3}};
    return cairn_sock_send_all(a, iov, 3, soon(2000)) == CAIRN_OK &&
           receive_all(b, text, 5, soon(2000)) == CAIRN_OK && strcmp(text, "hello") == 0;
}

Test(sock, a_unix_socket_is_its_users_alone_whatever_the_umask)
{
    static const mode_t masks[] = {0, 022, 077};
    for (size_t i = 0; i < 3; i++) {
        struct stat st;
        unix_address();
        umask(masks[i]);
        listening();
        cr_assert_eq(stat(path, &st), 0);
        cr_assert(S_ISSOCK(st.st_mode));
        cr_assert_eq(st.st_mode & 0777, 0600);
        tidy();
        cr_assert_eq(access(path, F_OK), -1);
    }
}

Test(sock, both_ways_on_every_kind)
{
    static const char *const hosts[] = {NULL, "127.0.0.1", "::1"};
    for (size_t i = 0; i < 3; i++) {
        int client, server, flag = 0;
        socklen_t len = sizeof(flag);
        if (hosts[i])
            tcp_address(hosts[i]);
        else
            unix_address();
        if (cairn_listener_open(&l, &addr, err, sizeof(err)) != CAIRN_OK && i == 2)
            continue; /* no IPv6 here */
        cr_assert_eq(cairn_listener_accept(&l, &server), CAIRN_INPROGRESS);
        connected(&client, &server);
        cr_assert(talk(client, server) && talk(server, client));
        cr_assert(fcntl(client, F_GETFD) & FD_CLOEXEC && fcntl(server, F_GETFD) & FD_CLOEXEC);
        cr_assert(fcntl(client, F_GETFL) & O_NONBLOCK && fcntl(server, F_GETFL) & O_NONBLOCK);
        if (hosts[i]) {
            char name[64], want[64];
            struct cairn_addr of_client = {.len = sizeof(of_client.at)};
            getsockopt(server, IPPROTO_TCP, TCP_NODELAY, &flag, &len);
            cr_assert(flag);
            flag = 0;
            getsockopt(client, IPPROTO_TCP, TCP_NODELAY, &flag, &len);
            cr_assert(flag);
            getsockname(client, &of_client.at.any, &of_client.len);
            cairn_addr_print(&of_client, want, sizeof(want));
            cr_assert_str_eq(cairn_sock_peer_name(server, name, sizeof(name)), want + 6);
        }
        close(client);
        close(server);
        cairn_listener_close(&l);
    }
    rmdir(folder);
}

/* Sends until the socket takes no more; how much that was. */
static size_t fill(int fd)
{
    static const char bytes[65536];
    size_t all = 0;
    for (ssize_t n; (n = send(fd, bytes, sizeof bytes, MSG_DONTWAIT | MSG_NOSIGNAL)) > 0;)
        all += (size_t)n;
    cr_assert_eq(errno, EAGAIN);
    return all;
}

static size_t drain(int fd)
{
    static char bytes[65536];
    size_t all = 0;
    for (ssize_t n; (n = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT)) > 0;)
        all += (size_t)n;
    return all;
}

/* What a slow client has not read waits where it lies, not in the socket, also after the client was
 * fast for a while. The client's own buffer is the client's affair: here it does not grow. */
Test(sock, little_waits_in_the_socket_of_a_client_that_does_not_read)
{
    int client, server, bytes = 65536;
    tcp_address("127.0.0.1");
    listening();
    connected(&client, &server);
    cr_assert_eq(setsockopt(client, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes), 0);
    for (int i = 0; i < 200; i++) {
        fill(server);
        drain(client);
    }
    size_t sent = 0;
    for (size_t n; (n = fill(server)) > 0; usleep(10000))
        sent += n;
    cr_assert_leq(sent, 1u << 20, "%zu bytes", sent);
    close(client);
    close(server);
    cairn_listener_close(&l);
}

Test(sock, a_dead_daemons_socket_is_replaced)
{
    unix_address();
    pid_t pid = fork();
    if (pid == 0) {
        char text[256];
        _exit(cairn_listener_open(&l, &addr, text, sizeof(text)) == CAIRN_OK ? 0 : 1);
    }
    int status, client, server;
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert_eq(status, 0);
    cr_assert_eq(access(path, F_OK), 0, "it was left behind");
    cr_assert_eq(cairn_sock_dial(&addr, soon(1000), &client, err, sizeof(err)), CAIRN_NOTFOUND);
    cr_assert(strstr(err, path) && strstr(err, "start cairnd"), "%s", err);
    listening();
    connected(&client, &server);
    cr_assert(talk(client, server));
    close(client);
    close(server);
    tidy();
}

Test(sock, a_live_daemons_socket_and_other_files_are_left_alone)
{
    struct cairn_listener second;
    struct stat st;
    int client, server;
    unix_address();
    listening();
    cr_assert_eq(cairn_listener_open(&second, &addr, err, sizeof(err)), CAIRN_LOCKED);
    cr_assert(strstr(err, "another process listens"), "%s", err);
    cr_assert_eq(cairn_listener_accept(&l, &server), CAIRN_OK, "the question of the second");
    close(server);
    connected(&client, &server);
    cr_assert(talk(client, server));
    close(client);
    close(server);
    tidy();

    unix_address();
    close(open(path, O_CREAT | O_WRONLY, 0644));
    cr_assert_eq(cairn_listener_open(&second, &addr, err, sizeof(err)), CAIRN_LOCKED);
    cr_assert(strstr(err, "no socket"), "%s", err);
    cr_assert(stat(path, &st) == 0 && S_ISREG(st.st_mode));
    unlink(path);
    cr_assert_eq(symlink("elsewhere", path), 0);
    cr_assert_eq(cairn_listener_open(&second, &addr, err, sizeof(err)), CAIRN_LOCKED);
    unlink(path);
    rmdir(folder);
    cr_assert_eq(cairn_listener_open(&second, &addr, err, sizeof(err)), CAIRN_NOTFOUND);
    cr_assert(strstr(err, "make it first"), "%s", err);
}

Test(sock, close_removes_only_its_own_file)
{
    struct cairn_listener second;
    unix_address();
    listening();
    unlink(path);
    cr_assert_eq(cairn_listener_open(&second, &addr, err, sizeof(err)), CAIRN_OK);
    cairn_listener_close(&l);
    cr_assert_eq(access(path, F_OK), 0);
    cairn_listener_close(&second);
    cairn_listener_close(&second);
    tidy();
}

static void *race(void *arg)
{
    struct cairn_listener mine;
    char text[256];
    bool *won = arg;
    *won = cairn_listener_open(&mine, &addr, text, sizeof(text)) == CAIRN_OK;
    return NULL;
}

Test(sock, of_daemons_that_start_at_once_one_wins)
{
    for (int round = 0; round < 50; round++) {
        enum { COUNT = 4 };
        pthread_t t[COUNT];
        bool won[COUNT];
        int winners = 0, fd;
        unix_address();
        int dead = socket(AF_UNIX, SOCK_STREAM, 0);
        cr_assert_eq(bind(dead, &addr.at.any, addr.len), 0);
        close(dead);
        for (int i = 0; i < COUNT; i++)
            pthread_create(&t[i], NULL, race, &won[i]);
        for (int i = 0; i < COUNT; i++) {
            pthread_join(t[i], NULL);
            winners += won[i];
        }
        cr_assert_eq(winners, 1);
        cr_assert_eq(cairn_sock_dial(&addr, soon(1000), &fd, err, sizeof(err)), CAIRN_OK);
        close(fd);
        unlink(path);
        rmdir(folder);
    }
}

Test(sock, a_port_in_use_and_nobody_there)
{
    struct cairn_listener second;
    int fd;
    tcp_address("127.0.0.1");
    listening();
    cr_assert_neq(l.addr.at.in4.sin_port, 0);
    cr_assert_eq(cairn_listener_open(&second, &l.addr, err, sizeof(err)), CAIRN_LOCKED);
    cr_assert(strstr(err, "another port"), "%s", err);
    addr = l.addr;
    cairn_listener_close(&l);
    cr_assert_eq(cairn_sock_dial(&addr, soon(1000), &fd, err, sizeof(err)), CAIRN_NOTFOUND);
    unix_address();
    cr_assert_eq(cairn_sock_dial(&addr, soon(1000), &fd, err, sizeof(err)), CAIRN_NOTFOUND);
    rmdir(folder);
}

/* Tens of thousands of tries give the socket the very port it dials. */
Test(sock, a_dialler_does_not_reach_itself)
{
    tcp_address("127.0.0.1");
    addr.at.in4.sin_port = htons(40000);
    for (int i = 0; i < 60000; i++) {
        int fd;
        struct cairn_addr here = {.len = sizeof(here.at)};
        cairn_status status = cairn_sock_dial(&addr, soon(1000), &fd, err, sizeof(err));
        if (status == CAIRN_NOTFOUND)
            continue;
        cr_assert_eq(status, CAIRN_OK, "%s", err);
        getsockname(fd, &here.at.any, &here.len);
        cr_assert_neq(here.at.in4.sin_port, addr.at.in4.sin_port, "after %d", i);
        cr_skip_test("something listens at this port");
    }
}

Test(sock, dialling_a_daemon_that_does_not_accept_ends_in_time)
{
    unix_address();
    int fd = socket(AF_UNIX, SOCK_STREAM, 0), clients[8];
    cr_assert(bind(fd, &addr.at.any, addr.len) == 0 && listen(fd, 1) == 0);
    cairn_status status = CAIRN_OK;
    uint64_t begin = cairn_now_ns();
    for (int i = 0; i < 8 && status == CAIRN_OK; i++)
        status = cairn_sock_dial(&addr, soon(100), &clients[i], err, sizeof(err));
    cr_assert_eq(status, CAIRN_TIMEOUT, "%s", err);
    cr_assert_lt(cairn_now_ns() - begin, 5 * CAIRN_NS_PER_S + STALL_NS);
    unlink(path);
    rmdir(folder);
}

Test(sock, deadlines)
{
    static char large[4u << 20];
    int client, server;
    unix_address();
    listening();
    connected(&client, &server);
    cr_assert_eq(receive_all(client, large, 1, soon(20)), CAIRN_TIMEOUT);
    cr_assert_eq(receive_all(client, large, 1, 0), CAIRN_TIMEOUT);
    cr_assert_eq(cairn_sock_send_all(client, &(struct iovec){large, sizeof(large)}, 1, soon(20)),
                 CAIRN_TIMEOUT);
    short events = 0;
    cr_assert_eq(cairn_sock_wait(server, POLLIN | POLLOUT, soon(20), &events), CAIRN_OK);
    cr_assert_eq(events, POLLIN | POLLOUT);
    cr_assert_eq(cairn_sock_wait(-1, POLLIN, soon(20), NULL), CAIRN_TIMEOUT);
    close(client);
    close(server);
    cr_assert_eq(cairn_sock_wait(server, POLLIN, soon(1000), NULL), CAIRN_IO, "no descriptor");
    tidy();
}

Test(sock, a_peer_that_goes)
{
    int client, server;
    char byte;
    tcp_address("127.0.0.1");
    listening();
    connected(&client, &server);
    cr_assert(cairn_sock_alive(client) && cairn_sock_alive(server));
    cr_assert_eq(write(client, "x", 1), 1);
    cr_assert_eq(cairn_sock_wait(server, POLLIN, soon(1000), NULL), CAIRN_OK);
    cr_assert(cairn_sock_alive(server), "bytes that wait are not an end");
    shutdown(client, SHUT_WR);
    cr_assert_eq(receive_all(server, &byte, 1, soon(1000)), CAIRN_OK);
    cr_assert_eq(receive_all(server, &byte, 1, soon(1000)), CAIRN_IO);
    cr_assert(!cairn_sock_alive(server));
    struct linger reset = {1, 0};
    setsockopt(server, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
    close(server);
    cr_assert_eq(receive_all(client, &byte, 1, soon(1000)), CAIRN_IO);
    cr_assert_eq(cairn_sock_send_all(client, &(struct iovec){&byte, 1}, 1, soon(1000)), CAIRN_IO);
    cr_assert(!cairn_sock_alive(client));
    close(client);
    cairn_listener_close(&l);
}

Test(sock, who_is_there_and_that_it_is_gone)
{
    int client, server;
    pid_t who = 0;
    uid_t uid = 1;
    unix_address();
    listening();
    pid_t pid = fork();
    if (pid == 0) {
        char text[256];
        cairn_sock_dial(&addr, soon(2000), &client, text, sizeof(text));
        for (;;)
            pause();
    }
    cr_assert_eq(cairn_sock_wait(l.fd, POLLIN, soon(5000), NULL), CAIRN_OK);
    cr_assert_eq(cairn_listener_accept(&l, &server), CAIRN_OK);
    cr_assert_eq(cairn_sock_peer(server, &who, &uid), CAIRN_OK);
    cr_assert(who == pid && uid == getuid());
    cr_assert(cairn_sock_alive(server));
    kill(pid, SIGKILL);
    cr_assert_eq(cairn_sock_wait(server, POLLIN, soon(5000), NULL), CAIRN_OK);
    cr_assert(!cairn_sock_alive(server));
    cr_assert_eq(waitpid(pid, NULL, 0), pid);
    tcp_address("127.0.0.1");
    cr_assert_neq(cairn_sock_peer(socket(AF_INET, SOCK_STREAM, 0), &who, &uid), CAIRN_OK);
    close(server);
    tidy();
}

/* Sends count copies of a descriptor with one byte, as a peer of ill will may. */
static void send_fds(int fd, int what, uint32_t count)
{
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(16 * sizeof(int))] = {0};
    struct msghdr m = {.msg_iov = &(struct iovec){(char[]){"x"}, 1},
                       .msg_iovlen = 1,
                       .msg_control = control,
                       .msg_controllen = CMSG_SPACE(count * sizeof(int))};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    *c = (struct cmsghdr){.cmsg_len = CMSG_LEN(count * sizeof(int)),
                          .cmsg_level = SOL_SOCKET,
                          .cmsg_type = SCM_RIGHTS};
    for (uint32_t i = 0; i < count; i++)
        memcpy(CMSG_DATA(c) + i * sizeof(int), &what, sizeof(int));
    cr_assert_eq(sendmsg(fd, &m, 0), 1);
}

static int lowest_free(void)
{
    int fd = dup(0);
    close(fd);
    return fd;
}

Test(sock, unasked_descriptors_do_not_pile_up)
{
    int client, server;
    size_t n;
    char text[16];
    struct iovec iov = {text, sizeof(text)};
    struct cairn_sock_fds fds;
    unix_address();
    listening();
    connected(&client, &server);
    int before = lowest_free();
    send_fds(client, l.fd, 3);
    cr_assert_eq(cairn_sock_recv(server, &iov, 1, &n), CAIRN_OK, "a plain receive drops them");
    cr_assert_eq(lowest_free(), before);
    send_fds(client, l.fd, CAIRN_SOCK_FDS_MAX + 1);
    cr_assert_eq(cairn_sock_recv_fds(server, &iov, 1, &n, &fds), CAIRN_IO);
    cr_assert_eq(lowest_free(), before);
    send_fds(client, l.fd, CAIRN_SOCK_FDS_MAX);
    cr_assert_eq(cairn_sock_recv_fds(server, &iov, 1, &n, &fds), CAIRN_OK);
    cr_assert_eq(fds.count, CAIRN_SOCK_FDS_MAX);
    cairn_sock_fds_close(&fds);
    cr_assert_eq(lowest_free(), before);
    cr_assert_eq(cairn_sock_recv_fds(server, &iov, 1, &n, &fds), CAIRN_INPROGRESS);
    close(client);
    cr_assert_eq(cairn_sock_recv_fds(server, &iov, 1, &n, &fds), CAIRN_IO);
    close(server);
    tidy();
}

Test(sock, no_descriptors_left_is_busy)
{
    int client, server;
    tcp_address("127.0.0.1");
    listening();
    cr_assert_eq(cairn_sock_dial(&l.addr, soon(1000), &client, err, sizeof(err)), CAIRN_OK);
    cr_assert_eq(cairn_sock_wait(l.fd, POLLIN, soon(1000), NULL), CAIRN_OK);
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = (rlim_t)lowest_free();
    setrlimit(RLIMIT_NOFILE, &limit);
    cr_assert_eq(cairn_listener_accept(&l, &server), CAIRN_BUSY);
    cr_assert_neq(cairn_sock_dial(&l.addr, soon(1000), &server, err, sizeof(err)), CAIRN_OK);
}
