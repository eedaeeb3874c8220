/* Memory of connections in two sizes. What a connection does not need at the moment goes to a short
 * list of the thread: thousands of idle ones hold none, and a busy one asks malloc for none. */
#ifndef CAIRN_TRANSPORT_BLOCK_H
#define CAIRN_TRANSPORT_BLOCK_H

#include "base/types.h"

#define CAIRN_BLOCK_OUT_BYTES (16u * 1024u)
#define CAIRN_BLOCK_IN_BYTES (64u * 1024u)

/* `size` is one of the two; NULL when there is no memory. Any thread may give what another took. */
void *cairn_block_take(size_t size);
void cairn_block_give(void *block, size_t size);

#endif
