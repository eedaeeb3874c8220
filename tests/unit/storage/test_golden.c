/* Images of every format version, made when they were new, that this build must read.
 *
 * golden-v1.log.gz          values, tombstones, a hole, side records, an identity
 * golden-v1-spaces.log.gz   the same in two spaces, one of which was cleared
 *
 * CAIRN_GOLDEN_MAKE=FILE bin/test_storage_golden writes such an image as this build does; then
 * `gzip -9n FILE` and put it under tests/data. An image once committed is never made again. */
#include <criterion/criterion.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "storage/ioq_fault.h"
#include "tests/helpers/leftovers.h"
#include "tests/helpers/log_host.h"

#define DISK (32u << 20)
#define VALUES 200u
#define HOLE 150u   /* its write failed               */
#define DEAD 7u     /* every such id was deleted      */
#define LONG_ID 190u /* two pieces and side records   */
#define STRINGS 5u  /* every such id is of space 1    */
#define CLEAR 100u  /* before it space 1 was cleared  */

static uint32_t len_of(uint64_t id)
{
    return id == LONG_ID ? 262144 + 77 : 16 + (uint32_t)id * 3;
}

static void fill(struct log_host *h, struct cairn_fault_plan *plan, uint64_t from, uint64_t to)
{
    for (uint64_t id = from; id < to; id++) {
        h->side_len = id == LONG_ID ? 333 : 0;
        h->space = id % STRINGS == 0;
        if (id == CLEAR)
            cr_assert_eq(host_clear(h, 1), CAIRN_OK);
        if (id == HOLE) {
            host_sync(h);
            usleep(50000);
            plan->rules[0] = (struct cairn_fault_rule){
                .fault = CAIRN_FAULT_EIO, .kinds = CAIRN_FAULT_WRITES, .nth = 1, .times = 2};
            plan->rule_count = 1;
        }
        cr_assert_eq(host_put(h, id, len_of(id)), id == HOLE ? CAIRN_IO : CAIRN_OK);
        plan->rule_count = 0;
        if (id % 11 == 0)
            cr_assert_eq(host_put(h, id, len_of(id)), CAIRN_OK, "replaced");
        if (id % DEAD == 0)
            cr_assert_eq(host_delete(h, id), CAIRN_OK);
    }
    cr_assert_eq(h->tier->ops->ident_put(h->tier, "golden identity", 15), CAIRN_OK);
}

static void make(const char *file)
{
    struct log_host h;
    struct cairn_fault_plan plan = {.next = cairn_ioq_find("pool")};
    host_init(&h, file, DISK, "pool");
    h.o.ioq = &cairn_ioq_fault;
    h.o.ioq_arg = &plan;
    cr_assert_eq(host_open(&h), CAIRN_OK, "%s", h.err);
    fill(&h, &plan, 0, 120);
    cr_assert(host_close(&h));
    cr_assert_eq(host_open(&h), CAIRN_OK, "%s", h.err);
    fill(&h, &plan, 120, VALUES);
    cr_assert(host_close(&h));
    host_fini(&h);
}

static void count_identity(void *arg, const void *canon, uint32_t len)
{
    if (len == 15 && memcmp(canon, "golden identity", 15) == 0)
        ++*(int *)arg;
}

static void check(const char *path, bool spaces)
{
    struct log_host h;
    struct cairn_fsck_report r;
    char err[512];
    int identities = 0;
    host_init(&h, path, DISK, "pool");
    cr_assert_eq(cairn_fsck(path, &r, NULL, NULL, NULL, NULL, err, sizeof err), CAIRN_OK, "%s",
                 err);
    cr_assert_eq(r.holes, 1);
    cr_assert_eq(r.clears, spaces);
    cr_assert_geq(r.tombstones, VALUES / DEAD);
    cr_assert_geq(r.sealed, 1);
    cr_assert_geq(r.open, 1);
    for (int again = 0; again < 2; again++) {
        host_forget(&h);
        cr_assert_eq(host_open(&h), CAIRN_OK, "%s", h.err);
        for (uint64_t id = 0; id < VALUES; id++) {
            bool string = spaces && id % STRINGS == 0;
            bool held = id % DEAD != 0 && id != HOLE && !(string && id < CLEAR);
            cr_assert_eq(host_get(&h, id), held ? CAIRN_OK : CAIRN_MISS, "key %d", (int)id);
            cr_assert(!held || h.keys[id].space == string);
            cr_assert(!held || h.keys[id].len == len_of(id));
        }
        h.tier->ops->ident_each(h.tier, count_identity, &identities);
        cr_assert(host_close(&h));
    }
    cr_assert_eq(identities, 2);
    host_fini(&h);
}

static void read_image(const char *name, bool spaces)
{
    char path[64], command[512];
    struct leftovers left;
    snprintf(path, sizeof path, "golden-%d", (int)getpid());
    leftovers_begin(&left, path, NULL);
    snprintf(command, sizeof command, "gzip -dc '%s/tests/data/%s.log.gz' > %s", CAIRN_SOURCE_DIR,
             name, path);
    cr_assert_eq(system(command), 0);
    check(path, spaces);
    leftovers_end(&left);
}

Test(golden, version_1)
{
    read_image("golden-v1", false);
}

Test(golden, version_1_spaces)
{
    const char *file = getenv("CAIRN_GOLDEN_MAKE");
    if (file) {
        make(file);
        check(file, true);
    } else {
        read_image("golden-v1-spaces", true);
    }
}
