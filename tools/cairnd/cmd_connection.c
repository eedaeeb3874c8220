/* Commands about the connection itself. */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/mem.h"
#include "connector/cairn.h"
#include "tools/cairnd/connection.h"
#include "tools/cairnd/text.h"

/* Ids of one CLIENT LIST: each is compared with every client, while nobody may come or go. */
#define IDS_MAX 1024u
#define NOT_INTEGER "ERR value is not an integer or out of range"

static enum call_flow ok(struct call *c)
{
    cairn_out_simple(c->out, "OK");
    return CALL_DONE;
}

static enum call_flow cmd_ping(struct call *c)
{
    if (c->argc > 2)
        return call_arity(c);
    if (c->argc == 2)
        cairn_out_bulk(c->out, c->args[1].data, c->args[1].len);
    else
        cairn_out_simple(c->out, "PONG");
    return CALL_DONE;
}

static enum call_flow cmd_echo(struct call *c)
{
    cairn_out_bulk(c->out, c->args[1].data, c->args[1].len);
    return CALL_DONE;
}

static enum call_flow cmd_quit(struct call *c)
{
    c->client->closing = true;
    return ok(c);
}

static enum call_flow cmd_select(struct call *c)
{
    int64_t db;
    if (!call_int(c, 1, &db))
        return call_error(c, NOT_INTEGER);
    if (db < INT32_MIN || db > INT32_MAX)
        return call_error(c, "ERR value is out of range, value must between -2147483648 and "
                             "2147483647");
    if (db != 0)
        return call_error(c, "ERR DB index is out of range");
    return ok(c);
}

static enum call_flow cmd_auth(struct call *c)
{
    if (c->argc > 3)
        return call_error(c, "ERR syntax error");
    if (c->argc == 3 && call_is(c, 1, "default"))
        return ok(c);
    if (c->argc == 3)
        return call_error(c, "WRONGPASS invalid username-password pair or user is disabled.");
    return call_error(c, "ERR AUTH <password> called without any password configured for the "
                         "default user. Are you sure your configuration is correct?");
}

/* Argument i behind `before`, and a quote. */
static enum call_flow error_about(struct call *c, const char *before, uint32_t i)
{
    char text[160];
    snprintf(text, sizeof text, "%s%.*s'", before,
             (int)(c->args[i].len < 64 ? c->args[i].len : 64), c->args[i].data);
    return call_error(c, text);
}

/* --- names --- */

/* Printable, no blanks: CLIENT LIST prints it between others. */
static bool name_valid(const struct cairn_resp_arg *a)
{
    for (size_t i = 0; i < a->len; i++)
        if (a->data[i] < '!' || a->data[i] > '~')
            return false;
    return true;
}

static void name_set(struct client *c, char *field, size_t cap, const struct cairn_resp_arg *a)
{
    size_t len = a->len < cap ? a->len : cap - 1;
    pthread_mutex_lock(&c->node->clients_lock);
    memcpy(field, a->data, len);
    field[len] = '\0';
    pthread_mutex_unlock(&c->node->clients_lock);
}

/* False: the error is written. */
static bool client_name(struct call *c, uint32_t i)
{
    struct client *client = c->client;
    if (name_valid(&c->args[i])) {
        name_set(client, client->name, sizeof client->name, &c->args[i]);
        return true;
    }
    call_error(c, "ERR Client names cannot contain spaces, newlines or special characters.");
    return false;
}

/* --- HELLO, RESET --- */

static void hello_reply(struct call *c)
{
    cairn_out_map(c->out, 7);
    cairn_out_text(c->out, "server");
    cairn_out_text(c->out, "cairn");
    cairn_out_text(c->out, "version");
    cairn_out_text(c->out, CAIRN_VERSION_STRING);
    cairn_out_text(c->out, "proto");
    cairn_out_int(c->out, c->out->proto);
    cairn_out_text(c->out, "id");
    cairn_out_int(c->out, (int64_t)c->client->id);
    cairn_out_text(c->out, "mode");
    cairn_out_text(c->out, "standalone");
    cairn_out_text(c->out, "role");
    cairn_out_text(c->out, "master");
    cairn_out_text(c->out, "modules");
    cairn_out_array(c->out, 0);
}

