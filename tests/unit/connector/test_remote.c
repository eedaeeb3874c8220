/* What only a store behind a node can do wrong: nodes that are gone, stall, restart or damage their
 * memory; clients that die; addresses. CAIRN_TEST_STORE as in open_store.h, except "embedded". */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "base/log.h"
#include "tests/helpers/stall.h"
#include "tests/unit/connector/open_store.h"

#define MIB (1024u * 1024u)
#define MS 1000000ull
#define QUICK (100 * MS) /* of three calls, under a sanitizer */

static void setup(void)
{
    if (!store_remote())
        setenv("CAIRN_TEST_STORE", "unix", 1);
    store_open("");
}

TestSuite(remote, .init = setup, .fini = store_end, .timeout = 120);
TestSuite(address, .timeout = 60);

static void setup_disk(void)
{
    if (!store_remote())
        setenv("CAIRN_TEST_STORE", "unix", 1);
    store_open("disk=64MiB");
}

TestSuite(remote_disk, .init = setup_disk, .fini = store_end, .timeout = 120);

/* Opens the store again with options of the client. */
static void reopen_with(const char *options)
{
    cairn_close(store);
    store = NULL;
    strncat(store_uri, options, sizeof store_uri - strlen(store_uri) - 1);
    open_uri();
}

static bool attached(void)
{
    return strcmp(store_kind(), "unix") == 0;
}

static cairn_status put_within(uint64_t id, size_t len, uint64_t timeout_ns)
{
    uint8_t *bytes = malloc(len);
    value_fill(bytes, id, 1, 0, len);
    struct cairn_iov iov = {bytes, len};
    struct cairn_put put = {.key = key_of(id), .value = {.iov = &iov, .count = 1}};
    cairn_put(store, &put, 1, timeout_ns);
    free(bytes);
    return put.status;
}

static cairn_status get_within(uint64_t id, size_t len, uint64_t timeout_ns)
{
    uint8_t *bytes = malloc(len);
    struct cairn_iov iov = {bytes, len};
    struct cairn_get get = {.key = key_of(id), .out = {.iov = &iov, .count = 1}};
    cairn_get(store, &get, 1, timeout_ns, NULL);
    if (get.status == CAIRN_OK)
        cr_assert_eq(value_check(bytes, id, 1, 0, len), len, "wrong bytes");
    free(bytes);
    return get.status;
}

/* --- addresses --- */

static void refused(const char *uri, cairn_status status, const char *word)
{
    char err[512] = "";
    cairn_store *none = NULL;
    cr_assert_eq(cairn_open(uri, &none, err, sizeof err), status, "%s: %s", uri, err);
    cr_assert_not_null(strstr(err, word), "%s: %s", uri, err);
    cr_assert_null(none);
}

Test(address, what_is_wrong_is_said_in_a_sentence)
{
    refused("unix:relative.sock", CAIRN_INVAL, "absolute");
    refused("unix:/no/such/cairn.sock", CAIRN_NOTFOUND, "/no/such/cairn.sock");
    refused("tcp://10.0.0.1:7379", CAIRN_UNSUPPORTED, "10.0.0.1");
    refused("tcp://example.org:7379", CAIRN_UNSUPPORTED, "example.org");
    refused("tcp://127.0.0.1", CAIRN_INVAL, "port");
    refused("tcp://127.0.0.1:1?timeout=1s", CAIRN_NOTFOUND, "127.0.0.1:1");
    refused("unix:/x?timout=1s", CAIRN_INVAL, "timeout");
    refused("unix:/x?connections=0", CAIRN_INVAL, "connections");
    refused("unix:relative.sock?lazy=yes", CAIRN_INVAL, "absolute");
    refused("tcp://10.0.0.1:7379?lazy=yes", CAIRN_UNSUPPORTED, "10.0.0.1");
    refused("unix:/x?lazy=perhaps", CAIRN_INVAL, "lazy");
    refused("unix:/x?ram=1GiB", CAIRN_INVAL, "ram");
    refused("http://127.0.0.1:80", CAIRN_INVAL, "unix:/run/cairn/cairn.sock");
    cr_assert_not_null(strstr(cairn_options_help(), "attach=yes"));
}

Test(remote, another_tenant_is_refused_by_the_node)
{
    char uri[300];
    snprintf(uri, sizeof uri, "%s&lazy=yes&tenant=somebody", store_uri);
    refused(uri, CAIRN_UNSUPPORTED, "default");
}

/* --- bytes --- */

