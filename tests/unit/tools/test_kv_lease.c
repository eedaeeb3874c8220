/* Leases of an owner and an operator's pins, over a vault in memory. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <string.h>

#include "base/clock.h"
#include "tools/cairnd/kv_lease.h"
#include "tools/cairnd/kv_pins.h"

#define VALUE 65536u

static struct cairn_vault *vault;

static void open_vault(void)
{
    char err[256];
    struct cairn_vault_opts o = {.ram_bytes = 16u << 20, .verify = CAIRN_VERIFY_ALWAYS,
                                 .policy = "lru", .write = CAIRN_WRITE_NONE};
    cr_assert_eq(cairn_vault_open(&o, &vault, err, sizeof err), CAIRN_OK, "%s", err);
}

static void close_vault(void)
{
    cairn_vault_close(vault);
}

TestSuite(kv_lease, .init = open_vault, .fini = close_vault, .timeout = 60);

static struct cairn_key key_of(uint32_t i)
{
    struct cairn_key key = {{1}};
    memcpy(key.bytes + 4, &i, sizeof i);
    return key;
}

static void put(uint32_t i)
{
    static char bytes[VALUE];
    struct cairn_room room;
    enum cairn_cause cause;
    memset(bytes, (int)i, sizeof bytes);
    cr_assert_eq(cairn_vault_room(vault, VALUE, 0, &room), CAIRN_OK);
    memcpy(room.value, bytes, sizeof bytes);
    struct cairn_commit c = {.key = key_of(i)};
    cairn_status st = cairn_vault_commit(vault, &room, &c, cairn_deadline_ns(60 * CAIRN_NS_PER_S),
                                         &cause);
    cr_assert(st == CAIRN_OK || st == CAIRN_EXISTS);
}

static bool held(uint32_t i)
{
    struct cairn_key key = key_of(i);
    return cairn_vault_where(vault, &key) != 0;
}

/* Values enough that all that is free to leave does. */
static void press(uint32_t from)
{
    for (uint32_t i = 0; i < 600; i++)
        put(from + i);
}

static void note_id(void *arg, const struct kv_lease *lease)
{
    *(uint64_t *)arg = lease->id;
}

/* A lease of the values [from, from + count). */
static cairn_status take(struct kv_leases *l, uint32_t from, uint32_t count, uint64_t client,
                         uint64_t ends_ns, uint64_t *id)
{
    struct kv_lease *lease = kv_lease_prepare(l, count);
    cr_assert(lease);
    for (uint32_t i = 0; i < count; i++) {
        struct cairn_key key = key_of(from + i);
        enum cairn_cause cause;
        cr_assert_eq(cairn_vault_pin_now(vault, &key, false, &lease->pins[lease->count++], &cause),
                     CAIRN_OK);
    }
    lease->client = client;
    lease->taken_ns = cairn_now_ns();
    lease->ends_ns = ends_ns;
    return kv_lease_add(l, lease, note_id, id);
}

Test(kv_lease, keeps_until_released)
{
    struct kv_leases l;
    uint64_t id, other;
    kv_leases_open(&l, vault);
    for (uint32_t i = 0; i < 10; i++)
        put(i);
    cr_assert_eq(take(&l, 0, 10, 1, KV_LEASE_ENDLESS, &id), CAIRN_OK);
    cr_assert_eq(take(&l, 0, 5, 1, KV_LEASE_ENDLESS, &other), CAIRN_OK);
    cr_assert_neq(id, other);
    press(1000);
    for (uint32_t i = 0; i < 10; i++)
        cr_assert(held(i));
    cr_assert(kv_lease_release(&l, id));
    cr_assert_not(kv_lease_release(&l, id), "an id is good once");
    cr_assert_eq(kv_lease_renew(&l, id, 0), CAIRN_TIMEOUT);
    press(2000);
    cr_assert(held(4));
    cr_assert_not(held(5));
    cr_assert_eq(kv_leases_close(&l), 1);
    press(3000);
    cr_assert_not(held(4));
}

Test(kv_lease, ids_are_not_used_again)
{
    struct kv_leases l;
    uint64_t id, last = 0;
    kv_leases_open(&l, vault);
    put(1);
    for (int i = 0; i < 10000; i++) {
        cr_assert_eq(take(&l, 1, 1, 1, KV_LEASE_ENDLESS, &id), CAIRN_OK);
        cr_assert_gt(id, last);
        last = id;
        cr_assert(kv_lease_release(&l, id));
    }
    cr_assert_eq(kv_leases_close(&l), 0);
}

Test(kv_lease, is_bounded)
{
    struct kv_leases l;
    uint64_t id, pins;
    kv_leases_open(&l, vault);
    for (uint32_t i = 0; i < 100; i++)
        put(i);
    for (uint32_t i = 0; i < KV_LEASES_MAX; i++)
        cr_assert_eq(take(&l, i % 100, 1, 1, KV_LEASE_ENDLESS, &id), CAIRN_OK);
    cr_assert_eq(take(&l, 0, 1, 1, KV_LEASE_ENDLESS, &id), CAIRN_BUSY);
    cr_assert_eq(kv_leases_count(&l, &pins), KV_LEASES_MAX);
    cr_assert_eq(pins, KV_LEASES_MAX);
    cr_assert_eq(kv_leases_release_client(&l, 1), KV_LEASES_MAX);
    for (uint32_t i = 0; i < KV_LEASE_PINS_MAX / 100; i++)
        cr_assert_eq(take(&l, 0, 100, 1, KV_LEASE_ENDLESS, &id), CAIRN_OK);
    cr_assert_eq(take(&l, 0, 100, 1, KV_LEASE_ENDLESS, &id), CAIRN_BUSY);
    kv_leases_close(&l);
    press(1000);
    cr_assert_not(held(0), "what was refused is not pinned");
}

