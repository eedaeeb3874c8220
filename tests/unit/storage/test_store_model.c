/* Random operations on the store against a plain model in memory. Every byte read is checked.
 *
 * The model keeps, for each key, the one generation that a hit may show. A miss is always allowed
 * but where nothing can have dropped the value: right after its put, and after a flush while too
 * little was appended to have reclaimed it. */
#include "tests/unit/storage/store_model.h"

static uint32_t random_len(struct rng *r)
{
    switch (rng_below(r, 5)) {
    case 0: return 1 + (uint32_t)rng_below(r, 100);
    case 1: return 4096 * (1 + (uint32_t)rng_below(r, 8));
    case 2: return 4095 + (uint32_t)rng_below(r, 3);
    default: return 1 + (uint32_t)rng_below(r, VALUE_LARGEST);
    }
}

/* Can this key have been dropped by nobody? Reclaim takes the oldest segment; each loses at most
 * one value and its footer at the end, and reinsertion adds its share. */
static bool must_be_held(const struct model *m, const struct state *k)
{
    uint64_t since = m->appended - k->appended;

    /* Without write-through, values of before may be written after it. */
    if (m->r.o.write != CAIRN_WRITE_THROUGH)
        since += m->r.o.ram_bytes;
    if (!k->gen || !k->durable || k->maybe || k->expires_ns || !m->r.o.disk_bytes)
        return false;
    return since * 16 / 10 + (6u << 20) < m->r.o.disk_bytes;
}

/* ---- put ---- */

struct putting {
    uint64_t id[BATCH], gen[BATCH];
    struct cairn_put puts[BATCH];
    struct cairn_iov iov[BATCH][3];
    size_t count;
};

/* Splits the value over one to three runs. */
static void gather(struct model *m, struct putting *p, size_t i, uint32_t len)
{
    struct rng *r = &m->r.rng;
    uint32_t parts = len >= 3 ? 1 + (uint32_t)rng_below(r, 3) : 1;
    uint32_t at = 0;

    for (uint32_t n = 0; n < parts; n++) {
        uint32_t left = len - at, take = left;

        if (n + 1 < parts)
            take = 1 + (uint32_t)rng_below(r, left - (parts - n - 1));
        p->iov[i][n] = (struct cairn_iov){.base = m->in[i] + at, .len = take};
        at += take;
    }
    p->puts[i].value = (struct cairn_sgl){.iov = p->iov[i], .count = parts};
}

static void prepare_put(struct model *m, struct putting *p, size_t i, uint64_t id, bool replace)
{
    struct rng *r = &m->r.rng;
    struct state *k = &m->keys[id];
    uint32_t len = random_len(r);
    struct cairn_put *put = &p->puts[i];

    /* Without REPLACE a key's bytes are the same ones: of a value that was lost after a write that
     * failed, a restart may find what had landed, and other bytes would be another generation. */
    replace |= m->dying && k->gen;
    p->id[i] = id;
    p->gen[i] = ++k->last;
    *put = (struct cairn_put){.key = key_of(id), .flags = replace ? CAIRN_PUT_REPLACE : 0};
    value_fill(m->in[i], id, p->gen[i], 0, len);
    gather(m, p, i, len);
    if (id % 16)
        put->parent = key_of(id - 1);
    if (rng_one_in(r, 4)) {
        put->side = m->side;
        put->side_len = 1 + (uint32_t)rng_below(r, SIDE_LARGEST);
    }
    if (rng_one_in(r, 20))
        put->expires_ns = cairn_wall_ns() + (rng_one_in(r, 2) ? 1000000 : 3600 * RIG_SECOND);
    if (rng_one_in(r, 3))
        put->fingerprint = put->key.bytes;
}

static uint32_t put_len(const struct cairn_put *put)
{
    uint32_t len = 0;

    for (uint32_t i = 0; i < put->value.count; i++)
        len += (uint32_t)put->value.iov[i].len;
    return len;
}

/* Is a put of `space` refused because another holds the key? Then nothing has changed. */
static bool put_refused(struct model *m, const struct putting *p, size_t i, uint16_t space)
{
    const struct cairn_put *put = &p->puts[i];
    const struct state *k = &m->keys[p->id[i]];

    if (put->status != CAIRN_INVAL || put->cause != CAIRN_CAUSE_SPACE) {
        if ((put->status == CAIRN_OK || put->status == CAIRN_EXISTS) && k->space != space &&
            must_be_held(m, k) && !m->dying)
            FAIL_KEY(m, p->id[i], "put of key %llu in space %u, but space %u holds it",
                     (unsigned long long)p->id[i], space, k->space);
        return false;
    }
    /* Of an expired one on a disk that cannot be read nobody knows. */
    if (!(k->ghost && m->dying) && (!k->gen || k->space == space))
        FAIL_KEY(m, p->id[i], "put of key %llu in space %u is refused, but no other holds it",
                 (unsigned long long)p->id[i], space);
    m->foreign++;
    return true;
}

