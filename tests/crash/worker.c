/* Loads a store until it is killed, and tells a parent what it was promised.
 *
 * usage: crash_worker URI SEED KEYS VALUE_MAX THREADS
 *
 * stdin:   "id gen" a line: the generations to look for, ended by end of file.
 * stdout:  one line a write(2), so that whatever was promised before a kill is in the pipe:
 *            O open                     V id gen        what a key holds (gen 0: a miss)
 *            X id text                  wrong bytes     R ready, the load begins
 *            p id gen replace len  /  P id gen status   a put begins / has ended
 *            d id  /  D id status                       a delete
 *            f n  /  F n status                         a flush
 * Each thread owns the keys id % THREADS, so that what happens to a key is in order. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "connector/cairn.h"
#include "tests/helpers/value.h"

#define PATIENCE 60000000000ull
#define KEYS_MAX 4096u

struct load {
    cairn_store *store;
    uint64_t seed, keys, value_max, threads;
    uint64_t gen[KEYS_MAX]; /* last one used */
    _Atomic uint64_t flushes;
};

struct loader {
    struct load *load;
    uint64_t index;
    struct rng rng;
    uint8_t *bytes;
};

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void say(const char *format, ...)
{
    char line[256];
    va_list ap;
    int n;

    va_start(ap, format);
    n = vsnprintf(line, sizeof(line), format, ap);
    va_end(ap);
    if (n < 0 || write(STDOUT_FILENO, line, (size_t)n) != n)
        _exit(3);
}

static struct cairn_key key_of(uint64_t id)
{
    struct cairn_key k;

    value_key(id, k.bytes);
    return k;
}

static size_t len_of(const struct load *l, uint64_t id, uint64_t gen)
{
    struct rng r = {.state = id * 31 + gen};

    return VALUE_NAMED + rng_below(&r, l->value_max - VALUE_NAMED);
}

/* Reads a key whole and says which generation it holds. */
static void look(struct load *l, uint64_t id, uint8_t *bytes)
{
    struct cairn_key key = key_of(id);
    size_t len = cairn_value_len(l->store, &key), bad;
    struct cairn_iov iov = {.base = bytes, .len = len};
    struct cairn_get get = {.key = key, .out = {.iov = &iov, .count = 1}};
    uint64_t gen;

    if (!len || len > l->value_max) {
        say(len ? "X %llu length\n" : "V %llu 0\n", (unsigned long long)id);
        return;
    }
    (void)cairn_get(l->store, &get, 1, PATIENCE, NULL);
    if (get.status != CAIRN_OK) {
        say("V %llu 0\n", (unsigned long long)id);
        return;
    }
    gen = value_generation(bytes, len, id);
    bad = gen ? value_check(bytes, id, gen, 0, len) : 0;
    if (bad != len || len != len_of(l, id, gen))
        say("X %llu byte %zu of %zu generation %llu\n", (unsigned long long)id, bad, len,
            (unsigned long long)gen);
    else
        say("V %llu %llu\n", (unsigned long long)id, (unsigned long long)gen);
}

static void do_put(struct loader *w, uint64_t id)
{
    struct load *l = w->load;
    uint64_t gen = ++l->gen[id];
    size_t len = len_of(l, id, gen);
    struct cairn_iov iov = {.base = w->bytes, .len = len};
    bool replace = rng_one_in(&w->rng, 2);
    struct cairn_put put = {.key = key_of(id),
                            .value = {.iov = &iov, .count = 1},
                            .flags = replace ? CAIRN_PUT_REPLACE : 0};

    value_fill(w->bytes, id, gen, 0, len);
    say("p %llu %llu %d %zu\n", (unsigned long long)id, (unsigned long long)gen, replace, len);
    (void)cairn_put(l->store, &put, 1, PATIENCE);
    say("P %llu %llu %d\n", (unsigned long long)id, (unsigned long long)gen, (int)put.status);
}

static void do_delete(struct loader *w, uint64_t id)
{
    struct cairn_key key = key_of(id);
    cairn_status s = CAIRN_OK;

    say("d %llu\n", (unsigned long long)id);
    (void)cairn_delete(w->load->store, &key, 1, PATIENCE, &s);
    say("D %llu %d\n", (unsigned long long)id, (int)s);
}

static void do_flush(struct loader *w)
{
    unsigned long long n = ++w->load->flushes;

    say("f %llu\n", n);
    say("F %llu %d\n", n, (int)cairn_flush(w->load->store, PATIENCE));
}

static void *work(void *arg)
{
    struct loader *w = arg;
    struct load *l = w->load;
    uint64_t owned = l->keys / l->threads;

    for (;;) {
        uint64_t id = rng_below(&w->rng, owned) * l->threads + w->index;
        uint64_t dice = rng_below(&w->rng, 100);

        if (dice < 60)
            do_put(w, id);
        else if (dice < 70)
            do_delete(w, id);
        else if (dice < 85)
            look(l, id, w->bytes);
        else
            do_flush(w);
    }
    return NULL;
}

static void read_expected(struct load *l)
{
    unsigned long long id, gen;

    while (scanf("%llu %llu", &id, &gen) == 2) {
        if (id < l->keys)
            l->gen[id] = gen;
    }
}

int main(int argc, char **argv)
{
    static struct load l;
    static struct loader loaders[16];
    char err[512] = "";
    uint8_t *bytes;

    if (argc != 6)
        return 2;
    l.seed = strtoull(argv[2], NULL, 10);
    l.keys = strtoull(argv[3], NULL, 10);
    l.value_max = strtoull(argv[4], NULL, 10);
    l.threads = strtoull(argv[5], NULL, 10);
    if (l.keys > KEYS_MAX || l.threads > 16 || !l.threads || l.value_max <= VALUE_NAMED)
        return 2;
    read_expected(&l);
    if (cairn_open(argv[1], &l.store, err, sizeof(err)) != CAIRN_OK) {
        say("E %s\n", err);
        return 1;
    }
    say("O\n");
    bytes = malloc(l.value_max);
    for (uint64_t id = 0; bytes && id < l.keys; id++)
        look(&l, id, bytes);
    free(bytes);
    say("R\n");
    for (uint64_t t = 0; t < l.threads; t++) {
        pthread_t thread;

        loaders[t] = (struct loader){.load = &l, .index = t, .rng = {l.seed * 1000 + t},
                                     .bytes = malloc(l.value_max)};
        if (!loaders[t].bytes || pthread_create(&thread, NULL, work, &loaders[t]))
            return 3;
    }
    pause();
    return 0;
}
