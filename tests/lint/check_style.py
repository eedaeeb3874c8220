#!/usr/bin/env python3
"""House rules that a machine can see: sizes of files, functions and lines, and words that tie a
file to one machine."""
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "helpers"))
from sources import ROOT, files, finish  # noqa: E402

CODE = {".c", ".h", ".py", ".sh"}
FILE_BYTES = 1 << 20  # a log of a test that was killed is larger, and must not be committed
FILE_LINES = 1000
FUNCTION_LINES = 70
COLUMNS = 100

# Folders of somebody's machine: an absolute path into one works nowhere else.
PERSONAL = re.compile(r"(?<![\w.$}*~-])/(home|root|Users|work|workspace|mnt|media|srv)/\w")
LEFTOVER = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
LINE_COMMENT = re.compile(r"^\s*//")


def function_faults(path, lines):
    """Functions longer than the limit: in this style one starts and ends at column 0."""
    start = None
    for number, line in enumerate(lines, 1):
        if line.startswith("{"):
            start = number
        elif line.startswith("}") and start:
            if number - start - 1 > FUNCTION_LINES:
                yield f"{path}:{start}: a function of {number - start - 1} lines; " \
                      f"at most {FUNCTION_LINES}"
            start = None


def line_faults(path, lines, wide):
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}:"
        if len(line) > COLUMNS and not wide:
            yield f"{where} {len(line)} columns; at most {COLUMNS}"
        if "\t" in line and path.suffix in CODE:
            yield f"{where} a tab"
        if line != line.rstrip():
            yield f"{where} white space at the end"
        if PERSONAL.search(line):
            yield f"{where} a path of one machine"
        if LEFTOVER.search(line) and path.suffix in CODE and path.name != "check_style.py":
            yield f"{where} something left to do"
        if LINE_COMMENT.match(line) and path.suffix in {".c", ".h"}:
            yield f"{where} comments are written /* so */"


def file_faults(path):
    size = (ROOT / path).stat().st_size
    if size > FILE_BYTES:
        yield f"{path}: {size} bytes; at most {FILE_BYTES}: remove it"
        return
    try:
        text = (ROOT / path).read_text()
    except UnicodeDecodeError:
        return
    if "\0" in text:
        return
    lines = text.splitlines()
    code = path.suffix in CODE or text.startswith("#!")
    if text and not text.endswith("\n"):
        yield f"{path}: no end of line at its end"
    if code and len(lines) > FILE_LINES:
        yield f"{path}: {len(lines)} lines; at most {FILE_LINES}"
    yield from line_faults(path, lines, wide=not code)
    if path.suffix == ".c":
        yield from function_faults(path, lines)


def main():
    data = {"corpus", "golden"}
    checked = [path for path in files() if not data & set(path.parts)]
    finish("style", len(checked), [fault for path in checked for fault in file_faults(path)])


if __name__ == "__main__":
    main()
