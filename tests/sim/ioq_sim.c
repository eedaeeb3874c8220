#include "tests/sim/ioq_sim.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

#define BLOCK 4096u
#define CHUNK_CELLS 512u
#define DEPTH_MAX 4096u

/* Content of a block: never changed once made, shared between versions and devices. */
struct block {
    atomic_uint refs;
    uint8_t bytes[BLOCK];
};

/* A completed write to one block that no sync has covered. */
struct version {
    struct version *older;
    struct block *block;
    uint64_t applied; /* order of completion */
    uint64_t op;
    uint32_t index, count;
};

struct cell {
    struct block *stable; /* NULL: zeros */
    struct version *newest;
};

struct chunk {
    struct cell cells[CHUNK_CELLS];
};

/* A write from acceptance to completion; after a cut, what was in flight. */
struct op {
    struct op *next, *prev;
    uint64_t id;
    uint64_t first;
    uint32_t count;
    struct block *blocks[];
};

struct cairn_sim {
    pthread_mutex_t lock;
    struct cairn_sim_opts opts;
    uint64_t random;
    uint32_t refs; /* creator and open queues */
    struct chunk **chunks;
    uint64_t chunk_count;
    uint64_t *dirty; /* numbers of blocks with versions */
    size_t dirty_count, dirty_cap;
    struct op *in_flight;
    uint64_t applied; /* last version's number */
    uint64_t ops;
    uint64_t die_after;
    uint64_t lose_after; /* syncs, 0 = never */
    bool dead;
    struct cairn_sim_stats stats;
};

struct pending {
    struct cairn_io *io;
    struct op *op;
    uint64_t due_ns;
    uint64_t covers; /* sync: versions up to this number */
};

struct queue {
    struct cairn_ioq base;
    struct cairn_sim *dev;
    pthread_cond_t event; /* with the device's lock */
    bool woken;
    uint32_t depth, count;
    struct pending pending[];
};

static void *must(void *p)
{
    if (!p)
        abort();
    return p;
}

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static uint64_t draw(struct cairn_sim *s, uint64_t below)
{
    s->random = mix(s->random);
    return below ? s->random % below : 0;
}

static struct block *block_make(const void *bytes)
{
    struct block *b = must(malloc(sizeof(*b)));
    atomic_init(&b->refs, 1);
    memcpy(b->bytes, bytes, BLOCK);
    return b;
}

static struct block *block_hold(struct block *b)
{
    if (b)
        atomic_fetch_add(&b->refs, 1);
    return b;
}

static void block_drop(struct block *b)
{
    if (b && atomic_fetch_sub(&b->refs, 1) == 1)
        free(b);
}

static struct cell *cell_find(struct cairn_sim *s, uint64_t number)
{
    uint64_t c = number / CHUNK_CELLS;
    if (c >= s->chunk_count || !s->chunks[c])
        return NULL;
    return &s->chunks[c]->cells[number % CHUNK_CELLS];
}

static struct cell *cell_make(struct cairn_sim *s, uint64_t number)
{
    uint64_t c = number / CHUNK_CELLS;
    if (c >= s->chunk_count) {
        uint64_t count = c + 1 > 2 * s->chunk_count ? c + 1 : 2 * s->chunk_count;
        s->chunks = must(realloc(s->chunks, count * sizeof(struct chunk *)));
        memset(s->chunks + s->chunk_count, 0, (count - s->chunk_count) * sizeof(struct chunk *));
        s->chunk_count = count;
    }
    if (!s->chunks[c])
        s->chunks[c] = must(calloc(1, sizeof(struct chunk)));
    return &s->chunks[c]->cells[number % CHUNK_CELLS];
}

static const struct block *cell_now(const struct cell *c)
{
    if (!c)
        return NULL;
    return c->newest ? c->newest->block : c->stable;
}

static void versions_free(struct version *v)
{
    while (v) {
        struct version *older = v->older;
        block_drop(v->block);
        free(v);
        v = older;
    }
}

static void op_free(struct op *op)
{
    for (uint32_t i = 0; i < op->count; i++)
        block_drop(op->blocks[i]);
    free(op);
}

static void op_unlink(struct cairn_sim *s, struct op *op)
{
    if (op->prev)
        op->prev->next = op->next;
    else
        s->in_flight = op->next;
    if (op->next)
        op->next->prev = op->prev;
}

