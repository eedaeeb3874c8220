/* Large memory that lives as long as the store: populated once, never given back before close. */
#ifndef CAIRN_BASE_MEM_H
#define CAIRN_BASE_MEM_H

#include <stdbool.h>

#include "base/types.h"

enum cairn_pages { CAIRN_PAGES_4K, CAIRN_PAGES_THP, CAIRN_PAGES_HUGETLB };

/* One mapping of a memfd: later shared with other processes and registered with CUDA, verbs and
 * io_uring, hence one region and not a heap. */
struct cairn_mapping {
    void *base;          /* 2 MiB aligned                                             */
    size_t len;          /* bytes, a multiple of 2 MiB                                */
    int fd;              /* the memfd, -1 for anonymous memory                        */
    enum cairn_pages pages;
    double huge_share;   /* share of the mapping on 2 MiB pages, 0 to 1               */
    bool sealed;         /* nobody can map or write it again but for reading          */
    int owner_pid;       /* the mapping exists in this process only (DONTFORK)        */
    char note[160];      /* why not huge pages, for a warning; empty when all is well;
                            after a failed open one sentence that says why            */
};

/* Maps and populates a memfd of `len` bytes rounded up to 2 MiB: hugetlb pages if the system has
 * enough reserved, else 4 KiB pages populated and collapsed (MADV_COLLAPSE; on a memfd
 * MADV_HUGEPAGE alone yields none), else 4 KiB pages with a note. DONTDUMP; DONTFORK, so that a
 * forked child faults instead of writing into the parent's bytes. Sealed against resizing, and once
 * it is mapped here against any other writer (F_SEAL_FUTURE_WRITE), so that the file can be handed
 * to processes that only read. Changes no system setting. CAIRN_NOMEM when it does not fit into
 * available memory. */
cairn_status cairn_mapping_open(size_t len, const char *name, struct cairn_mapping *ret);
/* The same, but others may map it to write into it too. */
cairn_status cairn_mapping_open_writable(size_t len, const char *name, struct cairn_mapping *ret);
void cairn_mapping_close(struct cairn_mapping *m); /* NULL and closed mappings are fine */

/* Bytes this process can still take before something is reclaimed from others or killed: the
 * system's MemAvailable, or what its cgroups leave if that is less. UINT64_MAX when unknown. */
uint64_t cairn_mem_available(void);

/* Zeroed anonymous memory for tables, 2 MiB aligned when large, on transparent huge pages,
 * populated. NULL when there is none. Freed with cairn_table_free(p, the same len). */
void *cairn_table_alloc(size_t len);
void cairn_table_free(void *p, size_t len);

/* Fault injection for tests: the n-th allocation from now on (1 = the next) made through this
 * file or cairn_malloc/cairn_calloc fails once; 0 turns it off. Opening a mapping counts as
 * several: the memfd, its size, the address range, the mapping and its pages. */
void cairn_mem_fail_nth(uint64_t n);
void *cairn_malloc(size_t len);
void *cairn_calloc(size_t count, size_t size);

#endif
