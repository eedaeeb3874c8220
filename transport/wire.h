/* The binary arguments of the CAIRN.* commands (README.md of this folder is the specification). All
 * integers little-endian, every struct a multiple of 8 bytes, unknown flags and non-zero padding
 * are refused. Decoders take untrusted bytes and copy them out: arguments are not aligned. */
#ifndef CAIRN_TRANSPORT_WIRE_H
#define CAIRN_TRANSPORT_WIRE_H

#include <stdbool.h>

#include "base/hash.h"
#include "base/types.h"

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the wire is little-endian and written in place"
#endif

#define CAIRN_WIRE_VERSION 1u
#define CAIRN_WIRE_KEYS_MAX 8192u     /* keys of one command                                      */
#define CAIRN_WIRE_BATCH_MAX 512u     /* values of one CAIRN.GET                                  */

/* CAIRN.GET: one item a value. */
struct cairn_wire_get {
    uint8_t key[32];
    uint8_t fingerprint[32]; /* zero: any                                                         */
    uint64_t offset;         /* RANGE: first byte                                                 */
    uint64_t len;            /* bytes wanted; without RANGE the value's length, checked           */
    uint32_t flags;          /* CAIRN_GET_RANGE                                                   */
    uint32_t pad;
};
_Static_assert(sizeof(struct cairn_wire_get) == 88, "wire get");

/* Answer to one item: this, then a check of each 256 KiB of the bytes that follow. */
struct cairn_wire_value {
    int32_t status; /* cairn_status: bytes follow only if it is CAIRN_OK */
    int32_t cause;
    uint64_t version;
    uint64_t len;   /* bytes that follow */
};
_Static_assert(sizeof(struct cairn_wire_value) == 24, "wire value");

/* CAIRN.PUT. Its piece checks, side records and bytes are arguments of their own. */
struct cairn_wire_put {
    uint8_t key[32];
    uint8_t parent[32];      /* zero: none                                                        */
    uint8_t fingerprint[32]; /* zero: none                                                        */
    uint64_t value_len;
    uint64_t expires_ns;     /* wall clock, 0 = never                                             */
    uint64_t window_offset;  /* WINDOW: where the bytes lie in the client's window                */
    uint32_t flags;          /* CAIRN_PUT_REPLACE | CAIRN_WIRE_PUT_WINDOW                         */
    uint32_t pad;
};
#define CAIRN_WIRE_PUT_WINDOW (1u << 8)
_Static_assert(sizeof(struct cairn_wire_put) == 128, "wire put");

/* CAIRN.LEASE: one for each value held. The record's header lies 4 KiB before `offset` and is the
 * storage format's; `check` is its body's, so that the client knows it reads this very record. */
struct cairn_wire_view {
    uint64_t offset;  /* of the value's first byte, from the start of the arena */
    uint64_t len;     /* bytes */
    uint64_t version;
    uint64_t check;
};
_Static_assert(sizeof(struct cairn_wire_view) == 32, "wire view");

/* false: not a whole number of items, none, or more than max. */
static inline bool cairn_wire_count(size_t bytes, size_t item, uint32_t max, uint32_t *ret)
{
    if (bytes == 0 || bytes % item != 0 || bytes / item > max)
        return false;
    *ret = (uint32_t)(bytes / item);
    return true;
}

/* CAIRN_INVAL and a sentence in why (static text) if the item may not be. */
cairn_status cairn_wire_get_read(const void *bytes, struct cairn_wire_get *ret, const char **why);
cairn_status cairn_wire_put_read(const void *bytes, struct cairn_wire_put *ret, const char **why);

#endif
