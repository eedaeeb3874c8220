#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "base/clock.h"
#include "tools/doctor.h"
#include "tools/node_call.h"

#define BLOCK 4096u
#define ANSWER_NS (500 * CAIRN_NS_PER_MS)
#define TMPFS_KIND 0x01021994
#define OVERLAY_KIND 0x794c7630

struct place {
    char folder[1024];
    uint64_t held; /* bytes the log takes already */
    bool exists;   /* the folder does */
};

/* Where the log would lie: disk_path is a folder, the log's file, or not there yet. */
static void find_place(const char *path, struct place *ret)
{
    struct stat st;
    *ret = (struct place){0};
    snprintf(ret->folder, sizeof ret->folder, "%s", path);
    bool there = !stat(path, &st);
    if (there && S_ISDIR(st.st_mode)) {
        char log[1100];
        ret->exists = true;
        snprintf(log, sizeof log, "%s/cairn.log", path);
        ret->held = stat(log, &st) ? 0 : (uint64_t)st.st_blocks * 512;
        return;
    }
    if (there)
        ret->held = (uint64_t)st.st_blocks * 512;
    char *slash = strrchr(ret->folder, '/');
    if (slash == ret->folder)
        slash[1] = 0;
    else if (slash)
        *slash = 0;
    else
        snprintf(ret->folder, sizeof ret->folder, ".");
    ret->exists = !stat(ret->folder, &st) && S_ISDIR(st.st_mode);
}

static void check_path(struct doctor *d, const struct place *p)
{
    struct finding *f = doctor_find(d, "disk path", "'%.200s'", d->o->disk_path);
    if (!p->exists)
        doctor_fix(f, FINDING_FAIL, "its folder is not there: mkdir -p '%.180s'", p->folder);
    else if (access(p->folder, W_OK | X_OK))
        doctor_fix(f, FINDING_FAIL, "cannot write there (%s): chown or chmod it for this user, or "
                   "give another --disk-path", strerror(errno));
}

static void check_room(struct doctor *d, const struct place *p)
{
    struct statfs s;
    char have[32], want[32], held[32];
    if (statfs(p->folder, &s))
        return;
    uint64_t available = (uint64_t)s.f_bavail * (uint64_t)s.f_bsize;
    struct finding *f = doctor_find(d, "disk room", "%s free and %s held for a log of %s",
                                    cairn_format_size(available, have, sizeof have),
                                    cairn_format_size(p->held, held, sizeof held),
                                    cairn_format_size(d->o->disk, want, sizeof want));
    if (available + p->held < d->o->disk + d->o->disk / 64)
        doctor_fix(f, FINDING_FAIL, "set --disk below %s, free room, or give another --disk-path",
                   cairn_format_size(available + p->held, have, sizeof have));
    if (s.f_type == TMPFS_KIND)
        doctor_fix(f, FINDING_WARN, "this is memory (tmpfs), not a disk: what is written there is "
                   "gone at a restart of the machine");
    if (s.f_type == OVERLAY_KIND)
        doctor_fix(f, FINDING_WARN, "this is a container's own layer (overlay), slow and gone with "
                   "it: mount a volume");
}

/* A write of one block, as the log does it, to a file without a name. */
static void check_direct(struct doctor *d, const struct place *p)
{
    int fd = open(p->folder, O_TMPFILE | O_RDWR | O_DIRECT | O_CLOEXEC, 0600);
    int error = fd < 0 ? errno : 0;
    void *block = aligned_alloc(BLOCK, BLOCK);
    if (fd >= 0 && block) {
        memset(block, 0, BLOCK);
        ssize_t n = pwrite(fd, block, BLOCK, 0);
        error = n == BLOCK ? 0 : n < 0 ? errno : EIO;
    }
    unsigned mem = 0, off = 0;
#ifdef STATX_DIOALIGN
    struct statx sx;
    if (fd >= 0 && !statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &sx) &&
        (sx.stx_mask & STATX_DIOALIGN)) {
        mem = sx.stx_dio_mem_align;
        off = sx.stx_dio_offset_align;
    }
#endif
    free(block);
    if (fd >= 0)
        close(fd);
    char align[64] = "alignment not told";
    if (off)
        snprintf(align, sizeof align, "aligned to %u in memory, %u on disk", mem, off);
    struct finding *f = doctor_find(d, "O_DIRECT", "%s%s%s", error ? "refused: " : "works, ",
                                    error ? strerror(error) : align, "");
    if (error == ENOSPC || error == EDQUOT)
        doctor_fix(f, FINDING_FAIL, "there is no room for one block: free some");
    if (error || off > BLOCK)
        doctor_fix(f, FINDING_WARN, "the page cache is used instead, which costs speed and memory: "
                   "put the log on ext4 or xfs");
}

