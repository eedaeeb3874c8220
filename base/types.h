/* Types shared by every layer and by the public header.
 *
 * connector/cairn.h carries the block between the two marker lines word for word, so that it
 * stays one self-contained header; tests/lint checks that the two copies are equal.
 */
#ifndef CAIRN_BASE_TYPES_H
#define CAIRN_BASE_TYPES_H

#include <stddef.h>
#include <stdint.h>

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

/* Static text of a status, never NULL. */
const char *cairn_status_name(cairn_status s);

/* Nearest status of an errno value; positive and negative values mean the same. */
cairn_status cairn_status_from_errno(int err);

/* Bytes of all runs; SIZE_MAX if they do not fit into a size_t. */
static inline size_t cairn_sgl_bytes(const struct cairn_sgl *s)
{
    size_t n = 0;
    for (uint32_t i = 0; i < s->count; i++)
        if (__builtin_add_overflow(n, s->iov[i].len, &n))
            return SIZE_MAX;
    return n;
}

#endif
