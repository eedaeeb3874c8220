/* A store of its own for each test, with values derived from an id. CAIRN_TEST_STORE says which
 * kind: "embedded" (default), or a real node of its own over "unix", "bytes" (unix without shared
 * memory) or "tcp". */
#ifndef CAIRN_TESTS_OPEN_STORE_H
#define CAIRN_TESTS_OPEN_STORE_H

#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "connector/cairn.h"
#include "tests/helpers/node.h"
#include "tests/helpers/value.h"

#define PATIENCE 20000000000ull

static char store_path[64], store_uri[256];
static cairn_store *store;
static struct leftovers store_left;
static struct test_node node;

static inline const char *store_kind(void)
{
    const char *kind = getenv("CAIRN_TEST_STORE");
    return kind ? kind : "embedded";
}

static inline bool store_remote(void)
{
    return strcmp(store_kind(), "embedded") != 0;
}

/* What only a store in this process can show, such as damage in its memory. */
static inline void embedded_only(void)
{
    if (store_remote())
        cr_skip_test("of embedded stores");
}

static void open_uri(void)
{
    char err[512];
    cr_assert_eq(cairn_open(store_uri, &store, err, sizeof err), CAIRN_OK, "%s", err);
}

/* The options that a node has too. */
static void open_node(const char *options)
{
    char given[512], node_options[512] = "ram=16MiB", *rest = given;
    snprintf(given, sizeof given, "%s", options);
    for (char *o = strsep(&rest, "&"); o; o = strsep(&rest, "&")) {
        size_t at = strlen(node_options);
        if (o[0] && strncmp(o, "prewrite", 8) != 0)
            snprintf(node_options + at, sizeof node_options - at, "&%s", o);
    }
    if (store_path[0])
        snprintf(node_options + strlen(node_options), sizeof node_options - strlen(node_options),
                 "&disk-path=%s", store_path);
    node_prepare(&node, strcmp(store_kind(), "tcp") == 0, node_options);
    cr_assert(node_start(&node));
    if (node.port)
        snprintf(store_uri, sizeof store_uri, "tcp://127.0.0.1:%d?timeout=20s", node.port);
    else
        snprintf(store_uri, sizeof store_uri, "unix:%s?timeout=20s%s", node.socket,
                 strcmp(store_kind(), "bytes") == 0 ? "&attach=no" : "");
    open_uri();
}

/* options: of the URI, "" = none; a disk= among them makes a log. */
static void store_open(const char *options)
{
    if (!store_path[0] && strstr(options, "disk=")) {
        strcpy(store_path, "store-XXXXXX");
        int fd = mkstemp(store_path);
        cr_assert_geq(fd, 0);
        close(fd);
        unlink(store_path);
        leftovers_begin(&store_left, store_path, NULL);
    }
    if (store_remote()) {
        open_node(options);
        return;
    }
    snprintf(store_uri, sizeof store_uri, "embedded:%s?ram=16MiB&%s", store_path, options);
    open_uri();
}

/* Closes it for good, the node with it; what is on disk stays. */
static void store_stop(void)
{
    cairn_close(store);
    store = NULL;
    node_end(&node, SIGTERM);
    if (node.socket[0])
        node_finish(&node);
}

static void store_end(void)
{
    store_stop();
    leftovers_end(&store_left);
    store_path[0] = '\0';
}

static struct cairn_key key_of(uint64_t id)
{
    struct cairn_key key;
    value_key(id, key.bytes);
    return key;
}

static inline cairn_status put_flags(uint64_t id, uint64_t generation, size_t len, uint32_t flags)
{
    uint8_t *bytes = malloc(len);
    value_fill(bytes, id, generation, 0, len);
    struct cairn_iov iov = {bytes, len};
    struct cairn_put put = {.key = key_of(id), .value = {.iov = &iov, .count = 1}, .flags = flags};
    cairn_put(store, &put, 1, PATIENCE);
    free(bytes);
    return put.status;
}

static inline cairn_status put_id(uint64_t id, size_t len)
{
    return put_flags(id, 1, len, 0);
}

/* A get of a value of `len` bytes; a hit must be exactly that generation. */
static inline cairn_status get_id(uint64_t id, uint64_t generation, size_t len)
{
    uint8_t *got = malloc(len), *want = malloc(len);
    struct cairn_iov iov = {got, len};
    struct cairn_get get = {.key = key_of(id), .out = {.iov = &iov, .count = 1}};
    cairn_get(store, &get, 1, PATIENCE, NULL);
    value_fill(want, id, generation, 0, len);
    if (get.status == CAIRN_OK)
        cr_assert_eq(memcmp(got, want, len), 0, "wrong bytes");
    free(got);
    free(want);
    return get.status;
}

/* A number out of the statistics, e.g. "\"checksum\":"; of a remote store the client's, which come
 * behind the node's, if it counts that too. */
static inline long stat_number(const char *name)
{
    char text[65536];
    cr_assert_lt(cairn_stats(store, text, sizeof text), sizeof text);
    const char *at = strstr(text, name), *next = at;
    cr_assert_not_null(at, "no %s in the statistics", name);
    while (store_remote() && (next = strstr(next + 1, name)))
        at = next;
    return strtol(at + strlen(name), NULL, 10);
}

#endif
