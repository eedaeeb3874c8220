/* RESP (2 and 3) as a client reads it: replies, one element after another, incrementally, with
 * every limit checked before memory is taken. Pipelined replies follow each other; `last` tells
 * where one ends.
 *
 * Receive into what cairn_reply_space lends, say how much came with cairn_reply_filled, and call
 * cairn_reply_next:
 *
 *   MORE     receive more
 *   ITEM     `item` is the next element: a scalar, or the head of an aggregate
 *   FILLED   the runs given for a string's bytes are full, or all of it was read past
 *   ERROR    `error` is a sentence: the peer does not speak the protocol, close
 *
 * Strings of up to small_max bytes are lent whole. Of a longer bulk string, and while `straight` is
 * set of any that is not empty, comes the head only (text NULL): then say with cairn_reply_into
 * where its bytes go, in as many steps as you like; the socket's bytes go there without a copy
 * between. */
#ifndef CAIRN_TRANSPORT_REPLY_H
#define CAIRN_TRANSPORT_REPLY_H

#include <stdbool.h>
#include <sys/uio.h>

#include "base/types.h"

#define CAIRN_REPLY_DEPTH_MAX 8u

enum cairn_reply_kind {
    CAIRN_REPLY_SIMPLE,    /* text                                                      */
    CAIRN_REPLY_FAILURE,   /* text: an error reply                                      */
    CAIRN_REPLY_INT,       /* number                                                    */
    CAIRN_REPLY_BOOL,      /* number, 0 or 1                                            */
    CAIRN_REPLY_STRING,    /* text: bulk and verbatim                                   */
    CAIRN_REPLY_DOUBLE,    /* text: as it was sent                                      */
    CAIRN_REPLY_BIG,       /* text: an integer of any size                              */
    CAIRN_REPLY_NULL,
    CAIRN_REPLY_ARRAY,     /* number: of elements; also of SET and PUSH                 */
    CAIRN_REPLY_SET,
    CAIRN_REPLY_PUSH,
    CAIRN_REPLY_MAP,       /* number: of pairs, each two elements; also of an attribute */
    CAIRN_REPLY_ATTRIBUTE, /* comes before the element it belongs to, and is none       */
};

/* text is lent until the next call, and not terminated. */
struct cairn_reply_item {
    enum cairn_reply_kind kind;
    uint32_t depth;   /* aggregates it lies in                                       */
    bool last;        /* the reply ends with it (and with its bytes, if text is NULL) */
    int64_t number;
    const char *text;
    size_t len;
};

struct cairn_reply_limits {
    uint32_t small_max; /* longest string that is lent whole                             */
    uint32_t count_max; /* elements of one aggregate, pairs of a map                     */
    uint64_t bulk_max;  /* longest string at all                                         */
};

enum cairn_reply_event {
    CAIRN_REPLY_MORE,
    CAIRN_REPLY_ITEM,
    CAIRN_REPLY_FILLED,
    CAIRN_REPLY_ERROR,
};

/* `straight` is the user's; item and error are read-only for it, the rest is the parser's own. */
struct cairn_reply {
    struct cairn_reply_item item;
    bool straight;
    char error[96];

    struct cairn_reply_limits limits;
    char *buf;
    size_t cap, pos, end, scanned;
    int stage;
    char type;               /* of the element under way                       */
    bool into;               /* runs were given for the bytes that come next   */
    uint32_t depth;
    struct {
        uint64_t left;
        bool attribute;
    } open[CAIRN_REPLY_DEPTH_MAX];
    uint64_t string_left;    /* bytes of the string that have not come         */
    const struct iovec *run; /* what of the runs is not full: from run_at on   */
    uint32_t runs;
    size_t run_at;
};

void cairn_reply_open(struct cairn_reply *p, const struct cairn_reply_limits *limits);
void cairn_reply_close(struct cairn_reply *p);

/* Where to receive into: at most cap (>= 2) pieces, the runs of cairn_reply_into first, for one
 * recvmsg. 0 = no memory, and the next event is ERROR. */
uint32_t cairn_reply_space(struct cairn_reply *p, struct iovec *iov, uint32_t cap);
void cairn_reply_filled(struct cairn_reply *p, size_t len);
enum cairn_reply_event cairn_reply_next(struct cairn_reply *p);
/* After an item without text, or FILLED when bytes of it are left: its next bytes go to these runs,
 * which stay until FILLED and are together not longer than what is left. No runs: the rest is read
 * past, as it is if cairn_reply_next is called without this. */
void cairn_reply_into(struct cairn_reply *p, const struct iovec *run, uint32_t runs);
/* No byte of a reply is waiting or under way. */
bool cairn_reply_idle(const struct cairn_reply *p);

#endif
