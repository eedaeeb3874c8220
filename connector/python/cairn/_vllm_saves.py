"""Saves on their way, seen from the scheduler: their blocks stay referenced until every rank has
read them, so that the engine can free, preempt and reuse whatever it likes meanwhile."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ._vllm_step import Transfer

if TYPE_CHECKING:
    from vllm.v1.core.block_pool import BlockPool

REMEMBERED = 1 << 16  # keys


@dataclass
class _Save:
    transfer: Transfer
    pinned: list[int]
    size: int
    ranks: int
    refused: bool = False


class Saves:
    def __init__(self, world: int, limit: int) -> None:
        self.pool: BlockPool | None = None
        self.skipped = 0
        self._world = world
        self._limit = limit
        self._bytes = 0
        self._flying: dict[int, _Save] = {}
        # When the save of a chunk ended; that of one on its way ends in future.
        self._known: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._flying)

    def room(self, chunk_bytes: int) -> int:
        """How many chunks may begin now."""
        return max(0, (self._limit - self._bytes) // chunk_bytes)

    def known(self, keys: np.ndarray, since: float) -> np.ndarray:
        """Which of these chunks are on their way, or were saved since then."""
        return np.fromiter((self._known.get(k[0].tobytes(), 0.0) > since for k in keys), bool,
                           len(keys))

    def begin(self, transfer: Transfer, size: int) -> None:
        assert self.pool is not None
        pinned = np.unique(np.concatenate(transfer.blocks))
        held = pinned[pinned != 0].tolist()
        self.pool.touch([self.pool.blocks[b] for b in held])
        self._flying[transfer.id] = _Save(transfer, held, size, self._world)
        self._bytes += size
        self._remember(transfer, math.inf)
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    def ended(self, ranks: dict[int, int],
              refused: Iterable[int]) -> tuple[list[Transfer], list[Transfer]]:
        """Takes what workers report. Returns the saves that every rank has ended: those that are
        whole, and those that are not."""
        whole, torn = [], []
        for name in refused:
            if name in self._flying:
                self._flying[name].refused = True
        for name, count in ranks.items():
            save = self._flying.get(name)
            if save is None:
                continue
            save.ranks -= count
            if save.ranks <= 0:
                del self._flying[name]
                self._release(save)
                self._remember(save.transfer, 0.0 if save.refused else time.monotonic())
                (torn if save.refused else whole).append(save.transfer)
        return whole, torn

    def hold_alone(self) -> bool:
        """Whether a block is referenced by nobody else any more."""
        assert self.pool is not None
        blocks = self.pool.blocks
        return any(blocks[b].ref_cnt == 1 for s in self._flying.values() for b in s.pinned)

    def _remember(self, transfer: Transfer, when: float) -> None:
        for key in transfer.keys:
            self._known[key[0].tobytes()] = when

    def _release(self, save: _Save) -> None:
        assert self.pool is not None
        self._bytes -= save.size
        # The tail first, as the engine does, so that it reuses heads of prompts last.
        self.pool.free_blocks(self.pool.blocks[b] for b in reversed(save.pinned))