Test(remote, values_of_all_sizes_in_scattered_memory)
{
    static const size_t sizes[] = {1, 4095, 4096, 4097, 262143, 262144, 262145, 3 * MIB + 17};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        size_t len = sizes[i], cut = len / 3;
        uint8_t *bytes = malloc(len), *got = malloc(len);
        value_fill(bytes, i + 1, 1, 0, len);
        struct cairn_iov in[4] = {
            {bytes, cut}, {NULL, 0}, {bytes + cut, 1}, {bytes + cut + 1, len - cut - 1}};
        struct cairn_iov out[3] = {{got, len - cut}, {got + len - cut, cut}, {NULL, 0}};
        struct cairn_put put = {.key = key_of(i + 1), .value = {.iov = in, .count = 4}};
        struct cairn_get get = {.key = key_of(i + 1), .out = {.iov = out, .count = 3}};
        cr_assert_eq(cairn_put(store, &put, 1, PATIENCE), CAIRN_OK, "%zu", len);
        cr_assert_eq(cairn_get(store, &get, 1, PATIENCE, NULL), CAIRN_OK, "%zu", len);
        cr_assert_eq(memcmp(bytes, got, len), 0, "%zu", len);
        cr_assert_eq(cairn_value_len(store, &put.key), len);
        free(bytes);
        free(got);
    }
}

/* More than the window holds at once, and values that it never holds. */
Test(remote, batches_larger_than_the_window)
{
    enum { COUNT = 40, LEN = 100000 };
    static uint8_t bytes[COUNT][LEN], got[COUNT][LEN];
    struct cairn_iov in[COUNT], out[COUNT];
    struct cairn_put puts[COUNT] = {0};
    struct cairn_get gets[COUNT] = {0};
    size_t hits;
    reopen_with("&window=256KiB");
    for (size_t i = 0; i < COUNT; i++) {
        size_t len = i % 7 == 3 ? LEN : 1 + i * 2000;
        value_fill(bytes[i], i, 1, 0, len);
        in[i] = (struct cairn_iov){bytes[i], len};
        out[i] = (struct cairn_iov){got[i], len};
        puts[i] = (struct cairn_put){.key = key_of(i), .value = {.iov = &in[i], .count = 1}};
        gets[i] = (struct cairn_get){.key = key_of(i), .out = {.iov = &out[i], .count = 1}};
    }
    cr_assert_eq(cairn_put(store, puts, COUNT, PATIENCE), CAIRN_OK);
    cr_assert_eq(cairn_get(store, gets, COUNT, PATIENCE, &hits), CAIRN_OK);
    cr_assert_eq(hits, COUNT);
    for (size_t i = 0; i < COUNT; i++)
        cr_assert_eq(memcmp(bytes[i], got[i], in[i].len), 0);
    cr_assert_eq(put_id(1000, MIB), CAIRN_OK, "a value larger than the window");
    cr_assert_eq(get_id(1000, 1, MIB), CAIRN_OK);
}

/* What is not held lies between what is. */
Test(remote, holes_in_a_batch)
{
    enum { COUNT = 150, LEN = 3000 };
    static uint8_t got[COUNT][LEN];
    struct cairn_iov out[COUNT];
    struct cairn_get gets[COUNT] = {0};
    size_t hits;
    for (uint64_t i = 0; i < COUNT; i++) {
        if (i % 3)
            cr_assert_eq(put_id(i, LEN), CAIRN_OK);
        out[i] = (struct cairn_iov){got[i], LEN};
        gets[i] = (struct cairn_get){.key = key_of(i), .out = {.iov = &out[i], .count = 1}};
    }
    cr_assert_eq(cairn_get(store, gets, COUNT, PATIENCE, &hits), CAIRN_MISS);
    cr_assert_eq(hits, COUNT - COUNT / 3);
    for (uint64_t i = 0; i < COUNT; i++) {
        cr_assert_eq(gets[i].status, i % 3 ? CAIRN_OK : CAIRN_MISS);
        if (i % 3)
            cr_assert_eq(value_check(got[i], i, 1, 0, LEN), LEN);
    }
}

/* More threads than connections: all are served, none sees another's bytes. */
static void *hammer(void *arg)
{
    uint64_t base = (uint64_t)(uintptr_t)arg * 100;
    for (int round = 0; round < 30; round++)
        for (uint64_t id = base; id < base + 4; id++) {
            size_t len = 1000 + id % 7 * 30000;
            cairn_status st = put_within(id, len, PATIENCE);
            if (st != CAIRN_OK && st != CAIRN_EXISTS && st != CAIRN_NOSPACE)
                return strdup("put failed");
            st = get_within(id, len, PATIENCE);
            if (st != CAIRN_OK && st != CAIRN_MISS)
                return strdup("get failed");
        }
    return NULL;
}

Test(remote, more_threads_than_connections)
{
    pthread_t threads[12];
    void *why;
    reopen_with("&connections=3");
    for (uintptr_t i = 0; i < 12; i++)
        pthread_create(&threads[i], NULL, hammer, (void *)(i + 1));
    for (int i = 0; i < 12; i++) {
        pthread_join(threads[i], &why);
        cr_assert_null(why, "%s", (const char *)why);
    }
    cr_assert_leq(stat_number("\"dials\":"), 3);
}

