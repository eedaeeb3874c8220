#include "tools/cairnd/options.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "transport/addr.h"

#define MIB (1024ull * 1024ull)
#define TIB (MIB * MIB)
#define HOUR (3600 * CAIRN_NS_PER_S)
#define FILE_BYTES_MAX 65536u
#define AT(field) offsetof(struct node_options, field)
#define CAP(field) sizeof(((struct node_options *)NULL)->field)

static const char *const write_names[] = {"through", "on-evict", "none", NULL};
static const char *const verify_names[] = {"always", "first", "never", NULL};
const char *const node_policy_names[] = {"s3fifo", "lru", NULL};
const char *const node_engine_names[] = {"auto", "uring", "pool", NULL};
static const char *const level_names[] = {"error", "warn", "info", "debug", NULL};

const struct cairn_opt node_option_table[] = {
    {.name = "config", .type = CAIRN_OPT_STRING, .def = NODE_CONFIG_DEFAULT, .max = CAP(config),
     .offset = AT(config), .help = "file of 'name value' lines; the default may be missing"},
    {.name = "bind", .type = CAIRN_OPT_STRING, .def = "127.0.0.1", .max = CAP(bind),
     .offset = AT(bind), .help = "loopback address for TCP and HTTP"},
    {.name = "port", .type = CAIRN_OPT_COUNT, .def = "7379", .max = 65535, .offset = AT(port),
     .help = "TCP port of the Redis protocol, 0 = none"},
    {.name = "socket", .type = CAIRN_OPT_STRING, .def = "/run/cairn/cairn.sock",
     .max = CAP(socket), .offset = AT(socket), .help = "path of the unix socket, \"\" = none"},
    {.name = "http-port", .type = CAIRN_OPT_COUNT, .def = "7380", .max = 65535,
     .offset = AT(http_port), .help = "TCP port of /metrics, /healthz, /debug/state, 0 = none"},
    {.name = "ram", .type = CAIRN_OPT_SIZE, .def = "1GiB", .min = 8 * MIB, .max = 16 * TIB,
     .offset = AT(ram), .help = "memory for values, taken whole at start"},
    {.name = "disk", .type = CAIRN_OPT_SIZE, .def = "8GiB", .min = 32 * MIB, .max = 15 * TIB,
     .offset = AT(disk), .help = "bytes of the log; only with disk-path"},
    {.name = "disk-path", .type = CAIRN_OPT_STRING, .def = "", .max = CAP(disk_path),
     .offset = AT(disk_path), .help = "folder or file of the log, \"\" = memory only"},
    {.name = "entries", .type = CAIRN_OPT_COUNT, .def = "0", .max = 1u << 30,
     .offset = AT(entries), .help = "values the index holds, 47 bytes each, 0 = from ram and disk"},
    {.name = "write", .type = CAIRN_OPT_CHOICE, .def = "through", .choices = write_names,
     .offset = AT(write), .help = "when a KV chunk goes to disk; strings go when they leave RAM"},
    {.name = "verify", .type = CAIRN_OPT_CHOICE, .def = "first", .choices = verify_names,
     .offset = AT(verify), .help = "which reads from RAM are checked; reads from disk always are"},
    {.name = "policy", .type = CAIRN_OPT_CHOICE, .def = "s3fifo", .choices = node_policy_names,
     .offset = AT(policy), .help = "which value leaves RAM first"},
    {.name = "engine", .type = CAIRN_OPT_CHOICE, .def = "auto", .choices = node_engine_names,
     .offset = AT(engine), .help = "how the disk is read and written"},
    {.name = "threads", .type = CAIRN_OPT_COUNT, .def = "0", .max = 64, .offset = AT(threads),
     .help = "network threads, 0 = half of the cores, 1 to 4"},
    {.name = "workers", .type = CAIRN_OPT_COUNT, .def = "4", .min = 1, .max = 64,
     .offset = AT(workers), .help = "threads for commands that wait for the disk"},
    {.name = "spin", .type = CAIRN_OPT_DURATION, .def = "50us", .max = 10 * CAIRN_NS_PER_MS,
     .offset = AT(spin_ns), .help = "look for more this long before sleeping, 0 = sleep at once"},
    {.name = "clients-max", .type = CAIRN_OPT_COUNT, .def = "10000", .min = 1, .max = 1000000,
     .offset = AT(clients_max), .help = "connections at a time"},
    {.name = "client-memory", .type = CAIRN_OPT_SIZE, .def = "128MiB", .min = MIB, .max = TIB,
     .offset = AT(client_memory), .help = "bytes held for one client"},
    {.name = "clients-memory", .type = CAIRN_OPT_SIZE, .def = "1GiB", .min = MIB, .max = TIB,
     .offset = AT(clients_memory), .help = "bytes held for all clients together"},
    {.name = "output-max", .type = CAIRN_OPT_SIZE, .def = "16MiB", .min = 4096, .max = TIB,
     .offset = AT(output_max),
     .help = "reply bytes that may wait before no more of a client is read"},
    {.name = "idle-timeout", .type = CAIRN_OPT_DURATION, .def = "0", .max = 8760 * HOUR,
     .offset = AT(idle_ns), .help = "closes a client that says nothing for so long, 0 = never"},
    {.name = "stall-timeout", .type = CAIRN_OPT_DURATION, .def = "30s",
     .min = 10 * CAIRN_NS_PER_MS, .max = HOUR, .offset = AT(stall_ns),
     .help = "closes a client that does not finish a request or take its replies for so long"},
    {.name = "value-max", .type = CAIRN_OPT_SIZE, .def = "64MiB", .min = 1024, .max = 64 * MIB,
     .offset = AT(value_max), .help = "largest value; the budgets may allow less"},
    {.name = "io-timeout", .type = CAIRN_OPT_DURATION, .def = "4s", .min = CAIRN_NS_PER_MS,
     .max = 60 * CAIRN_NS_PER_S, .offset = AT(io_timeout_ns),
     .help = "longest a command waits for the disk"},
    {.name = "lease-ttl", .type = CAIRN_OPT_DURATION, .def = "60s", .min = CAIRN_NS_PER_MS,
     .max = 24 * HOUR, .offset = AT(lease_ttl_ns),
     .help = "longest lease of a client that maps no memory"},
    {.name = "allow-uids", .type = CAIRN_OPT_STRING, .def = "self", .max = CAP(allow_uids),
     .offset = AT(allow_uids),
     .help = "users of the unix socket: 'self' and numbers, with commas between; its file is "
             "0600, so others than root also need an ACL on it (setfacl)"},
    {.name = "log-file", .type = CAIRN_OPT_STRING, .def = "", .max = CAP(log_file),
     .offset = AT(log_file), .help = "\"\" = standard error; opened again at SIGHUP"},
    {.name = "log-level", .type = CAIRN_OPT_CHOICE, .def = "info", .choices = level_names,
     .offset = AT(log_level), .help = "least important message that is written"},
    {.name = NULL},
};

