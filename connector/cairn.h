/* Cairn: a store for chunks of attention state (KV), named by what made them.
 *
 * Everything here is thread-safe unless it says otherwise. Handles are opaque. Functions that can
 * fail return a cairn_status; outputs come last and are written only on success, except per-key
 * results. Timeouts are nanoseconds from now; no call waits longer than its timeout plus the time
 * of the copy it is in. After fork() the child may not use any handle: every call returns
 * CAIRN_STATE and touches nothing.
 *
 * Contract: a hit is exactly the bytes that were put under that key, checked. Any doubt is a miss
 * and is counted by cause (cairn_stats).
 */
#ifndef CAIRN_H
#define CAIRN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define CAIRN_API __attribute__((visibility("default")))
#define CAIRN_CHECKED __attribute__((warn_unused_result))
#else
#define CAIRN_API
#define CAIRN_CHECKED
#endif

#define CAIRN_VERSION_STRING "0.1.0"
CAIRN_API const char *cairn_version(void);

/* --- shared types: begin --- */
#ifndef CAIRN_TYPES_DEFINED
#define CAIRN_TYPES_DEFINED

/* Outcome of a call or of one key in a batch. Negative values are not successes; the first group
 * of them (MISS to CANCELED) is normal for a cache and never means damage to what is stored. */
typedef enum cairn_status {
    CAIRN_OK = 0,
    CAIRN_INPROGRESS = 1,
    CAIRN_MISS = -1,        /* not held, or held and not trusted: compute it again      */
    CAIRN_EXISTS = -2,      /* kept the bytes that were there (put without replace)     */
    CAIRN_BUSY = -3,        /* a bounded queue is full: nothing was kept                */
    CAIRN_TIMEOUT = -4,     /* the deadline passed first                                */
    CAIRN_CANCELED = -5,
    CAIRN_NOMEM = -10,
    CAIRN_NOSPACE = -11,    /* no room without dropping what is pinned or not written   */
    CAIRN_TOOBIG = -12,     /* larger than the largest value this store takes           */
    CAIRN_CORRUPT = -20,    /* a checksum, length or identity did not match             */
    CAIRN_VERSION = -21,    /* another format version, or another machine's page size   */
    CAIRN_IO = -30,
    CAIRN_UNSUPPORTED = -31,
    CAIRN_PERM = -32,
    CAIRN_LOCKED = -33,     /* another process has the store open                       */
    CAIRN_NOTFOUND = -34,   /* a path or name does not exist                            */
    CAIRN_INVAL = -40,      /* a bad argument or option                                 */
    CAIRN_STATE = -41,      /* closed, or used in a child after fork                    */
} cairn_status;

/* Name of a chunk: HMAC-SHA-256 output, see chunking/README.md. */
struct cairn_key {
    uint8_t bytes[32];
};

/* One run of caller memory. */
struct cairn_iov {
    void *base;
    size_t len; /* bytes */
};

/* What kind of memory a scatter/gather list points into. */
enum cairn_mem {
    CAIRN_MEM_HOST = 0,
    CAIRN_MEM_CUDA = 1, /* device pointers of one GPU, of any CUDA context that is alive */
};

/* A value as the caller holds it: runs of memory in value order. Borrowed for the call. */
struct cairn_sgl {
    const struct cairn_iov *iov;
    uint32_t count;
    uint32_t mem; /* enum cairn_mem */
    /* CAIRN_MEM_CUDA: the CUstream that the caller uses the memory on (NULL: the default stream).
     * Its bytes are read or overwritten once what was queued there before the call is done, and the
     * call's end is the end of every copy: what is queued after that sees the new bytes. A stream
     * that is being captured is refused (a miss, cause "device"). */
    void *stream;
};

/* One part of an identity. Known names (chunking/README.md lists them: model, weights, tokenizer,
 * lora, kv_dtype, quant, layout, block_tokens, heads, head_size, isa, tp_rank, tp_size, ...,
 * chunk_tokens) are checked for shape; other names are free key=value pairs. UTF-8. */
struct cairn_field {
    const char *name;
    const char *value;
};

/* The domain separates tenants: under different domain keys the same tokens have unrelated names.
 * Either `key_len` secret bytes (1 to 64), or name = "public" with key NULL. */
struct cairn_domain {
    const void *key;
    size_t key_len;
    const char *name;
};

/* Bytes that belong to the name of one chunk beside its tokens: multimodal hashes, a salt. Several
 * extras of one chunk are framed in the order given. Sorted by chunk. */
