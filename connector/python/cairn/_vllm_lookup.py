"""What is held of a request, asked on a thread of its own: a store may take its time, the engine
does not. What is promised to the engine is leased first, so that it is there when it is loaded."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from vllm.logger import init_logger

from ._vllm_keys import Chain, Names
from ._vllm_store import probe, refused
from .errors import Error

logger = init_logger("vllm.cairn")

LEASE_SECONDS = 60.0
FRESH_SECONDS = 20.0  # an older answer is asked for again before it is promised
SLOW_RATE = 200e6  # bytes a second: a store that reads slower is not waited for
WAITING = 256  # questions that wait for the thread
PROBE_SECONDS = 1.0


@dataclass(eq=False)
class Question:
    """How much of the chunks from `first` to `last` is held? Those are leased; `tail` asks for
    the partial chunk of that many tokens too."""

    chain: Chain
    first: int
    last: int
    read: bool = True
    tail: int = 0
    deadline: float = 0.0
    done: threading.Event = field(default_factory=threading.Event)
    answered: float = 0.0
    held: int = 0  # chunks from the start that need no save
    leased: int = 0  # chunks from first
    tail_leased: bool = False
    lease: Any = None
    dropped: bool = False
    counted: bool = False

    def stale(self) -> bool:
        return self.done.is_set() and time.monotonic() - self.answered > FRESH_SECONDS


class Lookups:
    """One thread a scheduler. `slow` says that the store did not answer in time: then nobody waits
    until it does again."""

    def __init__(self, store: Any, timeout: float, chunk_bytes: int) -> None:
        self.slow = False
        self._late = 0
        self._failed = 0
        self._refused = 0
        self._store = store
        self._timeout = timeout
        self._chunk_bytes = chunk_bytes
        self._lock = threading.Lock()
        self._noted: Names | None = None
        self._waiting = 0
        # Questions, and leases to give back: that may wait for the store too.
        self._asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="cairn-lookup", daemon=True)
        self._thread.start()

    def ask(self, question: Question) -> Question:
        question.deadline = time.monotonic() + self._timeout
        with self._lock:
            taken = self._waiting < (1 if self.slow else WAITING)
            self._waiting += taken
        if taken:
            self._asked.put(question)
        else:
            question.answered = time.monotonic()
            question.done.set()
        return question

    def wait(self, question: Question, seconds: float) -> bool | None:
        """True: it is answered. None: not yet. False: it took too long, and nothing is held."""
        if question.done.wait(0 if self.slow else seconds):
            return True
        if not self.slow and time.monotonic() < question.deadline:
            return None
        if not self.slow:
            logger.warning("cairn: the store did not answer a lookup in %.1f s; requests go on "
                           "without it until it does", self._timeout)
            self.slow = True
        with self._lock:
            self._late += 1
        self.drop(question)
        return False

    def take_counts(self) -> tuple[int, int, int]:
        """How many requests went on without an answer, how many calls of the store ended with an
        error, and how many requests were asked for in vain of a node that turns this engine away,
        since the last time."""
        with self._lock:
            counts = self._late, self._failed, self._refused
            self._late = self._failed = self._refused = 0
        return counts

    def drop(self, question: Question) -> None:
        """The answer is not needed any more, or no longer."""
        with self._lock:
            question.dropped = True
            lease, question.lease = question.lease, None
        if lease is not None:
            self._asked.put(lease)

    def close(self) -> None:
        self._asked.put(None)
        self._thread.join(self._timeout)

    def _run(self) -> None:
        while True:
            try:
                item = self._asked.get(timeout=PROBE_SECONDS if self.slow else None)
            except queue.Empty:
                self._timed(lambda: probe(self._store))
                continue
            if item is None:
                return
            if not isinstance(item, Question):
                self._timed(item.release)
                continue
            if not item.dropped:
                self._timed(lambda: self._answer(item))
            elif self.slow:
                # Requests that come one after another leave no pause in which to ask.
                self._timed(lambda: probe(self._store))
            item.answered = time.monotonic()
            item.done.set()
            with self._lock:
                self._waiting -= 1

    def _timed(self, call: Any) -> None:
        start = time.monotonic()
        try:
            call()
        except (Error, OSError) as why:
            self._has_failed()
            logger.debug("cairn: a lookup failed: %s", why)
        except Exception:
            self._has_failed()
            logger.exception("cairn: a lookup failed")
        if time.monotonic() - start < self._timeout:
            self.slow = False

    def _has_failed(self) -> None:
        with self._lock:
            self._failed += 1

    def _answer(self, q: Question) -> None:
        names = q.chain.names
        if names is not self._noted:
            for identity in names.parts:
                self._store.note(identity)
            self._noted = names
        keys = q.chain.upto(q.last)
        parts = len(names.parts)
        before = self._held(keys[:q.first], parts)
        after = self._held(keys[q.first:], parts)
        if q.read and (after or q.tail):
            self._take(q, keys[q.first:q.first + after], after == q.last - q.first)
        q.held = before if before < q.first else q.first + after
        if not q.held and refused(self._store):
            with self._lock:
                self._refused += 1

    def _held(self, keys: np.ndarray, parts: int) -> int:
        return self._store.lookup(keys.reshape(-1, 32)) // parts if len(keys) else 0

    def _take(self, q: Question, keys: np.ndarray, whole: bool) -> None:
        if q.tail and whole:
            keys = np.concatenate([keys, q.chain.tail(q.tail)])
        if not len(keys):
            return
        limit = self._timeout + len(keys) * self._chunk_bytes / SLOW_RATE
        q.deadline = time.monotonic() + limit
        lease = self._store.lease(keys.reshape(-1, 32), ttl=LEASE_SECONDS, timeout=limit)
        held = len(lease) // len(q.chain.names.parts)
        with self._lock:
            kept = held and not q.dropped
            if kept:
                q.lease = lease
                q.leased = min(held, q.last - q.first)
                q.tail_leased = held > q.last - q.first
        if not kept:
            lease.release()
