#include "storage/ioq.h"

#include <string.h>

#include "base/log.h"

static const struct cairn_ioq_ops *const engines[] = {&cairn_ioq_uring, &cairn_ioq_pool};
static const uint32_t engine_count = sizeof(engines) / sizeof(engines[0]);

const struct cairn_ioq_ops *const *cairn_ioq_all(uint32_t *n)
{
    *n = engine_count;
    return engines;
}

const struct cairn_ioq_ops *cairn_ioq_find(const char *name)
{
    bool any = strcmp(name, "auto") == 0;
    char why[160];
    for (uint32_t i = 0; i < engine_count; i++) {
        if (any ? engines[i]->probe(why, sizeof(why)) : strcmp(engines[i]->name, name) == 0)
            return engines[i];
        if (any)
            cairn_log(CAIRN_LOG_WARN, "i/o engine %s cannot run here: %s", engines[i]->name, why);
    }
    return NULL;
}
