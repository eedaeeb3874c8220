#include <criterion/criterion.h>

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/helpers/log_host.h"
#include "tests/helpers/seed.h"

#define MIB (1ull << 20)

static char path[128];

static void path_make(void)
{
    snprintf(path, sizeof path, "/var/tmp/cairn-test-log-%d", (int)getpid());
    unlink(path);
}

static void path_remove(void)
{
    unlink(path);
}

TestSuite(log, .init = path_make, .fini = path_remove, .timeout = 120);

static const char *const engines[] = {"uring", "pool"};

static bool runs_here(const char *engine)
{
    char why[256];
    const struct cairn_ioq_ops *q = cairn_ioq_find(engine);
    return q && q->probe(why, sizeof why);
}

static void open_ok(struct log_host *h)
{
    cr_assert_eq(host_open(h), CAIRN_OK, "%s", h->err);
}

static void reopen(struct log_host *h)
{
    cr_assert(host_close(h));
    host_forget(h);
    open_ok(h);
}

Test(log, values_come_back_also_after_a_restart)
{
    for (int e = 0; e < 2; e++) {
        if (!runs_here(engines[e]))
            continue;
        static const uint32_t lens[] = {1, 4095, 4096, 65536, 262144, 262145, 1000000};
        struct log_host h;
        host_init(&h, path, 64 * MIB, engines[e]);
        open_ok(&h);
        for (uint32_t i = 0; i < 7; i++)
            cr_assert_eq(host_put(&h, i, lens[i]), CAIRN_OK);
        for (uint32_t i = 0; i < 7; i++)
            cr_assert_eq(host_get(&h, i), CAIRN_OK);
        cr_assert_eq(host_sync(&h), CAIRN_OK);
        reopen(&h);
        cr_assert_eq(h.recovered, 7, "%d recovered", (int)h.recovered);
        for (uint32_t i = 0; i < 7; i++)
            cr_assert_eq(host_get(&h, i), CAIRN_OK);
        cr_assert_eq(host_get_part(&h, 6, 1, 2), CAIRN_OK);
        cr_assert_eq(host_get_part(&h, 6, 3, 1), CAIRN_OK);
        cr_assert_eq(host_get_part(&h, 6, 0, 1), CAIRN_OK);
        cr_assert(host_close(&h));
        host_fini(&h);
        unlink(path);
    }
}
