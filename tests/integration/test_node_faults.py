"""Clients that do what they should not: drip, vanish, hang up, never read, come by the thousand,
talk nonsense. Meanwhile a bystander sets and gets values, has every byte judged and may never wait
long; afterwards nothing of them is left."""

import os
import random
import resource
import socket
import struct
import subprocess
import threading
import time

import pytest

import kv_client as kv
from fleet import (MIB, SANITIZED, anonymous, ends_well, eventually, fds, info, quiet, sound, state)
from kv_client import Kv, key_of
from ledger import value_of
from patience import STALL, usual
from wire import Error, Gone, Wire, request

pytestmark = pytest.mark.timeout(600 if SANITIZED else 120)

TCP_REPAIR = 19
SLOWER = 6 if SANITIZED else 1


@pytest.fixture
def rng():
    seed = int(os.environ.get("CAIRN_TEST_SEED", random.SystemRandom().getrandbits(32)))
    print(f"CAIRN_TEST_SEED={seed}")
    return random.Random(seed)


class Bystander(threading.Thread):
    """Two ordinary clients, one a socket. `failure` says what went wrong."""

    def __init__(self, node):
        super().__init__(daemon=True)
        self.node, self.stop = node, threading.Event()
        self.rounds, self.took, self.failure = 0, [], None
        self.sizes = [30, 4096, 70_000, 300_000]
        self.start()

    def run(self):
        try:
            with Kv(self.node.port, timeout=60) as tcp:
                with Kv(path=self.node.socket, timeout=60) as local:
                    while not self.stop.is_set():
                        self.round(tcp, local)
                        time.sleep(0.002)
        except (Exception, AssertionError) as failure:
            self.failure = repr(failure)

    def round(self, tcp, local):
        begun = time.monotonic()
        self.rounds += 1
        name = b"by:%d" % (self.rounds % 4)
        value = value_of(name, self.rounds, self.sizes[self.rounds % 4])
        answer = tcp.call("SET", name, value)
        assert answer == "OK", f"SET of {len(value)} bytes: {answer}"
        got = local.call("GET", name)
        assert got == value, "missing" if got is None else "other bytes"
        chunk = key_of("by", self.rounds % 8)
        status = local.put(chunk, value, replace=True)
        assert status[0] == kv.OK, f"CAIRN.PUT answers {status}"
        assert tcp.fetch(chunk, len(value)) == value
        self.took.append(time.monotonic() - begun)

    def well(self, longest=4.0):
        """Ends it: no failure, and no round of its five commands took so many seconds, whatever
        the machine stood still; most took far less."""
        eventually(lambda: len(self.took) > 5 or self.failure)
        self.stop.set()
        self.join(60 + STALL)
        assert not self.is_alive() and not self.failure, self.failure
        slowest = max(self.took)
        assert slowest < longest * SLOWER + STALL and usual(self.took) < longest * SLOWER / 2, \
            f"{self.rounds} rounds, one took {slowest:.2f} s, most {usual(self.took):.2f} s"


def closed(s: socket.socket) -> bool:
    s.setblocking(False)
    try:
        while s.recv(1 << 16):
            pass
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def reset(s: socket.socket):
    """RST instead of FIN; a unix socket just closes."""
    if s.family != socket.AF_UNIX:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def either(node, i):
    """A connection over one of the two sockets."""
    return node.connect(tcp=i % 2 == 0)


SHAPES = [
    b"*3\r\n$3\r\nSET\r\n$4\r\nslow\r\n$100\r\n" + b"x" * 100,          # within every length
    b"*3\r\n$3\r\nSET\r\n$4\r\nslow\r\n$1048576\r\n" + b"x" * 100,      # within a long value
    b"SET slow inline",
    b"*1000\r\n$4\r\nMGET\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost",
]


def test_a_byte_a_second(new_node):
    """At every place of a request: after the stall timeout and what a value may take it is over."""
    node = new_node().start("--stall-timeout=2s")
    files = fds(node)
    bystander = Bystander(node)
    begun = time.monotonic()
    # Each has got this far at once, and goes on from there.
    drips = [(either(node, i), shape, at) for i, (shape, at) in enumerate(
        (shape, at) for shape in SHAPES for at in range(0, min(len(shape), 44), 4))]
    for s, shape, at in drips:
        s.sendall(shape[:at])
    left, turn = drips, 0
    while left and time.monotonic() - begun < 6 * SLOWER + STALL:
        for s, shape, at in left:
            try:
                s.send(shape[(at + turn) % len(shape):][:1])
            except OSError:
                pass
        turn += 1
        time.sleep(1)
        left = [d for d in left if not closed(d[0])]
    assert not left, f"{len(left)} of {len(drips)} are still there: {left[0][1][:40]!r}"
    bystander.well()
    for s, _, _ in drips:
        s.close()
    counts = info(node)
    assert counts["cairn_closed_request"] > len(drips) / 2
    quiet(node, files)
    ends_well(node)


