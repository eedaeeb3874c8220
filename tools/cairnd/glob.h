/* Patterns of KEYS and SCAN, as Redis matches them: * ? [a-z] [^a-z], and \ before a byte that
 * stands for itself. A class that is not closed ends with the pattern. Time is at most the product
 * of both lengths, whatever the pattern. */
#ifndef CAIRN_TOOLS_CAIRND_GLOB_H
#define CAIRN_TOOLS_CAIRND_GLOB_H

#include <stdbool.h>
#include <stddef.h>

bool glob_match(const char *pattern, size_t pattern_len, const char *text, size_t text_len);

#endif
