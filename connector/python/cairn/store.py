"""The store: put, get, leases, durability, and what it says about itself."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import threading
import weakref
from typing import Any
from collections.abc import Iterator, Sequence

import numpy as np

from . import _native
from ._batch import Streams, get_batch, put_batch
from .buffers import runs, value_bytes
from .errors import (Error, InvalidError, MissError, StateError, TooBigError, UnsupportedError,
                     error)
from .identity import Identity, key_array

FLUSH_TIMEOUT = 600.0
# What makes a whole call wrong, unlike what happens to one value of it.
_CALL_ERRORS = (_native.INVAL, _native.STATE)


class _Pin:
    """One native lease. It lives as long as the Lease or any view of its memory."""

    def __init__(self, store: Store, handle: int) -> None:
        self.store = store
        self.handle = handle
        with store._lock:
            store._pins += 1

    def __del__(self) -> None:
        self.store._unpin(self.handle)


class Lease:
    """The leading keys of a list that are held, pinned in RAM and verified. `len` says how many;
    `lease[i]` is value i as a read-only memoryview of the store's own memory.

    release() gives the memory back, or, where views (or arrays made of them) are still in use, lets
    the last of them do so."""

    def __init__(self, store: Store, handle: int | None, held: int) -> None:
        self._pin = _Pin(store, handle) if handle is not None else None
        self._held = held

    def __len__(self) -> int:
        return self._held

    def _live(self) -> _Pin:
        if self._pin is None:
            raise StateError("the lease is released, or nothing of it was held")
        return self._pin

    def __getitem__(self, i: int) -> memoryview:
        if not -self._held <= i < self._held:
            raise IndexError(f"the lease holds {self._held} values")
        pin = self._live()
        at, size = ctypes.c_void_p(), ctypes.c_uint64()
        with pin.store._call():
            _native.check(_native.lib().cairn_lease_view(
                pin.handle, i % self._held, ctypes.byref(at), ctypes.byref(size)), "lease")
        memory: Any = (ctypes.c_ubyte * size.value).from_address(at.value or 0)
        memory._pin = pin  # the views of this array keep it, and so the pin, alive
        return memoryview(memory).cast("B").toreadonly()

    def renew(self, ttl: float) -> None:
        """Lets it last ttl seconds from now."""
        pin = self._live()
        with pin.store._call():
            _native.check(_native.lib().cairn_lease_renew(
                pin.handle, _native.timeout_ns(ttl, 0)), "lease")

    def release(self) -> None:
        self._pin = None
        self._held = 0

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Store:
    """An open store; cairn.open makes it. Safe to use from many threads. Timeouts are seconds; None
    is the store's own (30 s unless open was told otherwise)."""

    def __init__(self, uri: str, *, timeout: float = 30.0) -> None:
        self._handle: int | None = None
        self._session: int | None = None
        self._pid = os.getpid()
        self._lock = threading.Condition()
        self._calls = 0
        self._pins = 0
        self._queues: weakref.WeakSet[Any] = weakref.WeakSet()
        self._noted: set[bytes] = set()
        self._timeout = timeout
        self.uri = uri
        if not isinstance(uri, str):
            raise TypeError(f"the URI is a {type(uri).__name__}; give a str")
        handle = ctypes.c_void_p()
        why = ctypes.create_string_buffer(1024)
        status = _native.lib().cairn_open(uri.encode(), ctypes.byref(handle), why, len(why))
        if status < 0:
            raise error(status, why.value.decode(errors="replace") or f"{uri} could not be opened")
        self._handle = handle.value
        self.not_there: str = why.value.decode(errors="replace")
        """Why a node could not be reached yet (lazy=yes); empty: it could."""

    @property
    def value_max(self) -> int:
        """Bytes of the largest value that this store takes; 0: its node has not been there yet."""
        with self._call() as handle:
            return int(_native.lib().cairn_value_max(handle))

    @property
    def refusal(self) -> str:
        """Why the node turns this client away, as one sentence; empty: it does not, or nothing is
        there. It asks nothing and waits for nothing."""
        with self._call() as handle:
            return _native.text(lambda out, size: _native.lib().cairn_refusal(handle, out, size))

    @contextlib.contextmanager
    def _call(self) -> Iterator[int]:
        """Entry of every call: close() waits for those that are inside."""
        if os.getpid() != self._pid:
            raise StateError("the store was opened before fork; open one in this process")
        with self._lock:
            if self._handle is None:
                raise StateError("the store is closed")
            self._calls += 1
        try:
            yield self._handle
        finally:
            with self._lock:
                self._calls -= 1
                self._lock.notify_all()

    def _unpin(self, handle: int) -> None:
        if os.getpid() != self._pid:
            return
        _native.lib().cairn_lease_release(handle)
        with self._lock:
            self._pins -= 1

    def _note(self, handle: int, identity: Identity | None) -> None:
        """The library keeps each identity once; here that saves the call."""
        if identity is None or identity.fingerprint in self._noted:
            return
        status = _native.lib().cairn_note_identity(handle, identity._handle)
        if status in _CALL_ERRORS:
            _native.check(status, "note")
        self._noted.add(identity.fingerprint)

    def note(self, identity: Identity) -> None:
        """Makes the store remember an identity for why(). Keys of cairn.keys do it themselves."""
        with self._call() as handle:
            self._note(handle, identity)

    def put(self, keys: Any, values: Sequence[Any], parent: bytes | None = None,
            replace: bool = False, *, expires: float | None = None,
            side: Sequence[bytes | None] | None = None, identity: Identity | None = None,
            timeout: float | None = None) -> list[bool]:
        """Puts values under keys, a chain with its head first. A value is one contiguous buffer or
        a list of buffers to gather, in host memory or a GPU's (torch CUDA tensors, on torch's
        current stream, and whatever has the CUDA Array Interface). True = the whole value is
        visible in RAM now; False = not stored, and stats() counts why. A held key keeps its bytes
        (and is True) unless replace.

        parent: key before keys[0]. expires: wall-clock time (time.time()). side: typed side records
        a value.
        """
        array = key_array(keys)
        if not array.any(axis=1).all():
            raise InvalidError("a key is all zero, which names nothing")
        iov, counts, streams, keep = runs(values, "values", False)
        if len(counts) != len(array):
            raise InvalidError(f"{len(array)} keys and {len(counts)} values")
        sizes, most = value_bytes(iov, counts), self.value_max or _native.VALUE_MAX
        if len(sizes) and int(sizes.max()) > most:
            raise TooBigError(f"values[{int(sizes.argmax())}] has {int(sizes.max())} bytes; "
                              f"the largest this store takes is {most}")
        if parent is None:
            parent = getattr(keys, "parent", None)
        records = _side_records(side, len(array))
        status = self.put_runs(array, iov, counts, parent=parent, replace=replace,
                               expires=expires, side=records, timeout=timeout,
                               identity=identity or getattr(keys, "identity", None),
                               cuda_stream=streams)
        del keep
        return [s in (_native.OK, _native.EXISTS) for s in status.tolist()]

    def put_runs(self, keys: np.ndarray, iov: np.ndarray, counts: np.ndarray, *,
                 parent: bytes | None = None, parents: np.ndarray | None = None,
                 replace: bool = False, expires: float | None = None,
                 side: list[bytes] | None = None, identity: Identity | None = None,
                 timeout: float | None = None, cuda_stream: Streams = None) -> np.ndarray:
        """put for callers that know their memory: keys (n, 32) uint8; iov (m, 2) uint64, the
        address and length of each run, the runs of a value one after another; counts (n,) uint32,
        runs a value; parents (n, 32) where the keys are not one chain. Returns the status of each
        key. The memory must stay as it is until this returns; nothing of it is checked here.
        cuda_stream: the memory is a GPU's, used on that stream (0: the default one); what is queued
        there already is waited for."""
        batch = put_batch(keys, iov, counts, parent=parent, parents=parents, replace=replace,
                          expires=expires, side=side, identity=identity, cuda_stream=cuda_stream)
        if len(batch):
            limit = _native.timeout_ns(timeout, self._timeout)
            with self._call() as handle:
                self._note(handle, identity)
                status = _native.lib().cairn_put(handle, batch.address, len(batch), limit)
            if status in _CALL_ERRORS:
                _native.check(status, "put")
        return batch.status

    def get(self, keys: Any, outs: Sequence[Any], *, offsets: int | Sequence[int] | None = None,
            identity: Identity | None = None, timeout: float | None = None) -> list[bool]:
        """Gets values into outs: an out is one writable buffer, or a list to scatter into, of the
        value's size. True = exactly the bytes that were put, checked; False = a miss (what is in
        that out is unspecified), and stats() counts why.

        offsets: read ranges instead: outs[i] takes as many bytes as it has, from that offset on.
        identity: what was put with another identity, or with plain keys, is a miss. (Keys of
        cairn.keys name their identity by themselves.)
        """
        array = key_array(keys)
        iov, counts, streams, keep = runs(outs, "outs", True)
        if len(counts) != len(array):
            raise InvalidError(f"{len(array)} keys and {len(counts)} outs")
        if offsets is not None and np.any(np.asarray(offsets) < 0):
            raise InvalidError("an offset is below 0")
        with self._call() as handle:
            self._note(handle, getattr(keys, "identity", None))
        status = self.get_runs(array, iov, counts, offsets=offsets, timeout=timeout,
                               identity=identity, cuda_stream=streams)
        del keep
        return [s == _native.OK for s in status.tolist()]

    def get_runs(self, keys: np.ndarray, iov: np.ndarray, counts: np.ndarray, *,
                 offsets: Any = None, identity: Identity | None = None,
                 timeout: float | None = None, cuda_stream: Streams = None) -> np.ndarray:
        """get for callers that know their memory; as put_runs. Negative offset: the whole value."""
        batch = get_batch(keys, iov, counts, offsets=offsets, identity=identity,
                          cuda_stream=cuda_stream)
        if len(batch):
            limit = _native.timeout_ns(timeout, self._timeout)
            with self._call() as handle:
                self._note(handle, identity)
                status = _native.lib().cairn_get(handle, batch.address, len(batch), limit, None)
            if status in _CALL_ERRORS:
                _native.check(status, "get")
        return batch.status

    def lookup(self, keys: Any) -> int:
        """How many keys from the start are held. A hint: only a get or a lease is a hit."""
        array = key_array(keys)
        with self._call() as handle:
            self._note(handle, getattr(keys, "identity", None))
            return int(_native.lib().cairn_lookup(handle, array.ctypes.data, len(array)))

    def size(self, key: bytes) -> int | None:
        """Bytes of a held value, or None. A hint."""
        array = key_array([key], "key")
        with self._call() as handle:
            return int(_native.lib().cairn_value_len(handle, array.ctypes.data)) or None

    def delete(self, keys: Any, *, timeout: float | None = None) -> list[bool]:
        """Deletes; True = it was held, and it never comes back."""
        array = key_array(keys)
        results = np.full(len(array), _native.MISS, np.int32)
        with self._call() as handle:
            status = _native.lib().cairn_delete(
                handle, array.ctypes.data, len(array), _native.timeout_ns(timeout, self._timeout),
                results.ctypes.data)
        if status < 0 and status != _native.MISS:
            _native.check(status, "delete")
        return [s == _native.OK for s in results.tolist()]

    def flush(self, timeout: float | None = None) -> None:
        """Returns when every put accepted before it is durable. None waits up to 600 s."""
        with self._call() as handle:
            status = _native.lib().cairn_flush(
                handle, _native.timeout_ns(timeout, FLUSH_TIMEOUT))
        if status == UnsupportedError.status:
            raise UnsupportedError(f"flush: {self.uri} has no disk; open a store with a path and "
                                   "disk=")
        _native.check(status, "flush")

    def lease(self, keys: Any, *, ttl: float = 60.0, timeout: float | None = None) -> Lease:
        """Pins the leading keys that are held, for ttl seconds if no view is taken."""
        array = key_array(keys)
        taken, held = ctypes.c_void_p(), ctypes.c_size_t()
        with self._call() as handle:
            self._note(handle, getattr(keys, "identity", None))
            with self._lock:
                if self._session is None:
                    session = ctypes.c_void_p()
                    _native.check(_native.lib().cairn_session_open(
                        handle, ctypes.byref(session)), "lease")
                    self._session = session.value
            status = _native.lib().cairn_lease_take(
                self._session, array.ctypes.data, len(array), _native.timeout_ns(ttl, 0),
                _native.timeout_ns(timeout, self._timeout), ctypes.byref(taken),
                ctypes.byref(held))
            if status == MissError.status:
                return Lease(self, None, 0)
            _native.check(status, "lease")
            return Lease(self, taken.value, held.value)

    def why(self, identity: Identity) -> dict[str, Any]:
        """Why an identity never hits: the nearest one the store has seen, and what differs."""
        with self._call() as handle:
            found = _native.text(lambda out, size: _native.lib().cairn_why(
                handle, identity._handle, out, size))
        answer: dict[str, Any] = json.loads(found)
        return answer

    def stats(self) -> dict[str, Any]:
        """All statistics."""
        with self._call() as handle:
            found = _native.text(lambda out, size: _native.lib().cairn_stats(handle, out, size))
        answer: dict[str, Any] = json.loads(found)
        return answer

    def close(self) -> None:
        """Waits for calls in other threads and in queues, then closes. Closing twice is fine."""
        if os.getpid() != self._pid:
            self._handle = None
            return
        with self._lock:
            if self._handle is None:
                return
            if self._pins:
                raise StateError(f"leases in use: {self._pins}; release them and drop their views, "
                                 "then close")
            handle, self._handle = self._handle, None
            while self._calls:
                self._lock.wait()
        for queue in list(self._queues):
            queue.close()
        if self._session is not None:
            _native.lib().cairn_session_close(self._session)
        _native.lib().cairn_close(handle)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None and not self._pins:
            self.close()

    def __repr__(self) -> str:
        return f"<cairn.Store {self.uri!r}{' closed' if self._handle is None else ''}>"


