"""The keys of a request's chunks: one chain a part (a rank's pages of one KV group). Named by token
ids and what else KV depends on, never by the engine's own hashes, which differ between versions."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ._vllm_adapters import adapter_name, named as adapter_named
from ._vllm_identity import named
from ._vllm_step import Described
from .identity import Domain, Identity, key_array, keys, token_array

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.request import Request


class Names:
    """What all keys of one engine and epoch are made of."""

    def __init__(self, ranks: Sequence[Described], epoch: str, domain: Domain) -> None:
        self.parts: list[Identity] = [named(f, epoch) for rank in ranks for f in rank.fields]
        self.chunk_tokens = ranks[0].chunk_tokens
        self.block_tokens = ranks[0].block_tokens
        self.epoch = epoch
        self.domain = domain

    def chunk_blocks(self, group: int) -> int:
        return self.chunk_tokens // self.block_tokens[group]


def images_named(config: VllmConfig) -> bool:
    """Whether an image is called by what is in it. With both of its caches off vLLM numbers images
    instead, from the start of each process on."""
    multimodal = getattr(config.model_config, "multimodal_config", None)
    return bool(config.cache_config.enable_prefix_caching
                or getattr(multimodal, "mm_processor_cache_gb", 1) > 0)


def named_by_tokens(request: Request, images: bool = True) -> bool:
    """Whether tokens and extras() say all that the KV of a request depends on, for its whole life:
    embeddings have no name, nor have adapters whose files are elsewhere or not read yet, and a
    session may take tokens back. images: as images_named() says."""
    return (request.prompt_embeds is None and request.prompt_token_ids is not None
            and (images or not request.mm_features)
            and not getattr(request, "resumable", False)
            and (request.lora_request is None or bool(adapter_named(request.lora_request))))


def extras(request: Request, first: int, end: int, chunk_tokens: int) -> dict[int, list[bytes]]:
    """What belongs to the names of chunks first to end - 1 beside their tokens, by the place in
    that range. What the first chunk of a chain says counts for all that follow."""
    found: dict[int, list[bytes]] = {}
    if first == 0:
        whole = []
        if request.cache_salt:
            whole.append(_bytes(f"vllm cache_salt {request.cache_salt}"))
        if request.lora_request is not None:
            # One that has lost its name since is named as nothing else ever.
            whole.append(adapter_name(request.lora_request) or b"vllm lora " + uuid.uuid4().bytes)
        if whole:
            found[0] = whole
    for item in request.mm_features or ():
        at, size = item.mm_position.offset, item.mm_position.length
        for chunk in range(max(at // chunk_tokens, first),
                           min(-(-(at + size) // chunk_tokens), end)):
            found.setdefault(chunk - first, []).append(_bytes(
                f"vllm mm {item.modality} {item.identifier} {at - chunk * chunk_tokens} {size}"))
    return found


def _bytes(text: str) -> bytes:
    """Of any text that a client may give, halves of characters too."""
    return text.encode("utf-8", "surrogatepass")


class Chain:
    """The keys of one request, computed as they are asked for. Any thread."""

    def __init__(self, names: Names, request: Request) -> None:
        self.names = names
        self._request = request
        self._lock = threading.Lock()
        self._known = np.empty((0, len(names.parts), 32), np.uint8)

    def upto(self, chunks: int) -> np.ndarray:
        """(chunks, parts, 32) of the first full chunks."""
        with self._lock:
            first = len(self._known)
            if first < chunks:
                size = self.names.chunk_tokens
                more = self._keys(first, self._request.all_token_ids[first * size:chunks * size])
                self._known = np.concatenate([self._known, more])
            return self._known[:chunks]

    def tail(self, tokens: int) -> np.ndarray:
        """(1, parts, 32): the chunk that the first `tokens` tokens end in, where it is not full."""
        size = self.names.chunk_tokens
        chunks = tokens // size
        self.upto(chunks)
        with self._lock:
            return self._keys(chunks, self._request.all_token_ids[chunks * size:tokens])

    def parents(self, first: int) -> np.ndarray | None:
        return self.upto(first)[first - 1] if first else None

    def _keys(self, first: int, tokens: Any) -> np.ndarray:
        names = self.names
        array = token_array(list(tokens))
        chunks = -(-len(array) // names.chunk_tokens)
        beside = extras(self._request, first, first + chunks, names.chunk_tokens)
        made = np.empty((chunks, len(names.parts), 32), np.uint8)
        for part, identity in enumerate(names.parts):
            parent = self._known[first - 1, part].tobytes() if first else None
            made[:, part] = key_array(keys(identity, array, domain=names.domain, parent=parent,
                                           extras=beside))
        return made
