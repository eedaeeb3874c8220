/* The file under the log: created, locked, judged, and its superblocks and identity slots.
 *
 * Nothing is written to a file before it is known to be new or a log of ours with the geometry
 * asked for. All data goes through the queue, also superblocks: what a test or a decorator does to
 * the device reaches everything. */
#include "storage/nvme.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/options.h"

#define LOCK_POLL_NS (5 * CAIRN_NS_PER_MS)
/* Generations taken from the superblock at once. */
#define GENERATIONS 4096u

static uint64_t file_len(const struct cairn_nvme *t)
{
    return CAIRN_DATA_OFFSET + (uint64_t)t->shape.segments * t->shape.segment_bytes;
}

static cairn_status fail_errno(struct cairn_nvme *t, int err, const char *what)
{
    cairn_status st = cairn_status_from_errno(err);
    switch (err) {
    case EACCES:
    case EPERM:
        return nvme_fail(t, st, "cannot %s %s: not permitted; choose a path you may write", what,
                         t->path);
    case EROFS:
        return nvme_fail(t, CAIRN_PERM,
                         "cannot %s %s: the file system is read-only; choose another path", what,
                         t->path);
    case ENOENT:
    case ENOTDIR:
        return nvme_fail(t, CAIRN_NOTFOUND, "cannot %s %s: its directory does not exist; create it",
                         what, t->path);
    case ENOSPC:
    case EDQUOT:
    case EFBIG: {
        char size[32];
        return nvme_fail(t, CAIRN_NOSPACE,
                         "cannot %s %s: no room for %s there; free some or lower disk=", what,
                         t->path, cairn_format_size(file_len(t), size, sizeof size));
    }
    default:
        return nvme_fail(t, st, "cannot %s %s: %s", what, t->path, strerror(err));
    }
}

/* Process that holds the lock of the file, from the kernel's list; 0 if it does not say. */
static long lock_holder(int fd)
{
    struct stat st;
    FILE *f = fstat(fd, &st) == 0 ? fopen("/proc/locks", "re") : NULL;
    if (!f)
        return 0;
    char line[256], want[64];
    snprintf(want, sizeof want, "%02x:%02x:%ju ", major(st.st_dev), minor(st.st_dev),
             (uintmax_t)st.st_ino);
    long pid = 0;
    while (pid == 0 && fgets(line, sizeof line, f)) {
        long p;
        if (strstr(line, "FLOCK") && strstr(line, want) &&
            sscanf(line, "%*s %*s %*s %*s %ld", &p) == 1 && p > 0)
            pid = p;
    }
    fclose(f);
    return pid;
}

static cairn_status take_lock(struct cairn_nvme *t)
{
    uint64_t end = cairn_deadline_ns(t->o.lock_wait_ns);
    /* On this description and no other: it is released when the last io through it has ended, not
     * when the process that started that io dies. */
    while (flock(t->fd, LOCK_EX | LOCK_NB) != 0) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return fail_errno(t, errno, "lock");
        if (cairn_now_ns() >= end) {
            long pid = lock_holder(t->fd);
            char who[64] = "another process";
            if (pid > 0)
                snprintf(who, sizeof who, "another process (pid %ld)", pid);
            return nvme_fail(t, CAIRN_LOCKED,
                             "%s has %s open; close it there or choose another path", who, t->path);
        }
        struct timespec pause = cairn_timespec(LOCK_POLL_NS);
        nanosleep(&pause, NULL);
    }
    return CAIRN_OK;
}

static cairn_status open_direct(struct cairn_nvme *t)
{
    int flags = O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
    t->info.direct = true;
    t->fd = open(t->path, flags | O_DIRECT, 0600);
    if (t->fd < 0 && errno == EINVAL) {
        t->info.direct = false;
        t->fd = open(t->path, flags, 0600);
    }
    if (t->fd < 0 && (errno == EISDIR || errno == ENXIO))
        return nvme_fail(t, CAIRN_INVAL, "%s is not a regular file; name a file in path", t->path);
    cairn_fork_drop(t->fd);
    return t->fd < 0 ? fail_errno(t, errno, "open") : CAIRN_OK;
}

