#include "storage/index.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "base/clock.h"
#include "base/mem.h"

#define WAYS 12u
#define WAYS_MASK ((1u << WAYS) - 1)

/* Small tables are rounded up to this, so that the header and the last bucket weigh nothing. */
#define CAPACITY_MIN 1024u
#define CAPACITY_MAX (UINT32_MAX - 1)

/* Of an entry that is not in use: no value is that long. */
#define LEN_FREE UINT32_MAX

/* One cache line. `passed` counts the entries whose home is this bucket or one before it and that
 * lie further on: where it is 0, a search ends. */
struct bucket {
    uint8_t tags[WAYS]; /* 0: empty */
    uint32_t passed;
    uint32_t ids[WAYS];
};
_Static_assert(sizeof(struct bucket) == 64, "bucket is one cache line");

struct cairn_index {
    struct cairn_entry *entries;
    struct bucket *buckets;
    uint32_t capacity;
    uint32_t bucket_count;
    uint32_t count;
    uint32_t high;      /* entries from here on were never used */
    uint32_t free_head; /* linked through `block`               */
    uint64_t seed[4];
};

struct place {
    uint32_t bucket;
    uint8_t tag;
};

static uint64_t fold(uint64_t a, uint64_t b)
{
    unsigned __int128 m = (unsigned __int128)a * b;
    return (uint64_t)m ^ (uint64_t)(m >> 64);
}

/* Keys may be chosen by whoever fills the cache; without the seed they cannot be aimed at one
 * bucket. The bucket comes from the high bits (fastrange), the tag from the low ones. */
static struct place place_of(const struct cairn_index *x, const uint8_t *key16)
{
    uint64_t a, b;
    memcpy(&a, key16, 8);
    memcpy(&b, key16 + 8, 8);
    uint64_t h = fold(fold(a ^ x->seed[0], b ^ x->seed[1]) ^ x->seed[2], x->seed[3]);
    return (struct place){
        .bucket = (uint32_t)(((h >> 32) * x->bucket_count) >> 32),
        .tag = (uint8_t)(((h & 0xffff) * 255) >> 16) + 1,
    };
}

static uint32_t bucket_after(const struct cairn_index *x, uint32_t b)
{
    return b + 1 == x->bucket_count ? 0 : b + 1;
}

/* Bit i: way i has this tag. */
static uint32_t bucket_match(const struct bucket *b, uint8_t tag)
{
#if defined(__SSE2__)
    __m128i tags = _mm_load_si128((const __m128i *)(const void *)b);
    __m128i equal = _mm_cmpeq_epi8(tags, _mm_set1_epi8((char)tag));
    return (uint32_t)_mm_movemask_epi8(equal) & WAYS_MASK;
#else
    uint32_t mask = 0;
    for (uint32_t i = 0; i < WAYS; i++)
        mask |= (uint32_t)(b->tags[i] == tag) << i;
    return mask;
#endif
}

static bool entry_is(const struct cairn_entry *e, const uint8_t *key16)
{
    return memcmp(e->key, key16, sizeof e->key) == 0;
}

static uint32_t find_at(const struct cairn_index *x, struct place p, const uint8_t *key16)
{
    for (uint32_t n = 0, i = p.bucket; n < x->bucket_count; n++, i = bucket_after(x, i)) {
        const struct bucket *b = &x->buckets[i];
        for (uint32_t m = bucket_match(b, p.tag); m; m &= m - 1) {
            uint32_t id = b->ids[__builtin_ctz(m)];
            if (entry_is(&x->entries[id], key16))
                return id;
        }
        if (!b->passed)
            break;
    }
    return CAIRN_ENTRY_NONE;
}

static void seed_fill(struct cairn_index *x)
{
    if (getrandom(x->seed, sizeof x->seed, GRND_NONBLOCK) != (ssize_t)sizeof x->seed) {
        /* Early at boot: addresses and the time are better than nothing, waiting would be worse. */
        uint64_t h = cairn_now_ns() ^ (uint64_t)(uintptr_t)x->entries;
        for (uint32_t i = 0; i < 4; i++)
            x->seed[i] = h = fold(h ^ 0x9e3779b97f4a7c15ull, 0xd1342543de82ef95ull + 2 * i);
    }
    x->seed[3] |= 1;
}

/* A bucket for every 8 entries is 48 bytes an entry; as many fewer as this struct takes. */
static uint32_t bucket_count_for(uint32_t capacity)
{
    uint64_t room = (uint64_t)capacity * 8 - sizeof(struct cairn_index);
    return (uint32_t)(room / sizeof(struct bucket));
}

static size_t entries_len(const struct cairn_index *x)
{
    return (size_t)x->capacity * sizeof *x->entries;
}

