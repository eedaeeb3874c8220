#include "transport/out.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/mem.h"
#include "transport/block.h"
#include "transport/decimal.h"

#define IOVECS 64u
#define FDS_MAX 4u
#define ERROR_TEXT_MAX 1024u

/* A block begins with one of these; a reference is one alone. */
struct cairn_out_part {
    struct cairn_out_part *next;
    const char *data;  /* first byte that is not sent yet      */
    size_t len;        /* bytes from there                     */
    size_t room;       /* bytes free behind them               */
    bool block;
    uint32_t fd_count; /* descriptors that go with data[0]     */
    int fds[FDS_MAX];
    cairn_out_release release;
    void *arg;
    uint64_t token;
};

#define BLOCK_ROOM (CAIRN_BLOCK_OUT_BYTES - sizeof(struct cairn_out_part))
/* Less than this is copied to the end of the queue it is moved to. */
#define APPEND_COPY_MAX 1024u

static size_t part_memory(const struct cairn_out_part *part)
{
    return part->block ? CAIRN_BLOCK_OUT_BYTES : sizeof(*part);
}

static void part_free(struct cairn_out *o, struct cairn_out_part *part)
{
    o->memory -= part_memory(part);
    if (part->release)
        part->release(part->arg, part->token);
    if (part->block)
        cairn_block_give(part, CAIRN_BLOCK_OUT_BYTES);
    else
        free(part);
}

static void head_drop(struct cairn_out *o)
{
    struct cairn_out_part *part = o->head;
    o->head = part->next;
    if (!o->head)
        o->tail = NULL;
    o->queued -= part->len;
    part_free(o, part);
}

void cairn_out_open(struct cairn_out *o)
{
    *o = (struct cairn_out){.proto = 2};
}

void cairn_out_close(struct cairn_out *o)
{
    while (o->head)
        head_drop(o);
}

/* Descriptors of a part that stayed empty go with the first byte behind it. */
static void fds_hand_on(struct cairn_out *o, struct cairn_out_part *to)
{
    struct cairn_out_part *from = o->tail;
    if (!from || from->len > 0 || from->fd_count == 0)
        return;
    if (from->fd_count + to->fd_count > FDS_MAX) {
        o->failed = true;
        return;
    }
    memmove(to->fds + from->fd_count, to->fds, to->fd_count * sizeof(int));
    memcpy(to->fds, from->fds, from->fd_count * sizeof(int));
    to->fd_count += from->fd_count;
    from->fd_count = 0;
}

static void part_link(struct cairn_out *o, struct cairn_out_part *part)
{
    fds_hand_on(o, part);
    part->next = NULL;
    if (o->tail)
        o->tail->next = part;
    else
        o->head = part;
    o->tail = part;
    o->memory += part_memory(part);
    o->queued += part->len;
}

static struct cairn_out_part *block_add(struct cairn_out *o)
{
    struct cairn_out_part *part = cairn_block_take(CAIRN_BLOCK_OUT_BYTES);
    if (!part) {
        o->failed = true;
        return NULL;
    }
    *part = (struct cairn_out_part){
        .data = (const char *)(part + 1), .room = BLOCK_ROOM, .block = true};
    part_link(o, part);
    return part;
}

static void part_fill(struct cairn_out *o, struct cairn_out_part *part, const void *data,
                      size_t len)
{
    char *first = (char *)part + CAIRN_BLOCK_OUT_BYTES - part->room;
    memcpy(first, data, len);
    part->len += len;
    part->room -= len;
    o->queued += len;
}

void cairn_out_raw(struct cairn_out *o, const void *data, size_t len)
{
    const char *bytes = data;
    struct cairn_out_part *part = o->tail;
    while (len > 0 && !o->failed) {
        if (!part || part->room == 0)
            part = block_add(o);
        if (!part)
            return;
        size_t n = len < part->room ? len : part->room;
        part_fill(o, part, bytes, n);
        bytes += n;
        len -= n;
    }
}

void cairn_out_ref(struct cairn_out *o, const void *data, size_t len, cairn_out_release release,
                   void *arg, uint64_t token)
{
    struct cairn_out_part *part = len > 0 && !o->failed ? cairn_malloc(sizeof(*part)) : NULL;
    if (!part) {
        o->failed |= len > 0;
        if (release)
            release(arg, token);
        return;
    }
    *part = (struct cairn_out_part){
        .data = data, .len = len, .release = release, .arg = arg, .token = token};
    part_link(o, part);
}

void cairn_out_fds(struct cairn_out *o, const int *fds, uint32_t count)
{
    struct cairn_out_part *part = count <= FDS_MAX && !o->failed ? block_add(o) : NULL;
    if (!part) {
        o->failed = true;
        return;
    }
    if (part->fd_count + count > FDS_MAX) {
        o->failed = true;
        return;
    }
    memcpy(part->fds + part->fd_count, fds, count * sizeof(int));
    part->fd_count += count;
}

/* "<type><number>\r\n" */
static void number_line(struct cairn_out *o, char type, int64_t value)
{
    char line[CAIRN_DECIMAL_MAX + 3];
    size_t len = 0;
    line[len++] = type;
    len += cairn_decimal_write(line + len, value);
    line[len++] = '\r';
    line[len++] = '\n';
    cairn_out_raw(o, line, len);
}

void cairn_out_simple(struct cairn_out *o, const char *text)
{
    cairn_out_raw(o, "+", 1);
    cairn_out_raw(o, text, strlen(text));
    cairn_out_raw(o, "\r\n", 2);
}

