"""libcairn.so: where it is, its functions and the layout of its structs (connector/cairn.h)."""

from __future__ import annotations

import ctypes
import json
import os
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from importlib import metadata
from pathlib import Path
from typing import Any
from collections.abc import Callable
from urllib.parse import unquote, urlparse

import numpy as np

from .errors import NotFoundError, VersionError, error

OK, EXISTS, MISS, TOOBIG = 0, -2, -1, -12
STATE, INVAL = -41, -40
PUT_REPLACE = 1
GET_RANGE = 1
MEM_CUDA = 1
NO_LIMIT_NS = 10**18  # about 30 years; room for the library to add the time of day
ABI = "0.1"

# Arrays of these are built and read by numpy a batch at a time: no Python a key.
KEY = np.dtype((np.uint8, 32))
IOV = np.dtype([("base", np.uint64), ("len", np.uint64)])
_SGL = [("iov", np.uint64), ("count", np.uint32), ("mem", np.uint32), ("stream", np.uint64)]
PUT = np.dtype([("key", KEY), ("parent", KEY), *_SGL, ("fingerprint", np.uint64),
                ("side", np.uint64), ("side_len", np.uint32), ("flags", np.uint32),
                ("expires_ns", np.uint64), ("status", np.int32), ("cause", np.int32)], align=True)
GET = np.dtype([("key", KEY), *_SGL, ("fingerprint", np.uint64), ("offset", np.uint64),
                ("flags", np.uint32), ("status", np.int32), ("cause", np.int32)], align=True)
assert (IOV.itemsize, PUT.itemsize, GET.itemsize) == (16, 128, 88)


class Field(ctypes.Structure):
    _fields_ = [("name", c_char_p), ("value", c_char_p)]


class Domain(ctypes.Structure):
    _fields_ = [("key", c_char_p), ("key_len", c_size_t), ("name", c_char_p)]


class Extra(ctypes.Structure):
    _fields_ = [("chunk", c_uint32), ("data", c_char_p), ("len", c_size_t)]


VALUE_MAX = 64 << 20  # no store takes a larger one


class Call(ctypes.Structure):
    _fields_ = [("count", c_size_t), ("tag", c_void_p)]


class Completion(ctypes.Structure):
    _fields_ = [("tag", c_void_p), ("status", c_int), ("hits", c_size_t)]


_KEYS = [c_void_p, POINTER(Domain), c_void_p, c_void_p]
_EXTRAS_AND_OUT = [c_void_p, c_size_t, c_void_p, c_size_t, POINTER(c_size_t)]
_TEXT = [c_char_p, c_size_t]
_SUBMIT = [c_void_p, c_void_p, c_size_t, c_uint64, c_void_p]
_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "cairn_version": (c_char_p, []),
    "cairn_status_str": (c_char_p, [c_int]),
    "cairn_identity_create": (c_int, [POINTER(Field), c_size_t, POINTER(c_void_p), *_TEXT]),
    "cairn_identity_destroy": (None, [c_void_p]),
    "cairn_identity_fingerprint": (None, [c_void_p, c_void_p]),
    "cairn_identity_canonical": (c_void_p, [c_void_p, POINTER(c_size_t)]),
    "cairn_keys": (c_int, [*_KEYS, c_size_t, *_EXTRAS_AND_OUT]),
    "cairn_keys_from_hashes": (c_int, [*_KEYS, c_size_t, c_size_t, *_EXTRAS_AND_OUT]),
    "cairn_open": (c_int, [c_char_p, POINTER(c_void_p), *_TEXT]),
    "cairn_close": (None, [c_void_p]),
    "cairn_options_help": (c_char_p, []),
    "cairn_value_max": (c_uint64, [c_void_p]),
    "cairn_note_identity": (c_int, [c_void_p, c_void_p]),
    "cairn_put": (c_int, [c_void_p, c_void_p, c_size_t, c_uint64]),
    "cairn_get": (c_int, [c_void_p, c_void_p, c_size_t, c_uint64, POINTER(c_size_t)]),
    "cairn_lookup": (c_size_t, [c_void_p, c_void_p, c_size_t]),
    "cairn_value_len": (c_uint64, [c_void_p, c_void_p]),
    "cairn_delete": (c_int, [c_void_p, c_void_p, c_size_t, c_uint64, c_void_p]),
    "cairn_flush": (c_int, [c_void_p, c_uint64]),
    "cairn_session_open": (c_int, [c_void_p, POINTER(c_void_p)]),
    "cairn_session_close": (None, [c_void_p]),
    "cairn_lease_take": (c_int, [c_void_p, c_void_p, c_size_t, c_uint64, c_uint64,
                                 POINTER(c_void_p), POINTER(c_size_t)]),
    "cairn_lease_view": (c_int, [c_void_p, c_size_t, POINTER(c_void_p), POINTER(c_uint64)]),
    "cairn_lease_renew": (c_int, [c_void_p, c_uint64]),
    "cairn_lease_release": (None, [c_void_p]),
    "cairn_queue_open": (c_int, [c_void_p, POINTER(c_void_p)]),
    "cairn_queue_close": (None, [c_void_p]),
    "cairn_queue_fd": (c_int, [c_void_p]),
    "cairn_submit_get": (c_int, _SUBMIT),
    "cairn_submit_gets": (c_size_t, [c_void_p, c_void_p, POINTER(Call), c_size_t, c_uint64]),
    "cairn_submit_put": (c_int, _SUBMIT),
    "cairn_poll": (c_size_t, [c_void_p, POINTER(Completion), c_size_t, c_uint64]),
    "cairn_why": (c_size_t, [c_void_p, c_void_p, *_TEXT]),
    "cairn_refusal": (c_size_t, [c_void_p, *_TEXT]),
    "cairn_stats": (c_size_t, [c_void_p, *_TEXT]),
    "cairn_features": (c_size_t, [c_char_p, *_TEXT]),
}


