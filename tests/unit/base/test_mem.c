#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/mem.h"
#include "base/mem_available.h"

#define MIB (1ull << 20)
#define POPULATE_WRITE 23
#define COLLAPSE 25

/* Stands before libc's: the kernel refuses this advice, from the given call on. */
static struct {
    int advice, err;
    unsigned after;
} refuse[2];

int madvise(void *p, size_t len, int advice)
{
    for (int i = 0; i < 2; i++) {
        if (refuse[i].advice != advice || refuse[i].after-- > 0)
            continue;
        refuse[i].after = 0;
        errno = refuse[i].err;
        return -1;
    }
    return (int)syscall(SYS_madvise, p, len, advice);
}

/* Flags of the mapping that holds `base`, as /proc/self/smaps prints them. */
static void vm_flags(const void *base, char *out, size_t cap)
{
    char line[512];
    bool inside = false;
    FILE *f = fopen("/proc/self/smaps", "r");
    cr_assert_not_null(f);
    out[0] = '\0';
    while (fgets(line, sizeof(line), f)) {
        unsigned long from, to;
        if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
            inside = from <= (uintptr_t)base && (uintptr_t)base < to;
        else if (inside && strncmp(line, "VmFlags:", 8) == 0)
            snprintf(out, cap, "%s", line);
    }
    fclose(f);
}

