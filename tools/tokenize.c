/* Text to token ids. Tokenizers are the engine's business and Python's; a C program that guessed
 * would give keys that never hit. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tools/prompt.h"

#define IDS_MAX (64u << 20)

static const char program[] =
    "import sys\n"
    "try:\n"
    "    from tokenizers import Tokenizer\n"
    "except ImportError:\n"
    "    sys.exit('python3 has no module tokenizers: pip install tokenizers, or give token ids')\n"
    "try:\n"
    "    t = Tokenizer.from_file(sys.argv[1])\n"
    "except Exception as e:\n"
    "    sys.exit(f\"cannot read the tokenizer '{sys.argv[1]}': {e}; give a tokenizer.json\")\n"
    "try:\n"
    "    text = sys.stdin.buffer.read().decode()\n"
    "except UnicodeDecodeError as e:\n"
    "    sys.exit(f'the text is not UTF-8: {e}')\n"
    "print(*t.encode(text).ids)\n";

static void run_python(const char *tokenizer, int in, int out, int err)
{
    dup2(in, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    dup2(err, STDERR_FILENO);
    execlp("python3", "python3", "-c", program, tokenizer, (char *)NULL);
    dprintf(STDERR_FILENO, "cannot run python3: %s; install it, or give token ids",
            strerror(errno));
    _exit(127);
}

/* All that comes, as a string of its own; NULL without memory or beyond max. */
static char *read_all(int fd, size_t max)
{
    size_t cap = 65536, len = 0;
    char *text = malloc(cap);
    for (;;) {
        ssize_t n = text ? read(fd, text + len, cap - len - 1) : 0;
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        len += (size_t)n;
        if (len + 1 < cap)
            continue;
        cap *= 2;
        char *more = cap <= max ? realloc(text, cap) : NULL;
        if (!more)
            free(text);
        text = more;
    }
    if (text)
        text[len] = 0;
    return text;
}

/* Errors go to a file of their own, so that reading one stream never blocks the other. */
static char *python_ids(const char *tokenizer, int in, FILE *said)
{
    int out[2];
    if (pipe2(out, O_CLOEXEC)) {
        cli_fail(CLI_FAILED, "cannot make a pipe: %s", strerror(errno));
        return NULL;
    }
    pid_t pid = fork();
    if (pid == 0)
        run_python(tokenizer, in, out[1], fileno(said));
    close(out[1]);
    char *ids = pid > 0 ? read_all(out[0], IDS_MAX) : NULL;
    close(out[0]);
    int status = -1;
    while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (ids && status == 0)
        return ids;
    free(ids);
    char line[512] = "";
    rewind(said);
    while (fgets(line, sizeof line, said))
        line[strcspn(line, "\n")] = 0;
    cli_fail(CLI_FAILED, "%s", line[0] ? line : "python3 gave no token ids");
    return NULL;
}

char *tokenize(const char *tokenizer, const char *path)
{
    int in = strcmp(path, "-") ? open(path, O_RDONLY | O_CLOEXEC) : STDIN_FILENO;
    if (in < 0) {
        cli_fail(CLI_FAILED, "cannot open '%s': %s; give a readable file or - for standard input",
                 path, strerror(errno));
        return NULL;
    }
    FILE *said = tmpfile();
    char *ids = said ? python_ids(tokenizer, in, said) : NULL;
    if (!said)
        cli_fail(CLI_FAILED, "cannot make a temporary file: %s", strerror(errno));
    if (said)
        fclose(said);
    if (in != STDIN_FILENO)
        close(in);
    return ids;
}
