/* What this machine gives, each answer by trying and not by guessing. */
#include "connector/cairn.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/copy.h"
#include "base/cuda_config.h"
#include "base/hash.h"
#include "base/mem.h"
#include "storage/ioq.h"

#define HUGE_PAGE (2u * 1024u * 1024u)

struct text {
    char *out;
    size_t cap, len;
};

__attribute__((format(printf, 2, 3))) static void emit(struct text *t, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    size_t room = t->len < t->cap ? t->cap - t->len : 0;
    int n = vsnprintf(room ? t->out + t->len : NULL, room, fmt, ap);
    va_end(ap);
    t->len += n > 0 ? (size_t)n : 0;
}

static void emit_string(struct text *t, const char *s)
{
    emit(t, "\"");
    for (const unsigned char *p = (const unsigned char *)s; *p; p++) {
        if (*p == '"' || *p == '\\')
            emit(t, "\\%c", *p);
        else if (*p < 0x20)
            emit(t, "\\u%04x", *p);
        else
            emit(t, "%c", *p);
    }
    emit(t, "\"");
}

/* First line of a small file under /proc or /sys; "" when it cannot be read. */
static void read_line(const char *path, char *out, size_t cap)
{
    out[0] = 0;
    FILE *f = fopen(path, "re");
    if (!f)
        return;
    if (fgets(out, (int)cap, f))
        out[strcspn(out, "\n")] = 0;
    fclose(f);
}

/* Value behind "name" at the start of a line of a /proc file. */
static void read_field(const char *path, const char *name, char *out, size_t cap)
{
    out[0] = 0;
    FILE *f = fopen(path, "re");
    if (!f)
        return;
    char line[4096];
    while (fgets(line, sizeof line, f)) {
        if (strncmp(line, name, strlen(name)))
            continue;
        char *value = line + strlen(name);
        value += strspn(value, " \t:");
        value[strcspn(value, "\n")] = 0;
        snprintf(out, cap, "%s", value);
        break;
    }
    fclose(f);
}

/* The word in brackets: "always [madvise] never" -> madvise. */
static void read_choice(const char *path, char *out, size_t cap)
{
    char line[64];
    read_line(path, line, sizeof line);
    char *start = strchr(line, '[');
    char *end = start ? strchr(start, ']') : NULL;
    if (end)
        *end = 0;
    snprintf(out, cap, "%s", end ? start + 1 : line);
}

static uint64_t meminfo_bytes(const char *name)
{
    char value[64];
    read_field("/proc/meminfo", name, value, sizeof value);
    return strtoull(value, NULL, 10) * 1024;
}

static void emit_cpu(struct text *t)
{
    static const char *const known[] = {"sse4_2", "avx",      "avx2",     "bmi2", "avx512f",
                                        "avx512bw", "avx512vl", "avx512dq", "erms", "fsrm",
                                        "sha_ni", "aes",      "vaes"};
    char model[128], flags[4096], word[32];
    read_field("/proc/cpuinfo", "model name", model, sizeof model);
    read_field("/proc/cpuinfo", "flags", flags, sizeof flags - 1);
    strcat(flags, " ");
    emit(t, "\"cpu\": {\"model\": ");
    emit_string(t, model);
    emit(t, ", \"count\": %ld, \"flags\": [", sysconf(_SC_NPROCESSORS_ONLN));
    const char *comma = "";
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        snprintf(word, sizeof word, "%s ", known[i]);
        const char *at = strstr(flags, word);
        if (!at || (at > flags && at[-1] != ' '))
            continue;
        emit(t, "%s\"%s\"", comma, known[i]);
        comma = ", ";
    }
    emit(t, "]}");
}

static void emit_memory(struct text *t)
{
    static const char *const pages[] = {"4KiB", "transparent 2MiB", "reserved 2MiB"};
    char enabled[64], shmem[64];
    read_choice("/sys/kernel/mm/transparent_hugepage/enabled", enabled, sizeof enabled);
    read_choice("/sys/kernel/mm/transparent_hugepage/shmem_enabled", shmem, sizeof shmem);
    struct rlimit lock = {0};
    getrlimit(RLIMIT_MEMLOCK, &lock);
    emit(t, "\"memory\": {\"total_bytes\": %" PRIu64 ", \"available_bytes\": %" PRIu64
         ", \"page_bytes\": %ld, ", meminfo_bytes("MemTotal"), meminfo_bytes("MemAvailable"),
         sysconf(_SC_PAGESIZE));
    emit(t, "\"reserved_huge_pages\": %" PRIu64 ", \"reserved_huge_pages_free\": %" PRIu64 ", ",
         meminfo_bytes("HugePages_Total") / 1024, meminfo_bytes("HugePages_Free") / 1024);
    emit(t, "\"thp\": ");
    emit_string(t, enabled);
    emit(t, ", \"thp_shmem\": ");
    emit_string(t, shmem);
    if (lock.rlim_cur == RLIM_INFINITY)
        emit(t, ", \"memlock_bytes\": null");
    else
        emit(t, ", \"memlock_bytes\": %" PRIu64, (uint64_t)lock.rlim_cur);

    struct cairn_mapping m;
    cairn_status s = cairn_mapping_open(2 * HUGE_PAGE, "cairn-probe", &m);
    emit(t, ", \"arena\": {\"pages\": ");
    emit_string(t, s == CAIRN_OK ? pages[m.pages] : "none");
    emit(t, ", \"huge_share\": %.2f, \"why_not\": ", s == CAIRN_OK ? m.huge_share : 0.0);
    emit_string(t, s == CAIRN_OK ? m.note : cairn_status_str(s));
    emit(t, "}}");
    if (s == CAIRN_OK)
        cairn_mapping_close(&m);
}

