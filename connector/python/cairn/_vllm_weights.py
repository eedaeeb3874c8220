"""Weights that change in place. vLLM tells connectors of it only where its caches are reset too, so
the calls of its worker that write weights are counted: what was named before is stale then."""

from __future__ import annotations

import functools
from typing import Any

from ._vllm_step import Report, Step

WRITERS = ("update_weights", "finish_weight_update", "reload_weights")
_changes = 0


def watch(worker: Any) -> None:
    """Counts the calls of these methods of a class from here on; twice is once."""
    for name in WRITERS:
        method = getattr(worker, name, None)
        if method is not None and not hasattr(method, "counted_by_cairn"):
            setattr(worker, name, _counted(method))


def _counted(method: Any) -> Any:
    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        global _changes
        try:
            return method(*args, **kwargs)
        finally:
            _changes += 1
    call.counted_by_cairn = True  # type: ignore[attr-defined]
    return call


class Weights:
    """A worker's side of it: what a step of the old weights' epoch may still do."""

    def __init__(self) -> None:
        self._seen = _changes
        self._stale: str | None = None

    def bind(self, step: Step) -> None:
        """Until the scheduler names things anew nothing is saved and every load fails."""
        if self._seen != _changes:
            self._seen = _changes
            self._stale = step.epoch
        if self._stale is None:
            return
        if step.epoch != self._stale:
            self._stale = None
            return
        step.drop.extend(save.id for save in step.saves)
        for load in step.loads:
            load.keys = load.keys * 0

    def tell(self, report: Report | None) -> Report | None:
        if self._stale is None:
            return report
        report = report or Report()
        report.stale.add(self._stale)
        return report
