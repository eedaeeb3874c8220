"""A client of the CAIRN.* commands (transport/README.md) in plain sockets: what it sends is what
the test says, right or wrong."""

import ctypes
import hashlib
import mmap
import os
import socket
import struct

from wire import Error, Wire, request

PIECE = 256 * 1024
BLOCK = 4096
OK, MISS, EXISTS, BUSY, TIMEOUT, NOSPACE, TOOBIG, CORRUPT = 0, -1, -2, -3, -4, -11, -12, -20
CAUSES = ["none", "absent", "expired", "checksum", "header", "key", "length", "identity", "version",
          "io_error", "deadline", "no_room", "queue_full", "too_big", "reclaimed", "tier_off",
          "tombstone", "closed", "bad_key", "evicted", "deleted", "cleared", "node", "space"]
REPLACE, WINDOW, RANGE = 1, 1 << 8, 1
ZERO = bytes(32)

_xxh = ctypes.CDLL("libxxhash.so.0").XXH3_64bits
_xxh.restype = ctypes.c_uint64
_xxh.argtypes = [ctypes.c_char_p, ctypes.c_size_t]


def xxh3(data) -> int:
    return _xxh(bytes(data), len(data))


def checks(value) -> bytes:
    view = memoryview(value)
    pieces = (view[at:at + PIECE] for at in range(0, len(view), PIECE))
    return b"".join(struct.pack("<Q", xxh3(piece)) for piece in pieces)


def key_of(*parts) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def value_of(key: bytes, length: int, generation: int = 0) -> bytes:
    """Bytes that follow from the key, so that any that are read can be judged."""
    return hashlib.shake_128(key + generation.to_bytes(8, "little")).digest(length)


def put_item(key, length, parent=ZERO, fingerprint=ZERO, expires_ns=0, offset=0, flags=0) -> bytes:
    return key + parent + fingerprint + struct.pack("<QQQII", length, expires_ns, offset, flags, 0)


def get_item(key, length, fingerprint=ZERO, offset=0, flags=0) -> bytes:
    return key + fingerprint + struct.pack("<QQII", offset, length, flags, 0)


class Kv(Wire):
    """One connection. After attach(): `arena`, `window` are its mappings."""

    arena = window = None

    # --- plain commands ---

    def put(self, key, value, timeout=2000, side=b"", wrong_checks=None, replace=False, **item):
        flags = REPLACE if replace else 0
        return self.call("CAIRN.PUT", timeout, put_item(key, len(value), flags=flags, **item),
                         wrong_checks or checks(value), side, value)

    def put_window(self, key, offset, length, sums, replace=False, timeout=2000, **item):
        flags = WINDOW | (REPLACE if replace else 0)
        return self.call("CAIRN.PUT", timeout,
                         put_item(key, length, offset=offset, flags=flags, **item), sums, b"", b"")

    def get(self, *items, timeout=2000):
        """For each item (status, cause, verified bytes or None)."""
        answer = self.call("CAIRN.GET", timeout, b"".join(items))
        if isinstance(answer, Error):
            return answer
        return [self._got(head, data) for head, data in answer]

    @staticmethod
    def _got(head, data):
        status, cause, _version, length = struct.unpack("<iiQQ", head[:24])
        if status != OK:
            assert data is None and len(head) == 24
            return status, CAUSES[cause], None
        assert len(data) == length
        assert head[24:] == checks(data), "bytes that do not have their checks"
        return status, CAUSES[cause], data

    def fetch(self, key, length, **item):
        """The whole value, or None."""
        return self.get(get_item(key, length, **item))[0][2]

    def lookup(self, keys):
        return self.call("CAIRN.LOOKUP", b"".join(keys))

    def lease(self, keys, ttl=60000, timeout=2000):
        """(lease, [(offset, length, version, check)...])"""
        answer = self.call("CAIRN.LEASE", ttl, timeout, b"".join(keys))
        if isinstance(answer, Error):
            return answer
        return answer[0], list(struct.iter_unpack("<QQQQ", answer[1]))

    # --- shared memory ---

    def attach(self, window=0):
        """The answer, and the descriptors that came with it."""
        self.sock.sendall(request("CAIRN.ATTACH", window))
        data, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, 4)
        self.buffer += data
        answer = Wire.reply(self)[1]
        if isinstance(answer, Error):
            assert not fds
            return answer
        self.fds = fds
        arena_bytes, window_bytes = answer
        assert len(fds) == (2 if window_bytes else 1)
        self.arena = mmap.mmap(fds[0], arena_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
        if window_bytes:
            self.window = mmap.mmap(fds[1], window_bytes)
        return answer

    def more_window(self, size):
        self.sock.sendall(request("CAIRN.WINDOW", size))
        data, fds, _, _ = socket.recv_fds(self.sock, 1 << 16, 4)
        self.buffer += data
        answer = Wire.reply(self)[1]
        if not fds:
            return answer
        self.fds += fds
        self.window = mmap.mmap(fds[0], answer)
        return answer

    def view(self, view):
        """The bytes of a view; None if the record there is another or its bytes are damaged."""
        offset, length, version, check = view
        body = self.arena[offset - BLOCK + 64:offset]
        if struct.unpack("<Q", body[-8:])[0] != check or xxh3(body[:-8]) != check:
            return None
        if struct.unpack("<Q", body[:8])[0] != version:
            return None
        data = self.arena[offset:offset + length]
        pieces = (length + PIECE - 1) // PIECE
        return data if body[200:200 + 8 * pieces] == checks(data) else None

    def unmap(self):
        for m in (self.arena, self.window):
            if m:
                m.close()
        for fd in getattr(self, "fds", []):
            os.close(fd)
        self.arena = self.window = None
        self.fds = []
