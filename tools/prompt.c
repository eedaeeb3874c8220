#include "tools/prompt.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tools/tokens.h"
#include "transport/wire.h"

#define TOKENS_FILE_MAX (256u << 20)
#define DOMAIN_KEY_MAX 64u
#define EXTRAS_MAX 256u

static uint32_t *parse_text(const char *path, const char *text, size_t len, size_t *ret_count)
{
    const char *bad;
    uint32_t *tokens = tokens_of_text(text, len, ret_count, &bad);
    if (!tokens && bad && strlen(text) < len)
        cli_fail(2, "'%s' holds a zero byte, so it is no text: say --binary if it holds 32-bit "
                 "numbers", path);
    else if (!tokens && bad)
        cli_fail(2, "'%.*s' in '%s' is not a token id: give numbers from 0 to %u, separated by "
                 "spaces, lines or commas, or name the tokenizer of a text with --tokenizer",
                 (int)strcspn(bad, " ,]\n\t\r"), bad, path, UINT32_MAX);
    return tokens;
}

static uint32_t *parse_binary(const char *path, const void *raw, size_t len, size_t *ret_count)
{
    if (len % 4 == 0)
        return tokens_of_binary(raw, len, ret_count);
    cli_fail(2, "'%s' holds %zu bytes, not a whole number of 32-bit tokens: check --binary", path,
             len);
    return NULL;
}

static uint32_t *read_tokens(const struct prompt_options *o, const char *path, size_t *ret_count)
{
    uint32_t *tokens = NULL;
    if (o->tokenizer[0]) {
        char *text = tokenize(o->tokenizer, path);
        if (text)
            tokens = parse_text(path, text, strlen(text), ret_count);
        free(text);
        return tokens;
    }
    size_t len;
    char *raw = cli_read_file(path, TOKENS_FILE_MAX, &len);
    if (!raw)
        return NULL;
    if (o->binary) {
        tokens = parse_binary(path, raw, len, ret_count);
    } else {
        char *text = malloc(len + 1);
        if (text) {
            memcpy(text, raw, len);
            text[len] = 0;
            tokens = parse_text(path, text, len, ret_count);
        }
        free(text);
    }
    free(raw);
    return tokens;
}

/* len hexadecimal digits into bytes; false if they are none. */
static bool parse_hex(const char *hex, size_t len, uint8_t *out)
{
    if (len % 2 || strspn(hex, "0123456789abcdefABCDEF") < len)
        return false;
    for (size_t i = 0; i < len / 2; i++) {
        char pair[3] = {hex[2 * i], hex[2 * i + 1], 0};
        out[i] = (uint8_t)strtoul(pair, NULL, 16);
    }
    return true;
}

static bool parse_domain_key(char *hex, uint8_t *key, size_t *ret_len)
{
    size_t n = strcspn(hex, " \t\r\n");
    *ret_len = n / 2;
    return n && n / 2 <= DOMAIN_KEY_MAX && !hex[n + strspn(hex + n, " \t\r\n")] &&
           parse_hex(hex, n, key);
}

/* Secrets come from a file or the environment, never from the command line, and no message may
 * repeat them. */
static bool find_domain(const struct prompt_options *o, uint8_t *key, struct cairn_domain *ret)
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

/* Extras of a prompt, sorted by chunk; those of one chunk stay in the order given. */
struct extras {
    struct cairn_extra list[EXTRAS_MAX];
    size_t count;
    uint8_t bytes[PROMPT_CAP(extra) / 2];
    size_t used;
};

static void insert_extra(struct extras *x, struct cairn_extra e)
{
    size_t at = x->count++;
    for (; at && x->list[at - 1].chunk > e.chunk; at--)
        x->list[at] = x->list[at - 1];
    x->list[at] = e;
}

static bool parse_extras(const char *text, struct extras *x)
{
    x->count = x->used = 0;
    for (const char *p = text; *p;) {
        size_t len = strcspn(p, ",");
        char *hex;
        errno = 0;
        unsigned long chunk = strtoul(p, &hex, 10);
        size_t digits = hex < p + len ? (size_t)(p + len - hex - 1) : 0;
        if (!isdigit((unsigned char)*p) || errno || chunk > UINT32_MAX || *hex != ':' || !digits ||
            !parse_hex(hex + 1, digits, x->bytes + x->used)) {
            cli_fail(2, "'%.*s' in --extra is not CHUNK:HEX: write for instance 0:c0ffee,3:01",
                     (int)len, p);
            return false;
        }
        if (x->count == EXTRAS_MAX) {
            cli_fail(2, "more than %u extras: give fewer in --extra", EXTRAS_MAX);
            return false;
        }
        insert_extra(x, (struct cairn_extra){.chunk = (uint32_t)chunk,
                                             .data = x->bytes + x->used, .len = digits / 2});
        x->used += digits / 2;
        p += len;
        p += *p == ',';
    }
    return true;
}

/* What goes into the keys beside identity and tokens. */
struct naming {
    struct extras extras;
    struct cairn_key parent;
    uint8_t domain_key[DOMAIN_KEY_MAX];
    struct cairn_domain domain;
    bool has_parent;
};

