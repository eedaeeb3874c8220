"""The Redis protocol as bytes, so that two servers' replies can be compared byte for byte."""

import socket

from patience import STALL

NIL = None


class Error(str):
    """An error reply, without its leading minus."""


class Gone(Exception):
    """The connection ended in the middle of a reply."""


def request(*words) -> bytes:
    parts = [w if isinstance(w, bytes) else str(w).encode() for w in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(p), p) for p in parts)


class Wire:
    """One connection. Replies come as (bytes on the wire, value)."""

    def __init__(self, port=None, path=None, proto=2, timeout=30.0 + STALL):
        if path:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(timeout)
            self.sock.connect(str(path))
        else:
            self.sock = socket.create_connection(("127.0.0.1", port), timeout=timeout)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()
        self.at = 0
        if proto == 3:
            self.call("HELLO", 3)

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send(self, data: bytes):
        self.sock.sendall(data)

    def _more(self):
        data = self.sock.recv(1 << 20)
        if not data:
            raise Gone
        self.buffer += data

    def _line(self) -> bytes:
        while (end := self.buffer.find(b"\r\n", self.at)) < 0:
            self._more()
        line = bytes(self.buffer[self.at:end])
        self.at = end + 2
        return line

    def _bytes(self, count: int) -> bytes:
        while len(self.buffer) < self.at + count + 2:
            self._more()
        data = bytes(self.buffer[self.at:self.at + count])
        assert self.buffer[self.at + count:self.at + count + 2] == b"\r\n", "bulk without its end"
        self.at += count + 2
        return data

    def _value(self):
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest.decode("latin1")
        if kind == b"-":
            return Error(rest.decode("latin1"))
        if kind == b":":
            return int(rest)
        if kind in b"$=":
            return NIL if rest == b"-1" else self._bytes(int(rest))
        if kind in b"*~>":
            return NIL if rest == b"-1" else [self._value() for _ in range(int(rest))]
        if kind == b"%":
            return [self._value() for _ in range(2 * int(rest))]
        if kind == b"_":
            return NIL
        if kind == b"#":
            return rest == b"t"
        if kind == b",":
            return float(rest)
        raise AssertionError(f"no reply begins like {line!r}")

    def reply(self):
        value = self._value()
        raw = bytes(self.buffer[:self.at])
        del self.buffer[:self.at]
        self.at = 0
        return raw, value

    def value(self):
        return self.reply()[1]

    def call(self, *words):
        self.send(request(*words))
        return self.value()
