#include "transport/reply.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "transport/decimal.h"

#define BUFFER_BYTES (16u * 1024u)
/* Larger buffers go back once they are empty. */
#define BUFFER_KEPT_BYTES (256u * 1024u)
#define LINE_MAX_BYTES (64u * 1024u)
/* What is received behind the runs of a long string is copied once more if another one follows. */
#define BEHIND_RUNS_BYTES 4096u

enum stage {
    STAGE_ELEMENT,  /* the type byte and its line                          */
    STAGE_SMALL,    /* bytes of a string that is lent whole                */
    STAGE_STREAM,   /* the head was an item: bytes go into runs or nowhere */
    STAGE_BROKEN,
};

#define GO_ON ((enum cairn_reply_event)-1)

static enum cairn_reply_event broken(struct cairn_reply *p, const char *why)
{
    p->stage = STAGE_BROKEN;
    p->pos = p->end = 0;
    snprintf(p->error, sizeof(p->error), "%s", why);
    return CAIRN_REPLY_ERROR;
}

void cairn_reply_open(struct cairn_reply *p, const struct cairn_reply_limits *limits)
{
    *p = (struct cairn_reply){.limits = *limits};
}

void cairn_reply_close(struct cairn_reply *p)
{
    free(p->buf);
    p->buf = NULL;
    p->cap = p->pos = p->end = 0;
}

static bool buffer_reserve(struct cairn_reply *p, size_t need)
{
    if (p->pos == p->end && p->cap > BUFFER_KEPT_BYTES && need <= BUFFER_BYTES)
        cairn_reply_close(p);
    if (p->cap - p->end >= need)
        return true;
    if (p->pos > 0) {
        memmove(p->buf, p->buf + p->pos, p->end - p->pos);
        p->end -= p->pos;
        p->pos = 0;
    }
    if (p->cap - p->end >= need)
        return true;
    size_t cap = p->cap > 0 ? p->cap * 2 : BUFFER_BYTES;
    while (cap - p->end < need)
        cap *= 2;
    char *larger = cairn_malloc(cap);
    if (!larger)
        return false;
    if (p->end > 0)
        memcpy(larger, p->buf, p->end);
    free(p->buf);
    p->buf = larger;
    p->cap = cap;
    return true;
}

/* Bytes of the whole string and its line end. */
static size_t small_bytes(const struct cairn_reply *p)
{
    return (size_t)p->string_left + 2;
}

uint32_t cairn_reply_space(struct cairn_reply *p, struct iovec *iov, uint32_t cap)
{
    size_t need = BEHIND_RUNS_BYTES, have = p->end - p->pos;
    uint32_t count = 0;
    if (have == 0)
        p->pos = p->end = 0;
    if (p->stage == STAGE_SMALL && small_bytes(p) > have + need)
        need = small_bytes(p) - have;
    /* Memory follows the bytes that come, not the length that was said. */
    if (need > p->cap + BUFFER_BYTES)
        need = p->cap + BUFFER_BYTES;
    if (!buffer_reserve(p, need)) {
        broken(p, "out of memory for a reply");
        return 0;
    }
    for (uint32_t i = 0; i < p->runs && count < cap - 1; i++) {
        size_t skip = i == 0 ? p->run_at : 0;
        iov[count++] = (struct iovec){(char *)p->run[i].iov_base + skip, p->run[i].iov_len - skip};
    }
    size_t room = p->cap - p->end;
    if (p->runs > count)
        return count;
    if (p->runs > 0)
        room = BEHIND_RUNS_BYTES;
    iov[count++] = (struct iovec){p->buf + p->end, room};
    return count;
}

/* Passes `len` bytes of the runs; whoever passes them has filled them. */
static void runs_pass(struct cairn_reply *p, size_t len)
{
    p->string_left -= len;
    while (p->runs > 0 && len >= p->run->iov_len - p->run_at) {
        len -= p->run->iov_len - p->run_at;
        p->run_at = 0;
        p->run++;
        p->runs--;
    }
    p->run_at += len;
}

static size_t runs_left(const struct cairn_reply *p)
{
    size_t len = 0;
    for (uint32_t i = 0; i < p->runs; i++)
        len += p->run[i].iov_len;
    return len - p->run_at;
}

