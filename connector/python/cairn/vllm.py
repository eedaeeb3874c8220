"""vLLM with Cairn behind it: a KV connector for an embedded store or a node's.

    python -m vllm.entrypoints.openai.api_server --model MODEL --kv-transfer-config '{
        "kv_connector": "CairnConnector", "kv_connector_module_path": "cairn.vllm",
        "kv_role": "kv_both", "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"uri": "unix:/run/cairn/cairn.sock"}}'

Whole blocks of all layers are opaque pages: what a step computes is gathered into the store while
the next steps run, and what a request can skip is scattered from it while others are computed. Any
failure is a miss: the engine computes those tokens again. Nothing here raises into the engine once
it runs; a wrong option stops it at start with a sentence.

This file has only the hooks. What is promised, saved and kept is _vllm_scheduler.py; bytes are
moved by _vllm_worker.py; the options are those of _vllm_options.py, and what a single request may
ask for is in _vllm_controls.py."""

from __future__ import annotations

import functools
import weakref
from typing import TYPE_CHECKING, Any, TypeVar
from collections.abc import Callable, Iterable

from vllm.distributed.kv_transfer.kv_connector.v1.base import (KVConnectorBase_V1,
                                                               KVConnectorHandshakeMetadata,
                                                               KVConnectorMetadata,
                                                               KVConnectorRole, SupportsHMA)
from vllm.logger import init_logger

from ._vllm_compat import hit_sources, running_model, watch_worker
from ._vllm_metrics import PromMetrics, Stats
from ._vllm_options import options_of
from ._vllm_scheduler import SchedulerSide
from ._vllm_sleep import settle_before_sleep
from ._vllm_step import Report, Step
from ._vllm_weights import Weights
from ._vllm_worker import WorkerSide

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = init_logger("vllm.cairn")
F = TypeVar("F", bound=Callable[..., Any])

_live: weakref.WeakSet[CairnConnector] = weakref.WeakSet()


def connectors() -> list[CairnConnector]:
    """Those of this process: for tools and tests that read their `totals`."""
    return list(_live)


def _answers(default: Any = None) -> Callable[[F], F]:
    """The engine gets `default` where a hook fails, and a line in its log."""
    def around(hook: F) -> F:
        @functools.wraps(hook)
        def safe(self: CairnConnector, *args: Any, **kwargs: Any) -> Any:
            try:
                return hook(self, *args, **kwargs)
            except Exception:
                logger.exception("cairn: %s failed; going on without", hook.__name__)
                return default() if callable(default) else default
        return safe  # type: ignore[return-value]
    return around


