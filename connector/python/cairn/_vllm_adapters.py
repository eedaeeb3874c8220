"""What a LoRA adapter is called: by its name and path, and by what is in its files. vLLM names it
by the first two alone, which is enough for a cache that ends with the process."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from ._model_files import digest_of

_lock = threading.Lock()
_known: dict[str, tuple[Any, str | None]] = {}  # path: what its files looked like, their digest


def adapter_name(lora: Any) -> bytes | None:
    """None: it has no name, since its files are not here or have changed under this process, which
    may hold the old ones still."""
    try:
        files = _files(Path(lora.lora_path))
        look = [(str(f), s.st_size, s.st_mtime_ns, s.st_ino)
                for f, s in ((f, f.stat()) for f in files)]
        with _lock:
            seen = _known.get(lora.lora_path)
            if seen is None:
                seen = look, digest_of(files)
            elif seen[0] != look or getattr(lora, "load_inplace", False):
                seen = look, None
            _known[lora.lora_path] = seen
    except OSError:
        return None
    if seen[1] is None:
        return None
    return f"vllm lora {lora.lora_name}\0{lora.lora_path}\0{seen[1]}".encode()


def _files(path: Path) -> list[Path]:
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    if not files:
        raise FileNotFoundError(path)
    return files
