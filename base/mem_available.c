/* How much memory can be taken without an OOM kill. The system's MemAvailable knows nothing of the
 * limits of a container, and the limit of any cgroup above ours counts as well. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/mem.h"

#define CGROUP_ROOT "/sys/fs/cgroup"
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

static bool cgroup_read(const char *group, const char *file, char *out, size_t cap)
{
    char path[CGROUP_PATH_MAX + 64];
    int n = snprintf(path, sizeof(path), "%s%s/%s", CGROUP_ROOT, group, file);
    return n > 0 && (size_t)n < sizeof(path) && read_text(path, out, cap);
}

static uint64_t cgroup_available(const char *group)
{
    char text[8192];
    if (!cgroup_read(group, "memory.max", text, sizeof(text)) || strncmp(text, "max", 3) == 0)
        return UINT64_MAX;
    uint64_t max = strtoull(text, NULL, 10);
    if (!cgroup_read(group, "memory.current", text, sizeof(text)))
        return UINT64_MAX;
    uint64_t used = strtoull(text, NULL, 10);
    uint64_t inactive = 0, active = 0;
    if (cgroup_read(group, "memory.stat", text, sizeof(text))) {
        field_of(text, "inactive_file", &inactive);
        field_of(text, "active_file", &active);
    }
    uint64_t cache = inactive + active < used ? inactive + active : used;
    used -= cache;
    return used < max ? max - used : 0;
}

uint64_t cairn_mem_available(void)
{
    uint64_t least = system_available();
    char text[4096];
    if (!read_text("/proc/self/cgroup", text, sizeof(text)))
        return least;
    char *group = strstr(text, "0::/");
    if (!group)
        return least;
    group += 3;
    group[strcspn(group, "\n")] = '\0';
    if (strlen(group) >= CGROUP_PATH_MAX)
        return least;
    for (;;) {
        uint64_t here = cgroup_available(strcmp(group, "/") == 0 ? "" : group);
        least = here < least ? here : least;
        char *slash = strrchr(group, '/');
        if (!slash || group[1] == '\0')
            return least;
        slash[slash == group] = '\0';
    }
}
