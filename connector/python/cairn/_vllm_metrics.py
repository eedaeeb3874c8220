"""What a connector has moved, as vLLM's statistics of a KV connector: sums that it adds up over
ranks and steps, shows in its log and serves to Prometheus on its own endpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (KVConnectorPromMetrics,
                                                                  KVConnectorStats)

if TYPE_CHECKING:
    from prometheus_client import Counter

    from vllm.config import VllmConfig

# Name, and what it counts. Seconds are summed over the calls, which may overlap.
COUNTERS = {
    "loads": "loads of KV: one a request, and one of all that a step waits for",
    "load_bytes": "bytes of KV asked for by loads",
    "load_seconds": "time from the begin of a load to the step that saw its end",
    "load_misses": "chunks' parts that were promised and did not arrive",
    "saves": "calls that saved KV",
    "save_bytes": "bytes of KV given to saves",
    "save_seconds": "time from the begin of a save to the step that saw its end",
    "save_misses": "chunks' parts that the store did not take",
    "saves_refused": "runs of chunks that a worker did not save: too many bytes were on their way, "
                     "or a load that they were computed beside had failed",
    "saves_skipped": "chunks that were not saved since too many bytes were on their way",
    "lookups": "prompts that were looked up",
    "lookups_late": "requests that did not wait for what is held any longer",
    "lookups_failed": "calls that asked what is held and ended with an error",
    "lookups_refused": "prompts that were looked up while the node turned this engine away",
    "lookup_hits": "prompts of which a part was held",
    "lookup_seconds": "time that requests waited for lookups",
    "hit_tokens": "tokens promised to the engine",
}


@dataclass
class Stats(KVConnectorStats):
    """data: name of a counter -> its growth."""

    def add(self, name: str, amount: float) -> None:
        self.data[name] = self.data.get(name, 0) + amount

    def flight(self, load: bool, size: int, seconds: float, misses: int) -> None:
        kind = "load" if load else "save"
        for name, amount in ((kind + "s", 1), (kind + "_bytes", size), (kind + "_seconds", seconds),
                             (kind + "_misses", misses)):
            self.add(name, amount)

    def reset(self) -> None:
        self.data = {}

    def aggregate(self, other: KVConnectorStats) -> Stats:
        for name, amount in other.data.items():
            self.add(name, amount)
        return self

    def reduce(self) -> dict[str, int | float]:
        """For the log: what moved, and how fast."""
        said: dict[str, int | float] = {
            name: self.data[name] for name in COUNTERS
            if self.data.get(name) and not name.endswith("_seconds")}
        for kind in ("load", "save"):
            if self.data.get(kind + "_seconds"):
                rate = self.data[kind + "_bytes"] / self.data[kind + "_seconds"] / 1e9
                said[kind + "_GB_per_second"] = round(rate, 2)
        return said

    def is_empty(self) -> bool:
        return not any(self.data.values())


class PromMetrics(KVConnectorPromMetrics):
    """Each counter as vllm:cairn_<name>_total."""

    def __init__(self, vllm_config: VllmConfig, metric_types: dict[Any, Any],
                 labelnames: list[str], per_engine_labelvalues: dict[int, list[object]]) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._counters: dict[str, dict[int, Counter]] = {}
        for name, what in COUNTERS.items():
            family = self._counter_cls(name=f"vllm:cairn_{name}", documentation=f"Cairn: {what}.",
                                       labelnames=labelnames)
            self._counters[name] = {engine: family.labels(*values)
                                    for engine, values in per_engine_labelvalues.items()}

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name, amount in transfer_stats_data.items():
            if amount and name in self._counters:
                self._counters[name][engine_idx].inc(amount)
