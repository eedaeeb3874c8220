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


LAYERS, CHUNKS, LAYER_BYTES = 6, 3, 90_000


def put_chunks(store, rng):
    """Values of LAYERS layers, one behind the other."""
    keys = np.frombuffer(rng.randbytes(32 * CHUNKS), np.uint8).reshape(CHUNKS, 32)
    values = [rng.randbytes(LAYERS * LAYER_BYTES) for _ in range(CHUNKS)]
    assert store.put(keys, values) == [True] * CHUNKS
    return keys, values


def layer_pages(gpu, layer):
    """A layer's pages: two of each chunk, apart from each other and in another order."""
    size = LAYER_BYTES // 2
    at = layer * 2 * CHUNKS * (size + 256)
    return [[gpu.array(at + (2 * CHUNKS - 1 - 2 * c - half) * (size + 256), size)
             for half in range(2)] for c in range(CHUNKS)]


def submit_layers(queue, keys, pages, streams):
    """A call a layer, of its range of each chunk: the tags in the order of the layers."""
    runs = [(part.address, part.size) for layer in pages for chunk in layer for part in chunk]
    for layer in pages:
        for part in (part for chunk in layer for part in chunk):
            part.write(bytes(part.size))
    return queue.submit_gets_runs(
        np.tile(keys, (LAYERS, 1)), np.array(runs, np.uint64),
        np.full(LAYERS * CHUNKS, 2, np.uint32), [CHUNKS] * LAYERS,
        offsets=np.repeat(np.arange(LAYERS, dtype=np.uint64) * LAYER_BYTES, CHUNKS),
        cuda_stream=[s for s in streams for _ in range(CHUNKS)], timeout=60)


def use_layer(gpu, pages, values, layer):
    """The engine's own work with a layer's pages, which sees what was put."""
    seen = [[gpu.queue_read(part) for part in chunk] for chunk in pages[layer]]
    gpu.sync()
    for chunk, value in zip(seen, values):
        want = value[layer * LAYER_BYTES:(layer + 1) * LAYER_BYTES]
        assert b"".join(part.raw for part in chunk) == want, f"layer {layer}, seed {SEED}"


def test_layers_are_used_as_they_come(gpu, store, times):
    """One after the other, each as soon as its own completion is there."""
    keys, values = put_chunks(store, random.Random(SEED))
    pages = [layer_pages(gpu, layer) for layer in range(LAYERS)]
    with cairn.Queue(store) as queue:
        layers = {tag: i for i, tag in enumerate(
            submit_layers(queue, keys, pages, [gpu.stream] * LAYERS))}
        while layers:
            for tag, status in queue.poll(30.0):
                assert status.tolist() == [0] * CHUNKS
                use_layer(gpu, pages, values, layers.pop(tag))


def test_a_layer_waits_for_no_later_one(gpu, store, times):
    """The later ones cannot even begin: their pages are in use still."""
    keys, values = put_chunks(store, random.Random(SEED + 1))
    pages = [layer_pages(gpu, layer) for layer in range(LAYERS)]
    streams = [gpu.new_stream() for _ in range(LAYERS)]
    for stream in streams:
        gpu.block(stream)
    with cairn.Queue(store) as queue:
        tags = submit_layers(queue, keys, pages, streams)
        for layer, tag in enumerate(tags):
            assert queue.poll(0.02) == []
            gpu.unblock(streams[layer])
            [(came, status)] = queue.poll(30.0)
            assert (came, status.tolist()) == (tag, [0] * CHUNKS)
            assert len(queue) == LAYERS - 1 - layer
            use_layer(gpu, pages, values, layer)


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
