/* A simulated disk behind the I/O seam: memory with a volatile write cache, power cuts and a seed.
 *
 * Only ios that go through the queue reach it. The log opens a real path too, for its lock and its
 * size: give it a temporary file (sparse, it stays empty) and keep every byte of data, superblocks
 * included, in ios: what is read or written through params.fd directly is not on this disk.
 *
 * Semantics, per 4 KiB block:
 *  - a read gives what was written last, whether stable or not; never written = zeros;
 *  - a completed sync makes stable what was returned by poll before the sync was submitted;
 *  - a power cut keeps the stable version of each block or any later one, also of writes still in
 *    flight, each block for itself: torn writes fall out of that;
 *  - completions come in an order drawn from the seed. With delay_max_ns 0 no real time passes and
 *    a single-threaded caller sees the same run for the same seed.
 */
#ifndef CAIRN_TESTS_IOQ_SIM_H
#define CAIRN_TESTS_IOQ_SIM_H

#include "storage/ioq.h"

struct cairn_sim;

struct cairn_sim_opts {
    uint64_t seed;
    uint64_t size;                       /* bytes; past it reads end short, writes are -ENOSPC;
                                          * 0 = no end */
    uint64_t delay_min_ns, delay_max_ns; /* of each io */
};

struct cairn_sim_stats {
    uint64_t reads, writes, syncs, write_bytes;
    uint64_t accepted;          /* ios, what cairn_sim_die_after counts */
    uint64_t volatile_blocks;   /* written and not yet stable           */
    uint64_t changed_in_flight; /* writes whose buffer changed before they completed: a bug */
};

/* params.arg = the device. A closed queue leaves no io undone. */
extern const struct cairn_ioq_ops cairn_ioq_sim;

struct cairn_sim *cairn_sim_create(const struct cairn_sim_opts *o);
/* Memory goes with the last open queue. NULL is ok. */
void cairn_sim_destroy(struct cairn_sim *s);

/* Ends this device (every io from now on, also those in flight, is -EIO) and gives the one that is
 * found when the power is back; any thread. A second cut of the same device with another seed gives
 * another outcome of the same moment. */
struct cairn_sim *cairn_sim_power_cut(struct cairn_sim *s, uint64_t seed);
/* The power goes by itself when `ios` more have been accepted; 0 = never. */
void cairn_sim_die_after(struct cairn_sim *s, uint64_t ios);
bool cairn_sim_dead(struct cairn_sim *s);
/* The n-th sync from now fails and the cache with what it was for is lost; later ones succeed. */
void cairn_sim_lose_cache(struct cairn_sim *s, uint64_t n);

void cairn_sim_stats(struct cairn_sim *s, struct cairn_sim_stats *ret);

/* Behind the queue's back, any thread; off and len multiples of 4 KiB. poke is stable at once. */
void cairn_sim_peek(struct cairn_sim *s, uint64_t off, void *buf, size_t len);
void cairn_sim_poke(struct cairn_sim *s, uint64_t off, const void *buf, size_t len);
/* Flips one bit of what is there. */
void cairn_sim_flip(struct cairn_sim *s, uint64_t off, uint32_t bit);
/* Writes every block that is not zero to the same place of a file (for cairn_fsck). */
bool cairn_sim_export(struct cairn_sim *s, int fd);

#endif
