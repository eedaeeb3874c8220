"""SGLang with Cairn behind its hierarchical cache: a HiCache storage backend, loaded by name.

    --enable-hierarchical-cache --hicache-storage-backend dynamic
    --hicache-storage-backend-extra-config '{"backend_name": "cairn", "module_path": "cairn.sglang",
        "class_name": "CairnStorage", "interface_v1": 1, "uri": "unix:/run/cairn/cairn.sock"}'

Other keys: "domain_key_file" (a file with 1 to 64 secret bytes; without it the public domain),
"timeout" (seconds that one call may take, 5) and "weights" (a name for the weights, instead of the
digest of their files).

Pages travel between SGLang's host pools and the store in place, one call of the library a batch and
pool. A wrong option stops the engine at start with a sentence; after that nothing here raises, and
any failure is a miss: SGLang computes those pages.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
import uuid
from typing import Any, TypeVar
from collections.abc import Callable, Sequence

from sglang.srt.mem_cache.hicache_storage import (HiCacheStorage, HiCacheStorageConfig,
                                                  HiCacheStorageExtraInfo, PoolHitPolicy,
                                                  PoolTransfer, PoolTransferResult)

from . import _native
from ._sglang_identity import of_engine, of_pool, replicated
from ._sglang_pages import is_logical, page_tokens, pages_of
from ._sglang_pool import Names, StoredPool
from ._sglang_store import acquire, release
from ._sglang_weights import forget, watch
from .buffers import runs
from .errors import Error, InvalidError, Unsupported
from .identity import PUBLIC, Domain, Identity, domain_of_file, key_array
from .store import Store

logger = logging.getLogger(__name__)
F = TypeVar("F", bound=Callable[..., Any])
KV = "kv"
TIMEOUT = 5.0
SAY_SECONDS = 30.0
# A node waited for so long in vain is not asked for a while: other calls need not wait too.
FUTILE_SECONDS, REST_SECONDS = 0.8, 2.0
OURS = ("uri", "domain_key_file", "timeout", "weights")
SGLANGS = ("backend_name", "module_path", "class_name", "interface_v1", "tp_lcm_size",
           "prefetch_threshold", "prefetch_timeout_base", "prefetch_timeout_per_ki_token",
           "hicache_storage_pass_prefix_keys")


def _answers(default: Callable[..., Any]) -> Callable[[F], F]:
    """SGLang's threads end with an exception or a None, so they get neither."""
    def around(call: F) -> F:
        @functools.wraps(call)
        def safe(self: CairnStorage, *args: Any, **kwargs: Any) -> Any:
            try:
                return call(self, *args, **kwargs)
            except Exception as why:
                self._say(call.__name__, why)
                return default(*args, **kwargs)
        return safe  # type: ignore[return-value]
    return around


def _none_of(keys: Sequence[Any] | None = None, *_: Any, **__: Any) -> list[bool]:
    return [False] * len(keys or ())


def _none_of_any(transfers: Sequence[PoolTransfer], *_: Any, **__: Any) -> dict[Any, list[bool]]:
    return {t.name: [False] * len(t.keys or ()) for t in transfers or ()}


