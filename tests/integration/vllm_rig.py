"""A worker half of the vLLM connector without an engine: KV caches of every layout over one buffer
of bytes, and steps in the order in which each version of vLLM makes its calls."""
import json
import types

import numpy as np
import torch
from cairn._vllm_options import options_of
from cairn._vllm_step import Step, Transfer
from cairn._vllm_worker import WorkerSide
from gpu_engine import DeviceTensor
from vllm.distributed.kv_transfer.kv_connector.v1 import base

BLOCKS = 40
NEW = hasattr(base, "KVConnectorTransferResults")  # the order of calls of 0.32; else of 0.28
DTYPES = {torch.int8: 1, torch.bfloat16: 2, torch.float32: 4}


def space(**fields):
    return types.SimpleNamespace(**fields)


class Layer:
    """A view of the buffer: shape and strides in bytes of its elements, the blocks' dimension."""

    def __init__(self, name, offset, shape, strides, dtype, at=0):
        self.name, self.offset, self.shape, self.strides = name, offset, shape, strides
        self.dtype, self.at = dtype, at

    def tensor(self, raw):
        size = DTYPES[self.dtype]
        return torch.as_strided(raw[self.offset % size:].view(self.dtype), self.shape,
                                [s // size for s in self.strides], self.offset // size)

    def places(self, block):
        """Where in the buffer this block's bytes are, in the order of its elements."""
        size = DTYPES[self.dtype]
        split = self.shape[self.at] // BLOCKS
        grid = np.array([self.offset])
        for i, (count, stride) in enumerate(zip(self.shape, self.strides)):
            picks = np.arange(count) if i != self.at else np.arange(block * split,
                                                                    (block + 1) * split)
            grid = (grid[:, None] + picks * stride).reshape(-1)
        return (grid[:, None] + np.arange(size)).reshape(-1)


def dense(shape, size):
    strides, step = [], size
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return strides[::-1], step


def layouts():
    """Name -> (bytes of the buffer, the layers of each group, block tokens of each group)."""
    made = {}
    inner, bf16 = (3, 16, 8), torch.bfloat16
    strides, size = dense((BLOCKS, *inner), 2)
    page = size // BLOCKS
    made["a tensor a layer"] = 4 * (size + 64), [[
        Layer(f"model.layers.{i}.attn", i * (size + 64), (BLOCKS, *inner), strides, bf16)
        for i in range(4)]], [16]
    made["one allocation"] = 12 * size, [[
        Layer(f"model.layers.{i}.attn", i * size, (BLOCKS, *inner), strides, bf16)
        for i in range(12)]], [64]
    made["blocks outermost"] = 4 * size, [[
        Layer(f"model.layers.{i}.attn", i * page, (BLOCKS, *inner), [4 * page, *strides[1:]], bf16)
        for i in range(4)]], [16]
    made["tokens before heads"] = 2 * size, [[
        Layer(f"model.layers.{i}.attn", i * size, (BLOCKS, *inner), [page, 16, 48, 2], bf16)
        for i in range(2)]], [16]
    plane, whole = dense((2, BLOCKS, 16, 3, 4), 2)
    made["planes outermost"] = 2 * whole, [[
        Layer(f"model.layers.{i}.attn", i * whole, (2, BLOCKS, 16, 3, 4), plane, bf16, 1)
        for i in range(2)]], [16]
    split, whole = dense((BLOCKS * 2, 3, 8, 8), 2)
    made["kernel blocks"] = 2 * whole, [[
        Layer(f"model.layers.{i}.attn", i * whole, (BLOCKS * 2, 3, 8, 8), split, bf16)
        for i in range(2)]], [16]
    latent, whole = dense((BLOCKS, 1, 16, 36), 2)
    made["latent"] = 3 * whole, [[
        Layer(f"model.layers.{i}.mla", i * whole, (BLOCKS, 1, 16, 36), latent, bf16)
        for i in range(3)]], [16]
    # Groups lie over each other: a block belongs to one of them at a time.
    padded = [page, page, page, 1]
    made["padded states and attention"] = 2 * size, [
        [Layer(f"model.layers.{i}.conv", i * size, (BLOCKS, 1, 1, 300), padded, torch.int8)
         for i in range(2)],
        [Layer(f"model.layers.{i + 2}.attn", i * size, (BLOCKS, *inner), strides, bf16)
         for i in range(2)]], [128, 64]
    made["six groups"] = 3 * size, [
        [Layer(f"model.layers.{g + 6 * i}.attn", i * size, (BLOCKS, *inner), strides, bf16)
         for i in range(3)] for g in range(6)], [128] * 6
    return made


LAYOUTS = layouts()


def config(uri, *, rank=0, world=1, decode_context_parallel_size=1, **extra):
    hf = space(to_json_string=lambda: json.dumps({"hidden_size": 8, "transformers_version": "5"}))
    return space(
        kv_transfer_config=space(kv_connector_extra_config={"uri": uri, **extra}, engine_id="rig"),
        parallel_config=space(rank=rank, world_size=world, tensor_parallel_size=world,
                              pipeline_parallel_size=1, data_parallel_size=1,
                              decode_context_parallel_size=decode_context_parallel_size,
                              distributed_executor_backend="uni" if world == 1 else "mp"),
        model_config=space(model="tiny", hf_config=hf, quantization=None, dtype=torch.bfloat16,
                           max_model_len=2048, revision=None, code_revision=None,
                           trust_remote_code=False, architectures=["Rig"],
                           registry=space(resolve_model_cls=lambda *_: (Rig, "Rig"))),
        cache_config=space(cache_dtype="auto"),
        load_config=space(load_format="dummy", download_dir=None),
        compilation_config=space(static_forward_context={}), speculative_config=None)


class Rig:
    """One rank. `raw` is all its memory as bytes; block 0 is the null block."""

    def __init__(self, uri, layout="one allocation", *, seed=1, gpu=None, **more):
        size, self.layers, self.block_tokens = LAYOUTS[layout]
        self.raw = np.random.default_rng(seed).integers(-128, 128, size + 64, dtype=np.int8)
        made = torch.from_numpy(self.raw)
        groups = [space(layer_names=[one.name for one in group], kv_cache_spec=space(block_size=b))
                  for group, b in zip(self.layers, self.block_tokens)]
        cache = space(num_blocks=BLOCKS, kv_cache_groups=groups)
        set_up = config(uri, **more)
        self.side = WorkerSide(set_up, cache, options_of(set_up))
        tensors = {one.name: one.tensor(made) for group in self.layers for one in group}
        if gpu is not None:
            tensors = {name: DeviceTensor(t, made, gpu.memory.value)
                       for name, t in tensors.items()}
        self.side.register_kv_caches(tensors)
        self.described = self.side.get_handshake_metadata()
        self.per = [self.described.chunk_tokens // b for b in self.block_tokens]
        self.last = 0

    def page(self, group, block):
        return np.concatenate([self.raw[one.places(block)] for one in self.layers[group]])

    def places(self, group, blocks):
        return np.concatenate([one.places(b) for one in self.layers[group] for b in blocks]
                              or [np.empty(0, np.int64)])

    def transfer(self, keys, blocks, request="r", **more):
        self.last += 1
        return Transfer(self.last, request, keys, [np.asarray(b) for b in blocks], **more)

    def begin(self, loads=(), saves=(), forward=True, **more):
        """A step up to the end of its forward."""
        step = Step(list(loads), list(saves), **more)
        self.side.handle_preemptions(step)
        self.side.bind(step)
        early = not NEW or any(load.wait for load in step.loads)
        if early:
            self.side.start_load_kv()
        return early, forward

    def end(self, begun):
        early, forward = begun
        if not early:
            self.side.start_load_kv()
        if forward or NEW:
            self.side.wait_for_save()
        if NEW:
            results = self.side.get_transfer_results(set())
            received, failed = results.finished_recving, results.failed_recving
        else:
            received, failed = self.side.get_finished(set())[1] or set(), set()
        bad = self.side.get_block_ids_with_load_errors()
        report = self.side.build_connector_worker_meta()
        self.side.clear()
        return space(received=received, failed=failed, bad=bad,
                     ended=report.ended if report else {},
                     load_failed=report.failed if report else set(),
                     refused=report.refused if report else set())

    def step(self, **what):
        return self.end(self.begin(**what))

    def finish(self, count, **first):
        """Steps until `count` transfers have ended; what they told together."""
        total = self.step(**first)
        for _ in range(4000):
            if len(total.ended) >= count:
                return total
            more = self.step(idle=True, forward=False, epoch=first.get("epoch", ""))
            assert not total.received & more.received and not set(total.ended) & set(more.ended)
            for name in ("received", "failed", "bad", "load_failed", "refused"):
                getattr(total, name).update(getattr(more, name))
            total.ended.update(more.ended)
        raise AssertionError(f"{len(total.ended)} of {count} transfers have ended")

    def save(self, keys, blocks, **more):
        return self.finish(1, saves=[self.transfer(keys, blocks, **more)])

    def load(self, keys, blocks, **more):
        return self.finish(1, loads=[self.transfer(keys, blocks, **more)])
