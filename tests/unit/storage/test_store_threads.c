/* Four threads on shared keys. A value names its generation; the oracle keeps, for each key, when
 * every write of a generation began and ended. A hit is wrong if its generation was refused, or if
 * a later write or delete had begun after it ended and had itself ended before the get began. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tests/helpers/rig.h"

#define THREADS 4u
#define KEYS 48u
#define BATCH 4u
#define EVENTS 1024u
#define VALUE_LARGEST (160u * 1024u)
#define ROUNDS 5u

enum outcome { RUNNING, STORED, REFUSED, DELETED };

struct event {
    uint64_t gen, start_ns, end_ns;
    enum outcome outcome;
};

struct history {
    pthread_mutex_t lock;
    struct event events[EVENTS]; /* ring */
    uint64_t count;              /* generation of the newest event */
};

struct shared {
    struct rig r;
    struct history keys[KEYS];
    _Atomic uint64_t hits, misses, stored, refused, pinned;
};

struct worker {
    struct shared *shared;
    struct rng rng;
    uint64_t ops;
    uint8_t *bytes[BATCH];
};

static struct cairn_key key_of(uint64_t id)
{
    struct cairn_key k;

    value_key(id, k.bytes);
    return k;
}

static size_t len_of(uint64_t id)
{
    struct rng r = {.state = id * 77 + 5};

    return VALUE_NAMED + rng_below(&r, id % 3 ? VALUE_LARGEST - VALUE_NAMED : 200);
}

static uint64_t deadline(void)
{
    return cairn_now_ns() + RIG_PATIENCE;
}

static uint64_t event_begin(struct history *h)
{
    uint64_t gen;

    pthread_mutex_lock(&h->lock);
    gen = ++h->count;
    h->events[gen % EVENTS] = (struct event){.gen = gen, .start_ns = cairn_now_ns()};
    pthread_mutex_unlock(&h->lock);
    return gen;
}

static void event_end(struct history *h, uint64_t gen, enum outcome outcome)
{
    struct event *e = &h->events[gen % EVENTS];

    pthread_mutex_lock(&h->lock);
    if (e->gen == gen) {
        e->outcome = outcome;
        e->end_ns = cairn_now_ns();
    }
    pthread_mutex_unlock(&h->lock);
}

/* Why a hit of generation `gen` by a read that began at start_ns is wrong, or NULL. */
static const char *judge(struct history *h, uint64_t gen, uint64_t start_ns)
{
    const struct event *e = &h->events[gen % EVENTS], *o;
    const char *wrong = NULL;

    pthread_mutex_lock(&h->lock);
    if (gen > h->count)
        wrong = "it was never put";
    else if (e->gen != gen)
        wrong = "it was overwritten long ago";
    else if (e->outcome == REFUSED)
        wrong = "its put was refused";
    else if (e->outcome == DELETED)
        wrong = "it is a deletion";
    for (o = h->events; !wrong && e->outcome == STORED && o < h->events + EVENTS; o++) {
        if (o->gen && (o->outcome == STORED || o->outcome == DELETED) &&
            o->start_ns > e->end_ns && o->end_ns < start_ns)
            wrong = o->outcome == DELETED ? "it was deleted before" : "it was replaced before";
    }
    pthread_mutex_unlock(&h->lock);
    return wrong;
}

/* Checks a value read whole; returns its generation. */
static uint64_t check_value(struct shared *sh, uint64_t id, const void *data, size_t len,
                            uint64_t start_ns)
{
    uint64_t gen = value_generation(data, len, id);
    size_t bad = gen ? value_check(data, id, gen, 0, len) : 0;
    const char *wrong = "its bytes are not this key's";

    if (gen && bad == len)
        wrong = judge(&sh->keys[id], gen, start_ns);
    else if (gen)
        wrong = "its bytes are of several values";
    if (wrong)
        rig_fail(&sh->r, "hit of key %llu generation %llu (byte %zu of %zu): %s",
                 (unsigned long long)id, (unsigned long long)gen, bad, len, wrong);
    return gen;
}

