#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include "base/clock.h"
#include "tools/top.h"

struct options {
    struct node_where node;
    uint64_t interval_ns, count;
    bool once, json;
};

static const struct cairn_opt options[] = {
    NODE_ROWS(struct options),
    {.name = "interval", .type = CAIRN_OPT_DURATION, .def = "1s",
     .offset = offsetof(struct options, interval_ns), .min = 10 * CAIRN_NS_PER_MS,
     .max = 3600 * CAIRN_NS_PER_S, .help = "between two looks"},
    {.name = "count", .type = CAIRN_OPT_COUNT, .def = "0", .max = UINT32_MAX,
     .offset = offsetof(struct options, count), .help = "looks, 0 = until it is stopped"},
    {.name = "once", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, once), .def = "no",
     .help = "print one look and end"},
    {.name = "json", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, json), .def = "no",
     .help = "print one JSON object a look"},
    {.name = NULL},
};

#define SCREEN_ON "\033[?1049h\033[?25l"
#define SCREEN_OFF "\033[?25h\033[?1049l"
#define SCREEN_HOME "\033[H"
#define LINE_END "\033[K\n"
#define SCREEN_REST "\033[J"
/* Keys are not read meanwhile. */
#define RETRY_NS CAIRN_NS_PER_S

static struct termios before;
static bool on_screen;
static volatile sig_atomic_t ended, suspended;

static void restore(void)
{
    if (!on_screen)
        return;
    on_screen = false;
    fputs(SCREEN_OFF, stdout);
    fflush(stdout);
    tcsetattr(STDIN_FILENO, TCSANOW, &before);
}

static void take_screen(void)
{
    struct termios raw;
    tcgetattr(STDIN_FILENO, &before);
    raw = before;
    raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
    raw.c_cc[VMIN] = 0;
    raw.c_cc[VTIME] = 0;
    tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    on_screen = true;
    fputs(SCREEN_ON, stdout);
}

static void on_signal(int number)
{
    if (number == SIGTSTP)
        suspended = 1;
    else if (number != SIGWINCH)
        ended = 1;
}

static void catch_signals(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGTSTP, SIGWINCH};
    struct sigaction a = {.sa_handler = on_signal};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaction(numbers[i], &a, NULL);
}

/* Until the next look, a key, or a signal. */
static void rest(uint64_t interval_ns)
{
    uint64_t until = cairn_deadline_ns(interval_ns);
    while (!ended) {
        uint64_t now = cairn_now_ns();
        if (now >= until)
            return;
        struct pollfd keys = {.fd = on_screen ? STDIN_FILENO : -1, .events = POLLIN};
        int n = poll(&keys, 1, (int)((until - now) / CAIRN_NS_PER_MS) + 1);
        char key = 0;
        if (n > 0 && (read(STDIN_FILENO, &key, 1) != 1 || key == 'q' || key == 'Q'))
            ended = 1;
        if (suspended) {
            suspended = 0;
            restore();
            raise(SIGSTOP);
            take_screen();
            return;
        }
        if (n < 0)
            return; /* the window's size has changed: draw again */
    }
}

/* A node that may go and come back. */
struct watch {
    const struct options *o;
    struct node_call *call;  /* NULL: it is gone                                                */
    uint64_t gone_ns;        /* since when, 0: it is not                                        */
    struct top_absence absence;
    struct top_sample last;  /* of a look before, if have_last                                  */
    bool have_last;
};

static void draw(const struct watch *w, const struct top_sample *s, const struct top_rates *r)
{
    const struct options *o = w->o;
    const char *uri = node_uri(&o->node), *end = on_screen ? LINE_END : "\n";
    struct winsize size = {.ws_row = 24, .ws_col = 80};
    unsigned rows = 0, columns = 0;
    if (on_screen) {
        ioctl(STDOUT_FILENO, TIOCGWINSZ, &size);
        rows = size.ws_row ? size.ws_row - 1u : 23;
        columns = size.ws_col;
    }
    fputs(on_screen ? SCREEN_HOME : "", stdout);
    if (o->json && s)
        top_print_json(stdout, s, r);
    else if (o->json)
        top_absent_json(stdout, &w->absence);
    else if (s)
        top_print_text(stdout, uri, s, r, rows, columns, end);
    else
        top_absent_text(stdout, uri, &w->absence, columns, end);
    fputs(on_screen ? SCREEN_REST : "", stdout);
    fflush(stdout);
}

/* What was measured before it went says nothing of what comes back. */
static void lose(struct watch *w)
{
    node_call_close(w->call);
    w->call = NULL;
    if (!w->gone_ns)
        w->gone_ns = cairn_now_ns();
    top_free(&w->last);
    w->have_last = false;
}

/* Asks for the figures; a node that is gone is called again. */
static bool ask(struct watch *w, struct top_sample *ret)
{
    char *why = w->absence.why;
    size_t cap = sizeof w->absence.why;
    uint64_t timeout = w->o->node.timeout_ns;
    *ret = (struct top_sample){0};
    if (!w->call &&
        node_call_open(node_uri(&w->o->node), timeout < RETRY_NS ? timeout : RETRY_NS, &w->call,
                       why, cap)) {
        w->call = NULL;
        return false;
    }
    if (top_take(w->call, ret, why, cap))
        return true;
    top_free(ret);
    lose(w);
    return false;
}

/* One look: false if the node did not answer. */
static bool look(struct watch *w)
{
    struct top_sample now;
    struct top_rates rates;
    if (!ask(w, &now)) {
        w->absence.seconds = (double)(cairn_now_ns() - w->gone_ns) / 1e9;
        draw(w, NULL, NULL);
        return false;
    }
    if (!w->have_last) {
        /* Rates are of two looks: the next one shows them. */
        w->gone_ns = 0;
        w->last = now;
        w->have_last = true;
        return true;
    }
    top_compare(&w->last, &now, &rates);
    draw(w, &now, &rates);
    top_free(&w->last);
    w->last = now;
    return true;
}

/* False: the last of all looks, or the only one, found it gone. */
static bool watch(struct watch *w, uint64_t count)
{
    bool ok = true;
    for (uint64_t i = 0; !ended && (count == 0 || i < count); i++) {
        rest(w->o->interval_ns);
        if (ended)
            return true;
        ok = look(w);
        if (!ok && w->o->once)
            return false;
    }
    return ok;
}

static int run(const void *opts, char **args, uint32_t count)
{
    (void)args;
    (void)count;
    const struct options *o = opts;
    struct watch w = {.o = o};
    int status = node_connect("top", &o->node, &w.call);
    if (status)
        return status;
    catch_signals();
    bool ok = ask(&w, &w.last);
    w.have_last = ok;
    if (ok && !o->once && !o->json && isatty(STDIN_FILENO) && isatty(STDOUT_FILENO)) {
        take_screen();
        atexit(restore);
    }
    ok = ok && watch(&w, o->once ? 1 : o->count);
    restore();
    top_free(&w.last);
    node_call_close(w.call);
    return ok ? CLI_OK : cli_fail(CLI_FAILED, "top: %s", w.absence.why);
}

const struct cli_command cli_top = {
    .name = "top",
    .args = "",
    .options = options,
    .options_size = sizeof(struct options),
    .run = run,
    .help = "a node live: rates, hit share in tokens, tiers, evictions, leases, clients",
    .more = "Keys: q ends it. Without a terminal it prints a page a look, with --json a\n"
            "line. While the node is gone it says so at each look, and goes on when it is back.\n",
};