def vanish(s: socket.socket):
    """As if its machine lost power: no FIN, no RST."""
    try:
        s.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
    except PermissionError:
        pytest.skip("TCP_REPAIR needs CAP_NET_ADMIN")
    s.close()


def test_half_open_connections(new_node):
    node = new_node().start("--stall-timeout=1s", "--idle-timeout=3s")
    files = fds(node)
    bystander = Bystander(node)
    with Wire(path=node.socket) as wire:
        assert wire.call("SET", "big", b"x" * (8 * MIB)) == "OK"
    for i in range(20):
        s = node.connect(tcp=True)
        s.sendall([b"PING\r\n", b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1000000\r\n" + b"x" * 5000,
                   b"GET big\r\n" * 3, b"*3\r\n$3\r\nSET\r\n$1\r\nb"][i % 4])
        if i % 4 in (0, 2):
            s.recv(7)
        vanish(s)
    eventually(lambda: state(node)["clients_count"] <= 2, 10 * SLOWER)
    bystander.well()
    quiet(node, files)
    ends_well(node)


def test_silent_peers_are_asked_whether_they_live(node):
    """Nothing closes an idle client by itself, so the kernel has to find out."""
    with Wire(node.port) as wire:
        assert wire.call("PING") == "PONG"
        timers = subprocess.run(["ss", "-tnoH", f"sport = :{node.port}"], capture_output=True,
                                text=True).stdout
        assert "keepalive" in timers, timers


def test_hanging_up_in_the_middle(new_node, rng, full):
    """RST, or a unix socket that closes, at any byte of a request or a reply."""
    node = new_node().start("--stall-timeout=3s", "--threads=3")
    files, memory = fds(node), anonymous(node)
    bystander = Bystander(node)
    names = [b"v:%d" % i for i in range(6)]
    chunks = [key_of("hang", i) for i in range(6)]
    with Kv(node.port) as c:
        for i, (name, chunk) in enumerate(zip(names, chunks)):
            assert c.call("SET", name, value_of(name, 1, 9 + i * MIB)) == "OK"
            assert c.put(chunk, value_of(chunk, 1, 9 + i * MIB))[0] == kv.OK
    value = value_of(b"h", 1, 2 * MIB)
    requests = [
        lambda: request("SET", "h", value),
        lambda: request("GETSET", "h", value[:500_000]),
        lambda: request("MSET", "h1", value[:20_000], "h2", value[:700_000]),
        lambda: request("CAIRN.PUT", 1000, kv.put_item(chunks[0], len(value), flags=kv.REPLACE),
                        kv.checks(value), b"side", value),
        lambda: request("GET", rng.choice(names)) * rng.randint(1, 20),
        lambda: request("MGET", *names),
        lambda: request("CAIRN.GET", 1000, b"".join(
            kv.get_item(k, 9 + i * MIB) for i, k in enumerate(chunks))),
        lambda: request("CAIRN.LEASE", 60000, 1000, b"".join(chunks)) * 3,
        lambda: request("CAIRN.ATTACH", 2 * MIB) + request("CAIRN.LEASE", 1, 1000, chunks[0]),
        lambda: request("KEYS", "*") * 50,
    ]
    for i in range(1500 if full else 300):
        s = either(node, i)
        data = rng.choice(requests)()
        s.sendall(data[:rng.randint(1, len(data))] if rng.random() < 0.5 else data)
        if rng.random() < 0.6:
            s.settimeout(0.01)
            try:
                for _ in range(rng.randint(1, 5)):
                    if not s.recv(rng.choice([1, 100, 70_000, MIB])):
                        break
            except TimeoutError:
                pass
        reset(s)
        if not SANITIZED:
            assert anonymous(node) < memory + 200 * MIB
    bystander.well()
    with Kv(node.port) as c:
        for i, (name, chunk) in enumerate(zip(names, chunks)):
            got = c.call("GET", name)
            assert got in (None, value_of(name, 1, 9 + i * MIB))
            assert c.fetch(chunk, 9 + i * MIB) in (None, value_of(chunk, 1, 9 + i * MIB))
    # This process attached, and what it leased stays until it ends or says that it is done.
    with Kv(path=node.socket) as c:
        c.attach()
        assert not isinstance(c.call("CAIRN.RELEASE", "CLOSED"), Error)
        c.unmap()
    quiet(node, files)
    ends_well(node)


