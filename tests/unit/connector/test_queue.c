/* Submitted calls: same results as blocking ones, an eventfd, a bound. */
#include <dirent.h>
#include <poll.h>
#include <sched.h>

#include "tests/unit/connector/open_store.h"

#define LEN 20000u
#define COUNT 40u

static cairn_queue *queue;

static void setup(void)
{
    store_open("ram=192MiB");
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

static int threads(void)
{
    DIR *d = opendir("/proc/self/task");
    int n = 0;
    cr_assert_not_null(d);
    for (const struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* The threads that the first queue of a store starts. */
static int workers(const char *option)
{
    cairn_queue_close(queue);
    cairn_close(store);
    strncat(store_uri, option, sizeof store_uri - strlen(store_uri) - 1);
    open_uri();
    int before = threads();
    cr_assert_eq(cairn_queue_open(store, &queue), CAIRN_OK);
    return threads() - before;
}

Test(queue, as_many_workers_as_fit_the_machine_or_as_said)
{
    cpu_set_t all, one;
    cr_assert_eq(sched_getaffinity(0, sizeof all, &all), 0);
    int half = CPU_COUNT(&all) / 2;
    cr_assert_eq(workers(""), half < 2 ? 2 : half > 4 ? 4 : half);
    CPU_ZERO(&one);
    for (int i = 0; CPU_COUNT(&one) == 0; i++)
        if (CPU_ISSET(i, &all))
            CPU_SET(i, &one);
    cr_assert_eq(sched_setaffinity(0, sizeof one, &one), 0);
    cr_assert_eq(workers(""), 2);
    cr_assert_eq(workers("&workers=7"), 7);
    cr_assert_eq(sched_setaffinity(0, sizeof all, &all), 0);
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
        puts[i] = (struct cairn_put){.key = key_of(i), .value = {.iov = &in[i], .count = 1}};
        gets[i] = (struct cairn_get){.key = key_of(i), .out = {.iov = &out[i], .count = 1}};
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
        gets[i] = (struct cairn_get){.key = key_of(i), .out = {.iov = &out, .count = 1}};
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

Test(queue, several_calls_at_once_complete_each_for_itself)
{
    static uint8_t bytes[LEN], got[6][LEN];
    const struct cairn_call calls[] = {{3, &got[0]}, {0, &got[1]}, {1, &got[3]}, {2, &got[4]}};
    struct cairn_iov in = {bytes, LEN}, out[6];
    struct cairn_get gets[6];
    bool seen[6] = {false};
    for (size_t i = 0; i < 6; i++) {
        out[i] = (struct cairn_iov){got[i], LEN};
        gets[i] = (struct cairn_get){.key = key_of(i), .out = {.iov = &out[i], .count = 1}};
        struct cairn_put put = {.key = key_of(i), .value = {.iov = &in, .count = 1}};
        value_fill(bytes, i, 1, 0, LEN);
        if (i != 2 && i != 3) /* of the first call one is missing, of the third all */
            cr_assert_eq(cairn_put(store, &put, 1, PATIENCE), CAIRN_OK);
    }
    cr_assert_eq(cairn_submit_gets(queue, gets, calls, 4, PATIENCE), 4);
    for (size_t done = 0; done < 4;) {
        struct cairn_completion c[4];
        size_t n = cairn_poll(queue, c, 4, PATIENCE);
        cr_assert_gt(n, 0);
        for (size_t i = 0; i < n; i++) {
            size_t first = (size_t)((uint8_t *)c[i].tag - got[0]) / LEN;
            cr_assert_eq(c[i].hits, first == 0 || first == 4 ? 2 : 0, "of %zu", first);
            cr_assert_not(seen[first]);
            seen[first] = true;
        }
        done += n;
    }
    for (size_t i = 0; i < 6; i++) {
        bool held = i != 2 && i != 3;
        cr_assert_eq(gets[i].status, held ? CAIRN_OK : CAIRN_MISS);
        cr_assert(!held || value_check(got[i], i, 1, 0, LEN) == LEN, "wrong bytes");
    }
}

Test(queue, of_too_many_calls_the_first_are_taken)
{
    static uint8_t got[LEN];
    static struct cairn_get gets[300];
    static struct cairn_call calls[300];
    struct cairn_iov out = {got, LEN};
    for (size_t i = 0; i < 300; i++) {
        gets[i] = (struct cairn_get){.key = key_of(i), .out = {.iov = &out, .count = 1}};
        gets[i].status = CAIRN_INPROGRESS;
        calls[i] = (struct cairn_call){1, &gets[i]};
    }
    cr_assert_eq(cairn_submit_gets(queue, gets, calls, 300, PATIENCE), 256);
    cr_assert_eq(cairn_submit_gets(queue, gets, calls, 1, PATIENCE), 0);
    for (size_t done = 0; done < 256;) {
        struct cairn_completion c[64];
        size_t n = cairn_poll(queue, c, 64, PATIENCE);
        cr_assert_gt(n, 0);
        for (size_t i = 0; i < n; i++)
            cr_assert_eq(((struct cairn_get *)c[i].tag)->status, CAIRN_MISS);
        done += n;
    }
    cr_assert_eq(gets[256].status, CAIRN_INPROGRESS, "a call that was not taken is not touched");
    cr_assert_eq(cairn_submit_gets(queue, gets, calls, 0, PATIENCE), 0);
}

#define LARGE (1u << 20)
#define MANY 24u /* several parts of a job */

struct batch {
    struct cairn_iov iov[MANY];
    struct cairn_put puts[MANY];
    struct cairn_get gets[MANY];
};

static void batch_make(struct batch *b, uint8_t *bytes, uint64_t first_key)
{
    memset(b, 0, sizeof *b);
    for (size_t i = 0; i < MANY; i++) {
        b->iov[i] = (struct cairn_iov){bytes + i * LARGE, LARGE};
        struct cairn_sgl list = {.iov = &b->iov[i], .count = 1};
        b->puts[i] = (struct cairn_put){.key = key_of(first_key + i), .value = list};
        b->gets[i] = (struct cairn_get){.key = key_of(first_key + i), .out = list};
    }
}

static struct cairn_completion next_done(void)
{
    struct cairn_completion c;
    cr_assert_eq(cairn_poll(queue, &c, 1, PATIENCE), 1);
    return c;
}

Test(queue, a_large_job_is_done_when_all_of_its_parts_are)
{
    static uint8_t bytes[MANY * LARGE], want[MANY * LARGE];
    static struct batch b;
    batch_make(&b, bytes, 100);
    value_fill(want, 1, 1, 0, sizeof want);
    memcpy(bytes, want, sizeof bytes);
    cr_assert_eq(cairn_submit_put(queue, b.puts, MANY - 1, PATIENCE, NULL), CAIRN_OK);
    struct cairn_completion c = next_done();
    cr_assert_eq(c.status, CAIRN_OK);
    cr_assert_eq(c.hits, MANY - 1);
    for (int round = 0; round < 20; round++) {
        memset(bytes, 0, sizeof bytes);
        cr_assert_eq(cairn_submit_get(queue, b.gets, MANY, PATIENCE, &b), CAIRN_OK);
        c = next_done();
        cr_assert_eq(c.tag, &b);
        cr_assert_eq(c.status, CAIRN_MISS, "the last key was not put");
        cr_assert_eq(c.hits, MANY - 1);
        cr_assert_eq(memcmp(bytes, want, (MANY - 1) * LARGE), 0);
    }
}

/* How many of four large puts that were submitted before a get are done after it. */
static size_t puts_overtaken(void)
{
    static uint8_t bytes[MANY * LARGE], got[LEN];
    static struct batch b[4];
    struct cairn_iov out = {got, LEN};
    struct cairn_get get = {.key = key_of(1), .out = {.iov = &out, .count = 1}};
    for (size_t i = 0; i < 4; i++) {
        batch_make(&b[i], bytes, 100 * i + 100);
        cr_assert_eq(cairn_submit_put(queue, b[i].puts, MANY, PATIENCE, &b[i]), CAIRN_OK);
    }
    cr_assert_eq(cairn_submit_get(queue, &get, 1, PATIENCE, &get), CAIRN_OK);
    size_t puts_before = 0, puts_after = 0;
    bool got_it = false;
    for (size_t i = 0; i < 5; i++) {
        struct cairn_completion c = next_done();
        if (c.tag == &get)
            got_it = true;
        else
            *(got_it ? &puts_after : &puts_before) += 1;
    }
    cr_assert(got_it);
    return puts_after;
}

/* The thread that gets may stand still on a busy machine, but not every time. */
Test(queue, a_get_does_not_wait_for_puts)
{
    size_t most = 0;
    for (int i = 0; i < 100 && most < 2; i++) {
        size_t overtaken = puts_overtaken();
        most = overtaken > most ? overtaken : most;
    }
    cr_assert_gt(most, 1);
}
