/* One connection to a node. It belongs to one call at a time.
 *
 * Commands are written into a buffer (long arguments by reference) and sent together by the
 * flush; each has a ticket, its number on this connection. Answers come in that order: waiting
 * for a ticket reads past the answers that nobody waited for. Whatever goes wrong between two
 * peers (silence, an end, bytes that are no answer) makes the connection useless, and its next
 * user never sees what was meant for another: it is dropped. */
#ifndef CAIRN_CONNECTOR_REMOTE_CONN_H
#define CAIRN_CONNECTOR_REMOTE_CONN_H

#include <stdatomic.h>
#include <stdbool.h>
#include <sys/uio.h>

#include "connector/remote_arena.h"
#include "connector/remote_uri.h"
#include "transport/reply.h"

struct remote_pin;

#define CONN_TEXT_BYTES 32768u
#define CONN_IOVS 512u
#define CONN_UNHEARD 16u

/* What a node says of itself. */
struct remote_hello {
    uint64_t value_max;
    char run_id[41];
};

struct remote_conn {
    struct remote_conn *next;          /* of the idle ones                                       */
    const struct remote_options *o;
    struct remote_arenas *arenas;
    int fd;
    uint64_t deadline_ns;              /* of the call that has it                                */
    uint64_t progress_ns;              /* when the node last gave a sign in this call            */
    struct remote_hello hello;
    bool opened;                       /* silence is judged from here on                         */

    struct remote_arena *arena;        /* NULL: not attached                                     */
    char *window;                      /* NULL: none                                             */
    uint64_t window_len;
    bool window_asked;

    uint64_t asked, answered;          /* commands, answers read                                 */
    struct cairn_reply in;
    bool peeked;                       /* in.item was not used yet                               */
    const char *lent;                  /* the rest of the string under way, if it is there whole */
    bool ending;                       /* the answer ends with the string under way              */
    cairn_status send_failed;          /* half a command may be out: none can follow             */
    char text[CONN_TEXT_BYTES];
    size_t text_len;
    struct iovec iov[CONN_IOVS];
    uint32_t iov_count;
    void *scratch;                     /* one piece, when a piece's bytes are not together       */
    uint64_t unheard[CONN_UNHEARD];    /* the latest leases released over it, 0 = none           */
    uint32_t unheard_next;

    /* Under the pool's lock. */
    uint32_t leases;                   /* of the API, taken over it                              */
    struct remote_pin *released;       /* to be released at the next occasion                    */
    bool busy, dropped;
    _Atomic bool lost;                 /* the other side closed it                               */
};

/* Dials, says hello, attaches if it should. err: one sentence. */
cairn_status conn_open(const struct remote_options *o, struct remote_arenas *arenas,
                       uint64_t deadline_ns, struct remote_conn **ret, char *err, size_t err_cap);
/* Frees it with what it maps, and closes the socket or leaves it to the caller. */
void conn_close(struct remote_conn *c, bool socket_too);
void conn_close_socket(int fd);

/* Milliseconds that a command may take at the node, so that its answer comes before patience ends
 * here. */
uint64_t conn_wire_timeout(const struct remote_conn *c);

/* --- writing; what does not fit is sent on the way, and a failure shows at the flush --- */
uint64_t conn_command(struct remote_conn *c, const char *name, uint32_t arguments);
void conn_bytes(struct remote_conn *c, const void *data, size_t len);
void conn_ref(struct remote_conn *c, const void *data, size_t len); /* unchanged until the flush */
void conn_number(struct remote_conn *c, uint64_t n);
/* A long argument in parts: its head, runs of memory by reference, its end. */
void conn_part_head(struct remote_conn *c, uint64_t len);
void conn_part(struct remote_conn *c, const void *data, size_t len);
void conn_part_end(struct remote_conn *c);
/* Writes CAIRN.RELEASE. Its answer is read past; a node that closes the connection may not have
 * heard it. */
void conn_release(struct remote_conn *c, uint64_t lease);
/* Sends all. CAIRN_TIMEOUT, CAIRN_IO: drop the connection. */
cairn_status conn_flush(struct remote_conn *c);
/* Sends what the socket takes at once; false: not all of it, drop the connection. */
bool conn_flush_now(struct remote_conn *c);
/* Of a call that failed: what it wrote is not sent any more, nor anything behind it. */
void conn_forget(struct remote_conn *c);

/* --- reading; anything but CAIRN_OK and CAIRN_BUSY: drop the connection --- */

/* Flushes and reads up to the answer of the ticket. CAIRN_BUSY: the answer is an error (logged),
 * and read. */
cairn_status conn_await(struct remote_conn *c, uint64_t ticket);
/* Asks once for a window to write values into. Without one they go through the socket. */
cairn_status conn_window(struct remote_conn *c);
cairn_status conn_int(struct remote_conn *c, int64_t *ret);
cairn_status conn_array(struct remote_conn *c, uint64_t *ret_count); /* of a map: twice its pairs */
#define CONN_NULL UINT64_MAX
/* A string of at most cap bytes; *ret_len = CONN_NULL for a null. */
cairn_status conn_string(struct remote_conn *c, void *out, size_t cap, uint64_t *ret_len);
/* Head of a string, then its bytes in as many steps as one likes, together all of them. */
cairn_status conn_string_head(struct remote_conn *c, uint64_t *ret_len);
cairn_status conn_string_part(struct remote_conn *c, const struct iovec *iov, uint32_t count);

#endif
