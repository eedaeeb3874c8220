"""SGLang's host pools as pages of bytes: where each page of a pool lies, and what is in it."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from .errors import Unsupported

PROBES = 16


def page_tokens(pool: Any) -> int:
    return int(getattr(pool, "page_size", 1) or 1)


def starts(pool: Any, indices: Any, count: int) -> np.ndarray | None:
    """First slot of each page. None if these are not `count` whole pages of the pool: what would
    be read or written then is somebody else's."""
    if indices is None:
        return None
    slots = indices.detach().cpu().numpy().astype(np.int64, copy=False)
    size = page_tokens(pool)
    if slots.ndim != 1 or len(slots) != count * size:
        return None
    pages = slots.reshape(count, size)
    first = pages[:, 0]
    if count and (first.min() < 0 or first.max() + size > pool.size or (first % size).any()
                  or (pages != first[:, None] + np.arange(size)).any()):
        return None
    return first


def _device(buffer: Any) -> torch.device | None:
    while isinstance(buffer, (list, tuple)) and buffer:
        buffer = buffer[0]
    device = getattr(buffer, "device", None)
    return device if isinstance(device, torch.device) else None


class AddressedPages:
    """A pool that says where its pages are. That is asked once: numpy makes the addresses of a
    batch from the first page's and the step to the next."""

    copies = False

    def __init__(self, pool: Any, parts: int = 1) -> None:
        self.pool, self.parts = pool, parts
        self.tokens = page_tokens(pool)
        self._learn()

    def _learn(self) -> None:
        self._buffer = getattr(self.pool, "kv_buffer", None)
        count = int(self.pool.size) // self.tokens
        if count < 1:
            raise Unsupported("it has no page")
        self._base, self._sizes = self._asked(0)
        self._step = np.zeros_like(self._base)
        if count > 1:
            self._step = self._asked(1)[0] - self._base
        for page in np.unique(np.linspace(0, count - 1, PROBES).astype(np.int64)):
            at, sizes = self._asked(int(page))
            if not (np.array_equal(at, self._base + page * self._step)
                    and np.array_equal(sizes, self._sizes)):
                raise Unsupported("its pages do not lie at equal distances")
        if (len(self._base) % self.parts
                or (self._sizes.reshape(self.parts, -1) != self._part_sizes).any()):
            raise Unsupported(f"a page of {len(self._base)} pieces has no {self.parts} equal parts")
        self.page_bytes = int(self._sizes.sum())

    def _asked(self, page: int) -> tuple[np.ndarray, np.ndarray]:
        slots = torch.arange(page * self.tokens, (page + 1) * self.tokens, dtype=torch.int64)
        if self.parts > 1:
            found = self.pool.get_split_heads_page_buffer_meta(slots, self.parts)
        else:
            found = self.pool.get_page_buffer_meta(slots)
        at, sizes = (np.asarray(column, np.int64) for column in found)
        if not len(at) or (sizes <= 0).any():
            raise Unsupported("it has a page without bytes")
        return at, sizes

    def runs(self, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Address and length of every piece of these pages, and how many pieces a value has. A
        page is as many values as it has parts."""
        if getattr(self.pool, "kv_buffer", None) is not self._buffer:
            self._learn()
        out = np.empty((len(first), len(self._base), 2), np.uint64)
        out[:, :, 0] = self._base + (first // self.tokens)[:, None] * self._step
        out[:, :, 1] = self._sizes
        pieces = len(self._base) // self.parts
        return out.reshape(-1, 2), np.full(len(first) * self.parts, pieces, np.uint32)

    def stream(self) -> int | None:
        """The CUDA stream that pages on a GPU are used on now; None: they are the host's."""
        device = _device(self._buffer)
        if device is None or device.type != "cuda":
            return None
        return int(torch.cuda.current_stream(device).cuda_stream)

    @property
    def _part_sizes(self) -> np.ndarray:
        return self._sizes[:len(self._sizes) // self.parts]

    @property
    def form(self) -> str:
        return f"pieces {_digest(self._part_sizes.tolist())}"


class UnifiedPages(AddressedPages):
    """The layout page_unified: a page is one run, in the order of the whole buffer."""

    def _asked(self, page: int) -> tuple[np.ndarray, np.ndarray]:
        buffer = self.pool.kv_buffer
        if not buffer.is_contiguous() or buffer.shape[0] * self.tokens != self.pool.size:
            raise Unsupported(f"its buffer {tuple(buffer.shape)} is not one of whole pages")
        size = buffer.nbytes // buffer.shape[0]
        return np.array([buffer.data_ptr() + page * size]), np.array([size])


class CopiedPages:
    """A pool that gives no addresses: its pages are copied, one by one, by its own methods."""

    copies = True
    parts = 1

    def __init__(self, pool: Any) -> None:
        self.pool, self.tokens = pool, page_tokens(pool)
        example = self.blank()
        self.page_bytes = example.numel() * example.element_size()
        if self.page_bytes != self.taken(0).nbytes:
            raise Unsupported("the page it gives and the page it takes differ in size")

    def blank(self) -> Any:
        return self.pool.get_dummy_flat_data_page()

    def taken(self, first: int) -> Any:
        return self.pool.get_data_page(first, flat=True).contiguous()

    def given(self, first: int, page: Any) -> None:
        self.pool.set_from_flat_data_page(first, page)

    @property
    def form(self) -> str:
        return "flat page"


Pages = AddressedPages | CopiedPages


def pages_of(pool: Any, parts: int = 1) -> Pages:
    """How the bytes of this pool's pages are reached."""
    if getattr(pool, "shared_allocation_domain", None) is not None:
        raise Unsupported("it shares an arena whose pages move")
    if getattr(pool, "shard_size", 1) != 1 or getattr(pool, "dcp_size", 1) != 1:
        raise Unsupported("ranks that share a sequence are not taken")
    if getattr(pool, "layout", None) == "page_unified":
        return UnifiedPages(pool)
    try:
        return AddressedPages(pool, parts)
    except (NotImplementedError, ValueError) as why:
        if parts > 1:
            raise Unsupported(f"it cannot split its heads: {why}") from why
    try:
        return CopiedPages(pool)
    except (NotImplementedError, ValueError) as why:
        raise Unsupported(f"it gives neither the addresses of its pages nor the pages: {why}"
                          ) from why


def is_logical(pool: Any) -> bool:
    """An anchor that only counts slots: what belongs to them is in the pools beside it."""
    return (getattr(pool, "kv_buffer", None) is None and not getattr(pool, "_is_dummy", False)
            and getattr(pool, "layer_num", None) == 0)


def described(pool: Any, pages: Pages) -> dict[str, Any]:
    """What the bytes of a page mean, as fields of an identity."""
    heads = getattr(pool, "head_num", None)
    shape = {name: _plain(getattr(pool, name)) for name in SHAPE if hasattr(pool, name)}
    return {
        "kv_dtype": str(getattr(pool, "dtype", "uint8")).removeprefix("torch."),
        "layout": f"{getattr(pool, 'layout', 'unknown')}, {pages.form}",
        "page_bytes": pages.page_bytes // pages.parts,
        "block_tokens": pages.tokens,
        "layers": getattr(pool, "layer_num", None) or None,
        "heads": heads // pages.parts if heads else None,
        "head_size": getattr(pool, "head_dim", None) or None,
        "shape": " ".join(f"{name}={value}" for name, value in shape.items()),
        "format": getattr(pool, "storage_format_tag", None),
        "order": _order(pool),
    }


SHAPE = ("v_head_dim", "start_layer", "end_layer", "target_layer_num", "kv_lora_rank",
         "qk_rope_head_dim", "kv_cache_dim", "head_group_num", "item_bytes", "state_page_bytes",
         "num_mamba_layers", "conv_state_shapes", "temporal_state_shape", "conv_dtype",
         "temporal_dtype", "indexer_page_stride_size", "indexer_dtype", "dsa_kv_cache_store_fp8")


def _order(pool: Any) -> str | None:
    """The order of a row on the device, which the host's copies keep."""
    infos = getattr(pool, "_buffer_infos", None)
    order = getattr(getattr(infos[0], "buffers", None), "layout", None) if infos else None
    return str(getattr(order, "value", order)) if order is not None else None


def _plain(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "(" + ",".join(_plain(v) for v in value) + ")"
    return str(value).replace(" ", "")


def _digest(sizes: list[int]) -> str:
    return f"{len(sizes)} {hashlib.sha256(repr(sizes).encode()).hexdigest()[:16]}"
