"""What the two halves of the vLLM connector tell each other: the scheduler's half plans, a worker's
half (one a rank) moves bytes. Everything here is pickled on its way, and knows no vLLM class but
the three bases.

A chunk is `chunk_tokens` tokens, a whole number of blocks of every KV group. Its value has one part
a rank and group, each under a key of its own; it is held only when every part is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vllm.distributed.kv_transfer.kv_connector.v1.base import (KVConnectorHandshakeMetadata,
                                                               KVConnectorMetadata,
                                                               KVConnectorWorkerMetadata)


@dataclass
class Transfer:
    """A run of chunks of one request, in or out of the engine's blocks.

    keys: (chunks, world * groups, 32) uint8; part p of a chunk belongs to rank p // groups and
    group p % groups. parents: (world * groups, 32), the keys before keys[0], or None at the start
    of a prompt (saves). blocks: a list with one int64 array a group, the blocks of the chunks in
    order, chunk after chunk; only a tail (a last chunk that is not full) has fewer. Block 0 is the
    null block: a load skips it (only leading ones: of a part, or of whole parts), a save does not
    store a part that has one. wait: a load that the step's forward needs (synchronous)."""

    id: int
    request: str
    keys: np.ndarray
    blocks: list[np.ndarray]
    parents: np.ndarray | None = None
    wait: bool = False


@dataclass
class Step(KVConnectorMetadata):
    """What one engine step begins. epoch names the weights: a new one renames everything. number
    counts steps. since: the last step before which weights were written over, as far as the
    scheduler has heard. fresh: before this step the engine holds nothing that was computed."""

    loads: list[Transfer] = field(default_factory=list)
    saves: list[Transfer] = field(default_factory=list)
    drop: list[int] = field(default_factory=list)  # saves not begun yet that must not begin
    fence: list[int] = field(default_factory=list)  # saves to end before their blocks are written
    epoch: str = ""
    number: int = 0
    since: int = 0
    fresh: bool = False
    idle: bool = False  # nothing is computed: a worker may wait a little for what is in flight


@dataclass
class Report(KVConnectorWorkerMetadata):
    """What has ended since the last one. ended: transfer id -> ranks that touch its blocks no more.
    failed: requests of loads that did not arrive whole. refused: saves that a rank did not begin
    (its bound was reached). described: in a rank's first report, since inside a MultiConnector
    what another connector tells at start may come instead. stale: the last step before which
    weights were written over, until a step says that it is known."""

    ended: dict[int, int] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    refused: set[int] = field(default_factory=set)
    described: list[Described] = field(default_factory=list)
    stale: int = 0

    def aggregate(self, other: KVConnectorWorkerMetadata) -> Report:
        assert isinstance(other, Report)
        ended = dict(self.ended)
        for name, ranks in other.ended.items():
            ended[name] = ended.get(name, 0) + ranks
        return Report(ended, self.failed | other.failed, self.refused | other.refused,
                      self.described + other.described, max(self.stale, other.stale))


@dataclass
class Described(KVConnectorHandshakeMetadata):
    """A rank's pages, told once when its KV cache is allocated. fields: the identity of each
    group's parts (without the epoch). why_not: this engine runs without the cache, and why. link:
    the socket of the store that this worker owns (embedded), where the scheduler is another
    process."""

    rank: int
    fields: list[dict[str, Any]] = field(default_factory=list)
    chunk_tokens: int = 0
    block_tokens: list[int] = field(default_factory=list)
    page_bytes: list[int] = field(default_factory=list)  # of one block, all layers of the group
    copy_rate: float = 0.0  # bytes a second, measured at start
    why_not: str | None = None
    link: str | None = None
