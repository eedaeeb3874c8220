/* What reclaim takes first, and what it keeps of a chain: on a log that turns over step by step. */
#include <stdlib.h>

#define LEN 60000u
#include "tests/helpers/box.h"

#define CHAIN 6u      /* keys 1 to 6, head first; record of 64 KiB each                        */
#define OTHERS 100u   /* the first key that nobody asks for again                              */
#define FREE_MIN 2u   /* segments that reclaim keeps free: until then it has not come to rest  */

static struct box b;

static void setup(void)
{
    b = (struct box){.path = "chain-XXXXXX"};
    int fd = mkstemp(b.path);
    cr_assert_geq(fd, 0);
    close(fd);
    unlink(b.path);
    b.sim = cairn_sim_create(&(struct cairn_sim_opts){.seed = 1});
    /* Of a segment of 1 MiB a tenth is carried over at most: one value. */
    b.o = (struct cairn_vault_opts){.ram_bytes = 4u << 20,
                                    .disk_bytes = 32u << 20,
                                    .path = b.path,
                                    .policy = "lru",
                                    .engine = "sim",
                                    .ioq = &cairn_ioq_sim,
                                    .ioq_arg = b.sim,
                                    .lock_wait_ns = RIG_SECOND,
                                    .io_deadline_ns = RIG_PATIENCE,
                                    .errors_max = 1000,
                                    .reinsert_percent = 10};
    box_open(&b);
}

static void teardown(void)
{
    box_fini(&b);
}

TestSuite(store_chain, .init = setup, .fini = teardown, .timeout = 240);

static void put_chain(void)
{
    static uint8_t bytes[CHAIN][LEN];
    struct cairn_iov iov[CHAIN];
    struct cairn_put puts[CHAIN];
    for (uint32_t i = 0; i < CHAIN; i++) {
        puts[i] = (struct cairn_put){.key = key_of(i + 1),
                                     .value = rig_sgl(&iov[i], bytes[i], LEN)};
        if (i > 0)
            puts[i].parent = key_of(i);
        value_fill(bytes[i], i + 1, 1, 0, LEN);
    }
    cr_assert_eq(cairn_vault_put(b.v, puts, CHAIN, deadline(), NULL), CAIRN_OK);
    cr_assert_eq(flush(&b), CAIRN_OK);
}

static double stat_of(const char *name)
{
    static char text[1u << 16];
    char quoted[64];
    cairn_vault_stats(b.v, 0, text, sizeof text);
    snprintf(quoted, sizeof quoted, "\"%s\":", name);
    const char *at = strstr(text, quoted);
    cr_assert_not_null(at, "no %s in the statistics", name);
    return strtod(at + strlen(quoted), NULL);
}

/* Puts what nobody asks for until so many segments were reclaimed; gives the next key. Reclaim is
 * waited for, as without a segment in reserve it carries nothing over. */
static uint64_t turn_over(uint64_t id, uint32_t segments)
{
    while (stat_of("segments_reclaimed") < segments) {
        cr_assert_eq(put(&b, id++, 1, 0), CAIRN_OK);
        cr_assert_eq(flush(&b), CAIRN_OK);
        while (stat_of("segments_free") < FREE_MIN)
            usleep(1000);
        cr_assert_lt(id, OTHERS + 2000);
    }
    return id;
}

static bool held(uint64_t id)
{
    struct cairn_key k = key_of(id);
    return cairn_vault_lookup(b.v, &k, 1) == 1;
}

Test(store_chain, of_one_that_is_asked_for_the_head_stays)
{
    put_chain();
    cairn_vault_drop_ram(b.v);
    for (uint64_t id = 1; id <= CHAIN; id++)
        cr_assert_eq(shown(&b, id), 1);
    turn_over(OTHERS, 1);
    cr_assert_eq(stat_of("reinserted_bytes"), 65536);
    cr_assert_eq(shown(&b, 1), 1, "the head is gone");
    for (uint64_t id = 2; id <= CHAIN; id++)
        cr_assert_eq(shown(&b, id), 0, "chunk %d was kept in its place", (int)id);
    box_reopen(&b);
    cr_assert_eq(shown(&b, 1), 1, "the head did not survive a restart");
}

Test(store_chain, one_that_nobody_asks_for_goes_whole)
{
    put_chain();
    turn_over(OTHERS, 1);
    cr_assert_eq(stat_of("reinserted_bytes"), 0);
    for (uint64_t id = 1; id <= CHAIN; id++)
        cr_assert_not(held(id));
}

Test(store_chain, the_oldest_goes_first)
{
    uint64_t end = turn_over(OTHERS, 5), first = OTHERS;
    while (first < end && !held(first))
        first++;
    cr_assert_geq(first, OTHERS + 5 * 14, "five segments of such values are gone");
    cr_assert_lt(first, OTHERS + 8 * 16);
    for (uint64_t id = first; id < end; id++)
        cr_assert(held(id), "%d went before %d", (int)id, (int)first);
}
