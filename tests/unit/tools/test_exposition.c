#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cairnd/exposition.h"

static char out[65536];
static struct text text;

static void fresh(void)
{
    text = (struct text){.out = out, .cap = sizeof out};
}

TestSuite(exposition, .init = fresh);

Test(exposition, a_family_has_help_type_and_samples)
{
    struct metric m = metric_begin(&text, "cairn_puts_total", METRIC_COUNTER, "values stored");
    metric_count(&m, NULL, 18446744073709551615ull);
    metric_count(&m, LABELS({"result", "kept"}, {"tier", "ram"}), 7);
    cr_assert_str_eq(out, "# HELP cairn_puts_total values stored\n"
                          "# TYPE cairn_puts_total counter\n"
                          "cairn_puts_total 18446744073709551615\n"
                          "cairn_puts_total{result=\"kept\",tier=\"ram\"} 7\n");
    cr_assert_eq(text.len, strlen(out));
}

Test(exposition, numbers_that_are_none_have_names)
{
    struct metric m = metric_begin(&text, "g", METRIC_GAUGE, "h");
    metric_value(&m, NULL, NAN);
    metric_value(&m, NULL, INFINITY);
    metric_value(&m, NULL, -INFINITY);
    metric_value(&m, NULL, 0.5);
    cr_assert_str_eq(out, "# HELP g h\n# TYPE g gauge\ng NaN\ng +Inf\ng -Inf\ng 0.5\n");
}

Test(exposition, label_values_and_help_are_escaped)
{
    struct metric m = metric_begin(&text, "g", METRIC_GAUGE, "a \"b\" \\ c\nd");
    metric_count(&m, LABELS({"path", "a\"b\\c\nd{}=,"}), 1);
    cr_assert_str_eq(out, "# HELP g a \"b\" \\\\ c\\nd\n# TYPE g gauge\n"
                          "g{path=\"a\\\"b\\\\c\\nd{}=,\"} 1\n");
}

Test(exposition, a_histogram_is_cumulative_and_ends_in_its_count)
{
    static struct cairn_hist h;
    cairn_hist_add(&h, 1023);            /* in the first bucket: at most 1.023 us  */
    cairn_hist_add(&h, 1024);            /* in the second                          */
    cairn_hist_add(&h, 40000000000ull);  /* 40 s: beyond the last bound            */
    struct metric m = metric_begin(&text, "t", METRIC_HISTOGRAM, "h");
    metric_hist(&m, LABELS({"tier", "ram"}), &h);
    cr_assert(strstr(out, "# TYPE t histogram\nt_bucket{tier=\"ram\",le=\"1.023e-06\"} 1\n"
                          "t_bucket{tier=\"ram\",le=\"2.047e-06\"} 2\n"), "%s", out);
    cr_assert(strstr(out, "t_bucket{tier=\"ram\",le=\"34.359738367\"} 2\n"
                          "t_bucket{tier=\"ram\",le=\"+Inf\"} 3\n"
                          "t_sum{tier=\"ram\"} 40.000002047"), "%s", out);
    cr_assert(strstr(out, "t_count{tier=\"ram\"} 3\n"), "%s", out);
}

Test(exposition, a_histogram_without_labels_has_only_le)
{
    static struct cairn_hist h;
    struct metric m = metric_begin(&text, "t", METRIC_HISTOGRAM, "h");
    metric_hist(&m, NULL, &h);
    cr_assert(strstr(out, "t_bucket{le=\"1.023e-06\"} 0\n"), "%s", out);
    cr_assert(strstr(out, "t_sum 0\nt_count 0\n"), "%s", out);
}

Test(exposition, what_does_not_fit_is_counted_and_nothing_is_written_behind_the_end)
{
    struct metric m = metric_begin(&text, "cairn_x", METRIC_GAUGE, "h");
    metric_count(&m, LABELS({"a", "b"}), 1);
    size_t whole = text.len;
    for (size_t cap = 0; cap <= whole + 1; cap++) {
        char *small = malloc(cap + 1);
        small[cap] = 'x';
        struct text t = {.out = cap ? small : NULL, .cap = cap};
        m = metric_begin(&t, "cairn_x", METRIC_GAUGE, "h");
        metric_count(&m, LABELS({"a", "b"}), 1);
        cr_assert_eq(t.len, whole);
        cr_assert_eq(small[cap], 'x');
        if (cap)
            cr_assert(!strncmp(small, out, cap - 1) && strlen(small) < cap);
        free(small);
    }
}

Test(exposition, json_strings_are_utf8_whatever_comes)
{
    text_json_string(&text, "a\"\\\n\x01\x7f\xc3\xa9\xff\xc0\xaf\xed\xa0\x80"
                            "\xf0\x9f\x98\x80\xe2\x82");
    cr_assert_str_eq(out, "\"a\\\"\\\\\\u000a\\u0001\\u007f\xc3\xa9\\ufffd\\ufffd\\ufffd"
                          "\\ufffd\\ufffd\\ufffd\xf0\x9f\x98\x80\\ufffd\\ufffd\"");
}
