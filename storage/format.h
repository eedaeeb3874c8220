/* The log on disk, version 1. This header is the specification; all integers little-endian.
 *
 *   file:     [superblock A 4 KiB][superblock B 4 KiB] ... [identity slots 64 x 4 KiB at 64 KiB]
 *             ... [segments from 2 MiB on, segment_bytes each]
 *   segment:  [head 4 KiB][record]...[record] ... free ... [summaries][trailer 4 KiB]
 *   record:   [header 4 KiB][payload padded to 4 KiB][side records padded to 4 KiB]
 *
 * A block is 4 KiB; positions are block numbers from the start of the file (32 bits: 16 TiB).
 * The summaries end where the trailer starts: first_block + cairn_blocks(64 * count) is its block.
 * A record never crosses a segment's end. Header and payload are one write. A record image in the
 * RAM arena is byte for byte the record on disk, except for the location part of the header.
 *
 * Which record of a key counts: the one with the highest version, tombstones included. A record
 * belongs to a segment's present life only if uuid, segment, generation and block agree with the
 * segment's head. A hole record says "nothing here, step over me". A clear record does for every
 * key of a space what a tombstone does for one. Both are written twice, one record behind the
 * other, so that no single block holds all that keeps older values dead; a footer names the first.
 *
 * Generations are numbered through the whole log, one for every time a segment is opened, so they
 * also say which segment is older. A head's floor says that all generations below it are dead: a
 * segment that could not be read for a while stays dead when it comes back, although the tombstones
 * of its records may be gone by then.
 *
 * Sessions number the openings of the log. Along a segment they never fall: a restarted process
 * goes on behind the last record found, and what its predecessor left further on is not taken for
 * part of the chain when the new records happen to lead there.
 */
#ifndef CAIRN_STORAGE_FORMAT_H
#define CAIRN_STORAGE_FORMAT_H

#include <stdbool.h>

#include "base/hash.h"
#include "base/types.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the log is little-endian and read in place"
#endif

#define CAIRN_FORMAT_VERSION 1u
#define CAIRN_BLOCK 4096u
#define CAIRN_DATA_OFFSET (2u * 1024u * 1024u)
#define CAIRN_SUPER_OFFSET_A 0u
#define CAIRN_SUPER_OFFSET_B 4096u
#define CAIRN_IDENT_OFFSET 65536u
#define CAIRN_IDENT_SLOTS 64u
#define CAIRN_SEGMENT_MAX (1024u * 1024u * 1024u)
#define CAIRN_SEGMENT_MIN (1024u * 1024u)
#define CAIRN_VALUE_MAX (64u * 1024u * 1024u)
#define CAIRN_NAME_MAX 1024u
#define CAIRN_SIDE_MAX 65536u

#define CAIRN_MAGIC_SUPER 0x42535243u   /* "CRSB" */
#define CAIRN_MAGIC_RECORD 0x43525243u  /* "CRRC" */
#define CAIRN_MAGIC_SEGMENT 0x47535243u /* "CRSG" */
#define CAIRN_MAGIC_TRAILER 0x4c545243u /* "CRTL" */
#define CAIRN_MAGIC_IDENT 0x44495243u   /* "CRID" */

enum cairn_record_kind {
    CAIRN_RECORD_VALUE = 1,
    CAIRN_RECORD_TOMBSTONE = 2, /* 1 block, twice: every lower version of the key is dead   */
    CAIRN_RECORD_HOLE = 3,      /* a write that failed; `blocks` to step over               */
    CAIRN_RECORD_CLEAR = 4,     /* 1 block, twice: every lower version of its space is dead */
};

/* Location part, 64 bytes at the start of a record: filled in by the log when it places it. */
struct cairn_record_loc_disk {
    uint32_t magic;
    uint16_t format;
    uint8_t kind;
    uint8_t pad0;
    uint8_t uuid[16];
    uint32_t segment;
    uint32_t generation;
    uint32_t block;        /* of this header, from the start of the file                       */
    uint32_t blocks;       /* of the whole record, header included                             */
    uint32_t synced_block; /* records of this segment below it were durable when this was
                            * written: recovery checks payloads only above the highest of these */
    uint32_t session;      /* of the log's opening that wrote it                               */
    uint64_t pad1;
    uint64_t check;        /* XXH3-64 of the 56 bytes before it                                */
};

