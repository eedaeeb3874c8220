/* Submitted calls: same results as blocking ones, an eventfd, a bound. */
#include <poll.h>

#include "tests/unit/connector/open_store.h"

#define LEN 20000u
#define COUNT 40u

static cairn_queue *queue;

static void setup(void)
{
    store_open("");
    cr_assert_eq(cairn_queue_open(store, &queue), CAIRN_OK);
}

static void teardown(void)
{
    cairn_queue_close(queue);
    store_end();
}

TestSuite(queue, .init = setup, .fini = teardown, .timeout = 60);

static void wait_readable(void)
{
    struct pollfd p = {.fd = cairn_queue_fd(queue), .events = POLLIN};
    cr_assert_eq(poll(&p, 1, 20000), 1, "the eventfd never became readable");
}

Test(queue, puts_and_gets_complete_once_each)
{
    static uint8_t bytes[COUNT][LEN], got[COUNT][LEN];
    struct cairn_iov in[COUNT], out[COUNT];
    struct cairn_put puts[COUNT];
    struct cairn_get gets[COUNT];
    int seen[COUNT] = {0};
    memset(puts, 0, sizeof puts);
    memset(gets, 0, sizeof gets);
    for (size_t i = 0; i < COUNT; i++) {
        value_fill(bytes[i], i, 1, 0, LEN);
        in[i] = (struct cairn_iov){bytes[i], LEN};
        out[i] = (struct cairn_iov){got[i], LEN};
        puts[i] = (struct cairn_put){.key = key_of(i), .value = {&in[i], 1, CAIRN_MEM_HOST}};
        gets[i] = (struct cairn_get){.key = key_of(i), .out = {&out[i], 1, CAIRN_MEM_HOST}};
        cr_assert_eq(cairn_submit_put(queue, &puts[i], 1, PATIENCE, &seen[i]), CAIRN_OK);
    }
    for (int round = 0; round < 2; round++) {
        for (size_t done = 0; done < COUNT;) {
            struct cairn_completion c[7];
            wait_readable();
            size_t n = cairn_poll(queue, c, 7, PATIENCE);
            for (size_t i = 0; i < n; i++) {
                cr_assert_eq(c[i].status, CAIRN_OK);
                cr_assert_eq(c[i].hits, 1);
                ++*(int *)c[i].tag;
            }
            done += n;
        }
        for (size_t i = 0; i < COUNT && round == 0; i++)
            cr_assert_eq(cairn_submit_get(queue, &gets[i], 1, PATIENCE, &seen[i]), CAIRN_OK);
    }
    for (size_t i = 0; i < COUNT; i++) {
        cr_assert_eq(seen[i], 2);
        cr_assert_eq(memcmp(got[i], bytes[i], LEN), 0);
    }
    struct cairn_completion none;
    cr_assert_eq(cairn_poll(queue, &none, 1, 0), 0);
    struct pollfd p = {.fd = cairn_queue_fd(queue), .events = POLLIN};
    cr_assert_eq(poll(&p, 1, 0), 0, "readable with nothing to take");
}

Test(queue, full_is_busy_and_keeps_nothing)
{
    static uint8_t got[LEN];
    struct cairn_iov out = {got, LEN};
    struct cairn_get gets[300];
    size_t accepted = 0;
    for (size_t i = 0; i < 300; i++) {
        gets[i] = (struct cairn_get){.key = key_of(i), .out = {&out, 1, CAIRN_MEM_HOST}};
        cairn_status st = cairn_submit_get(queue, &gets[i], 1, PATIENCE, NULL);
        cr_assert(st == CAIRN_OK || st == CAIRN_BUSY);
        accepted += st == CAIRN_OK;
    }
    cr_assert_eq(accepted, 256, "nothing was polled, so the bound is what was accepted");
    for (size_t done = 0; done < accepted;) {
        struct cairn_completion c[64];
        size_t n = cairn_poll(queue, c, 64, PATIENCE);
        cr_assert_gt(n, 0);
        for (size_t i = 0; i < n; i++)
            cr_assert_eq(c[i].status, CAIRN_MISS);
        done += n;
    }
}
