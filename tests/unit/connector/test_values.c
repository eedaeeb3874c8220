/* What a key answers: keep and replace, ranges, identities, side records, expiry, damage, fork. */
#include <fcntl.h>
#include <sys/wait.h>
#include <time.h>

#include "tests/unit/connector/open_store.h"

#define MIB (1024u * 1024u)

static void setup_ram(void)
{
    store_open("");
}

static void setup_disk(void)
{
    store_open("disk=64MiB&prewrite=no");
}

TestSuite(values, .init = setup_ram, .fini = store_end, .timeout = 60);
TestSuite(disk, .init = setup_disk, .fini = store_end, .timeout = 60);

static void reopen(void)
{
    store_stop();
    setup_disk();
}

Test(values, first_bytes_stay_unless_replaced)
{
    cr_assert_eq(put_flags(1, 1, 5000, 0), CAIRN_OK);
    cr_assert_eq(put_flags(1, 2, 5000, 0), CAIRN_EXISTS);
    cr_assert_eq(get_id(1, 1, 5000), CAIRN_OK);
    cr_assert_eq(put_flags(1, 3, 6000, CAIRN_PUT_REPLACE), CAIRN_OK);
    cr_assert_eq(get_id(1, 3, 6000), CAIRN_OK);
    cr_assert_eq(get_id(1, 1, 5000), CAIRN_MISS, "a get of another length is a miss");
    cr_assert_eq(stat_number("\"length\":"), 1);
}

Test(values, lookup_stops_at_the_first_absent_key)
{
    struct cairn_key keys[700];
    for (uint64_t i = 0; i < 700; i++) {
        keys[i] = key_of(i);
        if (i != 650)
            cr_assert_eq(put_id(i, 100), CAIRN_OK);
    }
    cr_assert_eq(cairn_lookup(store, keys, 700), 650);
    cr_assert_eq(cairn_lookup(store, keys, 600), 600);
    cr_assert_eq(cairn_lookup(store, keys + 650, 1), 0);
    cr_assert_eq(cairn_lookup(store, keys, 0), 0);
}

static void check_ranges(size_t len)
{
    static const size_t at[][2] = {{0, 1}, {0, 100}, {262143, 2}, {700000, 300000}, {999999, 1}};
    uint8_t *got = malloc(len), *want = malloc(len);
    value_fill(want, 7, 1, 0, len);
    for (size_t i = 0; i < sizeof at / sizeof at[0]; i++) {
        size_t n = at[i][1], half = n / 2;
        struct cairn_iov iov[2] = {{got, half}, {got + half, n - half}};
        struct cairn_get get = {.key = key_of(7), .out = {.iov = iov, .count = 2},
                                .offset = at[i][0], .flags = CAIRN_GET_RANGE};
        cairn_get(store, &get, 1, PATIENCE, NULL);
        cr_assert_eq(get.status, CAIRN_OK, "range %zu: cause %d", i, get.cause);
        cr_assert_eq(memcmp(got, want + at[i][0], at[i][1]), 0);
    }
    struct cairn_iov iov = {got, 2};
    struct cairn_get get = {.key = key_of(7), .out = {.iov = &iov, .count = 1},
                            .offset = len - 1, .flags = CAIRN_GET_RANGE};
    cairn_get(store, &get, 1, PATIENCE, NULL);
    cr_assert_eq(get.status, CAIRN_MISS, "a range past the end");
    free(got);
    free(want);
}

Test(values, ranges_from_ram)
{
    put_id(7, 1000000);
    check_ranges(1000000);
}

Test(disk, ranges_after_reopen)
{
    put_id(7, 1000000);
    cr_assert_eq(cairn_flush(store, PATIENCE), CAIRN_OK);
    reopen();
    check_ranges(1000000);
    cr_assert_eq(get_id(7, 1, 1000000), CAIRN_OK);
}

Test(values, another_identity_is_a_miss)
{
    uint8_t bytes[100] = {1}, mine[32] = {1}, other[32] = {2};
    struct cairn_iov iov = {bytes, sizeof bytes};
    struct cairn_put put = {.key = key_of(1), .value = {.iov = &iov, .count = 1},
                            .fingerprint = mine};
    cr_assert_eq(cairn_put(store, &put, 1, PATIENCE), CAIRN_OK);
    struct cairn_get get = {.key = key_of(1), .out = {.iov = &iov, .count = 1},
                            .fingerprint = other};
    cairn_get(store, &get, 1, PATIENCE, NULL);
    cr_assert_eq(get.status, CAIRN_MISS);
    get.fingerprint = mine;
    cairn_get(store, &get, 1, PATIENCE, NULL);
    cr_assert_eq(get.status, CAIRN_OK);
    cr_assert_eq(stat_number("\"identity\":"), 1);
}

