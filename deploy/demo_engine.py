"""A real vLLM with Cairn behind it, in a process of its own that can be killed.

`EngineProcess` starts this file as a program and asks it, a JSON object a line; the answers come
back the same way. What vLLM prints goes to a log file."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import unittest.mock
from pathlib import Path
from typing import Any


PATIENCE = 600.0  # seconds
RESET_SECONDS = 60.0


class EngineError(Exception):
    pass


class EngineProcess:
    def __init__(self, model: Path, uri: str | None, log: Path, *, hash_seed: int = 0,
                 kv_gib: int = 2, multiprocess: bool = False, max_len: int = 8192,
                 block: int | None = None, blocks: int | None = None, ranks: int = 1,
                 transfer: dict[str, Any] | None = None, python: str = sys.executable) -> None:
        """transfer: the whole configuration of vLLM's connectors, where it is not that of a uri.
        python: of the venv whose vLLM is meant."""
        self.log = log
        env = dict(os.environ, PYTHONHASHSEED=str(hash_seed), HF_HUB_OFFLINE="1",
                   TRANSFORMERS_OFFLINE="1", VLLM_NO_USAGE_STATS="1", LMCACHE_TRACK_USAGE="false",
                   VLLM_CPU_KVCACHE_SPACE=str(kv_gib), TOKENIZERS_PARALLELISM="false",
                   VLLM_ENABLE_V1_MULTIPROCESSING="1" if multiprocess else "0")
        given = json.dumps({"model": str(model), "uri": uri, "max_len": max_len, "block": block,
                            "blocks": blocks, "ranks": ranks, "transfer": transfer})
        if ranks > 1:  # vLLM wants each rank's processors named
            cpus = sorted(os.sched_getaffinity(0))
            env["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(
                str(cpus[i % len(cpus)]) for i in range(ranks))
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            self._process = subprocess.Popen(
                [python, __file__, given], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=output, env=env, text=True, start_new_session=True)
        self.pid = self._process.pid
        self.identity = self._answer()["identity"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        # One line an answer and one answer a question: nothing is left in the buffer in between.
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            self.kill()
            raise EngineError(f"the engine gave no answer in {PATIENCE:.0f} s; see {self.log}")
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise EngineError(f"the engine's process ended with {code}; see {self.log}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(f"{answer['error']} (see {self.log})")
        return answer

    def ask(self, **question: Any) -> dict[str, Any]:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says how it ended
        return self._answer()

    def answer(self, tokens: list[int], *, max_tokens: int = 8,
               salt: str | None = None, prompt_logprobs: int | None = None) -> dict[str, Any]:
        """Generates greedily: ttft_s, cached_tokens (what the engine says), loaded_tokens and
        loaded_bytes (what Cairn brought, in load_s), text, and logprobs, a dict a token."""
        return self.ask(do="answer", tokens=tokens, max_tokens=max_tokens, salt=salt,
                        prompt_logprobs=prompt_logprobs)

    def answer_together(self, prompts: list[list[int]]) -> list[dict[str, Any]]:
        """The same for several prompts at once, without times."""
        found: list[dict[str, Any]] = self.ask(do="together", prompts=prompts)["answers"]
        return found

    def tokens(self, text: str) -> list[int]:
        found: list[int] = self.ask(do="tokens", text=text)["tokens"]
        return found

    def reset(self, connector: bool = False) -> None:
        """Empties the engine's own prefix cache, and, as after a change of weights, the
        connector's."""
        if not self.ask(do="reset", connector=connector)["done"]:
            raise EngineError("the engine did not reset its prefix cache")

    def flush(self) -> None:
        self.ask(do="flush")

    def stats(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask(do="stats")["stats"]
        return found

    def kill(self) -> None:
        """kill -9 of the process and of those that vLLM has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """A clean stop."""
        self.ask(do="stop")
        code = self._process.wait(timeout=120)
        if code != 0:
            raise EngineError(f"the engine's process ended with {code}; see {self.log}")

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def _said(output: Any) -> dict[str, Any]:
    first = output.outputs[0]
    return {"cached_tokens": output.num_cached_tokens or 0, "text": first.text,
            "tokens": list(first.token_ids),
            "finish": first.finish_reason,
            "logprobs": [{str(t): p.logprob for t, p in step.items()}
                         for step in first.logprobs or []]}


class _Server:
    """The program's side."""

    def __init__(self, given: dict[str, Any]) -> None:
        from vllm import LLM
        from vllm.config import KVTransferConfig
        options: dict[str, Any] = {}
        if given["transfer"] or given["uri"]:
            options["kv_transfer_config"] = KVTransferConfig(**(given["transfer"] or {
                "kv_connector": "CairnConnector", "kv_connector_module_path": "cairn.vllm",
                "kv_role": "kv_both", "kv_connector_extra_config": {"uri": given["uri"]}}))
        if given["ranks"] > 1:
            options["tensor_parallel_size"] = given["ranks"]
        if given["block"]:
            options["block_size"] = given["block"]
        if given["blocks"]:
            options["num_gpu_blocks_override"] = given["blocks"]
        self.llm = LLM(model=given["model"], enforce_eager=True, max_model_len=given["max_len"],
                       seed=0, **options)
        # With vLLM's own engine process these are over there.
        self.halves: dict[str, Any] = {}
        if options.get("kv_transfer_config"):
            from cairn.vllm import connectors
            self.halves = {c.role.name: c for c in connectors()}
        self.count = 0

    def identity(self) -> dict[str, str] | None:
        names = self.halves and self.halves["SCHEDULER"].scheduler.names
        return names.parts[0].fields if names else None

    def _loaded(self) -> tuple[int, int, float]:
        if "WORKER" not in self.halves:
            return 0, 0, 0.0
        side, moved = self.halves["SCHEDULER"].scheduler, self.halves["WORKER"].totals.data
        if side.names is None:
            return 0, 0, 0.0
        size = moved.get("load_bytes", 0) - moved.get("load_misses", 0) * side.chunk_bytes()
        return (size * side.names.chunk_tokens // side.chunk_bytes(), size,
                moved.get("load_seconds", 0.0))

    def settle(self) -> None:
        """Steps until nothing is on its way: an engine in this process steps for requests only."""
        core = getattr(self.llm.llm_engine.engine_core, "engine_core", None)
        while core is not None and core.scheduler.has_requests():
            self.llm.llm_engine.step()

    def reset(self, connector: bool) -> bool:
        self.settle()
        end = time.monotonic() + RESET_SECONDS
        while not self.llm.reset_prefix_cache(reset_connector=connector):
            if time.monotonic() > end:  # saves hold blocks until they are done
                return False
            self._step_without_requests()
            time.sleep(0.01)
        return True

    def _step_without_requests(self) -> None:
        """LMCache gives back the blocks that it has stored in a later step, and vLLM makes none
        where there is no request; Cairn asks for the steps that it needs."""
        core = getattr(self.llm.llm_engine.engine_core, "engine_core", None)
        if core is not None and not self.halves:
            with unittest.mock.patch.object(core.scheduler, "has_requests", lambda: True):
                core.step()

    def stats(self) -> dict[str, Any]:
        moved: dict[str, float] = {}
        for half in self.halves.values():
            moved.update(half.totals.data)
        return {"stats": dict(self.halves["SCHEDULER"].scheduler.store.stats(), connector=moved)}

    def answer(self, tokens: list[int], max_tokens: int, salt: str | None,
               prompt_logprobs: int | None) -> dict[str, Any]:
        from vllm import SamplingParams
        engine = self.llm.llm_engine
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, logprobs=5,
                                prompt_logprobs=prompt_logprobs)
        prompt: Any = {"prompt_token_ids": tokens}
        if salt:
            prompt["cache_salt"] = salt
        self.count += 1
        before = self._loaded()
        first = final = None
        start = time.perf_counter()
        engine.add_request(str(self.count), prompt, params)
        while engine.has_unfinished_requests():
            for output in engine.step():
                if first is None and output.outputs[0].token_ids:
                    first = time.perf_counter() - start
                final = output
        if first is None or final is None:
            raise EngineError("the engine gave no token")
        after = self._loaded()
        return {"ttft_s": first, "loaded_tokens": after[0] - before[0],
                "loaded_bytes": after[1] - before[1], "load_s": after[2] - before[2],
                **_said(final)}

    def together(self, prompts: list[list[int]]) -> dict[str, Any]:
        from vllm import SamplingParams
        params = SamplingParams(max_tokens=8, temperature=0.0, logprobs=5)
        outputs = self.llm.generate([{"prompt_token_ids": p} for p in prompts], params,
                                    use_tqdm=False)
        return {"answers": [_said(o) for o in outputs]}

    def handle(self, q: dict[str, Any]) -> dict[str, Any]:
        if q["do"] == "answer":
            return self.answer(q["tokens"], q["max_tokens"], q["salt"], q["prompt_logprobs"])
        if q["do"] == "together":
            return self.together(q["prompts"])
        if q["do"] == "tokens":
            return {"tokens": self.llm.get_tokenizer()(q["text"])["input_ids"]}
        if q["do"] == "reset":
            return {"done": self.reset(q["connector"])}
        if q["do"] == "flush" and self.halves:
            self.settle()
            self.halves["SCHEDULER"].scheduler.store.flush()
            return {}
        if q["do"] == "stats" and self.halves:
            return self.stats()
        if q["do"] == "stop":
            self.settle()
            self.llm.llm_engine.engine_core.shutdown()
            self.halves = {}
            return {}
        raise EngineError(f"{q['do']} cannot be done here")


def _serve() -> int:
    # vLLM prints to stdout: the answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        server = _Server(json.loads(sys.argv[1]))
        reply({"identity": server.identity()})
    except Exception as e:
        reply({"error": f"the engine did not start: {e}"})
        raise
    for line in sys.stdin:
        question = json.loads(line)
        try:
            reply(server.handle(question))
        except Exception as e:
            reply({"error": f"{type(e).__name__}: {e}"})
        if question["do"] == "stop":
            break
    return 0


if __name__ == "__main__":
    sys.exit(_serve())
