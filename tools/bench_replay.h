/* Replays a request trace against the store's own eviction policies, block level, no bytes moved.
 *
 * Trace: JSON lines, plain or gzip (`gzip -dc` is run for a name that ends in .gz), an object a
 * request with `hash_ids` (the prompt's chunks in order) and `input_length` (tokens). A request
 * hits the chunks from its start up to the first one that is not held; then all its chunks are
 * inserted or touched from the tail to the head, and what is too much is evicted. */
#ifndef CAIRN_TOOLS_BENCH_REPLAY_H
#define CAIRN_TOOLS_BENCH_REPLAY_H

#include "base/types.h"

struct cairn_replay_opts {
    const uint64_t *capacities; /* in chunks                                              */
    size_t capacity_count;
    const char *const *policies; /* by name; NULL = all there are                         */
    size_t policy_count;
    uint32_t chunk_tokens;       /* 0 = from the trace: the least power of two that is not
                                  * below input_length / (chunks + 1) of any request      */
    uint64_t chunk_bytes;        /* for bytes_written                                     */
};

struct cairn_replay_result {
    const char *policy; /* static */
    uint64_t capacity;
    double token_hit_rate; /* tokens of hit chunks over input tokens            */
    double chunk_hit_rate; /* hit chunks over chunks asked for                  */
    uint64_t bytes_written; /* every chunk inserted, as write-through writes it */
};

struct cairn_replay_trace {
    uint64_t requests, chunks, distinct, tokens;
    uint32_t chunk_tokens;
};

/* Fills ret[capacity_count * policy_count], all policies of the first capacity first (policy_count
 * = those of cairn_policy_all if policies is NULL). ret_trace may be NULL. On failure one sentence
 * in err. */
cairn_status cairn_bench_replay(const char *path, const struct cairn_replay_opts *o,
                                struct cairn_replay_result *ret,
                                struct cairn_replay_trace *ret_trace, char *err, size_t err_cap);

#endif
