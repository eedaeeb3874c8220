/* Reading a store's URI: "embedded:///path?ram=1GiB&disk=8GiB". */
#ifndef CAIRN_CONNECTOR_URI_H
#define CAIRN_CONNECTOR_URI_H

#include "base/cuda_config.h"
#include "base/options.h"
#include "storage/store.h"

/* What a URI says. `vault.path` and the names in `vault` point into this struct. */
struct cairn_uri {
    struct cairn_vault_opts vault;
    char path[4096];
    uint64_t workers;
    char cuda[CAIRN_CUDA_PATH_MAX];
};

/* The options of a URI. */
extern const struct cairn_opt cairn_uri_options[];

/* Public: connector/cairn.h has its contract. */
const char *cairn_options_help(void);

/* %XX escapes of `len` bytes into out; false if it does not fit or an escape is bad. */
bool cairn_uri_unescape(const char *in, size_t len, char *out, size_t cap);

/* CAIRN_INVAL with one sentence in err that names the part and the fix. */
cairn_status cairn_uri_parse(const char *uri, struct cairn_uri *ret, char *err, size_t err_cap);

#endif
