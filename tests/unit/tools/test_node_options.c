/* The options of cairnd: the table's own sense, files, and what no single row can see. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/cairnd/options.h"

static struct node_options defaults(void)
{
    struct node_options o;
    memset(&o, 0xaa, sizeof o);
    cairn_opts_defaults(node_option_table, &o);
    return o;
}

static cairn_status text(struct node_options *o, const char *lines, char *err, size_t cap)
{
    char copy[2048];
    snprintf(copy, sizeof copy, "%s", lines);
    return node_options_text(o, "f.conf", copy, err, cap);
}

Test(node_options, every_row_is_whole)
{
    struct node_options o = defaults();
    for (const struct cairn_opt *row = node_option_table; row->name; row++) {
        char value[1024], err[512] = "";
        cr_assert(row->help && row->def, "%s", row->name);
        cairn_opts_print(row, &o, value, sizeof value);
        cr_assert_eq(cairn_opts_set(node_option_table, &o, row->name, value, err, sizeof err),
                     CAIRN_OK, "%s: %s", row->name, err);
        for (const struct cairn_opt *other = row + 1; other->name; other++) {
            cr_assert(strcmp(row->name, other->name) != 0, "%s twice", row->name);
            cr_assert_neq(row->offset, other->offset, "%s and %s", row->name, other->name);
        }
    }
    char err[512];
    cr_assert_eq(node_options_check(&o, err, sizeof err), CAIRN_OK);
}

Test(node_options, text_of_all_of_them_fits_and_is_taken_back)
{
    static char out[NODE_CONFIG_TEXT_MAX], again[NODE_CONFIG_TEXT_MAX];
    char err[512];
    struct node_options o = defaults(), back = defaults();
    memset(o.disk_path, 'd', sizeof o.disk_path - 1);
    memset(o.log_file, 'l', sizeof o.log_file - 1);
    memset(o.allow_uids, '1', sizeof o.allow_uids - 1);
    snprintf(o.socket, sizeof o.socket, "/a b#c");
    o.ram = 4097 * 4096;
    node_options_print(&o, out, sizeof out);
    cr_assert(strlen(out) < sizeof out - 1);
    cr_assert_eq(text(&back, "", err, sizeof err), CAIRN_OK);
    static char copy[NODE_CONFIG_TEXT_MAX];
    memcpy(copy, out, sizeof copy);
    cr_assert_eq(node_options_text(&back, "f", copy, err, sizeof err), CAIRN_OK, "%s", err);
    node_options_print(&back, again, sizeof again);
    cr_assert_str_eq(out, again);
}

Test(node_options, lines)
{
    char err[512];
    struct node_options o = defaults();
    const char *lines = "# all\n\n ram  2GiB \r\nsocket \"\"\nlog-file \"/a b\"\nport=1\n"
                        "workers = 2";
    cr_assert_eq(text(&o, lines, err, sizeof err), CAIRN_OK, "%s", err);
    cr_assert_eq(o.ram, 2ull << 30);
    cr_assert_str_eq(o.socket, "");
    cr_assert_str_eq(o.log_file, "/a b");
    cr_assert_eq(o.port, 1);
}

Test(node_options, faults_name_file_line_and_nearest)
{
    static const struct {
        const char *lines, *wanted;
    } faults[] = {
        {"ram 1GiB\n\nrma 2GiB\n", "f.conf:3: unknown option 'rma'; did you mean 'ram'?"},
        {"port\n", "f.conf:1: option 'port' has no value"},
        {"port  \n", "f.conf:1: option 'port' has no value"},
        {"port 99999\n", "f.conf:1: option 'port': 99999 is out of range"},
        {"config /x", "f.conf:1: option 'config' names the file"},
        {"\"", "f.conf:1: option '\"' has no value"},
    };
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        char err[512] = "";
        struct node_options o = defaults();
        cr_assert_eq(text(&o, faults[i].lines, err, sizeof err), CAIRN_INVAL);
        cr_assert(strstr(err, faults[i].wanted) == err, "%s", err);
    }
}

Test(node_options, users)
{
    struct node_options o = defaults();
    cr_assert(node_options_uid(&o, (uint32_t)geteuid()));
    cr_assert_not(node_options_uid(&o, (uint32_t)geteuid() + 1));
    snprintf(o.allow_uids, sizeof o.allow_uids, "12,4000000000,self");
    cr_assert(node_options_uid(&o, 12));
    cr_assert(node_options_uid(&o, 4000000000u));
    cr_assert(node_options_uid(&o, (uint32_t)geteuid()));
    cr_assert_not(node_options_uid(&o, 1));
    cr_assert_not(node_options_uid(&o, 13));
    static const char *const bad[] = {",", "1,,2", "1,", "x", "-1", " 1", "selfish", "4294967295",
                                      "99999999999999999999", "1 2", "+5"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char err[512];
        snprintf(o.allow_uids, sizeof o.allow_uids, "%s", bad[i]);
        cr_assert_eq(node_options_check(&o, err, sizeof err), CAIRN_INVAL, "%s", bad[i]);
        cr_assert_not(node_options_uid(&o, 1), "%s", bad[i]);
    }
    o.allow_uids[0] = '\0';
    cr_assert_not(node_options_uid(&o, 0));
}

Test(node_options, live_ones_are_numbers_and_travel_alone)
{
    struct node_options now = defaults(), draft = defaults(), copy;
    int live = 0;
    for (const struct cairn_opt *row = node_option_table; row->name; row++) {
        if (!node_option_live(row->name))
            continue;
        live++;
        cr_assert(row->type != CAIRN_OPT_STRING && row->type != CAIRN_OPT_BOOL, "%s", row->name);
    }
    cr_assert(live >= 8);
    cr_assert_not(node_option_live("port"));
    cr_assert_not(node_option_live("nothing"));
    draft.output_max = 1;
    draft.stall_ns = 2;
    draft.log_level = 3;
    node_option_publish(&now, &draft, "output-max");
    node_option_publish(&now, &draft, "log-level");
    node_options_copy(&now, &copy);
    cr_assert_eq(copy.output_max, 1);
    cr_assert_eq(copy.log_level, 3);
    cr_assert_neq(copy.stall_ns, 2);
}

/* Reads a command line of at most 7 words, the last one followed by NULL. */
static cairn_status read_words(struct node_options *o, const char *const *words, int *action)
{
    char copies[8][64], *argv[8] = {copies[0]}, err[512] = "";
    int argc = 1;
    snprintf(copies[0], sizeof copies[0], "cairnd");
    for (; words[argc - 1]; argc++) {
        snprintf(copies[argc], sizeof copies[argc], "%s", words[argc - 1]);
        argv[argc] = copies[argc];
    }
    cairn_status st = node_options_read(o, argc, argv, action, err, sizeof err);
    cr_assert(!st || err[0]);
    return st;
}