void cairn_reply_filled(struct cairn_reply *p, size_t len)
{
    size_t runs = p->runs > 0 ? runs_left(p) : 0;
    size_t straight = len < runs ? len : runs;
    if (p->stage == STAGE_BROKEN)
        return;
    if (straight > 0)
        runs_pass(p, straight);
    p->end += len - straight;
}

/* Moves bytes that are buffered already to the runs. */
static void runs_fill(struct cairn_reply *p)
{
    while (p->runs > 0 && p->pos < p->end) {
        size_t have = p->end - p->pos, room = p->run->iov_len - p->run_at;
        size_t n = have < room ? have : room;
        memcpy((char *)p->run->iov_base + p->run_at, p->buf + p->pos, n);
        p->pos += n;
        runs_pass(p, n);
    }
}

void cairn_reply_into(struct cairn_reply *p, const struct iovec *run, uint32_t runs)
{
    if (p->stage != STAGE_STREAM)
        return;
    p->run = run;
    p->runs = runs;
    p->run_at = 0;
    runs_pass(p, 0);
    p->into = runs > 0;
    runs_fill(p);
}

/* An element has ended, and with it the aggregates whose last one it was. True: also the reply. */
static bool element_ends(struct cairn_reply *p)
{
    while (p->depth > 0) {
        if (--p->open[p->depth - 1].left > 0)
            return false;
        p->depth--;
        if (p->open[p->depth].attribute)
            return false;
    }
    return true;
}

static enum cairn_reply_event scalar(struct cairn_reply *p, enum cairn_reply_kind kind,
                                     int64_t number, const char *text, size_t len)
{
    p->item = (struct cairn_reply_item){
        .kind = kind, .depth = p->depth, .number = number, .text = text, .len = len};
    p->item.last = element_ends(p);
    return CAIRN_REPLY_ITEM;
}

static enum cairn_reply_event aggregate(struct cairn_reply *p, enum cairn_reply_kind kind,
                                        int64_t count)
{
    bool pairs = kind == CAIRN_REPLY_MAP || kind == CAIRN_REPLY_ATTRIBUTE;
    bool attribute = kind == CAIRN_REPLY_ATTRIBUTE;
    if (count < 0 || (uint64_t)count > p->limits.count_max)
        return broken(p, "a reply has more elements than can be, or less than none");
    p->item = (struct cairn_reply_item){.kind = kind, .depth = p->depth, .number = count};
    if (count == 0) {
        p->item.last = !attribute && element_ends(p);
        return CAIRN_REPLY_ITEM;
    }
    if (p->depth == CAIRN_REPLY_DEPTH_MAX)
        return broken(p, "a reply is nested deeper than any of a node");
    p->open[p->depth].left = (uint64_t)count * (pairs ? 2 : 1);
    p->open[p->depth].attribute = attribute;
    p->depth++;
    return CAIRN_REPLY_ITEM;
}

/* A string of this length follows. */
static enum cairn_reply_event string_head(struct cairn_reply *p, int64_t len)
{
    bool stream = p->type == '$' && len > 0 && (p->straight || len > p->limits.small_max);
    if (len < 0 || (uint64_t)len > p->limits.bulk_max ||
        (!stream && (uint64_t)len > p->limits.small_max))
        return broken(p, "a string of a reply is longer than can be, or shorter than nothing");
    p->string_left = (uint64_t)len;
    p->stage = stream ? STAGE_STREAM : STAGE_SMALL;
    p->into = false;
    return stream ? scalar(p, CAIRN_REPLY_STRING, 0, NULL, (size_t)len) : GO_ON;
}

/* A line whose number says how much follows. */
static enum cairn_reply_event counted(struct cairn_reply *p, int64_t number)
{
    switch (p->type) {
    case ':': return scalar(p, CAIRN_REPLY_INT, number, NULL, 0);
    case '*': return aggregate(p, CAIRN_REPLY_ARRAY, number);
    case '~': return aggregate(p, CAIRN_REPLY_SET, number);
    case '>': return aggregate(p, CAIRN_REPLY_PUSH, number);
    case '%': return aggregate(p, CAIRN_REPLY_MAP, number);
    case '|': return aggregate(p, CAIRN_REPLY_ATTRIBUTE, number);
    default: return string_head(p, number);
    }
}