Test(disk, side_records_stay_with_their_chunk)
{
    uint8_t bytes[5000] = {3}, side[3000], got[4096];
    memset(side, 9, sizeof side);
    struct cairn_iov iov = {bytes, sizeof bytes};
    struct cairn_put put = {.key = key_of(1), .value = {.iov = &iov, .count = 1}, .side = side,
                            .side_len = sizeof side};
    cr_assert_eq(cairn_put(store, &put, 1, PATIENCE), CAIRN_OK);
    cr_assert_eq(cairn_flush(store, PATIENCE), CAIRN_OK);
    for (int round = 0; round < 2; round++) {
        uint32_t len = sizeof got;
        cr_assert_eq(cairn_side(store, &put.key, got, &len, PATIENCE), CAIRN_OK);
        cr_assert_eq(len, sizeof side);
        cr_assert_eq(memcmp(got, side, sizeof side), 0);
        len = 10;
        cr_assert_eq(cairn_side(store, &put.key, got, &len, PATIENCE), CAIRN_TOOBIG);
        /* What did not fit is not taken for the answer to the next call. */
        cr_assert_eq(cairn_value_len(store, &put.key), sizeof bytes);
        reopen();
    }
}

static uint64_t wall_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

Test(disk, expired_values_do_not_come_back)
{
    uint8_t bytes[5000];
    struct cairn_iov iov = {bytes, sizeof bytes};
    value_fill(bytes, 1, 1, 0, sizeof bytes);
    struct cairn_put put = {.key = key_of(1), .value = {.iov = &iov, .count = 1},
                            .expires_ns = wall_ns() + 3000000000ull};
    cr_assert_eq(cairn_put(store, &put, 1, PATIENCE), CAIRN_OK);
    cr_assert_eq(get_id(1, 1, sizeof bytes), CAIRN_OK);
    cr_assert_eq(cairn_flush(store, PATIENCE), CAIRN_OK);
    usleep(3100000);
    cr_assert_eq(get_id(1, 1, sizeof bytes), CAIRN_MISS);
    reopen();
    cr_assert_eq(get_id(1, 1, sizeof bytes), CAIRN_MISS);
    cr_assert_eq(put_flags(1, 2, sizeof bytes, 0), CAIRN_OK, "an expired value must not be kept");
    cr_assert_eq(get_id(1, 2, sizeof bytes), CAIRN_OK);
}

Test(disk, deleted_and_replaced_values_do_not_come_back)
{
    for (uint64_t id = 1; id <= 3; id++)
        cr_assert_eq(put_flags(id, 1, 5000, 0), CAIRN_OK);
    cr_assert_eq(cairn_flush(store, PATIENCE), CAIRN_OK);
    struct cairn_key keys[2] = {key_of(1), key_of(99)};
    cairn_status results[2];
    cr_assert_eq(cairn_delete(store, keys, 2, PATIENCE, results), CAIRN_OK);
    cr_assert_eq(results[0], CAIRN_OK);
    cr_assert_eq(results[1], CAIRN_MISS);
    cr_assert_eq(put_flags(2, 2, 5000, CAIRN_PUT_REPLACE), CAIRN_OK);
    cr_assert_eq(cairn_flush(store, PATIENCE), CAIRN_OK);
    reopen();
    cr_assert_eq(get_id(1, 1, 5000), CAIRN_MISS);
    cr_assert_eq(get_id(2, 2, 5000), CAIRN_OK);
    cr_assert_eq(get_id(3, 1, 5000), CAIRN_OK);
}

/* Changes one byte of the value in the arena, through a lease's view. */
static void damage_in_ram(uint64_t id)
{
    cairn_session *session;
    cairn_lease *lease;
    size_t held;
    const void *at;
    uint64_t len;
    struct cairn_key key = key_of(id);
    cr_assert_eq(cairn_session_open(store, &session), CAIRN_OK);
    cr_assert_eq(cairn_lease_take(session, &key, 1, PATIENCE, PATIENCE, &lease, &held), CAIRN_OK);
    cr_assert_eq(cairn_lease_view(lease, 0, &at, &len), CAIRN_OK);
    ((uint8_t *)(uintptr_t)at)[len / 2] ^= 0x10;
    cairn_session_close(session);
}

