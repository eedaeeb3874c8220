#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define HUGE_BYTES (2ull << 20)
#define PAGE_BYTES 4096ull
/* Populated between two looks at how much memory is left, and what must stay free beyond it. */
#define STEP_BYTES (128ull << 20)
#define SPARE_BYTES (32ull << 20)
#define COLLAPSE_TRIES 3

/* Newer than glibc 2.36. */
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8u
#endif
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)
#endif

static _Atomic uint64_t fail_in;

void cairn_mem_fail_nth(uint64_t n)
{
    atomic_store(&fail_in, n);
}

static bool fail_now(void)
{
    uint64_t left = atomic_load_explicit(&fail_in, memory_order_relaxed);
    while (left && !atomic_compare_exchange_weak(&fail_in, &left, left - 1))
        ;
    return left == 1;
}

void *cairn_malloc(size_t len)
{
    return fail_now() ? NULL : malloc(len);
}

void *cairn_calloc(size_t count, size_t size)
{
    return fail_now() ? NULL : calloc(count, size);
}

static bool round_up(size_t len, size_t unit, size_t *ret)
{
    if (len == 0 || __builtin_add_overflow(len, unit - 1, ret) || *ret > SIZE_MAX / 4)
        return false;
    *ret -= *ret % unit;
    return true;
}

/* Address range of `len` bytes, 2 MiB aligned, with nothing in it. */
static void *range_reserve(size_t len)
{
    size_t total = len + HUGE_BYTES;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    char *raw = fail_now() ? MAP_FAILED : mmap(NULL, total, PROT_NONE, flags, -1, 0);
    if (raw == MAP_FAILED)
        return NULL;
    size_t head = (size_t)(-(uintptr_t)raw & (HUGE_BYTES - 1));
    if (head)
        munmap(raw, head);
    munmap(raw + head + len, total - head - len);
    return raw + head;
}

static bool memory_left(size_t len)
{
    return cairn_mem_available() >= len + SPARE_BYTES;
}

/* Faults the pages in with errors instead of signals. Looks at what is left before every step, as
 * other programs take memory at the same time: a refusal is better than the OOM killer. */
static bool range_populate(char *base, size_t len)
{
    for (size_t at = 0; at < len;) {
        size_t step = len - at < STEP_BYTES ? len - at : STEP_BYTES;
        if (!memory_left(step))
            return false;
        if (madvise(base + at, step, MADV_POPULATE_WRITE)) {
            if (errno == EINTR || errno == EAGAIN)
                continue;
            if (errno != EINVAL)
                return false;
            /* Before Linux 5.14: touch. What is there is kept. */
            for (size_t i = 0; i < step; i += PAGE_BYTES)
                __atomic_fetch_or(base + at + i, 0, __ATOMIC_RELAXED);
        }
        at += step;
    }
    return true;
}

/* MADV_COLLAPSE wants one page present and brings the other 511 itself, zeroed as one: five times
 * faster than populating 4 KiB pages and then collapsing them. Returns how many bytes from the
 * start are populated; if that is not all, errno says why it stopped. */
static size_t range_collapse(char *base, size_t len)
{
    for (size_t at = 0; at < len; at += HUGE_BYTES) {
        if (at % STEP_BYTES == 0 && !memory_left(len - at < STEP_BYTES ? len - at : STEP_BYTES)) {
            errno = ENOMEM;
            return at;
        }
        if (madvise(base + at, PAGE_BYTES, MADV_POPULATE_WRITE))
            return at;
        /* EAGAIN: a page was busy, as one under migration is. */
        int failed = -1;
        for (int tries = 0; failed && tries < COLLAPSE_TRIES; tries++) {
            failed = madvise(base + at, HUGE_BYTES, MADV_COLLAPSE);
            if (failed && errno != EAGAIN && errno != EINTR)
                return at;
        }
        if (failed && madvise(base + at, HUGE_BYTES, MADV_POPULATE_WRITE))
            return at;
    }
    return len;
}