static const char *const live_names[] = {"spin",           "clients-max",  "client-memory",
                                         "clients-memory", "output-max",   "idle-timeout",
                                         "stall-timeout",  "io-timeout",   "log-level",
                                         NULL};
static pthread_mutex_t live_lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((format(printf, 3, 4))) static cairn_status bad(char *err, size_t cap,
                                                              const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err, cap, fmt, ap);
    va_end(ap);
    return CAIRN_INVAL;
}

static const struct cairn_opt *row_of(const char *name)
{
    for (const struct cairn_opt *o = node_option_table; o->name; o++)
        if (strcmp(o->name, name) == 0)
            return o;
    return NULL;
}

bool node_option_live(const char *name)
{
    for (const char *const *n = live_names; *n; n++)
        if (strcmp(*n, name) == 0)
            return true;
    return false;
}

void node_option_publish(struct node_options *to, const struct node_options *from, const char *name)
{
    const struct cairn_opt *row = row_of(name);
    void *into = (char *)to + row->offset;
    const void *value = (const char *)from + row->offset;
    pthread_mutex_lock(&live_lock);
    if (row->type == CAIRN_OPT_CHOICE)
        __atomic_store_n((uint32_t *)into, *(const uint32_t *)value, __ATOMIC_RELAXED);
    else
        __atomic_store_n((uint64_t *)into, *(const uint64_t *)value, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&live_lock);
}

void node_options_copy(const struct node_options *o, struct node_options *ret)
{
    pthread_mutex_lock(&live_lock);
    *ret = *o;
    pthread_mutex_unlock(&live_lock);
}

/* --- the file --- */

/* Cuts blanks off both ends, in place. */
static char *trimmed(char *text)
{
    while (isspace((unsigned char)*text))
        text++;
    size_t len = strlen(text);
    while (len && isspace((unsigned char)text[len - 1]))
        text[--len] = '\0';
    return text;
}

/* A value may stand in double quotes, the only way to write an empty one. */
static char *unquoted(char *value)
{
    size_t len = strlen(value);
    if (len < 2 || value[0] != '"' || value[len - 1] != '"')
        return value;
    value[len - 1] = '\0';
    return value + 1;
}

static cairn_status line_set(struct node_options *o, char *line, char *err, size_t cap)
{
    char *name = trimmed(line);
    if (!*name || *name == '#')
        return CAIRN_OK;
    /* "name value", and "name = value" as in other such files. */
    char *end = name + strcspn(name, " \t="), *value = end + strspn(end, " \t");
    value += *value == '=';
    value = trimmed(value);
    *end = '\0';
    if (!*value)
        return bad(err, cap, "option '%.64s' has no value: write '%.64s value', or \"\" for none",
                   name, name);
    if (strcmp(name, "config") == 0)
        return bad(err, cap, "option 'config' names the file; it cannot stand in it");
    return cairn_opts_set(node_option_table, o, name, unquoted(value), err, cap);
}

