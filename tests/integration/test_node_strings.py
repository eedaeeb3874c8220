"""Strings of cairnd when it matters: full, restarted, killed, contended, damaged."""

import os
import random
import threading
import time

import pytest

from patience import STALL
from wire import Error, Wire, request

pytestmark = pytest.mark.timeout(300)

MIB = 1 << 20


def value_of(key: bytes, generation: int, size: int) -> bytes:
    """Bytes that say whose they are."""
    head = b"%s:%d:%d|" % (key, generation, size)
    return (head * (size // len(head) + 1))[:size]


class Oracle:
    """What each key may hold. A generation that was replaced, deleted or flushed may never be seen
    again; the present one may be missing, as a cache may drop it."""

    def __init__(self, seed, count, sizes):
        self.rng = random.Random(seed)
        self.keys = [b"key:%d" % i for i in range(count)]
        self.sizes = sizes
        self.held = {}  # key -> bytes that are allowed
        self.generation = 0
        self.hits = self.misses = 0

    def fresh(self, key):
        self.generation += 1
        return value_of(key, self.generation, self.rng.choice(self.sizes))

    def change(self, wire):
        """One random change, whose reply says that it is done."""
        rng, key = self.rng, self.rng.choice(self.keys)
        kind = rng.random()
        if kind < 0.70:
            value = self.fresh(key)
            assert wire.call("SET", key, value) == "OK"
            self.held[key] = value
        elif kind < 0.78:
            values = {k: self.fresh(k)[:50000] for k in rng.sample(self.keys, 3)}
            words = [w for pair in values.items() for w in pair]
            assert wire.call("MSET", *words) == "OK"
            self.held.update(values)
        elif kind < 0.84:
            value = self.fresh(key)
            self.judge(key, wire.call("GETSET", key, value))
            self.held[key] = value
        elif kind < 0.90:
            assert wire.call("DEL", key) in (0, 1)
            self.held.pop(key, None)
        elif kind < 0.93:
            self.judge(key, wire.call("GETDEL", key))
            self.held.pop(key, None)
        elif kind < 0.96:
            assert wire.call("EXPIRE", key, 1000) in (0, 1)
        elif kind < 0.98:
            assert wire.call("PEXPIREAT", key, 1000) in (0, 1)
            self.held.pop(key, None)
        else:
            assert wire.call("PSETEX", key, 1, self.fresh(key)) == "OK"
            self.held.pop(key, None)
            time.sleep(0.002)

    def judge(self, key, got):
        assert not isinstance(got, Error), got
        if got is None:
            self.misses += 1
            return
        self.hits += 1
        want = self.held.get(key)
        assert got == want, f"{key!r}: {len(got)} bytes that begin {got[:60]!r}; " \
            f"allowed: {want[:60] if want else want!r} or nothing"

    def read_all(self, wire):
        for key in self.keys:
            self.judge(key, wire.call("GET", key))
        for i in range(0, len(self.keys), 7):
            part = self.keys[i:i + 7]
            for key, got in zip(part, wire.call("MGET", *part)):
                self.judge(key, got)


SMALL = {"ram": "16MiB", "disk": "256MiB"}


@pytest.fixture
def node_with(new_node):
    """A started node with these budgets, disk="0" for none; node.again() starts it once more."""

    def make(ram, disk, *more):
        node = new_node()
        options = [f"--ram={ram}", *more]
        if disk != "0":
            options += [f"--disk={disk}", f"--disk-path={node.place}"]
        node.again = lambda: node.start(*options)
        return node.again()

    return make


@pytest.fixture
def seed():
    value = int(os.environ.get("CAIRN_SEED", random.getrandbits(32)))
    print(f"CAIRN_SEED={value}")
    return value


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_nothing_comes_back_after_a_restart(node_with, seed, full, end):
    node = node_with(**SMALL)
    oracle = Oracle(seed, 300, [1, 100, 4096, 20000, 200000])
    rng = random.Random(seed + 1)
    survived = 0
    for _ in range(25 if full else 6):
        with Wire(node.port) as wire:
            for _ in range(rng.randint(50, 900)):
                oracle.change(wire)
            if rng.random() < 0.25:
                assert wire.call(rng.choice(["FLUSHDB", "FLUSHALL"])) == "OK"
                oracle.held.clear()
                assert wire.call("DBSIZE") == 0
                for _ in range(rng.randint(0, 60)):
                    oracle.change(wire)
            oracle.read_all(wire)
        if end == "stop":
            assert node.stop() == 0, node.said()
        else:
            node.kill()
        node.again()
        before = oracle.hits
        with Wire(node.port) as wire:
            oracle.read_all(wire)
            assert set(scan_all(wire)) <= set(oracle.held)
        survived += oracle.hits - before
    if end == "stop":
        assert survived > 0, "a clean stop kept nothing"


def scan_all(wire, *words):
    cursor, found = b"0", []
    while True:
        cursor, keys = wire.call("SCAN", cursor, *words)
        found += keys
        if cursor == b"0":
            return found


@pytest.mark.parametrize("disk", ["64MiB", "0"])
def test_full_is_a_normal_state(node_with, seed, full, disk):
    """Many times more than RAM and disk hold: every SET is taken, every GET is right, and what was
    just set is there."""
    node = node_with(ram="16MiB", disk=disk)
    oracle = Oracle(seed, 3000, [10, 4096, 30000, 100000, 900000])
    goal = (1500 if full else 400) * MIB
    written, count = 0, 0
    with Wire(node.port) as wire:
        while written < goal:
            key = oracle.rng.choice(oracle.keys)
            value = oracle.fresh(key)
            answer = wire.call("SET", key, value)
            assert answer == "OK", f"SET number {count}, after {written} bytes: {answer}"
            oracle.held[key] = value
            written, count = written + len(value), count + 1
            if count % 10 == 0:
                assert wire.call("GET", key) == value
                for key in oracle.rng.sample(oracle.keys, 3):
                    oracle.judge(key, wire.call("GET", key))
        oracle.read_all(wire)
    assert oracle.hits > 0


def test_pipelined_sets_of_a_full_store(node_with, seed):
    """The same without waiting for each reply."""
    node = node_with(ram="16MiB", disk="64MiB")
    oracle = Oracle(seed, 500, [4096, 60000, 400000])
    with Wire(node.port) as wire:
        for _ in range(40):
            changes = [(key, oracle.fresh(key)) for key in oracle.rng.choices(oracle.keys, k=20)]
            reads = oracle.rng.choices(oracle.keys, k=5)
            sender = threading.Thread(target=wire.send, args=(
                b"".join([request("SET", k, v) for k, v in changes] +
                         [request("GET", k) for k in reads]),))
            sender.start()
            for key, value in changes:
                assert wire.value() == "OK"
                oracle.held[key] = value
            for key in reads:
                oracle.judge(key, wire.value())
            sender.join()
        oracle.read_all(wire)


def test_flipped_bytes_on_disk_are_misses(node_with, seed):
    node = node_with(**SMALL)
    oracle = Oracle(seed, 200, [4096, 100000, 300000])
    with Wire(node.port) as wire:
        for key in oracle.keys:
            oracle.held[key] = oracle.fresh(key)
            assert wire.call("SET", key, oracle.held[key]) == "OK"
    assert node.stop() == 0, node.said()
    path = node.place / "cairn.log"
    size = path.stat().st_size
    with open(path, "r+b") as log:
        for _ in range(300):
            log.seek(oracle.rng.randrange(2 * MIB + 4096, size))
            at, byte = log.tell(), log.read(1)
            log.seek(at)
            log.write(bytes([byte[0] ^ 0x40]))
    node.again()
    with Wire(node.port) as wire:
        oracle.read_all(wire)
        for key in oracle.keys:
            oracle.held[key] = oracle.fresh(key)
            assert wire.call("SET", key, oracle.held[key]) == "OK"
            oracle.judge(key, wire.call("GET", key))


def leave_ram(wire):
    """All that was set is on disk, and no longer in RAM. The flush says IO for what a full RAM let
    go unwritten, which can only be fillers."""
    assert wire.call("CAIRN.FLUSH", 30000) in (0, -30)
    for i in range(40):
        assert wire.call("SET", b"filler:%d" % i, b"x" * MIB) == "OK"


def test_commands_on_values_that_are_on_disk(node_with):
    node = node_with(ram="16MiB", disk="2GiB")  # nothing is reclaimed
    with Wire(node.port) as wire:
        names = [b"d:%d" % i for i in range(14)]
        values = {name: value_of(name, 1, 70000 + i) for i, name in enumerate(names)}
        for name in names:
            assert wire.call("SET", name, values[name], "EX", 1000) == "OK"
        leave_ram(wire)
        assert wire.call("EXISTS", *names) == len(names)
        leave_ram(wire)
        assert wire.call("MGET", *names) == [values[n] for n in names]
        leave_ram(wire)
        assert wire.call("SET", names[0], b"new", "NX") is None
        assert wire.call("SET", names[1], b"new" * 9000, "KEEPTTL") == "OK"
        assert 900 < wire.call("TTL", names[1]) <= 1000
        assert wire.call("SET", names[2], b"new", "GET") == values[names[2]]
        assert wire.call("TTL", names[2]) == -1
        assert wire.call("GETRANGE", names[3], 10, 20) == values[names[3]][10:21]
        assert wire.call("STRLEN", names[4]) == 70004
        assert wire.call("PERSIST", names[5]) == 1 and wire.call("TTL", names[5]) == -1
        assert wire.call("EXPIRE", names[6], 10) == 1 and wire.call("TTL", names[6]) <= 10
        assert wire.call("GETEX", names[7], "EX", 5) == values[names[7]]
        assert wire.call("GETDEL", names[8]) == values[names[8]]
        assert wire.call("GET", names[8]) is None
        assert wire.call("DEL", names[9], names[10], b"nobody") == 2
        assert wire.call("MSETNX", b"n:1", b"1", names[11], b"2") == 0
        assert wire.call("GET", b"n:1") is None
        assert wire.call("GETSET", names[12], b"") == values[names[12]]
        assert wire.call("TYPE", names[13]) == "string"
        leave_ram(wire)
        left = [n for n in names if n not in (names[8], names[9], names[10])]
        assert set(left) <= set(scan_all(wire)) and set(left) <= set(wire.call("KEYS", "d:*"))
        assert wire.call("DBSIZE") >= len(left)
    node.kill()
    node.again()
    with Wire(node.port) as wire:
        for name in (names[8], names[9], names[10]):
            assert wire.call("GET", name) is None
        assert wire.call("GET", names[12]) in (b"", None)
        assert wire.call("GET", names[1]) in (b"new" * 9000, None)


def disk_read_bytes(wire):
    lines = wire.call("INFO", "everything").decode().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["cairn_disk_read_bytes"])


def test_what_needs_no_bytes_reads_none(node_with):
    """Of values that are only on disk, a header each, whatever their size."""
    node = node_with(ram="32MiB", disk="1GiB")
    names, size = [b"h:%d" % i for i in range(10)], 2 * MIB
    with Wire(node.port) as wire:
        for i, name in enumerate(names):
            assert wire.call("SET", name, value_of(name, 1, size + i), "EX", 5000) == "OK"
        assert wire.call("SET", "ended", b"e" * size, "PX", 300) == "OK"
        assert wire.call("SET", "empty", b"") == "OK"
    node.stop()
    node.again()
    time.sleep(0.3)
    with Wire(node.port) as wire:
        before = disk_read_bytes(wire)
        assert wire.call("EXISTS", *names, "ended", "empty", "nobody") == len(names) + 1
        assert wire.call("STRLEN", names[3]) == size + 3 and wire.call("STRLEN", "empty") == 0
        assert 4000 < wire.call("TTL", names[4]) <= 5000 and wire.call("TTL", "ended") == -2
        assert wire.call("TYPE", names[5]) == "string" and wire.call("TYPE", "ended") == "none"
        assert wire.call("MEMORY", "USAGE", names[6]) >= size
        assert wire.call("OBJECT", "ENCODING", names[6]) == b"raw"
        assert wire.call("SET", names[7], "other", "NX") is None
        assert wire.call("MSETNX", "nobody", "1", names[8], "2") == 0
        assert wire.call("SET", names[9], "short", "XX", "KEEPTTL") == "OK"
        assert 4000 < wire.call("TTL", names[9]) <= 5000
        assert wire.call("DEL", *names[:5], "ended", "nobody") == 5
        assert disk_read_bytes(wire) - before < MIB
        assert wire.call("EXISTS", *names) == 5
        assert wire.call("GET", names[0]) is None
        assert wire.call("GET", names[7]) == value_of(names[7], 1, size + 7)
    node.kill()
    node.again()
    with Wire(node.port) as wire:
        assert wire.call("EXISTS", *names[:5]) == 0


def hits_and_misses(wire):
    info = wire.call("INFO", "stats").decode()
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    return int(fields["keyspace_hits"]), int(fields["keyspace_misses"])


def test_each_lookup_counts_once_wherever_it_ran(node_with):
    node = node_with(ram="16MiB", disk="2GiB")
    with Wire(node.port) as wire:
        for on_disk in (False, True):
            for i in range(8):
                assert wire.call("SET", f"c:{i}", "x" * 30000, "EX", 1000) == "OK"
            if on_disk:
                leave_ram(wire)
            before = hits_and_misses(wire)
            wire.call("GET", "c:0")
            wire.call("GETDEL", "c:1")
            wire.call("GETEX", "c:2", "EX", 500)
            wire.call("SET", "c:3", "y", "GET")
            wire.call("MGET", "c:2", "c:4", "nobody", "c:5")
            wire.call("EXISTS", "c:6", "nobody")
            wire.call("TTL", "c:7")
            wire.call("GETDEL", "nobody")
            after = hits_and_misses(wire)
            assert (after[0] - before[0], after[1] - before[1]) == (9, 3), on_disk


def test_one_reply_may_be_larger_than_the_ram(node_with):
    node = node_with("16MiB", "2GiB", "--io-timeout=60s")
    values = {b"part:%d" % i: value_of(b"part:%d" % i, 1, 700000 - i) for i in range(50)}
    with Wire(node.port) as wire:
        for i, (key, value) in enumerate(values.items()):
            assert wire.call("SET", key, value) == "OK"
            if i % 8 == 7:
                assert wire.call("CAIRN.FLUSH", 30000) == 0
        assert wire.call("CAIRN.FLUSH", 30000) == 0
        keys = list(values) + [b"nobody"]
        assert wire.call("MGET", *keys) == list(values.values()) + [None]
        wire.send(b"".join(request("GET", key) for key in keys))
        assert [wire.value() for _ in keys] == list(values.values()) + [None]


# --- many at once ---

@pytest.fixture
def busy_node(node_with):
    """Several network threads, however few cores there are."""
    return node_with("64MiB", "0", "--threads=4")


def at_once(node, count, work):
    """Runs work(wire, i) on `count` connections at the same time; their results in order."""
    results, gate = [None] * count, threading.Barrier(count)

    def one(i):
        with Wire(node.port) as wire:
            gate.wait()
            results[i] = work(wire, i)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(count)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(60)
    return results


def test_one_of_many_wins(busy_node):
    node = busy_node
    for turn in range(30):
        lock, gone = b"lock:%d" % turn, b"gone:%d" % turn
        with Wire(node.port) as wire:
            wire.call("SET", gone, b"prize")
        big = b"z" * (20 if turn % 2 else 70000)
        got = at_once(node, 8, lambda w, i: (w.call("SET", lock, b"%d" % i + big, "NX"),
                                             w.call("GETDEL", gone)))
        assert sorted(r[0] or "" for r in got) == [""] * 7 + ["OK"]
        assert [r[1] for r in got].count(b"prize") == 1
        winner = [r[0] for r in got].index("OK")
        with Wire(node.port) as wire:
            assert wire.call("GET", lock) == b"%d" % winner + big


def test_readers_see_no_older_value(node_with, seed, full):
    """Each key has one writer, which says what it began and what was acknowledged; whoever reads in
    between gets something that was begun, not older than what had been acknowledged, or nothing."""
    node = node_with("16MiB", "64MiB", "--threads=4")
    writers, each = 3, 15
    names = [b"one:%d" % i for i in range(writers * each)]
    begun, acknowledged = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    end = time.monotonic() + (30 if full else 5)
    wrong, reads = [], [0] * 4

    def going_on():
        now = time.monotonic()
        return not wrong and (now < end or sum(reads) <= 100 and now < end + STALL)

    def write(number):
        rng = random.Random(seed + number)
        with Wire(node.port) as wire:
            while going_on():
                key = rng.choice(names[number * each:(number + 1) * each])
                generation = begun[key] = begun[key] + 1
                value = value_of(key, generation, rng.choice([50, 4000, 20000, 300000]))
                words = rng.choice([("SET", key, value), ("GETSET", key, value), ("DEL", key),
                                    ("SET", key, value, "EX", 100), ("MSET", key, value)])
                answer = wire.call(*words)
                if isinstance(answer, Error):
                    wrong.append((words[0], answer))
                acknowledged[key] = generation
                if rng.random() < 0.2:
                    wire.call(rng.choice(["PERSIST", "GET", "TTL"]), key)

    def read(number):
        rng = random.Random(seed - number)
        with Wire(node.port) as wire:
            while going_on():
                some = rng.sample(names, rng.choice([1, 1, 3]))
                least = [acknowledged[key] for key in some]
                for key, low, got in zip(some, least, wire.call("MGET", *some)):
                    reads[number] += got is not None
                    head = got.split(b"|")[0].split(b":") if got else None
                    generation, size = (int(head[-2]), int(head[-1])) if head else (low, 0)
                    if got is not None and (not low <= generation <= begun[key] or
                                            got != value_of(key, generation, size)):
                        wrong.append((key, low, begun[key], got[:60]))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(writers)] + \
        [threading.Thread(target=read, args=(i,)) for i in range(len(reads))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong, wrong[:3]
    assert sum(reads) > 100


def test_one_of_many_pipelines_wins(busy_node):
    """The same changes in the same order over several connections: each succeeds once."""
    turns, clients = 3000, 6

    def race(wire, i):
        answers = []
        for command in (lambda n: request("SET", b"p:%d" % n, b"%d" % i, "NX"),
                        lambda n: request("GETDEL", b"p:%d" % n),
                        lambda n: request("SETNX", b"q:%d" % n, b"%d" % i),
                        lambda n: request("DEL", b"q:%d" % n)) * 4:
            gate.wait()
            wire.send(b"".join(command(n) for n in range(turns)))
            answers.append([wire.value() for _ in range(turns)])
        return answers

    gate = threading.Barrier(clients)
    rounds = zip(*at_once(busy_node, clients, race))
    for n, answers in enumerate(rounds):
        for i, got in enumerate(zip(*answers)):
            assert sum(1 for one in got if one not in (None, 0)) == 1, (n, i, got)


def test_getset_hands_each_value_on_once(busy_node):
    node = busy_node
    def swap(wire, i):
        return [wire.call("GETSET", "chain", b"%d:%d" % (i, j)) for j in range(50)]

    seen = sum(at_once(node, 8, swap), [])
    with Wire(node.port) as wire:
        seen.append(wire.call("GET", "chain"))
    assert sorted(v or b"" for v in seen) == sorted(
        [b""] + [b"%d:%d" % (i, j) for i in range(8) for j in range(50)])


def test_msetnx_is_all_or_nothing(busy_node):
    node = busy_node
    for turn in range(20):
        names = [b"all:%d:%d" % (turn, i) for i in range(6)]

        def try_set(wire, i):
            order = names[i % 6:] + names[:i % 6]
            return wire.call("MSETNX", *[w for n in order[:4] for w in (n, b"%d" % i)])

        results = at_once(node, 6, try_set)
        winners = [i for i, r in enumerate(results) if r == 1]
        assert winners
        with Wire(node.port) as wire:
            values = wire.call("MGET", *names)
        for i in winners:
            assert values.count(b"%d" % i) == 4
        assert {int(v) for v in values if v is not None} == set(winners)


def test_a_scan_sees_all_that_stays(busy_node, seed):
    node = busy_node
    stay = {b"stay:%d" % i for i in range(800)}
    stop = threading.Event()
    with Wire(node.port) as wire:
        wire.call("FLUSHALL")
        for name in stay:
            wire.call("SET", name, b"x")

        def churn():
            rng = random.Random(seed)
            with Wire(node.port) as other:
                while not stop.is_set():
                    other.call("SET", b"come:%d" % rng.randrange(500), b"y")
                    other.call("DEL", b"come:%d" % rng.randrange(500))

        threads = [threading.Thread(target=churn) for _ in range(2)]
        for t in threads:
            t.start()
        try:
            for count in (1, 7, 100, 5000):
                found = scan_all(wire, "COUNT", count)
                assert stay <= set(found)
                assert all(k.startswith((b"stay:", b"come:")) for k in found)
            assert set(scan_all(wire, "MATCH", "stay:1?", "COUNT", 50)) == \
                {b"stay:%d" % i for i in range(10, 20)}
        finally:
            stop.set()
            for t in threads:
                t.join()


def test_many_keys_are_walked(node):
    names = {b"many:%d" % i for i in range(3000)}
    with Wire(node.port, proto=3) as wire:
        wire.send(b"".join(request("SET", name, "x") for name in sorted(names)))
        assert {wire.value() for _ in names} == {"OK"}
        assert wire.call("DBSIZE") == len(names)
        assert sorted(wire.call("KEYS", "*")) == sorted(names)
        assert sorted(wire.call("KEYS", "many:29??")) == [b"many:%d" % i for i in range(2900, 3000)]
        assert set(scan_all(wire, "COUNT", 1000000)) == names
        assert len({wire.call("RANDOMKEY") for _ in range(60)} & names) > 10
        assert wire.call("CONFIG", "SET", "output-max", "16384") == "OK"
        assert "SCAN" in wire.call("KEYS", "*")
        assert wire.call("PING") == "PONG"


# --- bounds ---

def test_bounds_of_keys_and_values(node_with):
    node = node_with(ram="512MiB", disk="0")
    with Wire(node.port, timeout=60) as wire:
        key = os.urandom(1024)
        assert wire.call("SET", key, "v") == "OK" and wire.call("GET", key) == b"v"
        for words in [("SET", key + b"x", "v"), ("GET", key + b"x"), ("DEL", "a", key + b"x"),
                      ("MSET", "a", "1", key + b"x", "2"), ("MGET", "a", key + b"x")]:
            answer = wire.call(*words)
            assert isinstance(answer, Error) and "1024" in answer
        assert wire.call("EXISTS", "a") == 0
        big = os.urandom(MIB) * 64
        assert wire.call("SET", "big", big) == "OK"
        assert wire.call("GET", "big") == big
        assert wire.call("STRLEN", "big") == 64 * MIB
        assert wire.call("EXPIRE", "big", 100) == 1 and wire.call("GET", "big") == big
    with Wire(node.port) as wire:
        wire.send(b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$%d\r\n" % (64 * MIB + 1))
        assert isinstance(wire.value(), Error)


def test_a_value_that_the_ram_cannot_hold_is_refused(node_with):
    node = node_with("16MiB", "0")
    with Wire(node.port) as wire:
        assert wire.call("SET", "k", "old") == "OK"
        for words in [("SET", "k", b"x" * (20 * MIB)), ("MSET", "k", b"x" * (20 * MIB)),
                      ("SETEX", "k", 10, b"x" * (20 * MIB))]:
            assert isinstance(wire.call(*words), Error)
        assert wire.call("GET", "k") == b"old"


def test_a_client_that_does_not_read_holds_nobody_up(node_with):
    node = node_with(ram="64MiB", disk="0")
    with Wire(node.port) as slow, Wire(node.port) as wire:
        for i in range(40):
            assert wire.call("SET", f"v:{i}", os.urandom(MIB)) == "OK"
        slow.send(b"".join(request("GET", f"v:{i % 40}") for i in range(400)))
        time.sleep(0.2)
        small = time.monotonic()
        for i in range(200):
            assert wire.call("SET", f"s:{i}", b"x" * 1000) == "OK"
            assert wire.call("GET", f"s:{i}") == b"x" * 1000
        assert time.monotonic() - small < 10 + STALL
        for i in range(60):
            assert wire.call("SET", f"w:{i}", b"y" * MIB) == "OK"


def test_what_replies_hold_does_not_make_a_key_absent(node_with):
    """Half of the RAM waits to be taken by clients that do not read: what exists still does."""
    node = node_with("16MiB", "0", "--io-timeout=300ms")
    mine = b"mine" * 300000
    nothing = 0
    with Wire(node.port) as wire:
        for i in range(12):
            assert wire.call("SET", f"v:{i}", os.urandom(MIB)) == "OK"
        assert wire.call("SET", "lock", mine, "EX", 1000) == "OK"
        slow = [Wire(node.port) for _ in range(12)]
        for i, one in enumerate(slow):
            one.send(request("GET", f"v:{i}") * 40)
        end = time.monotonic() + STALL
        while not nothing and time.monotonic() < end:
            time.sleep(0.1)
            assert wire.call("SETNX", "lock", "stolen") != 1
            assert wire.call("SET", "lock", "stolen", "NX") != "OK"
            assert wire.call("MSETNX", "lock", "stolen", "other", "x") != 1
            got = wire.call("GET", "lock")
            assert got in (mine, None)
            nothing += got is None
        assert nothing, "the replies did not fill the memory they may"
        for one in slow:
            one.close()
        deadline = time.monotonic() + STALL
        while (got := wire.call("GET", "lock")) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert got == mine and wire.call("TTL", "lock") > 900
        assert wire.call("SETNX", "lock", "stolen") == 0


def test_an_empty_string_is_a_value(node_with):
    node = node_with(ram="16MiB", disk="2GiB")
    with Wire(node.port) as wire:
        assert wire.call("SET", "", "") == "OK" and wire.call("SET", "nul", b"\0") == "OK"
        assert wire.call("SET", "empty", "", "EX", 100) == "OK"
        for _ in range(2):
            assert wire.call("GET", "empty") == b"" and wire.call("STRLEN", "empty") == 0
            assert wire.call("GET", "") == b"" and wire.call("EXISTS", "", "empty") == 2
            assert wire.call("GET", "nul") == b"\0" and wire.call("STRLEN", "nul") == 1
            assert wire.call("GETRANGE", "empty", 0, -1) == b""
            assert wire.call("PERSIST", "empty") in (0, 1) and wire.call("GET", "empty") == b""
            leave_ram(wire)
    assert node.stop() == 0, node.said()
    node.again()
    with Wire(node.port) as wire:
        assert wire.call("MGET", "", "nul", "empty") == [b"", b"\0", b""]
