"""The CAIRN.* commands of a node, as raw requests over both sockets. Values follow from their keys,
so every byte that comes back is judged; the client verifies the checks of every answer."""

import hashlib
import json
import random
import struct
import time
import urllib.request

import pytest

from keys_reference import canonical
from kv_client import (BUSY, CAUSES, CORRUPT, EXISTS, MISS, NOSPACE, OK, PIECE, RANGE, TIMEOUT,
                       TOOBIG, WINDOW, ZERO, Kv, checks, get_item, key_of, put_item, value_of)
from patience import STALL
from wire import Error, request

SIZES = [1, 7, 4096, 16384, 16385, 100_000, PIECE - 1, PIECE, PIECE + 1, 1_000_000, 4 << 20]


def connect(node, way="unix", **options) -> Kv:
    return Kv(port=node.port, **options) if way == "tcp" else Kv(path=node.socket, **options)


def state(node) -> dict:
    with urllib.request.urlopen(f"http://127.0.0.1:{node.http_port}/debug/state", timeout=10) as r:
        return json.load(r)


def metrics(node) -> dict:
    with urllib.request.urlopen(f"http://127.0.0.1:{node.http_port}/metrics", timeout=10) as r:
        lines = [line.rsplit(" ", 1) for line in r.read().decode().splitlines()
                 if line and not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def until(what, seconds=10.0):
    end = time.monotonic() + seconds + STALL
    while not (got := what()):
        assert time.monotonic() < end, "it did not come to pass in time"
        time.sleep(0.02)
    return got


def chain(name, sizes, linked=True):
    """[(key, value, parent)...]; heads of chains stay longer than what stands alone."""
    out, parent = [], ZERO
    for i, size in enumerate(sizes):
        key = key_of(name, i)
        out.append((key, value_of(key, size), parent))
        parent = key if linked else ZERO
    return out


def put_chain(kv, links, **more):
    for key, value, parent in links:
        assert kv.put(key, value, parent=parent, **more) == [OK, 0]


def press(kv, megabytes, name="pressure"):
    """Values enough to push everything out that may leave."""
    for i in range(megabytes):
        key = key_of(name, i)
        answer = kv.put(key, value_of(key, 1 << 20))
        assert answer[0] in (OK, EXISTS, NOSPACE), answer


@pytest.fixture
def lru_node(new_node):
    """Whatever nobody uses leaves under pressure, also what was used once."""
    return new_node().start("--policy=lru")


@pytest.fixture
def disk_node(new_node):
    node = new_node()
    return node.start(f"--disk-path={node.place / 'node.cairn'}", "--disk=256MiB")


@pytest.mark.parametrize("way", ["unix", "tcp"])
@pytest.mark.parametrize("proto", [2, 3])
def test_chain(node, way, proto):
    kv = connect(node, way, proto=proto)
    links = chain("chain", SIZES)
    keys = [key for key, _, _ in links]
    assert kv.lookup(keys) == [0, 0]
    put_chain(kv, links)
    assert kv.lookup(keys) == [len(keys), len(keys)]
    assert kv.lookup([*keys[:3], key_of("absent"), *keys[3:]]) == [3, 3]
    got = kv.get(*[get_item(key, len(value)) for key, value, _ in links])
    assert [data for _, _, data in got] == [value for _, value, _ in links]
    for key, value, _ in links:
        assert kv.call("CAIRN.LENGTH", key) == len(value)
        assert kv.call("CAIRN.LENGTH", key.hex()) == len(value)
    assert kv.call("CAIRN.LENGTH", key_of("absent")) == 0
    assert kv.call("CAIRN.DELETE", 60_000, keys[1] + key_of("absent") + keys[0]) == [OK, MISS, OK]
    assert kv.lookup(keys) == [0, 0]
    assert kv.fetch(keys[0], 1) is None


def test_hello(node):
    kv = connect(node, proto=3)
    answer = kv.call("CAIRN.HELLO", 1, "TENANT", "default")
    told = dict(zip(answer[::2], answer[1::2]))
    assert told[b"protocol"] == 1 and told[b"tenant"] == b"default" and len(told[b"run_id"]) == 40
    assert told[b"local"] is True and told[b"shared"] is True and told[b"value_max"] > 1 << 20
    far = connect(node, "tcp", proto=3).call("CAIRN.HELLO", 1)
    told = dict(zip(far[::2], far[1::2]))
    assert told[b"local"] is False and told[b"shared"] is False
    assert "version 1" in kv.call("CAIRN.HELLO", 2)
    assert '"default"' in kv.call("CAIRN.HELLO", 1, "TENANT", "other")


@pytest.mark.parametrize("way", ["unix", "tcp"])
def test_keep_and_replace(node, way):
    kv = connect(node, way)
    key = key_of("replaced")
    old, new = value_of(key, 300_000, 1), value_of(key, 400_000, 2)
    assert kv.put(key, old) == [OK, 0]
    assert kv.put(key, new) == [EXISTS, 0]
    assert kv.fetch(key, len(old)) == old
    assert kv.put(key, new, replace=True) == [OK, 0]
    assert kv.fetch(key, len(old)) is None
    assert kv.fetch(key, len(new)) == new


def test_long_values_are_hashed_by_a_worker(node):
    """As those of SET: whoever else is on its network thread does not wait for it."""
    def waited():
        lines = kv.call("INFO", "stats").decode().splitlines()
        return int(dict(line.split(":") for line in lines if ":" in line)["cairn_waited_commands"])

    kv = connect(node)
    for size, others in ((1 << 20, 0), (6 << 20, 1)):
        key, before = key_of("long", size), waited()
        value = value_of(key, size)
        assert kv.put(key, value) == [OK, 0] and waited() - before == others
        assert kv.fetch(key, size) == value


@pytest.mark.parametrize("size", [5000, 20_000, 1_000_000])
def test_wrong_checks_are_refused(node, size):
    kv = connect(node)
    key = key_of("wrong")
    value = value_of(key, size)
    wrong = bytearray(checks(value))
    wrong[-1] ^= 1
    assert kv.put(key, value, wrong_checks=bytes(wrong)) == [CORRUPT, 3]
    assert kv.lookup([key]) == [0, 0]
    assert kv.put(key, value) == [OK, 0]
    other = value_of(key, size, 1)
    assert kv.put(key, other, wrong_checks=bytes(wrong), replace=True) == [CORRUPT, 3]
    assert kv.fetch(key, size) == value
    assert kv.call("PING") == "PONG"


def test_bytes_that_find_no_memory(new_node):
    """No room in the arena, which takes no value of that size, nor memory of the client."""
    node = new_node().start("--client-memory=1MiB")
    kv = connect(node)
    value = value_of(key_of("no memory"), 40 << 20)
    assert kv.put(key_of("no memory"), value) == [NOSPACE, 11]
    assert kv.put(key_of("memory"), value[:1000]) == [OK, 0]
    assert kv.fetch(key_of("memory"), 1000) == value[:1000]


def test_what_a_get_asks_for_is_compared(node):
    kv = connect(node)
    key, mark = key_of("compared"), key_of("an identity")
    value = value_of(key, 50_000)
    assert kv.put(key, value, fingerprint=mark) == [OK, 0]
    assert kv.get(get_item(key, 50_000, fingerprint=mark)) == [(OK, "none", value)]
    assert kv.get(get_item(key, 50_000, fingerprint=key_of("another"))) == [
        (MISS, "identity", None)]
    assert kv.get(get_item(key, 49_999)) == [(MISS, "length", None)]
    assert kv.get(get_item(key_of("absent"), 1)) == [(MISS, "absent", None)]
    assert kv.get(get_item(key, 2, offset=49_999, flags=RANGE)) == [(MISS, "length", None)]
    past = time.time_ns() - 1
    misses = json.loads(kv.call("CAIRN.STATS"))["misses"]
    assert misses["identity"] == 1 and misses["length"] == 2 and misses["absent"] == 1
    assert kv.put(key_of("short-lived"), value, expires_ns=past) == [OK, 0]
    assert kv.fetch(key_of("short-lived"), 50_000) is None


def read_ranges(kv, key, value, count, seed):
    rng = random.Random(seed)
    for _ in range(count):
        offset = rng.choice([0, rng.randrange(len(value)), PIECE, 2 * PIECE])
        most = len(value) - offset
        length = rng.choice([1, min(most, PIECE), min(most, 4096), most,
                             rng.randrange(1, most + 1)])
        got = kv.get(get_item(key, length, offset=offset, flags=RANGE))
        assert got == [(OK, "none", value[offset:offset + length])], (offset, length)


@pytest.mark.parametrize("way", ["unix", "tcp"])
def test_ranges(node, way):
    kv = connect(node, way)
    key = key_of("ranges")
    value = value_of(key, 3_000_001)
    assert kv.put(key, value) == [OK, 0]
    read_ranges(kv, key, value, 120, seed=7)


def test_side_records(node):
    kv = connect(node)
    for size, side in ((100, b"x"), (70_000, bytes(range(256)) * 256), (2 << 20, b"s" * 5000)):
        key = key_of("side", size)
        value = value_of(key, size)
        assert kv.put(key, value, side=side) == [OK, 0]
        assert kv.call("CAIRN.SIDE", 1000, key) == [OK, side]
        assert kv.fetch(key, size) == value
    assert kv.call("CAIRN.SIDE", 1000, key_of("absent")) == [MISS, None]


def test_sizes_that_cannot_be(node):
    kv = connect(node)
    most = dict(zip(*[iter(kv.call("CAIRN.HELLO", 1))] * 2))[b"value_max"]
    key = key_of("big")
    value = value_of(key, most)
    assert kv.put(key, value) == [OK, 0]
    assert kv.fetch(key, most) == value
    big = bytes(most + 1)
    assert kv.put(key_of("too big"), big) == [TOOBIG, 13]
    assert kv.call("PING") == "PONG"


GOOD_PUT = put_item(key_of("good"), 3)
BAD = [
    ("LOOKUP", [b""]), ("LOOKUP", [b"x" * 33]), ("LOOKUP", [b"x" * 32 * 8193]),
    ("LENGTH", [b"x" * 31]), ("LENGTH", [b"g" * 64]),
    ("GET", [1000, b""]), ("GET", [1000, b"x" * 87]), ("GET", [1000, get_item(ZERO, 5)]),
    ("GET", [1000, get_item(key_of(1), 0)]), ("GET", [1000, get_item(key_of(1), 5, offset=1)]),
    ("GET", [1000, get_item(key_of(1), 5, flags=2)]), ("GET", [-1, get_item(key_of(1), 5)]),
    ("GET", ["soon", get_item(key_of(1), 5)]), ("GET", [1000, get_item(key_of(1), 1) * 513]),
    ("GET", [1000, get_item(key_of(1), 2**63, offset=2**63, flags=RANGE)]),
    ("PUT", [1000, b"", b"", b"", b"abc"]), ("PUT", [1000, GOOD_PUT, b"", b"", b"abc"]),
    ("PUT", [1000, GOOD_PUT, checks(b"abc") * 2, b"", b"abc"]),
    ("PUT", [1000, GOOD_PUT, checks(b"abc"), b"", b"abcd"]),
    ("PUT", [1000, GOOD_PUT, checks(b"abc"), b"s" * 65537, b"abc"]),
    ("PUT", [1000, put_item(ZERO, 3), checks(b"abc"), b"", b"abc"]),
    ("PUT", [1000, put_item(key_of(1), 0), b"", b"", b""]),
    ("PUT", [1000, put_item(key_of(1), 3, flags=4), checks(b"abc"), b"", b"abc"]),
    ("PUT", [1000, put_item(key_of(1), 3, flags=WINDOW), checks(b"abc"), b"", b""]),
    ("PUT", [1000, put_item(key_of(1), 3, offset=5), checks(b"abc"), b"", b"abc"]),
    ("PUT", [1000, put_item(key_of(1), 2**63), b"", b"", b""]),
    ("PUT", [1000, GOOD_PUT[:-4] + b"pad!", checks(b"abc"), b"", b"abc"]),
    ("LEASE", [-5, 1000, key_of(1)]), ("LEASE", [5, "x", key_of(1)]), ("LEASE", [5, 5, b"short"]),
    ("RENEW", ["x", 5]), ("RENEW", [1, -5]), ("RELEASE", ["x"]), ("RELEASE", [0]),
    ("RELEASE", [1, "ALL"]), ("SIDE", [5, b"short"]), ("DELETE", [5, b"short"]),
    ("FLUSH", ["never"]), ("PREFETCH", [b""]), ("PIN", [b"short"]), ("UNPIN", [b"short"]),
    ("CLEAR", ["EVERYTHING"]), ("CLEAR", ["IDENTITY"]), ("CLEAR", ["PREFIX", b"short"]),
    ("CLEAR", ["ALL", "NOW"]), ("IDENTITY", [b"no identity"]), ("WHY", [b""]), ("WHYMISS", [b"x"]),
    ("HELLO", ["one"]), ("HELLO", [1, "USER", "default"]), ("ATTACH", ["x"]), ("ATTACH", [-1]),
    ("VERIFY", [b"short"]), ("STATS", ["IDENTITY", b"short"]), ("STATS", ["EVERYTHING"]),
]


@pytest.mark.parametrize("way", ["unix", "tcp"])
def test_malformed_requests_are_answered_with_a_sentence(node, way):
    kv = connect(node, way)
    for name, args in BAD:
        answer = kv.call(f"CAIRN.{name}", *args)
        assert isinstance(answer, Error), (name, args, answer)
        if way == "tcp" and name == "ATTACH":
            assert "unix socket" in answer
            continue
        assert answer.startswith(f"ERR CAIRN.{name}: "), (name, args, answer)
    assert kv.call("CAIRN.LOOKUP").startswith("ERR wrong number of arguments")
    assert kv.call("DBSIZE") == 0 and kv.lookup([key_of(1)]) == [0, 0]


def test_random_requests_do_no_harm(node):
    """Arguments of any bytes and lengths: every request gets an answer, and the node lives."""
    rng = random.Random(20260)
    names = ["HELLO", "LOOKUP", "GET", "PUT", "LEASE", "RENEW", "RELEASE", "LENGTH", "SIDE",
             "DELETE", "PREFETCH", "PIN", "UNPIN", "CLEAR", "IDENTITY", "WHY", "WHYMISS", "VERIFY",
             "STATS", "ATTACH"]
    key = key_of("held")
    seeds = [b"", b"0", b"1", b"-1", b"1000", b"ALL", b"PREFIX", b"IDENTITY", key, key * 3,
             GOOD_PUT, get_item(key, 5000), checks(b"abc"), b"abc", b"\xff" * 88, b"9" * 30,
             b"x" * 20_000]
    kv = connect(node)
    assert kv.put(key, value_of(key, 5000)) == [OK, 0]
    for _ in range(3000):
        args = []
        for _ in range(rng.randrange(6)):
            arg = bytearray(rng.choice(seeds))
            for _ in range(rng.choice([0, 0, 1, 3])):
                if arg:
                    arg[rng.randrange(len(arg))] = rng.randrange(256)
            args.append(bytes(arg))
        name = rng.choice(names)
        if name == "ATTACH":
            args = [b"junk"]
        kv.call(f"CAIRN.{name}", *args)
    assert node.process.poll() is None
    kv.call("CAIRN.RELEASE", "ALL")
    fresh = connect(node)
    assert fresh.put(key, value_of(key, 5000), replace=True)[0] == OK
    assert fresh.fetch(key, 5000) == value_of(key, 5000)


def test_a_batch_is_bounded(new_node):
    node = new_node().start("--ram=512MiB")
    kv = connect(node, "tcp")
    keys = [key_of("batch", i) for i in range(40)]
    body = value_of(keys[0], 4 << 20)
    for key in keys:
        assert kv.put(key, body) == [OK, 0]
    got = kv.get(*[get_item(key, len(body)) for key in keys])
    assert [status for status, _, _ in got] == [OK] * 32 + [BUSY] * 8
    assert all(data == body for status, _, data in got if status == OK)
    assert got[32][1] == "queue_full"
    got = kv.get(*[get_item(key, len(body)) for key in keys[32:]])
    assert all(data == body for _, _, data in got)
    until(lambda: state(node)["shared"]["lease_pins"] == 0)
    many = [get_item(keys[i % 40], 1, offset=i, flags=RANGE) for i in range(512)]
    assert [d for _, _, d in kv.get(*many)] == [body[i:i + 1] for i in range(512)]


def test_a_get_beyond_the_lease_budget_is_copied(node):
    """Half of the RAM is leased to somebody: others still get what is held."""
    holder, kv = connect(node), connect(node, "tcp")
    links = chain("budget", [2 << 20] * 20)
    put_chain(kv, links)
    lease, views = holder.lease([key for key, _, _ in links])
    assert lease and 10 <= len(views) <= 16
    for key, value, _ in links[-3:]:
        assert kv.fetch(key, len(value)) == value
    key, value, _ = links[-1]
    read_ranges(kv, key, value, 20, seed=3)


@pytest.mark.parametrize("way", ["unix", "tcp"])
def test_leases_without_shared_memory(lru_node, way):
    kv, other = connect(lru_node, way), connect(lru_node, way)
    links = chain("lease", [1 << 20] * 4, linked=False)
    keys = [key for key, _, _ in links]
    put_chain(kv, links)
    lease, views = kv.lease([*keys, key_of("absent")])
    assert lease > 0 and [length for _, length, _, _ in views] == [1 << 20] * 4
    assert kv.lease([key_of("absent"), *keys]) == (0, [])
    assert other.call("CAIRN.RELEASE", lease) == 0, "another connection's lease"
    assert other.call("CAIRN.RENEW", lease, 1000) == TIMEOUT
    press(other, 100)
    assert kv.lookup(keys) == [4, 4]
    assert kv.call("CAIRN.RENEW", lease, 60000) == OK
    assert kv.call("CAIRN.RELEASE", lease, lease, lease + 4096) == 1
    assert kv.call("CAIRN.RENEW", lease, 60000) == TIMEOUT
    press(other, 100, "again")
    assert kv.lookup(keys) == [0, 0]


def test_leases_end_with_their_time_or_connection(node):
    kv, short = connect(node), connect(node, "tcp")
    links = chain("ends", [1 << 20] * 4)
    keys = [key for key, _, _ in links]
    put_chain(kv, links)
    lease, views = short.lease(keys, ttl=300)
    assert len(views) == 4 and state(node)["leases_count"] == 1
    until(lambda: state(node)["leases_count"] == 0, 2)
    assert short.call("CAIRN.RENEW", lease, 1000) == TIMEOUT
    lease, _ = short.lease(keys, ttl=60000)
    assert state(node)["leases_count"] == 1
    short.close()
    until(lambda: state(node)["leases_count"] == 0, 2)
    assert state(node)["shared"]["lease_pins"] == 0


def test_leases_of_one_client_are_bounded(node):
    kv = connect(node)
    key = key_of("bounded")
    assert kv.put(key, value_of(key, 100)) == [OK, 0]
    leases = [kv.lease([key])[0] for _ in range(4096)]
    assert len(set(leases)) == 4096
    assert "release some" in kv.lease([key])
    assert kv.call("CAIRN.RELEASE", *leases[:100]) == 100
    assert kv.lease([key])[0] not in leases
    assert kv.call("CAIRN.RELEASE", "ALL") == 3997
    assert state(node)["leases_count"] == 0


def test_pins(lru_node):
    node, kv = lru_node, connect(lru_node)
    links = chain("pins", [1 << 20] * 6, linked=False)
    keys = [key for key, _, _ in links]
    put_chain(kv, links)
    assert kv.call("CAIRN.PIN", b"".join(keys) + key_of("absent")) == 6
    assert kv.call("CAIRN.PIN", keys[0]) == 1
    assert state(node)["shared"]["operator_pins"] == 6
    press(kv, 100)
    assert kv.lookup(keys) == [6, 6]
    new = value_of(keys[0], 1 << 20, 1)
    assert kv.put(keys[0], new, replace=True) == [OK, 0]
    press(kv, 100, "again")
    assert kv.fetch(keys[0], 1 << 20) == new, "the pin went over to the new value"
    assert kv.call("CAIRN.DELETE", 60_000, keys[5]) == [OK]
    assert state(node)["shared"]["operator_pins"] == 5
    assert kv.call("CAIRN.UNPIN", b"".join(keys)) == 5
    press(kv, 100, "and again")
    assert kv.lookup(keys) == [0, 0]


def string_name(text: bytes, tenant: int = 0) -> bytes:
    """What a string's key is called in the vault (tools/cairnd/README.md)."""
    tag = b"cairn string 1".ljust(16, b"\0")
    return hashlib.sha256(tag + struct.pack("<I", tenant) + text).digest()


@pytest.mark.parametrize("on_disk", [False, True])
def test_strings_are_nothing_to_the_chunks(disk_node, on_disk):
    """A string's name in the vault is no secret: whoever asks for it as a chunk finds nothing."""
    node, value, name = disk_node, b"string" * 1000, string_name(b"mine")
    kv, first = connect(node), key_of("first")
    assert kv.call("SET", "mine", value) == "OK"
    assert kv.put(first, value_of(first, 5000)) == [OK, 0]
    if on_disk:
        assert kv.call("CAIRN.FLUSH", 4000) == OK
        node.stop()
        node.start(f"--disk-path={node.place / 'node.cairn'}", "--disk=256MiB")
        kv = connect(node)
    assert kv.lookup([name]) == [0, 0]
    assert kv.lookup([first, name])[0] == 1
    assert kv.call("CAIRN.LENGTH", name) == 0
    assert dict(zip(*[iter(kv.call("CAIRN.WHYMISS", name))] * 2))[b"held"] == 0
    assert kv.call("CAIRN.PREFETCH", name) == 0
    assert kv.call("CAIRN.PIN", name) == 0
    assert kv.fetch(name, len(value)) is None
    assert kv.call("CAIRN.DELETE", 1000, name) == [MISS]
    assert kv.call("CAIRN.DELETE", 1000, first + name) == [OK, MISS]
    for replace in (False, True):
        status, cause = kv.put(name, b"a chunk", replace=replace)
        assert status < 0 and CAUSES[cause] == "space"
    assert kv.call("GET", "mine") == value
    assert kv.call("DEL", "mine") == 1
    assert kv.put(name, b"a chunk") == [OK, 0]
    assert kv.call("GET", "mine") is None and kv.call("DEL", "mine") == 0
    assert kv.fetch(name, 7) == b"a chunk"
    assert "delete that chunk first" in kv.call("SET", "mine", "a string again")
    assert kv.call("GET", "mine") is None and kv.fetch(name, 7) == b"a chunk"
    assert kv.call("CAIRN.DELETE", 1000, name) == [OK]
    assert kv.call("SET", "mine", "a string again") == "OK"
    assert kv.call("GET", "mine") == b"a string again" and kv.fetch(name, 7) is None


def test_flush_without_a_disk_says_so(node):
    assert connect(node).call("CAIRN.FLUSH", 1000) == -31


def test_from_disk(disk_node):
    """After a restart everything is on disk: looked up, leased, got, prefetched."""
    node, sizes = disk_node, [300_000, 1 << 20, 5000, 2_500_000, 1 << 20, 64_000]
    links = chain("disk", sizes)
    keys = [key for key, _, _ in links]
    kv = connect(node)
    put_chain(kv, links, side=b"beside")
    assert kv.call("CAIRN.FLUSH", 4000) == OK
    node.stop()
    node.start(f"--disk-path={node.place / 'node.cairn'}", "--disk=256MiB")
    kv = connect(node)
    assert kv.lookup(keys) == [6, 0]
    key, value, _ = links[3]
    assert kv.get(get_item(key, len(value)), timeout=0) == [(TIMEOUT, "deadline", None)]
    read_ranges(kv, key, value, 10, seed=5)
    assert kv.call("CAIRN.SIDE", 4000, keys[5]) == [OK, b"beside"]
    items = [get_item(k, len(v)) for k, v, _ in links]
    items.insert(2, get_item(key_of("absent"), 5))
    items.insert(4, get_item(key, 10_000, offset=1_000_000, flags=RANGE))
    got = [data for _, _, data in kv.get(*items)]
    assert got.pop(4) == value[1_000_000:1_010_000]
    assert got.pop(2) is None
    assert got == [v for _, v, _ in links]
    node.stop()
    node.start(f"--disk-path={node.place / 'node.cairn'}", "--disk=256MiB")
    kv = connect(node)
    assert kv.call("CAIRN.PREFETCH", b"".join([*keys, key_of("absent")])) == 6
    until(lambda: kv.lookup(keys) == [6, 6])
    assert kv.call("CAIRN.PREFETCH", b"".join(keys)) == 0
    node.stop()
    node.start(f"--disk-path={node.place / 'node.cairn'}", "--disk=256MiB")
    kv = connect(node)
    lease, views = kv.lease([*keys, key_of("absent")], timeout=4000)
    assert lease and [length for _, length, _, _ in views] == sizes
    assert kv.lookup(keys) == [6, 6]


def test_replaced_and_deleted_stay_so_after_kill(disk_node):
    node = disk_node
    kv = connect(node)
    old = chain("kill", [200_000] * 8)
    put_chain(kv, old)
    assert kv.call("CAIRN.FLUSH", 4000) == OK
    for key, _, _ in old[:4]:
        assert kv.put(key, value_of(key, 200_000, 1), replace=True) == [OK, 0]
    assert kv.call("CAIRN.DELETE", 4000, b"".join(k for k, _, _ in old[4:6])) == [OK, OK]
    node.kill()
    node.start(f"--disk-path={node.place / 'node.cairn'}", "--disk=256MiB")
    kv = connect(node)
    for key, value, _ in old[:4]:
        assert kv.fetch(key, 200_000) in (None, value_of(key, 200_000, 1))
    for key, _, _ in old[4:6]:
        assert kv.fetch(key, 200_000) is None
    for key, value, _ in old[6:]:
        assert kv.fetch(key, 200_000) == value


def clear_stage(kv):
    """Two identities, a tree of chunks, a string."""
    one, two = key_of("identity", 1), key_of("identity", 2)
    trunk = chain("trunk", [3000] * 30)
    left, right = chain("left", [3000] * 20), chain("right", [3000] * 20)
    left[0] = (left[0][0], left[0][1], trunk[9][0])
    right[0] = (right[0][0], right[0][1], trunk[19][0])
    put_chain(kv, trunk, fingerprint=one)
    put_chain(kv, left, fingerprint=one)
    put_chain(kv, right, fingerprint=two)
    assert kv.call("SET", "a string", "stays") == "OK"
    return one, two, [[key for key, _, _ in links] for links in (trunk, left, right)]


@pytest.mark.parametrize("kind", ["node", "disk_node"])
def test_clear(request, kind):
    node = request.getfixturevalue(kind)
    kv = connect(node)
    one, two, (trunk, left, right) = clear_stage(kv)
    if kind == "disk_node":
        assert kv.call("CAIRN.FLUSH", 4000) == OK
    assert kv.call("CAIRN.CLEAR", "PREFIX", trunk[15]) == 15 + 20
    assert [kv.lookup(k)[0] for k in (trunk, left, right)] == [15, 20, 0]
    assert kv.call("CAIRN.CLEAR", "PREFIX", key_of("absent").hex()) == 0
    assert kv.call("CAIRN.CLEAR", "PREFIX", left[19]) == 1
    assert kv.lookup(left)[0] == 19
    put_chain(kv, chain("right", [3000] * 20), fingerprint=two)
    assert kv.call("CAIRN.CLEAR", "IDENTITY", one.hex()) == 15 + 19
    assert [kv.lookup(k)[0] for k in (trunk, left, right)] == [0, 0, 20]
    assert kv.call("CAIRN.PIN", right[0]) == 1
    assert kv.call("CAIRN.CLEAR", "ALL") >= 20
    assert [kv.lookup(k)[0] for k in (trunk, left, right)] == [0, 0, 0]
    assert state(node)["shared"]["operator_pins"] == 0
    assert kv.call("GET", "a string") == b"stays"
    if kind == "disk_node":
        node.kill()
        node.start(f"--disk-path={node.place / 'node.cairn'}", "--disk=256MiB")
        kv = connect(node)
        assert [kv.lookup(k)[0] for k in (trunk, left, right)] == [0, 0, 0]


def test_clear_what_is_on_disk_only(disk_node):
    node = disk_node
    one, _, (trunk, left, right) = clear_stage(connect(node))
    assert connect(node).call("CAIRN.FLUSH", 4000) == OK
    node.stop()
    node.start(f"--disk-path={node.place / 'node.cairn'}", "--disk=256MiB")
    kv = connect(node)
    assert kv.lookup(trunk) == [30, 0]
    assert kv.call("CAIRN.CLEAR", "PREFIX", left[0]) == 20
    assert kv.call("CAIRN.CLEAR", "IDENTITY", one) == 30
    assert [kv.lookup(k)[0] for k in (trunk, left, right)] == [0, 0, 20]
    node.kill()
    node.start(f"--disk-path={node.place / 'node.cairn'}", "--disk=256MiB")
    kv = connect(node)
    assert [kv.lookup(k)[0] for k in (trunk, left, right)] == [0, 0, 20]
    assert kv.call("GET", "a string") == b"stays"


@pytest.mark.parametrize("way", ["PREFIX", "IDENTITY"])
def test_clear_more_than_a_batch(node, way):
    kv = connect(node)
    mark = key_of("many")
    links, others = chain("many", [50] * 3000), chain("others", [50] * 200)
    put_chain(kv, links, fingerprint=mark)
    put_chain(kv, others)
    keys = [key for key, _, _ in links]
    assert kv.lookup(keys) == [3000, 3000]
    assert kv.call("CAIRN.CLEAR", way, keys[0] if way == "PREFIX" else mark) == 3000
    assert kv.lookup(keys) == [0, 0]
    assert kv.lookup([key for key, _, _ in others]) == [200, 200]


def test_whymiss(lru_node):
    kv = connect(lru_node, proto=3)
    key = key_of("why")

    def why(k):
        answer = kv.call("CAIRN.WHYMISS", k)
        return dict(zip(answer[::2], answer[1::2]))

    assert why(key)[b"held"] is False and why(key)[b"cause"] == 1
    assert kv.put(key, value_of(key, 5000)) == [OK, 0]
    told = why(key.hex())
    assert told[b"held"] is True and told[b"ram"] is True and told[b"disk"] is False
    press(kv, 100)
    told = why(key)
    assert told[b"held"] is False and told[b"text"]


def test_identity_and_why(node):
    kv = connect(node)

    def fields(**more):
        return canonical({"model": "m", "chunk_tokens": "16", **more})

    nothing = json.loads(kv.call("CAIRN.WHY", fields(kv_dtype="fp8")))
    assert nothing["seen"] == 0 and nothing["nearest"] is None
    assert kv.call("CAIRN.IDENTITY", fields(kv_dtype="bf16")) == OK
    told = json.loads(kv.call("CAIRN.WHY", fields(kv_dtype="fp8")))
    assert told["seen"] == 1 and not told["known"]
    assert [d["field"] for d in told["differs"]] == ["kv_dtype"]
    assert json.loads(kv.call("CAIRN.WHY", fields(kv_dtype="bf16")))["known"]


def test_share_of_tokens(node):
    """Counted by what a connection looks up, in chunks of the identity it named last."""
    kv = connect(node)
    links = chain("tokens", [100] * 10)
    keys = [key for key, _, _ in links]
    put_chain(kv, links[:4])
    kv.lookup(keys)
    told = metrics(node)
    assert told['cairn_kv_tokens_asked_total{tenant="default"}'] == 0
    assert kv.call("CAIRN.IDENTITY", canonical({"model": "m", "chunk_tokens": "256"})) == OK
    kv.lookup(keys)
    told = metrics(node)
    assert told['cairn_kv_tokens_asked_total{tenant="default"}'] == 2560
    assert told['cairn_kv_tokens_hit_total{tenant="default",tier="ram"}'] == 1024
    assert told['cairn_kv_tokens_hit_total{tenant="default",tier="disk"}'] == 0


def test_stats(node):
    kv = connect(node)
    key, mark = key_of("stats"), key_of("stats identity")
    assert kv.put(key, value_of(key, 5000), fingerprint=mark) == [OK, 0]
    told = json.loads(kv.call("CAIRN.STATS"))
    assert told["put"]["stored"] == 1
    kv.attach()
    kv.lease([key])
    told = json.loads(kv.call("CAIRN.STATS"))
    assert told["ram"]["leased_bytes"] > 5000
    assert kv.put(key_of("other identity"), b"x", fingerprint=key_of("other")) == [OK, 0]
    told = json.loads(kv.call("CAIRN.STATS", "IDENTITY", mark.hex()))
    assert told["fingerprint"] == mark.hex() and told["known"] and told["held"] == 1
    assert told["put"] == {"stored": 1, "bytes": 5000} and told["get"]["hits"] == 1
    told = json.loads(kv.call("CAIRN.STATS", "IDENTITY", key_of("unheard of")))
    assert not told["known"] and told["held"] == 0


def test_pipelined_requests_keep_their_order(disk_node):
    """Some of them go to a worker and some do not."""
    kv = connect(disk_node, "tcp")
    keys = [key_of("order", i) for i in range(40)]
    batch, expected = [], []
    for i, key in enumerate(keys):
        value = value_of(key, 1000 + 40_000 * (i % 4))
        batch.append(request("CAIRN.PUT", 4000, put_item(key, len(value)), checks(value), b"",
                             value))
        expected.append([OK, 0])
        if i % 5 == 0:
            batch.append(request("CAIRN.FLUSH", 4000))
            expected.append(OK)
        batch.append(request("CAIRN.LENGTH", key))
        expected.append(len(value))
        if i % 3 == 0:
            batch.append(request("CAIRN.DELETE", 4000, key + key_of("absent")))
            expected.append([OK, MISS])
    kv.send(b"".join(batch))
    assert [Kv.reply(kv)[1] for _ in expected] == expected
