"""Cairn as LMCache's L2, loaded from JSON by LMCache's own code: its bridge driven directly, its
bench, and its server under a real vLLM."""
import contextlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("lmcache", reason="lmcache is not installed: tests/run engine installs it")

import cairn  # noqa: E402
from cairn.lmcache import CairnClient  # noqa: E402
from lmcache_bridge import (IDENTITY, Bridge, adapter_json, loaded, memory, name,  # noqa: E402
                            objects, right)
from patience import STALL  # noqa: E402

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy"))
from demo_engine import EngineProcess  # noqa: E402
from lmcache_server import Server  # noqa: E402

MODEL = ROOT / "build" / "model"
DOCUMENT = Path("/usr/share/common-licenses/GPL-3")
SEED = int(os.environ.get("CAIRN_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
RAM = "embedded:?ram=64MiB"


@pytest.fixture
def rng(request):
    print(f"CAIRN_TEST_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


@pytest.fixture
def bridge(request):
    """Makes bridges over LMCache's adapters; closes what a test leaves open."""
    made = []

    def make(config):
        made.append(Bridge(loaded(config)))
        return made[-1]

    yield make
    for one in made:
        one.adapter.close()


@pytest.fixture(params=["embedded", "unix", "tcp"])
def uri(request):
    if request.param == "embedded":
        return RAM
    node = request.getfixturevalue("node")
    return f"unix:{node.socket}" if request.param == "unix" else f"tcp://127.0.0.1:{node.port}"


# --- the contract, through LMCache's own loader and bridge ---


def test_store_lookup_load_delete(bridge, uri, rng):
    l2 = bridge(adapter_json(uri))
    keys = [name(rng, object_group_id=i % 3, cache_salt="tenant" if i % 2 else "")
            for i in range(12)]
    assert l2.lookup(keys) == [False] * 12
    assert l2.store(keys[:5] + keys[8:], objects(keys[:5] + keys[8:], 70001))
    held = [True] * 5 + [False] * 3 + [True] * 4
    assert l2.lookup(keys) == held, "a hole hides nothing behind it"
    got = [memory(70001) for _ in keys]
    assert l2.load(keys, got) == held and right(keys, got) == held
    assert l2.store(keys[:5], objects(keys[:5], 70001)), "the same again is stored"
    l2.adapter.delete(keys[:4])
    assert l2.lookup(keys) == [False] * 4 + held[4:]
    assert l2.adapter.get_usage().total_bytes_used == 5 * 70001
    assert l2.lookup([]) == [] and l2.load([], []) == []


def test_what_it_is_told_apart_by(bridge, node, rng):
    """Another of anything that makes the bytes is a miss, also where LMCache's key is the same."""
    uri = f"unix:{node.socket}"
    keys = [name(rng)]
    l2 = bridge(adapter_json(uri))
    assert l2.store(keys, objects(keys, 5000))
    for more in ({"kv_dtype": "float16"}, {"layout": "vllm 0.28.0 CPU_ATTN 32"}, {"weights": "v2"},
                 {"chunk_tokens": 512}, {"serde": "fp8"}, {"quant": "kv int8"}):
        assert bridge(adapter_json(uri, {**IDENTITY, **more})).lookup(keys) == [False], more
    for more in ({"model_name": "another"}, {"kv_rank": 0x02000200}, {"object_group_id": 1},
                 {"cache_salt": "x"}):
        assert l2.lookup([name(rng, chunk_hash=keys[0].chunk_hash, **more)]) == [False], more
    assert bridge(adapter_json(uri)).lookup(keys) == [True]
    with cairn.open(uri) as store:
        told = store.why(cairn.Identity(model="a/model", lmcache="0.5.6",
                                        **{**IDENTITY, "kv_dtype": "float16"}))
        assert [d["field"] for d in told["differs"]] == ["kv_dtype"]


def test_a_domain_key_hides_the_chunks(bridge, node, rng, tmp_path):
    secret = tmp_path / "key"
    secret.write_bytes(b"a tenant's key")
    uri, keys = f"unix:{node.socket}", [name(rng)]
    config = adapter_json(uri, domain_key_file=str(secret))
    assert bridge(config).store(keys, objects(keys, 5000))
    assert bridge(adapter_json(uri)).lookup(keys) == [False]
    assert bridge(config).lookup(keys) == [True]


def test_a_value_of_another_size_is_a_miss_and_is_not_promised_again(bridge, uri, rng, caplog):
    l2 = bridge(adapter_json(uri))
    keys = [name(rng), name(rng)]
    assert l2.store(keys, objects(keys, 40000))
    other = [memory(39999, 7), memory(40000)]
    assert l2.load(keys, other) == [False, True]
    until(lambda: l2.lookup(keys) == [False, True])
    assert "40000 bytes and LMCache asks for 39999" in caplog.text
    assert right(keys[1:], other[1:]) == [True]
    # It is the held one again that LMCache has: promised again, from the next lookup on.
    assert l2.store(keys[:1], objects(keys[:1], 40000)) and l2.lookup(keys) == [True, True]


def test_what_it_cannot_name_is_a_miss(bridge, uri, rng, caplog):
    l2 = bridge(adapter_json(uri))
    good, short = name(rng), name(rng, chunk_hash=rng.randbytes(8))  # its own builtin hash
    assert not l2.store([good, short], objects([good, short], 3000)), "not all of it is stored"
    assert l2.lookup([good, short]) == [True, False]
    huge = [name(rng)]
    assert not l2.store(huge, [memory(65 << 20)]) and l2.lookup(huge) == [False]
    assert "--chunk-size" in caplog.text


def test_another_process_finds_it(bridge, place, rng):
    uri = f"embedded://{place}?ram=64MiB&disk=256MiB&prewrite=no"
    keys = [name(rng) for _ in range(8)]
    first = Bridge(loaded(adapter_json(uri)))
    assert first.store(keys, objects(keys, 300000))
    first.adapter.close()
    got = [memory(300000) for _ in keys]
    second = bridge(adapter_json(uri))
    assert second.lookup(keys) == [True] * 8
    assert second.load(keys, got) == right(keys, got) == [True] * 8


def test_descriptor_is_readable_exactly_while_answers_wait(uri, rng):
    client = CairnClient(uri=uri, identity=IDENTITY)
    text = f"m@01000100@0@{rng.randbytes(32).hex()}"
    buf = memoryview(bytearray(1000))

    def readable(seconds):
        return bool(select.select([client.event_fd()], [], [], seconds)[0])

    assert not readable(0) and client.drain_completions() == []
    futures = [client.submit_batch_set([text], [buf]), client.submit_batch_exists([text]),
               client.submit_batch_get([text], [buf]), client.submit_batch_delete([text]),
               client.submit_batch_get(["no key"], [buf]), client.submit_batch_exists([])]
    answers = []
    while len(answers) < len(futures):
        assert readable(60)
        answers += client.drain_completions()
    assert sorted(a[0] for a in answers) == sorted(futures) and len(set(futures)) == len(futures)
    end = time.monotonic() + 60  # a missed get is looked at once more, which needs no answer
    while readable(0):
        assert client.drain_completions() == [] and time.monotonic() < end
    client.submit_batch_exists([text])
    client.close()
    assert client.drain_completions() == []
    assert client.submit_batch_exists([text]) and client.submit_batch_get([text], [buf])
    client.close()


@pytest.mark.parametrize("params,text", [
    ({}, "needs \"uri\""),
    ({"uri": RAM}, "lacks 'chunk_tokens'.*--chunk-size.*'kv_dtype'.*'layout'.*'weights'.*'serde'"),
    ({"uri": RAM, "identity": {k: v for k, v in IDENTITY.items() if k != "layout"}},
     "lacks 'layout': the engine, its version"),
    ({"uri": RAM, "identity": {**IDENTITY, "kv_dtype": "auto"}}, "name the type"),
    ({"uri": RAM, "identity": {**IDENTITY, "chunk_tokens": 0}}, "chunk_tokens"),
    ({"uri": RAM, "identity": {**IDENTITY, "model": "m"}}, "LMCache itself tells"),
    ({"uri": RAM, "identity": IDENTITY, "timeuot": 3}, "did you mean 'timeout'"),
    ({"uri": RAM, "identity": IDENTITY, "timeout": 60}, "timeout is 60"),
    ({"uri": RAM, "identity": IDENTITY, "domain_key_file": "/nowhere/key"}, "cannot be read"),
    ({"uri": "elsewhere:", "identity": IDENTITY}, "unknown kind of store"),
    ({"uri": "embedded:///nowhere/at/all?ram=64MiB&disk=256MiB", "identity": IDENTITY}, "/nowhere"),
])
def test_a_wrong_configuration_is_said_at_start(params, text):
    config = adapter_json(RAM)
    config["adapter_params"] = params
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(cairn.Error, match=text):
        loaded(config)
    assert len(os.listdir("/proc/self/fd")) <= len(before)


def test_a_node_may_come_later(bridge, new_node, rng):
    node = new_node()
    l2 = bridge(adapter_json(f"unix:{node.socket}"))
    keys = [name(rng)]
    assert not l2.store(keys, objects(keys, 5000))
    assert l2.lookup(keys) == [False] and l2.load(keys, [memory(5000)]) == [False]
    node.start()
    until(lambda: l2.store(keys, objects(keys, 5000)))
    assert l2.lookup(keys) == [True]


def test_a_node_that_comes_later_and_refuses_is_told_of(bridge, new_node, rng, caplog, monkeypatch):
    monkeypatch.setattr("cairn.lmcache.WARN_SECONDS", 1e9)
    node = new_node()
    l2 = bridge(adapter_json(f"unix:{node.socket}?tenant=somebody"))
    assert "no node listens there" in caplog.text
    node.start()
    until(lambda: "the node refuses: " in caplog.text)
    assert "one tenant" in caplog.text
    assert l2.lookup([name(rng)]) == [False]


def test_a_node_that_comes_back_and_refuses_is_told_of(bridge, new_node, rng, caplog, monkeypatch):
    monkeypatch.setattr("cairn.lmcache.WARN_SECONDS", 1e9)
    node = new_node().start()
    l2 = bridge(adapter_json(f"unix:{node.socket}?timeout=300ms"))
    keys = [name(rng)]
    assert l2.store(keys, objects(keys, 5000)) and l2.lookup(keys) == [True]
    node.kill()
    node.start("--clients-max=1")
    with alone(node):
        until(lambda: l2.lookup(keys) != [False] or "the node refuses: " in caplog.text)
        assert [l2.lookup(keys) for _ in range(5)] == [[False]] * 5
        told = [line for line in caplog.messages if "the node refuses: " in line]
        assert len(told) == 1 and "until it takes this server" in told[0]
    until(lambda: l2.store(keys, objects(keys, 5000)))
    assert l2.lookup(keys) == [True]


@contextlib.contextmanager
def alone(node):
    """The only client that the node takes."""
    end = time.monotonic() + STALL
    while True:
        with node.connect() as held:
            if taken(held):
                yield
                return
        assert time.monotonic() < end, "the node still counts those that are gone"
        time.sleep(0.05)


def taken(connection):
    try:
        connection.sendall(b"PING\r\n")
        return connection.recv(64).startswith(b"+PONG")
    except OSError:  # it was turned away before it asked
        return False


def test_lmcache_s_own_bench(node):
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lmcache"), "bench", "l2", "--l2-adapter",
         json.dumps(adapter_json(f"unix:{node.socket}")), "--num-keys", "8", "--data-size-kb",
         "512", "--rounds", "2", "--lookup-max-hit-rate", "1.0", "--no-skip-verify", "--format",
         "json"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "MISMATCH" not in done.stdout + done.stderr
    with cairn.open(f"unix:{node.socket}") as store:
        figures = store.stats()
    assert figures["put"]["stored"] >= 16 and figures["get"]["hits_ram"] >= 16


# --- LMCache's server, and vLLM with LMCache's connector ---

CHUNK = 256
CHUNKS = 6


@pytest.fixture(scope="module")
def words():
    """Token ids of the document, made once by the tokenizer of the model."""
    from transformers import AutoTokenizer

    assert (MODEL / "config.json").exists(), f"{MODEL} is missing: tests/run engine makes it"
    return AutoTokenizer.from_pretrained(MODEL)(DOCUMENT.read_text())["input_ids"]


@pytest.fixture
def processes():
    """Kills what a test leaves."""
    started = []
    yield started
    for one in started:
        one.kill()


def stored_node(node):
    node.start("--ram=256MiB", "--disk=512MiB", f"--disk-path={node.place}")  # segments of 16 MiB
    return node


def figures(node):
    with cairn.open(f"unix:{node.socket}") as store:
        return store.stats()


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)


def flip_one_chunk(node):
    """A bit of a value on disk, in a sealed segment: so that it is still found."""
    cli = node.program.parent / "cairn"
    dump = subprocess.run([cli, "fsck", "--json", "--quiet", "--dump", node.place], check=True,
                          capture_output=True, text=True).stdout.splitlines()
    records = [r for r in map(json.loads, dump) if r.get("what") == "record"]
    assert len(records) == CHUNKS
    chosen = min(records, key=lambda r: (r["segment"], r["block"]))
    with (node.place / "cairn.log").open("r+b") as log:
        log.seek((chosen["block"] + 1) * 4096 + random.randrange(chosen["value_len"]))
        old = log.read(1)[0]
        log.seek(-1, os.SEEK_CUR)
        log.write(bytes([old ^ 16]))


def test_a_real_engine_loses_nothing(new_node, processes, place, words):
    """What it computed is found behind a restart of LMCache's server, bit for bit; damage and a
    lost node cost a recomputation."""
    node = stored_node(new_node())
    ports = node.free_port(), node.free_port()
    config = adapter_json(f"unix:{node.socket}", timeout=20)

    def server():
        processes.append(Server(place / "server.log", gib=0.5, adapter=config, ports=ports))
        return processes[-1]

    first = server()
    engine = EngineProcess(MODEL, None, place / "engine.log", max_len=4096, kv_gib=1,
                           transfer=first.transfer(mq_timeout=30, heartbeat_interval=1))
    processes.append(engine)
    prompt = words[:CHUNKS * CHUNK + 60]
    assert engine.answer(prompt)["cached_tokens"] == 0
    own = engine.answer(prompt)
    assert own["cached_tokens"] == CHUNKS * CHUNK, "the engine's own prefix cache"
    until(lambda: figures(node)["put"]["stored"] == CHUNKS)
    engine.reset()

    first.kill()
    second = server()
    until(lambda: second.said().count("Registered non-GPU context") == 2)
    engine.reset()
    found = engine.answer(prompt)
    assert found["cached_tokens"] == CHUNKS * CHUNK
    assert found["logprobs"] == own["logprobs"] and found["text"] == own["text"]
    assert figures(node)["get"]["hits_ram"] == CHUNKS, "LMCache's own memory was empty"

    assert node.stop() == 0
    flip_one_chunk(node)
    stored_node(node)
    engine.reset()
    damaged = engine.answer(prompt)
    assert damaged["cached_tokens"] < CHUNKS * CHUNK and damaged["text"] == own["text"]
    told = figures(node)
    assert told["misses"]["checksum"] + told.get("client", told)["misses"]["checksum"] == 1

    node.kill()
    engine.reset()
    alone = engine.answer(prompt)
    assert alone["text"] == own["text"]
    stored_node(node)
    engine.reset()

    def found_again():
        held = engine.answer(prompt)["cached_tokens"]
        if not held:
            engine.reset()
        return held

    until(found_again, 180)
    back = engine.answer(prompt)
    assert back["cached_tokens"] == CHUNKS * CHUNK and back["text"] == own["text"]
    assert "Traceback" not in second.said()
