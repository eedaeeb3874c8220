"""What a cache behind a real vLLM costs and gives.

Each figure is a median of interleaved runs of engines in processes of their own, one without a
connector and one with Cairn's node behind it. The times are to the first token; every hit's log
probabilities must be bit for bit those of the engine's own prefix hit."""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import statistics
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any
from collections.abc import Callable, Iterator

from demo_engine import EngineError, EngineProcess
from demo_node import Node, NodeError
from demo_rates import copy_rate, read_rate

DOCUMENT = Path("/usr/share/common-licenses/GPL-3")
LONG, SHORT, SHORT_COUNT = 4243, 400, 24
ROUNDS = 5
KILLS = 5
RAM, DISK = "1GiB", "4GiB"
DEADLINE_S = 1.0  # timeout= of the URI, its default
BACK_S = 5.0


class Failed(Exception):
    pass


@dataclass
class Figure:
    """One line: value against limit, both in `unit`; met where value <= limit."""

    name: str
    value: float
    limit: float
    unit: str
    what: str
    runs: int
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return self.value <= self.limit

    def line(self) -> str:
        return (f"{self.name:24} {self.value:9.3f} {self.unit:3} of at most {self.limit:8.3f}  "
                f"{'met' if self.met else 'NOT met':8} {self.what}")


