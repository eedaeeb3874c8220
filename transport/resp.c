#include "transport/resp.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/mem.h"
#include "transport/block.h"
#include "transport/decimal.h"

#define ARGS_FEW 16u
/* After a request with a long argument another one is likely: what is received along with its head
 * is copied once more, so little is. */
#define AFTER_LONG_BYTES 4096u

enum stage {
    STAGE_START,    /* nothing of a request has been seen           */
    STAGE_INLINE,
    STAGE_COUNT,    /* "*N"                                         */
    STAGE_LENGTH,   /* "$N"                                         */
    STAGE_SMALL,    /* the bytes of an argument that stays in buf   */
    STAGE_WANTED,   /* a long argument: the user has not answered   */
    STAGE_LONG,     /* its bytes, into the user's memory            */
    STAGE_SKIP,     /* its bytes, nowhere                           */
    STAGE_LONG_END,
    STAGE_WHOLE,    /* lent to the user                             */
    STAGE_BROKEN,
};

/* The buffer holds, in order: what is free again, the request in progress from `begin` to `pos`,
 * and what is not parsed yet up to `end`. Bytes of long arguments never stay in it. */
struct cairn_resp_input {
    char *buf;
    size_t cap;
    size_t begin, pos, end;
    size_t scanned;     /* bytes behind pos in which there is no line end  */
    enum stage stage;
    uint32_t wanted;    /* arguments of the request                        */
    uint32_t args_cap;
    size_t small_len;   /* STAGE_SMALL: of the argument                    */
    char *long_data;
    uint64_t long_got;
    bool had_long;      /* this request, or the one before                 */
    struct cairn_resp_arg few[ARGS_FEW];
};

/* A step goes on to the next one, or ends in an event. */
#define GO_ON ((enum cairn_resp_event)-1)

static void buffer_free(struct cairn_resp_input *in)
{
    if (in->cap == CAIRN_BLOCK_IN_BYTES)
        cairn_block_give(in->buf, in->cap);
    else
        free(in->buf);
    in->buf = NULL;
    in->cap = in->begin = in->pos = in->end = 0;
}

static enum cairn_resp_event broken(struct cairn_resp *p, const char *why)
{
    struct cairn_resp_input *in = p->input;
    in->stage = STAGE_BROKEN;
    in->begin = in->pos = in->end = 0;
    p->argc = 0;
    snprintf(p->error, sizeof(p->error), "ERR %s", why);
    return CAIRN_RESP_ERROR;
}

static enum cairn_resp_event no_memory(struct cairn_resp *p)
{
    return broken(p, "out of memory for this request");
}

cairn_status cairn_resp_open(struct cairn_resp *p, const struct cairn_resp_limits *limits)
{
    struct cairn_resp_input *in = cairn_calloc(1, sizeof(*in));
    if (!in)
        return CAIRN_NOMEM;
    in->args_cap = ARGS_FEW;
    *p = (struct cairn_resp){.limits = limits, .args = in->few, .input = in};
    return CAIRN_OK;
}

static void args_free(struct cairn_resp *p)
{
    if (p->args != p->input->few)
        free(p->args);
    p->args = p->input->few;
    p->input->args_cap = ARGS_FEW;
    p->argc = 0;
}

void cairn_resp_close(struct cairn_resp *p)
{
    if (!p->input)
        return;
    args_free(p);
    buffer_free(p->input);
    free(p->input);
    *p = (struct cairn_resp){0};
}

static bool args_grow(struct cairn_resp *p)
{
    struct cairn_resp_input *in = p->input;
    uint32_t cap = in->args_cap * 4;
    struct cairn_resp_arg *more = cairn_malloc(cap * sizeof(*more));
    if (!more)
        return false;
    memcpy(more, p->args, p->argc * sizeof(*more));
    if (p->args != in->few)
        free(p->args);
    p->args = more;
    in->args_cap = cap;
    return true;
}

static bool arg_add(struct cairn_resp *p, char *data, size_t len)
{
    if (p->argc == p->input->args_cap && !args_grow(p))
        return false;
    p->args[p->argc++] = (struct cairn_resp_arg){data, len};
    return true;
}

