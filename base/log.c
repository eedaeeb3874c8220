#include "base/log.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#define LINE_MAX_BYTES 1024

static struct {
    cairn_log_fn fn;
    void *arg;
    int level_max;
} sink;

void cairn_log_to(cairn_log_fn fn, void *arg, int level_max)
{
    sink.fn = fn;
    sink.arg = arg;
    sink.level_max = level_max;
}

void cairn_log(int level, const char *fmt, ...)
{
    if (!sink.fn || level > sink.level_max)
        return;
    char line[LINE_MAX_BYTES];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(line, sizeof(line), fmt, ap);
    va_end(ap);
    if (n < 0)
        return;
    /* One line an event, whatever a path or a key=value pair from outside contains. */
    for (char *c = line; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f)
            *c = ' ';
    sink.fn(sink.arg, level, line);
}