cairn_status nvme_file_open(struct cairn_nvme *t)
{
    for (int tries = 0;; tries++) {
        cairn_status st = open_direct(t);
        if (st)
            return st;
        struct stat mine, named;
        if (fstat(t->fd, &mine) != 0)
            return fail_errno(t, errno, "stat");
        if (!S_ISREG(mine.st_mode))
            return nvme_fail(t, CAIRN_INVAL, "%s is not a regular file; name a file in path",
                             t->path);
        st = take_lock(t);
        if (st)
            return st;
        /* While it waited the holder may have removed or replaced the file. */
        if (stat(t->path, &named) == 0 && named.st_dev == mine.st_dev &&
            named.st_ino == mine.st_ino) {
            t->dev = mine.st_dev;
            t->ino = mine.st_ino;
            return CAIRN_OK;
        }
        nvme_file_close(t);
        if (tries == 8)
            return nvme_fail(t, CAIRN_BUSY, "%s is replaced over and over; try again", t->path);
    }
}

void nvme_file_close(struct cairn_nvme *t)
{
    /* No LOCK_UN: an io that the device still owes keeps the description, and with it the lock. */
    cairn_fork_forget(t->fd);
    if (t->fd >= 0)
        close(t->fd);
    t->fd = -1;
}

bool nvme_file_intact(const struct cairn_nvme *t, char *why, size_t why_cap)
{
    struct stat mine, named;
    if (stat(t->path, &named) != 0 || named.st_dev != t->dev || named.st_ino != t->ino) {
        snprintf(why, why_cap, "%s was removed or replaced while it was open", t->path);
        return false;
    }
    if (fstat(t->fd, &mine) != 0 || (uint64_t)mine.st_size < file_len(t)) {
        snprintf(why, why_cap, "%s was truncated while it was open", t->path);
        return false;
    }
    return true;
}

/* --- superblocks --- */

void nvme_super_image(struct cairn_nvme *t, struct cairn_super_disk *ret)
{
    memset(ret, 0, sizeof *ret);
    memcpy(ret->uuid, t->shape.uuid, sizeof ret->uuid);
    /* Never over the newest copy that is known to be good. */
    t->super_sequence += (t->super_sequence + 1 - t->super_durable) % 2 ? 1 : 2;
    ret->sequence = t->super_sequence;
    ret->block_size = CAIRN_BLOCK;
    ret->page_size = (uint32_t)sysconf(_SC_PAGESIZE);
    ret->segment_bytes = t->shape.segment_bytes;
    ret->segments = t->shape.segments;
    ret->prewritten = t->prewritten;
    ret->created_ns = t->created_ns;
    ret->session = t->session;
    ret->generation_next = t->generation_reserved;
    ret->state = t->created ? CAIRN_SUPER_CREATING : CAIRN_SUPER_WHOLE;
    ret->closed_generation = t->closed_generation;
    ret->closed_block = t->closed_block;
    cairn_super_seal(ret);
}

uint64_t nvme_super_off(uint64_t sequence)
{
    return sequence & 1 ? CAIRN_SUPER_OFFSET_B : CAIRN_SUPER_OFFSET_A;
}

/* Writes both copies, each durable before the next is touched. */
static cairn_status supers_write(struct cairn_nvme *t)
{
    for (int i = 0; i < 2; i++) {
        struct cairn_super_disk *s = t->scratch;
        nvme_super_image(t, s);
        int err = nvme_io_now(t, CAIRN_IO_WRITE, nvme_super_off(s->sequence), s, CAIRN_BLOCK);
        if (!err)
            err = nvme_io_now(t, CAIRN_IO_SYNC, 0, NULL, 0);
        if (err)
            return fail_errno(t, -err, "write");
        t->super_landed = t->super_durable = t->super_sequence;
    }
    return CAIRN_OK;
}