@pytest.mark.parametrize("way", ["tcp", "unix"])
def test_clients_that_never_read(new_node, way):
    """They hold what the sockets and their output limit hold, and not for longer than they may."""
    node = new_node().start("--stall-timeout=2s", "--output-max=1MiB")
    files, memory = fds(node), anonymous(node)
    with Wire(path=node.socket) as wire:
        for i in range(8):
            assert wire.call("SET", f"v:{i}", os.urandom(MIB)) == "OK"
        assert wire.call("SET", "small", b"s" * 10_000) == "OK"
    bystander = Bystander(node)
    held = []
    for i in range(60):
        s = node.connect(tcp=way == "tcp", timeout=0.1)
        word = [b"GET v:%d" % (i % 8), b"GET small", b"GETRANGE small 0 500",
                b"INFO everything"][i % 4] + b"\r\n"
        try:
            while True:
                s.sendall(word * 2000)
        except OSError:
            pass
        held.append(s)
    most = 0
    begun = time.monotonic()
    while state(node)["clients_count"] > 2 and time.monotonic() - begun < 20 * SLOWER + STALL:
        most = max(most, anonymous(node))
        time.sleep(0.1)
    bystander.well()
    eventually(lambda: state(node)["clients_count"] == 0, 3 * SLOWER)
    if not SANITIZED:
        assert most < memory + 60 * 3 * MIB, f"they made the node hold {(most - memory) // MIB} MiB"
    for s in held:
        s.close()
    quiet(node, files)
    ends_well(node)


def test_clients_that_read_a_little_now_and_then(new_node):
    """Sockets take again only when much of their buffer is free, so a trickle is no progress. What
    replies pin in the arena keeps nobody out meanwhile."""
    node = new_node().start("--stall-timeout=4s", "--ram=32MiB")
    files = fds(node)
    with Wire(path=node.socket) as wire:
        for i in range(3):
            assert wire.call("SET", f"v:{i}", os.urandom(4 * MIB)) == "OK"
        assert wire.call("EXISTS", "v:0", "v:1", "v:2") == 3
    held = []
    for i in range(30):
        s = either(node, i)
        s.sendall(b"GET v:%d\r\n" % (i % 3) * 5)
        s.setblocking(False)
        held.append(s)
    bystander = Bystander(node)
    eventually(lambda: state(node)["clients_count"] == 32)
    begun = time.monotonic()
    while state(node)["clients_count"] > 2 and time.monotonic() - begun < 20 * SLOWER + STALL:
        time.sleep(0.5)
        for s in held:
            read_some(s, 10_000)
    bystander.well()
    eventually(lambda: state(node)["clients_count"] == 0, 10 * SLOWER)
    assert info(node)["cairn_closed_output"] >= 28
    for s in held:
        s.close()
    quiet(node, files)
    ends_well(node)


def read_some(s, count):
    try:
        s.recv(count)
    except OSError:
        pass


def test_announced_values_keep_nobody_out(new_node):
    """Clients that announce large values and send nothing, more than the arena holds."""
    node = new_node().start("--ram=64MiB", "--stall-timeout=20s")
    files, memory = fds(node), anonymous(node)
    held = []
    for i, size in enumerate([MIB] * 80 + [100_000] * 60 + [20_000] * 60):
        s = either(node, i)
        s.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nh\r\n$%d\r\nx" % size)
        held.append(s)
    time.sleep(0.5)
    bystander = Bystander(node)
    time.sleep(3)
    bystander.well()
    if not SANITIZED:
        assert anonymous(node) < memory + 1200 * MIB
    for i, s in enumerate(held):
        (reset if i % 2 else socket.socket.close)(s)
    quiet(node, files)
    ends_well(node)


