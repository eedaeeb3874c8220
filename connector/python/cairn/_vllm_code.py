"""Which code computes a model: fields of the identity. vLLM may have several for the same weights,
and they may round, and order what they rotate, in ways of their own."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from ._model_files import code_elsewhere, code_files, digest_of, folder_of
from .errors import Unsupported

if TYPE_CHECKING:
    from vllm.config import ModelConfig


def of_code(model: ModelConfig) -> dict[str, Any]:
    return {"implementation": _implementation(model), "code": _brought_along(model)}


def _implementation(model: ModelConfig) -> str | None:
    """None is vLLM's own class of the architecture's name, which is in the configuration. Where in
    vLLM a class lies says nothing: versions move it."""
    made, _ = model.registry.resolve_model_cls(model.architectures, model)
    if made.__module__.partition(".")[0] != "vllm":
        return f"{made.__module__}.{made.__qualname__}"
    return None if made.__name__ in model.architectures else made.__name__


def _brought_along(model: ModelConfig) -> str | None:
    """A digest of the Python files beside the weights, if they may run: any of them may have a part
    in the model."""
    if not model.trust_remote_code:
        return None
    folders = set()
    for name in {model.model, *code_elsewhere(getattr(model.hf_config, "auto_map", None))}:
        revision = model.revision if name == model.model else None
        # What is not on this machine does not run here.
        with contextlib.suppress(Unsupported):
            folders.add(folder_of(name, model.code_revision or revision))
    files = [f for folder in sorted(folders) for f in code_files(folder)]
    return digest_of(files) if files else None
