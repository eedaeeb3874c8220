"""What the files of a model, or of an adapter, are called: by what is in them. Every machine that
has the same files gives them the same name."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .errors import Unsupported

MIB = 1 << 20
PIECE = 16 * MIB
LARGE = 64 * MIB  # what is in larger files is remembered
REMEMBERED = 4096  # files
LOCK_SECONDS = 300.0  # that another process may read a file, before this one does too
SETTLED_SECONDS = 2.0  # a file changed since then may change again with the same times
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def folder_of(name: str, revision: str | None, cache: str | None = None) -> Path:
    """Where the files of a model are: the folder or file of that name, or what was downloaded.
    cache: where to, if not where the Hugging Face hub usually puts it."""
    path = Path(name)
    if path.exists():
        return path.resolve()
    try:
        from huggingface_hub import snapshot_download
        return Path(snapshot_download(name, revision=revision, cache_dir=cache,
                                      local_files_only=True))
    except Exception as why:
        raise Unsupported(f"the files of {name} are not found, so its weights have no name: "
                          f"{why}") from why


def weight_files(model: Path) -> list[Path]:
    files = [model] if model.is_file() else sorted(
        f for f in model.rglob("*") if f.suffix in WEIGHTS and f.is_file())
    if not files:
        raise Unsupported(f"{model} has no file of weights")
    return files


def code_files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.rglob("*.py") if f.is_file())


def code_elsewhere(auto_map: dict[str, Any] | None) -> set[str]:
    """Repositories that a configuration names as `repository--module.Class`."""
    named = (auto_map or {}).values()
    each = (one for some in named for one in (some if isinstance(some, (list, tuple)) else [some]))
    return {one.partition("--")[0] for one in each if one and "--" in one}


def digest_of(files: list[Path]) -> str:
    """Of their names and bytes."""
    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        contents = list(pool.map(_content, files))
    finally:
        pool.shutdown(cancel_futures=True)
    whole = hashlib.sha256()
    for file, content in zip(files, contents):
        whole.update(f"{file.name}\0{content}\0".encode())
    return whole.hexdigest()[:32]


def _content(file: Path) -> str:
    """Every rank of an engine asks for the same large files, and again at each start: one reads
    them. Who changes a file changes its times, of which a file system sets the last one itself."""
    info = file.stat()
    if info.st_size <= LARGE or time.time() - info.st_ctime < SETTLED_SECONDS:
        return _read(file)
    is_it = (file.resolve(), info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns,
             info.st_ctime_ns)
    name = hashlib.sha256("\0".join(map(str, is_it)).encode()).hexdigest()
    try:
        return _remembered(_memory() / name, file)
    except (OSError, RuntimeError):  # no folder to remember it in, no home, or who reads it hangs
        return _read(file)


def _memory() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "cairn" / "contents"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def _remembered(path: Path, file: Path) -> str:
    with path.open("ab+", buffering=0) as entry:
        _lock(entry)  # others wait for the first one
        try:
            entry.seek(0)
            found = entry.read().decode(errors="replace")
            if not re.fullmatch("[0-9a-f]{64}", found):
                found = _read(file)
                with contextlib.suppress(OSError):
                    entry.truncate(0)
                    entry.write(found.encode())
                    _forget_oldest(path.parent)
            return found
        finally:
            fcntl.flock(entry, fcntl.LOCK_UN)  # a process that was forked meanwhile has it too


def _lock(entry: Any) -> None:
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            return fcntl.flock(entry, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
        time.sleep(0.05)


def _forget_oldest(folder: Path) -> None:
    for old in sorted(folder.iterdir(), key=lambda f: f.stat().st_mtime_ns)[:-REMEMBERED]:
        old.unlink(missing_ok=True)


def _read(file: Path) -> str:
    """A sha256 of its bytes."""
    whole = hashlib.sha256()
    with file.open("rb", buffering=0) as f:
        while piece := f.read(PIECE):
            whole.update(piece)
    return whole.hexdigest()
