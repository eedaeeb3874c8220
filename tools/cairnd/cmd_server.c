/* Commands about the node: its configuration, its commands, its state. */
#include <ctype.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/mem.h"
#include "tools/cairnd/glob.h"
#include "tools/cairnd/node.h"

#define NAME_MAX_BYTES 64
#define PAIRS_MAX 64

static enum call_flow ok(struct call *c)
{
    cairn_out_simple(c->out, "OK");
    return CALL_DONE;
}

/* --- INFO, TIME --- */

static enum call_flow cmd_info(struct call *c)
{
    char section[NAME_MAX_BYTES] = "";
    size_t cap = 8192;
    for (uint32_t i = 1, at = 0; i < c->argc; i++) {
        int n = snprintf(section + at, sizeof section - at, "%s%.*s", i > 1 ? " " : "",
                         (int)(c->args[i].len < sizeof section ? c->args[i].len : sizeof section),
                         c->args[i].data);
        at += n > 0 ? (uint32_t)n : 0;
        if (at >= sizeof section)
            return call_error(c, "ERR syntax error");
    }
    for (;;) {
        char *text = cairn_malloc(cap);
        if (!text)
            return call_error(c, "ERR out of memory");
        size_t len = report_info(c->node, section, text, cap);
        if (len < cap)
            cairn_out_verbatim(c->out, text, len);
        free(text);
        if (len < cap)
            return CALL_DONE;
        cap = len + 1024;
    }
}

static enum call_flow cmd_time(struct call *c)
{
    struct timespec now = cairn_timespec(cairn_wall_ns());
    char text[32];
    cairn_out_array(c->out, 2);
    snprintf(text, sizeof text, "%lld", (long long)now.tv_sec);
    cairn_out_text(c->out, text);
    snprintf(text, sizeof text, "%ld", now.tv_nsec / 1000);
    cairn_out_text(c->out, text);
    return CALL_DONE;
}

/* --- CONFIG --- */

/* What tools that know Redis ask for, by Redis's names. */
static void alias_print(const struct node_options *o, const char *name, char *out, size_t cap)
{
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {{"maxmemory", o->ram},         {"maxclients", o->clients_max},
                   {"databases", 1},              {"timeout", o->idle_ns / CAIRN_NS_PER_S},
                   {"proto-max-bulk-len", o->value_max}};
    snprintf(out, cap, "%s", strcmp(name, "appendonly") == 0         ? "no"
                             : strcmp(name, "maxmemory-policy") == 0 ? "allkeys-lru"
                                                                     : "");
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (strcmp(name, numbers[i].name) == 0)
            snprintf(out, cap, "%llu", (unsigned long long)numbers[i].value);
}

static const char *const aliases[] = {"maxmemory", "maxmemory-policy", "maxclients", "databases",
                                      "timeout",   "save",             "appendonly",
                                      "proto-max-bulk-len", NULL};

static bool name_matches(const struct call *c, const char *name)
{
    for (uint32_t i = 2; i < c->argc; i++) {
        char pattern[NAME_MAX_BYTES];
        size_t len = c->args[i].len < sizeof pattern ? c->args[i].len : sizeof pattern;
        for (size_t at = 0; at < len; at++)
            pattern[at] = (char)tolower((unsigned char)c->args[i].data[at]);
        if (glob_match(pattern, len, name, strlen(name)))
            return true;
    }
    return false;
}

static enum call_flow config_get(struct call *c)
{
    struct node_options now;
    char value[1024];
    uint32_t pairs = 0;
    if (c->argc > 2 + PAIRS_MAX)
        return call_sub_arity(c, "config|get");
    node_options_copy(&c->node->o, &now);
    for (const struct cairn_opt *o = node_option_table; o->name; o++)
        pairs += name_matches(c, o->name);
    for (const char *const *name = aliases; *name; name++)
        pairs += name_matches(c, *name);
    cairn_out_map(c->out, pairs);
    for (const struct cairn_opt *o = node_option_table; o->name; o++) {
        if (!name_matches(c, o->name))
            continue;
        cairn_opts_print(o, &now, value, sizeof value);
        cairn_out_text(c->out, o->name);
        cairn_out_text(c->out, value);
    }
    for (const char *const *name = aliases; *name; name++) {
        if (!name_matches(c, *name))
            continue;
        alias_print(&now, *name, value, sizeof value);
        cairn_out_text(c->out, *name);
        cairn_out_text(c->out, value);
    }
    return CALL_DONE;
}