static void put_done(struct model *m, const struct putting *p, size_t i, uint16_t space)
{
    const struct cairn_put *put = &p->puts[i];
    struct state *k = &m->keys[p->id[i]];

    note(m, p->id[i], put->flags & CAIRN_PUT_REPLACE ? "replace" : "put", p->gen[i], put->status);
    if (put_refused(m, p, i, space))
        return;
    m->puts++;
    if (put->status == CAIRN_EXISTS) {
        if (put->flags & CAIRN_PUT_REPLACE)
            FAIL_KEY(m, p->id[i], "put of key %llu with replace says it exists",
                     (unsigned long long)p->id[i]);
        if (!k->gen)
            FAIL_KEY(m, p->id[i], "put of key %llu says it exists, but it does not",
                 (unsigned long long)p->id[i]);
        m->stored++;
        return;
    }
    if (put->status != CAIRN_OK) {
        if (put->status != CAIRN_NOSPACE && put->status != CAIRN_BUSY && !m->dying)
            FAIL_KEY(m, p->id[i], "put of key %llu: status %d cause %d",
                     (unsigned long long)p->id[i], put->status, put->cause);
        if (put->flags & CAIRN_PUT_REPLACE)
            k->maybe = k->doomed = true;
        return;
    }
    if (must_be_held(m, k) && !m->dying && !(put->flags & CAIRN_PUT_REPLACE))
        FAIL_KEY(m, p->id[i], "put of durable key %llu stored again: its first bytes are gone",
             (unsigned long long)p->id[i]);
    m->stored++;
    m->appended += ((uint64_t)cairn_record_blocks(put_len(put), put->side_len) + 1) * CAIRN_BLOCK;
    k->gen = p->gen[i];
    k->len = put_len(put);
    k->side = put->side_len;
    k->expires_ns = put->expires_ns;
    /* What waits in RAM is appended behind it. */
    k->appended = m->appended - m->late;
    k->named = put->fingerprint != NULL;
    k->durable = k->maybe = k->doomed = k->yields = false;
    k->space = (uint8_t)space;
    k->mark = 0;
}

/* ---- get ---- */

/* The generation whose bytes these are, 0 = none that was ever put. */
static uint64_t generation_of(const struct model *m, uint64_t id, const void *data, uint64_t off,
                              size_t len)
{
    for (uint64_t gen = m->keys[id].last; gen > 0; gen--)
        if (value_check(data, id, gen, off, len) == len)
            return gen;
    return 0;
}

static void check_bytes(struct model *m, uint64_t id, const void *data, uint64_t off, size_t len)
{
    const struct state *k = &m->keys[id];
    size_t bad = value_check(data, id, k->gen, off, len);

    if (bad < len)
        FAIL_KEY(m, id, "wrong byte %zu of key %llu generation %llu (%zu bytes from %llu): shows "
                "generation %llu",
             bad, (unsigned long long)id, (unsigned long long)k->gen, len, (unsigned long long)off,
             (unsigned long long)generation_of(m, id, data, off, len));
}

static void get_done(struct model *m, uint64_t id, const struct cairn_get *g, size_t len,
                     const void *data)
{
    struct state *k = &m->keys[id];

    note(m, id, "get", k->gen, g->status);
    if (g->status == CAIRN_OK) {
        if (!k->gen)
            FAIL_KEY(m, id, "hit of key %llu, which is deleted, expired or never was",
                 (unsigned long long)id);
        check_bytes(m, id, data, g->offset, len);
        m->hits++;
        k->maybe &= k->doomed;
        return;
    }
    m->misses++;
    if (m->dying)
        return;
    if (g->status == CAIRN_TIMEOUT || g->cause == CAIRN_CAUSE_CHECKSUM ||
        g->cause == CAIRN_CAUSE_HEADER || g->cause == CAIRN_CAUSE_KEY ||
        g->cause == CAIRN_CAUSE_IO_ERROR || g->cause == CAIRN_CAUSE_TIER_OFF)
        FAIL_KEY(m, id, "get of key %llu: status %d cause %s on a sound device",
                 (unsigned long long)id, g->status, cairn_cause_name((enum cairn_cause)g->cause));
    if (must_be_held(m, k))
        FAIL_KEY(m, id, "durable key %llu generation %llu is missed: status %d cause %s",
             (unsigned long long)id, (unsigned long long)k->gen, g->status,
             cairn_cause_name((enum cairn_cause)g->cause));
}

static void drop_pins(struct model *m, struct held *h);

/* To the other space it is not there. */
static void get_foreign(struct model *m, uint64_t id)
{
    uint16_t other = !m->keys[id].space;
    struct cairn_key key = key_of(id);
    struct cairn_scan_item item;
    struct cairn_pin pin;
    enum cairn_cause cause;

    if (cairn_vault_space_pin(m->r.vault, other, &key, 1, deadline(), &pin) ||
        cairn_vault_space_pin_now(m->r.vault, other, &key, true, &pin, &cause) != CAIRN_MISS ||
        cairn_vault_space_value_len(m->r.vault, other, &key) ||
        cairn_vault_header(m->r.vault, other, &key, deadline(), &item, &cause) == CAIRN_OK)
        FAIL_KEY(m, id, "space %u shows key %llu of space %u", other, (unsigned long long)id,
                 m->keys[id].space);
}

/* What is in another space is read in place. */
static void get_pinned(struct model *m, uint64_t id)
{
    struct cairn_get g = {.key = key_of(id), .status = CAIRN_MISS, .cause = CAIRN_CAUSE_ABSENT};
    struct cairn_pin pin;

    if (cairn_vault_space_pin(m->r.vault, 1, &g.key, 1, deadline(), &pin) == 0) {
        /* Too much was pinned, perhaps. */
        for (size_t i = 0; i < PINS; i++)
            drop_pins(m, &m->held[i]);
        if (cairn_vault_space_pin(m->r.vault, 1, &g.key, 1, deadline(), &pin) == 0) {
            get_done(m, id, &g, 0, NULL);
            return;
        }
    }
    g.status = CAIRN_OK;
    if (m->keys[id].gen && pin.value_len != m->keys[id].len)
        FAIL_KEY(m, id, "key %llu has %u bytes", (unsigned long long)id, pin.value_len);
    get_done(m, id, &g, pin.value_len, pin.value);
    cairn_vault_unpin(m->r.vault, &pin, 1);
}

