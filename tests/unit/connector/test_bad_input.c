/* Bad input through the public API: each a clear error, nothing lost. */
#include <criterion/criterion.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/mem.h"
#include "connector/cairn.h"
#include "storage/format.h"
#include "tests/helpers/value.h"

#define PATIENCE 20000000000ull
#define LEN 5000u

static char path[64], uri[256], err[512];
static cairn_store *store;
static uint8_t bytes[LEN];

static void setup(void)
{
    static const char shape[] = "input-XXXXXX";
    int fd;

    memcpy(path, shape, sizeof(shape));
    fd = mkstemp(path);
    cr_assert_geq(fd, 0);
    close(fd);
    unlink(path);
    snprintf(uri, sizeof(uri), "embedded:%s?ram=16MiB&disk=64MiB&prewrite=no&lock_wait=1s", path);
}

static void teardown(void)
{
    cairn_close(store);
    unlink(path);
}

TestSuite(bad_input, .init = setup, .fini = teardown, .timeout = 60);

static void open_store(void)
{
    cr_assert_eq(cairn_open(uri, &store, err, sizeof(err)), CAIRN_OK, "%s", err);
}

static struct cairn_put a_put(uint64_t id, struct cairn_iov *iov, size_t len)
{
    struct cairn_put put = {.value = {.iov = iov, .count = 1}};

    value_key(id, put.key.bytes);
    value_fill(bytes, id, 1, 0, LEN);
    *iov = (struct cairn_iov){.base = bytes, .len = len};
    return put;
}

static void put_one(uint64_t id)
{
    struct cairn_iov iov;
    struct cairn_put put = a_put(id, &iov, LEN);

    cr_assert_eq(cairn_put(store, &put, 1, PATIENCE), CAIRN_OK);
}

static cairn_status get_one(uint64_t id)
{
    struct cairn_iov iov = {.base = bytes, .len = LEN};
    struct cairn_get get = {.out = {.iov = &iov, .count = 1}};

    value_key(id, get.key.bytes);
    memset(bytes, 0, LEN);
    (void)cairn_get(store, &get, 1, PATIENCE, NULL);
    if (get.status == CAIRN_OK)
        cr_assert_eq(value_check(bytes, id, 1, 0, LEN), LEN);
    return get.status;
}

/* Changes both superblocks of the closed log. */
static void patch_supers(void (*patch)(struct cairn_super_disk *s))
{
    static const off_t places[] = {CAIRN_SUPER_OFFSET_A, CAIRN_SUPER_OFFSET_B};
    struct cairn_super_disk s;
    int fd = open(path, O_RDWR);

    cr_assert_geq(fd, 0);
    for (size_t i = 0; i < 2; i++) {
        cr_assert_eq(pread(fd, &s, sizeof(s), places[i]), (ssize_t)sizeof(s));
        patch(&s);
        s.check = cairn_hash64(&s, offsetof(struct cairn_super_disk, check));
        cr_assert_eq(pwrite(fd, &s, sizeof(s), places[i]), (ssize_t)sizeof(s));
    }
    close(fd);
}

static void next_format(struct cairn_super_disk *s)
{
    s->format = (uint16_t)(s->format + 1);
}

static void this_format(struct cairn_super_disk *s)
{
    s->format = CAIRN_FORMAT_VERSION;
}

static uint32_t old_page;

static void other_page(struct cairn_super_disk *s)
{
    old_page = s->page_size;
    s->page_size = 65536;
}

static void this_page(struct cairn_super_disk *s)
{
    s->page_size = old_page;
}

/* The log is refused as CAIRN_VERSION and works again once it is put right. */
static void refuse_version(void (*wrong)(struct cairn_super_disk *s),
                           void (*right)(struct cairn_super_disk *s), const char *word)
{
    open_store();
    put_one(1);
    cr_assert_eq(cairn_flush(store, PATIENCE), CAIRN_OK);
    cairn_close(store);
    store = NULL;
    patch_supers(wrong);
    cr_assert_eq(cairn_open(uri, &store, err, sizeof(err)), CAIRN_VERSION, "%s", err);
    cr_assert(strstr(err, path) && strstr(err, word), "%s", err);
    patch_supers(right);
    open_store();
    cr_assert_eq(get_one(1), CAIRN_OK);
}

Test(bad_input, log_of_another_version)
{
    refuse_version(next_format, this_format, "version");
}

Test(bad_input, log_of_another_page_size)
{
    refuse_version(other_page, this_page, "page");
}

Test(bad_input, value_too_large)
{
    uint64_t max;
    struct cairn_iov iov[2];
    struct cairn_put put;
    void *large;

    open_store();
    put_one(1);
    max = cairn_value_max(store);
    large = calloc(1, max + 1);
    cr_assert_not_null(large);
    put = a_put(2, iov, LEN);
    iov[0] = (struct cairn_iov){.base = large, .len = max + 1};
    cr_assert_eq(cairn_put(store, &put, 1, PATIENCE), CAIRN_TOOBIG);
    cr_assert_eq(put.status, CAIRN_TOOBIG);
    iov[0].len = max;
    cr_assert_eq(cairn_put(store, &put, 1, PATIENCE), CAIRN_OK);
    /* Lengths that only overflow when they are added up. */
    put = a_put(3, iov, SIZE_MAX - 10);
    iov[1] = (struct cairn_iov){.base = bytes, .len = 100};
    put.value.count = 2;
    cr_assert_neq(cairn_put(store, &put, 1, PATIENCE), CAIRN_OK);
    cr_assert_eq(get_one(1), CAIRN_OK);
    free(large);
}

