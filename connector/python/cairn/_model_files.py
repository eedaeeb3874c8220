"""What the files of a model, or of an adapter, are called: by what is in them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from .errors import Unsupported

MIB = 1 << 20
WHOLE_FILE = 1024 * MIB  # larger files are sampled, and then their time counts too
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")


def folder_of(name: str, revision: str | None) -> Path:
    """Where the files of a model are: the folder or file of that name, or what was downloaded."""
    path = Path(name)
    if path.exists():
        return path.resolve()
    try:
        from huggingface_hub import snapshot_download
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except Exception as why:
        raise Unsupported(f"the files of {name} are not found, so its weights have no name: "
                          f"{why}") from why


def weight_files(model: Path) -> list[Path]:
    files = [model] if model.is_file() else sorted(
        f for f in model.rglob("*") if f.suffix in WEIGHTS and f.is_file())
    if not files:
        raise Unsupported(f"{model} has no file of weights")
    return files


def digest_of(files: list[Path]) -> str:
    """Of their names, sizes and bytes; of large ones samples and the time stand for the bytes."""
    whole = hashlib.sha256()
    for file in files:
        info = file.stat()
        whole.update(f"{file.name}\0{info.st_size}\0".encode())
        with file.open("rb", buffering=0) as f:
            if info.st_size <= WHOLE_FILE:
                step, piece = 16 * MIB, 16 * MIB
            else:
                step, piece = 64 * MIB, MIB
                whole.update(f"{info.st_mtime_ns}\0".encode())
            for at in range(0, info.st_size, step):
                f.seek(at)
                whole.update(f.read(piece))
    return whole.hexdigest()[:32]
