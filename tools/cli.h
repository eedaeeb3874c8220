/* The frame of the `cairn` program: one table row a subcommand, options from one table each
 * (base/options.h), so that parsing, defaults and --help cannot disagree. */
#ifndef CAIRN_TOOLS_CLI_H
#define CAIRN_TOOLS_CLI_H

#include <stdbool.h>

#include "base/options.h"
#include "connector/cairn.h"

#define CLI_OK 0
#define CLI_FAILED 1
#define CLI_USAGE 2

struct cli_command {
    const char *name;
    const char *args; /* as shown in usage: "KEYHEX FILE"             */
    uint32_t args_min, args_max;
    const struct cairn_opt *options; /* ends with a row without a name */
    size_t options_size;             /* bytes of the struct it fills   */
    int (*run)(const void *options, char **args, uint32_t count);
    const char *help; /* one sentence */
    const char *more; /* further lines of --help, or NULL */
    const char *apart; /* a first argument whose options are its own, or NULL */
    int (*run_apart)(int argc, char **argv); /* gets what stands behind it */
};

/* On stores, on keys and on the machine. */
extern const struct cli_command cli_features, cli_keys, cli_put, cli_get, cli_stat, cli_why,
    cli_fsck, cli_bench, cli_doctor;
/* On a running node. */
extern const struct cli_command cli_ping, cli_info, cli_top, cli_lookup, cli_why_miss, cli_clear,
    cli_pin, cli_unpin, cli_config;

/* Prints "cairn NAME: sentence" on stderr and returns the exit status given. */
int cli_fail(int status, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* What came of one key, in words: its cause, where one was given. */
const char *cli_reason(cairn_status status, int32_t cause);

/* One line on stderr that overwrites itself on a terminal; elsewhere a line every 10 %. */
void cli_progress(const char *what, uint64_t done, uint64_t total);

/* 64 hexadecimal digits; false otherwise. */
bool cli_parse_key(const char *hex, struct cairn_key *ret);
void cli_format_hex(const void *bytes, size_t len, char *out);

/* Whole file (or stdin for "-") into memory of its own; NULL after a message. At most max bytes. */
void *cli_read_file(const char *path, size_t max, size_t *ret_len);
bool cli_write_file(const char *path, const void *data, size_t len);

/* Identity from "name=value,name=value"; file: a line each instead. After a message: NULL. */
cairn_identity *cli_identity(const char *fields, const char *file);

/* Is this a store of another process, which goes on when this one ends? */
bool cli_is_node(const char *uri);

/* Opens the store of a URI. must_exist: a reading command makes no log. An exit status, after a
 * message unless it is CLI_OK. */
int cli_open(const char *uri, bool must_exist, cairn_store **ret);

/* Text of a function that fills a buffer and says how much it needs (cairn_stats and friends);
 * NULL after a message. */
char *cli_text(size_t (*fill)(void *arg, char *out, size_t cap), void *arg);
/* Prints a text of cli_text, as it is or flattened, and frees it. NULL is CLI_FAILED. */
int cli_show(char *text, bool json);

#endif