static void get_chunks(struct model *m, const uint64_t *ids, size_t count)
{
    struct rng *r = &m->r.rng;
    struct cairn_get gets[BATCH] = {0};
    struct cairn_iov iov[BATCH];
    size_t hits = 0, seen = 0, sure = 0;

    for (size_t i = 0; i < count; i++) {
        const struct state *k = &m->keys[ids[i]];
        size_t len = k->gen ? k->len : 1 + rng_below(r, VALUE_LARGEST);

        gets[i].key = key_of(ids[i]);
        if (k->gen && rng_one_in(r, 3)) {
            gets[i].flags = CAIRN_GET_RANGE;
            gets[i].offset = rng_below(r, len);
            len = 1 + rng_below(r, len - gets[i].offset);
            m->ranges++;
        }
        if (k->gen && k->named && rng_one_in(r, 2))
            gets[i].fingerprint = gets[i].key.bytes;
        memset(m->out[i], 0xdb, len);
        gets[i].out = rig_sgl(&iov[i], m->out[i], len);
        sure += must_be_held(m, k);
    }
    cairn_vault_get(m->r.vault, gets, count, deadline(), &hits);
    for (size_t i = 0; i < count; i++) {
        get_done(m, ids[i], &gets[i], iov[i].len, m->out[i]);
        seen += gets[i].status == CAIRN_OK;
    }
    if (seen != hits)
        FAIL(m, "get counted %zu hits and marked %zu", hits, seen);
    m->sure_hits += sure;
}

static void op_get(struct model *m, const uint64_t *ids, size_t count)
{
    uint64_t chunks[BATCH];
    size_t n = 0;

    for (size_t i = 0; i < count; i++) {
        if (m->keys[ids[i]].gen && !m->keys[ids[i]].ghost)
            get_foreign(m, ids[i]);
        if (m->keys[ids[i]].gen && m->keys[ids[i]].space != 0)
            get_pinned(m, ids[i]);
        else
            chunks[n++] = ids[i];
    }
    get_chunks(m, chunks, n);
}

static void op_put(struct model *m, size_t count, uint64_t first)
{
    struct rng *r = &m->r.rng;
    bool replace = rng_one_in(r, 3), chain = rng_one_in(r, 2);
    struct putting p = {.count = count};
    size_t stored = 0, seen = 0;

    for (size_t i = 0; i < count; i++)
        prepare_put(m, &p, i, chain ? (first + i) % KEYS : rng_below(r, KEYS), replace);
    cairn_vault_put(m->r.vault, p.puts, count, deadline(), &stored);
    for (size_t i = 0; i < count; i++) {
        put_done(m, &p, i, 0);
        seen += p.puts[i].status == CAIRN_OK || p.puts[i].status == CAIRN_EXISTS;
    }
    if (seen != stored)
        FAIL(m, "put counted %zu stored and marked %zu", stored, seen);
    if (count == 1 && p.puts[0].status == CAIRN_OK && !p.puts[0].expires_ns && !m->dying) {
        uint64_t hits = m->hits;

        op_get(m, p.id, 1);
        if (m->hits == hits)
            FAIL_KEY(m, p.id[0], "key %llu was put and is not visible",
                     (unsigned long long)p.id[0]);
    }
}

/* ---- the others ---- */

/* Wrong length, another identity, an empty or overlong range: never a hit. */
static void op_get_wrong(struct model *m, uint64_t id)
{
    struct rng *r = &m->r.rng;
    const struct state *k = &m->keys[id];
    struct cairn_get g = {.key = key_of(id)};
    uint8_t other[32] = {1, 2, 3};
    struct cairn_iov iov;
    size_t len = k->gen ? k->len : 100;

    switch (rng_below(r, 3)) {
    case 0: len = len > 1 ? len - 1 : len + 1; break;
    case 1: g.fingerprint = other; break;
    default:
        g.flags = CAIRN_GET_RANGE;
        g.offset = rng_one_in(r, 2) ? len : UINT64_MAX - 3;
        len = 1 + rng_below(r, 10);
        break;
    }
    g.out = rig_sgl(&iov, m->out[0], len);
    cairn_vault_get(m->r.vault, &g, 1, deadline(), NULL);
    if (g.status == CAIRN_OK)
        FAIL_KEY(m, id, "get of key %llu with a wrong length, range or identity is a hit",
             (unsigned long long)id);
}

