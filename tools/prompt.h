/* The chunks of a prompt, as the commands that ask about one are told: an identity, a domain, and a
 * file of tokens. */
#ifndef CAIRN_TOOLS_PROMPT_H
#define CAIRN_TOOLS_PROMPT_H

#include "tools/cli.h"

struct prompt_options {
    bool binary;
    char identity[4096], identity_file[1024];
    char domain[64], domain_file[1024];
    char parent[80];
    char extra[8192];
    char tokenizer[1024];
};

#define PROMPT_AT(holder, field) offsetof(holder, prompt) + offsetof(struct prompt_options, field)
#define PROMPT_CAP(field) sizeof(((struct prompt_options *)0)->field)
#define PROMPT_TEXT(holder, field) .offset = PROMPT_AT(holder, field), .max = PROMPT_CAP(field)

/* Rows for a command whose options struct `holder` has a field `prompt`. */
#define PROMPT_IDENTITY_ROWS(holder) \
    {.name = "identity", .type = CAIRN_OPT_STRING, PROMPT_TEXT(holder, identity), \
     .help = "what made the KV: model=x,chunk_tokens=256,..."}, \
    {.name = "identity-file", .type = CAIRN_OPT_STRING, PROMPT_TEXT(holder, identity_file), \
     .help = "the same from a file, one name=value a line"}

#define PROMPT_ROWS(holder) \
    PROMPT_IDENTITY_ROWS(holder), \
    {.name = "domain", .type = CAIRN_OPT_STRING, PROMPT_TEXT(holder, domain), .def = "public", \
     .help = "name of a domain without a secret"}, \
    {.name = "domain-file", .type = CAIRN_OPT_STRING, PROMPT_TEXT(holder, domain_file), \
     .help = "file with the domain key as hexadecimal digits (or set CAIRN_DOMAIN_KEY)"}, \
    {.name = "parent", .type = CAIRN_OPT_STRING, PROMPT_TEXT(holder, parent), \
     .help = "key of the chunk before the first token"}, \
    {.name = "extra", .type = CAIRN_OPT_STRING, PROMPT_TEXT(holder, extra), \
     .help = "CHUNK:HEX,...: bytes in the name of a chunk beside its tokens, chunk 0 first"}, \
    {.name = "tokenizer", .type = CAIRN_OPT_STRING, PROMPT_TEXT(holder, tokenizer), \
     .help = "the file is text: a tokenizer.json to read it with (python3 with tokenizers)"}, \
    {.name = "binary", .type = CAIRN_OPT_BOOL, .offset = PROMPT_AT(holder, binary), .def = "no", \
     .help = "the tokens are little-endian 32-bit numbers, not text"}

#define PROMPT_MORE \
    "Tokens are numbers separated by spaces, lines or commas (a JSON list is fine).\n"

struct prompt {
    cairn_identity *identity;
    struct cairn_key *keys;
    size_t count; /* chunks */
    uint32_t *ids;
    size_t tokens;
};

/* Reads the file and names its chunks. An exit status, after a message unless it is CLI_OK. */
int prompt_read(const char *command, const struct prompt_options *o, const char *path,
                struct prompt *ret);
/* The same for a command of a node, which takes 1 to CAIRN_WIRE_KEYS_MAX keys. */
int prompt_read_for_node(const char *command, const struct prompt_options *o, const char *path,
                         struct prompt *ret);
/* One key (--key) or the file in args: exactly one of them. For the key ret->count is 0. */
int prompt_or_key(const char *command, const char *key_hex, const struct prompt_options *o,
                  char **args, uint32_t count, struct cairn_key *ret_key, struct prompt *ret);
void prompt_free(struct prompt *p);

/* Another way to name the same tokens. */
struct prompt_way {
    const cairn_identity *identity; /* NULL = the prompt's own      */
    bool public_domain, no_extras, no_parent;
    size_t skip;                    /* tokens left out at the start */
};
/* Its keys (to be freed); NULL if there is no such way. No message. */
struct cairn_key *prompt_rename(const struct prompt *p, const struct prompt_options *o,
                                const struct prompt_way *way, size_t *ret_count);
/* The identity alone; NULL after a message. */
cairn_identity *prompt_identity(const char *command, const struct prompt_options *o);

/* tokenize.c: the ids of a text, as the text of numbers; NULL after a message. Own memory. */
char *tokenize(const char *tokenizer, const char *path);

#endif
