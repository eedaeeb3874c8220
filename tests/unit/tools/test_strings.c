/* One string over a vault in memory: its name, and that nothing but itself is taken for it. */
#include <criterion/criterion.h>
#include <string.h>

#include "base/clock.h"
#include "tools/cairnd/cmd_string.h"

static struct node node;
static struct client client = {.node = &node};

static void open_node(void)
{
    char err[256];
    struct cairn_vault_opts o = {.ram_bytes = 16u << 20, .verify = CAIRN_VERIFY_ALWAYS,
                                 .policy = "lru", .write = CAIRN_WRITE_NONE};
    cr_assert_eq(cairn_vault_open(&o, &node.vault, err, sizeof err), CAIRN_OK, "%s", err);
    for (uint32_t i = 0; i < NODE_STRIPES; i++)
        pthread_mutex_init(&node.stripe[i], NULL);
    cairn_out_open(&client.out);
}

static void close_node(void)
{
    cairn_out_close(&client.out);
    cairn_vault_close(node.vault);
}

TestSuite(strings, .init = open_node, .fini = close_node, .timeout = 60);

/* A call of SET with this key and value. */
struct words {
    struct cairn_resp_arg args[3];
    struct call call;
    struct string_key key;
};

static void words(struct words *w, const void *key, size_t key_len, const void *value,
                  size_t value_len)
{
    char *name = (char *)(uintptr_t)"SET", *k = (char *)(uintptr_t)key;
    char *v = (char *)(uintptr_t)value;
    *w = (struct words){.args = {{name, 3}, {k, key_len}, {v, value_len}}};
    w->call = (struct call){.client = &client, .node = &node, .command = command_find("SET", 3),
                            .args = w->args, .argc = 3, .out = &client.out};
    cr_assert(string_key(&w->call, 1, &w->key));
}

static void set(struct words *w)
{
    struct string_value v;
    cr_assert_eq(string_value_take(&w->call, 2, &v), CAIRN_OK);
    cr_assert_eq(string_commit(&w->call, &w->key, &v, 0), CAIRN_OK);
}

static cairn_status find(struct words *w)
{
    struct string s;
    cairn_status st = string_find(&w->call, &w->key, STRING_BYTES, &s);
    if (st == CAIRN_OK) {
        cr_assert_eq(s.len, w->args[2].len);
        cr_assert(memcmp(s.data, w->args[2].data, s.len) == 0);
        string_drop(&w->call, &s);
    }
    return st;
}

/* Made by Python's hashlib from the text in strings.h. */
Test(strings, are_named_as_the_header_says)
{
    static const uint8_t key1[4] = {0xc3, 0xb6, 0x17, 0xc5}, none[4] = {0x0e, 0x16, 0xfd, 0xd1};
    static const uint8_t other[4] = {0xff, 0x12, 0x04, 0x1f};
    struct words w;
    words(&w, "key:1", 5, "v", 1);
    cr_assert(memcmp(w.key.name.bytes, key1, sizeof key1) == 0);
    words(&w, "", 0, "v", 1);
    cr_assert(memcmp(w.key.name.bytes, none, sizeof none) == 0);
    client.tenant = 7;
    words(&w, "key:1", 5, "v", 1);
    cr_assert(memcmp(w.key.name.bytes, other, sizeof other) == 0);
}

Test(strings, of_tenants_are_apart)
{
    struct words mine, theirs;
    words(&mine, "k", 1, "mine", 4);
    set(&mine);
    client.tenant = 1;
    words(&theirs, "k", 1, "theirs", 6);
    cr_assert_eq(find(&theirs), CAIRN_MISS);
    set(&theirs);
    cr_assert_eq(find(&theirs), CAIRN_OK);
    client.tenant = 0;
    cr_assert_eq(find(&mine), CAIRN_OK);
}

/* A record under the string's own vault name that is something else. */
static void put_instead(const struct words *w, const char *name, uint32_t tenant, uint16_t space)
{
    struct cairn_room room;
    enum cairn_cause cause;
    cr_assert_eq(cairn_vault_room(node.vault, w->args[2].len, 0, &room), CAIRN_OK);
    memcpy(room.value, w->args[2].data, w->args[2].len);
    struct cairn_commit c = {.key = w->key.name, .name = name, .name_len = (uint32_t)strlen(name),
                             .tenant = tenant, .space = space, .flags = CAIRN_PUT_REPLACE};
    cr_assert_eq(cairn_vault_commit(node.vault, &room, &c, UINT64_MAX, &cause), CAIRN_OK);
}

