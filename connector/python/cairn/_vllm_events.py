"""KV events: which of the engine's blocks Cairn has taken, told where the engine publishes events
(kv_events_config), so that a router can send a prompt to whom its beginning is near."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_events import BlockStored
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

from ._vllm_step import Transfer

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.request import Request

MEDIUM = "cairn"
MOST = 4096  # events that nobody has taken


class Events:
    def __init__(self, config: VllmConfig) -> None:
        given = getattr(config, "kv_events_config", None)
        self._on = bool(given is not None and given.enable_kv_cache_events)
        self.hash_tokens = 0  # tokens a hash of the engine
        self._planned: dict[int, BlockStored] = {}
        self._told: list[BlockStored] = []

    def planned(self, save: Transfer, request: Request, start: int, end: int) -> None:
        """A save of the tokens from start to end begins."""
        if not self._on or not self.hash_tokens:
            return
        hashes = request.block_hashes
        first, last = start // self.hash_tokens, end // self.hash_tokens
        if last > len(hashes):
            return
        lora = request.lora_request
        self._planned[save.id] = BlockStored(
            block_hashes=[maybe_convert_block_hash(h) for h in hashes[first:last]],
            parent_block_hash=maybe_convert_block_hash(hashes[first - 1]) if first else None,
            token_ids=list(request.all_token_ids[start:end]), block_size=self.hash_tokens,
            lora_id=lora.adapter_id if lora else None, medium=MEDIUM,
            lora_name=lora.name if lora else None)

    def ended(self, whole: list[Transfer], torn: list[Transfer]) -> None:
        for save in torn:
            self._planned.pop(save.id, None)
        for save in whole:
            event = self._planned.pop(save.id, None)
            if event is not None and len(self._told) < MOST:
                self._told.append(event)

    def forget(self) -> None:
        """What the engine still calls so is not what Cairn would find. That its own blocks are
        cleared the engine tells."""
        self._planned.clear()
        self._told.clear()

    def take(self) -> list[Any]:
        told, self._told = self._told, []
        return told