static void deleted(struct model *m, uint64_t id, cairn_status s, bool sure)
{
    struct cairn_key key = key_of(id);
    struct state *k = &m->keys[id];
    uint64_t age = 0;

    note(m, id, "delete", k->gen, s);
    if (s != CAIRN_OK && s != CAIRN_MISS) {
        if (!m->dying)
            FAIL_KEY(m, id, "delete of key %llu: status %d", (unsigned long long)id, s);
        k->maybe = k->doomed = true;
        return;
    }
    if (s == CAIRN_MISS && sure && !m->dying)
        FAIL_KEY(m, id, "delete says durable key %llu is not held", (unsigned long long)id);
    if (s == CAIRN_OK && !k->gen && !k->ghost)
        FAIL_KEY(m, id, "delete says key %llu was held", (unsigned long long)id);
    m->deleted += s == CAIRN_OK;
    m->appended += CAIRN_BLOCK;
    /* A ghost stays: the expired record, of which the index knew no more, is found by recovery. */
    k->gen = k->expires_ns = 0;
    k->maybe = k->doomed = false;
    if (cairn_vault_lookup(m->r.vault, &key, 1) != 0 && !k->ghost)
        FAIL_KEY(m, id, "lookup finds key %llu after its deletion", (unsigned long long)id);
    if (s == CAIRN_OK && !k->ghost &&
        cairn_vault_drop_cause(m->r.vault, &key, &age) != CAIRN_CAUSE_DELETED)
        FAIL_KEY(m, id, "key %llu was deleted, but that is not why it is not held",
                 (unsigned long long)id);
}

/* To the other space it is not there, and stays as it is. */
static void delete_foreign(struct model *m, uint64_t id)
{
    const struct state *k = &m->keys[id];
    struct cairn_key key = key_of(id);
    uint16_t other = !k->space;
    cairn_status s = rng_one_in(&m->r.rng, 2)
                         ? cairn_vault_space_delete_now(m->r.vault, other, &key)
                         : CAIRN_INPROGRESS;
    bool now = s != CAIRN_INPROGRESS;

    if (!now)
        cairn_vault_space_delete(m->r.vault, other, &key, 1, deadline(), &s);
    note(m, id, now ? "delete elsewhere at once" : "delete elsewhere", k->gen, s);
    /* Where it may have been forgotten all of the key is buried, or the delete fails. */
    if (s == CAIRN_MISS && must_be_held(m, k)) {
        op_get(m, &id, 1);
        return;
    }
    if (s == CAIRN_OK && !k->ghost)
        FAIL_KEY(m, id, "space %u deletes key %llu of space %u", other, (unsigned long long)id,
                 k->space);
    m->keys[id].maybe = true;
}

/* Several at once, now and then one of them twice. */
static void op_delete(struct model *m, uint64_t first)
{
    struct rng *r = &m->r.rng;
    struct cairn_key keys[BATCH];
    cairn_status results[BATCH];
    uint64_t ids[BATCH];
    bool sure[BATCH];
    uint16_t space = m->keys[first].space;
    size_t count = rng_one_in(r, 3) ? 1 + rng_below(r, BATCH) : 1, n = 0;

    if (rng_one_in(r, 4)) {
        delete_foreign(m, first);
        return;
    }
    for (size_t i = 0; i < count; i++) {
        uint64_t id = i && rng_one_in(r, 8) ? ids[n - 1] : (first + i * 7) % KEYS;

        if (m->keys[id].space != space)
            continue;
        ids[n] = id;
        keys[n] = key_of(id);
        sure[n] = must_be_held(m, &m->keys[id]) && !(n && id == ids[n - 1]);
        n++;
    }
    cairn_vault_space_delete(m->r.vault, space, keys, n, deadline(), results);
    for (size_t i = 0; i < n; i++)
        deleted(m, ids[i], results[i], sure[i]);
}

static void op_delete_now(struct model *m, uint64_t id)
{
    struct cairn_key key = key_of(id);
    cairn_status s = cairn_vault_space_delete_now(m->r.vault, m->keys[id].space, &key);

    if (s != CAIRN_INPROGRESS)
        deleted(m, id, s, must_be_held(m, &m->keys[id]));
    else if (!m->r.o.disk_bytes)
        FAIL_KEY(m, id, "delete of key %llu wants to write, but there is no disk",
                 (unsigned long long)id);
    else
        note(m, id, "delete later", m->keys[id].gen, s);
}

static void op_flush(struct model *m)
{
    cairn_status s = cairn_vault_flush(m->r.vault, deadline());

    note_all(m, "flush", s);
    if (!m->r.o.disk_bytes) {
        if (s != CAIRN_UNSUPPORTED)
            FAIL(m, "flush without a disk: status %d", s);
        return;
    }
    /* What left RAM unwritten is gone: flush says so once, and no later flush makes it durable. */
    if (s == CAIRN_IO && (m->dying || m->r.o.write == CAIRN_WRITE_NONE || m->late)) {
        for (size_t i = 0; i < KEYS; i++)
            m->keys[i].maybe |= !m->keys[i].durable;
        m->late = 0;
        return;
    }
    if (s != CAIRN_OK && m->dying)
        return;
    if (s != CAIRN_OK)
        FAIL(m, "flush: status %d", s);
    for (size_t i = 0; i < KEYS; i++) {
        struct state *k = &m->keys[i];

        k->durable = k->gen != 0;
    }
    m->late = 0;
}

static void op_lookup(struct model *m, uint64_t first)
{
    struct cairn_key keys[16];
    size_t count = 1 + rng_below(&m->r.rng, 16), sure = 0, held;

    for (size_t i = 0; i < count; i++)
        keys[i] = key_of((first + i) % KEYS);
    for (; sure < count; sure++) {
        const struct state *k = &m->keys[(first + sure) % KEYS];
        if (!must_be_held(m, k) || k->space != 0)
            break;
    }
    held = cairn_vault_lookup(m->r.vault, keys, count);
    if (held > count || (held < sure && !m->dying))
        FAIL(m, "lookup of %zu keys says %zu, at least %zu are held", count, held, sure);
    for (size_t i = 0; i < held; i++) {
        const struct state *k = &m->keys[(first + i) % KEYS];

        if (!k->gen && !k->ghost)
            FAIL_KEY(m, (first + i) % KEYS, "lookup finds key %llu, which is not there",
                 (unsigned long long)((first + i) % KEYS));
    }
}

