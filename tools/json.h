/* As much JSON as the tools need: writing strings and numbers, and walking the leaves of a text. */
#ifndef CAIRN_TOOLS_JSON_H
#define CAIRN_TOOLS_JSON_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* With the quotes; control characters and quotes escaped. */
void json_string(FILE *f, const char *text);
/* null for NaN and infinities. */
void json_number(FILE *f, double value);

/* Called for every string, number, true, false and null with its path ("io.engines.0.name").
 * Strings come without quotes, with escapes resolved. Lent for the call. */
typedef void (*json_leaf_fn)(void *arg, const char *path, const char *value, bool is_string);

/* false if the text is not one JSON value. Leaves before the fault have been reported. */
bool json_walk(const char *text, json_leaf_fn fn, void *arg);

/* The number at a path; false if there is none. */
bool json_find_number(const char *text, const char *path, double *ret);

/* "path  value" lines for people. */
void json_print_flat(FILE *f, const char *text);

#endif
