"""The main job on real input: a long document's KV survives the engine that computed it.

Times the first token of the same prompt computed cold, found in the engine's own prefix cache (the
floor), loaded from Cairn's memory, loaded from Cairn's disk after kill -9, with another question,
and in a second process. With --node the store is a node's, and the node is killed too. A hit counts
only if its log probabilities are bit for bit those of the engine's own prefix hit of the same
prompt and length.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo_engine import EngineError, EngineProcess
from demo_node import Node, NodeError
from demo_rates import copy_rate, read_rate
from demo_report import Check, Row, report, table

DOCUMENT = Path("/usr/share/common-licenses/GPL-3")
QUESTIONS = ("In one sentence, what is this document about?",
             "What does section 7 of this document say about additional terms?")
BLOCK = 128
CONTEXT = 8192
TOKENS_OUT = 8
REPEATS, REPEATS_SLOW = 7, 3
KILLS = 3  # fewer where it is slow
PATIENCE = 150  # seconds; what takes longer is a machine that is slow today
RAM, DISK = "1GiB", "2GiB"


class Failed(Exception):
    pass


@dataclass
class Prompts:
    first: list[int]
    other: list[int]
    seed: int = 0

    def unrelated(self) -> list[int]:
        """The document's own tokens in an order of their own: as long, and nothing shared."""
        self.seed += 1
        tokens = self.first[:]
        random.Random(self.seed).shuffle(tokens)
        return tokens


@dataclass
class Demo:
    model: Path
    out: Path
    with_node: bool = False
    node: Node | None = None
    started: float = field(default_factory=time.monotonic)
    rows: list[Row] = field(default_factory=list)

    @property
    def log_file(self) -> Path:
        return self.out / "store" / "cairn.log"

    def say(self, text: str) -> None:
        print(f"demo: [{time.monotonic() - self.started:5.1f} s] {text}", flush=True)

    def engine(self, name: str, hash_seed: int = 0) -> EngineProcess:
        """Starts one, and the node before it where that does not run."""
        folder = self.log_file.parent
        uri = f"embedded://{folder}?ram={RAM}&disk={DISK}"
        if self.with_node:
            self.node = self.node or Node(folder, ram=RAM, disk=DISK)
            uri = self.node.uri
        return EngineProcess(self.model, uri, self.out / f"engine-{name}.log", hash_seed=hash_seed)

    def slow(self) -> bool:
        return time.monotonic() - self.started > PATIENCE

    def end(self, engine: EngineProcess, clean: bool) -> None:
        """Ends the engine, and after it the node, cleanly or both by kill -9."""
        engine.stop() if clean else engine.kill()
        if self.node:
            self.node.stop() if clean else self.node.kill()
        self.node = None

    def row(self, name: str, what: str, answers: list[dict[str, Any]], reference: Any,
            loaded: bool) -> Row:
        """A row of the table; a hit that is not one, or not the same, ends the demo."""
        identical = None
        if reference is not None:
            identical = all(a["logprobs"] == reference for a in answers)
        if name != "cold" and not all(a["cached_tokens"] for a in answers):
            raise Failed(f"{name}: nothing was found in a cache")
        if loaded and not all(a["loaded_tokens"] == a["cached_tokens"] for a in answers):
            raise Failed(f"{name}: Cairn loaded {answers[0]['loaded_tokens']} of the "
                         f"{answers[0]['cached_tokens']} tokens that the engine asked it for")
        if not loaded and any(a["loaded_tokens"] for a in answers):
            raise Failed(f"{name}: Cairn brought tokens that were to come from elsewhere")
        row = Row(name, what, statistics.median(a["ttft_s"] for a in answers),
                  answers[0]["cached_tokens"], answers[0]["loaded_bytes"], identical,
                  statistics.median(a["load_s"] for a in answers), len(answers))
        self.rows.append(row)
        self.say(f"{name}: first token after {row.ttft_s * 1000:.1f} ms, "
                 f"{row.cached_tokens} tokens not computed")
        return row


def make_prompts(engine: EngineProcess) -> Prompts:
    """The document up to a block boundary and a few tokens, then a question: so all prompts share
    the same whole blocks, and the rest of each is shorter than a block."""
    text = DOCUMENT.read_text()
    document = engine.tokens("<|im_start|>user\n" + text)
    asked = [engine.tokens(f"\n\n{q}<|im_end|>\n<|im_start|>assistant\n") for q in QUESTIONS]
    longest = max(map(len, asked)) + TOKENS_OUT
    shared = min(len(document), CONTEXT - longest) // BLOCK * BLOCK
    if longest >= BLOCK or shared < BLOCK:
        raise Failed(f"{DOCUMENT} has {len(document)} tokens and a question {longest}: too few or "
                     "too many for the demo")
    return Prompts(document[:shared] + asked[0], document[:shared] + asked[1])


