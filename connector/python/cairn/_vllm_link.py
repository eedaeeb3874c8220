"""Where vLLM runs its worker in a process of its own, the worker has the store and the scheduler
asks it here: what the identity is, and how much of a prompt is held. One connection over a socket
file that only this user may open; anything wrong with it is "nothing is held"."""

from __future__ import annotations

import json
import os
import socket
import struct
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .identity import Identity, key_array

if TYPE_CHECKING:
    from ._vllm_engine import Engine

ANSWER_SECONDS = 1.0
LARGEST = 32 << 20  # keys of a million chunks
HEAD = struct.Struct("<cI")


def _path(engine_id: str) -> Path:
    return Path(tempfile.gettempdir()) / f"cairn-{engine_id}.sock"


def _send(to: socket.socket, kind: bytes, body: bytes) -> None:
    to.sendall(HEAD.pack(kind, len(body)) + body)


def _receive(of: socket.socket) -> tuple[bytes, bytes]:
    def exactly(size: int) -> bytes:
        got = bytearray()
        while len(got) < size:
            more = of.recv(min(size - len(got), 1 << 20))
            if not more:
                raise ConnectionError("the other side has closed")
            got += more
        return bytes(got)

    kind, size = HEAD.unpack(exactly(HEAD.size))
    if size > LARGEST:
        raise ConnectionError("a message is too long")
    return kind, exactly(size)


class Listener:
    """The worker's side."""

    def __init__(self, engine_id: str, engine: Engine) -> None:
        self._engine = engine
        self._path = _path(engine_id)
        self._path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(self._path))
        os.chmod(self._path, 0o600)  # nobody can connect before listen
        self._socket.listen(1)
        threading.Thread(target=self._serve, name="cairn-link", daemon=True).start()

    def close(self) -> None:
        self._path.unlink(missing_ok=True)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            with peer:
                try:
                    while True:
                        _send(peer, b"=", self._answer(*_receive(peer)))
                except Exception:
                    pass  # the scheduler sees the end and goes on without

    def _answer(self, kind: bytes, body: bytes) -> bytes:
        if kind == b"L":
            keys = [body[i:i + 32] for i in range(0, len(body), 32)]
            return struct.pack("<I", self._engine.store.lookup(keys))
        if kind == b"N":
            self._engine.identity = Identity(**json.loads(body))
            self._engine.store.note(self._engine.identity)
            return b""
        identity = self._engine.identity
        return json.dumps(identity.fields if identity else None).encode()


class RemoteStore:
    """The scheduler's side: as much of a Store as it needs."""

    def __init__(self, engine_id: str) -> None:
        self._socket: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(ANSWER_SECONDS)
        self._socket.connect(str(_path(engine_id)))

    def _ask(self, kind: bytes, body: bytes = b"") -> bytes:
        if self._socket is None:
            raise ConnectionError("the worker with the store did not answer before")
        try:
            _send(self._socket, kind, body)
            return _receive(self._socket)[1]
        except OSError:
            self.close()  # an answer that comes late would be taken for the next one
            raise

    def identity(self) -> Identity | None:
        fields: dict[str, Any] | None = json.loads(self._ask(b"I"))
        return Identity(**fields) if fields else None

    def lookup(self, keys: Any) -> int:
        return int(struct.unpack("<I", self._ask(b"L", key_array(keys).tobytes()))[0])

    def note(self, identity: Identity) -> None:
        self._ask(b"N", json.dumps(identity.fields).encode())

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
