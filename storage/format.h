/* The log on disk, version 1. This header is the specification; all integers little-endian.
 *
 *   file:     [superblock A 4 KiB][superblock B 4 KiB] ... [identity slots 64 x 4 KiB at 64 KiB]
 *             ... [segments from 2 MiB on, segment_bytes each]
 *   segment:  [head 4 KiB][record]...[record] ... free ... [summaries][trailer 4 KiB]
 *   record:   [header 4 KiB][payload padded to 4 KiB][side records padded to 4 KiB]
 *
 * A block is 4 KiB; positions are block numbers from the start of the file (32 bits: 16 TiB).
 * A record never crosses a segment's end. Header and payload are one write. A record image in the
 * RAM arena is byte for byte the record on disk, except for the location part of the header.
 *
 * Which record of a key counts: the one with the highest version, tombstones included. A record
 * belongs to a segment's present life only if uuid, segment, generation and block agree with the
 * segment's head. A hole record says "nothing here, step over me".
 */
#ifndef CAIRN_STORAGE_FORMAT_H
#define CAIRN_STORAGE_FORMAT_H

#include "base/hash.h"
#include "base/types.h"

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
    CAIRN_RECORD_TOMBSTONE = 2, /* 1 block: every lower version of the key is dead */
    CAIRN_RECORD_HOLE = 3,      /* a write that failed; `blocks` to step over       */
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
    uint32_t pad1;
    uint64_t pad2;
    uint64_t check;        /* XXH3-64 of the 56 bytes before it                                */
};

/* Body part: what the value is, fixed at put. */
struct cairn_record_body_disk {
    uint64_t version;      /* store-wide, grows with every put, replace and delete              */
    uint64_t created_ns;   /* wall clock                                                        */
    uint64_t expires_ns;   /* wall clock, 0 = never                                             */
    uint64_t value_len;    /* bytes, 1 .. CAIRN_VALUE_MAX (0 for tombstones and holes)          */
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
    uint8_t key[16];     /* first half of the key            */
    uint64_t version;
    uint64_t expires_ns;
    uint32_t block;
    uint32_t value_len;  /* 0 for a tombstone                */
    uint8_t parent[8];   /* first bytes of the parent's key  */
    uint8_t kind;        /* enum cairn_record_kind           */
    uint8_t pad0;
    uint16_t space;
    uint32_t blocks;
    uint64_t pad1;
};
_Static_assert(sizeof(struct cairn_summary_disk) == 64, "summary is 64 bytes");

static inline uint32_t cairn_blocks(uint64_t bytes)
{
    return (uint32_t)((bytes + CAIRN_BLOCK - 1) / CAIRN_BLOCK);
}

/* Blocks of a value's record. */
static inline uint32_t cairn_record_blocks(uint64_t value_len, uint32_t side_len)
{
    return 1u + cairn_blocks(value_len) + cairn_blocks(side_len);
}

#endif
