"""SGLang's own cache controller, with its threads, on its own host pool: what a scheduler does with
it, saving the pages of a prompt and fetching them again, is done here by hand."""

import random
import threading
import time
from types import SimpleNamespace

import pytest
import sglang_pools as sg
import torch
import torch.distributed as dist
from freeze import freeze, go_on
from patience import STALL, usual
from sglang.srt.environ import envs
from sglang.srt.managers.cache_controller import HiCacheController
from sglang.srt.mem_cache.radix_cache import RadixKey
from sglang.srt.mem_cache.utils import get_storage_hash_str
from sglang.srt.runtime_context import get_parallel
from sglang_watch import watched  # noqa: F401

pytestmark = pytest.mark.timeout(300)
PAGE = 16
RAM = "embedded:?ram=64MiB"


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory):
    store = tmp_path_factory.mktemp("gloo") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    with get_parallel().override(tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, attn_dcp_size=1,
                                 attn_dcp_rank=0, attn_tp_rank=0, attn_tp_size=1, attn_dp_rank=0):
        yield
    dist.destroy_process_group()


class Engine:
    """A scheduler's part: it hashes, takes and frees host pages, and waits for the threads."""

    def __init__(self, uri, layout="page_first", extra=None, pages=64):
        self.pool = sg.mha(layout, page=PAGE, pages=pages)
        device = SimpleNamespace(device=torch.device("cpu"), layer_num=3,
                                 register_layer_transfer_counter=lambda counter: None)
        self.controller = HiCacheController(
            SimpleNamespace(get_kvcache=lambda: device), self.pool, PAGE, dist.group.WORLD,
            threading.Event(), io_backend="direct", storage_backend="dynamic", prefetch_threshold=1,
            model_name="test-model", enable_storage_metrics=True,
            storage_backend_extra_config=dict(sg.config(uri, extra).extra_config))

    def save(self, key, seed):
        """How many tokens were saved; their pages hold what `seed` says."""
        count = len(key) // PAGE
        where = self.pool.alloc(count * PAGE)
        rng = random.Random(seed)
        for slot in where[::PAGE]:
            sg.fill(self.pool, int(slot) // PAGE, rng)
        hashes = get_storage_hash_str(key, None, page_size=PAGE)
        self.controller.write_storage(where, key, hash_value=hashes)
        done = self.controller.ack_backup_queue.get(timeout=90)
        self.pool.free(where)
        return done.completed_tokens

    def load(self, key, seed):
        """How many tokens were fetched; all of them are right."""
        controller = self.controller
        controller.prefetch("request", key)
        operation = controller.prefetch_hit_queue.get(timeout=90)
        count = operation.storage_hit_count
        if not count:
            return 0
        operation.host_indices = self.pool.alloc(count)
        controller.prefetch_buffer.put(operation)
        done = 0
        while True:
            ack = controller.ack_prefetch_queue.get(timeout=90)
            if ack.completed_req:
                break
            done = ack.completed_tokens
        self.judge(operation.host_indices[:done], seed)
        self.pool.free(operation.host_indices)
        return done

    def judge(self, where, seed):
        scratch, rng = sg.mha(self.pool.layout, page=PAGE, pages=8), random.Random(seed)
        for slot in where[::PAGE]:
            sg.fill(scratch, 0, rng)
            assert sg.page_bytes(self.pool, int(slot) // PAGE) == sg.page_bytes(scratch, 0)

    def alive(self):
        c = self.controller
        return all(t.is_alive() for t in (c.prefetch_thread, c.prefetch_io_aux_thread,
                                          c.prefetch_sync_thread, c.backup_thread))


@pytest.fixture
def start():
    made = []

    def one(*args, **kwargs):
        made.append(Engine(*args, **kwargs))
        return made[-1]

    yield one
    for engine in made:
        engine.controller.detach_storage_backend()


def prompt(number, pages, **names):
    return RadixKey([number * 1000 + i for i in range(pages * PAGE)], **names)


@pytest.mark.parametrize("layout", ["layer_first", "page_first", "page_first_direct", "page_head"])
@pytest.mark.parametrize("in_place", [1, 0])
def test_saved_and_fetched_again(start, place, layout, in_place):
    uri = f"embedded://{place}?ram=64MiB&disk=256MiB"
    first = start(uri, layout, {"interface_v1": in_place})
    key = prompt(1, 9)
    assert first.load(key, 1) == 0
    assert first.save(key, 1) == 9 * PAGE and first.load(key, 1) == 9 * PAGE
    longer = RadixKey(key.token_ids + [7] * 40)
    assert first.load(longer, 1) == 9 * PAGE
    assert first.load(prompt(2, 9), 1) == 0
    first.controller.detach_storage_backend()
    # Another engine, after this one: only the log is shared.
    second = start(uri, layout, {"interface_v1": in_place})
    assert second.load(key, 1) == 9 * PAGE and second.alive()
    if in_place:
        stats = second.controller.storage_backend.get_stats()
        assert stats.prefetch_pgs == [9] and stats.prefetch_bandwidth[0] > 0


def test_more_than_a_batch_of_sglang_s(start):
    engine = start(RAM, pages=320)
    key = prompt(1, 300)
    assert engine.save(key, 5) == 300 * PAGE and engine.load(key, 5) == 300 * PAGE


def test_adapters_and_salts_are_apart(start):
    """SGLang begins a prompt's hashes with them."""
    engine = start(RAM)
    plain, lora = prompt(1, 4), prompt(1, 4, extra_key="adapter")
    salted = prompt(1, 4, cache_salt="tenant")
    for seed, key in enumerate((plain, lora, salted)):
        assert engine.load(key, seed) == 0
        assert engine.save(key, seed) == 4 * PAGE
    for seed, key in enumerate((plain, lora, salted)):
        assert engine.load(key, seed) == 4 * PAGE


def test_its_threads_outlive_its_own_faults(start):
    with envs.SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE.override(0.3), \
            envs.SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY.override(0.003):
        engine = start(RAM)
    saved = loaded = 0
    for turn in range(120):
        key = prompt(turn % 10, 5)
        saved += engine.save(key, turn % 10)
        loaded += engine.load(key, turn % 10)
    print(f"{saved} tokens saved, {loaded} loaded of {120 * 5 * PAGE}")
    assert saved > 0 and 0 < loaded < 120 * 5 * PAGE and engine.alive()


def test_its_threads_outlive_a_node(start, node):
    engine = start(f"unix:{node.socket}")
    key = prompt(1, 6)
    assert engine.save(key, 1) == engine.load(key, 1) == 6 * PAGE
    for stop in (lambda: freeze(node.process.pid), node.kill):
        stop()
        begun = time.monotonic()
        assert engine.load(key, 1) == 0 and engine.save(prompt(2, 3), 2) == 0
        waited = time.monotonic() - begun
        print(f"a load and a save without the node: {waited:.3f} s")
        # One deadline of 1 s: what comes after it does not wait.
        assert waited < 1 + STALL and engine.alive()
        later = []
        for _ in range(5):
            begun = time.monotonic()
            assert engine.load(key, 1) == 0
            later.append(time.monotonic() - begun)
        assert usual(later) < 0.9, later
        if node.process.poll() is None:
            go_on(node.process.pid)
        else:
            node.start()
        end = time.monotonic() + STALL
        while not (engine.save(key, 1) and engine.load(key, 1)):
            assert time.monotonic() < end, "no hit in time after the node came back"
            time.sleep(0.1)
    assert engine.alive()


def test_it_can_be_detached_and_attached(start, node):
    engine = start(f"unix:{node.socket}")
    key = prompt(1, 6)
    assert engine.save(key, 1) == 6 * PAGE
    engine.controller.detach_storage_backend()
    assert engine.controller.storage_backend is None
    engine.controller.attach_storage_backend(
        "dynamic", 1, "test-model", dict(sg.config(f"unix:{node.socket}").extra_config))
    assert engine.load(key, 1) == 6 * PAGE


def test_what_it_stores_between_an_update_and_a_flush_is_not_found_after_it(
        start, watched):  # noqa: F811
    """An update with flush_cache=False, or whose flush is refused because requests run."""
    engine = start(RAM)
    key, storage = prompt(1, 6), engine.controller.storage_backend
    assert engine.save(key, 1) == 6 * PAGE
    engine.controller.reset()
    assert engine.load(key, 1) == 6 * PAGE
    storage.weights_changed()
    assert engine.load(key, 1) == 0
    assert engine.save(key, 1) == 6 * PAGE
    engine.controller.reset()
    assert engine.load(key, 1) == 0
    assert engine.save(key, 2) == 6 * PAGE and engine.load(key, 2) == 6 * PAGE
    engine.controller.reset()
    assert engine.load(key, 2) == 6 * PAGE and engine.alive()
