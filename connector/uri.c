#include "connector/uri.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/cuda_config.h"
#include "connector/remote_uri.h"

#define LOG_NAME "cairn.log"

struct raw {
    uint64_t ram, disk, entries, lock_wait, io_deadline, errors_max, probe, reinsert, workers;
    uint32_t write, verify, policy, engine;
    bool prewrite;
    char cuda[CAIRN_CUDA_PATH_MAX];
};

static const char *const write_names[] = {"through", "on-evict", "none", NULL};
static const char *const verify_names[] = {"always", "first", "never", NULL};
static const char *const policy_names[] = {"s3fifo", "lru", NULL};
static const char *const engine_names[] = {"auto", "uring", "pool", NULL};

#define AT(field) offsetof(struct raw, field)
#define MIB (1024ull * 1024ull)
#define TIB (MIB * MIB)

const struct cairn_opt cairn_uri_options[] = {
    {.name = "ram", .type = CAIRN_OPT_SIZE, .def = "1GiB", .min = 8 * MIB, .max = 16 * TIB,
     .offset = AT(ram), .help = "memory for values, taken whole at open"},
    {.name = "disk", .type = CAIRN_OPT_SIZE, .def = "8GiB", .min = 32 * MIB, .max = 15 * TIB,
     .offset = AT(disk), .help = "bytes of the log; only with a path"},
    {.name = "write", .type = CAIRN_OPT_CHOICE, .def = "through", .choices = write_names,
     .offset = AT(write),
     .help = "when a value goes to disk: at put, when it leaves RAM, or only at flush"},
    {.name = "verify", .type = CAIRN_OPT_CHOICE, .def = "first", .choices = verify_names,
     .offset = AT(verify), .help = "which reads from RAM are checked; reads from disk always are"},
    {.name = "policy", .type = CAIRN_OPT_CHOICE, .def = "s3fifo", .choices = policy_names,
     .offset = AT(policy), .help = "which value leaves RAM first"},
    {.name = "engine", .type = CAIRN_OPT_CHOICE, .def = "auto", .choices = engine_names,
     .offset = AT(engine), .help = "how the disk is read and written"},
    {.name = "entries", .type = CAIRN_OPT_COUNT, .def = "0", .min = 0, .max = 1u << 30,
     .offset = AT(entries), .help = "keys the index holds, 47 bytes each; 0 = from ram and disk"},
    {.name = "reinsert", .type = CAIRN_OPT_COUNT, .def = "10", .min = 0, .max = 50,
     .offset = AT(reinsert),
     .help = "percent of a reclaimed segment that may be kept for its hits"},
    {.name = "io_deadline", .type = CAIRN_OPT_DURATION, .def = "5s", .min = CAIRN_NS_PER_MS,
     .max = 3600 * CAIRN_NS_PER_S, .offset = AT(io_deadline),
     .help = "a device that takes longer has lost the request"},
    {.name = "errors_max", .type = CAIRN_OPT_COUNT, .def = "16", .min = 1, .max = 1u << 20,
     .offset = AT(errors_max), .help = "disk reads or writes in a row that fail and turn it off"},
    {.name = "probe", .type = CAIRN_OPT_DURATION, .def = "1s", .max = 3600 * CAIRN_NS_PER_S,
     .offset = AT(probe),
     .help = "first pause before a disk that was turned off is tried again, 0 = never"},
    {.name = "lock_wait", .type = CAIRN_OPT_DURATION, .def = "5s", .min = 0,
     .max = 3600 * CAIRN_NS_PER_S, .offset = AT(lock_wait),
     .help = "how long open waits for another process to let go of the log"},
    {.name = "prewrite", .type = CAIRN_OPT_BOOL, .def = "yes", .offset = AT(prewrite),
     .help = "write a new log once end to end in the background: later writes are 1.6x faster"},
    {.name = "workers", .type = CAIRN_OPT_COUNT, .def = "0", .min = 0, .max = 64,
     .offset = AT(workers),
     .help = "threads for submitted (asynchronous) calls; 0 = half of the cores, 2 to 4"},
    {.name = "cuda", .type = CAIRN_OPT_STRING, .def = "auto", .max = CAIRN_CUDA_PATH_MAX,
     .offset = AT(cuda), .help = CAIRN_CUDA_OPTION_HELP},
    {.name = NULL},
};

static char help_text[8192];

/* Lines of one table after what is in `help_text` already. Returns the length now. */
static size_t help_add(size_t at, const char *title, const struct cairn_opt *table)
{
    size_t cap = sizeof help_text;
    at += (size_t)snprintf(help_text + at, cap - at, "%s", title);
    for (const struct cairn_opt *o = table; o->name; o++) {
        at += (size_t)snprintf(help_text + at, cap - at, "%s=%s  %s", o->name, o->def, o->help);
        for (const char *const *c = o->choices; c && *c && at < cap; c++)
            at += (size_t)snprintf(help_text + at, cap - at, "%s%s", c == o->choices ? ": " : ", ",
                                   *c);
        if (at + 2 > cap)
            return cap - 1;
        help_text[at++] = '\n';
        help_text[at] = '\0';
    }
    return at;
}

