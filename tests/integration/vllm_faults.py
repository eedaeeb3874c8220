"""A real vLLM that is asked the same prompts again and again, its own cache emptied in between. One
request is computed at a time and 128 tokens a step: then every block is computed by the same
operations, whatever of the prompt was loaded before it, and an answer that was loaded equals one
that was computed, bit for bit.

A program: MODEL URI SEED ROUNDS [PLACE]; without a URI no connector. Prints a JSON object an answer
and one of counters. In PLACE the file "busy" says that the rounds begin, and "calm" that they are
over. Then it asks on until it is given hits."""
import random
import sys
import time
from pathlib import Path

from vllm_models import answers

BLOCK, SECONDS = 128, 120
DOCUMENTS, QUESTIONS = 2, 3


def prompts() -> list[list[int]]:
    """Documents of 2 chunks, each with questions of 1 chunk or 2, and a rest."""
    rng = random.Random(1)

    def words(count: int) -> list[int]:
        return [rng.randrange(1000, 40000) for _ in range(count)]

    documents = [words(2 * BLOCK) for _ in range(DOCUMENTS)]
    return [document + words((1 + number % 2) * BLOCK + 40)
            for document in documents for number in range(QUESTIONS)]


class Engine:
    def __init__(self, model: str, uri: str) -> None:
        from vllm import LLM
        from vllm.config import KVTransferConfig
        more = {}
        if uri:
            more["kv_transfer_config"] = KVTransferConfig(
                kv_connector="CairnConnector", kv_connector_module_path="cairn.vllm",
                kv_role="kv_both", kv_load_failure_policy="recompute",
                kv_connector_extra_config={"uri": uri, "lookup_timeout": 2, "timeout": 4})
        self.llm = LLM(model=model, enforce_eager=True, max_model_len=2048, seed=0,
                       max_num_batched_tokens=BLOCK, max_num_seqs=1, **more)
        self.core = self.llm.llm_engine.engine_core.engine_core
        self.halves = {}
        if uri:
            from cairn.vllm import connectors
            self.halves = {c.role.name: c for c in connectors()}

    def answer(self, asked: list[list[int]]) -> list[dict]:
        from vllm import SamplingParams
        params = SamplingParams(max_tokens=3, temperature=0.0, logprobs=5)
        outputs = self.llm.generate([{"prompt_token_ids": p} for p in asked], params,
                                    use_tqdm=False)
        return [{"tokens": list(o.outputs[0].token_ids), "finish": o.outputs[0].finish_reason,
                 "logprobs": [{str(t): p.logprob for t, p in step.items()}
                              for step in o.outputs[0].logprobs]} for o in outputs]

    def reset(self) -> None:
        while self.core.scheduler.has_requests():
            self.llm.llm_engine.step()
        assert self.llm.reset_prefix_cache()

    def moved(self) -> dict[str, float]:
        told: dict[str, float] = {}
        for half in self.halves.values():
            told.update(half.totals.data)
        return told


def main() -> None:
    model, uri, seed, rounds, *place = sys.argv[1:]
    say = answers()
    engine = Engine(model, uri)
    every, rng = prompts(), random.Random(int(seed))

    def ask(together: bool) -> None:
        order = rng.sample(range(len(every)), len(every))
        for some in [order] if together else [[i] for i in order]:
            for i, answer in zip(some, engine.answer([every[i] for i in some])):
                say({"prompt": i, **answer})
        engine.reset()

    def tell(name: str) -> None:
        for folder in place:
            (Path(folder) / name).touch()

    tell("busy")
    for number in range(int(rounds)):
        ask(together=number % 2 == 1)
    tell("calm")
    if uri:
        before, end = engine.moved().get("hit_tokens", 0), time.monotonic() + SECONDS
        while engine.moved().get("hit_tokens", 0) == before and time.monotonic() < end:
            ask(together=False)
        say({"calm": engine.moved().get("hit_tokens", 0) - before, "moved": engine.moved(),
             "store": engine.halves["SCHEDULER"].scheduler.store.stats()})
    engine.core.shutdown()


if __name__ == "__main__":
    main()
