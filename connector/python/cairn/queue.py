"""Asynchronous puts and gets: submitted at once, completed in the store's own threads."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import threading
from typing import Any
from collections.abc import Iterator, Sequence

import numpy as np

from . import _native
from ._batch import Batch, get_batch, put_batch
from .errors import BusyError, InvalidError, StateError
from .store import Store

DEPTH = 256  # what the library's queue holds


class Queue:
    """Calls on their way to a store. Safe to use from many threads: submit in one, poll in another.

    Each submit_* returns a tag, never waits for the store, and raises BusyError where `depth` calls
    are submitted and not polled. poll() gives each tag back exactly once. The memory that a call
    names belongs to the queue until then; `keep` is held as long, for the caller's convenience."""

    def __init__(self, store: Store, *, depth: int = DEPTH) -> None:
        self._queue: int | None = None
        if not 1 <= depth <= DEPTH:
            raise InvalidError(f"depth is {depth}; a queue holds 1 to {DEPTH} calls")
        self.store = store
        self._pid = os.getpid()
        self._lock = threading.Condition()
        self._depth = depth
        self._inside = 0
        self._last_tag = 0
        self._pending: dict[int, tuple[Batch, slice, Any]] = {}
        opened = ctypes.c_void_p()
        with store._call() as handle:
            _native.check(_native.lib().cairn_queue_open(handle, ctypes.byref(opened)), "queue")
            self._queue = opened.value
            store._queues.add(self)
        self.fd: int = _native.lib().cairn_queue_fd(opened)
        """Readable exactly while completions wait to be polled."""

    def submit_put_runs(self, keys: np.ndarray, iov: np.ndarray, counts: np.ndarray, *,
                        timeout: float | None = None, keep: Any = None, **more: Any) -> int:
        """Store.put_runs, later. Its identity is not noted: Store.note may wait for a node."""
        return self._submit("cairn_submit_put", put_batch(keys, iov, counts, **more), timeout, keep)

    def submit_get_runs(self, keys: np.ndarray, iov: np.ndarray, counts: np.ndarray, *,
                        timeout: float | None = None, keep: Any = None, **more: Any) -> int:
        """Store.get_runs, later."""
        return self._submit("cairn_submit_get", get_batch(keys, iov, counts, **more), timeout, keep)

    def submit_gets_runs(self, keys: np.ndarray, iov: np.ndarray, counts: np.ndarray,
                         calls: Sequence[int], *, timeout: float | None = None, keep: Any = None,
                         **more: Any) -> list[int]:
        """Several submit_get_runs at once, each with a tag of its own: the first calls[0] of the
        keys are those of the first, and so on. Returns the tags of those that there was room for,
        the first ones."""
        batch = get_batch(keys, iov, counts, **more)
        limit = _native.timeout_ns(timeout, self.store._timeout)
        calls = [int(count) for count in calls]
        ends = list(itertools.accumulate(calls, initial=0))[1:]
        if sum(calls) != len(batch) or min(calls, default=0) < 0:
            raise InvalidError(f"{len(batch)} keys are not those of calls of {list(calls)}")
        with self._call() as queue:
            with self._lock:
                room = max(0, self._depth - len(self._pending))
                tags = [self._last_tag + 1 + i for i in range(min(room, len(ends)))]
                self._last_tag += len(tags)
                for tag, count, end in zip(tags, calls, ends):
                    self._pending[tag] = (batch, slice(end - count, end), keep)
            table = (_native.Call * len(tags))(*zip(calls, tags))
            taken = _native.lib().cairn_submit_gets(queue, batch.address, table, len(tags), limit)
            with self._lock:
                for tag in tags[taken:]:
                    del self._pending[tag]
        return tags[:taken]

    def poll(self, timeout: float = 0.0) -> list[tuple[int, np.ndarray]]:
        """The tags of what is complete, each with the status of its keys. Waits up to timeout
        seconds for the first, and not at all where nothing is on its way."""
        done = (_native.Completion * self._depth)()
        limit = _native.timeout_ns(timeout, 0)
        with self._call() as queue:
            count = _native.lib().cairn_poll(queue, done, self._depth, limit)
            with self._lock:
                taken = [(c.tag, self._pending.pop(c.tag), c.status) for c in done[:count]]
        return [(tag, _outcome(batch.status[rows], status))
                for tag, (batch, rows, _), status in taken]

    def close(self) -> None:
        """Waits for what is on its way, each call for its deadline at most. What was not polled
        is dropped. Closing twice is fine."""
        if os.getpid() != self._pid:
            self._queue = None
            return
        with self._lock:
            queue, self._queue = self._queue, None
            if queue is None:
                return
            while self._inside:
                self._lock.wait()
        _native.lib().cairn_queue_close(queue)
        self._pending.clear()

    def __len__(self) -> int:
        """How many calls are submitted and not polled."""
        return len(self._pending)

    def __enter__(self) -> Queue:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_queue", None) is not None:
            self.close()

    @contextlib.contextmanager
    def _call(self) -> Iterator[int]:
        """Entry of every call: close() waits for those that are inside."""
        if os.getpid() != self._pid:
            raise StateError("the queue was opened before fork; open a store in this process")
        with self._lock:
            if self._queue is None:
                raise StateError("the queue is closed")
            self._inside += 1
        try:
            yield self._queue
        finally:
            with self._lock:
                self._inside -= 1
                self._lock.notify_all()

    def _submit(self, name: str, batch: Batch, timeout: float | None, keep: Any) -> int:
        limit = _native.timeout_ns(timeout, self.store._timeout)
        with self._call() as queue:
            with self._lock:
                if len(self._pending) >= self._depth:
                    raise BusyError(f"queue: {self._depth} calls are submitted and not polled")
                self._last_tag += 1
                tag = self._last_tag
                # Before the call: another thread may poll it before this one comes back.
                self._pending[tag] = (batch, slice(None), keep)
            status = getattr(_native.lib(), name)(queue, batch.address, len(batch), limit, tag)
            if status < 0:
                with self._lock:
                    del self._pending[tag]
                _native.check(status, "submit")
        return tag


def _outcome(keys: np.ndarray, status: int) -> np.ndarray:
    """What was wrong with the whole call is told of each key that it left as it was."""
    if status in (_native.INVAL, _native.STATE):
        keys[keys == _native.MISS] = status
    return keys
