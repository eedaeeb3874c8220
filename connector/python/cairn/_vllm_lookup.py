"""What is held of a request, asked on threads of their own: a store may take its time, the engine
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
CUT_SECONDS = 0.05  # one for which there was too little room is asked for again, once
SLOW_RATE = 200e6  # bytes a second: a store that reads slower is not waited for
WAITING = 256  # questions that wait for a thread
THREADS = 4  # what is in memory need not wait for what another request reads from disk
PROBE_SECONDS = 1.0
# One that was late is waited for again when it has answered in this share of its time at both ends
# of so many seconds: what answers once a second does so in time now and then.
PROMPT_SHARE, PROMPT_SECONDS = 0.25, 0.5


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
    latest: float = 0.0  # while the store is seen to answer others
    done: threading.Event = field(default_factory=threading.Event)
    answered: float = 0.0
    held: int = 0  # chunks from the start that need no save
    leased: int = 0  # chunks from first
    tail_leased: bool = False
    cut: bool = False  # there was no room to lease all that is held
    lease: Any = None
    dropped: bool = False
    counted: bool = False

    def stale(self) -> bool:
        return self._older(FRESH_SECONDS)

    def may_grow(self) -> bool:
        """There was too little room to lease all that is held, and that is a while ago."""
        return self.cut and self._older(CUT_SECONDS)

    def _older(self, seconds: float) -> bool:
        return self.done.is_set() and time.monotonic() - self.answered > seconds


class Lookups:
    """A few threads a scheduler. `slow` says that the store did not answer in time: then nobody
    waits until it does again."""

    def __init__(self, store: Any, timeout: float, chunk_bytes: int) -> None:
        self.slow = False
        self._prompt = 0.0  # since when a store that was late has answered promptly
        self._late = 0
        self._failed = 0
        self._refused = 0
        self._store = store
        self._timeout = timeout
        self._chunk_bytes = chunk_bytes
        self._lock = threading.Lock()
        self._noted: Names | None = None
        self._waiting = 0
        self._alive = 0.0  # until when the store, which has answered, may be busy with others
        # Questions, and leases to give back: that may wait for the store too.
        self._asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._run, name=f"cairn-lookup-{i}", daemon=True)
                         for i in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def ask(self, question: Question) -> Question:
        question.deadline = time.monotonic() + self._timeout
        question.latest = question.deadline + self._reading(question.last - question.first)
        with self._lock:
            taken = self._waiting < (1 if self.slow else WAITING)
            self._waiting += taken
        if taken:
            self._asked.put(question)
        else:
            question.done.set()  # stale at once
        return question

    def _reading(self, chunks: int) -> float:
        """Seconds that as many may take from a disk."""
        return chunks * self._chunk_bytes / SLOW_RATE

    def wait(self, question: Question, seconds: float) -> bool | None:
        """True: it is answered. None: not yet. False: it took too long, and nothing is held."""
        if question.done.wait(0 if self.slow else seconds):
            return True
        if not self.slow and time.monotonic() < max(question.deadline,
                                                    min(self._alive, question.latest)):
            return None
        if not self.slow:
            logger.warning("cairn: the store did not answer a lookup in %.1f s; requests go on "
                           "without it until it does", self._timeout)
            self._prompt, self.slow = 0.0, True
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
        for _ in self._threads:
            self._asked.put(None)
        end = time.monotonic() + self._timeout
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _run(self) -> None:
        while True:
            try:
                item = self._asked.get(timeout=self._pause() if self.slow else None)
            except queue.Empty:
                self._timed(lambda: probe(self._store))
                continue
            if item is None:
                return
            if not isinstance(item, Question):
                self._release(item)
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

    def _pause(self) -> float:
        return PROMPT_SECONDS if self._prompt else PROBE_SECONDS

    def _release(self, lease: Any) -> None:
        try:
            lease.release()
        except Exception:
            logger.exception("cairn: a lease could not be given back")

    def _timed(self, call: Any) -> None:
        """Asks the store, and sees whether it answers in time. call() may say how many of the
        seconds count."""
        start, took = time.monotonic(), None
        try:
            took = call()
        except (Error, OSError) as why:
            self._has_failed()
            logger.debug("cairn: a lookup failed: %s", why)
        except Exception:
            self._has_failed()
            logger.exception("cairn: a lookup failed")
        now = time.monotonic()
        if self.slow:
            self._after_late(now - start if took is None else took, now)
        if not self.slow and now - start < self._timeout:
            self._seen_alive(now + self._timeout)

    def _after_late(self, seconds: float, now: float) -> None:
        with self._lock:
            if seconds > self._timeout * PROMPT_SHARE:
                self._prompt = 0.0
            elif not self._prompt:
                self._prompt = now
            elif now - self._prompt > PROMPT_SECONDS:
                self.slow = False

    def _seen_alive(self, until: float) -> None:
        """Those who wait behind others have until then."""
        with self._lock:
            self._alive = max(self._alive, until)

    def _has_failed(self) -> None:
        with self._lock:
            self._failed += 1

    def _answer(self, q: Question) -> float:
        """Returns the seconds that it took to hear what is held: to lease it a disk may be read."""
        names = q.chain.names
        if names is not self._noted:
            for identity in names.parts:
                self._store.note(identity)
            self._noted = names
        keys = q.chain.upto(q.last)
        parts = len(names.parts)
        start = time.monotonic()
        before = self._held(keys[:q.first], parts)
        after = self._held(keys[q.first:], parts)
        seconds = time.monotonic() - start
        if q.read and (after or q.tail) and not q.dropped:
            self._take(q, keys[q.first:q.first + after], after == q.last - q.first)
        q.held = before if before < q.first else q.first + after
        if not q.held and refused(self._store):
            with self._lock:
                self._refused += 1
        return seconds

    def _held(self, keys: np.ndarray, parts: int) -> int:
        return self._store.lookup(keys.reshape(-1, 32)) // parts if len(keys) else 0

    def _take(self, q: Question, keys: np.ndarray, whole: bool) -> None:
        chunks = len(keys)
        if q.tail and whole:
            keys = np.concatenate([keys, q.chain.tail(q.tail)])
        if not len(keys):
            return
        limit = self._timeout + self._reading(len(keys))
        q.deadline = time.monotonic() + limit
        self._seen_alive(q.deadline)
        lease = self._store.lease(keys.reshape(-1, 32), ttl=LEASE_SECONDS, timeout=limit)
        held = len(lease) // len(q.chain.names.parts)
        with self._lock:
            kept = held and not q.dropped
            if kept:
                q.lease = lease
                q.leased = min(held, q.last - q.first)
                q.tail_leased = held > q.last - q.first
            q.cut = held < chunks
        if not kept:
            lease.release()
