"""What made the pages of an SGLang engine: the fields of their identity."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import os
from pathlib import Path
from typing import Any

from ._model_files import code_elsewhere, code_files, digest_of, folder_of, weight_files
from ._sglang_pages import Pages, described
from .errors import Unsupported

CONFIGURATIONS = ("config.json", "hf_quant_config.json", "adapter_config.json")
# What of the engine's own configuration changes the bytes of a page.
SETTINGS = ("kv_cache_dtype", "quantization", "dtype", "attention_backend",
            "prefill_attention_backend", "decode_attention_backend", "json_model_override_args",
            "quantization_param_path", "context_length", "model_impl")
MAMBA = "mamba"


class Settings:
    """The configuration of the engine in whose process this is; outside of one all is None."""

    def __init__(self) -> None:
        self._context: Any = None
        try:
            from sglang.srt.runtime_context import get_context
            context = get_context()
            context.server_args  # raises where no engine runs
            self._context = context
        except (ImportError, ValueError, AttributeError):
            pass

    def __bool__(self) -> bool:
        return self._context is not None

    def get(self, name: str) -> Any:
        if self._context is None:
            return None
        try:
            return self._context.config_leaf(name)
        except (ValueError, AttributeError):
            return getattr(self._context.server_args, name, None)


def replicated(config: Any, name: str, pool: Any) -> bool:
    """Every tensor-parallel rank has the same pages, and one of them writes."""
    if not config.is_mla_model or name == MAMBA:
        return False
    return name == "kv" or not hasattr(pool, "v_head_dim")


def of_engine(config: Any, given: str | None) -> dict[str, Any]:
    """The fields that all pools of this rank share."""
    settings = Settings()
    found = {f"set_{name}": settings.get(name) for name in SETTINGS}
    return {
        **_of_model(config, settings, given),
        **{name: _short(value) for name, value in found.items() if value not in (None, "", "{}")},
        "quant": settings.get("quantization"),
        "adapters": _adapters(settings),
        "code": _code(config, settings),
        "pp_rank": config.pp_rank,
        "pp_size": config.pp_size,
        "cp_rank": config.attn_cp_rank,
        "cp_size": config.attn_cp_size,
        "engine": f"sglang {_version()}",
    }


def of_pool(config: Any, name: str, pool: Any, pages: Pages, chunk_tokens: int,
            part: int) -> dict[str, Any]:
    """The fields of one pool. part: which of the parts that heads are split into."""
    rank, size = config.tp_rank, config.tp_size
    if replicated(config, name, pool):
        rank, size = 0, 1
    elif config.tp_lcm_size and getattr(pool, "layout", "") == "page_head":
        rank, size = rank * pages.parts + part, size * pages.parts
    fields = described(pool, pages) | {"pool": name, "chunk_tokens": chunk_tokens,
                                       "tp_rank": rank, "tp_size": size}
    packed = getattr(pool, "target_layer_num", None)
    if name.startswith("draft") or (packed and packed != pool.layer_num):
        fields |= _of_draft()
    return fields


def _adapters(settings: Settings) -> str | None:
    """SGLang's page hashes name the adapters of its command line by name and path; what is in
    their files is said here. Those loaded later get names that are never given again."""
    whole = hashlib.sha256()
    given = settings.get("lora_paths") or ()
    for one in given.items() if isinstance(given, dict) else given:
        path = one[1] if isinstance(one, tuple) else getattr(one, "lora_path", one)
        if isinstance(path, dict):
            path = path.get("lora_path")
        if not path or not isinstance(path, str):
            raise Unsupported(f"the adapter {one!r} has no path, so its weights have no name")
        whole.update(weights_name(folder_of(path.partition("=")[2] or path, None)).encode())
    return whole.hexdigest()[:32] if given else None


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 64 else hashlib.sha256(text.encode()).hexdigest()


def _of_model(config: Any, settings: Settings, given: str | None) -> dict[str, Any]:
    path = settings.get("model_path") or config.model_name
    if not path:
        raise Unsupported("its model has no name")
    if given:
        return {"model": Path(path).name if Path(path).exists() else path, "weights": given}
    try:
        if not settings:
            raise Unsupported("the weights of its model have no name")
        folder = folder_of(path, settings.get("revision"))
        if settings.get("load_format") == "dummy":
            weights = f"dummy {settings.get('random_seed')} {digest_of(_configurations(folder))}"
        else:
            weights = weights_name(folder)
    except Unsupported as why:
        raise Unsupported(f"{why}; give \"weights\" in the extra configuration") from why
    return {"model": folder.name if Path(path).exists() else path, "weights": weights}


def _code(config: Any, settings: Settings) -> str | None:
    """A digest of the Python files that may have a part in the model and are not SGLang's own."""
    files: list[Path] = []
    path = settings.get("model_path") or config.model_name
    if settings.get("trust_remote_code") and path:
        # What is not on this machine does not run here.
        with contextlib.suppress(Unsupported):
            folder = folder_of(path, settings.get("revision"))
            files += code_files(folder)
            for name in sorted(code_elsewhere(_auto_map(folder))):
                with contextlib.suppress(Unsupported):
                    files += code_files(folder_of(name, None))
    package = os.environ.get("SGLANG_EXTERNAL_MODEL_PACKAGE")
    if package:
        spec = importlib.util.find_spec(package)
        places = spec.submodule_search_locations if spec else None
        if not places:
            raise Unsupported(f"SGLANG_EXTERNAL_MODEL_PACKAGE is {package}, which has no files")
        files += [f for place in places for f in code_files(Path(place))]
    return digest_of(files) if files else None


def _auto_map(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "config.json").read_text()).get("auto_map") or {})
    except (OSError, ValueError) as why:
        raise Unsupported(f"{folder / 'config.json'} cannot be read: {why}") from why


def _of_draft() -> dict[str, Any]:
    settings = Settings()
    path = settings.get("speculative_draft_model_path")
    fields = {"draft_algorithm": settings.get("speculative_algorithm")}
    if path:
        revision = settings.get("speculative_draft_model_revision")
        fields["draft_weights"] = weights_name(folder_of(path, revision))
    return fields


def _configurations(model: Path) -> list[Path]:
    return [model / name for name in CONFIGURATIONS if (model / name).is_file()]


@functools.lru_cache
def weights_name(model: Path) -> str:
    """A name for what a model computes: its configuration and its weights."""
    return digest_of(_configurations(model) + weight_files(model))


def _version() -> str:
    from importlib import metadata
    try:
        return metadata.version("sglang")
    except metadata.PackageNotFoundError:
        return "unknown"