static cairn_status grow(struct cairn_nvme *t)
{
    off_t len = (off_t)file_len(t);
    int err = fallocate(t->fd, 0, 0, len) == 0 ? 0 : errno;
    if (err == EOPNOTSUPP)
        err = ftruncate(t->fd, len) == 0 ? 0 : errno;
    while (err == EINTR)
        err = fallocate(t->fd, 0, 0, len) == 0 ? 0 : errno;
    if (!err)
        err = fsync(t->fd) == 0 ? 0 : errno;
    if (err) {
        cairn_status st = fail_errno(t, err, "make");
        /* It was empty, or a creation that never ended: nobody's bytes are in it. */
        if (ftruncate(t->fd, 0) != 0 || unlink(t->path) != 0)
            cairn_log(CAIRN_LOG_WARN, "%s: the unfinished log could not be removed", t->path);
        return st;
    }
    return CAIRN_OK;
}

static cairn_status format_new(struct cairn_nvme *t)
{
    if (getrandom(t->shape.uuid, sizeof t->shape.uuid, 0) != (ssize_t)sizeof t->shape.uuid)
        return nvme_fail(t, CAIRN_IO, "%s: the system gives no random bytes", t->path);
    t->created = true;
    t->created_ns = cairn_wall_ns();
    t->session = 1;
    t->generation_next = 1;
    t->generation_reserved = 1 + GENERATIONS;
    /* Marked as unfinished first: a crash in between leaves a file that may be made again. */
    cairn_status st = supers_write(t);
    if (!st)
        st = grow(t);
    if (st)
        return st;
    t->created = false;
    return supers_write(t);
}

/* How a file without a valid superblock is called. */
static cairn_status refuse(struct cairn_nvme *t, enum cairn_verdict a, enum cairn_verdict b)
{
    if (a == CAIRN_VERDICT_FORMAT || b == CAIRN_VERDICT_FORMAT)
        return nvme_fail(t, CAIRN_VERSION,
                         "%s is a log of another format version (this build reads %u); "
                         "use the build that made it, or remove it",
                         t->path, CAIRN_FORMAT_VERSION);
    const struct cairn_super_disk *s = t->scratch;
    if (s[0].magic == CAIRN_MAGIC_SUPER || s[1].magic == CAIRN_MAGIC_SUPER)
        return nvme_fail(t, CAIRN_CORRUPT,
                         "%s: both superblocks are damaged; remove the file to start a new log",
                         t->path);
    return nvme_fail(t, CAIRN_INVAL,
                     "%s is not a cairn log; nothing was changed; choose another path", t->path);
}

/* Is the file one that a crash left before its first superblock was complete? */
static bool embryo(uint64_t size, enum cairn_verdict a, enum cairn_verdict b)
{
    return size <= 2 * CAIRN_BLOCK && size % CAIRN_BLOCK == 0 &&
           (a == CAIRN_VERDICT_BLANK || size == 0) &&
           (b == CAIRN_VERDICT_BLANK || size <= CAIRN_BLOCK);
}

