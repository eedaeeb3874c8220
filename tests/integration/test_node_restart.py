"""A node that is restarted under load again and again, by kill -9 and by SIGTERM: what was
overwritten, deleted, expired or flushed away never comes back; what was made durable is there."""

import os
import random
import time

import pytest

import kv_client as kv
from fleet import REPORTS, SANITIZED, Fleet, fds, quiet, sound
from kv_client import Kv, key_of
from ledger import value_of
from wire import Error, Wire

pytestmark = pytest.mark.timeout(1200)

DURABLE = 20  # keys of each kind that are made durable in every life


@pytest.fixture
def rng():
    seed = int(os.environ.get("CAIRN_TEST_SEED", random.SystemRandom().getrandbits(32)))
    print(f"CAIRN_TEST_SEED={seed}")
    return random.Random(seed)


class Life:
    """A node on one log, and what it owes."""

    def __init__(self, node, fleet, rng, options):
        self.node, self.fleet, self.rng, self.options = node, fleet, rng, options
        self.generation = 0
        self.owed: dict[tuple, bytes] = {}   # what a flush vouched for
        self.gone: dict[tuple, bytes] = {}   # what must never be seen again
        self.paid = 0

    def start(self):
        """Sometimes it is killed before it is ready, while it recovers."""
        while self.rng.random() < 0.2:
            self.node.start(*self.options, wait=False)
            time.sleep(self.rng.uniform(0, 0.1))
            self.node.kill()
        begun = time.monotonic()
        self.node.start(*self.options, timeout=60)
        return time.monotonic() - begun

    def keys(self):
        return [("string", b"owed:%d" % i) for i in range(DURABLE)] + \
            [("chunk", key_of("owed", i)) for i in range(DURABLE)]

    def put(self, c, kind, key, value):
        if kind == "string":
            return c.call("SET", key, value) == "OK"
        return c.put(key, value, replace=True)[0] == kv.OK

    def read(self, c, kind, key, length):
        return c.call("GET", key) if kind == "string" else c.fetch(key, length)

    def flush(self, c):
        """The first may report what was lost since the last one."""
        return any(c.call("CAIRN.FLUSH", 8000) == kv.OK for _ in range(3))

    def promise(self):
        """Overwrites or deletes every owed key, then makes some durable."""
        self.owed.clear()
        with Kv(path=self.node.socket) as c:
            for kind, key in self.keys():
                self.generation += 1
                value = value_of(key, self.generation, self.rng.choice([9, 4096, 60_000, 250_000]))
                if self.rng.random() < 0.3:
                    answer = c.call("DEL", key) if kind == "string" else \
                        c.call("CAIRN.DELETE", 4000, key)[0]
                    assert answer in (0, 1, kv.MISS), answer
                elif self.put(c, kind, key, value):
                    self.owed[kind, key] = value
            if not self.flush(c):
                self.owed.clear()
            # What left RAM unwritten before the flush is owed to nobody.
            self.owed = {(kind, key): value for (kind, key), value in self.owed.items()
                         if self.read(c, kind, key, len(value)) == value}

    def collect(self):
        with Kv(path=self.node.socket) as c:
            for kind, key in self.keys():
                value = self.owed.get((kind, key))
                if value is None:
                    got = self.read(c, kind, key, 4096)
                    assert got is None or isinstance(got, Error), f"{kind} {key!r} came back"
                    continue
                got = self.read(c, kind, key, len(value))
                assert got == value, f"{kind} {key!r} was made durable; now " + \
                    ("it is missing" if got is None else f"{len(got)} other bytes are there")
                self.paid += 1

    def flush_strings(self):
        """FLUSHALL with nobody else at work; it may be killed in the middle."""
        self.fleet.hold()
        try:
            with Wire(path=self.node.socket) as wire:
                assert wire.call(self.rng.choice(["FLUSHALL", "FLUSHDB"])) == "OK"
                assert wire.call("DBSIZE") == 0
            self.fleet.strings_flushed()
            self.owed = {k: v for k, v in self.owed.items() if k[0] != "string"}
        finally:
            self.fleet.let_go()


