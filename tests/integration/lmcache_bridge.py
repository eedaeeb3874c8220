"""LMCache's own L2 adapter over Cairn, made from JSON as its server makes it, and chunks whose
bytes are told by their names."""

import argparse
import json
import random
import select
import time
from functools import lru_cache

import numpy as np
import torch
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.distributed.l2_adapters import config as l2_config
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj
from lmcache.v1.platform import consume_fd

IDENTITY = {"chunk_tokens": 256, "kv_dtype": "bfloat16", "layout": "vllm 0.28.0 CPU_ATTN 128",
            "weights": "smollm2 q4_1", "serde": "none"}


def adapter_json(uri, identity=None, **params):
    return {"type": "native_plugin", "module_path": "cairn.lmcache", "class_name": "CairnClient",
            "adapter_params": {"uri": uri, "identity": identity or IDENTITY, **params}}


def loaded(config):
    """As `lmcache server` makes it of its command line."""
    parser = l2_config.add_l2_adapters_args(argparse.ArgumentParser())
    args = parser.parse_args(["--l2-adapter", json.dumps(config)])
    return create_l2_adapter(l2_config.parse_args_to_l2_adapters_config(args).adapters[0])


def name(rng, **more):
    return ObjectKey(**{"chunk_hash": rng.randbytes(32), "model_name": "a/model",
                        "kv_rank": 0x01000100, **more})


@lru_cache(256)
def content(key, size):
    """Of a chunk: told by its name and size, so that every byte read can be checked."""
    return np.frombuffer(random.Random(f"{key} {size}").randbytes(size), np.uint8)


def memory(size, fill=0):
    """One object of LMCache's, with its own memory."""
    raw = torch.full((size,), fill, dtype=torch.uint8)
    return TensorMemoryObj(raw, MemoryObjMetadata(torch.Size([size]), torch.uint8, 0, size,
                                                  1, fmt=MemoryFormat.KV_2LTD), None)


def objects(keys, size):
    made = [memory(size) for _ in keys]
    for one, key in zip(made, keys):
        one.raw_data.numpy()[:] = content(key, size)
    return made


class Bridge:
    """LMCache's adapter, asked and waited for."""

    def __init__(self, adapter):
        self.adapter = adapter

    def _wait(self, fd, take, seconds=90):
        end = time.monotonic() + seconds
        while (found := take()) is None:
            assert time.monotonic() < end, "no completion"
            if select.select([fd], [], [], 1)[0]:
                consume_fd(fd)
        return found

    def store(self, keys, objs):
        task, done = self.adapter.submit_store_task(keys, objs), {}

        def take():
            done.update(self.adapter.pop_completed_store_tasks())
            return done.get(task)

        return self._wait(self.adapter.get_store_event_fd(), take).is_successful()

    def lookup(self, keys):
        task = self.adapter.submit_lookup_and_lock_task(keys, {})
        bits = self._wait(self.adapter.get_lookup_and_lock_event_fd(),
                          lambda: self.adapter.query_lookup_and_lock_result(task))
        self.adapter.submit_unlock(keys)
        return [bits.test(i) for i in range(len(keys))]

    def load(self, keys, objs):
        task = self.adapter.submit_load_task(keys, objs)
        bits = self._wait(self.adapter.get_load_event_fd(),
                          lambda: self.adapter.query_load_result(task))
        return [bits.test(i) for i in range(len(keys))]


def right(keys, objs):
    return [bool((o.raw_data.numpy() == content(k, o.get_size())).all())
            for k, o in zip(keys, objs)]