static void op_put(struct worker *w)
{
    struct shared *sh = w->shared;
    size_t count = 1 + rng_below(&w->rng, BATCH);
    bool replace = rng_one_in(&w->rng, 2);
    struct cairn_put puts[BATCH] = {0};
    struct cairn_iov iov[BATCH];
    uint64_t id[BATCH], gen[BATCH];

    for (size_t i = 0; i < count; i++) {
        id[i] = rng_below(&w->rng, KEYS / 2) * 2;
        gen[i] = event_begin(&sh->keys[id[i]]);
        value_fill(w->bytes[i], id[i], gen[i], 0, len_of(id[i]));
        puts[i].key = key_of(id[i]);
        puts[i].value = rig_sgl(&iov[i], w->bytes[i], len_of(id[i]));
        puts[i].flags = replace ? CAIRN_PUT_REPLACE : 0;
    }
    cairn_vault_put(sh->r.vault, puts, count, deadline(), NULL);
    for (size_t i = 0; i < count; i++) {
        bool stored = puts[i].status == CAIRN_OK;

        event_end(&sh->keys[id[i]], gen[i], stored ? STORED : REFUSED);
        atomic_fetch_add(stored ? &sh->stored : &sh->refused, 1);
        if (puts[i].status == CAIRN_EXISTS && replace)
            rig_fail(&sh->r, "replace of key %llu says it exists", (unsigned long long)id[i]);
    }
}

/* As a node does it: filled in place. Keys with odd numbers are in space 1. */
static void op_commit(struct worker *w)
{
    struct shared *sh = w->shared;
    uint64_t id = rng_below(&w->rng, KEYS), gen = event_begin(&sh->keys[id]), name[2] = {id, gen};
    uint32_t flags = CAIRN_PUT_REPLACE | CAIRN_COMMIT_NOWAIT |
                     (rng_one_in(&w->rng, 2) ? CAIRN_COMMIT_ON_EVICT : 0);
    struct cairn_room room;
    enum cairn_cause cause;
    cairn_status s = cairn_vault_room(sh->r.vault, len_of(id), 0, &room);

    if (s == CAIRN_OK) {
        struct cairn_commit c = {.key = key_of(id), .name = name, .name_len = sizeof(name),
                                 .space = (uint16_t)(id % 2), .flags = flags};
        value_fill(room.value, id, gen, 0, len_of(id));
        s = cairn_vault_commit(sh->r.vault, &room, &c, 0, &cause);
        c.flags &= ~CAIRN_COMMIT_NOWAIT;
        if (s == CAIRN_INPROGRESS)
            s = cairn_vault_commit(sh->r.vault, &room, &c, deadline(), &cause);
    }
    if (s != CAIRN_OK && s != CAIRN_NOSPACE)
        rig_fail(&sh->r, "commit of key %llu: status %d", (unsigned long long)id, s);
    event_end(&sh->keys[id], gen, s == CAIRN_OK ? STORED : REFUSED);
    atomic_fetch_add(s == CAIRN_OK ? &sh->stored : &sh->refused, 1);
}

static void op_pin_now(struct worker *w)
{
    struct shared *sh = w->shared;
    uint64_t id = rng_below(&w->rng, KEYS), start = cairn_now_ns();
    struct cairn_key key = key_of(id);
    struct cairn_pin pin;
    enum cairn_cause cause;
    cairn_status s = cairn_vault_space_pin_now(sh->r.vault, id % 2, &key, true, &pin, &cause);

    if (s == CAIRN_MISS && cause != CAIRN_CAUSE_ABSENT && cause != CAIRN_CAUSE_NO_ROOM)
        rig_fail(&sh->r, "pin of key %llu: %s", (unsigned long long)id, cairn_cause_name(cause));
    if (s != CAIRN_OK)
        return;
    check_value(sh, id, pin.value, pin.value_len, start);
    cairn_vault_unpin(sh->r.vault, &pin, 1);
    atomic_fetch_add(&sh->pinned, 1);
}

static void op_clear(struct worker *w)
{
    struct shared *sh = w->shared;
    uint64_t gen[KEYS];

    for (uint64_t id = 1; id < KEYS; id += 2)
        gen[id] = event_begin(&sh->keys[id]);
    cairn_status s = cairn_vault_clear_space(sh->r.vault, 1, deadline());
    if (s != CAIRN_OK)
        rig_fail(&sh->r, "clear: status %d", s);
    for (uint64_t id = 1; id < KEYS; id += 2)
        event_end(&sh->keys[id], gen[id], DELETED);
}

