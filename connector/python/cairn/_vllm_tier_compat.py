"""What differs between versions of vLLM's tier plug-in, found by what is there."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from vllm.config import VllmConfig

FRAMES = 24


def base_arguments(options: dict[str, Any]) -> dict[str, Any]:
    """What the factory adds for the base class beside the tier's own options; taken out of them."""
    if "backpressure_detector" in options:
        return {"backpressure_detector": options.pop("backpressure_detector")}
    return {}


def job_rows(job: Any) -> np.ndarray:
    """Rows of the primary tier, one a key, in the order of the job's keys."""
    rows = job.chunk_ids if hasattr(job, "chunk_ids") else job.block_ids
    return np.asarray(rows, np.int64)


def engine_config() -> VllmConfig | None:
    """The engine's configuration. The plug-in point does not hand it on, and without it nobody
    knows what else than the model's name made the KV; but those who construct a tier have it."""
    from vllm.config import VllmConfig
    frame = sys._getframe(1)
    for _ in range(FRAMES):
        for name in ("vllm_config", "config"):
            found = frame.f_locals.get(name)
            if isinstance(found, VllmConfig):
                return found
        if frame.f_back is None:
            break
        frame = frame.f_back
    return None


def kv_layout(offloading: Any, config: VllmConfig | None) -> str:
    """The name of the order in which a page has its dimensions, as far as it is known here."""
    named = getattr(offloading, "kv_cache_layout", None)
    if named is None and config is not None:
        from vllm.config import set_current_vllm_config
        from vllm.v1.attention.backends.utils import get_kv_cache_layout
        with set_current_vllm_config(config):
            named = get_kv_cache_layout()
    return str(named)
