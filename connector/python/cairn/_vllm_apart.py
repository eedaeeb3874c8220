"""An embedded store whose worker is a process of its own: the worker owns the store, and the
scheduler looks up and leases over a socket file that only this user may open. Anything wrong with
the connection is "nothing is held"; its end releases what was leased over it."""

from __future__ import annotations

import itertools
import json
import os
import socket
import struct
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import Error
from .identity import Identity, key_array

if TYPE_CHECKING:
    from .store import Lease, Store

ANSWER_SECONDS = 1.0
ACCEPT_SECONDS = 0.1  # until the next try, where there is no descriptor left for a connection
LARGEST = 32 << 20  # keys of a million chunks
HEAD = struct.Struct("<cI")  # kind, bytes that follow
LEASE = struct.Struct("<dd")  # ttl, timeout; keys follow
HELD = struct.Struct("<QI")  # lease, keys held
NOTHING = b""  # is held


def _send(to: socket.socket, kind: bytes, body: bytes) -> None:
    to.sendall(HEAD.pack(kind, len(body)) + body)


def _exactly(of: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        more = of.recv(min(size - len(got), 1 << 20))
        if not more:
            raise ConnectionError("the other side has closed")
        got += more
    return bytes(got)


def _receive(of: socket.socket) -> tuple[bytes, bytes]:
    kind, size = HEAD.unpack(_exactly(of, HEAD.size))
    if size > LARGEST:
        raise ConnectionError("a message is too long")
    return kind, _exactly(of, size)


def _keys(body: bytes) -> list[bytes]:
    return [body[i:i + 32] for i in range(0, len(body), 32)]


class Listener:
    """The worker's side. One connection at a time: there is one scheduler."""

    def __init__(self, path: str, store: Store) -> None:
        self.path = path
        self._store = store
        self._peer: socket.socket | None = None
        self._closed = threading.Event()
        self._numbers = itertools.count(1)  # of leases: one of a connection before means nothing
        Path(path).unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(path)
        os.chmod(path, 0o600)  # nobody can connect before listen
        self._socket.listen(1)
        self._thread = threading.Thread(target=self._serve, name="cairn-link", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        Path(self.path).unlink(missing_ok=True)
        for held in (self._socket, self._peer):
            if held is not None:
                try:
                    held.shutdown(socket.SHUT_RDWR)  # close alone wakes nobody
                except OSError:
                    pass
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                self._peer, _ = self._socket.accept()
            except OSError:
                self._closed.wait(ACCEPT_SECONDS)
                continue
            with self._peer:
                if not self._closed.is_set():  # close may have come too early to see this one
                    self._answer_all(self._peer)

    def _answer_all(self, peer: socket.socket) -> None:
        leases: dict[int, Lease] = {}
        try:
            while True:
                kind, body = _receive(peer)
                try:
                    answer = self._answer(leases, kind, body)
                except Error:
                    answer = NOTHING  # to end here would release the leases of other requests
                _send(peer, b"=", answer)
        except (OSError, ValueError, struct.error):
            pass  # the scheduler sees the end and goes on without
        finally:
            for lease in leases.values():
                lease.release()

    def _answer(self, leases: dict[int, Lease], kind: bytes, body: bytes) -> bytes:
        if kind == b"T":
            ttl, timeout = LEASE.unpack_from(body)
            lease = self._store.lease(_keys(body[LEASE.size:]), ttl=ttl, timeout=timeout)
            number = next(self._numbers)
            if len(lease):
                leases[number] = lease
            return HELD.pack(number, len(lease))
        if kind == b"R":
            lease = leases.pop(int.from_bytes(body, "little"), None)
            if lease is not None:
                lease.release()
        elif kind == b"L":
            return struct.pack("<I", self._store.lookup(_keys(body)))
        elif kind == b"N":
            self._store.note(Identity(**json.loads(body)))
        return NOTHING


class LinkedLease:
    """As much of a Lease as the scheduler needs."""

    def __init__(self, store: LinkedStore, number: int, held: int) -> None:
        self._store, self._number, self._held = store, number, held

    def __len__(self) -> int:
        return self._held

    def release(self) -> None:
        held, self._held = self._held, 0
        if held:
            self._store._ask(b"R", self._number.to_bytes(8, "little"))


class LinkedStore:
    """The scheduler's side: as much of a Store as it needs. Safe to use from many threads."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._closed = False
        self._socket: socket.socket | None = None

    def lease(self, keys: Any, *, ttl: float = 60.0, timeout: float = 1.0) -> LinkedLease:
        body = self._ask(b"T", LEASE.pack(ttl, timeout) + key_array(keys).tobytes(), timeout)
        number, held = HELD.unpack(body) if body else (0, 0)
        return LinkedLease(self, number, held)

    def lookup(self, keys: Any) -> int:
        body = self._ask(b"L", key_array(keys).tobytes())
        return int(struct.unpack("<I", body)[0]) if body else 0

    def note(self, identity: Identity) -> None:
        self._ask(b"N", json.dumps(identity.fields).encode())

    def close(self) -> None:
        self._closed = True
        held = self._socket
        if held is not None:
            try:
                held.shutdown(socket.SHUT_RDWR)  # who waits for an answer has none now
            except OSError:
                pass
        with self._lock:
            self._disconnect()

    def _ask(self, kind: bytes, body: bytes, patience: float = 0.0) -> bytes:
        """The answer; empty where there is none, and then the next question goes over another
        connection: an answer that comes late would be taken for its own."""
        with self._lock:
            if self._closed:
                return b""
            try:
                link = self._socket = self._socket or self._connected()
                link.settimeout(ANSWER_SECONDS + patience)
                _send(link, kind, body)
                return _receive(link)[1]
            except OSError:
                self._disconnect()
                return b""

    def _connected(self) -> socket.socket:
        link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        link.settimeout(ANSWER_SECONDS)
        try:
            link.connect(self._path)
        except OSError:
            link.close()
            raise
        return link

    def _disconnect(self) -> None:
        held, self._socket = self._socket, None
        if held is not None:
            held.close()
