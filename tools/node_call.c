#include "tools/node_call.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/clock.h"
#include "transport/reply.h"

#define TEXT_MAX (64u << 20)
#define ELEMENTS_MAX (1u << 20)
#define ARGS_MAX 64u

struct node_call {
    int fd;
    char uri[256];
    uint64_t timeout_ns;
    struct cairn_reply parser;
    struct node_reply reply;
    uint32_t elements; /* of this answer */
    struct node_reply *open[CAIRN_REPLY_DEPTH_MAX + 1];
    size_t filled[CAIRN_REPLY_DEPTH_MAX + 1];
};

static void free_reply(struct node_reply *r)
{
    for (size_t i = 0; i < r->count; i++)
        free_reply(&r->items[i]);
    free(r->items);
    free(r->text);
    *r = (struct node_reply){0};
}

cairn_status node_call_open(const char *uri, uint64_t timeout_ns, struct node_call **ret, char *err,
                            size_t err_cap)
{
    static const struct cairn_reply_limits limits = {
        .small_max = TEXT_MAX, .count_max = ELEMENTS_MAX, .bulk_max = TEXT_MAX};
    struct cairn_addr addr;
    cairn_status s = cairn_addr_parse(uri, &addr, err, err_cap);
    if (s != CAIRN_OK)
        return s;
    struct node_call *c = calloc(1, sizeof *c);
    if (!c) {
        snprintf(err, err_cap, "no memory: close other programs");
        return CAIRN_NOMEM;
    }
    s = cairn_sock_dial(&addr, cairn_deadline_ns(timeout_ns), &c->fd, err, err_cap);
    if (s != CAIRN_OK) {
        free(c);
        return s;
    }
    snprintf(c->uri, sizeof c->uri, "%s", uri);
    c->timeout_ns = timeout_ns;
    cairn_reply_open(&c->parser, &limits);
    *ret = c;
    return CAIRN_OK;
}

void node_call_close(struct node_call *c)
{
    if (!c)
        return;
    close(c->fd);
    cairn_reply_close(&c->parser);
    free_reply(&c->reply);
    free(c);
}

static cairn_status send_command(struct node_call *c, const struct cairn_iov *args, uint32_t count,
                                 uint64_t deadline_ns)
{
    char head[ARGS_MAX + 1][32];
    struct iovec iov[3 * ARGS_MAX + 1];
    uint32_t n = 0;
    snprintf(head[ARGS_MAX], sizeof head[0], "*%u\r\n", count);
    iov[n++] = (struct iovec){head[ARGS_MAX], strlen(head[ARGS_MAX])};
    for (uint32_t i = 0; i < count; i++) {
        size_t len = args[i].len == NODE_TEXT ? strlen(args[i].base) : args[i].len;
        snprintf(head[i], sizeof head[i], "$%zu\r\n", len);
        iov[n++] = (struct iovec){head[i], strlen(head[i])};
        iov[n++] = (struct iovec){args[i].base, len};
        iov[n++] = (struct iovec){node_bytes("\r\n"), 2};
    }
    return cairn_sock_send_all(c->fd, iov, n, deadline_ns);
}

/* Where the element that has come goes: the answer itself, or the next place of what it lies in. */
static struct node_reply *place_for(struct node_call *c, uint32_t depth)
{
    if (depth == 0)
        return &c->reply;
    struct node_reply *in = c->open[depth];
    return in && c->filled[depth] < in->count ? &in->items[c->filled[depth]++] : NULL;
}

static bool take_list(struct node_call *c, struct node_reply *r, uint32_t depth, size_t count)
{
    if (count > ELEMENTS_MAX - c->elements || depth + 1 > CAIRN_REPLY_DEPTH_MAX)
        return false;
    c->elements += (uint32_t)count;
    r->kind = '*';
    r->items = calloc(count ? count : 1, sizeof *r->items);
    r->count = r->items ? count : 0;
    c->open[depth + 1] = r;
    c->filled[depth + 1] = 0;
    return r->items;
}

