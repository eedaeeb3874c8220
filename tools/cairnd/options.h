/* What cairnd is told: one table drives the file, the environment, the command line, CONFIG and
 * --help (base/options.h). Later wins: default, file, CAIRN_<NAME> environment, command line,
 * CONFIG SET. */
#ifndef CAIRN_TOOLS_CAIRND_OPTIONS_H
#define CAIRN_TOOLS_CAIRND_OPTIONS_H

#include "base/options.h"

struct node_options {
    char config[1024];       /* --config: the file read                                          */
    char bind[256];          /* --bind: loopback address for TCP                                 */
    uint64_t port;           /* --port: 0 = no TCP                                               */
    char socket[108];        /* --socket: unix socket, empty = none                              */
    uint64_t http_port;      /* --http-port: 0 = none                                            */
    uint64_t ram, disk;      /* --ram, --disk: budgets in bytes                                  */
    char disk_path[1024];    /* --disk-path: directory or log file                               */
    uint64_t entries;        /* --entries: of the index, 0 = from ram and disk                   */
    uint32_t write;          /* --write: policy of KV chunks                                     */
    uint32_t verify;         /* --verify                                                         */
    uint32_t policy;         /* --policy                                                         */
    uint32_t engine;         /* --engine                                                         */
    uint64_t threads;        /* --threads: network threads                                       */
    uint64_t workers;        /* --workers                                                        */
    uint64_t spin_ns;        /* --spin: poll this long before sleeping, after something came     */
    uint64_t clients_max;    /* --clients-max                                                    */
    uint64_t client_memory;  /* --client-memory: bytes held for one client                       */
    uint64_t clients_memory; /* --clients-memory: bytes held for all of them                     */
    uint64_t output_max;     /* --output-max: queued reply bytes before a client is read no more */
    uint64_t idle_ns;        /* --idle-timeout: 0 = none                                         */
    uint64_t stall_ns;       /* --stall-timeout: a client that neither takes nor finishes        */
    uint64_t value_max;      /* --value-max                                                      */
    uint64_t io_timeout_ns;  /* --io-timeout: longest a command waits for a disk                 */
    uint64_t lease_ttl_ns;   /* --lease-ttl: longest ttl of a lease not mapped                   */
    char allow_uids[256];    /* --allow-uids: users of the unix socket, "self" or numbers        */
    char log_file[1024];     /* --log-file: empty = stderr                                       */
    uint32_t log_level;      /* --log-level                                                      */
};

extern const struct cairn_opt node_option_table[];
/* Names of the choices, as the vault takes them. */
extern const char *const node_policy_names[];
extern const char *const node_engine_names[];

#define NODE_CONFIG_DEFAULT "/etc/cairn/cairnd.conf"
#define NODE_CONFIG_TEXT_MAX 16384u /* the effective configuration fits */

enum node_action { NODE_RUN, NODE_PRINT_CONFIG, NODE_PRINT_HELP, NODE_PRINT_VERSION };

/* Fills o from all sources. CAIRN_INVAL: a sentence in err that names the source. */
cairn_status node_options_read(struct node_options *o, int argc, char **argv, int *ret_action,
                               char *err, size_t err_cap);
/* Adds the lines of a file; `text` is changed. */
cairn_status node_options_text(struct node_options *o, const char *path, char *text, char *err,
                               size_t err_cap);
/* What one row cannot see: addresses, users, options that need each other. */
cairn_status node_options_check(const struct node_options *o, char *err, size_t err_cap);
/* May this option change while the node runs? */
bool node_option_live(const char *name);
/* Makes the live option `name` of `to` what it is in `from`; other threads may be reading it, one
 * field by node_live, all by node_options_copy. */
void node_option_publish(struct node_options *to, const struct node_options *from,
                         const char *name);
void node_options_copy(const struct node_options *o, struct node_options *ret);
/* A live field, read by any thread. */
static inline uint64_t node_live(const uint64_t *field)
{
    return __atomic_load_n(field, __ATOMIC_RELAXED);
}
/* May a user connect to the unix socket? */
bool node_options_uid(const struct node_options *o, uint32_t uid);
/* "name value" lines, as the file takes them. */
void node_options_print(const struct node_options *o, char *out, size_t cap);
/* What --help says. */
void node_options_help(char *out, size_t cap);

#endif
