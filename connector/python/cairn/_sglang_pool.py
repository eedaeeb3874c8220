"""One pool of an SGLang rank in the store: names, gets, puts and lookups of its pages."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _native
from ._sglang_pages import AddressedPages, CopiedPages, Pages, starts
from .buffers import runs
from .identity import PUBLIC, Domain, Identity
from .store import Store

PUBLIC_KEY = hashlib.sha256(b"cairn public domain 1").digest()
ASKS_MAX = 256  # lookups to find which of a pool's pages are held


class Names:
    """Keys of pages: SGLang's hash of a page, which says all tokens before it, as a chunk of its
    own (chunking/README.md, kind 2 without a parent). A call may start at any page of a prompt, so
    the keys are no chain."""

    def __init__(self, identity: Identity, domain: Domain) -> None:
        key = PUBLIC_KEY if domain is PUBLIC else bytes(domain)  # type: ignore[arg-type]
        block = key.ljust(64, b"\0")
        self._inner = hashlib.sha256(bytes(b ^ 0x36 for b in block))
        self._outer = hashlib.sha256(bytes(b ^ 0x5C for b in block))
        numbers = np.array([2, 32, 0, len(key)], "<u4").tobytes()
        self._inner.update(bytes(32) + identity.fingerprint + numbers)

    def key(self, page: str) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(digest_of(page))
        outer.update(inner.digest())
        return outer.digest()


def digest_of(page: str) -> bytes:
    """SGLang's page hashes are SHA-256 in hexadecimal; another name is hashed first."""
    if len(page) == 64:
        try:
            return bytes.fromhex(page)
        except ValueError:
            pass
    return hashlib.sha256(b"page name\0" + page.encode()).digest()


class StoredPool:
    """pages: how its bytes are reached. identities: one a part of a page, that is one unless
    the heads are split. All calls answer one entry a page."""

    def __init__(self, pages: Pages, identities: list[Identity], domain: Domain) -> None:
        self.pages = pages
        self.identities = identities
        self._names = [Names(identity, domain) for identity in identities]

    def keys(self, names: Sequence[str]) -> np.ndarray:
        """(pages, parts, 32)."""
        raw = b"".join(name.key(page) for page in names for name in self._names)
        return np.frombuffer(raw, np.uint8).reshape(len(names), len(self._names), 32)

    def held(self, store: Store, names: Sequence[str]) -> int:
        """How many pages from the start are held."""
        keys = self.keys(names)
        return store.lookup(keys.reshape(-1, 32)) // len(self._names)

    def held_each(self, store: Store, names: Sequence[str], until: float) -> list[bool]:
        """Which pages are held, the last ones first: those decide how long a prefix may be. What
        too many gaps, or the time, leave unknown is said not to be held."""
        keys = self.keys(names)[::-1].copy()
        found = [False] * len(names)
        at = 0
        for _ in range(ASKS_MAX):
            if at >= len(names) or time.monotonic() > until:
                break
            count = store.lookup(keys[at:].reshape(-1, 32)) // len(self._names)
            for i in range(at, at + count):
                found[len(names) - 1 - i] = True
            at += count + 1
        return found

    def get(self, store: Store, names: Sequence[str], indices: Any,
            timeout: float) -> list[bool]:
        first = starts(self.pages.pool, indices, len(names))
        if first is None or not len(names):
            return [False] * len(names)
        if isinstance(self.pages, CopiedPages):
            return self._get_copies(store, self.pages, names, first, timeout)
        iov, counts = self.pages.runs(first)
        stream = self.pages.stream()
        return self._each(iov, counts, lambda rows, iov, counts, part: store.get_runs(
            rows, iov, counts, identity=self.identities[part], timeout=timeout,
            cuda_stream=stream), names)

    def put(self, store: Store, names: Sequence[str], indices: Any, before: str | None,
            timeout: float) -> list[bool]:
        first = starts(self.pages.pool, indices, len(names))
        if first is None or not len(names):
            return [False] * len(names)
        if isinstance(self.pages, CopiedPages):
            taken = [self.pages.taken(int(at)) for at in first]
            iov, counts, streams, keep = runs(taken, "pages", False)
        else:
            iov, counts = self.pages.runs(first)
            streams, keep = self.pages.stream(), None
        chain = list(names[:-1]) if before is None else [before, *names[:-1]]
        parents = self.keys(chain)

        def put_part(rows: np.ndarray, iov: np.ndarray, counts: np.ndarray,
                     part: int) -> np.ndarray:
            above = np.zeros_like(rows)
            above[len(rows) - len(parents):] = parents[:, part]
            return store.put_runs(rows, iov, counts, parents=above, timeout=timeout,
                                  identity=self.identities[part], cuda_stream=streams)

        stored = self._each(iov, counts, put_part, names)
        del keep
        return stored

    def _each(self, iov: np.ndarray, counts: np.ndarray, call: Any,
              names: Sequence[str]) -> list[bool]:
        """One call of the library a part; a page is good if all its parts are."""
        parts = len(self.identities)
        keys = self.keys(names)
        pieces = iov.reshape(len(names), parts, -1, 2) if parts > 1 else None
        good = np.ones(len(names), bool)
        for part in range(parts):
            some = iov if pieces is None else pieces[:, part].reshape(-1, 2)
            status = call(np.ascontiguousarray(keys[:, part]), some, counts[:len(names)], part)
            good &= (status == _native.OK) | (status == _native.EXISTS)
        return [bool(g) for g in good]

    def _get_copies(self, store: Store, pages: CopiedPages, names: Sequence[str],
                    first: np.ndarray, timeout: float) -> list[bool]:
        blanks = [pages.blank() for _ in names]
        iov, counts, streams, keep = runs(blanks, "pages", True)
        good = self._each(iov, counts, lambda rows, iov, counts, part: store.get_runs(
            rows, iov, counts, identity=self.identities[part], timeout=timeout,
            cuda_stream=streams), names)
        for at, page, ok in zip(first, blanks, good):
            if ok:
                pages.given(int(at), page)
        del keep
        return good

    @property
    def page_bytes(self) -> int:
        return self.pages.page_bytes // self.pages.parts

    @property
    def without_copy(self) -> bool:
        return isinstance(self.pages, AddressedPages)
