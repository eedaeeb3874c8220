#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "tools/cli.h"

#define VALUE_FILE_MAX (64u << 20)

struct options {
    char store[4096];
    char parent[80];
    char identity[4096], identity_file[1024];
    bool replace;
    uint64_t timeout_ns;
};

#define FIELD(f) .offset = offsetof(struct options, f), .max = sizeof(((struct options *)0)->f)
static const struct cairn_opt options[] = {
    {.name = "store", .type = CAIRN_OPT_STRING, FIELD(store),
     .help = "where: embedded:///path?ram=1GiB&disk=8GiB"},
    {.name = "parent", .type = CAIRN_OPT_STRING, FIELD(parent),
     .help = "key of the chunk before this one"},
    {.name = "identity", .type = CAIRN_OPT_STRING, FIELD(identity),
     .help = "what made the value (model=x,chunk_tokens=256,...): kept with it, for `cairn why`"},
    {.name = "identity-file", .type = CAIRN_OPT_STRING, FIELD(identity_file),
     .help = "the same from a file, one name=value a line"},
    {.name = "replace", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, replace),
     .def = "no", .help = "replace the bytes that a held key has"},
    {.name = "timeout", .type = CAIRN_OPT_DURATION, .offset = offsetof(struct options, timeout_ns),
     .def = "30s", .help = "give up after this long"},
    {.name = NULL},
};

static int refused(const struct options *o, cairn_store *store, const struct cairn_put *p,
                   const char *hex)
{
    if (p->status == CAIRN_TOOBIG)
        return cli_fail(1, "'%.16s...' was not stored: it has %zu bytes, and the largest value of "
                        "'%s' is %llu: use a store with more ram= and disk=, or smaller chunks",
                        hex, cairn_sgl_bytes(&p->value), o->store,
                        (unsigned long long)cairn_value_max(store));
    return cli_fail(1, "'%.16s...' was not stored: %s", hex, cli_reason(p->status, p->cause));
}

static int put(const struct options *o, cairn_store *store, struct cairn_put *p, const char *hex)
{
    cairn_status s = cairn_put(store, p, 1, o->timeout_ns);
    if (s != CAIRN_OK && s != CAIRN_EXISTS)
        return refused(o, store, p, hex);
    s = cairn_flush(store, o->timeout_ns);
    bool memory = s == CAIRN_UNSUPPORTED && cli_is_node(o->store);
    if (s == CAIRN_UNSUPPORTED && !memory)
        return cli_fail(1, "'%s' has no disk, so the value ends with this command: add a path and "
                        "disk=SIZE to --store", o->store);
    if (s != CAIRN_OK && !memory)
        return cli_fail(1, "'%.16s...' is not durable: %s; check the device of the log", hex,
                        cairn_status_str(s));
    printf("%s %zu bytes%s\n", p->status == CAIRN_EXISTS ? "kept the value that was there, not the"
                                                          : "stored",
           cairn_sgl_bytes(&p->value), memory ? ", in the node's memory: it has no disk" : "");
    return CLI_OK;
}

static int run(const void *opts, char **args, uint32_t count)
{
    (void)count;
    const struct options *o = opts;
    static const struct cairn_key none;
    struct cairn_put p = {0};
    if (!cli_parse_key(args[0], &p.key))
        return cli_fail(2, "put: '%s' is not a key: give 64 hexadecimal digits", args[0]);
    if (!memcmp(&p.key, &none, sizeof none))
        return cli_fail(2, "put: a key of zeros names nothing: `cairn keys` makes keys");
    if (o->parent[0] && !cli_parse_key(o->parent, &p.parent))
        return cli_fail(2, "put: '%s' is not a key: --parent takes 64 hexadecimal digits",
                        o->parent);
    bool named = o->identity[0] || o->identity_file[0];
    cairn_identity *id = named ? cli_identity(o->identity, o->identity_file) : NULL;
    if (named && !id)
        return CLI_USAGE;
    size_t len = 0;
    void *data = cli_read_file(args[1], VALUE_FILE_MAX, &len);
    int status = CLI_FAILED;
    if (data && !len)
        status = cli_fail(1, "'%s' is empty: a value has at least one byte", args[1]);
    cairn_store *store = NULL;
    if (data && len)
        status = cli_open(o->store, false, &store);
    if (store) {
        struct cairn_iov iov = {.base = data, .len = len};
        uint8_t fingerprint[32];
        p.value = (struct cairn_sgl){.iov = &iov, .count = 1};
        p.flags = o->replace ? CAIRN_PUT_REPLACE : 0;
        if (id) {
            cairn_identity_fingerprint(id, fingerprint);
            p.fingerprint = fingerprint;
            cairn_note_identity(store, id);
        }
        status = put(o, store, &p, args[0]);
        cairn_close(store);
    }
    free(data);
    cairn_identity_destroy(id);
    return status;
}

const struct cli_command cli_put = {
    .name = "put",
    .args = "KEYHEX FILE|-",
    .args_min = 2,
    .args_max = 2,
    .options = options,
    .options_size = sizeof(struct options),
    .run = run,
    .help = "put a file as one value and wait until it is durable, where there is a disk",
};
