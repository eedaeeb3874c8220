"""The worker's half: bytes between the engine's pages and the store, by the library's own threads.

All loads of a step and all saves of it are submitted by one call each and end whenever they do,
each load for itself: a request waits for no other one's. What has ended is told to the scheduler in
get_finished and build_connector_worker_meta of the step that saw it."""

from __future__ import annotations

import math
import os
import tempfile
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from vllm.logger import init_logger

from . import _native
from . import _vllm_store as stores
from ._vllm_identity import describe, named
from ._vllm_apart import Listener
from ._vllm_metrics import Stats
from ._vllm_options import Options, refusal
from ._vllm_pages import GroupPages, group_pages
from ._vllm_rows import Part, Rows, together
from ._vllm_step import Described, Report, Step, Transfer
from .errors import Error, InvalidError, Unsupported
from .queue import Queue

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

    from .store import Store

logger = init_logger("vllm.cairn")

CHUNK_TOKENS = 256
BLOCK_IS_CHUNK = 128  # blocks of this many tokens are chunks as they are
# For what is on its way, in a step that computes nothing: a request that comes meanwhile waits too.
IDLE_SECONDS = {True: 0.002, False: 0.001}  # with a load on its way, or saves only
PROBE_BYTES = 16 << 20


@dataclass
class Flight:
    """What completes together, a load or all saves of a step: which rows of it are whose."""

    load: bool
    rows: list[tuple[Transfer, int, Rows]]  # transfer, group, its rows
    size: int
    begun: float
    epoch: str | None  # None: of weights that are gone

    @property
    def transfers(self) -> list[Transfer]:
        return list({t.id: t for t, _, _ in self.rows}.values())