/* Moves what is in use to the start of `to`, and with it the arguments that lie there. */
static void buffer_move(struct cairn_resp *p, char *to, size_t cap)
{
    struct cairn_resp_input *in = p->input;
    const char *from = in->buf + in->begin;
    size_t len = in->end - in->begin;
    uintptr_t first = (uintptr_t)from;
    for (uint32_t i = 0; i < p->argc; i++) {
        uintptr_t at = (uintptr_t)p->args[i].data;
        if (at >= first && at - first <= len)
            p->args[i].data = to + (at - first);
    }
    memmove(to, from, len);
    if (to != in->buf) {
        size_t begin = in->begin, pos = in->pos;
        buffer_free(in);
        in->buf = to;
        in->cap = cap;
        in->begin = begin;
        in->pos = pos;
    }
    in->pos -= in->begin;
    in->begin = 0;
    in->end = len;
}

/* Room for `need` bytes behind `end`. */
static bool buffer_reserve(struct cairn_resp *p, size_t need)
{
    struct cairn_resp_input *in = p->input;
    if (!in->buf) {
        in->buf = cairn_block_take(CAIRN_BLOCK_IN_BYTES);
        in->cap = in->buf ? CAIRN_BLOCK_IN_BYTES : 0;
    }
    if (!in->buf)
        return false;
    size_t comfortable = in->cap / 4 > need ? in->cap / 4 : need;
    if (in->cap - in->end < comfortable && in->begin > 0)
        buffer_move(p, in->buf, in->cap);
    if (in->cap - in->end >= need)
        return true;
    size_t cap = in->cap * 2;
    while (cap - in->end < need)
        cap *= 2;
    char *larger = cairn_malloc(cap);
    if (larger)
        buffer_move(p, larger, cap);
    return larger != NULL;
}

/* Bytes to have room for: those without which the next step cannot end, or enough of what is read
 * past. */
static size_t needed(const struct cairn_resp_input *in)
{
    size_t have = in->end - in->pos;
    if (in->stage == STAGE_SKIP)
        return CAIRN_BLOCK_IN_BYTES / 4;
    return in->stage == STAGE_SMALL && in->small_len + 2 > have ? in->small_len + 2 - have : 1;
}

void *cairn_resp_space(struct cairn_resp *p, size_t *ret_len)
{
    struct cairn_resp_input *in = p->input;
    bool lent = in->stage == STAGE_WHOLE || in->stage == STAGE_WANTED;
    uint64_t left = p->bulk_len - in->long_got;
    if (left == 0 && (in->stage == STAGE_LONG || in->stage == STAGE_SKIP))
        in->stage = STAGE_LONG_END;
    if (in->stage == STAGE_LONG) {
        *ret_len = left;
        return in->long_data + in->long_got;
    }
    if (!lent && !buffer_reserve(p, needed(in))) {
        no_memory(p);
        *ret_len = 0;
        return NULL;
    }
    size_t room = in->cap - in->end;
    if (in->stage == STAGE_SKIP)
        room = room < left ? room : left;
    else if (in->had_long && needed(in) <= AFTER_LONG_BYTES && room > AFTER_LONG_BYTES)
        room = AFTER_LONG_BYTES;
    *ret_len = room;
    return in->buf + in->end;
}

static void buffer_rest(struct cairn_resp_input *in)
{
    if (in->begin == in->end && in->stage == STAGE_START)
        buffer_free(in);
}

void cairn_resp_filled(struct cairn_resp *p, size_t len)
{
    struct cairn_resp_input *in = p->input;
    if (in->stage == STAGE_LONG || in->stage == STAGE_SKIP)
        in->long_got += len;
    else if (in->stage != STAGE_BROKEN)
        in->end += len;
    if (len == 0)
        buffer_rest(in);
}

/* The line at pos up to `mark`, which the next byte follows; GO_ON if it is all there. */
static enum cairn_resp_event line_find(struct cairn_resp *p, char mark, const char *too_long,
                                       size_t *ret_len)
{
    struct cairn_resp_input *in = p->input;
    const char *line = in->buf + in->pos;
    size_t have = in->end - in->pos;
    const char *at = memchr(line + in->scanned, mark, have - in->scanned);
    size_t len = at ? (size_t)(at - line) : have;
    if (len > p->limits->inline_max)
        return broken(p, too_long);
    in->scanned = len;
    if (!at || (mark == '\r' && len + 1 == have))
        return CAIRN_RESP_MORE;
    in->scanned = 0;
    *ret_len = len;
    return GO_ON;
}

static enum cairn_resp_event step_start(struct cairn_resp *p)
{
    struct cairn_resp_input *in = p->input;
    if (in->pos == in->end) {
        buffer_rest(in);
        return CAIRN_RESP_MORE;
    }
    in->had_long = false;
    in->stage = in->buf[in->pos] == '*' ? STAGE_COUNT : STAGE_INLINE;
    return GO_ON;
}