def _checkouts() -> list[Path]:
    """Folders that may hold build/lib: this file's checkout, and the one pip installed from."""
    found = list(Path(__file__).resolve().parents)[3:4]
    try:
        direct = metadata.distribution("cairn").read_text("direct_url.json")
        url = urlparse(json.loads(direct or "{}").get("url", ""))
    except (metadata.PackageNotFoundError, ValueError):
        return found
    if url.scheme == "file":
        found.append(Path(unquote(url.path)).parent.parent)
    return found


def _load() -> ctypes.CDLL:
    named = os.environ.get("CAIRN_LIBRARY")
    if named:
        try:
            return ctypes.CDLL(named)
        except OSError as e:
            raise NotFoundError(f"CAIRN_LIBRARY={named} cannot be loaded: {e}") from e
    beside = Path(__file__).resolve().parent / "libcairn.so"
    tried = [beside, *(c / "build" / "lib" / "libcairn.so" for c in _checkouts())]
    for path in tried:
        if path.exists():
            return ctypes.CDLL(str(path))
    try:
        return ctypes.CDLL("libcairn.so.0")
    except OSError as e:
        raise NotFoundError(
            "libcairn.so was not found; build it with \"deploy/run build\" in the checkout, or "
            f"name the file in CAIRN_LIBRARY (looked at {', '.join(map(str, tried))})") from e


_lib: ctypes.CDLL | None = None


def lib() -> Any:
    """The library, loaded at first use so that importing the package never fails."""
    global _lib
    if _lib is None:
        found = _load()
        for name, (result, arguments) in _PROTOTYPES.items():
            try:
                function = getattr(found, name)
            except AttributeError as e:
                raise VersionError(f"{found._name} has no {name}; build it again") from e
            function.restype = result
            function.argtypes = arguments
        version = found.cairn_version().decode()
        if not version.startswith(ABI + "."):
            raise VersionError(f"{found._name} is version {version} and this package needs {ABI}")
        _lib = found
    return _lib


def check(status: int, what: str) -> None:
    if status < 0:
        raise error(status, f"{what}: {lib().cairn_status_str(status).decode()}")


def text(call: Callable[[Any, int], int]) -> str:
    """A call that writes at most so many bytes and returns how many it wanted to write."""
    size = 1 << 14
    while True:
        out = ctypes.create_string_buffer(size)
        needed = call(out, size)
        if needed < size:
            return out.value.decode(errors="replace")
        size = needed + 1024


def timeout_ns(seconds: float | None, default: float) -> int:
    if seconds is None:
        seconds = default
    if not seconds >= 0:
        from .errors import InvalidError
        raise InvalidError(f"timeout is {seconds}; give seconds, 0 or more")
    return min(int(min(seconds, 1e9) * 1e9), NO_LIMIT_NS)
