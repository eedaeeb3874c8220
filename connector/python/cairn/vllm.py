"""vLLM with Cairn behind it: a KV connector for the embedded store, or a node's.

    KVTransferConfig(kv_connector="CairnConnector", kv_connector_module_path="cairn.vllm",
                     kv_role="kv_both", kv_connector_extra_config={
                         "uri": "embedded:///var/lib/cairn?ram=4GiB&disk=64GiB"})

"uri" may also name a node, "unix:/run/cairn/cairn.sock": engines of one machine share it.

Whole blocks of all layers are opaque pages: what a step computes is gathered into the store by one
call after it, and what a request can skip is scattered from the store by one call before it. Any
failure is a miss: the engine computes those tokens again. Nothing here raises into the engine once
it runs; a wrong option stops it at start with a sentence.

Other keys of the extra configuration: "domain_key_file" (a file with 1 to 64 secret bytes; without
it the public domain) and "timeout" (seconds that the load of one step may take, 30).

Not taken, and computed as if there were no cache: requests with LoRA, images or prompt embeddings,
models with several KV groups or a device other than the CPU, and engines of several workers. The
log says which of these it is.
"""

from __future__ import annotations

import functools
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from collections.abc import Callable, Iterable

import numpy as np
from vllm.distributed.kv_transfer.kv_connector.v1.base import (KVConnectorBase_V1,
                                                               KVConnectorMetadata,
                                                               KVConnectorRole, SupportsHMA)
from vllm.logger import init_logger

from ._vllm_engine import Engine, engine_close, engine_open
from .identity import Keys, key_array, keys as keys_of

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = init_logger("vllm.cairn")
F = TypeVar("F", bound=Callable[..., Any])


def _answers(default: Any) -> Callable[[F], F]:
    """The engine gets `default` where a hook fails, and a line in its log."""
    def around(hook: F) -> F:
        @functools.wraps(hook)
        def safe(self: CairnConnector, *args: Any, **kwargs: Any) -> Any:
            if self._engine is None:
                return default
            try:
                return hook(self, *args, **kwargs)
            except Exception:
                logger.exception("cairn: %s failed; going on without", hook.__name__)
                return default
        return safe  # type: ignore[return-value]
    return around


@dataclass
class Transfer:
    """Chunks of one request and the engine's blocks that hold them, in order."""

    keys: np.ndarray
    blocks: np.ndarray
    parent: bytes | None = None
    skip: int = 0  # leading blocks of the first chunk that the engine has already (loads)


@dataclass
class Step(KVConnectorMetadata):
    """What one engine step loads and saves."""

    loads: list[Transfer] = field(default_factory=list)
    saves: list[Transfer] = field(default_factory=list)


@dataclass
class Tracked:
    """What the scheduler side knows of a request."""

    request: Request
    keys: Keys
    blocks: list[int] = field(default_factory=list)
    saved: int = 0  # chunks from the start that need no save any more
    load: tuple[int, int] | None = None  # tokens promised: from, to
    failed: bool = False


