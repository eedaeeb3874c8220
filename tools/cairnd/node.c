#include "tools/cairnd/node.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/copy.h"
#include "base/log.h"
#include "connector/uri.h"
#include "storage/format.h"
#include "tools/cairnd/kv_share.h"

#define STOP_NS (5 * CAIRN_NS_PER_S)
/* For what is in memory only, after the last client is gone; the unit waits longer. */
#define WRITE_NS (40 * CAIRN_NS_PER_S)
#define LOG_NAME "cairn.log"
/* Of the index. */
#define ENTRY_BYTES 48u
#define ENTRIES_MIN 4096u
#define ENTRIES_MAX (1u << 30)
#define CHUNK_BYTES 65536u
/* Beside one a client: listeners, log, rings, workers, what the C library keeps open. */
#define FILES_BESIDE 128u

static const struct cairn_resp_limits request_limits = {
    .args_max = 1024 * 1024,
    .inline_max = 64 * 1024,
    .small_max = 16 * 1024,
    .request_max = 64 * 1024 * 1024,
};

/* A folder holds the log under its usual name. `cap` is enough for both. */
static void log_path(const struct node_options *o, char *out, size_t cap)
{
    struct stat st;
    bool folder = o->disk_path[0] && stat(o->disk_path, &st) == 0 && S_ISDIR(st.st_mode);
    snprintf(out, cap, "%s%s", o->disk_path, folder ? "/" LOG_NAME : "");
}

/* Strings may be as small as a value can be, one block beside its header, so the index has room for
 * that many as long as it costs no more than a sixteenth of the memory; and always for chunks. */
static uint32_t entries_of(const struct node_options *o, uint64_t disk)
{
    uint64_t smallest = (o->ram + disk) / (2 * CAIRN_BLOCK), paid = o->ram / 16 / ENTRY_BYTES;
    uint64_t chunks = o->ram / (2 * CAIRN_BLOCK) + disk / CHUNK_BYTES;
    uint64_t n = smallest < paid ? smallest : paid;
    n = n > chunks ? n : chunks;
    n = o->entries ? o->entries : n < ENTRIES_MIN ? ENTRIES_MIN : n;
    return n > ENTRIES_MAX ? ENTRIES_MAX : (uint32_t)n;
}

static cairn_status vault_open(struct node *n, char *err, size_t cap)
{
    const struct node_options *o = &n->o;
    char path[sizeof o->disk_path + 16];
    log_path(o, path, sizeof path);
    struct cairn_uri u;
    /* What is no option here is as in an embedded store. */
    cairn_status st = cairn_uri_parse("embedded:", &u, err, cap);
    if (st)
        return st;
    struct cairn_vault_opts *v = &u.vault;
    v->ram_bytes = o->ram;
    v->disk_bytes = path[0] ? o->disk : 0;
    v->path = path[0] ? path : NULL;
    v->entries = entries_of(o, v->disk_bytes);
    v->write = (enum cairn_write_policy)o->write;
    v->verify = (enum cairn_verify)o->verify;
    v->policy = node_policy_names[o->policy];
    v->engine = node_engine_names[o->engine];
    cairn_copy_init();
    return cairn_vault_open(v, &n->vault, err, cap);
}

static void identify(struct node *n)
{
    uint8_t bytes[20];
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
        memcpy(bytes, &n->started_ns, sizeof n->started_ns);
    for (size_t i = 0; i < sizeof bytes; i++)
        snprintf(n->run_id + 2 * i, 3, "%02x", bytes[i]);
}

/* As many descriptors as clients may come; where the system gives fewer, fewer may. */
static void files_raise(struct node *n)
{
    struct rlimit l;
    if (getrlimit(RLIMIT_NOFILE, &l))
        return;
    rlim_t want = (rlim_t)n->o.clients_max + FILES_BESIDE;
    if (l.rlim_cur < want) {
        l.rlim_cur = l.rlim_max == RLIM_INFINITY || l.rlim_max > want ? want : l.rlim_max;
        if (setrlimit(RLIMIT_NOFILE, &l) || getrlimit(RLIMIT_NOFILE, &l))
            return;
    }
    if (l.rlim_cur >= want)
        return;
    uint64_t left = l.rlim_cur > 2 * FILES_BESIDE ? l.rlim_cur - FILES_BESIDE : FILES_BESIDE;
    cairn_log(CAIRN_LOG_WARN, "clients-max is %llu instead of %llu: only %llu files may be open "
                              "(ulimit -n, LimitNOFILE=)", (unsigned long long)left,
              (unsigned long long)n->o.clients_max, (unsigned long long)l.rlim_cur);
    n->o.clients_max = left;
}

cairn_status node_start(struct node *n, char *err, size_t cap)
{
    n->tcp.fd = n->local.fd = -1;
    n->started_ns = cairn_now_ns();
    n->started_wall_ns = cairn_wall_ns();
    n->limits = request_limits;
    n->limits.bulk_max = n->o.value_max;
    identify(n);
    files_raise(n);
    pthread_mutex_init(&n->clients_lock, NULL);
    for (uint32_t i = 0; i < NODE_STRIPES; i++)
        pthread_mutex_init(&n->stripe[i], NULL);
    cairn_status st = net_listen(n, err, cap);
    if (!st)
        st = vault_open(n, err, cap);
    if (!st && (st = work_start(n)))
        snprintf(err, cap, "the %u workers could not be started: lower --workers or raise the "
                           "limit of processes", (unsigned)n->o.workers);
    if (!st)
        st = kv_start(n, err, cap);
    /* Whoever asks finds it set. */
    n->ready_ns = cairn_now_ns();
    if (!st)
        st = http_start(n, err, cap);
    if (!st)
        st = net_start(n, err, cap);
    if (st)
        node_stop(n);
    return st;
}

/* Strings are written when they leave memory, and now they do. */
static void vault_end(struct node *n)
{
    if (!n->vault)
        return;
    cairn_status st = cairn_vault_flush(n->vault, cairn_deadline_ns(WRITE_NS));
    if (st && st != CAIRN_UNSUPPORTED)
        cairn_log(CAIRN_LOG_WARN, "not all that was in memory has reached the disk: %s",
                  cairn_status_name(st));
    cairn_vault_close(n->vault);
    n->vault = NULL;
}

void node_stop(struct node *n)
{
    uint64_t deadline = cairn_now_ns() + STOP_NS;
    net_stop(n, deadline);
    http_stop(n);
    work_stop(n, deadline);
    net_unlisten(n);
    kv_stop(n);
    vault_end(n);
    for (uint32_t i = 0; i < NODE_STRIPES; i++)
        pthread_mutex_destroy(&n->stripe[i]);
    pthread_mutex_destroy(&n->clients_lock);
}
