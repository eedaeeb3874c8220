#include "tools/bench_replay.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "storage/policy.h"

extern char **environ;

#define CHUNK_NONE UINT32_MAX
#define TRIES UINT32_MAX /* nothing is pinned here */

struct request {
    size_t first; /* into trace.ids */
    uint32_t count;
    uint64_t tokens;
};

struct trace {
    uint64_t *ids; /* as in the file, later numbered from 0 */
    size_t id_count, id_room;
    struct request *requests;
    size_t request_count, request_room;
    uint32_t distinct;
    uint32_t longest;
    uint32_t chunk_tokens;
    uint64_t tokens;
};

/* --- reading --- */

static bool room_for(void **items, size_t size, size_t count, size_t *room)
{
    if (count < *room)
        return true;
    size_t more = *room ? *room * 2 : 4096;
    void *grown = reallocarray(*items, more, size);
    if (!grown)
        return false;
    *items = grown;
    *room = more;
    return true;
}

/* First character of the value of a member, NULL if the object has none of that name. */
static const char *member(const char *object, const char *quoted_name)
{
    const char *p = strstr(object, quoted_name);
    if (!p)
        return NULL;
    p += strlen(quoted_name);
    p += strspn(p, " \t");
    if (*p != ':')
        return NULL;
    return p + 1 + strspn(p + 1, " \t");
}

static const char *number(const char *p, uint64_t *ret)
{
    if (*p < '0' || *p > '9')
        return NULL;
    char *end;
    errno = 0;
    *ret = strtoull(p, &end, 10);
    return errno ? NULL : end;
}

static cairn_status ids_parse(const char *p, struct trace *t, struct request *r)
{
    if (*p++ != '[')
        return CAIRN_INVAL;
    p += strspn(p, " \t");
    for (bool more = *p != ']'; more;) {
        uint64_t id;
        p = number(p, &id);
        if (!p || r->count == UINT32_MAX)
            return CAIRN_INVAL;
        if (!room_for((void **)&t->ids, sizeof *t->ids, t->id_count, &t->id_room))
            return CAIRN_NOMEM;
        t->ids[t->id_count++] = id;
        r->count++;
        p += strspn(p, " \t");
        more = *p == ',';
        if (more)
            p += 1 + strspn(p + 1, " \t");
        else if (*p != ']')
            return CAIRN_INVAL;
    }
    return CAIRN_OK;
}

static cairn_status line_parse(const char *line, struct trace *t)
{
    struct request r = {.first = t->id_count};
    const char *tokens = member(line, "\"input_length\"");
    const char *ids = member(line, "\"hash_ids\"");
    if (!tokens || !ids || !number(tokens, &r.tokens))
        return CAIRN_INVAL;
    cairn_status s = ids_parse(ids, t, &r);
    if (s)
        return s;
    if (!room_for((void **)&t->requests, sizeof r, t->request_count, &t->request_room))
        return CAIRN_NOMEM;
    t->requests[t->request_count++] = r;
    t->tokens += r.tokens;
    if (r.count > t->longest)
        t->longest = r.count;
    return CAIRN_OK;
}

static cairn_status lines_read(FILE *f, const char *path, struct trace *t, char *err, size_t cap)
{
    char *line = NULL;
    size_t room = 0;
    uint64_t number_of_line = 0;
    cairn_status s = CAIRN_OK;
    while (!s && getline(&line, &room, f) >= 0) {
        number_of_line++;
        if (line[strspn(line, " \t\r\n")])
            s = line_parse(line, t);
    }
    if (!s && ferror(f))
        s = CAIRN_IO;
    if (s == CAIRN_INVAL)
        snprintf(err, cap, "%s:%" PRIu64 ": not a request with hash_ids and input_length", path,
                 number_of_line);
    else if (s)
        snprintf(err, cap, "%s: cannot be read: %s", path, cairn_status_name(s));
    free(line);
    return s;
}

/* Starts `gzip -dc <path>` without a shell, so that any file name is fine. */
static cairn_status gzip_start(FILE *compressed, FILE **ret, pid_t *ret_pid)
{
    int ends[2];
    if (pipe2(ends, O_CLOEXEC))
        return cairn_status_from_errno(errno);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, fileno(compressed), STDIN_FILENO);
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO);
    char name[] = "gzip", flags[] = "-dc";
    char *argv[] = {name, flags, NULL};
    int rc = posix_spawnp(ret_pid, name, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    *ret = rc ? NULL : fdopen(ends[0], "r");
    if (*ret)
        return CAIRN_OK;
    close(ends[0]);
    if (!rc)
        waitpid(*ret_pid, NULL, 0);
    return rc ? cairn_status_from_errno(rc) : CAIRN_NOMEM;
}

