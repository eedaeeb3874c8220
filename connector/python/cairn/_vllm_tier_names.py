"""What the rows of vLLM's primary tier are called: the identity of what is in them, and keys."""

from __future__ import annotations

import ctypes
import uuid
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from collections.abc import Sequence

import numpy as np

from . import _native
from ._vllm_identity import of_model
from ._vllm_keys import images_named
from ._vllm_pages import digest
from ._vllm_tier_compat import kv_layout
from .errors import InvalidError
from .identity import Domain, Identity, _domain

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_offload.config import OffloadingConfig

# Which of these are installed decides how a backend orders the bytes of a page.
KERNELS = ("torch", "flashinfer-python", "flash-attn", "triton", "aiter")


class Names:
    """Keys under one identity. vLLM's own key of a row names the whole prefix and the KV group, so
    each is a chain of one."""

    def __init__(self, identity: Identity, domain: Domain) -> None:
        self.identity = identity
        self.domain = domain
        self._native_domain = _domain(domain)

    def keys(self, offload_keys: Sequence[bytes]) -> np.ndarray:
        out = np.empty((len(offload_keys), 32), np.uint8)
        one = _native.lib().cairn_keys_from_hashes
        at, written = out.ctypes.data, ctypes.c_size_t()
        for i, key in enumerate(offload_keys):
            status = one(self.identity._handle, self._native_domain, None, key, len(key), 1, None,
                         0, at + 32 * i, 1, ctypes.byref(written))
            _native.check(status, "the key of a row")
        return out

    def renamed(self) -> Names:
        """The same for KV that has nothing to do with what is stored."""
        return Names(Identity(**{**self.identity.fields, "epoch": uuid.uuid4().hex}), self.domain)


def identity_of(offloading: OffloadingConfig, config: VllmConfig | None, row_bytes: int,
                stated: dict[str, str]) -> Identity:
    """stated: what the tier's configuration says by itself; it wins."""
    if config is None and "weights" not in stated:
        raise InvalidError(
            "CairnTier sees no configuration of an engine, so it does not know what made the KV; "
            "say in \"identity\" at least \"weights\" (a revision or digest)")
    fields = _of_rows(offloading, config, row_bytes)
    if config is not None:
        fields |= of_model(config) | _of_engine(config)
    return Identity(**{**fields, **stated})


def _of_rows(offloading: OffloadingConfig, config: VllmConfig | None,
             row_bytes: int) -> dict[str, Any]:
    """How a page's dimensions are ordered is the workers' business and not seen here, so the
    version is a field: another one may order them in another way."""
    import vllm
    parallel, groups = offloading.parallel, offloading.groups
    tokens = [g.tokens_per_block * offloading.cache.blocks_per_chunk for g in groups]
    form = "canonical" if offloading.canonical_layout else (
        "one copy" if offloading.replicated_layout else "ranks side by side")
    return {
        "model": Path(offloading.model.name).name or offloading.model.name,
        "chunk_tokens": max(tokens),
        "kv_dtype": offloading.model.dtype,
        "layout": f"row {row_bytes}, {form}, {kv_layout(offloading, config)}, groups " + digest(
            [f"{g.tokens_per_block} {' '.join(g.layer_names)}" for g in groups]),
        "hash_tokens": offloading.cache.tokens_per_hash,
        "worker_block_bytes": offloading.worker_kv_bytes_per_block,
        "ranks": f"tp {parallel.tp_size} pp {parallel.pp_size} pcp {parallel.pcp_size} "
                 f"dcp {parallel.dcp_size} world {parallel.world_size}",
        "engine": f"vllm {vllm.__version__}",
    }


def _of_engine(config: VllmConfig) -> dict[str, Any]:
    from vllm.platforms import current_platform
    fields = {
        "hash": str(config.cache_config.prefix_caching_hash_algo),
        "attention": config.attention_config.compute_hash()[:16],
        "device": str(current_platform.get_device_name()),
        "kernels": _installed(),
    }
    # vLLM's keys name an adapter by its name, not by what is in it, and may number images: to
    # another process, which may mean others by these, such rows mean nothing.
    if config.lora_config is not None or not images_named(config):
        fields["process"] = uuid.uuid4().hex
    return fields


def _installed() -> str:
    found = []
    for name in KERNELS:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