struct cairn_extra {
    uint32_t chunk; /* 0 = first chunk of this call */
    const void *data;
    size_t len;     /* bytes, at most 65,536 */
};

/* One value in or out. `status` and `cause` are the result of this key. */
struct cairn_put {
    struct cairn_key key;
    struct cairn_key parent;     /* all zero: none */
    struct cairn_sgl value;      /* gathered; 1 byte to cairn_value_max */
    const uint8_t *fingerprint;  /* 32 bytes, or NULL */
    const void *side;            /* typed side records kept with the chunk, or NULL */
    uint32_t side_len;           /* bytes, at most 65,536 */
    uint32_t flags;              /* CAIRN_PUT_* */
    uint64_t expires_ns;         /* wall clock, 0 = never */
    cairn_status status;
    int32_t cause;
};
/* Replace what is held, atomically. Without it a held key keeps its first bytes (status
 * CAIRN_EXISTS, which counts as stored). Bytes other than an earlier put's need it also when the
 * key is a miss: of a value that was lost, a restart may find what the disk had of it. */
#define CAIRN_PUT_REPLACE 1u

struct cairn_get {
    struct cairn_key key;
    struct cairn_sgl out;        /* scattered into; exactly the bytes of the value or range */
    const uint8_t *fingerprint;  /* 32 bytes the record must have been put with, or NULL */
    uint64_t offset;             /* range: first byte; out's length says how many */
    uint32_t flags;              /* CAIRN_GET_* */
    cairn_status status;         /* CAIRN_OK = verified bytes are in out; else out is unspecified */
    int32_t cause;
};
/* out is a range of the value, not all of it. */
#define CAIRN_GET_RANGE 1u

struct cairn_completion {
    void *tag;
    cairn_status status; /* as the blocking call returns */
    size_t hits;         /* get: hits; put: keys stored */
};

#endif /* CAIRN_TYPES_DEFINED */
/* --- shared types: end --- */

/* Static text, never NULL: "miss", "no space", ... */
CAIRN_API const char *cairn_status_str(cairn_status s);

/* --- identity: everything that made the KV ------------------------------------------------- */

typedef struct cairn_identity cairn_identity;

/* Builds the canonical record. Order of fields does not matter; a name given twice, an unknown
 * form of a known field, or a missing `model` or `chunk_tokens` is CAIRN_INVAL with a sentence in
 * err (may be NULL). Copies everything. */
CAIRN_API CAIRN_CHECKED cairn_status cairn_identity_create(const struct cairn_field *fields,
                                                           size_t count, cairn_identity **ret,
                                                           char *err, size_t err_cap);
CAIRN_API void cairn_identity_destroy(cairn_identity *id); /* NULL is fine */
/* SHA-256 of the canonical bytes. */
CAIRN_API void cairn_identity_fingerprint(const cairn_identity *id, uint8_t out[32]);
/* Canonical bytes; lent until destroy. */
CAIRN_API const void *cairn_identity_canonical(const cairn_identity *id, size_t *ret_len);
CAIRN_API uint32_t cairn_identity_chunk_tokens(const cairn_identity *id);

/* --- keys: the names of chunks (chunking/README.md is the specification) -------------------- */

/* Keys of a prompt: one a chunk of chunk_tokens tokens, a shorter one for the tail. parent: key of
 * the chunk before tokens[0], NULL at the start of a prompt. Writes at most cap keys and no
 * allocation is made; *ret_count says how many. */
CAIRN_API CAIRN_CHECKED cairn_status cairn_keys(const cairn_identity *id,
                                                const struct cairn_domain *domain,
                                                const struct cairn_key *parent,
                                                const uint32_t *tokens, size_t token_count,
                                                const struct cairn_extra *extras,
                                                size_t extra_count, struct cairn_key *out,
                                                size_t cap, size_t *ret_count);
/* The same for engines that hash blocks themselves: `hashes` holds count digests of hash_len bytes
 * (8 to 64) one after another, each standing for a full chunk of chunk_tokens tokens. */
CAIRN_API CAIRN_CHECKED cairn_status cairn_keys_from_hashes(
    const cairn_identity *id, const struct cairn_domain *domain, const struct cairn_key *parent,
    const void *hashes, size_t hash_len, size_t count, const struct cairn_extra *extras,
    size_t extra_count, struct cairn_key *out, size_t cap, size_t *ret_count);

/* --- store ---------------------------------------------------------------------------------- */

typedef struct cairn_store cairn_store;

