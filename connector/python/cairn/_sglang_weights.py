"""Weights of SGLang that change in place. Its storages are told nothing of it, so what writes them
is watched, and so is the flush that takes away what the old ones made."""

from __future__ import annotations

import functools
import importlib
import logging
import weakref
from typing import Any, Protocol
from collections.abc import Callable

from ._sglang_identity import Settings

logger = logging.getLogger(__name__)
SRT = "sglang.srt."
RUNNER = SRT + "model_executor.model_runner_components.weight_updater:WeightUpdater"
# SGLang's scheduler keeps the methods that answer its requests from its start on, and a storage may
# be attached later; these are the ones below them that are looked up at each call.
WRITERS = (
    f"{RUNNER}.update_weights_from_disk",
    f"{RUNNER}.load_weights_from_distributed",
    f"{RUNNER}.update_weights_from_tensor",
    f"{RUNNER}.update_weights_from_ipc",
    # Between these two anybody may write: by RDMA without a call that loads.
    f"{RUNNER}.begin_weight_update",
    f"{RUNNER}.end_weight_update",
    SRT + "utils.weight_checker:WeightChecker._reset_tensors",
)
# Ends a sleep that took the weights.
WAKING = SRT + "managers.scheduler_components.weight_updater:_import_static_state"
FLUSH = SRT + "managers.cache_controller:HiCacheController.reset"


class Storage(Protocol):
    def weights_changed(self) -> None: ...

    def flushed(self) -> None: ...


_storages: weakref.WeakSet[Any] = weakref.WeakSet()
_watched = False
_changed = False


def watch(storage: Storage) -> bool:
    """Whether weights were written already: a storage may be detached and another attached."""
    global _watched
    _storages.add(storage)
    if not _watched and Settings():
        _watched = True
        lost = [name for name in WRITERS if not _wrap(name, _writing)]
        lost += [name for name, around in ((WAKING, _waking), (FLUSH, _flushing))
                 if not _wrap(name, around)]
        if lost:
            logger.warning("cairn: this SGLang has no %s, so not every update of its weights in "
                           "place is seen; restart the engine after one", lost[0])
    return _changed


def forget(storage: Storage) -> None:
    _storages.discard(storage)


def _wrap(name: str, around: Callable[[Any], Any]) -> bool:
    module, path = name.split(":")
    *outer, last = path.split(".")
    try:
        owner = functools.reduce(getattr, outer, importlib.import_module(module))
        setattr(owner, last, around(getattr(owner, last)))
    except (ImportError, AttributeError):
        return False
    return True


def _writing(inner: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(inner)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return inner(*args, **kwargs)
        finally:  # one that fails may have written half of them
            _tell_changed()
    return call


def _waking(inner: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(inner)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return inner(*args, **kwargs)
        finally:
            if not Settings().get("enable_weights_cpu_backup"):
                _tell_changed()
    return call


def _flushing(inner: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(inner)
    def call(*args: Any, **kwargs: Any) -> Any:
        found = inner(*args, **kwargs)
        for storage in list(_storages):
            storage.flushed()
        return found
    return call


def _tell_changed() -> None:
    global _changed
    _changed = True
    for storage in list(_storages):
        storage.weights_changed()
