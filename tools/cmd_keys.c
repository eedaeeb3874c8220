#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/cli.h"
#include "tools/json.h"

#define TOKENS_FILE_MAX (256u << 20)
#define DOMAIN_KEY_MAX 64u

struct options {
    bool json, binary;
    char identity[4096], identity_file[1024];
    char domain[64], domain_file[1024];
    char parent[80];
};

#define FIELD(f) .offset = offsetof(struct options, f), .max = sizeof(((struct options *)0)->f)
static const struct cairn_opt options[] = {
    {.name = "identity", .type = CAIRN_OPT_STRING, FIELD(identity),
     .help = "what made the KV: model=x,chunk_tokens=256,..."},
    {.name = "identity-file", .type = CAIRN_OPT_STRING, FIELD(identity_file),
     .help = "the same from a file, one name=value a line"},
    {.name = "domain", .type = CAIRN_OPT_STRING, FIELD(domain), .def = "public",
     .help = "name of a domain without a secret"},
    {.name = "domain-file", .type = CAIRN_OPT_STRING, FIELD(domain_file),
     .help = "file with the domain key as hexadecimal digits (or set CAIRN_DOMAIN_KEY)"},
    {.name = "parent", .type = CAIRN_OPT_STRING, FIELD(parent),
     .help = "key of the chunk before the first token"},
    {.name = "binary", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, binary),
     .def = "no", .help = "the tokens are little-endian 32-bit numbers, not text"},
    {.name = "json", .type = CAIRN_OPT_BOOL, .offset = offsetof(struct options, json), .def = "no",
     .help = "print one JSON object"},
    {.name = NULL},
};

/* Numbers separated by anything a list has between them. */
static uint32_t *parse_text(char *text, size_t *ret_count)
{
    uint32_t *tokens = malloc((strlen(text) / 2 + 1) * sizeof *tokens);
    size_t n = 0;
    for (char *p = text; tokens && *p;) {
        if (isspace((unsigned char)*p) || *p == ',' || *p == '[' || *p == ']') {
            p++;
            continue;
        }
        char *end;
        errno = 0;
        unsigned long long v = strtoull(p, &end, 10);
        if (!isdigit((unsigned char)*p) || errno || v > UINT32_MAX) {
            cli_fail(2, "'%.*s' is not a token id: give numbers from 0 to %u, separated by spaces, "
                     "lines or commas", (int)strcspn(p, " ,]\n\t\r"), p, UINT32_MAX);
            free(tokens);
            return NULL;
        }
        tokens[n++] = (uint32_t)v;
        p = end;
    }
    *ret_count = n;
    return tokens;
}