static cairn_status adopt(struct cairn_nvme *t, const struct cairn_super_disk *s, uint64_t size)
{
    uint32_t page = (uint32_t)sysconf(_SC_PAGESIZE);
    if (s->block_size != CAIRN_BLOCK || s->page_size != page)
        return nvme_fail(t, CAIRN_VERSION,
                         "%s was made on a machine with pages of %u bytes, this one has %u; "
                         "choose another path",
                         t->path, s->page_size, page);
    t->super_sequence = t->super_landed = t->super_durable = s->sequence;
    if (s->state == CAIRN_SUPER_CREATING)
        return format_new(t);
    char has[32], wants[32];
    if (s->segment_bytes != t->shape.segment_bytes || s->segments != t->shape.segments)
        return nvme_fail(t, CAIRN_INVAL,
                         "%s holds a log of %s, but disk=%s was asked for; a log keeps its size: "
                         "open it with its own, or remove it",
                         t->path,
                         cairn_format_size(s->segments * s->segment_bytes, has, sizeof has),
                         cairn_format_size(t->o.disk_bytes, wants, sizeof wants));
    if (size < file_len(t))
        return nvme_fail(t, CAIRN_INVAL,
                         "%s was truncated: it has %" PRIu64 " bytes and its log needs %" PRIu64
                         "; restore or remove it",
                         t->path, size, file_len(t));
    memcpy(t->shape.uuid, s->uuid, sizeof t->shape.uuid);
    t->prewritten = s->prewritten;
    t->whole_generation = s->closed_generation;
    t->whole_block = s->closed_block;
    t->created_ns = s->created_ns;
    t->session = s->session + 1;
    t->generation_next = s->generation_next;
    t->generation_reserved = s->generation_next + GENERATIONS;
    if (t->session == 0 || t->generation_reserved < GENERATIONS)
        return nvme_fail(t, CAIRN_INVAL, "%s is worn out: its numbers are used up; remove it",
                         t->path);
    return supers_write(t);
}

cairn_status nvme_super_open(struct cairn_nvme *t)
{
    struct stat st;
    if (fstat(t->fd, &st) != 0)
        return fail_errno(t, errno, "stat");
    uint64_t size = (uint64_t)st.st_size;
    struct cairn_super_disk *s = t->scratch;
    memset(s, 0, 2 * CAIRN_BLOCK);
    if (size == 0)
        return format_new(t);
    for (uint32_t i = 0; i < 2; i++) {
        int err = 0;
        if (size >= (i + 1) * (uint64_t)CAIRN_BLOCK)
            err = nvme_io_now(t, CAIRN_IO_READ, i * CAIRN_BLOCK, &s[i], CAIRN_BLOCK);
        if (err)
            return fail_errno(t, -err, "read");
    }
    enum cairn_verdict a = cairn_super_check(&s[0]), b = cairn_super_check(&s[1]);
    /* A newer build may have upgraded one copy: the other one is history then. */
    if (a == CAIRN_VERDICT_FORMAT || b == CAIRN_VERDICT_FORMAT)
        return refuse(t, a, b);
    if (a != CAIRN_VERDICT_OK && b != CAIRN_VERDICT_OK)
        return embryo(size, a, b) ? format_new(t) : refuse(t, a, b);
    const struct cairn_super_disk *best = &s[0];
    if (a != CAIRN_VERDICT_OK || (b == CAIRN_VERDICT_OK && s[1].sequence > s[0].sequence))
        best = &s[1];
    if (a != CAIRN_VERDICT_OK || b != CAIRN_VERDICT_OK)
        cairn_log(CAIRN_LOG_WARN, "%s: one superblock is damaged, the other one is used", t->path);
    return adopt(t, best, size);
}

static void super_written(struct cairn_nvme *t, struct nvme_io *x)
{
    t->super_writing = false;
    if (x->res == 0)
        t->super_landed = t->super_sequence;
}

void nvme_super_pump(struct cairn_nvme *t)
{
    /* Long before they run out, so that the write is durable by then. */
    if (t->generation_reserved - t->generation_next < GENERATIONS / 2) {
        t->generation_reserved += GENERATIONS;
        t->super_dirty = true;
    }
    if (!t->super_dirty || t->super_writing || t->off)
        return;
    struct nvme_io *x = nvme_io_take(t);
    if (!x)
        return;
    struct cairn_super_disk *s = x->block;
    nvme_super_image(t, s);
    x->done = super_written;
    t->super_writing = true;
    t->super_dirty = false;
    nvme_io_start(t, x, CAIRN_IO_WRITE, nvme_super_off(s->sequence), s, CAIRN_BLOCK);
}

