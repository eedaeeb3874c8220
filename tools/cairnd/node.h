/* The node: one process that serves its vault to many clients.
 *
 * Threads: `threads` network threads (net.c), each an epoll loop over its own connections; a few
 * workers (work.c) for what may wait for a disk; the tier's I/O thread; one HTTP thread (http.c).
 * A command runs on its connection's network thread as long as nothing in it waits. A handler that
 * would have to wait answers CALL_WAITS, having changed nothing and written nothing; it is then run
 * again from the start on a worker with call->may_wait set, and its connection reads no further
 * until that is done. So handlers are written once, replies keep their order, and a slow client or
 * disk holds up nobody else.
 *
 * The only lock a command takes besides the vault's is the stripe of the string it changes. */
#ifndef CAIRN_TOOLS_CAIRND_NODE_H
#define CAIRN_TOOLS_CAIRND_NODE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/hist.h"
#include "base/options.h"
#include "storage/store.h"
#include "tools/cairnd/options.h"
#include "transport/out.h"
#include "transport/resp.h"
#include "transport/sock.h"

struct kv; /* kv_share.h */
struct net_thread;
struct client_shared; /* kv_share.h: mapped arena, write window, leases of a client */

/* --- clients --- */

struct client {
    /* Fixed from accept on. */
    uint64_t id;
    struct node *node;
    struct net_thread *thread;
    int fd;
    bool local;              /* unix socket                                                      */
    bool shared_ok;          /* its credentials are on the list for shared memory                */
    int pid;                 /* SO_PEERCRED, local only                                          */
    char address[64];        /* "127.0.0.1:40100", "unix:/run/cairn/cairn.sock"                  */
    uint64_t since_ns;

    /* Its network thread's, or the worker's that runs its call. */
    struct cairn_resp in;
    struct cairn_out out;
    struct cairn_room room;  /* memory of the payload being received, in the arena               */
    struct client_shared *shared; /* NULL until it attaches; freed with the client               */
    uint32_t tenant;         /* of every record and reply; 0 = "default"                         */
    bool closing;            /* no more commands; closed once `out` is sent                      */

    /* Read by other threads under node->clients_lock (names), or atomics. */
    char name[64], library[64], library_version[32];
    const struct command *_Atomic command; /* last one                                           */
    _Atomic uint64_t active_ns;    /* of the last command                                        */
    _Atomic uint64_t memory;       /* bytes held for it: input, output, long arguments           */
    _Atomic bool kill;             /* asks its thread to close it                                */
    struct client *next, *prev;    /* of all, under node->clients_lock                           */
};

/* --- commands --- */

enum call_flow { CALL_DONE, CALL_WAITS };

struct call {
    struct client *client;
    struct node *node;
    const struct command *command;
    struct cairn_resp_arg *args; /* args[0] is the command's name */
    uint32_t argc;
    struct cairn_out *out;       /* where the reply goes, whole */
    bool may_wait;
    uint32_t done;               /* of its steps, when it is run again; 0 at first */
    uint64_t deadline_ns;        /* of what it waits for */
};

#define COMMAND_WRITE 1u    /* changes something                                                  */
#define COMMAND_ADMIN 2u
#define COMMAND_FAST 4u     /* as COMMAND prints it                                               */
#define COMMAND_LOCAL 8u    /* unix socket only                                                   */
#define COMMAND_PAYLOAD 16u /* its last argument is a value: long ones are received in the arena  */
#define COMMAND_REFUSED 32u /* answers arguments that got no memory (data NULL) itself            */
#define COMMAND_LONG 64u    /* goes over all there is: on workers of its own, gets do not wait    */

struct command {
    const char *name;   /* upper case */
    int arity;          /* as Redis: exact with the name, or at least -arity */
    uint32_t flags;
    uint32_t payload;   /* COMMAND_PAYLOAD: index of the argument that is received into the arena */
    enum call_flow (*run)(struct call *c);
    const char *help;   /* one sentence */
    int8_t key_first, key_last, key_step; /* as COMMAND prints them; 0 0 0 = no keys */
    uint8_t side;       /* COMMAND_PAYLOAD: index of the argument with its side records, 0 = none */
};

/* The families; each table ends with a row without a name. */
extern const struct command commands_connection[]; /* cmd_connection.c: PING HELLO CLIENT ...     */
extern const struct command commands_server[];     /* cmd_server.c: INFO CONFIG COMMAND ...       */
extern const struct command commands_string[];     /* cmd_string*.c                               */
extern const struct command commands_keyspace[];   /* cmd_keyspace*.c: DEL SCAN EXPIRE ...        */
extern const struct command commands_kv[];         /* cmd_kv*.c: CAIRN.*                          */

/* By name, any case; NULL if there is none. */
const struct command *command_find(const char *name, size_t len);
/* Calls fn for every command of every family. */
void command_each(void (*fn)(void *arg, const struct command *c), void *arg);
/* Its place in node_stats.command; 0 for NULL, a command that there is not. */
uint32_t command_number(const struct command *c);
/* Is args[i] this word, any case? */
bool call_is(const struct call *c, uint32_t i, const char *word);
/* A whole decimal number; false (no reply written) if it is none. */
bool call_int(const struct call *c, uint32_t i, int64_t *ret);
/* "ERR syntax error" and friends, as Redis says them. CALL_DONE always. */
enum call_flow call_error(struct call *c, const char *text);
enum call_flow command_unknown(struct call *c);
enum call_flow call_arity(struct call *c); /* "ERR wrong number of arguments for 'x' command" */
/* Of a command that has subcommands. */
enum call_flow call_sub_arity(struct call *c, const char *full_name); /* "config|get" */
enum call_flow call_sub_unknown(struct call *c);
enum call_flow call_help(struct call *c, const char *const *lines, size_t count);
/* Takes the room that the payload argument was received into, if it was: its bytes are the value
 * already. False: the argument is in ordinary memory. After true the caller owns *ret; before it
 * answers CALL_WAITS it puts it back (call_return_room). */
