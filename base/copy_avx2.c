#include "base/copy_checked.h"

const struct cairn_copy_ops cairn_copy_ops_avx2 = {
    .name = "avx2-nt8",
    .flat = lanes_flat,
    .walk = lanes_walk,
    .checked = pieces_checked,
};