static void op_value_len(struct model *m, uint64_t id)
{
    struct cairn_key key = key_of(id);
    const struct state *k = &m->keys[id];
    uint64_t len = cairn_vault_value_len(m->r.vault, &key);

    if (len && !k->ghost && len != (k->gen && k->space == 0 ? k->len : 0))
        FAIL_KEY(m, id, "key %llu is said to have %llu bytes", (unsigned long long)id,
             (unsigned long long)len);
    if (!len && must_be_held(m, k) && k->space == 0 && !m->dying)
        FAIL_KEY(m, id, "durable key %llu has no length", (unsigned long long)id);
}

static void op_side(struct model *m, uint64_t id)
{
    struct cairn_key key = key_of(id);
    struct state *k = &m->keys[id];
    uint8_t out[SIDE_LARGEST];
    uint32_t len = sizeof(out);
    cairn_status s = cairn_vault_side(m->r.vault, &key, out, &len, deadline());

    if (s == CAIRN_OK &&
        (!k->gen || k->space != 0 || len != k->side || memcmp(out, m->side, len) != 0))
        FAIL_KEY(m, id, "side records of key %llu are wrong: %u bytes, put with %u",
             (unsigned long long)id, len, k->side);
    if (s != CAIRN_OK && k->side && k->space == 0 && must_be_held(m, k) && !m->dying)
        FAIL_KEY(m, id, "side records of durable key %llu: status %d", (unsigned long long)id, s);
}

static void drop_pins(struct model *m, struct held *h)
{
    for (size_t i = 0; i < h->count; i++) {
        size_t len = h->pins[i].value_len;
        size_t bad = value_check(h->pins[i].value, h->id[i], h->gen[i], 0, len);

        if (bad < len)
            FAIL_KEY(m, h->id[i], "pinned key %llu generation %llu changed at byte %zu of %zu",
                 (unsigned long long)h->id[i], (unsigned long long)h->gen[i], bad, len);
    }
    if (h->count)
        cairn_vault_unpin(m->r.vault, h->pins, h->count);
    h->count = 0;
}

static void op_pin(struct model *m, uint64_t first)
{
    struct held *h = &m->held[rng_below(&m->r.rng, PINS)];
    size_t count = 1 + rng_below(&m->r.rng, BATCH);
    struct cairn_key keys[BATCH];

    drop_pins(m, h);
    for (size_t i = 0; i < count; i++)
        keys[i] = key_of((first + i) % KEYS);
    h->count = cairn_vault_pin(m->r.vault, keys, count, deadline(), h->pins);
    if (h->count > count)
        FAIL(m, "pinned %zu of %zu keys", h->count, count);
    for (size_t i = 0; i < h->count; i++) {
        uint64_t id = (first + i) % KEYS;
        struct state *k = &m->keys[id];

        if (!k->gen || k->space != 0 || h->pins[i].value_len != k->len)
            FAIL_KEY(m, id, "pin of key %llu, which is not held or has another length",
                 (unsigned long long)id);
        check_bytes(m, id, h->pins[i].value, 0, k->len);
        h->id[i] = id;
        h->gen[i] = k->gen;
    }
    m->pinned += h->count;
}

/* ---- what a node does ---- */

static uint16_t name_of(uint64_t id, uint64_t gen, char *out)
{
    return (uint16_t)sprintf(out, "key %llu, generation %llu", (unsigned long long)id,
                             (unsigned long long)gen);
}

/* The flags of a commit, and whether its checks are to be wrong. */
struct wishes {
    uint32_t flags;
    bool checks, wrong;
};

static cairn_status commit(struct model *m, const struct cairn_put *put, uint64_t id, uint64_t gen,
                           struct wishes w, enum cairn_cause *cause)
{
    struct cairn_room room;
    uint32_t len = put_len(put);
    uint64_t checks[CAIRN_PIECES_MAX];
    char name[64];
    cairn_status st = cairn_vault_room(m->r.vault, len, put->side_len, &room);

    if (st)
        return st;
    value_fill(room.value, id, gen, 0, len);
    if (rng_one_in(&m->r.rng, 50)) {
        cairn_vault_room_drop(m->r.vault, &room);
        return CAIRN_BUSY;
    }
    struct cairn_commit c = {.key = put->key, .parent = put->parent,
                             .fingerprint = put->fingerprint, .side = put->side, .name = name,
                             .name_len = name_of(id, gen, name), .tenant = 3,
                             .space = (uint16_t)(id % 2), .mark = (uint16_t)gen,
                             .flags = put->flags | w.flags, .expires_ns = put->expires_ns};
    if (w.checks) {
        cairn_hash_pieces(room.value, len, checks);
        checks[rng_below(&m->r.rng, cairn_piece_count(len))] ^= w.wrong;
        c.checks = checks;
    }
    st = cairn_vault_commit(m->r.vault, &room, &c, deadline(), cause);
    if (st == CAIRN_INPROGRESS) {
        if (!room.value || !(w.flags & CAIRN_COMMIT_NOWAIT) || !m->r.o.disk_bytes)
            FAIL_KEY(m, id, "commit of key %llu is to be waited for", (unsigned long long)id);
        c.flags &= ~CAIRN_COMMIT_NOWAIT;
        st = cairn_vault_commit(m->r.vault, &room, &c, deadline(), cause);
    }
    if (room.value)
        FAIL_KEY(m, id, "key %llu was committed and its room is still there",
                 (unsigned long long)id);
    return st;
}