static void help_write(void)
{
    size_t at = help_add(0, "embedded:///path?...\n", cairn_uri_options);
    help_add(at, "unix:/path?... and tcp://127.0.0.1:port?...\n", remote_option_table);
}

const char *cairn_options_help(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, help_write);
    return help_text;
}

__attribute__((format(printf, 3, 4)))
static cairn_status bad(char *err, size_t cap, const char *fmt, ...)
{
    if (cap) {
        va_list args;
        va_start(args, fmt);
        vsnprintf(err, cap, fmt, args);
        va_end(args);
    }
    return CAIRN_INVAL;
}

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                          : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

bool cairn_uri_unescape(const char *in, size_t len, char *out, size_t cap)
{
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        char c = in[i];
        if (c == '%') {
            if (i + 2 >= len || hex(in[i + 1]) < 0 || hex(in[i + 2]) < 0)
                return false;
            c = (char)(hex(in[i + 1]) * 16 + hex(in[i + 2]));
            i += 2;
        }
        if (c == '\0' || n + 1 >= cap)
            return false;
        out[n++] = c;
    }
    out[n] = '\0';
    return true;
}

/* A directory holds the log under its usual name; anything else is the log itself. */
static bool find_log(char *path, size_t cap)
{
    struct stat st;
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode))
        return true;
    size_t len = strlen(path);
    const char *slash = len && path[len - 1] == '/' ? "" : "/";
    int n = snprintf(path + len, cap - len, "%s" LOG_NAME, slash);
    return n > 0 && (size_t)n < cap - len;
}

static cairn_status parse_path(const char *rest, size_t len, struct cairn_uri *u, char *err,
                               size_t cap)
{
    if (len >= 2 && rest[0] == '/' && rest[1] == '/') {
        rest += 2;
        len -= 2;
        if (len && rest[0] != '/')
            return bad(err, cap, "'%s': a host name in an embedded URI; write embedded:///path "
                                 "with three slashes", rest);
    }
    if (!cairn_uri_unescape(rest, len, u->path, sizeof u->path))
        return bad(err, cap, "'%s': the path is too long or has a bad %%XX escape", rest);
    if (!find_log(u->path, sizeof u->path))
        return bad(err, cap, "'%s': the path is too long", u->path);
    return CAIRN_OK;
}

/* Is the option named in the query? */
static bool names(const char *query, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = query; p; p = strchr(p, '&')) {
        p += *p == '&';
        if (strncmp(p, name, n) == 0 && p[n] == '=')
            return true;
    }
    return false;
}

cairn_status cairn_uri_parse(const char *uri, struct cairn_uri *u, char *err, size_t cap)
{
    static const char scheme[] = "embedded:";
    memset(u, 0, sizeof *u);
    if (strncmp(uri, scheme, sizeof scheme - 1) != 0)
        return bad(err, cap, "'%s': unknown kind of store; write embedded:///path?ram=1GiB&"
                             "disk=8GiB or embedded:?ram=1GiB", uri);
    const char *rest = uri + sizeof scheme - 1;
    const char *query = strchr(rest, '?');
    size_t len = query ? (size_t)(query - rest) : strlen(rest);
    cairn_status st = parse_path(rest, len, u, err, cap);
    struct raw r = {0};
    cairn_opts_defaults(cairn_uri_options, &r);
    if (!st && query)
        st = cairn_opts_query(cairn_uri_options, &r, query + 1, err, cap);
    if (st)
        return st;
    if (!u->path[0] && query && names(query + 1, "disk"))
        return bad(err, cap, "'%s': disk= without a path for the log; write embedded:///path?...",
                   uri);
    u->workers = r.workers;
    memcpy(u->cuda, r.cuda, sizeof u->cuda);
    u->vault = (struct cairn_vault_opts){
        .ram_bytes = r.ram,
        .disk_bytes = u->path[0] ? r.disk : 0,
        .path = u->path[0] ? u->path : NULL,
        .entries = (uint32_t)r.entries,
        .write = (enum cairn_write_policy)r.write,
        .verify = (enum cairn_verify)r.verify,
        .policy = policy_names[r.policy],
        .engine = engine_names[r.engine],
        .lock_wait_ns = r.lock_wait,
        .io_deadline_ns = r.io_deadline,
        .errors_max = (uint32_t)r.errors_max,
        .probe_ns = r.probe,
        .reinsert_percent = (uint32_t)r.reinsert,
        .prewrite = r.prewrite,
    };
    return CAIRN_OK;
}
