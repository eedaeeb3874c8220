/* What a node asks of a vault, each call once and by itself; the model has them in any order. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "storage/figures.h"
#include "tests/helpers/rig.h"

#define LEN 100000u
#define COUNT 40u

struct box {
    struct cairn_vault_opts o;
    struct cairn_vault *v;
    char path[64];
};

static uint64_t deadline(void)
{
    return cairn_deadline_ns(RIG_PATIENCE);
}

static void box_open(struct box *b)
{
    char err[512] = "";
    cr_assert_eq(cairn_vault_open(&b->o, &b->v, err, sizeof err), CAIRN_OK, "%s", err);
}

static void box_init(struct box *b, const char *engine)
{
    *b = (struct box){.path = "node-XXXXXX"};
    int fd = mkstemp(b->path);
    cr_assert_geq(fd, 0);
    close(fd);
    unlink(b->path);
    b->o = (struct cairn_vault_opts){.ram_bytes = 16u << 20,
                                     .disk_bytes = 64u << 20,
                                     .path = b->path,
                                     .policy = "s3fifo",
                                     .engine = engine,
                                     .lock_wait_ns = RIG_SECOND,
                                     .io_deadline_ns = RIG_PATIENCE,
                                     .errors_max = 16,
                                     .reinsert_percent = 10};
    box_open(b);
}

static void box_fini(struct box *b)
{
    cairn_vault_close(b->v);
    unlink(b->path);
}

static struct cairn_key key_of(uint64_t id)
{
    struct cairn_key k;
    value_key(id, k.bytes);
    return k;
}

static void commit(struct box *b, uint64_t id, uint16_t space, const uint8_t *fingerprint)
{
    struct cairn_room room;
    enum cairn_cause cause;
    char name[32];
    cr_assert_eq(cairn_vault_room(b->v, LEN, 0, &room), CAIRN_OK);
    value_fill(room.value, id, 1, 0, LEN);
    struct cairn_commit c = {.key = key_of(id), .fingerprint = fingerprint, .name = name,
                             .name_len = (uint32_t)sprintf(name, "name %d", (int)id),
                             .space = space, .mark = (uint16_t)(id + 7),
                             .flags = CAIRN_PUT_REPLACE | CAIRN_COMMIT_ON_EVICT};
    cr_assert_eq(cairn_vault_commit(b->v, &room, &c, deadline(), &cause), CAIRN_OK);
    cr_assert_null(room.value);
}

/* --- sharing --- */

/* In a process of its own: reads alone, and sees what comes later. Returns which step failed. */
static int reader(int fd, size_t len, size_t off, uint64_t id, int from, int to)
{
    char go = 0;
    if (mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED)
        return 1;
    const char *base = mmap(NULL, len, PROT_READ, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED)
        return 2;
    if (mprotect((void *)(uintptr_t)base, len, PROT_READ | PROT_WRITE) == 0)
        return 3;
    if (ftruncate(fd, 0) == 0 || ftruncate(fd, (off_t)len * 2) == 0)
        return 4;
    if (pwrite(fd, &go, 1, (off_t)off) == 1)
        return 5;
    if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)len) == 0)
        return 6;
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0)
        return 7;
    if (value_check(base + off, id, 1, 0, LEN) != LEN)
        return 8;
    if (write(to, &go, 1) != 1 || read(from, &go, 1) != 1)
        return 9;
    return value_check(base + off, id + 1, 1, 0, LEN) == LEN ? 0 : 10;
}