class WorkerSide:
    def __init__(self, config: VllmConfig, cache: KVCacheConfig, options: Options) -> None:
        self._config, self._cache, self._options = config, cache, options
        self._groups = [list(g.layer_names) for g in cache.kv_cache_groups]
        self._specs = [g.kv_cache_spec for g in cache.kv_cache_groups]
        self._store: Store | None = None
        self._queue: Queue | None = None
        self._listener: Listener | None = None
        self._parts: list[Part] = []
        self._step = Step()
        self._epoch = ""
        self._described = Described(config.parallel_config.rank, why_not=refusal(config)
                                    or "its KV cache is not allocated yet")
        self._flights: dict[int, Flight] = {}
        self._saving = 0  # bytes of saves on their way
        self._load_failed = False  # a load that this step's forward needed
        self._received: set[str] = set()
        self._failed: set[str] = set()
        self._bad_blocks: set[int] = set()
        self._report = Report()
        self._told = False  # what self._described says
        self._told_size = False
        self._stats = Stats()
        if refusal(config) is None:
            self._open()

    def _open(self) -> None:
        try:
            self._store = stores.acquire(self._options.uri, self._options.timeout)
        except InvalidError:
            raise
        except (Error, OSError) as why:
            self._described.why_not = stores.without(why)

    # --- what the engine has ---

    def register_kv_caches(self, caches: dict[str, torch.Tensor]) -> None:
        if self._store is None:
            return
        try:
            pages = group_pages(caches, self._groups, self._cache.num_blocks)
            chunk_tokens = _chunk_tokens([s.block_size for s in self._specs])
            self._fits(pages, chunk_tokens)
            fields = describe(self._config, self._specs, pages, chunk_tokens)
            self._queue = Queue(self._store)
            if self._options.embedded and stores.apart(self._config):
                self._listener = Listener(_link(self._config), self._store)
        except (Unsupported, Error, OSError) as why:
            self._described.why_not = stores.without(why)
            return
        first = self._described.rank * len(pages)
        self._parts = [Part(first + g, p, chunk_tokens // s.block_size, b"")
                       for g, (p, s) in enumerate(zip(pages, self._specs))]
        self._described = Described(
            self._described.rank, fields, chunk_tokens, [s.block_size for s in self._specs],
            [p.page_bytes for p in pages], _copy_rate(),
            link=self._listener.path if self._listener else None)
        self._name("")
        logger.info("cairn: %s: chunks of %d tokens, %s bytes", self._options.uri, chunk_tokens,
                    self._value_bytes())

    def _fits(self, pages: list[GroupPages], chunk_tokens: int) -> None:
        assert self._store is not None
        most = self._store.value_max or _native.VALUE_MAX  # 0: its node has yet to come
        for page, spec in zip(pages, self._specs):
            value = page.page_bytes * (chunk_tokens // spec.block_size)
            if value > most:
                raise Unsupported(f"a chunk of {chunk_tokens} tokens has {value} bytes and the "
                                  f"store takes values up to {most}; give it more ram")

    def _name(self, epoch: str) -> None:
        """From here on the parts are those of the weights of this epoch."""
        self._epoch = epoch
        identities = [named(fields, epoch) for fields in self._described.fields]
        for part, identity in zip(self._parts, identities):
            part.fingerprint = identity.fingerprint

        def note() -> None:
            for identity in identities:
                if self._store is not None:
                    self._store.note(identity)

        # A node that does not answer would hold up the engine.
        threading.Thread(target=note, name="cairn-note", daemon=True).start()

    def get_handshake_metadata(self) -> Described:
        return self._described

    # --- a step ---

    def handle_preemptions(self, step: Step) -> None:
        self._wait({i for i in step.fence})

    def bind(self, step: Step) -> None:
        self._step = step
        self._load_failed = False
        if step.epoch != self._epoch and self._parts:
            try:
                self._name(step.epoch)
            except Exception:
                logger.exception("cairn: going on without the cache")
                self._parts = []  # every load fails from here on, and no save begins
        if step.loads:
            self._begin_loads(step.loads)

    def lose_loads(self) -> None:
        """The weights have changed: what is on its way into the engine was made by others."""
        for flight in self._flights.values():
            flight.epoch = None

    def settle(self) -> None:
        """Until nothing is on its way: the blocks' memory is about to go."""
        self._wait({t.id for flight in self._flights.values() for t in flight.transfers})

    def clear(self) -> None:
        self._step = Step()

    def start_load_kv(self) -> None:
        self._wait({load.id for load in self._step.loads if load.wait})

    def wait_for_save(self) -> None:
        saves, self._step.saves = self._step.saves, []
        if not saves:
            return
        self._collect(0)
        wanted, room = [], self._options.inflight - self._saving if self._parts else -1
        for save in saves:
            size = sum(len(b) * p.pages.page_bytes for b, p in zip(save.blocks, self._parts))
            # What was computed beside a failed load may have been computed from its blocks.
            if self._load_failed or save.id in self._step.drop or size > room:
                self._refuse(save)
            else:
                wanted.append(save)
                room -= size
        try:
            self._begin_saves(wanted)
        except Exception:
            logger.exception("cairn: saves could not begin")
            for save in wanted:
                self._refuse(save)

    def get_finished(self, finished: set[str]) -> tuple[set[str] | None, set[str] | None]:
        # Engines without a forward may not have called it.
        self.wait_for_save()
        loading = any(flight.load for flight in self._flights.values())
        self._collect(IDLE_SECONDS[loading] if self._step.idle else 0)
        received, self._received = self._received, set()
        return None, received or None

    def get_transfer_results(self, finished: set[str]) -> Any:
        """The same of engines that take failed requests."""
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults
        _, received = self.get_finished(finished)
        failed, self._failed = self._failed, set()
        return KVConnectorTransferResults(finished_recving=received or set(), failed_recving=failed)

    def get_block_ids_with_load_errors(self) -> set[int]:
        bad, self._bad_blocks = self._bad_blocks, set()
        return bad

    def build_connector_worker_meta(self) -> Report | None:
        report, self._report = self._report, Report()
        if not self._told:
            self._told = True
            report.described.append(self._described)
            return report
        return report if report.ended or report.failed or report.refused else None

    def get_kv_connector_stats(self) -> Stats | None:
        stats, self._stats = self._stats, Stats()
        return None if stats.is_empty() else stats

    def shutdown(self) -> None:
        if self._listener is not None:
            self._listener.close()
        if self._queue is not None:
            self._queue.close()
        store, self._store = self._store, None
        if store is not None:
            stores.release(self._options.uri)

    # --- calls on their way ---

    def _rows(self, of: Transfer, load: bool) -> list[tuple[Transfer, int, Rows]]:
        if self._queue is None or not self._parts:
            raise Unsupported(self._described.why_not or "there is no cache")
        return [(of, g, part.rows(of, g, load)) for g, part in enumerate(self._parts)]

    def _begin_loads(self, loads: list[Transfer]) -> None:
        ready: list[list[tuple[Transfer, int, Rows]]] = []
        lost: list[Transfer] = []
        for load in loads:
            try:
                ready.append(self._rows(load, True))
            except Exception:
                logger.exception("cairn: a load could not begin; its tokens are computed again")
                lost.append(load)
        # The forward waits for all of these, and they come first: one completion is enough.
        waits = [row for rows in ready if rows[0][0].wait for row in rows]
        ready = [rows for rows in [waits, *(r for r in ready if not r[0][0].wait)] if rows]
        begun = 0
        try:
            begun = self._submit_loads(ready) if ready else 0
        except Exception:
            logger.exception("cairn: no load could begin; their tokens are computed again")
        else:
            if begun < len(ready):
                logger.warning("cairn: %d calls are on their way and no more begin; the tokens of "
                               "the other loads are computed again", len(self._flights))
        for load in lost + list({t.id: t for rows in ready[begun:] for t, _, _ in rows}.values()):
            self._load_ended(load, [np.arange(len(load.keys))] * len(self._groups))

    def _submit_loads(self, ready: list[list[tuple[Transfer, int, Rows]]]) -> int:
        """How many of these began, the first ones: the queue may be full."""
        assert self._queue is not None
        batch = together([r for rows in ready for _, _, r in rows])
        ranges = {"offsets": batch.offsets} if (batch.offsets >= 0).any() else {}
        calls = [sum(len(r) for _, _, r in rows) for rows in ready]
        now = time.perf_counter()  # the library's threads begin before the call is back
        tags = self._queue.submit_gets_runs(
            batch.keys, batch.iov, batch.counts, calls,
            fingerprints=batch.fingerprints, timeout=self._options.timeout,
            cuda_stream=self._stream(), **ranges)
        for tag, rows in zip(tags, ready):
            self._flights[tag] = Flight(True, rows, sum(r.size for _, _, r in rows), now,
                                        self._epoch)
        return len(tags)

    def _stream(self) -> int | None:
        return self._parts[0].pages.stream()

    def _begin_saves(self, saves: list[Transfer]) -> None:
        rows = [row for save in saves for row in self._rows(save, False)]
        if not sum(len(r) for _, _, r in rows):
            for save in saves:
                self._report.ended[save.id] = 1
            return
        assert self._queue is not None
        batch = together([r for _, _, r in rows])
        now = time.perf_counter()
        tag = self._queue.submit_put_runs(
            batch.keys, batch.iov, batch.counts, parents=batch.parents,
            fingerprints=batch.fingerprints, timeout=self._options.timeout,
            cuda_stream=self._stream())
        self._saving += batch.size
        self._flights[tag] = Flight(False, rows, batch.size, now, self._epoch)

    def _refuse(self, save: Transfer) -> None:
        self._report.refused.add(save.id)
        self._report.ended[save.id] = 1
        self._stats.add("saves_refused", 1)

    def _wait(self, wanted: set[int]) -> None:
        """Until none of these transfers touches its blocks any more. The library ends every call
        at its deadline, but for a copy that it is in."""
        while any(not wanted.isdisjoint(t.id for t in f.transfers)
                  for f in self._flights.values()):
            self._collect(0.1)

    def _collect(self, wait: float) -> None:
        if self._queue is None or not self._flights:
            return
        for tag, status in self._queue.poll(wait):
            flight = self._flights.pop(tag)
            bad = (status != _native.OK) & (status != _native.EXISTS)
            self._stats.flight(flight.load, flight.size, time.perf_counter() - flight.begun,
                               int(bad.sum()))
            if not flight.load:
                self._saving -= flight.size
                self._told_size = self._told_size or self._too_big(status)
            elif flight.epoch != self._epoch:
                bad[:] = True  # made by weights that are gone
            missed: dict[int, list[np.ndarray]] = {t.id: [] for t in flight.transfers}
            end = 0
            for t, _, rows in flight.rows:
                begin, end = end, end + len(rows)
                missed[t.id].append(rows.chunks[bad[begin:end]])
            for t in flight.transfers:
                (self._load_ended if flight.load else self._save_ended)(t, missed[t.id])

    def _too_big(self, status: np.ndarray) -> bool:
        """A node that has come, or come back, with less memory than the chunks need."""
        found = bool((status == _native.TOOBIG).any())
        if found and self._store is not None:
            logger.warning("cairn: nothing is saved: a chunk has %s bytes and the store takes "
                           "values up to %d; give it more ram", self._value_bytes(),
                           self._store.value_max)
        return found

    def _value_bytes(self) -> str:
        return " + ".join(str(part.blocks * part.pages.page_bytes) for part in self._parts)

    def _load_ended(self, load: Transfer, missed: list[np.ndarray]) -> None:
        """missed: of each group, the chunks that did not arrive."""
        self._report.ended[load.id] = 1
        if not load.wait:
            self._received.add(load.request)
        if not any(map(len, missed)):
            return
        self._report.failed.add(load.request)
        self._load_failed |= load.wait
        if len(self._groups) == 1:
            per = self._described.chunk_tokens // self._specs[0].block_size or len(load.blocks[0])
            blocks = np.asarray(load.blocks[0])
            lost = blocks[np.isin(np.arange(len(blocks)) // per, missed[0])]
            self._bad_blocks.update(lost[lost != 0].tolist())
        else:
            self._failed.add(load.request)

    def _save_ended(self, save: Transfer, missed: list[np.ndarray]) -> None:
        self._report.ended[save.id] = 1
        if any(map(len, missed)):
            self._report.refused.add(save.id)


def _chunk_tokens(blocks: list[int]) -> int:
    """Whole blocks of every group: of large ones one, of small ones as many as make a chunk worth
    its name."""
    least = math.lcm(*blocks)
    return least if least >= BLOCK_IS_CHUNK else least * -(-CHUNK_TOKENS // least)


def _copy_rate() -> float:
    """Bytes a second of one thread, the better of two tries."""
    source, target = np.ones(PROBE_BYTES, np.uint8), np.zeros(PROBE_BYTES, np.uint8)
    best = math.inf
    for _ in range(2):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return PROBE_BYTES / best


def _link(config: VllmConfig) -> str:
    assert config.kv_transfer_config is not None
    return os.path.join(tempfile.gettempdir(),
                        f"cairn-{config.kv_transfer_config.engine_id}-{os.getpid()}.sock")
