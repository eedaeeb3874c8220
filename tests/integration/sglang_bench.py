"""How fast SGLang's pages travel: GB/s of one batch between a host pool and the store, and, on the
same pool in the same run, of SGLang's own file storage (page cache, nothing flushed) and of memcpy.

    PYTHONPATH=tests/integration build/venv/bin/python tests/integration/sglang_bench.py [URI ...]

A URI is embedded:?ram=512MiB by default. Median of 7."""

import hashlib
import random
import statistics
import sys
import tempfile
import time

import numpy as np
import sglang_pools as sg
from cairn.sglang import CairnStorage
from sglang.srt.mem_cache.hicache_storage import HiCacheFile, PoolName, PoolTransfer

PAGE, PAGES, LAYERS, HEADS, SIZE, TURNS = 64, 32, 16, 8, 128, 7


def keys_of(turn):
    return [hashlib.sha256(f"{turn} {i}".encode()).hexdigest() for i in range(PAGES)]


def seconds(call):
    begun = time.perf_counter()
    assert all(call())
    return time.perf_counter() - begun


def told(name, pool, saves, loads):
    size = PAGES * pool.size_per_token * PAGE / 1e9
    save, load = (size / statistics.median(times) for times in (saves, loads))
    print(f"{name:44} {save:6.2f} GB/s saved {load:6.2f} GB/s loaded", flush=True)


def bench_cairn(uri, layout):
    pool = sg.mha(layout, page=PAGE, pages=2 * PAGES, layers=LAYERS, heads=HEADS, size=SIZE)
    pool.kv_buffer.fill_(1)
    storage = CairnStorage(sg.config(uri, {"weights": f"{random.random()}"}))
    storage.register_mem_pool_host(pool)
    here, there = sg.slots(pool, *range(PAGES)), sg.slots(pool, *range(PAGES, 2 * PAGES))
    saves, loads = [], []
    for turn in range(TURNS):
        keys = keys_of(turn)
        storage.clear()
        saves.append(seconds(lambda: storage.batch_set_v1(keys, here)))
        loads.append(seconds(lambda: storage.batch_get_v1(keys, there)))
    told(f"cairn {uri.partition('?')[0].partition(':')[0]}, {layout}", pool, saves, loads)
    storage.close()


def bench_file(layout):
    pool = sg.mha(layout, page=PAGE, pages=2 * PAGES, layers=LAYERS, heads=HEADS, size=SIZE)
    pool.kv_buffer.fill_(1)
    saves, loads = [], []
    for turn in range(TURNS):
        with tempfile.TemporaryDirectory(dir="build") as folder:
            storage = HiCacheFile(sg.config("", {"file_storage_path": folder + "/f"}))
            storage.register_mem_host_pool_v2(pool, PoolName.KV)
            keys = keys_of(turn)
            put = PoolTransfer(PoolName.KV, keys=keys, host_indices=sg.slots(pool, *range(PAGES)))
            get = PoolTransfer(PoolName.KV, keys=keys,
                               host_indices=sg.slots(pool, *range(PAGES, 2 * PAGES)))
            saves.append(seconds(lambda: storage.batch_set_v2([put])["kv"]))
            loads.append(seconds(lambda: storage.batch_get_v2([get])["kv"]))
    told(f"SGLang's file storage, {layout}", pool, saves, loads)


def bench_copy():
    pool = sg.mha("page_first", page=PAGE, pages=PAGES, layers=LAYERS, heads=HEADS, size=SIZE)
    pool.kv_buffer.fill_(1)
    source = pool.kv_buffer.view(sg.torch.uint8).numpy()
    target = np.ones_like(source)
    times = []
    for _ in range(TURNS):
        begun = time.perf_counter()
        np.copyto(target, source)
        times.append(time.perf_counter() - begun)
    told("memcpy, one thread", pool, times, times)


def main():
    bench_copy()
    for layout in ("page_first", "layer_first"):
        for uri in sys.argv[1:] or ["embedded:?ram=512MiB"]:
            bench_cairn(uri, layout)
        bench_file(layout)


main()