/* The owner's writes show in it: through its mapping, and through buffers the ring has pinned. */
static void shares(const char *engine)
{
    struct box b;
    int fd, down[2], up[2], status;
    const void *base;
    size_t len;
    char c = 0;
    box_init(&b, engine);
    cr_assert_eq(cairn_vault_share(b.v, &fd, &base, &len), CAIRN_OK);
    cr_assert_geq(len, b.o.ram_bytes);
    struct cairn_room room;
    cr_assert_eq(cairn_vault_room(b.v, LEN, 0, &room), CAIRN_OK);
    value_fill(room.value, 1, 1, 0, LEN);
    int copy = dup(fd);
    cr_assert(copy >= 0 && pipe(down) == 0 && pipe(up) == 0);
    pid_t pid = fork();
    cr_assert_geq(pid, 0);
    if (pid == 0)
        _exit(reader(copy, len, (size_t)((char *)room.value - (const char *)base), 1, down[0],
                     up[1]));
    close(down[0]);
    close(up[1]);
    bool alive = read(up[0], &c, 1) == 1;
    value_fill(room.value, 2, 1, 0, LEN);
    cr_assert(!alive || write(down[1], &c, 1) == 1);
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_assert(WIFEXITED(status));
    cr_assert_eq(WEXITSTATUS(status), 0, "step %d", WEXITSTATUS(status));
    cairn_vault_room_drop(b.v, &room);

    /* A read from the disk lands where a reader's mapping shows it. */
    const char *seen = mmap(NULL, len, PROT_READ, MAP_SHARED, copy, 0);
    struct cairn_key key = key_of(3);
    struct cairn_pin pin;
    cr_assert_neq(seen, MAP_FAILED);
    commit(&b, 3, 1, NULL);
    cr_assert_eq(cairn_vault_flush(b.v, deadline()), CAIRN_OK);
    cr_assert_gt(cairn_vault_drop_ram(b.v), 0);
    cr_assert_eq(cairn_vault_space_pin(b.v, 1, &key, 1, deadline(), &pin), 1);
    size_t off = (size_t)((const char *)pin.value - (const char *)base);
    cr_assert_eq(value_check(seen + off, 3, 1, 0, LEN), LEN);
    cairn_vault_unpin(b.v, &pin, 1);
    munmap((void *)(uintptr_t)seen, len);
    close(copy);
    close(down[1]);
    close(up[0]);
    box_fini(&b);
}

Test(store_node, others_read_the_arena_and_never_write_it, .timeout = 300)
{
    shares("pool");
    shares("auto");
}

/* --- spaces --- */

struct seen {
    uint32_t count, names;
};

static bool see(void *arg, const struct cairn_scan_item *item)
{
    struct seen *s = arg;
    char name[32];
    for (uint64_t id = 0; id < COUNT; id++) {
        struct cairn_key key = key_of(id);
        int len = sprintf(name, "name %d", (int)id);
        if (memcmp(&key, &item->key, sizeof key) == 0 && item->name_len == len &&
            memcmp(item->name, name, (size_t)len) == 0 && item->mark == id + 7)
            s->names++;
    }
    s->count++;
    return true;
}

static uint32_t walk(struct box *b, uint16_t space)
{
    struct seen s = {0};
    uint32_t cursor = 0;
    do
        cr_assert_eq(cairn_vault_scan(b->v, space, &cursor, 7, deadline(), see, &s), CAIRN_OK);
    while (cursor);
    cr_assert_eq(s.names, s.count);
    return s.count;
}

/* Of what is only on disk a walk reads the headers, and nothing leaves RAM for it. */
Test(store_node, walks_headers_and_clears_for_good, .timeout = 300)
{
    struct box b;
    struct cairn_vault_figures f;
    struct cairn_fsck_report report;
    char err[512] = "";
    uint64_t age;
    struct cairn_key odd = key_of(1);
    box_init(&b, "auto");
    for (uint64_t id = 0; id < COUNT; id++)
        commit(&b, id, id % 2, NULL);
    cr_assert_eq(cairn_vault_flush(b.v, deadline()), CAIRN_OK);
    cr_assert_gt(cairn_vault_drop_ram(b.v), 0);
    cairn_vault_figures(b.v, &f);
    uint64_t before = atomic_load(&f.disk_stats->read_bytes);
    cr_assert_eq(walk(&b, 0), COUNT / 2);
    cr_assert_eq(walk(&b, 1), COUNT / 2);
    cr_assert_eq(atomic_load(&f.disk_stats->read_bytes) - before, COUNT * CAIRN_BLOCK);

    cr_assert_eq(cairn_vault_clear_space(b.v, 1, deadline()), CAIRN_OK);
    cr_assert_eq(walk(&b, 1), 0);
    cr_assert_eq(cairn_vault_space_count(b.v, 1), 0);
    cr_assert_eq(cairn_vault_space_count(b.v, 0), COUNT / 2);
    cr_assert_eq(cairn_vault_drop_cause(b.v, &odd, &age), CAIRN_CAUSE_CLEARED);
    commit(&b, 1, 1, NULL);
    /* Why chunks do not show it, which a string of that name is not. */
    cr_assert_eq(cairn_vault_drop_cause(b.v, &odd, &age), CAIRN_CAUSE_CLEARED);
    for (int round = 0; round < 2; round++) {
        cairn_vault_close(b.v);
        cr_assert_eq(cairn_fsck(b.path, &report, NULL, NULL, NULL, NULL, err, sizeof err),
                     CAIRN_OK, "%s", err);
        cr_assert_eq(report.clears, 1);
        cr_assert_eq(report.records, COUNT + 1);
        box_open(&b);
        cr_assert_eq(walk(&b, 1), 1);
        cr_assert_eq(walk(&b, 0), COUNT / 2);
    }
    box_fini(&b);
}