static size_t buckets_len(const struct cairn_index *x)
{
    return (size_t)x->bucket_count * sizeof *x->buckets;
}

cairn_status cairn_index_create(uint32_t capacity, struct cairn_index **ret)
{
    if (!capacity || capacity > CAPACITY_MAX)
        return CAIRN_INVAL;
    struct cairn_index *x = cairn_calloc(1, sizeof *x);
    if (!x)
        return CAIRN_NOMEM;
    x->capacity = capacity < CAPACITY_MIN ? CAPACITY_MIN : capacity;
    x->bucket_count = bucket_count_for(x->capacity);
    x->free_head = CAIRN_ENTRY_NONE;
    x->entries = cairn_table_alloc(entries_len(x));
    x->buckets = cairn_table_alloc(buckets_len(x));
    if (!x->entries || !x->buckets) {
        cairn_index_destroy(x);
        return CAIRN_NOMEM;
    }
    seed_fill(x);
    *ret = x;
    return CAIRN_OK;
}

void cairn_index_destroy(struct cairn_index *x)
{
    if (!x)
        return;
    if (x->entries)
        cairn_table_free(x->entries, entries_len(x));
    if (x->buckets)
        cairn_table_free(x->buckets, buckets_len(x));
    free(x);
}

uint32_t cairn_index_find16(const struct cairn_index *x, const uint8_t key16[16])
{
    return find_at(x, place_of(x, key16), key16);
}

uint32_t cairn_index_find(const struct cairn_index *x, const struct cairn_key *key)
{
    uint8_t key16[16];
    cairn_key16(key->bytes, key16);
    return cairn_index_find16(x, key16);
}

/* Looking up many keys is waiting for memory: two dependent cache misses a key. So keys go through
 * three steps, each LOOK_AHEAD keys behind the one before, and the misses of all keys between
 * overlap: hash and fetch the bucket; match tags and fetch the entry; compare. */
#define LOOK_AHEAD 16u
#define LOOK_RING (4 * LOOK_AHEAD)

struct look {
    uint8_t key16[16];
    struct place place;
    uint32_t id; /* first entry with the tag, CAIRN_ENTRY_NONE: none in the home bucket */
};

static void look_hash(const struct cairn_index *x, const struct cairn_key *key, struct look *l)
{
    cairn_key16(key->bytes, l->key16);
    l->place = place_of(x, l->key16);
    __builtin_prefetch(&x->buckets[l->place.bucket]);
}

static void look_match(const struct cairn_index *x, struct look *l)
{
    const struct bucket *b = &x->buckets[l->place.bucket];
    uint32_t m = bucket_match(b, l->place.tag);
    if (m) {
        l->id = b->ids[__builtin_ctz(m)];
        const struct cairn_entry *e = &x->entries[l->id];
        __builtin_prefetch(e);
        /* The caller looks at the rest of it next, which may lie in another line. */
        __builtin_prefetch((const char *)(e + 1) - 1);
        return;
    }
    l->id = CAIRN_ENTRY_NONE;
    if (b->passed)
        __builtin_prefetch(&x->buckets[bucket_after(x, l->place.bucket)]);
}

static uint32_t look_finish(const struct cairn_index *x, const struct look *l)
{
    if (l->id != CAIRN_ENTRY_NONE && entry_is(&x->entries[l->id], l->key16))
        return l->id;
    return find_at(x, l->place, l->key16);
}

uint32_t cairn_index_find_many(const struct cairn_index *x, const struct cairn_key *keys,
                               uint32_t count, int stop_at_absent, uint32_t *ids)
{
    struct look ring[LOOK_RING];
    uint64_t end = (uint64_t)count + 2 * LOOK_AHEAD;
    for (uint64_t i = 0; i < end; i++) {
        if (i < count)
            look_hash(x, &keys[i], &ring[i % LOOK_RING]);
        if (i >= LOOK_AHEAD && i - LOOK_AHEAD < count)
            look_match(x, &ring[(i - LOOK_AHEAD) % LOOK_RING]);
        if (i < 2 * LOOK_AHEAD)
            continue;
        uint32_t k = (uint32_t)(i - 2 * LOOK_AHEAD);
        ids[k] = look_finish(x, &ring[k % LOOK_RING]);
        if (stop_at_absent && ids[k] == CAIRN_ENTRY_NONE)
            return k + 1;
    }
    return count;
}

static uint32_t entry_take(struct cairn_index *x)
{
    if (x->free_head != CAIRN_ENTRY_NONE) {
        uint32_t id = x->free_head;
        x->free_head = x->entries[id].block;
        return id;
    }
    return x->high < x->capacity ? x->high++ : CAIRN_ENTRY_NONE;
}

