#include "base/types.h"

#include <errno.h>

const char *cairn_status_name(cairn_status s)
{
    switch (s) {
    case CAIRN_OK: return "ok";
    case CAIRN_INPROGRESS: return "in progress";
    case CAIRN_MISS: return "miss";
    case CAIRN_EXISTS: return "exists";
    case CAIRN_BUSY: return "busy";
    case CAIRN_TIMEOUT: return "timeout";
    case CAIRN_CANCELED: return "canceled";
    case CAIRN_NOMEM: return "out of memory";
    case CAIRN_NOSPACE: return "no space";
    case CAIRN_TOOBIG: return "too big";
    case CAIRN_CORRUPT: return "corrupt";
    case CAIRN_VERSION: return "wrong version";
    case CAIRN_IO: return "input/output error";
    case CAIRN_UNSUPPORTED: return "unsupported";
    case CAIRN_PERM: return "not permitted";
    case CAIRN_LOCKED: return "locked";
    case CAIRN_NOTFOUND: return "not found";
    case CAIRN_INVAL: return "invalid argument";
    case CAIRN_STATE: return "wrong state";
    }
    return "unknown status";
}

cairn_status cairn_status_from_errno(int err)
{
    /* Not negated with '-': INT_MIN would overflow. */
    switch (err < 0 ? (int)(0u - (unsigned)err) : err) {
    case 0: return CAIRN_OK;
    case EAGAIN:
    case EBUSY: return CAIRN_BUSY;
    case ETIMEDOUT:
    case ETIME: return CAIRN_TIMEOUT;
    case ECANCELED: return CAIRN_CANCELED;
    case ENOMEM: return CAIRN_NOMEM;
    case ENOSPC:
    case EDQUOT: return CAIRN_NOSPACE;
    case E2BIG:
    case EFBIG: return CAIRN_TOOBIG;
    case EEXIST: return CAIRN_EXISTS;
    case ENOSYS:
    case EOPNOTSUPP: return CAIRN_UNSUPPORTED;
    case EPERM:
    case EACCES:
    case EROFS: return CAIRN_PERM;
    case ENOENT:
    case ENOTDIR:
    case ENODEV:
    case ENXIO: return CAIRN_NOTFOUND;
    case EINVAL:
    case EBADF:
    case EFAULT:
    case ENAMETOOLONG: return CAIRN_INVAL;
    default: return CAIRN_IO;
    }
}
