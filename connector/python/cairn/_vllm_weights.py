"""Weights that change in place. vLLM tells connectors of it only where its caches are reset too, so
the calls that write weights are counted, and the parameters themselves are looked at: what was
named before is stale then. What is written through `.data` or by a device, and by no such call, is
not seen."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from vllm.logger import init_logger

from ._vllm_step import Report, Step

if TYPE_CHECKING:
    from torch import nn
    from vllm.config import VllmConfig

logger = init_logger("vllm.cairn")

WORKER_WRITERS = ("load_model", "reload_weights", "reset_weights", "update_weights",
                  "finish_weight_update")
MODEL_WRITERS = ("load_weights",)
_changes = 0


def watch(kind: Any, writers: Iterable[str] = WORKER_WRITERS) -> None:
    """Counts the calls of these methods of a class from here on; twice is once."""
    for name in writers:
        method = getattr(kind, name, None)
        if method is not None and not hasattr(method, "counted_by_cairn"):
            setattr(kind, name, _counted(method))


def _counted(method: Any) -> Any:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        global _changes
        _changes += 1  # at both ends: steps may run meanwhile, if it is called by another thread
        try:
            return method(*args, **kwargs)
        finally:
            _changes += 1
    call.counted_by_cairn = True  # type: ignore[attr-defined]
    return call


class Weights:
    """A worker's side of it: what steps that were planned with the old weights may still do."""

    def __init__(self) -> None:
        self._counted = _changes
        self._tables: list[dict[str, Any]] = []  # the parameters of each module
        self._seen: list[tuple[int, int]] | None = None
        self._stale = 0  # the step before which they were last found to be written over
        self._heard = True  # by the scheduler

    def watch(self, model: nn.Module | None, config: VllmConfig) -> None:
        if model is None:
            logger.warning("cairn: the model was not found: of weights that are written over only "
                           "calls of vLLM's own methods are seen")
            return
        for kind in {type(module) for module in model.modules()}:
            watch(kind, MODEL_WRITERS)
        # Experts that move between ranks are written too, and say what they said before.
        if not getattr(config.parallel_config, "enable_eplb", False):
            self._tables = [m._parameters for m in model.modules() if m._parameters]

    def bind(self, step: Step) -> bool:
        """Whether the weights have changed since the step before. Until the scheduler has heard of
        it nothing is saved and every load fails."""
        found = step.number > 0 and self._changed(step)
        if found:
            self._stale = step.number
        self._heard = step.since >= self._stale
        if not self._heard:
            step.drop.extend(save.id for save in step.saves)
            for load in step.loads:
                load.keys = load.keys * 0
        return found

    def tell(self, report: Report | None) -> Report | None:
        if self._heard:
            return report
        report = report or Report()
        report.stale = self._stale
        return report

    def _changed(self, step: Step) -> bool:
        before, self._counted = self._counted, _changes
        changed = before != self._counted
        if changed or step.fresh or step.loads or step.saves or self._seen is None:
            seen, self._seen = self._seen, self._versions()
            changed |= seen is not None and seen != self._seen
        return changed

    def _versions(self) -> list[tuple[int, int]]:
        """What an operation in place, or another tensor in a parameter's place, changes."""
        try:
            with torch._C.DisableTorchFunctionSubclass():  # vLLM's parameters are 15 times as slow
                # Tensors of the inference mode count nothing.
                return [(p.data_ptr(), 0 if p.is_inference() else p._version)
                        for table in self._tables for p in table.values() if p is not None]
        except Exception:
            logger.exception("cairn: of weights that are written over only calls of load_weights "
                             "and of vLLM's own methods are seen")
            self._tables = []
            return []