static const struct cairn_opt *option_named(const struct call *c, uint32_t i)
{
    for (const struct cairn_opt *o = node_option_table; o->name; o++)
        if (call_is(c, i, o->name))
            return o;
    return NULL;
}

/* Sets pair i in the draft; false: the error is written. */
static bool config_draft(struct call *c, uint32_t i, struct node_options *draft)
{
    const struct cairn_opt *o = option_named(c, i);
    char value[1024], why[512], text[768];
    if (!o) {
        snprintf(text, sizeof text, "ERR Unknown option or number of arguments for CONFIG SET - "
                                    "'%.*s'",
                 (int)(c->args[i].len < NAME_MAX_BYTES ? c->args[i].len : NAME_MAX_BYTES),
                 c->args[i].data);
        call_error(c, text);
        return false;
    }
    snprintf(value, sizeof value, "%.*s",
             (int)(c->args[i + 1].len < sizeof value ? c->args[i + 1].len : sizeof value),
             c->args[i + 1].data);
    if (!node_option_live(o->name))
        snprintf(why, sizeof why, "can't set immutable config");
    else if (!cairn_opts_set(node_option_table, draft, o->name, value, why, sizeof why))
        return true;
    snprintf(text, sizeof text, "ERR CONFIG SET failed (possibly related to argument '%s') - %s",
             o->name, why);
    call_error(c, text);
    return false;
}

static enum call_flow config_set(struct call *c)
{
    struct node *n = c->node;
    if (c->argc % 2)
        return call_error(c, "ERR syntax error");
    if (c->argc > 2 + 2 * PAIRS_MAX)
        return call_sub_arity(c, "config|set");
    struct node_options draft;
    node_options_copy(&n->o, &draft);
    for (uint32_t i = 2; i < c->argc; i += 2)
        if (!config_draft(c, i, &draft))
            return CALL_DONE;
    for (uint32_t i = 2; i < c->argc; i += 2) {
        node_option_publish(&n->o, &draft, option_named(c, i)->name);
        cairn_log(CAIRN_LOG_INFO, "CONFIG SET %s %.*s by client %llu",
                  option_named(c, i)->name,
                  (int)(c->args[i + 1].len < 64 ? c->args[i + 1].len : 64), c->args[i + 1].data,
                  (unsigned long long)c->client->id);
    }
    return ok(c);
}

static void zero(_Atomic uint64_t *counter)
{
    atomic_store_explicit(counter, 0, memory_order_relaxed);
}

/* Only what INFO prints: the counters of /metrics never go back. */
static enum call_flow config_resetstat(struct call *c)
{
    struct node_stats *s = &c->node->stats;
    zero(&s->string_hits);
    zero(&s->string_misses);
    zero(&s->string_expired);
    return ok(c);
}

static enum call_flow cmd_config(struct call *c)
{
    static const char *const help[] = {
        "GET <pattern> [<pattern> ...]",
        "    Options that match, and their values.",
        "SET <option> <value> [<option> <value> ...]",
        "    Changes options that can be changed while the node runs: all of them or none.",
        "RESETSTAT",
        "    Begins the counters of INFO anew; those of /metrics go on.",
    };
    if (call_is(c, 1, "GET"))
        return c->argc < 3 ? call_sub_arity(c, "config|get") : config_get(c);
    if (call_is(c, 1, "SET"))
        return c->argc < 4 ? call_sub_arity(c, "config|set") : config_set(c);
    if (call_is(c, 1, "RESETSTAT"))
        return c->argc != 2 ? call_sub_arity(c, "config|resetstat") : config_resetstat(c);
    if (call_is(c, 1, "REWRITE"))
        return call_error(c, "ERR the configuration file is the operator's; change it there");
    if (!call_is(c, 1, "HELP"))
        return call_sub_unknown(c);
    if (c->argc != 2)
        return call_sub_arity(c, "config|help");
    return call_help(c, help, sizeof help / sizeof *help);
}

