"""The open stores of this process, one a URI, for SGLang: an engine that starts before its node
goes on without it and finds it later."""

from __future__ import annotations

import atexit
import logging
import threading

from .errors import Error, InvalidError
from .store import Store, finish, open as store_open

logger = logging.getLogger(__name__)
FLUSH_SECONDS = 8.0  # SGLang waits 10 s for what it detaches
RETRY_SECONDS = 2.0


class SharedStore:
    """`store` is None until it could be opened."""

    def __init__(self, uri: str, timeout: float) -> None:
        self.uri, self.timeout, self.users = uri, timeout, 1
        self.store: Store | None = None
        self._ended = threading.Event()
        try:
            self.store = store_open(uri, timeout=timeout)
        except InvalidError:
            raise
        except (Error, OSError) as why:
            self._without(why)
            threading.Thread(target=self._open_later, args=({str(why)},), name="cairn-open",
                             daemon=True).start()

    @staticmethod
    def _without(why: object) -> None:
        logger.warning("cairn: this engine runs without the cache for now: %s", why)

    def _open_later(self, told: set[str]) -> None:
        while not self._ended.wait(RETRY_SECONDS):
            try:
                store = store_open(self.uri, timeout=self.timeout)
            except (Error, OSError) as why:
                if str(why) not in told:  # one that comes and refuses is not one that is gone
                    self._without(why)
                    told.add(str(why))
                continue
            with _lock:
                if not self._ended.is_set():
                    self.store = store
                    logger.info("cairn: %s is there now", self.uri)
                    return
            store.close()
            return

    def close(self) -> None:
        self._ended.set()
        store, self.store = self.store, None
        if store is not None:
            finish(store, FLUSH_SECONDS, logger)


_lock = threading.Lock()
_opened: dict[str, SharedStore] = {}


def acquire(uri: str, timeout: float) -> SharedStore:
    with _lock:
        held = _opened.get(uri)
        if held is None:
            held = _opened[uri] = SharedStore(uri, timeout)
        else:
            held.users += 1
        return held


def release(held: SharedStore) -> None:
    """The last one makes what was stored durable and closes the store."""
    with _lock:
        held.users -= 1
        if held.users or _opened.get(held.uri) is not held:
            return
        del _opened[held.uri]
        held.close()


@atexit.register
def _close_all() -> None:
    """An engine may end without a detach."""
    with _lock:
        while _opened:
            _opened.popitem()[1].close()
