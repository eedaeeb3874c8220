"""Cairn as a secondary tier of vLLM's own offloading: what falls out of its CPU tier is found
again, by this engine, after a restart, and by others.

    --kv-transfer-config '{"kv_connector": "OffloadingConnector", "kv_role": "kv_both",
        "kv_connector_extra_config": {"spec_name": "TieringOffloadingSpec",
            "cpu_bytes_to_use": 10737418240, "secondary_tiers": [{
                "type": "CairnTier", "module_path": "cairn.vllm_tier",
                "uri": "unix:/run/cairn/cairn.sock"}]}}'

Options beside "uri": "domain_key_file" (a file with 1 to 64 secret bytes; without it the public
domain), "timeout" (seconds a transfer may take beside its bytes, 1), "lookup_timeout" (seconds a
request waits at most to know what is held, 0.2), "identity" (more fields of the identity, by name),
"enable_kv_events". A request may say kv_transfer_params={"cairn": {"read": false}}, or "write".

All of it runs in the scheduler and nothing here waits: lookups are asked by a thread, rows move in
the store's own threads. A row is one value, opaque. Any failure is a miss or a row that is not
stored; a store that is slow is left alone until it answers quickly again. Nothing here raises into
the engine once it runs; a wrong option stops it at start with a sentence.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, ClassVar
from collections.abc import Iterable, Sequence

import numpy as np
from vllm.logger import init_logger
from vllm.v1.kv_offload.base import (Locality, LookupResult, Medium, OffloadingCounterMetadata,
                                     OffloadingEvent, ReqContext, RequestOffloadingContext,
                                     ScheduleEndContext)
from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager, TransferJob

from . import _vllm_tier_compat as compat
from ._vllm_tier_lookup import GROUP_BYTES, Breaker, Lookups
from ._vllm_tier_names import Names, identity_of
from ._vllm_tier_transfers import WORKERS, Job, Rows, Transfers
from .errors import Error, InvalidError
from .identity import PUBLIC, domain_of_file
from .store import Store, finish, open as store_open

if TYPE_CHECKING:
    from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
        OffloadingConnectorStats)
    from vllm.v1.kv_offload.base import OffloadingMetricMetadata, OffloadingSpec

logger = init_logger("vllm.cairn")
OPTIONS = ("uri", "domain_key_file", "timeout", "lookup_timeout", "identity", "enable_kv_events")
OPEN_AGAIN_SECONDS = 5.0
FLUSH_SECONDS = 60.0
CLOSE_SECONDS = 10.0
COUNTERS = {
    "vllm:cairn_tier_rows_loaded": "Rows loaded from Cairn.",
    "vllm:cairn_tier_rows_missed": "Rows that Cairn was said to hold and that could not be loaded.",
    "vllm:cairn_tier_rows_stored": "Rows that Cairn holds after a store.",
    "vllm:cairn_tier_rows_not_stored": "Rows that Cairn did not take.",
    "vllm:cairn_tier_stores_skipped": "Stores not begun: too many on their way, or Cairn is slow.",
    "vllm:cairn_tier_lookups_late": "Lookups without an answer by the deadline.",
}


class CairnTier(SecondaryTierManager):
    medium: ClassVar[Medium | None] = Medium.STORAGE

    def __init__(self, offloading_spec: OffloadingSpec, primary_kv_view: memoryview,
                 tier_type: str, **options: Any) -> None:
        super().__init__(offloading_spec, primary_kv_view, tier_type,
                         **compat.base_arguments(options))
        uri, self._timeout, patience = _options(options)
        self.locality = Locality.LOCAL
        self._uri = uri
        self._rows = Rows(primary_kv_view)
        identity = identity_of(offloading_spec.config, compat.engine_config(), self._rows.bytes,
                               options.get("identity", {}))
        file = options.get("domain_key_file")
        self._names = Names(identity, PUBLIC if file is None else domain_of_file(file))
        self._noted: Names | None = None
        events = options.get("enable_kv_events", False)
        self._events: list[OffloadingEvent] | None = (
            [] if events and offloading_spec.kv_events_config.enable_kv_cache_events else None)
        self._results: list[JobResult] = []
        self._counts = dict.fromkeys(COUNTERS, 0)
        self._told: set[str] = set()
        self._store: Store | None = None
        self._transfers: Transfers | None = None
        self._opened = 0.0
        self._open_store(first=True)
        self._breaker = Breaker()
        self._lookups = Lookups(self._held, self._idle, patience, self._breaker)

    # --- lookups ---

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        return RequestOffloadingContext()

    def lookup(self, key: bytes, req_context: ReqContext) -> LookupResult:
        if self._transfers is None or not _may(req_context, "read"):
            return LookupResult.MISS
        held = self._lookups.ask(key, req_context.req_id)
        if held is None:
            return LookupResult.RETRY
        return LookupResult.HIT if held else LookupResult.MISS

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        self._lookups.flush()

    def on_request_finished(self, req_context: ReqContext) -> None:
        self._lookups.forget(req_context.req_id)

    # --- jobs ---

    def submit_load(self, job_metadata: TransferJob) -> None:
        self._submit(job_metadata, load=True)

    def submit_store(self, job_metadata: TransferJob) -> None:
        self._submit(job_metadata, load=False)

    def get_finished_jobs(self) -> Iterable[JobResult]:
        if self._transfers is not None:
            for job in self._transfers.poll():
                self._finish(job)
            if self._breaker.open:
                self._transfers.give_up_stores()
        results, self._results = self._results, []
        return results

    def has_pending_work(self) -> bool:
        return bool(self._results) or (self._transfers is not None and len(self._transfers) > 0)

    def drain_jobs(self) -> None:
        """vLLM calls this before it drops its own cache, and does that when the weights change in
        place: whatever is stored was made by others then."""
        if self._transfers is not None:
            for job in self._transfers.drain():
                self._finish(job)
        self._names = self._names.renamed()
        self._lookups.forget_all()

    def _submit(self, given: TransferJob, load: bool) -> None:
        request = given.req_context.req_id
        offload_keys = list(given.keys)
        job = None
        try:
            if (self._transfers is not None and not self._breaker.open
                    and (load or _may(given.req_context, "write"))):
                names = self._names
                keys = names.keys(offload_keys)
                job = Job(given.job_id, offload_keys, request, load, keys,
                          compat.job_rows(given), None if load else _parents(offload_keys, keys),
                          names.identity)
                if self._transfers.submit(job):
                    return
        except Exception as why:  # before the first call to the library: no row is in use
            self._tell("job", "a transfer could not be begun: %s", why)
        if load:
            self._lookups.failed(offload_keys, request)
        self._count("rows_missed" if load else "rows_not_stored", len(offload_keys))
        self._count("stores_skipped", not load)
        self._results.append(JobResult(given.job_id, False))

    def _finish(self, job: Job) -> None:
        good = job.good
        count, all_good = int(good.sum()), bool(good.all())
        kept = [key for key, ok in zip(job.offload_keys, good) if ok]
        if job.load:
            self._lookups.failed([k for k, ok in zip(job.offload_keys, good) if not ok],
                                 job.request)
        elif kept and self._events is not None:
            self._events.append(OffloadingEvent(keys=kept, medium=Medium.STORAGE, removed=False,
                                                locality=self.locality))
        if job.late:
            self._breaker.trip()
        self._count("rows_loaded" if job.load else "rows_stored", count)
        self._count("rows_missed" if job.load else "rows_not_stored", len(good) - count)
        partly = tuple(kept) if job.load and kept and not all_good else None
        self._results.append(JobResult(job.id, all_good, successful_keys=partly,
                                       transfer_time=job.seconds))

    # --- the store: by the thread of the lookups, but for the first open ---

    def _open_store(self, first: bool) -> None:
        self._opened = time.monotonic()
        try:
            store = store_open(self._uri)
        except InvalidError:
            if first:
                raise
            return
        except (Error, OSError) as why:
            self._tell("open", "there is no store yet, and the engine runs without: %s", why)
            return
        if 0 < store.value_max < self._rows.bytes:
            limit = store.value_max
            store.close()
            text = (f"a row of the CPU tier has {self._rows.bytes} bytes and {self._uri} takes "
                    f"values up to {limit}; give it more ram, or this engine a smaller "
                    "\"block_size\" (of tokens a row)")
            if first:
                raise InvalidError(text)
            self._tell("size", "%s", text)
            return
        self._store = store
        self._transfers = Transfers(store, self._rows, self._timeout)
        logger.info("cairn: tier %s: rows of %d bytes", self._uri, self._rows.bytes)

    def _idle(self) -> None:
        try:
            if self._store is None:
                if time.monotonic() - self._opened > OPEN_AGAIN_SECONDS:
                    self._open_store(first=False)
            elif self._noted is not self._names:
                names = self._names
                self._store.note(names.identity)
                self._noted = names
        except Exception as why:
            self._tell("note", "%s", why)

    def _held(self, keys: Sequence[bytes]) -> int:
        try:
            return 0 if self._store is None else self._store.lookup(self._names.keys(keys))
        except Exception as why:
            self._tell("lookup", "a lookup failed: %s", why)
            return 0

    # --- what it says about itself ---

    def take_events(self) -> Iterable[OffloadingEvent]:
        if not self._events:
            return ()
        events, self._events = self._events, []
        return events

    @classmethod
    def build_metric_definitions(
            cls, extra_config: dict[str, Any]) -> dict[str, OffloadingMetricMetadata]:
        return {name: OffloadingCounterMetadata(documentation=text)
                for name, text in COUNTERS.items()}

    def get_stats(self) -> OffloadingConnectorStats | None:
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import (
            OffloadingConnectorStats)
        late, self._lookups.late = self._lookups.late, 0
        self._count("lookups_late", late)
        stats = OffloadingConnectorStats()
        for name, count in self._counts.items():
            if count:
                stats.increase_counter(name, count)
                self._counts[name] = 0
        return None if stats.is_empty() else stats

    def _count(self, name: str, count: int) -> None:
        self._counts[f"vllm:cairn_tier_{name}"] += count

    def _tell(self, kind: str, text: str, *args: object) -> None:
        """Once a kind: what goes wrong, goes wrong at every step."""
        if kind not in self._told:
            self._told.add(kind)
            logger.warning("cairn: " + text, *args)

    def shutdown(self) -> None:
        """vLLM unmaps the rows next, so all calls have ended before this returns."""
        self._lookups.close(CLOSE_SECONDS)
        transfers, self._transfers = self._transfers, None
        store, self._store = self._store, None
        if store is None or transfers is None:
            return
        try:
            transfers.drain()
        except Exception as why:
            self._tell("drain", "transfers were given up: %s", why)
        transfers.close()
        finish(store, FLUSH_SECONDS, logger)


def _options(options: dict[str, Any]) -> tuple[str, float, float]:
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise InvalidError(f"a tier of type CairnTier has {unknown[0]!r}; it takes "
                           + ", ".join(f'"{name}"' for name in OPTIONS))
    uri = options.get("uri")
    if not isinstance(uri, str):
        raise InvalidError("a tier of type CairnTier needs \"uri\", for instance "
                           "\"unix:/run/cairn/cairn.sock\"")
    times = []
    for name, default in (("timeout", 1.0), ("lookup_timeout", 0.2)):
        value = options.get(name, default)
        if not isinstance(value, (int, float)) or not 0 < value <= 60:
            raise InvalidError(f"{name} is {value!r}; give seconds, above 0 and at most 60")
        times.append(float(value))
    stated = options.get("identity", {})
    if not isinstance(stated, dict) or not all(isinstance(k, str) for k in stated):
        raise InvalidError("identity is not an object of names and values")
    if "workers=" not in uri:
        uri += ("&" if "?" in uri else "?") + f"workers={WORKERS}"
    return uri, times[0], times[1]


def _may(request: ReqContext, what: str) -> bool:
    params = request.kv_transfer_params
    said = params.get("cairn") if isinstance(params, dict) else None
    return not (isinstance(said, dict) and said.get(what) is False)


def _parents(offload_keys: Sequence[bytes], keys: np.ndarray) -> np.ndarray:
    """Of each row the one before it in its KV group: what a store drops, it drops from the tail."""
    parents = np.zeros_like(keys)
    last: dict[bytes, int] = {}
    for i, key in enumerate(offload_keys):
        group = key[-GROUP_BYTES:]
        if group in last:
            parents[i] = keys[last[group]]
        last[group] = i
    return parents
