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

static void draw(const struct options *o, const struct top_sample *s, const struct top_rates *r)
{
    if (o->json) {
        top_print_json(stdout, s, r);
    } else if (on_screen) {
        struct winsize w = {.ws_row = 24, .ws_col = 80};
        ioctl(STDOUT_FILENO, TIOCGWINSZ, &w);
        fputs(SCREEN_HOME, stdout);
        top_print_text(stdout, node_uri(&o->node), s, r, w.ws_row ? w.ws_row - 1u : 23, w.ws_col,
                       LINE_END);
        fputs(SCREEN_REST, stdout);
    } else {
        top_print_text(stdout, node_uri(&o->node), s, r, 0, 0, "\n");
    }
    fflush(stdout);
}

static bool look(const struct options *o, struct node_call *c, uint64_t count, char *why,
                 size_t why_cap)
{
    struct top_sample last, now;
    struct top_rates rates;
    bool ok = top_take(c, &last, why, why_cap);
    for (uint64_t i = 0; ok && !ended && (count == 0 || i < count); i++) {
        rest(o->interval_ns);
        if (ended)
            break;
        ok = top_take(c, &now, why, why_cap);
        if (ok) {
            top_compare(&last, &now, &rates);
            draw(o, &now, &rates);
        }
        top_free(&last);
        last = now;
    }
    top_free(&last);
    return ok;
}

static int run(const void *opts, char **args, uint32_t count)
{
    (void)args;
    (void)count;
    const struct options *o = opts;
    struct node_call *c = NULL;
    int status = node_connect("top", &o->node, &c);
    if (status)
        return status;
    catch_signals();
    bool live = !o->once && !o->json && isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    if (live) {
        take_screen();
        atexit(restore);
    }
    char why[512];
    bool ok = look(o, c, o->once ? 1 : o->count, why, sizeof why);
    restore();
    node_call_close(c);
    return ok ? CLI_OK : cli_fail(CLI_FAILED, "top: %s", why);
}

const struct cli_command cli_top = {
    .name = "top",
    .args = "",
    .options = options,
    .options_size = sizeof(struct options),
    .run = run,
    .help = "a node live: rates, hit share in tokens, tiers, evictions, leases, clients",
    .more = "Keys: q ends it. Without a terminal it prints a page a look, with --json a line.\n",
};
