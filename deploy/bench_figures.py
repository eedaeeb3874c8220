"""The figures of `cairn bench engine`, a family each (tools/README.md says what each is)."""

from __future__ import annotations

import contextlib
import random
import statistics
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any
from collections.abc import Callable, Iterator

import lmcache_server
from demo_engine import EngineError, EngineProcess
from demo_node import Node, NodeError
from demo_rates import copy_rate, read_rate

COPY = "a plain copy of as many bytes"
LONG, SHORT, SHORT_COUNT = 4243, 400, 24
HITS, TURNS_OF_MISSES = 8, 6  # of one round
RAM, DISK = "1GiB", "4GiB"


class Failed(Exception):
    pass


FAILURES = (Failed, EngineError, NodeError)


@dataclass
class Figure:
    """value: what the goal is about; limit: what the machine gives, or the other side."""

    name: str
    value: float
    unit: str
    limit: float | None
    limit_name: str
    runs: int
    detail: dict[str, Any] = field(default_factory=dict)


def cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


@dataclass
class Bench:
    model: Path
    out: Path
    cairnd: Path
    document: str
    rounds: int
    words: list[int] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    figures: list[Figure] = field(default_factory=list)
    count: int = 0

    def say(self, text: str) -> None:
        print(f"bench engine: [{time.monotonic() - self.started:5.1f} s] {text}", file=sys.stderr,
              flush=True)

    def engine(self, name: str, uri: str | None, **options: Any) -> EngineProcess:
        self.count += 1
        self.say(f"starting the engine '{name}'")
        engine = EngineProcess(self.model, uri, self.out / f"{self.count}-{name}.log", **options)
        if not self.words:
            self.words = engine.tokens(self.document)
        # A first answer is slower than all others.
        engine.answer(self.unique(options.get("max_len", 2 * LONG) // 2), max_tokens=2)
        return engine

    def unique(self, length: int) -> list[int]:
        """Tokens of the document in an order of their own: no prefix is shared."""
        self.count += 1
        tokens = self.words[:length]
        random.Random(self.count).shuffle(tokens)
        return tokens

    @contextlib.contextmanager
    def node(self, name: str) -> Iterator[Node]:
        node = Node(self.out / name, ram=RAM, disk=DISK, binary=self.cairnd)
        try:
            yield node
        finally:
            node.kill()
            (node.folder / "cairn.log").unlink(missing_ok=True)

    @contextlib.contextmanager
    def rival(self, name: str, **options: Any) -> Iterator[EngineProcess | None]:
        """The same engine with LMCache's server behind it; None, with a word why, without."""
        engine = None
        with contextlib.ExitStack() as stack:
            try:
                if not lmcache_server.installed():
                    raise EngineError("this Python has no module lmcache")
                server = stack.enter_context(
                    lmcache_server.Server(self.out / f"{name}-server.log", gib=1))
                engine = stack.enter_context(
                    self.engine(name, None, transfer=server.transfer(), **options))
            except EngineError as why:
                self.say(f"LMCache is left out: {why}")
            yield engine

    def add(self, figure: Figure) -> None:
        self.figures.append(figure)
        print(f"{figure.name:26} {cell(figure.value):>9} {figure.unit:3} "
              f"{cell(figure.limit):>9}  {figure.limit_name}", flush=True)


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


def warm(b: Bench, off: EngineProcess, on: EngineProcess, rival: EngineProcess | None) -> None:
    """The long prompt from the node's memory, over the own prefix hit of an engine without one."""
    prompt = b.words[:LONG]
    cold = [off.answer(prompt), on.answer(prompt)]
    own = on.answer(prompt)
    if rival:
        rival.answer(prompt)
    floor: list[dict[str, Any]] = []
    loaded: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    sides = [(off, floor), (on, loaded), *([(rival, theirs)] if rival else [])]
    for i in range(b.rounds * HITS):
        for engine, answers in sides[i % len(sides):] + sides[:i % len(sides)]:
            if engine is not off:
                engine.reset()
            answers.append(engine.answer(prompt))
    for answer in loaded:
        hit(answer, own, "warm")
    size = loaded[0]["loaded_bytes"]
    rate = copy_rate(size)
    times, floors = ([a["ttft_s"] for a in answers] for answers in (loaded, floor))
    added, copy = median_ms(times) - median_ms(floors), size / rate * 1000
    b.add(Figure("engine-warm", added - copy, "ms", copy, COPY, len(times),
                 {"ttft_ms": median_ms(times), "prefix_ms": median_ms(floors),
                  "added_ms": added, "bytes": size, "copy_gb_s": rate / 1e9,
                  "cold_ms": [a["ttft_s"] * 1000 for a in cold]}))
    if rival:
        warm_rival(b, theirs, median_ms(floors), copy)


def warm_rival(b: Bench, answers: list[dict[str, Any]], floor_ms: float, copy: float) -> None:
    whole = LONG // lmcache_server.CHUNK * lmcache_server.CHUNK
    times = [a["ttft_s"] for a in answers if a["cached_tokens"] >= whole]
    if not times:
        b.say(f"LMCache is left out: it never brought {whole} of {LONG} tokens")
        return
    b.add(Figure("engine-warm-lmcache", median_ms(times) - floor_ms - copy, "ms", copy, COPY,
                 len(times), {"ttft_ms": median_ms(times), "asked": len(answers)}))


def rounds_of(b: Bench, engines: list[EngineProcess], ask: Callable[[EngineProcess, int], float],
              turns: int = 1) -> list[list[float]]:
    """Sums of what ask(engine, round) gives of each engine in its turns of a round, a list a round.
    Each is first in turn: a machine's speed changes within seconds."""
    found = []
    for i in range(b.rounds):
        values = [0.0] * len(engines)
        for turn in range(turns):
            for k in range(len(engines)):
                which = (i + turn + k) % len(engines)
                values[which] += ask(engines[which], i)
                time.sleep(0.5)  # what one still saves must not slow the other
        found.append(values)
    return found


def compare(b: Bench, name: str, found: list[list[float]]) -> None:
    """Rows of times with and without a connector: seconds a round, off, on and perhaps LMCache."""
    off = [r[0] for r in found]
    for which, suffix in ((1, ""), (2, "-lmcache"))[:len(found[0]) - 1]:
        times = [r[which] for r in found]
        b.add(Figure(name + suffix, statistics.median(t / o for t, o in zip(times, off)), "x",
                     median_ms(off), "ms without a connector", len(found),
                     {"off_ms": [o * 1000 for o in off], "ms": [t * 1000 for t in times]}))


def misses(b: Bench, engines: list[EngineProcess]) -> None:
    def sum_of(engine: EngineProcess, count: int, length: int) -> float:
        answers = [engine.answer(b.unique(length), max_tokens=1) for _ in range(count)]
        if any(a["cached_tokens"] for a in answers):
            raise Failed("a unique prompt was found in a cache")
        return float(sum(a["ttft_s"] for a in answers))

    for name, count, length, turns in (("engine-miss-400", SHORT_COUNT, SHORT, TURNS_OF_MISSES),
                                       ("engine-miss-long", 1, LONG, 1)):
        compare(b, name, rounds_of(b, engines, lambda e, _: sum_of(e, count // turns, length),
                                   turns))


def restart(b: Bench, off: EngineProcess) -> None:
    """The long prompt from disk, each time after kill -9 of the node and the engine."""
    prompt = b.words[:LONG]
    off.answer(prompt)
    loaded, floor, rates = [], [], []
    with b.node("restart") as node:
        with b.engine("restart", node.uri) as engine:
            engine.answer(prompt)
            own = engine.answer(prompt)
            engine.flush()
        for _ in range(b.rounds):
            node.kill()
            node.start()
            with b.engine("restart", node.uri) as engine:
                loaded.append(hit(engine.answer(prompt), own, "restart"))
            floor.append(off.answer(prompt))
            rates.append(read_rate(node.folder / "cairn.log", loaded[0]["loaded_bytes"]))
    size, rate = loaded[0]["loaded_bytes"], statistics.median(rates)
    times, floors = ([a["ttft_s"] for a in answers] for answers in (loaded, floor))
    added, read = median_ms(times) - median_ms(floors), 1.2 * size / rate * 1000
    b.add(Figure("engine-disk", added - read, "ms", read, "1.2 times a plain read of as many bytes",
                 len(times), {"ttft_ms": [t * 1000 for t in times], "prefix_ms": median_ms(floors),
                              "added_ms": added, "bytes": size, "disk_gb_s": rate / 1e9}))


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
    options = {"blocks": need // 3, "max_len": TALK_TOKENS}
    with b.node("talk") as node, b.engine("talk-off", None, **options) as off, \
            b.engine("talk-on", node.uri, **options) as on, \
            b.rival("talk-lmcache", **options) as rival:
        engines = [off, on, rival] if rival else [off, on]
        found = rounds_of(b, engines, lambda e, i: talk(b, e, i))
    compare(b, "engine-conversation", found)
    if rival:
        theirs = [r[2] for r in found]
        b.add(Figure("engine-conversation-ahead",
                     statistics.median(r[1] / r[2] for r in found), "x", median_ms(theirs),
                     "ms with LMCache", len(found)))


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


ASKED = 4


def faults(b: Bench) -> None:
    """A node that goes away and comes back under an engine."""
    ways: list[tuple[str, Callable[[Node], Any]]] = [("killed", killed), ("frozen", frozen),
                                                     ("slow", slow)]
    with b.node("faults") as node, b.engine("faults", node.uri) as engine:
        prompt = b.words[:5 * BLOCK + 60]
        for name, way in ways:
            added, back = [], []
            for _ in range(b.rounds):
                cold = [engine.answer(b.unique(len(prompt)), max_tokens=1)["ttft_s"]
                        for _ in range(ASKED)]
                engine.answer(prompt, max_tokens=1)
                engine.flush()
                with way(node):
                    times = []
                    for _ in range(ASKED):
                        engine.reset()
                        times.append(engine.answer(prompt, max_tokens=1)["ttft_s"])
                added.append(max(sum(times) - ASKED * statistics.median(cold), 0))
                back.append(seconds_until_hit(engine, prompt))
            b.add(Figure(f"engine-node-{name}", median_ms(added), "ms", None,
                         "added to four first tokens together", len(added),
                         {"added_ms": [a * 1000 for a in added]}))
            b.add(Figure(f"engine-node-{name}-back", statistics.median(back), "s", None,
                         "until the engine hits again", len(back), {"seconds": back}))


def seconds_until_hit(engine: EngineProcess, prompt: list[int]) -> float:
    start = time.monotonic()
    while time.monotonic() - start < 60:
        engine.reset()
        if engine.answer(prompt, max_tokens=1)["loaded_tokens"]:
            return time.monotonic() - start
        time.sleep(0.1)
    raise Failed("no hit within 60 s of the node's return")


def measure(model: Path, out: Path, cairnd: Path, document: str, rounds: int,
            only: set[str]) -> list[dict[str, Any]]:
    b = Bench(model, out, cairnd, document, rounds)
    print(f"{'figure':26} {'value':>9} {'':3} {'limit':>9}  limit is", flush=True)
    if only & {"warm", "misses", "restart"}:
        with b.engine("off", None) as off:
            if only & {"warm", "misses"}:
                with b.node("node") as node, b.engine("on", node.uri) as on, \
                        b.rival("lmcache") as rival:
                    if "warm" in only:
                        warm(b, off, on, rival)
                    if "misses" in only:
                        misses(b, [off, on, rival] if rival else [off, on])
            if "restart" in only:
                restart(b, off)
    if "conversation" in only:
        conversations(b)
    if "faults" in only:
        faults(b)
    return [asdict(f) for f in b.figures]