def first_process(d: Demo) -> tuple[Prompts, Any]:
    """Rows cold, prefix, ram and question. Returns the log probabilities to compare with."""
    with d.engine("first") as engine:
        prompts = make_prompts(engine)
        d.say(f"the engine runs; the prompt has {len(prompts.first)} tokens of {DOCUMENT}")
        engine.answer(prompts.unrelated(), max_tokens=TOKENS_OUT)
        cold = engine.answer(prompts.first)
        d.row("cold", "computed, nothing cached", [cold], None, False)
        own = [engine.answer(prompts.first)]
        reference = own[0]["logprobs"]
        other = engine.answer(prompts.other)
        if other["loaded_tokens"]:
            raise Failed("the engine did not find the other question's document in its own cache")
        ram, question = [], []
        # In turns, so that what else the machine does falls on all rows alike.
        for done in range(REPEATS):
            if d.slow():
                if done >= REPEATS_SLOW:
                    break
                d.say(f"this machine is slow today; round {done + 1} of {REPEATS_SLOW}")
            engine.reset()
            ram.append(engine.answer(prompts.first))
            own.append(engine.answer(prompts.first))
            engine.reset()
            question.append(engine.answer(prompts.other))
        d.row("prefix", "the engine's own prefix cache", own, reference, False)
        d.row("ram", "Cairn's memory, engine's cache emptied", ram, reference, True)
        d.row("question", "Cairn's memory, another question", question, other["logprobs"], True)
        if other["cached_tokens"] != question[0]["cached_tokens"]:
            raise Failed("question: another length than the engine's own hit")
        engine.flush()
        d.end(engine, False)
    return prompts, reference


def later_process(d: Demo, prompts: Prompts, name: str, hash_seed: int,
                  clean: bool) -> dict[str, Any]:
    """One new process and its first answer to the prompt, which its own prefix hit must repeat."""
    with d.engine(name, hash_seed) as engine:
        engine.answer(prompts.unrelated(), max_tokens=TOKENS_OUT)
        loaded = engine.answer(prompts.first)
        if loaded["loaded_tokens"] != loaded["cached_tokens"]:
            stats = engine.stats()
            causes = {k: v for k, v in stats.get("misses", {}).items() if v}
            raise Failed(f"{name}: Cairn brought {loaded['loaded_tokens']} of "
                         f"{loaded['cached_tokens']} tokens in {loaded['load_s']:.2f} s and the "
                         f"rest was computed; misses by cause: {causes}; disk: {stats.get('disk')}")
        own = engine.answer(prompts.first)
        if own["loaded_tokens"] or own["logprobs"] != loaded["logprobs"]:
            raise Failed(f"{name}: the loaded answer is not the engine's own in that process")
        d.end(engine, clean)
    return loaded


def checks(d: Demo, copy: float, read: float) -> list[Check]:
    by_name = {r.name: r for r in d.rows}
    floor = by_name["prefix"].ttft_s
    made = []
    for name, rate, slack in (("ram", copy, 0.003), ("disk", read, 0.010)):
        size = by_name[name].loaded_bytes
        made.append(Check(name, by_name[name].ttft_s - floor, 1.5 * size / rate + slack, rate,
                          slack))
    return made


def demo(d: Demo, json_file: Path | None) -> bool:
    if not DOCUMENT.exists():
        raise Failed(f"{DOCUMENT} is missing; install the package base-files, which has it")
    shutil.rmtree(d.out, ignore_errors=True)
    d.log_file.parent.mkdir(parents=True)
    d.say("starting a real vLLM with Cairn behind it (10 to 20 s)")
    prompts, reference = first_process(d)
    size = d.rows[-1].loaded_bytes
    copy, read = copy_rate(size), read_rate(d.log_file, size)
    after_kill: list[dict[str, Any]] = []
    last = False
    while not last:
        last = len(after_kill) == KILLS - 1 or d.slow()
        d.say(f"killed with -9; a new process ({len(after_kill) + 1} of at most {KILLS})")
        after_kill.append(later_process(d, prompts, f"disk-{len(after_kill) + 1}", 0, last))
    d.row("disk", "Cairn's disk, after kill -9", after_kill, reference, True)
    d.say("stopped cleanly; a second process with another PYTHONHASHSEED")
    second = later_process(d, prompts, "second", 4242, True)
    d.row("second", "a second process, only the log shared", [second], reference, True)

    order = ("cold", "prefix", "ram", "disk", "question", "second")
    d.rows.sort(key=lambda r: order.index(r.name))
    found = checks(d, copy, read)
    print()
    print(table(d.rows, found))
    page = d.out / "report.html"
    page.write_text(report(d.rows, found, len(prompts.first)))
    print(f"\nreport: {page}")
    if json_file:
        json_file.write_text(json.dumps({
            "rows": [r.json() for r in d.rows],
            "checks": [c.json() for c in found]}, indent=1) + "\n")
        print(f"json:   {json_file}")
    differ = [r.name for r in d.rows if r.identical is False]
    if differ:
        print(f"\ndemo: FAILED: other log probabilities than the engine's own: {', '.join(differ)}")
    return not differ


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", type=Path, required=True, help="folder of the converted model")
    p.add_argument("--out", type=Path, required=True, help="folder for the report and the log")
    p.add_argument("--json", type=Path, help="also write the rows here")
    p.add_argument("--node", action="store_true", help="the store is a node's (cairnd)")
    args = p.parse_args()
    d = Demo(args.model, args.out, args.node)
    try:
        return 0 if demo(d, args.json) else 1
    except (Failed, EngineError, NodeError) as e:
        print(f"demo: FAILED: {e}", file=sys.stderr)
        return 1
    finally:
        if d.node:
            d.node.kill()


if __name__ == "__main__":
    sys.exit(main())