/* --- COMMAND --- */

static const char *lower(const char *name, char out[NAME_MAX_BYTES])
{
    size_t i = 0;
    for (; i < NAME_MAX_BYTES - 1 && name[i]; i++)
        out[i] = (char)tolower((unsigned char)name[i]);
    out[i] = '\0';
    return out;
}

static void count_command(void *arg, const struct command *c)
{
    (void)c;
    ++*(int64_t *)arg;
}

static int64_t command_count(void)
{
    int64_t n = 0;
    command_each(count_command, &n);
    return n;
}

static void print_command(void *arg, const struct command *command)
{
    struct cairn_out *out = ((struct call *)arg)->out;
    char name[NAME_MAX_BYTES];
    uint32_t flags = command->flags;
    cairn_out_array(out, 10);
    cairn_out_text(out, lower(command->name, name));
    cairn_out_int(out, command->arity);
    cairn_out_set(out, 1 + !!(flags & COMMAND_FAST) + !!(flags & COMMAND_ADMIN));
    cairn_out_simple(out, flags & COMMAND_WRITE ? "write" : "readonly");
    if (flags & COMMAND_FAST)
        cairn_out_simple(out, "fast");
    if (flags & COMMAND_ADMIN)
        cairn_out_simple(out, "admin");
    cairn_out_int(out, command->key_first);
    cairn_out_int(out, command->key_last);
    cairn_out_int(out, command->key_step);
    cairn_out_set(out, 0);   /* ACL categories */
    cairn_out_array(out, 0); /* tips */
    cairn_out_array(out, 0); /* key specifications */
    cairn_out_array(out, 0); /* subcommands */
}

static enum call_flow command_info(struct call *c)
{
    if (c->argc == 2) {
        cairn_out_array(c->out, (uint64_t)command_count());
        command_each(print_command, c);
        return CALL_DONE;
    }
    cairn_out_array(c->out, c->argc - 2);
    for (uint32_t i = 2; i < c->argc; i++) {
        const struct command *command = command_find(c->args[i].data, c->args[i].len);
        if (command)
            print_command(c, command);
        else
            cairn_out_null(c->out);
    }
    return CALL_DONE;
}

static void print_docs(void *arg, const struct command *command)
{
    struct cairn_out *out = ((struct call *)arg)->out;
    char name[NAME_MAX_BYTES];
    cairn_out_text(out, lower(command->name, name));
    cairn_out_map(out, 2);
    cairn_out_text(out, "summary");
    cairn_out_text(out, command->help);
    cairn_out_text(out, "group");
    cairn_out_text(out, strncmp(command->name, "CAIRN.", 6) == 0 ? "module"
                        : command->key_first ? "string" : "server");
}

static enum call_flow command_docs(struct call *c)
{
    uint64_t known = 0;
    if (c->argc == 2) {
        cairn_out_map(c->out, (uint64_t)command_count());
        command_each(print_docs, c);
        return CALL_DONE;
    }
    for (uint32_t i = 2; i < c->argc; i++)
        known += command_find(c->args[i].data, c->args[i].len) != NULL;
    cairn_out_map(c->out, known);
    for (uint32_t i = 2; i < c->argc; i++) {
        const struct command *command = command_find(c->args[i].data, c->args[i].len);
        if (command)
            print_docs(c, command);
    }
    return CALL_DONE;
}

static void print_name(void *arg, const struct command *command)
{
    char name[NAME_MAX_BYTES];
    cairn_out_text(((struct call *)arg)->out, lower(command->name, name));
}

static enum call_flow command_list(struct call *c)
{
    cairn_out_array(c->out, (uint64_t)command_count());
    command_each(print_name, c);
    return CALL_DONE;
}