static enum call_flow cmd_hello(struct call *c)
{
    int64_t proto = c->out->proto;
    uint32_t name = 0;
    if (c->argc > 1 && !call_int(c, 1, &proto))
        return call_error(c, "ERR Protocol version is not an integer or out of range");
    if (proto < 2 || proto > 3)
        return call_error(c, "NOPROTO unsupported protocol version");
    for (uint32_t i = 2; i < c->argc; i++) {
        uint32_t left = c->argc - 1 - i;
        if (call_is(c, i, "AUTH") && left >= 2) {
            if (!call_is(c, i + 1, "default"))
                return call_error(c, "WRONGPASS invalid username-password pair or user is "
                                     "disabled.");
            i += 2;
        } else if (call_is(c, i, "SETNAME") && left >= 1) {
            name = ++i;
        } else {
            return error_about(c, "ERR Syntax error in HELLO option '", i);
        }
    }
    if (name && !client_name(c, name))
        return CALL_DONE;
    c->out->proto = (uint8_t)proto;
    hello_reply(c);
    return CALL_DONE;
}

static enum call_flow cmd_reset(struct call *c)
{
    static const struct cairn_resp_arg none = {.data = (char *)(uintptr_t)"", .len = 0};
    c->out->proto = 2;
    name_set(c->client, c->client->name, sizeof c->client->name, &none);
    cairn_out_simple(c->out, "RESET");
    return CALL_DONE;
}

/* --- CLIENT --- */

/* Where it is connected to. */
static void address_here(const struct client *c, char *out, size_t cap)
{
    if (c->local)
        snprintf(out, cap, "%s", c->address);
    else
        snprintf(out, cap, "%s:%u", c->node->o.bind, (unsigned)c->node->o.port);
}

/* Under clients_lock. */
static void describe(struct text *t, struct client *c, uint64_t now)
{
    const struct connection *k = connection_of(c);
    const struct command *command = atomic_load_explicit(&c->command, memory_order_relaxed);
    uint64_t active = atomic_load_explicit(&c->active_ns, memory_order_relaxed);
    uint64_t queued = atomic_load_explicit(&k->queued_seen, memory_order_relaxed);
    uint64_t age = (now - c->since_ns) / CAIRN_NS_PER_S;
    uint64_t idle = now > active ? (now - active) / CAIRN_NS_PER_S : 0;
    char name[32] = "NULL", here[320];
    address_here(c, here, sizeof here);
    for (size_t i = 0; command && i < sizeof name; i++)
        if (!(name[i] = (char)tolower((unsigned char)command->name[i])))
            break;
    text_add(t, "id=%" PRIu64 " addr=%s laddr=%s fd=%d name=%s age=%" PRIu64 " idle=%" PRIu64
                " flags=%s db=0 sub=0 psub=0 ssub=0 multi=-1 qbuf=0 qbuf-free=0 argv-mem=0 "
                "multi-mem=0 obl=0 oll=0 omem=%" PRIu64 " tot-mem=%" PRIu64 " events=r cmd=%s "
                "user=default redir=-1 resp=%u lib-name=%s lib-ver=%s\n",
             c->id, c->address, here, c->fd, c->name, age, idle, c->local ? "U" : "N", queued,
             atomic_load_explicit(&c->memory, memory_order_relaxed), name,
             atomic_load_explicit(&k->proto_seen, memory_order_relaxed), c->library,
             c->library_version);
}

/* Ids given as LIST ID 1 2 3 or INFO: NULL text = none of them. */
static bool id_wanted(const struct call *c, uint32_t first, uint64_t id)
{
    int64_t n;
    if (first >= c->argc)
        return true;
    for (uint32_t i = first; i < c->argc; i++)
        if (call_int(c, i, &n) && n > 0 && (uint64_t)n == id)
            return true;
    return false;
}