static enum cairn_reply_event line_came(struct cairn_reply *p, const char *text, size_t len)
{
    int64_t number;
    switch (p->type) {
    case '+': return scalar(p, CAIRN_REPLY_SIMPLE, 0, text, len);
    case '-': return scalar(p, CAIRN_REPLY_FAILURE, 0, text, len);
    case ',': return scalar(p, CAIRN_REPLY_DOUBLE, 0, text, len);
    case '(': return scalar(p, CAIRN_REPLY_BIG, 0, text, len);
    case '_':
        if (len == 0)
            return scalar(p, CAIRN_REPLY_NULL, 0, NULL, 0);
        break;
    case '#':
        if (len == 1 && (*text == 't' || *text == 'f'))
            return scalar(p, CAIRN_REPLY_BOOL, *text == 't', NULL, 0);
        break;
    default:
        if (!memchr(":*~>%|$=!", p->type, 9) || !cairn_decimal_read(text, len, &number))
            break;
        if (number == -1 && (p->type == '$' || p->type == '*'))
            return scalar(p, CAIRN_REPLY_NULL, 0, NULL, 0);
        return counted(p, number);
    }
    return broken(p, "what came is no reply of this protocol");
}

static enum cairn_reply_event step_element(struct cairn_reply *p)
{
    size_t have = p->end - p->pos;
    if (have == 0)
        return CAIRN_REPLY_MORE;
    const char *line = p->buf + p->pos;
    const char *at = memchr(line + p->scanned, '\n', have - p->scanned);
    size_t len = at ? (size_t)(at - line) : have;
    if (len > LINE_MAX_BYTES)
        return broken(p, "a line of a reply is longer than any of a node");
    p->scanned = at ? 0 : len;
    if (!at)
        return CAIRN_REPLY_MORE;
    if (len < 2 || line[len - 1] != '\r')
        return broken(p, "what came is no reply of this protocol");
    p->pos += len + 1;
    p->type = line[0];
    return line_came(p, line + 1, len - 2);
}

static bool line_end(const char *at)
{
    return at[0] == '\r' && at[1] == '\n';
}

static enum cairn_reply_event step_small(struct cairn_reply *p)
{
    static const size_t format = 4; /* "txt:" of a verbatim string */
    size_t len = (size_t)p->string_left;
    if (p->end - p->pos < small_bytes(p))
        return CAIRN_REPLY_MORE;
    const char *text = p->buf + p->pos;
    if (!line_end(text + len))
        return broken(p, "a string of a reply has another length than was said");
    if (p->type == '=' && (len < format || text[format - 1] != ':'))
        return broken(p, "a verbatim string of a reply names no format");
    p->pos += len + 2;
    p->stage = STAGE_ELEMENT;
    if (p->type == '=') {
        text += format;
        len -= format;
    }
    return scalar(p, p->type == '!' ? CAIRN_REPLY_FAILURE : CAIRN_REPLY_STRING, 0, text, len);
}

static enum cairn_reply_event step_stream(struct cairn_reply *p)
{
    if (p->runs > 0)
        return CAIRN_REPLY_MORE;
    if (!p->into) {
        size_t have = p->end - p->pos;
        size_t n = have < p->string_left ? have : (size_t)p->string_left;
        p->pos += n;
        p->string_left -= n;
        if (p->string_left > 0)
            return CAIRN_REPLY_MORE;
    }
    if (p->string_left > 0) {
        p->into = false;
        return CAIRN_REPLY_FILLED;
    }
    if (p->end - p->pos < 2)
        return CAIRN_REPLY_MORE;
    if (!line_end(p->buf + p->pos))
        return broken(p, "a string of a reply has another length than was said");
    p->pos += 2;
    p->stage = STAGE_ELEMENT;
    return CAIRN_REPLY_FILLED;
}

enum cairn_reply_event cairn_reply_next(struct cairn_reply *p)
{
    enum cairn_reply_event e;
    do {
        switch (p->stage) {
        case STAGE_ELEMENT: e = step_element(p); break;
        case STAGE_SMALL: e = step_small(p); break;
        case STAGE_STREAM: e = step_stream(p); break;
        default: e = CAIRN_REPLY_ERROR; break;
        }
    } while (e == GO_ON);
    return e;
}

bool cairn_reply_idle(const struct cairn_reply *p)
{
    return p->stage == STAGE_ELEMENT && p->depth == 0 && p->pos == p->end;
}