Test(store_node, counts_by_identity, .timeout = 300)
{
    struct box b;
    struct cairn_identity_figures f;
    uint8_t one[32] = {1}, other[32] = {2};
    struct cairn_key key = key_of(0);
    struct cairn_pin pin;
    enum cairn_cause cause;
    box_init(&b, "auto");
    for (uint64_t id = 0; id < 5; id++)
        commit(&b, id, 0, id < 3 ? one : other);
    cr_assert_eq(cairn_vault_pin_now(b.v, &key, true, &pin, &cause), CAIRN_OK);
    cairn_vault_unpin(b.v, &pin, 1);
    cr_assert_eq(cairn_vault_identity_figures(b.v, one, &f), CAIRN_OK);
    cr_assert(f.puts == 3 && f.put_bytes == 3 * LEN && f.held == 3 && f.hits == 1 &&
              f.hit_bytes == LEN);
    cr_assert_eq(cairn_vault_delete(b.v, &key, 1, deadline(), NULL), CAIRN_OK);
    /* What is held is known after a restart, from footers or headers. */
    for (int round = 0; round < 2; round++) {
        cr_assert_eq(cairn_vault_identity_figures(b.v, one, &f), CAIRN_OK);
        cr_assert_eq(f.held, 2);
        cr_assert_eq(cairn_vault_identity_figures(b.v, other, &f), CAIRN_OK);
        cr_assert_eq(f.held, 2);
        cairn_vault_close(b.v);
        box_open(&b);
    }
    other[0] = 3;
    cr_assert_eq(cairn_vault_identity_figures(b.v, other, &f), CAIRN_MISS);
    box_fini(&b);
}

/* --- an index that is too small --- */

#define MANY 1800u

static cairn_status set(struct box *b, uint64_t id, uint64_t gen)
{
    struct cairn_room room;
    enum cairn_cause cause;
    cr_assert_eq(cairn_vault_room(b->v, 2000, 0, &room), CAIRN_OK);
    value_fill(room.value, id, gen, 0, 2000);
    struct cairn_commit c = {.key = key_of(id), .space = 1,
                             .flags = CAIRN_PUT_REPLACE | CAIRN_COMMIT_ON_EVICT |
                                      CAIRN_COMMIT_NOWAIT};
    cairn_status now = cairn_vault_commit(b->v, &room, &c, deadline(), &cause);
    c.flags &= ~CAIRN_COMMIT_NOWAIT;
    if (now == CAIRN_INPROGRESS)
        cr_assert_eq(cairn_vault_commit(b->v, &room, &c, deadline(), &cause), CAIRN_OK);
    else
        cr_assert_eq(now, CAIRN_OK);
    return now;
}

/* A chunk has taken the key of a forgotten string: the string could not be buried without it, and a
 * delete that let it lie says so. */
static void forgotten_beneath(struct box *b)
{
    char bytes[100] = {0};
    struct cairn_iov iov;
    struct cairn_put put = {.value = rig_sgl(&iov, bytes, sizeof bytes)};
    cairn_status st;
    uint64_t id = 1;
    do {
        put.key = key_of(id += 3);
    } while (cairn_vault_space_value_len(b->v, 1, &put.key));
    cr_assert_lt(id, MANY);
    cr_assert_eq(cairn_vault_put(b->v, &put, 1, deadline(), NULL), CAIRN_OK);
    cr_assert_eq(cairn_vault_space_delete_now(b->v, 1, &put.key), CAIRN_INPROGRESS);
    cairn_vault_space_delete(b->v, 1, &put.key, 1, deadline(), &st);
    cr_assert_eq(st, CAIRN_IO);
    cr_assert_eq(cairn_vault_lookup(b->v, &put.key, 1), 1);
}

