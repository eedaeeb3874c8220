/* Counts of calls, failures that a test asked for, and the list of what Cairn must never do. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "tests/emulation/emulation.h"

#define MAX_FAULTS 32
#define ANY_CALL -1

static const char *const names[] = {
#define X(member, name, parameters) #name,
    CU_CALLS(X)
#undef X
    "cuMemcpyBatchAsync",
};
enum { CALLS = sizeof(names) / sizeof(names[0]) };

struct fault {
    int call;
    unsigned int left; /* calls until it strikes; 0 = free */
    cu_result result;
    bool always;
};

static struct fault faults[MAX_FAULTS], at_run[MAX_FAULTS];
static cu_result always;
static uint64_t counts[CALLS];
static char text[16384];
static size_t text_len;
static uint64_t violation_count;
static bool asked;

int call_count(void)
{
    return CALLS;
}

const char *call_name(int id)
{
    return id >= 0 && id < CALLS ? names[id] : NULL;
}

int call_id(const char *name)
{
    for (int i = 0; i < CALLS; i++) {
        if (!strcmp(names[i], name))
            return i;
    }
    return -1;
}

cu_result fault_add(const char *call, unsigned int nth, cu_result result, bool forever)
{
    int id = call ? call_id(call) : ANY_CALL;

    if ((call && id < 0) || !nth)
        return CU_INVALID_VALUE;
    for (int i = 0; i < MAX_FAULTS; i++) {
        if (!faults[i].left) {
            faults[i] = (struct fault){id, nth, result, forever};
            return CU_OK;
        }
    }
    return CU_OUT_OF_MEMORY;
}

void fault_add_queued(unsigned int nth, cu_result result)
{
    for (int i = 0; i < MAX_FAULTS; i++) {
        if (!at_run[i].left) {
            at_run[i] = (struct fault){ANY_CALL, nth, result, false};
            return;
        }
    }
}

cu_result fault_at_call(int id)
{
    cu_result result = CU_OK;

    counts[id]++;
    for (int i = 0; i < MAX_FAULTS; i++) {
        struct fault *f = &faults[i];
        if (!f->left || (f->call != ANY_CALL && f->call != id) || --f->left)
            continue;
        result = f->result;
        if (f->always)
            always = f->result;
    }
    return always ? always : result;
}

bool fault_stays(void)
{
    return always != CU_OK;
}

cu_result fault_at_run(void)
{
    cu_result result = CU_OK;

    for (int i = 0; i < MAX_FAULTS; i++) {
        if (at_run[i].left && !--at_run[i].left)
            result = at_run[i].result;
    }
    return result;
}

uint64_t calls_made(int id)
{
    uint64_t sum = 0;

    if (id >= 0)
        return counts[id];
    for (int i = 0; i < CALLS; i++)
        sum += counts[i];
    return sum;
}

void violation(const char *format, ...)
{
    size_t room = sizeof(text) - text_len;
    va_list ap;
    int n;

    violation_count++;
    va_start(ap, format);
    n = vsnprintf(text + text_len, room, format, ap);
    va_end(ap);
    if (n < 0 || (size_t)n + 2 > room) {
        text[text_len] = '\0';
        return;
    }
    text_len += (size_t)n;
    text[text_len++] = '\n';
    text[text_len] = '\0';
}

uint64_t violations(void)
{
    asked = true;
    return violation_count;
}

const char *violation_text(void)
{
    return text;
}

/* A program that no test speaks to says what it did wrong at its end. */
__attribute__((destructor)) static void say_violations(void)
{
    if (violation_count && !asked)
        fprintf(stderr, "emulated CUDA driver: %llu violations\n%s",
                (unsigned long long)violation_count, text);
}

void faults_reset(void)
{
    memset(faults, 0, sizeof(faults));
    memset(at_run, 0, sizeof(at_run));
    memset(counts, 0, sizeof(counts));
    always = CU_OK;
    violation_count = 0;
    asked = false;
    text_len = 0;
    text[0] = '\0';
}