/* Does a node answer at this address? */
static bool node_answers(const char *uri)
{
    char why[256];
    struct node_call *c = NULL;
    if (node_call_open(uri, ANSWER_NS, &c, why, sizeof why) != CAIRN_OK)
        return false;
    bool ours = node_call_is_cairnd(c);
    node_call_close(c);
    return ours;
}

/* The same for HTTP: its index begins with the name. */
static bool http_answers(const struct cairn_addr *addr)
{
    static const char request[] = "GET / HTTP/1.0\r\n\r\n";
    char why[256], text[1024] = "";
    size_t used = 0;
    int fd;
    uint64_t deadline = cairn_deadline_ns(ANSWER_NS);
    if (cairn_sock_dial(addr, deadline, &fd, why, sizeof why) != CAIRN_OK)
        return false;
    struct iovec out = {node_bytes(request), sizeof request - 1};
    cairn_status s = cairn_sock_send_all(fd, &out, 1, deadline);
    while (s == CAIRN_OK && used < sizeof text - 1) {
        size_t n = 0;
        struct iovec in = {text + used, sizeof text - 1 - used};
        s = cairn_sock_recv(fd, &in, 1, &n);
        used += n;
        if (s == CAIRN_INPROGRESS)
            s = cairn_sock_wait(fd, POLLIN, deadline, NULL);
    }
    close(fd);
    return strstr(text, "\r\n\r\ncairnd\n");
}

static void check_port(struct doctor *d, const char *name, const char *option, uint64_t port,
                       bool http)
{
    if (!port)
        return;
    char why[256], uri[CAIRN_ADDR_TEXT_MAX];
    struct cairn_addr addr;
    struct cairn_listener l;
    if (cairn_addr_tcp(d->o->bind, (uint16_t)port, &addr, why, sizeof why) != CAIRN_OK) {
        doctor_fix(doctor_find(d, name, "bind '%.100s'", d->o->bind), FINDING_FAIL, "%.200s", why);
        return;
    }
    cairn_addr_print(&addr, uri, sizeof uri);
    if (cairn_listener_open(&l, &addr, why, sizeof why) == CAIRN_OK) {
        cairn_listener_close(&l);
        doctor_find(d, name, "%s is free", uri);
    } else if (http ? http_answers(&addr) : node_answers(uri)) {
        doctor_fix(doctor_find(d, name, "a node answers on %s already", uri), FINDING_WARN,
                   "a second one needs another --%s", option);
    } else {
        doctor_fix(doctor_find(d, name, "%.200s", why), FINDING_FAIL,
                   "stop what listens there (ss -ltnp 'sport = :%u' names it), or give another "
                   "--%s", (unsigned)port, option);
    }
}

/* Can the folder be written to, or be made by the node? */
static void check_folder(struct finding *f, const char *folder)
{
    struct stat st;
    char above[sizeof ((struct node_options *)0)->socket];
    snprintf(above, sizeof above, "%s", folder);
    char *slash = strrchr(above, '/');
    if (slash)
        slash[slash == above] = 0;
    bool there = !stat(folder, &st);
    if (there && !S_ISDIR(st.st_mode))
        doctor_fix(f, FINDING_FAIL, "'%s' is no folder: give another --socket", folder);
    else if (access(there ? folder : slash ? above : ".", W_OK | X_OK))
        doctor_fix(f, FINDING_FAIL, "cannot write to '%s' (%s): mkdir -p and chown it for this "
                   "user (RuntimeDirectory= in the unit), or give another --socket", folder,
                   strerror(errno));
}

static void check_socket(struct doctor *d)
{
    const char *path = d->o->socket;
    if (!path[0])
        return;
    char folder[sizeof d->o->socket], uri[160];
    snprintf(folder, sizeof folder, "%s", path);
    char *slash = strrchr(folder, '/');
    if (slash)
        slash[slash == folder] = 0;
    snprintf(uri, sizeof uri, "unix:%s", path);
    struct stat st;
    struct finding *f = doctor_find(d, "unix socket", "'%s'", path);
    check_folder(f, slash ? folder : ".");
    if (lstat(path, &st))
        return;
    if (!S_ISSOCK(st.st_mode))
        doctor_fix(f, FINDING_FAIL, "something else has this name: remove it, or give another "
                   "--socket");
    else if (node_answers(uri))
        doctor_fix(f, FINDING_WARN, "a node answers there already: a second one needs another "
                   "--socket");
}

void doctor_place(struct doctor *d)
{
    if (d->o->disk_path[0]) {
        struct place p;
        find_place(d->o->disk_path, &p);
        check_path(d, &p);
        if (p.exists) {
            check_room(d, &p);
            check_direct(d, &p);
        }
    }
    check_port(d, "Redis port", "port", d->o->port, false);
    check_port(d, "HTTP port", "http-port", d->o->http_port, true);
    check_socket(d);
}