static enum cairn_resp_event step_count(struct cairn_resp *p)
{
    struct cairn_resp_input *in = p->input;
    size_t len;
    int64_t count;
    enum cairn_resp_event e =
        line_find(p, '\r', "Protocol error: too big mbulk count string", &len);
    if (e != GO_ON)
        return e;
    if (!cairn_decimal_read(in->buf + in->pos + 1, len - 1, &count) ||
        count > (int64_t)p->limits->args_max)
        return broken(p, "Protocol error: invalid multibulk length");
    in->pos += len + 2;
    if (count <= 0) {
        in->begin = in->pos;
        in->stage = STAGE_START;
    } else {
        in->wanted = (uint32_t)count;
        in->stage = STAGE_LENGTH;
    }
    return GO_ON;
}

static enum cairn_resp_event no_dollar(struct cairn_resp *p, char got)
{
    char why[64];
    snprintf(why, sizeof(why), "Protocol error: expected '$', got '%c'",
             got == '\r' || got == '\n' || got == '\0' ? ' ' : got);
    return broken(p, why);
}

static enum cairn_resp_event step_length(struct cairn_resp *p)
{
    struct cairn_resp_input *in = p->input;
    size_t len;
    int64_t bytes;
    enum cairn_resp_event e = line_find(p, '\r', "Protocol error: too big bulk count string", &len);
    if (e != GO_ON)
        return e;
    const char *line = in->buf + in->pos;
    if (line[0] != '$')
        return no_dollar(p, line[0]);
    if (!cairn_decimal_read(line + 1, len - 1, &bytes) || bytes < 0 ||
        (uint64_t)bytes > p->limits->bulk_max)
        return broken(p, "Protocol error: invalid bulk length");
    in->pos += len + 2;
    bool small = (uint64_t)bytes <= p->limits->small_max;
    if (in->pos - in->begin + (small ? (size_t)bytes + 2 : 2) > p->limits->request_max)
        return broken(p, "Protocol error: too big request");
    if (small) {
        in->small_len = (size_t)bytes;
        in->stage = STAGE_SMALL;
    } else {
        p->bulk_len = (uint64_t)bytes;
        in->had_long = true;
        in->stage = STAGE_WANTED;
    }
    return GO_ON;
}

static enum cairn_resp_event arg_came(struct cairn_resp *p, char *data, size_t len)
{
    struct cairn_resp_input *in = p->input;
    if (!arg_add(p, data, len))
        return no_memory(p);
    in->stage = p->argc == in->wanted ? STAGE_WHOLE : STAGE_LENGTH;
    return GO_ON;
}

static enum cairn_resp_event step_small(struct cairn_resp *p)
{
    struct cairn_resp_input *in = p->input;
    if (in->end - in->pos < in->small_len + 2)
        return CAIRN_RESP_MORE;
    char *data = in->buf + in->pos;
    in->pos += in->small_len + 2;
    return arg_came(p, data, in->small_len);
}

void cairn_resp_give(struct cairn_resp *p, void *memory)
{
    struct cairn_resp_input *in = p->input;
    size_t have = in->end - in->pos;
    size_t len = have < p->bulk_len ? have : (size_t)p->bulk_len;
    char *rest = in->buf + in->pos;
    if (memory)
        memcpy(memory, rest, len);
    memmove(rest, rest + len, have - len);
    in->end -= len;
    in->long_data = memory;
    in->long_got = len;
    in->stage = memory ? STAGE_LONG : STAGE_SKIP;
}

static enum cairn_resp_event step_long(struct cairn_resp *p)
{
    if (p->input->long_got < p->bulk_len)
        return CAIRN_RESP_MORE;
    p->input->stage = STAGE_LONG_END;
    return GO_ON;
}

static enum cairn_resp_event step_long_end(struct cairn_resp *p)
{
    struct cairn_resp_input *in = p->input;
    if (in->end - in->pos < 2)
        return CAIRN_RESP_MORE;
    in->pos += 2;
    return arg_came(p, in->long_data, (size_t)p->bulk_len);
}

static int hex_value(char c)
{
    return isdigit((unsigned char)c) ? c - '0' : tolower((unsigned char)c) - 'a' + 10;
}

/* One escape of a text in double quotes at s[0] == '\\'; how many characters it takes. */
static size_t unescape(const char *s, size_t len, char *ret)
{
    static const char names[] = "nrtba", values[] = "\n\r\t\b\a";
    if (len >= 4 && s[1] == 'x' && isxdigit((unsigned char)s[2]) && isxdigit((unsigned char)s[3])) {
        *ret = (char)(hex_value(s[2]) * 16 + hex_value(s[3]));
        return 4;
    }
    const char *name = memchr(names, s[1], sizeof(names) - 1);
    *ret = name ? values[name - names] : s[1];
    return 2;
}

