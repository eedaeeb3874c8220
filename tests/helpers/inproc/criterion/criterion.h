/* Stands in for Criterion in TSan builds: the same test sources, one forked child a test, no arena.
 * Covers what our tests use; what it lacks fails to compile. */
#ifndef CAIRN_TESTS_INPROC_H
#define CAIRN_TESTS_INPROC_H

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

struct inproc_data {
    void (*init)(void);
    void (*fini)(void);
    double timeout; /* seconds, 0 = the runner's */
    bool disabled;
    int signal;
    int exit_code;
    const char *description;
};

struct inproc_test {
    const char *suite, *name;
    void (*body)(void);
    struct inproc_data data;
    pid_t pid;
    struct inproc_test *next;
};

struct inproc_suite {
    const char *name;
    struct inproc_data data;
    struct inproc_suite *next;
};

void inproc_register(struct inproc_test *t);
void inproc_register_suite(struct inproc_suite *s);
/* Counts a failure when !ok; ends the test when `fatal`. */
void inproc_check(bool ok, bool fatal, const char *file, int line, const char *what,
                  const char *format, ...) __attribute__((format(printf, 6, 7)));
_Noreturn void inproc_skip(const char *format, ...) __attribute__((format(printf, 1, 2)));

#pragma GCC diagnostic ignored "-Wformat-zero-length"
#pragma GCC diagnostic ignored "-Wformat-extra-args"

#define Test(suite_, name_, ...)                                                         \
    static void suite_##_##name_##_body(void);                                           \
    static struct inproc_test suite_##_##name_##_test = {                                \
        .suite = #suite_, .name = #name_, .body = suite_##_##name_##_body,               \
        .data = {.init = NULL, ##__VA_ARGS__}};                                          \
    __attribute__((constructor)) static void suite_##_##name_##_register(void)           \
    {                                                                                    \
        inproc_register(&suite_##_##name_##_test);                                       \
    }                                                                                    \
    static void suite_##_##name_##_body(void)

#define TestSuite(suite_, ...)                                                           \
    static struct inproc_suite suite_##_suite = {.name = #suite_,                        \
                                                 .data = {__VA_ARGS__}};                 \
    __attribute__((constructor)) static void suite_##_suite_register(void)               \
    {                                                                                    \
        inproc_register_suite(&suite_##_suite);                                          \
    }                                                                                    \
    struct inproc_suite

#define INPROC_(ok, fatal, what, ...) \
    inproc_check((ok), (fatal), __FILE__, __LINE__, (what), "" __VA_ARGS__)

#define cr_fail(...) INPROC_(false, false, "failure", ##__VA_ARGS__)
#define cr_fatal(...) INPROC_(false, true, "failure", ##__VA_ARGS__)
#define cr_assert_fail(...) INPROC_(false, true, "failure", ##__VA_ARGS__)
#define cr_assert(c, ...) INPROC_(!!(c), true, #c, ##__VA_ARGS__)
#define cr_expect(c, ...) INPROC_(!!(c), false, #c, ##__VA_ARGS__)
#define cr_assert_not(c, ...) INPROC_(!(c), true, "!(" #c ")", ##__VA_ARGS__)
#define cr_expect_not(c, ...) INPROC_(!(c), false, "!(" #c ")", ##__VA_ARGS__)
#define cr_assert_eq(a, b, ...) INPROC_((a) == (b), true, #a " == " #b, ##__VA_ARGS__)
#define cr_expect_eq(a, b, ...) INPROC_((a) == (b), false, #a " == " #b, ##__VA_ARGS__)
#define cr_assert_neq(a, b, ...) INPROC_((a) != (b), true, #a " != " #b, ##__VA_ARGS__)
#define cr_expect_neq(a, b, ...) INPROC_((a) != (b), false, #a " != " #b, ##__VA_ARGS__)
#define cr_assert_lt(a, b, ...) INPROC_((a) < (b), true, #a " < " #b, ##__VA_ARGS__)
#define cr_expect_lt(a, b, ...) INPROC_((a) < (b), false, #a " < " #b, ##__VA_ARGS__)
#define cr_assert_leq(a, b, ...) INPROC_((a) <= (b), true, #a " <= " #b, ##__VA_ARGS__)
#define cr_expect_leq(a, b, ...) INPROC_((a) <= (b), false, #a " <= " #b, ##__VA_ARGS__)
#define cr_assert_gt(a, b, ...) INPROC_((a) > (b), true, #a " > " #b, ##__VA_ARGS__)
#define cr_expect_gt(a, b, ...) INPROC_((a) > (b), false, #a " > " #b, ##__VA_ARGS__)
#define cr_assert_geq(a, b, ...) INPROC_((a) >= (b), true, #a " >= " #b, ##__VA_ARGS__)
#define cr_expect_geq(a, b, ...) INPROC_((a) >= (b), false, #a " >= " #b, ##__VA_ARGS__)
#define cr_assert_null(p, ...) INPROC_((p) == NULL, true, #p " is NULL", ##__VA_ARGS__)
#define cr_expect_null(p, ...) INPROC_((p) == NULL, false, #p " is NULL", ##__VA_ARGS__)
#define cr_assert_not_null(p, ...) INPROC_((p) != NULL, true, #p " is not NULL", ##__VA_ARGS__)
#define cr_expect_not_null(p, ...) INPROC_((p) != NULL, false, #p " is not NULL", ##__VA_ARGS__)
#define cr_assert_str_eq(a, b, ...) INPROC_(!strcmp((a), (b)), true, #a " eq " #b, ##__VA_ARGS__)
#define cr_expect_str_eq(a, b, ...) INPROC_(!strcmp((a), (b)), false, #a " eq " #b, ##__VA_ARGS__)
#define cr_assert_str_neq(a, b, ...) INPROC_(strcmp((a), (b)), true, #a " ne " #b, ##__VA_ARGS__)
#define cr_assert_str_empty(a, ...) INPROC_(!*(a), true, #a " is empty", ##__VA_ARGS__)
#define cr_assert_str_not_empty(a, ...) INPROC_(*(a), true, #a " is not empty", ##__VA_ARGS__)
#define cr_assert_arr_eq(a, b, n, ...) \
    INPROC_(!memcmp((a), (b), (n)), true, #a " eq " #b, ##__VA_ARGS__)
#define cr_expect_arr_eq(a, b, n, ...) \
    INPROC_(!memcmp((a), (b), (n)), false, #a " eq " #b, ##__VA_ARGS__)
#define cr_assert_arr_neq(a, b, n, ...) \
    INPROC_(memcmp((a), (b), (n)), true, #a " ne " #b, ##__VA_ARGS__)
#define cr_assert_float_eq(a, b, e, ...) \
    INPROC_(fabs((double)(a) - (double)(b)) <= (e), true, #a " ~ " #b, ##__VA_ARGS__)
#define cr_expect_float_eq(a, b, e, ...) \
    INPROC_(fabs((double)(a) - (double)(b)) <= (e), false, #a " ~ " #b, ##__VA_ARGS__)
#define cr_skip_test(...) inproc_skip("" __VA_ARGS__)
#define cr_skip(...) inproc_skip("" __VA_ARGS__)
#define cr_log_info(...) (printf(__VA_ARGS__), putchar('\n'))
#define cr_log_warn cr_log_info
#define cr_log_error cr_log_info

#endif
