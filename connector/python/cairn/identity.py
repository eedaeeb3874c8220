"""What made the KV (Identity) and the names of its chunks (keys)."""

from __future__ import annotations

import contextlib
import ctypes
from array import array as packed
from pathlib import Path
from typing import Any
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from . import _native
from .errors import InvalidError, error


class PublicDomain:
    """The domain of everybody; its only instance is cairn.PUBLIC."""

    def __repr__(self) -> str:
        return "cairn.PUBLIC"


PUBLIC = PublicDomain()
Domain = bytes | PublicDomain
Extras = Mapping[int, "bytes | str | Sequence[bytes | str]"]


def domain_of_file(path: Any) -> Domain:
    """The domain of the secret bytes in a file, which options call domain_key_file."""
    try:
        key = Path(path).read_bytes()
    except (OSError, TypeError) as why:
        raise InvalidError(f"domain_key_file cannot be read: {why}") from why
    if not 1 <= len(key) <= 64:
        raise InvalidError(f"domain_key_file has {len(key)} bytes; it must have 1 to 64")
    return key


def _field_text(name: str, value: Any) -> bytes:
    if isinstance(value, bool):
        value = "true" if value else "false"
    if not isinstance(value, (str, int)):
        raise TypeError(f"identity field {name} is a {type(value).__name__}; give str, int or bool")
    return str(value).encode()


class Identity:
    """Everything that made the KV. Two that differ anywhere never share a chunk.

    Known fields (chunking/README.md lists them) are checked; others are free key=value pairs. A
    field that is None is left out.
    """

    def __init__(self, *, model: str, chunk_tokens: int, **fields: str | int | bool | None) -> None:
        self._handle: int | None = None
        given = {"model": model, "chunk_tokens": chunk_tokens, **fields}
        self.fields = {k: _field_text(k, v).decode() for k, v in given.items() if v is not None}
        table = (_native.Field * len(self.fields))(
            *(_native.Field(k.encode(), v.encode()) for k, v in self.fields.items()))
        for name, value in self.fields.items():
            if "\0" in name or "\0" in value:
                raise InvalidError(f"identity field {name!r} holds a zero byte")
        handle = ctypes.c_void_p()
        why = ctypes.create_string_buffer(512)
        status = _native.lib().cairn_identity_create(
            table, len(table), ctypes.byref(handle), why, len(why))
        if status < 0:
            raise error(status, why.value.decode() or "the identity was not accepted")
        self._handle = handle.value
        digest = ctypes.create_string_buffer(32)
        _native.lib().cairn_identity_fingerprint(handle, digest)
        self.fingerprint: bytes = digest.raw
        self.chunk_tokens = int(chunk_tokens)

    @property
    def canonical(self) -> bytes:
        """The record whose SHA-256 is the fingerprint."""
        size = ctypes.c_size_t()
        at = _native.lib().cairn_identity_canonical(self._handle, ctypes.byref(size))
        return ctypes.string_at(at, size.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and other.fingerprint == self.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"cairn.Identity({', '.join(f'{k}={v!r}' for k, v in self.fields.items())})"

    def __reduce__(self) -> Any:
        return _identity_of, (self.fields,)

    def __del__(self) -> None:
        # Modules may be gone when an interpreter that ends comes to this.
        if getattr(self, "_handle", None) is not None and getattr(_native, "lib", None):
            _native.lib().cairn_identity_destroy(self._handle)
            self._handle = None


def _identity_of(fields: dict[str, Any]) -> Identity:
    return Identity(**fields)


class Keys(list):  # type: ignore[type-arg]
    """A list of 32-byte keys that remembers whose they are and which key came before the first.
    Slices remember too."""

    __slots__ = ("identity", "parent")

    def __init__(self, keys: Iterable[bytes], identity: Identity | None = None,
                 parent: bytes | None = None) -> None:
        super().__init__(keys)
        self.identity = identity
        self.parent = parent

    def __getitem__(self, at: Any) -> Any:
        if not isinstance(at, slice):
            return super().__getitem__(at)
        start, _, step = at.indices(len(self))
        before = None
        if step == 1:
            before = super().__getitem__(start - 1) if start > 0 else self.parent
        return Keys(super().__getitem__(at), self.identity, before)

    def __reduce__(self) -> Any:
        return Keys, (list(self), self.identity, self.parent)


def key_array(keys: Any, what: str = "keys") -> np.ndarray:
    """(n, 32) uint8, contiguous, of a list of 32-byte keys or of such an array."""
    if isinstance(keys, np.ndarray):
        if keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != 32:
            raise InvalidError(f"{what} is an array {keys.shape} of {keys.dtype}; "
                               "give (n, 32) of uint8 or a list of 32-byte keys")
        return np.ascontiguousarray(keys)
    if isinstance(keys, (bytes, bytearray, memoryview, str)):
        raise TypeError(f"{what} is one {type(keys).__name__}; give a list of 32-byte keys")
    keys = list(keys)
    for i, key in enumerate(keys):
        if not isinstance(key, (bytes, bytearray)):
            raise TypeError(f"{what}[{i}] is a {type(key).__name__}; a key is 32 bytes")
        if len(key) != 32:
            raise InvalidError(f"{what}[{i}] has {len(key)} bytes; a key has 32")
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 32)


