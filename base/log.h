/* Messages. The library prints nothing by itself: a sink is set by the program (cairn_log_to), and
 * without one messages are dropped. One line an event; never key bytes beyond the first 8, never
 * domain keys or tokens. */
#ifndef CAIRN_BASE_LOG_H
#define CAIRN_BASE_LOG_H

enum cairn_log_level { CAIRN_LOG_ERROR, CAIRN_LOG_WARN, CAIRN_LOG_INFO, CAIRN_LOG_DEBUG };

typedef void (*cairn_log_fn)(void *arg, int level, const char *line);

/* Not thread-safe against running stores: call first. NULL drops messages. */
void cairn_log_to(cairn_log_fn fn, void *arg, int level_max);

void cairn_log(int level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