static void op_commit(struct model *m, uint64_t id)
{
    struct rng *r = &m->r.rng;
    struct state *k = &m->keys[id];
    struct putting p = {.count = 1};
    enum cairn_cause cause = CAIRN_CAUSE_NONE;
    struct wishes w = {.flags = (rng_one_in(r, 2) ? CAIRN_COMMIT_ON_EVICT : 0) |
                                (rng_one_in(r, 2) ? CAIRN_COMMIT_NOWAIT : 0),
                       .checks = rng_one_in(r, 2), .wrong = rng_one_in(r, 8)};

    prepare_put(m, &p, 0, id, rng_one_in(r, 2));
    cairn_status st = commit(m, &p.puts[0], id, p.gen[0], w, &cause);
    if (w.checks && w.wrong && st != CAIRN_NOSPACE && st != CAIRN_BUSY) {
        if (st != CAIRN_CORRUPT || cause != CAIRN_CAUSE_CHECKSUM)
            FAIL_KEY(m, id, "commit of key %llu with wrong checks: status %d",
                     (unsigned long long)id, st);
        note(m, id, "wrong commit", p.gen[0], st);
        return;
    }
    /* The room was given back. */
    if (st == CAIRN_BUSY)
        return;
    p.puts[0].status = st;
    p.puts[0].cause = (int32_t)cause;
    uint64_t before = m->appended;
    put_done(m, &p, 0, id % 2);
    if (st != CAIRN_OK)
        return;
    m->committed++;
    k->mark = (uint16_t)p.gen[0];
    k->yields = (w.flags & CAIRN_COMMIT_ON_EVICT) != 0;
    if (k->yields)
        m->late += m->appended - before;
    if (!k->expires_ns && !m->dying)
        op_get(m, &id, 1);
}

static void check_header(struct model *m, uint64_t id, const struct cairn_record_body_disk *b)
{
    const struct state *k = &m->keys[id];
    char name[64];

    if (b->name_len == 0 ? k->mark != 0
                         : b->name_len != name_of(id, k->gen, name) || b->tenant != 3 ||
                               memcmp(b->name, name, b->name_len) != 0)
        FAIL_KEY(m, id, "the header of key %llu has another name", (unsigned long long)id);
    if (b->flags != k->mark || b->space != k->space)
        FAIL_KEY(m, id, "the header of key %llu has mark %u and space %u, not %u and %u",
                 (unsigned long long)id, b->flags, b->space, k->mark, k->space);
}

static void op_pin_now(struct model *m, uint64_t id)
{
    struct cairn_key key = key_of(id);
    const struct state *k = &m->keys[id];
    struct cairn_pin pin;
    enum cairn_cause cause;
    bool check = rng_one_in(&m->r.rng, 2);
    uint16_t space = k->space;
    cairn_status s = cairn_vault_space_pin_now(m->r.vault, space, &key, check, &pin, &cause);

    note(m, id, "pin now", k->gen, s);
    if (s == CAIRN_INPROGRESS && !m->r.o.disk_bytes)
        FAIL_KEY(m, id, "key %llu is said to be on a disk", (unsigned long long)id);
    if (s == CAIRN_MISS && must_be_held(m, k) && cause != CAIRN_CAUSE_NO_ROOM && !m->dying)
        FAIL_KEY(m, id, "durable key %llu cannot be pinned: %s", (unsigned long long)id,
                 cairn_cause_name(cause));
    if (s != CAIRN_OK)
        return;
    if (!k->gen || pin.value_len != k->len)
        FAIL_KEY(m, id, "pin of key %llu, which is not held or has another length",
                 (unsigned long long)id);
    check_bytes(m, id, pin.value, 0, k->len);
    check_header(m, id, cairn_pin_body(&pin));
    cairn_vault_unpin(m->r.vault, &pin, 1);
    m->pinned_now++;
}

struct walk {
    struct model *m;
    uint16_t space;
    size_t stop_in;
    bool seen[KEYS];
};

static bool walked(void *arg, const struct cairn_scan_item *item)
{
    struct walk *w = arg;
    struct model *m = w->m;
    uint64_t id = 0;
    char name[64];

    for (struct cairn_key k = key_of(0); memcmp(&k, &item->key, sizeof(k)) != 0; k = key_of(id))
        if (++id == KEYS)
            FAIL(m, "a scan shows a key that was never put");
    const struct state *k = &m->keys[id];
    if (!k->gen || k->space != w->space)
        FAIL_KEY(m, id, "a scan of space %u shows key %llu, which is not there", w->space,
                 (unsigned long long)id);
    if (item->value_len != k->len || item->mark != k->mark || item->expires_ns != k->expires_ns ||
        (!item->ram && !item->disk) ||
        (item->name_len && (item->name_len != name_of(id, k->gen, name) || item->tenant != 3 ||
                            memcmp(item->name, name, item->name_len) != 0)))
        FAIL_KEY(m, id, "a scan shows key %llu otherwise than it was put", (unsigned long long)id);
    w->seen[id] = true;
    m->scanned++;
    return --w->stop_in > 0;
}

