/* A log whose device dies under it is closed at once: what is left to do can never be done. */
#include <criterion/criterion.h>

#include <stdlib.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/helpers/log_host.h"
#include "tests/helpers/stall.h"
#include "tests/sim/ioq_sim.h"

#define MIB (1024u * 1024u)

/* Puts until the device is gone and the tier has noticed. */
static void fill_until_dead(struct log_host *h, struct cairn_sim *s)
{
    for (uint64_t id = 1; !cairn_sim_dead(s); id++)
        host_put(h, id % 1000, 300000);
    for (uint64_t id = 1; id < 20; id++)
        host_put(h, id, 4096);
}

Test(log_off, closes_at_once_when_the_device_is_gone, .timeout = 120)
{
    char path[] = "./cairn-log-off-XXXXXX";
    int fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    close(fd);
    for (uint64_t ios = 20; ios < 200; ios += 5) {
        struct cairn_sim *s = cairn_sim_create(&(struct cairn_sim_opts){.seed = ios});
        struct log_host *h = calloc(1, sizeof(*h));
        unlink(path);
        host_init(h, path, 64 * MIB, "pool");
        h->o.ioq = &cairn_ioq_sim;
        h->o.ioq_arg = s;
        h->o.errors_max = 1 + ios / 5 % 6;
        cr_assert_eq(host_open(h), CAIRN_OK, "%s", h->err);
        cairn_sim_die_after(s, ios);
        fill_until_dead(h, s);
        uint64_t begin = cairn_now_ns();
        cr_assert(host_close(h));
        cr_assert_lt(cairn_now_ns() - begin, 4 * CAIRN_NS_PER_S + STALL_NS, "died after %lu ios",
                     (unsigned long)ios);
        host_fini(h);
        free(h);
        cairn_sim_destroy(s);
    }
    unlink(path);
}
