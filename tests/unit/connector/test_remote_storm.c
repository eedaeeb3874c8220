/* Many threads on a node that is killed, stopped and started again at random: every call returns
 * within its deadline, and every byte of a hit or a view is right. CAIRN_TEST_FULL: a minute of
 * it. */
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/clock.h"
#include "tests/helpers/seed.h"
#include "tests/helpers/stall.h"
#include "tests/unit/connector/open_store.h"

#define MS 1000000ull
#define KEYS 40u
#define BATCH 6u
#define LEN_MAX 400000u
#define THREADS 4u

static atomic_bool over;
static _Atomic uint64_t calls, hits, views, slowest;
static _Atomic(const char *) fault;

static void setup(void)
{
    if (!store_remote())
        setenv("CAIRN_TEST_STORE", "unix", 1);
    store_open("");
    cairn_close(store);
    store = NULL;
    char *query = strchr(store_uri, '?');
    snprintf(query, sizeof store_uri - (size_t)(query - store_uri),
             "?timeout=200ms&connections=3&window=1MiB%s",
             strcmp(store_kind(), "bytes") == 0 ? "&attach=no" : "");
    open_uri();
}

TestSuite(storm, .init = setup, .fini = store_end, .timeout = 300);

static size_t len_of(uint64_t id)
{
    return VALUE_NAMED + id * 7919 % LEN_MAX;
}

static void wrong(const char *what)
{
    const char *none = NULL;
    atomic_compare_exchange_strong(&fault, &none, what);
}

/* Any generation, but whole. */
static void check(const void *bytes, uint64_t id, const char *what)
{
    uint64_t generation = value_generation(bytes, len_of(id), id);
    if (!generation || value_check(bytes, id, generation, 0, len_of(id)) != len_of(id))
        wrong(what);
}

static void took(uint64_t begin, uint64_t timeout)
{
    uint64_t ns = cairn_now_ns() - begin, most = atomic_load(&slowest);
    while (ns > most && !atomic_compare_exchange_weak(&slowest, &most, ns)) {
    }
    if (ns > timeout + STALL_NS)
        wrong("a call took longer than its timeout");
    atomic_fetch_add(&calls, 1);
}

struct hand {
    struct rng rng;
    uint8_t *bytes[BATCH];
    cairn_session *session;
};

static void put_some(struct hand *h, uint64_t first, uint64_t timeout)
{
    struct cairn_put puts[BATCH] = {0};
    struct cairn_iov iov[BATCH];
    for (uint64_t i = 0; i < BATCH; i++) {
        uint64_t id = 1 + (first + i) % KEYS;
        value_fill(h->bytes[i], id, 1 + rng_below(&h->rng, 1000), 0, len_of(id));
        iov[i] = (struct cairn_iov){h->bytes[i], len_of(id)};
        puts[i] = (struct cairn_put){.key = key_of(id), .value = {.iov = &iov[i], .count = 1},
                                     .flags = rng_one_in(&h->rng, 2) ? CAIRN_PUT_REPLACE : 0};
    }
    uint64_t begin = cairn_now_ns();
    cairn_put(store, puts, BATCH, timeout);
    took(begin, timeout);
}

static void get_some(struct hand *h, uint64_t first, uint64_t timeout)
{
    struct cairn_get gets[BATCH] = {0};
    struct cairn_iov iov[BATCH];
    for (uint64_t i = 0; i < BATCH; i++) {
        uint64_t id = 1 + (first + i) % KEYS;
        iov[i] = (struct cairn_iov){h->bytes[i], len_of(id)};
        gets[i] = (struct cairn_get){.key = key_of(id), .out = {.iov = &iov[i], .count = 1}};
    }
    uint64_t begin = cairn_now_ns();
    cairn_get(store, gets, BATCH, timeout, NULL);
    took(begin, timeout);
    for (uint64_t i = 0; i < BATCH; i++)
        if (gets[i].status == CAIRN_OK) {
            atomic_fetch_add(&hits, 1);
            check(h->bytes[i], 1 + (first + i) % KEYS, "wrong bytes of a hit");
        } else if (gets[i].status != CAIRN_MISS && gets[i].status != CAIRN_TIMEOUT) {
            wrong("a get is neither hit, miss nor late");
        }
}