/* Body part: what the value is, fixed at put. */
struct cairn_record_body_disk {
    uint64_t version;      /* store-wide, grows with every put, replace and delete              */
    uint64_t created_ns;   /* wall clock                                                        */
    uint64_t expires_ns;   /* wall clock, 0 = never                                             */
    uint64_t value_len;    /* bytes, 1 .. CAIRN_VALUE_MAX (0 but for values)                    */
    uint8_t key[32];
    uint8_t parent[32];    /* zero: root of its chain                                           */
    uint8_t identity[32];  /* fingerprint, zero if not given                                    */
    uint32_t tenant;
    uint32_t epoch;
    uint16_t space;        /* namespace: 0 = KV chunks                                          */
    uint16_t flags;
    uint16_t name_len;
    uint16_t pad0;
    uint32_t side_len;     /* bytes of typed side records after the padded payload              */
    uint32_t pad1;
    uint64_t side_check;   /* XXH3-64 of them                                                   */
    uint64_t pad2[5];
    uint64_t piece_check[CAIRN_PIECES_MAX]; /* XXH3-64 of each 256 KiB of the value; rest zero  */
    uint8_t name[CAIRN_NAME_MAX];
    uint8_t pad3[4032 - 200 - 8 * 256 - 1024 - 8];
    uint64_t check;        /* XXH3-64 of the body bytes before it                               */
};

struct cairn_record_disk {
    struct cairn_record_loc_disk loc;
    struct cairn_record_body_disk body;
};
_Static_assert(sizeof(struct cairn_record_loc_disk) == 64, "location part is 64 bytes");
_Static_assert(offsetof(struct cairn_record_body_disk, piece_check) == 200, "body layout");
_Static_assert(sizeof(struct cairn_record_disk) == CAIRN_BLOCK, "header is one block");

/* Summary of one record in a sealed segment's footer. */
struct cairn_summary_disk {
    uint8_t key[16];     /* key16.h of the key               */
    uint64_t version;
    uint64_t expires_ns;
    uint32_t block;
    uint32_t value_len;  /* 0 but for values                 */
    uint8_t parent[8];   /* first bytes of the parent's key  */
    uint8_t kind;        /* enum cairn_record_kind           */
    uint8_t pad0;
    uint16_t space;
    uint32_t blocks;
    uint8_t identity[8]; /* first bytes of the fingerprint; zero: none, or of an older writer */
};
_Static_assert(sizeof(struct cairn_summary_disk) == 64, "summary is 64 bytes");

/* The copy with the higher sequence counts; both hold the same geometry. */
struct cairn_super_disk {
    uint32_t magic;
    uint16_t format;
    uint16_t pad0;
    uint8_t uuid[16];
    uint64_t sequence;
    uint32_t block_size;      /* CAIRN_BLOCK                                                  */
    uint32_t page_size;       /* of the machine that made the log                             */
    uint64_t segment_bytes;
    uint32_t segments;
    uint32_t prewritten;      /* segments [0, prewritten) have been written once              */
    uint64_t created_ns;      /* wall clock                                                   */
    uint32_t session;         /* of the opening that wrote this                               */
    uint32_t generation_next; /* generations from here on were never used                     */
    uint32_t state;           /* enum cairn_super_state                                       */
    uint32_t closed_generation; /* after a clean close, life of the segment left open, else 0;  */
    uint32_t closed_block;    /* its records below are whole: fsck tells damage from tearing  */
    uint8_t pad1[4004];
    uint64_t check;           /* XXH3-64 of the block before it; at this place in any format  */
};
_Static_assert(sizeof(struct cairn_super_disk) == CAIRN_BLOCK, "superblock is one block");
_Static_assert(offsetof(struct cairn_super_disk, check) == CAIRN_BLOCK - 8, "superblock layout");

enum cairn_super_state {
    CAIRN_SUPER_WHOLE = 0,
    CAIRN_SUPER_CREATING = 1, /* the file may be too short still: nothing is in it             */
};

/* First block of a segment that was opened at least once. Zero before. */
struct cairn_head_disk {
    uint32_t magic;
    uint16_t format;
    uint16_t pad0;
    uint8_t uuid[16];
    uint32_t segment;
    uint32_t generation;      /* not 0                                                        */
    uint32_t floor;           /* every generation below it is dead, in all segments           */
    uint32_t session;
    uint64_t opened_ns;       /* wall clock                                                   */
    uint8_t pad1[4040];
    uint64_t check;
};
_Static_assert(sizeof(struct cairn_head_disk) == CAIRN_BLOCK, "head is one block");

/* Last block of a sealed segment. */
struct cairn_trailer_disk {
    uint32_t magic;
    uint16_t format;
    uint16_t pad0;
    uint8_t uuid[16];
    uint32_t segment;
    uint32_t generation;
    uint32_t count;           /* summaries                                                    */
    uint32_t first_block;     /* of the summaries, from the start of the file                 */
    uint64_t sealed_ns;       /* wall clock                                                   */
    uint64_t summary_check;   /* XXH3-64 of the 64 * count bytes of summaries                 */
    uint8_t pad1[4032];
    uint64_t check;
};
_Static_assert(sizeof(struct cairn_trailer_disk) == CAIRN_BLOCK, "trailer is one block");

#define CAIRN_IDENT_MAX 4048u