/* The node again, with so few places, of which the store has one. */
static void reopen_with_few_places(const char *limit)
{
    char err[512];
    cairn_close(store);
    store = NULL;
    node_end(&node, SIGTERM);
    snprintf(node.arguments[node.argument_count++], sizeof node.arguments[0], "%s", limit);
    cr_assert(node_start(&node));
    strncat(store_uri, "&connections=8", sizeof store_uri - strlen(store_uri) - 1);
    /* Whoever asked whether it had started may have its place still. */
    for (int i = 0; cairn_open(store_uri, &store, err, sizeof err) != CAIRN_OK; i++) {
        cr_assert_lt(i, 6000, "%s", err);
        usleep(10000);
    }
}

/* A node that takes no more clients serves those that it has: the calls share the connections that
 * there are, none fails, and the node counts as sound. */
Test(remote, a_node_without_room_for_another_connection_serves_the_one_it_has)
{
    pthread_t threads[12];
    void *why;
    reopen_with_few_places("--clients-max=1");
    node_stall(&node);
    for (uintptr_t i = 0; i < 12; i++)
        pthread_create(&threads[i], NULL, hammer, (void *)(i + 1));
    usleep(100000);
    node_go_on(&node);
    for (int i = 0; i < 12; i++) {
        pthread_join(threads[i], &why);
        cr_assert_null(why, "%s", (const char *)why);
    }
    cr_assert_gt(stat_number("\"dials_refused\":"), 0);
    cr_assert_eq(stat_number("\"refused\":"), 0);
    cr_assert_eq(stat_number("\"timeouts\":"), 0);
}

/* The other one of two places. */
static int other_place(void)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    snprintf(at.sun_path, sizeof at.sun_path, "%s", node.socket);
    for (int i = 0;; i++) {
        char said[8] = "";
        cr_assert_lt(i, 6000, "the node has no second place");
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        cr_assert_eq(connect(fd, (struct sockaddr *)&at, sizeof at), 0);
        if (send(fd, "PING\r\n", 6, MSG_NOSIGNAL) == 6 && recv(fd, said, 7, 0) == 7 &&
            strcmp(said, "+PONG\r\n") == 0)
            return fd;
        close(fd);
        usleep(10000);
    }
}

static _Atomic bool was_refused;

static void note_refusal(void *arg, int level, const char *line)
{
    (void)arg;
    (void)level;
    if (strstr(line, "the node refuses"))
        atomic_store(&was_refused, true);
}

static int paused_at[2], go_on[2];
static char *paused_page;

/* Whoever reads the page stands still until it is told to go on. */
static void pause_reader(int signal)
{
    char one = 0;
    (void)signal;
    if (write(paused_at[1], &one, 1) != 1 || read(go_on[0], &one, 1) != 1)
        _exit(1);
    mprotect(paused_page, 4096, PROT_READ | PROT_WRITE);
}

static void *put_paused(void *arg)
{
    struct cairn_iov iov = {paused_page, 4096};
    struct cairn_put put = {.key = key_of(7), .value = {.iov = &iov, .count = 1}};
    cairn_put(store, &put, 1, PATIENCE);
    return arg;
}

static void *get_beside(void *arg)
{
    *(cairn_status *)arg = get_within(1, 1000, PATIENCE);
    return NULL;
}

/* The node had no room for another connection, and has it again: who waits for the one there is,
 * which may stay taken for long, does not wait for that. */
Test(remote, room_for_another_connection_is_found_while_the_others_are_taken)
{
    pthread_t putting, getting;
    cairn_status got = CAIRN_MISS;
    char one = 0;
    if (!attached())
        cr_skip_test("the kernel reads what is put");
    reopen_with_few_places("--clients-max=2");
    int other = other_place();
    cr_assert_eq(put_id(1, 1000), CAIRN_OK);

    cairn_messages_to(note_refusal, NULL, CAIRN_LOG_DEBUG);
    paused_page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    cr_assert(!pipe(paused_at) && !pipe(go_on));
    sigaction(SIGSEGV, &(struct sigaction){.sa_handler = pause_reader, .sa_flags = SA_RESETHAND},
              NULL);
    pthread_create(&putting, NULL, put_paused, NULL);
    cr_assert_eq(read(paused_at[0], &one, 1), 1);
    pthread_create(&getting, NULL, get_beside, &got);
    while (!atomic_load(&was_refused))
        usleep(1000);
    close(other);
    pthread_join(getting, NULL);
    cr_assert_eq(got, CAIRN_OK);
    cr_assert_eq(write(go_on[1], &one, 1), 1);
    pthread_join(putting, NULL);
}

/* --- nodes that are gone --- */

