/* Counts what this program asks malloc and its like for, and gives back, in all of its threads.
 * Included once a program. Sanitizers have a malloc of their own: SANITIZED says so. */
#ifndef CAIRN_TESTS_HELPERS_ALLOCATIONS_H
#define CAIRN_TESTS_HELPERS_ALLOCATIONS_H

#include <stdatomic.h>
#include <stdlib.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif !defined(__has_feature)
#define SANITIZED 0
#elif __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#else
#define SANITIZED 0
#endif

static atomic_ulong allocations, frees;

#if !SANITIZED
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void __libc_free(void *p);

void *malloc(size_t n)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    atomic_fetch_add(&allocations, 1);
    return __libc_realloc(p, n);
}

void free(void *p)
{
    atomic_fetch_add(&frees, p != NULL);
    __libc_free(p);
}
#endif

#endif