/* Bytes of [base, base + len) that the page tables map as 2 MiB pages. */
static size_t huge_bytes_of(const void *base, size_t len)
{
    FILE *f = fopen("/proc/self/smaps", "re");
    if (!f)
        return 0;
    char line[512];
    size_t sum = 0;
    bool inside = false;
    while (fgets(line, sizeof(line), f)) {
        unsigned long from, to, kib;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2) {
            if (from >= (uintptr_t)base + len)
                break;
            inside = from >= (uintptr_t)base;
        } else if (inside && (sscanf(line, "ShmemPmdMapped: %lu kB", &kib) == 1 ||
                              sscanf(line, "AnonHugePages: %lu kB", &kib) == 1)) {
            sum += kib * 1024;
        }
    }
    fclose(f);
    return sum < len ? sum : len;
}

static uint64_t hugetlb_free(void)
{
    static const char dir[] = "/sys/kernel/mm/hugepages/hugepages-2048kB/";
    static const char *const names[] = {"free_hugepages", "resv_hugepages"};
    uint64_t count[2] = {0, 0};
    for (int i = 0; i < 2; i++) {
        char path[128];
        snprintf(path, sizeof(path), "%s%s", dir, names[i]);
        FILE *f = fopen(path, "re");
        if (!f)
            return 0;
        unsigned long n = 0;
        if (fscanf(f, "%lu", &n) == 1)
            count[i] = n;
        fclose(f);
    }
    return count[0] > count[1] ? (count[0] - count[1]) * HUGE_BYTES : 0;
}

/* A memfd of `len` bytes that nobody can resize: a reader of a shrunk one would get SIGBUS. */
static int memfd_open(size_t len, const char *name, unsigned flags)
{
    flags |= MFD_CLOEXEC | MFD_ALLOW_SEALING;
    int fd = fail_now() ? (errno = ENOMEM, -1) : memfd_create(name, flags | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
        fd = memfd_create(name, flags);
    if (fd < 0)
        return -1;
    int failed = fail_now() ? (errno = ENOMEM, -1) : ftruncate(fd, (off_t)len);
    if (failed) {
        int err = errno;
        close(fd);
        errno = err;
        return -1;
    }
    fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
    return fd;
}

/* Maps m->fd at m->base over the reserved range. */
static bool mapping_map(struct cairn_mapping *m)
{
    if (fail_now())
        return false;
    void *p = mmap(m->base, m->len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, m->fd, 0);
    if (p == MAP_FAILED)
        return false;
    madvise(m->base, m->len, MADV_DONTDUMP);
    madvise(m->base, m->len, MADV_DONTFORK);
    return true;
}

static bool mapping_try_hugetlb(struct cairn_mapping *m, const char *name)
{
    if (hugetlb_free() < m->len)
        return false;
    m->fd = memfd_open(m->len, name, MFD_HUGETLB | MFD_HUGE_2MB);
    if (m->fd < 0)
        return false;
    /* Pages are reserved by the mapping, so populating them cannot be killed for memory. */
    if (mapping_map(m) && madvise(m->base, m->len, MADV_POPULATE_WRITE) == 0) {
        m->pages = CAIRN_PAGES_HUGETLB;
        m->huge_share = 1.0;
        return true;
    }
    close(m->fd);
    m->fd = -1;
    return false;
}

static bool mapping_try_shmem(struct cairn_mapping *m, const char *name)
{
    if (!memory_left(m->len)) {
        snprintf(m->note, sizeof(m->note),
                 "%zu MiB do not fit into the %llu MiB of available memory: choose less",
                 m->len >> 20, (unsigned long long)(cairn_mem_available() >> 20));
        return false;
    }
    m->fd = memfd_open(m->len, name, 0);
    if (m->fd < 0 || !mapping_map(m)) {
        snprintf(m->note, sizeof(m->note), "mapping %zu MiB failed: %s", m->len >> 20,
                 strerrordesc_np(errno));
        return false;
    }
    madvise(m->base, m->len, MADV_HUGEPAGE);
    size_t done = range_collapse(m->base, m->len);
    const char *why = done < m->len ? strerrordesc_np(errno) : "not everywhere";
    if (fail_now() || !range_populate((char *)m->base + done, m->len - done)) {
        snprintf(m->note, sizeof(m->note), "available memory ran out while filling %zu MiB",
                 m->len >> 20);
        return false;
    }
    m->huge_share = (double)huge_bytes_of(m->base, m->len) / (double)m->len;
    m->pages = m->huge_share > 0.5 ? CAIRN_PAGES_THP : CAIRN_PAGES_4K;
    if (m->huge_share < 0.99)
        snprintf(m->note, sizeof(m->note),
                 "%d %% of %zu MiB are on 2 MiB pages (MADV_COLLAPSE: %s): disk reads and copies "
                 "are slower",
                 (int)(m->huge_share * 100.0), m->len >> 20, why);
    return true;
}

static cairn_status mapping_open(size_t len, const char *name, bool writable,
                                 struct cairn_mapping *ret)
{
    memset(ret, 0, sizeof(*ret));
    ret->fd = -1;
    size_t rounded;
    if (!round_up(len, HUGE_BYTES, &rounded)) {
        snprintf(ret->note, sizeof(ret->note), "%zu is no possible memory size", len);
        return len ? CAIRN_NOMEM : CAIRN_INVAL;
    }
    /* Growing a file past RLIMIT_FSIZE raises a signal. */
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < rounded) {
        snprintf(ret->note, sizeof(ret->note),
                 "RLIMIT_FSIZE (ulimit -f) is below %zu MiB, which memory counts against: raise it",
                 rounded >> 20);
        return CAIRN_NOMEM;
    }
    struct cairn_mapping m = {.len = rounded, .fd = -1, .owner_pid = getpid()};
    m.base = range_reserve(rounded);
    if (!m.base) {
        snprintf(ret->note, sizeof(ret->note), "no address range of %zu MiB is free (ulimit -v?)",
                 rounded >> 20);
        return CAIRN_NOMEM;
    }
    if (!mapping_try_hugetlb(&m, name) && !mapping_try_shmem(&m, name)) {
        memcpy(ret->note, m.note, sizeof(m.note));
        cairn_mapping_close(&m);
        return CAIRN_NOMEM;
    }
    m.sealed = !writable && fcntl(m.fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) == 0;
    if (!m.sealed) /* or before Linux 5.1 */
        fcntl(m.fd, F_ADD_SEALS, F_SEAL_SEAL);
    *ret = m;
    return CAIRN_OK;
}