/* Calls one after another while the node does not answer; how many of the last hundred waited. */
static int calls_without_node(uint64_t timeout_ns)
{
    int waited = 0;
    for (int i = 0; i < 200; i++) {
        uint64_t begin = cairn_now_ns();
        struct cairn_key key = key_of(1);
        cairn_status got = get_within(1, 1000, timeout_ns), put = put_within(2, 1000, timeout_ns);
        cr_assert(got == CAIRN_MISS || got == CAIRN_TIMEOUT, "get: %d", got);
        cr_assert(put == CAIRN_BUSY || put == CAIRN_TIMEOUT || put == CAIRN_IO, "put: %d", put);
        cr_assert_eq(cairn_lookup(store, &key, 1), 0);
        uint64_t took = cairn_now_ns() - begin;
        cr_assert_leq(took, 3 * timeout_ns + STALL_NS);
        waited += i >= 100 && took > QUICK;
    }
    return waited;
}

static void put_until_held(uint64_t id)
{
    cairn_status st;
    for (int i = 0; (st = put_within(id, 1000, PATIENCE)) != CAIRN_OK && st != CAIRN_EXISTS; i++) {
        cr_assert_lt(i, 6000, "the client never came back");
        usleep(10000);
    }
}

/* Until the breaker lets a call through again. */
static void wait_for_node(void)
{
    put_until_held(3);
}

Test(remote, a_killed_node_is_a_fast_miss_until_it_is_back)
{
    cr_assert_eq(put_id(1, 1000), CAIRN_OK);
    node_end(&node, SIGKILL);
    cr_assert_leq(calls_without_node(500 * MS), 50);
    cr_assert_gt(stat_number("\"refused\":"), 100);
    cr_assert_geq(stat_number("\"breaker_opens\":"), 1);
    cr_assert(node_start(&node));
    wait_for_node();
    cr_assert_eq(get_within(1, 1000, PATIENCE), CAIRN_MISS, "the node lost its memory");
    cr_assert_eq(get_within(3, 1000, PATIENCE), CAIRN_OK);
}

static cairn_identity *identity_of(const char *model)
{
    const struct cairn_field fields[] = {{"model", model}, {"chunk_tokens", "16"}};
    cairn_identity *id = NULL;
    cr_assert_eq(cairn_identity_create(fields, 2, &id, NULL, 0), CAIRN_OK);
    return id;
}

static bool node_knows(const cairn_identity *id)
{
    char text[8192];
    cr_assert_lt(cairn_why(store, id, text, sizeof text), sizeof text);
    return strstr(text, "\"known\": true");
}

Test(remote, a_node_may_come_after_its_clients)
{
    char err[512] = "";
    cairn_identity *ids[] = {identity_of("one"), identity_of("another")};
    node_end(&node, SIGKILL);
    cairn_close(store);
    refused(store_uri, CAIRN_NOTFOUND, "start cairnd");
    strcat(store_uri, "&lazy=yes");
    cr_assert_eq(cairn_open(store_uri, &store, err, sizeof err), CAIRN_OK);
    cr_assert_not_null(strstr(err, "start cairnd"), "%s", err);
    cr_assert_eq(cairn_value_max(store), 0);
    cr_assert_leq(calls_without_node(500 * MS), 50);
    for (int i = 0; i < 4; i++)
        cr_assert_neq(cairn_note_identity(store, ids[i % 2]), CAIRN_OK);
    cr_assert(node_start(&node));
    wait_for_node();
    cr_assert_gt(cairn_value_max(store), 0);
    cr_assert_eq(get_within(3, 1000, PATIENCE), CAIRN_OK);
    for (int i = 0; i < 2; i++) {
        cr_assert(node_knows(ids[i]), "it was noted before the node was there");
        cairn_identity_destroy(ids[i]);
    }
}

/* Makes calls until the store's refusal is, or is not, what holds the word ("": none). */
static void refusal_becomes(const char *word)
{
    char why[512];
    uint64_t end = cairn_now_ns() + PATIENCE;
    struct cairn_key key = key_of(1);
    do {
        cr_assert_lt(cairn_now_ns(), end, "the refusal is '%s', not '%s'", why, word);
        cr_assert_eq(cairn_lookup(store, &key, 1), 0);
        usleep(10000);
        cr_assert_eq(cairn_refusal(store, why, sizeof why), strlen(why));
    } while (word[0] ? !strstr(why, word) : why[0] != '\0');
}

static bool stats_say(const char *words)
{
    char text[65536];
    cr_assert_lt(cairn_stats(store, text, sizeof text), sizeof text);
    return strstr(text, words) != NULL;
}

static atomic_int warnings;

static void count_refusals(void *arg, int level, const char *line)
{
    (void)arg;
    if (level == CAIRN_LOG_WARN && strstr(line, "one tenant"))
        atomic_fetch_add(&warnings, 1);
}