@dataclass
class Bench:
    model: Path
    out: Path
    words: list[int] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    figures: list[Figure] = field(default_factory=list)
    count: int = 0

    def say(self, text: str) -> None:
        print(f"bench: [{time.monotonic() - self.started:5.1f} s] {text}", file=sys.stderr,
              flush=True)

    def engine(self, name: str, uri: str | None, **options: Any) -> EngineProcess:
        self.count += 1
        engine = EngineProcess(self.model, uri, self.out / f"{self.count}-{name}.log", **options)
        if not self.words:
            self.words = engine.tokens(DOCUMENT.read_text())
        # A first answer is slower than all others.
        engine.answer(self.unique(options.get("max_len", 2 * LONG) // 2), max_tokens=2)
        return engine

    def unique(self, length: int) -> list[int]:
        """Tokens of the document in an order of their own: no prefix is shared."""
        self.count += 1
        tokens = self.words[:length]
        random.Random(self.count).shuffle(tokens)
        return tokens

    def node(self, name: str) -> Node:
        return Node(self.out / name, ram=RAM, disk=DISK)

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)
        self.say(figure.line())


def hit(answer: dict[str, Any], own: dict[str, Any], what: str) -> dict[str, Any]:
    """The answer, if it is a hit like the engine's own, bit for bit."""
    if answer["loaded_tokens"] != own["cached_tokens"]:
        raise Failed(f"{what}: Cairn brought {answer['loaded_tokens']} of {own['cached_tokens']} "
                     "tokens")
    if answer["logprobs"] != own["logprobs"]:
        raise Failed(f"{what}: other log probabilities than the engine's own prefix hit")
    return answer


def median_ms(times: list[float]) -> float:
    return statistics.median(times) * 1000


def warm(b: Bench, off: EngineProcess, on: EngineProcess) -> None:
    """The long prompt from the node's memory, over the own prefix hit of an engine without one."""
    prompt = b.words[:LONG]
    cold = [off.answer(prompt), on.answer(prompt)]
    own = on.answer(prompt)
    floor, loaded = [], []
    for _ in range(ROUNDS + 2):
        on.reset()
        loaded.append(hit(on.answer(prompt), own, "warm"))
        floor.append(off.answer(prompt))
    size = loaded[0]["loaded_bytes"]
    rate = copy_rate(size)
    times, floors = ([a["ttft_s"] for a in answers] for answers in (loaded, floor))
    b.add(Figure("engine-warm", median_ms(times) - median_ms(floors), size / rate * 1000 + 3,
                 "ms", f"a {LONG}-token prompt from the node's memory, minus vLLM's own prefix hit",
                 len(times), {"ttft_ms": median_ms(times), "prefix_ms": median_ms(floors),
                              "bytes": size, "copy_gb_s": rate / 1e9,
                              "cold_ms": [a["ttft_s"] * 1000 for a in cold]}))


def rounds_of(b: Bench, pair: tuple[EngineProcess, EngineProcess], count: int,
              length: int) -> list[tuple[float, float]]:
    """Sums of the times of `count` unique prompts a round, engines in turns."""
    found = []
    for i in range(ROUNDS):
        sums = [0.0, 0.0]
        for which in ((0, 1), (1, 0))[i % 2]:
            for _ in range(count):
                answer = pair[which].answer(b.unique(length), max_tokens=1)
                if answer["cached_tokens"]:
                    raise Failed("a unique prompt was found in a cache")
                sums[which] += answer["ttft_s"]
            time.sleep(0.5)  # what one still saves must not slow the other
        found.append((sums[0], sums[1]))
    return found


def misses(b: Bench, off: EngineProcess, on: EngineProcess) -> None:
    for name, count, length in (("engine-miss-400", SHORT_COUNT, SHORT),
                                ("engine-miss-long", 1, LONG)):
        found = rounds_of(b, (off, on), count, length)
        b.add(Figure(name, statistics.median(w / o for o, w in found), 1.01, "x",
                     f"first token of {count} unique prompts of {length} tokens, on / off",
                     len(found), {"off_ms": [o * 1000 for o, _ in found],
                                  "on_ms": [w * 1000 for _, w in found]}))


def restart(b: Bench, off: EngineProcess) -> None:
    """The long prompt from disk, each time after kill -9 of the node and the engine."""
    prompt = b.words[:LONG]
    off.answer(prompt)
    node = b.node("restart")
    loaded, floor = [], []
    with contextlib.closing(_Ending(node)):
        with b.engine("restart", node.uri) as engine:
            engine.answer(prompt)
            own = engine.answer(prompt)
            engine.flush()
            engine.kill()
        for _ in range(KILLS):
            node.kill()
            node.start()
            with b.engine("restart", node.uri) as engine:
                loaded.append(hit(engine.answer(prompt), own, "restart"))
                engine.kill()
            floor.append(off.answer(prompt))
        rate = read_rate(node.folder / "cairn.log", loaded[0]["loaded_bytes"])
    size = loaded[0]["loaded_bytes"]
    times, floors = ([a["ttft_s"] for a in answers] for answers in (loaded, floor))
    b.add(Figure("engine-disk", median_ms(times) - median_ms(floors), 1.2 * size / rate * 1000 + 5,
                 "ms", "the same from disk, after kill -9 of node and engine", len(times),
                 {"ttft_ms": [t * 1000 for t in times], "prefix_ms": median_ms(floors),
                  "bytes": size, "disk_gb_s": rate / 1e9}))


class _Ending:
    def __init__(self, node: Node) -> None:
        self._node = node

    def close(self) -> None:
        self._node.kill()


USERS, TURNS, FIRST, TURN, SAID = 8, 6, 640, 128, 32
TALK_TOKENS = 2048  # more than one conversation has at its end
BLOCK = 128


def talk(b: Bench, engine: EngineProcess, salt: int) -> float:
    """Mean time to the first token of users who talk in turns, each on their own document."""
    histories = [random.Random(salt * USERS + u).sample(b.words, FIRST) for u in range(USERS)]
    times = []
    for turn in range(TURNS):
        for user, history in enumerate(histories):
            history += random.Random(f"{salt} {user} {turn}").sample(b.words, TURN)
            answer = engine.answer(history, max_tokens=SAID)
            times.append(answer["ttft_s"])
            history += answer["tokens"]
    return statistics.mean(times)


def conversations(b: Bench) -> None:
    """An engine whose KV space is a third of what the conversations need."""
    need = USERS * -(-(FIRST + TURNS * (TURN + SAID)) // BLOCK)
    node = b.node("talk")
    with contextlib.closing(_Ending(node)), \
            b.engine("talk-off", None, blocks=need // 3, max_len=TALK_TOKENS) as off, \
            b.engine("talk-on", node.uri, blocks=need // 3, max_len=TALK_TOKENS) as on:
        found = []
        for i in range(ROUNDS):
            pair = (talk(b, off, i), talk(b, on, i)) if i % 2 else \
                tuple(reversed((talk(b, on, i), talk(b, off, i))))
            found.append(pair)
    b.add(Figure("engine-conversation", statistics.median(w / o for o, w in found), 0.999, "x",
                 f"mean first token of {USERS} users, {TURNS} turns, KV space a third: on / off",
                 len(found), {"off_ms": [o * 1000 for o, _ in found],
                              "on_ms": [w * 1000 for _, w in found]}))


@contextlib.contextmanager
def slow(node: Node) -> Iterator[None]:
    """Replies take about a second: the node runs 20 ms of each."""
    over = threading.Event()

    def hold() -> None:
        while not over.is_set():
            node.send(SIGSTOP)
            over.wait(1.0)
            node.send(SIGCONT)
            over.wait(0.02)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def killed(node: Node) -> Iterator[None]:
    node.kill()
    yield
    node.start()


@contextlib.contextmanager
def frozen(node: Node) -> Iterator[None]:
    node.send(SIGSTOP)
    yield
    node.send(SIGCONT)


def faults(b: Bench) -> None:
    """A node that goes away and comes back under an engine."""
    ways: list[tuple[str, Callable[[Node], Any]]] = [("killed", killed), ("frozen", frozen),
                                                     ("slow", slow)]
    node = b.node("faults")
    with contextlib.closing(_Ending(node)), b.engine("faults", node.uri) as engine:
        prompt = b.words[:5 * BLOCK + 60]
        for name, way in ways:
            added, back = [], []
            for _ in range(ROUNDS):
                cold = engine.answer(b.unique(len(prompt)), max_tokens=1)["ttft_s"]
                engine.answer(prompt, max_tokens=1)
                engine.flush()
                with way(node):
                    times = []
                    for _ in range(4):
                        engine.reset()
                        times.append(engine.answer(prompt, max_tokens=1)["ttft_s"])
                added.append(sum(max(t - cold, 0) for t in times))
                back.append(seconds_until_hit(engine, prompt))
            b.add(Figure(f"engine-node-{name}", median_ms(added), DEADLINE_S * 1000, "ms",
                         f"added to four first tokens together, node {name}", len(added),
                         {"added_ms": [a * 1000 for a in added]}))
            b.add(Figure(f"engine-node-{name}-back", statistics.median(back), BACK_S, "s",
                         "until the engine hits again", len(back), {"seconds": back}))


def seconds_until_hit(engine: EngineProcess, prompt: list[int]) -> float:
    start = time.monotonic()
    while time.monotonic() - start < 60:
        engine.reset()
        if engine.answer(prompt, max_tokens=1)["loaded_tokens"]:
            return time.monotonic() - start
        time.sleep(0.1)
    raise Failed("no hit within 60 s of the node's return")


def bench(b: Bench, only: set[str]) -> None:
    shutil.rmtree(b.out, ignore_errors=True)
    b.out.mkdir(parents=True)
    if only & {"warm", "misses", "restart"}:
        b.say("starting an engine without a connector and one with a node")
        node = b.node("node")
        with contextlib.closing(_Ending(node)), b.engine("off", None) as off:
            if only & {"warm", "misses"}:
                with b.engine("on", node.uri) as on:
                    if "warm" in only:
                        warm(b, off, on)
                    if "misses" in only:
                        misses(b, off, on)
            if "restart" in only:
                restart(b, off)
    if "conversation" in only:
        conversations(b)
    if "faults" in only:
        faults(b)


FAMILIES = ("warm", "misses", "restart", "conversation", "faults")


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", type=Path, required=True, help="folder of the converted model")
    p.add_argument("--out", type=Path, required=True, help="folder for logs, emptied first")
    p.add_argument("--json", type=Path, help="also write the figures here")
    p.add_argument("--check", action="store_true", help="exit 1 if one is not met")
    p.add_argument("only", nargs="*", help=f"of {', '.join(FAMILIES)}; all of them without")
    args = p.parse_args()
    unknown = set(args.only) - set(FAMILIES)
    if unknown:
        p.error(f"unknown figures {', '.join(sorted(unknown))}; there are {', '.join(FAMILIES)}")
    b = Bench(args.model, args.out)
    try:
        bench(b, set(args.only) or set(FAMILIES))
    except (Failed, EngineError, NodeError) as e:
        print(f"bench: FAILED: {e}", file=sys.stderr)
        return 1
    for figure in b.figures:
        print(figure.line())
    if args.json:
        args.json.write_text(json.dumps([{**asdict(f), "met": f.met} for f in b.figures],
                                        indent=1) + "\n")
    return 1 if args.check and not all(f.met for f in b.figures) else 0


if __name__ == "__main__":
    sys.exit(main())