static void lease_some(struct hand *h, uint64_t first, uint64_t timeout)
{
    struct cairn_key keys[2] = {key_of(1 + first % KEYS), key_of(1 + (first + 1) % KEYS)};
    cairn_lease *lease;
    size_t held;
    uint64_t begin = cairn_now_ns();
    cairn_status st = cairn_lease_take(h->session, keys, 2, 500 * MS, timeout, &lease, &held);
    took(begin, timeout);
    if (st)
        return;
    for (size_t i = 0; i < held; i++) {
        const void *at;
        uint64_t len;
        if (cairn_lease_view(lease, i, &at, &len))
            continue;
        usleep((useconds_t)rng_below(&h->rng, 20000));
        atomic_fetch_add(&views, 1);
        if (len != len_of(1 + (first + i) % KEYS))
            wrong("a view of another length");
        else
            check(at, 1 + (first + i) % KEYS, "wrong bytes in a view");
    }
    cairn_lease_release(lease);
}

static void *work(void *arg)
{
    struct hand h = {.rng = {.state = (uint64_t)(uintptr_t)arg}};
    for (size_t i = 0; i < BATCH; i++)
        h.bytes[i] = malloc(LEN_MAX + VALUE_NAMED);
    if (cairn_session_open(store, &h.session) != CAIRN_OK)
        wrong("no session");
    while (!atomic_load(&over) && !atomic_load(&fault)) {
        uint64_t first = rng_below(&h.rng, KEYS), timeout = (1 + rng_below(&h.rng, 300)) * MS;
        struct cairn_key key = key_of(1 + first);
        cairn_status result;
        switch (rng_below(&h.rng, 8)) {
        case 0: case 1: put_some(&h, first, timeout); break;
        case 2: lease_some(&h, first, timeout); break;
        case 3: (void)cairn_lookup(store, &key, 1); break;
        case 4: (void)cairn_delete(store, &key, 1, timeout, &result); break;
        default: get_some(&h, first, timeout); break;
        }
    }
    cairn_session_close(h.session);
    for (size_t i = 0; i < BATCH; i++)
        free(h.bytes[i]);
    return NULL;
}

static void harm(struct rng *rng)
{
    usleep((useconds_t)rng_below(rng, 300000));
    switch (rng_below(rng, 4)) {
    case 0:
        node_end(&node, SIGKILL);
        usleep((useconds_t)rng_below(rng, 300000));
        cr_assert(node_start(&node));
        break;
    case 1:
        node_end(&node, SIGTERM);
        cr_assert(node_start(&node));
        break;
    default:
        node_stall(&node);
        usleep((useconds_t)rng_below(rng, 500000));
        node_go_on(&node);
    }
}

static bool back(void)
{
    for (int i = 0; i < 6000; i++) {
        if (put_flags(1, 1, len_of(1), CAIRN_PUT_REPLACE) == CAIRN_OK)
            return true;
        usleep(10000);
    }
    return false;
}

Test(storm, every_byte_is_right_and_every_call_returns)
{
    pthread_t threads[THREADS];
    struct rng rng = test_rng("storm");
    const char *full = getenv("CAIRN_TEST_FULL");
    uint64_t length = (full && full[0] ? 60 : 6) * 1000 * MS;
    for (size_t i = 0; i < THREADS; i++)
        pthread_create(&threads[i], NULL, work, (void *)(uintptr_t)rng_next(&rng));
    uint64_t begin = cairn_now_ns();
    while (cairn_now_ns() - begin < length && !atomic_load(&fault))
        harm(&rng);
    /* A busy machine may not have come to a hit in between. */
    while (!(atomic_load(&hits) && atomic_load(&views)) && !atomic_load(&fault) &&
           cairn_now_ns() - begin < length + STALL_NS)
        usleep(10000);
    atomic_store(&over, true);
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    cr_assert_null(atomic_load(&fault), "%s", atomic_load(&fault));
    cr_assert(back(), "the client never came back");
    for (int i = 0; i < 3000 && stat_number("\"leased_bytes\":"); i++)
        usleep(10000);
    cr_assert_eq(stat_number("\"leased_bytes\":"), 0, "leases were left behind");
    fprintf(stderr,
            "%" PRIu64 " calls, %" PRIu64 " hits, %" PRIu64 " views, slowest %" PRIu64 " ms\n",
            atomic_load(&calls), atomic_load(&hits), atomic_load(&views),
            (uint64_t)(atomic_load(&slowest) / MS));
    cr_assert(atomic_load(&hits) > 0 && atomic_load(&views) > 0, "this proves nothing");
}