class CairnConnector(KVConnectorBase_V1, SupportsHMA):
    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole,
                 kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._engine: Engine | None = engine_open(
            vllm_config, kv_cache_config, role == KVConnectorRole.SCHEDULER)
        self._tracked: dict[str, Tracked] = {}
        self._bad_blocks: set[int] = set()
        self._load_failed = False
        transfer = vllm_config.kv_transfer_config
        if self._engine and transfer.kv_load_failure_policy != "recompute":
            logger.info("cairn: a value may be gone when it is read, so kv_load_failure_policy is "
                        "taken as \"recompute\"")
            transfer.kv_load_failure_policy = "recompute"

    @property
    def requires_kv_delivery(self) -> bool:
        return False

    def shutdown(self) -> None:
        engine, self._engine = self._engine, None
        if engine:
            try:
                engine_close(engine)
            except Exception:
                logger.exception("cairn: closing the store failed")

    # --- worker side ---

    @_answers(None)
    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        assert self._engine
        self._engine.register(kv_caches)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        loads = self._step().loads
        self._load_failed = False
        if not loads:
            return
        try:
            held = self._load(loads)
        except Exception:
            logger.exception("cairn: a load failed; its tokens are computed again")
            held = [0] * len(loads)
        per = self._engine.chunk_blocks if self._engine else 1
        for load, good in zip(loads, held):
            if good < len(load.keys):
                self._load_failed = True
                self._bad_blocks.update(load.blocks[max(good * per, load.skip):].tolist())

    def _load(self, loads: list[Transfer]) -> list[int]:
        """Loads all in one call. Returns how many chunks from the start of each arrived."""
        engine = self._engine
        if engine is None or engine.pages is None:
            return [0] * len(loads)
        keys = np.concatenate([t.keys for t in loads])
        counts = np.full(len(keys), engine.chunk_blocks, np.uint32)
        offsets = np.full(len(keys), -1, np.int64)
        first = np.cumsum([0] + [len(t.keys) for t in loads])
        for load, at in zip(loads, first):
            counts[at] -= load.skip
            offsets[at] = load.skip * engine.pages.block_bytes if load.skip else -1
        blocks = np.concatenate([t.blocks[t.skip:] for t in loads])
        start = time.perf_counter()
        status = engine.store.get_runs(
            keys, engine.pages.runs(blocks), counts * engine.pages.layers,
            offsets=offsets if (offsets >= 0).any() else None, identity=engine.identity,
            timeout=engine.timeout)
        engine.counters.load_seconds += time.perf_counter() - start
        held = []
        for load, at in zip(loads, first):
            missed = np.flatnonzero(status[at:at + len(load.keys)])
            held.append(int(missed[0]) if len(missed) else len(load.keys))
            good = max(held[-1] * engine.chunk_blocks - load.skip, 0)
            engine.counters.loaded_blocks += good
            engine.counters.loaded_bytes += good * engine.pages.block_bytes
            engine.counters.missed_chunks += len(load.keys) - held[-1]
        return held

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any,
                      **kwargs: Any) -> None:
        pass

    @_answers(None)
    def wait_for_save(self) -> None:
        engine, saves = self._engine, self._step().saves
        # What was computed beside a failed load may have been computed from its blocks.
        if not saves or self._load_failed or engine is None or engine.pages is None:
            return
        keys = np.concatenate([t.keys for t in saves])
        parents = np.zeros_like(keys)
        at = 0
        for save in saves:
            if save.parent is not None:
                parents[at] = key_array([save.parent])[0]
            parents[at + 1:at + len(save.keys)] = save.keys[:-1]
            at += len(save.keys)
        blocks = np.concatenate([t.blocks for t in saves])
        start = time.perf_counter()
        status = engine.store.put_runs(
            keys, engine.pages.runs(blocks),
            np.full(len(keys), engine.chunk_blocks * engine.pages.layers, np.uint32),
            parents=parents, identity=engine.identity, timeout=engine.timeout)
        engine.counters.save_seconds += time.perf_counter() - start
        engine.counters.saved_chunks += int((status == 0).sum())

    def get_block_ids_with_load_errors(self) -> set[int]:
        bad, self._bad_blocks = self._bad_blocks, set()
        return bad

    def _step(self) -> Step:
        meta = self._connector_metadata
        return meta if isinstance(meta, Step) else Step()

    # --- scheduler side ---

    @_answers((0, False))
    def get_num_new_matched_tokens(self, request: Request,
                                   num_computed_tokens: int) -> tuple[int | None, bool]:
        tracked = self._track(request)
        engine = self._engine
        if engine is None or tracked is None:
            return 0, False
        tracked.load = None
        first = num_computed_tokens // engine.chunk_tokens
        # The last token is always computed: its output is what was asked for.
        last = (request.num_tokens - 1) // engine.chunk_tokens
        if tracked.failed or first >= last or getattr(request, "skip_reading_prefix_cache", False):
            return 0, False
        held = engine.store.lookup(self._keys(tracked, last)[first:last])
        end = (first + held) * engine.chunk_tokens
        if end <= num_computed_tokens:
            return 0, False
        tracked.load = (num_computed_tokens, end)
        return end - num_computed_tokens, False

    @_answers(None)
    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks,
                                 num_external_tokens: int) -> None:
        tracked = self._tracked.get(request.request_id)
        if tracked and tracked.load and num_external_tokens != tracked.load[1] - tracked.load[0]:
            tracked.load = None

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        step = Step()
        if self._engine is not None:
            try:
                self._plan(scheduler_output, step)
            except Exception:
                logger.exception("cairn: planning a step failed; it saves nothing")
                step.saves.clear()
        return step

    def _plan(self, output: SchedulerOutput, step: Step) -> None:
        for done in output.finished_req_ids:
            self._tracked.pop(done, None)
        seen: list[tuple[Tracked, int]] = []
        for new in output.scheduled_new_reqs:
            tracked = self._tracked.get(new.req_id)
            if tracked:
                tracked.blocks = list(new.block_ids[0])
                seen.append((tracked, new.num_computed_tokens))
        cached = output.scheduled_cached_reqs
        for i, name in enumerate(cached.req_ids):
            tracked = self._tracked.get(name)
            if tracked:
                if name in cached.resumed_req_ids:
                    tracked.blocks = []
                    tracked.saved = 0
                tracked.blocks.extend((cached.new_block_ids[i] or ([],))[0])
                seen.append((tracked, cached.num_computed_tokens[i]))
        for tracked, computed in seen:
            self._plan_load(tracked, step)
        for tracked, computed in seen:
            scheduled = output.num_scheduled_tokens[tracked.request.request_id]
            # Draft tokens behind the known ones may yet be refused.
            self._plan_save(tracked, min(computed + scheduled, tracked.request.num_tokens), step)

    def _plan_load(self, tracked: Tracked, step: Step) -> None:
        engine = self._engine
        if tracked.load is None or engine is None:
            return
        start, end = tracked.load
        tracked.load = None
        first, last = start // engine.chunk_tokens, end // engine.chunk_tokens
        per = engine.chunk_blocks
        step.loads.append(Transfer(
            key_array(self._keys(tracked, last)[first:last]),
            np.asarray(tracked.blocks[first * per:last * per], np.int64),
            skip=start // engine.block_tokens - first * per))

    def _plan_save(self, tracked: Tracked, computed: int, step: Step) -> None:
        engine = self._engine
        assert engine is not None
        per = engine.chunk_blocks
        full = min(computed // engine.chunk_tokens, len(tracked.blocks) // per)
        if full <= tracked.saved:
            return
        keys = self._keys(tracked, full)
        if tracked.saved == 0:
            # What the store holds already, by this request or another, is not gathered again.
            tracked.saved = engine.store.lookup(keys[:full])
        first, tracked.saved = tracked.saved, full
        blocks = np.asarray(tracked.blocks[first * per:full * per], np.int64)
        if len(blocks) and blocks.all():  # block 0 stands for "none"
            wanted = keys[first:full]
            step.saves.append(Transfer(key_array(wanted), blocks, wanted.parent))

    @_answers(None)
    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        bad = connector_output.invalid_block_ids
        if not bad:
            return
        for tracked in self._tracked.values():
            # A second promise for the same request could fail the same way, for ever.
            tracked.failed |= not bad.isdisjoint(tracked.blocks)
            tracked.saved = 0

    def request_finished(self, request: Request,
                         block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        self._tracked.pop(request.request_id, None)
        return False, None

    def request_finished_all_groups(
            self, request: Request,
            block_ids: tuple[list[int], ...]) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished(request, [])

    def take_events(self) -> Iterable[Any]:
        return []

    def reset_cache(self) -> bool | None:
        """What the engine asks for when its weights have changed under it: from here on nothing
        that was stored before is named, and nothing stored now will be named by others."""
        # What running requests have computed so far, they computed with the old weights.
        self._tracked.clear()
        if self._engine is not None:
            try:
                self._engine.rename(epoch=uuid.uuid4().hex)
            except Exception:
                logger.exception("cairn: the cache could not be reset; going on without")
                self.shutdown()
        return True

    def _track(self, request: Request) -> Tracked | None:
        """None for requests whose KV is not named by their tokens and salt alone."""
        engine = self._engine
        if (engine is None or engine.identity is None or request.lora_request is not None
                or request.mm_features or request.prompt_embeds is not None
                or request.prompt_token_ids is None):
            return None
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            tracked = Tracked(request, Keys([], engine.identity))
            self._tracked[request.request_id] = tracked
        return tracked

    def _keys(self, tracked: Tracked, chunks: int) -> Keys:
        """The keys of the first `chunks` full chunks; those known are not computed again."""
        engine, known = self._engine, tracked.keys
        assert engine is not None and engine.identity is not None
        if len(known) < chunks:
            size = engine.chunk_tokens
            salt = tracked.request.cache_salt
            more = keys_of(
                engine.identity, tracked.request.all_token_ids[len(known) * size:chunks * size],
                domain=engine.domain, parent=known[-1] if known else None,
                extras={0: b"vllm cache_salt " + salt.encode()} if salt and not known else None)
            known.extend(more)
        return known
