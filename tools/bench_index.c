/* Finding the 512 chunks of a prompt among ten million. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "storage/index.h"
#include "tools/bench.h"

#define ENTRIES 10000000u
#define KEYS 512u
#define CALLS 400u
#define LINE 64u
#define BUCKET_ENTRIES 12u

/* The bare limit: for each key one line of a bucket table and one of an entry pool, both at random
 * and both asked for ahead. */
struct lines {
    uint8_t *buckets, *pool;
    size_t buckets_len, pool_len;
    uint32_t at_bucket[KEYS], at_pool[KEYS];
};

struct work {
    struct cairn_index *index;
    struct lines lines;
    struct bench_lat hit, miss, limit;
    uint64_t random, sum;
};

static bool fill_index(struct work *w)
{
    struct cairn_key key;
    for (uint32_t i = 0; i < ENTRIES; i++) {
        bench_key_of(i, &key);
        uint32_t id = cairn_index_insert(w->index, &key);
        if (id == CAIRN_ENTRY_NONE)
            return bench_fail("the index was full after %u of %u entries", i, ENTRIES);
        cairn_index_entry(w->index, id)->value_len = i + 1;
    }
    return true;
}

static bool find_hits(struct work *w)
{
    struct cairn_key keys[KEYS];
    uint32_t ids[KEYS], numbers[KEYS];
    for (uint32_t i = 0; i < KEYS; i++) {
        numbers[i] = (uint32_t)(bench_random(&w->random) % ENTRIES);
        bench_key_of(numbers[i], &keys[i]);
    }
    uint64_t start = cairn_now_ns();
    uint32_t found = cairn_index_find_many(w->index, keys, KEYS, 1, ids);
    bench_lat_add(&w->hit, cairn_now_ns() - start);
    for (uint32_t i = 0; i < KEYS; i++)
        if (found != KEYS || cairn_index_entry(w->index, ids[i])->value_len != numbers[i] + 1)
            return bench_fail("the index found a wrong entry");
    return true;
}

static bool find_misses(struct work *w)
{
    struct cairn_key keys[KEYS];
    uint32_t ids[KEYS];
    for (uint32_t i = 0; i < KEYS; i++)
        bench_key_of(ENTRIES + bench_random(&w->random) % ENTRIES, &keys[i]);
    uint64_t start = cairn_now_ns();
    cairn_index_find_many(w->index, keys, KEYS, 0, ids);
    bench_lat_add(&w->miss, cairn_now_ns() - start);
    for (uint32_t i = 0; i < KEYS; i++)
        if (ids[i] != CAIRN_ENTRY_NONE)
            return bench_fail("the index found a key that was never put in");
    return true;
}

static void read_lines(struct work *w)
{
    struct lines *l = &w->lines;
    for (uint32_t i = 0; i < KEYS; i++) {
        l->at_bucket[i] = (uint32_t)(bench_random(&w->random) % (l->buckets_len / LINE));
        l->at_pool[i] = (uint32_t)(bench_random(&w->random) % (l->pool_len / LINE));
    }
    uint64_t start = cairn_now_ns();
    for (uint32_t i = 0; i < KEYS; i++) {
        __builtin_prefetch(l->buckets + (size_t)l->at_bucket[i] * LINE);
        __builtin_prefetch(l->pool + (size_t)l->at_pool[i] * LINE);
    }
    uint64_t sum = 0;
    for (uint32_t i = 0; i < KEYS; i++)
        sum += l->buckets[(size_t)l->at_bucket[i] * LINE] + l->pool[(size_t)l->at_pool[i] * LINE];
    w->sum += sum;
    __asm__ volatile("" : : "r"(w->sum) : "memory");
    bench_lat_add(&w->limit, cairn_now_ns() - start);
}

static bool measure(struct bench *b, struct work *w)
{
    for (uint32_t i = 0; i < b->o->rounds * CALLS; i++) {
        if (!find_hits(w))
            return false;
        read_lines(w);
        if (!find_misses(w))
            return false;
    }
    struct bench_row row = bench_row("us", "two random lines a key, prefetched");
    row.limit = bench_lat_us(&w->limit, 0.5);
    snprintf(row.name, sizeof row.name, "lookup-512-of-10M");
    bench_lat_row(&w->hit, &row);
    row.value = row.p50_us;
    row.ratio = row.limit / row.value;
    bench_add(b, &row);
    snprintf(row.name, sizeof row.name, "lookup-512-of-10M-absent");
    bench_lat_row(&w->miss, &row);
    row.value = row.p50_us;
    row.ratio = row.limit / row.value;
    bench_add(b, &row);
    struct bench_row bytes = bench_row("B", "48 bytes an entry at capacity");
    snprintf(bytes.name, sizeof bytes.name, "index-bytes-an-entry");
    bytes.value = (double)cairn_index_bytes(w->index) / cairn_index_capacity(w->index);
    bytes.limit = 48;
    bytes.ratio = bytes.limit / bytes.value;
    bench_add(b, &bytes);
    return true;
}

bool bench_index(struct bench *b)
{
    struct work w = {.random = b->o->seed};
    size_t calls = b->o->rounds * CALLS;
    w.lines.buckets_len = ENTRIES / BUCKET_ENTRIES * LINE;
    w.lines.pool_len = (size_t)ENTRIES * sizeof(struct cairn_entry);
    w.lines.buckets = cairn_table_alloc(w.lines.buckets_len);
    w.lines.pool = cairn_table_alloc(w.lines.pool_len);
    bool ok = w.lines.buckets && w.lines.pool &&
              cairn_index_create(ENTRIES, &w.index) == CAIRN_OK;
    if (!ok)
        bench_fail("no memory for an index of %u entries: close other programs", ENTRIES);
    ok = ok && bench_lat_init(&w.hit, calls) && bench_lat_init(&w.miss, calls) &&
         bench_lat_init(&w.limit, calls);
    if (ok) {
        memset(w.lines.buckets, 1, w.lines.buckets_len);
        memset(w.lines.pool, 1, w.lines.pool_len);
    }
    ok = ok && fill_index(&w) && measure(b, &w);
    if (w.index)
        cairn_index_destroy(w.index);
    if (w.lines.buckets)
        cairn_table_free(w.lines.buckets, w.lines.buckets_len);
    if (w.lines.pool)
        cairn_table_free(w.lines.pool, w.lines.pool_len);
    bench_lat_free(&w.hit);
    bench_lat_free(&w.miss);
    bench_lat_free(&w.limit);
    return ok;
}