Test(remote, a_node_that_comes_later_and_refuses_is_told_of)
{
    char why[4] = "abc";
    cr_assert_eq(cairn_refusal(store, why, sizeof why), 0);
    cr_assert_str_eq(why, "");
    cr_assert(stats_say("\"state\": \"here\", \"refusal\": \"\""));
    node_end(&node, SIGKILL);
    cairn_messages_to(count_refusals, NULL, CAIRN_LOG_DEBUG);
    reopen_with("&lazy=yes&tenant=somebody");
    cr_assert_eq(cairn_refusal(store, why, sizeof why), 0, "nobody is there to refuse");
    cr_assert(stats_say("\"state\": \"away\""));
    cr_assert(node_start(&node));
    refusal_becomes("one tenant");
    cr_assert_gt(cairn_refusal(store, NULL, 0), 20);
    cr_assert_gt(cairn_refusal(store, why, sizeof why), 20);
    cr_assert_eq(strlen(why), sizeof why - 1);
    cr_assert(stats_say("\"state\": \"refuses\", \"refusal\": \""));
    cr_assert(stats_say("has one tenant, \\\"default\\\": give that, or none"));
    cr_assert_not(stats_say("\"dials_refused\": 0"));
    node_end(&node, SIGKILL);
    refusal_becomes("");
    cr_assert(stats_say("\"state\": \"away\""));
    cr_assert_eq(atomic_load(&warnings), 1, "once, however often it was tried");
}

Test(remote, a_value_that_no_node_takes_is_refused_before_any_is_there)
{
    node_end(&node, SIGKILL);
    reopen_with("&lazy=yes");
    cr_assert_eq(put_within(1, ((size_t)64 << 20) + 1, PATIENCE), CAIRN_TOOBIG);
}

/* A connection of no client, and a command that is sent over it. */
static int node_command(const char *line)
{
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    snprintf(at.sun_path, sizeof at.sun_path, "%s", node.socket);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    cr_assert_eq(connect(fd, (struct sockaddr *)&at, sizeof at), 0);
    cr_assert_eq(write(fd, line, strlen(line)), (ssize_t)strlen(line));
    return fd;
}

/* Of INFO. */
static long node_number(const char *name)
{
    char text[32768] = "";
    const char *found = NULL;
    size_t got = 0;
    int fd = node_command("INFO\r\n");
    while (!found || !strchr(found, '\n')) {
        ssize_t n = read(fd, text + got, sizeof text - 1 - got);
        cr_assert_gt(n, 0, "no %s in INFO", name);
        got += (size_t)n;
        found = strstr(text, name);
    }
    close(fd);
    return atol(found + strlen(name));
}

/* A node counts a connection's tokens in chunks of the identity that it was told of last. */
Test(remote, identities_are_told_again_in_their_order)
{
    const char *sizes[] = {"16", "32", "64", "32"};
    for (int i = 0; i < 4; i++) {
        const struct cairn_field fields[] = {{"model", "one"}, {"chunk_tokens", sizes[i]}};
        cairn_identity *id = NULL;
        cr_assert_eq(cairn_identity_create(fields, 2, &id, NULL, 0), CAIRN_OK);
        cr_assert_eq(cairn_note_identity(store, id), CAIRN_OK);
        cairn_identity_destroy(id);
    }
    node_end(&node, SIGKILL);
    cr_assert(node_start(&node));
    wait_for_node();
    long before = node_number("kv_tokens_asked:");
    struct cairn_key key = key_of(7);
    cr_assert_eq(cairn_lookup(store, &key, 1), 0);
    cr_assert_eq(node_number("kv_tokens_asked:") - before, 32);
}

Test(remote, a_stalled_node_may_go_on_after_its_clients_came)
{
    node_stall(&node);
    reopen_with("&lazy=yes&timeout=100ms");
    cr_assert_eq(cairn_value_max(store), 0);
    node_go_on(&node);
    wait_for_node();
    cr_assert_eq(get_within(3, 1000, PATIENCE), CAIRN_OK);
}

Test(remote, a_stalled_node_costs_no_more_than_the_timeout)
{
    reopen_with("&timeout=100ms");
    put_until_held(1);
    node_stall(&node);
    cr_assert_leq(calls_without_node(PATIENCE / 20), 50);
    node_go_on(&node);
    wait_for_node();
    cr_assert_eq(get_within(1, 1000, PATIENCE), CAIRN_OK);
}

Test(remote, a_stalled_node_costs_one_timeout_of_many_calls)
{
    reopen_with("&timeout=2s");
    cr_assert_eq(put_id(1, 1000), CAIRN_OK);
    node_stall(&node);
    int waited = 0;
    for (int i = 0; i < 8; i++) {
        uint64_t begin = cairn_now_ns();
        cr_assert_neq(get_within(1, 1000, PATIENCE), CAIRN_OK);
        waited += cairn_now_ns() - begin > 1000 * MS;
    }
    cr_assert(waited >= 1 && waited <= 4, "%d of 8 calls waited", waited);
    node_go_on(&node);
    wait_for_node();
}

/* Short deadlines against a node that stops and goes on: what comes late is never another's. */
static void *stutter(void *arg)
{
    atomic_bool *over = arg;
    while (!atomic_load(over)) {
        node_stall(&node);
        usleep(15000);
        node_go_on(&node);
        usleep(15000);
    }
    return NULL;
}

