"""What LMCache's key strings are called in Cairn.

LMCache names a chunk `model@rank@object group@chunk hash[@salt]`. What else made the bytes (type,
layout, weights, conversion, chunk size) is not in that, so it comes from the configuration."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib import metadata
from typing import Any

import numpy as np

from .errors import InvalidError
from .identity import PUBLIC, Domain, Identity, keys_from_hashes

REQUIRED = {
    "chunk_tokens": "the server's --chunk-size, 256 if it has none",
    "kv_dtype": "the engine's KV type, as \"bfloat16\"",
    "layout": "the engine, its version, attention backend and block size, as "
              "\"vllm 0.28.0 CPU_ATTN 128\"",
    "weights": "the revision or a digest of the weights",
    "serde": "the \"serde\" of this adapter's JSON, \"none\" if it has none",
}
HASH_BYTES = 16  # shorter hashes name two things by chance
MODELS = 64
KEYS = 16384  # LMCache asks for a chunk, then gets it: its name is not computed twice


class Names:
    """Safe to use from many threads."""

    def __init__(self, identity: Any, domain: Domain = PUBLIC) -> None:
        self._fields = _checked(identity)
        self._domain = domain
        self.identity = lru_cache(MODELS)(self._identity)
        self._name = lru_cache(KEYS)(self._named)
        self.identity("any")  # what is wrong in a field is said at start

    def of(self, texts: Sequence[str]) -> tuple[np.ndarray, list[Identity | None]]:
        """Keys (n, 32) and the identity of each. What is no key of LMCache's has none."""
        keys = np.zeros((len(texts), 32), np.uint8)
        whose: list[Identity | None] = []
        for row, text in zip(keys, texts):
            name, identity = self._name(text)
            whose.append(identity)
            if identity is not None:
                row[:] = np.frombuffer(name, np.uint8)
        return keys, whose

    def _identity(self, model: str) -> Identity:
        return Identity(model=model, **self._fields)

    def _named(self, text: str) -> tuple[bytes, Identity | None]:
        model = _model(text)
        if model is None:
            return b"", None
        identity = self.identity(model)
        digest = hashlib.sha256(text.encode()).digest()
        return keys_from_hashes(identity, [digest], domain=self._domain)[0], identity


def _model(text: str) -> str | None:
    parts = text.split("@")
    if len(parts) not in (4, 5) or not parts[0] or len(parts[3]) < 2 * HASH_BYTES:
        return None
    return parts[0]


def _checked(identity: Any) -> dict[str, Any]:
    if not isinstance(identity, dict):
        identity = {}
    for name in ("model", "lmcache"):
        if name in identity:
            raise InvalidError(f"\"identity\" has {name!r}, which LMCache itself tells; remove it")
    missing = [f"{n!r}: {what}" for n, what in REQUIRED.items() if identity.get(n) in (None, "")]
    if missing:
        raise InvalidError("LMCache does not name all that made its bytes, so that \"identity\" in "
                           f"adapter_params must; it lacks {'; '.join(missing)}")
    if str(identity["kv_dtype"]).lower() == "auto":
        raise InvalidError("kv_dtype is \"auto\", which means another type for another model; "
                           "name the type, as \"bfloat16\"")
    return {**identity, "lmcache": _version()}


def _version() -> str:
    """LMCache may order the same bytes otherwise in its next version."""
    try:
        return metadata.version("lmcache")
    except metadata.PackageNotFoundError as why:
        raise InvalidError("lmcache is not installed as a package, so that its version is not "
                           "known: install it with pip") from why
