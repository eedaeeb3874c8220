#!/usr/bin/env python3
"""Counts of JUnit files as "passed failed skipped"; names what failed on stderr.

A program that runs Criterion tests counts as that many tests; what is named in the file given with
--unstable= has passed since (again.py)."""

import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

SYNTHESIS = re.compile(r"Tested: (\d+) \| Passing: (\d+) \| Failing: (\d+) \| Crashing: (\d+)")


def count(case):
    text = "".join(case.itertext())
    found = SYNTHESIS.findall(text)
    bad = case.find("failure") is not None or case.find("error") is not None
    if found:
        tested, passing, failing, crashing = map(int, found[-1])
        failed = min(failing + crashing, tested - passing)
        return passing, max(failed, int(bad)), tested - passing - failed
    skipped = case.find("skipped")
    if skipped is not None:
        # ctest calls a program that it does not find skipped as well.
        lacking = "Unable to find" in skipped.get("message", "") or "Unable to find" in text
        return 0, int(lacking), int(not lacking)
    return int(not bad), int(bad), 0


def name_of(case):
    return "::".join(filter(None, (case.get("classname"), case.get("name"))))


def main(paths, unstable):
    total = [0, 0, 0]
    for path in paths:
        for case in ET.parse(path).iter("testcase"):
            one = count(case)
            if one[1] and name_of(case) in unstable:
                one = one[0] + one[1], 0, one[2]
            total = [a + b for a, b in zip(total, one)]
            if one[1]:
                print(f"failed: {name_of(case)}", file=sys.stderr)
    print(*total)


if __name__ == "__main__":
    OPTION = "--unstable="
    given = [a[len(OPTION):] for a in sys.argv[1:] if a.startswith(OPTION)]
    main([a for a in sys.argv[1:] if not a.startswith(OPTION)],
         {name for file in given for name in Path(file).read_text().splitlines()})