uint32_t cairn_index_insert(struct cairn_index *x, const struct cairn_key *key)
{
    uint8_t key16[16];
    cairn_key16(key->bytes, key16);
    return cairn_index_insert16(x, key16);
}

uint32_t cairn_index_insert16(struct cairn_index *x, const uint8_t key16[16])
{
    uint32_t id = entry_take(x);
    if (id == CAIRN_ENTRY_NONE)
        return id;
    struct cairn_entry *e = &x->entries[id];
    *e = (struct cairn_entry){.block = CAIRN_BLOCK_NONE, .slot = CAIRN_SLOT_NONE};
    memcpy(e->key, key16, sizeof e->key);

    /* Ends: there are 1.4 ways for every entry. */
    struct place p = place_of(x, key16);
    uint32_t i = p.bucket, empty;
    while (!(empty = bucket_match(&x->buckets[i], 0))) {
        x->buckets[i].passed++;
        i = bucket_after(x, i);
    }
    uint32_t way = (uint32_t)__builtin_ctz(empty);
    x->buckets[i].tags[way] = p.tag;
    x->buckets[i].ids[way] = id;
    x->count++;
    return id;
}

/* Way of an entry in a bucket, WAYS if it is not there. */
static uint32_t bucket_way(const struct bucket *b, uint8_t tag, uint32_t id)
{
    for (uint32_t m = bucket_match(b, tag); m; m &= m - 1)
        if (b->ids[__builtin_ctz(m)] == id)
            return (uint32_t)__builtin_ctz(m);
    return WAYS;
}

void cairn_index_remove(struct cairn_index *x, uint32_t id)
{
    if (id >= x->high || x->entries[id].value_len == LEN_FREE)
        return;
    struct cairn_entry *e = &x->entries[id];
    struct place p = place_of(x, e->key);
    uint32_t i = p.bucket, way;
    while ((way = bucket_way(&x->buckets[i], p.tag, id)) == WAYS) {
        x->buckets[i].passed--;
        i = bucket_after(x, i);
    }
    x->buckets[i].tags[way] = 0;
    *e = (struct cairn_entry){.value_len = LEN_FREE, .block = x->free_head};
    x->free_head = id;
    x->count--;
}

struct cairn_entry *cairn_index_entry(struct cairn_index *x, uint32_t id)
{
    return &x->entries[id];
}

uint32_t cairn_index_count(const struct cairn_index *x)
{
    return x->count;
}

uint32_t cairn_index_capacity(const struct cairn_index *x)
{
    return x->capacity;
}

uint64_t cairn_index_bytes(const struct cairn_index *x)
{
    return sizeof *x + entries_len(x) + buckets_len(x);
}

uint32_t cairn_index_next(const struct cairn_index *x, uint32_t id)
{
    while (id < x->high && x->entries[id].value_len == LEN_FREE)
        id++;
    return id < x->high ? id : CAIRN_ENTRY_NONE;
}

static void check(bool ok)
{
    if (!ok)
        abort();
}

/* How often each bucket is passed, counted from the entries themselves. */
static uint32_t check_ways(const struct cairn_index *x, uint32_t *passed)
{
    uint32_t found = 0;
    for (uint32_t i = 0; i < x->bucket_count; i++) {
        const struct bucket *b = &x->buckets[i];
        for (uint32_t m = ~bucket_match(b, 0) & WAYS_MASK; m; m &= m - 1) {
            uint32_t way = (uint32_t)__builtin_ctz(m);
            check(b->ids[way] < x->high);
            const struct cairn_entry *e = &x->entries[b->ids[way]];
            struct place p = place_of(x, e->key);
            check(e->value_len != LEN_FREE && p.tag == b->tags[way]);
            check(find_at(x, p, e->key) == b->ids[way]);
            for (uint32_t at = p.bucket; at != i; at = bucket_after(x, at))
                passed[at]++;
            found++;
        }
    }
    return found;
}

uint32_t cairn_index_check(const struct cairn_index *x)
{
    uint32_t *passed = cairn_calloc(x->bucket_count, sizeof *passed);
    check(passed);
    uint32_t found = check_ways(x, passed), unused = 0;
    for (uint32_t i = 0; i < x->bucket_count; i++)
        check(passed[i] == x->buckets[i].passed);
    free(passed);
    for (uint32_t id = x->free_head; id != CAIRN_ENTRY_NONE; id = x->entries[id].block) {
        check(id < x->high && x->entries[id].value_len == LEN_FREE);
        unused++;
    }
    check(found == x->count && found + unused == x->high);
    return found;
}
