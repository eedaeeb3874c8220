#!/usr/bin/env python3
"""connector/cairn.map exports exactly the functions that connector/cairn.h declares."""
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "helpers"))
from sources import ROOT, finish  # noqa: E402


def declared():
    """Names of the functions marked CAIRN_API in the public header."""
    text = re.sub(r"/\*.*?\*/", "", (ROOT / "connector/cairn.h").read_text(), flags=re.DOTALL)
    text = re.sub(r"^#.*$", "", text, flags=re.MULTILINE)
    return set(re.findall(r"\bCAIRN_API\b[^;(]*?\b(cairn_\w+)\s*\(", text))


def exported():
    """Names in the version script."""
    text = re.sub(r"/\*.*?\*/", "", (ROOT / "connector/cairn.map").read_text(), flags=re.DOTALL)
    return set(re.findall(r"\b(cairn_\w+)\s*;", text))


def main():
    header, script = declared(), exported()
    faults = [f"{name} is in connector/cairn.h but not in connector/cairn.map"
              for name in sorted(header - script)]
    faults += [f"{name} is in connector/cairn.map but not in connector/cairn.h"
               for name in sorted(script - header)]
    finish("exports", len(header), faults)


if __name__ == "__main__":
    main()