/* Opens by URI, with the same calls behind each:
 *   "embedded:///path?ram=1GiB&disk=8GiB&..." or "embedded:?ram=1GiB" (no disk): a store of this
 *       process. path: a directory (the log is cairn.log in it) or the log file itself, created if
 *       it is missing. Waits up to 5 s for another process to let go of the log.
 *   "unix:/run/cairn/cairn.sock": a node (cairnd) of this machine, its memory read in place.
 *   "tcp://127.0.0.1:7379": a node over TCP; only loopback addresses are taken.
 * cairn_options_help() lists the options. On failure one sentence in err names the input and the
 * fix.
 *
 * A node that is gone, stalls or restarts later is no error: gets and leases are a CAIRN_MISS,
 * puts, deletes and flushes CAIRN_BUSY (nothing was asked of it) or CAIRN_TIMEOUT or CAIRN_IO (it
 * did not answer: a put or delete is not sent again, and may have been done or not), at once after
 * a few calls in vain; it is tried again from time to time. A call waits for a sign of the node no
 * longer than its timeout= (1 s); those without a timeout of their own, no longer than that. With
 * lazy=yes a node that is not there yet is the same, not an error: err says that it is not. */
CAIRN_API CAIRN_CHECKED cairn_status cairn_open(const char *uri, cairn_store **ret, char *err,
                                                size_t err_cap);
/* Waits for what is in flight (bounded), then frees. What a write policy would write is written.
 * The caller has ended all other calls on the store. NULL is fine. */
CAIRN_API void cairn_close(cairn_store *s);
/* Text of all options, a line each: name, default, meaning. Static. */
CAIRN_API const char *cairn_options_help(void);
/* The largest value this store takes, in bytes; 0: a node that has not been there yet. */
CAIRN_API uint64_t cairn_value_max(const cairn_store *s);

/* Makes the store remember an identity, for why(); put, get and lookup never need it. */
CAIRN_API cairn_status cairn_note_identity(cairn_store *s, const cairn_identity *id);

/* Puts a batch (a chain in order, head first). status OK or EXISTS = the whole value is visible in
 * RAM now, and may still be lost; anything else = not stored. Returns OK if every key was stored,
 * else the first key's failure. */
CAIRN_API cairn_status cairn_put(cairn_store *s, struct cairn_put *puts, size_t count,
                                 uint64_t timeout_ns);
/* Gets a batch. Returns how many keys are hits in *ret_hits (may be NULL). */
CAIRN_API cairn_status cairn_get(cairn_store *s, struct cairn_get *gets, size_t count,
                                 uint64_t timeout_ns, size_t *ret_hits);
/* How many keys from the start are held. A hint: only a get or a lease is a hit. */
CAIRN_API size_t cairn_lookup(cairn_store *s, const struct cairn_key *keys, size_t count);
/* Bytes of a held value, 0 if it is not held. A hint. */
CAIRN_API uint64_t cairn_value_len(cairn_store *s, const struct cairn_key *key);
/* Typed side records of a held value, verified. *len: capacity in, length out. */
CAIRN_API cairn_status cairn_side(cairn_store *s, const struct cairn_key *key, void *out,
                                  uint32_t *len, uint64_t timeout_ns);
/* Deletes; CAIRN_OK = it was held and never comes back, CAIRN_MISS = it was not held. */
CAIRN_API cairn_status cairn_delete(cairn_store *s, const struct cairn_key *keys, size_t count,
                                    uint64_t timeout_ns, cairn_status *results);
/* Every put accepted before this call is durable on return. CAIRN_UNSUPPORTED without a disk;
 * CAIRN_IO (once) if a value could not be written, or left RAM unwritten under write=none; or if
 * the node that accepted puts has ended since the flush before, whatever it may have written. */
CAIRN_API CAIRN_CHECKED cairn_status cairn_flush(cairn_store *s, uint64_t timeout_ns);

/* --- leases: values held in RAM, read in place ---------------------------------------------- */

typedef struct cairn_session cairn_session;
typedef struct cairn_lease cairn_lease;

/* Owner of leases. Closing it releases what it still holds. */
CAIRN_API CAIRN_CHECKED cairn_status cairn_session_open(cairn_store *s, cairn_session **ret);
CAIRN_API void cairn_session_close(cairn_session *ss);

/* Pins the held keys from the start of the list: resident, verified, not evicted until release, or
 * until ttl_ns from now passes and no view was taken. *ret_held says how many; 0 held = CAIRN_MISS
 * and no lease. All leases together take at most half of the RAM. Behind a node at most 8,192 keys
 * of a list are leased, and the values are verified at their first view. */