static cairn_status gzip_read(FILE *compressed, const char *path, struct trace *t, char *err,
                              size_t cap)
{
    FILE *f;
    pid_t pid;
    cairn_status s = gzip_start(compressed, &f, &pid);
    if (s) {
        snprintf(err, cap, "%s: cannot run gzip to read it: %s", path, cairn_status_name(s));
        return s;
    }
    s = lines_read(f, path, t, err, cap);
    fclose(f);
    int status = 0;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (!s && !(WIFEXITED(status) && WEXITSTATUS(status) == 0)) {
        snprintf(err, cap, "%s: gzip could not unpack it", path);
        return CAIRN_CORRUPT;
    }
    return s;
}

static cairn_status trace_read(const char *path, struct trace *t, char *err, size_t cap)
{
    FILE *f = fopen(path, "re");
    if (!f) {
        snprintf(err, cap, "%s: %s", path, strerror(errno));
        return cairn_status_from_errno(errno);
    }
    size_t len = strlen(path);
    bool gz = len > 3 && strcmp(path + len - 3, ".gz") == 0;
    cairn_status s = gz ? gzip_read(f, path, t, err, cap) : lines_read(f, path, t, err, cap);
    fclose(f);
    if (!s && !t->id_count) {
        snprintf(err, cap, "%s: no request in it asks for a chunk", path);
        s = CAIRN_INVAL;
    }
    return s;
}

/* --- making it small: ids numbered from 0, chunk size found --- */

static int id_compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static cairn_status ids_number(struct trace *t)
{
    uint64_t *sorted = reallocarray(NULL, t->id_count, sizeof *sorted);
    if (!sorted)
        return CAIRN_NOMEM;
    memcpy(sorted, t->ids, t->id_count * sizeof *sorted);
    qsort(sorted, t->id_count, sizeof *sorted, id_compare);
    size_t n = 0;
    for (size_t i = 0; i < t->id_count; i++)
        if (!i || sorted[i] != sorted[n - 1])
            sorted[n++] = sorted[i];
    for (size_t i = 0; i < t->id_count && n < CHUNK_NONE; i++) {
        uint64_t *at = bsearch(&t->ids[i], sorted, n, sizeof *sorted, id_compare);
        t->ids[i] = (uint64_t)(at - sorted);
    }
    free(sorted);
    t->distinct = (uint32_t)n;
    return n < CHUNK_NONE ? CAIRN_OK : CAIRN_TOOBIG;
}

static uint32_t chunk_tokens_guess(const struct trace *t)
{
    uint64_t least = 1;
    for (size_t i = 0; i < t->request_count; i++) {
        uint64_t parts = (uint64_t)t->requests[i].count + 1;
        uint64_t tokens = (t->requests[i].tokens + parts - 1) / parts;
        if (t->requests[i].count && tokens > least)
            least = tokens;
    }
    uint32_t guess = 1;
    while (guess < least && guess < 1u << 31)
        guess *= 2;
    return guess;
}

/* --- replaying --- */

struct replay {
    const struct trace *trace;
    struct cairn_policy *policy;
    uint32_t *slot_of;  /* by chunk */
    uint32_t *chunk_of; /* by slot  */
    uint32_t *free_slots;
    uint32_t free_count;
    uint64_t hit_chunks, hit_tokens, inserted;
};

static bool always_usable(void *arg, uint32_t slot)
{
    (void)arg;
    (void)slot;
    return true;
}