/* The content is taken at once, so that a cut on another thread never looks at the caller's
 * buffer. */
static struct op *op_accept(struct cairn_sim *s, const struct cairn_io *io)
{
    uint32_t count = io->len / BLOCK;
    struct op *op = must(malloc(sizeof(*op) + count * sizeof(struct block *)));
    *op = (struct op){.id = ++s->ops, .first = io->off / BLOCK, .count = count,
                      .next = s->in_flight};
    for (uint32_t i = 0; i < count; i++)
        op->blocks[i] = block_make((const char *)io->buf + (size_t)i * BLOCK);
    if (s->in_flight)
        s->in_flight->prev = op;
    s->in_flight = op;
    return op;
}

static void dirty_add(struct cairn_sim *s, uint64_t number)
{
    if (s->dirty_count == s->dirty_cap) {
        s->dirty_cap = s->dirty_cap ? 2 * s->dirty_cap : 1024;
        s->dirty = must(realloc(s->dirty, s->dirty_cap * sizeof(*s->dirty)));
    }
    s->dirty[s->dirty_count++] = number;
}

static void op_apply(struct cairn_sim *s, struct op *op)
{
    uint64_t applied = ++s->applied;
    for (uint32_t i = 0; i < op->count; i++) {
        struct cell *c = cell_make(s, op->first + i);
        struct version *v = must(malloc(sizeof(*v)));
        *v = (struct version){.older = c->newest, .block = block_hold(op->blocks[i]),
                              .applied = applied, .op = op->id, .index = i, .count = op->count};
        if (!c->newest)
            dirty_add(s, op->first + i);
        c->newest = v;
    }
    op_unlink(s, op);
    op_free(op);
}

/* The newest version of each block up to number `covers` becomes its stable one. */
static void settle(struct cairn_sim *s, uint64_t covers)
{
    size_t kept = 0;
    for (size_t i = 0; i < s->dirty_count; i++) {
        struct cell *c = cell_find(s, s->dirty[i]);
        struct version **at = &c->newest;
        while (*at && (*at)->applied > covers)
            at = &(*at)->older;
        struct version *v = *at;
        if (v) {
            block_drop(c->stable);
            c->stable = block_hold(v->block);
            *at = NULL;
            versions_free(v);
        }
        if (c->newest)
            s->dirty[kept++] = s->dirty[i];
    }
    s->dirty_count = kept;
}

static void lose_cache(struct cairn_sim *s)
{
    for (size_t i = 0; i < s->dirty_count; i++) {
        struct cell *c = cell_find(s, s->dirty[i]);
        versions_free(c->newest);
        c->newest = NULL;
    }
    s->dirty_count = 0;
}

static int32_t do_read(struct cairn_sim *s, const struct cairn_io *io)
{
    uint64_t len = io->len;
    if (s->opts.size && io->off + len > s->opts.size)
        len = io->off < s->opts.size ? s->opts.size - io->off : 0;
    for (uint64_t at = 0; at < len; at += BLOCK) {
        const struct block *b = cell_now(cell_find(s, (io->off + at) / BLOCK));
        uint64_t n = len - at < BLOCK ? len - at : BLOCK;
        if (b)
            memcpy((char *)io->buf + at, b->bytes, n);
        else
            memset((char *)io->buf + at, 0, n);
    }
    s->stats.reads++;
    return (int32_t)len;
}

static int32_t do_write(struct cairn_sim *s, const struct cairn_io *io, struct op *op)
{
    for (uint32_t i = 0; i < op->count; i++)
        if (memcmp((const char *)io->buf + (size_t)i * BLOCK, op->blocks[i]->bytes, BLOCK) != 0) {
            s->stats.changed_in_flight++;
            break;
        }
    s->stats.writes++;
    s->stats.write_bytes += io->len;
    op_apply(s, op);
    return (int32_t)io->len;
}

