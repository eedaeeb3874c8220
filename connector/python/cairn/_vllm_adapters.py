"""What a LoRA adapter is called: by its name and path, and by what is in its files. vLLM names it
by the first two alone, which is enough for a cache that ends with the process. The files are read
by a thread of their own, for the engine's scheduler asks here."""

from __future__ import annotations

import math
import queue
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._model_files import digest_of

LOOK_SECONDS = 1.0  # for so long nobody looks whether files have changed


@dataclass
class Adapter:
    """What is known of the files of a path."""

    look: Any = None  # when they were first seen
    looked: float = -math.inf
    since: float | None = None  # when reading them began, until it ends
    here: bool = False
    lost: bool = False  # changed under this process, which may hold the old ones still
    digest: str = ""
    numbers: set[int] = field(default_factory=set)  # one loaded anew may be of other files


_lock = threading.Lock()
_known: dict[str, Adapter] = {}
_unread: queue.SimpleQueue[str] = queue.SimpleQueue()
_reader: threading.Thread | None = None


def named(lora: Any) -> bool | None:
    """Whether an adapter has a name; None while its files are read for one. It has none if they are
    not here, or have changed."""
    with _lock:
        one = _known.setdefault(lora.lora_path, Adapter())
        if getattr(lora, "load_inplace", False):
            one.lost = True
        now = time.monotonic()
        anew = lora.lora_int_id not in one.numbers
        if one.since is None and not one.lost and (anew or now - one.looked >= LOOK_SECONDS):
            one.numbers.add(lora.lora_int_id)
            _look_again(one, lora.lora_path, now)
        return None if one.since is not None else one.here and not one.lost


def reading(lora: Any, limit: float) -> bool:
    """Whether its files are read for a name, and have been for less than so many seconds."""
    one = _known.get(lora.lora_path) if lora is not None else None
    since = one.since if one else None
    return since is not None and time.monotonic() - since < limit


def adapter_name(lora: Any) -> bytes | None:
    """As it was known when named() was last asked."""
    one = _known.get(lora.lora_path)
    if one is None or one.since is not None or not one.here or one.lost:
        return None
    return f"vllm lora {lora.lora_name}\0{lora.lora_path}\0{one.digest}".encode()


def _look_again(one: Adapter, path: str, now: float) -> None:
    one.looked = now
    try:
        look = _look(path)
    except (OSError, ValueError):
        one.here = False
        return
    one.here = True
    if one.look is None:
        one.look, one.since = look, now
        _unread.put(path)
        _begin_to_read()
    elif one.look != look:
        one.lost = True


def _begin_to_read() -> None:
    global _reader
    if _reader is None or not _reader.is_alive():  # a forked child has none
        _reader = threading.Thread(target=_read_all, name="cairn-adapters", daemon=True)
        _reader.start()


def _read_all() -> None:
    while True:
        path = _unread.get()
        one = _known[path]
        try:
            one.digest = digest_of(_files(path))
            if _look(path) != one.look:
                one.lost = True
        except (OSError, ValueError, RuntimeError):
            one.lost = True
        one.looked, one.since = time.monotonic(), None


def _look(path: str) -> Any:
    return [(str(f), s.st_size, s.st_mtime_ns, s.st_ino)
            for f, s in ((f, f.stat()) for f in _files(path))]


def _files(path: str) -> list[Path]:
    given = Path(path)
    files = [given] if given.is_file() else sorted(f for f in given.rglob("*") if f.is_file())
    if not files:
        raise FileNotFoundError(path)
    return files
