#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/timex.h>
#include <sys/utsname.h>

#include "base/clock.h"
#include "base/mem.h"
#include "storage/ioq.h"
#include "tools/doctor.h"

#define HUGE_BYTES (2ull << 20)
#define PROBE_BYTES (32ull << 20)
/* Of a node beside its clients: listeners, log, rings, threads' wake-ups, HTTP. */
#define FILES_OF_ITS_OWN 128u
/* Memory of a node beside its arena: index, buffers, threads. */
#define RAM_OF_ITS_OWN (128ull << 20)
#define YEAR_2025_S 1735689600ull
#define CAP_IPC_LOCK_BIT 14

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

/* The number behind "name" in a /proc file; 0 if it is not there. */
static uint64_t read_number(const char *path, const char *name, int base)
{
    char line[256];
    uint64_t value = 0;
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, name, strlen(name)))
            value = strtoull(line + strlen(name) + strspn(line + strlen(name), ": \t"), NULL, base);
    if (f)
        fclose(f);
    return value;
}

static const char *size_text(uint64_t bytes, char out[32])
{
    return bytes == UINT64_MAX || bytes == RLIM_INFINITY ? "unlimited"
                                                         : cairn_format_size(bytes, out, 32);
}

static void check_kernel(struct doctor *d)
{
    struct utsname u;
    uname(&u);
    char *end;
    unsigned long major = strtoul(u.release, &end, 10);
    unsigned long minor = *end == '.' ? strtoul(end + 1, NULL, 10) : 0;
    unsigned long version = major * 1000 + minor;
    struct finding *f = doctor_find(d, "kernel", "Linux %s", u.release);
    if (version < 5001)
        doctor_fix(f, FINDING_FAIL, "memory cannot be shared read-only before Linux 5.1: use a "
                   "newer kernel");
    else if (version < 5011)
        doctor_fix(f, FINDING_WARN, "io_uring lacks what is used here before Linux 5.11: a newer "
                   "kernel is faster");
    else if (version < 6001)
        doctor_fix(f, FINDING_WARN, "huge pages must be reserved before Linux 6.1 (no "
                   "MADV_COLLAPSE): sysctl vm.nr_hugepages, or a newer kernel");
}

static void check_memory(struct doctor *d)
{
    char want[32], have[32];
    uint64_t available = cairn_mem_available();
    struct finding *f = doctor_find(d, "memory", "%s available for a RAM budget of %s",
                                    size_text(available, have), size_text(d->o->ram, want));
    if (available != UINT64_MAX && available < d->o->ram + RAM_OF_ITS_OWN)
        doctor_fix(f, FINDING_FAIL, "set --ram to at most %s, or free memory",
                   size_text(available > 2 * RAM_OF_ITS_OWN ? available - RAM_OF_ITS_OWN
                                                            : RAM_OF_ITS_OWN, have));
}

static void check_huge_pages(struct doctor *d)
{
    uint64_t free_pages = read_number("/proc/meminfo", "HugePages_Free", 10);
    uint64_t need = (d->o->ram + HUGE_BYTES - 1) / HUGE_BYTES;
    if (free_pages >= need) {
        doctor_find(d, "huge pages", "%" PRIu64 " of 2 MiB reserved and free, %" PRIu64 " needed",
                    free_pages, need);
        return;
    }
    struct cairn_mapping m;
    bool ok = cairn_mapping_open(PROBE_BYTES, "cairn-doctor", &m) == CAIRN_OK;
    struct finding *f = doctor_find(
        d, "huge pages", "%" PRIu64 " reserved; %.0f %% of a probe of 32 MiB became huge%s%s",
        free_pages, ok ? 100 * m.huge_share : 0.0, m.note[0] ? ": " : "", m.note);
    if (!ok || m.huge_share < 0.9)
        doctor_fix(f, FINDING_WARN, "sysctl vm.nr_hugepages=%" PRIu64 ", or "
                   "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled", need);
    if (ok)
        cairn_mapping_close(&m);
}

static void check_memlock(struct doctor *d)
{
    char have[32], want[32];
    struct rlimit r = {0};
    getrlimit(RLIMIT_MEMLOCK, &r);
    bool exempt = read_number("/proc/self/status", "CapEff", 16) >> CAP_IPC_LOCK_BIT & 1;
    struct finding *f = doctor_find(d, "memlock", "limit %s%s", size_text(r.rlim_cur, have),
                                    exempt ? ", which CAP_IPC_LOCK lifts" : "");
    if (!exempt && r.rlim_cur != RLIM_INFINITY && r.rlim_cur < d->o->ram)
        doctor_fix(f, FINDING_WARN, "buffers are not registered with io_uring below the RAM budget "
                   "of %s, which costs speed: ulimit -l unlimited, or LimitMEMLOCK=infinity",
                   size_text(d->o->ram, want));
}

