#include "connector/backend.h"

#include <string.h>

const struct cairn_backend_ops *const cairn_backends[] = {
    &cairn_embedded_ops,
    &cairn_unix_ops,
    &cairn_tcp_ops,
    NULL,
};

const struct cairn_backend_ops *cairn_backend_find(const char *uri)
{
    for (const struct cairn_backend_ops *const *o = cairn_backends; *o; o++)
        if (strncmp(uri, (*o)->scheme, strlen((*o)->scheme)) == 0)
            return *o;
    return NULL;
}
