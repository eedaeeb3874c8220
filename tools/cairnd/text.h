/* Text into a buffer of its caller: what does not fit is counted and not written, so that a caller
 * can come back with a larger one. */
#ifndef CAIRN_TOOLS_CAIRND_TEXT_H
#define CAIRN_TOOLS_CAIRND_TEXT_H

#include <stddef.h>

struct text {
    char *out;
    size_t cap, len; /* len: bytes of the whole text, also of what did not fit */
};

void text_add(struct text *t, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* With the quotes. What is no UTF-8 becomes U+FFFD: a name may come from anywhere. */
void text_json_string(struct text *t, const char *s);

#endif