@pytest.fixture
def many_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    want = 12_000
    if soft < want:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (want, max(hard, want)))
        except (ValueError, OSError):
            pytest.skip(f"10,000 connections need {want} open files; the limit is {hard}")
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_ten_thousand_connections(new_node, many_files):
    count = 10_000
    node = new_node().start(f"--clients-max={count + 10}", "--stall-timeout=60s")
    files, memory = fds(node), anonymous(node)
    bystander = Bystander(node)
    begun = time.monotonic()
    held = []
    for i in range(count):
        s = either(node, i)
        s.sendall(b"PING\r\n")
        held.append(s)
    for s in held:
        assert s.recv(10) == b"+PONG\r\n"
    came = time.monotonic() - begun
    each = (anonymous(node) - memory) / count
    for turn in range(3):
        for i, s in enumerate(held):
            name = b"c:%d" % (i % 500)
            s.sendall(request("SET", name, b"%d" % i) + request("GET", name))
        for i, s in enumerate(held):
            answer = b""
            while answer.count(b"\r\n") < 3:
                answer += s.recv(100)
            assert answer.startswith(b"+OK\r\n$") and int(answer.split(b"\r\n")[2]) % 500 == i % 500
    bystander.well()
    print(f"{count} connections came within {came:.1f} s and hold {each:.0f} bytes each")
    assert came < 30 * SLOWER + STALL
    if not SANITIZED:
        assert each < 64 * 1024
    begun = time.monotonic()
    for s in held:
        s.close()
    quiet(node, files, 30 * SLOWER)
    assert node.process.poll() is None
    ends_well(node)


@pytest.mark.skipif(bool(SANITIZED), reason="sanitizers need all of the address space")
def test_memory_that_runs_out(new_node, rng):
    """malloc fails while many ask for much: errors and closed connections, no crash, and afterwards
    all is as before."""
    node = new_node().start("--ram=64MiB", "--stall-timeout=3s", "--http-port=0")
    node.http_port = 0
    with Wire(node.port) as wire:
        for i in range(100):
            assert wire.call("SET", f"v:{i}", os.urandom(100_000)) == "OK"
    size = int(open(f"/proc/{node.process.pid}/statm").read().split()[0]) * resource.getpagesize()
    no_limit = resource.prlimit(node.process.pid, resource.RLIMIT_AS)
    resource.prlimit(node.process.pid, resource.RLIMIT_AS, (size + 4 * MIB, no_limit[1]))
    long = b"x" * (2 * MIB)
    wishes = [
        lambda: request("ECHO", long),
        lambda: request("MSET", *[w for i in range(4) for w in (b"m:%d" % i, long[:MIB])]),
        lambda: request("GET", "v:1") * 500,
        lambda: request("MGET", *[b"v:%d" % i for i in range(100)]) * 20,
        lambda: request("DEL", *[b"none:%d" % i for i in range(100_000)]),
        lambda: request("CAIRN.LEASE", 1000, 100, rng.randbytes(32 * 8192)),
        lambda: request("CAIRN.GET", 100, b"".join(
            kv.get_item(rng.randbytes(32), 60 * MIB, flags=kv.RANGE) for _ in range(512))),
        lambda: request("KEYS", "*") * 200,
        lambda: request("COMMAND") * 50,
    ]
    held = []

    def refused():
        try:
            return info(node)["cairn_payload_refused"] > 0
        except (OSError, Gone, KeyError, AttributeError):
            return False

    for i in range(3000):
        if i >= 300 and i % 50 == 0 and refused():
            break
        try:
            s = either(node, i)
            s.settimeout(0.05)
            held.append(s)
            s.sendall(rng.choice(wishes)())
            s.recv(100)
        except OSError:
            pass
        assert node.process.poll() is None, node.said()
    resource.prlimit(node.process.pid, resource.RLIMIT_AS, no_limit)
    for s in held:
        s.close()
    eventually(lambda: info(node)["connected_clients"] == 1, 20)
    assert info(node)["cairn_payload_refused"] > 0, "memory did not run out"
    with Wire(node.port) as wire:
        for i in range(100):
            assert wire.call("SET", f"v:{i}", long[:100_000]) == "OK"
            assert wire.call("GET", f"v:{i}") == long[:100_000]
        assert wire.call("ECHO", long) == long
    ends_well(node)


