/* A store over a simulated disk with faults, and what tests say to it: values of LEN bytes that
 * show their key and generation. Who includes it may say what LEN is, and fills in o, sim and
 * plan. */
#ifndef CAIRN_TESTS_HELPERS_BOX_H
#define CAIRN_TESTS_HELPERS_BOX_H

#include <criterion/criterion.h>
#include <unistd.h>

#include "base/clock.h"
#include "tests/helpers/rig.h"

#ifndef LEN
#define LEN 150000u
#endif

struct box {
    struct cairn_vault_opts o;
    struct cairn_vault *v;
    struct cairn_sim *sim;
    struct cairn_fault_plan plan;
    char path[64];
};

static inline uint64_t deadline(void)
{
    return cairn_deadline_ns(RIG_PATIENCE);
}

static inline void box_open(struct box *b)
{
    char err[512] = "";
    cr_assert_eq(cairn_vault_open(&b->o, &b->v, err, sizeof err), CAIRN_OK, "%s", err);
}

static inline void box_fini(struct box *b)
{
    cairn_vault_close(b->v);
    cairn_sim_destroy(b->sim);
    unlink(b->path);
}

static inline void box_reopen(struct box *b)
{
    cairn_vault_close(b->v);
    box_open(b);
}

static inline struct cairn_key key_of(uint64_t id)
{
    struct cairn_key k;
    value_key(id, k.bytes);
    return k;
}

static inline cairn_status put(struct box *b, uint64_t id, uint64_t gen, uint32_t flags)
{
    static uint8_t bytes[LEN];
    struct cairn_iov iov;
    struct cairn_put p = {.key = key_of(id), .flags = flags, .value = rig_sgl(&iov, bytes, LEN)};
    value_fill(bytes, id, gen, 0, LEN);
    cairn_vault_put(b->v, &p, 1, deadline(), NULL);
    return p.status;
}

/* Generation that a get shows, 0 = a miss. */
static inline uint64_t shown(struct box *b, uint64_t id)
{
    static uint8_t bytes[LEN];
    struct cairn_iov iov;
    struct cairn_get g = {.key = key_of(id), .out = rig_sgl(&iov, bytes, LEN)};
    cairn_vault_get(b->v, &g, 1, deadline(), NULL);
    if (g.status != CAIRN_OK)
        return 0;
    uint64_t gen = value_generation(bytes, LEN, id);
    cr_assert_eq(value_check(bytes, id, gen, 0, LEN), LEN, "wrong bytes");
    return gen;
}

static inline cairn_status delete(struct box *b, uint64_t id)
{
    struct cairn_key k = key_of(id);
    cairn_status st;
    cairn_vault_delete(b->v, &k, 1, deadline(), &st);
    return st;
}

static inline cairn_status flush(struct box *b)
{
    return cairn_vault_flush(b->v, deadline());
}

#endif
