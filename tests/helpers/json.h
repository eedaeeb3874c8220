/* A small JSON reader for tests: strict, keeps everything in memory. */
#ifndef CAIRN_TESTS_JSON_H
#define CAIRN_TESTS_JSON_H

#include <stdbool.h>
#include <stddef.h>

enum json_kind { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

struct json {
    enum json_kind kind;
    bool truth;
    double number;
    char *text;        /* STRING: its bytes, terminated                    */
    char *name;        /* in an OBJECT: the member's name                  */
    struct json *kids; /* ARRAY, OBJECT: the first one                     */
    struct json *next;
    size_t count;      /* of kids; of a STRING its bytes                   */
};

/* NULL if the text is not exactly one JSON value. */
struct json *json_parse(const char *text);
/* The file, or NULL. */
struct json *json_load(const char *path);
void json_free(struct json *j);

/* Member of that name, or NULL. NULL in, NULL out. */
const struct json *json_get(const struct json *object, const char *name);
/* Text of a string member, or NULL. */
const char *json_text(const struct json *object, const char *name);
/* Value of a number member, or `other`. */
double json_number(const struct json *object, const char *name, double other);

#endif