CAIRN_API CAIRN_CHECKED cairn_status cairn_lease_take(cairn_session *ss,
                                                      const struct cairn_key *keys, size_t count,
                                                      uint64_t ttl_ns, uint64_t timeout_ns,
                                                      cairn_lease **ret, size_t *ret_held);
/* Value i in place, read-only, valid until release: from the first view on the memory is not
 * reused before that, whatever the ttl. CAIRN_TIMEOUT once the lease has ended. Behind a node the
 * first view of a value verifies it (CAIRN_CORRUPT: it is damaged); where the node's memory
 * cannot be mapped it is copied, within copies= (CAIRN_NOSPACE beyond), and the node's end is no
 * end of what was copied. A view stays readable until release even when the node dies; new ones
 * are CAIRN_TIMEOUT. */
CAIRN_API CAIRN_CHECKED cairn_status cairn_lease_view(cairn_lease *l, size_t i, const void **ret,
                                                      uint64_t *ret_len);
CAIRN_API CAIRN_CHECKED cairn_status cairn_lease_renew(cairn_lease *l, uint64_t ttl_ns);
CAIRN_API void cairn_lease_release(cairn_lease *l); /* NULL is fine */

/* --- asynchronous calls --------------------------------------------------------------------- */

typedef struct cairn_queue cairn_queue;

/* Completions of submitted calls, with an eventfd that is readable while some wait. */
CAIRN_API CAIRN_CHECKED cairn_status cairn_queue_open(cairn_store *s, cairn_queue **ret);
CAIRN_API void cairn_queue_close(cairn_queue *q); /* waits for what is in flight */
CAIRN_API int cairn_queue_fd(const cairn_queue *q);
/* The arrays and what they point to belong to the queue until polled. CAIRN_BUSY = full. */
CAIRN_API CAIRN_CHECKED cairn_status cairn_submit_get(cairn_queue *q, struct cairn_get *gets,
                                                      size_t count, uint64_t timeout_ns, void *tag);
/* Several of these calls at once, each with a completion of its own: the first calls[0].count of
 * the gets are those of calls[0], and so on. Returns how many of the calls were taken, the first
 * ones; fewer than count = full (and 0 in a child after fork). An engine that pipelines submits a
 * call a layer, with the layer's range (CAIRN_GET_RANGE) of each value: once its completion is
 * polled, work on any stream may use the layer's pages, while later layers are still loading. */
struct cairn_call {
    size_t count;
    void *tag;
};
CAIRN_API CAIRN_CHECKED size_t cairn_submit_gets(cairn_queue *q, struct cairn_get *gets,
                                                 const struct cairn_call *calls, size_t count,
                                                 uint64_t timeout_ns);
CAIRN_API CAIRN_CHECKED cairn_status cairn_submit_put(cairn_queue *q, struct cairn_put *puts,
                                                      size_t count, uint64_t timeout_ns, void *tag);
/* Takes up to cap completions; waits up to timeout_ns for the first. */
CAIRN_API size_t cairn_poll(cairn_queue *q, struct cairn_completion *out, size_t cap,
                            uint64_t timeout_ns);

/* --- explanation and statistics -------------------------------------------------------------- */

/* Why an identity never hits: JSON with the nearest other one the store has seen and the fields
 * that differ. Writes at most cap bytes with the NUL; returns the length needed without it. */
CAIRN_API size_t cairn_why(cairn_store *s, const cairn_identity *id, char *out, size_t cap);
/* Why the node behind the store turns this client away (another tenant or version, another user's
 * socket, too many clients): one sentence, lengths as of cairn_why. 0: it does not, or nothing is
 * there. It asks nothing and waits for nothing. */
CAIRN_API size_t cairn_refusal(cairn_store *s, char *out, size_t cap);
/* All statistics as one JSON object; as cairn_why. */
CAIRN_API size_t cairn_stats(cairn_store *s, char *out, size_t cap);
/* What this machine gives (huge pages, io_uring, copy variant, ...) as JSON; as cairn_why. path may
 * be NULL; else alignment and io of the file system it is on are included. */
CAIRN_API size_t cairn_features(const char *path, char *out, size_t cap);

/* Messages; the library is silent without a sink. level: 0 error, 1 warning, 2 info, 3 debug. */
typedef void (*cairn_message_fn)(void *arg, int level, const char *line);
CAIRN_API void cairn_messages_to(cairn_message_fn fn, void *arg, int level_max);

#ifdef __cplusplus
}
#endif

#endif
