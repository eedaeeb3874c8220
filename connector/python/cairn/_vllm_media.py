"""What of an engine makes the embeddings of images, videos and sound: fields of its identity. The
names that vLLM gives to these have what a request asks of the processor, not how it is set up."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._model_files import digest_of, folder_of
from .errors import Unsupported

if TYPE_CHECKING:
    from vllm.config import ModelConfig

# These change embeddings and need not change how many there are.
SETTINGS = ("mm_processor_kwargs", "media_io_kwargs", "mm_device_do_normalize",
            "mm_encoder_tp_mode", "mm_encoder_attn_backend", "mm_encoder_attn_dtype",
            "video_pruning_rate", "video_pruning_method")
# The frontend sees images before the engine does, and is set up by its environment alone.
ENVIRONMENT = ("VLLM_VIDEO_LOADER_BACKEND", "VLLM_USE_RUST_FRONTEND")
# preprocessor_config.json and its like; Mistral's tokenizer has what others have there.
FILES = ("*processor*.json", "*feature_extractor*.json", "audio_tokenizer*.json", "tekken.json")


def of_media(model: ModelConfig) -> dict[str, Any]:
    """Nothing of a model that sees text only."""
    media = getattr(model, "multimodal_config", None)
    if media is None:
        return {}
    from vllm import envs
    set_up = {name: getattr(media, name, None) for name in SETTINGS}
    set_up |= {name.lower(): getattr(envs, name, None) for name in ENVIRONMENT}
    return {
        **{name: _text(value) for name, value in set_up.items() if value not in (None, {}, False)},
        "mm_encoder_scales": _scales(media),
        "mm_processor_files": _files(folder_of(model.model, model.revision)),
    }


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return text if len(text) <= 64 else hashlib.sha256(text.encode()).hexdigest()


def _scales(media: Any) -> str | None:
    if getattr(media, "mm_encoder_attn_dtype", None) is None:
        return None
    given = getattr(media, "mm_encoder_fp8_scale_path", None)
    if given is None:
        raise Unsupported("mm_encoder_attn_dtype without mm_encoder_fp8_scale_path makes scales of "
                          "the images it has seen, which nothing names")
    return digest_of([Path(given)])


def _files(model: Path) -> str | None:
    folder = model if model.is_dir() else model.parent
    files = {f for pattern in FILES for f in folder.glob(pattern) if f.is_file()}
    return digest_of(sorted(files)) if files else None
