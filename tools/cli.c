#include "tools/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "connector/uri.h"
#include "storage/cause.h"
#include "tools/json.h"

#define FIELDS_MAX 128

int cli_fail(int status, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("cairn: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputc('\n', stderr);
    va_end(ap);
    return status;
}

const char *cli_reason(cairn_status status, int32_t cause)
{
    return cause ? cairn_cause_text((enum cairn_cause)cause) : cairn_status_str(status);
}

void cli_progress(const char *what, uint64_t done, uint64_t total)
{
    static unsigned shown = 101;
    unsigned percent = total ? (unsigned)((double)done * 100 / (double)total) : 100;
    bool terminal = isatty(STDERR_FILENO);
    if (percent == shown || (!terminal && percent / 10 == shown / 10))
        return;
    shown = percent;
    fprintf(stderr, terminal ? "\r%s %3u %%" : "%s %u %%\n", what, percent);
    if (terminal && done >= total)
        fputc('\n', stderr);
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

bool cli_parse_key(const char *hex, struct cairn_key *ret)
{
    struct cairn_key key;
    for (size_t i = 0; i < sizeof key.bytes; i++) {
        int high = hex_digit(hex[2 * i]);
        int low = high < 0 ? -1 : hex_digit(hex[2 * i + 1]);
        if (low < 0)
            return false;
        key.bytes[i] = (uint8_t)(high << 4 | low);
    }
    if (hex[2 * sizeof key.bytes])
        return false;
    *ret = key;
    return true;
}

void cli_format_hex(const void *bytes, size_t len, char *out)
{
    const uint8_t *p = bytes;
    for (size_t i = 0; i < len; i++)
        snprintf(out + 2 * i, 3, "%02x", p[i]);
}

static void *read_all(FILE *f, const char *path, size_t max, size_t *ret_len)
{
    size_t cap = 65536, len = 0;
    char *data = malloc(cap);
    while (data) {
        len += fread(data + len, 1, cap - len, f);
        if (len < cap)
            break;
        if (cap > max) {
            cli_fail(1, "'%s' is larger than %zu bytes: give a smaller file", path, max);
            free(data);
            return NULL;
        }
        cap *= 2;
        char *more = realloc(data, cap);
        if (!more)
            free(data);
        data = more;
    }
    if (!data) {
        cli_fail(1, "no memory for '%s': give a smaller file", path);
        return NULL;
    }
    if (ferror(f)) {
        cli_fail(1, "cannot read '%s': %s", path, strerror(errno));
        free(data);
        return NULL;
    }
    if (len > max) {
        cli_fail(1, "'%s' is larger than %zu bytes: give a smaller file", path, max);
        free(data);
        return NULL;
    }
    *ret_len = len;
    return data;
}

void *cli_read_file(const char *path, size_t max, size_t *ret_len)
{
    if (!strcmp(path, "-"))
        return read_all(stdin, path, max, ret_len);
    FILE *f = fopen(path, "rb");
    if (!f) {
        cli_fail(1, "cannot open '%s': %s; give a readable file or - for standard input", path,
                 strerror(errno));
        return NULL;
    }
    void *data = read_all(f, path, max, ret_len);
    fclose(f);
    return data;
}

bool cli_write_file(const char *path, const void *data, size_t len)
{
    bool to_stdout = !path[0] || !strcmp(path, "-");
    int fd = to_stdout ? -1 : open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    FILE *f = to_stdout ? stdout : fd < 0 ? NULL : fdopen(fd, "wb");
    bool ok = f && fwrite(data, 1, len, f) == len && !fflush(f);
    if (!ok)
        cli_fail(1, "cannot write '%s': %s; give a writable path", to_stdout ? "-" : path,
                 strerror(errno));
    if (f && !to_stdout)
        ok = !fclose(f) && ok;
    return ok;
}

/* Cuts "name=value" parts at `cut` in place. */
static bool split_fields(char *text, char cut, struct cairn_field *fields, size_t *ret_count)
{
    size_t n = 0;
    while (text) {
        char *end = strchr(text, cut);
        if (end)
            *end++ = 0;
        char *name = text;
        text = end;
        if (!*name)
            continue;
        char *value = strchr(name, '=');
        if (!value || value == name) {
            cli_fail(2, "identity field '%s' is not name=value: write for instance model=llama",
                     name);
            return false;
        }
        if (n == FIELDS_MAX) {
            cli_fail(2, "more than %d identity fields: give fewer", FIELDS_MAX);
            return false;
        }
        *value++ = 0;
        fields[n++] = (struct cairn_field){.name = name, .value = value};
    }
    *ret_count = n;
    return true;
}

cairn_identity *cli_identity(const char *fields, const char *file)
{
    char *text;
    if (file[0]) {
        size_t len;
        char *raw = cli_read_file(file, 1 << 20, &len);
        if (!raw)
            return NULL;
        text = strndup(raw, len);
        free(raw);
    } else {
        text = strdup(fields);
    }
    struct cairn_field list[FIELDS_MAX];
    size_t count;
    cairn_identity *id = NULL;
    if (text && split_fields(text, file[0] ? '\n' : ',', list, &count)) {
        char err[256] = "";
        cairn_status s = cairn_identity_create(list, count, &id, err, sizeof err);
        if (s != CAIRN_OK) {
            cli_fail(2, "identity: %s", err[0] ? err : cairn_status_str(s));
            id = NULL;
        }
    }
    free(text);
    return id;
}

/* A reading command makes no log, and takes little memory unless told how much. */
static int reading_uri(const char *uri, char *out, size_t cap)
{
    static struct cairn_uri u;
    char err[512] = "";
    if (cairn_uri_parse(uri, &u, err, sizeof err) != CAIRN_OK)
        return cli_fail(CLI_USAGE, "%s", err);
    if (!u.vault.path)
        return cli_fail(CLI_USAGE, "'%s' names no log: write embedded:///path/to/directory", uri);
    if (access(u.path, F_OK))
        return cli_fail(CLI_FAILED,
                        "no log at '%s': %s; check the path in --store, or put something first",
                        u.path, strerror(errno));
    const char *query = strchr(uri, '?');
    bool has_ram = query && (strstr(query, "?ram=") || strstr(query, "&ram="));
    snprintf(out, cap, "%s%s", uri, has_ram ? "" : query ? "&ram=256MiB" : "?ram=256MiB");
    return CLI_OK;
}

bool cli_is_node(const char *uri)
{
    return strncmp(uri, "embedded:", 9) != 0;
}

int cli_open(const char *uri, bool must_exist, cairn_store **ret)
{
    if (!uri[0])
        return cli_fail(CLI_USAGE, "no store given: add --store embedded:///path/to/directory");
    char reading[8192];
    /* A node is there or it is not: only what this process would make itself is looked for. */
    must_exist = must_exist && !cli_is_node(uri);
    int status = must_exist ? reading_uri(uri, reading, sizeof reading) : CLI_OK;
    if (status)
        return status;
    char err[512] = "";
    cairn_status s = cairn_open(must_exist ? reading : uri, ret, err, sizeof err);
    if (s != CAIRN_OK)
        return cli_fail(s == CAIRN_INVAL ? CLI_USAGE : CLI_FAILED, "%s",
                        err[0] ? err : cairn_status_str(s));
    return CLI_OK;
}

char *cli_text(size_t (*fill)(void *arg, char *out, size_t cap), void *arg)
{
    size_t cap = 16384;
    char *text = NULL;
    for (;;) {
        char *more = realloc(text, cap);
        if (!more)
            break;
        text = more;
        size_t need = fill(arg, text, cap);
        if (need < cap)
            return text;
        cap = need + 1024;
    }
    free(text);
    cli_fail(1, "no memory for %zu bytes of text: close other programs", cap);
    return NULL;
}

int cli_show(char *text, bool json)
{
    if (!text)
        return CLI_FAILED;
    if (json)
        puts(text);
    else
        json_print_flat(stdout, text);
    free(text);
    return CLI_OK;
}
