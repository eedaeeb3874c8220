"""Batches of puts and gets as the library takes them, built by numpy: no Python a key."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _native
from .buffers import spread
from .errors import InvalidError
from .identity import Identity, key_array


# The CUDA stream that the memory of all values, or of each, is used on; None: host memory.
Streams = int | Sequence[int | None] | None


def _address(data: bytes) -> int:
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


class Batch:
    """An array of cairn_put or cairn_get, and what its pointers point into."""

    def __init__(self, dtype: np.dtype, keys: np.ndarray, iov: np.ndarray, counts: np.ndarray,
                 identity: Identity | None, fingerprints: np.ndarray | None,
                 cuda_stream: Streams) -> None:
        self.rows = np.zeros(len(keys), dtype)
        self.rows["key"] = keys
        self.identity = identity
        self._iov = np.ascontiguousarray(iov, np.uint64)
        self._side: Sequence[bytes] | None = None
        if len(keys):
            spread(self.rows, self._iov, np.asarray(counts))
        if isinstance(cuda_stream, int):
            self.rows["mem"], self.rows["stream"] = _native.MEM_CUDA, cuda_stream
        elif cuda_stream is not None and any(s is not None for s in cuda_stream):
            self.rows["mem"] = [0 if s is None else _native.MEM_CUDA for s in cuda_stream]
            self.rows["stream"] = [s or 0 for s in cuda_stream]
        self.rows["fingerprint"] = _address(identity.fingerprint) if identity else 0
        if fingerprints is not None:
            self._fingerprints = key_array(fingerprints, "fingerprints")
            self.rows["fingerprint"] = (self._fingerprints.ctypes.data
                                        + 32 * np.arange(len(keys), dtype=np.uint64))
        # What the library never comes to is a miss, not a success.
        self.rows["status"] = _native.MISS

    def sides(self, side: Sequence[bytes]) -> None:
        self._side = side
        self.rows["side"] = [_address(s) if s else 0 for s in side]
        self.rows["side_len"] = [len(s) for s in side]

    @property
    def address(self) -> int:
        return int(self.rows.ctypes.data)

    @property
    def status(self) -> np.ndarray:
        status: np.ndarray = self.rows["status"]
        return status

    def __len__(self) -> int:
        return len(self.rows)


def put_batch(keys: np.ndarray, iov: np.ndarray, counts: np.ndarray, *,
              parent: bytes | None = None, parents: np.ndarray | None = None,
              replace: bool = False, expires: float | None = None,
              side: Sequence[bytes] | None = None, identity: Identity | None = None,
              fingerprints: np.ndarray | None = None, cuda_stream: Streams = None) -> Batch:
    """fingerprints: (n, 32) uint8, where the keys are of several identities."""
    batch = Batch(_native.PUT, keys, iov, counts, identity, fingerprints, cuda_stream)
    rows = batch.rows
    if len(batch) == 0:
        return batch
    if parents is not None:
        rows["parent"] = parents
    else:
        rows["parent"][1:] = keys[:-1]
        if parent is not None:
            rows["parent"][0] = key_array([parent], "parent")[0]
    rows["flags"] = _native.PUT_REPLACE if replace else 0
    if expires is not None:
        if not expires > 0:
            raise InvalidError(f"expires is {expires}; give a time after 1970")
        rows["expires_ns"] = int(expires * 1e9)
    if side is not None:
        batch.sides(side)
    return batch


def get_batch(keys: np.ndarray, iov: np.ndarray, counts: np.ndarray, *, offsets: Any = None,
              identity: Identity | None = None,
              fingerprints: np.ndarray | None = None, cuda_stream: Streams = None) -> Batch:
    batch = Batch(_native.GET, keys, iov, counts, identity, fingerprints, cuda_stream)
    if offsets is not None and len(batch):
        starts = np.asarray(offsets)
        if starts.dtype.kind not in "iu" or starts.shape not in ((), (len(batch),)):
            raise InvalidError("offsets is one number of bytes, or a list with one a key")
        batch.rows["offset"] = np.maximum(starts, 0)
        batch.rows["flags"] = np.where(starts < 0, 0, _native.GET_RANGE)
    return batch