/* One remembered identity, for `why`. */
struct cairn_ident_disk {
    uint32_t magic;
    uint16_t format;
    uint16_t pad0;
    uint8_t uuid[16];
    uint64_t sequence;        /* the slot with the lowest one is replaced first               */
    uint32_t len;
    uint32_t pad1;
    uint8_t bytes[CAIRN_IDENT_MAX]; /* canonical identity, rest zero                          */
    uint64_t check;
};
_Static_assert(sizeof(struct cairn_ident_disk) == CAIRN_BLOCK, "identity slot is one block");

static inline uint32_t cairn_blocks(uint64_t bytes)
{
    return (uint32_t)((bytes + CAIRN_BLOCK - 1) / CAIRN_BLOCK);
}

/* Blocks of a footer of `count` summaries, trailer included. */
static inline uint32_t cairn_footer_blocks(uint32_t count)
{
    return cairn_blocks((uint64_t)count * sizeof(struct cairn_summary_disk)) + 1u;
}

/* Blocks of a value's record. */
static inline uint32_t cairn_record_blocks(uint64_t value_len, uint32_t side_len)
{
    return 1u + cairn_blocks(value_len) + cairn_blocks(side_len);
}

/* --- writing: seal fills magic, format and check; everything else is the caller's --- */
void cairn_super_seal(struct cairn_super_disk *s);
void cairn_head_seal(struct cairn_head_disk *h);
void cairn_trailer_seal(struct cairn_trailer_disk *t, const struct cairn_summary_disk *sums);
void cairn_ident_seal(struct cairn_ident_disk *i);
void cairn_loc_seal(struct cairn_record_loc_disk *l);
void cairn_body_seal(struct cairn_record_body_disk *b);

/* --- reading: the bytes are hostile, so every length is judged before anybody uses it --- */
enum cairn_verdict {
    CAIRN_VERDICT_OK,
    CAIRN_VERDICT_BLANK,  /* all zero: never written                     */
    CAIRN_VERDICT_BAD,    /* damaged, or never was one                   */
    CAIRN_VERDICT_FORMAT, /* intact, but of a format this code knows not */
};

/* What a log says of itself; every other structure is judged against it. */
struct cairn_log_shape {
    uint8_t uuid[16];
    uint64_t segment_bytes;
    uint32_t segments;
};

static inline uint32_t cairn_segment_blocks(const struct cairn_log_shape *s)
{
    return (uint32_t)(s->segment_bytes / CAIRN_BLOCK);
}

static inline uint32_t cairn_segment_first(const struct cairn_log_shape *s, uint32_t segment)
{
    return CAIRN_DATA_OFFSET / CAIRN_BLOCK + segment * cairn_segment_blocks(s);
}

/* Segment that a block lies in; UINT32_MAX for blocks outside the data area. */
uint32_t cairn_segment_of(const struct cairn_log_shape *s, uint32_t block);

/* OK also judges the geometry; block_size and page_size are left to the caller. */
enum cairn_verdict cairn_super_check(const struct cairn_super_disk *s);
enum cairn_verdict cairn_head_check(const struct cairn_head_disk *h,
                                    const struct cairn_log_shape *shape, uint32_t segment);
enum cairn_verdict cairn_trailer_check(const struct cairn_trailer_disk *t,
                                       const struct cairn_log_shape *shape, uint32_t segment,
                                       uint32_t generation);
/* All count summaries that the (checked) trailer names: checksum, places in order, no overlap. */
bool cairn_summaries_check(const struct cairn_trailer_disk *t,
                           const struct cairn_summary_disk *sums,
                           const struct cairn_log_shape *shape);
enum cairn_verdict cairn_ident_check(const struct cairn_ident_disk *i,
                                     const struct cairn_log_shape *shape);
/* A record header read at `block` while its segment is in life `generation`: location, extent
 * inside the segment, body, and lengths against blocks. */
bool cairn_record_check(const struct cairn_record_disk *r, const struct cairn_log_shape *shape,
                        uint32_t block, uint32_t generation);
/* Piece `piece` of the value (at `bytes`, its length from value_len) against the header. */
bool cairn_piece_check(const struct cairn_record_disk *r, uint32_t piece, const void *bytes);
/* Side records at `bytes`. */
bool cairn_side_check(const struct cairn_record_disk *r, const void *bytes);
/* Summary of a record whose header is complete. */
void cairn_summary_of(const struct cairn_record_disk *r, struct cairn_summary_disk *ret);
/* Does it make lower versions dead? */
bool cairn_record_marks(const struct cairn_record_disk *r);
/* Is it the second copy of the tombstone or clear that `before` names? */
bool cairn_record_repeats(const struct cairn_record_disk *r,
                          const struct cairn_summary_disk *before);

/* Largest power of two up to 1 GiB that gives at least 32 segments; 0 if there is none. */
uint64_t cairn_segment_bytes_for(uint64_t disk_bytes);

#endif