def _domain(domain: Domain) -> _native.Domain:
    if isinstance(domain, PublicDomain):
        return _native.Domain(None, 0, b"public")
    if not isinstance(domain, (bytes, bytearray)):
        raise TypeError(f"domain is a {type(domain).__name__}; give key bytes or cairn.PUBLIC")
    if not 1 <= len(domain) <= 64:
        raise InvalidError(f"the domain key has {len(domain)} bytes; it may have 1 to 64")
    return _native.Domain(bytes(domain), len(domain), None)


def _extras(extras: Extras | None) -> Any:
    rows: list[tuple[int, bytes]] = []
    for chunk in sorted(extras or {}):
        if not 0 <= chunk < 2**32:
            raise InvalidError(f"extras names chunk {chunk}; the first is 0")
        given = (extras or {})[chunk]
        for data in [given] if isinstance(given, (bytes, bytearray, str)) else given:
            rows.append((chunk, data.encode() if isinstance(data, str) else bytes(data)))
    table = (_native.Extra * len(rows))()
    for row, (chunk, data) in zip(table, rows):
        row.chunk, row.data, row.len = chunk, data, len(data)
    return table


def _parent(parent: bytes | None) -> bytes | None:
    if parent is not None and (not isinstance(parent, (bytes, bytearray)) or len(parent) != 32):
        raise InvalidError("parent is not a key of 32 bytes")
    return None if parent is None else bytes(parent)


def token_array(tokens: Any) -> np.ndarray:
    """uint32, contiguous."""
    if isinstance(tokens, list):
        # A sixth of the time of what follows, which then says what is wrong with them.
        with contextlib.suppress(TypeError, OverflowError):
            return np.frombuffer(packed("I", tokens), np.uint32)
    if hasattr(tokens, "numpy") and hasattr(tokens, "data_ptr"):
        tokens = tokens.numpy()
    array = np.asarray(tokens)
    if array.ndim != 1:
        raise InvalidError(f"tokens has {array.ndim} dimensions; give one row of token ids")
    if array.size == 0:
        return np.empty(0, np.uint32)
    if array.dtype.kind not in "iu":
        raise TypeError(f"tokens holds {array.dtype}; token ids are whole numbers")
    if array.dtype != np.uint32 and (int(array.min()) < 0 or int(array.max()) > 0xFFFFFFFF):
        raise InvalidError("a token id is below 0 or above 4294967295")
    return np.ascontiguousarray(array, np.uint32)


def _named(identity: Identity, out: np.ndarray, count: int, parent: bytes | None) -> Keys:
    raw = out.tobytes()
    return Keys((raw[i:i + 32] for i in range(0, 32 * count, 32)), identity, parent)


def keys(identity: Identity, tokens: Any, *, domain: Domain, parent: bytes | None = None,
         extras: Extras | None = None) -> Keys:
    """Keys of a prompt: one a chunk of identity.chunk_tokens tokens, a shorter one for the tail.

    parent: key of the chunk before tokens[0]. extras: for a chunk by its number here, bytes that
    belong to its name beside its tokens (hashes of images, a salt).
    """
    array = token_array(tokens)
    cap = -(-len(array) // identity.chunk_tokens)
    out = np.empty((cap, 32), np.uint8)
    table = _extras(extras)
    count = ctypes.c_size_t()
    before = _parent(parent)
    status = _native.lib().cairn_keys(
        identity._handle, _domain(domain), before, array.ctypes.data, len(array),
        ctypes.addressof(table), len(table), out.ctypes.data, cap, ctypes.byref(count))
    _native.check(status, "keys")
    return _named(identity, out, count.value, before)


def keys_from_hashes(identity: Identity, hashes: Any, *, domain: Domain,
                     parent: bytes | None = None, extras: Extras | None = None) -> Keys:
    """The same for engines that hash full blocks themselves: a list of digests of one length, or an
    array (n, length) of uint8."""
    if isinstance(hashes, np.ndarray):
        if hashes.ndim != 2 or hashes.dtype != np.uint8:
            raise InvalidError(f"hashes is an array {hashes.shape} of {hashes.dtype}; "
                               "give (n, length) of uint8 or a list of bytes")
        count, size, raw = hashes.shape[0], hashes.shape[1], hashes.tobytes()
    else:
        listed = [bytes(h) for h in hashes]
        count, size, raw = len(listed), len(listed[0]) if listed else 32, b"".join(listed)
        if any(len(h) != size for h in listed):
            raise InvalidError("the hashes are not all of one length")
    out = np.empty((count, 32), np.uint8)
    table = _extras(extras)
    written = ctypes.c_size_t()
    before = _parent(parent)
    status = _native.lib().cairn_keys_from_hashes(
        identity._handle, _domain(domain), before, raw, size, count,
        ctypes.addressof(table), len(table), out.ctypes.data, count, ctypes.byref(written))
    _native.check(status, "keys_from_hashes")
    return _named(identity, out, written.value, before)
