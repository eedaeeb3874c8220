"""GPU memory from Python, on the emulated driver (tests/emulation): whatever has the CUDA Array
Interface goes in and out, over every kind of store."""
import os
import random

import numpy as np
import pytest

import cairn
from cairn import buffers
from gpu_engine import DEVICE_BYTES, DRIVER, EARLIEST, LATEST, RANDOM, DeviceArray, Gpu

pytestmark = pytest.mark.timeout(120)
SEED = int(os.environ.get("CAIRN_TEST_SEED", random.SystemRandom().randrange(1 << 32)))


@pytest.fixture(scope="module")
def gpu():
    return Gpu()


@pytest.fixture(params=["embedded", "unix", "bytes", "tcp"])
def store(request):
    if request.param == "embedded":
        uri = f"embedded:?ram=64MiB&cuda={DRIVER}"
    else:
        node = request.getfixturevalue("node")
        uri = (f"tcp://127.0.0.1:{node.port}" if request.param == "tcp"
               else f"unix:{node.socket}") + f"?cuda={DRIVER}"
        uri += "&attach=no" if request.param == "bytes" else ""
    with cairn.open(uri) as opened:
        yield opened


@pytest.fixture(params=[EARLIEST, LATEST, RANDOM])
def times(request, gpu):
    """When what is queued runs; nothing unlawful was asked of the driver."""
    gpu.cuda.emu_time(request.param)
    yield
    assert gpu.cuda.emu_violations() == 0, gpu.cuda.emu_violation_text().decode()


def pages(gpu, rng, size: int) -> list[DeviceArray]:
    """Device memory of `size` bytes in runs of even lengths, out of order."""
    found, at, left = [], 0, size
    while left:
        run = min(left, 2 * rng.randrange(1, 40_000))
        found.append(gpu.array(at, run))
        at += run + 256
        left -= run
    rng.shuffle(found)
    return found


def test_what_a_gpu_put_comes_back_to_it_and_to_the_host(gpu, store, times):
    rng = random.Random(SEED)
    ident = cairn.Identity(model="test-model", chunk_tokens=16)
    keys = cairn.keys(ident, list(range(48)), domain=cairn.PUBLIC)
    values = [rng.randbytes(2 * rng.randrange(1, 700_000)) for _ in keys]
    for key, value in zip(keys, values):
        out = pages(gpu, rng, len(value))
        at = 0
        for part in out:
            part.write(value[at:at + part.size])
            at += part.size
        assert store.put([key], [out], identity=ident) == [True]
    for key, value in zip(keys, values):
        host = bytearray(len(value))
        device = pages(gpu, rng, len(value))
        assert store.get([key, key], [host, device]) == [True, True], f"CAIRN_TEST_SEED={SEED}"
        assert host == value
        assert b"".join(part.read() for part in device) == value
        part = gpu.array(DEVICE_BYTES // 2, 2)
        assert store.get([key], [part], offsets=len(value) - 2) == [True]
        assert part.read() == value[-2:]


def test_a_put_waits_for_what_the_stream_was_given_before(gpu, store, times):
    page = gpu.array(0, 65536)
    page.write(bytes(65536))
    gpu.fill(page, 7)
    key = bytes([9]) * 32
    assert store.put([key], [page], replace=True) == [True]
    out = bytearray(65536)
    assert store.get([key], [out]) == [True]
    assert out == bytes([7]) * 65536


def test_a_value_lies_in_one_kind_of_memory(gpu):
    with pytest.raises(cairn.Error, match="host and GPU memory"):
        buffers.runs([[gpu.array(0, 64), bytes(64)]], "values", False)


def test_device_memory_that_is_not_contiguous_is_refused(gpu):
    class Strided:
        __cuda_array_interface__ = {"data": (gpu.memory.value, False), "shape": (4, 8),
                                    "typestr": "<f4", "strides": (64, 4), "version": 3}
    with pytest.raises(cairn.Error, match="not contiguous"):
        buffers.runs([Strided()], "values", False)


def test_a_gpu_that_is_lost_is_a_miss(gpu, times):
    """Last of this file: the context is of no use afterwards."""
    key = bytes([5]) * 32
    with cairn.open(f"embedded:?ram=64MiB&cuda={DRIVER}") as store:
        assert store.put([key], [np.arange(4096, dtype=np.uint8)]) == [True]
        gpu.cuda.emu_fail_queued(1, 700)
        for _ in range(3):
            assert store.get([key], [gpu.array(0, 4096)]) == [False]
        assert store.stats()["misses"]["device"] >= 3
        out = bytearray(4096)
        assert store.get([key], [out]) == [True]
