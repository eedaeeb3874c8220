#include "tests/helpers/transcript.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/hash.h"

#define RUNS_MAX 9u

struct stream {
    const char *data;
    size_t len, at, piece;
    struct rng *random;
};

static void require(bool ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "transcript: %s\n", what);
    abort();
}

void transcript_add(struct transcript *t, const char *fmt, ...)
{
    char text[256];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    size_t len = (size_t)n < sizeof(text) ? (size_t)n : sizeof(text) - 1;
    if (t->len + len + 1 > t->cap) {
        t->cap = (t->len + len + 1) * 2;
        t->text = realloc(t->text, t->cap);
        require(t->text != NULL, "no memory");
    }
    memcpy(t->text + t->len, text, len + 1);
    t->len += len;
}

void transcript_bytes(struct transcript *t, const void *data, size_t len)
{
    const unsigned char *bytes = data;
    if (len > 24) {
        transcript_add(t, "[%zu:%016llx]", len, (unsigned long long)cairn_hash64(data, len));
        return;
    }
    transcript_add(t, "[");
    for (size_t i = 0; i < len; i++)
        transcript_add(t, isgraph(bytes[i]) && bytes[i] != '\\' ? "%c" : "\\%02x", bytes[i]);
    transcript_add(t, "]");
}

void transcript_free(struct transcript *t)
{
    free(t->text);
    *t = (struct transcript){0};
}

/* How much of the stream comes now into a place of this size. */
static size_t stream_next(struct stream *s, size_t room)
{
    size_t n = s->len - s->at;
    if (s->piece > 0) {
        size_t piece = 1 + rng_below(s->random, s->piece);
        n = n < piece ? n : piece;
    }
    return n < room ? n : room;
}

static void stream_take(struct stream *s, void *to, size_t n)
{
    memcpy(to, s->data + s->at, n);
    s->at += n;
}

static void resp_bounded(const struct cairn_resp *p)
{
    const struct cairn_resp_limits *l = p->limits;
    uint64_t most = 2 * (l->request_max + l->inline_max + 2ull * 65536) +
                    4ull * l->args_max * sizeof(*p->args) + 1024;
    require(cairn_resp_memory(p) <= most, "a request parser takes more memory than its limits say");
    require(p->argc <= l->args_max, "more arguments than allowed");
}

static void request_add(struct transcript *t, struct cairn_resp *p, void **memory)
{
    transcript_add(t, "R%u", p->argc);
    for (uint32_t i = 0; i < p->argc; i++) {
        if (p->args[i].data)
            transcript_bytes(t, p->args[i].data, p->args[i].len);
        else
            transcript_add(t, "[refused %zu]", p->args[i].len);
        free(memory[i]);
        memory[i] = NULL;
    }
    transcript_add(t, "\n");
    cairn_resp_done(p);
}

static void bulk_add(struct transcript *t, struct cairn_resp *p, void **memory)
{
    require(p->bulk_len > p->limits->small_max && p->bulk_len <= p->limits->bulk_max,
            "a long argument that is not long, or longer than allowed");
    transcript_add(t, "B%llu ", (unsigned long long)p->bulk_len);
    if (p->bulk_len % 3 != 0) {
        memory[p->argc] = malloc(p->bulk_len);
        require(memory[p->argc] != NULL, "no memory");
    }
    cairn_resp_give(p, memory[p->argc]);
}

/* True while the parser wants more. */
static bool requests_drain(struct transcript *t, struct cairn_resp *p, void **memory)
{
    for (;;) {
        enum cairn_resp_event e = cairn_resp_next(p);
        resp_bounded(p);
        switch (e) {
        case CAIRN_RESP_MORE: return true;
        case CAIRN_RESP_REQUEST: request_add(t, p, memory); break;
        case CAIRN_RESP_BULK: bulk_add(t, p, memory); break;
        case CAIRN_RESP_ERROR: transcript_add(t, "E "); return false;
        }
    }
}

void transcript_requests(struct transcript *t, const struct cairn_resp_limits *limits,
                         const void *data, size_t len, size_t piece, struct rng *random)
{
    struct stream s = {data, len, 0, piece, random};
    struct cairn_resp p;
    void **memory = calloc(limits->args_max, sizeof(*memory));
    require(memory && cairn_resp_open(&p, limits) == CAIRN_OK, "no memory");
    bool more = requests_drain(t, &p, memory);
    while (more && s.at < s.len) {
        size_t room;
        void *to = cairn_resp_space(&p, &room);
        require(to && room > 0, "no space after MORE");
        if (rng_one_in(random, 8))
            cairn_resp_filled(&p, 0), to = cairn_resp_space(&p, &room);
        size_t n = stream_next(&s, room);
        stream_take(&s, to, n);
        cairn_resp_filled(&p, n);
        more = requests_drain(t, &p, memory);
    }
    if (more)
        transcript_add(t, "M%zu", cairn_resp_buffered(&p));
    else
        transcript_bytes(t, p.error, strlen(p.error)), transcript_add(t, " %s", p.error);
    for (uint32_t i = 0; i < limits->args_max; i++)
        free(memory[i]);
    free(memory);
    cairn_resp_close(&p);
}