class CairnStorage(HiCacheStorage):
    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: dict | None = None) -> None:
        extra = storage_config.extra_config or {}
        self._config = storage_config
        self._in_place = bool(extra.get("interface_v1", 0))
        self._uri, self._domain, self._timeout, self._weights = _options(storage_config, extra)
        self._lock = threading.Lock()
        self._said: dict[str, float] = {}
        self._hosts: dict[str, Any] = {}
        self._pools: dict[str, StoredPool] = {}
        self._names: Names | None = None  # of values given through get and set
        self._identity: Identity | None = None
        self._logical = False
        self._fields: dict[str, Any] | None = None
        self._epoch: str | None = None  # of weights that have no name
        self._unflushed = False
        self._clears = 0
        self._stopped: str | None = None
        self._rest_until = 0.0
        self._metrics: dict[str, list[Any]] = {"prefetch": [], "backup": []}
        self.counters = dict.fromkeys(("got_pages", "missed_pages", "put_pages", "refused_pages",
                                       "failures"), 0)
        self._shared = acquire(self._uri, self._timeout)
        self._open = True
        if watch(self):
            self._begin_epoch(unflushed=True)
        if not self._in_place:
            logger.warning("cairn: without \"interface_v1\": 1 SGLang copies every page once more")

    # --- pools ---

    def register_mem_pool_host(self, mem_pool_host: Any) -> None:
        anchor = getattr(mem_pool_host, "anchor_entry", None)
        self.mem_pool_host = anchor.host_pool if anchor is not None else mem_pool_host
        self._register(KV, self.mem_pool_host)

    def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
        name = str(host_pool_name)
        if name != KV or self._hosts.get(KV) is not host_pool:
            self._register(name, host_pool)

    def on_host_pools_registered(self) -> None:
        logger.info("cairn: %s: %s", self._uri, "; ".join(
            f"{name} pages of {pool.pages.page_bytes} bytes"
            + ("" if pool.without_copy else ", copied") for name, pool in self._pools.items())
            or "no pool is taken")

    def _register(self, name: str, pool: Any) -> None:
        with self._lock:
            self._hosts[name] = pool
            self._pools.pop(name, None)
            self._stop_if_alone(name, pool)
            if name == KV:
                self._logical = is_logical(pool)
                if self._logical:
                    return
            try:
                self._pools[name] = self._stored(name, pool)
            except Exception as why:
                if isinstance(why, (Unsupported, Error, OSError)):
                    logger.warning("cairn: the pool %s goes without the cache: %s", name, why)
                else:
                    logger.exception("cairn: the pool %s goes without the cache", name)

    def _stored(self, name: str, pool: Any) -> StoredPool:
        config = self._config
        if config.dcp_size > 1:
            raise Unsupported("ranks that share a sequence are not taken")
        if self._fields is None:
            self._fields = of_engine(config, self._weights)
        split = config.should_split_heads and name == KV
        pages = pages_of(pool, config.tp_lcm_size // config.tp_size if split else 1)
        store = self._shared.store
        if store is not None and 0 < store.value_max < pages.page_bytes // pages.parts:
            raise Unsupported(f"a page has {pages.page_bytes // pages.parts} bytes and the store "
                              f"takes values up to {store.value_max}; give it more ram")
        chunk = page_tokens(self._hosts.get(KV, pool))
        since = {"epoch": self._epoch, "cleared": self._clears or None}
        made = [Identity(**self._fields, **of_pool(config, name, pool, pages, chunk, part), **since)
                for part in range(pages.parts)]
        if store is not None:
            for identity in made:
                store.note(identity)
        if name == KV:
            flat = dict(self._fields, **of_pool(config, name, pool, pages, chunk, 0))
            flat["layout"] += ", by get and set"
            self._identity = Identity(**flat, **since)
            self._names = Names(self._identity, self._domain)
        return StoredPool(pages, made, self._domain)

    def _stop_if_alone(self, name: str, pool: Any) -> None:
        """Of new weights each rank has a name of its own, and these pages are for all ranks."""
        if (self._epoch is None or self._stopped is not None or self._config.tp_size == 1
                or not replicated(self._config, name, pool)):
            return
        self._stopped = ("the weights were changed in place, and ranks that share pages cannot "
                         "agree on a name for them; restart the engine")
        logger.warning("cairn: this engine goes on without the cache: %s", self._stopped)

    def weights_changed(self) -> None:
        """What was stored before is named no more, and nothing stored from now on will be named by
        others: the new weights have no name that another process could know."""
        self._begin_epoch(unflushed=True)
        self._rename()

    def flushed(self) -> None:
        """Until here SGLang may have gone on with KV of the old weights and have stored it: it
        flushes only where that is asked for and no request runs."""
        if self._unflushed:
            self._begin_epoch(unflushed=False)
            self._rename()

    def _begin_epoch(self, unflushed: bool) -> None:
        with self._lock:
            self._epoch, self._unflushed = uuid.uuid4().hex, unflushed

    def _rename(self) -> None:
        for name, pool in list(self._hosts.items()):
            self._register(name, pool)

    # --- what SGLang calls with interface_v1 ---

    @_answers(lambda *_, **__: 0)
    def batch_exists(self, keys: list[str],
                     extra_info: HiCacheStorageExtraInfo | None = None) -> int:
        store, pool = self._of(KV)
        if store is None or pool is None or self._names is None:
            return 0
        begun = time.monotonic()
        held = (pool.held(store, keys) if self._in_place else
                store.lookup(self._flat_keys(keys)))
        self._went(begun, held > 0)
        return held

    @_answers(_none_of)
    def batch_get_v1(self, keys: list[str], host_indices: Any,
                     extra_info: HiCacheStorageExtraInfo | None = None) -> list[bool]:
        if self._logical:
            return [True] * len(keys)
        return self._get(KV, keys, host_indices)

    @_answers(_none_of)
    def batch_set_v1(self, keys: list[str], host_indices: Any,
                     extra_info: HiCacheStorageExtraInfo | None = None) -> list[bool]:
        if self._logical:
            return [True] * len(keys)
        return self._put(KV, keys, host_indices, _before(extra_info))

    # --- what it calls for models with several pools ---

    @_answers(lambda *_, **__: PoolTransferResult(0, {}, []))
    def batch_exists_v2(self, keys: list[str], pool_transfers: list[PoolTransfer] | None = None,
                        extra_info: HiCacheStorageExtraInfo | None = None) -> PoolTransferResult:
        count = len(keys) if self._logical else self.batch_exists(keys)
        hits: dict[Any, int] = {KV: count} if count else {}
        ends = set(range(1, count + 1))
        for transfer in pool_transfers or ():
            # A second form of pages that are there anyway gates nothing.
            if transfer.hit_policy == PoolHitPolicy.BLOCK_GROUPS:
                continue
            found = self._ends(keys[:count], transfer) if ends else set()
            if found:
                hits[transfer.name] = max(found)
            ends &= found
        return PoolTransferResult(max(ends, default=0), hits, sorted(ends))

    def _ends(self, keys: list[str], transfer: PoolTransfer) -> set[int]:
        """The lengths of a prefix at whose end this pool has what it needs."""
        store, pool = self._of(str(transfer.name))
        if store is None or pool is None:
            return set()
        if transfer.hit_policy == PoolHitPolicy.ALL_PAGES:
            begun = time.monotonic()
            held = pool.held(store, keys)
            self._went(begun, held > 0)
            return set(range(1, held + 1))
        window = max(1, len(transfer.keys or ()))
        begun, run, ends = time.monotonic(), 0, set()
        each = pool.held_each(store, keys, begun + FUTILE_SECONDS)
        self._went(begun, any(each))
        for end, held in enumerate(each, 1):
            run = run + 1 if held else 0
            if run >= min(window, end):
                ends.add(end)
        return ends

    @_answers(_none_of_any)
    def batch_get_v2(self, transfers: list[PoolTransfer],
                     extra_info: HiCacheStorageExtraInfo | None = None) -> dict[Any, list[bool]]:
        return {t.name: self._get_pool(str(t.name), t.keys or [], t.host_indices)
                for t in transfers}

    @_answers(_none_of_any)
    def batch_set_v2(self, transfers: list[PoolTransfer],
                     extra_info: HiCacheStorageExtraInfo | None = None) -> dict[Any, list[bool]]:
        return {t.name: self._put_pool(str(t.name), t.keys or [], t.host_indices)
                for t in transfers}

    @_answers(lambda name, keys, *_: _none_of(keys))
    def _get_pool(self, name: str, keys: list[str], indices: Any) -> list[bool]:
        return self._get(name, keys, indices)

    @_answers(lambda name, keys, *_: _none_of(keys))
    def _put_pool(self, name: str, keys: list[str], indices: Any) -> list[bool]:
        return self._put(name, keys, indices, None)

    def _get(self, name: str, keys: list[str], indices: Any) -> list[bool]:
        store, pool = self._of(name)
        if store is None or pool is None:
            return _none_of(keys)
        begun = time.monotonic()
        good = pool.get(store, keys, indices, self._timeout)
        self._count("prefetch", "got_pages", "missed_pages", good, pool, begun)
        return good

    def _put(self, name: str, keys: list[str], indices: Any, before: str | None) -> list[bool]:
        store, pool = self._of(name)
        if store is None or pool is None:
            return _none_of(keys)
        begun = time.monotonic()
        good = pool.put(store, keys, indices, before, self._timeout)
        self._count("backup", "put_pages", "refused_pages", good, pool, begun)
        return good

    def _of(self, name: str) -> tuple[Store | None, StoredPool | None]:
        if self._stopped or not self._open or time.monotonic() < self._rest_until:
            return None, None
        return self._shared.store, self._pools.get(name)

    # --- what it calls without interface_v1: whole pages as tensors ---

    def _flat_keys(self, keys: Sequence[str]) -> Any:
        assert self._names
        return key_array([self._names.key(key) for key in keys])

    @_answers(lambda *_, **__: None)
    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Any:
        return self.batch_get([key], [target_location])[0]

    @_answers(lambda keys=(), *_, **__: [None] * len(keys))
    def batch_get(self, keys: list[str], target_locations: Any = None,
                  target_sizes: Any = None) -> list[Any]:
        store, _ = self._of(KV)
        outs = list(target_locations or ())
        if store is None or self._names is None or len(outs) != len(keys) or not keys:
            return [None] * len(keys)
        iov, counts, streams, keep = runs(outs, "target_locations", True)
        begun = time.monotonic()
        status = store.get_runs(self._flat_keys(keys), iov, counts, identity=self._identity,
                                timeout=self._timeout, cuda_stream=streams)
        del keep
        self._went(begun, bool((status == _native.OK).any()))
        return [out if s == _native.OK else None for out, s in zip(outs, status.tolist())]

    @_answers(lambda *_, **__: False)
    def set(self, key: str, value: Any = None, target_location: Any = None,
            target_sizes: Any = None) -> bool:
        return self.batch_set([key], [value])

    @_answers(lambda *_, **__: False)
    def batch_set(self, keys: list[str], values: Any = None, target_locations: Any = None,
                  target_sizes: Any = None) -> bool:
        store, _ = self._of(KV)
        if store is None or self._names is None or len(values or ()) != len(keys) or not keys:
            return False
        iov, counts, streams, keep = runs([v.contiguous() for v in values], "values", False)
        rows = self._flat_keys(keys)
        begun = time.monotonic()
        status = store.put_runs(rows, iov, counts, identity=self._identity, timeout=self._timeout,
                                cuda_stream=streams)
        del keep
        good = [s in (_native.OK, _native.EXISTS) for s in status.tolist()]
        self._went(begun, any(good))
        return all(good)

    @_answers(lambda *_, **__: False)
    def exists(self, key: str) -> bool:
        return self.batch_exists([key]) == 1

    # --- the rest ---

    @_answers(lambda *_, **__: None)
    def clear(self) -> None:
        """What was stored before is named no more until the engine starts again: other engines
        may be using it. All ranks are told, so they count alike."""
        with self._lock:
            self._clears += 1
        self._rename()

    def get_stats(self) -> Any:
        """For SGLang's own metrics: pages and GB/s of each call since the last time."""
        if not self._config.enable_storage_metrics:
            return None
        try:
            from sglang.srt.observability.metrics_collector import StorageMetrics
        except ImportError:
            return None
        with self._lock:
            taken, self._metrics = self._metrics, {"prefetch": [], "backup": []}
        made = StorageMetrics()
        for kind, rows in taken.items():
            getattr(made, f"{kind}_pgs").extend(pages for pages, _ in rows)
            getattr(made, f"{kind}_bandwidth").extend(rate for _, rate in rows)
        return made

    def close(self) -> None:
        with self._lock:
            was, self._open = self._open, False
        forget(self)
        if was:
            try:
                release(self._shared)
            except Exception:
                logger.exception("cairn: closing the store failed")

    def _count(self, kind: str, good_name: str, bad_name: str, good: list[bool],
               pool: StoredPool, begun: float) -> None:
        done = sum(good)
        seconds = self._went(begun, done > 0)
        if not done:
            self._tell_refusal()
        with self._lock:
            self.counters[good_name] += done
            self.counters[bad_name] += len(good) - done
            if done and self._config.enable_storage_metrics and len(self._metrics[kind]) < 4096:
                rate = done * pool.pages.page_bytes / max(seconds, 1e-9) / (1 << 30)
                self._metrics[kind].append((done, rate))

    def _went(self, begun: float, fruitful: bool) -> float:
        seconds = time.monotonic() - begun
        if seconds > FUTILE_SECONDS and not fruitful and not self._uri.startswith("embedded:"):
            self._rest_until = time.monotonic() + REST_SECONDS
        return seconds

    def _say(self, what: str, why: Exception) -> None:
        with self._lock:
            self.counters["failures"] += 1
        if self._due(what):
            logger.warning("cairn: %s failed; going on without", what, exc_info=why)

    def _due(self, what: str) -> bool:
        """Once in a while: the same failure may come with every request."""
        with self._lock:
            now = time.monotonic()
            due = now - self._said.get(what, -SAY_SECONDS) >= SAY_SECONDS
            if due:
                self._said[what] = now
        return due

    def _tell_refusal(self) -> None:
        """A node that was there, and since it has come back turns this engine away."""
        store = self._shared.store
        why = store.refusal if store is not None else ""
        if why and self._due(f"refusal: {why}"):
            logger.warning("cairn: %s; until it takes this engine it goes on without the cache",
                           why)


def _before(info: HiCacheStorageExtraInfo | None) -> str | None:
    return info.prefix_keys[-1] if info is not None and info.prefix_keys else None


def _options(config: HiCacheStorageConfig,
             extra: dict[str, Any]) -> tuple[str, Domain, float, str | None]:
    unknown = sorted(set(extra) - {*OURS, *SGLANGS})
    if unknown:
        raise InvalidError(f"the extra configuration has {unknown[0]!r}; cairn takes "
                           + ", ".join(f'"{name}"' for name in OURS))
    uri = extra.get("uri")
    if not isinstance(uri, str):
        raise InvalidError("the extra configuration needs \"uri\", for instance "
                           "\"unix:/run/cairn/cairn.sock\"")
    ranks = config.tp_size * config.pp_size * config.attn_cp_size
    if uri.startswith("embedded:") and ranks > 1:
        raise InvalidError(f"{uri} is a store of one process and this engine has {ranks}; start "
                           "cairnd and give \"unix:/run/cairn/cairn.sock\"")
    timeout, weights = extra.get("timeout", TIMEOUT), extra.get("weights")
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout <= 60:
        raise InvalidError(f"\"timeout\" is {timeout!r}; give seconds above 0 and up to 60")
    if weights is not None and (not isinstance(weights, str) or not weights):
        raise InvalidError(f"\"weights\" is {weights!r}; give a name, for instance the revision")
    domain = domain_of_file(extra["domain_key_file"]) if "domain_key_file" in extra else PUBLIC
    return uri, domain, float(timeout), weights
