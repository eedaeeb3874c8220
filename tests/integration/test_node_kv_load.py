"""Everything at once: processes that read in place and write through windows, and connections that
do every other command, over both sockets, on several network threads and a disk. Every byte is
judged."""

import json
import random
import subprocess
import sys
import threading
import time

import pytest

from kv_client import EXISTS, NOSPACE, OK, ZERO, Kv, key_of, value_of
from test_node_kv import connect, until
from test_node_share import HERE, shared


def keys_of(rng):
    return [key_of("storm", rng.randrange(64)) for _ in range(4)]


def put(kv, rng):
    key = keys_of(rng)[0]
    value = value_of(key, rng.choice([1, 5000, 200_000, 1 << 20]))
    status, _ = kv.put(key, value, replace=rng.random() < 0.5)
    assert status in (OK, EXISTS, NOSPACE), status


def get(kv, rng):
    key = keys_of(rng)[0]
    length = kv.call("CAIRN.LENGTH", key)
    if length:
        assert kv.fetch(key, length) in (None, value_of(key, length)), "wrong bytes"


def lease(kv, rng):
    number, views = kv.lease(keys_of(rng), ttl=rng.choice([0, 50, 1000]))
    assert bool(number) == bool(views)
    if rng.random() < 0.3:
        kv.call("CAIRN.RELEASE", "ALL")


def pin(kv, rng):
    kv.call(rng.choice(["CAIRN.PIN", "CAIRN.UNPIN"]), b"".join(keys_of(rng)))


def tell(kv, rng):
    keys = b"".join(keys_of(rng))
    json.loads(kv.call("CAIRN.STATS"))
    assert kv.call("CAIRN.VERIFY", keys) == 0
    assert kv.call("CAIRN.PREFETCH", keys) <= 4
    kv.call("CAIRN.WHYMISS", keys[:32])


def delete(kv, rng):
    kv.call("CAIRN.DELETE", 4000, keys_of(rng)[0])
    if rng.random() < 0.1:
        kv.call("CAIRN.CLEAR", *rng.choice([("ALL",), ("PREFIX", key_of("storm", 1)),
                                            ("IDENTITY", ZERO)]))


def client(node, seed, end, faults):
    rng = random.Random(seed)
    steps = [put] * 3 + [get] * 4 + [lease, pin, tell, delete]
    try:
        with connect(node, "tcp" if seed % 2 else "unix") as kv:
            while time.monotonic() < end:
                rng.choice(steps)(kv, rng)
    except Exception as fault:  # told by the test
        faults.append(f"client {seed}: {fault!r}")


@pytest.mark.timeout(300)
def test_everything_at_once(new_node, full):
    node = new_node()
    node.start(f"--disk-path={node.place / 'node.cairn'}", "--disk=256MiB", "--threads=4")
    storms = [subprocess.Popen([sys.executable, str(HERE / "kv_victim.py"), node.socket, "storm",
                                str(seed)], stdout=subprocess.DEVNULL) for seed in range(3)]
    faults = []
    end = time.monotonic() + (60 if full else 10)
    clients = [threading.Thread(target=client, args=(node, seed, end, faults)) for seed in range(6)]
    try:
        for one in clients:
            one.start()
        for one in clients:
            one.join()
        assert not faults
        assert [p.poll() for p in storms] == [None] * 3
    finally:
        for p in storms:
            p.kill()
            p.wait()
    until(lambda: shared(node)["processes"] == 0)
    until(lambda: shared(node)["lease_pins"] == 0)
    kv = Kv(path=node.socket)
    kv.call("CAIRN.UNPIN", b"".join(key_of("storm", i) for i in range(64)))
    assert json.loads(kv.call("CAIRN.STATS"))["ram"]["leased_bytes"] == 0
    assert node.stop() == 0