void cairn_out_error(struct cairn_out *o, const char *fmt, ...)
{
    char text[ERROR_TEXT_MAX];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    for (char *c = text; *c; c++)
        if (*c == '\r' || *c == '\n')
            *c = ' ';
    o->errors++;
    cairn_out_raw(o, "-", 1);
    cairn_out_raw(o, text, strlen(text));
    cairn_out_raw(o, "\r\n", 2);
}

void cairn_out_int(struct cairn_out *o, int64_t value)
{
    number_line(o, ':', value);
}

void cairn_out_double(struct cairn_out *o, double value)
{
    char text[64];
    int len = isnan(value) ? snprintf(text, sizeof(text), "nan")
                           : snprintf(text, sizeof(text), "%.17g", value);
    if (o->proto < 3) {
        cairn_out_bulk(o, text, (size_t)len);
        return;
    }
    cairn_out_raw(o, ",", 1);
    cairn_out_raw(o, text, (size_t)len);
    cairn_out_raw(o, "\r\n", 2);
}

void cairn_out_bool(struct cairn_out *o, bool value)
{
    if (o->proto < 3)
        cairn_out_int(o, value);
    else
        cairn_out_raw(o, value ? "#t\r\n" : "#f\r\n", 4);
}

void cairn_out_null(struct cairn_out *o)
{
    if (o->proto < 3)
        cairn_out_raw(o, "$-1\r\n", 5);
    else
        cairn_out_raw(o, "_\r\n", 3);
}

void cairn_out_bulk(struct cairn_out *o, const void *data, size_t len)
{
    cairn_out_bulk_head(o, len);
    cairn_out_raw(o, data, len);
    cairn_out_raw(o, "\r\n", 2);
}

void cairn_out_text(struct cairn_out *o, const char *text)
{
    cairn_out_bulk(o, text, strlen(text));
}

void cairn_out_verbatim(struct cairn_out *o, const char *text, size_t len)
{
    if (o->proto < 3) {
        cairn_out_bulk(o, text, len);
        return;
    }
    number_line(o, '=', (int64_t)len + 4);
    cairn_out_raw(o, "txt:", 4);
    cairn_out_raw(o, text, len);
    cairn_out_raw(o, "\r\n", 2);
}

void cairn_out_bulk_head(struct cairn_out *o, uint64_t len)
{
    number_line(o, '$', (int64_t)len);
}

void cairn_out_array(struct cairn_out *o, uint64_t count)
{
    number_line(o, '*', (int64_t)count);
}

void cairn_out_map(struct cairn_out *o, uint64_t pairs)
{
    number_line(o, o->proto < 3 ? '*' : '%', (int64_t)(o->proto < 3 ? pairs * 2 : pairs));
}

void cairn_out_set(struct cairn_out *o, uint64_t count)
{
    number_line(o, o->proto < 3 ? '*' : '~', (int64_t)count);
}

void cairn_out_push(struct cairn_out *o, uint64_t count)
{
    number_line(o, o->proto < 3 ? '*' : '>', (int64_t)count);
}

void cairn_out_append(struct cairn_out *to, struct cairn_out *from)
{
    struct cairn_out_part *first = from->head;
    to->failed |= from->failed;
    if (first && first->block && first->len <= APPEND_COPY_MAX && first->fd_count == 0 &&
        to->tail && to->tail->room >= first->len) {
        part_fill(to, to->tail, first->data, first->len);
        head_drop(from);
    }
    while (from->head) {
        struct cairn_out_part *part = from->head;
        from->head = part->next;
        part_link(to, part);
    }
    from->tail = NULL;
    from->queued = 0;
    from->memory = 0;
    from->failed = false;
}

/* Fills the message with what may go in one call: descriptors only with the first byte. */
static void message_fill(struct cairn_out *o, struct msghdr *message)
{
    struct cairn_out_part *part = o->head;
    if (part->fd_count > 0) {
        struct cmsghdr *c = message->msg_control;
        size_t bytes = part->fd_count * sizeof(int);
        *c = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(bytes), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(c), part->fds, bytes);
        message->msg_controllen = CMSG_SPACE(bytes);
    } else {
        message->msg_control = NULL;
    }
    message->msg_iovlen = 0;
    for (; part && message->msg_iovlen < IOVECS; part = part->next) {
        if (part->fd_count > 0 && part != o->head)
            break;
        message->msg_iov[message->msg_iovlen++] = (struct iovec){(char *)(uintptr_t)part->data,
                                                                 part->len};
    }
}

static void sent(struct cairn_out *o, size_t len)
{
    o->sent += len;
    o->head->fd_count = 0;
    while (len > 0) {
        struct cairn_out_part *part = o->head;
        size_t n = len < part->len ? len : part->len;
        part->data += n;
        part->len -= n;
        o->queued -= n;
        len -= n;
        if (part->len == 0)
            head_drop(o);
    }
}

cairn_status cairn_out_send(struct cairn_out *o, int fd)
{
    struct iovec iov[IOVECS];
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(FDS_MAX * sizeof(int))] = {0};
    if (o->failed)
        return CAIRN_IO;
    while (o->queued > 0) {
        while (o->head->len == 0)
            head_drop(o);
        struct msghdr message = {.msg_iov = iov, .msg_control = control};
        message_fill(o, &message);
        ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n > 0)
            sent(o, (size_t)n);
        else if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return CAIRN_INPROGRESS;
        else if (n == 0 || errno != EINTR)
            return CAIRN_IO;
    }
    return CAIRN_OK;
}
