/* The model of test_store_model.c: what is known of each key, and how a failure is told. */
#ifndef CAIRN_TESTS_STORE_MODEL_H
#define CAIRN_TESTS_STORE_MODEL_H

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "storage/figures.h"
#include "tests/helpers/rig.h"

#define KEYS 160u
#define BATCH 8u
#define VALUE_LARGEST (200u * 1024u)
#define SIDE_LARGEST 3000u
#define PINS 4u

/* What was last done to a key, told when it goes wrong: threads and devices make no run repeat. */
#define NOTES 24u
struct note {
    uint64_t op, gen;
    const char *what;
    int status;
};

struct state {
    struct note notes[NOTES];
    uint64_t noted;
    uint64_t gen;          /* current generation, 0 = none                              */
    uint64_t last;         /* last generation used for this key                         */
    uint64_t expires_ns;   /* wall clock                                                */
    uint64_t appended;     /* model.appended when it was put                            */
    uint32_t len, side;
    bool durable;          /* a flush has succeeded since                               */
    bool maybe;            /* a call failed half way: it may also be gone               */
    bool doomed;           /* its tombstone failed and may have landed: RAM proves nothing */
    bool named;            /* put with its fingerprint                                  */
    bool ghost;            /* one has expired: never a hit, but hints may name it        */
    bool yields;           /* written when it leaves, or dropped if the disk is slow     */
    uint8_t space;
    uint16_t mark;
};

struct held {
    struct cairn_pin pins[BATCH];
    uint64_t id[BATCH], gen[BATCH];
    size_t count;
};

struct model {
    struct rig r;
    struct state keys[KEYS];
    uint64_t op;
    uint64_t appended;     /* bytes of records at least this many                       */
    uint64_t late;         /* of those: of values that are written when they leave      */
    struct held held[PINS];
    uint8_t *in[BATCH], *out[BATCH], side[SIDE_LARGEST];
    bool dying;            /* the power may have gone or ios fail: so may calls         */
    uint64_t cuts;
    uint64_t puts, stored, hits, misses, sure_hits, reopened, ranges, pinned, expired, deleted;
    uint64_t committed, pinned_now, scanned, cleared, foreign;
};

static inline void tell(const struct model *m, uint64_t id)
{
    const struct state *k = &m->keys[id];
    uint64_t n = k->noted > NOTES ? k->noted - NOTES : 0;

    fprintf(stderr, "key %llu: generation %llu durable %d maybe %d expires %d\n",
            (unsigned long long)id, (unsigned long long)k->gen, k->durable, k->maybe,
            k->expires_ns != 0);
    for (; n < k->noted; n++) {
        const struct note *x = &k->notes[n % NOTES];

        fprintf(stderr, "  op %llu %s generation %llu status %d\n", (unsigned long long)x->op,
                x->what, (unsigned long long)x->gen, x->status);
    }
}

#define FAIL(m, ...) \
    (fprintf(stderr, "op %llu: ", (unsigned long long)(m)->op), rig_fail(&(m)->r, __VA_ARGS__))
#define FAIL_KEY(m, id, ...) (tell((m), (id)), FAIL((m), __VA_ARGS__))

static inline void note(struct model *m, uint64_t id, const char *what, uint64_t gen, int status)
{
    struct state *k = &m->keys[id];

    k->notes[k->noted++ % NOTES] =
        (struct note){.op = m->op, .gen = gen, .what = what, .status = status};
}

static inline void note_all(struct model *m, const char *what, int status)
{
    for (uint64_t id = 0; id < KEYS; id++)
        note(m, id, what, m->keys[id].gen, status);
}

static inline struct cairn_key key_of(uint64_t id)
{
    struct cairn_key k;

    value_key(id, k.bytes);
    return k;
}

static inline uint64_t deadline(void)
{
    return cairn_now_ns() + RIG_PATIENCE;
}

/* Forgets what has expired before an operation: what expires during it may go either way. */
static inline void settle_expiry(struct model *m)
{
    uint64_t now = cairn_wall_ns();

    for (size_t i = 0; i < KEYS; i++) {
        struct state *k = &m->keys[i];

        if (k->gen && k->expires_ns && now > k->expires_ns) {
            note(m, i, "expire", k->gen, 0);
            k->gen = 0;
            k->ghost = true;
            m->expired++;
        }
    }
}

#endif
