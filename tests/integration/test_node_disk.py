"""A disk that has no room, fails, hangs or goes away under a running node: values are refused or
dropped, nobody waits beyond the deadlines, what is read is right, and /healthz says so."""

import os
import random
import resource
import select
import signal
import subprocess
import time

import pytest

import kv_client as kv
from fleet import (MIB, REPORTS, SANITIZED, Fleet, anonymous, ends_well, eventually, fds, fetch,
                   quiet, sound, state)
from kv_client import Kv, key_of
from ledger import value_of
from patience import STALL, usual
from test_env import mount
from wire import Wire, request

pytestmark = pytest.mark.timeout(300)

# Deadline of a command that waits for the disk, and what it may take beyond.
IO_TIMEOUT, SLACK = 1.0, STALL


@pytest.fixture
def rng():
    seed = int(os.environ.get("CAIRN_TEST_SEED", random.SystemRandom().getrandbits(32)))
    print(f"CAIRN_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def disk(place):
    """An ext4 of 192 MiB in a file, in a folder of its own."""
    image, path = place / "image", place / "mounted"
    path.mkdir()
    with open(image, "wb") as file:
        file.truncate(192 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
    mount("-o", "loop", image, path)
    yield path
    thaw(path)
    subprocess.run(["umount", "-l", path], check=True)


def options(path, *more):
    return ["--ram=24MiB", "--disk=128MiB", f"--disk-path={path}", "--io-timeout=1s", *more]


def put_all(node, turn, seconds):
    """Puts and gets for so long over both sockets; what was done, refused, and the longest wait."""
    stored = refused = n = 0
    longest = 0.0
    until = time.monotonic() + seconds
    with Kv(node.port, timeout=60) as tcp, Kv(path=node.socket, timeout=60) as local:
        while time.monotonic() < until:
            n += 1
            name, chunk = b"disk:%d:%d" % (turn, n % 300), key_of("disk", turn, n % 300)
            value = value_of(name, n, 100_000)
            for call in (lambda: tcp.call("SET", name, value) == "OK",
                         lambda: local.put(chunk, value, replace=True, timeout=500)[0] == kv.OK,
                         lambda: tcp.call("GET", name) in (None, value),
                         lambda: local.fetch(chunk, len(value)) in (None, value)):
                begun = time.monotonic()
                good = call()
                longest = max(longest, time.monotonic() - begun)
                stored, refused = stored + good, refused + (not good)
    return stored, refused, longest


def test_more_log_than_disk(new_node, disk):
    node = new_node()
    node.start(*options(disk, "--disk=1GiB"), wait=False)
    assert node.process.wait(30) == 1
    said = node.said()
    assert str(disk) in said and ("room" in said or "space" in said), said
    node.start(*options(disk))
    ends_well(node)


def test_disk_that_others_fill(new_node, disk):
    """The log has its room: nothing changes for it."""
    node = new_node().start(*options(disk))
    with pytest.raises(OSError, match="No space"):
        with open(disk / "filler", "wb", buffering=0) as filler:
            while True:
                filler.write(bytes(MIB))
    stored, refused, longest = put_all(node, 0, 3)
    print(f"{stored} stored, {refused} refused, at most {longest:.2f} s")
    assert stored and not refused and longest < IO_TIMEOUT + SLACK
    assert fetch(node, "/healthz")[0] == 200
    ends_well(node)


def test_writes_that_fail(new_node):
    """Beyond RLIMIT_FSIZE every write fails. The tier goes off, and memory goes on."""
    node = new_node()
    node.start(*options(node.place))
    files, memory = fds(node), anonymous(node)
    stored, refused, _ = put_all(node, 0, 1)
    assert stored and not refused
    resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (MIB, MIB))
    stored, refused, longest = put_all(node, 1, 4)
    print(f"{stored} stored, {refused} refused, at most {longest:.2f} s")
    assert longest < IO_TIMEOUT + SLACK and stored
    until = time.monotonic() + STALL
    while fetch(node, "/healthz")[0] != 503 and time.monotonic() < until:
        put_all(node, 1, 0.5)  # until the disk was written to
    status, why = fetch(node, "/healthz")
    assert status == 503 and "disk" in why, (status, why)
    with Kv(path=node.socket) as c:
        begun = time.monotonic()
        assert c.call("CAIRN.FLUSH", 1000) != kv.OK, "a flush vouches for what cannot be written"
        assert time.monotonic() - begun < 1 + SLACK
        assert c.call("SET", "goes on", "in memory") == "OK"
        assert c.call("GET", "goes on") == b"in memory"
        # What only the disk has is missed at once: nobody waits for a disk that is off.
        misses, spent = 0, []
        for turn in range(2):
            for i in range(300):
                begun = time.monotonic()
                misses += c.call("GET", b"disk:%d:%d" % (turn, i)) is None
                misses += c.fetch(key_of("disk", turn, i), 100_000) is None
                spent.append(time.monotonic() - begun)
        assert misses > 100 and usual(spent) < 0.1, f"{misses} misses; two gets {usual(spent)} s"
    if not SANITIZED:
        assert anonymous(node) < memory + 64 * MIB
    quiet(node, files)
    ends_well(node)


def test_a_disk_that_works_again(new_node):
    """Writes fail for a while. The tier goes off, is tried, comes back, and vouches for values
    again; what was deleted stays away."""
    node = new_node()
    node.start(*options(node.place))
    chunk, deleted, name = key_of("again"), key_of("deleted"), b"again"
    before, since = value_of(b"before", 1, 200_000), value_of(b"since", 2, 200_000)
    with Kv(path=node.socket, timeout=60) as c:
        assert c.put(chunk, before) == c.put(deleted, before) == [kv.OK, 0]
        assert c.call("SET", name, before) == "OK" and c.call("CAIRN.FLUSH", 4000) == kv.OK
        resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE, (MIB, resource.RLIM_INFINITY))

        def red():
            put_all(node, 0, 0.2)
            return fetch(node, "/healthz")[0] == 503

        eventually(red, 60)
        assert "tried again by itself" in fetch(node, "/healthz")[1]
        c.call("CAIRN.DELETE", 1000, deleted)
        assert c.fetch(deleted, len(before)) is None
        assert fetch(node, "/healthz")[0] == 503
        resource.prlimit(node.process.pid, resource.RLIMIT_FSIZE,
                         (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        eventually(lambda: fetch(node, "/healthz")[0] == 200, 100)
        assert "disk tier on again" in node.said()
        now = state(node)["tiers"][1]
        assert now["state"] == "ok" and now["turned_off"] >= 1 and now["probes"] >= 1
        assert "cairn_tier_state{tier=\"disk\"} 0" in fetch(node, "/metrics")[1]
        assert c.fetch(deleted, len(before)) is None, "it came back with the disk"
        assert c.call("CAIRN.DELETE", 4000, deleted)[0] in (kv.OK, kv.MISS)
        assert c.put(chunk, since, replace=True, timeout=4000) == [kv.OK, 0]
        assert c.call("SET", name, since) == "OK"
        # The first may report values that left unwritten.
        assert any(c.call("CAIRN.FLUSH", 8000) == kv.OK for _ in range(3))
    node.kill()
    node.start(*options(node.place))
    with Kv(path=node.socket, timeout=60) as c:
        assert c.fetch(chunk, len(since)) == since and c.call("GET", name) == since
        assert c.fetch(deleted, len(before)) is None
    ends_well(node)


def freeze(path):
    done = subprocess.run(["fsfreeze", "-f", path], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot freeze here: {done.stderr.strip()}")


def thaw(path):
    """Fine if it is not frozen."""
    subprocess.run(["fsfreeze", "-u", path], capture_output=True, check=False)


def test_disk_that_hangs(new_node, disk, place, rng):
    """Writes do not come back for a while, under load. Every answer comes within its deadline."""
    node = new_node().start(*options(disk))
    files = fds(node)
    fleet = Fleet(node, place / "fleet", rng, count=2, timeout=IO_TIMEOUT + 6 * SLACK)
    try:
        fleet.start_all()
        time.sleep(1)
        freeze(disk)
        stored, refused, longest = put_all(node, 0, 6)
        fleet.check()
        begun = time.monotonic()
        status, why = fetch(node, "/healthz")
        fetch(node, "/metrics")
        assert time.monotonic() - begun < SLACK
        thaw(disk)
        print(f"{stored} done, {refused} refused, at most {longest:.2f} s; {status} {why}")
        # Each round may wait for a tombstone and for a read.
        assert longest < 2 * IO_TIMEOUT + SLACK and stored
        time.sleep(0.5)
        fleet.check()
        fleet.end()
        print(fleet.tally())
        quiet(node, files)
        sound(node)
        ends_well(node)
    finally:
        thaw(disk)
        fleet.destroy()


def test_many_wait_for_a_disk_that_hangs(new_node, disk):
    """More than there are workers: the deadlines of all run at the same time."""
    node = new_node().start(*options(disk, "--workers=2"))
    put_all(node, 0, 1)
    with Wire(node.port) as wire:
        # The first may report values that left unwritten.
        assert any(wire.call("CAIRN.FLUSH", 8000) == kv.OK for _ in range(3))
    freeze(disk)
    begun = time.monotonic()
    held = [node.connect(tcp=i % 2 == 0, timeout=60) for i in range(40)]
    for i, s in enumerate(held):
        s.sendall(b"SET disk:0:%d changed\r\n" % (i + 1))
    answers = [s.recv(200) for s in held]
    took = time.monotonic() - begun
    thaw(disk)
    done = answers.count(b"+OK\r\n")
    print(f"all answered after {took:.2f} s, {done} with OK")
    assert all(answers) and took < IO_TIMEOUT + SLACK
    ends_well(node)


def no_more_connections(node):
    try:
        node.connect(tcp=True).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("command",
                         [(b"FLUSHDB",), (b"FLUSHALL", b"ASYNC"), (b"CAIRN.CLEAR", b"ALL")])
def test_a_clear_that_waits_for_the_disk_holds_up_no_get(new_node, disk, command):
    """With one worker: values that are only on disk are read beside it."""
    given = options(disk, "--workers=1", "--io-timeout=20s")
    node = new_node().start(*given)
    key = key_of("beside")
    value = value_of(b"beside", 1, 100_000)
    with Kv(path=node.socket) as c:
        assert c.put(key, value) == [kv.OK, 0] and c.call("SET", "beside", value) == "OK"
    node.stop()
    node.start(*given)
    freeze(disk)
    with Wire(path=node.socket, timeout=60) as clear, Kv(path=node.socket, timeout=60) as c:
        clear.send(request(*command))
        eventually(lambda: state(node)["workers"]["running"] == 1)
        if command[0] == b"CAIRN.CLEAR":
            assert c.call("GET", "beside") == value
        else:
            got = c.get(kv.get_item(key, len(value)), timeout=15_000)
            assert got[0][2] == value
        assert not select.select([clear.sock], [], [], 0)[0], "the get came after the clear"
        thaw(disk)
        clear.value()
        assert c.call("EXISTS", "beside") + c.lookup([key])[0] == 1
    ends_well(node)


def test_ending_while_the_disk_hangs(new_node, disk):
    """SIGTERM gives up what cannot be written, as soon as the kernel lets the process go."""
    node = new_node().start(*options(disk))
    put_all(node, 0, 0.5)
    freeze(disk)
    put_all(node, 1, 0.5)
    node.process.send_signal(signal.SIGTERM)
    eventually(lambda: no_more_connections(node))
    thaw(disk)
    begun = time.monotonic()
    node.process.wait(60)
    print(f"ended with {node.process.returncode} after {time.monotonic() - begun:.1f} s more")
    assert time.monotonic() - begun < 20 + STALL and node.process.returncode in (0, 1)
    assert not any(r in node.said() for r in REPORTS), node.said()[-4000:]
    node.start(*options(disk))
    stored, refused, _ = put_all(node, 2, 0.5)
    assert stored and not refused
    ends_well(node)


@pytest.mark.parametrize("how", ["truncated", "removed", "replaced"])
def test_the_log_goes_away(new_node, how):
    """Under a running node: reads are right or missing, and no flush vouches for a lost file."""
    node = new_node()
    node.start(*options(node.place))
    put_all(node, 0, 1)
    log = node.place / "cairn.log"
    if how == "truncated":
        os.truncate(log, 3 * MIB)
    elif how == "removed":
        log.unlink()
    else:
        (node.place / "other").write_bytes(os.urandom(MIB))
        os.rename(node.place / "other", log)
    stored, refused, longest = put_all(node, 0, 2)
    print(f"{stored} stored, {refused} refused, at most {longest:.2f} s")
    assert stored and longest < IO_TIMEOUT + SLACK
    with Kv(path=node.socket) as c:
        assert c.call("CAIRN.FLUSH", 2000) != kv.OK
    status, why = fetch(node, "/healthz")
    assert status == 503 and "disk" in why, (status, why, node.said())
    ends_well(node)
