"""The stores of this process: one for each URI, whoever asks for it, since a log has one owner."""

from __future__ import annotations

import atexit
import threading
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from .store import Store, finish, open as store_open

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger("vllm.cairn")
FLUSH_SECONDS = 60.0
_lock = threading.Lock()
_stores: dict[str, tuple[Store, int]] = {}


def apart(config: VllmConfig) -> bool:
    """The worker is in another process than the scheduler."""
    return bool(config.parallel_config.distributed_executor_backend != "uni")


def without(why: object) -> str:
    """Says that this engine has no cache."""
    logger.warning("cairn: this engine runs without the cache until it is started again: %s", why)
    return str(why)


def acquire(uri: str, timeout: float = 30.0) -> Store:
    with _lock:
        store, users = _stores.get(uri) or (store_open(uri, timeout=timeout), 0)
        _stores[uri] = store, users + 1
        return store


def release(uri: str) -> None:
    """The last user makes what was stored durable and closes the store."""
    with _lock:
        if uri not in _stores:  # closed at exit
            return
        store, users = _stores[uri]
        _stores[uri] = store, users - 1
        if users > 1:
            return
        del _stores[uri]
        # Under the lock: who opens it next waits until the log is free.
        finish(store, FLUSH_SECONDS, logger)


@atexit.register
def _finish_all() -> None:
    """An engine in the main process may never be shut down."""
    with _lock:
        while _stores:
            _, (store, _) = _stores.popitem()
            finish(store, FLUSH_SECONDS, logger)
