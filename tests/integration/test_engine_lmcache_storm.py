"""Random schedules of LMCache's L2 adapter over a node that is killed, frozen and started again:
every task completes, nothing wrong is ever a hit, and nothing is written behind a completion."""
import os
import random
import select
import time

import pytest

pytest.importorskip("lmcache", reason="lmcache is not installed: tests/run engine installs it")

from freeze import freeze, go_on  # noqa: E402
from lmcache.v1.platform import consume_fd  # noqa: E402
from lmcache_bridge import (Bridge, adapter_json, content, loaded, memory, name,  # noqa: E402
                            objects)
from patience import STALL  # noqa: E402

pytestmark = pytest.mark.timeout(300)
SEED = int(os.environ.get("CAIRN_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
SIZES = (3000, 40000, 262144 + 5)
IN_FLIGHT = 12
LATE = 10.0 + STALL  # the adapter's timeout is 5 s, and a task may wait for one before it
SCRIBBLE = 0xA5


class Storm:
    def __init__(self, adapter, rng):
        self.adapter, self.rng = adapter, rng
        self.names = [name(rng, object_group_id=i % 2) for i in range(80)]
        self.size = {key: rng.choice(SIZES) for key in self.names}
        self.waiting = {}  # (kind, task): (since, keys, objects)
        self.retired = []  # buffers whose completion has come
        self.counts = {"store": 0, "load": 0, "lookup": 0}
        self.held = self.loaded = 0
        self.take = {
            adapter.get_store_event_fd(): self._stored,
            adapter.get_lookup_and_lock_event_fd(): self._looked_up,
            adapter.get_load_event_fd(): self._loaded}

    def submit(self):
        keys = self.rng.sample(self.names, self.rng.randrange(1, 9))
        size = self.size[keys[0]]
        keys = [k for k in keys if self.size[k] == size]  # as LMCache: one size a batch
        kind = self.rng.choice(["store", "load", "load", "lookup"])
        if kind == "lookup":
            given, task = None, self.adapter.submit_lookup_and_lock_task(keys, {})
        elif kind == "store":
            given = objects(keys, size)
            task = self.adapter.submit_store_task(keys, given)
        else:
            # Sometimes another layout under the same names: never a hit.
            size += self.rng.random() < 0.05
            given = [memory(size, SCRIBBLE) for _ in keys]
            task = self.adapter.submit_load_task(keys, given)
        self.waiting[kind, task] = (time.monotonic(), keys, given)
        self.counts[kind] += 1

    def poll(self, seconds):
        for fd in select.select(list(self.take), [], [], seconds)[0]:
            consume_fd(fd)
            self.take[fd]()
        for (kind, _), (since, *_) in self.waiting.items():
            assert time.monotonic() - since < LATE, f"a {kind} does not complete"

    def _stored(self):
        for task in self.adapter.pop_completed_store_tasks():
            _, _, given = self.waiting.pop(("store", task))
            self._retire(given)

    def _looked_up(self):
        for kind, task in [w for w in self.waiting if w[0] == "lookup"]:
            bits = self.adapter.query_lookup_and_lock_result(task)
            if bits is not None:
                _, keys, _ = self.waiting.pop((kind, task))
                self.held += sum(bits.test(i) for i in range(len(keys)))
                self.adapter.submit_unlock(keys)

    def _loaded(self):
        for kind, task in [w for w in self.waiting if w[0] == "load"]:
            bits = self.adapter.query_load_result(task)
            if bits is None:
                continue
            _, keys, given = self.waiting.pop((kind, task))
            for i, (key, one) in enumerate(zip(keys, given)):
                if bits.test(i):
                    self.loaded += 1
                    assert one.get_size() == self.size[key], "a value of another size is a hit"
                    assert (one.raw_data.numpy() == content(key, self.size[key])).all(), \
                        "wrong bytes"
            self._retire(given)

    def _retire(self, given):
        for one in given:
            one.raw_data.fill_(SCRIBBLE)
        self.retired.extend(given)
        self.untouched(self.retired[:-400])
        del self.retired[:-400]

    def untouched(self, some=None):
        for one in self.retired if some is None else some:
            assert (one.raw_data == SCRIBBLE).all(), "memory was written behind its completion"

    def drain(self):
        while self.waiting:
            self.poll(0.5)


def start(node, wait=True):
    node.start("--ram=64MiB", f"--disk-path={node.place}", "--disk=256MiB", wait=wait)


def fault(node, rng):
    """Frozen or killed, and well again at the next call. Returns for how long to leave it so."""
    if node.process.poll() is not None:
        start(node, wait=False)
    elif node.frozen:
        go_on(node.process.pid)
    elif rng.random() < 0.5:
        node.kill()
        return rng.uniform(0.05, 0.4)
    else:
        freeze(node.process.pid)
        node.frozen = True
        return rng.choice([0.01, 0.1, 0.8])
    node.frozen = False
    return rng.uniform(0.5, 1.5)


@pytest.mark.parametrize("scheme", ["unix", "tcp"])
def test_storm(new_node, scheme, full):
    print(f"CAIRN_TEST_SEED={SEED}")
    rng = random.Random(f"{SEED} {scheme}")
    node = new_node()
    node.frozen = False
    start(node)
    uri = f"unix:{node.socket}?timeout=300ms" if scheme == "unix" else \
        f"tcp://127.0.0.1:{node.port}?timeout=300ms"
    adapter = loaded(adapter_json(uri, timeout=1.5))
    storm = Storm(adapter, rng)
    try:
        steps, next_fault = 5000 if full else 500, time.monotonic() + 0.5
        # While the node is away a step is a quick miss, so that steps alone say little.
        while sum(storm.counts.values()) < steps or storm.loaded < steps / 5:
            if len(storm.waiting) < IN_FLIGHT:
                storm.submit()
            storm.poll(0 if len(storm.waiting) < IN_FLIGHT else 0.05)
            if time.monotonic() > next_fault:
                next_fault = time.monotonic() + fault(node, rng)
        if node.frozen or node.process.poll() is not None:
            fault(node, rng)
        storm.drain()
        # Back again: stored and found within seconds.
        again = Bridge(adapter)
        keys = storm.names[:1]
        until = time.monotonic() + STALL
        while not (again.store(keys, objects(keys, storm.size[keys[0]]))
                   and again.lookup(keys) == [True]):
            assert time.monotonic() < until, "no hit after the node's return"
            time.sleep(0.05)
        for _ in range(IN_FLIGHT):
            storm.submit()
    finally:
        if node.process.poll() is None:
            go_on(node.process.pid)
        adapter.close()  # with those on their way
    storm.untouched()
    print(storm.counts, storm.held, "held", storm.loaded, "loaded")
