"""The engine's KV cache as opaque pages: of each block, the bytes that every layer of a KV group
has for it, whatever lies between them. A layer's cache may be a tensor of its own or a view of one
allocation, with the blocks or the planes outermost, padded or dense."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import Unsupported

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Layer:
    """Where block 0 of a layer is (runs of offset and length), and how far the next block is."""

    address: int
    stride: int
    runs: list[tuple[int, int]]
    described: str


def _dims(cache: torch.Tensor, num_blocks: int) -> tuple[int, list[tuple[int, int]]]:
    """The stride of the blocks, and size and stride of every other dimension, in elements. Engines
    may split a block into several for their kernels: these are then a dimension of it."""
    shape, strides = list(cache.shape), list(cache.stride())
    for at in range(min(2, len(shape))):
        if shape[at] and shape[at] % num_blocks == 0 and (at == 0 or shape[0] == 2):
            split = shape[at] // num_blocks
            inner = [(split, strides[at])] if split > 1 else []
            inner += [(n, s) for i, (n, s) in enumerate(zip(shape, strides)) if i != at]
            return strides[at] * split, inner
    raise Unsupported(f"a cache of shape {tuple(shape)} has no dimension of {num_blocks} blocks")


def _apart(dims: list[tuple[int, int]]) -> bool:
    """No two places of these dimensions are the same."""
    reach = 0
    for size, stride in sorted((d for d in dims if d[0] > 1), key=lambda d: d[1]):
        if stride <= reach:
            return False
        reach += (size - 1) * stride
    return True


def _runs(dims: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """Offset and length in bytes of each dense run, by address."""
    run, offsets = size, [0]
    for count, stride in sorted((d for d in dims if d[0] > 1), key=lambda d: d[1]):
        if stride * size == run and offsets == [0]:
            run *= count
        else:
            offsets = [i * stride * size + o for i in range(count) for o in offsets]
    return [(o, run) for o in sorted(offsets)]


def _packed(dims: list[tuple[int, int]]) -> list[int]:
    """The strides as they are in the value, where nothing lies between the bytes."""
    packed, step = [0] * len(dims), 1
    for at in sorted(range(len(dims)), key=lambda i: dims[i][1]):
        if dims[at][0] > 1:
            packed[at] = step
            step *= dims[at][0]
    return packed


def _layer(name: str, cache: torch.Tensor, num_blocks: int) -> _Layer:
    if not hasattr(cache, "data_ptr") or cache.device.type not in ("cpu", "cuda"):
        raise Unsupported(f"the cache of {name} is neither a CPU tensor nor a CUDA one")
    stride, dims = _dims(cache, num_blocks)
    if not _apart([*dims, (num_blocks, stride)]):
        raise Unsupported(f"the blocks of {name} share bytes: shape {tuple(cache.shape)}, "
                          f"strides {cache.stride()}")
    size = cache.element_size()
    dtype = str(cache.dtype).removeprefix("torch.")
    return _Layer(cache.data_ptr(), stride * size, _runs(dims, size),
                  f"{name} {dtype} {[n for n, _ in dims]} {_packed(dims)}")


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts layer 10 behind layer 9."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]


class GroupPages:
    """The pages of one KV group, and what a value of them looks like (`layout`): block after block,
    in each the layers by name."""

    def __init__(self, caches: dict[str, torch.Tensor], num_blocks: int) -> None:
        if not caches:
            raise Unsupported("a KV group of this rank has no layer")
        self._keep = list(caches.values())
        self.num_blocks = num_blocks
        self.layers = sorted(caches, key=_natural)
        first = caches[self.layers[0]]
        self.dtype = str(first.dtype).removeprefix("torch.")
        self.device = first.device
        if any(cache.device != self.device for cache in caches.values()):
            raise Unsupported("the layers of a KV group are on several devices")
        made = [_layer(name, caches[name], num_blocks) for name in self.layers]
        rows: list[tuple[int, int, int]] = []
        seen: set[int] = set()
        for layer in made:
            if layer.address in seen:  # layers may share one cache
                continue
            seen.add(layer.address)
            for offset, length in layer.runs:
                at = layer.address + offset
                if rows and rows[-1][0] + rows[-1][2] == at and rows[-1][1] == layer.stride:
                    rows[-1] = (rows[-1][0], layer.stride, rows[-1][2] + length)
                else:
                    rows.append((at, layer.stride, length))
        self.addresses = seen
        self._base, self._stride, self._len = (np.array(c, np.int64) for c in zip(*rows))
        self.page_bytes = int(self._len.sum())
        self.layout = (f"{made[0].described.split(' ', 1)[1]} x {len(seen)} layers "
                       f"{digest([m.described for m in made])}")

    @property
    def runs_per_block(self) -> int:
        return len(self._base)

    def stream(self) -> int | None:
        """The CUDA stream that the engine queues its work on now; None where pages are the host's.
        What is on it already is before a load and in a save; the library waits for that, no thread
        of the engine does."""
        if self.device.type == "cpu":
            return None
        import torch
        return int(torch.cuda.current_stream(self.device).cuda_stream)

    def runs(self, blocks: np.ndarray) -> np.ndarray:
        """Address and length of every run of these blocks, block after block."""
        if len(blocks) and not 0 <= int(blocks.min()) <= int(blocks.max()) < self.num_blocks:
            raise ValueError(f"a block is not one of the engine's {self.num_blocks}")
        out = np.empty((len(blocks), len(self._base), 2), np.uint64)
        out[:, :, 0] = self._base + blocks[:, None] * self._stride
        out[:, :, 1] = self._len
        return out.reshape(-1, 2)


def group_pages(caches: dict[str, torch.Tensor], groups: list[list[str]],
                num_blocks: int) -> list[GroupPages]:
    """The pages of each group of layer names."""
    missing = [name for group in groups for name in group if name not in caches]
    if missing:
        raise Unsupported(f"{missing[0]} has no cache of its own")
    pages = [GroupPages({n: caches[n] for n in group}, num_blocks) for group in groups]
    if len({p.device for p in pages}) > 1:
        raise Unsupported("the KV groups are on several devices")
    known = set().union(*(p.addresses for p in pages))
    for name, cache in caches.items():
        # A layer of no group must be one that reads another's cache.
        if not hasattr(cache, "data_ptr") or cache.data_ptr() not in known:
            raise Unsupported(f"{name} is in no KV group and has a cache of its own")
    return pages


def digest(parts: list[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