Test(disk, a_damaged_ram_copy_is_read_again_from_disk)
{
    embedded_only();
    store_end();
    store_open("disk=64MiB&prewrite=no&verify=always");
    cr_assert_eq(put_id(1, MIB), CAIRN_OK);
    cr_assert_eq(cairn_flush(store, PATIENCE), CAIRN_OK);
    damage_in_ram(1);
    cr_assert_eq(get_id(1, 1, MIB), CAIRN_OK);
    cr_assert_eq(stat_number("\"checksum\":"), 1);
    cr_assert_eq(stat_number("\"hits_disk\":"), 1);
}

Test(values, a_damaged_ram_copy_is_a_miss_and_gone)
{
    embedded_only();
    store_end();
    store_open("verify=always");
    cr_assert_eq(put_id(1, MIB), CAIRN_OK);
    damage_in_ram(1);
    cr_assert_eq(get_id(1, 1, MIB), CAIRN_MISS);
    struct cairn_key key = key_of(1);
    cr_assert_eq(cairn_lookup(store, &key, 1), 0);
    cr_assert_eq(put_id(1, MIB), CAIRN_OK, "computed again, it is stored again");
}

Test(values, a_child_may_not_use_it)
{
    cr_assert_eq(put_id(1, 100), CAIRN_OK);
    pid_t pid = fork();
    if (pid == 0) {
        struct cairn_key key = key_of(1);
        bool refused = put_id(2, 100) == CAIRN_STATE && get_id(1, 1, 100) == CAIRN_STATE &&
                       cairn_lookup(store, &key, 1) == 0 &&
                       cairn_flush(store, PATIENCE) == CAIRN_STATE;
        cairn_close(store);
        _exit(refused ? 0 : 1);
    }
    int status;
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    cr_assert_eq(get_id(1, 1, 100), CAIRN_OK);
}

Test(values, without_a_disk_nothing_can_be_flushed)
{
    cr_assert_eq(cairn_flush(store, PATIENCE), CAIRN_UNSUPPORTED);
}

Test(values, the_tail_of_a_chain_leaves_before_its_head)
{
    enum { CHAIN = 24 };
    static uint8_t bytes[MIB];
    struct cairn_iov iov = {bytes, MIB};
    struct cairn_key keys[CHAIN];
    for (uint64_t i = 0; i < CHAIN; i++) {
        keys[i] = key_of(i);
        value_fill(bytes, i, 1, 0, MIB);
        struct cairn_put put = {.key = keys[i], .value = {.iov = &iov, .count = 1}};
        if (i)
            put.parent = keys[i - 1];
        cairn_put(store, &put, 1, PATIENCE);
    }
    size_t held = cairn_lookup(store, keys, CHAIN);
    cr_assert_geq(held, 14, "%zu of a chain from its head in 16 MiB", held);
}

/* Keys of a caller's own, such as a counter in 32 bytes. */
Test(values, keys_that_differ_in_one_half_only_are_different_keys)
{
    uint8_t bytes[100], got[100];
    struct cairn_iov in = {bytes, sizeof bytes}, out = {got, sizeof got};
    for (int round = 0; round < 2; round++) {
        for (int i = 1; i < 200; i++) {
            struct cairn_key key = {{0}};
            key.bytes[i % 32] = (uint8_t)(1 + i / 32);
            memset(bytes, i, sizeof bytes);
            struct cairn_put put = {.key = key, .value = {.iov = &in, .count = 1}};
            if (round == 0)
                cr_assert_eq(cairn_put(store, &put, 1, PATIENCE), CAIRN_OK);
            struct cairn_get get = {.key = key, .out = {.iov = &out, .count = 1}};
            cairn_get(store, &get, 1, PATIENCE, NULL);
            cr_assert_eq(get.status, CAIRN_OK);
            cr_assert_eq(memcmp(got, bytes, sizeof bytes), 0);
        }
    }
}

Test(disk, on_evict_loses_nothing_it_accepted)
{
    store_end();
    store_open("disk=256MiB&prewrite=no&write=on-evict");
    bool stored[600];
    size_t count = 0;
    for (uint64_t id = 0; id < 600; id++) {
        /* Refused while the disk is behind: then the caller's turn is over. */
        while (!(stored[id] = put_id(id + 1, 100000) == CAIRN_OK) && count <= 200)
            usleep(1000);
        count += stored[id];
    }
    cr_assert_eq(cairn_flush(store, PATIENCE), CAIRN_OK);
    store_stop();
    store_open("disk=256MiB&prewrite=no");
    for (uint64_t id = 0; id < 600; id++)
        cr_assert(!stored[id] || get_id(id + 1, 1, 100000) == CAIRN_OK, "lost %d", (int)id);
    cr_assert_gt(count, 200);
}