static bool take_text(struct node_reply *r, char kind, const struct cairn_reply_item *item)
{
    r->kind = kind;
    r->len = item->len;
    r->text = malloc(item->len + 1);
    if (!r->text)
        return false;
    if (item->len)
        memcpy(r->text, item->text, item->len);
    r->text[item->len] = 0;
    r->number = kind == ',' ? strtod(r->text, NULL) : 0;
    return true;
}

static bool take(struct node_call *c, const struct cairn_reply_item *item)
{
    struct node_reply *r = place_for(c, item->depth);
    if (!r)
        return false;
    r->integer = item->number;
    switch (item->kind) {
    case CAIRN_REPLY_SIMPLE:
    case CAIRN_REPLY_STRING:
    case CAIRN_REPLY_BIG: return take_text(r, '+', item);
    case CAIRN_REPLY_FAILURE: return take_text(r, '-', item);
    case CAIRN_REPLY_DOUBLE: return take_text(r, ',', item);
    case CAIRN_REPLY_INT: r->kind = ':'; return true;
    case CAIRN_REPLY_BOOL: r->kind = '#'; return true;
    case CAIRN_REPLY_NULL: r->kind = '_'; return true;
    case CAIRN_REPLY_ARRAY:
    case CAIRN_REPLY_SET:
    case CAIRN_REPLY_PUSH: return take_list(c, r, item->depth, (size_t)item->number);
    case CAIRN_REPLY_MAP: return take_list(c, r, item->depth, 2 * (size_t)item->number);
    case CAIRN_REPLY_ATTRIBUTE: break;
    }
    return false;
}

static cairn_status receive(struct node_call *c, uint64_t deadline_ns)
{
    struct iovec iov[4];
    size_t len = 0;
    uint32_t n = cairn_reply_space(&c->parser, iov, 4);
    if (n == 0)
        return CAIRN_NOMEM;
    for (;;) {
        cairn_status s = cairn_sock_recv(c->fd, iov, n, &len);
        if (s == CAIRN_INPROGRESS)
            s = cairn_sock_wait(c->fd, POLLIN, deadline_ns, NULL);
        else if (s == CAIRN_OK)
            cairn_reply_filled(&c->parser, len);
        if (s != CAIRN_OK || len)
            return s;
    }
}

static cairn_status read_answer(struct node_call *c, uint64_t deadline_ns)
{
    c->elements = 0;
    for (;;) {
        switch (cairn_reply_next(&c->parser)) {
        case CAIRN_REPLY_MORE: {
            cairn_status s = receive(c, deadline_ns);
            if (s != CAIRN_OK)
                return s;
            break;
        }
        case CAIRN_REPLY_ITEM:
            if (!take(c, &c->parser.item))
                return CAIRN_NOMEM;
            if (c->parser.item.last)
                return CAIRN_OK;
            break;
        case CAIRN_REPLY_FILLED:
        case CAIRN_REPLY_ERROR: return CAIRN_INVAL;
        }
    }
}

const struct node_reply *node_call_run(struct node_call *c, const struct cairn_iov *args,
                                       uint32_t count, char *why, size_t why_cap)
{
    free_reply(&c->reply);
    if (count > ARGS_MAX) {
        snprintf(why, why_cap, "more than %u arguments: give fewer", ARGS_MAX);
        return NULL;
    }
    uint64_t deadline_ns = cairn_deadline_ns(c->timeout_ns);
    cairn_status s = send_command(c, args, count, deadline_ns);
    if (s == CAIRN_OK)
        s = read_answer(c, deadline_ns);
    if (s == CAIRN_OK)
        return &c->reply;
    double seconds = (double)c->timeout_ns / 1e9;
    if (s == CAIRN_TIMEOUT)
        snprintf(why, why_cap, "%s did not answer within %g s: is it stopped or overloaded? "
                 "--timeout gives it longer", c->uri, seconds);
    else if (s == CAIRN_INVAL)
        snprintf(why, why_cap, "what answers at %s does not speak the Redis protocol (%s): check "
                 "the address", c->uri, c->parser.error);
    else if (s == CAIRN_NOMEM)
        snprintf(why, why_cap, "the answer of %s is too large for this program", c->uri);
    else
        snprintf(why, why_cap, "%s closed the connection: see its log", c->uri);
    return NULL;
}