class CairnConnector(KVConnectorBase_V1, SupportsHMA):
    """Either half of it: which one, vLLM's role says."""

    scheduler: SchedulerSide
    worker: WorkerSide

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole,
                 kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self.totals = Stats()
        self._closed = False
        options = options_of(vllm_config)
        if role == KVConnectorRole.SCHEDULER:
            self.scheduler = SchedulerSide(vllm_config, kv_cache_config, options)
            self._recompute(vllm_config.kv_transfer_config)
        else:
            self.worker = WorkerSide(vllm_config, kv_cache_config, options)
            self._weights = Weights()
            watch_worker()
            settle_before_sleep(self.worker)
        _live.add(self)

    @staticmethod
    def _recompute(transfer: Any) -> None:
        """vLLM reads the policy after it has made its connector."""
        if transfer.kv_load_failure_policy != "recompute":
            logger.warning("cairn: kv_load_failure_policy is \"%s\", which would fail a request "
                           "whose KV is gone when it is read; it is taken as \"recompute\" (give "
                           "that, and inside a MultiConnector give it to that one)",
                           transfer.kv_load_failure_policy)
            transfer.kv_load_failure_policy = "recompute"

    @property
    def requires_kv_delivery(self) -> bool:
        return False

    @_answers()
    def shutdown(self) -> None:
        closed, self._closed = self._closed, True
        if not closed:
            (self.scheduler if self.role == KVConnectorRole.SCHEDULER else self.worker).shutdown()

    # --- worker ---

    @_answers()
    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        self.worker.register_kv_caches(kv_caches)
        self._weights.watch(running_model(), self._vllm_config)

    @_answers()
    def get_handshake_metadata(self) -> KVConnectorHandshakeMetadata | None:
        return self.worker.get_handshake_metadata()

    @_answers()
    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        if isinstance(kv_connector_metadata, Step):
            self.worker.handle_preemptions(kv_connector_metadata)

    @_answers()
    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        if isinstance(connector_metadata, Step):
            if self._weights.bind(connector_metadata):
                self.worker.lose_loads()
            self.worker.bind(connector_metadata)

    @_answers()
    def clear_connector_metadata(self) -> None:
        super().clear_connector_metadata()
        self.worker.clear()

    @_answers()
    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        self.worker.start_load_kv()

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any,
                      **kwargs: Any) -> None:
        pass

    @_answers()
    def wait_for_save(self) -> None:
        self.worker.wait_for_save()

    @_answers((None, None))
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        return self.worker.get_finished(finished_req_ids)

    def get_transfer_results(self, finished_req_ids: set[str]) -> Any:
        try:
            return self.worker.get_transfer_results(finished_req_ids)
        except Exception:
            logger.exception("cairn: what has ended is told later")
            from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults
            return KVConnectorTransferResults()

    @_answers(set)
    def get_block_ids_with_load_errors(self) -> set[int]:
        return self.worker.get_block_ids_with_load_errors()

    @_answers()
    def build_connector_worker_meta(self) -> Report | None:
        return self._weights.tell(self.worker.build_connector_worker_meta())

    # --- both ---

    @_answers()
    def get_kv_connector_stats(self) -> Stats | None:
        if self.role == KVConnectorRole.SCHEDULER:
            stats: Stats | None = self.scheduler.take_stats()
        else:
            stats = self.worker.get_kv_connector_stats()
        if stats is None or stats.is_empty():
            return None
        self.totals.aggregate(stats)
        return stats

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Stats | None:
        return Stats(data=data or {})

    @classmethod
    def build_prom_metrics(cls, vllm_config: Any, metric_types: Any, labelnames: Any,
                           per_engine_labelvalues: Any) -> PromMetrics:
        return PromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    # --- scheduler ---

    @_answers()
    def set_xfer_handshake_metadata_pp_aware(self, metadata: dict[tuple[int, int], Any]) -> None:
        self.scheduler.set_described(metadata.values())

    @_answers()
    def set_xfer_handshake_metadata(self, metadata: dict[int, Any]) -> None:
        self.scheduler.set_described(metadata.values())

    @_answers()
    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        self.scheduler.bind_pool(gpu_block_pool)

    @_answers()
    def on_new_request(self, request: Request) -> None:
        self.scheduler.on_new_request(request)

    @_answers((0, False))
    def get_num_new_matched_tokens(self, request: Request,
                                   num_computed_tokens: int) -> tuple[int | None, bool]:
        return self.scheduler.matched(request, num_computed_tokens)

    @_answers()
    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks,
                                 num_external_tokens: int) -> None:
        self.scheduler.allocated(request, blocks, num_external_tokens)

    @_answers(dict)
    def get_external_cache_hit_sources(self, request: Request,
                                       num_external_tokens: int) -> dict[Any, int]:
        return hit_sources(num_external_tokens, self.scheduler.near)

    @_answers(Step)
    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return self.scheduler.build(scheduler_output)

    @_answers()
    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        self.scheduler.ended(connector_output)

    @_answers((False, None))
    def request_finished(self, request: Request,
                         block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return False, self.scheduler.finished(request)

    def request_finished_all_groups(
            self, request: Request,
            block_ids: tuple[list[int], ...]) -> tuple[bool, dict[str, Any] | None]:
        return self.request_finished(request, [])

    @_answers(False)
    def has_pending_push_work(self) -> bool:
        return self.scheduler.busy()

    @_answers(False)
    def has_pending_block_frees(self) -> bool:
        return self.scheduler.frees()

    @_answers(list)
    def take_events(self) -> Iterable[Any]:
        return self.scheduler.take_events()

    @_answers(False)
    def reset_cache(self) -> bool | None:
        return self.scheduler.reset()
