#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools/bench_replay.h"

#define TRACE CAIRN_SOURCE_DIR "/tests/integration/data/replay_small.jsonl"

static const uint64_t capacities[] = {3, 100};
static const struct cairn_replay_opts small = {
    .capacities = capacities, .capacity_count = 2, .chunk_bytes = 10};

static void expect(const struct cairn_replay_result *r, const char *policy, uint64_t capacity,
                   int hits, int hit_tokens, int inserted)
{
    cr_assert_str_eq(r->policy, policy);
    cr_assert_eq(r->capacity, capacity);
    cr_assert_float_eq(r->chunk_hit_rate, hits / 13.0, 1e-9, "%s %d", policy, (int)capacity);
    cr_assert_float_eq(r->token_hit_rate, hit_tokens / 210.0, 1e-9, "%s %d", policy,
                       (int)capacity);
    cr_assert_eq(r->bytes_written, 10u * (unsigned)inserted);
}

/* The trace asks for 123 12X 123 5 123 (13 chunks of 16 tokens, 210 tokens), tails first. LRU of 3
 * drops 3, X, 3, 5 and so hits 12 three times. S3-FIFO of 3 drops 3, remembers it, keeps it in the
 * main queue when it returns, and lets X and 5 through: 12, 12, 123. With room for all, 12, 123 and
 * 123 are hits, and 5 chunks are written. */
static void expect_small(const struct cairn_replay_result *r)
{
    expect(&r[0], "lru", 3, 6, 96, 7);
    expect(&r[1], "s3fifo", 3, 7, 112, 6);
    expect(&r[2], "lru", 100, 8, 128, 5);
    expect(&r[3], "s3fifo", 100, 8, 128, 5);
}

Test(replay, gives_the_rates_worked_out_by_hand)
{
    struct cairn_replay_result r[4];
    struct cairn_replay_trace t;
    char err[200] = "";
    cr_assert_eq(cairn_bench_replay(TRACE, &small, r, &t, err, sizeof err), CAIRN_OK, "%s", err);
    expect_small(r);
    cr_assert(t.requests == 5 && t.chunks == 13 && t.distinct == 5 && t.tokens == 210);
    cr_assert_eq(t.chunk_tokens, 16);
    cr_assert_eq(cairn_bench_replay(TRACE ".gz", &small, r, NULL, err, sizeof err), CAIRN_OK,
                 "%s", err);
    expect_small(r);
}

Test(replay, takes_policies_and_the_chunk_size_as_given)
{
    static const char *const names[] = {"s3fifo"};
    struct cairn_replay_opts o = small;
    struct cairn_replay_result r[2];
    char err[200] = "";
    o.policies = names;
    o.policy_count = 1;
    o.chunk_tokens = 17; /* 3 of them are more than the 48 tokens asked for */
    cr_assert_eq(cairn_bench_replay(TRACE, &o, r, NULL, err, sizeof err), CAIRN_OK, "%s", err);
    expect(&r[0], "s3fifo", 3, 7, 34 + 34 + 48, 6);
    expect(&r[1], "s3fifo", 100, 8, 34 + 48 + 48, 5);
}

Test(replay, a_request_longer_than_the_capacity_leaves_its_head)
{
    static const uint64_t one[] = {1, 2};
    struct cairn_replay_opts o = {.capacities = one, .capacity_count = 2, .chunk_bytes = 10};
    struct cairn_replay_result r[4];
    char err[200] = "";
    cr_assert_eq(cairn_bench_replay(TRACE, &o, r, NULL, err, sizeof err), CAIRN_OK, "%s", err);
    /* 1 stays until 5 drives it out: hits 1, 1. */
    expect(&r[0], "lru", 1, 2, 32, 11);
    /* 12 stays, 5 drives out 2: hits 12, 12, 1. */
    expect(&r[2], "lru", 2, 5, 80, 8);
}

static char *file_with(const void *text, size_t len, const char *suffix)
{
    static char path[64];
    snprintf(path, sizeof path, "/tmp/cairn-replay-XXXXXX%s", suffix);
    int fd = mkstemps(path, (int)strlen(suffix));
    cr_assert_geq(fd, 0);
    cr_assert_eq(write(fd, text, len), (ssize_t)len);
    close(fd);
    return path;
}

static void refuse(const char *text, size_t len, const char *suffix, cairn_status want,
                   const char *sentence)
{
    struct cairn_replay_result r[4];
    char err[200] = "";
    char *path = file_with(text, len, suffix);
    cairn_status s = cairn_bench_replay(path, &small, r, NULL, err, sizeof err);
    unlink(path);
    cr_assert_eq(s, want, "%s: %s", text, err);
    cr_assert_not_null(strstr(err, sentence), "\"%s\" lacks \"%s\"", err, sentence);
}

Test(replay, says_what_is_wrong_with_a_trace)
{
    static const char *const bad[] = {
        "{\"input_length\": 5}\n",
        "{\"hash_ids\": [1]}\n",
        "{\"input_length\": 5, \"hash_ids\": [1, 2\n",
        "{\"input_length\": 5, \"hash_ids\": [1 2]}\n",
        "{\"input_length\": 5, \"hash_ids\": [-1]}\n",
        "{\"input_length\": 5, \"hash_ids\": [1,]}\n",
        "{\"input_length\": 5, \"hash_ids\": [\"a\"]}\n",
        "{\"input_length\": 5, \"hash_ids\": [99999999999999999999999]}\n",
        "{\"input_length\": 5, \"hash_ids\": 7}\n",
        "{\"input_length\": 5, \"hash_ids\"}\n",
        "{\"input_length\": x, \"hash_ids\": [1]}\n",
        "not json\n",
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        refuse(bad[i], strlen(bad[i]), ".jsonl", CAIRN_INVAL, ":1: not a request");
    refuse("", 0, ".jsonl", CAIRN_INVAL, "no request in it");
    refuse("{\"input_length\": 5, \"hash_ids\": []}", 35, ".jsonl", CAIRN_INVAL,
           "no request in it");
    refuse("this is not gzip", 16, ".gz", CAIRN_CORRUPT, "gzip could not unpack");
}

Test(replay, says_when_a_file_or_policy_is_missing)
{
    static const char *const names[] = {"lru", "clock"};
    struct cairn_replay_opts o = small;
    struct cairn_replay_result r[4];
    char err[200] = "";
    cr_assert_eq(cairn_bench_replay("/nowhere/trace", &o, r, NULL, err, sizeof err),
                 CAIRN_NOTFOUND);
    cr_assert_not_null(strstr(err, "/nowhere/trace"));
    o.policies = names;
    o.policy_count = 2;
    cr_assert_eq(cairn_bench_replay(TRACE, &o, r, NULL, err, sizeof err), CAIRN_INVAL);
    cr_assert_not_null(strstr(err, "\"clock\""));
}