Test(bad_input, empty_value_and_zero_key)
{
    struct cairn_iov iov;
    struct cairn_put put;

    open_store();
    put_one(1);
    put = a_put(2, &iov, 0);
    cr_assert_eq(cairn_put(store, &put, 1, PATIENCE), CAIRN_INVAL);
    put = a_put(2, &iov, LEN);
    put.value.count = 0;
    cr_assert_eq(cairn_put(store, &put, 1, PATIENCE), CAIRN_INVAL);
    put = a_put(2, &iov, LEN);
    memset(put.key.bytes, 0, sizeof(put.key.bytes));
    cr_assert_eq(cairn_put(store, &put, 1, PATIENCE), CAIRN_INVAL);
    cr_assert_eq(get_one(1), CAIRN_OK);
    cr_assert_eq(get_one(2), CAIRN_MISS);
}

Test(bad_input, side_records_too_long)
{
    struct cairn_iov iov;
    struct cairn_put put;
    uint8_t *side = calloc(1, CAIRN_SIDE_MAX + 1);

    open_store();
    put = a_put(1, &iov, LEN);
    put.side = side;
    put.side_len = CAIRN_SIDE_MAX + 1;
    cr_assert_neq(cairn_put(store, &put, 1, PATIENCE), CAIRN_OK);
    put.side_len = CAIRN_SIDE_MAX;
    cr_assert_eq(cairn_put(store, &put, 1, PATIENCE), CAIRN_OK);
    free(side);
}

/* One bad key does not take the others of its batch with it. */
Test(bad_input, bad_key_in_a_batch)
{
    struct cairn_iov iov[3];
    struct cairn_put puts[3];

    open_store();
    for (uint64_t i = 0; i < 3; i++)
        puts[i] = a_put(i + 1, &iov[i], LEN);
    for (uint64_t i = 0; i < 3; i++)
        value_fill(bytes, 5, 1, 0, LEN);
    iov[1].len = 0;
    cr_assert_eq(cairn_put(store, puts, 3, PATIENCE), CAIRN_INVAL);
    cr_assert_eq(puts[0].status, CAIRN_OK);
    cr_assert_eq(puts[1].status, CAIRN_INVAL);
    cr_assert_eq(puts[2].status, CAIRN_OK);
}

Test(bad_input, budget_smaller_than_a_value)
{
    char small[256];

    snprintf(small, sizeof(small), "embedded:%s?ram=4KiB&disk=64MiB", path);
    cr_assert_eq(cairn_open(small, &store, err, sizeof(err)), CAIRN_INVAL);
    cr_assert(strstr(err, "ram"), "%s", err);
    snprintf(small, sizeof(small), "embedded:%s?ram=16MiB&disk=4KiB", path);
    cr_assert_eq(cairn_open(small, &store, err, sizeof(err)), CAIRN_INVAL);
    cr_assert(strstr(err, "disk"), "%s", err);
    cr_assert_neq(access(path, F_OK), 0, "a refused open left a file");
}

/* Whichever allocation fails, nothing is left open and a sentence says so. */
Test(bad_input, no_memory_at_any_step_of_opening)
{
    open_store();
    put_one(1);
    cr_assert_eq(cairn_flush(store, PATIENCE), CAIRN_OK);
    cairn_close(store);
    uint64_t refused = 0;
    for (uint64_t nth = 1; nth < refused + 8; nth++) {
        store = NULL;
        cairn_mem_fail_nth(nth);
        cairn_status s = cairn_open(uri, &store, err, sizeof(err));
        cairn_mem_fail_nth(0);
        if (s == CAIRN_OK) {
            /* A step that has another way, as huge pages have. */
            cr_assert_eq(get_one(1), CAIRN_OK);
            cairn_close(store);
            continue;
        }
        cr_assert_eq(s, CAIRN_NOMEM, "allocation %d: status %d", (int)nth, s);
        cr_assert(strstr(err, "memory") || strstr(err, "ram="), "allocation %d: '%s'", (int)nth,
                  err);
        cr_assert_null(store);
        refused = nth;
    }
    cr_assert_gt(refused, 10);
    open_store();
    cr_assert_eq(get_one(1), CAIRN_OK);
}

Test(bad_input, no_arguments)
{
    cr_assert_eq(cairn_open(NULL, &store, err, sizeof(err)), CAIRN_INVAL);
    cr_assert_eq(cairn_open(uri, NULL, err, sizeof(err)), CAIRN_INVAL);
    cr_assert_neq(cairn_open("embedded:?rma=16MiB", &store, NULL, 0), CAIRN_OK);
    open_store();
    cr_assert_eq(cairn_put(store, NULL, 0, PATIENCE), CAIRN_OK);
    cr_assert_eq(cairn_get(store, NULL, 0, PATIENCE, NULL), CAIRN_OK);
    cr_assert_eq(cairn_lookup(store, NULL, 0), 0);
}

/* A file that was never a log is left as it is. */
Test(bad_input, foreign_file)
{
    char text[100] = "";
    FILE *file = fopen(path, "w");

    fputs("somebody's letters\n", file);
    fclose(file);
    cr_assert_neq(cairn_open(uri, &store, err, sizeof(err)), CAIRN_OK);
    cr_assert(strstr(err, path), "%s", err);
    file = fopen(path, "r");
    cr_assert_eq(fread(text, 1, sizeof(text), file), 19);
    fclose(file);
    cr_assert_str_eq(text, "somebody's letters\n");
}