static uint64_t entries(struct model *m)
{
    return cairn_vault_space_count(m->r.vault, 0) + cairn_vault_space_count(m->r.vault, 1);
}

static void op_scan(struct model *m)
{
    struct rng *r = &m->r.rng;
    struct walk w = {.m = m, .space = (uint16_t)rng_below(r, 2)};
    struct cairn_vault_figures f;
    uint32_t cursor = 0;

    do {
        w.stop_in = 1 + rng_below(r, KEYS);
        cairn_status s = cairn_vault_scan(m->r.vault, w.space, &cursor, 1 + rng_below(r, KEYS),
                                          deadline(), walked, &w);
        if (s != CAIRN_OK)
            FAIL(m, "scan: status %d", s);
    } while (cursor);
    uint64_t seen = 0;
    for (uint64_t id = 0; id < KEYS; id++) {
        const struct state *k = &m->keys[id];

        seen += w.seen[id];
        if (!w.seen[id] && k->space == w.space && must_be_held(m, k) && !m->dying)
            FAIL_KEY(m, id, "a scan does not show durable key %llu", (unsigned long long)id);
    }
    if (seen > cairn_vault_space_count(m->r.vault, w.space) && !m->dying)
        FAIL(m, "a scan shows more than the space is said to hold");
    cairn_vault_figures(m->r.vault, &f);
    if (!m->dying && f.entries != entries(m))
        FAIL(m, "%u entries, but the spaces hold %llu", f.entries, (unsigned long long)entries(m));
}

static void op_clear(struct model *m)
{
    uint16_t space = (uint16_t)rng_below(&m->r.rng, 2);
    cairn_status s = cairn_vault_clear_space(m->r.vault, space, deadline());

    if (s != CAIRN_OK && !m->dying)
        FAIL(m, "clear of space %u: status %d", space, s);
    m->appended += CAIRN_BLOCK;
    m->cleared++;
    for (uint64_t id = 0; id < KEYS; id++) {
        struct state *k = &m->keys[id];
        struct cairn_key key = key_of(id);
        uint64_t age = 0;

        if (!k->gen || k->space != space)
            continue;
        note(m, id, "clear", k->gen, s);
        if (s != CAIRN_OK) {
            k->maybe = k->doomed = true;
            continue;
        }
        k->gen = k->expires_ns = 0;
        k->maybe = k->doomed = false;
        /* An expired one may be of the other space. */
        if (k->ghost)
            continue;
        if (cairn_vault_lookup(m->r.vault, &key, 1) != 0)
            FAIL_KEY(m, id, "lookup finds key %llu after its space was cleared",
                     (unsigned long long)id);
        if (cairn_vault_drop_cause(m->r.vault, &key, &age) == CAIRN_CAUSE_NONE)
            FAIL_KEY(m, id, "key %llu is said to be held", (unsigned long long)id);
    }
    if (s == CAIRN_OK && cairn_vault_space_count(m->r.vault, space) != 0)
        FAIL(m, "%llu values in a space that was cleared",
             (unsigned long long)cairn_vault_space_count(m->r.vault, space));
}

/* The device is sound while it is opened, then as before. */
static void op_reopen(struct model *m)
{
    if (rng_one_in(&m->r.rng, 2))
        op_flush(m);
    note_all(m, "reopen", m->dying);
    m->r.plan.off = true;
    for (size_t i = 0; i < PINS; i++)
        drop_pins(m, &m->held[i]);
    if (m->r.cuts && (m->dying || m->r.faults || rng_one_in(&m->r.rng, 2))) {
        rig_power_cycle(&m->r);
        m->cuts++;
    } else {
        /* What a policy would write is written by a clean close. */
        rig_close(&m->r);
        for (size_t i = 0; i < KEYS && !m->dying && m->r.o.write != CAIRN_WRITE_NONE; i++)
            m->keys[i].durable |= m->keys[i].gen != 0 && !m->keys[i].yields;
        rig_open(&m->r);
    }
    m->r.plan.off = !m->r.faults;
    m->dying = m->r.faults > 0;
    /* A flush from now on makes nothing durable that the restart has lost. */
    for (size_t i = 0; i < KEYS; i++) {
        m->keys[i].maybe |= !m->keys[i].durable;
        m->keys[i].doomed = false;
    }
    m->late = 0;
    m->reopened++;
    m->appended += 1u << 20; /* recovery may leave the rest of a segment unused */
    if (!m->r.o.disk_bytes) {
        for (size_t i = 0; i < KEYS; i++)
            m->keys[i].gen = 0;
    }
}

static void op_too_big(struct model *m, uint64_t id)
{
    static uint8_t block[1u << 20];
    uint64_t max = cairn_vault_value_max(m->r.vault), len = max + 1;
    struct cairn_iov iov[128];
    struct cairn_put put = {.key = key_of(id), .flags = CAIRN_PUT_REPLACE};
    uint32_t n = 0;

    for (; len && n < 128; n++) {
        iov[n] = (struct cairn_iov){block, len < sizeof(block) ? len : sizeof(block)};
        len -= iov[n].len;
    }
    put.value = (struct cairn_sgl){.iov = iov, .count = n};
    cairn_vault_put(m->r.vault, &put, 1, deadline(), NULL);
    if (put.status != CAIRN_TOOBIG)
        FAIL(m, "put of a byte more than the largest value: status %d", put.status);
}

