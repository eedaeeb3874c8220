/* How much memory can be taken without an OOM kill. The system's MemAvailable knows nothing of the
 * limits of a container, and the limit of any cgroup above ours counts as well. */
#include "base/mem_available.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

#define CGROUP_PATH_MAX 512

/* Reads a small file of /proc or /sys as text. */
static bool read_text(const char *path, char *out, size_t cap)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    size_t len = 0;
    while (len < cap - 1) {
        ssize_t n = read(fd, out + len, cap - 1 - len);
        if (n <= 0)
            break;
        len += (size_t)n;
    }
    close(fd);
    out[len] = '\0';
    return len > 0;
}

/* Number after `name` at the start of a line. */
static bool field_of(const char *text, const char *name, uint64_t *ret)
{
    size_t len = strlen(name);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, name, len) == 0 && (line[len] == ' ' || line[len] == ':')) {
            *ret = strtoull(line + len + 1, NULL, 10);
            return true;
        }
        if (!*line)
            break;
    }
    return false;
}

static uint64_t system_available(void)
{
    char text[4096];
    uint64_t kib;
    if (!read_text("/proc/meminfo", text, sizeof(text)) || !field_of(text, "MemAvailable", &kib))
        return UINT64_MAX;
    return kib * 1024;
}

/* Where a version of cgroups keeps the same three numbers. */
struct cgroup_names {
    const char *mount;
    const char *limit, *used;
    const char *cache[2];
};

static const struct cgroup_names versions[] = {
    {"", "memory.max", "memory.current", {"inactive_file", "active_file"}},
    {"/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
     {"total_inactive_file", "total_active_file"}},
};

struct cgroup {
    const struct cgroup_names *names;
    const char *root;
    char path[CGROUP_PATH_MAX]; /* "" or "/a/b" */
};

static bool cgroup_read(const struct cgroup *g, const char *file, char *out, size_t cap)
{
    char path[2 * CGROUP_PATH_MAX];
    int n = snprintf(path, sizeof(path), "%s%s%s/%s", g->root, g->names->mount, g->path, file);
    return n > 0 && (size_t)n < sizeof(path) && read_text(path, out, cap);
}

static uint64_t cgroup_left(const struct cgroup *g)
{
    char text[8192];
    if (!cgroup_read(g, g->names->limit, text, sizeof(text)) || strncmp(text, "max", 3) == 0)
        return UINT64_MAX;
    uint64_t max = strtoull(text, NULL, 10);
    if (!cgroup_read(g, g->names->used, text, sizeof(text)))
        return UINT64_MAX;
    uint64_t used = strtoull(text, NULL, 10);
    if (cgroup_read(g, "memory.stat", text, sizeof(text))) {
        for (int i = 0; i < 2; i++) {
            uint64_t cache = 0;
            field_of(text, g->names->cache[i], &cache);
            used -= cache < used ? cache : used;
        }
    }
    return used < max ? max - used : 0;
}

/* The group that a line "number:controllers:path" of /proc/self/cgroup names, if it is one that
 * limits memory. */
static bool cgroup_of_line(const char *line, size_t len, struct cgroup *ret)
{
    const char *controllers = memchr(line, ':', len);
    if (!controllers++)
        return false;
    const char *path = memchr(controllers, ':', len - (size_t)(controllers - line));
    if (!path++)
        return false;
    size_t path_len = len - (size_t)(path - line);
    size_t names_len = (size_t)(path - controllers) - 1;
    bool v1 = memmem(controllers, names_len, "memory", 6) != NULL;
    if (path_len == 0 || path_len >= CGROUP_PATH_MAX || *path != '/' || (names_len && !v1))
        return false;
    ret->names = &versions[v1];
    memcpy(ret->path, path, path_len);
    ret->path[path_len] = '\0';
    return true;
}

/* What the group and all above it leave. In a container the root is our group, and the path that
 * the host knows it by is not there. */
static uint64_t cgroup_left_upwards(struct cgroup *g)
{
    uint64_t least = UINT64_MAX;
    for (;;) {
        size_t len = strlen(g->path);
        if (len && g->path[len - 1] == '/')
            g->path[len - 1] = '\0';
        uint64_t left = cgroup_left(g);
        least = left < least ? left : least;
        char *last = strrchr(g->path, '/');
        if (!last)
            return least;
        *last = '\0';
    }
}

uint64_t cairn_cgroup_available(const char *self, const char *root)
{
    uint64_t least = UINT64_MAX;
    struct cgroup g = {.root = root};
    for (const char *line = self; *line;) {
        size_t len = strcspn(line, "\n");
        if (cgroup_of_line(line, len, &g)) {
            uint64_t left = cgroup_left_upwards(&g);
            least = left < least ? left : least;
        }
        line += len + (line[len] == '\n');
    }
    return least;
}

uint64_t cairn_mem_available(void)
{
    uint64_t system = system_available();
    char text[4096];
    if (!read_text("/proc/self/cgroup", text, sizeof(text)))
        return system;
    uint64_t group = cairn_cgroup_available(text, "/sys/fs/cgroup");
    return group < system ? group : system;
}