/* splitmix64: a chunk's number stands for its key, of which policies take a hash. */
static uint64_t chunk_hash(uint64_t chunk)
{
    uint64_t z = chunk + 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static void evict_one(struct replay *r)
{
    uint32_t slot = r->policy->ops->victim(r->policy, always_usable, NULL, TRIES);
    r->policy->ops->remove(r->policy, slot, true);
    r->slot_of[r->chunk_of[slot]] = CHUNK_NONE;
    r->free_slots[r->free_count++] = slot;
}

static void request_play(struct replay *r, const struct request *q, uint32_t spare_slots)
{
    const struct cairn_policy_ops *ops = r->policy->ops;
    const uint64_t *ids = r->trace->ids + q->first;
    uint32_t hits = 0;
    while (hits < q->count && r->slot_of[ids[hits]] != CHUNK_NONE)
        hits++;
    uint64_t tokens = (uint64_t)hits * r->trace->chunk_tokens;
    r->hit_chunks += hits;
    r->hit_tokens += tokens < q->tokens ? tokens : q->tokens;
    for (uint32_t i = q->count; i--;) {
        uint32_t slot = r->slot_of[ids[i]];
        if (slot != CHUNK_NONE) {
            ops->touch(r->policy, slot);
            continue;
        }
        slot = r->free_slots[--r->free_count];
        r->slot_of[ids[i]] = slot;
        r->chunk_of[slot] = (uint32_t)ids[i];
        ops->insert(r->policy, slot, chunk_hash(ids[i]), 1);
        r->inserted++;
    }
    while (r->free_count < spare_slots)
        evict_one(r);
}

static void replay_close(struct replay *r)
{
    if (r->policy)
        r->policy->ops->destroy(r->policy);
    free(r->slot_of);
    free(r->chunk_of);
    free(r->free_slots);
}

/* Slots for what is kept and for one whole request beside it. */
static cairn_status replay_run(const struct trace *t, const struct cairn_policy_ops *ops,
                               uint64_t capacity, struct replay *ret)
{
    uint32_t kept = capacity < t->distinct ? (uint32_t)capacity : t->distinct;
    uint64_t slots = (uint64_t)kept + t->longest;
    if (slots > UINT32_MAX / 2)
        return CAIRN_TOOBIG;
    struct replay r = {.trace = t};
    cairn_status s = ops->create((uint32_t)slots, &r.policy);
    r.slot_of = reallocarray(NULL, t->distinct, sizeof *r.slot_of);
    r.chunk_of = reallocarray(NULL, slots, sizeof *r.chunk_of);
    r.free_slots = reallocarray(NULL, slots, sizeof *r.free_slots);
    if (!s && (!r.slot_of || !r.chunk_of || !r.free_slots))
        s = CAIRN_NOMEM;
    if (!s) {
        memset(r.slot_of, 0xff, t->distinct * sizeof *r.slot_of);
        for (uint32_t i = 0; i < slots; i++)
            r.free_slots[r.free_count++] = i;
        for (size_t i = 0; i < t->request_count; i++)
            request_play(&r, &t->requests[i], t->longest);
        *ret = r;
    }
    replay_close(&r);
    return s;
}

static cairn_status policies_pick(const struct cairn_replay_opts *o,
                                  const struct cairn_policy_ops **ops, char *err, size_t cap)
{
    if (!o->policies) {
        uint32_t n;
        const struct cairn_policy_ops *const *all = cairn_policy_all(&n);
        memcpy(ops, all, n * sizeof *ops);
        return CAIRN_OK;
    }
    for (size_t i = 0; i < o->policy_count; i++) {
        ops[i] = cairn_policy_find(o->policies[i]);
        if (!ops[i]) {
            snprintf(err, cap, "no policy is named \"%s\"", o->policies[i]);
            return CAIRN_INVAL;
        }
    }
    return CAIRN_OK;
}

static cairn_status replay_all(const struct trace *t, const struct cairn_replay_opts *o,
                               const struct cairn_policy_ops *const *ops, size_t ops_count,
                               struct cairn_replay_result *ret)
{
    for (size_t c = 0; c < o->capacity_count; c++) {
        for (size_t p = 0; p < ops_count; p++) {
            struct replay r = {0};
            cairn_status s = replay_run(t, ops[p], o->capacities[c], &r);
            if (s)
                return s;
            ret[c * ops_count + p] = (struct cairn_replay_result){
                .policy = ops[p]->name,
                .capacity = o->capacities[c],
                .token_hit_rate = t->tokens ? (double)r.hit_tokens / (double)t->tokens : 0,
                .chunk_hit_rate = (double)r.hit_chunks / (double)t->id_count,
                .bytes_written = r.inserted * o->chunk_bytes,
            };
        }
    }
    return CAIRN_OK;
}

cairn_status cairn_bench_replay(const char *path, const struct cairn_replay_opts *o,
                                struct cairn_replay_result *ret,
                                struct cairn_replay_trace *ret_trace, char *err, size_t err_cap)
{
    struct trace t = {0};
    uint32_t all_count;
    (void)cairn_policy_all(&all_count);
    size_t ops_count = o->policies ? o->policy_count : all_count;
    const struct cairn_policy_ops **ops = reallocarray(NULL, ops_count + 1, sizeof *ops);
    cairn_status s = ops ? policies_pick(o, ops, err, err_cap) : CAIRN_NOMEM;
    if (!ops)
        snprintf(err, err_cap, "out of memory");
    if (!s)
        s = trace_read(path, &t, err, err_cap);
    if (!s) {
        s = ids_number(&t);
        t.chunk_tokens = o->chunk_tokens ? o->chunk_tokens : chunk_tokens_guess(&t);
        if (!s)
            s = replay_all(&t, o, ops, ops_count, ret);
        if (s)
            snprintf(err, err_cap, "%s: cannot be replayed: %s", path, cairn_status_name(s));
    }
    if (!s && ret_trace)
        *ret_trace = (struct cairn_replay_trace){.requests = t.request_count,
                                                 .chunks = t.id_count,
                                                 .distinct = t.distinct,
                                                 .tokens = t.tokens,
                                                 .chunk_tokens = t.chunk_tokens};
    free(ops);
    free(t.ids);
    free(t.requests);
    return s;
}
