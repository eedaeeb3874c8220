#include <criterion/criterion.h>
#include <malloc.h>
#include <pthread.h>
#include <string.h>

#include "transport/block.h"

enum { COUNT = 200 };

static void *handed[COUNT];

static size_t size_of(int i)
{
    return i % 3 == 0 ? CAIRN_BLOCK_IN_BYTES : CAIRN_BLOCK_OUT_BYTES;
}

static void *take_all(void *arg)
{
    (void)arg;
    for (int i = 0; i < COUNT; i++) {
        handed[i] = cairn_block_take(size_of(i));
        memset(handed[i], i, size_of(i));
    }
    return NULL;
}

static void *give_all(void *arg)
{
    (void)arg;
    for (int i = 0; i < COUNT; i++)
        cairn_block_give(handed[i], size_of(i));
    return NULL;
}

static void in_a_thread(void *(*fn)(void *))
{
    pthread_t t;
    cr_assert_eq(pthread_create(&t, NULL, fn, NULL), 0);
    pthread_join(t, NULL);
}

Test(block, what_one_thread_takes_another_may_give)
{
    for (int round = 0; round < 20; round++) {
        in_a_thread(take_all);
        for (int i = 0; i < COUNT; i++)
            for (size_t b = 0; b < size_of(i); b += 1000)
                cr_assert_eq(((unsigned char *)handed[i])[b], i);
        in_a_thread(give_all);
    }
}

Test(block, a_thread_that_ends_keeps_nothing)
{
    in_a_thread(take_all);
    in_a_thread(give_all);
    size_t before = mallinfo2().uordblks + mallinfo2().hblkhd;
    for (int round = 0; round < 50; round++) {
        in_a_thread(take_all);
        in_a_thread(give_all);
    }
    cr_assert_lt(mallinfo2().uordblks + mallinfo2().hblkhd, before + (1u << 20));
}

Test(block, a_thread_keeps_a_bounded_number)
{
    take_all(NULL);
    size_t held = mallinfo2().uordblks + mallinfo2().hblkhd;
    give_all(NULL);
    size_t kept = mallinfo2().uordblks + mallinfo2().hblkhd;
    cr_assert(held == 0 || held - kept >= COUNT * 16384u / 2, "%zu of %zu", kept, held);
    cairn_block_give(NULL, CAIRN_BLOCK_IN_BYTES);
}