cairn_status node_options_text(struct node_options *o, const char *path, char *text, char *err,
                               size_t cap)
{
    uint32_t number = 1;
    for (char *line = text; line; number++) {
        char *end = strchr(line, '\n');
        if (end)
            *end++ = '\0';
        char why[512];
        if (line_set(o, line, why, sizeof why))
            return bad(err, cap, "%s:%u: %s", path, number, why);
        line = end;
    }
    return CAIRN_OK;
}

static cairn_status file_read(struct node_options *o, bool required, char *err, size_t cap)
{
    if (!o->config[0])
        return CAIRN_OK;
    int fd = open(o->config, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT && !required)
        return CAIRN_OK;
    if (fd < 0)
        return bad(err, cap, "cannot read the configuration '%s': %s; name a readable file with "
                             "--config, or none with --config=", o->config, strerror(errno));
    char *text = malloc(FILE_BYTES_MAX + 1);
    ssize_t n = text ? read(fd, text, FILE_BYTES_MAX + 1) : -1;
    int why = errno;
    close(fd);
    cairn_status st;
    if (n < 0)
        st = bad(err, cap, "cannot read the configuration '%s': %s", o->config, strerror(why));
    else if (n > (ssize_t)FILE_BYTES_MAX)
        st = bad(err, cap, "'%s' is larger than %u bytes: that is no configuration", o->config,
                 FILE_BYTES_MAX);
    else if (memchr(text, '\0', (size_t)n))
        st = bad(err, cap, "'%s' has a zero byte in it: that is no configuration", o->config);
    else {
        text[n] = '\0';
        st = node_options_text(o, o->config, text, err, cap);
    }
    free(text);
    return st;
}

/* --- environment and command line --- */

static const char *environment(const char *name)
{
    char variable[64] = "CAIRN_";
    size_t at = strlen(variable);
    for (; *name && at + 1 < sizeof variable; name++)
        variable[at++] = (char)(*name == '-' ? '_' : toupper((unsigned char)*name));
    variable[at] = '\0';
    return secure_getenv(variable);
}

static cairn_status environment_set(struct node_options *o, char *err, size_t cap)
{
    for (const struct cairn_opt *row = node_option_table; row->name; row++) {
        const char *value = environment(row->name);
        char why[512];
        if (value && cairn_opts_set(node_option_table, o, row->name, value, why, sizeof why))
            return bad(err, cap, "from the environment: %s", why);
    }
    return CAIRN_OK;
}

/* The next option of the command line: "--name=value" or "--name value". */
static cairn_status argument(int argc, char **argv, int *at, char name[64], const char **ret_value,
                             char *err, size_t cap)
{
    const char *text = argv[(*at)++];
    *ret_value = NULL;
    if (strncmp(text, "--", 2) != 0 || !text[2])
        return bad(err, cap, "'%.80s' is no option; options are written --name=value, --help "
                             "lists them", text);
    text += 2;
    size_t len = strcspn(text, "=");
    snprintf(name, 64, "%.*s", (int)(len < 63 ? len : 63), text);
    if (text[len] == '=') {
        *ret_value = text + len + 1;
        return CAIRN_OK;
    }
    if (row_of(name)) {
        if (*at >= argc)
            return bad(err, cap, "option '--%s' needs a value after it", name);
        *ret_value = argv[(*at)++];
    }
    return CAIRN_OK;
}

/* --- all of them, in order of weight --- */

static bool action_of(const char *name, int *ret)
{
    static const struct {
        const char *name;
        enum node_action action;
    } known[] = {{"help", NODE_PRINT_HELP}, {"version", NODE_PRINT_VERSION},
                 {"print-config", NODE_PRINT_CONFIG}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0) {
            *ret = known[i].action;
            return true;
        }
    return false;
}

static cairn_status command_line(struct node_options *o, int argc, char **argv, int *action,
                                 bool *has_config, char *err, size_t cap)
{
    for (int at = 1; at < argc;) {
        char name[64];
        const char *value;
        if (strcmp(argv[at], "-h") == 0) {
            *action = NODE_PRINT_HELP;
            at++;
            continue;
        }
        cairn_status st = argument(argc, argv, &at, name, &value, err, cap);
        if (st)
            return st;
        if (!value && action_of(name, action))
            continue;
        *has_config |= strcmp(name, "config") == 0;
        st = cairn_opts_set(node_option_table, o, name, value ? value : "", err, cap);
        if (st)
            return st;
    }
    return CAIRN_OK;
}

