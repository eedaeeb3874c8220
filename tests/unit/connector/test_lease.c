/* Leases: pinned, verified, counted against half of the RAM, gone with their session. */
#include "tests/unit/connector/open_store.h"

#define MIB (1024u * 1024u)
#define SECOND 1000000000ull

static cairn_session *session;

static void setup(void)
{
    /* S3-FIFO would rightly keep what was hit once through a flood that is not. */
    store_open("policy=lru");
    cr_assert_eq(cairn_session_open(store, &session), CAIRN_OK);
}

TestSuite(lease, .init = setup, .fini = store_end, .timeout = 60);

static cairn_lease *take(uint64_t id, uint64_t ttl_ns)
{
    cairn_lease *lease = NULL;
    size_t held = 0;
    struct cairn_key key = key_of(id);
    cairn_status st = cairn_lease_take(session, &key, 1, ttl_ns, PATIENCE, &lease, &held);
    cr_assert_eq(held, st == CAIRN_OK ? 1 : 0);
    return lease;
}

/* Puts until everything that may leave has left. */
static void flood(void)
{
    for (uint64_t id = 1000; id < 1040; id++)
        put_id(id, MIB);
}

Test(lease, pins_what_it_holds)
{
    put_id(1, MIB);
    put_id(2, MIB);
    cairn_lease *lease = take(1, 60 * SECOND);
    cr_assert_not_null(lease);
    flood();
    cr_assert_eq(get_id(1, 1, MIB), CAIRN_OK, "a leased value left");
    cr_assert_eq(get_id(2, 1, MIB), CAIRN_MISS, "the flood was too small to prove anything");
    cairn_lease_release(lease);
    flood();
    flood();
    cr_assert_eq(get_id(1, 1, MIB), CAIRN_MISS, "a released value stayed for ever");
}

Test(lease, view_is_the_value_in_place)
{
    uint8_t want[5000];
    const void *at;
    uint64_t len;
    put_id(1, sizeof want);
    cairn_lease *lease = take(1, 60 * SECOND);
    cr_assert_eq(cairn_lease_view(lease, 0, &at, &len), CAIRN_OK);
    cr_assert_eq(len, sizeof want);
    value_fill(want, 1, 1, 0, sizeof want);
    cr_assert_eq(memcmp(at, want, sizeof want), 0);
    cr_assert_eq(cairn_lease_view(lease, 1, &at, &len), CAIRN_INVAL);
}

Test(lease, memory_seen_is_not_reused_while_leased)
{
    uint8_t want[MIB];
    const void *at;
    uint64_t len;
    put_id(1, MIB);
    cairn_lease *lease = take(1, 1);
    cr_assert_eq(cairn_lease_view(lease, 0, &at, &len), CAIRN_TIMEOUT, "viewed after its end");
    lease = take(1, 2 * SECOND);
    cr_assert_eq(cairn_lease_view(lease, 0, &at, &len), CAIRN_OK);
    value_fill(want, 1, 1, 0, sizeof want);
    usleep(2200000);
    cr_assert_eq(put_flags(1, 2, MIB, CAIRN_PUT_REPLACE), CAIRN_OK);
    flood();
    cr_assert_eq(memcmp(at, want, MIB), 0, "bytes changed under a reader");
    cr_assert_eq(cairn_lease_renew(lease, SECOND), CAIRN_TIMEOUT);
    cairn_lease_release(lease);
}

Test(lease, all_together_take_half_of_the_ram)
{
    cairn_lease *leases[16];
    size_t taken = 0;
    for (uint64_t id = 1; id <= 12; id++)
        cr_assert_eq(put_id(id, MIB), CAIRN_OK);
    for (uint64_t id = 1; id <= 12; id++)
        if ((leases[taken] = take(id, 60 * SECOND)))
            taken++;
    cr_assert_eq(taken, 7, "%zu leases of 1 MiB and a header in 16 MiB", taken);
    cr_assert_leq(stat_number("\"leased_bytes\":"), 8 * MIB);
    cr_assert_eq(put_id(50, MIB), CAIRN_OK, "leases must leave room for puts");
}

Test(lease, ends_by_itself_when_nobody_looked)
{
    put_id(1, MIB);
    cr_assert_not_null(take(1, 2 * SECOND));
    cr_assert_gt(stat_number("\"leased_bytes\":"), 0);
    usleep(2200000);
    cr_assert_eq(stat_number("\"leased_bytes\":"), 0);
    flood();
    flood();
    cr_assert_eq(get_id(1, 1, MIB), CAIRN_MISS);
}

/* Who wonders why nothing leaves the RAM is told how old the oldest lease is. */
Test(lease, the_oldest_is_reported)
{
    put_id(1, MIB);
    put_id(2, MIB);
    cr_assert_eq(stat_number("\"oldest_lease_ms\":"), 0);
    cairn_lease *oldest = take(1, 60 * SECOND);
    usleep(30000);
    cairn_lease *other = take(2, 60 * SECOND);
    cr_assert_geq(stat_number("\"oldest_lease_ms\":"), 30);
    cairn_lease_release(other);
    cr_assert_geq(stat_number("\"oldest_lease_ms\":"), 30);
    cairn_lease_release(oldest);
    cr_assert_eq(stat_number("\"oldest_lease_ms\":"), 0);
}

Test(lease, goes_with_its_session)
{
    put_id(1, MIB);
    cr_assert_not_null(take(1, 60 * SECOND));
    cairn_session_close(session);
    cr_assert_eq(stat_number("\"leased_bytes\":"), 0);
}

Test(lease, of_a_key_that_is_not_held)
{
    cr_assert_null(take(1, SECOND));
    put_id(1, 100);
    struct cairn_key keys[2] = {key_of(1), key_of(2)};
    cairn_lease *lease;
    size_t held;
    cr_assert_eq(cairn_lease_take(session, keys, 2, SECOND, PATIENCE, &lease, &held), CAIRN_OK);
    cr_assert_eq(held, 1, "what is held from the start");
}

Test(lease, does_not_vouch_for_damaged_bytes)
{
    embedded_only();
    const void *at;
    uint64_t len;
    put_id(1, MIB);
    put_id(2, MIB);
    cairn_lease *lease = take(1, 60 * SECOND);
    cr_assert_eq(cairn_lease_view(lease, 0, &at, &len), CAIRN_OK);
    /* The value put next lies right behind it: header block, then bytes never verified yet. */
    uint8_t *next = (uint8_t *)(uintptr_t)at + MIB + 4096;
    next[5] ^= 1;
    cr_assert_null(take(2, SECOND));
    cr_assert_eq(stat_number("\"checksum\":"), 1);
    cr_assert_eq(get_id(2, 1, MIB), CAIRN_MISS);
}
