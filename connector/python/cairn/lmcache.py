"""Cairn as an L2 of LMCache's server (`lmcache server --l2-adapter`, type "native_plugin").

LMCache calls from threads of its own, which must neither wait nor see an exception: a submit
returns at once and is answered exactly once by drain_completions, as a miss where anything went
wrong."""

from __future__ import annotations

import difflib
import logging
import os
import select
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import _native
from ._lmcache_names import Names
from .errors import BusyError, InvalidError, IoError, NotFoundError, StateError, TimeoutError
from .identity import PUBLIC, Identity, domain_of_file
from .queue import Queue
from .store import Store, open as store_open

logger = logging.getLogger("cairn.lmcache")

OPTIONS = ("uri", "identity", "domain_key_file", "timeout")
TIMEOUT, TIMEOUT_MAX = 5.0, 20.0  # LMCache itself gives up on a delete after 30 s
RETRY_SECONDS = 2.0
SLOW = 0.25
WARN_SECONDS = 60.0
JOBS = 256           # questions on their way; one more is answered as a miss
WRONG_SIZES = 65536  # keys remembered to hold a value of another size, and its size
_NOT_THERE = (NotFoundError, IoError, TimeoutError, BusyError)

Completion = tuple[int, bool, str, "list[bool]"]
Job = Callable[[float], None]


class _Transfer:
    """One submit of puts or gets, until the last of its parts has come."""

    def __init__(self, future: int, kind: str, texts: list[str]) -> None:
        self.future, self.kind, self.texts = future, kind, texts
        self.sizes = np.zeros(len(texts), np.int64)
        self.status = np.full(len(texts), _native.MISS, np.int32)
        self.left = 1  # the submitting thread's own


