/* Commands of `cairn` that ask a running node: one connection, one command at a time, whole
 * answers, every wait with a deadline. */
#ifndef CAIRN_TOOLS_NODE_CALL_H
#define CAIRN_TOOLS_NODE_CALL_H

#include "storage/cause.h"
#include "tools/cli.h"
#include "transport/addr.h"
#include "transport/sock.h"

#define NODE_URI_DEFAULT "unix:/run/cairn/cairn.sock"

/* Where the node is, and how long to wait for it. */
struct node_where {
    char uri[256];
    uint64_t timeout_ns;
};
#define NODE_AT(holder, field) offsetof(holder, node) + offsetof(struct node_where, field)
/* Rows for a command whose options struct `holder` has a field `node`. */
#define NODE_ROWS(holder) \
    {.name = "uri", .type = CAIRN_OPT_STRING, .offset = NODE_AT(holder, uri), .max = 256, \
     .help = "the node: unix:/path or tcp://127.0.0.1:port (CAIRN_URI, or " NODE_URI_DEFAULT ")"}, \
    {.name = "timeout", .type = CAIRN_OPT_DURATION, .offset = NODE_AT(holder, timeout_ns), \
     .def = "5s", .min = 1000000, .max = 3600000000000, .help = "longest wait for an answer"}

struct node_call;

/* An answer. Children of arrays, maps (name, value, ...) and sets are `items`. Texts end in a NUL
 * that `len` does not count. */
struct node_reply {
    char kind; /* '+' text, '-' error, ':' integer, ',' double, '_' null, '#' bool, '*' list */
    int64_t integer;
    double number;
    char *text;
    size_t len;
    struct node_reply *items;
    size_t count;
};

cairn_status node_call_open(const char *uri, uint64_t timeout_ns, struct node_call **ret, char *err,
                            size_t err_cap);
void node_call_close(struct node_call *c); /* NULL is fine */
/* Sends a command and reads its answer, which stays until the next one. NULL: the connection is of
 * no use any more, and why says so in a sentence. */
const struct node_reply *node_call_run(struct node_call *c, const struct cairn_iov *args,
                                       uint32_t count, char *why, size_t why_cap);
/* Is it a cairnd that answers, and not another server? */
bool node_call_is_cairnd(struct node_call *c);

/* For commands: messages have been printed where these fail. */

/* The URI of the option, of CAIRN_URI, or the default. */
const char *node_uri(const struct node_where *o);
/* An exit status. */
int node_connect(const char *command, const struct node_where *o, struct node_call **ret);
/* Runs a command of words and bytes: each is a C string if its length is NODE_TEXT. NULL after a
 * message, also for an answer that is an error. */
#define NODE_TEXT ((size_t)-1)
#define NODE_ARGS(...) (const struct cairn_iov[]){__VA_ARGS__}, \
    sizeof((const struct cairn_iov[]){__VA_ARGS__}) / sizeof(struct cairn_iov)
#define NODE_WORD(s) {.base = node_bytes(s), .len = NODE_TEXT}
#define NODE_BYTES(p, n) {.base = node_bytes(p), .len = (n)}
static inline void *node_bytes(const void *p)
{
    union {
        const void *lent;
        void *base;
    } u = {p};
    return u.base;
}
const struct node_reply *node_ask(const char *command, struct node_call *c,
                                  const struct cairn_iov *args, uint32_t count);
/* Item of a map by name; NULL if there is none. */
const struct node_reply *node_field(const struct node_reply *map, const char *name);
/* Its integer, whatever form it came in; `missing` if there is none. */
int64_t node_integer(const struct node_reply *r, int64_t missing);


/* Where one chunk is, or why it is not. */
struct node_chunk {
    bool held, ram, disk;
    enum cairn_cause cause; /* that dropped it; CAIRN_CAUSE_ABSENT = none is remembered */
    char text[128];
    int64_t age_ms;         /* since then */
};
bool node_ask_chunk(const char *command, struct node_call *c, const struct cairn_key *key,
                    struct node_chunk *ret);

#endif
