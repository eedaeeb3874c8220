/* For how long a busy machine may stand still: a thread that could run was seen to wait 20 s for a
 * processor. A bound that stands for a deadline has this much more room. */
#ifndef CAIRN_TESTS_STALL_H
#define CAIRN_TESTS_STALL_H

#define STALL_NS 40000000000ull

#endif