Test(kv_lease, ends_by_time_connection_and_owner)
{
    struct kv_leases l;
    uint64_t soon, later, endless, id;
    kv_leases_open(&l, vault);
    put(1);
    uint64_t now = cairn_now_ns();
    cr_assert_eq(take(&l, 1, 1, 1, now + 100, &soon), CAIRN_OK);
    cr_assert_eq(take(&l, 1, 1, 2, now + 200, &later), CAIRN_OK);
    cr_assert_eq(take(&l, 1, 1, 3, KV_LEASE_ENDLESS, &endless), CAIRN_OK);
    cr_assert_eq(kv_leases_expire(&l, now + 99), 0);
    cr_assert_eq(kv_leases_expire(&l, now + 100), 1);
    cr_assert_eq(kv_lease_renew(&l, soon, now + 1000), CAIRN_TIMEOUT);
    cr_assert_eq(kv_lease_renew(&l, later, now + 1000), CAIRN_OK);
    cr_assert_eq(kv_lease_renew(&l, endless, now + 1000), CAIRN_OK);
    cr_assert_eq(kv_leases_expire(&l, now + 999), 0);
    cr_assert_eq(kv_leases_expire(&l, UINT64_MAX - 1), 1);
    cr_assert_eq(kv_leases_release_client(&l, KV_CLOSED), 0);
    cr_assert_eq(kv_leases_closed(&l, 3, UINT64_MAX - 1), 1, "its answer has no place yet");
    cr_assert_eq(take(&l, 1, 1, 3, KV_LEASE_ENDLESS, &endless), CAIRN_OK);
    cr_assert_eq(take(&l, 1, 1, 3, KV_LEASE_ENDLESS, &later), CAIRN_OK);
    kv_lease_answered(&l, endless, 100);
    kv_lease_answered(&l, later, 150);
    cr_assert_eq(kv_leases_closed(&l, 2, 0), 0);
    cr_assert_eq(kv_leases_closed(&l, 3, 149), 1);
    cr_assert_not(kv_lease_release(&l, later));
    cr_assert_eq(kv_leases_release_client(&l, 3), 0);
    cr_assert_eq(kv_leases_release_client(&l, KV_CLOSED), 1);
    cr_assert_eq(take(&l, 1, 1, 1, KV_LEASE_ENDLESS, &id), CAIRN_OK);
    cr_assert_eq(kv_leases_end(&l), 1);
    cr_assert_eq(take(&l, 1, 1, 1, KV_LEASE_ENDLESS, &id), CAIRN_STATE);
    cr_assert_eq(kv_leases_close(&l), 0);
    press(1000);
    cr_assert_not(held(1));
}

static void *take_and_release(void *arg)
{
    struct kv_leases *l = arg;
    for (int i = 0; i < 3000; i++) {
        uint64_t id;
        cairn_status st = take(l, (uint32_t)i % 8, 1 + (uint32_t)i % 3, 1, KV_LEASE_ENDLESS, &id);
        if (st == CAIRN_OK && i % 5)
            kv_lease_release(l, id);
    }
    return NULL;
}

Test(kv_lease, threads)
{
    struct kv_leases l;
    pthread_t threads[4];
    uint64_t pins;
    kv_leases_open(&l, vault);
    for (uint32_t i = 0; i < 12; i++)
        put(i);
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, take_and_release, &l);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    cr_assert_eq(kv_leases_count(&l, &pins), 4 * 600);
    cr_assert_eq(kv_leases_close(&l), 4 * 600);
    press(1000);
    cr_assert_not(held(0));
}

Test(kv_lease, operator_pins)
{
    struct kv_pins *p = kv_pins_open(vault);
    uint64_t deadline = cairn_deadline_ns(60 * CAIRN_NS_PER_S);
    struct cairn_key absent = key_of(99999);
    cr_assert_eq(kv_pins_add(p, &absent, deadline), CAIRN_MISS);
    for (uint32_t i = 0; i < 20; i++) {
        struct cairn_key key = key_of(i);
        put(i);
        cr_assert_eq(kv_pins_add(p, &key, deadline), CAIRN_OK);
        cr_assert_eq(kv_pins_add(p, &key, deadline), CAIRN_OK, "twice is once");
    }
    cr_assert_eq(kv_pins_count(p), 20);
    press(1000);
    for (uint32_t i = 0; i < 20; i++)
        cr_assert(held(i));
    for (uint32_t i = 0; i < 10; i++) {
        struct cairn_key key = key_of(i);
        cr_assert(kv_pins_remove(p, &key));
        cr_assert_not(kv_pins_remove(p, &key));
    }
    press(2000);
    cr_assert_not(held(3));
    cr_assert(held(13));
    kv_pins_clear(p);
    cr_assert_eq(kv_pins_count(p), 0);
    press(3000);
    cr_assert_not(held(13));
    kv_pins_close(p);
}