def _side_records(side: Sequence[bytes | None] | None, count: int) -> list[bytes] | None:
    if side is None:
        return None
    if len(side) != count:
        raise InvalidError(f"{count} keys and {len(side)} side records")
    return [bytes(s or b"") for s in side]


def open(uri: str, *, timeout: float = 30.0) -> Store:
    """Opens a store: "embedded:///folder?ram=1GiB&disk=8GiB", "embedded:?ram=1GiB" without a disk,
    or a node's: "unix:/run/cairn/cairn.sock", "tcp://127.0.0.1:7379". cairn.options_help() lists
    the options. timeout: seconds that put, get, lease and delete wait at most, where they are not
    told otherwise. A node that goes away later is no error: gets miss, puts are refused; with
    lazy=yes neither is one that is not there yet, and Store.not_there says so."""
    return Store(uri, timeout=timeout)


def finish(store: Store, seconds: float, log: logging.Logger) -> None:
    """The end of an engine's store: what an embedded one holds is made durable, then it is closed.
    What goes wrong is a line in the log."""
    try:
        if store.uri.startswith("embedded:") and store.stats().get("disk"):
            store.flush(seconds)
    except Error as why:
        log.warning("cairn: not all of the cache could be made durable: %s", why)
    try:
        store.close()
    except Error as why:
        log.warning("cairn: %s", why)


def options_help() -> str:
    """The options of a URI, a line each."""
    return str(_native.lib().cairn_options_help().decode())


def features(path: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """What this machine gives (huge pages, io_uring, ...), and the file system that path is on."""
    name = None if path is None else os.fsencode(path)
    found = _native.text(lambda out, size: _native.lib().cairn_features(name, out, size))
    answer: dict[str, Any] = json.loads(found)
    return answer
