/* One table of options drives parsing, defaults, help and printing. */
#ifndef CAIRN_BASE_OPTIONS_H
#define CAIRN_BASE_OPTIONS_H

#include <stdbool.h>

#include "base/types.h"

enum cairn_opt_type {
    CAIRN_OPT_SIZE,     /* uint64_t bytes: 4096, 64KiB, 1.5GiB, 8G (powers of two), 1GB = 1e9 */
    CAIRN_OPT_DURATION, /* uint64_t ns: 5s, 250ms, 10us, plain number = seconds             */
    CAIRN_OPT_COUNT,    /* uint64_t                                                        */
    CAIRN_OPT_BOOL,     /* bool: yes/no/true/false/on/off/1/0                              */
    CAIRN_OPT_CHOICE,   /* uint32_t index into `choices`                                   */
    CAIRN_OPT_STRING,   /* char[]: `max` is the capacity with the NUL                      */
};

struct cairn_opt {
    const char *name;
    enum cairn_opt_type type;
    const char *def;          /* parsed like input; NULL = leave zero                      */
    uint64_t min, max;        /* inclusive; both 0 = no bound (STRING: max = capacity)     */
    const char *const *choices; /* NULL-terminated, CHOICE only                            */
    size_t offset;            /* of the field in the options struct                        */
    const char *help;         /* one sentence                                              */
};

/* Sets every field to its default. The table ends with a row whose name is NULL. */
void cairn_opts_defaults(const struct cairn_opt *table, void *opts);

/* Sets one option. On failure writes one sentence into err that names the option, the value and
 * what is allowed; for an unknown name also the nearest known one. CAIRN_INVAL or CAIRN_OK. */
cairn_status cairn_opts_set(const struct cairn_opt *table, void *opts, const char *name,
                            const char *value, char *err, size_t err_cap);

/* "a=1&b=2" with %XX escapes (the query of a URI). Empty or NULL is fine. */
cairn_status cairn_opts_query(const struct cairn_opt *table, void *opts, const char *query,
                              char *err, size_t err_cap);

/* Value of row `o` as text that cairn_opts_set takes back. */
void cairn_opts_print(const struct cairn_opt *o, const void *opts, char *out, size_t cap);

/* Nearest of a NULL-terminated list of names by edit distance, or NULL if none is near. */
const char *cairn_nearest(const char *name, const char *const *names);

cairn_status cairn_parse_size(const char *text, uint64_t *ret_bytes);
cairn_status cairn_parse_duration(const char *text, uint64_t *ret_ns);
/* "1.5 GiB"-style text. */
const char *cairn_format_size(uint64_t bytes, char *out, size_t cap);

#endif