static void emit_bytes_paths(struct text *t)
{
    const char *names[16];
    cairn_copy_fn fns[16];
    cairn_copy_init();
    uint32_t n = cairn_copy_variants(names, fns, 16);
    emit(t, "\"copy\": {\"variant\": ");
    emit_string(t, cairn_copy_variant());
    emit(t, ", \"can_run\": [");
    for (uint32_t i = 0; i < n; i++) {
        emit(t, "%s", i ? ", " : "");
        emit_string(t, names[i]);
    }
    emit(t, "]}, \"hash\": {\"variant\": ");
    emit_string(t, cairn_hash_variant());
    emit(t, "}");
}

static void emit_io(struct text *t)
{
    char disabled[32];
    read_line("/proc/sys/kernel/io_uring_disabled", disabled, sizeof disabled);
    emit(t, "\"io\": {\"io_uring_disabled\": ");
    if (disabled[0])
        emit(t, "%ld", strtol(disabled, NULL, 10));
    else
        emit(t, "null");
    uint32_t n = 0;
    const struct cairn_ioq_ops *const *all = cairn_ioq_all(&n);
    const struct cairn_ioq_ops *best = cairn_ioq_find("auto");
    emit(t, ", \"engine\": ");
    emit_string(t, best ? best->name : "none");
    emit(t, ", \"engines\": [");
    for (uint32_t i = 0; i < n; i++) {
        char why[256] = "";
        bool ok = all[i]->probe(why, sizeof why);
        emit(t, "%s{\"name\": ", i ? ", " : "");
        emit_string(t, all[i]->name);
        emit(t, ", \"can_run\": %s, \"why_not\": ", ok ? "true" : "false");
        emit_string(t, ok ? "" : why);
        emit(t, "}");
    }
    emit(t, "]}");
}

/* A file to ask about: the path itself, or a nameless one in the directory. */
static int open_probe(const char *path, bool is_dir, int flags)
{
    if (is_dir)
        return open(path, O_TMPFILE | O_RDWR | O_CLOEXEC | flags, 0600);
    return open(path, O_RDONLY | O_CLOEXEC | flags);
}

static void emit_direct(struct text *t, const char *path, bool is_dir)
{
    int fd = open_probe(path, is_dir, O_DIRECT);
    int err = fd < 0 ? errno : 0;
    if (fd < 0)
        fd = open_probe(path, is_dir, 0);
    unsigned mem = 0, off = 0;
#ifdef STATX_DIOALIGN
    struct statx sx;
    if (fd >= 0 && !statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) &&
        (sx.stx_mask & STATX_DIOALIGN)) {
        mem = sx.stx_dio_mem_align;
        off = sx.stx_dio_offset_align;
    }
#endif
    emit(t, "\"o_direct\": %s, \"o_direct_why_not\": ", err ? "false" : "true");
    emit_string(t, err ? strerror(err) : "");
    emit(t, ", \"memory_align\": ");
    emit(t, mem ? "%u" : "null", mem);
    emit(t, ", \"offset_align\": ");
    emit(t, off ? "%u" : "null", off);
    if (fd >= 0)
        close(fd);
}

static void emit_path(struct text *t, const char *path)
{
    struct stat st;
    emit(t, "\"path\": {\"path\": ");
    emit_string(t, path);
    if (stat(path, &st)) {
        emit(t, ", \"exists\": false, \"why_not\": ");
        emit_string(t, strerror(errno));
        emit(t, "}");
        return;
    }
    struct statvfs vfs;
    emit(t, ", \"exists\": true, \"writable\": %s, ", access(path, W_OK) ? "false" : "true");
    if (!statvfs(path, &vfs))
        emit(t, "\"free_bytes\": %" PRIu64 ", ", (uint64_t)vfs.f_bavail * vfs.f_frsize);
    emit_direct(t, path, S_ISDIR(st.st_mode));
    emit(t, "}");
}

static void emit_gpu(struct text *t)
{
    char found[8192];
    size_t len = cairn_cuda_describe(found, sizeof found);
    emit(t, "\"cuda\": %s", len < sizeof found ? found : "null");
}

size_t cairn_features(const char *path, char *out, size_t cap)
{
    struct text t = {.out = out, .cap = cap};
    emit(&t, "{\"version\": ");
    emit_string(&t, cairn_version());
    emit(&t, ", ");
    emit_cpu(&t);
    emit(&t, ", ");
    emit_memory(&t);
    emit(&t, ", ");
    emit_bytes_paths(&t);
    emit(&t, ", ");
    emit_io(&t);
    emit(&t, ", ");
    emit_gpu(&t);
    if (path) {
        emit(&t, ", ");
        emit_path(&t, path);
    }
    emit(&t, "}");
    return t.len;
}