class CairnClient:
    """adapter_params: uri (where the store is), identity (what made the KV), and optionally
    domain_key_file (1 to 64 secret bytes; without it the chunks are public) and timeout (seconds
    that a put, a get or a question takes at most)."""

    def __init__(self, **adapter_params: Any) -> None:
        _show_messages()
        self._uri, self._names, self._timeout = _options(adapter_params)
        self._lock = threading.Condition()
        self._jobs: deque[tuple[float, Job]] = deque()
        self._done: deque[Completion] = deque()
        self._on_way: dict[int, tuple[_Transfer, np.ndarray]] = {}
        self._wrong_size: OrderedDict[str, int] = OrderedDict()
        self._noted: set[bytes] = set()
        self._warned: dict[str, float] = {}
        self._last_future = 0
        self._closed = False
        self._store: Store | None = None
        self._queue: Queue | None = None
        self.counters: Counter[str] = Counter()
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()  # one descriptor for the queue's and for that of questions
        self._epoll.register(self._event, select.EPOLLIN)
        try:
            self._open(first=True)
        except BaseException:
            self._close_descriptors()
            raise
        self._thread = threading.Thread(target=self._work, name="cairn-lmcache", daemon=True)
        self._thread.start()

    # --- what LMCache calls ---

    def event_fd(self) -> int:
        return self._epoll.fileno()

    def submit_batch_set(self, keys: list[str], bufs: list[memoryview]) -> int:
        return self._transfer("set", keys, bufs)

    def submit_batch_get(self, keys: list[str], bufs: list[memoryview]) -> int:
        return self._transfer("get", keys, bufs)

    def submit_batch_exists(self, keys: list[str]) -> int:
        return self._ask("exists", keys, self._exists)

    def submit_batch_delete(self, keys: list[str]) -> int:
        return self._ask("delete", keys, self._delete)

    def drain_completions(self) -> list[Completion]:
        with self._lock:
            if self._closed:
                return []
            try:
                os.eventfd_read(self._event)  # before the look: what comes later signals again
            except BlockingIOError:
                pass
            out = list(self._done)
            self._done.clear()
        try:
            polled = self._queue.poll() if self._queue is not None else []
        except StateError:
            polled = []
        for tag, status in polled:
            with self._lock:
                transfer, rows = self._on_way.pop(tag)
                transfer.status[rows] = status
            if self._part_done(transfer):
                out.append(self._outcome(transfer))
        return out

    def close(self) -> None:
        """Waits for what is on its way, which has deadlines. Closing twice is fine."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._jobs.clear()
            self._lock.notify_all()
        self._thread.join()
        if self._queue is not None:
            self._queue.close()  # nothing looks at LMCache's memory after this
        if self._store is not None:
            self._store.close()
        self._close_descriptors()
        logger.info("cairn: closed: %s", dict(self.counters) or "nothing was asked of it")

    # --- sets and gets, by the store's queue ---

    def _transfer(self, kind: str, texts: list[str], bufs: list[memoryview]) -> int:
        transfer = _Transfer(self._future(), kind, list(texts))
        try:
            self._submit(transfer, bufs)
        except Exception as why:
            self._warn(kind, f"a {kind} of {len(texts)} chunks failed: {why}")
        if self._part_done(transfer):
            self._answer(self._outcome(transfer))
        return transfer.future

    def _submit(self, transfer: _Transfer, bufs: list[memoryview]) -> None:
        queue, store, setting = self._queue, self._store, transfer.kind == "set"
        if queue is None or store is None:
            return
        if len(bufs) != len(transfer.texts):
            raise InvalidError(f"{len(transfer.texts)} keys and {len(bufs)} buffers")
        iov = np.array([_run(b, writable=not setting) for b in bufs], np.uint64).reshape(-1, 2)
        transfer.sizes[:] = iov[:, 1]
        if len(iov) and 0 < store.value_max < int(transfer.sizes.max()):
            self._warn("size", f"chunks have {int(transfer.sizes.max())} bytes and the store takes "
                       f"up to {store.value_max}: give the server a smaller --chunk-size or the "
                       "store more ram")
        keys, whose = self._names.of(transfer.texts)
        for identity, rows in _by_identity(whose, transfer.sizes):
            self._note(identity)
            # What LMCache submits together is no chain, so that nothing is another's parent.
            more: dict[str, Any] = {"parents": np.zeros((len(rows), 32), np.uint8)} if setting \
                else {}
            submit = queue.submit_put_runs if setting else queue.submit_get_runs
            with self._lock:  # the poll that takes it waits for its place in _on_way
                tag = submit(keys[rows], iov[rows], np.ones(len(rows), np.uint32),
                             identity=identity, timeout=self._timeout, keep=bufs, **more)
                transfer.left += 1
                self._on_way[tag] = (transfer, rows)

    def _part_done(self, transfer: _Transfer) -> bool:
        """True for the last one."""
        with self._lock:
            transfer.left -= 1
            return transfer.left == 0

    def _outcome(self, transfer: _Transfer) -> Completion:
        status = transfer.status
        good = status == _native.OK
        if transfer.kind == "set":
            good |= status == _native.EXISTS
            for at in np.flatnonzero(good):
                # Stored anew, or LMCache's own size is by now that of what is held.
                text = transfer.texts[at]
                if status[at] == _native.OK or self._wrong_size.get(text) == transfer.sizes[at]:
                    self._wrong_size.pop(text, None)
            if not good.all() and self._queue is not None:
                bad = int(status[~good][0])
                self._warn("stored", f"{int((~good).sum())} of {len(good)} chunks were not stored: "
                           f"{_native.lib().cairn_status_str(bad).decode()}")
                self._tell_refusal()
        elif not good.all():
            self._tell_refusal()
            self._why_missed([(transfer.texts[at], int(transfer.sizes[at]))
                              for at in np.flatnonzero(~good)])
        self._count(transfer.kind, good)
        return transfer.future, bool(good.all()), "", good.tolist()

    # --- questions, by a thread of this object ---

    def _ask(self, kind: str, texts: list[str],
             answer: Callable[[list[str], float], np.ndarray]) -> int:
        future, asked = self._future(), list(texts)

        def job(deadline: float) -> None:
            good = np.zeros(len(asked), bool)
            try:
                good = answer(asked, deadline)
            except Exception as why:
                self._warn(kind, f"{kind} of {len(asked)} chunks failed: {why}")
            if not good.all():
                self._tell_refusal()
            self._count(kind, good)
            self._answer((future, True, "", good.tolist()))

        if not self._later(job):
            self._answer((future, False, "", [False] * len(asked)))
        return future

    def _later(self, job: Job) -> bool:
        with self._lock:
            if self._closed or self._store is None or len(self._jobs) >= JOBS:
                return False
            self._jobs.append((time.monotonic() + self._timeout, job))
            self._lock.notify()
            return True

    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._jobs and not self._closed:
                    self._lock.wait(None if self._store else RETRY_SECONDS)
                    if self._store is None:
                        break
                if self._closed:
                    return
                deadline, job = self._jobs.popleft() if self._jobs else (0.0, None)
            if job is not None:
                job(deadline)
            elif self._store is None:
                self._open()

    def _exists(self, texts: list[str], deadline: float) -> np.ndarray:
        """Lookup tells the length of a held prefix; behind each chunk that is missing it is asked
        again, so that the answer is each chunk's own."""
        assert self._store is not None
        good = np.zeros(len(texts), bool)
        keys, whose = self._names.of(texts)
        rows = np.array([i for i, (text, identity) in enumerate(zip(texts, whose))
                         if identity is not None and text not in self._wrong_size], int)
        asked, at = keys[rows], 0
        while at < len(rows) and time.monotonic() < deadline:
            began = time.monotonic()
            held = self._store.lookup(asked[at:])
            good[rows[at:at + held]] = True
            at += held + 1
            if time.monotonic() - began > SLOW:
                break  # a node that does not answer would cost as much for each chunk
        return good

    def _delete(self, texts: list[str], deadline: float) -> np.ndarray:
        assert self._store is not None
        keys, whose = self._names.of(texts)
        rows = [i for i, identity in enumerate(whose) if identity is not None]
        self._store.delete(keys[rows], timeout=max(deadline - time.monotonic(), 0))
        # What was not held is gone as well, and LMCache stops counting its bytes.
        return np.ones(len(texts), bool)

    def _note(self, identity: Identity) -> None:
        """For why(). Not where LMCache waits: a node may have to be asked."""
        if identity.fingerprint not in self._noted:
            def job(_deadline: float) -> None:
                try:
                    if self._store is not None:
                        self._store.note(identity)
                except Exception as why:
                    self._warn("note", f"an identity was not noted: {why}")

            if self._later(job):
                self._noted.add(identity.fingerprint)

    def _why_missed(self, missed: list[tuple[str, int]]) -> None:
        """LMCache gets what it was told to be held. What is held and has another size would be
        promised and missed for ever."""
        def job(deadline: float) -> None:
            try:
                self._find_wrong_sizes(missed, deadline)
            except Exception as why:
                self._warn("size", f"sizes could not be compared: {why}")

        self._later(job)

    def _find_wrong_sizes(self, missed: list[tuple[str, int]], deadline: float) -> None:
        assert self._store is not None
        began = time.monotonic()
        keys, whose = self._names.of([text for text, _ in missed])
        for (text, size), key, identity in zip(missed, keys, whose):
            if identity is None or time.monotonic() > min(deadline, began + SLOW):
                continue
            held = self._store.size(key.tobytes())
            if held is None or held == size:
                continue
            self._wrong_size[text] = held
            if len(self._wrong_size) > WRONG_SIZES:
                self._wrong_size.popitem(last=False)
            self._warn("identity", f"chunks are held with {held} bytes and LMCache asks for {size}:"
                       " something else made them; say what it is in \"identity\"")

    # --- the store, and what is said ---

    def _open(self, first: bool = False) -> None:
        """A node that is not there yet is tried again; what else is wrong at start is said."""
        try:
            store, queue = _opened(self._uri, self._timeout)
        except Exception as why:
            node = self._uri.startswith(("unix:", "tcp:")) and isinstance(why, _NOT_THERE)
            if first and not node:
                raise
            # One that comes and turns this server away is not one that is gone.
            self._warn(f"open: {why}", f"{why}; until then every chunk is a miss")
            return
        self._epoll.register(queue.fd, select.EPOLLIN)
        self._queue, self._store = queue, store
        logger.info("cairn: LMCache's chunks go to %s", self._uri)

    def _tell_refusal(self) -> None:
        """Misses of a node that was there, and since it has come back turns this server away."""
        try:
            why = self._store.refusal if self._store is not None else ""
        except StateError:
            return
        if why:
            self._warn(f"refusal: {why}",
                       f"{why}; until it takes this server every chunk is a miss")

    def _close_descriptors(self) -> None:
        self._epoll.close()
        os.close(self._event)

    def _future(self) -> int:
        with self._lock:
            self._last_future += 1
            return self._last_future

    def _answer(self, completion: Completion) -> None:
        with self._lock:
            if not self._closed:
                self._done.append(completion)
                os.eventfd_write(self._event, 1)

    def _count(self, kind: str, good: np.ndarray) -> None:
        with self._lock:
            self.counters[f"{kind}_chunks"] += len(good)
            self.counters[f"{kind}_good"] += int(good.sum())

    def _warn(self, cause: str, text: str) -> None:
        """Each cause once a minute."""
        now = time.monotonic()
        if now - self._warned.get(cause, -WARN_SECONDS) >= WARN_SECONDS:
            self._warned[cause] = now
            logger.warning("cairn: %s", text)


