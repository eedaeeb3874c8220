/* Telling systemd: the protocol of sd_notify(3), which is one datagram of text. Without
 * $NOTIFY_SOCKET nothing happens. */
#ifndef CAIRN_TOOLS_CAIRND_NOTIFY_H
#define CAIRN_TOOLS_CAIRND_NOTIFY_H

#include <stdint.h>

/* "READY=1", "STOPPING=1", ... */
void notify_send(const char *text);
/* How long the watchdog waits for WATCHDOG=1, 0 = nobody watches this process. */
uint64_t notify_watchdog_ns(void);

#endif
