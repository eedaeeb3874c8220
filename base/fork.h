/* Descriptors that a forked child must not keep. A lock taken with flock lives as long as any copy
 * of its description: a child that outlives a killed parent would hold the parent's log locked. */
#ifndef CAIRN_BASE_FORK_H
#define CAIRN_BASE_FORK_H

/* From now on a forked child closes `fd` before it runs on. Beyond 256 descriptors nothing happens.
 * Negative ones are ignored by both. */
void cairn_fork_drop(int fd);
/* Before fd is closed, as its number may soon be another file's. */
void cairn_fork_forget(int fd);

#endif
