/* Verifies a whole log without writing to it. Shares with recovery only the decoders of format.c:
 * it follows no index and trusts no state, and reads every payload. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/mem.h"
#include "storage/tier.h"

#define READ_BYTES (1u << 20)

struct fsck {
    const char *path;
    int fd;
    uint64_t size;
    struct cairn_log_shape shape;
    uint32_t closed_generation, closed_block; /* as in the superblock */
    struct cairn_fsck_report *r;
    uint8_t *buf;                /* READ_BYTES                  */
    struct cairn_record_disk *h; /* one block                   */
    void (*dump)(void *arg, const char *json);
    void *dump_arg;
    void (*progress)(void *arg, uint64_t done, uint64_t total);
    void *progress_arg;
    char *err;
    size_t err_cap;
};

static cairn_status fail(struct fsck *f, cairn_status st, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static cairn_status fail(struct fsck *f, cairn_status st, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(f->err, f->err_cap, fmt, ap);
    va_end(ap);
    return st;
}

static void dump(struct fsck *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void dump(struct fsck *f, const char *fmt, ...)
{
    char line[1024];
    if (!f->dump)
        return;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    f->dump(f->dump_arg, line);
}

static const char *hex(const uint8_t *bytes, uint32_t len, char out[65])
{
    for (uint32_t i = 0; i < len; i++)
        snprintf(out + 2 * i, 3, "%02x", bytes[i]);
    return out;
}

static bool read_at(struct fsck *f, uint64_t off, void *buf, size_t len)
{
    uint8_t *p = buf;
    while (len > 0) {
        ssize_t n = pread(f->fd, p, len, (off_t)off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        p += n;
        off += (uint64_t)n;
        len -= (size_t)n;
    }
    return true;
}

static const char *verdict_name(enum cairn_verdict v)
{
    static const char *const names[] = {"ok", "blank", "bad", "other_format"};
    return names[v];
}

static cairn_status supers(struct fsck *f)
{
    struct cairn_super_disk *s = (struct cairn_super_disk *)(void *)f->buf;
    enum cairn_verdict v[2];
    memset(s, 0, 2 * sizeof *s);
    for (uint32_t i = 0; i < 2; i++) {
        if (!read_at(f, i * CAIRN_BLOCK, &s[i], sizeof s[i]))
            return fail(f, CAIRN_INVAL, "%s is not a cairn log: it is too short", f->path);
        v[i] = cairn_super_check(&s[i]);
        char uuid[65];
        dump(f,
             "{\"what\":\"superblock\",\"copy\":%u,\"verdict\":\"%s\",\"format\":%u,"
             "\"uuid\":\"%s\",\"sequence\":%" PRIu64 ",\"segment_bytes\":%" PRIu64
             ",\"segments\":%u,\"prewritten\":%u,\"session\":%u,\"generation_next\":%u}",
             i, verdict_name(v[i]), s[i].format, hex(s[i].uuid, 16, uuid), s[i].sequence,
             s[i].segment_bytes, s[i].segments, s[i].prewritten, s[i].session,
             s[i].generation_next);
        f->r->bad_supers += v[i] != CAIRN_VERDICT_OK;
    }
    if (v[0] != CAIRN_VERDICT_OK && v[1] != CAIRN_VERDICT_OK) {
        if (v[0] == CAIRN_VERDICT_FORMAT || v[1] == CAIRN_VERDICT_FORMAT)
            return fail(f, CAIRN_VERSION,
                        "%s is a log of another format version (this build reads %u)", f->path,
                        CAIRN_FORMAT_VERSION);
        bool ours = s[0].magic == CAIRN_MAGIC_SUPER || s[1].magic == CAIRN_MAGIC_SUPER;
        return ours ? fail(f, CAIRN_CORRUPT, "%s: both superblocks are damaged", f->path)
                    : fail(f, CAIRN_INVAL, "%s is not a cairn log", f->path);
    }
    bool second = v[0] != CAIRN_VERDICT_OK ||
                  (v[1] == CAIRN_VERDICT_OK && s[1].sequence > s[0].sequence);
    memcpy(f->shape.uuid, s[second].uuid, sizeof f->shape.uuid);
    f->shape.segment_bytes = s[second].segment_bytes;
    f->shape.segments = s[second].segments;
    f->closed_generation = s[second].closed_generation;
    f->closed_block = s[second].closed_block;
    uint64_t want = CAIRN_DATA_OFFSET + f->shape.segments * f->shape.segment_bytes;
    if (f->size < want)
        return fail(f, CAIRN_CORRUPT, "%s was truncated: %" PRIu64 " bytes of %" PRIu64, f->path,
                    f->size, want);
    return CAIRN_OK;
}

static void idents(struct fsck *f)
{
    struct cairn_ident_disk *d = (struct cairn_ident_disk *)(void *)f->h;
    for (uint32_t i = 0; i < CAIRN_IDENT_SLOTS; i++) {
        if (!read_at(f, CAIRN_IDENT_OFFSET + (uint64_t)i * CAIRN_BLOCK, d, sizeof *d))
            continue;
        enum cairn_verdict v = cairn_ident_check(d, &f->shape);
        if (v == CAIRN_VERDICT_BLANK)
            continue;
        f->r->bad_headers += v != CAIRN_VERDICT_OK;
        dump(f, "{\"what\":\"identity\",\"slot\":%u,\"verdict\":\"%s\",\"bytes\":%u}", i,
             verdict_name(v), v == CAIRN_VERDICT_OK ? d->len : 0);
    }
}

/* Verifies value and side records behind the header in f->h. */
static bool payload_ok(struct fsck *f)
{
    const struct cairn_record_disk *h = f->h;
    uint64_t off = ((uint64_t)h->loc.block + 1) * CAIRN_BLOCK;
    uint32_t pieces = cairn_piece_count(h->body.value_len);
    bool ok = true;
    for (uint32_t i = 0; i < pieces; i++) {
        uint64_t at = (uint64_t)i * CAIRN_PIECE_BYTES;
        uint64_t left = h->body.value_len - at;
        size_t len = left < CAIRN_PIECE_BYTES ? (size_t)left : CAIRN_PIECE_BYTES;
        ok = read_at(f, off + at, f->buf, len) && cairn_piece_check(h, i, f->buf) && ok;
    }
    if (h->body.side_len) {
        off += (uint64_t)cairn_blocks(h->body.value_len) * CAIRN_BLOCK;
        ok = read_at(f, off, f->buf, h->body.side_len) && cairn_side_check(h, f->buf) && ok;
    }
    return ok;
}

static void record(struct fsck *f, bool *ret_payload_ok)
{
    static const char *const kinds[] = {"", "value", "tombstone", "hole", "clear"};
    const struct cairn_record_disk *h = f->h;
    char key[65];
    bool ok = true;
    if (h->loc.kind == CAIRN_RECORD_VALUE) {
        ok = payload_ok(f);
        f->r->records++;
        f->r->payload_bytes += h->body.value_len;
    } else if (h->loc.kind == CAIRN_RECORD_TOMBSTONE) {
        f->r->tombstones++;
    } else if (h->loc.kind == CAIRN_RECORD_CLEAR) {
        f->r->clears++;
    } else {
        f->r->holes++;
    }
    /* The first 8 bytes of a key tell it apart and give nothing away. */
    dump(f,
         "{\"what\":\"record\",\"kind\":\"%s\",\"segment\":%u,\"block\":%u,\"blocks\":%u,"
         "\"space\":%u,\"key\":\"%s\",\"version\":%" PRIu64 ",\"value_len\":%" PRIu64
         ",\"expires_ns\":%" PRIu64 ",\"session\":%u,\"synced_block\":%u,\"payload\":\"%s\"}",
         kinds[h->loc.kind], h->loc.segment, h->loc.block, h->loc.blocks, h->body.space,
         hex(h->body.key, 8, key), h->body.version, h->body.value_len, h->body.expires_ns,
         h->loc.session, h->loc.synced_block, ok ? "ok" : "bad");
    *ret_payload_ok = ok;
}

/* The footer of a sealed segment, or NULL. Freed by the caller. */
static struct cairn_summary_disk *footer(struct fsck *f, uint32_t seg, uint32_t generation,
                                         uint32_t *ret_count, uint32_t *ret_first)
{
    struct cairn_trailer_disk *tr = (struct cairn_trailer_disk *)(void *)f->h;
    uint32_t last = cairn_segment_first(&f->shape, seg) + cairn_segment_blocks(&f->shape) - 1;
    if (!read_at(f, (uint64_t)last * CAIRN_BLOCK, tr, sizeof *tr))
        return NULL;
    /* What is there before the segment is sealed: payload, or the footer of an earlier life. */
    if (tr->magic != CAIRN_MAGIC_TRAILER || tr->segment != seg || tr->generation != generation)
        return NULL;
    enum cairn_verdict v = cairn_trailer_check(tr, &f->shape, seg, generation);
    size_t len = v == CAIRN_VERDICT_OK ? (size_t)tr->count * sizeof(struct cairn_summary_disk) : 0;
    struct cairn_summary_disk *s = len ? cairn_malloc(len) : NULL;
    bool ok = v == CAIRN_VERDICT_OK;
    if (ok && len)
        ok = s && read_at(f, (uint64_t)tr->first_block * CAIRN_BLOCK, s, len) &&
             cairn_summaries_check(tr, s, &f->shape);
    dump(f,
         "{\"what\":\"footer\",\"segment\":%u,\"generation\":%u,\"count\":%u,\"first_block\":%u,"
         "\"verdict\":\"%s\"}",
         seg, generation, tr->count, tr->first_block, ok ? "ok" : "bad");
    f->r->bad_footers += !ok;
    if (!ok) {
        free(s);
        return NULL;
    }
    *ret_count = tr->count;
    *ret_first = tr->first_block;
    return s;
}

/* Between two records of a footer lies nothing but the second copy of a mark, or what recovery
 * stepped over. That is damage below `synced` only: above it a write may never have landed. */
static void gap(struct fsck *f, const struct cairn_summary_disk *s, uint32_t next,
                uint32_t generation, uint32_t synced)
{
    uint32_t block = s->block + s->blocks;
    if (next == block)
        return;
    bool copy = read_at(f, (uint64_t)block * CAIRN_BLOCK, f->h, CAIRN_BLOCK) &&
                cairn_record_check(f->h, &f->shape, block, generation) &&
                cairn_record_repeats(f->h, s);
    if ((copy && next == block + 1) || block + copy >= synced)
        return;
    f->r->bad_headers++;
    dump(f, "{\"what\":\"record\",\"block\":%u,\"verdict\":\"bad\"}", block + copy);
}

/* Records that the footer vouches for: each must be there and whole. */
static void sealed(struct fsck *f, const struct cairn_summary_disk *s, uint32_t count,
                   uint32_t generation)
{
    uint32_t synced = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (s[i].kind == CAIRN_RECORD_HOLE) {
            f->r->holes++;
            continue;
        }
        struct cairn_summary_disk have;
        bool ok = read_at(f, (uint64_t)s[i].block * CAIRN_BLOCK, f->h, CAIRN_BLOCK) &&
                  cairn_record_check(f->h, &f->shape, s[i].block, generation);
        if (ok) {
            synced = f->h->loc.synced_block > synced ? f->h->loc.synced_block : synced;
            cairn_summary_of(f->h, &have);
            have.pad0 = s[i].pad0;
            static const uint8_t none[sizeof have.identity];
            if (memcmp(s[i].identity, none, sizeof none) == 0)
                memcpy(have.identity, none, sizeof none);
            ok = memcmp(&have, &s[i], sizeof have) == 0;
        }
        bool payload = true;
        if (ok)
            record(f, &payload);
        f->r->bad_headers += !ok;
        f->r->bad_payloads += !payload;
        if (!ok)
            dump(f, "{\"what\":\"record\",\"block\":%u,\"verdict\":\"bad\"}", s[i].block);
    }
    for (uint32_t i = 0; i + 1 < count; i++)
        if (s[i].kind != CAIRN_RECORD_HOLE)
            gap(f, &s[i], s[i + 1].block, generation, synced);
}

/* Does a record from `block` on say that what lies at `block` was durable before it was written? */
static bool vouched_for(struct fsck *f, uint32_t block, uint32_t end, uint32_t generation)
{
    const uint32_t batch = READ_BYTES / CAIRN_BLOCK;
    for (uint32_t at = block; at < end; at += batch) {
        uint32_t n = end - at < batch ? end - at : batch;
        if (!read_at(f, (uint64_t)at * CAIRN_BLOCK, f->buf, (size_t)n * CAIRN_BLOCK))
            return true;
        for (uint32_t i = 0; i < n; i++) {
            const struct cairn_record_disk *h =
                (const struct cairn_record_disk *)(const void *)(f->buf + (size_t)i * CAIRN_BLOCK);
            if (cairn_record_check(h, &f->shape, at + i, generation) &&
                h->loc.synced_block > block)
                return true;
        }
    }
    return false;
}

/* Records of an open segment, as recovery would find them: one behind the last place known to be
 * durable may be incomplete, which is not damage. */
static void open_segment(struct fsck *f, uint32_t seg, uint32_t generation)
{
    uint32_t block = cairn_segment_first(&f->shape, seg) + 1;
    uint32_t end = block + cairn_segment_blocks(&f->shape) - 2;
    uint32_t session = 0, synced = generation == f->closed_generation ? f->closed_block : 0;
    uint64_t torn = 0;
    struct cairn_summary_disk before = {0};
    while (block < end && read_at(f, (uint64_t)block * CAIRN_BLOCK, f->h, CAIRN_BLOCK) &&
           cairn_record_check(f->h, &f->shape, block, generation) &&
           f->h->loc.session >= session) {
        session = f->h->loc.session;
        if (f->h->loc.synced_block > synced) {
            /* What was found torn so far lies below it: damage after all. */
            synced = f->h->loc.synced_block;
            f->r->bad_payloads += synced >= block ? torn : 0;
            torn = synced >= block ? 0 : torn;
        }
        bool ok = true;
        uint32_t blocks = f->h->loc.blocks;
        if (!cairn_record_repeats(f->h, &before))
            record(f, &ok);
        cairn_summary_of(f->h, &before);
        f->r->bad_payloads += !ok && block < synced;
        torn += !ok && block >= synced;
        block += blocks;
    }
    /* What follows a damaged header is not found by walking. */
    if (block < synced || vouched_for(f, block, end, generation)) {
        f->r->bad_headers++;
        dump(f, "{\"what\":\"record\",\"segment\":%u,\"block\":%u,\"verdict\":\"bad\"}", seg,
             block);
    }
}

static void segment(struct fsck *f, uint32_t seg, uint32_t floor)
{
    struct cairn_head_disk *d = (struct cairn_head_disk *)(void *)f->h;
    uint64_t off = (uint64_t)cairn_segment_first(&f->shape, seg) * CAIRN_BLOCK;
    enum cairn_verdict v = CAIRN_VERDICT_BAD;
    if (read_at(f, off, d, sizeof *d))
        v = cairn_head_check(d, &f->shape, seg);
    if (v == CAIRN_VERDICT_BLANK)
        return;
    f->r->bad_headers += v != CAIRN_VERDICT_OK;
    uint32_t generation = d->generation;
    bool dead = v == CAIRN_VERDICT_OK && generation < floor;
    dump(f,
         "{\"what\":\"head\",\"segment\":%u,\"verdict\":\"%s\",\"generation\":%u,\"floor\":%u,"
         "\"session\":%u,\"opened_ns\":%" PRIu64 ",\"dead\":%s}",
         seg, verdict_name(v), generation, d->floor, d->session, d->opened_ns,
         dead ? "true" : "false");
    if (v != CAIRN_VERDICT_OK || dead)
        return;
    uint32_t count = 0, first = 0;
    struct cairn_summary_disk *s = footer(f, seg, generation, &count, &first);
    if (s) {
        f->r->sealed++;
        sealed(f, s, count, generation);
        free(s);
    } else {
        f->r->open++;
        open_segment(f, seg, generation);
    }
}

static uint32_t floor_of(struct fsck *f)
{
    uint32_t floor = 0;
    struct cairn_head_disk *d = (struct cairn_head_disk *)(void *)f->h;
    for (uint32_t i = 0; i < f->shape.segments; i++) {
        uint64_t off = (uint64_t)cairn_segment_first(&f->shape, i) * CAIRN_BLOCK;
        if (read_at(f, off, d, sizeof *d) &&
            cairn_head_check(d, &f->shape, i) == CAIRN_VERDICT_OK && d->floor > floor)
            floor = d->floor;
    }
    return floor;
}

static cairn_status check(struct fsck *f)
{
    struct stat st;
    f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (f->fd < 0)
        return fail(f, cairn_status_from_errno(errno), "cannot open %s: %s", f->path,
                    strerror(errno));
    if (fstat(f->fd, &st) != 0 || !S_ISREG(st.st_mode))
        return fail(f, CAIRN_INVAL, "%s is not a regular file", f->path);
    f->size = (uint64_t)st.st_size;
    bool in_use = flock(f->fd, LOCK_SH | LOCK_NB) != 0;
    cairn_status s = supers(f);
    if (s)
        return s;
    dump(f, "{\"what\":\"log\",\"bytes\":%" PRIu64 ",\"in_use\":%s}", f->size,
         in_use ? "true" : "false");
    idents(f);
    uint32_t floor = floor_of(f);
    f->r->segments = f->shape.segments;
    for (uint32_t i = 0; i < f->shape.segments; i++) {
        segment(f, i, floor);
        if (f->progress)
            f->progress(f->progress_arg, (i + 1) * f->shape.segment_bytes,
                        f->shape.segments * f->shape.segment_bytes);
    }
    const struct cairn_fsck_report *r = f->r;
    if (r->bad_headers + r->bad_payloads + r->bad_footers + r->bad_supers == 0)
        return CAIRN_OK;
    return fail(f, CAIRN_CORRUPT,
                "%s: %" PRIu64 " bad superblocks, %" PRIu64 " bad headers, %" PRIu64
                " bad footers, %" PRIu64 " bad payloads%s",
                f->path, r->bad_supers, r->bad_headers, r->bad_footers, r->bad_payloads,
                in_use ? "; it is in use, so some may just be being written" : "");
}

cairn_status cairn_fsck(const char *path, struct cairn_fsck_report *ret,
                        void (*dump_fn)(void *arg, const char *json), void *dump_arg,
                        void (*progress)(void *arg, uint64_t done, uint64_t total),
                        void *progress_arg, char *err, size_t err_cap)
{
    memset(ret, 0, sizeof *ret);
    struct fsck f = {
        .path = path,
        .fd = -1,
        .r = ret,
        .buf = cairn_malloc(READ_BYTES),
        .h = cairn_malloc(CAIRN_BLOCK),
        .dump = dump_fn,
        .dump_arg = dump_arg,
        .progress = progress,
        .progress_arg = progress_arg,
        .err = err,
        .err_cap = err_cap,
    };
    cairn_status st = f.buf && f.h ? check(&f) : fail(&f, CAIRN_NOMEM, "%s: no memory", path);
    if (f.fd >= 0)
        close(f.fd);
    free(f.buf);
    free(f.h);
    return st;
}
