"""A real vLLM with three tensor parallel workers, one of which is killed while it stores. All of a
prompt is computed in one step.

A program: MODEL URI [PLACE]; prints a JSON object an answer. In PLACE it says when it is "ready",
waits until "frozen" is there, answers, says who its workers are and under which identities they
store in "answered", waits for "killed" and says how it ended."""
import json
import sys
import time
from pathlib import Path

from vllm_models import answers
from vllm_ranks import three_ranks

BLOCK, CHUNKS, SECONDS = 128, 4, 120


def prompt(number: int) -> list[int]:
    return [3 + number + (i * i + 7 * i) % 990 for i in range(CHUNKS * BLOCK + 40)]


def wait_for(path: Path) -> None:
    end = time.monotonic() + SECONDS
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"no {path} within {SECONDS} s")
        time.sleep(0.02)


def main() -> None:
    model, uri, *place = sys.argv[1:]
    say = answers()
    from vllm import SamplingParams
    llm, core, scheduler = three_ranks(model, uri, timeout=60)

    def ask(number: int) -> None:
        params = SamplingParams(max_tokens=3, temperature=0.0)
        (output,) = llm.generate([{"prompt_token_ids": prompt(number)}], params, use_tqdm=False)
        say({"cached": output.num_cached_tokens or 0,
             "tokens": list(output.outputs[0].token_ids)})

    for folder in map(Path, place):
        ask(0)  # from here on each rank has its window
        while core.scheduler.has_requests():
            llm.llm_engine.step()
        (folder / "ready").touch()
        wait_for(folder / "frozen")
        ask(1)
        told = folder / "told"
        told.write_text(json.dumps({
            "workers": [worker.proc.pid for worker in core.model_executor.workers],
            "identities": [part.fields for part in scheduler.names.parts]}))
        told.rename(folder / "answered")
        wait_for(folder / "killed")
        try:
            ask(1)
        except Exception as why:
            say({"ended": type(why).__name__})
        return
    ask(1)
    core.shutdown()


if __name__ == "__main__":
    main()
