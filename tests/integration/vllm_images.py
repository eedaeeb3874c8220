"""A real vLLM that sees images, with random weights, and Cairn behind it. A program: MODEL (for its
tokenizer) FOLDER URI QUESTION...; a question is the number of an image, or `reset` of the engine's
own cache; prints a JSON object an answer."""
import json
import sys
from pathlib import Path

from vllm_models import Engine, answers

SIDE, TOKENS = 112, 600
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 128}


def make(model: Path, folder: Path) -> None:
    """A BLIP-2: of those that take images it is one whose code asks for no torchvision."""
    import torch
    from transformers import AutoConfig, AutoTokenizer, Blip2ForConditionalGeneration
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    image = tokenizer.convert_tokens_to_ids("<image>")
    files = {
        "config.json": {
            "model_type": "blip-2", "architectures": ["Blip2ForConditionalGeneration"],
            "dtype": "bfloat16", "num_query_tokens": 32, "image_token_index": image,
            "text_config": {
                "model_type": "opt", "architectures": ["OPTForCausalLM"], "hidden_size": 128,
                "word_embed_proj_dim": 128, "ffn_dim": 256, "num_attention_heads": 2,
                "num_hidden_layers": 2, "vocab_size": -(-(image + 1) // 128) * 128,
                "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2,
                "pad_token_id": 2},
            "qformer_config": SMALL | {"model_type": "blip_2_qformer", "vocab_size": 100,
                                       "encoder_hidden_size": 64},
            "vision_config": SMALL | {"model_type": "blip_2_vision_model", "image_size": SIDE,
                                      "patch_size": 14}},
        "preprocessor_config.json": {
            "image_processor_type": "BlipImageProcessorPil", "processor_class": "Blip2Processor",
            "size": {"height": SIDE, "width": SIDE}},
        "processor_config.json": {"processor_class": "Blip2Processor", "num_query_tokens": 32}}
    for name, text in files.items():
        (folder / name).write_text(json.dumps(text))
    torch.manual_seed(1)
    made = Blip2ForConditionalGeneration(AutoConfig.from_pretrained(folder))
    for name, weights in made.named_parameters():
        if weights.dim() > 1:  # larger than usual, so that an image is seen in every answer
            weights.data.normal_(0, 0.1)
    made.to(torch.bfloat16).save_pretrained(folder)


def main() -> None:
    model, folder, uri, *questions = sys.argv[1:]
    say = answers()
    import numpy as np
    from PIL import Image
    if not (Path(folder) / "config.json").exists():
        make(Path(model), Path(folder))
    engine = Engine(Path(folder), uri, limit_mm_per_prompt={"image": 1})
    words = [100 + i * 7 % 5000 for i in range(TOKENS)]
    for name in questions:
        if name == "reset":
            engine.reset()
            continue
        pixels = np.random.default_rng(int(name)).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        prompt = {"prompt_token_ids": words,
                  "multi_modal_data": {"image": Image.fromarray(pixels)}}
        say({"asked": name, **engine.answer(prompt)})
    engine.core.shutdown()


if __name__ == "__main__":
    main()
