/* The registry of commands, and what handlers read their arguments with. */
#include <criterion/criterion.h>
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "tools/cairnd/node.h"

#define ARGS_MAX 8

struct rig {
    struct node node;
    struct client client;
    struct cairn_resp_arg args[ARGS_MAX];
    struct cairn_out out;
    struct call call;
};

/* Commands in the argument list end with NULL. */
static struct call *call_of(struct rig *r, const char *const *words)
{
    memset(r, 0, sizeof *r);
    cairn_out_open(&r->out);
    r->out.proto = 2;
    r->client.node = &r->node;
    r->call = (struct call){.client = &r->client, .node = &r->node, .args = r->args,
                            .out = &r->out};
    for (; words[r->call.argc]; r->call.argc++)
        r->args[r->call.argc] = (struct cairn_resp_arg){(char *)(uintptr_t)words[r->call.argc],
                                                        strlen(words[r->call.argc])};
    return &r->call;
}

static void check_one(void *arg, const struct command *c)
{
    int *count = arg;
    ++*count;
    char lower[64];
    size_t len = strlen(c->name);
    cr_assert(len > 0 && len < 32, "%s", c->name);
    for (size_t i = 0; i <= len; i++) {
        cr_assert(!islower((unsigned char)c->name[i]), "%s", c->name);
        lower[i] = (char)tolower((unsigned char)c->name[i]);
    }
    cr_assert_eq(command_find(c->name, len), c, "%s", c->name);
    cr_assert_eq(command_find(lower, len), c, "%s", c->name);
    cr_assert_null(command_find(lower, len - 1), "%s", c->name);
    cr_assert(c->run && c->help && c->arity != 0, "%s", c->name);
    cr_assert_eq(c->help[strlen(c->help) - 1], '.', "%s: %s", c->name, c->help);
    cr_assert(!(c->flags & COMMAND_PAYLOAD) || c->payload > c->side, "%s", c->name);
    cr_assert(!(c->flags & COMMAND_PAYLOAD) || (int)c->payload < abs(c->arity), "%s", c->name);
    cr_assert(!c->key_first || c->key_step > 0, "%s", c->name);
}

Test(node_commands, each_is_found_by_any_case_and_is_whole)
{
    int count = 0;
    command_each(check_one, &count);
    cr_assert(count > 60, "%d", count);
}

Test(node_commands, what_is_none_is_not_found)
{
    static const char long_name[] = "GETGETGETGETGETGETGETGETGETGETGETGET";
    cr_assert_null(command_find("", 0));
    cr_assert_null(command_find("GET\0", 4));
    cr_assert_null(command_find("GE", 2));
    cr_assert_null(command_find("G\xe5T", 3));
    cr_assert_null(command_find(long_name, sizeof long_name - 1));
    cr_assert_null(command_find("CAIRN.", 6));
    cr_assert_not_null(command_find("gEt", 3));
}

Test(node_commands, whole_numbers_only)
{
    static const struct {
        const char *text;
        bool good;
        int64_t value;
    } cases[] = {
        {"0", true, 0}, {"7", true, 7}, {"-7", true, -7}, {"9223372036854775807", true, INT64_MAX},
        {"-9223372036854775808", true, INT64_MIN}, {"9223372036854775808", false, 0},
        {"-9223372036854775809", false, 0}, {"99999999999999999999999", false, 0},
        {"", false, 0}, {"-", false, 0}, {"+1", false, 0}, {" 1", false, 0}, {"1 ", false, 0},
        {"01", false, 0}, {"-0", false, 0}, {"1.0", false, 0}, {"0x1", false, 0}, {"1e3", false, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct rig r;
        int64_t n = 42;
        struct call *c = call_of(&r, (const char *const[]){"X", cases[i].text, NULL});
        cr_assert_eq(call_int(c, 1, &n), cases[i].good, "'%s'", cases[i].text);
        cr_assert_eq(n, cases[i].good ? cases[i].value : 42, "'%s'", cases[i].text);
    }
}

Test(node_commands, words_of_any_case)
{
    struct rig r;
    struct call *c = call_of(&r, (const char *const[]){"X", "keepTTL", "KEEPTTLS", "", NULL});
    cr_assert(call_is(c, 1, "KEEPTTL"));
    cr_assert_not(call_is(c, 2, "KEEPTTL"));
    cr_assert_not(call_is(c, 3, "KEEPTTL"));
    cr_assert(call_is(c, 3, ""));
}

Test(node_commands, a_received_room_is_taken_once)
{
    static const struct command payload = {.name = "P", .flags = COMMAND_PAYLOAD, .payload = 2};
    static const struct command none = {.name = "N"};
    char memory[8] = "value";
    struct rig r;
    struct cairn_room room = {0};
    struct call *c = call_of(&r, (const char *const[]){"P", "k", memory, NULL});
    c->command = &payload;
    cr_assert_not(call_take_room(c, &room));
    r.client.room = (struct cairn_room){.slot = 3, .value = memory, .len = 5};
    c->command = &none;
    cr_assert_not(call_take_room(c, &room));
    c->command = &payload;
    cr_assert(call_take_room(c, &room));
    cr_assert_eq(room.slot, 3);
    cr_assert_null(r.client.room.value);
    struct cairn_room again;
    cr_assert_not(call_take_room(c, &again));
    call_return_room(c, &room);
    cr_assert(call_take_room(c, &again));
    cr_assert_eq(again.value, memory);
    r.args[1].data = memory;
    r.args[2].data = r.args[0].data;
    call_return_room(c, &room);
    cr_assert_not(call_take_room(c, &again), "the room is another argument's");
}

Test(node_commands, errors_are_counted)
{
    struct rig r;
    struct call *c = call_of(&r, (const char *const[]){"NOSUCH", NULL});
    cr_assert_eq(command_unknown(c), CALL_DONE);
    cr_assert_eq(call_error(c, "ERR x"), CALL_DONE);
    cr_assert(r.out.queued > 0);
    cairn_out_close(&r.out);
}
