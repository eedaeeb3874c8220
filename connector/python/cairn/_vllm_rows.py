"""Transfers as the rows of one put or get: a row is a rank's part of a chunk in one KV group, its
runs are the pages of its blocks. Built by numpy a transfer and group at a time: no Python a block
or layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ._vllm_pages import GroupPages
from ._vllm_step import Transfer


@dataclass
class Rows:
    """The rows of a transfer in one group. chunks: which chunk each is."""

    chunks: np.ndarray
    keys: np.ndarray
    parents: np.ndarray
    fingerprints: np.ndarray
    iov: np.ndarray
    counts: np.ndarray
    offsets: np.ndarray  # where in the value it begins; -1: it is the whole value
    size: int = 0

    def __len__(self) -> int:
        return len(self.chunks)


@dataclass
class Part:
    """What this rank has in one KV group."""

    number: int  # of this part in a chunk
    pages: GroupPages
    blocks: int  # of a full chunk
    fingerprint: bytes

    def rows(self, of: Transfer, group: int, load: bool) -> Rows:
        """A load takes what is behind leading null blocks; a save takes no chunk with one."""
        blocks = np.asarray(of.blocks[group], np.int64)
        chunk, at = self._places(of, blocks)
        real = blocks != 0
        full = np.bincount(chunk, minlength=len(of.keys))
        held = np.bincount(chunk[real], minlength=len(of.keys))
        skip = full - held
        if load and (real != (at >= skip[chunk])).any():
            raise ValueError(f"transfer {of.id}: a null block stands behind a real one")
        taken = np.flatnonzero(held if load else held == full)
        wanted = np.isin(chunk, taken) & real
        keys = of.keys[:, self.number]
        return Rows(
            chunks=taken, keys=keys[taken], parents=self._parents(of, keys)[taken],
            fingerprints=np.tile(np.frombuffer(self.fingerprint, np.uint8), (len(taken), 1)),
            iov=self.pages.runs(blocks[wanted]),
            counts=held[taken] * self.pages.runs_per_block,
            offsets=np.where(skip > 0, skip * self.pages.page_bytes, -1)[taken],
            size=int(wanted.sum()) * self.pages.page_bytes)

    def _places(self, of: Transfer, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each block its chunk, and its place there."""
        count = len(of.keys)
        if not (count - 1) * self.blocks < len(blocks) <= count * self.blocks:
            raise ValueError(f"transfer {of.id}: {len(blocks)} blocks are not {count} chunks of "
                             f"{self.blocks}")
        place = np.arange(len(blocks))
        return place // self.blocks, place % self.blocks

    def _parents(self, of: Transfer, keys: np.ndarray) -> np.ndarray:
        parents = np.zeros_like(keys)
        parents[1:] = keys[:-1]
        if of.parents is not None:
            parents[0] = of.parents[self.number]
        return parents


def together(rows: list[Rows]) -> Rows:
    return Rows(*(np.concatenate([getattr(r, name) for r in rows])
                  for name in ("chunks", "keys", "parents", "fingerprints", "iov", "counts",
                               "offsets")),
                size=sum(r.size for r in rows))
