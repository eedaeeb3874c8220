"""KV memory that an engine gives back to the GPU while it sleeps. vLLM does not wait for its
connectors then, and a copy from memory that is gone ends every later call of the process on that
GPU: so nothing may be on its way when it goes."""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

if TYPE_CHECKING:
    from ._vllm_worker import WorkerSide

logger = init_logger("vllm.cairn")

GIVES_BACK = ("sleep", "discard")
_sides: weakref.WeakSet[WorkerSide] = weakref.WeakSet()


def settle_before_sleep(side: WorkerSide) -> None:
    _sides.add(side)


def guard(kind: Any) -> None:
    """Before these methods of a class whatever is on its way ends, from here on; twice is once."""
    for name in GIVES_BACK:
        method = getattr(kind, name, None)
        if method is not None and not hasattr(method, "guarded_by_cairn"):
            setattr(kind, name, _guarded(method))


def _guarded(method: Any) -> Any:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        for side in list(_sides):
            try:
                side.settle()
            except Exception:
                logger.exception("cairn: what is on its way could not be waited for")
        return method(*args, **kwargs)
    call.guarded_by_cairn = True  # type: ignore[attr-defined]
    return call
