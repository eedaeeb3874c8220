/* Everything that a vault counts, as plain numbers, for those who export it (metrics, health). */
#ifndef CAIRN_STORAGE_FIGURES_H
#define CAIRN_STORAGE_FIGURES_H

#include "storage/store.h"

struct cairn_vault_figures {
    /* Since open. */
    uint64_t get_ram, get_disk, get_bytes;
    uint64_t put_stored, put_existing, put_replaced, put_bytes, deleted;
    uint64_t lookups, lookup_keys, lookup_held;
    uint64_t evicted, evicted_bytes, forgotten, lost_writes;
    uint64_t miss[CAIRN_CAUSE_COUNT], refused[CAIRN_CAUSE_COUNT];
    uint64_t dropped[CAIRN_CAUSE_COUNT]; /* keys that are held no more, by what took them */
    uint64_t bad_ram, bad_disk;          /* copies whose bytes differed from their checks */
    uint64_t last_get_ram_ns, last_get_disk_ns, last_put_ns; /* when one went well, 0: none did */
    /* Lent until the vault is closed. */
    const struct cairn_hist *get_ram_ns, *get_disk_ns, *put_ns, *lookup_ns;

    /* Now. */
    uint64_t ram_capacity, ram_free, ram_resident, ram_unwritten, ram_leased, ram_filling;
    uint64_t resident_values;
    const char *ram_pages;   /* "4k", "thp", "hugetlb" */
    double ram_huge_share;
    uint32_t writes_failed;  /* values in RAM that the disk could not take */
    uint32_t entries, entries_max;
    uint64_t index_bytes, value_max;
    uint32_t identities;
    bool closing;

    /* The tier below RAM, if there is one. Statistics lent until the vault is closed. */
    bool has_disk, disk_off;
    char disk_off_why[160];
    struct cairn_tier_info disk;
    const struct cairn_tier_stats *disk_stats;
};

void cairn_vault_figures(struct cairn_vault *v, struct cairn_vault_figures *ret);

#endif
