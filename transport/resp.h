/* RESP (2 and 3) as a server reads it: requests, incrementally, with every limit checked before
 * memory is taken. https://redis.io/docs/latest/develop/reference/protocol-spec/
 *
 * The parser owns the input memory of its connection. Its user receives into what cairn_resp_space
 * lends, says how much came with cairn_resp_filled, and calls cairn_resp_next until it wants more:
 *
 *   MORE     receive more
 *   REQUEST  args[0..argc) are a whole request, lent until cairn_resp_done
 *   BULK     argument `argc` has `bulk_len` bytes, too many for the input buffer: give memory
 *            (cairn_resp_give) or refuse it; args[0..argc) are there already. A refused argument is
 *            read past and shows up with data NULL and its length.
 *   ERROR    `error` is a whole error reply text ("ERR Protocol error: ..."): answer it and close
 *
 * Both forms of a request are read: arrays of bulk strings, and inline commands with quotes. What
 * Redis reads past without a look is read past here too: empty arrays, and the two bytes behind the
 * bytes of an argument. */
#ifndef CAIRN_TRANSPORT_RESP_H
#define CAIRN_TRANSPORT_RESP_H

#include <stdbool.h>

#include "base/types.h"

struct cairn_resp_arg {
    char *data;
    size_t len;
};

struct cairn_resp_limits {
    uint32_t args_max;     /* arguments of a request                                            */
    uint32_t inline_max;   /* bytes of an inline request, and of a line with a length           */
    uint32_t small_max;    /* longest argument that is kept in the input buffer                 */
    uint64_t bulk_max;     /* longest argument at all                                           */
    uint64_t request_max;  /* bytes of a request beside those of its long arguments             */
};

enum cairn_resp_event { CAIRN_RESP_MORE, CAIRN_RESP_REQUEST, CAIRN_RESP_BULK, CAIRN_RESP_ERROR };

/* Public fields are read-only for the user. */
struct cairn_resp {
    const struct cairn_resp_limits *limits;
    struct cairn_resp_arg *args;
    uint32_t argc;
    uint64_t bulk_len;     /* BULK: of argument `argc`                                          */
    char error[128];
    struct cairn_resp_input *input; /* the parser's own */
};

cairn_status cairn_resp_open(struct cairn_resp *p, const struct cairn_resp_limits *limits);
void cairn_resp_close(struct cairn_resp *p);
/* Where to receive into, and how many bytes: the input buffer, or straight into the memory that was
 * given for a long argument. Never 0 bytes after MORE, unless there is no memory: NULL, and the
 * next event is ERROR. */
void *cairn_resp_space(struct cairn_resp *p, size_t *ret_len);
/* With 0 (nothing had come) an idle parser gives its buffer back: call it after every space. */
void cairn_resp_filled(struct cairn_resp *p, size_t len);
enum cairn_resp_event cairn_resp_next(struct cairn_resp *p);
/* After BULK, at once or later: memory of bulk_len bytes that stays until cairn_resp_done; NULL
 * refuses it. */
void cairn_resp_give(struct cairn_resp *p, void *memory);
/* After REQUEST: the arguments are no longer needed. */
void cairn_resp_done(struct cairn_resp *p);
/* Bytes of memory held, for the cap a client. An idle parser holds less than 1 KiB. */
size_t cairn_resp_memory(const struct cairn_resp *p);
/* Received bytes in the input buffer that no whole request has used: not 0 when a connection ends
 * within a request, or when another one may be there. */
size_t cairn_resp_buffered(const struct cairn_resp *p);

#endif
