#include "tools/cairnd/daemon_log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

/* Lines of one second; what is beyond is counted and said once. */
#define LINES_A_SECOND 200u

static struct {
    pthread_mutex_t lock;
    const struct node_options *options;
    int fd;
    uint64_t second;
    uint32_t lines, dropped;
} sink = {.lock = PTHREAD_MUTEX_INITIALIZER, .fd = STDERR_FILENO};

static int file_open(const char *path)
{
    return open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0600);
}

/* journald knows the time by itself and reads levels as "<4>". */
static void line_write(int level, const char *line)
{
    static const char *const names[] = {"error", "warn", "info", "debug"};
    static const int priorities[] = {3, 4, 6, 7};
    char text[1200], when[32];
    int n;
    if (sink.options->log_file[0]) {
        time_t now = time(NULL);
        struct tm tm;
        gmtime_r(&now, &tm);
        strftime(when, sizeof when, "%Y-%m-%dT%H:%M:%SZ", &tm);
        n = snprintf(text, sizeof text, "%s %-5s %s\n", when, names[level], line);
    } else if (secure_getenv("JOURNAL_STREAM")) {
        n = snprintf(text, sizeof text, "<%d>%s\n", priorities[level], line);
    } else {
        n = snprintf(text, sizeof text, "cairnd: %s: %s\n", names[level], line);
    }
    /* Neither a full disk nor a reader that has stopped may stop the node: a pipe that poll says is
     * writable has room for PIPE_BUF bytes. */
    struct pollfd to = {.fd = sink.fd, .events = POLLOUT};
    if (poll(&to, 1, 0) != 1 || !(to.revents & POLLOUT)) {
        sink.dropped++;
        return;
    }
    ssize_t written = write(sink.fd, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
    (void)written;
}

static void message(void *arg, int level, const char *line)
{
    (void)arg;
    const uint32_t *wanted = &sink.options->log_level;
    if (level > (int)__atomic_load_n(wanted, __ATOMIC_RELAXED))
        return;
    pthread_mutex_lock(&sink.lock);
    uint64_t second = cairn_now_ns() / CAIRN_NS_PER_S;
    if (second != sink.second) {
        uint32_t dropped = sink.dropped;
        sink.second = second;
        sink.lines = sink.dropped = 0;
        if (dropped) {
            char text[64];
            snprintf(text, sizeof text, "%u messages were dropped in one second", dropped);
            line_write(CAIRN_LOG_WARN, text);
        }
    }
    if (sink.lines++ < LINES_A_SECOND)
        line_write(level, line);
    else
        sink.dropped++;
    pthread_mutex_unlock(&sink.lock);
}

cairn_status daemon_log_open(const struct node_options *o, char *err, size_t cap)
{
    sink.options = o;
    if (o->log_file[0]) {
        sink.fd = file_open(o->log_file);
        if (sink.fd < 0) {
            snprintf(err, cap, "cannot write the log file '%s': %s; name another with --log-file",
                     o->log_file, strerror(errno));
            return CAIRN_INVAL;
        }
    }
    cairn_log_to(message, NULL, CAIRN_LOG_DEBUG);
    return CAIRN_OK;
}

void daemon_log_reopen(void)
{
    const char *path = sink.options->log_file;
    if (!path[0])
        return;
    int fd = file_open(path);
    if (fd < 0) {
        cairn_log(CAIRN_LOG_ERROR, "cannot open the log file '%s' again: %s; going on with the old "
                                   "one", path, strerror(errno));
        return;
    }
    pthread_mutex_lock(&sink.lock);
    int old = sink.fd;
    sink.fd = fd;
    pthread_mutex_unlock(&sink.lock);
    close(old);
    cairn_log(CAIRN_LOG_INFO, "the log file is open again");
}
