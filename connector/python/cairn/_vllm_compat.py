"""Every difference between versions of vLLM that this connector knows, found by feature."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from torch import nn
from vllm.distributed.kv_transfer.kv_connector.v1 import base

from ._vllm_sleep import guard
from ._vllm_weights import watch

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

FAILED_REQUESTS_CAN_BE_TOLD = hasattr(base, "KVConnectorTransferResults")
"""A load of a model with several KV groups may fail: block ids cannot say so there."""


def windowed(spec: Any) -> bool:
    """Whether some layers of a group do not keep all of their blocks."""
    from vllm.v1 import kv_cache_interface as specs
    if isinstance(spec, specs.UniformTypeKVCacheSpecs):
        return any(windowed(s) for s in spec.kv_cache_specs.values())
    kinds = getattr(specs, "RSWASpec", ())
    return not isinstance(spec, specs.FullAttentionSpec) or isinstance(spec, kinds)


def hit_sources(tokens: int, near: bool) -> dict[Any, int]:
    """Newer versions ask where KV came from: what is leased is in this machine's memory."""
    from vllm.v1.metrics.cache_hit_source import CacheHitSource
    source = CacheHitSource.HOST if near else CacheHitSource.EXTERNAL_UNSPECIFIED
    return {source: tokens} if tokens else {}


def watch_worker() -> None:
    """Sees what writes over weights and what gives KV memory back, in the class that all of vLLM's
    own workers come from."""
    try:
        from vllm.v1.worker.gpu_worker import Worker
    except ImportError:
        return  # a platform with workers of its own
    watch(Worker)
    guard(Worker)


def running_model() -> nn.Module | None:
    """The model of the runner that calls a connector: nobody hands it on."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        get = getattr(frame.f_locals.get("self"), "get_model", None)
        model = get() if callable(get) else None
        if isinstance(model, nn.Module):
            return model
        frame = frame.f_back
    return None


def block_table(output: SchedulerOutput, request: str,
                kept: list[list[int]]) -> list[list[int]]:
    """The blocks of a request in this step. Newer versions tell; where they do not, what was told
    when blocks were allocated is right for a model with one group that keeps all of its blocks."""
    state: Any = getattr(output, "kv_connector_block_state", None)
    return kept if state is None else list(state.resolve_block_ids(request))
