/* Runner behind criterion/criterion.h of this folder. */
#include "criterion/criterion.h"

#include <signal.h>
#include <stdarg.h>
#include <sys/wait.h>

#define EXIT_FAILED 1
#define EXIT_SKIPPED 77
#define DEFAULT_TIMEOUT 600.0
#define AT_ONCE 3 /* they sleep much of the time */

static struct inproc_test *tests;
static struct inproc_suite *suites;
static int failures;

void inproc_register(struct inproc_test *t)
{
    t->next = tests;
    tests = t;
}

void inproc_register_suite(struct inproc_suite *s)
{
    s->next = suites;
    suites = s;
}

void inproc_check(bool ok, bool fatal, const char *file, int line, const char *what,
                  const char *format, ...)
{
    va_list ap;

    if (ok)
        return;
    failures++;
    printf("%s:%d: %s ", file, line, what);
    va_start(ap, format);
    vprintf(format, ap);
    va_end(ap);
    putchar('\n');
    fflush(stdout);
    if (fatal)
        _exit(EXIT_FAILED);
}

_Noreturn void inproc_skip(const char *format, ...)
{
    va_list ap;

    va_start(ap, format);
    vprintf(format, ap);
    va_end(ap);
    putchar('\n');
    fflush(stdout);
    _exit(EXIT_SKIPPED);
}

static const struct inproc_data *suite_data(const char *name)
{
    static const struct inproc_data none;
    const struct inproc_suite *s;

    for (s = suites; s; s = s->next) {
        if (!strcmp(s->name, name))
            return &s->data;
    }
    return &none;
}

static _Noreturn void run_child(const struct inproc_test *t, const struct inproc_data *suite)
{
    void (*init)(void) = t->data.init ? t->data.init : suite->init;
    void (*fini)(void) = t->data.fini ? t->data.fini : suite->fini;
    double limit = t->data.timeout > 0 ? t->data.timeout : suite->timeout;

    /* The same test is several times slower under TSan than the limit was written for. */
    alarm((unsigned)(limit > 0 ? limit * 10 : DEFAULT_TIMEOUT));
    if (init)
        init();
    t->body();
    if (fini)
        fini();
    fflush(stdout);
    exit(failures ? EXIT_FAILED : 0);
}

static bool as_expected(const struct inproc_test *t, int status)
{
    if (t->data.signal)
        return WIFSIGNALED(status) && WTERMSIG(status) == t->data.signal;
    return WIFEXITED(status) && WEXITSTATUS(status) == t->data.exit_code;
}

struct counts {
    int tested, failed, crashed, skipped;
};

static void judge(const struct inproc_test *t, int status, struct counts *c)
{
    if (as_expected(t, status))
        return;
    if (WIFEXITED(status) && WEXITSTATUS(status) == EXIT_SKIPPED) {
        printf("[SKIP] %s::%s\n", t->suite, t->name);
        c->skipped++;
        return;
    }
    printf("[FAIL] %s::%s: wait status 0x%x\n", t->suite, t->name, (unsigned)status);
    if (WIFSIGNALED(status))
        c->crashed++;
    else
        c->failed++;
}

/* Waits for one child; false when there is none. */
static bool reap(struct counts *c)
{
    int status = 0;
    pid_t pid = wait(&status);

    for (const struct inproc_test *t = tests; pid > 0 && t; t = t->next) {
        if (t->pid == pid)
            judge(t, status, c);
    }
    return pid > 0;
}

int main(void)
{
    struct counts c = {0};
    int running = 0;

    setvbuf(stdout, NULL, _IOLBF, 0);
    for (struct inproc_test *t = tests; t; t = t->next) {
        const struct inproc_data *suite = suite_data(t->suite);

        if (t->data.disabled || suite->disabled)
            continue;
        if (running == AT_ONCE && reap(&c))
            running--;
        c.tested++;
        running++;
        fflush(stdout);
        t->pid = fork();
        if (t->pid == 0)
            run_child(t, suite);
    }
    while (reap(&c))
        ;
    printf("[====] Synthesis: Tested: %d | Passing: %d | Failing: %d | Crashing: %d\n", c.tested,
           c.tested - c.failed - c.crashed - c.skipped, c.failed, c.crashed);
    return c.failed || c.crashed;
}