Test(node_options, command_line)
{
    struct node_options o;
    int action;
    unsetenv("CAIRN_PORT");
    const char *const both[] = {"--config=", "--port", "1234", "--ram=16MiB", "--port=1235", NULL};
    cr_assert_eq(read_words(&o, both, &action), CAIRN_OK);
    cr_assert_eq(action, NODE_RUN);
    cr_assert_eq(o.port, 1235);
    cr_assert_eq(o.ram, 16u << 20);
    const char *const help[] = {"--ram=16MiB", "-h", NULL};
    cr_assert_eq(read_words(&o, help, &action), CAIRN_OK);
    cr_assert_eq(action, NODE_PRINT_HELP);
    setenv("CAIRN_PORT", "1", 1);
    const char *const none[] = {"--config=", NULL}, *const one[] = {"--config=", "--port=2", NULL};
    cr_assert_eq(read_words(&o, none, &action), CAIRN_OK);
    cr_assert_eq(o.port, 1);
    cr_assert_eq(read_words(&o, one, &action), CAIRN_OK);
    cr_assert_eq(o.port, 2);
    unsetenv("CAIRN_PORT");
    const char *const alone[] = {"--config=", "--port", NULL}, *const bare[] = {"port", NULL};
    cr_assert_eq(read_words(&o, alone, &action), CAIRN_INVAL);
    cr_assert_eq(read_words(&o, bare, &action), CAIRN_INVAL);
}
