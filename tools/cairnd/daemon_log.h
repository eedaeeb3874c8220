/* Where the node's messages go: a file that can be opened again, or standard error. */
#ifndef CAIRN_TOOLS_CAIRND_DAEMON_LOG_H
#define CAIRN_TOOLS_CAIRND_DAEMON_LOG_H

#include "tools/cairnd/options.h"

/* Sends messages there; `o` is kept, as its level may change. */
cairn_status daemon_log_open(const struct node_options *o, char *err, size_t err_cap);
/* After rotation: the same name, another file. Keeps the old one if that fails, and says so. */
void daemon_log_reopen(void);

#endif