Test(remote, late_answers_are_nobodys)
{
    atomic_bool over = false;
    pthread_t thread;
    long hits = 0, late = 0;
    uint64_t begin = cairn_now_ns(), shortest = 3000 * MS;
    for (uint64_t id = 1; id <= 20; id++)
        cr_assert_eq(put_id(id, 2000 + id), CAIRN_OK);
    pthread_create(&thread, NULL, stutter, &over);
    for (uint64_t i = 0; cairn_now_ns() - begin < (hits && late ? shortest : STALL_NS); i++) {
        uint64_t id = 1 + i % 20, called = cairn_now_ns(), timeout = (3 + i % 10) * MS;
        cairn_status st = get_within(id, 2000 + id, timeout);
        cr_assert_leq(cairn_now_ns() - called, timeout + STALL_NS);
        hits += st == CAIRN_OK;
        late += st == CAIRN_TIMEOUT;
    }
    atomic_store(&over, true);
    pthread_join(thread, NULL);
    cr_assert(hits > 0 && late > 0, "%ld hits and %ld late ones prove nothing", hits, late);
    wait_for_node();
    for (int i = 0; i < 3000 && stat_number("\"leased_bytes\":"); i++)
        usleep(10000);
    cr_assert_eq(stat_number("\"leased_bytes\":"), 0, "what timed out holds no memory");
}

Test(remote, a_restart_costs_no_call_that_comes_after_it)
{
    for (int i = 0; i < 5; i++) {
        cr_assert_eq(put_id(1, 1000), CAIRN_OK);
        node_end(&node, i % 2 ? SIGKILL : SIGTERM);
        cr_assert(node_start(&node));
        cr_assert_eq(get_within(1, 1000, PATIENCE), CAIRN_MISS);
    }
}

/* --- leases across all that --- */

static cairn_lease *lease_of(cairn_session *session, uint64_t id, uint64_t ttl_ns)
{
    cairn_lease *lease = NULL;
    size_t held;
    struct cairn_key key = key_of(id);
    (void)!cairn_lease_take(session, &key, 1, ttl_ns, PATIENCE, &lease, &held);
    return lease;
}

Test(remote, a_view_outlives_the_node)
{
    cairn_session *session;
    const void *at, *other;
    uint64_t len;
    cr_assert_eq(put_id(1, MIB), CAIRN_OK);
    cr_assert_eq(put_id(2, MIB), CAIRN_OK);
    cr_assert_eq(cairn_session_open(store, &session), CAIRN_OK);
    cairn_lease *seen = lease_of(session, 1, PATIENCE), *unseen = lease_of(session, 2, PATIENCE);
    cr_assert_eq(cairn_lease_view(seen, 0, &at, &len), CAIRN_OK);
    node_end(&node, SIGKILL);
    cr_assert_eq(value_check(at, 1, 1, 0, len), len);
    cr_assert_eq(get_within(2, MIB, 100 * MS), CAIRN_MISS);
    cr_assert_neq(cairn_lease_view(unseen, 0, &other, &len), CAIRN_OK, "no node, no new view");
    cr_assert(node_start(&node));
    wait_for_node();
    cr_assert_eq(value_check(at, 1, 1, 0, MIB), MIB, "the view is still the value");
    cairn_lease_release(seen);
    cairn_lease_release(unseen);
    cr_assert_eq(put_id(1, MIB), CAIRN_OK);
    cairn_lease *fresh = lease_of(session, 1, PATIENCE);
    cr_assert_eq(cairn_lease_view(fresh, 0, &at, &len), CAIRN_OK);
    cr_assert_eq(value_check(at, 1, 1, 0, MIB), MIB);
}

/* The connection is dropped while a view of its lease is in use: the memory stays leased until the
 * view is given back, and not longer. */
Test(remote, a_view_outlives_its_connection)
{
    cairn_session *session;
    const void *at;
    uint64_t len;
    cr_assert_eq(put_id(1, MIB), CAIRN_OK);
    cr_assert_eq(cairn_session_open(store, &session), CAIRN_OK);
    cairn_lease *lease = lease_of(session, 1, PATIENCE);
    cr_assert_eq(cairn_lease_view(lease, 0, &at, &len), CAIRN_OK);
    node_stall(&node);
    cr_assert_eq(get_within(1, MIB, 50 * MS), CAIRN_TIMEOUT);
    node_go_on(&node);
    wait_for_node();
    for (uint64_t id = 100; id < 130; id++)
        put_id(id, MIB);
    cr_assert_eq(value_check(at, 1, 1, 0, MIB), MIB, "bytes changed under a reader");
    if (attached())
        cr_assert_gt(stat_number("\"leased_bytes\":"), 0);
    cairn_lease_release(lease);
    for (int i = 0; i < 3000 && stat_number("\"leased_bytes\":"); i++)
        usleep(10000);
    cr_assert_eq(stat_number("\"leased_bytes\":"), 0);
}