static void file_copy(const char *from, const char *to)
{
    static char bytes[1u << 20];
    int in = open(from, O_RDONLY), out = open(to, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    ssize_t n;
    cr_assert(in >= 0 && out >= 0);
    while ((n = read(in, bytes, sizeof bytes)) > 0)
        cr_assert_eq(write(out, bytes, (size_t)n), n);
    cr_assert_eq(n, 0);
    close(in);
    close(out);
}

/* Values that the index has forgotten are on the disk still: replaced or deleted, they never come
 * back, although nothing was known of them. New keys need no tombstone for that. */
Test(store_node, what_the_index_forgot_stays_dead, .timeout = 300)
{
    struct box b;
    struct cairn_vault_figures f;
    char copy[80];
    uint32_t waited = 0;
    box_init(&b, "auto");
    cairn_vault_close(b.v);
    b.o.entries = 1024;
    b.o.ram_bytes = 4u << 20;
    box_open(&b);
    for (uint64_t id = 0; id < MANY; id++) {
        waited += set(&b, id, 1) == CAIRN_INPROGRESS;
        if (id % 100 == 99)
            cr_assert_eq(cairn_vault_flush(b.v, deadline()), CAIRN_OK);
    }
    cr_assert_leq(waited, 4, "%u new keys waited for a tombstone", waited);
    cairn_vault_figures(b.v, &f);
    cr_assert_geq(f.forgotten, 100);
    for (uint64_t id = 0; id < MANY; id += 3) {
        struct cairn_key key = key_of(id);
        if (id % 2)
            set(&b, id, 2);
        else
            cr_assert_geq(cairn_vault_space_delete(b.v, 1, &key, 1, deadline(), NULL),
                          CAIRN_MISS);
    }
    forgotten_beneath(&b);
    /* As after a crash: what was put since is not written yet. */
    snprintf(copy, sizeof copy, "%s.copy", b.path);
    file_copy(b.path, copy);
    cairn_vault_close(b.v);
    cr_assert_eq(rename(copy, b.path), 0);
    b.o.entries = 8192;
    box_open(&b);
    for (uint64_t id = 0; id < MANY; id += 3) {
        struct cairn_key key = key_of(id);
        struct cairn_pin pin;
        if (cairn_vault_space_pin(b.v, 1, &key, 1, deadline(), &pin) == 0)
            continue;
        cr_assert_eq(id % 2, 1, "deleted key %d is back", (int)id);
        cr_assert_eq(value_check(pin.value, id, 2, 0, 2000), 2000, "old value of key %d is back",
                     (int)id);
        cairn_vault_unpin(b.v, &pin, 1);
    }
    cr_assert_gt(cairn_vault_space_count(b.v, 1), 1024);
    box_fini(&b);
}

/* --- one key, two spaces --- */

static void holds(struct box *b, uint64_t id, uint16_t space)
{
    struct cairn_key key = key_of(id);
    struct cairn_pin pin;
    cr_assert_eq(cairn_vault_space_pin(b->v, space, &key, 1, deadline(), &pin), 1);
    cr_assert_eq(cairn_pin_body(&pin)->space, space);
    cr_assert_eq(value_check(pin.value, id, 1, 0, LEN), LEN);
    cairn_vault_unpin(b->v, &pin, 1);
}

static cairn_status enter(struct box *b, uint64_t id, uint16_t space, uint32_t flags,
                          enum cairn_cause *cause)
{
    struct cairn_room room;
    struct cairn_commit c = {.key = key_of(id), .space = space, .flags = flags};
    cr_assert_eq(cairn_vault_room(b->v, LEN, 0, &room), CAIRN_OK);
    value_fill(room.value, id, 1, 0, LEN);
    cairn_status st = cairn_vault_commit(b->v, &room, &c, deadline(), cause);
    cr_assert(!room.value);
    return st;
}

/* Whatever `other` asks about a key of this space, by any call that takes one. */
static void is_nothing_to(struct box *b, uint64_t id, uint16_t other)
{
    struct cairn_key key = key_of(id);
    struct cairn_pin pin;
    struct cairn_scan_item item;
    enum cairn_cause cause;
    cairn_status st;
    for (uint32_t flags = 0; flags <= CAIRN_COMMIT_NOWAIT; flags += CAIRN_COMMIT_NOWAIT)
        for (uint32_t replace = 0; replace <= CAIRN_PUT_REPLACE; replace += CAIRN_PUT_REPLACE) {
            cr_assert_eq(enter(b, id, other, flags | replace, &cause), CAIRN_INVAL);
            cr_assert_eq(cause, CAIRN_CAUSE_SPACE);
        }
    cr_assert_eq(cairn_vault_space_pin(b->v, other, &key, 1, deadline(), &pin), 0);
    cr_assert_eq(cairn_vault_space_pin_now(b->v, other, &key, true, &pin, &cause), CAIRN_MISS);
    cr_assert_eq(cause, CAIRN_CAUSE_ABSENT);
    cr_assert_eq(cairn_vault_space_value_len(b->v, other, &key), 0);
    cr_assert_eq(cairn_vault_header(b->v, other, &key, deadline(), &item, &cause), CAIRN_MISS);
    cr_assert_eq(cairn_vault_space_delete_now(b->v, other, &key), CAIRN_MISS);
    cairn_vault_space_delete(b->v, other, &key, 1, deadline(), &st);
    cr_assert_eq(st, CAIRN_MISS);
    cr_assert_eq(cairn_vault_clear_space(b->v, other, deadline()), CAIRN_OK);
}

static void string_is_no_chunk(struct box *b, uint64_t id)
{
    static char bytes[LEN];
    struct cairn_iov iov;
    uint32_t side_len = LEN;
    uint64_t age;
    struct cairn_get get = {.key = key_of(id), .out = rig_sgl(&iov, bytes, LEN)};
    struct cairn_put put = {.key = key_of(id), .value = rig_sgl(&iov, bytes, LEN)};
    for (uint32_t replace = 0; replace <= CAIRN_PUT_REPLACE; replace += CAIRN_PUT_REPLACE) {
        put.flags = replace;
        cr_assert_eq(cairn_vault_put(b->v, &put, 1, deadline(), NULL), CAIRN_INVAL);
        cr_assert_eq(put.cause, CAIRN_CAUSE_SPACE);
    }
    cr_assert_eq(cairn_vault_get(b->v, &get, 1, deadline(), NULL), CAIRN_MISS);
    cr_assert_eq(cairn_vault_lookup(b->v, &get.key, 1), 0);
    cr_assert_eq(cairn_vault_where(b->v, &get.key), 0);
    cr_assert_eq(cairn_vault_side(b->v, &get.key, bytes, &side_len, deadline()), CAIRN_MISS);
    cr_assert_neq(cairn_vault_drop_cause(b->v, &get.key, &age), CAIRN_CAUSE_NONE);
}

/* One of a pair in each space: what either does to the other's changes nothing, whether it is in
 * RAM, only on disk, or was found at open. Deleted or cleared, its key is free. */
Test(store_node, a_key_is_of_one_space, .timeout = 300)
{
    struct box b;
    struct cairn_vault_figures f;
    enum cairn_cause cause;
    box_init(&b, "auto");
    for (uint16_t space = 0; space < 2; space++)
        cr_assert_eq(enter(&b, space, space, CAIRN_PUT_REPLACE, &cause), CAIRN_OK);
    for (int where = 0; where < 3; where++) {
        for (uint16_t space = 0; space < 2; space++) {
            is_nothing_to(&b, space, !space);
            holds(&b, space, space);
            /* The other has cleared its own. */
            cr_assert_eq(enter(&b, !space, !space, CAIRN_PUT_REPLACE, &cause), CAIRN_OK);
        }
        string_is_no_chunk(&b, 1);
        holds(&b, 1, 1);
        cr_assert_eq(cairn_vault_flush(b.v, deadline()), CAIRN_OK);
        cr_assert_gt(cairn_vault_drop_ram(b.v), 0);
        if (where == 1) {
            cairn_vault_close(b.v);
            box_open(&b);
        }
    }
    cairn_vault_figures(b.v, &f);
    cr_assert_geq(f.refused[CAIRN_CAUSE_SPACE], 8);
    struct cairn_key key = key_of(1);
    cairn_status st;
    cairn_vault_space_delete(b.v, 1, &key, 1, deadline(), &st);
    cr_assert_eq(st, CAIRN_OK);
    cr_assert_eq(enter(&b, 1, 0, 0, &cause), CAIRN_OK);
    cr_assert_eq(cairn_vault_clear_space(b.v, 0, deadline()), CAIRN_OK);
    cr_assert_eq(enter(&b, 1, 1, CAIRN_PUT_REPLACE, &cause), CAIRN_OK);
    holds(&b, 1, 1);
    box_fini(&b);
}

static bool expired_at_last(struct box *b, uint64_t id, uint16_t space)
{
    struct cairn_key key = key_of(id);
    struct cairn_scan_item item;
    enum cairn_cause cause;
    cairn_vault_header(b->v, space, &key, deadline(), &item, &cause);
    return cause == CAIRN_CAUSE_EXPIRED;
}

static cairn_status enter_until(struct box *b, uint64_t id, uint16_t space, uint64_t expires_ns)
{
    struct cairn_room room;
    enum cairn_cause cause;
    struct cairn_commit c = {.key = key_of(id), .space = space, .expires_ns = expires_ns};
    cr_assert_eq(cairn_vault_room(b->v, LEN, 0, &room), CAIRN_OK);
    value_fill(room.value, id, 1, 0, LEN);
    return cairn_vault_commit(b->v, &room, &c, deadline(), &cause);
}

/* Whose time has passed does not hold its key any more, also where only the disk knows that: who
 * may not wait is told to ask again where it may. One that has time left holds it. */
Test(store_node, an_expired_value_on_disk_gives_its_key_away, .timeout = 300)
{
    struct box b;
    struct cairn_iov iov;
    enum cairn_cause cause;
    static char bytes[LEN];
    box_init(&b, "auto");
    uint64_t soon = cairn_wall_ns() + CAIRN_NS_PER_S / 5, late = soon + 3600 * CAIRN_NS_PER_S;
    for (uint64_t id = 0; id < 4; id++)
        cr_assert_eq(enter_until(&b, id, id % 2, id < 2 ? soon : late), CAIRN_OK);
    cr_assert_eq(cairn_vault_flush(b.v, deadline()), CAIRN_OK);
    cr_assert_gt(cairn_vault_drop_ram(b.v), 0);
    while (!expired_at_last(&b, 0, 0) || !expired_at_last(&b, 1, 1))
        usleep(10000);
    struct cairn_put chunk = {.key = key_of(1), .value = rig_sgl(&iov, bytes, LEN)};
    value_fill(bytes, 1, 1, 0, LEN);
    cr_assert_eq(cairn_vault_put(b.v, &chunk, 1, deadline(), NULL), CAIRN_OK);
    holds(&b, 1, 0);
    struct cairn_room room;
    struct cairn_commit c = {.key = key_of(0), .space = 1, .flags = CAIRN_COMMIT_NOWAIT};
    cr_assert_eq(cairn_vault_room(b.v, LEN, 0, &room), CAIRN_OK);
    value_fill(room.value, 0, 1, 0, LEN);
    cr_assert_eq(cairn_vault_commit(b.v, &room, &c, deadline(), &cause), CAIRN_INPROGRESS);
    c.flags = 0;
    cr_assert_eq(cairn_vault_commit(b.v, &room, &c, deadline(), &cause), CAIRN_OK);
    holds(&b, 0, 1);
    for (uint64_t id = 2; id < 4; id++) {
        cr_assert_eq(enter(&b, id, !(id % 2), CAIRN_PUT_REPLACE, &cause), CAIRN_INVAL);
        holds(&b, id, id % 2);
    }
    box_fini(&b);
}

/* A RAM copy whose bytes changed is no hit; the disk has the value still. */
Test(store_node, damage_in_ram_is_found, .timeout = 300)
{
    struct box b;
    struct cairn_key key = key_of(4);
    struct cairn_pin pin;
    enum cairn_cause cause;
    box_init(&b, "auto");
    b.o.verify = CAIRN_VERIFY_ALWAYS;
    commit(&b, 4, 0, NULL);
    cr_assert_eq(cairn_vault_flush(b.v, deadline()), CAIRN_OK);
    cr_assert_eq(cairn_vault_pin_now(b.v, &key, false, &pin, &cause), CAIRN_OK);
    ((char *)(uintptr_t)pin.value)[LEN / 2] ^= 1;
    cairn_vault_unpin(b.v, &pin, 1);
    cr_assert_eq(cairn_vault_pin_now(b.v, &key, true, &pin, &cause), CAIRN_INPROGRESS);
    cr_assert_eq(cairn_vault_pin(b.v, &key, 1, deadline(), &pin), 1);
    cr_assert_eq(value_check(pin.value, 4, 1, 0, LEN), LEN);
    cairn_vault_unpin(b.v, &pin, 1);
    box_fini(&b);
}
