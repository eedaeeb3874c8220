#!/usr/bin/env python3
"""The types that base/types.h and connector/cairn.h share are the same bytes in both."""
import difflib
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "helpers"))
from sources import ROOT, finish  # noqa: E402

BEGIN, END = "/* --- shared types: begin --- */\n", "/* --- shared types: end --- */\n"
COPIES = ("base/types.h", "connector/cairn.h")


def block(path):
    text = (ROOT / path).read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        finish("shared types", 1, [f"{path} must hold the two marker lines once each"])
    return text[text.index(BEGIN):text.index(END)]


def main():
    one, other = (block(path) for path in COPIES)
    lines = difflib.unified_diff(one.splitlines(), other.splitlines(), *COPIES, n=0, lineterm="")
    faults = ["the copies differ; change both alike:\n" + "\n".join(lines)] if one != other else []
    finish("shared types", len(one.splitlines()), faults)


if __name__ == "__main__":
    main()
