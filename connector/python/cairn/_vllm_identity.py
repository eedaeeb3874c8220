"""What made a rank's part of a KV group: the fields of its identity. An engine's version is none of
them: versions share what they compute if and only if their pages have the same bytes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from ._model_files import digest_of, folder_of, weight_files
from ._vllm_code import of_code
from ._vllm_media import of_media
from ._vllm_pages import GroupPages, digest
from .errors import Unsupported
from .identity import Identity

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger("vllm.cairn")

# Of a model's configuration: what says nothing about what it computes.
NOT_THE_MODEL = ("transformers_version", "_name_or_path", "_model_name_or_path")


def named(fields: dict[str, Any], epoch: str) -> Identity:
    """The identity of a group's parts while the engine's weights are those of `epoch`."""
    return Identity(**fields, epoch=epoch or None)


def describe(config: VllmConfig, specs: list[Any], pages: list[GroupPages],
             chunk_tokens: int) -> list[dict[str, Any]]:
    """The identity fields of every KV group of this rank."""
    common = of_model(config) | _of_rank(config) | {"chunk_tokens": chunk_tokens}
    return [common | _of_group(config, spec, group) for spec, group in zip(specs, pages)]


def of_model(config: VllmConfig) -> dict[str, Any]:
    model, cache = config.model_config, config.cache_config
    if getattr(cache, "calculate_kv_scales", False):
        raise Unsupported("calculate_kv_scales makes scales of the first request, which nothing "
                          "names")
    dummy = config.load_config.load_format == "dummy"
    text, longrope = _configuration(model.hf_config)
    kept = str(cache.cache_dtype)
    return {
        "model": Path(model.model).resolve().name if Path(model.model).exists() else model.model,
        "weights": "dummy" if dummy else _of_weights(folder_of(
            model.model, model.revision, config.load_config.download_dir)),
        "quant": model.quantization,
        "quant_config": _quantization(model),
        "compute_dtype": str(model.dtype).removeprefix("torch."),
        "cache_dtype": None if kept == "auto" else kept,
        "model_config": digest([text]),
        # Its long factors are chosen by the longest context that is allowed.
        "max_model_len": model.max_model_len if longrope else None,
        **of_code(model),
        **of_media(model),
    }


def _of_weights(folder: Path) -> str:
    files = weight_files(folder)
    logger.info("cairn: the weights are named by what is in their %d files, %.1f GB", len(files),
                sum(f.stat().st_size for f in files) / 1e9)
    return digest_of(files)


def _quantization(model: Any) -> str | None:
    """What is quantized how, as given beside the model's own configuration."""
    given = getattr(model, "quantization_config", None)
    if not given:
        return None
    if dataclasses.is_dataclass(given) and not isinstance(given, type):
        given = dataclasses.asdict(given)
    return digest([json.dumps(_without_none(given), sort_keys=True, default=str)])


def _without_none(given: Any) -> Any:
    """What newer versions could say besides, and do not, is nothing."""
    if not isinstance(given, dict):
        return given
    return {name: _without_none(one) for name, one in given.items() if one is not None}


def _configuration(hf: Any) -> tuple[str, bool]:
    fields = json.loads(hf.to_json_string())
    text = json.dumps({k: v for k, v in fields.items() if k not in NOT_THE_MODEL}, sort_keys=True)
    return text, "longrope" in text


def _of_rank(config: VllmConfig) -> dict[str, Any]:
    parallel = config.parallel_config
    tp, pp = parallel.tensor_parallel_size, parallel.pipeline_parallel_size
    for name in ("decode_context_parallel_size", "prefill_context_parallel_size"):
        if getattr(parallel, name, 1) > 1:
            raise Unsupported(f"{name} is {getattr(parallel, name)}; ranks that share a sequence "
                              "are not taken")
    return {"tp_rank": parallel.rank % tp, "tp_size": tp, "pp_rank": parallel.rank // tp,
            "pp_size": pp, "cp_rank": 0, "cp_size": 1}


def _of_group(config: VllmConfig, spec: Any, pages: GroupPages) -> dict[str, Any]:
    backend, isa = _backend(config, spec, pages)
    return {
        "kv_dtype": pages.dtype,
        "layout": pages.layout,
        "backend": backend,
        "isa": isa,
        "block_tokens": spec.block_size,
        "layers": len(pages.addresses),
        "heads": getattr(spec, "num_kv_heads", None),
        "head_size": getattr(spec, "head_size", None),
        "window": getattr(spec, "sliding_window", None),
    }


def _backend(config: VllmConfig, spec: Any, pages: GroupPages) -> tuple[str | None, str]:
    """The attention backend, and the order of bytes inside its pages: the CPU's depends on what
    the processor has."""
    import torch
    capability = (torch.backends.cpu.get_cpu_capability().replace(" ", "-")
                  if pages.device.type == "cpu" else pages.device.type)
    layers = config.compilation_config.static_forward_context
    found = [layers[name] for name in pages.layers if hasattr(layers.get(name), "get_attn_backend")]
    backends = sorted({layer.get_attn_backend().get_name() for layer in found})
    kinds = {getattr(layer, "isa", None) or getattr(getattr(layer, "impl", None), "isa", None)
             for layer in found}
    kinds.discard(None)
    if "CPU_ATTN" in backends and not kinds:
        raise Unsupported("this vLLM does not say how it orders the bytes of a page")
    return " ".join(backends) or None, "/".join([*sorted(kinds), capability])
