"""What the machine itself gives, measured beside the demo: the rate of a plain copy and of plain
direct reads."""

from __future__ import annotations

import mmap
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROUNDS = 5
PIECE = 4 << 20
DEPTH = 4


def _pages(size: int) -> mmap.mmap:
    """Memory of huge pages where the system gives them, touched."""
    memory = mmap.mmap(-1, -(-size // PIECE) * PIECE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except (AttributeError, OSError):
        pass
    np.frombuffer(memory, np.uint8)[::4096] = 1
    return memory


def copy_rate(size: int) -> float:
    """Bytes a second of one plain memory copy of this size, both sides cold."""
    source, target = (np.frombuffer(_pages(size), np.uint8)[:size] for _ in range(2))
    rates = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        np.copyto(target, source)
        rates.append(size / (time.perf_counter() - start))
    return statistics.median(rates)


def read_rate(path: Path, size: int) -> float:
    """Bytes a second of direct reads of a file's first bytes, 4 MiB each, 4 at a time."""
    size = min(size, path.stat().st_size) // PIECE * PIECE
    memory = _pages(size)
    view = memoryview(memory)
    handle = os.open(path, os.O_RDONLY | os.O_DIRECT)

    def read(at: int) -> int:
        return os.preadv(handle, [view[at:at + PIECE]], at)

    rates = []
    try:
        with ThreadPoolExecutor(DEPTH) as pool:
            for _ in range(ROUNDS):
                start = time.perf_counter()
                done = sum(pool.map(read, range(0, size, PIECE)))
                rates.append(done / (time.perf_counter() - start))
    finally:
        os.close(handle)
    return statistics.median(rates)
