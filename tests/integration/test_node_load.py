"""Clients that are killed or stopped at any moment, and a node that is, under mixed load of strings
and chunks over both sockets. Every byte that any of them reads is judged (ledger.py)."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

import kv_client as kv
from fleet import (MIB, SANITIZED, Fleet, anonymous, ends_well, eventually, fds, fetch, info,
                   quiet, sound, state)
from freeze import freeze, go_on
from kv_client import Kv, key_of
from patience import STALL
from wire import Wire

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def rng():
    seed = int(os.environ.get("CAIRN_TEST_SEED", random.SystemRandom().getrandbits(32)))
    print(f"CAIRN_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def small_node(new_node):
    """With RAM and disk so small that values come and go all the time."""
    node = new_node()
    return node.start("--ram=24MiB", "--disk=256MiB", f"--disk-path={node.place}", "--threads=3")


@pytest.fixture
def fleet(small_node, place, rng):
    fleet = Fleet(small_node, place / "fleet", rng, timeout=60 if SANITIZED else 20)
    yield fleet
    fleet.destroy()


def seconds(full, quick):
    return 10 * quick if full else quick


def memory_held(node, before, limit=48 * MIB):
    if not SANITIZED:
        assert anonymous(node) < before + limit, "memory grew beyond its bounds"


def test_clients_are_killed_and_stopped(small_node, fleet, rng, full):
    node = small_node
    files, memory = fds(node), anonymous(node)
    fleet.start_all()
    until = time.monotonic() + seconds(full, 12)
    kills = stops = 0
    while time.monotonic() < until or not (kills and stops and fleet.total("hits") > 200
                                           and fleet.total("leases") > 0):
        assert time.monotonic() < until + 2 * STALL, fleet.tally()
        time.sleep(rng.uniform(0, 0.3))
        fleet.check()
        number = rng.randrange(len(fleet.processes))
        if rng.random() < 0.6:
            fleet.kill(number)
            kills += 1
            fleet.start(number)
        else:
            freeze(fleet.processes[number].pid)
            time.sleep(rng.uniform(0, 0.5))
            go_on(fleet.processes[number].pid)
            stops += 1
        assert fetch(node, "/healthz")[0] == 200
        memory_held(node, memory)
    fleet.check()
    fleet.end()
    print(f"{kills} kills, {stops} stops, {fleet.tally()}")
    assert kills and stops and fleet.total("hits") > 200 and fleet.total("leases") > 0
    quiet(node, files)
    ends_well(node)


def test_the_node_is_stopped_and_goes_on(small_node, fleet, rng, full):
    """SIGSTOP of the node: nobody gets a wrong byte, everybody goes on afterwards."""
    node = small_node
    files = fds(node)
    fleet.start_all()
    until = time.monotonic() + seconds(full, 8)
    while time.monotonic() < until:
        time.sleep(rng.uniform(0, 0.4))
        freeze(node.process.pid)
        time.sleep(rng.choice([0.01, 0.2, 1.5]) * rng.random())
        go_on(node.process.pid)
        fleet.check()
    before = fleet.total("changes")
    eventually(lambda: fleet.total("changes") > before + 20, 30)
    fleet.end()
    print(fleet.tally())
    quiet(node, files)
    # LeakSanitizer may wait for ever for a thread of a process that was stopped and continued.
    (sound if SANITIZED == "address" else ends_well)(node)


def test_a_lease_that_expired_while_the_node_was_stopped(small_node):
    """Of a client that maps nothing: its time runs on, stopped or not."""
    node = small_node
    key = key_of("expires")
    with Kv(node.port) as c:
        assert c.put(key, kv.value_of(key, 100_000))[0] == kv.OK
        lease, views = c.lease([key], ttl=300)
        assert lease and len(views) == 1
        freeze(node.process.pid)
        time.sleep(0.6)
        go_on(node.process.pid)
        eventually(lambda: state(node)["leases_count"] == 0, 3)
        assert c.call("CAIRN.RENEW", lease, 1000) == kv.TIMEOUT
        assert c.call("CAIRN.RELEASE", lease) == 0
        assert c.fetch(key, 100_000) == kv.value_of(key, 100_000)


# Attaches, leases what it is told and says so; then it does nothing but live.
HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from kv_client import Kv, key_of
c = Kv(path=sys.argv[2])
c.attach(1 << 20)
keys = [key_of("held", int(n)) for n in sys.argv[3].split(",")]
lease, views = c.lease(keys)
print(lease, len(views), flush=True)
time.sleep(1000)
"""


def holder(node, numbers):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(Path(__file__).parent),
                                node.socket, ",".join(map(str, numbers))],
                               stdout=subprocess.PIPE, text=True)
    lease, views = process.stdout.readline().split()
    return process, int(views)


def test_leases_of_killed_clients_come_back(small_node, full):
    """While a client lives, stopped or not, its slots are not used for anything else, however short
    room is; when it is killed they are, and others notice nothing."""
    node = small_node
    files = fds(node)
    length = 300_000
    values = {n: kv.value_of(key_of("held", n), length) for n in range(12)}
    with Kv(path=node.socket) as c:
        c.attach()
        for turn in range(10 if full else 3):
            for n, value in values.items():
                assert c.put(key_of("held", n), value)[0] in (kv.OK, kv.EXISTS)
            dying, count = holder(node, range(0, 6))
            living, other = holder(node, range(6, 12))
            assert count == 6 and other == 6
            mine, views = c.lease([key_of("held", n) for n in range(12)])
            assert len(views) == 12
            freeze(dying.pid)
            churn(node, turn, 60)
            assert all(c.view(v) == values[n] for n, v in enumerate(views))
            assert state(node)["leases_count"] == 3
            assert c.call("CAIRN.RELEASE", mine) == 1
            dying.kill()
            dying.wait(10)
            eventually(lambda: state(node)["leases_count"] == 1, 5)
            assert 6 * length <= state(node)["tiers"][0]["leased_bytes"] < 8 * length
            churn(node, turn, 60)
            # The other process still holds its six where they were.
            again, views = c.lease([key_of("held", n) for n in range(6, 12)])
            assert [c.view(v) for v in views] == [values[n] for n in range(6, 12)]
            assert c.call("CAIRN.RELEASE", again) == 1
            living.kill()
            living.wait(10)
            eventually(lambda: state(node)["leases_count"] == 0, 5)
        c.unmap()
    quiet(node, files)
    ends_well(node)


def churn(node, turn, count):
    """More than the RAM holds."""
    with Wire(path=node.socket) as wire:
        for i in range(count):
            assert wire.call("SET", f"churn:{turn}:{i}", os.urandom(1000) * 1000) == "OK"


def test_clients_are_killed_while_they_take_leases(small_node, rng, full):
    node = small_node
    files = fds(node)
    with Kv(node.port) as c:
        for n in range(12):
            assert c.put(key_of("held", n), kv.value_of(key_of("held", n), 50_000))[0] == kv.OK
    for _ in range(60 if full else 12):
        process = subprocess.Popen([sys.executable, "-c", HOLDER, str(Path(__file__).parent),
                                    node.socket, ",".join(map(str, range(12)))],
                                   stdout=subprocess.DEVNULL)
        time.sleep(0.05 + rng.uniform(0, 0.15))
        process.kill()
        process.wait(10)
    quiet(node, files)
    counts = info(node)
    assert counts["leases_lost"] == counts["leases_taken"] - counts["leases_released"]
    ends_well(node)
