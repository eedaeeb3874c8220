"""Is a row held? Asked by a thread of its own, once a step and for all of its keys: the scheduler
never waits for a store, and no request waits for one longer than a deadline."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field
from collections.abc import Callable, Collection, Sequence

# A lookup says how far a list is held. Behind a hole the rest is asked again, so many times: what
# vLLM wants to know of a chain is where it ends, of a sliding window its last few rows.
HOLES = 16
GROUP_BYTES = 4  # at the end of vLLM's key of a row
PROBE = bytes(32 + GROUP_BYTES)
FRESH_SECONDS = 1.0
IDLE_SECONDS = 1.0
PAUSE_FIRST, PAUSE_LAST = 0.25, 2.0


@dataclass(slots=True, eq=False)
class Verdict:
    """Its thread writes `held` once; the scheduler reads it, and looks away after the deadline."""

    asked: float
    held: bool | None = None
    requests: set[str] = field(default_factory=set)


class Breaker:
    """Open: whoever asks is answered "no" at once. Slowness opens it, a quick answer closes it."""

    def __init__(self) -> None:
        self._closed = threading.Event()
        self._closed.set()

    @property
    def open(self) -> bool:
        return not self._closed.is_set()

    def trip(self) -> None:
        self._closed.clear()

    def reset(self) -> None:
        self._closed.set()


class Lookups:
    """held_of(keys) -> how many from the start are held; it may take as long as it likes.
    idle() is called by the thread from time to time: what has to be done and may take long."""

    def __init__(self, held_of: Callable[[Sequence[bytes]], int], idle: Callable[[], None],
                 deadline: float, breaker: Breaker) -> None:
        self._held_of, self._idle = held_of, idle  # neither may raise
        self._deadline, self._breaker = deadline, breaker
        self._verdicts: dict[bytes, Verdict] = {}
        self._keys_of: dict[str, set[bytes]] = {}
        self._failed: dict[str, set[bytes]] = {}
        self._asking: list[tuple[bytes, str, Verdict]] = []
        self._batches: queue.SimpleQueue[list[tuple[bytes, str, Verdict]] | None] = (
            queue.SimpleQueue())
        self._ended = threading.Event()
        self._call_began: float | None = None
        self.late = 0
        self._thread = threading.Thread(target=self._serve, name="cairn-tier", daemon=True)
        self._thread.start()

    # --- the scheduler's side ---

    def ask(self, key: bytes, request: str) -> bool | None:
        """None: not known yet."""
        if self._breaker.open or key in self._failed.get(request, ()):
            return False
        now = time.monotonic()
        verdict = self._verdicts.get(key)
        if verdict is None or self._stale(verdict, request, now):
            verdict = self._begin(key, request, now)
        elif verdict.held is None and now - verdict.asked > self._deadline:
            # What comes later is written to a verdict that nobody reads.
            began = self._call_began
            if began is not None and now - began > self._deadline:
                self._breaker.trip()
            self.late += 1
            self._verdicts[key] = Verdict(now, False, verdict.requests)
            return False
        verdict.requests.add(request)
        self._keys_of.setdefault(request, set()).add(key)
        return verdict.held

    @staticmethod
    def _stale(verdict: Verdict, request: str, now: float) -> bool:
        """Somebody may have stored it since another request was told that it is not there."""
        return (verdict.held is False and request not in verdict.requests
                and now - verdict.asked > FRESH_SECONDS)

    def _begin(self, key: bytes, request: str, now: float) -> Verdict:
        before = self._verdicts.get(key)
        verdict = self._verdicts[key] = Verdict(now, None, before.requests if before else set())
        self._asking.append((key, request, verdict))
        return verdict

    def flush(self) -> None:
        if self._asking:
            batch, self._asking = self._asking, []
            self._batches.put(batch)

    def failed(self, keys: Collection[bytes], request: str) -> None:
        """A load found nothing. This request is not told again that they are there: it could fail
        the same way for ever."""
        now = time.monotonic()
        for key in keys:
            verdict = self._verdicts.get(key)
            if verdict is not None:
                self._verdicts[key] = Verdict(now, False, verdict.requests)
        if request in self._keys_of:
            self._failed.setdefault(request, set()).update(keys)

    def forget(self, request: str) -> None:
        self._failed.pop(request, None)
        for key in self._keys_of.pop(request, ()):
            verdict = self._verdicts.get(key)
            if verdict is not None:
                verdict.requests.discard(request)
                if not verdict.requests:
                    del self._verdicts[key]

    def forget_all(self) -> None:
        """What is known is not true any more; running requests ask again."""
        self._verdicts.clear()
        self._asking.clear()

    def __len__(self) -> int:
        return len(self._verdicts)

    def close(self, seconds: float) -> bool:
        """False: the thread is still in a call."""
        self._ended.set()
        self._batches.put(None)
        self._thread.join(seconds)
        return not self._thread.is_alive()

    # --- the thread's side ---

    def _serve(self) -> None:
        pause = PAUSE_FIRST
        while not self._ended.is_set():
            try:
                batch = self._batches.get(timeout=pause if self._breaker.open else IDLE_SECONDS)
            except queue.Empty:
                batch = []
            if batch is None:
                return
            if not self._breaker.open:
                pause = PAUSE_FIRST
                self._answer(batch)
            elif not batch:
                pause = min(2 * pause, PAUSE_LAST)
                if self._ask_store([PROBE])[1]:
                    self._breaker.reset()
            _answer_no(batch)
            if not batch:
                self._idle()

    def _answer(self, batch: list[tuple[bytes, str, Verdict]]) -> None:
        chains: dict[tuple[str, bytes], list[tuple[bytes, Verdict]]] = {}
        for key, request, verdict in batch:
            chains.setdefault((request, key[-GROUP_BYTES:]), []).append((key, verdict))
        for chain in chains.values():
            for _ in range(HOLES):
                if not chain or self._ended.is_set():
                    break
                held, in_time = self._ask_store([key for key, _ in chain])
                for _, verdict in chain[:held]:
                    verdict.held = True
                if not in_time:
                    self._breaker.trip()
                    return
                if held < len(chain):
                    chain[held][1].held = False
                chain = chain[held + 1:]

    def _ask_store(self, keys: Sequence[bytes]) -> tuple[int, bool]:
        """How far it is held, and whether the answer came within the deadline."""
        began = self._call_began = time.monotonic()
        held = self._held_of(keys)
        self._call_began = None
        return held, time.monotonic() - began <= self._deadline


def _answer_no(batch: list[tuple[bytes, str, Verdict]]) -> None:
    for _, _, verdict in batch:
        if verdict.held is None:
            verdict.held = False