def _opened(uri: str, timeout: float) -> tuple[Store, Queue]:
    store = store_open(uri, timeout=timeout)
    try:
        return store, Queue(store)
    except BaseException:
        store.close()
        raise


def _show_messages() -> None:
    """LMCache sets up its own loggers only."""
    if not logger.hasHandlers():
        shown = logging.StreamHandler()
        shown.setFormatter(logging.Formatter("[%(asctime)s] %(levelname)s: %(message)s"))
        logger.addHandler(shown)
        logger.setLevel(logging.INFO)


def _options(given: dict[str, Any]) -> tuple[str, Names, float]:
    for name in given:
        if name not in OPTIONS:
            near = difflib.get_close_matches(name, OPTIONS, 1)
            raise InvalidError(f"adapter_params has {name!r}; "
                               + (f"did you mean {near[0]!r}?" if near else
                                  f"it takes {', '.join(OPTIONS)}"))
    uri, timeout = given.get("uri"), given.get("timeout", TIMEOUT)
    if not isinstance(uri, str) or not uri:
        raise InvalidError("adapter_params needs \"uri\", for instance "
                           "\"unix:/run/cairn/cairn.sock\"")
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or \
            not 0 < timeout <= TIMEOUT_MAX:
        raise InvalidError(f"timeout is {timeout!r}; give seconds, above 0 and at most "
                           f"{TIMEOUT_MAX:.0f}")
    file = given.get("domain_key_file")
    domain = PUBLIC if file is None else domain_of_file(file)
    return uri, Names(given.get("identity"), domain), float(timeout)


def _run(buf: memoryview, writable: bool) -> tuple[int, int]:
    """Address and length. (0, 0) for what cannot be filled."""
    if buf.nbytes == 0 or (writable and buf.readonly):
        return 0, 0
    return int(np.frombuffer(buf, np.uint8).__array_interface__["data"][0]), buf.nbytes


def _by_identity(whose: Sequence[Identity | None],
                 sizes: np.ndarray) -> list[tuple[Identity, np.ndarray]]:
    """The rows of each identity, of those that have a name and bytes."""
    rows: dict[Identity, list[int]] = {}
    for at, identity in enumerate(whose):
        if identity is not None and sizes[at]:
            rows.setdefault(identity, []).append(at)
    return [(identity, np.array(some)) for identity, some in rows.items()]
