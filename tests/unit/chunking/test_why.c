#include "chunking/why.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/helpers/json.h"

#define SEEN_MAX 8

static cairn_identity *made[SEEN_MAX];
static struct cairn_canon seen[SEEN_MAX];
static size_t seen_count;

static cairn_identity *make(const struct cairn_field *f, size_t n)
{
    cairn_identity *id = NULL;
    char err[200];
    cr_assert_eq(cairn_identity_create(f, n, &id, err, sizeof err), CAIRN_OK, "%s", err);
    return id;
}

static void see(const struct cairn_field *f, size_t n)
{
    made[seen_count] = make(f, n);
    seen[seen_count].bytes = cairn_identity_canonical(made[seen_count], &seen[seen_count].len);
    seen_count++;
}

#define SEE(...) \
    see((struct cairn_field[]){__VA_ARGS__}, \
        sizeof((struct cairn_field[]){__VA_ARGS__}) / sizeof(struct cairn_field))

static struct json *why(const struct cairn_field *f, size_t n)
{
    cairn_identity *id = make(f, n);
    size_t len = cairn_identity_why_json(id, seen, seen_count, NULL, 0);
    char *text = malloc(len + 1);
    cr_assert_eq(cairn_identity_why_json(id, seen, seen_count, text, len + 1), len);
    cr_assert_eq(strlen(text), len);
    char *part = malloc(len + 1);
    for (size_t cap = 1; cap <= len; cap++) {
        memset(part, '#', len + 1);
        cr_assert_eq(cairn_identity_why_json(id, seen, seen_count, part, cap), len);
        cr_assert_eq(strlen(part), cap - 1);
        cr_assert_arr_eq(part, text, cap - 1);
        cr_assert_eq(part[cap], '#');
    }
    struct json *j = json_parse(text);
    cr_assert_not_null(j, "not JSON: %s", text);
    free(part);
    free(text);
    cairn_identity_destroy(id);
    return j;
}

#define WHY(...) \
    why((struct cairn_field[]){__VA_ARGS__}, \
        sizeof((struct cairn_field[]){__VA_ARGS__}) / sizeof(struct cairn_field))

static const struct json *differ(const struct json *j, size_t i)
{
    const struct json *d = json_get(j, "differs")->kids;
    while (i-- > 0)
        d = d->next;
    return d;
}

static void done(struct json *j)
{
    json_free(j);
    while (seen_count > 0)
        cairn_identity_destroy(made[--seen_count]);
}

Test(why, nothing_seen)
{
    struct json *j = WHY({"model", "m"}, {"chunk_tokens", "4"});
    cr_assert_eq(json_number(j, "seen", -1), 0);
    cr_assert_not(json_get(j, "known")->truth);
    cr_assert_eq(json_get(j, "nearest")->kind, JSON_NULL);
    cr_assert_eq(json_get(j, "differs")->count, 0u);
    cr_assert_str_eq(json_text(json_get(j, "fields"), "chunk_tokens"), "4");
    cr_assert_eq(strlen(json_text(j, "fingerprint")), 64u);
    done(j);
}

Test(why, known)
{
    SEE({"model", "m"}, {"chunk_tokens", "4"});
    SEE({"model", "m"}, {"chunk_tokens", "8"});
    struct json *j = WHY({"chunk_tokens", "04"}, {"model", "m"});
    cr_assert(json_get(j, "known")->truth);
    cr_assert_eq(json_number(j, "seen", -1), 2);
    cr_assert_eq(json_get(j, "differs")->count, 1u);
    cr_assert_str_eq(json_text(differ(j, 0), "nearest"), "8");
    done(j);
}

Test(why, known_alone)
{
    SEE({"model", "m"}, {"chunk_tokens", "4"});
    struct json *j = WHY({"model", "m"}, {"chunk_tokens", "4"});
    cr_assert(json_get(j, "known")->truth);
    cr_assert_eq(json_get(j, "nearest")->kind, JSON_NULL);
    cr_assert_eq(json_get(j, "differs")->count, 0u);
    done(j);
}

Test(why, names_each_field_that_differs)
{
    SEE({"model", "m"}, {"chunk_tokens", "4"}, {"isa", "avx2"}, {"gone", "1"}, {"same", "s"});
    struct json *j = WHY({"model", "m"}, {"chunk_tokens", "8"}, {"isa", "avx512"}, {"zz", "new"},
                         {"same", "s"});
    cr_assert_not(json_get(j, "known")->truth);
    cr_assert_eq(json_get(j, "differs")->count, 4u);
    cr_assert_str_eq(json_text(differ(j, 0), "field"), "chunk_tokens");
    cr_assert_str_eq(json_text(differ(j, 0), "this"), "8");
    cr_assert_str_eq(json_text(differ(j, 0), "nearest"), "4");
    cr_assert_str_eq(json_text(differ(j, 1), "field"), "gone");
    cr_assert_eq(json_get(differ(j, 1), "this")->kind, JSON_NULL);
    cr_assert_str_eq(json_text(differ(j, 1), "nearest"), "1");
    cr_assert_str_eq(json_text(differ(j, 2), "field"), "isa");
    cr_assert_str_eq(json_text(differ(j, 3), "field"), "zz");
    cr_assert_str_eq(json_text(differ(j, 3), "this"), "new");
    cr_assert_eq(json_get(differ(j, 3), "nearest")->kind, JSON_NULL);
    done(j);
}