@pytest.mark.parametrize("engine", ["auto", "pool"])
def test_restart_under_load(new_node, place, rng, full, engine):
    if SANITIZED == "thread" and engine != "pool":
        pytest.skip("TSan does not see what the kernel does to a ring")
    node = new_node()
    fleet = Fleet(node, place / "fleet", rng, timeout=90 if SANITIZED else 30)
    life = Life(node, fleet, rng, ["--ram=32MiB", "--disk=1GiB", f"--disk-path={node.place}",
                                   f"--engine={engine}", "--threads=2"])
    lives = 100 if full else 25
    opened = []
    kills = 0
    try:
        for number in range(4 * lives):
            if number >= lives and life.paid > 5 * lives and fleet.total("hits") > 10 * lives:
                break
            opened.append(life.start())
            if number == 0:
                fleet.start_all()
            life.collect()
            until = time.monotonic() + rng.choice([0.05, 0.3, 0.8])
            while time.monotonic() < until:
                fleet.check()
                time.sleep(0.02)
            if rng.random() < 0.3:
                life.flush_strings()
            life.promise()
            time.sleep(rng.choice([0, 0.05]) * rng.random())
            fleet.check()
            if rng.random() < 0.6:
                node.kill()
                kills += 1
            else:
                sound(node)
                assert node.stop(40) == 0, node.said()[-4000:]
        life.start()
        life.collect()
        fleet.check()
        fleet.end()
        quiet(node, fds(node))
        said = node.said()
        assert not any(r in said for r in REPORTS), said[-8000:]
        print(f"{kills} kills, {len(opened) - kills} ends by SIGTERM, "
              f"{life.paid} durable values found, "
              f"ready after at most {max(opened):.2f} s; {fleet.tally()}")
        assert life.paid > 5 * lives and fleet.total("hits") > 10 * lives
    finally:
        fleet.destroy()


def test_kill_in_the_middle_of_a_flush_or_clear(new_node, rng, full):
    """FLUSHALL, CAIRN.CLEAR, DEL of many: what was answered stays gone, and nothing else goes."""
    node = new_node()
    options = ["--ram=32MiB", "--disk=512MiB", f"--disk-path={node.place}"]
    node.start(*options)
    names = [b"flush:%d" % i for i in range(100)]
    chunks = [key_of("flush", i) for i in range(40)]
    answered = 0
    for turn in range(20 if full else 5):
        values = {k: value_of(k, turn + 1, 5000) for k in names + chunks}
        with Kv(path=node.socket) as c:
            for name in names:
                assert c.call("SET", name, values[name]) == "OK"
            for key in chunks:
                assert c.put(key, values[key], replace=True)[0] == kv.OK
            assert any(c.call("CAIRN.FLUSH", 8000) == kv.OK for _ in range(3))
            words = rng.choice([("FLUSHALL",), ("CAIRN.CLEAR", "ALL"), ("DEL", *names)])
            c.send(kv.request(*words))
            done = None
            if rng.random() < 0.5:
                done = c.value()
                assert not isinstance(done, Error), done
                answered += 1
            else:
                time.sleep(rng.uniform(0, 0.01))
            node.kill()
        node.start(*options)
        with Kv(path=node.socket) as c:
            left = [k for k in names if c.call("GET", k) is not None]
            for k in names:
                assert c.call("GET", k) in (None, values[k])
            left += [k for k in chunks if c.fetch(k, 5000) is not None]
            for k in chunks:
                assert c.fetch(k, 5000) in (None, values[k])
        cleared = chunks if words[0] == "CAIRN.CLEAR" else names
        kept = set(names + chunks) - set(cleared)
        assert set(left) >= kept, f"{words[0]} took what it was not asked for"
        if done is not None:
            assert set(left) == kept, f"{words[0]} was answered, and values came back"
    assert answered or not full
    assert node.stop(40) == 0, node.said()
