"""A real vLLM with LoRA adapters of one base, and Cairn behind it. A program: MODEL FOLDER URI
QUESTION...; a question is an adapter's folder in FOLDER, `base` for none, or `reset` of the
engine's own cache; prints a JSON object an answer."""
import json
import sys
from pathlib import Path

from vllm_models import Engine, answers

TOKENS, RANK = 600, 8


def make(folder: Path, model: Path, seed: int) -> None:
    """An adapter with random weights, strong enough to be heard in every answer."""
    import torch
    from safetensors.torch import save_file
    config = json.loads((model / "config.json").read_text())
    size, head = config["hidden_size"], config["head_dim"]
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"],
             "v_proj": config["num_key_value_heads"]}
    rng = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(config["num_hidden_layers"]):
        for name, count in heads.items():
            at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            for half, shape in (("A", (RANK, size)), ("B", (count * head, RANK))):
                weights[f"{at}.lora_{half}.weight"] = 0.05 * torch.randn(shape, generator=rng)
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 2 * RANK,
        "target_modules": list(heads), "bias": "none", "base_model_name_or_path": model.name}))


def main() -> None:
    model, folder, uri, *questions = sys.argv[1:]
    say = answers()
    from vllm.lora.request import LoRARequest
    engine = Engine(Path(model), uri, enable_lora=True, max_loras=2, max_lora_rank=RANK)
    known = {name: LoRARequest(name, number, str(Path(folder) / name))
             for number, name in enumerate(sorted({*questions} - {"base", "reset"}), 1)}
    prompt = [3 + (i * i + 7 * i) % 990 for i in range(TOKENS)]
    for name in questions:
        if name == "reset":
            engine.reset()
        else:
            say({"asked": name, **engine.answer(prompt, adapter=known.get(name))})
    engine.core.shutdown()


if __name__ == "__main__":
    main()