Test(mem, mapping_is_aligned_populated_and_zero)
{
    struct cairn_mapping m;
    cr_assert_eq(cairn_mapping_open(5 * MIB + 1, "cairn-test", &m), CAIRN_OK, "%s", m.note);
    cr_assert_eq(m.len, 6 * MIB);
    cr_assert_eq((uintptr_t)m.base % (2 * MIB), 0);
    cr_assert_eq(fcntl(m.fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    unsigned char resident[6 * 256];
    cr_assert_eq(mincore(m.base, m.len, resident), 0);
    unsigned char *p = m.base;
    for (size_t i = 0; i < m.len; i += 4096)
        cr_assert(resident[i / 4096] & 1, "page %zu is not there", i / 4096);
    for (size_t i = 0; i < m.len; i++)
        cr_assert_eq(p[i], 0);
    cr_assert(m.huge_share >= 0.0 && m.huge_share <= 1.0);
    cr_assert_eq(m.huge_share > 0.5, m.pages != CAIRN_PAGES_4K);
    cr_assert_eq(m.huge_share < 0.99, m.note[0] != '\0', "share %g, note '%s'", m.huge_share,
                 m.note);
    cairn_mapping_close(&m);
    cr_assert_null(m.base);
    cr_assert_eq(m.fd, -1);
    cairn_mapping_close(&m);
    cairn_mapping_close(NULL);
}

static void opens_in_spite_of_refusals(double share_max)
{
    struct cairn_mapping m;
    cr_assert_eq(cairn_mapping_open(8 * MIB, "cairn-test", &m), CAIRN_OK, "%s", m.note);
    if (m.pages != CAIRN_PAGES_HUGETLB) {
        cr_assert(m.huge_share <= share_max, "%g", m.huge_share);
        cr_assert(strstr(m.note, "MADV_COLLAPSE"), "'%s'", m.note);
    }
    unsigned char resident[8 * 256], *p = m.base;
    cr_assert_eq(mincore(m.base, m.len, resident), 0);
    for (size_t i = 0; i < m.len; i += 4096)
        cr_assert((resident[i / 4096] & 1) && p[i] == 0, "page %zu", i / 4096);
    cairn_mapping_close(&m);
}

Test(mem, kernels_without_collapse)
{
    refuse[0].advice = COLLAPSE;
    refuse[0].err = EINVAL;
    opens_in_spite_of_refusals(0.0);
}

Test(mem, kernels_without_populate)
{
    refuse[0].advice = POPULATE_WRITE;
    refuse[1].advice = COLLAPSE;
    refuse[0].err = refuse[1].err = EINVAL;
    opens_in_spite_of_refusals(0.0);
    unsigned char *table = cairn_table_alloc(3 * MIB);
    cr_assert_not_null(table);
    cairn_table_free(table, 3 * MIB);
}

Test(mem, pages_that_stay_busy)
{
    refuse[0].advice = COLLAPSE;
    refuse[0].err = EAGAIN;
    refuse[0].after = 2;
    opens_in_spite_of_refusals(0.5);
}

Test(mem, memory_that_runs_out_while_filling)
{
    struct cairn_mapping m;
    refuse[0].advice = POPULATE_WRITE;
    refuse[1].advice = COLLAPSE;
    refuse[0].err = refuse[1].err = ENOMEM;
    cr_assert_eq(cairn_mapping_open(8 * MIB, "cairn-test", &m), CAIRN_NOMEM);
    cr_assert(strstr(m.note, "ran out"), "'%s'", m.note);
    cr_assert_null(cairn_table_alloc(3 * MIB));
}

Test(mem, mapping_is_shared_through_its_file_and_sealed)
{
    struct cairn_mapping m;
    cr_assert_eq(cairn_mapping_open(2 * MIB, "cairn-test", &m), CAIRN_OK);
    unsigned char *other = mmap(NULL, m.len, PROT_READ, MAP_SHARED, m.fd, 0);
    cr_assert_neq(other, MAP_FAILED);
    ((unsigned char *)m.base)[12345] = 99;
    cr_assert_eq(other[12345], 99);
    cr_assert_eq(ftruncate(m.fd, 0), -1, "a reader would get SIGBUS");
    munmap(other, m.len);
    cairn_mapping_close(&m);
}

Test(mem, mapping_is_neither_dumped_nor_inherited)
{
    struct cairn_mapping m;
    char flags[512];
    cr_assert_eq(cairn_mapping_open(2 * MIB, "cairn-test", &m), CAIRN_OK);
    vm_flags(m.base, flags, sizeof(flags));
    cr_assert(strstr(flags, " dd"), "no DONTDUMP in '%s'", flags);
    cr_assert(strstr(flags, " dc"), "no DONTFORK in '%s'", flags);

    pid_t child = fork();
    if (child == 0) {
        /* What lies in the hole is the child's: closing the parent's mapping must leave it. */
        char *mine = mmap(m.base, m.len, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (mine != m.base)
            _exit(2);
        mine[0] = 7;
        cairn_mapping_close(&m);
        _exit(mine[0] == 7 ? 0 : 3);
    }
    int status;
    cr_assert_eq(waitpid(child, &status, 0), child);
    cr_assert(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %x", status);
    cr_assert_eq(((unsigned char *)m.base)[0], 0);
    cairn_mapping_close(&m);
}

Test(mem, too_large_is_refused_in_a_sentence)
{
    static const size_t sizes[] = {1ull << 44, SIZE_MAX / 2, SIZE_MAX - 5, SIZE_MAX};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        struct cairn_mapping m;
        cr_assert_eq(cairn_mapping_open(sizes[i], "cairn-test", &m), CAIRN_NOMEM);
        cr_assert_null(m.base);
        cr_assert_eq(m.fd, -1);
        cr_assert_str_not_empty(m.note);
        cr_assert_null(cairn_table_alloc(sizes[i]));
    }
    struct cairn_mapping m;
    cr_assert_eq(cairn_mapping_open(0, "cairn-test", &m), CAIRN_INVAL);
    cr_assert_null(cairn_table_alloc(0));
    /* Twice, as others may free memory meanwhile. */
    uint64_t left = cairn_mem_available();
    cr_assert(left > 0 && left < 1ull << 50, "%lu", left);
    cr_assert_eq(cairn_mapping_open(2 * left, "cairn-test", &m), CAIRN_NOMEM);
    cr_assert(strstr(m.note, "available"), "%s", m.note);
}

Test(mem, limits_of_the_process)
{
    struct rlimit none = {.rlim_cur = 0, .rlim_max = RLIM_INFINITY}, old;
    struct cairn_mapping m;
    getrlimit(RLIMIT_MEMLOCK, &old);
    none.rlim_max = old.rlim_max;
    cr_assert_eq(setrlimit(RLIMIT_MEMLOCK, &none), 0);
    cr_assert_eq(cairn_mapping_open(2 * MIB, "cairn-test", &m), CAIRN_OK, "%s", m.note);
    cairn_mapping_close(&m);

    /* Would raise SIGXFSZ. */
    getrlimit(RLIMIT_FSIZE, &old);
    struct rlimit small = {.rlim_cur = MIB, .rlim_max = old.rlim_max};
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &small), 0);
    cr_assert_eq(cairn_mapping_open(2 * MIB, "cairn-test", &m), CAIRN_NOMEM);
    cr_assert(strstr(m.note, "RLIMIT_FSIZE"), "%s", m.note);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &old), 0);
}