static size_t list_write(struct call *c, uint32_t first, char *out, size_t cap)
{
    struct node *n = c->node;
    struct text t = {out, cap, 0};
    uint64_t now = cairn_now_ns();
    pthread_mutex_lock(&n->clients_lock);
    for (struct client *at = n->clients; at; at = at->next)
        if (id_wanted(c, first, at->id))
            describe(&t, at, now);
    pthread_mutex_unlock(&n->clients_lock);
    return t.len;
}

/* A list as one text; the number of clients may change between two looks. */
static enum call_flow client_list(struct call *c, uint32_t first)
{
    size_t cap = 4096, len;
    char *text = NULL;
    do {
        free(text);
        text = cairn_malloc(cap);
        if (!text)
            return call_error(c, "ERR out of memory");
        len = list_write(c, first, text, cap);
        if (len < cap)
            break;
        cap = len + 4096;
    } while (true);
    cairn_out_verbatim(c->out, text, len);
    free(text);
    return CALL_DONE;
}

/* False: the error is written. */
static bool client_type(struct call *c, uint32_t i)
{
    static const char *const types[] = {"normal", "master", "replica", "slave", "pubsub"};
    for (size_t n = 0; n < sizeof types / sizeof *types; n++)
        if (call_is(c, i, types[n]))
            return true;
    error_about(c, "ERR Unknown client type '", i);
    return false;
}

static enum call_flow client_list_command(struct call *c)
{
    int64_t id;
    if (c->argc == 2)
        return client_list(c, c->argc);
    if (c->argc == 4 && call_is(c, 2, "TYPE")) {
        if (!client_type(c, 3))
            return CALL_DONE;
        if (call_is(c, 3, "normal"))
            return client_list(c, c->argc);
        cairn_out_verbatim(c->out, "", 0);
        return CALL_DONE;
    }
    if (c->argc < 4 || !call_is(c, 2, "ID"))
        return call_error(c, "ERR syntax error");
    if (c->argc > 3 + IDS_MAX)
        return call_error(c, "ERR too many client IDs: at most 1024 here");
    for (uint32_t i = 3; i < c->argc; i++)
        if (!call_int(c, i, &id))
            return call_error(c, "ERR Invalid client ID");
    return client_list(c, 3);
}

static enum call_flow client_info(struct call *c)
{
    char out[1024];
    struct text t = {out, sizeof out, 0};
    pthread_mutex_lock(&c->node->clients_lock);
    describe(&t, c->client, cairn_now_ns());
    pthread_mutex_unlock(&c->node->clients_lock);
    cairn_out_verbatim(c->out, out, t.len < sizeof out ? t.len : sizeof out - 1);
    return CALL_DONE;
}

/* Which clients CLIENT KILL means; zero fields mean any. */
struct kill_filter {
    int64_t id;
    const struct cairn_resp_arg *address, *here;
    bool skip_me, no_normal;
};

static bool is_text(const struct cairn_resp_arg *wanted, const char *text)
{
    return !wanted || (strlen(text) == wanted->len &&
                       memcmp(text, wanted->data, wanted->len) == 0);
}

static bool kill_wanted(const struct call *c, const struct kill_filter *f, const struct client *at)
{
    if (f->id && (uint64_t)f->id != at->id)
        return false;
    char here[320];
    address_here(at, here, sizeof here);
    if (!is_text(f->address, at->address) || !is_text(f->here, here))
        return false;
    return !f->no_normal && !(f->skip_me && at == c->client);
}

static int64_t kill_clients(struct call *c, const struct kill_filter *f)
{
    struct node *n = c->node;
    int64_t killed = 0;
    pthread_mutex_lock(&n->clients_lock);
    for (struct client *at = n->clients; at; at = at->next) {
        if (!kill_wanted(c, f, at))
            continue;
        killed++;
        if (at == c->client) {
            at->closing = true; /* after the reply */
        } else {
            atomic_store_explicit(&at->kill, true, memory_order_relaxed);
            net_wake(at);
        }
    }
    pthread_mutex_unlock(&n->clients_lock);
    atomic_fetch_add_explicit(&n->stats.connections_killed, (uint64_t)killed, memory_order_relaxed);
    return killed;
}

