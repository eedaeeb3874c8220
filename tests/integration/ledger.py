"""What each key of a node may hold, in a file that outlives whoever writes it.

Every byte of a value follows from its key and generation, so what is read says which generation it
is, and whether it may be. A change is entered before it is sent and closed when its answer came; a
process that is killed in between leaves it open. An open change may have happened or not. While
the node lives it may even happen later (the request may still lie in a socket), so its key is left
alone until the node runs under another run_id or the doubt was settled by a delete.

One writer a ledger. To be missing is always allowed: a cache may drop what it likes."""

import hashlib
import mmap
import struct
import time

SLOT = 64
LENGTHS = (30, 100, 4096, 16384, 16385, 70000, 300000)
FIELDS = {name: 8 * i for i, name in
          enumerate(("current", "begun", "last", "doubt", "expires_ms"))}
COUNTERS = ("hits", "misses", "changes", "refused", "drops", "leases")


class Wrong(AssertionError):
    """A value that may not be seen."""


def length_of(key: bytes, generation: int) -> int:
    seed = hashlib.md5(key + struct.pack("<Q", generation)).digest()
    return LENGTHS[seed[0] % len(LENGTHS)] - seed[1] % 16


def value_of(key: bytes, generation: int, length: int | None = None) -> bytes:
    """Its first 8 bytes are the generation, so it has at least 9."""
    length = length_of(key, generation) if length is None else length
    head = struct.pack("<Q", generation)
    return head + hashlib.shake_128(key + head).digest(length - 8)


def judge_bytes(key: bytes, data: bytes) -> int:
    """The generation that `data` is, every byte of it."""
    if len(data) < 9:
        raise Wrong(f"{key!r}: {data!r} is no value of it")
    generation, = struct.unpack("<Q", data[:8])
    if not 0 < generation < 1 << 40 or data != value_of(key, generation):
        raise Wrong(f"{key!r}: {len(data)} bytes that begin {data[:24].hex()} and are no "
                    f"generation of it (generation {generation}, if it were one)")
    return generation


class Ledger:
    def __init__(self, path, keys: list[bytes], create=False):
        self.keys = keys
        size = SLOT * (len(keys) + 1)
        if create:
            path.write_bytes(bytes(size))
        with open(path, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), size)

    def get(self, i: int, field: str) -> int:
        return struct.unpack_from("<Q", self.map, SLOT * (i + 1) + FIELDS[field])[0]

    def set(self, i: int, field: str, value: int) -> None:
        struct.pack_into("<Q", self.map, SLOT * (i + 1) + FIELDS[field], value)

    def counter(self, name: str) -> int:
        return struct.unpack_from("<Q", self.map, 8 * COUNTERS.index(name))[0]

    def count(self, name: str, more: int = 1) -> None:
        struct.pack_into("<Q", self.map, 8 * COUNTERS.index(name), self.counter(name) + more)

    # --- changes ---

    def usable(self, i: int, run: int) -> bool:
        """May it be changed in this run of the node?"""
        return self.get(i, "doubt") != run

    def must_delete(self, i: int) -> bool:
        """Is it not known which of two values it has?"""
        return self.get(i, "doubt") != 0

    def next(self, i: int) -> int:
        generation = self.get(i, "last") + 1
        self.set(i, "last", generation)
        return generation

    def begin(self, i: int, generation: int, run: int) -> None:
        self.set(i, "doubt", run)
        self.set(i, "begun", generation)

    def done(self, i: int, generation: int, expires_ms: int = 0) -> None:
        self.set(i, "expires_ms", expires_ms)
        self.set(i, "current", generation)
        self.set(i, "begun", 0)
        self.set(i, "doubt", 0)
        self.count("changes")

    def begin_drop(self, i: int, run: int) -> None:
        """Of a delete nothing but the doubt is to be remembered."""
        self.set(i, "doubt", run)

    def dropped(self, i: int) -> None:
        self.set(i, "current", 0)
        self.set(i, "begun", 0)
        self.set(i, "doubt", 0)
        self.count("drops")

    def refused(self, i: int) -> None:
        """An answer came, and it was no success: both values are possible, nothing comes later."""
        self.set(i, "doubt", 1)
        self.count("refused")

    # --- judging ---

    def judge(self, i: int, data: bytes | None, asked_ms: int = 0, begun=None) -> None:
        if data is None:
            self.count("misses")
            return
        key = self.keys[i]
        generation = judge_bytes(key, data)
        current, expires = self.get(i, "current"), self.get(i, "expires_ms")
        begun = self.get(i, "begun") if begun is None else begun
        if generation not in (current, begun):
            raise Wrong(f"{key!r} holds generation {generation}; allowed is {current or 'nothing'}"
                        f"{f' or {begun}, which was begun' if begun else ''}; the last one given "
                        f"is {self.get(i, 'last')}")
        if generation == current and expires and asked_ms > expires:
            raise Wrong(f"{key!r} was seen {asked_ms - expires} ms after it expired")
        self.count("hits")

    def judge_foreign(self, i: int, data: bytes | None) -> None:
        """Of somebody else's key: any generation, but one that was given and all of its bytes."""
        if data is not None and judge_bytes(self.keys[i], data) > self.get(i, "last"):
            raise Wrong(f"{self.keys[i]!r}: a generation that was never given")


def run_number(run_id: bytes) -> int:
    """Of a node's run_id; not 0 and not 1, which mean no doubt and a settled one."""
    return int(run_id[:15], 16) | 2


def now_ms() -> int:
    return time.time_ns() // 1_000_000
