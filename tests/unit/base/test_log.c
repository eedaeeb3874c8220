#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"

static struct {
    int calls, level;
    char line[2048];
} got;

static void keep(void *arg, int level, const char *line)
{
    cr_assert_eq(arg, (void *)&got);
    got.calls++;
    got.level = level;
    snprintf(got.line, sizeof(got.line), "%s", line);
}

Test(log, without_a_sink_messages_are_dropped)
{
    cairn_log(CAIRN_LOG_ERROR, "into %s", "nothing");
    cairn_log_to(keep, &got, CAIRN_LOG_WARN);
    cairn_log_to(NULL, NULL, CAIRN_LOG_DEBUG);
    cairn_log(CAIRN_LOG_ERROR, "into nothing");
    cr_assert_eq(got.calls, 0);
}

Test(log, passes_lines_up_to_the_level)
{
    cairn_log_to(keep, &got, CAIRN_LOG_WARN);
    cairn_log(CAIRN_LOG_INFO, "not this");
    cr_assert_eq(got.calls, 0);
    cairn_log(CAIRN_LOG_WARN, "this %d", 7);
    cr_assert_eq(got.calls, 1);
    cr_assert_eq(got.level, CAIRN_LOG_WARN);
    cr_assert_str_eq(got.line, "this 7");
}

Test(log, one_event_is_one_line)
{
    cairn_log_to(keep, &got, CAIRN_LOG_DEBUG);
    cairn_log(CAIRN_LOG_ERROR, "path '%s'", "a\nERROR forged\r\x1b[2J\x7f");
    cr_assert_str_eq(got.line, "path 'a ERROR forged  [2J '");
    char longer[4000];
    memset(longer, 'x', sizeof(longer) - 1);
    longer[sizeof(longer) - 1] = '\0';
    cairn_log(CAIRN_LOG_ERROR, "%s", longer);
    cr_assert_eq(strlen(got.line), 1023);
}