static void complete(struct cairn_sim *s, struct pending *p)
{
    struct cairn_io *io = p->io;
    bool direct = io->off % BLOCK == 0 && io->len % BLOCK == 0 && (uintptr_t)io->buf % BLOCK == 0;
    if (s->dead)
        io->res = -EIO;
    else if (io->kind == CAIRN_IO_SYNC && s->lose_after && --s->lose_after == 0) {
        lose_cache(s);
        io->res = -EIO;
    } else if (io->kind == CAIRN_IO_SYNC) {
        settle(s, p->covers);
        s->stats.syncs++;
        io->res = 0;
    } else if (!direct)
        io->res = -EINVAL;
    else if (io->kind == CAIRN_IO_READ)
        io->res = do_read(s, io);
    else
        io->res = p->op ? do_write(s, io, p->op) : -ENOSPC;
}

/* --- the queue --- */

static bool sim_probe(char *why, size_t why_cap)
{
    (void)why;
    (void)why_cap;
    return true;
}

static cairn_status sim_open(const struct cairn_ioq_params *p, struct cairn_ioq **ret)
{
    if (!p->arg || p->depth == 0 || p->depth > DEPTH_MAX)
        return CAIRN_INVAL;
    struct queue *q = calloc(1, sizeof(*q) + p->depth * sizeof(struct pending));
    if (!q)
        return CAIRN_NOMEM;
    q->base.ops = &cairn_ioq_sim;
    q->dev = p->arg;
    q->depth = p->depth;
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&q->event, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_lock(&q->dev->lock);
    q->dev->refs++;
    pthread_mutex_unlock(&q->dev->lock);
    *ret = &q->base;
    return CAIRN_OK;
}

static void accept_io(struct queue *q, struct cairn_io *io)
{
    struct cairn_sim *s = q->dev;
    struct pending *p = &q->pending[q->count++];
    uint64_t spread = s->opts.delay_max_ns - s->opts.delay_min_ns;
    io->submitted_ns = cairn_now_ns();
    *p = (struct pending){.io = io, .covers = s->applied};
    if (s->opts.delay_max_ns)
        p->due_ns = io->submitted_ns + s->opts.delay_min_ns + draw(s, spread + 1);
    bool fits = !s->opts.size || io->off + io->len <= s->opts.size;
    if (io->kind == CAIRN_IO_WRITE && !s->dead && fits && io->off % BLOCK == 0 &&
        io->len % BLOCK == 0)
        p->op = op_accept(s, io);
    s->stats.accepted++;
    if (s->die_after > 0 && --s->die_after == 0)
        s->dead = true;
}

static bool sim_submit(struct cairn_ioq *base, struct cairn_io *io)
{
    struct queue *q = (struct queue *)base;
    pthread_mutex_lock(&q->dev->lock);
    bool room = q->count < q->depth;
    if (room)
        accept_io(q, io);
    pthread_mutex_unlock(&q->dev->lock);
    return room;
}

/* One that is due, from a random place on; q->count if there is none. */
static uint32_t pick(struct queue *q, uint64_t now)
{
    uint32_t from = (uint32_t)draw(q->dev, q->count);
    for (uint32_t i = 0; i < q->count; i++) {
        uint32_t at = (from + i) % q->count;
        if (q->pending[at].due_ns <= now || q->dev->dead)
            return at;
    }
    return q->count;
}

static uint32_t sim_poll(struct cairn_ioq *base, struct cairn_io **done, uint32_t cap)
{
    struct queue *q = (struct queue *)base;
    struct cairn_sim *s = q->dev;
    uint64_t now = cairn_now_ns();
    uint32_t n = 0;
    pthread_mutex_lock(&s->lock);
    while (n < cap) {
        uint32_t at = pick(q, now);
        /* Without real delays some are left for a later poll, but never all of them. */
        if (at == q->count || (n > 0 && s->opts.delay_max_ns == 0 && draw(s, 2)))
            break;
        complete(s, &q->pending[at]);
        done[n++] = q->pending[at].io;
        q->pending[at] = q->pending[--q->count];
    }
    pthread_mutex_unlock(&s->lock);
    return n;
}

static void sim_wait(struct cairn_ioq *base, uint64_t deadline_ns)
{
    struct queue *q = (struct queue *)base;
    pthread_mutex_lock(&q->dev->lock);
    while (!q->woken) {
        uint64_t until = deadline_ns;
        for (uint32_t i = 0; i < q->count; i++)
            if (q->pending[i].due_ns < until)
                until = q->pending[i].due_ns;
        if (cairn_now_ns() >= until || (q->dev->dead && q->count > 0))
            break;
        /* Short sleeps, because a cut wakes nobody. */
        uint64_t nap = cairn_now_ns() + CAIRN_NS_PER_MS;
        struct timespec t = cairn_timespec(until < nap ? until : nap);
        pthread_cond_timedwait(&q->event, &q->dev->lock, &t);
    }
    q->woken = false;
    pthread_mutex_unlock(&q->dev->lock);
}

