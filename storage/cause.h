/* Why something was a miss or not stored. Every doubt is counted under exactly one of these. */
#ifndef CAIRN_STORAGE_CAUSE_H
#define CAIRN_STORAGE_CAUSE_H

/* X(enum suffix, name in statistics, meaning) */
#define CAIRN_CAUSES(X) \
    X(NONE, "none", "no failure") \
    X(ABSENT, "absent", "not held") \
    X(EXPIRED, "expired", "its expiry time has passed") \
    X(CHECKSUM, "checksum", "payload bytes differ from their checksum") \
    X(HEADER, "header", "header damaged, or of another place or generation") \
    X(KEY, "key", "the record found holds another key") \
    X(LENGTH, "length", "its length is not what the index or the caller says") \
    X(IDENTITY, "identity", "the record was made under another identity") \
    X(VERSION, "version", "the record found is another version of the key") \
    X(IO_ERROR, "io_error", "the device answered with an error") \
    X(DEADLINE, "deadline", "the deadline passed first") \
    X(NO_ROOM, "no_room", "no memory without dropping what is pinned or not written") \
    X(QUEUE_FULL, "queue_full", "a bounded queue was full") \
    X(TOO_BIG, "too_big", "larger than the largest value") \
    X(RECLAIMED, "reclaimed", "its segment was reclaimed under it") \
    X(TIER_OFF, "tier_off", "the disk tier is off after repeated errors") \
    X(TOMBSTONE, "tombstone", "the mark that makes the old value dead could not be made durable") \
    X(CLOSED, "closed", "the store is closed or closing") \
    X(BAD_KEY, "bad_key", "key or value of an impossible size") \
    X(EVICTED, "evicted", "dropped for room") \
    X(DELETED, "deleted", "deleted by request") \
    X(CLEARED, "cleared", "its space was cleared") \
    X(NODE, "node", "the node that has it cannot be reached") \
    X(SPACE, "space", "another namespace holds the key") \
    X(DEVICE, "device", "the accelerator's memory could not be read or written")

enum cairn_cause {
#define CAIRN_CAUSE_ENUM(id, name, text) CAIRN_CAUSE_##id,
    CAIRN_CAUSES(CAIRN_CAUSE_ENUM)
#undef CAIRN_CAUSE_ENUM
    CAIRN_CAUSE_COUNT
};

const char *cairn_cause_name(enum cairn_cause c);
const char *cairn_cause_text(enum cairn_cause c);

#endif
