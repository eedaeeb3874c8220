/* `cairn`: the store from the command line. */
#include <stdalign.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cli.h"

static const struct cli_command *const commands[] = {
    &cli_features, &cli_doctor, &cli_keys,   &cli_put,      &cli_get,   &cli_stat, &cli_why,
    &cli_fsck,     &cli_bench,  &cli_ping,   &cli_info,     &cli_top,   &cli_lookup,
    &cli_why_miss, &cli_clear,  &cli_pin,    &cli_unpin,    &cli_config,
};
#define COMMANDS (sizeof commands / sizeof *commands)
#define OPTIONS_CAP 32768

static void print_usage(FILE *f)
{
    fputs("usage: cairn COMMAND [--option VALUE ...] [ARGUMENT ...]\n\n", f);
    for (size_t i = 0; i < COMMANDS; i++)
        fprintf(f, "  %-10s%s\n", commands[i]->name, commands[i]->help);
    fputs("\n  cairn COMMAND --help says more; cairn --version prints the version.\n"
          "  Exit status: 0 done, 1 failed, 2 wrong usage.\n", f);
}

static const char *value_hint(enum cairn_opt_type type)
{
    switch (type) {
    case CAIRN_OPT_SIZE: return "SIZE";
    case CAIRN_OPT_DURATION: return "TIME";
    case CAIRN_OPT_COUNT: return "N";
    case CAIRN_OPT_BOOL: return "";
    case CAIRN_OPT_CHOICE: return "NAME";
    case CAIRN_OPT_STRING: return "TEXT";
    }
    return "";
}

static void print_help(const struct cli_command *c)
{
    printf("usage: cairn %s [options] %s\n\n%s\n", c->name, c->args, c->help);
    if (c->more)
        printf("\n%s", c->more);
    if (c->options->name)
        puts("\noptions:");
    for (const struct cairn_opt *o = c->options; o->name; o++) {
        char left[48];
        snprintf(left, sizeof left, "--%s %s", o->name, value_hint(o->type));
        printf("  %-26s%s", left, o->help);
        if (o->def && o->def[0] && o->type != CAIRN_OPT_BOOL)
            printf(" (%s)", o->def);
        putchar('\n');
    }
    puts("  --help                    this text");
}

static const struct cairn_opt *find_option(const struct cli_command *c, const char *name)
{
    for (const struct cairn_opt *o = c->options; o->name; o++)
        if (!strcmp(o->name, name))
            return o;
    return NULL;
}

static int unknown_option(const struct cli_command *c, const char *name)
{
    const char *names[64];
    size_t n = 0;
    for (const struct cairn_opt *o = c->options; o->name && n < 62; o++)
        names[n++] = o->name;
    names[n++] = "help";
    names[n] = NULL;
    const char *near = cairn_nearest(name, names);
    if (near)
        return cli_fail(CLI_USAGE, "%s: unknown option '--%s': did you mean '--%s'?", c->name, name,
                        near);
    return cli_fail(CLI_USAGE, "%s: unknown option '--%s': cairn %s --help lists them", c->name,
                    name, c->name);
}

/* One option at argv[*i]; moves *i over a value that is its own argument. */
static int take_option(const struct cli_command *c, void *opts, int argc, char **argv, int *i)
{
    const char *arg = argv[*i];
    char name[64];
    const char *value = NULL;
    if (!strncmp(arg, "-o", 2) && arg[1] == 'o') {
        snprintf(name, sizeof name, "output");
        value = arg[2] ? arg + 2 : NULL;
    } else if (!strncmp(arg, "--", 2)) {
        const char *eq = strchr(arg, '=');
        snprintf(name, sizeof name, "%.*s", (int)(eq ? eq - arg - 2 : 60), arg + 2);
        value = eq ? eq + 1 : NULL;
    } else {
        return cli_fail(CLI_USAGE, "%s: unknown option '%s': cairn %s --help lists them", c->name,
                        arg, c->name);
    }
    const struct cairn_opt *o = find_option(c, name);
    if (!o)
        return unknown_option(c, name);
    if (!value && o->type == CAIRN_OPT_BOOL)
        value = "yes";
    if (!value && *i + 1 < argc)
        value = argv[++*i];
    if (!value)
        return cli_fail(CLI_USAGE, "%s: option '--%s' needs a value: --%s %s", c->name, name, name,
                        value_hint(o->type));
    char err[512] = "";
    if (cairn_opts_set(c->options, opts, name, value, err, sizeof err) != CAIRN_OK)
        return cli_fail(CLI_USAGE, "%s: %s", c->name, err);
    return CLI_OK;
}

static int run_command(const struct cli_command *c, int argc, char **argv)
{
    static alignas(max_align_t) char opts[OPTIONS_CAP];
    if (c->options_size > sizeof opts)
        return cli_fail(CLI_FAILED, "%s: its options do not fit", c->name);
    cairn_opts_defaults(c->options, opts);
    uint32_t count = 0;
    bool only_args = false;
    char **args = argv;
    for (int i = 0; i < argc; i++) {
        char *a = argv[i];
        if (!only_args && (!strcmp(a, "--help") || !strcmp(a, "-h"))) {
            print_help(c);
            return CLI_OK;
        }
        if (!only_args && !strcmp(a, "--")) {
            only_args = true;
        } else if (!only_args && a[0] == '-' && a[1]) {
            int s = take_option(c, opts, argc, argv, &i);
            if (s)
                return s;
        } else {
            args[count++] = a;
        }
    }
    if (count < c->args_min)
        return cli_fail(CLI_USAGE, "%s: too few arguments: usage is cairn %s [options] %s", c->name,
                        c->name, c->args);
    if (count > c->args_max)
        return cli_fail(CLI_USAGE, "%s: '%s' is one argument too many: usage is cairn %s [options] "
                        "%s", c->name, args[c->args_max], c->name, c->args);
    return c->run(opts, args, count);
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_usage(stderr);
        return CLI_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        print_usage(stdout);
        return CLI_OK;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("cairn %s\n", cairn_version());
        return CLI_OK;
    }
    const char *names[COMMANDS + 1] = {NULL};
    for (size_t i = 0; i < COMMANDS; i++) {
        const struct cli_command *c = commands[i];
        if (!strcmp(argv[1], c->name) && c->apart && argc > 2 && !strcmp(argv[2], c->apart))
            return c->run_apart(argc - 3, argv + 3);
        if (!strcmp(argv[1], c->name))
            return run_command(c, argc - 2, argv + 2);
        names[i] = commands[i]->name;
    }
    const char *near = cairn_nearest(argv[1], names);
    if (near)
        return cli_fail(CLI_USAGE, "unknown command '%s': did you mean '%s'?", argv[1], near);
    return cli_fail(CLI_USAGE, "unknown command '%s': cairn --help lists them", argv[1]);
}