static void sim_wake(struct cairn_ioq *base)
{
    struct queue *q = (struct queue *)base;
    pthread_mutex_lock(&q->dev->lock);
    q->woken = true;
    pthread_cond_signal(&q->event);
    pthread_mutex_unlock(&q->dev->lock);
}

static bool sim_close(struct cairn_ioq *base)
{
    if (!base)
        return true;
    struct queue *q = (struct queue *)base;
    pthread_mutex_lock(&q->dev->lock);
    for (uint32_t i = 0; i < q->count; i++)
        complete(q->dev, &q->pending[i]);
    pthread_mutex_unlock(&q->dev->lock);
    cairn_sim_destroy(q->dev);
    pthread_cond_destroy(&q->event);
    free(q);
    return true;
}

const struct cairn_ioq_ops cairn_ioq_sim = {
    .name = "sim",
    .probe = sim_probe,
    .open = sim_open,
    .submit = sim_submit,
    .poll = sim_poll,
    .wait = sim_wait,
    .wake = sim_wake,
    .close = sim_close,
};

/* --- the device --- */

struct cairn_sim *cairn_sim_create(const struct cairn_sim_opts *o)
{
    struct cairn_sim *s = must(calloc(1, sizeof(*s)));
    pthread_mutex_init(&s->lock, NULL);
    s->opts = *o;
    if (s->opts.delay_max_ns < s->opts.delay_min_ns)
        s->opts.delay_max_ns = s->opts.delay_min_ns;
    s->random = mix(o->seed);
    s->refs = 1;
    return s;
}

static void release_content(struct cairn_sim *s)
{
    for (uint64_t c = 0; c < s->chunk_count; c++) {
        for (uint32_t i = 0; s->chunks[c] && i < CHUNK_CELLS; i++) {
            block_drop(s->chunks[c]->cells[i].stable);
            versions_free(s->chunks[c]->cells[i].newest);
        }
        free(s->chunks[c]);
    }
    free(s->chunks);
    free(s->dirty);
    while (s->in_flight) {
        struct op *op = s->in_flight;
        op_unlink(s, op);
        op_free(op);
    }
}

void cairn_sim_destroy(struct cairn_sim *s)
{
    if (!s)
        return;
    pthread_mutex_lock(&s->lock);
    bool last = --s->refs == 0;
    pthread_mutex_unlock(&s->lock);
    if (!last)
        return;
    release_content(s);
    pthread_mutex_destroy(&s->lock);
    free(s);
}

enum cut_mode { CUT_KEEP_ALL, CUT_LOSE_ALL, CUT_BLOCKS, CUT_WRITES, CUT_MODES };

struct cut {
    uint64_t seed;
    enum cut_mode mode;
    uint32_t keep; /* of 256 */
};

/* Did block `index` of `count` of this write reach the medium? */
static bool survives(const struct cut *cut, uint64_t op, uint32_t index, uint32_t count)
{
    uint64_t of_op = mix(cut->seed ^ mix(op));
    switch (cut->mode) {
    case CUT_KEEP_ALL:
        return true;
    case CUT_LOSE_ALL:
        return false;
    case CUT_BLOCKS:
        return mix(of_op ^ mix(index + 1)) % 256 < cut->keep;
    default:
        if (of_op % 4 == 0) /* torn */
            return index < (of_op >> 8) % (count + 1);
        return (of_op >> 8) % 256 < cut->keep;
    }
}

static struct block *survivor(const struct cut *cut, const struct cell *c)
{
    for (const struct version *v = c->newest; v; v = v->older)
        if (survives(cut, v->op, v->index, v->count))
            return v->block;
    return c->stable;
}

static void set_stable(struct cairn_sim *s, uint64_t number, struct block *b)
{
    struct cell *c = cell_make(s, number);
    block_drop(c->stable);
    c->stable = block_hold(b);
}