def test_connections_come_and_go(new_node, rng, full):
    node = new_node().start("--threads=3")
    files, memory = fds(node), anonymous(node)
    bystander = Bystander(node)
    for i in range(50_000 if full else 8000):
        s = either(node, i)
        kind = i % 5
        if kind == 1:
            s.sendall(b"PING\r\n")
        elif kind == 2:
            s.sendall(b"PING\r\n")
            assert s.recv(10) == b"+PONG\r\n"
        elif kind == 3:
            s.sendall(b"*2\r\n$4\r\nECH")
        elif kind == 4:
            s.sendall(b"SET churn x\r\nQUIT\r\n")
            assert s.recv(10).startswith(b"+OK\r\n")
        (reset if rng.random() < 0.3 else socket.socket.close)(s)
    bystander.well()
    quiet(node, files)
    if not SANITIZED:
        assert anonymous(node) < memory + 16 * MIB
    ends_well(node)


LENGTHS = [b"-1", b"0", b"1", b"2147483647", b"2147483648", b"4294967295", b"4294967296",
           b"9223372036854775807", b"9223372036854775808", b"18446744073709551615", b"-2147483648",
           b"1e9", b"", b" 5", b"0x10", b"67108864", b"67108865", b"1048576", b"1048577", b"+5"]
WORDS = [b"GET", b"SET", b"MSET", b"CAIRN.GET", b"CAIRN.PUT", b"CAIRN.LEASE", b"CAIRN.ATTACH",
         b"HELLO", b"CLIENT", b"CONFIG", b"COMMAND", b"SCAN", b"CAIRN.CLEAR", b"CAIRN.WHY",
         b"CAIRN.RELEASE",
         b"CAIRN.DELETE", b"CAIRN.LOOKUP", b"EXPIRE", b"GETEX", b"", b"\xff\x00", b"x" * 300]


def nonsense(rng):
    kind = rng.random()
    if kind < 0.2:
        return rng.randbytes(rng.randint(1, 5000))
    if kind < 0.45:
        return b"*%s\r\n$%s\r\n" % (rng.choice(LENGTHS), rng.choice(LENGTHS)) + rng.randbytes(50)
    if kind < 0.65:
        args = [rng.choice(LENGTHS + [rng.randbytes(rng.choice([3, 32, 88, 128]))])
                for _ in range(rng.randint(0, 6))]
        return request(rng.choice(WORDS), *args) * rng.randint(1, 30)
    if kind < 0.85:
        data = bytearray(b"".join(
            request(rng.choice(WORDS), b"k", rng.randbytes(rng.randint(0, 40))) for _ in range(20)))
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.getrandbits(8)
        return bytes(data)
    if kind < 0.9:
        return b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200)
    if kind < 0.95:
        return b"x" * rng.choice([65_535, 65_536, 200_000])
    return b"*1\r\n" * 20_000 + b"*0\r\n" * 20_000


def test_nonsense(new_node, rng, full):
    """Pipelines of garbage, mutated requests and lengths beyond all bounds: answered or closed,
    never a crash, never much memory, and nobody else's values change."""
    node = new_node().start("--stall-timeout=2s", "--ram=64MiB", "--threads=2")
    files, memory = fds(node), anonymous(node)
    with Kv(path=node.socket) as c:
        mine = {b"mine:%d" % i: value_of(b"mine:%d" % i, 1, 3000) for i in range(20)}
        for name, value in mine.items():
            assert c.call("SET", name, value) == "OK"
    for i in range(4000 if full else 500):
        data = nonsense(rng)
        # Words that end the node or take away everybody's values are nobody's nonsense.
        if any(word in data.upper() for word in (b"SHUTDOWN", b"FLUSH")):
            continue
        s = either(node, i)
        s.settimeout(0.02)
        try:
            s.sendall(data)
            while s.recv(1 << 16):
                pass
        except OSError:
            pass
        (reset if i % 3 else socket.socket.close)(s)
        if i % 50 == 0:
            sound(node)
            with Wire(path=node.socket, timeout=10 * SLOWER) as wire:
                assert wire.call("PING") == "PONG"
            if not SANITIZED:
                assert anonymous(node) < memory + 100 * MIB
    with Wire(path=node.socket) as wire:
        for name, value in mine.items():
            assert wire.call("GET", name) in (None, value)
    with Kv(path=node.socket) as c:
        c.attach()
        c.call("CAIRN.RELEASE", "CLOSED")
        c.unmap()
    quiet(node, files)
    ends_well(node)