/* --- identity slots --- */

cairn_status nvme_ident_load(struct cairn_nvme *t)
{
    int err = nvme_io_now(t, CAIRN_IO_READ, CAIRN_IDENT_OFFSET, t->idents,
                          CAIRN_IDENT_SLOTS * CAIRN_BLOCK);
    if (err)
        return fail_errno(t, -err, "read");
    for (uint32_t i = 0; i < CAIRN_IDENT_SLOTS; i++) {
        struct cairn_ident_disk *d = &t->idents[i];
        if (cairn_ident_check(d, &t->shape) != CAIRN_VERDICT_OK)
            memset(d, 0, sizeof *d);
        else if (d->sequence > t->ident_sequence)
            t->ident_sequence = d->sequence;
    }
    return CAIRN_OK;
}

cairn_status nvme_ident_put(struct cairn_tier *tier, const void *canon, uint32_t len)
{
    struct cairn_nvme *t = (struct cairn_nvme *)tier;
    if (len == 0)
        return CAIRN_INVAL;
    if (len > CAIRN_IDENT_MAX)
        return CAIRN_TOOBIG;
    pthread_mutex_lock(&t->ident_lock);
    uint32_t slot = 0;
    bool known = false;
    for (uint32_t i = 0; i < CAIRN_IDENT_SLOTS && !known; i++) {
        const struct cairn_ident_disk *d = &t->idents[i];
        known = d->len == len && memcmp(d->bytes, canon, len) == 0;
        if (d->sequence < t->idents[slot].sequence)
            slot = i;
    }
    if (!known) {
        struct cairn_ident_disk *d = &t->idents[slot];
        memset(d, 0, sizeof *d);
        memcpy(d->uuid, t->shape.uuid, sizeof d->uuid);
        d->sequence = ++t->ident_sequence;
        d->len = len;
        memcpy(d->bytes, canon, len);
        cairn_ident_seal(d);
        t->ident_dirty |= 1ull << slot;
    }
    pthread_mutex_unlock(&t->ident_lock);
    if (!known)
        t->q->ops->wake(t->q);
    return CAIRN_OK;
}

void nvme_ident_each(struct cairn_tier *tier,
                     void (*fn)(void *arg, const void *canon, uint32_t len), void *arg)
{
    struct cairn_nvme *t = (struct cairn_nvme *)tier;
    pthread_mutex_lock(&t->ident_lock);
    for (uint32_t i = 0; i < CAIRN_IDENT_SLOTS; i++) {
        if (t->idents[i].len)
            fn(arg, t->idents[i].bytes, t->idents[i].len);
    }
    pthread_mutex_unlock(&t->ident_lock);
}

static void ident_written(struct cairn_nvme *t, struct nvme_io *x)
{
    t->ident_writing = false;
    (void)x;
}

void nvme_ident_pump(struct cairn_nvme *t)
{
    if (t->ident_writing || t->off)
        return;
    pthread_mutex_lock(&t->ident_lock);
    struct nvme_io *x = t->ident_dirty ? nvme_io_take(t) : NULL;
    t->ident_pending = t->ident_dirty != 0;
    if (!x) {
        pthread_mutex_unlock(&t->ident_lock);
        return;
    }
    uint32_t slot = (uint32_t)__builtin_ctzll(t->ident_dirty);
    t->ident_dirty &= t->ident_dirty - 1;
    memcpy(x->block, &t->idents[slot], CAIRN_BLOCK);
    pthread_mutex_unlock(&t->ident_lock);
    x->done = ident_written;
    t->ident_writing = true;
    nvme_io_start(t, x, CAIRN_IO_WRITE, CAIRN_IDENT_OFFSET + (uint64_t)slot * CAIRN_BLOCK, x->block,
                  CAIRN_BLOCK);
}
