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

/* --- damage --- */

static bool value_good(const struct cairn_pin *pin)
{
    const struct cairn_record_body_disk *b = cairn_pin_body(pin);
    uint64_t checks[CAIRN_PIECES_MAX];
    if (cairn_hash64(b, offsetof(struct cairn_record_body_disk, check)) != b->check)
        return false;
    cairn_hash_pieces(pin->value, pin->value_len, checks);
    return memcmp(checks, b->piece_check,
                  cairn_piece_count(pin->value_len) * sizeof checks[0]) == 0;
}

/* A client that reads in place and found a check wrong says so here; whether it is right, the node
 * sees for itself. */
enum call_flow kv_verify_run(struct call *c)
{
    const struct cairn_key *keys;
    uint32_t count, damaged = 0;
    struct cairn_vault *v = c->node->vault;
    if (!kv_keys(c, 1, &keys, &count))
        return CALL_DONE;
    if (!c->may_wait)
        return CALL_WAITS;
    for (uint32_t i = 0; i < count && cairn_now_ns() < c->deadline_ns; i++) {
        struct cairn_pin pin;
        enum cairn_cause cause;
        if (cairn_vault_pin_now(v, &keys[i], false, &pin, &cause))
            continue;
        if (value_good(&pin)) {
            cairn_vault_unpin(v, &pin, 1);
            continue;
        }
        cairn_vault_pin_reject(v, &pin, CAIRN_CAUSE_CHECKSUM);
        damaged++;
    }
    cairn_out_int(c->out, damaged);
    return CALL_DONE;
}

/* --- statistics --- */

static size_t write_stats(void *arg, char *out, size_t cap)
{
    struct node *n = arg;
    return cairn_vault_stats(n->vault, node_leases_each(n, NULL, NULL), out, cap);
}

struct of_identity {
    struct cairn_key fingerprint;
    bool known;
    struct cairn_identity_figures f;
};

static size_t write_of_identity(void *arg, char *out, size_t cap)
{
    const struct of_identity *i = arg;
    struct text t = {.out = out, .cap = cap};
    text_add(&t, "{\"fingerprint\":\"");
    for (size_t at = 0; at < sizeof i->fingerprint.bytes; at++)
        text_add(&t, "%02x", i->fingerprint.bytes[at]);
    text_add(&t, "\",\"known\":%s,\"held\":%" PRIu64, i->known ? "true" : "false", i->f.held);
    text_add(&t, ",\"put\":{\"stored\":%" PRIu64 ",\"bytes\":%" PRIu64 "}", i->f.puts,
             i->f.put_bytes);
    text_add(&t, ",\"get\":{\"hits\":%" PRIu64 ",\"bytes\":%" PRIu64 "}}", i->f.hits,
             i->f.hit_bytes);
    return t.len;
}

static enum call_flow stats_of_identity(struct call *c)
{
    struct of_identity i = {.known = false};
    if (!kv_key(c, 2, &i.fingerprint))
        return CALL_DONE;
    i.known = cairn_vault_identity_figures(c->node->vault, i.fingerprint.bytes, &i.f) == CAIRN_OK;
    return answer_text(c, write_of_identity, &i);
}

enum call_flow kv_stats_run(struct call *c)
{
    if (c->argc == 1)
        return answer_text(c, write_stats, c->node);
    if (c->argc == 3 && call_is(c, 1, "IDENTITY"))
        return stats_of_identity(c);
    return kv_error(c, "what may follow is IDENTITY and a fingerprint");
}
