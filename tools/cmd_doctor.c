#include <stdarg.h>
#include <stdio.h>

#include "tools/cli.h"
#include "tools/doctor.h"
#include "tools/json.h"

struct options {
    char config[1024], ram[32], disk[32], disk_path[1024], port[16], http_port[16], socket[128];
    char clients_max[16];
    bool json;
};

#define FIELD(f) .offset = offsetof(struct options, f), .max = sizeof(((struct options *)0)->f)
static const struct cairn_opt options[] = {
    {.name = "config", .type = CAIRN_OPT_STRING, FIELD(config),
     .help = "the node's configuration file; the options below count for more"},
    {.name = "ram", .type = CAIRN_OPT_STRING, FIELD(ram), .help = "memory the node would take"},
    {.name = "disk", .type = CAIRN_OPT_STRING, FIELD(disk), .help = "bytes of its log"},
    {.name = "disk-path", .type = CAIRN_OPT_STRING, FIELD(disk_path),
     .help = "folder or file of its log"},
    {.name = "port", .type = CAIRN_OPT_STRING, FIELD(port), .help = "its TCP port, 0 = none"},
    {.name = "http-port", .type = CAIRN_OPT_STRING, FIELD(http_port),
     .help = "its HTTP port, 0 = none"},
    {.name = "socket", .type = CAIRN_OPT_STRING, FIELD(socket), .help = "its unix socket"},
    {.name = "clients-max", .type = CAIRN_OPT_STRING, FIELD(clients_max),
     .help = "connections it would take"},
    {.name = "json", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, json), .def = "no",
     .help = "print one JSON object"},
    {.name = NULL},
};

struct finding *doctor_find(struct doctor *d, const char *name, const char *fmt, ...)
{
    struct finding *f = &d->list[d->count < FINDINGS_MAX ? d->count++ : FINDINGS_MAX - 1];
    *f = (struct finding){.name = name};
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(f->found, sizeof f->found, fmt, ap);
    va_end(ap);
    return f;
}

void doctor_fix(struct finding *f, enum finding_state state, const char *fmt, ...)
{
    if (state <= f->state)
        return;
    f->state = state;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(f->fix, sizeof f->fix, fmt, ap);
    va_end(ap);
}

/* As the node itself would read them: file, environment, then these. */
static int node_options(const struct options *o, struct node_options *ret)
{
    const struct {
        const char *name, *value;
    } given[] = {{"config", o->config}, {"ram", o->ram}, {"disk", o->disk},
                 {"disk-path", o->disk_path}, {"port", o->port}, {"http-port", o->http_port},
                 {"socket", o->socket}, {"clients-max", o->clients_max}};
    enum { GIVEN = sizeof given / sizeof *given };
    char text[GIVEN][1100], *argv[GIVEN + 1] = {text[0]};
    int argc = 1, action;
    for (int i = 0; i < GIVEN; i++) {
        if (!given[i].value[0])
            continue;
        snprintf(text[i], sizeof text[i], "--%s=%s", given[i].name, given[i].value);
        argv[argc++] = text[i];
    }
    char err[512] = "";
    if (node_options_read(ret, argc, argv, &action, err, sizeof err) != CAIRN_OK)
        return cli_fail(CLI_USAGE, "doctor: %s", err);
    return CLI_OK;
}

static void print_text(const struct doctor *d)
{
    static const char *const words[] = {"ok", "WARN", "FAIL"};
    for (uint32_t i = 0; i < d->count; i++) {
        const struct finding *f = &d->list[i];
        printf("%-4s  %-13s %s\n", words[f->state], f->name, f->found);
        if (f->fix[0])
            printf("%-20sfix: %s\n", "", f->fix);
    }
}

static void print_json(const struct doctor *d, bool ok)
{
    static const char *const words[] = {"ok", "warn", "fail"};
    printf("{\"ok\": %s, \"findings\": [", ok ? "true" : "false");
    for (uint32_t i = 0; i < d->count; i++) {
        const struct finding *f = &d->list[i];
        printf("%s{\"name\": \"%s\", \"state\": \"%s\", \"found\": ", i ? ", " : "", f->name,
               words[f->state]);
        json_string(stdout, f->found);
        printf(", \"fix\": ");
        json_string(stdout, f->fix);
        putchar('}');
    }
    puts("]}");
}

static int run(const void *opts, char **args, uint32_t count)
{
    (void)args;
    (void)count;
    static struct node_options node;
    static struct doctor d;
    const struct options *o = opts;
    int status = node_options(o, &node);
    if (status)
        return status;
    d = (struct doctor){.o = &node};
    doctor_machine(&d);
    doctor_place(&d);
    bool ok = true;
    for (uint32_t i = 0; i < d.count; i++)
        ok &= d.list[i].state != FINDING_FAIL;
    if (o->json)
        print_json(&d, ok);
    else
        print_text(&d);
    return ok ? CLI_OK : CLI_FAILED;
}

const struct cli_command cli_doctor = {
    .name = "doctor",
    .args = "",
    .options = options,
    .options_size = sizeof(struct options),
    .run = run,
    .help = "looks before a node is started: limits, memory, disk, ports, each with the fix",
    .more = "Reads the node's configuration as cairnd does. Changes nothing. Exit status 1 if the\n"
            "node would not start or would refuse what it is asked; warnings cost speed only.\n",
};