struct cairn_sim *cairn_sim_power_cut(struct cairn_sim *s, uint64_t seed)
{
    struct cut cut = {.seed = mix(seed)};
    cut.mode = (enum cut_mode)(cut.seed % CUT_MODES);
    cut.keep = (uint32_t)(cut.seed >> 8) % 257;
    struct cairn_sim_opts opts = s->opts;
    opts.seed = cut.seed;
    struct cairn_sim *next = cairn_sim_create(&opts);
    pthread_mutex_lock(&s->lock);
    s->dead = true;
    for (uint64_t c = 0; c < s->chunk_count; c++)
        for (uint32_t i = 0; s->chunks[c] && i < CHUNK_CELLS; i++) {
            struct block *b = survivor(&cut, &s->chunks[c]->cells[i]);
            if (b)
                set_stable(next, c * CHUNK_CELLS + i, b);
        }
    for (const struct op *op = s->in_flight; op; op = op->next)
        for (uint32_t i = 0; i < op->count; i++)
            if (survives(&cut, op->id, i, op->count))
                set_stable(next, op->first + i, op->blocks[i]);
    pthread_mutex_unlock(&s->lock);
    return next;
}

void cairn_sim_die_after(struct cairn_sim *s, uint64_t ios)
{
    pthread_mutex_lock(&s->lock);
    s->die_after = ios;
    pthread_mutex_unlock(&s->lock);
}

void cairn_sim_lose_cache(struct cairn_sim *s, uint64_t n)
{
    pthread_mutex_lock(&s->lock);
    s->lose_after = n;
    pthread_mutex_unlock(&s->lock);
}

bool cairn_sim_dead(struct cairn_sim *s)
{
    pthread_mutex_lock(&s->lock);
    bool dead = s->dead;
    pthread_mutex_unlock(&s->lock);
    return dead;
}

void cairn_sim_stats(struct cairn_sim *s, struct cairn_sim_stats *ret)
{
    pthread_mutex_lock(&s->lock);
    *ret = s->stats;
    ret->volatile_blocks = s->dirty_count;
    pthread_mutex_unlock(&s->lock);
}

void cairn_sim_peek(struct cairn_sim *s, uint64_t off, void *buf, size_t len)
{
    pthread_mutex_lock(&s->lock);
    for (size_t at = 0; at < len; at += BLOCK) {
        const struct block *b = cell_now(cell_find(s, (off + at) / BLOCK));
        if (b)
            memcpy((char *)buf + at, b->bytes, BLOCK);
        else
            memset((char *)buf + at, 0, BLOCK);
    }
    pthread_mutex_unlock(&s->lock);
}

void cairn_sim_poke(struct cairn_sim *s, uint64_t off, const void *buf, size_t len)
{
    pthread_mutex_lock(&s->lock);
    for (size_t at = 0; at < len; at += BLOCK) {
        struct cell *c = cell_make(s, (off + at) / BLOCK);
        struct block *b = block_make((const char *)buf + at);
        block_drop(c->stable);
        c->stable = b;
        for (struct version *v = c->newest; v; v = v->older) {
            block_drop(v->block);
            v->block = block_hold(b);
        }
    }
    pthread_mutex_unlock(&s->lock);
}

void cairn_sim_flip(struct cairn_sim *s, uint64_t off, uint32_t bit)
{
    uint8_t bytes[BLOCK];
    uint64_t at = off + bit / 8;
    cairn_sim_peek(s, at / BLOCK * BLOCK, bytes, BLOCK);
    bytes[at % BLOCK] ^= (uint8_t)(1u << bit % 8);
    cairn_sim_poke(s, at / BLOCK * BLOCK, bytes, BLOCK);
}

bool cairn_sim_export(struct cairn_sim *s, int fd)
{
    bool ok = true;
    pthread_mutex_lock(&s->lock);
    for (uint64_t c = 0; c < s->chunk_count && ok; c++)
        for (uint32_t i = 0; s->chunks[c] && i < CHUNK_CELLS && ok; i++) {
            const struct block *b = cell_now(&s->chunks[c]->cells[i]);
            off_t at = (off_t)((c * CHUNK_CELLS + i) * BLOCK);
            ok = !b || pwrite(fd, b->bytes, BLOCK, at) == (ssize_t)BLOCK;
        }
    pthread_mutex_unlock(&s->lock);
    return ok;
}
