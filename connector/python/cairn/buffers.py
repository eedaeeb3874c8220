"""Addresses of caller memory, without copying it."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _native
from .errors import InvalidError


def _of_tensor(tensor: Any, what: str) -> tuple[int, int, int | None]:
    """A torch tensor, of any dtype (bfloat16 has no numpy twin), by its own word: address, bytes,
    and the CUDA stream it is used on if it is on a GPU."""
    if tensor.device.type not in ("cpu", "cuda"):
        raise InvalidError(f"{what} is a tensor on {tensor.device}; only host memory and CUDA "
                           "devices are taken")
    if not tensor.is_contiguous():
        raise InvalidError(f"{what} is a tensor that is not contiguous")
    stream = None
    if tensor.device.type == "cuda":
        import torch
        stream = int(torch.cuda.current_stream(tensor.device).cuda_stream)
    return tensor.data_ptr(), tensor.numel() * tensor.element_size(), stream


def _of_cuda_array(described: dict[str, Any], what: str,
                   writable: bool) -> tuple[int, int, int | None]:
    """What the CUDA Array Interface says (versions 2 and 3). A stream of None is the default one:
    then whatever else writes the memory must be done already."""
    address, read_only = described["data"]
    item = np.dtype(described["typestr"]).itemsize
    size, step = item, item
    strides = described.get("strides")
    for n, stride in zip(reversed(described["shape"]),
                         reversed(strides or [None] * len(described["shape"]))):
        if stride is not None and stride != step and n > 1:
            raise InvalidError(f"{what} is device memory that is not contiguous")
        size, step = size * n, step * n
    if writable and read_only:
        raise InvalidError(f"{what} is read-only; give a writable buffer")
    return int(address), int(size), int(described.get("stream") or 0)


def _of_buffer(buffer: Any, what: str, writable: bool) -> tuple[int, int, Any]:
    view: np.ndarray | None
    if isinstance(buffer, np.ndarray):
        if not buffer.flags.c_contiguous:
            raise InvalidError(f"{what} is an array that is not contiguous")
        if buffer.dtype.hasobject:
            raise InvalidError(f"{what} is an array of Python objects")
        view, size, read_only = buffer, buffer.nbytes, not buffer.flags.writeable
    else:
        try:
            held = memoryview(buffer)
        except TypeError:
            raise TypeError(f"{what} is a {type(buffer).__name__}; give a contiguous buffer: "
                            "bytes, bytearray, memoryview, numpy array or torch tensor") from None
        if not held.c_contiguous:
            raise InvalidError(f"{what} is a memoryview that is not contiguous")
        size, read_only = held.nbytes, held.readonly
        view = np.frombuffer(held, np.uint8) if size else None
    if writable and read_only:
        raise InvalidError(f"{what} is read-only; give a writable buffer")
    return (view.__array_interface__["data"][0] if view is not None else 0), size, view


def runs(values: Any, what: str,
         writable: bool) -> tuple[np.ndarray, np.ndarray, list[int | None], list[Any]]:
    """The scatter/gather lists of a batch, one after another: (iov, runs a value, the CUDA stream
    of each value, None where it is in host memory, what to keep alive while they are used)."""
    rows: list[tuple[int, int]] = []
    counts: list[int] = []
    streams: list[int | None] = []
    keep: list[Any] = []
    if isinstance(values, (bytes, bytearray, memoryview, str)) or not hasattr(values, "__iter__"):
        raise TypeError(f"{what} is a {type(values).__name__}; give a list with one entry a key")
    for i, value in enumerate(values):
        parts = value if isinstance(value, (list, tuple)) else (value,)
        before = len(rows)
        streams_here: set[int | None] = set()
        for j, part in enumerate(parts):
            name = f"{what}[{i}]" if parts is not value else f"{what}[{i}][{j}]"
            stream: int | None = None
            if hasattr(part, "data_ptr") and hasattr(part, "element_size"):
                base, size, stream = _of_tensor(part, name)
            elif hasattr(part, "__cuda_array_interface__"):
                base, size, stream = _of_cuda_array(part.__cuda_array_interface__, name, writable)
            else:
                base, size, view = _of_buffer(part, name, writable)
                keep.append(view)
            if size:
                rows.append((base, size))
                streams_here.add(stream)
        if len(rows) == before:
            raise InvalidError(f"{what}[{i}] has no bytes; a value has at least one")
        if len(streams_here) > 1:
            raise InvalidError(f"{what}[{i}] is of host and GPU memory, or of several streams; a "
                               "value lies in one")
        counts.append(len(rows) - before)
        streams += streams_here
        keep.append(value)
    iov = np.array(rows, np.uint64).reshape(-1, 2)
    return iov, np.array(counts, np.uint32), streams, keep


def spread(batch: np.ndarray, iov: np.ndarray, counts: np.ndarray) -> None:
    """Points each row of a PUT or GET array at its part of one iov array."""
    first = np.zeros(len(counts), np.uint64)
    np.cumsum(counts[:-1], out=first[1:])
    batch["iov"] = iov.ctypes.data + _native.IOV.itemsize * first
    batch["count"] = counts


def value_bytes(iov: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Bytes of each value."""
    ends = np.cumsum(counts)
    total = np.concatenate(([0], np.cumsum(iov[:, 1])))
    return total[ends] - total[ends - counts]
