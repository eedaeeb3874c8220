"""The stores of this process: one for each URI, whoever asks for it, since a log has one owner. A
node may be started after its engine."""

from __future__ import annotations

import atexit
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.logger import init_logger

from .errors import StateError
from .store import Store, finish, open as store_open

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger("vllm.cairn")
FLUSH_SECONDS = 60.0
PROBE_SECONDS = 0.5
_lock = threading.Lock()
_stores: dict[str, tuple[Store, int]] = {}
_told_lock = threading.Lock()
_told: weakref.WeakKeyDictionary[Store, str] = weakref.WeakKeyDictionary()


def apart(config: VllmConfig) -> bool:
    """The worker is in another process than the scheduler."""
    return bool(config.parallel_config.distributed_executor_backend != "uni")


def without(why: object) -> str:
    """Says that this engine has no cache."""
    logger.warning("cairn: this engine runs without the cache until it is started again: %s", why)
    return str(why)


def acquire(uri: str, timeout: float = 30.0) -> Store:
    with _lock:
        store, users = _stores.get(uri) or (_opened(uri, timeout), 0)
        _stores[uri] = store, users + 1
        return store


def _opened(uri: str, timeout: float) -> Store:
    if uri.startswith("embedded:"):
        return store_open(uri, timeout=timeout)
    address, _, options = uri.partition("?")
    store = store_open(f"{address}?lazy=yes&{options}", timeout=timeout)
    if store.not_there:
        logger.warning("cairn: %s; until it is there this engine goes on without the cache",
                       store.not_there)
        threading.Thread(target=_await, args=(store, uri), name="cairn-await", daemon=True).start()
    return store


def _await(store: Store, uri: str) -> None:
    """The client tries a node that is gone when it is called: here, so that it needs no request."""
    try:
        while not store.value_max:
            time.sleep(PROBE_SECONDS)
            probe(store)
            refused(store)
        logger.info("cairn: %s is there now", uri)
    except StateError:
        pass  # it is closed


def refused(store: Any) -> bool:
    """Whether the node turns this process away, which the log is told once of each reason."""
    if not isinstance(store, Store):
        return False  # the worker's, which says it itself
    why = store.refusal
    with _told_lock:
        news = why and _told.get(store) != why
        if news:
            _told[store] = why
    if news:
        logger.warning("cairn: %s; until it takes this engine it goes on without the cache", why)
    return bool(why)


def probe(store: Store) -> None:
    store.lookup(np.ones((1, 32), np.uint8))


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
