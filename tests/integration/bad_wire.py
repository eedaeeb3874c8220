"""A way to a node that is as bad as a network can be: bytes come late, some are changed, and
connections end in the middle of a value."""

import random
import select
import socket
import threading
import time
from collections import Counter

PIECE = 1 << 18


class BadWire:
    """Passes bytes between those who connect to `port` and the port `to`, well but while `bad` is
    set. `met` counts what was done to them."""

    LATE, FLIPPED, CUT = 0.03, 0.02, 0.01  # of all pieces

    def __init__(self, to: int, seed: int) -> None:
        self.to, self.bad, self.met = to, threading.Event(), Counter()
        self._rng = random.Random(seed)
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(client,), daemon=True).start()

    def _pass(self, client) -> None:
        try:
            with client, socket.create_connection(("127.0.0.1", self.to)) as node:
                while True:
                    for side in select.select([client, node], [], [])[0]:
                        data = side.recv(PIECE)
                        if not data:
                            return
                        (node if side is client else client).sendall(self._spoilt(data))
        except OSError:  # cut, or one of both has gone
            return

    def _spoilt(self, data: bytes) -> bytes:
        if not self.bad.is_set():
            return data
        drawn = self._rng.random()
        if drawn < self.CUT:
            self.met["cut"] += 1
            raise ConnectionError
        if drawn < self.CUT + self.FLIPPED:
            self.met["flipped"] += 1
            changed = bytearray(data)
            changed[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)
            return bytes(changed)
        if drawn < self.CUT + self.FLIPPED + self.LATE:
            self.met["late"] += 1
            time.sleep(self._rng.uniform(0.01, 0.3))
        return data