static struct naming *read_naming(const char *command, const struct prompt_options *o)
{
    struct naming *n = calloc(1, sizeof *n);
    if (!n) {
        cli_fail(CLI_FAILED, "%s: no memory: close other programs", command);
        return NULL;
    }
    n->has_parent = o->parent[0];
    if (parse_extras(o->extra, &n->extras) && find_domain(o, n->domain_key, &n->domain) &&
        (!n->has_parent || cli_parse_key(o->parent, &n->parent)))
        return n;
    if (n->has_parent && !cli_parse_key(o->parent, &n->parent))
        cli_fail(CLI_USAGE, "%s: '%s' is not a key: --parent takes 64 hexadecimal digits", command,
                 o->parent);
    free(n);
    return NULL;
}

static void free_naming(struct naming *n)
{
    explicit_bzero(n->domain_key, sizeof n->domain_key);
    free(n);
}

static cairn_status make_keys(const struct naming *n, const cairn_identity *id,
                              const uint32_t *tokens, size_t count, struct cairn_key **ret,
                              size_t *ret_count)
{
    size_t cap = count / cairn_identity_chunk_tokens(id) + 1;
    *ret = calloc(cap, sizeof **ret);
    if (!*ret)
        return CAIRN_NOMEM;
    return cairn_keys(id, &n->domain, n->has_parent ? &n->parent : NULL, tokens, count,
                      n->extras.list, n->extras.count, *ret, cap, ret_count);
}

static int name_chunks(const char *command, const struct prompt_options *o, const char *path,
                       struct prompt *p)
{
    struct naming *n = read_naming(command, o);
    if (!n)
        return CLI_USAGE;
    uint32_t last = n->extras.count ? n->extras.list[n->extras.count - 1].chunk : 0;
    bool bad_name = n->domain.name && strcmp(n->domain.name, "public");
    cairn_status s = make_keys(n, p->identity, p->ids, p->tokens, &p->keys, &p->count);
    free_naming(n);
    if (s == CAIRN_INVAL && bad_name)
        return cli_fail(CLI_USAGE, "%s: '%s' is no domain by name: use --domain public or "
                        "--domain-file", command, o->domain);
    if (s == CAIRN_INVAL)
        return cli_fail(CLI_USAGE, "%s: --extra names chunk %u, and '%s' has no such chunk: count "
                        "from 0", command, last, path);
    if (s != CAIRN_OK)
        return cli_fail(CLI_FAILED, "%s: keys of '%s': %s", command, path, cairn_status_str(s));
    return CLI_OK;
}

cairn_identity *prompt_identity(const char *command, const struct prompt_options *o)
{
    if (!o->identity[0] && !o->identity_file[0]) {
        cli_fail(CLI_USAGE, "%s: no identity given: add --identity model=NAME,chunk_tokens=256",
                 command);
        return NULL;
    }
    return cli_identity(o->identity, o->identity_file);
}

int prompt_read(const char *command, const struct prompt_options *o, const char *path,
                struct prompt *ret)
{
    *ret = (struct prompt){.identity = prompt_identity(command, o)};
    if (!ret->identity)
        return CLI_USAGE;
    ret->ids = read_tokens(o, path, &ret->tokens);
    int status = ret->ids ? name_chunks(command, o, path, ret) : CLI_USAGE;
    if (status)
        prompt_free(ret);
    return status;
}

int prompt_read_for_node(const char *command, const struct prompt_options *o, const char *path,
                         struct prompt *ret)
{
    int status = prompt_read(command, o, path, ret);
    if (status)
        return status;
    if (!ret->count)
        status = cli_fail(CLI_USAGE, "%s: '%s' holds no token: give at least one", command, path);
    else if (ret->count > CAIRN_WIRE_KEYS_MAX)
        status = cli_fail(CLI_USAGE, "%s: '%s' makes %zu chunks, and a command takes %u: give a "
                          "shorter file", command, path, ret->count, CAIRN_WIRE_KEYS_MAX);
    if (status)
        prompt_free(ret);
    return status;
}

int prompt_or_key(const char *command, const char *key_hex, const struct prompt_options *o,
                  char **args, uint32_t count, struct cairn_key *ret_key, struct prompt *ret)
{
    *ret = (struct prompt){0};
    if ((key_hex[0] != 0) == (count != 0))
        return cli_fail(CLI_USAGE, "%s: say what: a file of tokens with --identity, or --key "
                        "KEYHEX", command);
    if (count)
        return prompt_read_for_node(command, o, args[0], ret);
    return cli_parse_key(key_hex, ret_key)
               ? CLI_OK
               : cli_fail(CLI_USAGE, "%s: '%s' is not a key: --key takes 64 hexadecimal digits",
                          command, key_hex);
}

struct cairn_key *prompt_rename(const struct prompt *p, const struct prompt_options *o,
                                const struct prompt_way *way, size_t *ret_count)
{
    struct naming *n = p->tokens > way->skip ? read_naming("keys", o) : NULL;
    if (!n)
        return NULL;
    if (way->public_domain)
        n->domain = (struct cairn_domain){.name = "public"};
    if (way->no_extras)
        n->extras.count = 0;
    if (way->no_parent)
        n->has_parent = false;
    struct cairn_key *keys = NULL;
    cairn_status s = make_keys(n, way->identity ? way->identity : p->identity, p->ids + way->skip,
                               p->tokens - way->skip, &keys, ret_count);
    free_naming(n);
    if (s == CAIRN_OK)
        return keys;
    free(keys);
    return NULL;
}

void prompt_free(struct prompt *p)
{
    cairn_identity_destroy(p->identity);
    free(p->keys);
    free(p->ids);
    *p = (struct prompt){0};
}