Test(why, nearest_has_the_fewest_differences)
{
    SEE({"model", "m"}, {"chunk_tokens", "4"}, {"a", "1"}, {"b", "1"}, {"c", "1"});
    SEE({"model", "m"}, {"chunk_tokens", "4"}, {"a", "2"}, {"b", "1"}, {"c", "1"});
    SEE({"model", "m"}, {"chunk_tokens", "4"}, {"a", "1"}, {"b", "2"}, {"c", "2"});
    struct json *j = WHY({"model", "m"}, {"chunk_tokens", "4"}, {"a", "2"}, {"b", "1"}, {"c", "2"});
    cr_assert_eq(json_get(j, "differs")->count, 1u);
    cr_assert_str_eq(json_text(differ(j, 0), "field"), "c");
    done(j);
}

Test(why, another_model_is_farther_than_anything_else)
{
    struct cairn_field far[62] = {{"model", "m"}, {"chunk_tokens", "8"}};
    char names[60][8];
    for (size_t i = 0; i < 60; i++) {
        snprintf(names[i], sizeof names[i], "f%zu", i);
        far[i + 2] = (struct cairn_field){names[i], "x"};
    }
    see(far, 62);
    SEE({"model", "n"}, {"chunk_tokens", "4"});
    struct json *j = WHY({"model", "m"}, {"chunk_tokens", "4"});
    cr_assert_str_eq(json_text(json_get(json_get(j, "nearest"), "fields"), "model"), "m");
    cr_assert_eq(json_get(j, "differs")->count, 61u);
    done(j);
}

Test(why, of_equals_the_last_one)
{
    SEE({"model", "m"}, {"chunk_tokens", "4"}, {"a", "first"});
    SEE({"model", "m"}, {"chunk_tokens", "4"}, {"a", "last"});
    struct json *j = WHY({"model", "m"}, {"chunk_tokens", "4"}, {"a", "mine"});
    cr_assert_str_eq(json_text(differ(j, 0), "nearest"), "last");
    done(j);
}

Test(why, what_is_no_identity_is_not_seen)
{
    SEE({"model", "m"}, {"chunk_tokens", "4"});
    seen[1] = (struct cairn_canon){"CAIRNID\1garbage", 15};
    seen[2] = (struct cairn_canon){NULL, 0};
    seen[3] = (struct cairn_canon){seen[0].bytes, seen[0].len - 1};
    cairn_identity *id = made[0];
    char text[2048];
    cairn_identity_why_json(id, seen, 4, text, sizeof text);
    struct json *j = json_parse(text);
    cr_assert_not_null(j);
    cr_assert_eq(json_number(j, "seen", -1), 1);
    done(j);
}

Test(why, text_is_escaped)
{
    static const char nasty[] = "q\" b\\ n\n t\t e\x1b d\x7f u\xc3\xa9 \xf0\x9f\xaa\xa8";
    SEE({"model", "m"}, {"chunk_tokens", "4"}, {"na\"me\\", nasty});
    struct json *j = WHY({"model", nasty}, {"chunk_tokens", "4"});
    cr_assert_str_eq(json_text(json_get(j, "fields"), "model"), nasty);
    cr_assert_str_eq(json_text(json_get(json_get(j, "nearest"), "fields"), "na\"me\\"), nasty);
    done(j);
}

Test(why, values_of_secrets_are_not_shown)
{
    static const char *const hidden[] = {"salt", "tenant_salt", "API-Key", "my.secret", "token"};
    static const char *const shown[] = {"salty", "monkey", "tokenizer", "note", "secrets"};
    for (size_t i = 0; i < 5; i++) {
        struct json *j = WHY({"model", "m"}, {"chunk_tokens", "4"}, {hidden[i], "hunter2"});
        cr_assert_str_eq(json_text(json_get(j, "fields"), hidden[i]), "(hidden)");
        json_free(j);
        j = WHY({"model", "m"}, {"chunk_tokens", "4"}, {shown[i], "plain"});
        cr_assert_str_eq(json_text(json_get(j, "fields"), shown[i]), "plain");
        json_free(j);
    }
    SEE({"model", "m"}, {"chunk_tokens", "4"}, {"salt", "theirs"});
    struct json *j = WHY({"model", "m"}, {"chunk_tokens", "4"}, {"salt", "mine"});
    cr_assert_eq(json_get(j, "differs")->count, 1u);
    cr_assert_str_eq(json_text(differ(j, 0), "this"), "(hidden)");
    cr_assert_str_eq(json_text(differ(j, 0), "nearest"), "(hidden)");
    done(j);
}
