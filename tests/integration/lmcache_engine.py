"""LMCache's own server, and a real vLLM with LMCache's own connector, as processes that can be
killed."""

import json
import os
import select
import signal
import subprocess
import sys
import time
import unittest.mock
import urllib.request
from pathlib import Path

PATIENCE = 240  # seconds


class Process:
    """In a session of its own, with what it starts; its output goes to `log`."""

    def __init__(self, log: Path, command: list[str], pipes: int, **env: str):
        self.log = log
        with log.open("a") as output:
            self.process = subprocess.Popen(
                command, stdin=pipes, stdout=pipes if pipes == subprocess.PIPE else output,
                stderr=output, text=True, start_new_session=True,
                env=dict(os.environ, LMCACHE_DISABLE_BANNER="1", LMCACHE_TRACK_USAGE="false",
                         **env))

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


class Server(Process):
    """`lmcache server` with one L2 adapter. Each start has an empty L1."""

    def __init__(self, adapter: dict, port: int, http_port: int, log: Path):
        self.http_port = http_port
        shm_name = f"cairn_test_{os.getpid()}_{port}"
        self.shared = Path("/dev/shm") / f"lmcache_l1_pool_{shm_name}"
        super().__init__(log, [
            str(Path(sys.executable).parent / "lmcache"), "server", "--port", str(port),
            "--http-port", str(http_port), "--l1-size-gb", "0.5", "--eviction-policy", "LRU",
            "--supported-transfer-mode", "auto", "--shm-name", shm_name, "--disable-metrics",
            "--l2-adapter", json.dumps(adapter)], subprocess.DEVNULL)
        end = time.monotonic() + PATIENCE
        while self.ask("/healthcheck") is None:
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise AssertionError(f"the server did not start\n{self.said()[-4000:]}")
            time.sleep(0.1)

    def ask(self, path: str, method: str = "GET") -> str | None:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http_port}{path}", method=method)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.read().decode()
        except OSError:
            return None

    def kill(self) -> None:
        super().kill()
        self.shared.unlink(missing_ok=True)  # its L1, which a killed server leaves


class Engine(Process):
    """vLLM whose connector is LMCache's, which finds the server at `port`."""

    def __init__(self, model: Path, port: int, log: Path):
        super().__init__(log, [sys.executable, __file__, str(model), str(port)], subprocess.PIPE,
                         PYTHONHASHSEED="0", HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1",
                         VLLM_NO_USAGE_STATS="1", VLLM_CPU_KVCACHE_SPACE="1",
                         TOKENIZERS_PARALLELISM="false", VLLM_ENABLE_V1_MULTIPROCESSING="0")
        try:
            self._answer()
        except BaseException:
            self.kill()
            raise

    def _answer(self) -> dict:
        ready = select.select([self.process.stdout], [], [], PATIENCE)[0]
        assert ready, f"the engine hangs\n{self.said()[-4000:]}"
        line = self.process.stdout.readline()
        assert line, f"the engine ended with {self.process.wait()}\n{self.said()[-4000:]}"
        answer = json.loads(line)
        assert "error" not in answer, f"{answer['error']}\n{self.said()[-4000:]}"
        return answer

    def ask(self, **question) -> dict:
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return self._answer()

    def answer(self, tokens: list[int]) -> dict:
        """Generates 8 tokens greedily: cached (tokens not computed), ttft, text and logprobs."""
        return self.ask(tokens=tokens)

    def reset(self) -> None:
        """Empties the engine's own prefix cache, and no other."""
        assert self.ask(tokens=None)["done"], "the engine did not reset its prefix cache"


def start(model: str, port: int):
    from vllm import LLM
    from vllm.config import KVTransferConfig

    return LLM(model=model, enforce_eager=True, max_model_len=4096, seed=0,
               kv_transfer_config=KVTransferConfig(
                   kv_connector="LMCacheMPConnector", kv_role="kv_both",
                   kv_connector_module_path="lmcache.integration.vllm.lmcache_mp_connector",
                   kv_load_failure_policy="recompute",
                   kv_connector_extra_config={
                       "lmcache.mp.host": "tcp://127.0.0.1", "lmcache.mp.port": port,
                       "lmcache.mp.mq_timeout": 30, "lmcache.mp.heartbeat_interval": 1}))


def generate(llm, name: str, tokens: list[int]) -> dict:
    from vllm import SamplingParams

    began, first = time.perf_counter(), None
    llm.llm_engine.add_request(name, {"prompt_token_ids": tokens},
                               SamplingParams(max_tokens=8, temperature=0.0, logprobs=5))
    while llm.llm_engine.has_unfinished_requests():
        for output in llm.llm_engine.step():
            first = first or time.perf_counter() - began
    return {"ttft": first, "cached": output.num_cached_tokens or 0,
            "text": output.outputs[0].text,
            "logprobs": [{str(t): p.logprob for t, p in step.items()}
                         for step in output.outputs[0].logprobs]}


def reset(llm) -> dict:
    """LMCache gives blocks that it has stored back in a later step, and vLLM makes none where there
    is no request."""
    core, end = llm.llm_engine.engine_core.engine_core, time.monotonic() + 60
    with unittest.mock.patch.object(core.scheduler, "has_requests", lambda: True):
        while not llm.reset_prefix_cache():
            if time.monotonic() > end:
                return {"done": False}
            core.step()
            time.sleep(0.01)
    return {"done": True}


def main() -> None:
    # vLLM prints to stdout: the answers get a descriptor of their own.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def reply(answer: dict) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    llm = start(sys.argv[1], int(sys.argv[2]))
    reply({})
    for count, line in enumerate(sys.stdin):
        tokens = json.loads(line)["tokens"]
        try:
            reply(generate(llm, str(count), tokens) if tokens else reset(llm))
        except Exception as error:
            reply({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
