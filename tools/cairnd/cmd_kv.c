/* The CAIRN.* commands (transport/README.md is their specification): the table, how their arguments
 * are judged, and the short ones among them. */
#include "tools/cairnd/cmd_kv.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "connector/cairn.h"
#include "tools/cairnd/kv_pins.h"
#include "tools/cairnd/kv_prefetch.h"

#define TIMEOUT_MAX_MS (1ull << 40)

/* --- arguments --- */

enum call_flow kv_error(struct call *c, const char *fmt, ...)
{
    char text[256];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    cairn_out_error(c->out, "ERR %s: %s", c->command->name, text);
    return CALL_DONE;
}

bool kv_keys(struct call *c, uint32_t i, const struct cairn_key **ret, uint32_t *ret_count)
{
    const struct cairn_resp_arg *a = &c->args[i];
    if (!a->data || !cairn_wire_count(a->len, sizeof **ret, CAIRN_WIRE_KEYS_MAX, ret_count)) {
        kv_error(c, "keys are 1 to %u times 32 bytes, not %zu bytes", CAIRN_WIRE_KEYS_MAX, a->len);
        return false;
    }
    *ret = (const struct cairn_key *)a->data;
    return true;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool from_hex(const char *text, uint8_t out[32])
{
    for (int i = 0; i < 32; i++) {
        int high = hex_digit(text[2 * i]), low = hex_digit(text[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        out[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}

bool kv_key(struct call *c, uint32_t i, struct cairn_key *ret)
{
    const struct cairn_resp_arg *a = &c->args[i];
    if (a->len == sizeof *ret) {
        memcpy(ret, a->data, sizeof *ret);
        return true;
    }
    if (a->len == 2 * sizeof *ret && from_hex(a->data, ret->bytes))
        return true;
    kv_error(c, "a key or fingerprint is 32 bytes or 64 hexadecimal digits, not %zu bytes", a->len);
    return false;
}

bool kv_millis(struct call *c, uint32_t i, uint64_t *ret_ns)
{
    int64_t ms;
    if (!call_int(c, i, &ms) || ms < 0) {
        kv_error(c, "argument %u is a time in whole milliseconds, 0 or more", i);
        return false;
    }
    *ret_ns = ((uint64_t)ms < TIMEOUT_MAX_MS ? (uint64_t)ms : TIMEOUT_MAX_MS) * CAIRN_NS_PER_MS;
    return true;
}

bool kv_deadline(struct call *c, uint32_t i, uint64_t *ret_ns)
{
    uint64_t timeout;
    if (!kv_millis(c, i, &timeout))
        return false;
    /* Counted from when the command came, whether or not it had to wait for a worker since. */
    uint64_t since = atomic_load_explicit(&c->client->active_ns, memory_order_relaxed);
    uint64_t deadline = (since ? since : cairn_now_ns()) + timeout;
    *ret_ns = deadline < c->deadline_ns ? deadline : c->deadline_ns;
    return true;
}

/* --- short commands --- */

static enum call_flow hello_run(struct call *c)
{
    const struct client *cl = c->client;
    int64_t version;
    if (!call_int(c, 1, &version) || version != CAIRN_WIRE_VERSION)
        return kv_error(c, "this node speaks version %u of the CAIRN commands: give the client and "
                        "the node the same release", CAIRN_WIRE_VERSION);
    if (c->argc != 2 && !(c->argc == 4 && call_is(c, 2, "TENANT")))
        return kv_error(c, "what may follow the version is TENANT and a name");
    if (c->argc == 4 && !call_is(c, 3, "default"))
        return kv_error(c, "this node has one tenant, \"default\": give that, or none");
    cairn_out_map(c->out, 7);
    cairn_out_text(c->out, "protocol");
    cairn_out_int(c->out, CAIRN_WIRE_VERSION);
    cairn_out_text(c->out, "version");
    cairn_out_text(c->out, CAIRN_VERSION_STRING);
    cairn_out_text(c->out, "run_id");
    cairn_out_text(c->out, c->node->run_id);
    cairn_out_text(c->out, "value_max");
    cairn_out_int(c->out, (int64_t)cairn_vault_value_max(c->node->vault));
    cairn_out_text(c->out, "tenant");
    cairn_out_text(c->out, "default");
    cairn_out_text(c->out, "local");
    cairn_out_bool(c->out, cl->local);
    cairn_out_text(c->out, "shared");
    cairn_out_bool(c->out, cl->local && cl->shared_ok && c->node->kv->arena_status == CAIRN_OK);
    return CALL_DONE;
}

static enum call_flow lookup_run(struct call *c)
{
    const struct cairn_key *keys;
    uint32_t count;
    if (!kv_keys(c, 1, &keys, &count))
        return CALL_DONE;
    size_t resident, held = cairn_vault_lookup_where(c->node->vault, keys, count, &resident);
    uint32_t tokens = c->client->shared ? c->client->shared->chunk_tokens : 0;
    atomic_fetch_add_explicit(&c->node->stats.kv_tokens_asked, (uint64_t)tokens * count,
                              memory_order_relaxed);
    atomic_fetch_add_explicit(&c->node->stats.kv_tokens_ram, (uint64_t)tokens * resident,
                              memory_order_relaxed);
    atomic_fetch_add_explicit(&c->node->stats.kv_tokens_disk, (uint64_t)tokens * (held - resident),
                              memory_order_relaxed);
    cairn_out_array(c->out, 2);
    cairn_out_int(c->out, (int64_t)held);
    cairn_out_int(c->out, (int64_t)resident);
    return CALL_DONE;
}

static enum call_flow length_run(struct call *c)
{
    struct cairn_key key;
    if (kv_key(c, 1, &key))
        cairn_out_int(c->out, (int64_t)cairn_vault_value_len(c->node->vault, &key));
    return CALL_DONE;
}

static enum call_flow side_run(struct call *c)
{
    uint64_t deadline;
    struct cairn_key key;
    if (!kv_deadline(c, 1, &deadline) || !kv_key(c, 2, &key))
        return CALL_DONE;
    struct cairn_vault *v = c->node->vault;
    if (!c->may_wait) {
        struct cairn_pin pin;
        enum cairn_cause cause;
        cairn_status st = cairn_vault_pin_now(v, &key, false, &pin, &cause);
        if (st == CAIRN_OK)
            cairn_vault_unpin(v, &pin, 1);
        if (st != CAIRN_MISS)
            return CALL_WAITS; /* all of the value may be verified first */
    }
    uint32_t len = CAIRN_SIDE_MAX;
    void *side = malloc(len);
    cairn_status st = side ? cairn_vault_side(v, &key, side, &len, deadline) : CAIRN_NOMEM;
    cairn_out_array(c->out, 2);
    cairn_out_int(c->out, st);
    if (st == CAIRN_OK)
        cairn_out_bulk(c->out, side, len);
    else
        cairn_out_null(c->out);
    free(side);
    return CALL_DONE;
}

static enum call_flow delete_run(struct call *c)
{
    uint64_t deadline;
    const struct cairn_key *keys;
    uint32_t count;
    if (!kv_deadline(c, 1, &deadline) || !kv_keys(c, 2, &keys, &count))
        return CALL_DONE;
    struct cairn_vault *v = c->node->vault;
    cairn_status first = CAIRN_INPROGRESS;
    /* Of several the first could be gone already when the second turns out to have to wait. */
    if (!c->may_wait && (count > 1 || (first = cairn_vault_delete_now(v, keys)) ==
                                          CAIRN_INPROGRESS))
        return CALL_WAITS;
    cairn_status *results = malloc(count * sizeof *results);
    if (!results)
        return kv_error(c, "no memory");
    results[0] = first;
    if (c->may_wait)
        cairn_vault_delete(v, keys, count, deadline, results);
    cairn_out_array(c->out, count);
    for (uint32_t i = 0; i < count; i++) {
        if (results[i] == CAIRN_OK)
            kv_pins_remove(c->node->kv->pins, &keys[i]);
        cairn_out_int(c->out, results[i]);
    }
    free(results);
    return CALL_DONE;
}

static enum call_flow flush_run(struct call *c)
{
    uint64_t deadline;
    if (!kv_deadline(c, 1, &deadline))
        return CALL_DONE;
    if (!c->may_wait)
        return CALL_WAITS;
    cairn_out_int(c->out, cairn_vault_flush(c->node->vault, deadline));
    return CALL_DONE;
}

/* How many of the keys fit into a quarter of the RAM: more would push each other out. */
static uint32_t prefetch_fits(struct node *n, const struct cairn_key *keys, uint32_t count)
{
    uint64_t left = n->o.ram / 4;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t len = cairn_vault_value_len(n->vault, &keys[i]);
        if (len > left)
            return i;
        left -= len;
    }
    return count;
}

static enum call_flow prefetch_run(struct call *c)
{
    const struct cairn_key *keys;
    uint32_t count;
    if (!kv_keys(c, 1, &keys, &count))
        return CALL_DONE;
    size_t resident, held = cairn_vault_lookup_where(c->node->vault, keys, count, &resident);
    uint32_t wanted = prefetch_fits(c->node, keys + resident, (uint32_t)(held - resident));
    if (wanted && !kv_prefetch_add(c->node->kv->prefetch, keys + resident, wanted))
        wanted = 0;
    cairn_out_int(c->out, wanted);
    return CALL_DONE;
}

const struct command commands_kv[] = {
    {"CAIRN.HELLO", -2, COMMAND_FAST, 0, hello_run,
     "Agrees on the version of these commands and says what the node serves.", 0, 0, 0, 0},
    {"CAIRN.ATTACH", 2, COMMAND_LOCAL, 0, kv_attach_run,
     "Hands over the arena, to be read in place, and a window to write values into.", 0, 0, 0, 0},
    {"CAIRN.WINDOW", 2, COMMAND_LOCAL, 0, kv_window_run,
     "Hands over a window to write values into, if the attached client has none.", 0, 0, 0, 0},
    {"CAIRN.LOOKUP", 2, COMMAND_FAST, 0, lookup_run,
     "Counts the keys held from the start, and those of them in RAM.", 0, 0, 0, 0},
    {"CAIRN.GET", 3, 0, 0, kv_get_run, "Gets values or ranges of them, with their checks.",
     0, 0, 0, 0},
    {"CAIRN.PUT", 6, COMMAND_WRITE | COMMAND_PAYLOAD | COMMAND_REFUSED, 5, kv_put_run,
     "Stores a value that has the checks given.", 0, 0, 0, 4},
    {"CAIRN.LEASE", 4, COMMAND_FAST, 0, kv_lease_run,
     "Pins the keys held from the start and says where they lie.", 0, 0, 0, 0},
    {"CAIRN.RENEW", 3, COMMAND_FAST, 0, kv_renew_run, "Lets a lease end later.", 0, 0, 0, 0},
    {"CAIRN.RELEASE", -2, COMMAND_FAST, 0, kv_release_run, "Ends leases.", 0, 0, 0, 0},
    {"CAIRN.LENGTH", 2, COMMAND_FAST, 0, length_run, "Bytes of a value, 0 if it is not held.",
     0, 0, 0, 0},
    {"CAIRN.SIDE", 3, 0, 0, side_run, "Gets the side records of a value.", 0, 0, 0, 0},
    {"CAIRN.DELETE", 3, COMMAND_WRITE, 0, delete_run, "Deletes values for good.", 0, 0, 0, 0},
    {"CAIRN.FLUSH", 2, COMMAND_WRITE, 0, flush_run, "Makes durable what was stored before.",
     0, 0, 0, 0},
    {"CAIRN.PREFETCH", 2, COMMAND_FAST, 0, prefetch_run, "Brings values from disk into RAM.",
     0, 0, 0, 0},
    {"CAIRN.PIN", 2, COMMAND_ADMIN, 0, kv_pin_run, "Keeps values in RAM until they are unpinned.",
     0, 0, 0, 0},
    {"CAIRN.UNPIN", 2, COMMAND_ADMIN, 0, kv_unpin_run, "Undoes CAIRN.PIN.", 0, 0, 0, 0},
    {"CAIRN.CLEAR", -2, COMMAND_WRITE | COMMAND_ADMIN | COMMAND_LONG, 0, kv_clear_run,
     "Deletes all chunks, those of an identity, or those that follow a key.", 0, 0, 0, 0},
    {"CAIRN.IDENTITY", 2, COMMAND_WRITE, 0, kv_identity_run, "Remembers an identity for CAIRN.WHY.",
     0, 0, 0, 0},
    {"CAIRN.WHY", 2, 0, 0, kv_why_run, "Names the nearest identity seen and what differs.",
     0, 0, 0, 0},
    {"CAIRN.WHYMISS", 2, COMMAND_FAST, 0, kv_whymiss_run,
     "Says whether a key is held, and else what dropped it.", 0, 0, 0, 0},
    {"CAIRN.VERIFY", 2, 0, 0, kv_verify_run,
     "Reads what is in RAM of the keys and drops damaged copies.", 0, 0, 0, 0},
    {"CAIRN.STATS", -1, 0, 0, kv_stats_run, "Statistics of the store or of one identity, as JSON.",
     0, 0, 0, 0},
    {0},
};
