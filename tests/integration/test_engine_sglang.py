"""SGLang's own storage factory, host pools and fault injection with Cairn behind them. What a page
holds is read and compared through the pools' tensors, never through the store's way to them."""

import hashlib
import json
import os
import random
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

import cairn
import sglang_pools as sg
import torch
from cairn._sglang_pool import Names, digest_of
from freeze import freeze, go_on
from gpu_engine import DRIVER, LATEST, DeviceTensor, Gpu
from patience import STALL, usual
from sglang.srt.environ import envs
from sglang.srt.mem_cache.device_pool_info import KVBufferLayout
from sglang.srt.mem_cache.hicache_storage import (HiCacheFile, HiCacheStorage,
                                                  HiCacheStorageExtraInfo,
                                                  HiCacheStorageFailureInjector, PoolHitPolicy,
                                                  PoolName, PoolTransfer)
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory
from sglang_watch import watched  # noqa: F401

pytestmark = pytest.mark.timeout(300)
RAM = "embedded:?ram=64MiB"


def name(i):
    """A page hash as SGLang makes it."""
    return hashlib.sha256(b"%d" % i).hexdigest()


NAMES = [name(i) for i in range(512)]


@pytest.fixture
def rng():
    seed = int(os.environ.get("CAIRN_TEST_SEED", random.SystemRandom().getrandbits(32)))
    print(f"CAIRN_TEST_SEED={seed}")
    return random.Random(seed)


@pytest.fixture
def attach():
    """Makes storages as SGLang's cache controllers do: factory, anchor, other pools, one signal."""
    made = []

    def one(pool, uri=RAM, extra=None, others=(), **fields):
        storage = StorageBackendFactory.create_backend(
            "dynamic", sg.config(uri, extra, **fields), pool)
        made.append(storage)
        storage.register_mem_pool_host(pool)
        for kind, other in others:
            storage.register_mem_host_pool_v2(other, kind)
        storage.on_host_pools_registered()
        return storage

    yield one
    for storage in made:
        storage.close()


