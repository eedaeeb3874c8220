#include "tools/cairnd/glob.h"

struct class {
    const unsigned char *at, *end;
    unsigned char byte;
    bool hit;
};

/* One member of a class: a byte, an escaped byte, or a range in either direction. */
static void class_member(struct class *c)
{
    if (*c->at == '\\' && c->end - c->at >= 2) {
        c->hit |= c->at[1] == c->byte;
        c->at += 2;
    } else if (c->end - c->at >= 3 && c->at[1] == '-') {
        unsigned char low = c->at[0], high = c->at[2];
        c->hit |= low <= high ? low <= c->byte && c->byte <= high
                              : high <= c->byte && c->byte <= low;
        c->at += 3;
    } else {
        c->hit |= *c->at == c->byte;
        c->at++;
    }
}

/* `p` is behind the opening bracket; moves it behind the class. */
static bool class_match(const unsigned char **p, const unsigned char *end, unsigned char byte)
{
    struct class c = {.at = *p, .end = end, .byte = byte};
    bool without = c.at < end && *c.at == '^';
    c.at += without;
    while (c.at < end && *c.at != ']')
        class_member(&c);
    *p = c.at < end ? c.at + 1 : end;
    return c.hit != without;
}

/* One byte against what the pattern has at *p, which is not a star; moves *p on. */
static bool byte_match(const unsigned char **p, const unsigned char *end, unsigned char byte)
{
    const unsigned char *at = *p;
    switch (*at) {
    case '?':
        *p = at + 1;
        return true;
    case '[':
        *p = at + 1;
        return class_match(p, end, byte);
    case '\\':
        if (end - at >= 2)
            at++;
        break;
    }
    *p = at + 1;
    return *at == byte;
}

bool glob_match(const char *pattern, size_t pattern_len, const char *text, size_t text_len)
{
    const unsigned char *p = (const unsigned char *)pattern, *p_end = p + pattern_len;
    const unsigned char *t = (const unsigned char *)text, *t_end = t + text_len;
    /* Where to go on when the part behind the last star does not fit here: one byte further. An
     * earlier star need not be tried again, as the last one takes whatever it would have taken. */
    const unsigned char *star_p = NULL, *star_t = NULL;
    /* Redis gives the empty text to no pattern but these. */
    if (text_len == 0)
        return pattern_len == 0 || (pattern_len == 1 && *p == '*');
    for (;;) {
        if (p < p_end && *p == '*') {
            star_p = ++p;
            star_t = t;
            continue;
        }
        if (t == t_end)
            return p == p_end;
        if (p < p_end && byte_match(&p, p_end, *t)) {
            t++;
            continue;
        }
        if (!star_p)
            return false;
        p = star_p;
        t = ++star_t;
    }
}
