#include "connector/remote_uri.h"

#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "connector/uri.h"

#define AT(field) offsetof(struct remote_options, field)
#define MIB (1024ull * 1024ull)

const struct cairn_opt remote_option_table[] = {
    {.name = "timeout", .type = CAIRN_OPT_DURATION, .def = "1s", .min = CAIRN_NS_PER_MS,
     .max = 3600 * CAIRN_NS_PER_S, .offset = AT(timeout_ns),
     .help = "longest wait for a sign of the node, after which it counts as gone; a call's own "
             "timeout counts if it is shorter"},
    {.name = "lazy", .type = CAIRN_OPT_BOOL, .def = "no", .offset = AT(lazy),
     .help = "yes = a node that is not there yet is no error: all is a miss until it is"},
    {.name = "connections", .type = CAIRN_OPT_COUNT, .def = "6", .min = 1, .max = 64,
     .offset = AT(connections), .help = "sockets, so many calls at once; made when needed"},
    {.name = "window", .type = CAIRN_OPT_SIZE, .def = "32MiB", .min = 0, .max = 1024 * MIB,
     .offset = AT(window),
     .help = "shared memory of each connection for puts; larger values go through the socket"},
    {.name = "attach", .type = CAIRN_OPT_BOOL, .def = "yes", .offset = AT(attach),
     .help = "unix sockets: read in the node's memory; no = all bytes through the socket"},
    {.name = "copies", .type = CAIRN_OPT_SIZE, .def = "256MiB", .min = 0, .max = 1024 * 1024 * MIB,
     .offset = AT(copies),
     .help = "memory for views of leases where the node's cannot be mapped"},
    {.name = "tenant", .type = CAIRN_OPT_STRING, .def = "default",
     .max = sizeof((struct remote_options *)0)->tenant, .offset = AT(tenant),
     .help = "whose values"},
    {.name = "workers", .type = CAIRN_OPT_COUNT, .def = "0", .min = 0, .max = 64,
     .offset = AT(workers),
     .help = "threads for submitted (asynchronous) calls; 0 = half of the cores, 2 to 4"},
    {.name = "cuda", .type = CAIRN_OPT_STRING, .def = "auto", .max = CAIRN_CUDA_PATH_MAX,
     .offset = AT(cuda), .help = CAIRN_CUDA_OPTION_HELP},
    {.name = NULL},
};

/* The address without options and escapes; "unix:/path" and "unix:///path" name the same socket. */
static bool address_text(const char *uri, size_t len, char *out, size_t cap)
{
    static const char triple[] = "unix:///";
    if (!cairn_uri_unescape(uri, len, out, cap))
        return false;
    if (strncmp(out, triple, sizeof triple - 1) == 0)
        memmove(out + 5, out + 7, strlen(out + 7) + 1);
    return true;
}

cairn_status remote_uri_parse(const char *uri, struct remote_options *o, char *err, size_t cap)
{
    const char *query = strchr(uri, '?');
    char text[1024];

    memset(o, 0, sizeof *o);
    cairn_opts_defaults(remote_option_table, o);
    if (!address_text(uri, query ? (size_t)(query - uri) : strlen(uri), text, sizeof text)) {
        snprintf(err, cap, "'%s': the address is too long or has a bad %%XX escape", uri);
        return CAIRN_INVAL;
    }
    cairn_status st = cairn_addr_parse(text, &o->addr, err, cap);
    if (!st && query)
        st = cairn_opts_query(remote_option_table, o, query + 1, err, cap);
    if (st)
        return st;
    cairn_addr_print(&o->addr, o->address, sizeof o->address);
    o->local = cairn_addr_is_unix(&o->addr);
    o->attach = o->attach && o->local;
    return CAIRN_OK;
}
