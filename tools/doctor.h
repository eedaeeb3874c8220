/* `cairn doctor`: what a node would meet on this machine, before it is started. A check a line;
 * each says what it found and, unless all is well, what to do. */
#ifndef CAIRN_TOOLS_DOCTOR_H
#define CAIRN_TOOLS_DOCTOR_H

#include <stdbool.h>

#include "tools/cairnd/options.h"

enum finding_state {
    FINDING_OK,
    FINDING_WARN, /* works, slower or with less */
    FINDING_FAIL, /* the node would not start, or refuse what it is asked */
};

struct finding {
    const char *name;
    enum finding_state state;
    char found[256];
    char fix[256];
};

#define FINDINGS_MAX 32u

struct doctor {
    const struct node_options *o; /* what the node would be told */
    struct finding list[FINDINGS_MAX];
    uint32_t count;
};

/* A new finding of this name, OK until one of the next says otherwise. */
struct finding *doctor_find(struct doctor *d, const char *name, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Makes a finding worse and says what to do about it; one that is as bad already stays. */
void doctor_fix(struct finding *f, enum finding_state state, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

void doctor_machine(struct doctor *d); /* doctor_machine.c: kernel, memory, clock, limits */
void doctor_place(struct doctor *d);   /* doctor_place.c: disk, ports, socket */

#endif
