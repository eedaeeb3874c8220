#include "storage/cause.h"

static const char *const cause_names[] = {
#define CAIRN_CAUSE_NAME(id, name, text) [CAIRN_CAUSE_##id] = name,
    CAIRN_CAUSES(CAIRN_CAUSE_NAME)
#undef CAIRN_CAUSE_NAME
};

static const char *const cause_texts[] = {
#define CAIRN_CAUSE_TEXT(id, name, text) [CAIRN_CAUSE_##id] = text,
    CAIRN_CAUSES(CAIRN_CAUSE_TEXT)
#undef CAIRN_CAUSE_TEXT
};

const char *cairn_cause_name(enum cairn_cause c)
{
    return (unsigned)c < CAIRN_CAUSE_COUNT ? cause_names[c] : "unknown";
}

const char *cairn_cause_text(enum cairn_cause c)
{
    return (unsigned)c < CAIRN_CAUSE_COUNT ? cause_texts[c] : "unknown cause";
}
