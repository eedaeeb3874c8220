/* What nvcc made: the kernels of every architecture, and the text from which drivers make those of
 * later ones. Read as the driver reads it, from the image's own headers. */
#include "base/cuda_config.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC 0xba55ed50u
enum kind { PTX = 1, ELF = 2 };

struct image_head {
    uint32_t magic;
    uint16_t version, head_len;
    uint64_t len; /* of the entries */
};

struct entry_head {
    uint16_t kind, version;
    uint32_t head_len;
    uint64_t len;
    uint32_t compressed_len, unknown;
    uint16_t minor, major;
    uint32_t architecture;
};

static bool has(const char *image, enum kind kind, uint32_t architecture)
{
    struct image_head head;
    struct entry_head entry;
    memcpy(&head, image, sizeof head);
    cr_assert_eq(head.magic, MAGIC);
    const char *at = image + head.head_len, *end = at + head.len;
    for (; at < end; at += entry.head_len + entry.len) {
        memcpy(&entry, at, sizeof entry);
        cr_assert(entry.kind == PTX || entry.kind == ELF, "kind %u", entry.kind);
        cr_assert_gt(entry.len, 0);
        if (entry.kind == kind && entry.architecture == architecture)
            return true;
    }
    cr_assert_eq(at, end);
    return false;
}

/* CAIRN_TEST_KERNELS=yes: there must be some. */
Test(cuda_image, has_every_architecture)
{
    static const uint32_t architectures[] = {75, 80, 86, 89, 90, 100, 103, 120};
    const char *image = cairn_cuda_kernels(), *wanted = getenv("CAIRN_TEST_KERNELS");
    cr_assert(image || !wanted || strcmp(wanted, "yes") != 0,
              "built without kernels: there was no nvcc of CUDA 13");
    if (!image)
        return;
    for (size_t i = 0; i < sizeof architectures / sizeof *architectures; i++)
        cr_expect(has(image, ELF, architectures[i]), "there is no sm_%u", architectures[i]);
    cr_expect(has(image, PTX, 75), "there is no PTX of compute_75");
}
