"""A real vLLM with Cairn behind it on small models with random weights, whose KV caches are of
kinds that SmolLM2 has not. A program: MODEL FOLDER URI [STEP]; prints one JSON object. With STEP
the engine computes so many tokens of one request at a time."""
import json
import os
import sys
from pathlib import Path

SMALL = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 1000, "head_dim": 64,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "dtype": "bfloat16"}
MODELS = {
    # 5 layers that see 256 tokens, 1 that sees all: 6 groups.
    "gemma3_text": SMALL | {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text",
        "num_hidden_layers": 6, "sliding_window": 256, "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 64},
    # States of convolutions beside attention: 4 groups.
    "lfm2": SMALL | {
        "architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "num_hidden_layers": 4,
        "head_dim": 32, "layer_types": ["conv", "conv", "full_attention", "conv"], "conv_dim": 128,
        "block_dim": 128, "conv_L_cache": 3, "conv_bias": False},
    # Every layer sees 256 tokens.
    "mistral": SMALL | {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "num_hidden_layers": 2,
        "sliding_window": 256},
    # Latent attention.
    "deepseek_v2": SMALL | {
        "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2",
        "num_hidden_layers": 2, "num_key_value_heads": 4, "first_k_dense_replace": 2,
        "kv_lora_rank": 512, "q_lora_rank": None, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64,
        "v_head_dim": 64, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "moe_intermediate_size": 64, "rope_theta": 10000.0},
}
TOKENS = 1500
STEP_TOKENS = 5 * 256 + 2  # what follows a state at once depends on it most


def random_weights(name: str, folder: str, uri: str, **options) -> "Engine":
    """vLLM's own random weights are so small that no answer depends on what is cached."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    model = Path(folder) / name
    model.mkdir(exist_ok=True)
    config = model / "config.json"
    config.write_text(json.dumps(MODELS[name] | {"initializer_range": 0.1}))
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    made.to(torch.bfloat16).save_pretrained(model)
    config.write_text(json.dumps(MODELS[name]))
    return Engine(model, uri, skip_tokenizer_init=True, detokenize=False, **options)


def answers():
    """What prints an answer, as a line of JSON. vLLM prints too: that goes to the log."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return lambda answer: print(json.dumps(answer), file=out, flush=True)


class Engine:
    """In this process, so that its two halves can be looked at."""

    def __init__(self, model: Path, uri: str, detokenize: bool = True, **options) -> None:
        from vllm import LLM
        from vllm.config import KVTransferConfig
        self.llm = LLM(model=str(model), seed=0, enforce_eager=True, max_model_len=2048,
                       kv_transfer_config=KVTransferConfig(
                           kv_connector="CairnConnector", kv_connector_module_path="cairn.vllm",
                           kv_role="kv_both", kv_load_failure_policy="recompute",
                           kv_connector_extra_config={"uri": uri, "lookup_timeout": 20}),
                       **options)
        from cairn.vllm import connectors
        self.detokenize = detokenize
        self.halves = {c.role.name: c for c in connectors()}
        self.core = self.llm.llm_engine.engine_core.engine_core

    def settle(self) -> None:
        """Steps until nothing is on its way."""
        while self.core.scheduler.has_requests():
            self.llm.llm_engine.step()

    def reset(self) -> None:
        self.settle()
        assert self.llm.reset_prefix_cache()

    def blank(self) -> None:
        """Zeros in all that is in the engine's own cache: what depends on it answers otherwise."""
        for cache in self.core.model_executor.driver_worker.worker.model_runner.kv_caches:
            for tensor in cache if isinstance(cache, (list, tuple)) else [cache]:
                tensor.zero_()

    def answer(self, prompt: list[int] | dict, adapter=None, **controls) -> dict:
        """prompt: token ids, or a prompt of vLLM's. controls: kv_transfer_params for Cairn."""
        from vllm import SamplingParams
        moved = self.halves["WORKER"].totals.data
        before = moved.get("load_bytes", 0)
        asked = prompt if isinstance(prompt, dict) else {"prompt_token_ids": prompt}
        params = SamplingParams(
            max_tokens=8, temperature=0.0, logprobs=5, detokenize=self.detokenize,
            extra_args={"kv_transfer_params": {"cairn": controls}} if controls else None)
        (output,) = self.llm.generate([asked], params, use_tqdm=False, lora_request=adapter)
        first = output.outputs[0]
        self.settle()
        return {"cached": output.num_cached_tokens or 0, "tokens": list(first.token_ids),
                "loaded": moved.get("load_bytes", 0) - before,
                "logprobs": [{str(t): p.logprob for t, p in step.items()}
                             for step in first.logprobs or []]}


def main() -> None:
    name, folder, uri, *step = sys.argv[1:]
    say = answers()
    options = {"max_num_batched_tokens": int(step[0]), "max_num_seqs": 1} if step else {}
    engine = random_weights(name, folder, uri, **options)
    side = engine.halves["SCHEDULER"].scheduler
    prompt = [3 + (i * i + 7 * i) % 990 for i in range(STEP_TOKENS if step else TOKENS)]
    said = {"groups": len(side.names.block_tokens) if side.names else 0}
    said["cold"] = engine.answer(prompt)
    said["own"] = engine.answer(prompt)
    engine.reset()
    said["loaded"] = engine.answer(prompt)
    if side.names:
        store, keys = side.store, side._tracked
        take = store.lease

        def short(asked, **more):
            return take(asked[:-len(side.names.parts)], **more)

        engine.reset()
        store.lease = short
        said["short"] = engine.answer(prompt)

        # A part that is gone between the promise and the load is what a damaged one is too.
        engine.reset()

        def lease(asked, **more):
            held = take(asked, **more)
            if len(held):
                store.delete([asked[len(held) - 1].tobytes()])
            return held

        store.lease = lease
        said["torn"] = engine.answer(prompt)
        store.lease = take
        said["tracked"] = len(keys)
        engine.reset()
        said["again"] = engine.answer(prompt)
        engine.blank()
        said["blank"] = engine.answer(prompt)
    said["moved"] = {n: c.totals.data for n, c in engine.halves.items()}
    say(said)
    engine.core.shutdown()


if __name__ == "__main__":
    main()
