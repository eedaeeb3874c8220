/* Files of a test that are not there any more once it is over. A test that fails, crashes, is
 * skipped or killed does not come to its end: a process that outlives it by that much removes them
 * then. */
#ifndef CAIRN_TESTS_LEFTOVERS_H
#define CAIRN_TESTS_LEFTOVERS_H

#include <sys/types.h>

#define LEFTOVERS_MAX 2

struct leftovers {
    pid_t pid; /* 0: nothing is to be removed */
    int end;   /* of a pipe: closed with the test */
    const char *paths[LEFTOVERS_MAX];
};

/* Lends the names; second may be NULL. */
void leftovers_begin(struct leftovers *l, const char *first, const char *second);
/* Removes them now. */
void leftovers_end(struct leftovers *l);

#endif
