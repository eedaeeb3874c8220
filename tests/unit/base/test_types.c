#include <criterion/criterion.h>
#include <errno.h>
#include <limits.h>
#include <string.h>

#include "base/clock.h"
#include "base/types.h"

static const cairn_status all[] = {
    CAIRN_OK,      CAIRN_INPROGRESS, CAIRN_MISS,    CAIRN_EXISTS, CAIRN_BUSY,
    CAIRN_TIMEOUT, CAIRN_CANCELED,   CAIRN_NOMEM,   CAIRN_NOSPACE, CAIRN_TOOBIG,
    CAIRN_CORRUPT, CAIRN_VERSION,    CAIRN_IO,      CAIRN_UNSUPPORTED, CAIRN_PERM,
    CAIRN_LOCKED,  CAIRN_NOTFOUND,   CAIRN_INVAL,   CAIRN_STATE,
};

Test(types, every_status_has_a_name_of_its_own)
{
    size_t count = sizeof(all) / sizeof(all[0]);
    for (size_t i = 0; i < count; i++) {
        cr_assert_str_neq(cairn_status_name(all[i]), "unknown status");
        for (size_t j = 0; j < i; j++)
            cr_assert_str_neq(cairn_status_name(all[i]), cairn_status_name(all[j]));
    }
    cr_assert_str_eq(cairn_status_name((cairn_status)-1000), "unknown status");
    cr_assert_str_eq(cairn_status_name((cairn_status)1000), "unknown status");
}

Test(types, errno_of_either_sign)
{
    static const struct {
        int err;
        cairn_status want;
    } known[] = {{0, CAIRN_OK},           {ENOMEM, CAIRN_NOMEM},    {ENOSPC, CAIRN_NOSPACE},
                 {EIO, CAIRN_IO},         {EACCES, CAIRN_PERM},     {EROFS, CAIRN_PERM},
                 {ENOENT, CAIRN_NOTFOUND}, {EINVAL, CAIRN_INVAL},   {ETIMEDOUT, CAIRN_TIMEOUT},
                 {EAGAIN, CAIRN_BUSY},    {ECANCELED, CAIRN_CANCELED}, {EFBIG, CAIRN_TOOBIG},
                 {EOPNOTSUPP, CAIRN_UNSUPPORTED}, {INT_MAX, CAIRN_IO}};
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        cr_assert_eq(cairn_status_from_errno(known[i].err), known[i].want, "%d", known[i].err);
        cr_assert_eq(cairn_status_from_errno(-known[i].err), known[i].want, "-%d", known[i].err);
    }
    cr_assert_eq(cairn_status_from_errno(INT_MIN), CAIRN_IO);
}

Test(types, bytes_of_a_list)
{
    char a[3], b[5];
    struct cairn_iov iov[] = {{a, 3}, {NULL, 0}, {b, 5}};
    struct cairn_sgl list = {.iov = iov, .count = 3};
    cr_assert_eq(cairn_sgl_bytes(&list), 8);
    list.count = 0;
    cr_assert_eq(cairn_sgl_bytes(&list), 0);
}

Test(types, deadlines_do_not_wrap)
{
    cr_assert_eq(cairn_deadline_ns(UINT64_MAX), UINT64_MAX);
    cr_assert_eq(cairn_deadline_ns(UINT64_MAX - 1), UINT64_MAX);
    uint64_t before = cairn_now_ns(), deadline = cairn_deadline_ns(CAIRN_NS_PER_S);
    cr_assert_geq(deadline, before + CAIRN_NS_PER_S);
    cr_assert_leq(deadline, cairn_now_ns() + CAIRN_NS_PER_S);
    struct timespec t = cairn_timespec(3 * CAIRN_NS_PER_S + 7);
    cr_assert_eq(t.tv_sec, 3);
    cr_assert_eq(t.tv_nsec, 7);
}