Test(remote, leases_longer_than_one_command)
{
    enum { COUNT = 300 };
    struct cairn_key keys[COUNT];
    cairn_session *session;
    cairn_lease *lease;
    size_t held;
    for (uint64_t i = 0; i < COUNT; i++) {
        keys[i] = key_of(i + 1);
        cr_assert_eq(put_id(i + 1, 500), CAIRN_OK);
    }
    cr_assert_eq(cairn_session_open(store, &session), CAIRN_OK);
    cr_assert_eq(cairn_lease_take(session, keys, COUNT, PATIENCE, PATIENCE, &lease, &held),
                 CAIRN_OK);
    cr_assert_eq(held, COUNT);
    for (size_t i = 0; i < COUNT; i++) {
        const void *at;
        uint64_t len;
        cr_assert_eq(cairn_lease_view(lease, i, &at, &len), CAIRN_OK);
        cr_assert_eq(len, 500);
        cr_assert_eq(value_check(at, i + 1, 1, 0, len), len);
    }
    cr_assert_eq(cairn_lease_renew(lease, PATIENCE), CAIRN_OK);
}

/* --- other processes --- */

/* Runs fn in a process of its own with a store of its own. */
static pid_t client(void (*fn)(void))
{
    pid_t pid = fork();
    if (pid)
        return pid;
    cairn_close(store); /* the parent's: nothing happens */
    open_uri();
    fn();
    cairn_close(store);
    _exit(0);
}

static void reads_one_puts_two(void)
{
    if (get_id(1, 1, 50000) != CAIRN_OK || put_id(2, 60000) != CAIRN_OK)
        _exit(1);
}

Test(remote, two_processes_share_chunks)
{
    int status;
    cr_assert_eq(put_id(1, 50000), CAIRN_OK);
    pid_t other = client(reads_one_puts_two);
    cr_assert_eq(waitpid(other, &status, 0), other);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    cr_assert_eq(get_id(2, 1, 60000), CAIRN_OK);
    cr_assert_eq(get_id(1, 1, 50000), CAIRN_OK, "the child's close was not the parent's");
}

static int told[2];

static void leases_and_waits(void)
{
    cairn_session *session;
    const void *at;
    uint64_t len;
    if (cairn_session_open(store, &session) != CAIRN_OK)
        _exit(1);
    cairn_lease *lease = lease_of(session, 1, PATIENCE);
    if (!lease || cairn_lease_view(lease, 0, &at, &len) != CAIRN_OK || write(told[1], "x", 1) != 1)
        _exit(1);
    pause();
}

Test(remote, a_killed_client_leaves_nothing)
{
    char byte;
    int status;
    cr_assert_eq(put_id(1, MIB), CAIRN_OK);
    cr_assert_eq(pipe(told), 0);
    pid_t other = client(leases_and_waits);
    cr_assert_eq(read(told[0], &byte, 1), 1);
    cr_assert_gt(stat_number("\"leased_bytes\":"), 0);
    kill(other, SIGKILL);
    cr_assert_eq(waitpid(other, &status, 0), other);
    for (int i = 0; i < 3000 && stat_number("\"leased_bytes\":"); i++)
        usleep(10000);
    cr_assert_eq(stat_number("\"leased_bytes\":"), 0, "its lease is over");
    cr_assert_eq(get_id(1, 1, MIB), CAIRN_OK);
}

/* Gets all the time, while the node closes its connections. */
#define CLOSED_KEYS 20u
static atomic_bool closing;

static void *gets_on(void *arg)
{
    for (uint64_t id = 0; atomic_load(&closing); id++) {
        cairn_status st = get_within(1000 + id % CLOSED_KEYS, 100000, PATIENCE);
        if (st != CAIRN_OK && st != CAIRN_MISS && st != CAIRN_TIMEOUT)
            return arg;
    }
    return NULL;
}

static void close_all_connections(void)
{
    char answer[64];
    int fd = node_command("CLIENT KILL TYPE normal\r\n");
    cr_assert_gt(read(fd, answer, sizeof answer), 0);
    close(fd);
}

/* What a get had leased when its connection was closed: only an answer that was never read may be
 * left, and that is rare. */
Test(remote, closed_connections_do_not_hold_what_was_got)
{
    pthread_t thread;
    void *failed;
    for (uint64_t id = 0; id < CLOSED_KEYS; id++)
        cr_assert_eq(put_id(1000 + id, 100000), CAIRN_OK);
    atomic_store(&closing, true);
    pthread_create(&thread, NULL, gets_on, &closing);
    for (int i = 0; i < 40; i++) {
        usleep(30000);
        close_all_connections();
    }
    atomic_store(&closing, false);
    pthread_join(thread, &failed);
    cr_assert_null(failed);
    wait_for_node();
    cr_assert_leq(stat_number("\"leased_bytes\":"), CLOSED_KEYS / 2 * 100000);
}

/* --- damage in the node's memory --- */

