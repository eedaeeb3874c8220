/* The tokens in a file that a user names: text or 32-bit numbers. Whatever the bytes are. */
#ifndef CAIRN_TOOLS_TOKENS_H
#define CAIRN_TOOLS_TOKENS_H

#include <stddef.h>
#include <stdint.h>

/* Numbers separated by anything a list has between them. text[len] must be 0. Own memory; NULL:
 * what *ret_bad points to is no token, or (NULL) there is no memory. */
uint32_t *tokens_of_text(const char *text, size_t len, size_t *ret_count, const char **ret_bad);

/* Little-endian; len is a multiple of 4. Own memory; NULL: there is none. */
uint32_t *tokens_of_binary(const void *raw, size_t len, size_t *ret_count);

#endif
