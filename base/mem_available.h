/* The part of cairn_mem_available that reads cgroups, apart so that tests can give it a tree. */
#ifndef CAIRN_BASE_MEM_AVAILABLE_H
#define CAIRN_BASE_MEM_AVAILABLE_H

#include <stdint.h>

/* self: text of /proc/self/cgroup. root: where cgroup file systems are mounted. Least of what our
 * groups and all groups above them leave, UINT64_MAX without limits. */
uint64_t cairn_cgroup_available(const char *self, const char *root);

#endif