static int open_files(void)
{
    int n = 0;
    for (int fd = 0; fd < 256; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

Test(mem, every_step_of_opening_may_fail)
{
    int before = open_files();
    uint64_t n = 1;
    for (; n < 20; n++) {
        struct cairn_mapping m;
        cairn_mem_fail_nth(n);
        cairn_status s = cairn_mapping_open(2 * MIB, "cairn-test", &m);
        cairn_mem_fail_nth(0);
        if (s == CAIRN_OK) {
            cairn_mapping_close(&m);
            /* A failed hugetlb attempt falls back, so success alone does not end the steps. */
            if (n > 8)
                break;
            continue;
        }
        cr_assert_eq(s, CAIRN_NOMEM);
        cr_assert_null(m.base);
        cr_assert_str_not_empty(m.note);
    }
    cr_assert_eq(open_files(), before, "a descriptor leaked");
}

Test(mem, tables)
{
    static const size_t lens[] = {1, 4096, 100000, 2 * MIB - 1, 2 * MIB, 5 * MIB + 3};
    for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
        unsigned char *p = cairn_table_alloc(lens[i]);
        cr_assert_not_null(p);
        cr_assert_eq((uintptr_t)p % (lens[i] >= 2 * MIB ? 2 * MIB : 4096), 0);
        for (size_t b = 0; b < lens[i]; b++)
            cr_assert_eq(p[b], 0);
        memset(p, 1, lens[i]);
        cairn_table_free(p, lens[i]);
    }
    cairn_table_free(NULL, 100);
    cairn_mem_fail_nth(1);
    cr_assert_null(cairn_table_alloc(100));
    void *p = cairn_table_alloc(100);
    cr_assert_not_null(p, "fails once only");
    cairn_table_free(p, 100);
}

Test(mem, nth_allocation_fails_once)
{
    void *a[4];
    cairn_mem_fail_nth(3);
    for (int i = 0; i < 4; i++) {
        a[i] = i % 2 ? cairn_malloc(16) : cairn_calloc(2, 8);
        cr_assert_eq(a[i] == NULL, i == 2, "%d", i);
    }
    for (int i = 0; i < 4; i++)
        free(a[i]);
    cairn_mem_fail_nth(1);
    cairn_mem_fail_nth(0);
    a[0] = cairn_malloc(1);
    cr_assert_not_null(a[0]);
    free(a[0]);
}

/* Writes root/path, with the folders on the way. */
static void put_file(const char *root, const char *path, const char *text)
{
    char full[512];
    snprintf(full, sizeof(full), "%s/%s", root, path);
    for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')); p++) {
        *p = '\0';
        mkdir(full, 0700);
        *p = '/';
    }
    FILE *f = fopen(full, "w");
    cr_assert_not_null(f, "%s", full);
    fputs(text, f);
    fclose(f);
}

static void remove_tree(const char *root)
{
    char command[300];
    snprintf(command, sizeof(command), "rm -r '%s'", root);
    cr_assert_eq(system(command), 0);
}

Test(mem, cgroups_of_both_versions)
{
    char v2[] = "/tmp/cairn-test-XXXXXX", v1[] = "/tmp/cairn-test-XXXXXX";
    cr_assert_not_null(mkdtemp(v2));
    cr_assert_not_null(mkdtemp(v1));
    put_file(v2, "memory.stat", "");
    put_file(v2, "a/memory.max", "1000000\n");
    put_file(v2, "a/memory.current", "900000\n");
    put_file(v2, "a/memory.stat", "anon 5\ninactive_file 100000\nactive_file 50000\n");
    put_file(v2, "a/b/memory.max", "max\n");
    put_file(v2, "a/b/memory.current", "5\n");
    put_file(v2, "full/memory.max", "10\n");
    put_file(v2, "full/memory.current", "11\n");
    cr_assert_eq(cairn_cgroup_available("0::/a/b\n", v2), 250000, "the limit is one above");
    cr_assert_eq(cairn_cgroup_available("0::/a", v2), 250000);
    cr_assert_eq(cairn_cgroup_available("0::/\n", v2), UINT64_MAX);
    cr_assert_eq(cairn_cgroup_available("0::/elsewhere/../x\n", v2), UINT64_MAX);
    cr_assert_eq(cairn_cgroup_available("0::/full\n", v2), 0);

    put_file(v1, "memory/memory.limit_in_bytes", "7000\n");
    put_file(v1, "memory/memory.usage_in_bytes", "4000\n");
    put_file(v1, "memory/memory.stat", "cache 9\ntotal_inactive_file 500\ntotal_active_file 9\n");
    cr_assert_eq(cairn_cgroup_available("5:cpu:/x\n4:memory:/of/the/host\n0::/\n", v1), 3509);
    cr_assert_eq(cairn_cgroup_available("5:cpu,memory:/\n", v1), 3509);

    static const char *const odd[] = {"", "\n", "0", "0:", "0::", "4:memory:", "4:memory", ":::",
                                      "4:memory:relative", "\n\n0::a/b\n"};
    for (size_t i = 0; i < sizeof(odd) / sizeof(odd[0]); i++)
        cr_assert_eq(cairn_cgroup_available(odd[i], v1), UINT64_MAX, "'%s'", odd[i]);
    remove_tree(v1);
    remove_tree(v2);
}
