/* What waits to be sent on one connection, in order: small replies copied into blocks, large values
 * by reference. Not thread-safe: its owner sends, or fills it on one thread at a time.
 *
 * Encoders write RESP2 or RESP3 by `proto` (2 or 3); a type RESP2 lacks becomes its nearest one, as
 * Redis does it (map -> flat array, double and verbatim -> bulk, bool -> integer, null -> $-1). */
#ifndef CAIRN_TRANSPORT_OUT_H
#define CAIRN_TRANSPORT_OUT_H

#include <stdarg.h>
#include <stdbool.h>

#include "base/types.h"

struct cairn_out_part;

struct cairn_out {
    struct cairn_out_part *head, *tail;
    uint64_t queued;       /* bytes that wait                                                   */
    uint64_t sent;         /* bytes sent since open                                             */
    uint32_t errors;       /* error replies written here since open; may wrap                   */
    size_t memory;         /* bytes of blocks held                                              */
    uint8_t proto;         /* 2 or 3                                                            */
    bool failed;           /* no memory for a reply: what is in here is not complete, close     */
};

void cairn_out_open(struct cairn_out *o);
void cairn_out_close(struct cairn_out *o); /* releases every reference */

/* Called once when the kernel holds none of the bytes any more, or on close, on the thread that
 * sends or closes; at once if there is no memory to keep the reference. */
typedef void (*cairn_out_release)(void *arg, uint64_t token);

void cairn_out_raw(struct cairn_out *o, const void *data, size_t len);
/* Bytes by reference, unchanged until release(arg, token). */
void cairn_out_ref(struct cairn_out *o, const void *data, size_t len, cairn_out_release release,
                   void *arg, uint64_t token);

/* Descriptors that travel with the next byte written here (unix sockets, SCM_RIGHTS), at most 4;
 * lent until sent or closed. */
void cairn_out_fds(struct cairn_out *o, const int *fds, uint32_t count);

void cairn_out_simple(struct cairn_out *o, const char *text);               /* +OK               */
void cairn_out_error(struct cairn_out *o, const char *fmt, ...)             /* "ERR sentence"    */
    __attribute__((format(printf, 2, 3)));                                  /* line ends -> space */
void cairn_out_int(struct cairn_out *o, int64_t value);
void cairn_out_double(struct cairn_out *o, double value);
void cairn_out_bool(struct cairn_out *o, bool value);
void cairn_out_null(struct cairn_out *o);
void cairn_out_bulk(struct cairn_out *o, const void *data, size_t len);
void cairn_out_text(struct cairn_out *o, const char *text);                 /* bulk of a C string */
void cairn_out_verbatim(struct cairn_out *o, const char *text, size_t len); /* "txt"             */
/* Head of a bulk whose bytes follow by cairn_out_ref, then cairn_out_raw "\r\n". */
void cairn_out_bulk_head(struct cairn_out *o, uint64_t len);
void cairn_out_array(struct cairn_out *o, uint64_t count);
void cairn_out_map(struct cairn_out *o, uint64_t pairs);
void cairn_out_set(struct cairn_out *o, uint64_t count);
void cairn_out_push(struct cairn_out *o, uint64_t count);

/* Moves all parts of `from` to the end of `to`. */
void cairn_out_append(struct cairn_out *to, struct cairn_out *from);

/* Sends without blocking until the socket is full or nothing waits. OK = nothing waits;
 * CAIRN_INPROGRESS = socket full; CAIRN_IO = the connection is gone. */
cairn_status cairn_out_send(struct cairn_out *o, int fd);

#endif