/* From here on the power goes at some write, read or sync; the next look finds it gone. */
static void power(struct model *m)
{
    if (m->r.cuts && cairn_sim_dead(m->r.sim))
        op_reopen(m);
    if (m->r.cuts && !m->dying && rng_one_in(&m->r.rng, 40)) {
        m->dying = true;
        cairn_sim_die_after(m->r.sim, 1 + rng_below(&m->r.rng, 60));
    }
}

static void step(struct model *m)
{
    struct rng *r = &m->r.rng;
    uint64_t id = rng_below(r, KEYS), ids[BATCH];
    size_t count = 1 + rng_below(r, BATCH);
    uint64_t dice = rng_below(r, 1000);

    settle_expiry(m);
    power(m);
    if (dice < 200) {
        op_put(m, rng_one_in(r, 3) ? 1 : count, id);
    } else if (dice < 270) {
        for (size_t i = 0; i < count; i++)
            op_commit(m, (id + i) % KEYS);
    } else if (dice < 300) {
        for (size_t i = 0; i < count; i++)
            op_pin_now(m, (id + i) % KEYS);
    } else if (dice < 700) {
        for (size_t i = 0; i < count; i++)
            ids[i] = rng_below(r, KEYS);
        op_get(m, ids, count);
    } else if (dice < 740) {
        op_delete(m, id);
    } else if (dice < 756) {
        op_delete_now(m, id);
    } else if (dice < 759) {
        op_clear(m);
    } else if (dice < 765) {
        op_scan(m);
    } else if (dice < 800) {
        op_lookup(m, id);
    } else if (dice < 840) {
        op_value_len(m, id);
    } else if (dice < 880) {
        op_side(m, id);
    } else if (dice < 920) {
        op_pin(m, id);
    } else if (dice < 950) {
        op_get_wrong(m, id);
    } else if (dice < 970) {
        op_flush(m);
    } else if (dice < 990) {
        cairn_vault_drop_ram(m->r.vault);
        note_all(m, "drop", 0);
    } else if (dice < 993) {
        op_too_big(m, id);
    } else {
        op_reopen(m);
    }
}

/* A run that saw no hits, no misses or no restart has tested nothing. */
static void check_worth(struct model *m)
{
    printf("puts %llu stored %llu hits %llu misses %llu sure %llu ranges %llu pinned %llu "
           "deleted %llu expired %llu reopened %llu cuts %llu appended %llu MiB committed %llu "
           "pinned at once %llu scanned %llu cleared %llu foreign %llu\n",
           (unsigned long long)m->puts, (unsigned long long)m->stored,
           (unsigned long long)m->hits, (unsigned long long)m->misses,
           (unsigned long long)m->sure_hits, (unsigned long long)m->ranges,
           (unsigned long long)m->pinned, (unsigned long long)m->deleted,
           (unsigned long long)m->expired, (unsigned long long)m->reopened,
           (unsigned long long)m->cuts,
           (unsigned long long)(m->appended >> 20), (unsigned long long)m->committed,
           (unsigned long long)m->pinned_now, (unsigned long long)m->scanned,
           (unsigned long long)m->cleared, (unsigned long long)m->foreign);
    if (m->r.ops < 1000 || m->r.faults)
        return;
    if (!m->hits || !m->misses || !m->reopened || !m->pinned || !m->expired || !m->deleted ||
        !m->committed || !m->pinned_now || !m->scanned || !m->foreign)
        FAIL(m, "the run missed a kind of outcome");
    if (m->r.o.disk_bytes && m->r.o.write == CAIRN_WRITE_THROUGH && m->sure_hits < 100)
        FAIL(m, "only %llu gets were certain to hit", (unsigned long long)m->sure_hits);
    if (m->stored * 2 < m->puts)
        FAIL(m, "more than half of the puts were refused");
}

/* With a sound device everything that was acknowledged is there. */
static void last_look(struct model *m)
{
    op_flush(m);
    m->r.faults = 0;
    m->r.plan.off = true;
    rig_close(&m->r);
    rig_open(&m->r);
    m->dying = false;
    settle_expiry(m);
    for (uint64_t id = 0; id < KEYS; id++)
        op_get(m, &id, 1);
}

int main(int argc, char **argv)
{
    static struct model m;

    rig_init(&m.r, argc, argv);
    for (size_t i = 0; i < BATCH; i++) {
        m.in[i] = malloc(VALUE_LARGEST);
        m.out[i] = malloc(VALUE_LARGEST);
        if (!m.in[i] || !m.out[i])
            rig_fail(&m.r, "no memory");
    }
    value_fill(m.side, 0, 1, 0, sizeof(m.side));
    m.r.plan.off = true;
    rig_open(&m.r);
    m.r.plan.off = !m.r.faults;
    m.dying = m.r.faults > 0;
    for (m.op = 0; m.op < m.r.ops; m.op++)
        step(&m);
    for (size_t i = 0; i < PINS; i++)
        drop_pins(&m, &m.held[i]);
    check_worth(&m);
    if (m.r.faults)
        last_look(&m);
    rig_close(&m.r);
    rig_fini(&m.r);
    for (size_t i = 0; i < BATCH; i++) {
        free(m.in[i]);
        free(m.out[i]);
    }
    return 0;
}