static void check_files(struct doctor *d)
{
    struct rlimit r = {0};
    getrlimit(RLIMIT_NOFILE, &r);
    uint64_t need = d->o->clients_max + FILES_OF_ITS_OWN;
    struct finding *f = doctor_find(d, "open files", "limit %" PRIu64 " (hard %" PRIu64
                                    "), clients-max %" PRIu64, (uint64_t)r.rlim_cur,
                                    (uint64_t)r.rlim_max, d->o->clients_max);
    if (r.rlim_max < need)
        doctor_fix(f, FINDING_FAIL, "ulimit -Hn %" PRIu64 " (LimitNOFILE in the unit), or "
                   "--clients-max=%" PRIu64, need,
                   r.rlim_max > 2 * FILES_OF_ITS_OWN ? (uint64_t)r.rlim_max - FILES_OF_ITS_OWN : 1);
}

static void check_limits(struct doctor *d)
{
    char a[32], b[32];
    struct rlimit file = {0}, space = {0};
    getrlimit(RLIMIT_FSIZE, &file);
    getrlimit(RLIMIT_AS, &space);
    struct finding *f = doctor_find(d, "ulimits", "file size %s, address space %s",
                                    size_text(file.rlim_cur, a), size_text(space.rlim_cur, b));
    if (d->o->disk_path[0] && file.rlim_cur != RLIM_INFINITY && file.rlim_cur < d->o->disk)
        doctor_fix(f, FINDING_FAIL, "the log is larger than a file may be: ulimit -f unlimited");
    if (space.rlim_cur != RLIM_INFINITY && space.rlim_cur < d->o->ram + RAM_OF_ITS_OWN)
        doctor_fix(f, FINDING_FAIL, "the RAM budget is larger than the address space: "
                   "ulimit -v unlimited");
}

static void check_engine(struct doctor *d)
{
    char disabled[32], why[256] = "", why_pool[256] = "";
    read_line("/proc/sys/kernel/io_uring_disabled", disabled, sizeof disabled);
    bool uring = cairn_ioq_uring.probe(why, sizeof why);
    bool pool = cairn_ioq_pool.probe(why_pool, sizeof why_pool);
    const char *asked = node_engine_names[d->o->engine];
    struct finding *f = doctor_find(d, "io_uring", "%s, kernel.io_uring_disabled=%s%s%s",
                                    uring ? "usable" : "not usable",
                                    disabled[0] ? disabled : "(not there)", uring ? "" : ": ",
                                    uring ? "" : why);
    if (!uring && !strcmp(asked, "uring"))
        doctor_fix(f, FINDING_FAIL, "--engine=auto, or allow it: sysctl kernel.io_uring_disabled=0 "
                   "and a seccomp profile that lets io_uring_setup pass");
    if (!uring && !pool)
        doctor_fix(f, FINDING_FAIL, "no engine can run, the thread pool neither: %s", why_pool);
    if (!uring)
        doctor_fix(f, FINDING_WARN, "threads are used instead, which costs speed: sysctl "
                   "kernel.io_uring_disabled=0 and a seccomp profile that lets io_uring_setup "
                   "pass");
}

static void check_clock(struct doctor *d)
{
    char source[64];
    struct timex t = {.modes = 0};
    read_line("/sys/devices/system/clocksource/clocksource0/current_clocksource", source,
              sizeof source);
    bool known = adjtimex(&t) >= 0;
    bool in_step = known && !(t.status & STA_UNSYNC);
    struct finding *f = doctor_find(d, "clock", "source %s, %s", source[0] ? source : "unknown",
                                    in_step ? "kept in step" : known ? "not kept in step by NTP"
                                                                     : "state unknown");
    if (cairn_wall_ns() / CAIRN_NS_PER_S < YEAR_2025_S)
        doctor_fix(f, FINDING_FAIL, "the wall clock is years behind, expiry would be wrong: set "
                   "it (timedatectl set-ntp true)");
    if (!strcmp(source, "hpet") || !strcmp(source, "acpi_pm") || !strcmp(source, "jiffies"))
        doctor_fix(f, FINDING_WARN, "reading this clock is slow: boot with another clocksource= "
                   "if the machine has one (tsc, kvm-clock)");
    if (known && !in_step)
        doctor_fix(f, FINDING_WARN, "expiry times follow the wall clock: run chrony or "
                   "systemd-timesyncd, or see that the host keeps it");
}

void doctor_machine(struct doctor *d)
{
    check_kernel(d);
    check_memory(d);
    check_huge_pages(d);
    check_memlock(d);
    check_files(d);
    check_limits(d);
    check_engine(d);
    check_clock(d);
}