/* One pair of CLIENT KILL; false: the error is written. */
static bool kill_option(struct call *c, uint32_t i, struct kill_filter *f)
{
    if (call_is(c, i, "ID")) {
        if (call_int(c, i + 1, &f->id) && f->id > 0)
            return true;
        call_error(c, "ERR client-id should be greater than 0");
    } else if (call_is(c, i, "ADDR")) {
        f->address = &c->args[i + 1];
        return true;
    } else if (call_is(c, i, "LADDR")) {
        f->here = &c->args[i + 1];
        return true;
    } else if (call_is(c, i, "TYPE")) {
        f->no_normal = !call_is(c, i + 1, "normal");
        return client_type(c, i + 1);
    } else if (call_is(c, i, "USER")) {
        if (call_is(c, i + 1, "default"))
            return true;
        error_about(c, "ERR No such user '", i + 1);
    } else if (call_is(c, i, "SKIPME") && (call_is(c, i + 1, "yes") || call_is(c, i + 1, "no"))) {
        f->skip_me = call_is(c, i + 1, "yes");
        return true;
    } else {
        call_error(c, "ERR syntax error");
    }
    return false;
}

static enum call_flow client_kill(struct call *c)
{
    struct kill_filter f = {.skip_me = true};
    if (c->argc == 3) {
        f.address = &c->args[2];
        f.skip_me = false;
        if (!kill_clients(c, &f))
            return call_error(c, "ERR No such client");
        return ok(c);
    }
    if (c->argc < 4 || c->argc % 2)
        return call_error(c, "ERR syntax error");
    for (uint32_t i = 2; i < c->argc; i += 2)
        if (!kill_option(c, i, &f))
            return CALL_DONE;
    cairn_out_int(c->out, kill_clients(c, &f));
    return CALL_DONE;
}

static enum call_flow client_setname(struct call *c)
{
    return client_name(c, 2) ? ok(c) : CALL_DONE;
}

static enum call_flow client_getname(struct call *c)
{
    if (c->client->name[0])
        cairn_out_text(c->out, c->client->name);
    else
        cairn_out_null(c->out);
    return CALL_DONE;
}

static enum call_flow client_setinfo(struct call *c)
{
    struct client *client = c->client;
    char text[160];
    bool library = call_is(c, 2, "LIB-NAME");
    if (!library && !call_is(c, 2, "LIB-VER"))
        return error_about(c, "ERR Unrecognized option '", 2);
    if (!name_valid(&c->args[3])) {
        snprintf(text, sizeof text, "ERR %s cannot contain spaces, newlines or special characters.",
                 library ? "lib-name" : "lib-ver");
        return call_error(c, text);
    }
    name_set(client, library ? client->library : client->library_version,
             library ? sizeof client->library : sizeof client->library_version, &c->args[3]);
    return ok(c);
}

static enum call_flow client_id(struct call *c)
{
    cairn_out_int(c->out, (int64_t)c->client->id);
    return CALL_DONE;
}

static enum call_flow client_on_off(struct call *c)
{
    return call_is(c, 2, "ON") || call_is(c, 2, "OFF") ? ok(c)
                                                       : call_error(c, "ERR syntax error");
}

static enum call_flow client_getredir(struct call *c)
{
    cairn_out_int(c->out, -1);
    return CALL_DONE;
}

static enum call_flow client_absent(struct call *c)
{
    return call_error(c, "ERR this subcommand of CLIENT is not supported by a cache node");
}