static uint32_t *read_tokens(const struct options *o, const char *path, size_t *ret_count)
{
    size_t len;
    char *raw = cli_read_file(path, TOKENS_FILE_MAX, &len);
    if (!raw)
        return NULL;
    uint32_t *tokens = NULL;
    if (o->binary && len % 4) {
        cli_fail(2, "'%s' holds %zu bytes, not a whole number of 32-bit tokens: check --binary",
                 path, len);
    } else if (o->binary) {
        tokens = calloc(len / 4 + 1, 4);
        for (size_t i = 0; tokens && i < len / 4; i++) {
            const unsigned char *b = (const unsigned char *)raw + 4 * i;
            tokens[i] = (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 |
                        (uint32_t)b[3] << 24;
        }
        *ret_count = len / 4;
    } else {
        char *text = strndup(raw, len);
        if (text)
            tokens = parse_text(text, ret_count);
        free(text);
    }
    free(raw);
    return tokens;
}

static bool parse_domain_key(char *hex, uint8_t *key, size_t *ret_len)
{
    size_t n = strcspn(hex, " \t\r\n");
    bool ok = n && n % 2 == 0 && n / 2 <= DOMAIN_KEY_MAX && !hex[n + strspn(hex + n, " \t\r\n")] &&
              strspn(hex, "0123456789abcdefABCDEF") == n;
    for (size_t i = 0; ok && i < n / 2; i++) {
        char pair[3] = {hex[2 * i], hex[2 * i + 1], 0};
        key[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    *ret_len = n / 2;
    return ok;
}

/* Secrets come from a file or the environment, never from the command line, and no message may
 * repeat them. */
static bool find_domain(const struct options *o, uint8_t *key, struct cairn_domain *ret)
{
    const char *env = getenv("CAIRN_DOMAIN_KEY");
    char *hex;
    if (o->domain_file[0]) {
        size_t len;
        char *raw = cli_read_file(o->domain_file, 4096, &len);
        if (!raw)
            return false;
        hex = strndup(raw, len);
        explicit_bzero(raw, len);
        free(raw);
    } else if (env && *env) {
        hex = strdup(env);
    } else {
        *ret = (struct cairn_domain){.name = o->domain};
        return true;
    }
    size_t len = 0;
    bool ok = hex && parse_domain_key(hex, key, &len);
    if (hex)
        explicit_bzero(hex, strlen(hex));
    free(hex);
    if (!ok)
        cli_fail(2, "%s does not hold a domain key: write 2 to %u hexadecimal digits",
                 o->domain_file[0] ? o->domain_file : "CAIRN_DOMAIN_KEY", 2 * DOMAIN_KEY_MAX);
    *ret = (struct cairn_domain){.key = key, .key_len = len};
    return ok;
}

static void print_keys(const struct options *o, const cairn_identity *id,
                       const struct cairn_key *keys, size_t n)
{
    char hex[65];
    if (o->json) {
        uint8_t fingerprint[32];
        cairn_identity_fingerprint(id, fingerprint);
        cli_format_hex(fingerprint, sizeof fingerprint, hex);
        printf("{\"fingerprint\": \"%s\", \"chunk_tokens\": %u, \"keys\": [", hex,
               cairn_identity_chunk_tokens(id));
    }
    for (size_t i = 0; i < n; i++) {
        cli_format_hex(keys[i].bytes, sizeof keys[i].bytes, hex);
        if (o->json)
            printf("%s\"%s\"", i ? ", " : "", hex);
        else
            puts(hex);
    }
    if (o->json)
        puts("]}");
}

static int make_keys(const struct options *o, const cairn_identity *id, const char *path)
{
    struct cairn_key parent;
    if (o->parent[0] && !cli_parse_key(o->parent, &parent))
        return cli_fail(2, "keys: '%s' is not a key: --parent takes 64 hexadecimal digits",
                        o->parent);
    uint8_t domain_key[DOMAIN_KEY_MAX];
    struct cairn_domain domain;
    if (!find_domain(o, domain_key, &domain))
        return CLI_USAGE;
    size_t count = 0, made = 0;
    uint32_t *tokens = read_tokens(o, path, &count);
    if (!tokens)
        return CLI_USAGE;
    size_t cap = count / cairn_identity_chunk_tokens(id) + 1;
    struct cairn_key *keys = calloc(cap, sizeof *keys);
    cairn_status s = keys ? cairn_keys(id, &domain, o->parent[0] ? &parent : NULL, tokens, count,
                                       NULL, 0, keys, cap, &made)
                          : CAIRN_NOMEM;
    explicit_bzero(domain_key, sizeof domain_key);
    if (s == CAIRN_OK)
        print_keys(o, id, keys, made);
    free(keys);
    free(tokens);
    if (s == CAIRN_INVAL && domain.name)
        return cli_fail(2, "keys: '%s' is no domain by name: use --domain public or --domain-file",
                        domain.name);
    if (s != CAIRN_OK)
        return cli_fail(1, "keys of '%s': %s", path, cairn_status_str(s));
    return CLI_OK;
}

static int run(const void *opts, char **args, uint32_t count)
{
    (void)count;
    const struct options *o = opts;
    if (!o->identity[0] && !o->identity_file[0])
        return cli_fail(2, "keys: no identity given: add --identity model=NAME,chunk_tokens=256");
    cairn_identity *id = cli_identity(o->identity, o->identity_file);
    if (!id)
        return CLI_USAGE;
    int status = make_keys(o, id, args[0]);
    cairn_identity_destroy(id);
    return status;
}

const struct cli_command cli_keys = {
    .name = "keys",
    .args = "TOKENFILE|-",
    .args_min = 1,
    .args_max = 1,
    .options = options,
    .options_size = sizeof(struct options),
    .run = run,
    .help = "the keys of a prompt's chunks, one a line",
    .more = "Tokens are numbers separated by spaces, lines or commas (a JSON list is fine).\n",
};
