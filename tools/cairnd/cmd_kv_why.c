/* Explaining: identities, misses, statistics. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "chunking/identity.h"
#include "storage/cause.h"
#include "tools/cairnd/cmd_kv.h"
#include "tools/cairnd/text.h"

#define TEXT_FIRST 16384u
#define TEXT_MAX (4u * 1024 * 1024)
#define WALK 4096u /* values between two looks at the clock */

/* Answers with a text of which only the writer knows the length. */
static enum call_flow answer_text(struct call *c,
                                  size_t (*write)(void *arg, char *out, size_t cap), void *arg)
{
    size_t cap = TEXT_FIRST;
    for (;;) {
        char *text = malloc(cap);
        if (!text)
            return kv_error(c, "no memory");
        size_t len = write(arg, text, cap);
        if (len < cap) {
            cairn_out_bulk(c->out, text, len);
            free(text);
            return CALL_DONE;
        }
        free(text);
        /* What it tells may have grown by the next time. */
        cap = len + len / 4 + 64;
        if (cap > TEXT_MAX)
            return kv_error(c, "the answer is longer than %u bytes", TEXT_MAX);
    }
}

/* --- identities --- */

/* false: an error was written */
static bool read_identity(struct call *c, cairn_identity **ret)
{
    const struct cairn_resp_arg *a = &c->args[1];
    cairn_status st = a->data ? cairn_identity_decode(a->data, a->len, ret) : CAIRN_CORRUPT;
    if (!st)
        return true;
    if (st == CAIRN_VERSION)
        kv_error(c, "the identity is of a version of the record that this node does not know");
    else if (st == CAIRN_NOMEM)
        kv_error(c, "no memory");
    else
        kv_error(c, "the argument is not the canonical record of an identity");
    return false;
}

enum call_flow kv_identity_run(struct call *c)
{
    cairn_identity *id;
    size_t len;
    if (!read_identity(c, &id))
        return CALL_DONE;
    if (!c->may_wait) {
        cairn_identity_destroy(id);
        return CALL_WAITS; /* it is kept on disk too */
    }
    const void *canon = cairn_identity_canonical(id, &len);
    struct client_shared *s = kv_shared(c->client);
    if (s)
        s->chunk_tokens = cairn_identity_chunk_tokens(id);
    cairn_out_int(c->out, cairn_vault_note_identity(c->node->vault, canon, (uint32_t)len));
    cairn_identity_destroy(id);
    return CALL_DONE;
}

struct why {
    struct cairn_vault *vault;
    const cairn_identity *id;
};

static size_t write_why(void *arg, char *out, size_t cap)
{
    const struct why *w = arg;
    return cairn_vault_why(w->vault, w->id, out, cap);
}

enum call_flow kv_why_run(struct call *c)
{
    cairn_identity *id;
    if (!read_identity(c, &id))
        return CALL_DONE;
    struct why w = {c->node->vault, id};
    enum call_flow flow = answer_text(c, write_why, &w);
    cairn_identity_destroy(id);
    return flow;
}

/* --- misses --- */

enum call_flow kv_whymiss_run(struct call *c)
{
    struct cairn_key key;
    uint64_t age_ns = 0;
    if (!kv_key(c, 1, &key))
        return CALL_DONE;
    struct cairn_vault *v = c->node->vault;
    uint32_t where = cairn_vault_where(v, &key);
    enum cairn_cause cause = where ? CAIRN_CAUSE_NONE : cairn_vault_drop_cause(v, &key, &age_ns);
    cairn_out_map(c->out, 6);
    cairn_out_text(c->out, "held");
    cairn_out_bool(c->out, where != 0);
    cairn_out_text(c->out, "ram");
    cairn_out_bool(c->out, where & CAIRN_IN_RAM);
    cairn_out_text(c->out, "disk");
    cairn_out_bool(c->out, where & CAIRN_ON_DISK);
    cairn_out_text(c->out, "cause");
    cairn_out_int(c->out, (int64_t)cause);
    cairn_out_text(c->out, "text");
    cairn_out_text(c->out, where ? "it is held" : cairn_cause_text(cause));
    cairn_out_text(c->out, "age_ms");
    cairn_out_int(c->out, (int64_t)(age_ns / CAIRN_NS_PER_MS));
    return CALL_DONE;
}

/* --- statistics --- */

static size_t write_stats(void *arg, char *out, size_t cap)
{
    struct node *n = arg;
    return cairn_vault_stats(n->vault, node_leases_each(n, NULL, NULL), out, cap);
}

/* What is held of one identity, counted by walking over all chunks. */
struct held {
    struct cairn_key fingerprint;
    uint64_t values, bytes, ram_values, ram_bytes, disk_values, disk_bytes;
};

static bool count_held(void *arg, const struct cairn_scan_item *item)
{
    struct held *h = arg;
    if (memcmp(item->identity, h->fingerprint.bytes, sizeof item->identity) != 0)
        return true;
    h->values++;
    h->bytes += item->value_len;
    h->ram_values += item->ram;
    h->ram_bytes += item->ram ? item->value_len : 0;
    h->disk_values += item->disk;
    h->disk_bytes += item->disk ? item->value_len : 0;
    return true;
}

static size_t write_held(void *arg, char *out, size_t cap)
{
    const struct held *h = arg;
    struct text t = {.out = out, .cap = cap};
    text_add(&t, "{\"fingerprint\":\"");
    for (size_t i = 0; i < sizeof h->fingerprint.bytes; i++)
        text_add(&t, "%02x", h->fingerprint.bytes[i]);
    text_add(&t, "\",\"values\":%" PRIu64 ",\"bytes\":%" PRIu64, h->values, h->bytes);
    text_add(&t, ",\"ram\":{\"values\":%" PRIu64 ",\"bytes\":%" PRIu64 "}", h->ram_values,
             h->ram_bytes);
    text_add(&t, ",\"disk\":{\"values\":%" PRIu64 ",\"bytes\":%" PRIu64 "}}", h->disk_values,
             h->disk_bytes);
    return t.len;
}

static enum call_flow stats_of_identity(struct call *c)
{
    struct held h = {.values = 0};
    uint32_t cursor = 0;
    cairn_status st;
    if (!kv_key(c, 2, &h.fingerprint))
        return CALL_DONE;
    if (!c->may_wait)
        return CALL_WAITS;
    do
        st = cairn_vault_scan(c->node->vault, 0, &cursor, WALK, c->deadline_ns, count_held, &h);
    while (!st && cursor && cairn_now_ns() < c->deadline_ns);
    if (st || cursor)
        return kv_error(c, "the chunks could not be counted to the end (%s)",
                        cairn_status_name(st ? st : CAIRN_TIMEOUT));
    return answer_text(c, write_held, &h);
}

enum call_flow kv_stats_run(struct call *c)
{
    if (c->argc == 1)
        return answer_text(c, write_stats, c->node);
    if (c->argc == 3 && call_is(c, 1, "IDENTITY"))
        return stats_of_identity(c);
    return kv_error(c, "what may follow is IDENTITY and a fingerprint");
}
