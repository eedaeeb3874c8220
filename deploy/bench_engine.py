"""`cairn bench engine`: what Cairn costs and gives a real vLLM, and what a node that dies costs it.

Each figure is a median of rounds in which engines in processes of their own take turns, one without
a connector and one with Cairn's node behind it. Times are to the first token, and a hit counts only
if its log probabilities are bit for bit those of the engine's own prefix hit."""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
GOALS = ROOT / "tools" / "bench" / "goals.json"
DOCUMENT = Path("/usr/share/common-licenses/GPL-3")
FAMILIES = {
    "warm": "a long prompt from the node's memory, beside vLLM's own prefix hit",
    "misses": "unique prompts, with the connector and without",
    "restart": "the long prompt from disk, after kill -9 of node and engine",
    "conversation": "users in turns, the engine's KV space a third of what they need",
    "faults": "a node that is killed, frozen or slow, and comes back",
}
NODE_FIGURES = [f"engine-node-{way}{end}" for way in ("killed", "frozen", "slow")
                for end in ("", "-back")]
GOALS_OF = {
    "warm": ["engine-warm"], "misses": ["engine-miss-400", "engine-miss-long"],
    "restart": ["engine-disk"],
    "conversation": ["engine-conversation", "engine-conversation-ahead"], "faults": NODE_FIGURES,
}
MARK = ".cairn-bench-engine"
DISK_GIB = 10


def refuse(status: int, sentence: str) -> NoReturn:
    print(f"cairn: bench engine: {sentence}", file=sys.stderr)
    raise SystemExit(status)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        refuse(2, f"{message}: cairn bench engine --help lists what there is")


def parser() -> Parser:
    p = Parser(prog="cairn bench engine", description=__doc__, allow_abbrev=False,
               formatter_class=argparse.RawDescriptionHelpFormatter,
               epilog="families:\n" + "\n".join(f"  {n:14}{w}" for n, w in FAMILIES.items()) +
               "\n\nThe interpreter is that of CAIRN_PYTHON, else build/venv/bin/python of the "
               "checkout, else python3.")
    p.add_argument("family", nargs="*", help="which figures; all without")
    p.add_argument("--model", type=Path, default=ROOT / "build" / "model",
                   help="folder of the model (build/model, which deploy/run makes)")
    p.add_argument("--out", type=Path, default=ROOT / "build" / "bench-engine",
                   help="folder for logs (build/bench-engine), emptied first")
    p.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    p.add_argument("--rounds", type=int, default=5, help="rounds a figure (5)")
    p.add_argument("--check", action="store_true",
                   help="compare with the goals, exit 1 naming each miss")
    p.add_argument("--node", type=Path, default=ROOT / "build" / "bin" / "cairnd",
                   help="the node's program (the one beside the cairn that runs this)")
    return p


def families_of(given: list[str]) -> set[str]:
    for name in given:
        if name not in FAMILIES:
            near = difflib.get_close_matches(name, FAMILIES, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(FAMILIES)}"
            refuse(2, f"unknown figures '{name}': {hint}")
    return set(given) or set(FAMILIES)


def need_packages() -> None:
    for name, what in (("vllm", "vLLM"), ("cairn", "the Python package of Cairn")):
        if importlib.util.find_spec(name) is None:
            refuse(1, f"{sys.executable} has no module {name}, {what}: run deploy/run once, which "
                      "installs it into build/venv, or name in CAIRN_PYTHON the python of a venv "
                      "that has it")


def need_files(args: argparse.Namespace) -> None:
    if not (args.model / "config.json").is_file():
        refuse(1, f"no model in '{args.model}': run deploy/run once, which makes build/model, or "
                  "give --model a folder that vLLM loads")
    if not os.access(args.node, os.X_OK):
        refuse(1, f"no node '{args.node}': run deploy/run build, or give --node a cairnd")
    if not DOCUMENT.is_file():
        refuse(1, f"no '{DOCUMENT}', the text that the prompts are made of: install Debian's "
                  "base-files, or put a copy of the GPL 3 there")


def check_usage(args: argparse.Namespace) -> None:
    out = args.out
    if args.rounds < 1:
        refuse(2, f"--rounds {args.rounds}: give 1 or more")
    if args.json and not args.json.resolve().parent.is_dir():
        refuse(2, f"no folder for --json '{args.json}': make it first")
    # What is emptied has to be what an earlier run left.
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / MARK).exists())):
        refuse(2, f"--out '{out}' is not empty and of no earlier run: give another folder")


def take_folder(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    try:
        out.mkdir(parents=True)
        (out / MARK).touch()
        free = shutil.disk_usage(out).free >> 30
    except OSError as e:
        refuse(1, f"cannot write to --out '{out}': {e.strerror}: give another folder")
    if free < DISK_GIB:
        refuse(1, f"{free} GiB free in --out '{out}' and the nodes' logs take {DISK_GIB}: free "
                  "some, or give a folder on another disk")


def goals() -> dict[str, dict[str, Any]]:
    return {g["name"]: g for g in json.loads(GOALS.read_text())}


def meets(value: float, goal: dict[str, Any]) -> bool:
    return bool(value <= goal["bound"] if goal["direction"] == "max" else value >= goal["bound"])


def check(rows: list[dict[str, Any]], only: set[str]) -> bool:
    """Says what was missed of the goals of these families, and what was not measured."""
    wanted = goals()
    absent = [n for family in sorted(only) for n in GOALS_OF[family]
              if n not in {r["name"] for r in rows}]
    for name in absent:
        print(f"missed: {name} was not measured: what it needs is not here", file=sys.stderr)
    known = [r for r in rows if r["name"] in wanted]
    missed = [r for r in known if not meets(r["value"], wanted[r["name"]])]
    for r in missed:
        goal = wanted[r["name"]]
        side = "at most" if goal["direction"] == "max" else "at least"
        print(f"missed: {r['name']}: value {r['value']:.4g}, the goal is {side} "
              f"{goal['bound']:.4g} {r['unit']}", file=sys.stderr)
    print(f"{len(known) - len(missed)} of {len(known) + len(absent)} goals met", file=sys.stderr)
    return not missed and not absent


def main() -> int:
    args = parser().parse_args()
    only = families_of(args.family)
    check_usage(args)
    need_files(args)
    need_packages()
    take_folder(args.out)
    import bench_figures  # only now: what it imports may not be there
    try:
        rows = bench_figures.measure(args.model, args.out, args.node, DOCUMENT.read_text(),
                                     args.rounds, only)
    except bench_figures.FAILURES as e:
        refuse(1, str(e))
    except KeyboardInterrupt:
        return 130
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if not args.check or check(rows, only) else 1


if __name__ == "__main__":
    sys.exit(main())
