"""SGLang's own host pools on a machine without a GPU, small, one of each kind and layout; and the
bytes of a page read and written through nothing but the pool's tensors."""

import os
import sys
from types import SimpleNamespace
from unittest import mock

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def without_images():
    """SGLang imports its image models on the way to its pools, and those an image library whose
    wheels want a GPU build of torch. Nothing of it is called here."""
    import transformers.image_transforms  # noqa: F401, asks whether torchvision is there
    import transformers.image_utils  # noqa: F401
    for name in ("", ".io", ".transforms", ".transforms.functional", ".transforms.v2",
                 ".transforms.v2.functional"):
        sys.modules.setdefault("torchvision" + name, mock.MagicMock(name="torchvision" + name))


without_images()

import torch  # noqa: E402
from sglang.srt.mem_cache.device_pool_info import (KVBufferLayout, KVBuffers,  # noqa: E402
                                                   MambaStateBufferInfo, MHABufferInfo,
                                                   MLABufferInfo)
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig  # noqa: E402
from sglang.srt.mem_cache.memory_pool_host import LogicalHostPool  # noqa: E402, F401
from sglang.srt.mem_cache.pool_host.base import host_memory_budget_scope  # noqa: E402
from sglang.srt.mem_cache.pool_host.mamba import MambaPoolHost  # noqa: E402
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost  # noqa: E402
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost  # noqa: E402

CPU = torch.device("cpu")
MHA_LAYOUTS = ("layer_first", "page_first", "page_first_direct", "page_head", "page_unified")
MLA_LAYOUTS = ("layer_first", "page_first", "page_first_direct")


def _pointers(tensors):
    return torch.tensor([t.data_ptr() for t in tensors], dtype=torch.uint64)


def mha(layout="layer_first", page=16, pages=24, layers=3, heads=4, size=16,
        dtype=torch.bfloat16, start=0,
        order=KVBufferLayout.NHD):
    rows = [torch.empty((page, heads, size), dtype=dtype) for _ in range(2 * layers)]
    k, v = tuple(rows[:layers]), tuple(rows[layers:])
    info = MHABufferInfo(
        buffers=KVBuffers(k=k, v=v, k_data_ptrs=_pointers(k), v_data_ptrs=_pointers(v),
                          layout=order),
        page_size=page, head_num=heads, head_dim=size, v_head_dim=size, dtype=dtype, device=CPU)
    with host_memory_budget_scope(1 << 30):
        return MHATokenToKVPoolHost(
            info, 1.0, 0, page, layout, pin_memory=False, device_capacity_tokens=page,
            start_layer=start, end_layer=start + layers, host_token_capacity=page * pages)


def mla(layout="layer_first", page=16, pages=24, layers=3, rank=32, rope=16,
        dtype=torch.bfloat16):
    rows = tuple(torch.empty((page, 1, rank + rope), dtype=dtype) for _ in range(layers))
    info = MLABufferInfo(
        buffers=rows, data_ptrs=_pointers(rows), layer_indices=tuple(range(layers)),
        device_layer_num=layers, page_size=page, kv_lora_rank=rank, qk_rope_head_dim=rope,
        kv_cache_dim=rank + rope, dtype=dtype, device=CPU)
    with host_memory_budget_scope(1 << 30):
        return MLATokenToKVPoolHost(
            info, 1.0, 0, page, layout, pin_memory=False, device_capacity_tokens=page,
            start_layer=0, end_layer=layers, target_layer_num=layers,
            host_token_capacity=page * pages)


def mamba(layout="page_first", slots=24, layers=2, side=False):
    conv = (torch.empty((layers, 4, 6, 3), dtype=torch.bfloat16),)
    extra = (torch.empty((4, 5), dtype=torch.float32),) if side else ()
    info = MambaStateBufferInfo(temporal=torch.empty((layers, 4, 2, 8), dtype=torch.float32),
                                conv=conv, extra_checkpoint_buffers=extra)
    with host_memory_budget_scope(1 << 30):
        return MambaPoolHost(info, slots / 4, 0, device_capacity=4, pin_memory=False, layout=layout)


def tensors(pool):
    """Every tensor of a pool as bytes, its slots or pages along one axis: (bytes, axis, slots a
    row). By shape alone: what the store uses to find a page is not asked here."""
    buffers = pool.kv_buffer if isinstance(pool.kv_buffer, list) else [pool.kv_buffer]
    pages = pool.size // pool.page_size
    for buffer in buffers:
        for axis, rows in enumerate(buffer.shape):
            if rows in (pool.size, pages):
                yield buffer.view(torch.uint8), axis, pool.size // rows
                break
        else:
            raise AssertionError(f"no axis of {tuple(buffer.shape)} has slots")


def page_bytes(pool, page):
    """The bytes of a page, in an order of this function's own."""
    return [_rows(t, axis, page, pool.page_size, per).contiguous().numpy().tobytes()
            for t, axis, per in tensors(pool)]


def fill(pool, page, random):
    for t, axis, per in tensors(pool):
        view = _rows(t, axis, page, pool.page_size, per)
        data = torch.frombuffer(bytearray(random.randbytes(view.numel())), dtype=torch.uint8)
        view.copy_(data.reshape(view.shape))


def _rows(t, axis, page, size, per):
    first = page * size // per
    return t.narrow(axis, first, max(size // per, 1))


def slots(pool, *pages):
    """What SGLang calls the host indices of these pages."""
    size = pool.page_size
    return torch.cat([torch.arange(p * size, (p + 1) * size) for p in pages]
                     or [torch.empty(0)]).to(torch.int64)


def config(uri, extra=None, **fields):
    given = dict(tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, attn_cp_rank=0, attn_cp_size=1,
                 is_mla_model=False, enable_storage_metrics=True, is_page_first_layout=False,
                 model_name="test-model")
    given.update(fields)
    return HiCacheStorageConfig(**given, extra_config={
        "backend_name": "cairn", "module_path": "cairn.sglang", "class_name": "CairnStorage",
        "interface_v1": 1, "uri": uri, "weights": "revision 1", **(extra or {})})


def fake(page=16, pages=24, **fields):
    """A pool of no kind that SGLang has."""
    return SimpleNamespace(page_size=page, size=page * pages, layout="layer_first", **fields)
