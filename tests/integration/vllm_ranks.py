"""A real vLLM with three tensor parallel workers and Cairn behind each. A program: MODEL URI
[ALONE]; prints one JSON object a prompt. With ALONE there is no node at first: a file of that name
says that a prompt was answered without it, and then it is asked until it is found again."""
import sys
import time
from pathlib import Path

from vllm_models import answers

TOKENS, SECONDS = 600, 240


def three_ranks(model: str, uri: str, **extra):
    """The engine, its core and the connector's scheduler. extra: of the connector's options."""
    from vllm import LLM
    from vllm.config import KVTransferConfig
    llm = LLM(model=model, enforce_eager=True, max_model_len=2048, seed=0, tensor_parallel_size=3,
              kv_transfer_config=KVTransferConfig(
                  kv_connector="CairnConnector", kv_connector_module_path="cairn.vllm",
                  kv_role="kv_both", kv_load_failure_policy="recompute",
                  kv_connector_extra_config={"uri": uri, **extra}))
    from cairn.vllm import connectors
    (scheduler,) = (c.scheduler for c in connectors())
    return llm, llm.llm_engine.engine_core.engine_core, scheduler


def main() -> None:
    model, uri, *alone = sys.argv[1:]
    say = answers()
    from vllm import SamplingParams
    llm, core, scheduler = three_ranks(model, uri, lookup_timeout=20)
    params = SamplingParams(max_tokens=8, temperature=0.0, logprobs=5)
    prompt = [3 + (i * i + 7 * i) % 990 for i in range(TOKENS)]

    def reset() -> None:
        while core.scheduler.has_requests():
            llm.llm_engine.step()
        assert llm.reset_prefix_cache()

    def ask(what: str) -> int:
        start = time.perf_counter()
        (output,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        first = output.outputs[0]
        say({"what": what, "seconds": time.perf_counter() - start,
             "cached": output.num_cached_tokens or 0, "tokens": list(first.token_ids),
             "ranks": len(scheduler._ranks), "stats": scheduler.store.stats()["client"],
             "logprobs": [{str(t): p.logprob for t, p in step.items()}
                          for step in first.logprobs or []]})
        return output.num_cached_tokens or 0

    if alone:
        ask("alone")
        Path(alone[0]).touch()
        end, found = time.monotonic() + SECONDS, 0
        while not found and time.monotonic() < end:
            reset()
            found = ask("until it is there")
    ask("first")
    ask("own")
    reset()
    ask("reset")
    reset()
    take = scheduler.store.lease

    def lease(asked, **more):
        held = take(asked, **more)
        if len(held):  # of the last chunk, what the rank in the middle has
            scheduler.store.delete([asked[len(held) - 2].tobytes()])
        return held

    scheduler.store.lease = lease
    ask("part deleted")
    core.shutdown()


if __name__ == "__main__":
    main()
