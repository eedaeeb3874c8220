/* A program on a store, driven line by line: what test_env.py confines and interferes with.
 *
 * stdin, and the one line it answers each with:
 *   open URI             ok | error STATUS SENTENCE
 *   put FIRST COUNT LEN  stored N
 *   get FIRST COUNT LEN  hits N wrong N
 *   flush                status N
 *   stats                JSON
 *   close                ok
 * Messages of the library go to stderr. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "connector/cairn.h"
#include "tests/helpers/value.h"

#define PATIENCE 20000000000ull
#define GENERATION 7u

static cairn_store *store;

static void message(void *arg, int level, const char *line)
{
    (void)arg;
    fprintf(stderr, "%d %s\n", level, line);
}

static void do_open(const char *uri)
{
    char err[1024] = "";
    cairn_status s = cairn_open(uri, &store, err, sizeof(err));

    if (s == CAIRN_OK)
        puts("ok");
    else
        printf("error %d %s\n", (int)s, err);
}

static void do_put(uint64_t first, uint64_t count, size_t len)
{
    uint8_t *bytes = malloc(len);
    uint64_t stored = 0;

    for (uint64_t id = first; bytes && id < first + count; id++) {
        struct cairn_iov iov = {.base = bytes, .len = len};
        struct cairn_put put = {.value = {.iov = &iov, .count = 1}};

        value_key(id, put.key.bytes);
        value_fill(bytes, id, GENERATION, 0, len);
        (void)cairn_put(store, &put, 1, PATIENCE);
        stored += put.status == CAIRN_OK || put.status == CAIRN_EXISTS;
    }
    free(bytes);
    printf("stored %llu\n", (unsigned long long)stored);
}

static void do_get(uint64_t first, uint64_t count, size_t len)
{
    uint8_t *bytes = malloc(len);
    uint64_t hits = 0, wrong = 0;

    for (uint64_t id = first; bytes && id < first + count; id++) {
        struct cairn_iov iov = {.base = bytes, .len = len};
        struct cairn_get get = {.out = {.iov = &iov, .count = 1}};

        value_key(id, get.key.bytes);
        memset(bytes, 0, len);
        (void)cairn_get(store, &get, 1, PATIENCE, NULL);
        if (get.status != CAIRN_OK)
            continue;
        hits++;
        wrong += value_check(bytes, id, GENERATION, 0, len) != len;
    }
    free(bytes);
    printf("hits %llu wrong %llu\n", (unsigned long long)hits, (unsigned long long)wrong);
}

static void do_stats(void)
{
    static char text[1 << 16];

    cairn_stats(store, text, sizeof(text));
    puts(text);
}

int main(void)
{
    char line[4096], word[16];
    unsigned long long first, count, len;

    setvbuf(stdout, NULL, _IOLBF, 0);
    cairn_messages_to(message, NULL, 2);
    while (fgets(line, sizeof(line), stdin)) {
        line[strcspn(line, "\n")] = '\0';
        if (sscanf(line, "%15s %llu %llu %llu", word, &first, &count, &len) == 4) {
            if (!strcmp(word, "put"))
                do_put(first, count, len);
            else
                do_get(first, count, len);
        } else if (!strncmp(line, "open ", 5)) {
            do_open(line + 5);
        } else if (!strcmp(line, "flush")) {
            printf("status %d\n", (int)cairn_flush(store, PATIENCE));
        } else if (!strcmp(line, "stats")) {
            do_stats();
        } else if (!strcmp(line, "close")) {
            cairn_close(store);
            store = NULL;
            puts("ok");
        } else {
            return 2;
        }
    }
    cairn_close(store);
    return 0;
}
