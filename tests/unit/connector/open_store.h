/* A store of its own for each test, with values derived from an id. */
#ifndef CAIRN_TESTS_OPEN_STORE_H
#define CAIRN_TESTS_OPEN_STORE_H

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "connector/cairn.h"
#include "tests/helpers/value.h"

#define PATIENCE 20000000000ull

static char store_path[64], store_uri[256];
static cairn_store *store;

/* options: of the URI, "" = none; a disk= among them makes a log. */
static void store_open(const char *options)
{
    char err[512];
    if (!store_path[0] && strstr(options, "disk=")) {
        strcpy(store_path, "store-XXXXXX");
        int fd = mkstemp(store_path);
        cr_assert_geq(fd, 0);
        close(fd);
        unlink(store_path);
    }
    snprintf(store_uri, sizeof store_uri, "embedded:%s?ram=16MiB&%s", store_path, options);
    cr_assert_eq(cairn_open(store_uri, &store, err, sizeof err), CAIRN_OK, "%s", err);
}

static void store_end(void)
{
    cairn_close(store);
    store = NULL;
    if (store_path[0])
        unlink(store_path);
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
    struct cairn_put put = {.key = key_of(id), .value = {&iov, 1, CAIRN_MEM_HOST}, .flags = flags};
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
    struct cairn_get get = {.key = key_of(id), .out = {&iov, 1, CAIRN_MEM_HOST}};
    cairn_get(store, &get, 1, PATIENCE, NULL);
    value_fill(want, id, generation, 0, len);
    if (get.status == CAIRN_OK)
        cr_assert_eq(memcmp(got, want, len), 0, "wrong bytes");
    free(got);
    free(want);
    return get.status;
}

/* A number out of the statistics, e.g. "\"checksum\":". */
static inline long stat_number(const char *name)
{
    char text[32768];
    cr_assert_lt(cairn_stats(store, text, sizeof text), sizeof text);
    const char *at = strstr(text, name);
    cr_assert_not_null(at, "no %s in the statistics", name);
    return strtol(at + strlen(name), NULL, 10);
}

#endif