/* The keys of another command's arguments. */
static enum call_flow command_getkeys(struct call *c)
{
    const struct command *command = command_find(c->args[2].data, c->args[2].len);
    uint32_t argc = c->argc - 2;
    if (!command)
        return call_error(c, "ERR Invalid command specified");
    if (!command->key_first)
        return call_error(c, "ERR The command has no key arguments");
    if (command->arity > 0 ? (int)argc != command->arity : (int)argc < -command->arity)
        return call_error(c, "ERR Invalid number of arguments specified for command");
    uint32_t last = command->key_last < 0 ? (uint32_t)((int)argc + command->key_last)
                                          : (uint32_t)command->key_last;
    uint32_t step = (uint32_t)command->key_step, first = (uint32_t)command->key_first;
    cairn_out_array(c->out, last < first ? 0 : (last - first) / step + 1);
    for (uint32_t i = first; i <= last; i += step)
        cairn_out_bulk(c->out, c->args[2 + i].data, c->args[2 + i].len);
    return CALL_DONE;
}

static enum call_flow command_all(struct call *c)
{
    cairn_out_array(c->out, (uint64_t)command_count());
    command_each(print_command, c);
    return CALL_DONE;
}

static enum call_flow command_count_reply(struct call *c)
{
    cairn_out_int(c->out, command_count());
    return CALL_DONE;
}

static enum call_flow cmd_command(struct call *c)
{
    static const char *const help[] = {
        "(no subcommand)", "    Name, arity, flags and keys of every command.",
        "COUNT",           "    How many commands there are.",
        "LIST",            "    Their names.",
        "INFO [<command> ...]", "    The same as without a subcommand, of these.",
        "DOCS [<command> ...]", "    A sentence about each.",
        "GETKEYS <command> <arg> [<arg> ...]", "    Which of the arguments are keys.",
    };
    if (c->argc == 1)
        return command_all(c);
    if (call_is(c, 1, "COUNT"))
        return c->argc != 2 ? call_sub_arity(c, "command|count") : command_count_reply(c);
    if (call_is(c, 1, "INFO"))
        return command_info(c);
    if (call_is(c, 1, "DOCS"))
        return command_docs(c);
    if (call_is(c, 1, "LIST"))
        return c->argc != 2 ? call_error(c, "ERR syntax error") : command_list(c);
    if (call_is(c, 1, "GETKEYS"))
        return c->argc < 4 ? call_sub_arity(c, "command|getkeys") : command_getkeys(c);
    if (!call_is(c, 1, "HELP"))
        return call_sub_unknown(c);
    if (c->argc != 2)
        return call_sub_arity(c, "command|help");
    return call_help(c, help, sizeof help / sizeof *help);
}

/* --- SHUTDOWN --- */

static enum call_flow cmd_shutdown(struct call *c)
{
    bool save = false, nosave = false, abort = false, other = false;
    for (uint32_t i = 1; i < c->argc; i++) {
        bool *seen = call_is(c, i, "SAVE")                             ? &save
                     : call_is(c, i, "NOSAVE")                         ? &nosave
                     : call_is(c, i, "ABORT")                          ? &abort
                     : call_is(c, i, "NOW") || call_is(c, i, "FORCE") ? &other
                                                                       : NULL;
        if (!seen)
            return call_error(c, "ERR syntax error");
        *seen = true;
    }
    if ((save && nosave) || (abort && (save || nosave || other)))
        return call_error(c, "ERR syntax error");
    if (abort)
        return call_error(c, "ERR No shutdown in progress.");
    cairn_log(CAIRN_LOG_INFO, "SHUTDOWN by client %llu", (unsigned long long)c->client->id);
    /* The main thread does the rest, as for the signal. No reply: the end of the connection is. */
    c->client->closing = true;
    kill(getpid(), SIGTERM);
    return CALL_DONE;
}

const struct command commands_server[] = {
    {.name = "INFO", .arity = -1, .run = cmd_info,
     .help = "State and counters, in sections."},
    {.name = "TIME", .arity = 1, .flags = COMMAND_FAST, .run = cmd_time,
     .help = "Seconds and microseconds of the node's clock."},
    {.name = "CONFIG", .arity = -2, .flags = COMMAND_ADMIN, .run = cmd_config,
     .help = "GET, SET and RESETSTAT; the options are those of cairnd --help."},
    {.name = "COMMAND", .arity = -1, .run = cmd_command,
     .help = "The commands: COUNT, INFO, DOCS, LIST, GETKEYS."},
    {.name = "SHUTDOWN", .arity = -1, .flags = COMMAND_ADMIN, .run = cmd_shutdown,
     .help = "Ends the node as SIGTERM does."},
    {.name = NULL},
};
