"""cairn.Queue over the real library: submitted at once, completed exactly once, memory kept."""
import gc
import os
import random
import select
import threading
import time
import weakref

import numpy as np
import pytest

import cairn
from freeze import freeze, go_on
from patience import STALL, usual

pytestmark = pytest.mark.timeout(120)
SEED = int(os.environ.get("CAIRN_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
IDENT = {"model": "test-model", "chunk_tokens": 16}
OK, MISS = 0, -1


@pytest.fixture
def rng(request):
    print(f"CAIRN_TEST_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture(params=["embedded", "unix", "tcp"])
def store(request):
    uri = "embedded:?ram=64MiB"
    if request.param != "embedded":
        node = request.getfixturevalue("node")
        uri = f"unix:{node.socket}" if request.param == "unix" else f"tcp://127.0.0.1:{node.port}"
    with cairn.open(uri) as opened:
        yield opened


def names(rng, count):
    return np.frombuffer(rng.randbytes(32 * count), np.uint8).reshape(count, 32)


def runs(arrays):
    """One run a value."""
    iov = np.array([(a.ctypes.data, a.nbytes) for a in arrays], np.uint64)
    return iov, np.ones(len(arrays), np.uint32)


def blocks(rng, count, size=20000):
    return [np.frombuffer(rng.randbytes(size), np.uint8).copy() for _ in range(count)]


def wait_for(queue, tags, seconds=20 + STALL):
    """Polls until these have come; each comes once."""
    got = {}
    end = time.monotonic() + seconds
    while len(got) < len(tags):
        assert time.monotonic() < end, f"{len(got)} of {len(tags)} came"
        for tag, status in queue.poll(1.0):
            assert tag not in got
            got[tag] = status.tolist()
    assert set(got) == set(tags)
    return got


def test_round_trip_with_misses_between(store, rng):
    keys, given = names(rng, 6), blocks(rng, 6)
    with cairn.Queue(store) as queue:
        assert queue.poll(5.0) == [], "nothing is on its way, so nothing is waited for"
        put = queue.submit_put_runs(keys[:4], *runs(given[:4]))
        assert wait_for(queue, [put]) == {put: [OK] * 4}
        got = [np.zeros_like(g) for g in given]
        read = queue.submit_get_runs(keys, *runs(got))
        assert wait_for(queue, [read]) == {read: [OK] * 4 + [MISS] * 2}
        assert all((a == b).all() for a, b in zip(got[:4], given))
        assert len(queue) == 0 and queue.poll() == []


def test_several_calls_at_once_complete_each_for_itself(store, rng):
    keys, given = names(rng, 7), blocks(rng, 7)
    with cairn.Queue(store, depth=5) as queue:
        wait_for(queue, [queue.submit_put_runs(keys[1:], *runs(given[1:]))])
        got = [np.zeros_like(g) for g in given]
        tags = queue.submit_gets_runs(keys, *runs(got), [2, 0, 4, 1])
        assert len(set(tags)) == 4 == len(queue)
        assert wait_for(queue, tags) == dict(zip(tags, ([MISS, OK], [], [OK] * 4, [OK])))
        assert all((a == b).all() for a, b in zip(got[1:], given[1:]))
        with pytest.raises(cairn.InvalidError, match="7 keys"):
            queue.submit_gets_runs(keys, *runs(got), [2, 4])
        # There is room for the first five of six; the last is not begun.
        got = [np.zeros_like(g) for g in given]
        tags = queue.submit_gets_runs(keys[1:], *runs(got[1:]), [1] * 6)
        assert len(tags) == 5 and queue.submit_gets_runs(keys[6:], *runs(got[6:]), [1]) == []
        assert wait_for(queue, tags) == {tag: [OK] for tag in tags}
        assert not got[6].any() and len(queue) == 0
        assert queue.submit_gets_runs(keys[:0], *runs([]), []) == []


def test_gather_scatter_and_ranges(store, rng):
    keys, given = names(rng, 2), blocks(rng, 2, 30000)
    pieces = np.array([(g.ctypes.data + at, 10000) for g in given for at in (0, 10000, 20000)],
                      np.uint64)
    with cairn.Queue(store) as queue:
        put = queue.submit_put_runs(keys, pieces, np.array([3, 3]), replace=True)
        wait_for(queue, [put])
        got = [np.zeros(5000, np.uint8), np.zeros(30000, np.uint8)]
        read = queue.submit_get_runs(keys, *runs(got), offsets=np.array([12000, -1]))
        assert wait_for(queue, [read]) == {read: [OK, OK]}
    assert (got[0] == given[0][12000:17000]).all() and (got[1] == given[1]).all()


def test_readable_exactly_while_completions_wait(store, rng):
    def readable(seconds):
        return bool(select.select([queue.fd], [], [], seconds)[0])

    with cairn.Queue(store) as queue:
        assert not readable(0)
        keys, given = names(rng, 2), blocks(rng, 2)
        tags = [queue.submit_put_runs(keys[i:i + 1], *runs(given[i:i + 1])) for i in (0, 1)]
        assert readable(20)
        wait_for(queue, tags)
        assert not readable(0)


def test_many_threads_get_each_completion_once(store, rng):
    """Values are derived from their keys, so that every byte read is checked."""
    keys = names(rng, 32)
    size = 32 * 500
    seen, wrong, lock = {}, [], threading.Lock()
    queue = cairn.Queue(store)
    reads = {}
    ended = threading.Event()

    def submit(number):
        own = random.Random(f"{SEED} {number}")
        for _ in range(60):
            chosen = np.array(own.sample(range(32), own.randrange(1, 6)))
            memory = np.zeros((len(chosen), size), np.uint8)
            iov, counts = runs(list(memory))
            while True:
                try:
                    if own.random() < 0.5:
                        memory[:] = np.tile(keys[chosen], 500)
                        tag = queue.submit_put_runs(keys[chosen], iov, counts, keep=memory)
                    else:
                        with lock:
                            tag = queue.submit_get_runs(keys[chosen], iov, counts, keep=memory)
                            reads[tag] = (chosen, memory)
                    break
                except cairn.BusyError:
                    time.sleep(0.001)

    def poll():
        while not (ended.is_set() and len(queue) == 0):
            for tag, status in queue.poll(0.05):
                with lock:
                    seen[tag] = seen.get(tag, 0) + 1
                    read = reads.get(tag)
                if read is None:
                    continue
                for name, row, one in zip(read[0], read[1], status.tolist()):
                    if one == OK and not (row == np.tile(keys[name], 500)).all():
                        wrong.append(tag)

    pollers = [threading.Thread(target=poll) for _ in range(2)]
    submitters = [threading.Thread(target=submit, args=(i,)) for i in range(4)]
    for t in pollers + submitters:
        t.start()
    for t in submitters:
        t.join()
    ended.set()
    for t in pollers:
        t.join()
    queue.close()
    assert not wrong
    assert len(seen) == 240 and set(seen.values()) == {1}


def test_memory_is_kept_until_polled(store, rng):
    class Owner:
        def __init__(self, array):
            self.array = array

    owner = Owner(blocks(rng, 1, 1 << 20)[0])
    keys, want = names(rng, 1), owner.array.tobytes()
    alive = weakref.ref(owner)
    with cairn.Queue(store) as queue:
        iov, counts = runs([owner.array])
        tag = queue.submit_put_runs(keys.copy(), iov, counts, keep=owner)
        del owner, iov, counts
        gc.collect()
        assert alive() is not None
        wait_for(queue, [tag])
        gc.collect()
        assert alive() is None
    got = bytearray(1 << 20)
    assert store.get(keys, [got]) == [True] and got == want


def test_bounded(store, rng):
    keys, given = names(rng, 3), blocks(rng, 3)
    with cairn.Queue(store, depth=2) as queue:
        tags = [queue.submit_put_runs(keys[i:i + 1], *runs(given[i:i + 1])) for i in (0, 1)]
        with pytest.raises(cairn.BusyError, match="2 calls"):
            queue.submit_put_runs(keys[2:], *runs(given[2:]))
        wait_for(queue, tags)
        wait_for(queue, [queue.submit_put_runs(keys[2:], *runs(given[2:]))])
    for depth in (0, 257):
        with pytest.raises(cairn.InvalidError, match="1 to 256"):
            cairn.Queue(store, depth=depth)


def test_wrong_arguments_are_said_at_submit(store, rng):
    keys, given = names(rng, 2), blocks(rng, 2)
    with cairn.Queue(store) as queue:
        with pytest.raises(cairn.InvalidError, match="timeout"):
            queue.submit_get_runs(keys, *runs(given), timeout=-1)
        with pytest.raises(cairn.InvalidError, match="offsets"):
            queue.submit_get_runs(keys, *runs(given), offsets=[1.5, 2])
        assert len(queue) == 0 and queue.poll() == []
        empty = np.zeros((0, 32), np.uint8)
        tag = queue.submit_get_runs(empty, np.zeros((0, 2), np.uint64), np.zeros(0, np.uint32))
        assert wait_for(queue, [tag]) == {tag: []}
        none = queue.submit_put_runs(np.zeros((1, 32), np.uint8), *runs(given[:1]))
        assert wait_for(queue, [none])[none][0] not in (OK, -2), "a zero key names nothing"


def test_close_waits_for_what_is_on_its_way(store, rng):
    for _ in range(10):
        queue = cairn.Queue(store)
        keys, given = names(rng, 4), blocks(rng, 4, 400000)
        queue.submit_put_runs(keys, *runs(given))
        ended = []

        def polls():
            try:
                while True:
                    queue.poll(0.01)
            except cairn.StateError:
                ended.append(True)

        other = threading.Thread(target=polls)
        other.start()
        queue.close()
        other.join(20)
        assert ended
        queue.close()
        got = [bytearray(400000) for _ in given]
        assert store.get(keys, got) == [True] * 4
        assert all(a == b.tobytes() for a, b in zip(got, given))
        with pytest.raises(cairn.StateError, match="queue is closed"):
            queue.submit_put_runs(keys, *runs(given))


def test_closing_the_store_closes_its_queues(rng):
    store = cairn.open("embedded:?ram=64MiB")
    queue = cairn.Queue(store)
    given = blocks(rng, 4, 400000)
    queue.submit_put_runs(names(rng, 4), *runs(given), keep=given)
    store.close()
    with pytest.raises(cairn.StateError):
        queue.poll()
    with pytest.raises(cairn.StateError, match="store is closed"):
        cairn.Queue(store)


def test_after_fork(store, rng):
    keys, given = names(rng, 1), blocks(rng, 1)
    with cairn.Queue(store) as queue:
        child = os.fork()
        if child == 0:
            refused = 0
            for call in (queue.poll, lambda: queue.submit_put_runs(keys, *runs(given))):
                try:
                    call()
                except cairn.StateError:
                    refused += 1
            queue.close()
            os._exit(0 if refused == 2 else 1)
        assert os.waitpid(child, 0)[1] == 0
        tag = queue.submit_put_runs(keys, *runs(given))
        assert wait_for(queue, [tag]) == {tag: [OK]}


def test_a_node_that_stands_still_costs_the_deadline_and_no_submit(node, rng):
    keys, given = names(rng, 1), blocks(rng, 1)
    with cairn.open(f"unix:{node.socket}?timeout=500ms") as store, cairn.Queue(store) as queue:
        wait_for(queue, [queue.submit_put_runs(keys, *runs(given))])
        freeze(node.process.pid)
        began = time.monotonic()
        got = [np.zeros_like(given[0]) for _ in range(20)]
        tags, spent = [], []
        for one in got:
            asked = time.monotonic()
            tags.append(queue.submit_get_runs(keys, *runs([one]), timeout=0.5))
            spent.append(time.monotonic() - asked)
        assert usual(spent) < 0.1, "submit waited for the node"
        late = wait_for(queue, tags)
        assert time.monotonic() - began < 15 + STALL
        go_on(node.process.pid)
        for tag, memory in zip(tags, got):
            assert late[tag] != [OK] or (memory == given[0]).all()
        assert sum(s != [OK] for s in late.values()) >= 1
        end = time.monotonic() + 20 + STALL
        while wait_for(queue, [t := queue.submit_get_runs(keys, *runs(got[:1]))])[t] != [OK]:
            assert time.monotonic() < end, "no hit again after it went on"
            time.sleep(0.05)
        assert (got[0] == given[0]).all()
