/* `cairn bench engine`: the engine is Python's, and so is what measures it, deploy/bench_engine.py.
 * This finds that program and an interpreter, and names the build that is measured: its own. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/bench.h"
#include "tools/cli.h"

#define SCRIPT CAIRN_CHECKOUT "/deploy/bench_engine.py"
#define PYTHON CAIRN_CHECKOUT "/build/venv/bin/python" /* where deploy/run installs vLLM */
#define PATH_CAP 4096
#define ARGS_MAX 64

/* bin/ of the build that this program is of, without the last slash. */
static bool own_folder(char out[PATH_CAP])
{
    ssize_t n = readlink("/proc/self/exe", out, PATH_CAP - 1);
    if (n <= 0)
        return false;
    out[n] = '\0';
    char *slash = strrchr(out, '/');
    if (!slash)
        return false;
    *slash = '\0';
    return true;
}

/* The library that this build made, unless the caller has named another one. */
static void name_library(const char *bin)
{
    char library[PATH_CAP + 32];
    snprintf(library, sizeof library, "%s/../lib/libcairn.so", bin);
    if (access(library, R_OK) == 0)
        setenv("CAIRN_LIBRARY", library, 0);
}

static const char *interpreter(void)
{
    const char *named = getenv("CAIRN_PYTHON");
    if (named && named[0])
        return named;
    return access(PYTHON, X_OK) == 0 ? PYTHON : "python3";
}

int bench_engine(int argc, char **argv)
{
    char bin[PATH_CAP], node[PATH_CAP + 32];
    char *args[ARGS_MAX + 5] = {NULL};
    if (argc > ARGS_MAX)
        return cli_fail(CLI_USAGE, "bench engine: %d arguments: give at most %d", argc, ARGS_MAX);
    if (access(SCRIPT, R_OK))
        return cli_fail(CLI_FAILED, "bench engine: there is no %s: run build/bin/cairn of a "
                        "checkout in which deploy/run build was run", SCRIPT);
    if (!own_folder(bin))
        return cli_fail(CLI_FAILED, "bench engine: cannot read /proc/self/exe: mount /proc");
    name_library(bin);
    snprintf(node, sizeof node, "--node=%s/cairnd", bin);
    const char *python = interpreter();
    char *head[] = {(char *)(uintptr_t)python, (char *)(uintptr_t)SCRIPT, node};
    memcpy(args, head, sizeof head);
    memcpy(args + 3, argv, (size_t)argc * sizeof *argv);
    execvp(python, args);
    return cli_fail(CLI_FAILED, "bench engine: cannot run '%s': %s: run deploy/run once, or name "
                    "in CAIRN_PYTHON the python of a venv that has vLLM", python, strerror(errno));
}