/* Bytes of a string that is taken in steps. */
struct taken {
    char *bytes;
    size_t len, at;
    struct iovec run[RUNS_MAX];
};

static void taken_step(struct cairn_reply *p, struct taken *s, struct rng *random)
{
    uint32_t runs = 0;
    size_t left = s->len - s->at;
    while (runs < RUNS_MAX && left > 0) {
        size_t n = rng_one_in(random, 8) ? left : rng_below(random, left + 1);
        s->run[runs++] = (struct iovec){s->bytes + s->at, n};
        s->at += n;
        left -= n;
        if (rng_one_in(random, 4))
            break;
    }
    if (s->at == 0 && runs > 0) {
        s->run[0].iov_len = s->at = s->len < 2 ? s->len : 2;
        runs = 1;
    }
    cairn_reply_into(p, s->run, runs);
}

static void item_add(struct transcript *t, struct cairn_reply *p, struct taken *s,
                     struct rng *random)
{
    static const char *const names[] = {"simple", "failure", "int",   "bool", "string",
                                        "double", "big",     "null",  "array", "set",
                                        "push",   "map",     "attribute"};
    const struct cairn_reply_item *item = &p->item;
    require(item->depth <= CAIRN_REPLY_DEPTH_MAX, "deeper than allowed");
    transcript_add(t, "%u %s %lld%s", item->depth, names[item->kind], (long long)item->number,
                   item->last ? " last" : "");
    if (item->text)
        transcript_bytes(t, item->text, item->len);
    else if (item->len > 0) {
        require(item->kind == CAIRN_REPLY_STRING && item->len <= p->limits.bulk_max, "bad head");
        *s = (struct taken){.len = item->len};
        if (item->len % 3 != 0) {
            s->bytes = malloc(item->len);
            require(s->bytes != NULL, "no memory");
            taken_step(p, s, random);
        }
    }
    transcript_add(t, "\n");
}

static void filled_add(struct transcript *t, struct cairn_reply *p, struct taken *s,
                       struct rng *random)
{
    if (s->bytes && s->at < s->len) {
        taken_step(p, s, random);
        return;
    }
    if (s->bytes)
        transcript_bytes(t, s->bytes, s->len);
    transcript_add(t, s->bytes ? " taken\n" : " dropped\n");
    free(s->bytes);
    *s = (struct taken){0};
}

static bool replies_drain(struct transcript *t, struct cairn_reply *p, struct taken *s,
                          struct rng *random)
{
    for (;;) {
        enum cairn_reply_event e = cairn_reply_next(p);
        require(p->cap <= 2 * (p->limits.small_max + 2ull * 65536), "too much memory for replies");
        switch (e) {
        case CAIRN_REPLY_MORE: return true;
        case CAIRN_REPLY_ITEM: item_add(t, p, s, random); break;
        case CAIRN_REPLY_FILLED: filled_add(t, p, s, random); break;
        case CAIRN_REPLY_ERROR: return false;
        }
    }
}

static void reply_receive(struct stream *s, struct cairn_reply *p)
{
    struct iovec iov[4];
    uint32_t count = cairn_reply_space(p, iov, 2 + (uint32_t)rng_below(s->random, 3));
    size_t room = 0;
    for (uint32_t i = 0; i < count; i++)
        room += iov[i].iov_len;
    require(count > 0 && room > 0, "no space after MORE");
    size_t n = stream_next(s, room), left = n;
    for (uint32_t i = 0; i < count && left > 0; i++) {
        size_t here = left < iov[i].iov_len ? left : iov[i].iov_len;
        stream_take(s, iov[i].iov_base, here);
        left -= here;
    }
    cairn_reply_filled(p, n);
}

void transcript_replies(struct transcript *t, const struct cairn_reply_limits *limits,
                        bool straight, const void *data, size_t len, size_t piece,
                        struct rng *random)
{
    struct stream s = {data, len, 0, piece, random};
    struct cairn_reply p;
    struct taken taken = {0};
    cairn_reply_open(&p, limits);
    p.straight = straight;
    bool more = replies_drain(t, &p, &taken, random);
    while (more && s.at < s.len) {
        reply_receive(&s, &p);
        more = replies_drain(t, &p, &taken, random);
    }
    transcript_add(t, "%s", more ? cairn_reply_idle(&p) ? "idle" : "more" : p.error);
    free(taken.bytes);
    cairn_reply_close(&p);
}