/* One argument of an inline request from *s on, unescaped in place: an escape only gets shorter.
 * A quote may open anywhere in it, and what closes must end it. */
static bool split_one(char **s, char *end, size_t *ret_len)
{
    char *in = *s, *out = *s, quote = 0;
    for (; in < end; in++) {
        if (!quote && memchr(" \n\r\t", *in, 4))
            break;
        if (!quote && (*in == '"' || *in == '\'')) {
            quote = *in;
        } else if (quote && *in == quote) {
            in++;
            quote = 0;
            if (in < end && !isspace((unsigned char)*in))
                return false;
            break;
        } else if (quote == '"' && *in == '\\' && end - in >= 2) {
            in += unescape(in, (size_t)(end - in), out++) - 1;
        } else {
            in += quote == '\'' && *in == '\\' && end - in >= 2 && in[1] == '\'';
            *out++ = *in;
        }
    }
    *ret_len = (size_t)(out - *s);
    *s = in;
    return !quote;
}

static enum cairn_resp_event inline_split(struct cairn_resp *p, char *line, char *end)
{
    for (;;) {
        size_t len;
        while (line < end && isspace((unsigned char)*line))
            line++;
        if (line == end)
            return GO_ON;
        char *arg = line;
        if (!split_one(&line, end, &len))
            return broken(p, "Protocol error: unbalanced quotes in request");
        if (p->argc == p->limits->args_max)
            return broken(p, "Protocol error: too many arguments in inline request");
        if (!arg_add(p, arg, len))
            return no_memory(p);
    }
}

static enum cairn_resp_event step_inline(struct cairn_resp *p)
{
    struct cairn_resp_input *in = p->input;
    size_t len;
    enum cairn_resp_event e = line_find(p, '\n', "Protocol error: too big inline request", &len);
    if (e != GO_ON)
        return e;
    char *line = in->buf + in->pos;
    in->pos += len + 1;
    if (len > 0 && line[len - 1] == '\r')
        len--;
    e = inline_split(p, line, line + len);
    if (e != GO_ON)
        return e;
    if (p->argc == 0)
        in->begin = in->pos;
    in->stage = p->argc > 0 ? STAGE_WHOLE : STAGE_START;
    return GO_ON;
}

enum cairn_resp_event cairn_resp_next(struct cairn_resp *p)
{
    enum cairn_resp_event e;
    do {
        switch (p->input->stage) {
        case STAGE_START: e = step_start(p); break;
        case STAGE_INLINE: e = step_inline(p); break;
        case STAGE_COUNT: e = step_count(p); break;
        case STAGE_LENGTH: e = step_length(p); break;
        case STAGE_SMALL: e = step_small(p); break;
        case STAGE_WANTED: e = CAIRN_RESP_BULK; break;
        case STAGE_LONG:
        case STAGE_SKIP: e = step_long(p); break;
        case STAGE_LONG_END: e = step_long_end(p); break;
        case STAGE_WHOLE: e = CAIRN_RESP_REQUEST; break;
        default: e = CAIRN_RESP_ERROR; break;
        }
    } while (e == GO_ON);
    return e;
}

void cairn_resp_done(struct cairn_resp *p)
{
    struct cairn_resp_input *in = p->input;
    args_free(p);
    in->begin = in->pos;
    in->stage = STAGE_START;
    if (in->cap <= CAIRN_BLOCK_IN_BYTES || in->end - in->begin > CAIRN_BLOCK_IN_BYTES / 2)
        return;
    char *usual = cairn_block_take(CAIRN_BLOCK_IN_BYTES);
    if (usual)
        buffer_move(p, usual, CAIRN_BLOCK_IN_BYTES);
}

size_t cairn_resp_memory(const struct cairn_resp *p)
{
    const struct cairn_resp_input *in = p->input;
    size_t args = p->args == in->few ? 0 : in->args_cap * sizeof(*p->args);
    return sizeof(*in) + in->cap + args;
}

size_t cairn_resp_buffered(const struct cairn_resp *p)
{
    const struct cairn_resp_input *in = p->input;
    if (in->stage == STAGE_BROKEN)
        return 0;
    return in->end - (in->stage == STAGE_WHOLE ? in->pos : in->begin);
}
