/* Reading a node's URI: "unix:/run/cairn/cairn.sock?timeout=1s" or "tcp://127.0.0.1:7379". */
#ifndef CAIRN_CONNECTOR_REMOTE_URI_H
#define CAIRN_CONNECTOR_REMOTE_URI_H

#include "base/cuda_config.h"
#include "base/options.h"
#include "transport/addr.h"

struct remote_options {
    struct cairn_addr addr;
    char address[CAIRN_ADDR_TEXT_MAX]; /* as text, for messages */
    bool local;                        /* unix socket           */
    uint64_t timeout_ns;
    uint64_t connections;
    uint64_t window, copies;           /* bytes                 */
    uint64_t workers;
    bool attach;
    bool lazy;
    char tenant[64];
    char cuda[CAIRN_CUDA_PATH_MAX];
};

extern const struct cairn_opt remote_option_table[];

/* CAIRN_INVAL with one sentence in err that names the part and the fix. */
cairn_status remote_uri_parse(const char *uri, struct remote_options *ret, char *err,
                              size_t err_cap);

#endif