static enum call_flow client_help(struct call *c)
{
    static const char *const help[] = {
        "ID", "    The number of this connection.",
        "INFO", "    This connection as LIST shows it.",
        "LIST [TYPE <type> | ID <id> [<id> ...]]", "    Connections, one a line.",
        "KILL <ip:port>", "    Closes the connection from there.",
        "KILL <option> <value> [<option> <value> ...]", "    Closes those that match all options:",
        "    * ADDR <ip:port>, LADDR <ip:port>", "      From there; to there.",
        "    * ID <id>", "      That one.",
        "    * TYPE (NORMAL|MASTER|REPLICA|PUBSUB)", "      All are NORMAL here.",
        "    * USER <name>", "      All are of the user default.",
        "    * SKIPME (YES|NO)", "      Leave out the one that asks (YES).",
        "SETNAME <name>", "    Names this connection; LIST shows the first 63 bytes.",
        "GETNAME", "    Its name.",
        "SETINFO (LIB-NAME|LIB-VER) <text>", "    Which library it uses.",
    };
    return call_help(c, help, sizeof help / sizeof *help);
}

static const struct {
    const char *name;
    int arity; /* with CLIENT and the name, as a command's */
    enum call_flow (*run)(struct call *c);
} subcommands[] = {
    {"ID", 2, client_id},           {"INFO", 2, client_info},
    {"LIST", -2, client_list_command}, {"KILL", -3, client_kill},
    {"SETNAME", 3, client_setname}, {"GETNAME", 2, client_getname},
    {"SETINFO", 4, client_setinfo}, {"NO-EVICT", 3, client_on_off},
    {"NO-TOUCH", 3, client_on_off}, {"GETREDIR", 2, client_getredir},
    {"REPLY", -2, client_absent},   {"TRACKING", -2, client_absent},
    {"CACHING", -2, client_absent}, {"PAUSE", -2, client_absent},
    {"UNPAUSE", -2, client_absent}, {"UNBLOCK", -2, client_absent},
    {"HELP", 2, client_help},
};

static enum call_flow cmd_client(struct call *c)
{
    char name[32] = "client|";
    size_t at = strlen(name);
    for (size_t i = 0; i < sizeof subcommands / sizeof *subcommands; i++) {
        int arity = subcommands[i].arity;
        if (!call_is(c, 1, subcommands[i].name))
            continue;
        if (arity > 0 ? (int)c->argc == arity : (int)c->argc >= -arity)
            return subcommands[i].run(c);
        for (const char *p = subcommands[i].name; *p && at < sizeof name - 1; p++)
            name[at++] = (char)tolower((unsigned char)*p);
        name[at] = '\0';
        return call_sub_arity(c, name);
    }
    return call_sub_unknown(c);
}

const struct command commands_connection[] = {
    {.name = "PING", .arity = -1, .flags = COMMAND_FAST, .run = cmd_ping,
     .help = "Answers PONG, or its argument."},
    {.name = "ECHO", .arity = 2, .flags = COMMAND_FAST, .run = cmd_echo,
     .help = "Answers its argument."},
    {.name = "HELLO", .arity = -1, .flags = COMMAND_FAST, .run = cmd_hello,
     .help = "Chooses the protocol, 2 or 3, and says who serves it."},
    {.name = "SELECT", .arity = 2, .flags = COMMAND_FAST, .run = cmd_select,
     .help = "Takes 0, the only database."},
    {.name = "AUTH", .arity = -2, .flags = COMMAND_FAST, .run = cmd_auth,
     .help = "Takes the user default; there are no others."},
    {.name = "QUIT", .arity = -1, .flags = COMMAND_FAST, .run = cmd_quit,
     .help = "Closes the connection after the reply."},
    {.name = "RESET", .arity = 1, .flags = COMMAND_FAST, .run = cmd_reset,
     .help = "Makes the connection as a new one."},
    {.name = "CLIENT", .arity = -2, .flags = COMMAND_ADMIN, .run = cmd_client,
     .help = "ID, INFO, LIST, KILL, SETNAME, GETNAME, SETINFO of connections."},
    {.name = NULL},
};
