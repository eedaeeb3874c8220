/* A real cairnd for a test: CAIRN_TEST_CAIRND names the program. It dies with the test. */
#ifndef CAIRN_TESTS_NODE_H
#define CAIRN_TESTS_NODE_H

#include <stdbool.h>
#include <sys/types.h>

#include "tests/helpers/leftovers.h"

#define NODE_ARGUMENTS_MAX 24

struct test_node {
    pid_t pid;          /* 0: does not run */
    char socket[64];
    int port;           /* 0: no TCP       */
    char log[80];       /* what it says    */
    struct leftovers left;
    char arguments[NODE_ARGUMENTS_MAX][128];
    int argument_count;
};

/* Names a socket (and a free port) of its own, and keeps the options: "ram=16MiB&policy=lru". */
void node_prepare(struct test_node *n, bool tcp, const char *options);
/* Starts it and waits until it answers. False: it did not, and stderr says why. */
bool node_start(struct test_node *n);
/* Sends the signal and waits for the end. */
void node_end(struct test_node *n, int signal);
/* Stops it as a debugger would; on return it does nothing any more. */
void node_stall(struct test_node *n);
void node_go_on(struct test_node *n);
/* Ends it and removes what it left. */
void node_finish(struct test_node *n);

#endif