bool call_take_room(struct call *c, struct cairn_room *ret);
void call_return_room(struct call *c, const struct cairn_room *room);

/* --- statistics: counters that INFO, /metrics and /debug/state print --- */

#define NODE_COMMANDS_MAX 256u

struct node_stats {
    _Atomic uint64_t connections, connections_refused, connections_killed;
    _Atomic uint64_t auth_failures; /* of the refused: users that are not in allow-uids */
    /* Closed by the node: nothing said for too long, no first command in time, a request not
     * finished in time, replies not taken, a request that is none, more memory than allowed. */
    _Atomic uint64_t closed_idle, closed_handshake, closed_request, closed_output;
    _Atomic uint64_t closed_protocol, closed_memory;
    _Atomic uint64_t payload_refused; /* long arguments there was no memory for */
    /* Values answered with "no room"; the vault counts every try for one. */
    _Atomic uint64_t no_room;
    _Atomic uint64_t commands, errors, slow_commands; /* slow: went to a worker */
    _Atomic uint64_t bytes_in, bytes_out;
    _Atomic uint64_t string_hits, string_misses, string_expired;
    _Atomic uint64_t kv_hits, kv_misses, kv_tokens_asked;
    _Atomic uint64_t kv_tokens_ram, kv_tokens_disk; /* of those asked for: held, and where */
    /* Lost: with their client. */
    _Atomic uint64_t leases_taken, leases_released, leases_expired, leases_lost;
    _Atomic uint64_t window_rejects;  /* bytes of a window that did not have the checks claimed */
    struct cairn_hist command_ns;     /* on the network thread or worker, without the sending   */
    struct {
        _Atomic uint64_t calls, errors; /* answered; with an error                              */
    } command[NODE_COMMANDS_MAX];
};

/* --- the node --- */

#define NODE_STRIPES 1024u

struct node {
    struct node_options o;
    struct cairn_resp_limits limits;  /* of requests, from o */
    struct cairn_vault *vault;
    struct net_thread *threads;
    uint32_t thread_count;
    struct work *work;
    struct http *http;
    struct kv *kv;
    struct cairn_listener tcp, local; /* fd -1 = none */
    uint64_t started_ns, started_wall_ns;
    uint64_t ready_ns;                /* what is stored can be asked for */
    char run_id[41];                  /* 40 hexadecimal digits, another at every start */
    _Atomic bool stopping;            /* no new connections, no new commands */
    _Atomic uint64_t stop_deadline_ns;
    struct node_stats stats;

    pthread_mutex_t clients_lock;
    struct client *clients;
    uint32_t client_count;
    uint64_t client_last_id;
    _Atomic uint64_t clients_memory;  /* sum of client.memory */
    _Atomic uint64_t receiving;       /* bytes of the arena that requests are received into */

    pthread_mutex_t stripe[NODE_STRIPES]; /* strings.c: held while a string is changed */
};

/* node.c */
cairn_status node_start(struct node *n, char *err, size_t err_cap);
/* Ends within 5 s of what is in flight; then the vault writes what is dirty and closes. */
void node_stop(struct node *n);

/* net.c */
cairn_status net_listen(struct node *n, char *err, size_t err_cap);
void net_unlisten(struct node *n);
cairn_status net_start(struct node *n, char *err, size_t err_cap);
void net_stop(struct node *n, uint64_t deadline_ns);
/* Has every network thread made a turn since the last call? Wakes them for the next one. `seen` has
 * a number for each of them. */
bool net_alive(struct node *n, uint64_t *seen);
/* Makes the client's thread look at it (kill, end of a worker's call). Any thread. */
void net_wake(struct client *c);
/* Bytes of one client's memory may grow by `more`? Counts them if so. */
bool client_charge(struct client *c, size_t more);
void client_discharge(struct client *c, size_t less);

/* work.c: bounded; false = full, the caller answers an error. fn runs once on a worker; what takes
 * long does so beside the workers of all else. */
struct work;
cairn_status work_start(struct node *n);
void work_stop(struct node *n, uint64_t deadline_ns);
bool work_submit(struct node *n, bool takes_long, void (*fn)(void *arg), void *arg);
/* What waits, what runs, and how much may wait. */
void work_state(struct node *n, uint32_t *ret_queued, uint32_t *ret_running,
                uint32_t *ret_capacity);

/* http.c */
struct http;
cairn_status http_start(struct node *n, char *err, size_t err_cap);
void http_stop(struct node *n);

/* report.c: text for INFO; as cairn_stats (returns length needed). section: "" or NULL = the usual
 * ones, else any case, "all" and "everything" too. */
size_t report_info(struct node *n, const char *section, char *out, size_t cap);
/* state.c: JSON for /debug/state and CAIRN.STATS. */
size_t report_state_json(struct node *n, char *out, size_t cap);
/* metrics.c: Prometheus text. */
size_t report_metrics(struct node *n, char *out, size_t cap);
/* Health: true = values can be stored and read; else one sentence in why. */
bool report_health(struct node *n, char *why, size_t cap);

#endif
