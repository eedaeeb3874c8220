#include "transport/block.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#include "base/mem.h"

/* Bytes of each size that a thread keeps. A sanitizer sees a use after give only if there are
 * none. */
#if defined(__SANITIZE_ADDRESS__)
#define KEEP_BYTES 0u
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define KEEP_BYTES 0u
#endif
#endif
#ifndef KEEP_BYTES
#define KEEP_BYTES (1024u * 1024u)
#endif

struct kept {
    struct kept *next;
};

struct shelf {
    struct kept *first;
    uint32_t count;
};

struct shelves {
    struct shelf out, in;
    bool known; /* to the key that empties them when the thread ends */
};

static _Thread_local struct shelves mine;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_key_t key;
static bool key_ready;

static void shelf_empty(struct shelf *s)
{
    while (s->first) {
        struct kept *k = s->first;
        s->first = k->next;
        free(k);
    }
    s->count = 0;
}

static void thread_ends(void *arg)
{
    struct shelves *s = arg;
    shelf_empty(&s->out);
    shelf_empty(&s->in);
    s->known = false;
}

static void make_key(void)
{
    key_ready = pthread_key_create(&key, thread_ends) == 0;
}

static bool will_be_emptied(void)
{
    if (!mine.known) {
        pthread_once(&once, make_key);
        mine.known = key_ready && pthread_setspecific(key, &mine) == 0;
    }
    return mine.known;
}

static struct shelf *shelf_of(size_t size)
{
    return size == CAIRN_BLOCK_OUT_BYTES ? &mine.out : &mine.in;
}

void *cairn_block_take(size_t size)
{
    struct shelf *s = shelf_of(size);
    struct kept *k = s->first;
    if (!k)
        return cairn_malloc(size);
    s->first = k->next;
    s->count--;
    return k;
}

void cairn_block_give(void *block, size_t size)
{
    struct shelf *s = shelf_of(size);
    if (!block)
        return;
    if (s->count >= KEEP_BYTES / size || !will_be_emptied()) {
        free(block);
        return;
    }
    struct kept *k = block;
    k->next = s->first;
    s->first = k;
    s->count++;
}
