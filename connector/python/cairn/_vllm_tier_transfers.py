"""Rows of the primary tier on their way to or from the store, in the store's own threads. vLLM may
reuse the rows of a job once it is told that the job is finished, so that is said only when the
library has given each of its calls back; every call has a deadline, so that it does."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from . import _native
from .errors import BusyError, Error, TimeoutError
from .identity import Identity
from .queue import Queue
from .store import Store

CALL_BYTES = 32 << 20
STORE_CALLS = 2  # at once, of the store's WORKERS threads: loads find one free
WORKERS = 4
SLOWEST = 200e6  # bytes a second; a load that is slower than this is worth less than computing


class Rows:
    """The primary tier's memory: row i is one value."""

    def __init__(self, view: memoryview) -> None:
        array = np.frombuffer(view, np.uint8)
        assert view.strides is not None
        self.count, self.bytes = view.shape[0], view.strides[0]
        self._base = int(array.ctypes.data)

    def runs(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), 2), np.uint64)
        out[:, 0] = self._base + rows * self.bytes
        out[:, 1] = self.bytes
        return out


@dataclass(eq=False)
class Job:
    id: int
    offload_keys: list[bytes]
    request: str
    load: bool
    keys: np.ndarray
    rows: np.ndarray
    parents: np.ndarray | None
    identity: Identity
    status: np.ndarray = field(init=False)
    submitted: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    waited: float = 0.0  # the longest call
    limit: float = 0.0
    calls: int = 0

    def __post_init__(self) -> None:
        self.status = np.full(len(self.keys), _native.MISS, np.int32)

    @property
    def good(self) -> np.ndarray:
        good: np.ndarray = self.status == _native.OK
        return good if self.load else good | (self.status == _native.EXISTS)

    @property
    def late(self) -> bool:
        """The store was slow, whatever it says: a node that is stalled is a miss too."""
        return bool((self.status == TimeoutError.status).any()) or (
            self.waited > 0.8 * self.limit and not bool(self.good.all()))


@dataclass(slots=True)
class Call:
    job: Job
    part: slice
    begun: float = 0.0


class Transfers:
    """submit() and poll() never wait. What cannot be begun is finished at once, as failed."""

    def __init__(self, store: Store, rows: Rows, timeout: float) -> None:
        self._queue = Queue(store)
        self._rows, self._timeout = rows, timeout
        self._per_call = max(1, CALL_BYTES // rows.bytes)
        self._calls: dict[int, Call] = {}
        self._loads: deque[Call] = deque()
        self._stores: deque[Call] = deque()
        self._finished: list[Job] = []
        self._store_calls = self._store_rows = self._load_bytes = 0

    def submit(self, job: Job) -> bool:
        """False: too much is on its way, nothing was begun."""
        count, size = len(job.keys), len(job.keys) * self._rows.bytes
        # What is being stored is pinned: half of the tier stays for what is to be loaded.
        if not job.load and self._store_rows + count > self._rows.count // 2:
            return False
        parts = [slice(at, min(at + self._per_call, count))
                 for at in range(0, count, self._per_call)]
        job.calls = len(parts)
        if job.load:
            self._load_bytes += size
            job.limit = self._timeout + self._load_bytes / SLOWEST
            self._loads.extend(Call(job, part) for part in parts)
        else:
            self._store_rows += count
            job.limit = self._timeout + min(size, CALL_BYTES) / SLOWEST
            self._stores.extend(Call(job, part) for part in parts)
        if not parts:
            self._end(job)
        self._begin()
        return True

    def poll(self, timeout: float = 0.0) -> list[Job]:
        for tag, status in self._queue.poll(timeout):
            call = self._calls.pop(tag)
            call.job.status[call.part] = status
            if not call.job.load:
                self._store_calls -= 1
            self._call_ended(call)
        self._begin()
        finished, self._finished = self._finished, []
        return finished

    def give_up_stores(self) -> None:
        """Those that were not begun are not."""
        waiting, self._stores = self._stores, deque()
        for call in waiting:
            self._call_ended(call)

    def drain(self) -> list[Job]:
        """Returns when the library touches no row any more."""
        self.give_up_stores()
        finished = self.poll()
        while self._calls or self._loads:
            finished += self.poll(1.0)
        return finished

    def close(self) -> None:
        self._queue.close()

    def __len__(self) -> int:
        return len(self._calls) + len(self._loads) + len(self._stores)

    def _begin(self) -> None:
        while self._loads and self._call(self._loads[0]):
            self._loads.popleft()
        while self._stores and self._store_calls < STORE_CALLS and self._call(self._stores[0]):
            self._stores.popleft()

    def _call(self, call: Call) -> bool:
        """False: not now. The time of a load counts from its job's submission, for a request
        waits for it; that of a store from here."""
        job, part = call.job, call.part
        call.begun = time.monotonic()
        left = job.limit - (call.begun - job.submitted if job.load else 0.0)
        runs, ones = self._rows.runs(job.rows[part]), np.ones(part.stop - part.start, np.uint32)
        submit = self._queue.submit_get_runs if job.load else self._queue.submit_put_runs
        more = {} if job.parents is None else {"parents": job.parents[part]}
        try:
            tag = submit(job.keys[part], runs, ones, timeout=max(0.0, left),
                         identity=job.identity, **more)
        except BusyError:
            return False
        except Error:  # closed: nothing was begun
            self._call_ended(call)
            return True
        self._calls[tag] = call
        self._store_calls += not job.load
        return True

    def _call_ended(self, call: Call) -> None:
        job = call.job
        if call.begun:
            job.waited = max(job.waited, time.monotonic() - call.begun)
        job.calls -= 1
        if job.calls == 0:
            self._end(job)

    def _end(self, job: Job) -> None:
        job.seconds = time.monotonic() - job.submitted
        if job.load:
            self._load_bytes -= len(job.keys) * self._rows.bytes
        else:
            self._store_rows -= len(job.keys)
        self._finished.append(job)