struct walk {
    struct shared *shared;
    uint64_t start_ns;
};

static bool walked(void *arg, const struct cairn_scan_item *item)
{
    struct walk *k = arg;
    uint64_t name[2];
    const char *wrong = "its name is not this key's";

    if (!item->name_len)
        return true; /* by a put */
    memcpy(name, item->name, sizeof(name));
    struct cairn_key key = key_of(name[0] % KEYS);
    if (item->name_len == sizeof(name) && memcmp(&key, &item->key, sizeof(key)) == 0)
        wrong = judge(&k->shared->keys[name[0]], name[1], k->start_ns);
    if (wrong)
        rig_fail(&k->shared->r, "scan shows key %llu: %s", (unsigned long long)name[0], wrong);
    return true;
}

static void op_scan(struct worker *w)
{
    struct walk k = {.shared = w->shared, .start_ns = cairn_now_ns()};
    uint32_t cursor = 0;

    do {
        cairn_status s = cairn_vault_scan(w->shared->r.vault, (uint16_t)rng_below(&w->rng, 2),
                                          &cursor, 20, deadline(), walked, &k);
        if (s != CAIRN_OK)
            rig_fail(&w->shared->r, "scan: status %d", s);
    } while (cursor);
}

static void op_get(struct worker *w)
{
    struct shared *sh = w->shared;
    size_t count = 1 + rng_below(&w->rng, BATCH);
    struct cairn_get gets[BATCH] = {0};
    struct cairn_iov iov[BATCH];
    uint64_t id[BATCH], start = cairn_now_ns();

    for (size_t i = 0; i < count; i++) {
        id[i] = rng_below(&w->rng, KEYS);
        gets[i].key = key_of(id[i]);
        gets[i].out = rig_sgl(&iov[i], w->bytes[i], len_of(id[i]));
    }
    cairn_vault_get(sh->r.vault, gets, count, deadline(), NULL);
    for (size_t i = 0; i < count; i++) {
        if (gets[i].status == CAIRN_OK)
            check_value(sh, id[i], w->bytes[i], len_of(id[i]), start);
        else if (gets[i].status == CAIRN_TIMEOUT || gets[i].cause == CAIRN_CAUSE_CHECKSUM)
            rig_fail(&sh->r, "get of key %llu: status %d cause %s", (unsigned long long)id[i],
                     gets[i].status, cairn_cause_name((enum cairn_cause)gets[i].cause));
        atomic_fetch_add(gets[i].status == CAIRN_OK ? &sh->hits : &sh->misses, 1);
    }
}

static void op_delete(struct worker *w)
{
    uint64_t id = rng_below(&w->rng, KEYS), gen = event_begin(&w->shared->keys[id]);
    struct cairn_key key = key_of(id);
    cairn_status s = CAIRN_INPROGRESS;

    if (rng_one_in(&w->rng, 2))
        s = cairn_vault_space_delete_now(w->shared->r.vault, id % 2, &key);
    if (s == CAIRN_INPROGRESS)
        cairn_vault_space_delete(w->shared->r.vault, id % 2, &key, 1, deadline(), &s);
    if (s != CAIRN_OK && s != CAIRN_MISS)
        rig_fail(&w->shared->r, "delete of key %llu: status %d", (unsigned long long)id, s);
    event_end(&w->shared->keys[id], gen, DELETED);
}

static void op_pin(struct worker *w)
{
    struct shared *sh = w->shared;
    uint64_t first = rng_below(&w->rng, KEYS), start = cairn_now_ns(), gen[BATCH], ids[BATCH];
    struct cairn_pin pins[BATCH];
    struct cairn_key keys[BATCH];
    size_t held;

    for (size_t i = 0; i < BATCH; i++) {
        ids[i] = (first + 2 * i) % KEYS;
        keys[i] = key_of(ids[i]);
    }
    held = cairn_vault_space_pin(sh->r.vault, first % 2, keys, BATCH, deadline(), pins);
    for (size_t i = 0; i < held; i++)
        gen[i] = check_value(sh, ids[i], pins[i].value, pins[i].value_len, start);
    if (held)
        sched_yield();
    for (size_t i = 0; i < held; i++) {
        uint64_t id = ids[i];

        if (value_check(pins[i].value, id, gen[i], 0, len_of(id)) != len_of(id))
            rig_fail(&sh->r, "pinned key %llu changed under its reader", (unsigned long long)id);
    }
    if (held)
        cairn_vault_unpin(sh->r.vault, pins, held);
    atomic_fetch_add(&sh->pinned, held);
}