cairn_status node_options_read(struct node_options *o, int argc, char **argv, int *ret_action,
                               char *err, size_t cap)
{
    /* Twice: the first reading finds --config, whose file counts for less than what names it. */
    struct node_options asked;
    bool has_config = environment("config") != NULL;
    *ret_action = NODE_RUN;
    cairn_opts_defaults(node_option_table, &asked);
    cairn_status st = environment_set(&asked, err, cap);
    if (!st)
        st = command_line(&asked, argc, argv, ret_action, &has_config, err, cap);
    if (st || *ret_action == NODE_PRINT_HELP || *ret_action == NODE_PRINT_VERSION)
        return st;
    cairn_opts_defaults(node_option_table, o);
    memcpy(o->config, asked.config, sizeof o->config);
    st = file_read(o, has_config, err, cap);
    if (!st)
        st = environment_set(o, err, cap);
    if (!st)
        st = command_line(o, argc, argv, ret_action, &has_config, err, cap);
    return st ? st : node_options_check(o, err, cap);
}

/* --- what one row cannot see --- */

/* Calls for each part of allow-uids; false at a part that is none. */
static bool uid_listed(const char *list, uint32_t uid, bool *ret_listed)
{
    *ret_listed = false;
    for (const char *p = list; *p;) {
        size_t len = strcspn(p, ",");
        char *end;
        if (len == 4 && strncmp(p, "self", 4) == 0) {
            *ret_listed |= uid == (uint32_t)geteuid();
        } else {
            errno = 0;
            unsigned long n = isdigit((unsigned char)*p) ? strtoul(p, &end, 10) : 0;
            if (!isdigit((unsigned char)*p) || end != p + len || errno || n >= UINT32_MAX)
                return false;
            *ret_listed |= uid == (uint32_t)n;
        }
        p += len;
        if (*p && !*++p)
            return false;
    }
    return true;
}

bool node_options_uid(const struct node_options *o, uint32_t uid)
{
    bool listed;
    return uid_listed(o->allow_uids, uid, &listed) && listed;
}

cairn_status node_options_check(const struct node_options *o, char *err, size_t cap)
{
    bool listed;
    struct cairn_addr address;
    if (cairn_addr_tcp(o->bind, (uint16_t)o->port, &address, err, cap))
        return CAIRN_INVAL;
    if (o->socket[0] && cairn_addr_unix(o->socket, &address, err, cap))
        return CAIRN_INVAL;
    if (!o->port && !o->socket[0])
        return bad(err, cap, "port is 0 and socket is empty: nobody could connect; set one");
    if (o->port && o->port == o->http_port)
        return bad(err, cap, "port and http-port are both %u; give them different ones",
                   (unsigned)o->port);
    if (!uid_listed(o->allow_uids, 0, &listed))
        return bad(err, cap, "option 'allow-uids': '%.80s' is not a list of 'self' and user "
                             "numbers with commas between", o->allow_uids);
    return CAIRN_OK;
}

/* --- printing --- */

static void add(char *out, size_t cap, size_t *at, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));

static void add(char *out, size_t cap, size_t *at, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(out + *at, cap - *at, fmt, ap);
    va_end(ap);
    *at += n > 0 ? (size_t)n : 0;
    if (*at >= cap)
        *at = cap - 1;
}

void node_options_print(const struct node_options *o, char *out, size_t cap)
{
    size_t at = 0;
    out[0] = '\0';
    for (const struct cairn_opt *row = node_option_table; row->name; row++) {
        char value[1024];
        if (strcmp(row->name, "config") == 0)
            continue;
        cairn_opts_print(row, o, value, sizeof value);
        bool quote = !value[0] || strpbrk(value, " \t\"#");
        add(out, cap, &at, quote ? "%s \"%s\"\n" : "%s %s\n", row->name, value);
    }
}

void node_options_help(char *out, size_t cap)
{
    size_t at = 0;
    out[0] = '\0';
    add(out, cap, &at,
        "usage: cairnd [--name=value ...]\n"
        "       cairnd --print-config | --help | --version\n\n"
        "Serves one store to many clients: the Redis protocol on a unix socket and on loopback.\n"
        "Each option may also stand in the file as 'name value' or in the environment as\n"
        "CAIRN_<NAME>. Default, file, environment, command line, CONFIG SET: the later wins.\n"
        "Those with a * can be changed while it runs (CONFIG SET).\n\n");
    for (const struct cairn_opt *row = node_option_table; row->name; row++) {
        add(out, cap, &at, "  --%s%s  %s", row->name, node_option_live(row->name) ? " *" : "",
            row->help);
        for (const char *const *c = row->choices; c && *c; c++)
            add(out, cap, &at, "%s%s", c == row->choices ? ": " : ", ", *c);
        add(out, cap, &at, " (%s)\n", row->def && *row->def ? row->def : "\"\"");
    }
}