Test(strings, are_compared_by_their_key_and_not_by_its_hash)
{
    struct words w;
    words(&w, "key", 3, "value", 5);
    put_instead(&w, "kez", 0, CAIRN_SPACE_STRINGS);
    cr_assert_eq(find(&w), CAIRN_MISS);
    put_instead(&w, "key1", 0, CAIRN_SPACE_STRINGS);
    cr_assert_eq(find(&w), CAIRN_MISS);
    put_instead(&w, "key", 1, CAIRN_SPACE_STRINGS);
    cr_assert_eq(find(&w), CAIRN_MISS);
    cr_assert_eq(cairn_vault_space_delete_now(node.vault, CAIRN_SPACE_STRINGS, &w.key.name),
                 CAIRN_OK);
    put_instead(&w, "key", 0, 0);
    cr_assert_eq(find(&w), CAIRN_MISS);
    cr_assert_eq(cairn_vault_delete_now(node.vault, &w.key.name), CAIRN_OK);
    put_instead(&w, "key", 0, CAIRN_SPACE_STRINGS);
    cr_assert_eq(find(&w), CAIRN_OK);
}

Test(strings, may_be_empty)
{
    struct words empty, nul;
    words(&empty, "e", 1, "", 0);
    words(&nul, "n", 1, "\0", 1);
    set(&empty);
    set(&nul);
    cr_assert_eq(find(&empty), CAIRN_OK);
    cr_assert_eq(find(&nul), CAIRN_OK);
    cr_assert_eq(string_delete(&empty.call, &empty.key), CAIRN_OK);
    cr_assert_eq(find(&empty), CAIRN_MISS);
    cr_assert_eq(string_delete(&empty.call, &empty.key), CAIRN_MISS);
}

Test(strings, have_keys_of_up_to_1024_bytes)
{
    static char key[1025];
    struct words w;
    words(&w, key, 1024, "v", 1);
    set(&w);
    cr_assert_eq(find(&w), CAIRN_OK);
    w.args[1].len = 1025;
    cr_assert_not(string_key(&w.call, 1, &w.key));
    cr_assert_eq(client.out.errors, 1);
}

Test(strings, wait_for_a_stripe_only_where_they_may)
{
    struct words w;
    struct string_stripes all = {{0}};
    words(&w, "k", 1, "v", 1);
    string_stripes_add(&all, &w.key);
    cr_assert_eq(string_lock(&w.call, &w.key), CAIRN_OK);
    cr_assert_eq(string_lock(&w.call, &w.key), CAIRN_INPROGRESS);
    w.call.may_wait = true;
    w.call.deadline_ns = cairn_deadline_ns(20 * CAIRN_NS_PER_MS);
    cr_assert_eq(string_lock(&w.call, &w.key), CAIRN_TIMEOUT);
    cr_assert_geq(cairn_now_ns(), w.call.deadline_ns);
    cr_assert_eq(string_stripes_lock(&w.call, &all), CAIRN_TIMEOUT);
    string_unlock(&w.call, &w.key);
    cr_assert_eq(string_stripes_lock(&w.call, &all), CAIRN_OK);
    string_stripes_unlock(&w.call, &all);
}

/* Nothing can leave: a value that a reply holds is not touched by what replaces it. */
Test(strings, that_are_being_sent_stay_as_they_were)
{
    static char first[100000], second[100000];
    memset(first, 'a', sizeof first);
    memset(second, 'b', sizeof second);
    struct words w;
    struct string s;
    words(&w, "k", 1, first, sizeof first);
    set(&w);
    cr_assert_eq(string_find(&w.call, &w.key, STRING_BYTES, &s), CAIRN_OK);
    words(&w, "k", 1, second, sizeof second);
    set(&w);
    cr_assert(memcmp(s.data, first, s.len) == 0);
    cr_assert_not(string_reply(&w.call, &s, 0, s.len));
    cr_assert_eq(find(&w), CAIRN_OK);
    cr_assert(memcmp(s.data, first, s.len) == 0);
}

/* The second value is a worker's, so it is run again: by then the first may be another's. */
Test(strings, that_mset_has_set_are_set_once)
{
    static char mset[] = "MSET", first[] = "first", second[] = "second", a[] = "a";
    static char large[5u << 20];
    struct cairn_resp_arg args[] = {{mset, 4}, {first, 5}, {a, 1}, {second, 6},
                                    {large, sizeof large}};
    struct call c = {.client = &client, .node = &node, .command = command_find("MSET", 4),
                     .args = args, .argc = 5, .out = &client.out};
    struct words other, w;
    cr_assert_eq(cmd_mset(&c), CALL_WAITS);
    cr_assert_eq(client.out.queued, 0);
    words(&w, "first", 5, "a", 1);
    cr_assert_eq(find(&w), CAIRN_OK);
    words(&other, "first", 5, "another", 7);
    set(&other);
    c.may_wait = true;
    c.deadline_ns = cairn_deadline_ns(60 * CAIRN_NS_PER_S);
    cr_assert_eq(cmd_mset(&c), CALL_DONE);
    cr_assert_eq(client.out.errors, 0);
    cr_assert_eq(find(&other), CAIRN_OK);
    words(&w, "second", 6, large, sizeof large);
    cr_assert_eq(find(&w), CAIRN_OK);
}