static void op_rest(struct worker *w)
{
    struct cairn_vault *v = w->shared->r.vault;
    char text[8192];
    struct cairn_key key = key_of(rng_below(&w->rng, KEYS));
    cairn_status s;

    switch (rng_below(&w->rng, 5)) {
    case 0:
        s = cairn_vault_flush(v, deadline());
        /* What is written when it leaves may have left unwritten. */
        if (s != CAIRN_OK && s != CAIRN_UNSUPPORTED && s != CAIRN_IO)
            rig_fail(&w->shared->r, "flush: status %d", s);
        break;
    case 1: cairn_vault_drop_ram(v); break;
    case 2: cairn_vault_lookup(v, &key, 1); break;
    case 3: cairn_vault_value_len(v, &key); break;
    default: cairn_vault_stats(v, 0, text, sizeof(text)); break;
    }
}

static void *work(void *arg)
{
    struct worker *w = arg;

    for (uint64_t op = 0; op < w->ops; op++) {
        uint64_t dice = rng_below(&w->rng, 100);

        if (dice < 20)
            op_put(w);
        else if (dice < 30)
            op_commit(w);
        else if (dice < 65)
            op_get(w);
        else if (dice < 75)
            op_pin_now(w);
        else if (dice < 80)
            op_delete(w);
        else if (dice < 90)
            op_pin(w);
        else if (dice < 91)
            rng_one_in(&w->rng, 2) ? op_clear(w) : op_scan(w);
        else
            op_rest(w);
    }
    return NULL;
}

static void round_of_threads(struct shared *sh)
{
    struct worker workers[THREADS];
    pthread_t threads[THREADS];

    for (size_t t = 0; t < THREADS; t++) {
        struct worker *w = &workers[t];

        *w = (struct worker){.shared = sh, .rng = {rng_next(&sh->r.rng)},
                             .ops = sh->r.ops / THREADS / ROUNDS};
        for (size_t i = 0; i < BATCH; i++)
            w->bytes[i] = malloc(VALUE_LARGEST);
        if (pthread_create(&threads[t], NULL, work, w))
            rig_fail(&sh->r, "no thread");
    }
    for (size_t t = 0; t < THREADS; t++) {
        pthread_join(threads[t], NULL);
        for (size_t i = 0; i < BATCH; i++)
            free(workers[t].bytes[i]);
    }
}

/* Everything once, alone: what the last round and a restart left. */
static void read_all(struct shared *sh)
{
    uint8_t *bytes = malloc(VALUE_LARGEST);

    for (uint64_t id = 0; id < KEYS; id++) {
        struct cairn_iov iov;
        struct cairn_get g = {.key = key_of(id), .out = rig_sgl(&iov, bytes, len_of(id))};
        uint64_t start = cairn_now_ns();

        cairn_vault_get(sh->r.vault, &g, 1, deadline(), NULL);
        if (g.status == CAIRN_OK)
            check_value(sh, id, bytes, len_of(id), start);
    }
    free(bytes);
}

int main(int argc, char **argv)
{
    static struct shared sh;

    rig_init(&sh.r, argc, argv);
    for (size_t i = 0; i < KEYS; i++)
        pthread_mutex_init(&sh.keys[i].lock, NULL);
    rig_open(&sh.r);
    for (unsigned round = 0; round < ROUNDS; round++) {
        round_of_threads(&sh);
        read_all(&sh);
        rig_close(&sh.r);
        rig_open(&sh.r);
        read_all(&sh);
    }
    printf("hits %llu misses %llu stored %llu refused %llu pinned %llu\n",
           (unsigned long long)sh.hits, (unsigned long long)sh.misses,
           (unsigned long long)sh.stored, (unsigned long long)sh.refused,
           (unsigned long long)sh.pinned);
    if (!sh.hits || !sh.misses || !sh.stored || !sh.pinned)
        rig_fail(&sh.r, "the run missed a kind of outcome");
    rig_close(&sh.r);
    rig_fini(&sh.r);
    return 0;
}