/* Flips a byte of every copy of the value that the node has in its arena (a window may hold
 * another), as a stray write there would. */
static bool damage(uint64_t id, size_t len)
{
    char name[64], line[512];
    uint8_t head[64], *memory = malloc(64u * MIB);
    value_fill(head, id, 1, 0, sizeof head);
    snprintf(name, sizeof name, "/proc/%d/maps", (int)node.pid);
    FILE *maps = fopen(name, "r");
    snprintf(name, sizeof name, "/proc/%d/mem", (int)node.pid);
    int mem = open(name, O_RDWR | O_CLOEXEC);
    bool done = false;
    while (maps && mem >= 0 && fgets(line, sizeof line, maps)) {
        uint64_t from, to;
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " rw", &from, &to) != 2 ||
            !strstr(line, "memfd:cairn") || to - from > 64u * MIB)
            continue;
        ssize_t got = pread(mem, memory, to - from, (off_t)from);
        uint8_t *end = memory + (got > 0 ? got : 0), *at = memory;
        while ((at = memmem(at, (size_t)(end - at), head, sizeof head))) {
            uint8_t byte = at[len / 2] ^ 1;
            off_t place = (off_t)(from + (uint64_t)(at - memory) + len / 2);
            done = pwrite(mem, &byte, 1, place) == 1 || done;
            at++;
        }
    }
    if (maps)
        fclose(maps);
    if (mem >= 0)
        close(mem);
    free(memory);
    return done;
}

Test(remote, damage_in_the_nodes_memory_is_a_miss)
{
    cr_assert_eq(put_id(1, 700000), CAIRN_OK);
    cr_assert_eq(get_id(1, 1, 700000), CAIRN_OK);
    if (!damage(1, 700000))
        cr_skip_test("the node's memory cannot be written from here");
    cr_assert_eq(get_id(1, 1, 700000), CAIRN_MISS);
    cr_assert_geq(stat_number("\"checksum\":"), 1);
    cr_assert_eq(put_id(1, 700000), CAIRN_OK, "the damaged copy is gone");
    cr_assert_eq(get_id(1, 1, 700000), CAIRN_OK);
}

Test(remote, damage_is_not_shown_in_a_view)
{
    cairn_session *session;
    const void *at;
    uint64_t len;
    cr_assert_eq(put_id(1, 700000), CAIRN_OK);
    cr_assert_eq(get_id(1, 1, 700000), CAIRN_OK);
    if (!damage(1, 700000))
        cr_skip_test("the node's memory cannot be written from here");
    cr_assert_eq(cairn_session_open(store, &session), CAIRN_OK);
    cairn_lease *lease = lease_of(session, 1, PATIENCE);
    if (lease)
        cr_assert_neq(cairn_lease_view(lease, 0, &at, &len), CAIRN_OK);
    cairn_lease_release(lease);
    cr_assert_eq(put_id(1, 700000), CAIRN_OK, "the damaged copy is gone");
}

Test(remote_disk, damage_in_the_nodes_memory_is_read_again_from_its_disk)
{
    cr_assert_eq(put_id(1, 700000), CAIRN_OK);
    cr_assert_eq(cairn_flush(store, PATIENCE), CAIRN_OK);
    if (!damage(1, 700000))
        cr_skip_test("the node's memory cannot be written from here");
    cr_assert_eq(get_id(1, 1, 700000), CAIRN_OK);
    cr_assert_geq(stat_number("\"checksum\":"), 1);
}

/* The caller's bytes change while they are sent: the node refuses what does not have its checks. */
static atomic_bool scribbling = true;

__attribute__((no_sanitize("thread"))) static void *scribble(void *arg)
{
    volatile uint8_t *bytes = arg;
    while (atomic_load(&scribbling))
        for (size_t i = 0; i < MIB; i += 4099)
            bytes[i]++;
    return NULL;
}

Test(remote, bytes_that_change_under_a_put_are_never_a_wrong_value)
{
    static uint8_t bytes[MIB], got[MIB];
    struct cairn_iov in = {bytes, MIB}, out = {got, MIB};
    pthread_t thread;
    pthread_create(&thread, NULL, scribble, bytes);
    for (uint64_t id = 1; id <= 60; id++) {
        struct cairn_put put = {.key = key_of(id), .value = {.iov = &in, .count = 1}};
        struct cairn_get get = {.key = key_of(id), .out = {.iov = &out, .count = 1}};
        cairn_put(store, &put, 1, PATIENCE);
        cr_assert(put.status == CAIRN_OK || put.status == CAIRN_CORRUPT, "%d", put.status);
        cairn_get(store, &get, 1, PATIENCE, NULL);
        cr_assert_eq(get.status, put.status == CAIRN_OK ? CAIRN_OK : CAIRN_MISS);
    }
    atomic_store(&scribbling, false);
    pthread_join(thread, NULL);
    cr_assert_eq(put_id(1000, 5000), CAIRN_OK);
}