cairn_status cairn_mapping_open(size_t len, const char *name, struct cairn_mapping *ret)
{
    return mapping_open(len, name, false, ret);
}

cairn_status cairn_mapping_open_writable(size_t len, const char *name, struct cairn_mapping *ret)
{
    return mapping_open(len, name, true, ret);
}

void cairn_mapping_close(struct cairn_mapping *m)
{
    if (!m || !m->base)
        return;
    /* In a forked child the range is not ours any more: something else may lie there. */
    if (m->owner_pid == getpid())
        munmap(m->base, m->len);
    if (m->fd >= 0)
        close(m->fd);
    memset(m, 0, sizeof(*m));
    m->fd = -1;
}

static bool table_round(size_t len, size_t *ret)
{
    return round_up(len, len >= HUGE_BYTES ? HUGE_BYTES : PAGE_BYTES, ret);
}

void *cairn_table_alloc(size_t len)
{
    size_t rounded;
    if (!table_round(len, &rounded))
        return NULL;
    /* Asking takes longer than a small table does, and the spare room is there for those. */
    if (rounded >= HUGE_BYTES && !memory_left(rounded))
        return NULL;
    char *p = range_reserve(rounded);
    if (!p)
        return NULL;
    if (mprotect(p, rounded, PROT_READ | PROT_WRITE) == 0) {
        if (rounded >= HUGE_BYTES)
            madvise(p, rounded, MADV_HUGEPAGE);
        if (range_populate(p, rounded))
            return p;
    }
    munmap(p, rounded);
    return NULL;
}

void cairn_table_free(void *p, size_t len)
{
    size_t rounded;
    if (p && table_round(len, &rounded))
        munmap(p, rounded);
}