bool node_call_is_cairnd(struct node_call *c)
{
    char why[256];
    const struct node_reply *r =
        node_call_run(c, NODE_ARGS(NODE_WORD("CAIRN.HELLO"), NODE_WORD("1")), why, sizeof why);
    return r && node_field(r, "run_id");
}

const char *node_uri(const struct node_where *o)
{
    const char *env = getenv("CAIRN_URI");
    return o->uri[0] ? o->uri : env && *env ? env : NODE_URI_DEFAULT;
}

int node_connect(const char *command, const struct node_where *o, struct node_call **ret)
{
    char err[512] = "";
    const char *uri = node_uri(o);
    if (!strncmp(uri, "embedded:", 9))
        return cli_fail(CLI_USAGE, "%s: '%s' is a store inside one program: this command asks a "
                        "node, give --uri unix:/path or tcp://127.0.0.1:port", command, uri);
    cairn_status s = node_call_open(uri, o->timeout_ns, ret, err, sizeof err);
    if (s == CAIRN_OK)
        return CLI_OK;
    bool usage = s == CAIRN_INVAL || s == CAIRN_UNSUPPORTED;
    const char *hint = usage ? "" : "; start one with deploy/run node, or name another with --uri";
    return cli_fail(usage ? CLI_USAGE : CLI_FAILED, "%s: %s%s", command,
                    err[0] ? err : cairn_status_str(s), hint);
}

const struct node_reply *node_ask(const char *command, struct node_call *c,
                                  const struct cairn_iov *args, uint32_t count)
{
    char why[512];
    const struct node_reply *r = node_call_run(c, args, count, why, sizeof why);
    if (!r) {
        cli_fail(CLI_FAILED, "%s: %s", command, why);
        return NULL;
    }
    if (r->kind != '-')
        return r;
    bool unknown = !strncasecmp(r->text, "ERR unknown command", 19);
    cli_fail(CLI_FAILED, "%s: %s answers: %s%s", command, c->uri, r->text,
             unknown ? "; is it a cairnd?" : "");
    return NULL;
}

const struct node_reply *node_field(const struct node_reply *map, const char *name)
{
    for (size_t i = 0; map && i + 1 < map->count; i += 2)
        if (map->items[i].text && !strcmp(map->items[i].text, name))
            return &map->items[i + 1];
    return NULL;
}

int64_t node_integer(const struct node_reply *r, int64_t missing)
{
    if (!r || r->kind == '_' || r->kind == '*')
        return missing;
    return r->text ? strtoll(r->text, NULL, 10) : r->integer;
}

bool node_ask_chunk(const char *command, struct node_call *c, const struct cairn_key *key,
                    struct node_chunk *ret)
{
    const struct node_reply *r = node_ask(
        command, c, NODE_ARGS(NODE_WORD("CAIRN.WHYMISS"), NODE_BYTES(key, sizeof *key)));
    if (!r)
        return false;
    const struct node_reply *text = node_field(r, "text");
    *ret = (struct node_chunk){
        .held = node_integer(node_field(r, "held"), 0),
        .ram = node_integer(node_field(r, "ram"), 0),
        .disk = node_integer(node_field(r, "disk"), 0),
        .cause = (enum cairn_cause)node_integer(node_field(r, "cause"), CAIRN_CAUSE_ABSENT),
        .age_ms = node_integer(node_field(r, "age_ms"), 0)};
    snprintf(ret->text, sizeof ret->text, "%s", text && text->text ? text->text : "");
    return true;
}
