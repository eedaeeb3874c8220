"""Random schedules of SGLang's storage threads over every kind of store, with faults: never a wrong
page, never a touched neighbour, never None, never an exception, never late."""

import os
import random
import time

import pytest
import sglang_pools as sg
import sglang_schedule as schedule
from freeze import freeze, go_on
from patience import STALL
from sglang.srt.environ import envs
from test_engine_sglang import attach  # noqa: F401

pytestmark = pytest.mark.timeout(600)
SEEDS = [int(s) for s in os.environ.get("CAIRN_TEST_SEED", "").split(",") if s]


@pytest.fixture
def rng():
    seed = SEEDS[0] if SEEDS else random.SystemRandom().getrandbits(32)
    print(f"CAIRN_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def steps(full):
    """Of each of a rank's three threads."""
    return 6000 if full else 700


def shape_of(rng, mla, layers=3):
    layouts = [layout for layout in (sg.MLA_LAYOUTS if mla else sg.MHA_LAYOUTS)]
    shape = mla, rng.choice(layouts), rng.choice((1, 16, 64)), layers
    print("MLA, layout, page, layers:", shape)
    return shape


def make_ranks(attach, shape, uri, count, faults=0.0):
    return [schedule.Rank(shape, r, count, attach, uri, faults) for r in range(count)]


def weights_of(rng, ranks):
    """An update of the weights on all ranks, with a flush or without. They keep no cache where
    ranks share pages."""
    numbers = iter(range(2, 1 << 20))

    def change():
        number, flushes = next(numbers), rng.random() < 0.5
        for rank in ranks:
            rank.weights_change(f"{number} on {rank.rank}")
            if flushes:
                rank.flush()
    return schedule.apart(change)


def flush_of(ranks):
    return schedule.apart(lambda: [rank.flush() for rank in ranks])


def clear_of(ranks):
    return schedule.apart(lambda: [rank.storage.clear() for rank in ranks])


def restart_of(ranks):
    def change():
        for rank in ranks:
            rank.end()
        for rank in ranks:
            rank.begin()
    return schedule.apart(change)


def good(workers):
    return sum(w.good for w in workers)


def told(workers, ranks):
    bad = sum(w.bad for w in workers)
    print(f"{good(workers)} pages loaded and right, {bad} misses, "
          f"{sum(w.saved for w in workers)} saved, "
          f"longest step {max(w.longest for w in workers):.3f} s, failures "
          f"{sum(r.inner.counters['failures'] for r in ranks)}")
    return good(workers)


@pytest.mark.parametrize("mla", [False, True])
def test_in_memory(attach, rng, steps, mla):
    ranks = make_ranks(attach, shape_of(rng, mla), "embedded:?ram=64MiB", 1)
    changes = [weights_of(rng, ranks), flush_of(ranks), clear_of(ranks), restart_of(ranks),
               lambda: None]
    workers = schedule.run(rng, ranks, steps, changes, 0.5, lambda w: good(w) > steps / 20)
    assert told(workers, ranks) > steps / 20
    assert all(r.inner.counters["failures"] == 0 for r in ranks)


def injected(ranks):
    return sum(f.injected for r in ranks for f in r.faulty)


@pytest.mark.parametrize("mla", [False, True])
def test_calls_that_fail_and_dawdle(attach, rng, steps, mla):
    """SGLang's own faults around, and a failing store below."""
    with envs.SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE.override(0.1), \
            envs.SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY.override(0.002):
        ranks = make_ranks(attach, shape_of(rng, mla), "embedded:?ram=64MiB", 1, faults=0.2)
        workers = schedule.run(
            rng, ranks, steps, [clear_of(ranks), restart_of(ranks)], 0.5,
            lambda w: good(w) > steps / 40 and injected(ranks) > steps / 10)
    assert told(workers, ranks) > steps / 40 and injected(ranks) > steps / 10
    for rank in ranks:
        rank.end()


@pytest.mark.parametrize("mla", [False, True])
def test_a_log_whose_bits_flip(attach, place, rng, steps, mla):
    """A RAM too small for the pages, and a disk that changes bytes under them."""
    uri = f"embedded://{place}?ram=16MiB&disk=64MiB&write=through"
    ranks = make_ranks(attach, (mla, "page_first", 64, 24), uri, 1)
    flips = 0

    def flip():
        nonlocal flips
        with open(place / "cairn.log", "r+b", buffering=0) as log:
            size = os.fstat(log.fileno()).st_size
            for _ in range(rng.randrange(1, 4)):
                at = rng.randrange(4 << 20, size)
                log.seek(at)
                byte = log.read(1)
                log.seek(at)
                log.write(bytes([byte[0] ^ 1 << rng.randrange(8)]))
                flips += 1

    workers = schedule.run(rng, ranks, steps, [flip] * 20 + [restart_of(ranks)], 0.05,
                           lambda w: good(w) > steps / 20 and flips > 20)
    store = ranks[0].inner._shared.store.stats()
    print(f"{flips} flips; the store counts since its start: get {store['get']}")
    assert told(workers, ranks) > steps / 20 and flips > 20


@pytest.mark.parametrize("mla, scheme", [(False, "unix"), (True, "unix"), (True, "tcp")])
def test_ranks_over_a_node_that_comes_and_goes(attach, new_node, rng, steps, mla, scheme):
    node = new_node().start()
    uri = f"unix:{node.socket}" if scheme == "unix" else f"tcp://127.0.0.1:{node.port}"
    ranks = make_ranks(attach, shape_of(rng, mla), uri, 2)
    gone = [0]

    def stall():
        gone[0] += 1
        freeze(node.process.pid)
        time.sleep(rng.choice((0.01, 0.2, 1.5)))
        go_on(node.process.pid)

    def die():
        gone[0] += 1
        node.kill()
        time.sleep(rng.random() * 0.3)
        node.start()

    changes = [stall, die, clear_of(ranks), *[lambda: time.sleep(0.3)] * 3]
    if not mla:
        changes += [weights_of(rng, ranks), flush_of(ranks)]
    workers = schedule.run(rng, ranks, steps, changes,
                           until=lambda w: good(w) > steps / 20 and gone[0])
    print(f"the node was away {gone[0]} times")
    assert told(workers, ranks) > steps / 20 and gone[0]
    # Ten seconds: a batch of two pools that meets a stalled node twice.
    assert max(w.longest for w in workers) < 10 + STALL
    assert all(r.inner.counters["failures"] == 0 for r in ranks)