def everything(pool):
    return [sg.page_bytes(pool, p) for p in range(pool.size // pool.page_size)]


POOLS = [(sg.mha, layout, page) for layout in sg.MHA_LAYOUTS for page in (1, 16, 64)]
POOLS += [(sg.mla, layout, page) for layout in sg.MLA_LAYOUTS for page in (1, 64)]


@pytest.mark.parametrize("make, layout, page", POOLS)
def test_pages_of_every_layout_and_size(attach, rng, make, layout, page):
    pool = make(layout, page=page)
    storage = attach(pool, is_mla_model=make is sg.mla)
    assert type(storage).__name__ == "CairnStorage" and storage._pools["kv"].without_copy
    for p in range(5):
        sg.fill(pool, p, rng)
    keys, held = NAMES[:5], everything(pool)
    assert storage.batch_exists(keys) == 0
    assert storage.batch_get_v1(keys, sg.slots(pool, 9, 5, 20, 11, 23)) == [False] * 5
    assert everything(pool) == held
    assert storage.batch_set_v1(keys[:4], sg.slots(pool, 0, 1, 2, 3)) == [True] * 4
    assert storage.batch_exists(keys) == 4
    assert storage.batch_get_v1(keys, sg.slots(pool, 9, 5, 20, 11, 23)) == [True] * 4 + [False]
    got = everything(pool)
    for at, p in enumerate((9, 5, 20, 11)):
        held[p] = held[at]
    assert got[:23] == held[:23]
    # What is held keeps its bytes.
    assert storage.batch_set_v1(keys[:1], sg.slots(pool, 4)) == [True]
    assert storage.batch_get_v1(keys[:1], sg.slots(pool, 7)) == [True]
    assert sg.page_bytes(pool, 7) == held[0]


@pytest.mark.parametrize("layout", ["page_first", "page_unified"])
def test_pages_on_a_gpu(attach, rng, layout, monkeypatch):
    """A pool whose buffer is on a device, the emulated driver's."""
    gpu = Gpu()
    monkeypatch.setattr(torch.cuda, "current_stream",
                        lambda device: SimpleNamespace(cuda_stream=gpu.stream))
    gpu.cuda.emu_time(LATEST)
    pool = sg.mha(layout)
    buffer = pool.kv_buffer
    for p in range(4):
        sg.fill(pool, p, rng)
    raw = buffer.view(torch.uint8).numpy().reshape(-1)
    pool.kv_buffer = DeviceTensor(buffer, buffer, gpu.memory.value)
    storage = attach(pool, uri=f"{RAM}&cuda={DRIVER}")
    whole = gpu.array(0, raw.nbytes)
    whole.write(raw.tobytes())
    assert storage.batch_set_v1(NAMES[:4], sg.slots(pool, 0, 1, 2, 3)) == [True] * 4
    assert storage.batch_get_v1(NAMES[:5], sg.slots(pool, 9, 5, 20, 11, 23)) == [True] * 4 + [False]
    pool.kv_buffer = buffer
    held = everything(pool)
    raw[:] = np.frombuffer(whole.read(), np.uint8)
    for at, p in enumerate((9, 5, 20, 11)):
        held[p] = held[at]
    assert everything(pool)[:23] == held[:23]
    assert gpu.cuda.emu_violations() == 0, gpu.cuda.emu_violation_text().decode()


def test_names_are_those_of_the_specification():
    identity = cairn.Identity(model="m", chunk_tokens=16)
    for domain in (cairn.PUBLIC, b"k", b"0123456789abcdef" * 4):
        names = Names(identity, domain)
        for page in NAMES[:3]:
            assert [names.key(page)] == cairn.keys_from_hashes(
                identity, [bytes.fromhex(page)], domain=domain)
    odd = ["", "page", "x" * 64, NAMES[0].upper(), NAMES[0][:-1] + "é"]
    assert len({digest_of(p) for p in odd + NAMES}) == len(odd + NAMES) - 1


OTHERS = {
    "weights": dict(extra={"weights": "revision 2"}),
    "model": dict(model_name="other"),
    "tp rank": dict(tp_rank=1, tp_size=2),
    "tp size": dict(tp_size=2),
    "pp rank": dict(pp_rank=1, pp_size=2),
    "cp rank": dict(attn_cp_rank=1, attn_cp_size=2),
    "layout": dict(pool=dict(layout="page_first")),
    "same size, other layout": dict(pool=dict(layout="page_head")),
    "type": dict(pool=dict(dtype=torch.float16)),
    "page": dict(pool=dict(page=32)),
    "layers": dict(pool=dict(start=3)),
    "heads": dict(pool=dict(heads=8, size=8)),
    "order of a row": dict(pool=dict(order=KVBufferLayout.HND)),
    "domain": dict(extra={"domain_key_file": True}),
}


@pytest.mark.parametrize("other", OTHERS)
def test_what_differs_is_never_shared(attach, node, place, rng, other):
    uri = f"unix:{node.socket}"
    pool = sg.mha("page_first_direct")
    sg.fill(pool, 0, rng)
    mine = attach(pool, uri)
    assert mine.batch_set_v1(NAMES[:1], sg.slots(pool, 0)) == [True]
    (place / "key").write_bytes(b"secret")
    given = dict(OTHERS[other])
    shape = {"layout": "page_first_direct", **given.pop("pool", {})}
    if given.get("extra", {}).get("domain_key_file"):
        given["extra"] = {"domain_key_file": str(place / "key")}
    second = sg.mha(**shape)
    theirs = attach(second, uri, **given)
    assert theirs.batch_exists(NAMES[:1]) == 0
    assert theirs.batch_get_v1(NAMES[:1], sg.slots(second, 1)) == [False]
    same = sg.mha("page_first_direct", pages=30)
    assert attach(same, uri).batch_get_v1(NAMES[:1], sg.slots(same, 3)) == [True]
    assert sg.page_bytes(same, 3) == sg.page_bytes(pool, 0)


def test_mla_pages_are_every_rank_s_and_states_are_each_rank_s(attach, node, rng):
    uri = f"unix:{node.socket}"
    ranks = []
    for rank in range(2):
        pool, state = sg.mla("page_first"), sg.mamba()
        ranks.append((pool, state, attach(pool, uri, is_mla_model=True, tp_rank=rank, tp_size=2,
                                          others=[(PoolName.MAMBA, state)])))
    (pool, state, writer), (other_pool, other_state, reader) = ranks
    assert writer._config.is_storage_writer and not reader._config.is_storage_writer
    sg.fill(pool, 0, rng)
    sg.fill(state, 0, rng)
    assert writer.batch_set_v1(NAMES[:1], sg.slots(pool, 0)) == [True]
    saved = PoolTransfer(PoolName.MAMBA, keys=NAMES[:1], host_indices=sg.slots(state, 0))
    assert writer.batch_set_v2([saved]) == {"mamba": [True]}
    assert reader.batch_get_v1(NAMES[:1], sg.slots(other_pool, 5)) == [True]
    assert sg.page_bytes(other_pool, 5) == sg.page_bytes(pool, 0)
    wanted = PoolTransfer(PoolName.MAMBA, keys=NAMES[:1], host_indices=sg.slots(other_state, 3))
    assert reader.batch_get_v2([wanted]) == {"mamba": [False]}
    assert writer.batch_get_v2([saved]) == {"mamba": [True]}


def test_heads_split_between_engines_of_other_widths(attach, node, rng):
    """tp_lcm_size: what one rank with 4 heads stores, two ranks with 2 heads load, and back."""
    uri = f"unix:{node.socket}"
    whole = sg.mha("page_head", heads=4)
    wide = attach(whole, uri, tp_lcm_size=2, should_split_heads=True)
    halves = [sg.mha("page_head", heads=2) for _ in range(2)]
    narrow = [attach(half, uri, tp_lcm_size=2, tp_rank=rank, tp_size=2)
              for rank, half in enumerate(halves)]
    for p in range(3):
        sg.fill(whole, p, rng)
    assert wide.batch_set_v1(NAMES[:3], sg.slots(whole, 0, 1, 2)) == [True] * 3
    assert wide.batch_exists(NAMES[:4]) == 3
    for rank, half in enumerate(halves):
        assert narrow[rank].batch_get_v1(NAMES[:3], sg.slots(half, 5, 6, 7)) == [True] * 3
        heads = whole.kv_buffer[:, :3, rank * 2:rank * 2 + 2]
        assert torch.equal(half.kv_buffer[:, 5:8].view(torch.uint8), heads.view(torch.uint8))
    assert narrow[0].batch_set_v1(NAMES[9:10], sg.slots(halves[0], 5)) == [True]
    assert wide.batch_exists(NAMES[9:10]) == 0  # half a page is none
    assert wide.batch_get_v1(NAMES[9:10], sg.slots(whole, 9)) == [False]
    assert narrow[1].batch_set_v1(NAMES[9:10], sg.slots(halves[1], 5)) == [True]
    assert wide.batch_get_v1(NAMES[9:10], sg.slots(whole, 9)) == [True]
    assert sg.page_bytes(whole, 9) == sg.page_bytes(whole, 0)


@pytest.mark.parametrize("side", [False, True])
def test_states_of_mamba(attach, rng, side):
    """Also those that SGLang gives no addresses of, which are copied."""
    kv, state = sg.mha("page_first"), sg.mamba(side=side)
    storage = attach(kv, others=[(PoolName.KV, kv), (PoolName.MAMBA, state)])
    assert storage._pools["mamba"].without_copy is not side
    for p in range(4):
        sg.fill(state, p, rng)
    held = everything(state)
    put = PoolTransfer(PoolName.MAMBA, keys=NAMES[:4], host_indices=sg.slots(state, 0, 1, 2, 3))
    assert storage.batch_set_v2([put]) == {PoolName.MAMBA: [True] * 4}
    got = PoolTransfer(PoolName.MAMBA, keys=[NAMES[2], NAMES[7], NAMES[0]],
                       host_indices=sg.slots(state, 10, 11, 12))
    found = storage.batch_get_v2([got])
    assert found["mamba"] == [True, False, True]
    after = everything(state)
    assert after[10] == held[2] and after[12] == held[0]
    assert after[:10] == held[:10] and after[13:] == held[13:]
    if side:
        assert after[11] == held[11]


def test_pools_are_found_as_by_sglang_s_own_file_storage(attach, place, rng):
    """batch_exists_v2 against HiCacheFile, for random sets of pages in each pool."""
    kv, swa, state = sg.mha("page_first"), sg.mha("page_first", layers=1), sg.mamba()
    pools = {PoolName.KV: kv, PoolName.SWA: swa, PoolName.MAMBA: state}
    others = list(pools.items())
    os.environ.pop("SGLANG_HICACHE_FILE_BACKEND_STORAGE_DIR", None)
    for turn in range(40):
        storage = attach(kv, extra={"weights": f"turn {turn}"}, others=others)
        theirs = HiCacheFile(sg.config(RAM, {"file_storage_path": str(place / f"f{turn}")}))
        theirs.register_mem_pool_host(kv)
        for kind, pool in others:
            theirs.register_mem_host_pool_v2(pool, kind)
        count = rng.randrange(1, 20)
        keys = rng.sample(NAMES, count)
        share = {kind: rng.choice((0.3, 0.8, 0.95, 1.0)) for kind in pools}
        for kind, pool in pools.items():
            some = [k for k in keys if rng.random() < share[kind]]
            if not some:
                continue
            transfer = PoolTransfer(kind, keys=some,
                                    host_indices=sg.slots(pool, *range(len(some))))
            assert all(theirs.batch_set_v2([transfer])[kind])
            assert all(storage.batch_set_v2([transfer])[kind])
        for _ in range(6):
            asked = [PoolTransfer(kind, hit_policy=rng.choice(
                (PoolHitPolicy.ALL_PAGES, PoolHitPolicy.TRAILING_PAGES)),
                keys=keys[:rng.randrange(4)]) for kind in (PoolName.SWA, PoolName.MAMBA)]
            rng.shuffle(asked)
            want = theirs.batch_exists_v2(keys, asked)
            have = storage.batch_exists_v2(keys, asked)
            assert have == want, (keys, asked)
            assert storage.batch_exists(keys) == want.extra_pool_hit_pages.get(PoolName.KV, 0)
        storage.close()
    groups = PoolTransfer(PoolName.SWA, hit_policy=PoolHitPolicy.BLOCK_GROUPS)
    assert attach(kv).batch_exists_v2(NAMES, [groups]).kv_hit_pages == 0


def test_an_anchor_without_bytes(attach, rng):
    """DeepSeek V4: the anchor counts slots, and what belongs to them is in the pools beside it."""
    anchor, side = sg.LogicalHostPool(16 * 24, 16), sg.mla("page_first")
    storage = attach(anchor, is_mla_model=True, others=[(PoolName.DEEPSEEK_V4_C4, side)])
    asked = [PoolTransfer(PoolName.DEEPSEEK_V4_C4)]
    assert storage.batch_get_v1(NAMES[:2], sg.slots(anchor, 0, 1)) == [True] * 2
    assert storage.batch_exists(NAMES[:2]) == 0
    assert storage.batch_exists_v2(NAMES[:4], asked).kv_hit_pages == 0
    put = PoolTransfer(PoolName.DEEPSEEK_V4_C4, keys=NAMES[:2], host_indices=sg.slots(side, 0, 1))
    assert storage.batch_set_v2([put]) == {PoolName.DEEPSEEK_V4_C4: [True] * 2}
    assert storage.batch_exists_v2(NAMES[:4], asked).kv_hit_pages == 2


def test_slots_that_are_no_pages_are_refused(attach, rng):
    pool = sg.mha()
    storage = attach(pool)
    assert storage.batch_set_v1(NAMES[:2], sg.slots(pool, 0, 1)) == [True] * 2
    held = everything(pool)
    good = sg.slots(pool, 2, 3)
    torn = good.clone()
    torn[5] = 0
    for bad in (good[:-1], good[:16], good + 1, good + pool.size, good - pool.size, torn,
                good.reshape(2, 16), good.flip(0), None, torch.empty(0, dtype=torch.int64)):
        assert storage.batch_get_v1(NAMES[:2], bad) == [False] * 2
        assert storage.batch_set_v1(NAMES[8:10], bad) == [False] * 2
    assert everything(pool) == held and storage.batch_exists(NAMES[8:10]) == 0
    assert storage.batch_get_v1([], sg.slots(pool)) == storage.batch_set_v1([], None) == []
    assert storage.batch_exists([]) == 0 and storage.batch_get_v2([]) == {}
    lost = PoolTransfer(PoolName.SWA, keys=NAMES[:2], host_indices=good)
    assert storage.batch_get_v2([lost]) == storage.batch_set_v2([lost]) == {"swa": [False] * 2}
    assert storage.batch_set_v2([PoolTransfer(PoolName.SWA)]) == {"swa": []}


def test_pools_that_cannot_be_served_are_misses(attach):
    class Odd:
        """Pages at distances that differ."""
        page_size, size, layout, layer_num = 16, 384, "layer_first", 1
        kv_buffer = torch.zeros(1 << 16, dtype=torch.uint8)

        def get_page_buffer_meta(self, indices):
            page = int(indices[0]) // 16
            return [self.kv_buffer.data_ptr() + page * page * 64], [64]

    class Mute(Odd):
        def get_page_buffer_meta(self, indices):
            raise NotImplementedError("no addresses")

        def get_dummy_flat_data_page(self):
            raise NotImplementedError("no pages")

    class Arena(Odd):
        shared_allocation_domain = "pages move"

    for pool in (Odd(), Mute(), Arena(), sg.mha(pages=24, page=64, layers=40, heads=32, size=128),
                 sg.fake(), sg.fake(kv_buffer=None, layer_num=2)):
        storage = attach(pool)
        where = torch.arange(pool.page_size)
        assert storage.batch_exists(NAMES[:1]) == 0
        assert storage.batch_get_v1(NAMES[:1], where) == [False]
        assert storage.batch_set_v1(NAMES[:1], where) == [False]
    nameless = attach(sg.mha(), extra={"weights": "w"}, model_name=None)
    assert nameless.batch_set_v1(NAMES[:1], torch.arange(16)) == [False]


WRONG = {
    "uri": (dict(uri=None), 'needs "uri"'),
    "option": (dict(extra={"domian_key_file": "x"}), "domian_key_file"),
    "timeout": (dict(extra={"timeout": -1}), '"timeout" is -1'),
    "weights": (dict(extra={"weights": 7}), '"weights" is 7'),
    "domain": (dict(extra={"domain_key_file": "/nonexistent"}), "/nonexistent"),
    "scheme": (dict(uri="tape:/dev/st0"), "tape:"),
    "ranks": (dict(tp_size=2), "cairnd"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_option_is_said_at_start(wrong):
    given, said = WRONG[wrong]
    given = {"uri": RAM, **given}
    with pytest.raises(cairn.InvalidError, match=said):
        StorageBackendFactory.create_backend("dynamic", sg.config(**given), None)


def test_tensors_by_get_and_set(attach, rng):
    """Without interface_v1 pages travel as tensors, in another order of bytes: never mixed."""
    pool = sg.mha("layer_first")
    plain, in_place = attach(pool, extra={"interface_v1": 0}), attach(pool)
    for p in range(3):
        sg.fill(pool, p, rng)
    held = everything(pool)
    pages = [pool.get_data_page(p * 16) for p in range(3)]
    assert plain.batch_set(NAMES[:3], pages) is True and plain.exists(NAMES[1])
    assert plain.batch_exists(NAMES) == 3 and in_place.batch_exists(NAMES) == 0
    assert in_place.batch_get_v1(NAMES[:1], sg.slots(pool, 9)) == [False]
    outs = [pool.get_dummy_flat_data_page() for _ in range(4)]
    got = plain.batch_get(NAMES[:4], outs)
    assert [g is not None for g in got] == [True] * 3 + [False]
    for p, page in enumerate(got[:3]):
        pool.set_from_flat_data_page((p + 10) * 16, page)
    assert everything(pool)[10:13] == held[:3]
    assert plain.get(NAMES[0], pool.get_dummy_flat_data_page()) is not None
    assert plain.get(NAMES[5], pool.get_dummy_flat_data_page()) is None
    # What is no page of this size, or no tensor.
    assert plain.get(NAMES[0], torch.empty(3)) is None and plain.get(NAMES[0]) is None
    assert plain.set(NAMES[6], None) is False and plain.batch_set(NAMES[:2], pages) is False
    assert plain.batch_get(NAMES[:2], None) == [None, None]


def test_weights_that_change_and_clearing(attach, node, rng):
    uri = f"unix:{node.socket}"
    pool = sg.mha()
    storage, other = attach(pool, uri), attach(pool, uri)
    sg.fill(pool, 0, rng)
    assert storage.batch_set_v1(NAMES[:1], sg.slots(pool, 0)) == [True]
    storage.weights_changed()
    assert storage.batch_exists(NAMES[:1]) == 0
    assert storage.batch_get_v1(NAMES[:1], sg.slots(pool, 3)) == [False]
    assert storage.batch_set_v1(NAMES[1:2], sg.slots(pool, 0)) == [True]
    assert storage.batch_exists(NAMES[1:2]) == 1 and other.batch_exists(NAMES[1:2]) == 0
    assert other.batch_get_v1(NAMES[:1], sg.slots(pool, 3)) == [True]
    storage.clear()
    assert storage.batch_exists(NAMES[1:2]) == 0 and other.batch_exists(NAMES[:1]) == 1
    # Ranks that share pages have no new name in common.
    shared = sg.mla()
    reader = attach(shared, uri, is_mla_model=True, tp_rank=1, tp_size=2)
    writer = attach(shared, uri, is_mla_model=True, tp_size=2)
    for one in (writer, reader):
        one.clear()
    assert writer.batch_set_v1(NAMES[:1], sg.slots(shared, 0)) == [True]
    assert reader.batch_get_v1(NAMES[:1], sg.slots(shared, 2)) == [True]
    for one in (writer, reader):
        one.weights_changed()
    assert writer.batch_set_v1(NAMES[2:3], sg.slots(shared, 0)) == [False]
    assert reader.batch_exists(NAMES[:1]) == 0


def test_what_a_flush_ends(attach, rng):
    """Without one SGLang goes on with KV of the old weights and stores it."""
    pool = sg.mha()
    storage = attach(pool)
    sg.fill(pool, 0, rng)
    assert storage.batch_set_v1(NAMES[:1], sg.slots(pool, 0)) == [True]
    storage.flushed()
    assert storage.batch_exists(NAMES[:1]) == 1, "these weights have their name still"
    storage.weights_changed()
    assert storage.batch_set_v1(NAMES[:1], sg.slots(pool, 0)) == [True]
    storage.flushed()
    assert storage.batch_exists(NAMES[:1]) == 0
    assert storage.batch_get_v1(NAMES[:1], sg.slots(pool, 3)) == [False]
    assert storage.batch_set_v1(NAMES[:1], sg.slots(pool, 0)) == [True]
    storage.flushed()
    assert storage.batch_get_v1(NAMES[:1], sg.slots(pool, 3)) == [True]


@pytest.fixture
def updates(watched, monkeypatch):  # noqa: F811
    """SGLang's own part of a scheduler that updates weights, over a model of one layer."""
    from sglang.srt.managers.scheduler_components import weight_updater as scheduler
    from sglang.srt.model_executor.model_runner_components.weight_updater import WeightUpdater
    monkeypatch.setattr(scheduler.torch.distributed, "barrier", lambda **_: None)
    model = torch.nn.Linear(2, 2)
    runner = SimpleNamespace(weight_updater=WeightUpdater(
        tp_rank=0, device="cpu", gpu_id=0, model_config=None, custom_weight_loaders={},
        get_model=lambda: model, update_model_fields=None, recapture_cuda_graph=None,
        get_model_runner=None))
    updater = object.__new__(scheduler.SchedulerWeightUpdaterManager)
    updater._session = updater.tp_cpu_group = updater.metrics_collector = None
    updater.draft_worker = None
    updater.tp_worker = SimpleNamespace(weight_update_runners=lambda: [("target", runner)],
                                        model=model)
    return updater


def stored(storage, pool):
    assert storage.batch_set_v1(NAMES[:1], sg.slots(pool, 0)) == [True]
    return storage.batch_exists(NAMES[:1]) == 1


def found(storage):
    return storage.batch_exists(NAMES[:1]) == 1


def test_weights_written_between_begin_and_end_are_seen(attach, updates):
    """By RDMA: no call of SGLang's loads them."""
    # The scheduler takes its methods once, before a storage that is attached later.
    begin, end = updates.begin_weight_update, updates.end_weight_update
    pool = sg.mha()
    storage = attach(pool)
    assert stored(storage, pool)
    assert begin(SimpleNamespace(selector="all")).success
    assert not found(storage)
    assert stored(storage, pool), "a request that runs meanwhile"
    updates.tp_worker.model.weight.data.fill_(2)
    assert end(SimpleNamespace()).success
    assert not found(storage)


def test_updates_that_load_are_seen(attach, updates):
    from cairn import _sglang_weights as weights
    pool = sg.mha()
    storage = attach(pool)
    (_, runner), = updates._select_runners()
    for name in weights.WRITERS[:4]:
        assert stored(storage, pool)
        with pytest.raises(TypeError):  # without arguments, so like one that fails halfway
            getattr(runner.weight_updater, name.rpartition(".")[2])()
        assert not found(storage), name


def test_weights_lost_in_a_sleep_or_by_a_check_are_seen(attach, updates, watched):  # noqa: F811
    from sglang.srt.managers.scheduler_components import weight_updater as scheduler
    from sglang.srt.utils.weight_checker import WeightChecker
    pool = sg.mha()
    storage = attach(pool)
    static = scheduler._export_static_state(updates.tp_worker.model)
    for backup in (True, False):
        watched.get = {"enable_weights_cpu_backup": backup}.get
        assert stored(storage, pool)
        scheduler._import_static_state(updates.tp_worker.model, static)
        assert found(storage) is backup
    assert stored(storage, pool)
    checker = object.__new__(WeightChecker)
    checker._get_model = lambda: updates.tp_worker.model
    with torch.no_grad():
        checker.handle("reset_tensors", role="target")
    assert not found(storage)


def test_a_storage_attached_after_an_update(attach, node, updates, rng):
    uri = f"unix:{node.socket}"
    pool = sg.mha()
    first = attach(pool, uri)
    assert stored(first, pool)
    first.close()
    assert updates.begin_weight_update(SimpleNamespace(selector="all")).success
    second = attach(pool, uri)
    assert not found(second)
    assert stored(second, pool)
    # Ranks that share pages have no new name in common.
    shared = sg.mla()
    writer = attach(shared, uri, is_mla_model=True, tp_size=2)
    assert writer.batch_set_v1(NAMES[:1], sg.slots(shared, 0)) == [False]


def test_a_version_that_does_not_show_its_updates_is_told_of(
        attach, watched, monkeypatch, caplog):  # noqa: F811
    from sglang.srt.model_executor.model_runner_components.weight_updater import WeightUpdater
    monkeypatch.delattr(WeightUpdater, "end_weight_update")
    attach(sg.mha())
    assert "not every update of its weights in place is seen" in caplog.text


def test_what_an_engine_s_configuration_says_is_in_the_identity(place, monkeypatch):
    from cairn import _sglang_identity as identity
    (place / "external_models").mkdir()
    (place / "external_models" / "__init__.py").touch()
    monkeypatch.syspath_prepend(place)
    for folder in ("model", "adapter"):
        (place / folder).mkdir()
        (place / folder / "config.json").write_text("{}")
        (place / folder / "weights.safetensors").write_bytes(bytes(5000))
    given = {"model_path": str(place / "model"), "kv_cache_dtype": "fp8_e4m3",
             "lora_paths": [SimpleNamespace(lora_path=str(place / "adapter"))]}
    monkeypatch.setattr(identity.Settings, "__init__", lambda self: None)
    monkeypatch.setattr(identity.Settings, "__bool__", lambda self: True)
    monkeypatch.setattr(identity.Settings, "get", lambda self, name: given.get(name))

    def fields():
        identity.weights_name.cache_clear()
        return identity.of_engine(sg.config(RAM), None)

    seen = [fields()]
    assert fields() == seen[0] and cairn.Identity(chunk_tokens=16, **seen[0])
    changes = [lambda: given.update(kv_cache_dtype="fp8_e5m2"),
               lambda: given.update(attention_backend="flashinfer"),
               lambda: given.update(json_model_override_args='{"rope_theta": 2}' * 30),
               lambda: (place / "model" / "config.json").write_text('{"a": 1}'),
               lambda: (place / "model" / "weights.safetensors").write_bytes(b"\1" + bytes(4999)),
               lambda: (place / "adapter" / "weights.safetensors").write_bytes(b"\1" * 5000),
               lambda: given.update(lora_paths=["name=" + str(place / "model")]),
               lambda: (place / "model" / "modeling.py").write_text("a = 1")
               and given.update(trust_remote_code=True),
               lambda: (place / "model" / "modeling.py").write_text("a = 2"),
               lambda: (place / "model" / "config.json").write_text(json.dumps(
                   {"auto_map": {"AutoModel": f"{place / 'adapter'}--other.Model"}})),
               lambda: (place / "adapter" / "other.py").write_text("a = 4"),
               lambda: monkeypatch.setenv("SGLANG_EXTERNAL_MODEL_PACKAGE", "external_models"),
               lambda: (place / "external_models" / "other.py").write_text("a = 3"),
               lambda: given.update(lora_paths=None)]
    for change in changes:
        change()
        assert fields() not in seen
        seen.append(fields())
    for lost in ({"lora_paths": [{"lora_name": "x"}]}, {"model_path": str(place / "nothing")}):
        with monkeypatch.context() as patch:
            for key, value in lost.items():
                patch.setitem(given, key, value)
            with pytest.raises(identity.Unsupported, match="have no name"):
                fields()


def test_sglang_s_own_faults(attach, rng):
    pool = sg.mha()
    with envs.SGLANG_TEST_HICACHE_BACKEND_RANDOM_FAILURE.override(0.4), \
            envs.SGLANG_TEST_HICACHE_BACKEND_RANDOM_DELAY.override(0.002):
        storage = attach(pool)
    assert isinstance(storage, HiCacheStorageFailureInjector)
    sg.fill(pool, 0, rng)
    want, good = sg.page_bytes(pool, 0), 0
    for i in range(150):
        storage.batch_set_v1([NAMES[i]], sg.slots(pool, 0))
        sg.fill(pool, 1, rng)
        poison = sg.page_bytes(pool, 1)
        got = storage.batch_get_v1([NAMES[i]], sg.slots(pool, 1))
        assert got in ([True], [False]) and storage.batch_exists([NAMES[i]]) in (0, 1)
        assert sg.page_bytes(pool, 1) == (want if got[0] else poison)
        good += got[0]
    assert 10 < good < 140


def test_a_node_that_dies_stalls_and_comes_back(attach, new_node, rng):
    node = new_node()
    pool, state = sg.mha(), sg.mamba()
    begun = time.monotonic()
    storage = attach(pool, f"unix:{node.socket}", others=[(PoolName.MAMBA, state)])
    assert time.monotonic() - begun < 2 + STALL and storage.batch_exists(NAMES) == 0
    node.start()
    keys, where = NAMES[:4], sg.slots(pool, 0, 1, 2, 3)
    eventually(lambda: all(storage.batch_set_v1(keys, where)))
    assert storage.batch_get_v1(keys, where) == [True] * 4

    def calls():
        asked = [PoolTransfer(PoolName.MAMBA, hit_policy=PoolHitPolicy.TRAILING_PAGES)]
        got = PoolTransfer(PoolName.MAMBA, keys=keys, host_indices=sg.slots(state, 0, 1, 2, 3))
        begun = time.monotonic()
        assert storage.batch_exists(keys) in (0, 4)
        assert storage.batch_get_v1(keys, where) in ([True] * 4, [False] * 4)
        assert isinstance(storage.batch_set_v1(keys, where), list)
        assert storage.batch_exists_v2(keys, asked).kv_hit_pages == 0
        assert storage.batch_get_v2([got]) == {"mamba": [False] * 4}
        assert storage.batch_set_v2([got])["mamba"] in ([True] * 4, [False] * 4)
        storage.batch_exists(NAMES)
        return time.monotonic() - begun

    for stop in (lambda: freeze(node.process.pid), node.kill):
        stop()
        spent = [calls() for _ in range(5)]
        # One deadline of 1 s, after which nothing is asked for a while.
        print("calls while the node is away:", [round(s, 3) for s in spent])
        assert sum(spent) < 4 + STALL and usual(spent) < 0.5
        if node.process.poll() is None:
            go_on(node.process.pid)
        else:
            node.start()
        eventually(lambda: all(storage.batch_set_v1(keys, where)))
        assert storage.batch_get_v1(keys, where) == [True] * 4
    assert storage.counters["failures"] == 0


def test_a_node_that_comes_back_and_refuses_is_told_of(attach, new_node, rng, caplog):
    node = new_node()
    node.start()
    pool = sg.mha()
    storage = attach(pool, f"unix:{node.socket}")
    sg.fill(pool, 0, rng)
    eventually(lambda: storage.batch_set_v1(NAMES[:1], sg.slots(pool, 0)) == [True])
    node.kill()
    assert storage.batch_get_v1(NAMES[:1], sg.slots(pool, 1)) == [False]
    node.start("--clients-max=1")
    with socket.socket(socket.AF_UNIX) as other:
        other.connect(node.socket)
        other.sendall(b"PING\r\n")
        other.recv(64)

        def told():
            storage.batch_get_v1(NAMES[:1], sg.slots(pool, 1))
            return "until it takes this engine it goes on without" in caplog.text

        eventually(told)
    eventually(lambda: storage.batch_set_v1(NAMES[1:2], sg.slots(pool, 0)) == [True])
    assert caplog.text.count("until it takes this engine") == 1


def eventually(true):
    end = time.monotonic() + STALL
    while not true():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


ENDS = """
import sglang_pools as sg
from cairn.sglang import CairnStorage
pool = sg.mha()
storage = CairnStorage(sg.config("embedded:?ram=64MiB"))
storage.register_mem_pool_host(pool)
assert storage.batch_set_v1(["a"], sg.slots(pool, 0)) == [True]
"""


def test_an_engine_that_ends_without_a_detach_is_silent():
    ended = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True,
                           cwd=os.path.dirname(__file__))
    assert ended.returncode == 0 and "ignored" not in ended.stderr, ended.stderr


def test_after_kill_and_close(attach, place, rng):
    uri = f"embedded://{place}?ram=64MiB&disk=256MiB"
    pool = sg.mha()
    sg.fill(pool, 0, rng)
    storage = attach(pool, uri)
    before = HiCacheStorageExtraInfo(prefix_keys=NAMES[4:7])
    assert storage.batch_set_v1(NAMES[:1], sg.slots(pool, 0), before) == [True]
    assert storage.get_stats().backup_pgs == [1] and storage.get_stats().backup_pgs == []
    storage.close()
    assert storage.batch_exists(NAMES[:1]) == 0 and storage.exists(NAMES[0]) is False
    assert storage.batch_get_v1(NAMES[:1], sg.slots(pool, 1)) == [False]
    storage.close()
    again = attach(pool, uri)
    assert isinstance(again, HiCacheStorage)
    assert again.batch_get_v1(NAMES[:1], sg.slots(pool, 1)) == [True]
    assert sg.page_bytes(pool, 1) == sg.page_bytes(pool, 0)
